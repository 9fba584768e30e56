"""The figure of `robustness`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.analyzers._drawing import training_eps
from specdiag.analyzers._keys import keys
from specdiag.figures import LINES, MARKERS, colour

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Accuracy against eps; beside it the loss added, and wrm against the mean norm of its perturbations."""
    panels: list[Callable[[Mapping[str, xarray.Dataset], Axes], None]] = []
    if any("fooled" in data for data in runs.values()):
        panels.append(_accuracy)
    if any("loss" in data and np.isfinite(data["loss"].values).any() for data in runs.values()):
        panels.append(_damage)
    if any("penalty_fooled" in data for data in runs.values()):
        panels.append(_penalised)
    figure.set_size_inches(max(6.4, 5.2 * len(panels)), 4.4)
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=False):
        panel(runs, ax)
    keys(figure, runs)


def _lines(runs: Mapping[str, xarray.Dataset]) -> list[tuple[int, int, str, xarray.Dataset]]:
    """Run number, attack number, legend and data of every curve."""
    names = {str(name) for data in runs.values() if "fooled" in data for name in data["attack"].values}
    found = []
    for number, (label, data) in enumerate(runs.items()):
        for place, name in enumerate(data["attack"].values if "fooled" in data else ()):
            shown = label if len(names) == 1 else str(name) if len(runs) == 1 else f"{label}, {name}"
            found.append((number, place, shown, data))
    return found


def _look(number: int, place: int, runs: int) -> dict[str, Any]:
    # one run: attacks by colour; several: runs by colour, attacks by line
    return {
        "color": colour(number if runs > 1 else place),
        "linestyle": LINES[place % len(LINES)],
        "marker": MARKERS[(number if runs > 1 else place) % len(MARKERS)],
        "markersize": 4,
    }


def _accuracy(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    for number, place, shown, data in _lines(runs):
        eps = np.concatenate([[0.0], data["eps"].values])
        clean = 100 * float(data["correct"].mean())
        mean = np.concatenate([[clean], 100 * data["accuracy"].values[place]])
        look = _look(number, place, len(runs))
        ax.plot(eps, mean, label=shown, zorder=3, **look)
        low, high = (100 * data[f"accuracy_{side}"].values[place] for side in ("low", "high"))
        ax.fill_between(eps[1:], low, high, color=look["color"], alpha=0.2, lw=0, zorder=2)
    _controls(runs, ax)
    ax.set_xlim(left=0)
    ax.set_ylim(0, 101)
    _training(runs, ax)
    first = next(data for data in runs.values() if "fooled" in data)
    ax.set_xlabel(_xlabel(first))
    ax.set_ylabel("accuracy (%)")
    ax.set_title("Accuracy under attack (95 % intervals)")


def _controls(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    for number, data in enumerate(runs.values()):
        if "random_fooled" not in data:
            continue
        held = 100 * (1 - np.nanmean(data["random_fooled"].values, 0))
        shown = "random directions" if number == 0 else None
        ax.plot(data["eps"].values, held, color="#777777", ls=":", lw=1.2, label=shown, zorder=1)


def _training(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """The eps of adversarial training, in the unit of the axis, where all radii are one multiple of it."""
    low, high = ax.get_xlim()
    for number, (label, data) in enumerate(runs.items()):
        found = training_eps(data)
        if found is None or "fooled" not in data:
            continue
        norms = [
            "linf" if str(name).endswith(("linf", "fgsm")) or "Linf" in str(name) else "l2"
            for name in data["attack"].values
        ]
        if found[0] not in norms:
            continue
        place = norms.index(found[0])
        ratio = data["radius"].values[place] / data["eps"].values[:, None]
        if np.nanmax(ratio) > 1.000001 * np.nanmin(ratio):
            continue
        at = found[1] / float(np.nanmean(ratio))
        if low <= at <= high:
            own = colour(number) if len(runs) > 1 else "#444444"
            ax.axvline(at, color=own, ls="--", lw=1.0, zorder=1, label=f"{label}: training eps")


def _damage(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    for number, place, shown, data in _lines(runs):
        if "loss" not in data or not np.isfinite(data["loss"].values[place]).any():
            continue
        added = data["loss"].values[place] - data["clean_loss"].values
        mean = np.concatenate([[0.0], np.nanmean(added, 1)])
        error = (
            np.nanstd(added, 1, ddof=1) / np.sqrt(np.isfinite(added).sum(1))
            if added.shape[1] > 1
            else 0 * mean[1:]
        )
        eps = np.concatenate([[0.0], data["eps"].values])
        look = _look(number, place, len(runs))
        ax.plot(eps, mean, label=shown, zorder=3, **look)
        ax.fill_between(eps[1:], mean[1:] - error, mean[1:] + error, color=look["color"], alpha=0.2, lw=0)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    first = next(data for data in runs.values() if "loss" in data)
    ax.set_xlabel(_xlabel(first))
    ax.set_ylabel("cross-entropy added (nat)")
    ax.set_title("Adversarial damage (mean, std. error)")


def _penalised(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    for number, (label, data) in enumerate(runs.items()):
        if "penalty_fooled" not in data:
            continue
        size = np.nanmean(data["penalty_norm"].values, 0)
        held = 100 * (1 - np.nanmean(data["penalty_fooled"].values, 0))
        order = np.argsort(size)
        ax.plot(size[order], held[order], label=label, **_look(number, 0, 2))
    ax.set_xlim(left=0)
    ax.set_ylim(0, 101)
    ax.set_xlabel("mean ||perturbation||")
    ax.set_ylabel("accuracy (%)")
    ax.set_title("wrm: accuracy against mean norm")


def _xlabel(data: xarray.Dataset) -> str:
    """The eps axis in words, from the options stored with the run where there are any."""
    from specdiag import store
    from specdiag.errors import ResultsError

    try:
        options = store.provenance(data).get("options", {})
    except ResultsError:
        return "eps"
    unit = " (8-bit)" if options.get("eps_unit") == "8bit" else ""
    scales = {"dimension": " x d^(1/p)", "mean-norm": " x mean ||x||", "snr": " x ||x|| d^(1/p - 1/2)"}
    return f"eps{unit}{scales.get(str(options.get('eps_scale')), '')}"
