"""sigma_max of a convolution: from below by Lanczos, from above by a count or by the torus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from specdiag.linalg.bidiagonal import Bidiagonalisation
from specdiag.linalg.counts import Ranks
from specdiag.linalg.estimate import Estimate
from specdiag.linalg.krylov import Krylov, grow
from specdiag.linalg.operators import LinearOperator

BRACKET = 2e-6
"""Width of the bracket around sigma_max, relative, that one count closes."""

UNPROVED = 1e-10
"""Stop of Lanczos where no count can prove the result: a value that it missed mostly shows up by then."""


@dataclass(frozen=True, slots=True)
class Largest:
    """sigma_max; `pairs` of products it took; `proved` where a count showed that nothing lies above value + error."""

    sigma: Estimate
    pairs: int
    proved: bool


def largest(operator: LinearOperator, ranks: Ranks | None, seed: int = 0, max_pairs: int = 300) -> Largest:
    """sigma_max of a float64 operator. With the `ranks` of the same layer the result is proved by one count.

    Lanczos starts from the torus's vector, in which the layer's own is mostly contained. Where the count finds a
    singular value above, Lanczos has missed one and goes on to a stricter stop.
    """
    start = _start(operator, ranks, seed)
    if operator.shape[0] < operator.shape[1]:
        operator, start = operator.T, operator.matmat(start)
    process = Bidiagonalisation(operator, start, seed)
    for tolerance in (BRACKET / 4, BRACKET / 40, BRACKET / 4000):
        found = grow(process, 1, tolerance if ranks else UNPROVED, max_pairs)
        value = float(found.values[0, 0])
        if ranks is None or value == 0.0:
            return Largest(Estimate(value, _unproved(operator, found)), process.pairs, False)
        if ranks.above(value * (1 + BRACKET)) == 0:
            return Largest(Estimate(value * (1 + BRACKET / 2), value * BRACKET / 2), process.pairs, True)
        if process.pairs >= min(max_pairs, process.limit):
            break
    # the count found values that the space does not hold: what is left is the torus's bound
    upper = ranks.cut.upper if ranks is not None else float("inf")
    return Largest(Estimate(value, max(upper - value, 0.0)), process.pairs, False)


def _unproved(operator: LinearOperator, found: Krylov) -> float:
    """Error where nothing proves that a close pair was told apart: the residual, not its square over the gap.

    Of two values closer than Lanczos has resolved it holds one mixture, whose residual is of the size of their
    distance while the estimate of second order takes the next value for the neighbour.
    """
    left, right = torch.as_tensor(found.left[:, 0]), torch.as_tensor(found.right[:, 0])
    residual = operator.rmatmat(left) - float(found.values[0, 0]) * right
    return max(float(found.error[0, 0]), float(torch.linalg.vector_norm(residual)))


def _random(n: int, seed: int) -> torch.Tensor:
    draw = np.random.Generator(np.random.Philox(seed)).standard_normal((1, n))
    return torch.from_numpy(draw / np.linalg.norm(draw))


def _start(operator: LinearOperator, ranks: Ranks | None, seed: int) -> torch.Tensor:
    noise = _random(operator.shape[1], seed)
    if ranks is None or len(ranks.cut.pieces) != 1:
        return noise
    wave = torch.from_numpy(ranks.cut.pieces[0].torus.wave().ravel())
    if wave.numel() != operator.shape[1] or not bool(wave.any()):
        return noise
    unit: torch.Tensor = wave / torch.linalg.vector_norm(wave)
    return unit[None] + 0.3 * noise
