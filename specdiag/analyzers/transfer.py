"""Accuracy of every checkpoint on every other's adversarial examples (roth2018 4.4, Tables 1, 3, 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdiag.errors import DataError, UsageError
from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, Summary, option

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Options:
    """The attack that makes the examples: the same, of the same eps, on every checkpoint."""

    attack: AttackSpec = option(
        AttackSpec("pgd-linf"),
        "The attack that makes the examples; an eps left out is the first checkpoint's.",
    )
    clip: bool = option(True, "Keep perturbed inputs in the range of the data.")


def compute(models: Sequence[Model], batch: Batch, options: Options) -> Arrays:
    """Who is right on whose examples; see `ANALYZER.arrays`."""
    import numpy as np
    import torch

    from specdiag.analyzers import _attacked

    if batch.y is None:
        raise DataError("The data have no labels, and accuracy needs them.", "Name a data set with labels.")
    _check(models)
    attack = _attacked.attack_of(options.attack, clip=options.clip)
    made = [_attacked.attacked(attack, model, batch) for model in models]
    names = np.array(unique([model.info.name for model in models]))

    labels = batch.y

    def right(model: Model, x: torch.Tensor) -> torch.Tensor:
        return model.logits(x).argmax(1) == labels

    rows = [torch.stack([right(model, found.x) for found in made], 1) for model in models]
    return {
        "correct": torch.stack(rows, 1),
        "clean_correct": torch.stack([right(model, batch.x) for model in models], 1),
        "perturbation_norm": torch.stack([found.norm for found in made], 1),
        "dead": torch.stack([found.dead for found in made], 1),
        "checkpoint": names,
        "source": names,
    }


def unique(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that stand for several."""
    found: list[str] = []
    for place, name in enumerate(names):
        earlier = list(names[:place]).count(name)
        found.append(f"{name} ({earlier + 1})" if earlier else name)
    return found


def _check(models: Sequence[Model]) -> None:
    first = models[0]
    for model in models:
        if model.space != "data":
            raise UsageError(
                "Checkpoints normalise differently: examples are of data space.", "Pass --space data."
            )
        if model.input_shape != first.input_shape or model.outputs != first.outputs:
            raise UsageError(
                f"{model.info.name} takes inputs {model.input_shape} and has {model.outputs} outputs, "
                f"{first.info.name} {first.input_shape} and {first.outputs}.",
                "Compare checkpoints of one data set.",
            )


def summarise(data: xarray.Dataset) -> Summary:
    """White-box accuracy, mean accuracy on the others' examples, and the difference, per checkpoint."""
    import numpy as np

    correct = data["correct"].values.astype(float)
    samples, count, _ = correct.shape
    root = np.sqrt(max(1, samples - 1))
    own = correct[:, range(count), range(count)]
    found: dict[str, Any] = {"white_box_accuracy": (own.mean(0), own.std(0) / root)}
    if count > 1:
        others = (correct.sum(2) - own) / (count - 1)
        gap = others - own
        found["transfer_accuracy"] = (others.mean(0), others.std(0) / root)
        found["transfer_gap"] = (gap.mean(0), gap.std(0) / root)
    return found


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Accuracies as a table of colours: rows are the checkpoints that answer, columns whose examples they see."""
    import numpy as np

    count = max(data.sizes["checkpoint"] for data in runs.values())
    side = 2.6 + 0.62 * count
    figure.set_size_inches(len(runs) * (side + 1.6), side)
    for ax, (label, data) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        names = data["checkpoint"].values.astype(str)
        table = np.concatenate(
            [data["clean_correct"].values.mean(0)[:, None], data["correct"].values.mean(0)], axis=1
        )
        image = ax.imshow(100 * table, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        ax.grid(visible=False)
        for (row, column), value in np.ndenumerate(100 * table):
            own = column == row + 1
            ax.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if value < 60 else "black",
                fontweight="bold" if own else "normal",
            )
        ax.axvline(0.5, color="white", lw=3)
        ax.set_xticks(range(len(names) + 1), ["clean", *names], rotation=35, ha="right", fontsize=8)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_xlabel("examples made on")
        ax.set_ylabel("accuracy of")
        ax.set_title("Transfer, white-box in bold" if len(runs) == 1 else label)
        figure.colorbar(image, ax=ax, label="accuracy (%)")


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Accuracy in percent: rows answer, columns made the examples."""
    names = data["checkpoint"].values.astype(str)
    clean, right = data["clean_correct"].values.mean(0), data["correct"].values.mean(0)
    rows = [
        [name, f"{100 * clean[row]:.1f}", *(f"{100 * value:.1f}" for value in right[row])]
        for row, name in enumerate(names)
    ]
    return ["accuracy of (%)", "clean", *(f"on {name}'s" for name in names)], rows


