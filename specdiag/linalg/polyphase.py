"""A strided stencil as an unstrided one on blocks of inputs, and its symbol on a torus."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from specdiag.linalg.stencil import Stencil

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Polyphase:
    """Output block y reads input block y + shift.

    shifts: (P, axes); taps: (P, G, C_out / G, C_in'), C_in' = prod(stride) C_in / G.
    An input's channel is (*phase within the block, channel).
    """

    shifts: Array
    taps: Array


def polyphase(stencil: Stencil) -> Polyphase:
    """Collect the taps by the block of inputs that they read."""
    groups, outputs, inputs = stencil.kernel.shape[:3]
    strides = [axis.stride for axis in stencil.axes]
    blocks: dict[tuple[int, ...], Array] = {}
    for tap in product(*(range(axis.taps) for axis in stencil.axes)):
        places = [entry * axis.dilation - axis.offset for entry, axis in zip(tap, stencil.axes, strict=True)]
        shift = tuple(place // stride for place, stride in zip(places, strides, strict=True))
        phase = tuple(place % stride for place, stride in zip(places, strides, strict=True))
        block = blocks.setdefault(shift, np.zeros((groups, outputs, *strides, inputs)))
        here: tuple[Any, ...] = (slice(None), slice(None), *phase)
        there: tuple[Any, ...] = (slice(None), slice(None), slice(None), *tap)
        block[here] += stencil.kernel[there]
    taps = np.stack(list(blocks.values())).reshape(len(blocks), groups, outputs, prod(strides) * inputs)
    return Polyphase(np.array(list(blocks), int).reshape(len(blocks), len(strides)), taps)


def frequencies(grid: tuple[int, ...]) -> tuple[Array, Array]:
    """One frequency of each conjugate pair: indices (F, axes), and how many each stands for (1 or 2)."""
    index = np.indices(grid).reshape(len(grid), -1).T
    mirror = np.ravel_multi_index(tuple((-index % np.array(grid)).T), grid)
    flat = np.arange(len(index))
    kept = flat <= mirror
    return index[kept], np.where(flat == mirror, 1, 2)[kept]


def angles(index: Array, shifts: Array, grid: tuple[int, ...]) -> Array:
    """Phases w . shift in radians, (F, P); reduced modulo the grid first, so exact to rounding."""
    turns = np.zeros((len(index), len(shifts)))
    for axis, size in enumerate(grid):
        turns += (np.outer(index[:, axis], shifts[:, axis]) % size) / size
    return 2 * np.pi * turns


def symbol(parts: Polyphase, index: Array, grid: tuple[int, ...]) -> Array:
    """The blocks sum_P taps e^{i w shift}, (F, G, C_out / G, C_in'), of the operator on the torus."""
    phase = angles(index, parts.shifts, grid)
    flat = parts.taps.reshape(len(parts.taps), -1)
    result = np.empty((len(index), flat.shape[1]), complex)
    result.real = np.cos(phase) @ flat
    result.imag = np.sin(phase) @ flat
    return result.reshape(len(index), *parts.taps.shape[1:])
