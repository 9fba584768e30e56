"""From numbers to verdicts: a statistic with its 95 % interval, a rule, and what follows. Torch-free.

Every claim is put as one number (the statistic) and one rule (above a threshold, below it, or between two). It holds
where the whole interval obeys the rule, does not hold where the whole interval breaks it, and is undecided otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from specdiag.sampling import Draws

RESAMPLES = 2000
LEVEL = 0.95
Verdict = Literal["holds", "does not hold", "undecided"]
Values = np.ndarray[Any, np.dtype[Any]]

# two-sided 95 % points of Student's t by degrees of freedom
_T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic and its 95 % interval, over so many training seeds and test samples (0: none enter)."""

    value: float
    low: float
    high: float
    seeds: int
    samples: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What the statistic has to be for the claim to hold: above `low`, below `high`, or both."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}"
        return f"below {self.high:g}" if self.low == -math.inf else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Claim:
    """One row: the claim, where it stands and what the paper found, and what is found here.

    statistic: how the number is made from what was measured; note: anything else a reader needs.
    """

    claim: str
    source: str
    paper: str
    statistic: str
    found: Estimate
    rule: Rule
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """What follows from interval and rule."""
        return verdict(self.found, self.rule)


def above(threshold: float) -> Rule:
    """The statistic has to be above a threshold."""
    return Rule(low=threshold)


def below(threshold: float) -> Rule:
    """The statistic has to be below a threshold."""
    return Rule(high=threshold)


def between(low: float, high: float) -> Rule:
    """The statistic has to lie between two numbers."""
    return Rule(low, high)


def verdict(found: Estimate, rule: Rule) -> Verdict:
    """`holds`: the whole interval obeys the rule; `does not hold`: all of it breaks it; else `undecided`.

    A statistic that is not finite is undecided.
    """
    if not all(map(math.isfinite, (found.value, found.low, found.high))):
        return "undecided"
    if found.low > rule.low and found.high < rule.high:
        return "holds"
    return "does not hold" if found.high <= rule.low or found.low >= rule.high else "undecided"


def estimate(
    function: Callable[..., float], rows: Sequence[Sequence[Values]], *, draws: int | None = None
) -> Estimate:
    """The mean over training seeds of `function(*arrays)`, with a 95 % interval.

    rows: for each seed the arrays that the function takes, (N, ...), row i of all of them being the same sample. Two parts
    are added in quadrature on each side: the percentile interval of a bootstrap over samples, in which all arrays of
    all seeds are drawn by the same indices (paired), and Student's interval of the mean over seeds. Samples
    are shared by the seeds, so the second alone would not know of them. With one seed the first part is all: the
    interval is then of these networks, not of the method. Samples that any network could not be measured at (NaN:
    no gradient to attack by) are left out for all; `Estimate.samples` counts the others.
    """
    draws = RESAMPLES if draws is None else draws
    rows = [[np.asarray(array) for array in arrays] for arrays in rows]
    lost = np.any([_lost(array) for arrays in rows for array in arrays], axis=0)
    rows = [[array[~lost] for array in arrays] for arrays in rows]
    count = len(rows[0][0])
    if not count:
        return Estimate(math.nan, math.nan, math.nan, len(rows), 0)
    by_seed = [_number(function, arrays) for arrays in rows]
    value = float(np.mean(by_seed))
    generator = Draws(0).generator("reproduce/bootstrap")
    replicates = np.empty(draws)
    for number in range(draws):
        index = generator.integers(0, count, size=count)
        replicates[number] = np.mean(
            [_number(function, [array[index] for array in arrays]) for arrays in rows]
        )
    finite = replicates[np.isfinite(replicates)]
    if not math.isfinite(value) or len(finite) < 0.9 * draws:
        return Estimate(value, math.nan, math.nan, len(rows), count)
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    seeds = _half(by_seed)
    return Estimate(
        value,
        value - math.hypot(max(0.0, value - float(low)), seeds),
        value + math.hypot(max(0.0, float(high) - value), seeds),
        len(rows),
        count,
    )


def _lost(array: Values) -> Values:
    """Which samples hold a NaN, (N,)."""
    if array.dtype.kind != "f":
        return np.zeros(len(array), dtype=bool)
    return np.asarray(np.isnan(array).reshape(len(array), -1).any(1))


def over_seeds(by_seed: Sequence[float]) -> Estimate:
    """The mean of one number per training seed, with Student's 95 % interval; exact for a single seed."""
    value, half = float(np.mean(by_seed)), _half(by_seed)
    return Estimate(value, value - half, value + half, len(by_seed), 0)


def widened(found: Estimate, error: float) -> Estimate:
    """The estimate with a further standard error added to its interval in quadrature."""
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    low = found.value - math.hypot(found.value - found.low, half)
    high = found.value + math.hypot(found.high - found.value, half)
    return Estimate(found.value, low, high, found.seeds, found.samples)


def over_checkpoints(function: Callable[..., float], *columns: Sequence[float]) -> Estimate:
    """A statistic over checkpoints, such as a correlation, with the percentile interval of a bootstrap over them."""
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    count, value = len(arrays[0]), _number(function, arrays)
    generator = Draws(0).generator("reproduce/checkpoints")
    found = []
    for _ in range(RESAMPLES):
        index = generator.integers(0, count, size=count)
        if len(set(index.tolist())) > 2:
            found.append(_number(function, [array[index] for array in arrays]))
    finite = np.asarray(found)[np.isfinite(found)]
    if not math.isfinite(value) or not len(finite):
        return Estimate(value, math.nan, math.nan, 0, 0)
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), 0, 0)


def relative_change(old: Values, new: Values) -> float:
    """mean(new) / mean(old) - 1."""
    return float(np.mean(new) / np.mean(old) - 1)


def spearman(x: Values, y: Values) -> float:
    """Rank correlation, ties at their mean rank; NaN where an entry is."""
    if np.isnan(x).any() or np.isnan(y).any():
        return math.nan
    return pearson(_ranks(x), _ranks(y))


def pearson(x: Values, y: Values) -> float:
    """Correlation of two columns."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def slope(x: Sequence[float] | Values, y: Sequence[float] | Values) -> float:
    """Least-squares slope of y on x."""
    return float(np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)[0])


def _number(function: Callable[..., float], arrays: Sequence[Values]) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(function(*arrays))


def _half(by_seed: Sequence[float]) -> float:
    count = len(by_seed)
    if count < 2:
        return 0.0
    point = _T[count - 1] if count - 1 < len(_T) else NormalDist().inv_cdf((1 + LEVEL) / 2) * 1.1
    return float(point * np.std(by_seed, ddof=1) / math.sqrt(count))


def _ranks(values: Values) -> Values:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    result: Values = (ends - (counts - 1) / 2)[inverse]
    return result
