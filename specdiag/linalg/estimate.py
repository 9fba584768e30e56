"""A number together with what is known of its error."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """`value` is believed to lie within `error` of the truth; `error` covers rounding only where it is tiny."""

    value: float
    error: float

    def __truediv__(self, divisor: float) -> Estimate:
        """Both divided by a number."""
        return Estimate(self.value / divisor, self.error / abs(divisor))


def effective_rank(total: float, logs: float) -> float:
    """Exp of the entropy of p = sigma / sum sigma (Roy and Vetterli), from sum sigma and sum sigma log sigma."""
    return math.exp(math.log(total) - logs / total) if total > 0 else 0.0


def mean_and_std(total: Estimate, squares: float, count: int) -> tuple[Estimate, Estimate]:
    """Mean and population STD of `count` values, from their sum and the exact sum of their squares."""
    mean = total / count
    variance = squares / count - mean.value**2
    # what is left of the digits after the subtraction
    variance_error = 2 * abs(mean.value) * mean.error + 4e-16 * squares / count
    std = max(variance, 0.0) ** 0.5
    error = variance_error / (2 * std) if std**2 > variance_error else variance_error**0.5
    return mean, Estimate(std, error)
