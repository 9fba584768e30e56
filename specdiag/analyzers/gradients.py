"""Dual norms of the input gradients of loss and logits, and how well they predict what an attack does.

simongabriel2019: to first order an attack of size eps in a norm raises the loss by eps times the dual norm of its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, Summary, option

if TYPE_CHECKING:
    import torch
    import xarray
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch

# up to so many inputs the distance to every wall of the cell is exact and cheap
SMALL_INPUT, SMALL_BUDGET = 64, 1000


@dataclass(frozen=True, slots=True)
class Options:
    """Which attack the first-order prediction is held against."""

    attack: AttackSpec = option(AttackSpec("pgd-l2"), "The attack whose damage is predicted and measured.")
    clip: bool = option(
        False, "Keep perturbed inputs in the range of the data; predictions do not know of it."
    )
    initialisation: bool = option(True, "Also active shares and weights of the same network before training.")
    snr_eps: float = option(
        0.05, "Perceptibility: bound on ||d||_2 / ||x||_2 for the signal-to-noise ratio.", above=0
    )
    cell_budget: int | Literal["auto"] = option(
        "auto",
        "Gradients per sample to prove the lower bound exact; auto: where it is cheap; 0: never.",
        min=0,
    )


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """Gradient norms, predicted and measured damage of a batch; see `ANALYZER.arrays`."""
    import numpy as np
    import torch

    from specdiag.analyzers import _attacked, _gradients
    from specdiag.attacks._losses import Loss
    from specdiag.jacobian.rows import by_autograd

    jacobian = by_autograd(model, batch.x)
    logits, matrix = jacobian.outputs.double(), jacobian.matrix.double()
    answer = logits.argmax(1)
    labels = answer if batch.y is None else batch.y
    gradient = _gradients.loss_gradient(logits, matrix, labels)
    found = _attacked.attacked(_attacked.attack_of(options.attack, clip=options.clip), model, batch)
    norm, dual = _gradients.norm_and_dual(options.attack)
    radius = _radius(options.attack, found, norm)
    moved = model.logits(found.x).double()
    loss = Loss("cross-entropy")
    points = [batch.x]
    if options.attack.values.get("eps") is not None:
        # kappa is of a ball, and an attack without eps has none
        points += [found.x, _gradients.towards_certainty(model, batch.x, radius, norm)]
    bound = _gradients.lower_bound(logits, matrix, dual)
    gradient_norms = _gradients.all_norms(gradient)
    arrays: Arrays = {
        "loss_gradient_norm": gradient_norms,
        "logit_gradient_norm": _gradients.all_norms(matrix),
        "kappa": _gradients.least_gradient(model, points),
        "loss": loss.value(logits, labels),
        "predicted_damage": radius * gradient_norms[:, 0 if dual == 1 else 1],
        "measured_damage": loss.value(moved, labels) - loss.value(logits, labels),
        "zero_one_damage": (moved.argmax(1) != labels).double() - (answer != labels).double(),
        "changed": moved.argmax(1) != answer,
        "radius": radius,
        "perturbation_norm": found.norm,
        "cross_lipschitz": _gradients.cross_lipschitz(matrix),
        "lower_bound": bound,
        "lower_bound_exact": _exact(model, batch, options, bound, norm),
        "snr": _snr(batch, gradient, options.snr_eps),
        "usable": found.usable,
        "near_kink": jacobian.near_kink,
        "outside_range": _attacked.outside_share(found.x, batch, model),
        "dual_order": np.array([dual]),
        "q": np.array(["1", "2", "inf"]),
    }
    if not torch.isfinite(matrix).all():
        arrays["cross_lipschitz"] = torch.where(
            torch.isfinite(matrix).flatten(1).all(1), arrays["cross_lipschitz"], torch.nan
        )
    return arrays | _statistics(model, batch, options.initialisation)


def _radius(spec: AttackSpec, found: Any, norm: str) -> torch.Tensor:
    """The eps of the attack; where it has none, the length of each perturbation in its norm."""
    import torch

    eps = spec.values.get("eps")
    if isinstance(eps, int | float):
        return torch.full_like(found.norm, float(eps))
    length: torch.Tensor = found.offset.abs().amax(1) if norm == "linf" else found.norm
    return length


def _exact(model: Model, batch: Batch, options: Options, bound: torch.Tensor, norm: str) -> torch.Tensor:
    """Whether the ball of the lower bound's size lies in the cell, so that the bound holds exactly."""
    import torch

    from specdiag.analyzers._cells import cell_radius, curved_module

    budget = options.cell_budget
    if budget == "auto":
        budget = SMALL_BUDGET if model.inputs <= SMALL_INPUT else 0
    if budget == 0 or curved_module(model, batch.x) is not None:
        return torch.zeros_like(bound, dtype=torch.bool)
    radius, exact = cell_radius(model, batch, budget)
    reach = bound * (model.inputs**0.5 if norm == "linf" else 1.0)
    inside: torch.Tensor = exact & (reach <= radius)
    return inside


