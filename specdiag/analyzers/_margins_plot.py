"""The panels of the figure of `margins`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from specdiag.analyzers._drawing import distribution
from specdiag.analyzers._margins_numbers import kernel_density, split_of

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

LINES = {"train": ":", "test": "-", "all": "-"}


def plot_margins(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Density of the clean margins; training data dotted (wen2020 Fig. 1b, 4)."""
    from specdiag.figures import colour

    for number, (label, data) in enumerate(runs.items()):
        for split, mask in split_of(data).items():
            grid, density = kernel_density(data["margin"].values[mask, 0])
            shown = label if split == "all" else f"{label}: {split}"
            if not len(grid):
                continue
            # each to its own height: an untrained network's peak would hide all others
            ax.plot(grid, density / density.max(), color=colour(number), ls=LINES[split], label=shown)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("margin (logit)")
    ax.set_ylabel("density over its maximum")
    ax.set_title("Margins, clean")


def plot_attacked(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Margin loss L_gamma against gamma: share of margins up to gamma, attacked and (thin, dashed) clean."""
    import numpy as np

    from specdiag.figures import colour

    low, high = float("inf"), -float("inf")
    for number, (label, data) in enumerate(runs.items()):
        mask = split_of(data).get("test")
        margin = data["margin"].values if mask is None else data["margin"].values[mask]
        styles = ("-", "-.", ":")
        for column, name in enumerate(data["attack"].values.astype(str)[1:], 1):
            distribution(
                ax, margin[:, column], f"{label}: {name}", number, styles[(column - 1) % len(styles)]
            )
        distribution(ax, margin[:, 0], f"{label}: clean", number, (0, (2, 2)))
        ax.lines[-1].set_linewidth(1.0)
        ax.lines[-1].set_color(colour(number))
        bounded = np.isfinite(data["attack_eps"].values)
        bounded[0] = True
        low = min(low, float(np.nanpercentile(margin[:, bounded], 0.5)))
        high = max(high, float(np.nanpercentile(margin[:, bounded], 99.5)))
    ax.axvline(0, color="black", lw=0.8)
    if low < high:
        # an attack without eps throws margins far below all others
        ax.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("gamma (logit)")
    ax.set_ylabel("margin loss L_gamma")
    ax.set_title("Margins up to gamma, attacked and clean")


def plot_normalised(runs: Mapping[str, xarray.Dataset], ax: Axes, theorem: str) -> None:
    """Share of samples with a normalised margin up to each value above zero (farnia2019 Fig. 3)."""
    import numpy as np

    from specdiag.figures import colour, log_axis

    for number, (label, data) in enumerate(runs.items()):
        names = list(data["theorem"].values.astype(str)) if "theorem" in data.coords else []
        if theorem not in names:
            continue
        for split, mask in split_of(data).items():
            values = np.sort(data["normalised_margin"].values[mask, names.index(theorem)])
            share = np.arange(1, len(values) + 1) / len(values)
            kept = values > 0
            shown = label if split == "all" else f"{label}: {split}"
            look: dict[str, Any] = {"color": colour(number), "ls": LINES[split], "drawstyle": "steps-post"}
            ax.plot(values[kept], share[kept], label=shown, **look)
    log_axis(ax, "x")
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("normalised margin M / sqrt(Phi)")
    ax.set_ylabel("share of samples up to it")
    ax.set_title(f"Margins over capacity, {theorem.upper()}")


def plot_instance(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Distribution of the distance to the decision boundary; training data dotted."""
    for number, (label, data) in enumerate(runs.items()):
        if "instance_margin" not in data:
            continue
        for split, mask in split_of(data).items():
            shown = label if split == "all" else f"{label}: {split}"
            distribution(ax, data["instance_margin"].values[mask], shown, number, LINES[split])
    ax.set_xlim(left=0)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("distance to the decision boundary (l2, input)")
    ax.set_ylabel("share of samples below")
    ax.set_title("Margins in input space")
