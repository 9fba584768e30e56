"""Margins, probabilities and losses, clean and attacked, and what normalises them.

wen2020 Fig. 1b, 4, 5 and B.3 to B.5: adversarial training crowds samples around the decision boundary. farnia2019 Fig. 3:
margins over the capacity of the network tell true labels from random ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, Summary, option

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Options:
    """Which attacks, which margin counts as small, and what else is measured."""

    attack: tuple[AttackSpec, ...] = option(
        (AttackSpec("pgd-l2"),),
        "Attacks beside the clean samples; fgm-l2, pgd-l2 and wrm have a capacity term.",
    )
    gamma: float = option(1.0, "Margin parameter of ramp and margin loss, in logits.", above=0)
    near: float = option(
        1.0, "Samples with |margin| below it, in logits, count as near the boundary.", above=0
    )
    instance: bool = option(
        True, "Also the distance to the boundary in input space, along DeepFool's direction."
    )
    clip: bool = option(False, "Keep perturbed inputs in the range of the data.")


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """Margins of a batch, clean and under each attack; see `ANALYZER.arrays`."""
    import numpy as np
    import torch

    from specdiag.analyzers import _attacked, _gradients, _margins
    from specdiag.attacks._losses import Loss

    clean = model.logits(batch.x).double()
    labels = clean.argmax(1) if batch.y is None else batch.y
    names, columns, lengths = (
        ["clean"],
        [clean],
        [torch.zeros(len(clean), dtype=torch.float64, device=clean.device)],
    )
    points = [batch.x]
    for spec in options.attack:
        found = _attacked.attacked(_attacked.attack_of(spec, clip=options.clip), model, batch)
        names.append(str(spec))
        columns.append(model.logits(found.x).double())
        lengths.append(found.norm)
        if spec.values.get("eps") is None:
            # kappa is of a ball, and an attack without eps has none
            continue
        norm, _ = _gradients.norm_and_dual(spec)
        radius = found.offset.abs().amax(1) if norm == "linf" else found.norm
        points += [found.x, _gradients.towards_certainty(model, batch.x, radius, norm)]
    loss = Loss("cross-entropy")
    margin = torch.stack([_margins.margins(column, labels) for column in columns], 1)
    losses = torch.stack([loss.value(column, labels) for column in columns], 1)
    arrays: Arrays = {
        "margin": margin,
        "probability": torch.exp(-losses),
        "loss": losses,
        "wrong": torch.stack([column.argmax(1) != labels for column in columns], 1),
        "near_boundary": margin.abs() < options.near,
        "margin_loss": margin <= options.gamma,
        "ramp_loss": _margins.ramp(margin, options.gamma),
        "loss_variation": losses - losses[:, :1],
        "perturbation_norm": torch.stack(lengths, 1),
        "label": labels,
        "kappa": _gradients.least_gradient(model, points),
        "attack": np.array(_distinct(names)),
    }
    if options.instance:
        arrays |= _margins.boundary(model, batch, steps=50)
    return arrays | _network(model, options)


def _distinct(names: list[str]) -> list[str]:
    return [
        name if name not in names[:k] else f"{name}#{names[:k].count(name) + 1}"
        for k, name in enumerate(names)
    ]


def _network(model: Model, options: Options) -> Arrays:
    """What the capacity terms need of network and attacks."""
    import dataclasses

    import numpy as np

    from specdiag.analyzers._lipschitz import bounds_of
    from specdiag.analyzers._operators import norms_of
    from specdiag.options import build_attack

    norms, bounds = norms_of(model, False), bounds_of(model, False)
    columns: dict[str, list[float]] = {key: [float("nan")] for key in ("eps", "steps", "alpha", "penalty")}
    for spec in options.attack:
        built = build_attack(spec)
        known = {item.name: getattr(built, item.name) for item in dataclasses.fields(built)}
        eps, steps = known.get("eps"), known.get("steps")
        if known.get("alpha") is None and isinstance(eps, int | float) and steps:
            known["alpha"] = 2 * eps / steps
        for key, column in columns.items():
            value = known.get(key)
            column.append(float(value) if isinstance(value, int | float) else float("nan"))
    arrays: Arrays = {f"attack_{key}": np.array(column) for key, column in columns.items()}
    arrays |= {
        "operator_norm": norms.sigma_max,
        "frobenius": norms.frobenius,
        "sigma_min": norms.sigma_min,
        "layer": np.array(norms.names),
        "input_scale": np.array([_input_scale(model)[0]]),
        "input_scale_min": np.array([_input_scale(model)[1]]),
        "outside_theorem": np.array([float(bounds.branches or bounds.batch_norm or bool(bounds.failed))]),
        "chain": np.array([float(not bounds.branches and not bounds.failed)]),
    }
    rows = _head_distance(model)
    if rows is not None:
        arrays["head_distance"] = np.array([rows])
    return arrays


def _input_scale(model: Model) -> tuple[float, float]:
    """Largest and smallest factor of the normalisation in front of the first layer; NaN where it is no linear map."""
    kind, std = model.normalisation.kind, model.normalisation.std
    if model.space == "model" or kind == "none":
        return 1.0, 1.0
    return (1 / min(std), 1 / max(std)) if kind == "channel" else (float("nan"), float("nan"))


def _head_distance(model: Model) -> float | None:
    """min_{i != j} ||w_i - w_j||_2 over the rows of the last layer."""
    import torch

    if model.facts.head is None or model.outputs < 2:
        return None
    return float(torch.pdist(model.head_weight().double()).min())


def finish(data: xarray.Dataset) -> xarray.Dataset:
    """Capacity terms with kappa over all samples, normalised margins, and u_min of wen2020 eq. 5."""
    from specdiag.analyzers._margins_numbers import with_capacity, with_least_margin

    return with_least_margin(with_capacity(data))


def summarise(data: xarray.Dataset) -> Summary:
    """Skewness and mode of the margins, and the gaps between the splits where both were analysed."""
    from specdiag.analyzers._margins_numbers import gaps, shapes

    return {**shapes(data), **gaps(data)}


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Distributions of margins, clean and attacked; probabilities; normalised margins where there are any."""
    from specdiag.analyzers._keys import keys, labelled
    from specdiag.analyzers._margins_plot import plot_attacked, plot_instance, plot_margins, plot_normalised

    runs = labelled(runs)
    panels: list[Any] = [plot_margins, plot_attacked]
    if any("instance_margin" in data for data in runs.values()):
        panels.append(plot_instance)
    found = {
        str(name)
        for data in runs.values()
        if "theorem" in data.coords
        for place, name in enumerate(data["theorem"].values)
        if (data["normalised_margin"].values[:, place] > 0).any()
    }
    panels += [
        partial(plot_normalised, theorem=name) for name in ("erm", "fgm", "pgm", "wrm") if name in found
    ]
    wide = 2 if len(panels) <= 4 else 3
    high = -(-len(panels) // wide)
    figure.set_size_inches(5.2 * wide, 4.2 * high)
    axes = figure.subplots(high, wide, squeeze=False).ravel()
    for ax, draw in zip(axes, panels, strict=False):
        draw(runs, ax)
    for ax in axes[len(panels) :]:
        ax.remove()
    keys(figure, runs)


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Per split and attack: error, margin, its shape, loss and probability."""
    from specdiag.analyzers._margins_numbers import rows

    titles = [
        "split",
        "samples",
        "error",
        "margin",
        "STD",
        "skewness",
        "mode",
        "near 0",
        "L_gamma",
        "ramp",
        "loss",
    ]
    return titles, rows(data)


def sentence(data: xarray.Dataset) -> str:
    """Typical margin clean and attacked, and how far the boundary is."""
    import numpy as np

    margin = data["margin"].values
    text = f"The median margin is {np.nanmedian(margin[:, 0]):.3g}"
    for number, name in enumerate(data["attack"].values[1:], 1):
        text += f", {np.nanmedian(margin[:, number]):.3g} under {name}"
    if "instance_margin" in data:
        reach = np.nanmedian(data["instance_margin"].values)
        share = 100 * data["monotone"].values.mean()
        text += f"; the boundary is {reach:.3g} away (median), and for {share:.0f} % the margin falls all the way to it"
    return text + "."


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """What the capacity terms do not cover."""
    from specdiag.analyzers import _checks
    from specdiag.analyzers._margins_numbers import no_u_min, undefined

    found = list(_checks.foolbox_warning(data, data["attack"].values))
    if float(data["outside_theorem"].values[0]):
        text = "The network has branches, BatchNorm or functions without a Lipschitz constant: it is outside the theorems "
        found.append(
            _checks.warning(
                "SD325", text + "of farnia2019, and its normalised margins only compare like networks."
            )
        )
    for name in undefined(data):
        reason = (
            "its bound on the gradient is not below the penalty"
            if name == "wrm"
            else "the smallest gradient found is zero, or nearly"
        )
        found.append(_checks.warning("SD326", f"The capacity term of {name} is undefined here: {reason}."))
    reason = no_u_min(data)
    if reason:
        found.append(_checks.warning("SD327", f"There is no u_min (wen2020 eq. 5): {reason}."))
    return found


_SAMPLE, _BOTH, _ATTACK, _LAYER, _ONE = (
    ("sample",),
    ("sample", "attack"),
    ("attack",),
    ("layer",),
    ("network",),
)
ANALYZER = Analyzer(
    name="margins",
    summary="Margins, losses and probabilities, clean and attacked, and margins over capacity.",
    source="wen2020, Fig. 1b, 3-5, B.3-B.5, eq. 5; farnia2019, Fig. 3, Theorems 1-4",
    version=1,
    needs=("test", "train"),
    options=Options,
    arrays={
        "margin": ArraySpec(_BOTH, "logit", "f_y - max_{j != y} f_j"),
        "probability": ArraySpec(_BOTH, "1", "softmax probability of the label"),
        "loss": ArraySpec(_BOTH, "nat", "cross-entropy loss"),
        "wrong": ArraySpec(_BOTH, "1", "the answer is not the label"),
        "near_boundary": ArraySpec(_BOTH, "1", "|margin| is below --near"),
        "margin_loss": ArraySpec(_BOTH, "1", "the margin is at most --gamma"),
        "ramp_loss": ArraySpec(_BOTH, "1", "min(1, max(0, 1 - margin / gamma))"),
        "loss_variation": ArraySpec(_BOTH, "nat", "loss under the attack minus the clean loss"),
        "perturbation_norm": ArraySpec(_BOTH, "input", "||perturbation||_2"),
        "label": ArraySpec(_SAMPLE, "class", "label, or the network's answer where the data have none"),
        "kappa": ArraySpec(
            _SAMPLE,
            "loss / input",
            "smallest ||grad_x L||_2 over all labels at the points tried: an upper estimate",
        ),
        "instance_margin": ArraySpec(
            _SAMPLE, "input", "l2 distance to the boundary along DeepFool's direction"
        ),
        "monotone": ArraySpec(_SAMPLE, "1", "the margin falls all along that way (assumption 3.1)"),
        "normalised_margin": ArraySpec(
            ("sample", "theorem"),
            "1",
            "margin over sqrt(Phi) of the theorem; attacked where the theorem is of an attack",
        ),
        "normalised_margin_spectral": ArraySpec(
            ("sample", "theorem"), "1", "the same without the Frobenius factor of Phi"
        ),
        "log_phi": ArraySpec(("theorem",), "1", "log of the capacity term Phi"),
        "log_phi_spectral": ArraySpec(("theorem",), "1", "log Phi without its Frobenius factor"),
        "attack_eps": ArraySpec(_ATTACK, "input", "eps of the attack"),
        "attack_steps": ArraySpec(_ATTACK, "1", "steps of the attack"),
        "attack_alpha": ArraySpec(_ATTACK, "input", "step length of the attack"),
        "attack_penalty": ArraySpec(_ATTACK, "1", "penalty (lambda) of the attack"),
        "operator_norm": ArraySpec(_LAYER, "1", "largest singular value of the layer, BatchNorm folded"),
        "frobenius": ArraySpec(_LAYER, "1", "Frobenius norm of the layer as an operator"),
        "sigma_min": ArraySpec(
            _LAYER, "1", "smallest singular value; NaN where the layer is too large for all"
        ),
        "input_scale": ArraySpec(_ONE, "1", "largest factor of the normalisation before the first layer"),
        "input_scale_min": ArraySpec(_ONE, "1", "its smallest factor"),
        "outside_theorem": ArraySpec(_ONE, "1", "the network is outside the theorems of farnia2019"),
        "chain": ArraySpec(_ONE, "1", "the network is a chain of layers"),
        "head_distance": ArraySpec(_ONE, "1", "smallest distance of two rows of the last layer"),
        "u_min": ArraySpec(_ONE, "logit", "u_min of wen2020 eq. 5"),
        "smallest_margin": ArraySpec(_ONE, "logit", "smallest margin of a right answer"),
    },
    metrics={
        "margin_mean": MetricSpec("logit", "neither", "mean margin", "margin", "mean", _ATTACK),
        "margin_std": MetricSpec("logit", "neither", "STD of the margins", "margin", "std", _ATTACK),
        "margin_skewness": MetricSpec("1", "neither", "skewness of the margins", dims=_ATTACK),
        "margin_mode": MetricSpec("logit", "neither", "mode of the margins (kernel estimate)", dims=_ATTACK),
        "error": MetricSpec("1", "lower", "share of wrong answers", "wrong", "share", _ATTACK),
        "near_share": MetricSpec("1", "lower", "share near the boundary", "near_boundary", "share", _ATTACK),
        "margin_loss": MetricSpec(
            "1", "lower", "share of margins up to gamma", "margin_loss", "share", _ATTACK
        ),
        "ramp_risk": MetricSpec("1", "lower", "mean ramp loss", "ramp_loss", "mean", _ATTACK),
        "loss_mean": MetricSpec("nat", "lower", "mean cross-entropy loss", "loss", "mean", _ATTACK),
        "loss_variation_mean": MetricSpec(
            "nat", "lower", "mean rise of the loss under attack", "loss_variation", "mean", _ATTACK
        ),
        "loss_variation_std": MetricSpec(
            "nat", "lower", "STD of the rise of the loss under attack", "loss_variation", "std", _ATTACK
        ),
        "instance_margin_median": MetricSpec(
            "input", "higher", "median distance to the boundary", "instance_margin", "median"
        ),
        "instance_margin_min": MetricSpec(
            "input", "higher", "smallest distance to the boundary", "instance_margin", "min"
        ),
        "monotone_share": MetricSpec(
            "1", "neither", "share whose margin falls all the way", "monotone", "share"
        ),
        "normalised_margin_mean": MetricSpec(
            "1", "higher", "mean normalised margin", "normalised_margin", "mean", ("theorem",)
        ),
        "loss_gap": MetricSpec("nat", "lower", "test loss minus training loss", dims=_ATTACK),
        "error_gap": MetricSpec("1", "lower", "test error minus training error", dims=_ATTACK),
        "margin_loss_gap": MetricSpec("1", "lower", "L_gamma on test minus training data", dims=_ATTACK),
        "smallest_margin": MetricSpec("logit", "higher", "smallest margin of a right answer"),
        "u_min": MetricSpec(
            "logit", "neither", "u_min of wen2020 eq. 5, a lower bound of it under its assumptions"
        ),
    },
    coordinates={"attack": "clean or the attack", "layer": "module path of the layer"},
    compute=compute,
    finish=finish,
    summarise=summarise,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
    memory=lambda options, sizes: 16 * sizes["K"] * sizes["D"],
)
