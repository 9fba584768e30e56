"""A convolution as a regular pattern of numbers: what its spectrum is computed from.

Per axis, output y reads the inputs stride * y + dilation * a - offset, a = 0 .. taps - 1. Beyond the ends the
inputs are zero, wrap around, are mirrored or repeat the last one, by the mode.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import gcd, prod
from typing import Any, Literal

import numpy as np
import scipy.sparse

Array = np.ndarray[Any, np.dtype[Any]]
Mode = Literal["zeros", "circular", "reflect", "replicate"]


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis: how many inputs, outputs and taps; stride, dilation, offset (low padding)."""

    inputs: int
    outputs: int
    taps: int
    stride: int = 1
    dilation: int = 1
    offset: int = 0

    def reads(self, tap: int, mode: Mode) -> tuple[Array, Array]:
        """(outputs, inputs): the input each output reads through `tap`; outputs that read zero left out."""
        output = np.arange(self.outputs)
        source = output * self.stride + tap * self.dilation - self.offset
        if mode == "circular":
            return output, source % self.inputs
        if mode == "replicate":
            return output, np.clip(source, 0, self.inputs - 1)
        if mode == "reflect":
            last = self.inputs - 1
            return output, last - np.abs(last - np.abs(source))
        inside = (source >= 0) & (source < self.inputs)
        return output[inside], source[inside]

    def split(self) -> list[tuple[Axis, int]]:
        """Undilated axes, and how often each occurs, that the axis falls apart into.

        A stride and a dilation with a common divisor g meet one input in g; a dilation d, coprime to the
        stride then, leaves d interleaved problems that share neither input nor output.
        """
        axis = self if self.taps > 1 else replace(self, dilation=self.stride)
        common = gcd(axis.stride, axis.dilation)
        if common > 1:
            rest = -axis.offset % common
            axis = Axis(
                len(range(rest, axis.inputs, common)),
                axis.outputs,
                axis.taps,
                axis.stride // common,
                axis.dilation // common,
                (axis.offset + rest) // common,
            )
        if axis.dilation == 1:
            return [(axis, 1)]
        parts: dict[Axis, int] = {}
        for first in range(min(axis.dilation, axis.outputs)):
            start = first * axis.stride - axis.offset
            rest = start % axis.dilation
            part = Axis(
                len(range(rest, axis.inputs, axis.dilation)),
                len(range(first, axis.outputs, axis.dilation)),
                axis.taps,
                axis.stride,
                1,
                -(start // axis.dilation),
            )
            parts[part] = parts.get(part, 0) + 1
        return list(parts.items())


@dataclass(frozen=True, eq=False)
class Stencil:
    """kernel: (G, C_out / G, C_in / G, *taps) float64, a block per group; axes: one per spatial axis."""

    kernel: Array
    axes: tuple[Axis, ...]
    mode: Mode = "zeros"

    @property
    def groups(self) -> int:
        """Number of groups."""
        return int(self.kernel.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the whole operator, all groups."""
        outputs, inputs = prod(axis.outputs for axis in self.axes), prod(axis.inputs for axis in self.axes)
        return self.groups * self.kernel.shape[1] * outputs, self.groups * self.kernel.shape[2] * inputs

    @property
    def count(self) -> int:
        """Number of singular values, min(m, n)."""
        return min(self.shape)

    @cached_property
    def squares(self) -> float:
        """Sum of the squared singular values, exact: products of taps times how often both meet one input."""
        flat = self.kernel.reshape(-1, prod(self.kernel.shape[3:]))
        meetings = np.ones((1, 1))
        for axis in self.axes:
            places = np.full((axis.taps, axis.outputs), -1)
            for tap in range(axis.taps):
                output, source = axis.reads(tap, self.mode)
                places[tap, output] = source
            same = (places[:, None] == places[None]) & (places[:, None] >= 0)
            meetings = np.kron(meetings, same.sum(2))
        return float(((flat.T @ flat) * meetings).sum())

    def sparse(self, group: int = 0) -> Any:
        """One group's operator as a scipy CSR matrix, (m / G, n / G), rows (channel, *output position)."""
        outputs, inputs = [axis.outputs for axis in self.axes], [axis.inputs for axis in self.axes]
        cells_out, cells_in = prod(outputs), prod(inputs)
        kernel = self.kernel[group]
        rows, columns, values = [], [], []
        channel_out, channel_in = np.indices(kernel.shape[:2])
        for tap in product(*(range(axis.taps) for axis in self.axes)):
            pairs = [axis.reads(entry, self.mode) for axis, entry in zip(self.axes, tap, strict=True)]
            target = np.ravel_multi_index(
                np.meshgrid(*(pair[0] for pair in pairs), indexing="ij"), outputs
            ).ravel()
            source = np.ravel_multi_index(
                np.meshgrid(*(pair[1] for pair in pairs), indexing="ij"), inputs
            ).ravel()
            rows.append((channel_out.reshape(-1, 1) * cells_out + target).ravel())
            columns.append((channel_in.reshape(-1, 1) * cells_in + source).ravel())
            values.append(np.repeat(kernel[(slice(None), slice(None), *tap)].ravel(), target.size))
        shape = (kernel.shape[0] * cells_out, kernel.shape[1] * cells_in)
        place = (np.concatenate(rows), np.concatenate(columns))
        return scipy.sparse.csr_matrix((np.concatenate(values), place), shape=shape)

    def split(self) -> list[tuple[Stencil, int]]:
        """Independent undilated stencils without dead channels, and how often each occurs.

        The union of their singular values, filled up with zeros to `count`, is the stencil's spectrum. One
        whose borders are not zero is returned as it is.
        """
        if self.mode != "zeros":
            return [(self, 1)]
        kernel = self.kernel
        for side in (1, 2):
            # outputs or inputs that are zero in every group and tap (pruned networks have them)
            alive = kernel.any(axis=tuple(axis for axis in range(kernel.ndim) if axis != side))
            kernel = kernel if alive.all() else kernel.compress(alive, axis=side)
        parts = []
        for choice in product(*(axis.split() for axis in self.axes)):
            axes = tuple(axis for axis, _ in choice)
            if kernel.size and all(axis.inputs > 0 and axis.outputs > 0 for axis in axes):
                parts.append((Stencil(kernel, axes), prod(copies for _, copies in choice)))
        return parts

    @property
    def rank(self) -> int:
        """Number of singular values that are not zero for the pattern's sake: unread inputs and empty outputs."""
        touched = [[axis.reads(tap, self.mode) for tap in range(axis.taps)] for axis in self.axes]
        sides = []
        for side in (0, 1):
            reached = (len(np.unique(np.concatenate([pair[side] for pair in axis]))) for axis in touched)
            sides.append(int(self.groups * self.kernel.shape[1 + side] * prod(reached)))
        return min(sides)
