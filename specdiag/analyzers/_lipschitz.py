"""A Lipschitz bound of a network, by a walk through its functions as one forward pass calls them.

Along a chain bounds multiply; where two branches add, they add (roth2020 eq. 4 holds for chains only). A function
without a known bound ends the walk, and there is none from there on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from specdiag.analyzers._operators import Norms, norms_of
from specdiag.linearise.marks import Marked, marked, name_of, plain, wrap
from specdiag.linearise.passes import LOOKS
from specdiag.model import Model

CONTRACTIONS = frozenset(
    """relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ celu celu_ tanh sigmoid softplus hardtanh hardtanh_ dropout
    flatten view reshape permute transpose contiguous squeeze unsqueeze narrow clone detach __getitem__ to float double
    clamp clamp_ clamp_min abs dropout2d feature_dropout identity""".split()
)
SUMS = frozenset("add add_ __add__ __iadd__ __radd__ sub sub_ __sub__ __isub__ __rsub__".split())
FACTORS = frozenset("mul mul_ __mul__ __rmul__ __imul__".split())
QUOTIENTS = frozenset("div div_ __truediv__ __itruediv__".split())
LAYERS = frozenset("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())
POOLS = {f"{kind}_pool{dims}d": dims for kind in ("max", "avg") for dims in (1, 2, 3)}


@dataclass
class Bounds:
    """What the walk found.

    total: bound of the whole network in l2, None where the walk failed; after: bound after each use of a layer, NaN
    beyond a failure; branches: two branches met; batch_norm: a BatchNorm is part of the network; failed: name of the
    function that has no known bound.
    """

    norms: Norms
    after: list[float] = field(default_factory=list)
    total: float | None = None
    branches: bool = False
    batch_norm: bool = False
    failed: str = ""


class _Bounded(Marked):
    """A tensor with the bound of the map that made it, in `tape` as (bounds, number)."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        out = func(*plain(args), **plain(kwargs))
        sources = marked((args, kwargs))
        bounds: Bounds = sources[0].tape[0]
        if name in LOOKS:
            return wrap(out, _Bounded, sources[0].tape) if isinstance(out, torch.Tensor) else out
        shrunk = plain(args[0]).numel() / out.numel() if name == "mean" or "adaptive" in name else 1.0
        value = _after(name, bounds, [source.tape[1] for source in sources], args, kwargs)
        if value is not None and (name == "mean" or name.startswith("adaptive_avg")):
            # a mean of n entries has norm 1 / sqrt(n)
            value = value / math.sqrt(shrunk)
        if value is None:
            bounds.failed = bounds.failed or name
            value = math.nan
        if name in LAYERS:
            bounds.after.append(value)
        return wrap(out, _Bounded, (bounds, value))


def _after(name: str, bounds: Bounds, known: list[float], args: Any, kwargs: Any) -> float | None:
    """Bound of a function's result from those of its marked arguments."""
    if name in LAYERS:
        number = len(bounds.after)
        return known[0] * float(bounds.norms.sigma_max[number] + bounds.norms.error[number])
    if name in SUMS:
        bounds.branches |= len(known) > 1
        return sum(known)
    if name in ("cat", "concat", "stack"):
        bounds.branches |= len(known) > 1
        return math.hypot(*known)
    if len(known) > 1:
        return None
    if name in CONTRACTIONS:
        return known[0]
    if name in FACTORS or (name in QUOTIENTS and isinstance(args[0], _Bounded)):
        other = args[1] if isinstance(args[0], _Bounded) else args[0]
        size = torch.as_tensor(other).double().abs()
        return known[0] * float(size.max()) if name in FACTORS else known[0] / float(size.min())
    if name in POOLS:
        return known[0] * _pool(name, args, kwargs)
    if name.startswith("adaptive_"):
        return known[0] if all(a % b == 0 for a, b in _adaptive(args, kwargs)) else None
    if name == "mean" or (name == "pad" and kwargs.get("mode", "constant") == "constant" and len(args) < 3):
        return known[0]
    if name == "batch_norm":
        bounds.batch_norm = True
        return known[0] * _batch_norm(args, kwargs)
    return None


def _pool(name: str, args: Any, kwargs: Any) -> float:
    """An entry is read by at most prod ceil(k / s) windows; a mean of n entries has norm 1 / sqrt(n) by itself."""
    get = dict(zip(("kernel_size", "stride", "padding", "dilation"), args[1:], strict=False)) | kwargs
    dims = POOLS[name]

    def spread(value: Any) -> tuple[int, ...]:
        entries = tuple(value) if isinstance(value, list | tuple) else (int(value),)
        return entries * dims if len(entries) == 1 else entries

    kernel = spread(get["kernel_size"])
    stride = spread(get.get("stride") or kernel)
    times = math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True))
    return math.sqrt(times / math.prod(kernel)) if name.startswith("avg") else math.sqrt(times)


def _adaptive(args: Any, kwargs: Any) -> list[tuple[int, int]]:
    target = kwargs.get("output_size", args[1] if len(args) > 1 else 1)
    entries = tuple(target) if isinstance(target, list | tuple) else (target,) * (args[0].ndim - 2)
    sizes = args[0].shape[2:]
    return [(int(size), int(goal or size)) for size, goal in zip(sizes, entries, strict=True)]


def _batch_norm(args: Any, kwargs: Any) -> float:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    get = dict(zip(names, args, strict=False)) | kwargs
    scale = torch.rsqrt(get["running_var"].double() + get.get("eps", 1e-5))
    if get.get("weight") is not None:
        scale = scale * get["weight"].double()
    return float(scale.abs().max())


@lru_cache(maxsize=2)
def bounds_of(model: Model, stds: bool = True) -> Bounds:
    """Lipschitz bounds (l2) of a model from its input space to the logits and to each layer; once per model.

    stds: as for `norms_of`, so that both share one computation.
    """
    bounds = Bounds(norms_of(model, stds))
    bounds.batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in _modules(model))
    x = torch.full((1, *model.input_shape), 0.5, device=model.device, dtype=model.dtype)
    watched = model.to_input(x).as_subclass(_Bounded)
    watched.tape = (bounds, 1.0)
    with torch.no_grad():
        out: Any = model.forward(watched)
    bounds.after += [math.nan] * (len(bounds.norms.uses) - len(bounds.after))
    if isinstance(out, _Bounded) and math.isfinite(out.tape[1]):
        bounds.total = float(out.tape[1])
    return bounds


def _modules(model: Model) -> list[nn.Module]:
    return list(model.network.modules())
