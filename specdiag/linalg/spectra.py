"""The spectrum of one layer by the method asked for, or by the cheapest one that is exact enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import xlogy

from specdiag.errors import NumericalError, UsageError
from specdiag.linalg import circular, cost, dense, extrapolate, quadrature
from specdiag.linalg import workers as threads
from specdiag.linalg.counts import Ranks
from specdiag.linalg.cut import Cut
from specdiag.linalg.estimate import Estimate, effective_rank, mean_and_std
from specdiag.linalg.largest import largest
from specdiag.linalg.layers import Convolution
from specdiag.linalg.operators import LinearOperator
from specdiag.linalg.power import power_method
from specdiag.linalg.stencil import Stencil

Array = np.ndarray[Any, np.dtype[Any]]
Method = Literal["auto", "fft", "cut", "exact", "krylov", "power", "extrapolate", "quadrature"]

UNKNOWN = Estimate(float("nan"), float("inf"))
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles that are given where no others are asked for, and that `fine` proves by counts."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How spectra are computed.

    method: see the files of this folder. seconds: about how long `auto` may take for one layer on one core;
    memory: bytes any method may take. quantiles: also quantiles, at `shares`, and sigma_min. fine: sums to 1e-7
    rather than 1e-5, sigma_min to 1 % rather than 20 %, exact ranks (`cut`). steps: of `power`. workers:
    threads (default: torch's number).
    """

    method: Method = "auto"
    seconds: float = 60.0
    memory: float = 8e9
    quantiles: bool = True
    fine: bool = False
    shares: tuple[float, ...] = SHARES
    steps: int = 100
    seed: int = 0
    workers: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LayerSpectrum:
    """What is known of the singular values of one (m, n) operator; `UNKNOWN` where the method does not tell.

    method: the one that was taken; mean, std (population): over all `count` of them; frobenius: exact;
    effective_rank: exp of the entropy of sigma / sum sigma; quantiles: one for each of the settings' `shares`;
    values: all of them, falling, where the method gives them; pairs: products with A and with A^T, counts:
    inertia counts that were spent.
    """

    method: str
    shape: tuple[int, int]
    sigma_max: Estimate
    sigma_min: Estimate
    mean: Estimate
    std: Estimate
    frobenius: float
    effective_rank: Estimate
    quantiles: tuple[Estimate, ...]
    values: Array | None = None
    pairs: int = 0
    counts: int = 0

    @property
    def count(self) -> int:
        """Number of singular values."""
        return min(self.shape)


def of_convolution(layer: Convolution, settings: Settings | None = None) -> LayerSpectrum:
    """The spectrum of a convolution as the network applies it.

    Raises UsageError where the method does not apply to the layer (with those that do), NumericalError where it needs
    more memory than allowed or the weights are not finite.
    """
    chosen = settings or Settings()
    stencil = layer.stencil()
    if not np.isfinite(stencil.kernel).all():
        raise NumericalError("The kernel holds NaN or infinite entries.", "Check the checkpoint.")
    if stencil.squares == 0.0:
        return of_values(np.zeros(stencil.count), layer.shape, "exact", 0.0, chosen.shares)
    if chosen.method == "auto":
        chosen = choose(stencil, chosen)
    double = replace(
        layer, weight=layer.weight.double(), scale=None if layer.scale is None else layer.scale.double()
    )
    # settled here: what runs alone sees one thread
    chosen = replace(chosen, workers=chosen.workers or torch.get_num_threads())
    found = threads.alone(lambda: _METHODS[chosen.method](stencil, double.operator(), chosen))
    # the stencil of a transposed convolution is that of its adjoint
    return replace(found, shape=layer.shape)


def of_matrix(matrix: torch.Tensor, settings: Settings | None = None) -> LayerSpectrum:
    """The spectrum of a linear layer's weight (m, n), every value. Raises NumericalError for NaN."""
    shares = (settings or Settings()).shares
    array = matrix.detach().double().cpu().numpy()
    if not np.isfinite(array).all():
        raise NumericalError("The matrix holds NaN or infinite entries.", "Check the checkpoint.")
    squares = float((array**2).sum())
    return of_values(dense.of_matrix(array), array.shape, "exact", squares, shares, min(array.shape))


def of_values(
    values: Array,
    shape: tuple[int, int],
    method: str,
    squares: float,
    shares: tuple[float, ...] = SHARES,
    side: int = 1,
    promise: tuple[float, float] = (0.0, dense.PROMISE),
) -> LayerSpectrum:
    """All singular values are known, falling, to the (relative, absolute) `promise`, from Grams of side `side`."""
    error = dense.value_errors(values, side, *promise)
    total = Estimate(float(values.sum()), float(error.sum()))
    mean, _ = mean_and_std(total, squares, len(values))
    # from the values themselves: the STD of equal values is zero, not what is left of a subtraction
    std = Estimate(float(values.std()), float(error.max()))
    place = [min(int((1 - share) * len(values)), len(values) - 1) for share in shares]
    levels = np.quantile(values, shares)
    rank = effective_rank(total.value, float(xlogy(values, values).sum()))
    return LayerSpectrum(
        method,
        shape,
        Estimate(float(values[0]), float(error[0])),
        Estimate(float(values[-1]), float(error[-1])),
        mean,
        std,
        squares**0.5,
        Estimate(rank, 1e-6 * rank),
        tuple(Estimate(float(level), float(error[at])) for level, at in zip(levels, place, strict=True)),
        values,
    )


