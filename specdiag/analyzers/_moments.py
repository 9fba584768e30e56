"""Running sums behind `covariance`: products by displacement, their mean over directions, and the full matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from specdiag.linalg.displacement import displacement_pairs, displacement_sums

Array = np.ndarray[Any, np.dtype[np.float64]]
GROUPS = 8
"""Samples are summed in so many groups, by their index, of which one at a time is left out for the error."""


def rings(height: int, width: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """|d| rounded to whole pixels for every displacement, (2 H - 1, 2 W - 1)."""
    down, right = np.meshgrid(np.arange(1 - height, height), np.arange(1 - width, width), indexing="ij")
    return np.rint(np.hypot(down, right)).astype(np.int64)


def ring_sums(sums: Array) -> Array:
    """Displacement sums (C, C, 2 H - 1, 2 W - 1) added up over rings, (2, R): within channels and between them."""
    channels, _, high, wide = sums.shape
    ring = rings((high + 1) // 2, (wide + 1) // 2)
    within = np.einsum("aahw->hw", sums)
    between = sums.sum((0, 1)) - within
    rows = [np.bincount(ring.ravel(), weights=part.ravel()) for part in (within, between)]
    return np.stack(rows) if channels > 1 else np.stack([rows[0], np.zeros_like(rows[0])])


def ring_pairs(channels: int, height: int, width: int) -> Array:
    """How many pairs of values each ring has, (2, R): within channels and between them."""
    pairs = displacement_pairs(height, width).double().numpy()
    ring = rings(height, width)
    once = np.bincount(ring.ravel(), weights=pairs.ravel())
    return np.stack([channels * once, channels * (channels - 1) * once])


def empty(shape: tuple[int, ...], full: bool) -> dict[str, Array]:
    """The sums of no samples; shape: of one input, (C, H, W)."""
    channels, height, width = shape
    by_displacement = (channels, channels, 2 * height - 1, 2 * width - 1)
    count = int(rings(height, width).max()) + 1
    state: dict[str, Array] = {}
    for what in ("delta", "data"):
        state[f"{what}_sums"] = np.zeros(by_displacement)
        state[f"{what}_rings"] = np.zeros((GROUPS, 2, count))
        state[f"{what}_total"] = np.zeros((GROUPS, *shape))
        state[f"{what}_count"] = np.zeros(GROUPS)
        if full:
            inputs = channels * height * width
            state[f"{what}_moments"] = np.zeros((inputs, inputs))
    state["seen"] = np.zeros(1)
    return state


def add(state: dict[str, Array], what: str, x: torch.Tensor, index: Any) -> None:
    """Add samples (N, C, H, W) to the sums of `delta` or `data`, in place."""
    x = x.detach().double()
    groups = np.asarray(index) % GROUPS
    for group in range(GROUPS):
        rows = x[torch.from_numpy(groups == group).to(x.device)]
        if not len(rows):
            continue
        sums = displacement_sums(rows).cpu().numpy()
        state[f"{what}_sums"] += sums
        state[f"{what}_rings"][group] += ring_sums(sums)
        state[f"{what}_total"][group] += rows.sum(0).cpu().numpy()
        state[f"{what}_count"][group] += len(rows)
    if f"{what}_moments" in state and len(x):
        flat = x.flatten(1)
        state[f"{what}_moments"] += (flat.T @ flat).cpu().numpy()


def function_of(state: dict[str, Array], what: str, centred: bool) -> Array:
    """Covariance function by displacement, (C, C, 2 H - 1, 2 W - 1); centred: of samples less their mean."""
    total = state[f"{what}_total"]
    height, width = total.shape[2:]
    count = max(1.0, float(state[f"{what}_count"].sum()))
    sums = state[f"{what}_sums"] / count
    if centred:
        mean = torch.from_numpy(total.sum(0) / count)
        sums = sums - displacement_sums(mean[None]).numpy()
    function: Array = sums / displacement_pairs(height, width).numpy()
    return function


def radial_of(state: dict[str, Array], what: str, centred: bool, leave_out: int | None = None) -> Array:
    """Covariance function by rounded distance, (2, R), without one group where asked for; NaN where no pair is."""
    kept = [group for group in range(GROUPS) if group != leave_out]
    total = state[f"{what}_total"]
    channels, height, width = total.shape[1:]
    count = max(1.0, float(state[f"{what}_count"][kept].sum()))
    sums = state[f"{what}_rings"][kept].sum(0) / count
    if centred:
        mean = torch.from_numpy(total[kept].sum(0) / count)
        sums = sums - ring_sums(displacement_sums(mean[None]).numpy())
    pairs = ring_pairs(channels, height, width)
    with np.errstate(invalid="ignore", divide="ignore"):
        radial: Array = np.where(pairs > 0, sums / pairs, np.nan)
    return radial


def decay_length(radial: Array) -> float:
    """Distance at which a covariance function (R,) first falls to 1/e of its value at 0; infinite where it does not.

    Between two distances it is taken as linear.
    """
    if not radial[0] > 0:
        return float("nan")
    level = radial / radial[0]
    threshold = np.exp(-1)
    below = np.flatnonzero(level <= threshold)
    if not len(below):
        return float("inf")
    place = int(below[0])
    left, right = level[place - 1], level[place]
    return float(place - 1 + (left - threshold) / (left - right))


def jackknife(values: Array) -> Array:
    """Standard error from values (G, ...) each of which leaves out one of G groups."""
    groups = len(values)
    error: Array = np.sqrt((groups - 1) / groups * np.square(values - values.mean(0)).sum(0))
    return error
