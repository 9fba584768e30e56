"""A zero-padded stencil as a torus operator with rows and columns taken out.

A = P_out C P_in^T, with C circulant on a torus just large enough that no tap reaches around it. What is taken
out is `B`, the border. B is eliminated in two steps: first B1, all slots that lie outside along the first
axis, on which every matrix is circulant along the other axes and falls apart into one small block per
frequency; then B2, the slots outside along the other axes only. Against one elimination of all of B this is
half the work, and most of it is matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import scipy.fft
from scipy.linalg import blas

from specdiag.linalg import workers as threads
from specdiag.linalg.polyphase import Polyphase, frequencies, polyphase, symbol
from specdiag.linalg.stencil import Stencil

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The border slots of one side, outputs or inputs. A slot is (position along the first axis, channel).

    first: (b1, 2) slots of B1; each stands for itself at every place of the other axes.
    line: (l, 2) slots that are inside along the first axis; base: (r,) index into `line` and place: (r,) index
    into `Torus.places` of each entry of B2.
    """

    first: Array
    line: Array
    base: Array
    place: Array


@dataclass(frozen=True, slots=True, eq=False)
class Green:
    """A symmetric function [[X, Y], [Y^T, Z]] of C, as factors on its singular values.

    X = U (x - x_rest) U^T + x_rest I on outputs, Y = U y V^T, Z = V (z - z_rest) V^T + z_rest I on inputs;
    x, y, z: (T, K, G, R).
    """

    x: Array
    x_rest: float
    y: Array
    z: Array
    z_rest: float


@dataclass(frozen=True, slots=True, eq=False)
class Border:
    """The border matrix after B1 is eliminated.

    eigenvalues: (K, G, b1) of B1's blocks, one block per frequency; schur: (G, b2, b2) Schur complement on B2,
    outputs first, of which there are `outputs`; symmetric, only the lower triangle is filled in.
    """

    eigenvalues: Array
    schur: Array
    outputs: int


