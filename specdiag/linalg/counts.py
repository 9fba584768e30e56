"""Singular values of a given rank, found and proved by counting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specdiag.linalg.cut import Cut

_NEAR = 100


@dataclass(frozen=True, slots=True)
class Ranked:
    """Exactly `above` singular values are larger than `value`; `counts` counts were made to find it."""

    value: float
    above: int
    counts: int


class Ranks:
    """Ranks of the singular values of a cut stencil. Every count that was made is remembered.

    The rank that a number has among the singular values of the torus says where to look: the true rank is
    close to a linear function of it.
    """

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        values = [torus.values.ravel() for torus, _ in cut.pieces]
        weights = [
            (copies * torus.copies[None, :, None, None] * np.ones_like(torus.values)).ravel()
            for torus, copies in cut.pieces
        ]
        found, weight = np.concatenate([[0.0], *values]), np.concatenate([[0.0], *weights])
        order = np.argsort(found)
        self._values = found[order]
        total = max(float(weight.sum()), 1.0)
        above = total - np.cumsum(weight[order])
        self._ranks = above * (cut.stencil.count / total)
        self._known: dict[float, int] = {}

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

    def _guess(self, rank: float) -> float:
        """Where to look for `rank`: between the nearest counts on both sides, as the torus's ranks say."""
        points = [(0.0, self.cut.stencil.count), (self.cut.upper, 0), *self._known.items()]
        top, few = min(((s, count) for s, count in points if count <= rank), default=points[1])
        bottom, many = max((s, count) for s, count in points if count > rank)
        share = min(max((rank - few) / (many - few), 0.02), 0.98)
        if many - few <= _NEAR:
            # so close, the torus has few values of its own to go by
            return top + share * (bottom - top)
        first, last = np.interp([top, bottom], self._values, self._ranks)
        return float(np.interp(first + share * (last - first), self._ranks[::-1], self._values[::-1]))
