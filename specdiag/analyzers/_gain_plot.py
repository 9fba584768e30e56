"""The panels of the figure of `gain`. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes


def plot_inputs(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Distribution of the inputs' own gain."""
    from specdiag.analyzers._drawing import distribution
    from specdiag.figures import log_axis

    for number, (label, data) in enumerate(runs.items()):
        if "gain" in data:
            distribution(ax, data["gain"].values, label, number)
    log_axis(ax, "x")
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("norm gain ||f(x)|| / ||x||")
    ax.set_ylabel("share of samples below")
    ax.set_title("Gain of the inputs")


def plot_layers(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Mean gain within each layer, random and attacked, beside its operator norm."""
    import numpy as np

    from specdiag.analyzers._drawing import mean_and_error
    from specdiag.figures import MARKERS, colour, log_axis

    names: list[str] = []
    for number, (label, data) in enumerate(runs.items()):
        if "local_gain" not in data:
            continue
        layers = [str(entry) for entry in data["layer"].values]
        names = layers if len(layers) > len(names) else names
        places, mean = np.arange(len(layers)), mean_and_error(data["local_gain"].values)[0]
        tint, mark = colour(number), MARKERS[number % len(MARKERS)]
        ax.plot(
            places, data["operator_norm"].values, color=tint, ls=":", lw=1.2, label=f"{label}: operator norm"
        )
        ax.plot(places, mean[1], color=tint, marker=mark, label=f"{label}: {data['perturbation'].values[1]}")
        ax.plot(
            places, mean[0], color=tint, marker=mark, mfc="white", ls="--", lw=1.2, label=f"{label}: random"
        )
    log_axis(ax, "y")
    ax.set_xticks(
        range(len(names)), names, rotation=60 if len(names) > 6 else 30, ha="right", rotation_mode="anchor"
    )
    ax.set_ylabel("gain of the perturbation in the layer")
    ax.set_title("Layers: mean gain and worst case")


def plot_first_order(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Gain of perturbations through the whole network against the largest singular value."""
    from specdiag.figures import MARKERS, colour, log_axis

    low, high = float("inf"), 0.0
    for number, (label, data) in enumerate(runs.items()):
        if "perturbation_gain" not in data:
            continue
        sigma, gain = data["sigma_max"].values, data["perturbation_gain"].values
        tint, mark = colour(number), MARKERS[number % len(MARKERS)]
        name = data["perturbation"].values[1]
        ax.plot(sigma, gain[:, 1], ls="", marker=mark, ms=3, color=tint, alpha=0.7, label=f"{label}: {name}")
        ax.plot(
            sigma,
            gain[:, 0],
            ls="",
            marker=mark,
            ms=3,
            mfc="none",
            color=tint,
            alpha=0.5,
            label=f"{label}: random",
        )
        low, high = min(low, float(sigma.min())), max(high, float(sigma.max()))
    if low < high:
        ax.plot([low, high], [low, high], color="black", lw=0.9, label="largest singular value")
    log_axis(ax, "x")
    log_axis(ax, "y")
    ax.set_xlabel("largest singular value of the Jacobian")
    ax.set_ylabel("||f(x + d) - f(x)|| / ||d||")
    ax.set_title("Gain of perturbations, whole network")
