"""What each exact method would cost for one layer, in seconds on one core and bytes. For choosing between them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from specdiag.linalg import dense, growth
from specdiag.linalg.stencil import Stencil

_FLOPS = 2.2e10
"""Floating point operations per second of matrix products and factors on one core (EPYC Zen 4, OpenBLAS)."""

COUNTS = 25
"""About how many counts a full `cut` makes: the proof of sigma_max, the smallest value, five quantiles."""


@dataclass(frozen=True, slots=True)
class Cost:
    """seconds on one core and bytes of `exact`, of the sum alone by `cut`, and of everything by `cut`."""

    exact: float
    exact_bytes: float
    total: float
    everything: float
    cut_bytes: float


def of(stencil: Stencil) -> Cost:
    """Costs for a zero-padded stencil."""
    size, seconds = dense.cost(stencil)
    total, everything, largest = 0.0, 0.0, 0.0
    for part, _ in stencil.split():
        node, setup, memory = _node(part)
        plan = growth.plan(part, growth.balanced(part))
        nodes = 5 if plan and growth.stands_for(plan, part) else 27
        total += setup + nodes * node
        everything += setup + (nodes + COUNTS) * node
        largest = max(largest, memory)
    return Cost(seconds, size, total, everything, largest)


def _node(stencil: Stencil) -> tuple[float, float, float]:
    """(seconds of one node or count, seconds to set up, bytes), following the shapes of `torus.Torus`."""
    axes = sorted(stencil.axes, key=lambda axis: axis.inputs)
    outputs, inputs = stencil.kernel.shape[1:3]
    blocks = []
    for axis in axes:
        low = -(axis.offset // -axis.stride) if axis.offset < 0 else -(axis.offset // axis.stride)
        high = (axis.taps - 1 - axis.offset) // axis.stride
        blocks.append(max(-(-axis.inputs // axis.stride) - min(low, 0), axis.outputs + max(high, 0)))
    phases = prod(min(axis.stride, axis.taps) for axis in axes)
    wide, rank = inputs * phases, min(outputs, inputs * phases)
    rest = prod(blocks[1:])
    frequencies = max(1.0, rest / 2)
    cut_out = outputs * axes[0].outputs * (rest - prod(axis.outputs for axis in axes[1:]))
    cut_in = wide * axes[0].inputs / axes[0].stride
    cut_in *= rest - prod(axis.inputs / axis.stride for axis in axes[1:])
    plane = cut_out + max(cut_in, 0.0)
    strip = outputs * (blocks[0] - axes[0].outputs) + wide * (blocks[0] - axes[0].inputs / axes[0].stride)
    work = plane**2 * 2 * frequencies * strip + plane**3 / 3
    work += 16 * frequencies * plane * strip**2 + 40 * frequencies * strip**3
    work += 8 * blocks[0] * frequencies * rank * (outputs**2 + outputs * wide + wide**2)
    setup = 60 * blocks[0] * frequencies * rank * outputs * wide
    memory = 8 * (4 * plane**2 + 6 * frequencies * plane * strip)
    memory += 64 * blocks[0] * frequencies * (outputs + wide) * (rank + outputs + wide) * stencil.groups
    overhead = 2e-3
    return stencil.groups * work / _FLOPS + overhead, stencil.groups * setup / _FLOPS, memory
