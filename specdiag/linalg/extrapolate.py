"""`extrapolate`: the sum of the singular values of a large layer from two small dense problems. A quick look.

Sum of sigma at size H = c0 H^2 + c1 H + c2 up to a rest that falls with H (see `growth`); c0 is the mean over a fine
torus. The sum of squares is exact at any size, so the STD follows. Nothing here is a bound.
"""

from __future__ import annotations

import numpy as np

from specdiag.errors import NumericalError
from specdiag.linalg import circular, dense, growth
from specdiag.linalg import workers as threads
from specdiag.linalg.estimate import Estimate
from specdiag.linalg.stencil import Stencil

FINE = 24
"""Frequencies per axis of the torus that gives the mean: its STD is right to 1e-5 from there on."""


def total(stencil: Stencil, first: int | None = None, workers: int | None = None) -> Estimate:
    """Sum of the singular values, from small problems of `first` outputs per axis and up (default: 6, or fewer
    where there are many channels).

    The error is twice the largest difference to the extrapolations from one and two sizes below. Raises
    NumericalError where the layer is too small for it, or its rank does not grow as theirs does.
    """
    value, error = 0.0, 0.0
    for part, copies in stencil.split():
        start = min(first or 6, growth.affordable(part))
        plans = [growth.plan(part, size) for size in (start, start - 1, start - 2) if size > 1]
        known = [plan for plan in plans if plan and growth.stands_for(plan, part)]
        if len(known) < 2:
            raise NumericalError(
                f"A convolution to {'x'.join(str(axis.outputs) for axis in part.axes)} outputs cannot be "
                "extrapolated from smaller ones.",
                "Use the method cut or exact.",
            )
        small = {_sizes(entry): entry for plan in known for _, entry in plan.small}
        sums = threads.each(
            lambda entry: float(dense.singular_values(entry, refine=False).sum()), small.values(), workers
        )
        sum_of = dict(zip(small, sums, strict=True))
        bulk = _bulk(part, workers)
        found = [
            plan.bulk * bulk + sum(weight * sum_of[_sizes(entry)] for weight, entry in plan.small)
            for plan in known
        ]
        value += copies * found[0]
        error += copies * 2 * max(abs(found[0] - entry) for entry in found[1:])
    return Estimate(value, error)


def _sizes(stencil: Stencil) -> tuple[int, ...]:
    return tuple(axis.outputs for axis in stencil.axes)


def _bulk(stencil: Stencil, workers: int | None) -> float:
    """Mean over the torus of the sum of the singular values of the symbol."""
    least = FINE if len(stencil.axes) < 3 else FINE // 2
    sizes = tuple(axis.stride * max(least, axis.taps) for axis in stencil.axes)
    values, copies = circular.by_frequency(circular.torus(stencil, sizes), workers)
    return float(np.einsum("fgr,f->", values, copies) / copies.sum())
