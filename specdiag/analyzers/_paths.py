"""Walks a segment cell by cell: the pieces of a piecewise-linear network along it (wen2020 Lemma 3.1).

The on/off pattern is kept by hand and imposed on the network, so that within a cell everything is affine in the
distance; at each wall one entry of the pattern is flipped. Nothing depends on probing beyond a wall.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from specdiag.analyzers._cells import windows
from specdiag.errors import ModelError
from specdiag.kinks import KINKS, POOLS
from specdiag.model import Model

SIMPLE = ("relu", "relu_", "leaky_relu")


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk along x + t d, t from 0 to `reach`.

    moved: (N, K) sum over the cells of (J d) times the length of the piece; walls: (N,) how many were crossed;
    passed: (N, P) how many up to each of the marks; first: (N,) distance to the first; finished: (N,) the end was
    reached within the budget.
    """

    moved: torch.Tensor
    walls: torch.Tensor
    passed: torch.Tensor
    first: torch.Tensor
    finished: torch.Tensor


class _Imposed(TorchFunctionMode):
    """Replaces every kink by its slope on the side that `pattern` says, every max-pool by the winner it says.

    With `pattern` None the pattern at the first row of points is taken and kept. Rows come in pairs of blocks: the
    pattern of N samples serves both halves of 2 N rows.
    """

    def __init__(self, pattern: list[torch.Tensor] | None) -> None:
        self.learning = pattern is None
        self.pattern: list[torch.Tensor] = pattern or []
        self.distances: list[torch.Tensor] = []
        self.position = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in SIMPLE:
            slope = 0.0
            if name == "leaky_relu":
                slope = kwargs.get("negative_slope", args[1] if len(args) > 1 else 0.01)
            out = self._kink(args[0], slope)
            inplace = name.endswith("_") or kwargs.get("inplace") or (name == "relu" and True in args[1:])
            return args[0].copy_(out) if inplace else out
        if name in POOLS:
            return self._pool(windows(args[0], POOLS[name], args[1:], kwargs))
        if name in KINKS or name == "hardtanh" or name.startswith("adaptive_max_pool"):
            raise ModelError(
                f"'{name}' cannot be walked cell by cell.", "Networks of ReLU and max-pooling can."
            )
        return func(*args, **kwargs)

    def _kink(self, z: torch.Tensor, slope: float) -> torch.Tensor:
        on = self._entry(lambda: z > 0)
        self.distances.append(z.flatten(1).clone())
        return torch.where(_twice(on, z), z, z * slope)

    def _pool(self, parts: torch.Tensor) -> torch.Tensor:
        place = self._entry(lambda: parts.argmax(-1, keepdim=True))
        winner = parts.gather(-1, _twice(place, parts))
        distance = winner - parts
        self.distances.append(distance.flatten(1))
        return winner[..., 0]

    def _entry(self, make: Any) -> torch.Tensor:
        if self.learning:
            # flips go through a flat view of it
            self.pattern.append(make().contiguous())
        self.position += 1
        return self.pattern[self.position - 1]


def _twice(pattern: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return (
        pattern
        if len(pattern) == len(like)
        else pattern.repeat(len(like) // len(pattern), *[1] * (like.ndim - 1))
    )


def walk(model: Model, x: torch.Tensor, direction: torch.Tensor, marks: torch.Tensor, budget: int) -> Walk:
    """Follow the cells from x along `direction` (N, *input shape) to the last of `marks` (P,), rising distances.

    At most `budget` walls are crossed. Everything is computed in the model's dtype; use float64 for agreement
    to rounding. Raises ModelError on kinks other than ReLU, leaky ReLU and max-pooling.
    """
    with torch.no_grad(), _Imposed(None) as first:
        base = model.forward(x)
    pattern = first.pattern
    count = len(x)
    rows = torch.arange(count, device=x.device)
    place = torch.zeros(count, dtype=x.dtype, device=x.device)
    moved = torch.zeros_like(base)
    walls = torch.zeros(count, dtype=torch.int64, device=x.device)
    passed = torch.zeros((count, len(marks)), dtype=torch.int64, device=x.device)
    reach = marks[-1]
    nearest = torch.full_like(place, torch.inf)
    done = torch.zeros(count, dtype=torch.bool, device=x.device)
    for _ in range(budget + 1):
        if bool(done.all()):
            break
        with torch.no_grad(), _Imposed(pattern) as cell:
            both = model.forward(torch.cat([x, x + direction]))
        ends = torch.cat(cell.distances, 1) if cell.distances else both[:, :0]
        value, slope = ends[:count], ends[count:] - ends[:count]
        slope = torch.where(torch.isfinite(value), slope, 0.0)
        if not ends.shape[1]:
            # one cell: the end is the only mark
            when, which = torch.full_like(place, torch.inf), rows
        else:
            when, which = _next(value, slope, _on(pattern, cell.distances, count), place)
        until = torch.minimum(when, reach)
        piece = torch.where(done, 0.0, until - place)
        moved += (both[count:] - both[:count]) * piece[:, None]
        place = torch.where(done, place, until)
        hit = ~done & (when <= reach)
        nearest = torch.where(hit & (walls == 0), when, nearest)
        walls += hit
        passed += hit[:, None] & (when[:, None] <= marks)
        done = done | (when > reach)
        _flip(pattern, cell.distances, rows[hit], which[hit])
    return Walk(moved, walls, passed, nearest, done)


def _on(pattern: list[torch.Tensor], distances: list[torch.Tensor], count: int) -> torch.Tensor:
    """Whether each wall's distance ought to be positive: the side of a kink; always, for a max-pool's winner."""
    parts = []
    for entry, distance in zip(pattern, distances, strict=True):
        shape = (count, distance.shape[1])
        parts.append(
            entry.reshape(shape)
            if entry.dtype == torch.bool
            else torch.ones(shape, dtype=torch.bool, device=entry.device)
        )
    return torch.cat(parts, 1)


def _next(
    value: torch.Tensor, slope: torch.Tensor, on: torch.Tensor, place: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the pattern is violated first at or after `place`, and by which wall."""
    leaving = torch.where(on, slope < 0, slope > 0)
    when = torch.where(leaving, -value / slope, torch.inf)
    # rounding may put a wall that was just reached a little behind
    when = torch.maximum(when, place[:, None])
    when = torch.where(leaving, when, torch.inf)
    found = when.min(1)
    return found.values, found.indices


def _flip(
    pattern: list[torch.Tensor], distances: list[torch.Tensor], rows: torch.Tensor, which: torch.Tensor
) -> None:
    start = 0
    for entry, distance in zip(pattern, distances, strict=True):
        stop = start + distance.shape[1]
        inside = (which >= start) & (which < stop)
        if bool(inside.any()):
            own, local = rows[inside], which[inside] - start
            if entry.dtype == torch.bool:
                flat = entry.reshape(len(entry), -1)
                flat[own, local] = ~flat[own, local]
            else:
                flat = entry.reshape(len(entry), -1)
                entries = distance.shape[1] // flat.shape[1]
                flat[own, local // entries] = local % entries
        start = stop
