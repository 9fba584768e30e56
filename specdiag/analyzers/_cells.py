"""The linear region (cell) around a point of a piecewise-linear network: its walls, their distance, what is on or off.

A wall is where an activation meets its kink or where two entries of a max-pool window tie. Its signed distance in
units of the pre-activation is collected while the network runs; its slope along a direction comes from the frozen
forward product, its gradient from a backward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from specdiag.errors import ModelError
from specdiag.kinks import KINKS, POOLS
from specdiag.linearise import Linearised
from specdiag.linearise.marks import Marked, marked, name_of, plain, wrap
from specdiag.model import Model
from specdiag.sampling import Batch

SMOOTH = frozenset(
    """gelu silu mish softplus elu elu_ selu selu_ celu sigmoid tanh softmax log_softmax layer_norm group_norm
    instance_norm normalize scaled_dot_product_attention multi_head_attention_forward exp log log1p expm1 sqrt rsqrt
    pow __pow__ square sin cos erf hardswish logsigmoid softsign tanhshrink norm vector_norm std var rms_norm
    local_response_norm reciprocal logsumexp softmin gumbel_softmax glu""".split()
)
PRODUCTS = frozenset(
    "mul __mul__ mul_ __imul__ multiply matmul __matmul__ bmm mm einsum div __truediv__ div_".split()
)
# products with random directions that estimate all gradients' norms, and how far an estimate may be off: the
# chance that one of a million gradients is underestimated by more than this factor is below 1e-19
PROBES, SLACK, BLOCK = 64, 4.0, 8


class Walls(TorchFunctionMode):
    """While active, collects per sample the signed distances to all walls, and which side of each kink is taken.

    distances: list of (N, n) tensors, differentiable; sides: list of (N, n) integers, above or below each kink;
    winners: list of (N, n) places of the largest entry in each max-pool window, -1 where several are equal. Either
    the distances are collected or the winners.
    """

    def __init__(self, with_distances: bool = True) -> None:
        self.distances: list[torch.Tensor] = []
        self.sides: list[torch.Tensor] = []
        self.winners: list[torch.Tensor] = []
        self._with_distances = with_distances

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], torch.Tensor):
            if name in KINKS:
                self._add(args[0], KINKS[name])
            elif name == "hardtanh":
                low = kwargs.get("min_val", args[1] if len(args) > 1 else -1.0)
                self._add(args[0], (low, kwargs.get("max_val", args[2] if len(args) > 2 else 1.0)))
            elif name in POOLS:
                self._add_pool(windows(args[0], POOLS[name], args[1:], kwargs))
            elif name.startswith("adaptive_max_pool") and self._with_distances:
                raise ModelError("Adaptive max-pooling is not understood here.", "Use a fixed max-pool.")
        return func(*args, **kwargs)

    def _add(self, z: torch.Tensor, kinks: tuple[float, ...]) -> None:
        for kink in kinks:
            # a copy: the function may overwrite its input
            distance = (z - kink).flatten(1)
            if self._with_distances:
                self.distances.append(distance)
            self.sides.append((distance > 0).to(torch.int8))

    def _add_pool(self, parts: torch.Tensor) -> None:
        place = parts.argmax(-1, keepdim=True)
        if self._with_distances:
            self.distances.append((parts.gather(-1, place) - parts).flatten(1))
            return
        # a window of zeros after a ReLU has no winner: which entry is named first is no wall
        tied = (parts == parts.amax(-1, keepdim=True)).sum(-1, keepdim=True) > 1
        self.winners.append(torch.where(tied, -1, place).flatten(1))


def windows(z: torch.Tensor, dims: int, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The windows of a max-pool, (N, channels, *places, entries); padding is minus infinity."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    get = dict(zip(names, rest, strict=False)) | kwargs

    def spread(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, list | tuple) else (int(value),) * dims

    kernel = spread(get["kernel_size"])
    stride, padding = spread(get.get("stride") or kernel), spread(get.get("padding", 0))
    if any(step != 1 for step in spread(get.get("dilation", 1))) or get.get("ceil_mode"):
        raise ModelError("Max-pooling with dilation or ceil_mode is not understood here.")
    if any(padding):
        z = F.pad(z, [amount for side in reversed(padding) for amount in (side, side)], value=-torch.inf)
    for axis in range(dims):
        z = z.unfold(axis + 2, kernel[axis], stride[axis])
    return z.flatten(-dims)


def wall_distances(model: Model) -> Callable[[torch.Tensor], torch.Tensor]:
    """X -> signed distances to all walls, (N, M), differentiable; NaN-free: padding entries are infinite."""

    def function(x: torch.Tensor) -> torch.Tensor:
        with Walls() as walls:
            model.forward(x)
        return torch.cat(walls.distances, 1) if walls.distances else x.flatten(1)[:, :0]

    return function


def states(model: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sides of all kinks (N, A) and places of all max-pool winners (N, P) at x."""
    with torch.no_grad(), Walls(with_distances=False) as walls:
        model.forward(x)
    empty = torch.zeros((len(x), 0), dtype=torch.int64, device=x.device)
    sides = torch.cat(walls.sides, 1) if walls.sides else empty
    return sides, torch.cat(walls.winners, 1) if walls.winners else empty


