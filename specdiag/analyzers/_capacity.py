"""The capacity terms of farnia2019 Theorems 1 to 4, in logarithms. Torch-free.

P = prod ||W_i||_2, S = sum ||W_i||_F^2 / ||W_i||_2^2, lip = P sum_i prod_{j <= i} ||W_j||_2. The theorems bound the
generalisation error by sqrt(Phi) / gamma, so a margin is normalised by sqrt(Phi).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Theorem = Literal["erm", "fgm", "pgm", "wrm"]
# which theorem covers the samples that an attack makes
THEOREM_OF: dict[str, Theorem] = {"clean": "erm", "fgm-l2": "fgm", "pgd-l2": "pgm", "wrm": "wrm"}


@dataclass(frozen=True, slots=True)
class Capacity:
    """Logarithms of P and lip, and S itself."""

    log_product: float
    stable_ranks: float
    log_lip: float


def capacity(sigma: Sequence[float], frobenius: Sequence[float]) -> Capacity:
    """From the operator norms and Frobenius norms of the layers, in order; all above zero."""
    logs = np.log(np.asarray(sigma, dtype=float))
    ratios = np.asarray(frobenius, dtype=float) / np.asarray(sigma, dtype=float)
    product = float(logs.sum())
    return Capacity(product, float((ratios**2).sum()), product + float(np.logaddexp.reduce(np.cumsum(logs))))


def log_phi(
    theorem: Theorem,
    known: Capacity,
    *,
    kappa: float = float("nan"),
    eps: float = float("nan"),
    steps: int = 1,
    alpha: float = float("nan"),
    penalty: float = float("nan"),
    with_frobenius: bool = True,
) -> float:
    """Logarithm of Phi of one theorem; NaN where it is undefined (kappa = 0, or WRM with lip >= penalty)."""
    if theorem == "erm":
        grown = 0.0
    elif theorem == "wrm":
        room = penalty - float(np.exp(known.log_lip)) if known.log_lip < 700 else -1.0
        grown = float(np.log1p(np.exp(known.log_lip) / room)) if room > 0 else float("nan")
    elif not kappa > 0:
        grown = float("nan")
    elif theorem == "fgm":
        grown = float(np.logaddexp(0, np.log(eps / kappa) + known.log_lip))
    else:
        # the printed quotient of the geometric sum is 0 / 0 where its ratio is 1
        ratio = np.log(2 * alpha / kappa) + known.log_lip
        series = float(np.logaddexp.reduce(ratio * np.arange(steps)))
        grown = float(np.logaddexp(0, np.log(alpha / kappa) + known.log_lip + series))
    return 2 * (known.log_product + grown) + (float(np.log(known.stable_ranks)) if with_frobenius else 0.0)
