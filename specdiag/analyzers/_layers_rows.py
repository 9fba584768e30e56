"""The numbers of one linear map: its spectrum as the network applies it, beside two usual stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from specdiag.analyzers._layers_uses import Use
from specdiag.errors import NumericalError, SpecdiagError
from specdiag.linalg import circular
from specdiag.linalg import workers as threads
from specdiag.linalg.spectra import UNKNOWN, LayerSpectrum, Settings, of_convolution, of_matrix, of_values
from specdiag.linalg.svd import cutoff

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One map: its spectrum (None where only the reshaped kernel is known), the stand-ins' (norm, STD), and a note."""

    spectrum: LayerSpectrum | None
    kernel: tuple[float, float]
    circular: tuple[float, float]
    note: str = ""


def rows_of(uses: Sequence[Use], settings: Settings) -> list[Row]:
    """One row per use, on torch's number of threads; calls of the same map share one computation.

    Raises NumericalError naming the layer whose weights are not finite.
    """
    first = {use.same_as: use for use in reversed(uses)}
    single = replace(settings, workers=1)
    # the large ones first, so that no thread is left alone with one of them
    order = sorted(first.values(), key=_size, reverse=True)
    found = threads.each(lambda use: _row(use, single), order, settings.workers)
    by_map = {use.same_as: row for use, row in zip(order, found, strict=True)}
    return [by_map[use.same_as] for use in uses]


def arrays_of(rows: Sequence[Row], shares: tuple[float, ...]) -> dict[str, Any]:
    """The arrays of all rows: (L,), and (L, shares) for quantiles. NaN for what is not known."""
    blank = np.full((len(rows), len(shares)), np.nan)
    arrays: dict[str, Any] = {"quantile": blank, "quantile_error": blank.copy()}
    for place, row in enumerate(rows):
        for name, value in _numbers(row).items():
            arrays.setdefault(name, np.full(len(rows), np.nan))[place] = value
        if row.spectrum is not None:
            arrays["quantile"][place] = [entry.value for entry in row.spectrum.quantiles]
            arrays["quantile_error"][place] = [_finite(entry.error) for entry in row.spectrum.quantiles]
    arrays["method"] = np.array([row.spectrum.method if row.spectrum else "kernel only" for row in rows])
    arrays["note"] = np.array([row.note for row in rows])
    return arrays


def _numbers(row: Row) -> dict[str, float]:
    numbers = {
        "kernel_norm": row.kernel[0],
        "kernel_std": row.kernel[1],
        "circular_norm": row.circular[0],
        "circular_std": row.circular[1],
    }
    found = row.spectrum
    if found is None:
        return numbers
    for name, estimate in (
        ("sigma_max", found.sigma_max),
        ("sigma_min", found.sigma_min),
        ("sigma_mean", found.mean),
        ("sigma_std", found.std),
        ("effective_rank", found.effective_rank),
    ):
        numbers |= {name: estimate.value, f"{name}_error": _finite(estimate.error)}
    top, low = found.sigma_max.value, found.sigma_min.value
    zero = low <= cutoff(torch.float64, found.shape, top)
    return numbers | {
        "outputs": found.shape[0],
        "inputs": found.shape[1],
        "frobenius": found.frobenius,
        "stable_rank": (found.frobenius / top) ** 2 if top else 0.0,
        "condition": np.inf if zero else top / low,
        "pairs": found.pairs,
        "counts": found.counts,
    }


def _row(use: Use, settings: Settings) -> Row:
    try:
        kernel = (np.nan, np.nan) if use.kernel is None else _pair(of_matrix(use.kernel))
        if use.matrix is not None:
            return Row(of_matrix(use.matrix, settings), kernel, kernel)
        if use.scale is not None:
            values = np.sort(use.scale.abs().double().numpy())[::-1]
            squares = float((values**2).sum())
            found = of_values(values, (len(values), len(values)), "exact", squares, settings.shares)
            return Row(found, kernel, (np.nan, np.nan))
        if use.layer is None:
            return Row(None, kernel, (np.nan, np.nan))
        published = circular.singular_values(circular.unstrided(use.layer.stencil()), 1)
        stand_in = float(published[0]), float(published.std())
        found, note = _spectrum(use, settings)
    except NumericalError as error:
        raise NumericalError(f"Layer '{use.name}': {error.what}", error.todo) from error
    return Row(found, kernel, stand_in, note)


def _spectrum(use: Use, settings: Settings) -> tuple[LayerSpectrum, str]:
    """By the method asked for, or by `auto` where it does not apply or does not fit, with the reason."""
    assert use.layer is not None
    try:
        return of_convolution(use.layer, settings), ""
    except SpecdiagError as error:
        if settings.method == "auto" or "NaN" in error.what:
            raise
        return of_convolution(use.layer, replace(settings, method="auto")), error.what


def _pair(found: LayerSpectrum) -> tuple[float, float]:
    return found.sigma_max.value, found.std.value


def _size(use: Use) -> int:
    return int(np.prod(use.layer.shape)) if use.layer is not None else 0


def _finite(error: float) -> float:
    return error if error != UNKNOWN.error else float("nan")
