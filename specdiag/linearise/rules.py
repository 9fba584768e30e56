"""How a tangent goes through one function call, by the function's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from specdiag.errors import ModelError
from specdiag.linearise.marks import Marked, has_float, marked, plain

Entry = Callable[[tuple[Any, ...], dict[str, Any]], Any]

# names of functions that are linear in their one tensor argument whatever their other arguments are
_LINEAR = frozenset(
    """view reshape flatten unflatten permute transpose squeeze unsqueeze contiguous expand clone neg sum mean
    movedim avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    chunk split unbind narrow select index_select __getitem__ roll flip t to float double type_as repeat
    repeat_interleave unfold fold pixel_shuffle channel_shuffle dropout dropout1d dropout2d alpha_dropout
    feature_dropout detach diagonal swapaxes view_as reshape_as expand_as tile cumsum interpolate upsample
    identity stochastic_depth __neg__ requires_grad_ tensor_split zero_pad""".split()
)
_ADDITIVE = frozenset(
    "add sub __add__ __radd__ __sub__ __rsub__ rsub __iadd__ __isub__ add_ sub_ subtract".split()
)
_PRODUCT = frozenset(
    """mul __mul__ __rmul__ __imul__ mul_ multiply matmul __matmul__ bmm mm einsum baddbmm div __truediv__ div_
    __itruediv__ true_divide""".split()
)
_CONSTANT_BIAS = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear".split()
)
_JOINING = frozenset("cat stack concat hstack vstack concatenate".split())


def _unit_slope_above_zero(z: torch.Tensor) -> torch.Tensor:
    return (z > 0).to(z.dtype)


# derivative of elementwise functions at z, by name; the convention at a kink is autograd's
_SLOPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": _unit_slope_above_zero,
    "relu_": _unit_slope_above_zero,
    "tanh": lambda z: 1 - torch.tanh(z) ** 2,
    "sigmoid": lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z)),
    "exp": torch.exp,
    "square": lambda z: 2 * z,
    "abs": torch.sign,
}
_POOLS = {
    "max_pool1d": F.max_pool1d,
    "max_pool2d": F.max_pool2d,
    "max_pool3d": F.max_pool3d,
    "adaptive_max_pool2d": F.adaptive_max_pool2d,
}


def record(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry | None:
    """How to push a tangent through this call; None where the call itself does it."""
    if name in _LINEAR and not _nonlinear_mode(kwargs, args):
        return None
    if name in _ADDITIVE:
        return _additive(func, name)
    if name in _CONSTANT_BIAS and len(marked((args, kwargs))) == 1 and isinstance(args[0], Marked):
        return _without_bias(func)
    if name in _JOINING:
        return _joined(func)
    if name == "batch_norm" and not kwargs.get("training", args[5] if len(args) > 5 else False):
        return _scaled_norm(args, kwargs)
    if name in ("pad", "constant_pad_nd"):
        return _padded(func)
    if name in _PRODUCT and len(marked((args, kwargs))) == 1:
        divisor = name in ("div", "__truediv__", "div_", "__itruediv__", "true_divide") and not isinstance(
            args[0], Marked
        )
        if not divisor and "rounding_mode" not in kwargs and name != "baddbmm":
            return _times_constant(func)
    if name in _SLOPES:
        return _slope(_SLOPES[name](plain(args[0])), name.endswith("_") or kwargs.get("inplace") is True)
    if name in _POOLS and isinstance(args[0], Marked):
        return _pooled(_POOLS[name], args, kwargs)
    return _general(func, args, kwargs)


def _nonlinear_mode(kwargs: dict[str, Any], args: tuple[Any, ...]) -> bool:
    return kwargs.get("training") is True or len(marked((args, kwargs))) > 1


def _additive(func: Any, name: str) -> Entry:
    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        left, right = args[0], args[1]
        if isinstance(left, Marked) and isinstance(right, Marked):
            return func(*plain(args), **plain(kwargs))
        tangent, other = (left, right) if isinstance(left, Marked) else (right, left)
        value = plain(tangent)
        reversed_sign = "rsub" in name if isinstance(left, Marked) else "sub" in name and "rsub" not in name
        if reversed_sign:
            value = -value
        if not isinstance(left, Marked) and "alpha" in kwargs:
            value = value * kwargs["alpha"]
        if isinstance(other, torch.Tensor) and other.ndim:
            shape = torch.broadcast_shapes(value.shape, other.shape)  # type: ignore[no-untyped-call]
            value = value.expand(shape)
        return value

    return apply


def _without_bias(func: Any) -> Entry:
    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, named = list(plain(args)), dict(kwargs)
        if len(given) > 2:
            given[2] = None
        if "bias" in named:
            named["bias"] = None
        return func(*given, **named)

    return apply


def _joined(func: Any) -> Entry:
    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        parts = [plain(part) if isinstance(part, Marked) else torch.zeros_like(part) for part in args[0]]
        return func(parts, *args[1:], **kwargs)

    return apply


def _padded(func: Any) -> Entry:
    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, named = list(plain(args)), dict(kwargs)
        # a constant border has no tangent
        if len(given) > 3:
            given[3] = 0.0
        if "value" in named:
            named["value"] = 0.0
        if func is torch.constant_pad_nd and len(given) > 2:
            given[2] = 0.0
        return func(*given, **named)

    return apply


def _scaled_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    scale = torch.rsqrt(given["running_var"] + given.get("eps", 1e-5))
    if given.get("weight") is not None:
        scale = scale * given["weight"]
    shape = (1, -1) + (1,) * (plain(given["input"]).ndim - 2)
    factor = scale.reshape(shape)
    return lambda args, kwargs: plain(args[0]) * factor


def _times_constant(func: Any) -> Entry:
    return lambda args, kwargs: func(*plain(args), **plain(kwargs))


def _slope(slope: torch.Tensor, inplace: bool) -> Entry:
    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = plain(args[0])
        return value.mul_(slope) if inplace and value.shape[0] >= slope.shape[0] else value * slope

    return apply


def _pooled(pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
    given = {key: value for key, value in kwargs.items() if key != "return_indices"}
    _, indices = pool(*plain(args), **given, return_indices=True)
    spatial = 1 if pool is F.max_pool1d else 3 if pool is F.max_pool3d else 2

    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = plain(args[0])
        flat = value.flatten(-spatial)
        where = indices.flatten(-spatial).expand(*flat.shape[:-1], -1)
        return flat.gather(-1, where).reshape(*value.shape[:-spatial], *indices.shape[-spatial:])

    return apply


def _general(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
    """The exact derivative of any other function at the recorded inputs (attention, normalisation, products of two)."""
    primal_args, primal_kwargs = _detached(args), _detached(kwargs)

    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tangents = marked((args, kwargs))
        places = _places(args, kwargs)
        primals = [
            _matched(_at(primal_args, primal_kwargs, place), plain(tangent))
            for place, tangent in zip(places, tangents, strict=True)
        ]

        shape: list[Any] = []

        def call(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = func(
                *_replaced(plain(args), places, values, 0), **_replaced(plain(kwargs), places, values, 1)
            )
            shape[:] = [out]
            return tuple(
                part for part in (out if isinstance(out, list | tuple) else (out,)) if has_float(part)
            )

        # the fused attention kernels have no forward derivative
        with sdpa_kernel(SDPBackend.MATH):
            pushed = iter(
                torch.func.jvp(call, tuple(primals), tuple(plain(tangent) for tangent in tangents))[1]
            )
        out = shape[0]
        if not isinstance(out, list | tuple):
            return next(pushed)
        parts: list[Any] = [next(pushed) if has_float(part) else None for part in out]
        return type(out)(*parts) if hasattr(out, "_fields") else type(out)(parts)

    return apply


def is_general(entry: Entry | None) -> bool:
    """Whether a call goes by forward-mode differentiation, for want of a rule."""
    return getattr(entry, "__qualname__", "").startswith(_general.__qualname__ + ".")


def _detached(value: Any) -> Any:
    # an in-place function later may change the recorded tensor
    if isinstance(value, Marked):
        return value.as_subclass(torch.Tensor).detach().clone()
    if isinstance(value, list | tuple):
        return type(value)(_detached(entry) for entry in value)
    if isinstance(value, dict):
        return {key: _detached(entry) for key, entry in value.items()}
    return value


Place = tuple[int, Any, Any]


def _places(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Place]:
    found: list[Place] = []
    for which, entries in ((0, enumerate(args)), (1, kwargs.items())):
        for key, value in entries:
            if isinstance(value, Marked):
                found.append((which, key, None))
            elif isinstance(value, list | tuple):
                found.extend((which, key, i) for i, entry in enumerate(value) if isinstance(entry, Marked))
    return found


def _at(args: tuple[Any, ...], kwargs: dict[str, Any], place: Place) -> torch.Tensor:
    which, key, inner = place
    value: Any = args[key] if which == 0 else kwargs[key]
    found: torch.Tensor = value if inner is None else value[inner]
    return found


def _replaced(container: Any, places: list[Place], values: tuple[torch.Tensor, ...], which: int) -> Any:
    copied: Any = list(container) if which == 0 else dict(container)
    for (side, key, inner), value in zip(places, values, strict=True):
        if side != which:
            continue
        if inner is None:
            copied[key] = value
        else:
            entries = list(copied[key])
            entries[inner] = value
            copied[key] = entries
    return copied


def _matched(primal: torch.Tensor, tangent: torch.Tensor) -> torch.Tensor:
    """The recorded input, repeated where one sample's record serves many tangents.

    The one axis that is longer in the tangent holds the samples: the first, or another where a layer has moved
    them (nn.MultiheadAttention computes with the sequence first).
    """
    if primal.shape == tangent.shape:
        # a function that works in place would change the record
        return primal.clone()
    if primal.ndim == tangent.ndim:
        longer = [axis for axis in range(primal.ndim) if primal.shape[axis] != tangent.shape[axis]]
        if len(longer) == 1 and primal.shape[longer[0]]:
            times, rest = divmod(tangent.shape[longer[0]], primal.shape[longer[0]])
            if not rest:
                # layers that fold others into that axis (heads, windows of an attention) keep the sample as the slowest
                return primal.repeat([times if axis in longer else 1 for axis in range(primal.ndim)])
    raise ModelError(
        "The network mixes samples of a batch, so it cannot be frozen at one input.", "Use --method autograd."
    )
