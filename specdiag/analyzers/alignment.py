"""Alignment of perturbations with the singular vectors of the Jacobian (roth2020 5.2, Fig. 1 right, 3 right)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdiag.attacks._options import known
from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, Summary, option

if TYPE_CHECKING:
    import torch
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from specdiag.attacks._dominant import Leading
    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Options:
    """Which perturbations are compared with the singular vectors."""

    attack: AttackSpec = option(AttackSpec("pgd-l2"), f"Perturbations to compare: {known()}.")
    clip: bool = option(False, "Keep perturbed inputs in the range of the data; it bends perturbations.")
    random_network: bool = option(True, "Also the same architecture with random weights, both readings.")
    eps_sweep: tuple[float, ...] = option(
        (), "Also |cos| with the dominant vector at these eps.", above=0, increasing=True
    )
    top: int = option(0, "Only the k dominant vectors, without building J where it is large; 0: all.", min=0)
    steps_sweep: int | None = option(None, "Also the directions after 1 to k attack steps.", min=1)


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """|cosine| of perturbations with every singular vector, and the controls; see `ANALYZER.arrays`."""
    from specdiag.analyzers import _attacked, _checks
    from specdiag.attacks._dominant import leading

    attack = _attacked.attack_of(options.attack, clip=options.clip)
    found = _attacked.attacked(attack, model, batch)
    count = options.top or min(model.outputs, model.inputs)
    top = leading(model, batch, count)
    cosine = _cosines(found, top.right, top.sound)
    random = _attacked.random_directions(batch, "alignment/random").double().flatten(1)
    arrays: Arrays = {
        "cosine": cosine,
        "random_cosine": _absolute(random, top.right, top.sound),
        "subspace_energy": cosine.square().cumsum(1),
        "singular_values": top.values,
        "dominant_cosine": cosine[:, 0],
        "random_expectation": cosine.new_full((len(cosine),), _attacked.expected_cosine(model.inputs)),
        "perturbation_norm": found.norm,
        "usable": found.usable,
        "near_kink": top.near_kink,
        "outside_range": _attacked.outside_share(found.x, batch, model),
        **_checks.output_facts(top.outputs),
    }
    if batch.y is not None:
        arrays["fooled"] = model.logits(found.x).argmax(1) != batch.y
    if options.random_network:
        arrays |= _random_network(model, batch, attack, found, count)
    if options.eps_sweep:
        arrays |= _eps_sweep(model, batch, options, top)
    if options.steps_sweep is not None:
        arrays |= _steps_sweep(model, batch, options, top)
    return arrays


def _absolute(offset: torch.Tensor, vectors: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """|cos| of offsets (N, D) with the columns of vectors (N, D, R), NaN where not usable."""
    import torch

    unit = offset / torch.linalg.vector_norm(offset, dim=1, keepdim=True)
    cosine = (unit[:, None, :] @ vectors)[:, 0].abs()
    return torch.where(usable[:, None], cosine, torch.nan)


def _cosines(found: Any, right: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    return _absolute(found.offset, right, finite & found.usable)


def _random_network(model: Model, batch: Batch, attack: Any, found: Any, count: int) -> Arrays:
    """The network's perturbations in the random network's vectors, and the random network's own."""
    from specdiag.analyzers import _attacked
    from specdiag.attacks._dominant import leading

    twin = _attacked.twin_of(model, batch.draws.seed)
    if twin is None:
        return {}
    top = leading(twin, batch, count)
    own = _attacked.attacked(attack, twin, batch)
    return {
        "random_network_cosine": _cosines(found, top.right, top.sound),
        "random_self_cosine": _cosines(own, top.right, top.sound),
    }


def _eps_sweep(model: Model, batch: Batch, options: Options, top: Leading) -> Arrays:
    import torch

    from specdiag.analyzers import _attacked

    columns = []
    for eps in options.eps_sweep:
        attack = _attacked.attack_of(options.attack, clip=options.clip, eps=eps)
        found = _attacked.attacked(attack, model, batch)
        columns.append(_cosines(found, top.right[:, :, :1], top.sound)[:, 0])
    return {
        "eps_cosine": torch.stack(columns, 1),
        "eps": torch.tensor(options.eps_sweep, dtype=torch.float64),
    }


def _steps_sweep(model: Model, batch: Batch, options: Options, top: Leading) -> Arrays:
    """Gradient direction v_k, perturbation and logit direction u_k after each step of one attack."""
    import dataclasses

    import torch

    from specdiag.analyzers import _attacked

    attack = _attacked.attack_of(options.attack, clip=options.clip)
    count = options.steps_sweep or 1
    if hasattr(attack, "steps"):
        attack = dataclasses.replace(attack, steps=count)
    gradients, moved, logits = [], [], []

    def observe(number: int, points: torch.Tensor, gradient: Any) -> None:
        usable = top.sound & gradient.usable
        gradients.append(_absolute(gradient.v.double().flatten(1), top.right[:, :, :1], usable)[:, 0])
        offset = (points.double() - batch.x.double()).flatten(1)
        moved.append(_absolute(offset, top.right[:, :, :1], usable)[:, 0])
        logits.append(_absolute(gradient.direction, top.left, usable))

    _attacked.attacked(attack, model, batch, observe=observe)
    return {
        "step_gradient_cosine": torch.stack(gradients, 1),
        "step_cosine": torch.stack(moved, 1),
        "step_logit_cosine": torch.stack(logits, 1),
        "step": torch.arange(1, count + 1),
    }