def sentence(data: xarray.Dataset) -> str:
    """White-box accuracy against that on the others' examples."""
    found: dict[str, Any] = summarise(data)
    own = 100 * found["white_box_accuracy"][0].mean()
    if "transfer_accuracy" not in found:
        return f"The attack leaves {own:.1f} % accuracy; with one checkpoint there is nothing to transfer."
    others = 100 * found["transfer_accuracy"][0].mean()
    return (
        f"On examples made on themselves the checkpoints have {own:.1f} % accuracy on average, on those of the others "
        f"{others:.1f} %."
    )


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Checkpoints whose own examples hurt them less than another's: their gradients are masked."""
    import numpy as np

    from specdiag.analyzers import _checks

    right = data["correct"].values.mean(0)
    names = data["checkpoint"].values.astype(str)
    samples = data.sizes["sample"]
    found = []
    for row, name in enumerate(names):
        other = int(right[row].argmin())
        error = np.sqrt(2 * 0.25 / max(1, samples))
        if right[row, row] > right[row, other] + 2 * error:
            found.append(
                _checks.warning(
                    "SD304",
                    f"{name} is right on {100 * right[row, row]:.0f} % of its own examples, but on "
                    f"{100 * right[row, other]:.0f} % of those of {names[other]}: its gradients may be masked.",
                )
            )
    return found


_EACH = ("sample", "checkpoint")
ANALYZER = Analyzer(
    name="transfer",
    summary="Accuracy of every checkpoint on every other's adversarial examples.",
    source="roth2018, Tables 1, 3, 4",
    version=1,
    kind="cross",
    options=Options,
    arrays={
        "correct": ArraySpec(
            ("sample", "checkpoint", "source"), "1", "the checkpoint is right on the source's example"
        ),
        "clean_correct": ArraySpec(_EACH, "1", "the checkpoint is right on the clean sample"),
        "perturbation_norm": ArraySpec(("sample", "source"), "input", "||perturbation||_2 of the example"),
        "dead": ArraySpec(
            ("sample", "source"), "1", "a gradient of the attack was zero or not finite on its way"
        ),
    },
    metrics={
        "accuracy": MetricSpec(
            "1", "higher", "accuracy on the source's examples", "correct", "mean", ("checkpoint", "source")
        ),
        "clean_accuracy": MetricSpec(
            "1", "higher", "accuracy on clean samples", "clean_correct", "mean", ("checkpoint",)
        ),
        "white_box_accuracy": MetricSpec(
            "1", "higher", "accuracy on the checkpoint's own examples", dims=("checkpoint",)
        ),
        "transfer_accuracy": MetricSpec(
            "1", "higher", "mean accuracy on the others' examples", dims=("checkpoint",)
        ),
        "transfer_gap": MetricSpec(
            "1", "neither", "transfer less white-box accuracy, paired by sample", dims=("checkpoint",)
        ),
    },
    coordinates={"checkpoint": "who answers", "source": "on whom the examples were made"},
    compute=compute,
    summarise=summarise,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
)
