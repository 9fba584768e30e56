"""Samples, their perturbations and dominant singular vectors, to look at (roth2018 Fig. 3, 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, option

if TYPE_CHECKING:
    import torch
    import xarray
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Options:
    """Which perturbations are shown, and how many."""

    attack: AttackSpec = option(AttackSpec("pgd-linf"), "The attack whose perturbations are shown.")
    clip: bool = option(True, "Keep perturbed inputs in the range of the data.")
    columns: int = option(8, "Samples in the figure; all are stored.", min=1)


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """Clean and perturbed samples, v_1 and the answers; see `ANALYZER.arrays`."""
    import torch

    from specdiag.analyzers import _attacked
    from specdiag.attacks._dominant import leading

    found = _attacked.attacked(_attacked.attack_of(options.attack, clip=options.clip), model, batch)
    top = leading(model, batch, 1)
    # its sign is free: the one that points along the perturbation
    vector = top.right[:, :, 0].double()
    along = (found.offset * vector).sum(1)
    vector = torch.where(along < 0, -1.0, 1.0)[:, None] * vector
    norm = torch.where(found.norm > 0, found.norm, torch.nan)
    cosine = torch.where(top.sound & found.usable, along.abs() / norm, torch.nan)
    clean, moved = model.logits(batch.x), model.logits(found.x)
    arrays: Arrays = {
        "x": _image(batch.x.double()),
        "perturbation": _image(found.offset.reshape(batch.x.shape)),
        "dominant_vector": _image(vector.reshape(batch.x.shape)),
        "dominant_cosine": cosine,
        "perturbation_norm": found.norm,
        "answer": clean.argmax(1),
        "attacked_answer": moved.argmax(1),
        "usable": found.usable,
        "columns": torch.tensor([options.columns]),
    }
    return arrays if batch.y is None else {**arrays, "label": batch.y}


def _image(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W); what is no image becomes one row of pixels."""
    return x if x.ndim == 4 else x.flatten(1)[:, None, None, :]


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """The samples in one row, below them perturbation and v_1 of every run."""
    first = next(iter(runs.values()))
    columns = min(int(first["columns"].values[0]), first.sizes["sample"])
    rows: list[tuple[str, Any, Any, bool]] = [("x", first["x"].values, first, False)]
    for label, data in runs.items():
        name = f"{label}\n" if len(runs) > 1 else ""
        rows.append((f"{name}perturbation", data["perturbation"].values, data, True))
        rows.append((f"{name}v_1", data["dominant_vector"].values, data, True))
    figure.set_size_inches(1.3 + 1.05 * columns, 0.5 + 1.15 * len(rows))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, images, data, signed) in enumerate(rows):
        for place in range(columns):
            ax = axes[line, place]
            ax.imshow(_shown(images[place], signed), cmap="RdBu_r" if signed else "gray", vmin=0, vmax=1)
            ax.grid(visible=False)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(_caption(data, place, line), fontsize=7, pad=2)
        axes[line, 0].set_ylabel(label, fontsize=8)
    for place in range(columns):
        number = str(int(first["sample"].values[place]))
        axes[0, place].set_xlabel(f"sample {number}" if place == 0 else number, fontsize=7, labelpad=1)


def _shown(image: Any, signed: bool) -> Any:
    """(H, W) or (H, W, 3) in [0, 1]; signed: 0 becomes one half, scaled by the largest absolute value."""
    import numpy as np

    image = np.nan_to_num(np.asarray(image, dtype=float))
    if signed:
        most = float(np.abs(image).max())
        image = 0.5 + 0.5 * image / (most if most > 0 else 1.0)
    else:
        image = (image - image.min()) / max(float(np.ptp(image)), 1e-12)
    return np.moveaxis(image, 0, -1) if len(image) == 3 else image.mean(0)


def _caption(data: xarray.Dataset, place: int, line: int) -> str:
    answer, attacked = int(data["answer"].values[place]), int(data["attacked_answer"].values[place])
    if line == 0:
        return f"label {int(data['label'].values[place])}" if "label" in data else ""
    if line % 2:
        return f"{answer}" if answer == attacked else f"{answer} to {attacked}"
    cosine = float(data["dominant_cosine"].values[place])
    return f"|cos| {cosine:.2f}" if cosine == cosine else ""


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Answers, length of the perturbation and its |cos| with v_1, of the samples in the figure."""
    rows = []
    for place in range(min(int(data["columns"].values[0]), data.sizes["sample"])):
        label = str(int(data["label"].values[place])) if "label" in data else "-"
        answers = [str(int(data[name].values[place])) for name in ("answer", "attacked_answer")]
        numbers = [
            f"{float(data[name].values[place]):.3g}" for name in ("perturbation_norm", "dominant_cosine")
        ]
        rows.append([str(int(data["sample"].values[place])), label, *answers, *numbers])
    return ["sample", "label", "answer", "attacked", "||d||_2", "|cos| with v_1"], rows


def sentence(data: xarray.Dataset) -> str:
    """How many answers change, and how perturbations lie to v_1."""
    import numpy as np

    changed = (data["answer"].values != data["attacked_answer"].values).mean()
    cosine = data["dominant_cosine"].values
    cosine = cosine[np.isfinite(cosine)]
    mean = f"; |cos| with the dominant singular vector is {cosine.mean():.2f}" if len(cosine) else ""
    return f"The perturbations change {100 * changed:.0f} % of the answers{mean}."


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Samples without gradients."""
    from specdiag.analyzers import _checks

    return _checks.vanishing_warning(data["usable"])


_SAMPLE = ("sample",)
_IMAGE = ("sample", "channel", "row", "column")
ANALYZER = Analyzer(
    name="examples",
    summary="Samples, their perturbations and dominant singular vectors as images.",
    source="roth2018, Fig. 3, 8",
    version=1,
    options=Options,
    arrays={
        "x": ArraySpec(_IMAGE, "input", "the samples"),
        "perturbation": ArraySpec(_IMAGE, "input", "their adversarial perturbations"),
        "dominant_vector": ArraySpec(
            _IMAGE, "1", "dominant right singular vector v_1 of the Jacobian at the sample"
        ),
        "dominant_cosine": ArraySpec(_SAMPLE, "1", "|cos| of the perturbation with v_1"),
        "perturbation_norm": ArraySpec(_SAMPLE, "input", "||perturbation||_2"),
        "label": ArraySpec(_SAMPLE, "class", "label of the data"),
        "answer": ArraySpec(_SAMPLE, "class", "answer at the sample"),
        "attacked_answer": ArraySpec(_SAMPLE, "class", "answer at the perturbed sample"),
        "usable": ArraySpec(_SAMPLE, "1", "the perturbation rests on finite gradients that are not zero"),
        "columns": ArraySpec(("run",), "1", "samples in the figure"),
    },
    metrics={
        "dominant_cosine_mean": MetricSpec("1", "neither", "mean |cos| with v_1", "dominant_cosine", "mean"),
        "perturbation_norm_mean": MetricSpec(
            "input", "neither", "mean length of perturbations", "perturbation_norm", "mean"
        ),
    },
    compute=compute,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
    memory=lambda options, sizes: 12 * sizes["D"],
)