def summarise(data: xarray.Dataset) -> Summary:
    """Top-half energy, and how the mean alignment falls with rank."""
    import numpy as np

    cosine = data["cosine"].values
    cosine = cosine[np.isfinite(cosine).all(1)]
    if not len(cosine):
        return {}
    ranks = np.argsort(np.argsort(cosine.mean(0)))
    count = len(ranks)
    trend = float(np.corrcoef(np.arange(count), ranks)[0, 1]) if count > 1 else float("nan")
    return {"rank_trend": (trend, float("nan"))}


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """|cos| against rank, one curve per run and the controls; panels for the sweeps where they were asked for."""
    from specdiag.analyzers._keys import keys, labelled

    plain, runs = runs, labelled(runs)
    panels = [_plot_ranks]
    if any("eps_cosine" in data for data in runs.values()):
        panels.append(_plot_eps)
    if any("step_cosine" in data for data in runs.values()):
        panels.append(_plot_steps)
    if len(panels) > 1:
        figure.set_size_inches(5.4 * len(panels), 4.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, draw in zip(axes, panels, strict=True):
        # a sweep has its eps on the axis
        draw(plain if draw is _plot_eps else runs, ax)
    keys(figure, runs)


_CONTROLS = (
    ("random_cosine", "random perturbations", "#777777", "-"),
    ("random_network_cosine", "in a random network's vectors", "#999933", "--"),
    ("random_self_cosine", "random network itself", "#882255", "-."),
)


def _plot_ranks(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    from specdiag.analyzers._drawing import mean_and_error
    from specdiag.figures import line_with_band

    for number, (label, data) in enumerate(runs.items()):
        line_with_band(ax, data["rank"].values, *mean_and_error(data["cosine"].values), label, number)
    for number, data in enumerate(runs.values()):
        for name, label, colour, line in _CONTROLS:
            if name in data and (number == 0 or name == "random_network_cosine"):
                mean, _ = mean_and_error(data[name].values)
                shown = label if number == 0 else None
                ax.plot(data["rank"].values, mean, color=colour, ls=line, lw=1.2, label=shown, zorder=2)
    first = next(iter(runs.values()))
    expected = float(first["random_expectation"].values[0])
    ax.axhline(expected, color="black", lw=0.8, ls=(0, (1, 3)), label="random, expected", zorder=1)
    ranks = first["rank"].values
    if len(ranks) <= 20:
        ax.set_xticks(ranks)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("rank of the singular vector")
    ax.set_ylabel("|cos| of perturbation and right singular vector")
    ax.set_title("Alignment with singular vectors (mean, std. error)")


def _plot_eps(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    from specdiag.analyzers._drawing import mean_and_error
    from specdiag.figures import line_with_band

    expected = None
    for number, (label, data) in enumerate(runs.items()):
        if "eps_cosine" in data:
            line_with_band(ax, data["eps"].values, *mean_and_error(data["eps_cosine"].values), label, number)
            expected = float(data["random_expectation"].values[0])
    if expected is not None:
        ax.axhline(expected, color="black", lw=0.8, ls=(0, (1, 3)), label="random, expected")
    ax.set_ylim(0, 1)
    ax.set_xlabel("eps")
    ax.set_ylabel("|cos| with the dominant singular vector")
    ax.set_title("Alignment against perturbation size")


def _plot_steps(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    from specdiag.analyzers._drawing import mean_and_error
    from specdiag.figures import colour, line_with_band

    for number, (label, data) in enumerate(runs.items()):
        if "step_cosine" not in data:
            continue
        steps = data["step"].values
        line_with_band(
            ax, steps, *mean_and_error(data["step_gradient_cosine"].values), f"{label}: v_k with v_1", number
        )
        mean, _ = mean_and_error(data["step_logit_cosine"].values[:, :, 0])
        ax.plot(steps, mean, color=colour(number), ls=":", lw=1.2, label=f"{label}: u_k with u_1")
        if len(steps) <= 20:
            ax.set_xticks(steps)
    ax.set_ylim(0, 1)
    ax.set_xlabel("attack step k")
    ax.set_ylabel("|cos| with the dominant singular vectors")
    ax.set_title("Directions after k attack steps")


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Mean |cos| by rank: the attack, random directions, the random network, and energy in the top k."""
    from specdiag.analyzers._drawing import mean_and_error

    names = {
        "cosine": "|cos|",
        "subspace_energy": "energy in top k",
        "random_cosine": "random",
        "random_network_cosine": "random network's vectors",
        "random_self_cosine": "random network itself",
    }
    shown = {title: mean_and_error(data[name].values)[0] for name, title in names.items() if name in data}
    count = data.sizes["rank"]
    rows = sorted({*range(min(count, 10)), count - 1} | {2**k - 1 for k in range(3, 20) if 2**k < count})
    return ["rank", *shown], [[str(r + 1), *(f"{column[r]:.3f}" for column in shown.values())] for r in rows]


def sentence(data: xarray.Dataset) -> str:
    """How much stronger than chance perturbations align with the dominant direction."""
    import numpy as np

    from specdiag.analyzers._drawing import mean_and_error

    mean, _ = mean_and_error(data["cosine"].values)
    if not np.isfinite(mean[0]):
        return "No sample has both a perturbation and a Jacobian to compare."
    energy, _ = mean_and_error(data["subspace_energy"].values)
    chance = float(data["random_expectation"].values[0])
    return (
        f"Perturbations have |cos| {mean[0]:.2f} with the dominant singular vector, {mean[0] / chance:.1f} times what "
        f"random directions have, and {mean[-1]:.2f} with the last one; {100 * energy[-1]:.0f} % of their energy lies "
        "in the directions to which the outputs respond at all."
    )


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Samples without gradients, softmax outputs, inputs outside the data's range."""
    from specdiag.analyzers import _checks

    return [
        *_checks.vanishing_warning(data["usable"]),
        *_checks.output_warnings(data),
        *_checks.outside_warning(data),
    ]


_SAMPLE = ("sample",)
_RANK = ("sample", "rank")
ANALYZER = Analyzer(
    name="alignment",
    summary="Alignment of adversarial perturbations with the singular vectors of the Jacobian.",
    source="roth2020, Fig. 1 right, 3 right, 5 right, A.3",
    version=1,
    options=Options,
    arrays={
        "cosine": ArraySpec(_RANK, "1", "|cos| of the perturbation with each right singular vector"),
        "random_cosine": ArraySpec(_RANK, "1", "|cos| of a uniformly random direction with them"),
        "random_network_cosine": ArraySpec(
            _RANK, "1", "|cos| of the perturbation with the vectors of the random network"
        ),
        "random_self_cosine": ArraySpec(
            _RANK, "1", "|cos| of the random network's perturbation with its own vectors"
        ),
        "subspace_energy": ArraySpec(_RANK, "1", "share of ||perturbation||^2 in the top k right vectors"),
        "singular_values": ArraySpec(_RANK, "output / input", "singular values of the Jacobian, falling"),
        "dominant_cosine": ArraySpec(_SAMPLE, "1", "|cos| with the dominant right singular vector"),
        "random_expectation": ArraySpec(
            _SAMPLE, "1", "E|cos| of a random direction in the input's dimension"
        ),
        "perturbation_norm": ArraySpec(_SAMPLE, "input", "||perturbation||_2"),
        "usable": ArraySpec(_SAMPLE, "1", "the perturbation rests on finite gradients that are not zero"),
        "fooled": ArraySpec(_SAMPLE, "1", "the answer at the perturbed point is not the label"),
        "near_kink": ArraySpec(
            _SAMPLE, "1", "activations within rounding of a kink, where dtypes may differ"
        ),
        "outside_range": ArraySpec(_SAMPLE, "1", "share of perturbed values outside the range of the data"),
        "logit_sum": ArraySpec(_SAMPLE, "logit", "sum of the outputs"),
        "logit_lowest": ArraySpec(_SAMPLE, "logit", "smallest output"),
        "logit_rms": ArraySpec(_SAMPLE, "logit", "root mean square of the outputs"),
        "eps_cosine": ArraySpec(
            ("sample", "eps"), "1", "|cos| with the dominant vector of attacks at each eps"
        ),
        "step_gradient_cosine": ArraySpec(
            ("sample", "step"), "1", "|cos| of the step's gradient v_k with the dominant right vector"
        ),
        "step_cosine": ArraySpec(
            ("sample", "step"), "1", "|cos| of the perturbation after k steps with the dominant right vector"
        ),
        "step_logit_cosine": ArraySpec(
            ("sample", "step", "rank"), "1", "|cos| of the logit direction u_k with each left singular vector"
        ),
    },
    metrics={
        "dominant_cosine_mean": MetricSpec(
            "1", "neither", "mean |cos| with the dominant vector", "dominant_cosine", "mean"
        ),
        "random_cosine_mean": MetricSpec(
            "1", "neither", "mean |cos| of random directions, by rank", "random_cosine", "mean", ("rank",)
        ),
        "cosine_mean": MetricSpec("1", "neither", "mean |cos| by rank", "cosine", "mean", ("rank",)),
        "energy_mean": MetricSpec(
            "1", "neither", "mean energy in the top k vectors", "subspace_energy", "mean", ("rank",)
        ),
        "rank_trend": MetricSpec(
            "1", "neither", "rank correlation of mean |cos| with rank; -1: it only falls"
        ),
    },
    coordinates={"eps": "radius of the attack", "step": "attack step"},
    compute=compute,
    summarise=summarise,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
    memory=lambda options, sizes: 12 * (options.top or sizes["K"]) * sizes["D"],
)