def _snr(batch: Batch, gradient: torch.Tensor, eps: float) -> torch.Tensor:
    """||x||_2 over ||d||_2 of the largest first-order perturbation with ||d||_p <= ||x||_2 D^(1/p - 1/2) eps, (N, 3).

    In the order of the dual norms q = 1, 2, inf, which is p = inf, 2, 1 (simongabriel2019 eq. 19, Lemma 12).
    """
    import torch

    size = torch.linalg.vector_norm(batch.x.double().flatten(1), dim=1)
    inputs = gradient.shape[1]
    moving = (gradient != 0).double().sum(1)
    lengths = (
        size * inputs**-0.5 * eps * moving.sqrt(),
        torch.where(moving > 0, size * eps, 0.0),
        torch.where(moving > 0, size * inputs**0.5 * eps, 0.0),
    )
    return torch.stack([size / length for length in lengths], 1)


def _statistics(model: Model, batch: Batch, initialisation: bool) -> Arrays:
    """Active shares and weight variances, trained and before training."""
    import numpy as np

    from specdiag.analyzers._activity import active_shares, weight_variances
    from specdiag.analyzers._attacked import twin_of

    names, shares = active_shares(model, batch.x)
    layers, variances = weight_variances(model.network)
    arrays: Arrays = {"weight_variance": variances, "layer": np.array(layers)}
    if names:
        arrays |= {"active_share": shares, "activation": np.array(names)}
    twin = twin_of(model, batch.draws.seed) if initialisation else None
    if twin is not None:
        before = active_shares(twin, batch.x)[1]
        arrays["initial_weight_variance"] = weight_variances(twin.network)[1]
        if names and before.shape == shares.shape:
            arrays["initial_active_share"] = before
    return arrays


def summarise(data: xarray.Dataset) -> Summary:
    """How well the first-order prediction does over the samples: correlation and ratio of means."""
    import numpy as np

    from specdiag.analyzers._gradients_plot import damages

    predicted, measured = damages(data)
    if len(predicted) < 2:
        return {}
    unknown = float("nan")
    ratio = float(measured.mean() / predicted.mean()) if predicted.mean() > 0 else unknown
    # standard error of a ratio of means by linearisation
    rest = measured - ratio * predicted
    error = (
        float(rest.std(ddof=1) / np.sqrt(len(rest)) / predicted.mean()) if predicted.mean() > 0 else unknown
    )
    found: Summary = {"damage_ratio": (ratio, error)}
    if predicted.std() > 0 and measured.std() > 0:
        found["damage_correlation"] = (float(np.corrcoef(predicted, measured)[0, 1]), unknown)
    return found


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Distribution of the loss gradient's dual norm, measured against predicted damage, and active shares."""
    from specdiag.analyzers._gradients_plot import plot_active, plot_damage, plot_norms
    from specdiag.analyzers._keys import keys, labelled

    runs = labelled(runs)
    panels = [plot_norms, plot_damage]
    if any("active_share" in data for data in runs.values()):
        panels.append(plot_active)
    figure.set_size_inches(5.4 * len(panels), 4.6)
    for ax, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(runs, ax)
    keys(figure, runs)


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Norms of the gradients of loss and logits for each q: mean and percentiles."""
    import numpy as np

    rows = []
    for place, q in enumerate(data["q"].values):
        for what, values in (
            ("loss", data["loss_gradient_norm"].values[:, place]),
            ("logits", data["logit_gradient_norm"].values[:, :, place]),
        ):
            kept = values[np.isfinite(values)]
            if len(kept):
                marks = [f"{mark:.3g}" for mark in np.percentile(kept, [5, 50, 95])]
                rows.append([f"{what}, q = {q}", f"{kept.mean():.3g}", *marks])
    if not rows:
        rows = [["no finite gradient", "-", "-", "-", "-"]]
    return ["gradient of", "mean", "5 %", "median", "95 %"], rows


def sentence(data: xarray.Dataset) -> str:
    """Predicted and measured damage, and what the labels lose."""
    from specdiag.analyzers._gradients_plot import damages

    predicted, measured = damages(data)
    if not len(predicted):
        return "No sample has a finite gradient."
    changed, damage = data["changed"].values.mean(), data["zero_one_damage"].values.mean()
    exact = data["lower_bound_exact"].values
    text = (
        f"To first order the attack raises the loss by {predicted.mean():.3g} on average; it raises it by "
        f"{measured.mean():.3g}, changes {100 * changed:.0f} % of the answers and costs {100 * damage:.0f} points of "
        "accuracy"
    )
    if exact.any():
        text += f"; the lower bound on what can change an answer is exact for {100 * exact.mean():.0f} % of the samples"
    return text + "."


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Samples without gradients, inputs outside the data's range."""
    from specdiag.analyzers import _checks

    return [
        *_checks.vanishing_warning(data["usable"]),
        *_checks.outside_warning(data),
    ]


