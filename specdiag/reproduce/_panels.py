"""Figures of a reproduction: the analyzers' own, overlaid, and a few of numbers against settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag import plugins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdiag.reproduce._results import Results


def overlay(
    analyzer: str, names: Mapping[str, str] | Sequence[str], variant: str = ""
) -> Callable[[Results, Figure], None]:
    """The analyzer's own figure of the first seed of several trainings; names: by label, or the labels themselves."""

    def draw(results: Results, figure: Figure) -> None:
        plugins.load("analyzer", analyzer).plot(results.first(analyzer, names, variant), figure)

    return draw


def against(ax: Any, x: Sequence[float], by_seed: Sequence[Sequence[float]], label: str, number: int) -> None:
    """One line of means over seeds against a setting, with the range over seeds as band; by_seed[i]: at x[i]."""
    from specdiag.figures import LINES, MARKERS, colour

    means = [float(np.mean(values)) for values in by_seed]
    look = {"color": colour(number), "linestyle": LINES[number % len(LINES)]}
    ax.plot(x, means, marker=MARKERS[number % len(MARKERS)], label=label, zorder=3, **look)
    if any(len(values) > 1 for values in by_seed):
        low, high = [min(values) for values in by_seed], [max(values) for values in by_seed]
        ax.fill_between(x, low, high, color=colour(number), alpha=0.2, lw=0, zorder=2)
