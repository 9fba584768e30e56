"""Softmax along the line from a clean sample to its adversarial example (roth2018 Fig. 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, option

if TYPE_CHECKING:
    import torch
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch

MANY_CLASSES = 20
DRAWN = 12


@dataclass(frozen=True, slots=True)
class Options:
    """Whose line is followed, and how far."""

    attack: AttackSpec = option(AttackSpec("pgd-linf"), "The attack at the end of the line.")
    clip: bool = option(False, "Keep perturbed inputs in the range of the data.")
    points: int = option(41, "Points on the line, both ends counted.", min=3)
    reach: float = option(1.0, "Last point of the line, in parts of the perturbation.", above=0)


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """Probabilities at every point of the line, and how they change; see `ANALYZER.arrays`."""
    import torch

    from specdiag.analyzers import _attacked

    found = _attacked.attacked(_attacked.attack_of(options.attack, clip=options.clip), model, batch)
    parts = torch.linspace(0, options.reach, options.points, dtype=torch.float64)
    offset = found.offset.reshape(batch.x.shape)
    steps = []
    for part in parts.tolist():
        x = (batch.x.double() + part * offset).to(batch.x.dtype)
        steps.append(torch.softmax(model.logits(x).double(), 1))
    probability = torch.stack(steps, 1)
    first = probability[:, 0].argmax(1)
    label = first if batch.y is None else batch.y
    target = _other(model.logits(found.x).double(), label)
    arrays: Arrays = {
        "label_probability": _of_class(probability, label),
        "target_probability": _of_class(probability, target),
        "target": target,
        "fooled": model.logits(found.x).argmax(1) != label,
        "usable": found.usable,
        "perturbation_norm": found.norm,
        "crossing": _crossing(probability, first, parts.to(probability.device)),
        **_changes(probability, options.reach, found.usable),
        "part": parts,
    }
    if probability.shape[2] <= MANY_CLASSES:
        arrays["probability"] = probability
    return arrays


def _other(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The most probable class at the adversarial point but the label, (N,)."""
    import torch

    return logits.scatter(1, label[:, None], -torch.inf).argmax(1)


