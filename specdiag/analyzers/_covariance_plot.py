"""The panels of the figure of `covariance`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes


def plot_functions(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Covariance functions over their value at 0: perturbations in colour, the data in black."""
    import numpy as np

    from specdiag.figures import colour

    for number, (label, data) in enumerate(runs.items()):
        radial, error = data["radial"].values, data["radial_error"].values
        _curve(ax, radial[0], error[0], _with_length(label, data, 0), colour(number))
    first = next(iter(runs.values()))
    radial, error = first["radial"].values, first["radial_error"].values
    _curve(ax, radial[1], error[1], _with_length("data", first, 1), "black")
    ax.axhline(np.exp(-1), color="grey", lw=0.8, ls=(0, (1, 3)), label="1/e")
    ax.axhline(0, color="grey", lw=0.8)
    # rings of few pixel pairs at the corners of the image are noise
    last = int(0.6 * first["displacement"].values[-1])
    ax.set_xlim(0, max(2, last))
    ax.set_xlabel("distance (pixel)")
    ax.set_ylabel("covariance over its value at 0")
    dotted = any(data.sizes["channel"] > 1 for data in runs.values())
    ax.set_title("Covariance functions" + (" (dotted: between channels)" if dotted else ""))
    ax.legend(fontsize=8)


def _with_length(label: str, data: xarray.Dataset, place: int) -> str:
    length = float(data["decay_length"].values[place])
    return f"{label}, 1/e at {length:.2g} px" if 0 < length < float("inf") else label


def _curve(ax: Axes, radial: Any, error: Any, label: str, colour: str) -> None:
    import numpy as np

    if not radial[0][0] > 0:
        return
    x = np.arange(radial.shape[1])
    for row, line in ((0, "-"), (1, ":")):
        if not np.isfinite(radial[row]).any():
            continue
        mean, spread = radial[row] / radial[0][0], error[row] / radial[0][0]
        shown = label if row == 0 else None
        ax.plot(x, mean, color=colour, ls=line, marker="o", ms=3, label=shown)
        ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)


def plot_images(runs: Mapping[str, xarray.Dataset], axes: Sequence[Axes]) -> None:
    """Covariance by displacement, mean over the channels: of up to three runs and of the data."""
    first = next(iter(runs.values()))
    shown = [
        (label, data["covariance_function"].values) for label, data in list(runs.items())[: len(axes) - 1]
    ]
    shown.append(("data", first["data_covariance_function"].values))
    for place, (ax, (label, function)) in enumerate(zip(axes, shown, strict=True)):
        mean = sum(function[channel, channel] for channel in range(len(function))) / len(function)
        middle = mean[mean.shape[0] // 2, mean.shape[1] // 2]
        down, right = first["down"].values, first["right"].values
        # beyond half the side too few pairs of pixels are left
        rows, columns = abs(down) <= max(1, down[-1] // 2), abs(right) <= max(1, right[-1] // 2)
        part = mean[rows][:, columns] / (middle if middle > 0 else 1)
        edge = (right[columns][0] - 0.5, right[columns][-1] + 0.5, down[rows][-1] + 0.5, down[rows][0] - 0.5)
        image = ax.imshow(part, extent=edge, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.grid(visible=False)
        ax.set_title(label, fontsize=9)
        ax.set_xlabel("displacement (pixel)")
        if place:
            ax.set_yticks([])
    figure = axes[-1].figure
    figure.colorbar(image, ax=list(axes), shrink=0.6)
