"""Signs in a robustness curve that the attack, not the network, sets it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from specdiag.analyzers._checks import Warnings, warning

if TYPE_CHECKING:
    import xarray

# least share of samples that a comparison must rest on
VISIBLE = 0.05


def warnings(data: xarray.Dataset) -> Warnings:
    """All that apply."""
    found = [*_vanishing(data), *_varying(data)]
    if "fooled" in data and "random_fooled" in data:
        found += [*_random(data), *_larger_eps(data), *_one_step(data), *_leaking(data)]
    return found


def _vanishing(data: xarray.Dataset) -> Warnings:
    import numpy as np

    if "fooled" not in data:
        return []
    unknown = np.isnan(data["fooled"].values).any((0, 1))
    if not unknown.any():
        return []
    which = data["sample"].values[unknown]
    listed = ", ".join(str(entry) for entry in which[:5]) + (", ..." if len(which) > 5 else "")
    return [
        warning(
            "SD301",
            f"The gradient of the attack is zero or not finite for {len(which)} of {len(unknown)} samples (sample "
            f"{listed}); they are left out of the accuracies. Many of them are a sign of masked gradients.",
        )
    ]


def _varying(data: xarray.Dataset) -> Warnings:
    largest = float(data["repeat_gap"].max())
    if not largest > 0:
        return []
    return [
        warning("SD305", f"The network answers differently twice: its outputs differ by up to {largest:.2g}.")
    ]


def _random(data: xarray.Dataset) -> Warnings:
    """Random directions gain as much over the clean errors as gradients do."""
    wrong = 1 - float(data["correct"].mean())
    gain = _mean(data["fooled"].values[_first(data)], -1) - wrong
    random = _mean(data["random_fooled"].values, 0) - wrong
    for eps, mine, theirs in zip(data["eps"].values, gain, random, strict=True):
        if theirs > VISIBLE and theirs >= 0.9 * mine:
            return [
                warning(
                    "SD302",
                    f"At eps {eps:.4g} random directions fool the network as often as the attack does: its gradients "
                    "may be masked, and the accuracies too high.",
                )
            ]
    return []


def _larger_eps(data: xarray.Dataset) -> Warnings:
    """The largest eps alone fools clearly fewer than a smaller one does."""
    if data.sizes["eps"] < 2:
        return []
    alone = _mean(data["alone_fooled"].values, 0)
    before = float(_mean(data["fooled"].values[_first(data), -2], -1))
    if before - alone <= max(0.02, 2 * _spread(before, data.sizes["sample"])):
        return []
    return [
        warning(
            "SD303",
            f"The attack fools {100 * alone:.0f} % at the largest eps alone but {100 * before:.0f} % at smaller ones: a "
            "larger eps does not lower the accuracy, so gradients may be masked; try more --steps.",
        )
    ]


def _one_step(data: xarray.Dataset) -> Warnings:
    """One step fools more samples than many."""
    mine = _mean(data["fooled"].values[_first(data)], -1)
    theirs = _mean(data["one_step_fooled"].values, 0)
    for eps, many, one in zip(data["eps"].values, mine, theirs, strict=True):
        if one - many > max(0.01, 2 * _spread(float(one), data.sizes["sample"])):
            return [
                warning(
                    "SD304",
                    f"At eps {eps:.4g} a single step fools {100 * one:.0f} %, the attack {100 * many:.0f} %: gradients "
                    "may be masked.",
                )
            ]
    return []


def _leaking(data: xarray.Dataset) -> Warnings:
    """Attacked with its true label, the network is right more often than before (roth2018 7.3)."""
    import numpy as np

    before = data["correct"].values
    for place, eps in enumerate(data["eps"].values):
        after = 1 - data["one_step_fooled"].values[:, place]
        gained = int(np.nansum((after == 1) & (before == 0)))
        lost = int(np.nansum((after == 0) & (before == 1)))
        if gained - lost > 2 * math.sqrt(gained + lost) and gained - lost > 0.005 * len(before):
            return [
                warning(
                    "SD309",
                    f"A single step at eps {eps:.4g} makes {gained} wrong answers right and {lost} right ones wrong: the "
                    "perturbation gives the label away (label leaking); attack with --label predicted.",
                )
            ]
    return []


def _first(data: xarray.Dataset) -> int:
    """Place of the attack that the controls belong to: the first with its own point at each eps."""
    import numpy as np

    radius, norm = data["radius"].values, data["perturbation_norm"].values
    for place in range(len(radius)):
        name = str(data["attack"].values[place])
        if name != "deepfool" and np.isfinite(norm[place]).any():
            return place
    return 0


def _spread(share: float, count: int) -> float:
    return math.sqrt(max(share * (1 - share), 1 / count) / count)


def _mean(values: Any, axis: int) -> Any:
    import warnings as python_warnings

    import numpy as np

    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis)