def _of_class(probability: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    index = which[:, None, None].expand(-1, probability.shape[1], 1)
    return probability.gather(2, index)[:, :, 0]


def _crossing(probability: torch.Tensor, first: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """First point of the line with another answer than at its start; infinite where there is none, (N,)."""
    import torch

    other = probability.argmax(2) != first[:, None]
    place = other.double().argmax(1)
    return torch.where(other.any(1), parts[place], torch.inf)


def _changes(probability: torch.Tensor, reach: float, usable: torch.Tensor) -> Arrays:
    """Largest change per part, total change, and their ratio, of the softmax in total variation distance."""
    import torch

    moved = 0.5 * probability.diff(dim=1).abs().sum(2)
    step = reach / (probability.shape[1] - 1)
    slope, length = moved.amax(1) / step, moved.sum(1)
    # rounding alone moves the softmax by so much
    still = length <= 1e-12
    sharpness = torch.where(usable & ~still, slope * reach / length.clamp_min(1e-300), torch.nan)
    return {"max_slope": slope, "path_length": length, "sharpness": sharpness}


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Mean probabilities along the line, single lines, and the distribution of their sharpness."""
    from specdiag.analyzers._drawing import distribution

    figure.set_size_inches(15, 4.4)
    left, middle, right = figure.subplots(1, 3)
    _plot_means(runs, left)
    _plot_single(runs, middle)
    for number, (label, data) in enumerate(runs.items()):
        distribution(right, data["sharpness"].values, label, number)
    right.set_xlabel("largest slope over mean slope of the softmax")
    right.set_ylabel("share of samples at or below")
    right.set_title("Sharpness, 1 = even")
    for ax in (left, middle, right):
        ax.set_ylim(-0.02, 1.02)
        ax.legend(fontsize=8)


def _plot_means(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    from specdiag.analyzers._drawing import mean_and_error
    from specdiag.figures import colour

    for number, (label, data) in enumerate(runs.items()):
        x = data["part"].values
        for name, line in (("label_probability", "-"), ("target_probability", ":")):
            mean, error = mean_and_error(data[name].values)
            ax.plot(x, mean, color=colour(number), ls=line, label=label if line == "-" else None)
            ax.fill_between(x, mean - error, mean + error, color=colour(number), alpha=0.2, lw=0)
    ax.set_xlabel("part of the perturbation")
    ax.set_ylabel("mean probability")
    ax.set_title("Label (full) and other class (dotted)")


def _plot_single(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    from specdiag.figures import colour

    for number, (label, data) in enumerate(runs.items()):
        rows = data["label_probability"].values[:DRAWN]
        for place, row in enumerate(rows):
            ax.plot(
                data["part"].values,
                row,
                color=colour(number),
                lw=0.9,
                alpha=0.7,
                label=label if place == 0 else None,
            )
    ax.set_xlabel("part of the perturbation")
    ax.set_ylabel("probability of the label")
    ax.set_title(f"The first {DRAWN} samples")


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Mean probabilities and share of changed answers at some points of the line."""
    import numpy as np

    parts = data["part"].values
    label, target = data["label_probability"].values.mean(0), data["target_probability"].values.mean(0)
    crossing = data["crossing"].values
    rows = []
    for place in np.unique(np.linspace(0, len(parts) - 1, 9).round().astype(int)):
        changed = (crossing <= parts[place]).mean()
        rows.append(
            [f"{parts[place]:.3g}", f"{label[place]:.3f}", f"{target[place]:.3f}", f"{100 * changed:.0f} %"]
        )
    return ["part", "label's probability", "other class's", "answers changed"], rows


def sentence(data: xarray.Dataset) -> str:
    """Where answers change, and how suddenly."""
    import numpy as np

    crossing, sharpness = data["crossing"].values, data["sharpness"].values
    sharpness = sharpness[np.isfinite(sharpness)]
    if not len(sharpness):
        return "No sample has a perturbation that changes the softmax."
    crossed = np.isfinite(crossing)
    where = f", half of them by {np.median(crossing[crossed]):.2g} of the way" if crossed.any() else ""
    return (
        f"On the line {100 * crossed.mean():.0f} % of the answers change{where}; the softmax changes at most "
        f"{np.median(sharpness):.2g} times as fast as on average (median)."
    )


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Samples without gradients."""
    from specdiag.analyzers import _checks

    return _checks.vanishing_warning(data["usable"])


_SAMPLE = ("sample",)
_LINE = ("sample", "part")
ANALYZER = Analyzer(
    name="trajectory",
    summary="Softmax along the line from clean samples to adversarial ones.",
    source="roth2018, Fig. 6",
    version=1,
    options=Options,
    arrays={
        "label_probability": ArraySpec(_LINE, "1", "probability of the label"),
        "target_probability": ArraySpec(_LINE, "1", "probability of the class `target`"),
        "probability": ArraySpec(
            ("sample", "part", "class"), "1", f"softmax, for up to {MANY_CLASSES} classes"
        ),
        "target": ArraySpec(_SAMPLE, "class", "most probable class at the adversarial point but the label"),
        "fooled": ArraySpec(_SAMPLE, "1", "the answer at the adversarial point is not the label"),
        "usable": ArraySpec(_SAMPLE, "1", "the perturbation rests on finite gradients that are not zero"),
        "perturbation_norm": ArraySpec(_SAMPLE, "input", "||perturbation||_2"),
        "crossing": ArraySpec(
            _SAMPLE, "1", "part of the perturbation at which the answer first changes", may_be_infinite=True
        ),
        "max_slope": ArraySpec(
            _SAMPLE, "1 / part", "largest change of the softmax per part (total variation distance)"
        ),
        "path_length": ArraySpec(_SAMPLE, "1", "change of the softmax added up along the line"),
        "sharpness": ArraySpec(_SAMPLE, "1", "largest over mean slope; 1: even, NaN: nothing changes"),
    },
    metrics={
        "max_slope_mean": MetricSpec("1 / part", "lower", "mean largest slope", "max_slope", "mean"),
        "sharpness_median": MetricSpec("1", "lower", "median sharpness", "sharpness", "median"),
        "path_length_mean": MetricSpec("1", "neither", "mean change along the line", "path_length", "mean"),
        "fooled_share": MetricSpec("1", "lower", "share that the attack fools", "fooled", "share"),
    },
    coordinates={"part": "part of the perturbation"},
    compute=compute,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
    memory=lambda options, sizes: options.points * sizes["K"],
)
