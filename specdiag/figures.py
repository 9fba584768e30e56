"""Figures in one style: a factory, a few drawing helpers, and saving with reproducible bytes.

Only matplotlib `Figure` objects, never pyplot: nothing global is left behind. Analyzers import this file
inside their `plot`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from specdiag.errors import ResultsError, UsageError

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

    from specdiag.schema import Analyzer

# Okabe and Ito's colour-blind-safe set; yellow is last because it is faint on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SUFFIXES = (".svg", ".png", ".pdf")

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "specdiag",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults with specdiag's style on top, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        parameters: Any = matplotlib.rcParams
        # the backend is not touched: setting it would import pyplot
        parameters.update(
            {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
        )
        parameters.update(STYLE)
        yield


def new_figure(width: float = 6.4, height: float = 4.2) -> Figure:
    """An empty figure, size in inches, with constrained layout."""
    with style():
        return Figure(figsize=(width, height), layout="constrained")


def draw(analyzer: Analyzer, runs: Mapping[str, xarray.Dataset], path: Path) -> Figure:
    """Draw one run or several overlaid (label: dataset) with the analyzer's `plot`, and save at `path`."""
    _check_suffix(Path(path))
    figure = new_figure()
    with style():
        analyzer.plot(runs, figure)
    save(figure, path)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as svg, png (200 dpi) or pdf by suffix; the same figure gives the same bytes.

    Raises UsageError for another suffix and ResultsError when the file cannot be written.
    """
    path = Path(path)
    _check_suffix(path)
    kind = path.suffix.lower()[1:]
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with style():
            _freeze_layout(figure)
            figure.savefig(temporary, format=kind, metadata=metadata)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ResultsError(
            f"Cannot write the figure {path}: {error.strerror or error}.", "Choose another folder."
        ) from error


def line_with_band(ax: Axes, x: Any, mean: Any, error: Any, label: str, number: int) -> None:
    """A mean line with its standard-error band; `number` picks colour, line style and marker.

    x, mean, error: (R,), `error` None for no band. A NaN leaves a gap; points are marked where there are few.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(mean, dtype=float)
    look: dict[str, Any] = {"color": colour(number), "linestyle": LINES[number % len(LINES)]}
    if xs.size <= 30:
        look["marker"] = MARKERS[number % len(MARKERS)]
    ax.plot(xs, ys, label=label, zorder=3, **look)
    if error is None:
        return
    half = np.asarray(error, dtype=float)
    known = np.isfinite(ys) & np.isfinite(half)
    if xs.size == 1:
        ax.errorbar(xs[known], ys[known], half[known], color=colour(number), capsize=3, zorder=2)
    else:
        ax.fill_between(
            xs, ys - half, ys + half, where=known, color=colour(number), alpha=0.25, lw=0, zorder=2
        )


def colour(number: int) -> str:
    """The colour of the run with this number."""
    return PALETTE[number % len(PALETTE)]


def log_axis(ax: Axes, axis: Literal["x", "y"]) -> bool:
    """Make an axis logarithmic, with labelled ticks also on a range of less than a decade; call it last.

    Labels are plain numbers where these are short. Where nothing drawn is positive the axis stays linear
    and False is returned. Values that are zero or negative cannot be shown on it.
    """
    which = ax.xaxis if axis == "x" else ax.yaxis
    low, high = _positive_range(ax, axis)
    if not low <= high:
        return False
    if axis == "x":
        ax.set_xscale("log", nonpositive="clip")
    else:
        ax.set_yscale("log", nonpositive="clip")
    pad = (high / low) ** 0.05 if high > low else 2.0
    low, high = low / pad, high * pad
    (ax.set_xlim if axis == "x" else ax.set_ylim)(low, high)
    decades, plain = math.log10(high / low), low > 5e-4 and high < 5e4
    which.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, plain)))
    which.set_minor_formatter(NullFormatter())
    if decades < 0.5:
        ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        which.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
        which.set_minor_locator(NullLocator())
    else:
        steps = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3.5 else (1.0,)
        which.set_major_locator(LogLocator(subs=steps, numticks=7))
        minor = LogLocator(subs=tuple(range(2, 10)), numticks=99) if decades < 6 else NullLocator()
        which.set_minor_locator(minor)
    return True


def _positive_range(ax: Axes, axis: str) -> tuple[float, float]:
    """Smallest and largest positive value drawn; a band is followed down to a tenth of the lowest line."""
    index = 0 if axis == "x" else 1

    def in_data_space(artist: Any) -> bool:
        return bool(artist.get_transform().contains_branch_seperately(ax.transData)[index])

    solid, bands = [np.empty(0)], [np.empty(0)]
    for line in ax.lines:
        if in_data_space(line):
            solid.append(np.array(line.get_xydata(), dtype=float)[:, index])
    for patch in ax.patches:
        if in_data_space(patch):
            solid.append(patch.get_patch_transform().transform(patch.get_path().vertices)[:, index])
    for collection in ax.collections:
        solid.append(np.ma.filled(np.ma.asarray(collection.get_offsets(), dtype=float), np.nan)[:, index])
        if in_data_space(collection):
            bands += [np.array(path.vertices, dtype=float)[:, index] for path in collection.get_paths()]
    lines, edges = _positive(np.concatenate(solid)), _positive(np.concatenate(bands))
    if lines.size:
        edges = edges[edges >= lines.min() / 10]
    drawn = np.concatenate([lines, edges])
    return (float(drawn.min()), float(drawn.max())) if drawn.size else (math.inf, -math.inf)


def _positive(values: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    return np.extract(np.isfinite(values) & (values > 0), values)


def _tick(value: float, plain: bool) -> str:
    if value <= 0 or not math.isfinite(value):
        return ""
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = value / 10.0**exponent
    if plain:
        return f"{value:.6g}"
    power = f"10^{{{exponent}}}"
    return f"${power}$" if abs(mantissa - 1) < 1e-6 else rf"${mantissa:.6g}\cdot {power}$"


def _freeze_layout(figure: Figure) -> None:
    # constrained layout moves axes a little at every drawing, and so the bytes of a second save
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"'{path}' is no figure file.", f"Use one of the suffixes {', '.join(SUFFIXES)}.")
