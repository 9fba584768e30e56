"""`fft`: every singular value of a circular convolution, from its symbol (Sedghi, Gupta and Long, ICLR 2019).

Their method, with stride, dilation and groups by polyphase blocks, one frequency of each conjugate pair, and
eigenvalues of the Gram symbol in place of an SVD. The Gram symbol is summed up from the autocorrelation of
the kernel, without a matrix product per frequency; frequencies where its small end is not accurate are
computed again by SVD.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from specdiag.errors import NumericalError
from specdiag.linalg import workers as threads
from specdiag.linalg.polyphase import Polyphase, angles, frequencies, polyphase, symbol
from specdiag.linalg.stencil import Axis, Stencil

Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCE = 1e-6
"""Largest relative error of each singular value (beside 1e-12 of the largest one)."""

_CHUNK = 3 << 20  # bytes per piece of work
_SLAB = 256 << 20  # bytes of Gram symbols held at once
_WORTH_THREADS = 20_000_000  # frequencies times cubed rank


def applies(stencil: Stencil) -> bool:
    """True where the operator is circulant: it wraps around and gives one output per stride."""
    whole = all(axis.inputs == axis.stride * axis.outputs for axis in stencil.axes)
    return stencil.mode == "circular" and whole


def torus(stencil: Stencil, size: tuple[int, ...] | None = None) -> Stencil:
    """The same kernel, wrapped, on a torus of `size` inputs (default: its own, rounded up to the stride)."""
    sizes = size or tuple(-(-axis.inputs // axis.stride) * axis.stride for axis in stencil.axes)
    axes = tuple(
        Axis(inputs, inputs // axis.stride, axis.taps, axis.stride, axis.dilation, axis.offset)
        for axis, inputs in zip(stencil.axes, sizes, strict=True)
    )
    return Stencil(stencil.kernel, axes, "circular")


def unstrided(stencil: Stencil) -> Stencil:
    """What the published recipe takes a layer for: no stride, borders wrapped, on the input's grid."""
    axes = tuple(Axis(axis.inputs, axis.inputs, axis.taps, 1, axis.dilation, 0) for axis in stencil.axes)
    return Stencil(stencil.kernel, axes, "circular")


def singular_values(stencil: Stencil, workers: int | None = None) -> Array:
    """All min(m, n) singular values in falling order, each to 1e-6 of itself plus 1e-12 of the largest.

    Raises ValueError where the stencil is not circulant (see `applies`), NumericalError for weights that are
    not finite.
    """
    values, copies = by_frequency(stencil, workers)
    flat = np.repeat(values.reshape(-1, values.shape[-1]), np.repeat(copies, values.shape[1]), axis=0)
    found = np.concatenate([flat.ravel(), np.zeros(stencil.count - flat.size)])
    return np.sort(found)[::-1]


def by_frequency(stencil: Stencil, workers: int | None = None) -> tuple[Array, Array]:
    """Singular values (F, G, R), rising along R, and the multiplicity (F,) of each frequency."""
    if not applies(stencil):
        raise ValueError("not a circulant operator")
    if not np.isfinite(stencil.kernel).all():
        raise NumericalError("The kernel holds NaN or infinite entries.")
    grid = tuple(axis.outputs for axis in stencil.axes)
    parts = polyphase(stencil)
    index, copies = frequencies(grid)
    if len(np.unique(parts.shifts % np.array(grid), axis=0)) == 1:
        # all taps fall on one place: the symbol is the same matrix, up to a phase, at every frequency
        index, copies = index[:1], np.array([prod(grid)])
    groups, *block = parts.taps.shape[1:]
    rank = min(block)
    step = _CHUNK // (16 * groups * rank**2)
    if len(index) * groups * rank**3 < _WORTH_THREADS:
        workers = 1
    if rank == 1:
        pieces = _pieces(len(index), step)
        norms = threads.each(lambda part: _norms(symbol(parts, index[part], grid)), pieces, workers)
        return np.concatenate(norms), copies
    shifts, squares = _autocorrelation(parts, workers)
    eigenvalues = _gram_eigenvalues(shifts, squares, index, grid, workers)
    values = np.sqrt(np.maximum(eigenvalues, 0.0))
    # an eigenvalue's error is that of the sum over taps: relative to the largest of all frequencies
    floor = 4 * np.sqrt(rank) * np.finfo(np.float64).eps / (2 * TOLERANCE) * eigenvalues.max()
    redo = np.flatnonzero((eigenvalues[..., 0] < floor).any(1))
    pieces = _pieces(len(redo), step)
    again = threads.each(lambda part: _svd(symbol(parts, index[redo[part]], grid)), pieces, workers)
    for piece, exact in zip(pieces, again, strict=True):
        values[redo[piece]] = exact
    return values, copies