def choose(stencil: Stencil, settings: Settings) -> Settings:
    """The settings with `auto` replaced by the cheapest method that is exact, or else by an estimate."""
    if circular.applies(stencil):
        return replace(settings, method="fft")
    if stencil.mode != "zeros":
        size, seconds = dense.cost(stencil)
        fits = seconds <= settings.seconds and size <= settings.memory
        return replace(settings, method="exact" if fits else "quadrature")
    costs = cost.of(stencil)
    dense_fits = costs.exact_bytes <= settings.memory
    cut_fits = costs.cut_bytes <= settings.memory
    if dense_fits and costs.exact <= max(0.3, costs.everything if settings.quantiles else costs.total):
        return replace(settings, method="exact")
    if cut_fits and costs.everything <= settings.seconds:
        return replace(settings, method="cut")
    if cut_fits and costs.total <= settings.seconds:
        return replace(settings, method="cut", quantiles=False)
    if dense_fits and costs.exact <= settings.seconds:
        return replace(settings, method="exact")
    return replace(settings, method="extrapolate")


def _exact(stencil: Stencil, operator: LinearOperator, settings: Settings) -> LayerSpectrum:
    values = dense.singular_values(stencil, settings.memory)
    side = max(min(part.shape) // part.groups for part, _ in stencil.split())
    return of_values(values, stencil.shape, "exact", stencil.squares, settings.shares, side)


def _fft(stencil: Stencil, operator: LinearOperator, settings: Settings) -> LayerSpectrum:
    if not circular.applies(stencil):
        raise UsageError(
            f"The method fft is for circular padding; this layer has {stencil.mode} padding or sizes that do not close.",
            "Use --method cut, exact or extrapolate (zero padding), exact or quadrature (the others).",
        )
    values = circular.singular_values(stencil, settings.workers)
    rank = min(stencil.kernel.shape[1], stencil.kernel.shape[2] * 2 ** len(stencil.axes))
    promise = (circular.TOLERANCE, 1e-12)
    return of_values(values, stencil.shape, "fft", stencil.squares, settings.shares, rank, promise)


def _cut(stencil: Stencil, operator: LinearOperator, settings: Settings) -> LayerSpectrum:
    cut = Cut(stencil, settings.workers)
    mean, std = mean_and_std(cut.total(settings.fine), stencil.squares, stencil.count)
    ranks = Ranks(cut)
    top = largest(operator, ranks, settings.seed)
    smallest, quantiles = UNKNOWN, (UNKNOWN,) * len(settings.shares)
    if settings.quantiles:
        limit, anchors = (6, SHARES) if settings.fine else (0, ())
        quantiles = tuple(ranks.quantiles(settings.shares, limit, anchors))
        smallest = ranks.smallest(0.01 if settings.fine else 0.2)
    return LayerSpectrum(
        "cut",
        stencil.shape,
        top.sigma,
        smallest,
        mean,
        std,
        stencil.squares**0.5,
        cut.effective_rank(),
        quantiles,
        None,
        top.pairs,
        ranks.made,
    )


def _extrapolate(stencil: Stencil, operator: LinearOperator, settings: Settings) -> LayerSpectrum:
    if stencil.mode != "zeros":
        raise UsageError(
            f"The method extrapolate is for zero padding, not {stencil.mode}.", "Use --method auto."
        )
    total = extrapolate.total(stencil, workers=settings.workers)
    return _partial("extrapolate", stencil, operator, settings, total)


def _quadrature(stencil: Stencil, operator: LinearOperator, settings: Settings) -> LayerSpectrum:
    found = quadrature.lanczos(operator, stencil.squares, seed=settings.seed)
    return replace(
        _partial("quadrature", stencil, operator, settings, found.total), effective_rank=found.rank
    )


def _krylov(stencil: Stencil, operator: LinearOperator, settings: Settings) -> LayerSpectrum:
    return _partial("krylov", stencil, operator, settings, UNKNOWN)


def _partial(
    method: str, stencil: Stencil, operator: LinearOperator, settings: Settings, total: Estimate
) -> LayerSpectrum:
    mean, std = UNKNOWN, UNKNOWN
    if total is not UNKNOWN:
        mean, std = mean_and_std(total, stencil.squares, stencil.count)
    top = largest(operator, None, settings.seed)
    return _only_top(method, stencil, top.sigma, top.pairs, settings, mean, std)


def _only_top(
    method: str,
    stencil: Stencil,
    top: Estimate,
    pairs: int,
    settings: Settings,
    mean: Estimate = UNKNOWN,
    std: Estimate = UNKNOWN,
) -> LayerSpectrum:
    nothing = (UNKNOWN,) * len(settings.shares)
    frobenius = stencil.squares**0.5
    return LayerSpectrum(
        method, stencil.shape, top, UNKNOWN, mean, std, frobenius, UNKNOWN, nothing, None, pairs
    )


def _power(stencil: Stencil, operator: LinearOperator, settings: Settings) -> LayerSpectrum:
    draw = np.random.Generator(np.random.Philox(settings.seed)).standard_normal((1, operator.shape[1]))
    found = power_method(operator, torch.from_numpy(draw), settings.steps)
    value = float(found.values[0, -1])
    # the power method stays below sigma_max; a torus with the layer in it gives a bound from above
    error = float("inf")
    if stencil.mode == "zeros":
        sizes = tuple(axis.stride * (axis.outputs + axis.taps * axis.dilation) for axis in stencil.axes)
        around = circular.by_frequency(circular.torus(stencil, sizes), settings.workers)[0]
        error = float(around.max()) - value
    top = Estimate(value, max(error, 1e-15 * value))
    return _only_top("power", stencil, top, int(found.values.shape[1]), settings)


_METHODS: dict[str, Callable[[Stencil, LinearOperator, Settings], LayerSpectrum]] = {
    "exact": _exact,
    "fft": _fft,
    "cut": _cut,
    "extrapolate": _extrapolate,
    "quadrature": _quadrature,
    "krylov": _krylov,
    "power": _power,
}
