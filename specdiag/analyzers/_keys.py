"""Legends that stay clear of what is drawn: many entries stand above the axes, repeated words are said once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSIDE, SHORT = 3, 24
"""Up to so many entries of so many letters find a free corner inside the axes."""
SIZE, ROW, CHARACTER, HANDLE = 8, 13.0, 4.3, 36.0
"""Size of the text; height of a row, width of a character and of a line with its gaps, in points."""
Entries = list[tuple[Any, str]]


def keys(figure: Figure, runs: Mapping[str, xarray.Dataset]) -> None:
    """A legend for every axes of a finished figure, from the labels of what was drawn; call it last.

    Labels `RUN: what` and `RUN, what` that repeat over the runs become one entry for each run, in its colour, and one for
    each kind of line. The figure grows by what stands above the axes.
    """
    found = {ax: _entries(ax, list(runs)) for ax in figure.axes}
    grids = [place.get_gridspec() for ax in found if (place := ax.get_subplotspec()) is not None]
    across, down = (
        max((grid.ncols for grid in grids), default=1),
        max((grid.nrows for grid in grids), default=1),
    )
    width = 72 * float(figure.get_size_inches()[0]) / across - 40
    rows = 0
    for ax, entries in found.items():
        handles, labels = [handle for handle, _ in entries], [label for _, label in entries]
        if not entries:
            continue
        if len(entries) <= (INSIDE if max(map(len, labels)) <= SHORT else 1):
            ax.legend(handles, labels)
            continue
        columns = max(1, min(4, int(width / (HANDLE + CHARACTER * max(map(len, labels))))))
        rows = max(rows, -(-len(entries) // columns))
        ax.legend(
            handles,
            labels,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=columns,
            fontsize=SIZE,
            borderaxespad=0.2,
            columnspacing=1.2,
            handlelength=2.6,
        )
    if rows:
        pad = ROW * rows + 6
        for ax in found:
            ax.set_title(ax.get_title(), pad=pad)
        wide, high = figure.get_size_inches()
        figure.set_size_inches(wide, high + down * pad / 72)


def labelled(runs: Mapping[str, xarray.Dataset]) -> Mapping[str, xarray.Dataset]:
    """The runs with the eps of their attack in the label, where it is not the same in all."""
    sizes = {label: _eps_of(data) for label, data in runs.items()}
    if len(set(sizes.values())) < 2:
        return runs
    return {
        label if sizes[label] is None else f"{label} (eps {sizes[label]:.3g})": data
        for label, data in runs.items()
    }


def _eps_of(data: xarray.Dataset) -> float | None:
    """The eps of the first attack, from the options stored with the run."""
    from specdiag import store
    from specdiag.errors import ResultsError

    try:
        options = store.provenance(data).get("options", {})
    except ResultsError:
        return None
    attack = options.get("attack") or options.get("at")
    first = attack[0] if isinstance(attack, list) and attack else attack
    eps = first.get("eps") if isinstance(first, dict) else None
    return float(eps) if isinstance(eps, int | float) else None


def _entries(ax: Axes, runs: list[str]) -> Entries:
    """Handles and labels of one axes, shortened where that leaves fewer."""
    plain: Entries = list(zip(*ax.get_legend_handles_labels(), strict=True))
    own: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    rest: Entries = []
    for handle, label in plain:
        run, what = _split(label, runs)
        if not run:
            rest.append((handle, label))
            continue
        own.setdefault(run, handle if not what else _line(handle, handle.get_color(), whole=True))
        if what:
            kinds.setdefault(what, _line(handle, "#444444"))
    if len(runs) < 2 or not kinds or len(own) + len(kinds) + len(rest) >= len(plain):
        return plain
    return [
        *((handle, run) for run, handle in own.items()),
        *((handle, what) for what, handle in kinds.items()),
        *rest,
    ]


def _split(label: str, runs: list[str]) -> tuple[str, str]:
    """Run and kind of a label; ("", label) where it names no run."""
    for run in sorted(runs, key=len, reverse=True):
        if label == run:
            return run, ""
        for mark in (": ", ", "):
            if label.startswith(run + mark):
                return run, label[len(run + mark) :]
    return "", label


def _line(source: Any, colour: str, whole: bool = False) -> Any:
    """A line for the legend like `source`; `whole`: for all lines of a run, so full and solid."""
    from matplotlib.lines import Line2D

    line = Line2D([], [])
    line.update_from(source)
    line.set(color=colour, alpha=1.0, markersize=5)
    marked = source.get_marker() not in (None, "None", "none", "", " ")
    open_ = not whole and source.get_markerfacecolor() in ("white", "none")
    line.set(markeredgecolor=colour, markerfacecolor="white" if open_ else colour)
    if whole and source.get_linestyle() not in ("None", "none", "", " "):
        line.set(linestyle="-", linewidth=1.8)
    elif not whole and marked:
        line.set_marker("o")
    return line