def crossing(value: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Distance along a direction to each wall, (N, M): infinite where the direction leads away or along it."""
    towards = torch.where(value > 0, slope < 0, (slope > 0) & (value <= 0)) | ((value == 0) & (slope != 0))
    distance = value.abs() / slope.abs()
    return torch.where(towards & torch.isfinite(value), distance, torch.inf)


def radius_along(walls: Linearised, direction: torch.Tensor) -> torch.Tensor:
    """Exact distance from x to the first wall along a unit direction, (N,) float64; infinite where there is none.

    walls: `Linearised(wall_distances(model), x)`.
    """
    if not walls.value.shape[1]:
        return torch.full((len(direction),), torch.inf, dtype=torch.float64, device=direction.device)
    return crossing(walls.value, walls.jvp(direction)).amin(1).double()


def cell_radius(model: Model, batch: Batch, budget: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest ball around x inside its cell: (N,) radius, and (N,) whether it is exact or only an upper bound.

    The smallest |z_i| / ||grad z_i||_2 over all walls. All gradients' norms are estimated by 64 products with
    random directions; the true norms of the walls that can be the nearest, by these estimates, are taken one by one
    by backward passes, at most `budget` for each sample. With up to 64 inputs the products are with the unit
    vectors and nothing is estimated.
    """
    walls = Linearised(wall_distances(model), batch.x)
    value = walls.value.abs().double()
    count = value.shape[1]
    far = torch.full((len(batch),), torch.inf, dtype=torch.float64, device=batch.x.device)
    if not count:
        return far, torch.ones_like(far, dtype=torch.bool)
    exactly = model.inputs <= PROBES
    squares = _squared_norms(walls, batch, model.inputs if exactly else PROBES, exactly)
    guess = torch.where(squares > 0, value / squares.sqrt(), torch.inf)
    guess = torch.where(torch.isfinite(value), guess, torch.inf)
    if exactly:
        return guess.amin(1), torch.ones_like(far, dtype=torch.bool)
    return _nearest(model, batch.x, guess, min(budget, count))


def cost(model: Model, rows: int, budget: int) -> tuple[int, int, float, float]:
    """What `cell_radius` takes for `rows` samples at once, tried out on made-up ones.

    Returns the number of walls, of gradients at most (0 where the products tell all), the seconds of the products and
    those of one gradient of every sample.
    """
    x = model.to_input(torch.linspace(0, 1, rows * model.inputs).reshape(rows, *model.input_shape))
    walls = Linearised(wall_distances(model), x)
    count = walls.value.shape[1]
    if not count:
        return 0, 0, 0.0, 0.0
    product = _seconds(lambda: walls.jvp(x))
    exactly = model.inputs <= PROBES
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = wall_distances(model)(leaf)
    gradient = _seconds(lambda: torch.autograd.grad(value[:, -1].sum(), leaf, retain_graph=True))
    products = model.inputs if exactly else PROBES
    return count, 0 if exactly else min(budget, count), products * product, gradient


def _seconds(run: Callable[[], object]) -> float:
    """The shorter of two runs: the first one also allocates."""
    found = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _squared_norms(walls: Linearised, batch: Batch, products: int, exactly: bool) -> torch.Tensor:
    total = torch.zeros(walls.value.shape, dtype=torch.float64, device=batch.x.device)
    shape = tuple(batch.x.shape[1:])
    for k in range(products):
        if exactly:
            flat = torch.zeros((len(batch), products), dtype=batch.x.dtype, device=batch.x.device)
            flat[:, k] = 1
            direction = flat.reshape(batch.x.shape)
        else:
            drawn = batch.draws.normal(f"cell/{k}", batch.index, shape)
            direction = torch.from_numpy(drawn).to(batch.x)
        total += walls.jvp(direction).double().square()
    return total if exactly else total / products


def _nearest(
    model: Model, x: torch.Tensor, guess: torch.Tensor, budget: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact distances of walls in the order of their estimates, until no other can be nearer."""
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = wall_distances(model)(leaf)
    order = guess.argsort(1)
    best = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for k in range(budget):
        if k % BLOCK == 0 and not bool((guess.gather(1, order[:, k : k + 1])[:, 0] <= SLACK * best).any()):
            break
        picked = value.gather(1, order[:, k : k + 1])
        (gradient,) = torch.autograd.grad(picked.sum(), leaf, retain_graph=True)
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64)
        distance = torch.where(length > 0, picked.detach()[:, 0].abs().double() / length, torch.inf)
        best = torch.minimum(best, torch.where(torch.isnan(distance), torch.inf, distance))
    if budget >= guess.shape[1]:
        return best, torch.ones(len(x), dtype=torch.bool, device=x.device)
    rest = guess.gather(1, order[:, budget : budget + 1])[:, 0]
    return best, rest > SLACK * best


class _Watched(Marked):
    """Carries the judge of the pass in `tape`."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = marked((args, kwargs))
        tape = sources[0].tape
        name = name_of(func)
        if name in SMOOTH or (name in PRODUCTS and len(sources) > 1):
            tape.append(name)
        return wrap(func(*plain(args), **plain(kwargs)), _Watched, tape)


def curved_module(model: Model, x: torch.Tensor) -> tuple[str, str] | None:
    """The first module that is not piecewise linear, as (path, function); None where there is none."""
    found: list[str] = []
    where: list[str] = []
    blamed: list[tuple[str, str]] = []
    handles = []

    def leave(name: str) -> None:
        while found:
            blamed.append((name, found.pop(0)))

    def enter(name: str, module: nn.Module, inputs: Any) -> None:
        leave(where[-1] if where else "")
        where.append(name)

    def exit_(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        leave(name)
        where.pop()

    for name, module in model.fast.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, i, name=name: enter(name, m, i)))
        handles.append(module.register_forward_hook(lambda m, i, o, name=name: exit_(name, m, i, o)))
    try:
        with torch.no_grad():
            watched = x[:1].detach().as_subclass(_Watched)
            watched.tape = found
            model.forward(watched)
    finally:
        for handle in handles:
            handle.remove()
    leave("")
    if not blamed:
        return None
    path, function = blamed[0]
    inside = model.normalisation.kind == "per-image" and not path and function in ("rsqrt", "square")
    return ("the normalisation of each image" if inside else path or "the network itself"), function


def require_flat(model: Model, x: torch.Tensor, instead: str) -> None:
    """ModelError naming the module that is not piecewise linear; `instead` says what can still be had."""
    blamed = curved_module(model, x)
    if blamed is not None:
        raise ModelError(
            f"The network is not piecewise linear: '{blamed[0]}' applies {blamed[1]}, so a point has no linear cell.",
            instead,
        )
