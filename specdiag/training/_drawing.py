"""The curves of a training run, from the facts that its checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdiag.errors import ResultsError
from specdiag.figures import colour, new_figure, save, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(runs: Mapping[str, Mapping[str, Any]], path: Path) -> Figure:
    """Loss and accuracies against the epoch, one run or several overlaid, saved at `path`.

    runs: label -> `train` metadata of a checkpoint. Colours are runs (legend on the left); training
    curves are thin, held-out ones thick; clean solid, attacked dashed. Raises ResultsError where no run has curves.
    """
    drawn = {label: facts["curves"] for label, facts in runs.items() if facts.get("curves")}
    if not drawn:
        raise ResultsError("No checkpoint has training curves.", "Train one with specdiag train.")
    from matplotlib.lines import Line2D

    figure, styles = new_figure(10.0, 3.8), {}
    with style():
        left, right = figure.subplots(1, 2)
        for number, (label, curves) in enumerate(drawn.items()):
            epochs = range(1, len(curves["loss"]) + 1)
            left.plot(epochs, curves["loss"], color=colour(number), label=label)
            for split, width in (("train", 0.9), ("validation", 1.8)):
                for kind, dashes in (("accuracy", "-"), ("attacked_accuracy", "--")):
                    values = curves.get(f"{split}_{kind}")
                    if values:
                        right.plot(epochs, values, dashes, lw=width, color=colour(number))
                        words = f"{split}, {'clean' if kind == 'accuracy' else 'attacked'}"
                        styles[words] = Line2D([], [], ls=dashes, lw=width, color="0.3")
        left.set(xlabel="epoch", ylabel="loss")
        right.set(xlabel="epoch", ylabel="accuracy", ylim=(-0.02, 1.02))
        left.legend()
        if styles:
            right.legend(styles.values(), styles.keys(), loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)
    return figure