def _autocorrelation(parts: Polyphase, workers: int | None) -> tuple[Array, Array]:
    """Shifts (D, axes), matrices (D, G, R, R): Gram symbol (smaller side) = sum_D matrix e^{i w shift}.

    One shift of each pair +-shift: the matrix of the other is the transpose.
    """
    taps, signs = parts.taps, 1
    if taps.shape[2] > taps.shape[3]:
        taps, signs = taps.swapaxes(2, 3), -1
    pairs: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for first, second in np.ndindex(len(taps), len(taps)):
        shift = tuple(int(entry) for entry in signs * (parts.shifts[first] - parts.shifts[second]))
        if shift >= (0,) * len(shift):
            pairs.setdefault(shift, []).append((first, second))

    def total(places: list[tuple[int, int]]) -> Array:
        return np.asarray(sum(taps[first] @ taps[second].swapaxes(1, 2) for first, second in places))

    return np.array(list(pairs), int), np.stack(threads.each(total, pairs.values(), workers))


def _gram_eigenvalues(
    shifts: Array, squares: Array, index: Array, grid: tuple[int, ...], workers: int | None
) -> Array:
    # both shifts of a pair at once: M e^{ia} + M^T e^{-ia} = (M + M^T) cos a + i (M - M^T) sin a
    turned = squares.swapaxes(2, 3)
    even = np.where(shifts.any(axis=1).reshape(-1, 1, 1, 1), squares + turned, squares).reshape(
        len(shifts), -1
    )
    odd = (squares - turned).reshape(len(shifts), -1)
    size = even.shape[1]
    found = []
    for slab in _pieces(len(index), _SLAB // (16 * size)):
        phase = angles(index[slab], shifts, grid)
        cosine, sine = np.cos(phase), np.sin(phase)
        gram = np.empty((len(phase), size), complex)

        # entries first, over all frequencies, then frequencies: each pass reads its matrices once
        def fill(part: slice, gram: Array = gram, cosine: Array = cosine, sine: Array = sine) -> None:
            gram[:, part].real = cosine @ even[:, part]
            gram[:, part].imag = sine @ odd[:, part]

        def solve(part: slice, gram: Array = gram) -> Array:
            return np.asarray(np.linalg.eigvalsh(gram[part].reshape(-1, *squares.shape[1:])))

        threads.each(fill, _pieces(size, _CHUNK // (16 * len(phase))), workers)
        found += threads.each(solve, _pieces(len(phase), _CHUNK // (16 * size)), workers)
    return np.concatenate(found)


def _pieces(total: int, step: int) -> list[slice]:
    return [slice(start, start + max(1, step)) for start in range(0, total, max(1, step))]


def _svd(blocks: Array) -> Array:
    return np.asarray(np.linalg.svd(blocks, compute_uv=False)[..., ::-1])


def _norms(blocks: Array) -> Array:
    return np.asarray(np.linalg.norm(blocks.reshape(*blocks.shape[:2], -1), axis=2)[..., None])
