"""How a spectral sum of a zero-padded stencil grows with its size: a polynomial, up to a small rest.

For f(H) = sum over the singular values at H outputs per axis of a smooth function (Szegoe, Widom): f = c0 H^d +
c1 H^(d-1) + ... + cd + rest, with c0 the mean over all frequencies of an endless torus; multilinear in the
sizes where they differ by axis. So small dense problems, together with c0, stand for a large one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, product
from math import prod

from specdiag.linalg.stencil import Stencil

_BUDGET = 1100  # singular values of a small problem
_BUDGET_GROUPS = 400  # the same for each of many groups
_SHARE = 5
_ENOUGH = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """The sum at the stencil's size is about bulk * (mean per torus site) + sum of weight * (sum at small size)."""

    bulk: float
    small: tuple[tuple[float, Stencil], ...]


def plan(stencil: Stencil, first: int) -> Plan | None:
    """Small problems with `first` outputs per axis and a few more.

    None where they do not stand for the stencil: it is hardly larger itself, or its rank is not made up as
    theirs is (more outputs than inputs at one size, fewer at the other).
    """
    axes = len(stencil.axes)
    goal = [axis.outputs for axis in stencil.axes]
    corners: list[tuple[tuple[int, ...], float]] = []
    if len(set(goal)) == 1:
        sizes = range(first, first + axes)
        for size in sizes:
            weight = prod((goal[0] - other) / (size - other) for other in sizes if other != size)
            corners.append(((size,) * axes, weight))
    else:
        every = [frozenset(chosen) for count in range(axes) for chosen in combinations(range(axes), count)]
        for step in product((0, 1), repeat=axes):
            grown = frozenset(axis for axis in range(axes) if step[axis])
            weight = sum(
                (-1) ** (len(wider) - len(grown)) * prod(goal[axis] - first for axis in wider)
                for wider in every
                if grown <= wider
            )
            if len(grown) < axes:
                corners.append((tuple(first + entry for entry in step), weight))
    if min(goal) <= max(max(sizes) for sizes, _ in corners):
        return None
    small = []
    for outputs, weight in corners:
        resized = tuple(
            replace(axis, outputs=size, inputs=axis.inputs - axis.stride * (axis.outputs - size))
            for axis, size in zip(stencil.axes, outputs, strict=True)
        )
        if any(axis.inputs < 1 for axis in resized):
            return None
        small.append((weight, Stencil(stencil.kernel, resized)))
    bulk = prod(goal) - sum(weight * prod(sizes) for sizes, weight in corners)
    return Plan(bulk, tuple(small))


def stands_for(found: Plan, stencil: Stencil) -> bool:
    """True where number and squares of the singular values add up exactly: the rest is small at both ends then."""
    rank = found.bulk * stencil.groups * _per_site(stencil) + sum(
        weight * part.rank for weight, part in found.small
    )
    squares = found.bulk * float((stencil.kernel**2).sum()) + sum(w * part.squares for w, part in found.small)
    return abs(rank - stencil.rank) < 0.5 and abs(squares - stencil.squares) < 1e-9 * stencil.squares


def affordable(stencil: Stencil) -> int:
    """Outputs per axis of the first small problem: as large as a fraction of a second allows, and smaller than it."""
    return _clipped(stencil, _fits(stencil, _BUDGET if stencil.groups == 1 else _BUDGET_GROUPS))


def balanced(stencil: Stencil) -> int:
    """The same, but no larger than a fifth of the stencil where four per axis still fit.

    For a quadrature of what the small problems leave over: on a small layer larger ones would take most of the
    time and add no digit that is asked for.
    """
    enough = max(_ENOUGH, _fits(stencil, stencil.rank / stencil.groups / _SHARE))
    return min(affordable(stencil), _clipped(stencil, enough))


def _fits(stencil: Stencil, budget: float) -> int:
    axes = len(stencil.axes)
    return int((budget / _per_site(stencil)) ** (1 / axes)) - axes + 1


def _clipped(stencil: Stencil, first: int) -> int:
    return max(2, min(first, min(axis.outputs for axis in stencil.axes) - len(stencil.axes)))


def _per_site(stencil: Stencil) -> int:
    """Singular values per output position and group on a torus."""
    phases = prod(min(axis.stride, axis.taps) for axis in stencil.axes)
    return int(min(stencil.kernel.shape[1], stencil.kernel.shape[2] * phases))