_SAMPLE = ("sample",)
_Q = ("sample", "q")
_ATTACK = "eps of the attack, or the length of the perturbation where it has none"
ANALYZER = Analyzer(
    name="gradients",
    summary="Dual norms of input gradients, and predicted against measured damage.",
    source="simongabriel2019, eq. 2, 9, 16-18, Lemma 12; farnia2019, Fig. 2b, Theorem 2",
    version=1,
    options=Options,
    arrays={
        "loss_gradient_norm": ArraySpec(_Q, "loss / input", "||grad_x L||_q of the cross-entropy loss"),
        "logit_gradient_norm": ArraySpec(
            ("sample", "output", "q"), "logit / input", "||grad_x f_k||_q of each logit"
        ),
        "kappa": ArraySpec(
            _SAMPLE,
            "loss / input",
            "smallest ||grad_x L||_2 over all labels at the points tried: an upper estimate",
        ),
        "loss": ArraySpec(_SAMPLE, "nat", "cross-entropy loss of the label"),
        "predicted_damage": ArraySpec(_SAMPLE, "nat", "radius times the dual norm of the loss gradient"),
        "measured_damage": ArraySpec(_SAMPLE, "nat", "loss at the attacked point minus loss at x"),
        "zero_one_damage": ArraySpec(
            _SAMPLE, "1", "1: the attack makes a right answer wrong; -1: the reverse"
        ),
        "changed": ArraySpec(_SAMPLE, "1", "the attack changes the answer"),
        "radius": ArraySpec(_SAMPLE, "input", _ATTACK),
        "perturbation_norm": ArraySpec(_SAMPLE, "input", "||perturbation||_2"),
        "cross_lipschitz": ArraySpec(
            _SAMPLE, "(logit / input)^2", "mean over class pairs of ||grad f_h - grad f_k||_2^2"
        ),
        "lower_bound": ArraySpec(
            _SAMPLE, "input", "first-order bound on the size of a perturbation that changes the answer", True
        ),
        "lower_bound_exact": ArraySpec(_SAMPLE, "1", "the bound is proved: its ball lies in one linear cell"),
        "snr": ArraySpec(
            _Q,
            "1",
            "||x||_2 over ||d||_2 of the largest first-order perturbation, p = inf, 2, 1; 1 / (eps sqrt(D)) for p = 1",
            True,
        ),
        "usable": ArraySpec(_SAMPLE, "1", "the perturbation rests on finite gradients that are not zero"),
        "near_kink": ArraySpec(
            _SAMPLE, "1", "activations within rounding of a kink, where dtypes may differ"
        ),
        "outside_range": ArraySpec(_SAMPLE, "1", "share of perturbed values outside the range of the data"),
        "dual_order": ArraySpec(("network",), "1", "order q of the norm dual to that of the attack"),
        "active_share": ArraySpec(("sample", "activation"), "1", "share of active units after each layer"),
        "initial_active_share": ArraySpec(
            ("sample", "activation"), "1", "the same for the network before training"
        ),
        "weight_variance": ArraySpec(("layer",), "1", "variance of the weights over He's 2 / fan-in"),
        "initial_weight_variance": ArraySpec(("layer",), "1", "the same for the network before training"),
    },
    metrics={
        "loss_gradient_mean": MetricSpec(
            "loss / input",
            "lower",
            "mean dual norm of the loss gradient",
            "loss_gradient_norm",
            "mean",
            ("q",),
        ),
        "logit_gradient_mean": MetricSpec(
            "logit / input",
            "lower",
            "mean gradient norm by logit",
            "logit_gradient_norm",
            "mean",
            ("output", "q"),
        ),
        "kappa": MetricSpec(
            "loss / input", "higher", "kappa, an upper estimate: smallest found", "kappa", "min"
        ),
        "predicted_damage_mean": MetricSpec(
            "nat", "lower", "mean first-order damage", "predicted_damage", "mean"
        ),
        "measured_damage_mean": MetricSpec(
            "nat", "lower", "mean rise of the loss", "measured_damage", "mean"
        ),
        "damage_ratio": MetricSpec("1", "neither", "measured over predicted damage, of the means"),
        "damage_correlation": MetricSpec("1", "neither", "correlation of predicted and measured damage"),
        "zero_one_damage": MetricSpec("1", "lower", "accuracy lost to the attack", "zero_one_damage", "mean"),
        "vulnerability": MetricSpec(
            "1", "lower", "share of answers that the attack changes", "changed", "share"
        ),
        "cross_lipschitz_mean": MetricSpec(
            "(logit / input)^2", "lower", "mean cross-Lipschitz quantity", "cross_lipschitz", "mean"
        ),
        "lower_bound_median": MetricSpec("input", "higher", "median lower bound", "lower_bound", "median"),
        "exact_share": MetricSpec(
            "1", "neither", "share of lower bounds that are proved", "lower_bound_exact", "share"
        ),
        "snr_mean": MetricSpec("1", "neither", "mean signal-to-noise ratio", "snr", "mean", ("q",)),
        "active_share_mean": MetricSpec(
            "1", "neither", "mean share of active units", "active_share", "mean", ("activation",)
        ),
    },
    coordinates={
        "q": "order of the norm of the gradient",
        "layer": "module path of the layer",
        "activation": "layer before the activation",
    },
    compute=compute,
    summarise=summarise,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
    memory=lambda options, sizes: 20 * sizes["K"] * sizes["D"],
)
