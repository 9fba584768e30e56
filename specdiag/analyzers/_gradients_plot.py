"""The panels of the figure of `gradients`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes


def damages(data: xarray.Dataset) -> tuple[Any, Any]:
    """Predicted and measured damage of the samples where both are finite."""
    import numpy as np

    predicted, measured = data["predicted_damage"].values, data["measured_damage"].values
    kept = np.isfinite(predicted) & np.isfinite(measured)
    return predicted[kept], measured[kept]


def order(data: xarray.Dataset) -> int:
    """Place of the dual norm that belongs to the attack."""
    return 0 if float(data["dual_order"].values[0]) == 1 else 1


def plot_norms(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Distribution of the dual norm of the loss gradient that belongs to the attack."""
    from specdiag.analyzers._drawing import distribution
    from specdiag.figures import log_axis

    orders = set()
    for number, (label, data) in enumerate(runs.items()):
        place = order(data)
        orders.add(str(data["q"].values[place]))
        values = data["loss_gradient_norm"].values[:, place]
        distribution(ax, values[values > 0], label, number)
    log_axis(ax, "x")
    ax.set_ylim(0, 1.02)
    ax.set_xlabel(f"dual norm of the loss gradient, q = {', '.join(sorted(orders))}")
    ax.set_ylabel("share of samples below")
    ax.set_title("Loss gradients")


def plot_damage(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Measured against predicted rise of the loss."""
    import numpy as np

    from specdiag.figures import MARKERS, colour, log_axis

    ends = []
    for number, (label, data) in enumerate(runs.items()):
        predicted, measured = damages(data)
        kept = (predicted > 0) & (measured > 0)
        look: dict[str, Any] = {"color": colour(number), "marker": MARKERS[number % len(MARKERS)], "ls": ""}
        ax.plot(predicted[kept], measured[kept], ms=3, alpha=0.7, label=label, **look)
        ends += [*predicted[kept]]
    if ends:
        line = [float(np.min(ends)), float(np.max(ends))]
        ax.plot(line, line, color="black", lw=0.9, label="first order")
    log_axis(ax, "x")
    log_axis(ax, "y")
    ax.set_xlabel("predicted rise of the loss, eps ||grad L||")
    ax.set_ylabel("measured rise of the loss")
    ax.set_title("Damage by the attack")


def plot_active(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Share of active units after each layer, trained and before training."""
    from specdiag.figures import MARKERS, colour

    names: list[str] = []
    for number, (label, data) in enumerate(runs.items()):
        if "active_share" not in data:
            continue
        names = max(names, [str(entry) for entry in data["activation"].values], key=len)
        look: dict[str, Any] = {"color": colour(number), "marker": MARKERS[number % len(MARKERS)]}
        ax.plot(data["active_share"].values.mean(0), label=label, **look)
        if "initial_active_share" in data:
            ax.plot(
                data["initial_active_share"].values.mean(0),
                ls=":",
                mfc="white",
                label=f"{label}: before training",
                **look,
            )
    ax.axhline(0.5, color="black", lw=0.8, ls=(0, (1, 3)), label="half (H1)")
    ax.set_xticks(
        range(len(names)), names, rotation=60 if len(names) > 6 else 30, ha="right", rotation_mode="anchor"
    )
    ax.set_ylim(0, 1)
    ax.set_ylabel("share of active units")
    ax.set_title("Activations after each layer")
