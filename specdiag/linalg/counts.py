"""Singular values of a given rank, found and proved by counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specdiag.linalg.cut import Cut
from specdiag.linalg.estimate import Estimate

Array = np.ndarray[Any, np.dtype[Any]]

_NEAR = 100


@dataclass(frozen=True, slots=True)
class Ranked:
    """Exactly `above` singular values are larger than `value`; `counts` counts were made to find it."""

    value: float
    above: int
    counts: int


class Ranks:
    """Ranks of the singular values of a cut stencil. Every count that was made is remembered.

    A profile, the ranks on the torus corrected by small problems, says where to look: the true rank is close to a
    linear function of it.
    """

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self._profile = _profile(cut, cut.firsts[0] if cut.firsts else None)
        self._known: dict[float, int] = {}

    @property
    def made(self) -> int:
        """How many counts were made so far."""
        return len(self._known)

    def above(self, s: float) -> int:
        """Number of singular values above s > 0, exact."""
        if s >= self.cut.upper:
            return 0
        if s not in self._known:
            self._known[s] = self.cut.count_above(s)
        return self._known[s]

    def at(self, rank: float, within: float = 1.0, limit: int = 6) -> Ranked:
        """A number that `rank` singular values exceed, give or take `within`; the nearest after `limit` counts.

        Regula falsi between all counts made so far. Raises ValueError unless 0 <= rank < count.
        """
        if not 0 <= rank < self.cut.stencil.count:
            raise ValueError(f"there is no rank {rank} among {self.cut.stencil.count} singular values")
        made = 0
        best = Ranked(self.cut.upper, 0, 0)
        while made < limit:
            s = self._guess(rank)
            if s <= 0.0 or s in self._known:
                break
            count = self.above(s)
            made += 1
            if made == 1 or abs(count - rank) < abs(best.above - rank):
                best = Ranked(s, count, made)
            if abs(count - rank) <= within:
                break
        return Ranked(best.value, best.above, made)

    def quantiles(
        self, shares: Sequence[float], limit: int = 0, anchors: Sequence[float] = ()
    ) -> list[Estimate]:
        """The values below which each share of the singular values lies, from at most `limit` counts each.

        Where `anchors` are given, only those shares are counted, and the others read off between them.

        Without counts they are read off the profile (where there are small problems to make one); the error is what
        it changes with smaller ones or none. With counts it is the way to the nearest one.
        """
        total = self.cut.stencil.count
        ranks, counted = (
            [min((1 - share) * total, total - 1.0) for share in chosen]
            for chosen in (shares, anchors or shares)
        )
        if limit == 0 and self.cut.firsts:
            others = [_profile(self.cut, first) for first in (*self.cut.firsts[1:], None)]
            return [self._read(rank, others) for rank in ranks]
        # from the middle outwards: every count helps the next guess
        for rank in sorted(counted, key=lambda rank: abs(rank - total / 2)):
            self.at(rank, 0.001 * total, limit or 2)
        found = []
        for rank in ranks:
            value = self._guess(rank)
            nearest = min((abs(s - value) for s in self._known), default=float("inf"))
            found.append(Estimate(value, nearest + self._step(value)))
        return found

    def _read(self, rank: float, others: list[tuple[Array, Array]]) -> Estimate:
        value, *changed = (float(np.interp(rank, *_inverse(profile))) for profile in (self._profile, *others))
        return Estimate(value, 1.5 * max(abs(value - entry) for entry in changed) + self._step(value))

    def _step(self, value: float) -> float:
        """How far apart values are at `value`: two in a thousand of them, and at least one."""
        width = max(1.0, 0.002 * self.cut.stencil.count)
        around = np.interp(value, *self._profile) + np.array([-width, width])
        return float(np.ptp(np.interp(around, *_inverse(self._profile))))

    def smallest(self, relative: float = 0.01, limit: int = 40) -> Estimate:
        """The smallest singular value, between two counts `relative` apart: proved, unless `limit` counts run out.

        Below 1e-7 of the largest one, counts are not to be trusted: such a value is given as zero, with that as
        its error.
        """
        floor = 1e-7 * self.cut.upper
        count = self.cut.stencil.count
        if self.cut.stencil.rank < count or self.cut.upper == 0.0:
            return Estimate(0.0, 0.0)
        low, high, below = floor, self.cut.upper, count
        s = max(float(np.interp(count - 0.5, *_inverse(self._profile))), 2 * floor)
        for _ in range(limit):
            missing = count - self.above(s)
            if missing:
                high, below = s, missing
            else:
                low = s
            if high <= low * (1 + relative):
                break
            if low == floor and high <= 4 * floor:
                return Estimate(0.0, high)
            # near zero their number is about proportional to s, so the first is near high / below
            middle = float(np.sqrt(low * high))
            s = min(max(high / (below + 1), middle if below == 1 else low), 0.97 * high)
            s = max(s, 1.4 * low if 1.4 * low < 0.9 * high else middle)
        return Estimate((low + high) / 2, (high - low) / 2)

    def _guess(self, rank: float) -> float:
        """Where to look for `rank`: between the nearest counts on both sides, as the profile says."""
        points = [(0.0, self.cut.stencil.count), (self.cut.upper, 0), *self._known.items()]
        top, few = min(((s, count) for s, count in points if count <= rank), default=points[1])
        bottom, many = max((s, count) for s, count in points if count > rank)
        share = min(max((rank - few) / (many - few), 0.02), 0.98)
        if many - few <= max(_NEAR, self.cut.stencil.count / 40):
            # so close, the profile has steps of its own
            return top + share * (bottom - top)
        first, last = np.interp([top, bottom], *self._profile)
        return float(np.interp(first + share * (last - first), *_inverse(self._profile)))


def _profile(cut: Cut, first: int | None) -> tuple[Array, Array]:
    """Values, rising, and about how many singular values exceed each, falling."""
    values, weights = [np.zeros(1)], [np.zeros(1)]
    for piece in cut.pieces:
        torus = piece.torus
        small = piece.small(first) if first else None
        bulk = small.bulk if small else torus.stencil.rank / torus.count
        values.append(torus.values.ravel())
        spread = piece.copies * bulk * torus.copies[None, :, None, None] * np.ones_like(torus.values)
        weights.append(spread.ravel())
        for factor, part in small.parts if small else ():
            values.append(part)
            weights.append(np.full(len(part), piece.copies * factor))
    found, every = np.concatenate(values), np.concatenate(weights)
    order = np.argsort(found, kind="stable")
    ranks = float(every.sum()) - np.cumsum(every[order])
    # small problems with negative weights make steps up and down around the smooth course
    lower, upper = np.minimum.accumulate(ranks), np.maximum.accumulate(ranks[::-1])[::-1]
    return found[order], (lower + upper) / 2


def _inverse(profile: tuple[Array, Array]) -> tuple[Array, Array]:
    return profile[1][::-1], profile[0][::-1]