class Torus:
    """The torus, the SVD of its symbol and its border, for one undilated zero-padded stencil, all groups at once.

    values: singular values of C, (T, K, G, R): T frequencies along the first axis, K along the others, one of
    each conjugate pair; copies: (K,) how many frequencies each of the K stands for.
    """

    def __init__(self, stencil: Stencil, workers: int | None = None) -> None:
        # the shortest axis first: it is the length of B2
        order = sorted(range(len(stencil.axes)), key=lambda axis: stencil.axes[axis].inputs)
        self._order = order
        kernel = stencil.kernel.transpose(0, 1, 2, *(3 + axis for axis in order))
        self.stencil = Stencil(kernel, tuple(stencil.axes[axis] for axis in order))
        parts = polyphase(self.stencil)
        # phases of a block that no tap reads are no inputs at all
        self.used = np.asarray(parts.taps.any(axis=(0, 1, 2)))
        parts = Polyphase(parts.shifts, parts.taps[..., self.used])
        self.grid = tuple(
            max(
                -(-axis.inputs // axis.stride) - min(int(shift.min()), 0),
                axis.outputs + max(int(shift.max()), 0),
            )
            for axis, shift in zip(self.stencil.axes, parts.shifts.T, strict=True)
        )
        self.rest, self.copies = np.zeros((1, 0), int), np.ones(1, int)
        if len(self.grid) > 1:
            self.rest, self.copies = frequencies(self.grid[1:])
        lead = (self.grid[0], len(self.rest))
        index = np.concatenate(
            [np.repeat(np.arange(lead[0]), lead[1])[:, None], np.tile(self.rest, (lead[0], 1))], axis=1
        )
        pieces = np.array_split(index, -(-len(index) // 32))
        found = threads.each(lambda part: _svd(symbol(parts, part, self.grid)), pieces, workers)
        self.left, self.values, self.right = (
            np.concatenate(entry).reshape(*lead, *entry[0].shape[1:]) for entry in zip(*found, strict=True)
        )
        self.places, self.out, self.inside = self._slots()
        self.difference, self._take = self._indices()

    @property
    def count(self) -> int:
        """Number of singular values of C, all groups."""
        return prod(self.grid) * int(self.values.shape[2] * self.values.shape[3])

    @property
    def border_sizes(self) -> tuple[int, int]:
        """(b1, b2): entries of B1 per frequency, and of B2, per group."""
        return len(self.out.first) + len(self.inside.first), len(self.out.base) + len(self.inside.base)

    def sum(self, function: Array) -> float:
        """Sum of a function of the singular values over all of C: (T, K, G, R) -> number."""
        return float(np.einsum("tkgr,k->", function, self.copies))

    def border(self, green: Green) -> Border:
        """The border matrix of `green`, with B1 eliminated."""
        blocks = (
            _sandwich(self.left, green.x, green.x_rest, self.left),
            _sandwich(self.left, green.y, 0.0, self.right),
            _sandwich(self.right, green.z, green.z_rest, self.right),
        )
        x, y, z = (scipy.fft.ifft(block, axis=0, overwrite_x=True) for block in blocks)
        out, inside = self.out, self.inside
        corner = self._pair(x, y, z, (out.first, inside.first), (out.first, inside.first))
        eigenvalues, vectors = np.linalg.eigh(corner)
        schur = self._plane(x, y, z)
        if corner.shape[-1] and schur.shape[-1]:
            link = self._pair(x, y, z, (out.line, inside.line), (out.first, inside.first))
            vectors = vectors * np.sqrt(self.copies / prod(self.grid[1:]))[:, None, None, None]
            vectors /= np.sqrt(np.abs(eigenvalues))[..., None, :]
            self._eliminate(schur, link @ vectors, eigenvalues > 0)
        return Border(eigenvalues, schur, len(out.base))

    def wave(self) -> Array:
        """The torus's leading right singular vector, real, cut to the inputs: (G, C_in / G, *inputs)."""
        axes = self.stencil.axes
        top = np.unravel_index(int(self.values.argmax()), self.values.shape)
        vector = np.zeros(self.used.size, np.complex128)
        vector[self.used] = self.right[top[0], top[1], top[2], :, top[3]]
        strides = [axis.stride for axis in axes]
        vector = vector.reshape(*strides, -1)
        waves = (top[0], *self.rest[top[1]])
        phase = np.zeros([axis.inputs for axis in axes])
        select = []
        for axis, (entry, size) in enumerate(zip(axes, self.grid, strict=True)):
            block, inner = np.divmod(np.arange(entry.inputs), entry.stride)
            turns = 2 * np.pi * waves[axis] * block / size
            phase = phase + turns.reshape([-1 if axis == other else 1 for other in range(len(axes))])
            select.append(inner)
        field = vector[np.ix_(*select)] * np.exp(1j * phase)[..., None]
        result = np.zeros((self.values.shape[2], field.shape[-1], *phase.shape))
        # the sum of real and imaginary part vanishes nowhere where the wave does not
        result[top[2]] = np.moveaxis(field.real + field.imag, -1, 0)
        return np.ascontiguousarray(
            result.transpose(0, 1, *(2 + self._order.index(a) for a in range(len(axes))))
        )

    def _slots(self) -> tuple[Array, Side, Side]:
        """Places of the other axes where something is cut away, (P, axes - 1), and the slots of both sides."""
        axes = self.stencil.axes
        strides = np.array([axis.stride for axis in axes])
        outputs, inputs = self.stencil.kernel.shape[1:3]
        spans = np.array([axis.inputs for axis in axes])
        phase = np.indices((*strides, inputs)).reshape(len(axes) + 1, -1).T[self.used, :-1]
        first = np.arange(self.grid[0])[:, None]
        rest = np.array(list(np.ndindex(self.grid[1:])), int).reshape(
            -1 if len(axes) > 1 else 1, len(axes) - 1
        )
        # kept along the first axis (position, channel), kept along the others (place, channel)
        out_first = np.repeat(first < axes[0].outputs, outputs, axis=1)
        in_first = first * strides[0] + phase[:, 0] < spans[0]
        out_ends = np.array([axis.outputs for axis in axes[1:]], int)
        out_rest = np.repeat(np.all(rest < out_ends, axis=1, keepdims=True), outputs, axis=1)
        in_rest = (rest[:, None] * strides[1:] + phase[:, 1:] < spans[1:]).all(2)
        cut = np.flatnonzero(~(out_rest.all(1) & in_rest.all(1)))

        def side(kept_first: Array, kept_rest: Array) -> Side:
            line = np.argwhere(kept_first)
            place, base = np.nonzero(~kept_rest[cut][:, line[:, 1]])
            return Side(np.argwhere(~kept_first), line, base, place)

        return rest[cut], side(out_first, out_rest), side(in_first, in_rest)

    def _indices(self) -> tuple[Array, tuple[Array, Array, Array]]:
        """Differences between places, (Q, axes - 1), and where each entry of B2 x B2 lies in (T, Q, c, c')."""
        grid = np.array(self.grid[1:], int)
        gaps = (self.places[:, None] - self.places[None]) % grid
        found, number = np.unique(gaps.reshape(len(gaps) ** 2, len(grid)), axis=0, return_inverse=True)
        number = number.reshape(len(self.places), len(self.places))
        length, channels = self.grid[0], (self.left.shape[3], self.right.shape[3])

        def take(rows: Side, columns: Side, width: int, height: int) -> Array:
            row, column = rows.line[rows.base], columns.line[columns.base]
            gap = (row[:, 0, None] - column[None, :, 0]) % length
            place = number[rows.place[:, None], columns.place[None]] if len(number) else gap
            flat = ((gap * len(found) + place) * height + row[:, 1, None]) * width + column[None, :, 1]
            return np.asarray(flat)

        out, inside = self.out, self.inside
        return found, (
            take(out, out, channels[0], channels[0]),
            take(out, inside, channels[1], channels[0]),
            take(inside, inside, channels[1], channels[1]),
        )

    def _pair(
        self, x: Array, y: Array, z: Array, rows: tuple[Array, Array], columns: tuple[Array, Array]
    ) -> Array:
        """The blocks between two sets of slots at each frequency of the other axes, (K, G, rows, columns)."""
        top, left = len(rows[0]), len(columns[0])
        shape = (*x.shape[1:3], top + len(rows[1]), left + len(columns[1]))
        block = np.empty(shape, complex)
        block[..., :top, :left] = self._gather(x, rows[0], columns[0])
        block[..., :top, left:] = self._gather(y, rows[0], columns[1])
        # Y^T: the transpose of the symbol is its conjugate transpose at each frequency, at the opposite shift
        block[..., top:, :left] = self._gather(y, columns[0], rows[1]).conj().swapaxes(-1, -2)
        block[..., top:, left:] = self._gather(z, rows[1], columns[1])
        return block

    def _gather(self, block: Array, rows: Array, columns: Array) -> Array:
        gap = (rows[:, 0, None] - columns[None, :, 0]) % self.grid[0]
        found = block[gap, :, :, rows[:, 1, None], columns[None, :, 1]]
        return np.asarray(np.moveaxis(found, (0, 1), (-2, -1)))

    def _plane(self, x: Array, y: Array, z: Array) -> Array:
        """B2 x B2 before the elimination, (G, b2, b2), real symmetric."""
        split, total = len(self.out.base), self.border_sizes[1]
        groups = x.shape[2]
        plane = np.empty((groups, total, total))
        if total == 0:
            return plane
        turns = 2 * np.pi * (self.difference / np.array(self.grid[1:])) @ self.rest.T
        weight = self.copies / prod(self.grid[1:])
        cosine, sine = np.cos(turns) * weight, np.sin(turns) * weight
        spans = (slice(0, split), slice(split, total))
        for block, take, (row, column) in zip((x, y, z), self._take, ((0, 0), (0, 1), (1, 1)), strict=True):
            flat = block.reshape(*block.shape[:3], -1)
            real = np.einsum("qk,tkgc->gtqc", cosine, flat.real, optimize=True)
            real -= np.einsum("qk,tkgc->gtqc", sine, flat.imag, optimize=True)
            plane[:, spans[row], spans[column]] = np.take(real.reshape(groups, -1), take, axis=1)
        plane[:, split:, :split] = plane[:, :split, split:].swapaxes(1, 2)
        return plane

    def _eliminate(self, schur: Array, link: Array, positive: Array) -> None:
        """Take link sign link^H, summed over the frequencies of the other axes, off the lower triangle of `schur`.

        link: (K, G, line slots, b1), columns scaled to |eigenvalue| 1 and to the weight of the frequency; positive:
        (K, G, b1), the sign.
        """
        base = np.concatenate([self.out.base, len(self.out.line) + self.inside.base])
        place = np.concatenate([self.out.place, self.inside.place])
        turns = 2 * np.pi * self.places @ (self.rest / np.array(self.grid[1:])).T
        for group in range(schur.shape[0]):
            rows = link[:, group].swapaxes(0, 1)
            rows = (
                rows[base]
                if len(self.places) > 1 or len(base) != rows.shape[0]
                else np.ascontiguousarray(rows)
            )
            if len(self.places) > 1:
                # at one place only, its phase cancels
                rows *= np.exp(1j * turns)[place][..., None]
            # real and imaginary parts side by side: for conjugate pairs of frequencies the sum is real
            sign = positive[:, group]
            for keep, factor in ((sign, -1.0), (~sign, 1.0)):
                columns = _columns(rows.view(float), np.repeat(keep, 2, axis=1))
                if columns.shape[1]:
                    # the upper triangle of the transpose, which is the same memory
                    blas.dsyrk(factor, columns.T, 1.0, schur[group].T, trans=1, lower=0, overwrite_c=1)


def _svd(blocks: Array) -> tuple[Array, Array, Array]:
    left, values, right = np.linalg.svd(blocks, full_matrices=False)
    return left, values, right.conj().swapaxes(-1, -2)


def _sandwich(left: Array, values: Array, rest: float, right: Array) -> Array:
    block = (left * (values - rest)[..., None, :]) @ right.conj().swapaxes(-1, -2)
    if rest:
        diagonal = np.arange(block.shape[-1])
        block[..., diagonal, diagonal] += rest
    return np.asarray(block)


def _columns(rows: Array, keep: Array) -> Array:
    """The kept columns, (b2, K, b) -> (b2, kept); a plain slice where all frequencies keep the same ones."""
    if (keep == keep[0]).all():
        place = np.flatnonzero(keep[0])
        if len(place) and place[-1] - place[0] == len(place) - 1:
            return np.asarray(rows[:, :, place[0] : place[-1] + 1].reshape(len(rows), -1))
    return np.asarray(rows[:, keep])
