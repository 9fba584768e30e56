"""Forward products J v by running the network itself on v with every nonlinearity frozen at x.

One pass over x records, at each nonlinear call, what its derivative needs: the mask of a ReLU, the argmax of a max-pool,
the local slope of a smooth elementwise function, the inputs of anything else. A pass over v then replaces each nonlinear
call by multiplication with its derivative and drops biases, so that it costs about one forward pass, where forward-mode
differentiation costs four to seven.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from specdiag.errors import ModelError

Entry = Callable[[tuple[Any, ...], dict[str, Any]], Any]

# names of functions that are linear in their one tensor argument whatever their other arguments are
_LINEAR = frozenset(
    """view reshape flatten unflatten permute transpose squeeze unsqueeze contiguous expand clone neg sum mean movedim
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d chunk split unbind narrow
    select index_select __getitem__ roll flip t to float double type_as repeat repeat_interleave unfold fold pixel_shuffle
    channel_shuffle dropout dropout1d dropout2d alpha_dropout feature_dropout detach diagonal swapaxes view_as reshape_as
    expand_as tile cumsum interpolate upsample identity stochastic_depth __neg__ requires_grad_ tensor_split zero_pad
    """.split()
)
_ADDITIVE = frozenset("add sub __add__ __radd__ __sub__ __rsub__ rsub __iadd__ __isub__ add_ sub_ subtract".split())
_PRODUCT = frozenset(
    "mul __mul__ __rmul__ __imul__ mul_ multiply matmul __matmul__ bmm mm einsum baddbmm div __truediv__ div_ __itruediv__ true_divide".split()
)
_CONSTANT_BIAS = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear".split()
)
_LOOKS = frozenset(
    """__get__ __set__ size dim ndimension numel nelement stride storage_offset is_floating_point is_complex is_contiguous
    element_size get_device data_ptr __len__""".split()
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


class Linearised:
    """J(x) of a function, as products with vectors.

    function: (B, *input shape) -> (B, m), made of torch functions, rows independent. x: (N, *input shape). `value` is the
    function at x, (N, m).
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
        self._function = function
        self._tape = _Tape()
        with torch.no_grad():
            primal = x.detach().as_subclass(_Primal)
            primal.tape = self._tape
            out = function(primal)
        self.value = out.as_subclass(torch.Tensor)

    def jvp(self, v: torch.Tensor) -> torch.Tensor:
        """J(x) v per sample, (N, m). v: (N, *input shape), or (P, *input shape) for any P where x is one sample.

        Works without a graph.
        """
        self._tape.position = 0
        with torch.no_grad():
            tangent = v.detach().clone().as_subclass(_Tangent)
            tangent.tape = self._tape
            out = self._function(tangent)
        return out.as_subclass(torch.Tensor)


class _Tape:
    def __init__(self) -> None:
        self.entries: list[tuple[str, Entry | None]] = []
        self.position = 0

    def next(self, name: str) -> Entry | None:
        if self.position >= len(self.entries) or self.entries[self.position][0] != name:
            raise ModelError(
                f"The network takes another path through '{name}' for another input, so it cannot be frozen at one.",
                "Use --method autograd.",
            )
        entry = self.entries[self.position][1]
        self.position += 1
        return entry


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", func))


def _plain(value: Any) -> Any:
    if isinstance(value, _Primal | _Tangent):
        return value.as_subclass(torch.Tensor)
    if isinstance(value, list | tuple):
        if hasattr(value, "_fields"):
            return type(value)(*(_plain(entry) for entry in value))
        return type(value)(_plain(entry) for entry in value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value


def _wrap(value: Any, kind: type, tape: _Tape) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        wrapped = value if isinstance(value, kind) else value.as_subclass(kind)
        wrapped.tape = tape  # type: ignore[attr-defined]
        return wrapped
    if isinstance(value, list | tuple) and any(isinstance(entry, torch.Tensor) for entry in value):
        entries = [_wrap(entry, kind, tape) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def _marked(value: Any, kind: type) -> list[Any]:
    if isinstance(value, kind):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [found for entry in value for found in _marked(entry, kind)]
    return []


class _Primal(torch.Tensor):
    """A tensor of the pass over x; every function it meets goes on the tape."""

    tape: _Tape

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if name in _LOOKS:
            return _look(cls, func, args, kwargs)
        sources = _marked((args, kwargs), _Primal)
        tape = sources[0].tape
        entry = _record(name, func, args, kwargs)
        out = func(*_plain(args), **_plain(kwargs))
        if not _has_float(out):
            kept = out
            entry = lambda args, kwargs: kept  # noqa: E731
        tape.entries.append((name, entry))
        if name.endswith("_") and not name.startswith("__") or kwargs.get("inplace") is True or name.startswith("__i"):
            return args[0] if isinstance(args[0], _Primal) else _wrap(out, _Primal, tape)
        return _wrap(out, _Primal, tape)


class _Tangent(torch.Tensor):
    """A tensor of the pass over v."""

    tape: _Tape

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if name in _LOOKS:
            return _look(cls, func, args, kwargs)
        tape = _marked((args, kwargs), _Tangent)[0].tape
        entry = tape.next(name)
        out = func(*_plain(args), **_plain(kwargs)) if entry is None else entry(args, kwargs)
        return _wrap(out, _Tangent, tape)


def _look(kind: type, func: Any, args: Any, kwargs: Any) -> Any:
    """A look at shape, dtype or device; the views among the properties (x.T, x.mT, x.data) stay marked."""
    out = func(*_plain(args), **_plain(kwargs))
    return _wrap(out, kind, _marked(args, kind)[0].tape) if isinstance(out, torch.Tensor) else out


def _has_float(out: Any) -> bool:
    if isinstance(out, torch.Tensor):
        return out.is_floating_point()
    return isinstance(out, list | tuple) and any(_has_float(entry) for entry in out)


def _record(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry | None:
    """How to push a tangent through this call; None where the call itself does it."""
    if name in _LINEAR and not _nonlinear_mode(kwargs, args):
        return None
    if name in _ADDITIVE:
        return _additive(func, name)
    if name in _CONSTANT_BIAS and len(_marked((args, kwargs), _Primal)) == 1 and isinstance(args[0], _Primal):
        return _without_bias(func)
    if name in _JOINING:
        return _joined(func)
    if name == "batch_norm" and not kwargs.get("training", args[5] if len(args) > 5 else False):
        return _scaled_norm(args, kwargs)
    if name in ("pad", "constant_pad_nd"):
        return _padded(func)
    if name in _PRODUCT and len(_marked((args, kwargs), _Primal)) == 1:
        divisor = name in ("div", "__truediv__", "div_", "__itruediv__", "true_divide") and not isinstance(args[0], _Primal)
        if not divisor and "rounding_mode" not in kwargs and name != "baddbmm":
            return _times_constant(func)
    if name in _SLOPES:
        return _slope(_SLOPES[name](_plain(args[0])), name.endswith("_") or kwargs.get("inplace") is True)
    if name in _POOLS and isinstance(args[0], _Primal):
        return _pooled(_POOLS[name], args, kwargs)
    return _general(func, args, kwargs)


def _nonlinear_mode(kwargs: dict[str, Any], args: tuple[Any, ...]) -> bool:
    return kwargs.get("training") is True or len(_marked((args, kwargs), _Primal)) > 1


def _additive(func: Any, name: str) -> Entry:
    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        left, right = args[0], args[1]
        if isinstance(left, _Tangent) and isinstance(right, _Tangent):
            return func(*_plain(args), **_plain(kwargs))
        tangent, other = (left, right) if isinstance(left, _Tangent) else (right, left)
        value = _plain(tangent)
        reversed_sign = "rsub" in name if isinstance(left, _Tangent) else "sub" in name and "rsub" not in name
        if reversed_sign:
            value = -value
        if not isinstance(left, _Tangent) and "alpha" in kwargs:
            value = value * kwargs["alpha"]
        if isinstance(other, torch.Tensor) and other.ndim:
            value = value.expand(torch.broadcast_shapes(value.shape, other.shape))
        return value

    return apply


def _without_bias(func: Any) -> Entry:
    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plain, named = list(_plain(args)), dict(kwargs)
        if len(plain) > 2:
            plain[2] = None
        if "bias" in named:
            named["bias"] = None
        return func(*plain, **named)

    return apply


def _joined(func: Any) -> Entry:
    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        parts = [_plain(part) if isinstance(part, _Tangent) else torch.zeros_like(part) for part in args[0]]
        return func(parts, *args[1:], **kwargs)

    return apply


def _padded(func: Any) -> Entry:
    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plain, named = list(_plain(args)), dict(kwargs)
        # a constant border has no tangent
        if len(plain) > 3:
            plain[3] = 0.0
        if "value" in named:
            named["value"] = 0.0
        if func is torch.constant_pad_nd and len(plain) > 2:
            plain[2] = 0.0
        return func(*plain, **named)

    return apply


def _scaled_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    scale = torch.rsqrt(given["running_var"] + given.get("eps", 1e-5))
    if given.get("weight") is not None:
        scale = scale * given["weight"]
    shape = (1, -1) + (1,) * (_plain(given["input"]).ndim - 2)
    factor = scale.reshape(shape)
    return lambda args, kwargs: _plain(args[0]) * factor


def _times_constant(func: Any) -> Entry:
    return lambda args, kwargs: func(*_plain(args), **_plain(kwargs))


def _slope(slope: torch.Tensor, inplace: bool) -> Entry:
    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = _plain(args[0])
        return value.mul_(slope) if inplace and value.shape[0] >= slope.shape[0] else value * slope

    return apply


def _pooled(pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
    given = {key: value for key, value in kwargs.items() if key != "return_indices"}
    _, indices = pool(*_plain(args), **given, return_indices=True)
    spatial = 1 if pool is F.max_pool1d else 3 if pool is F.max_pool3d else 2

    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = _plain(args[0])
        flat = value.flatten(-spatial)
        where = indices.flatten(-spatial).expand(*flat.shape[:-1], -1)
        return flat.gather(-1, where).reshape(*value.shape[:-spatial], *indices.shape[-spatial:])

    return apply


def _general(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
    """The exact derivative of any other function at the recorded inputs (attention, normalisation, products of two)."""
    primal_args, primal_kwargs = _detached(args), _detached(kwargs)

    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tangents = _marked((args, kwargs), _Tangent)
        places = _places(args, kwargs)
        batch = tangents[0].shape[0] if tangents[0].ndim else 1
        primals = [_matched(_at(primal_args, primal_kwargs, place), _plain(tangent), batch) for place, tangent in zip(places, tangents, strict=True)]

        shape: list[Any] = []

        def call(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = func(*_replaced(_plain(args), places, values, 0), **_replaced(_plain(kwargs), places, values, 1))
            shape[:] = [out]
            return tuple(part for part in (out if isinstance(out, list | tuple) else (out,)) if _has_float(part))

        # the fused attention kernels have no forward derivative
        with sdpa_kernel(SDPBackend.MATH):
            pushed = iter(torch.func.jvp(call, tuple(primals), tuple(_plain(tangent) for tangent in tangents))[1])
        out = shape[0]
        if not isinstance(out, list | tuple):
            return next(pushed)
        parts = [next(pushed) if _has_float(part) else None for part in out]
        return type(out)(*parts) if hasattr(out, "_fields") else type(out)(parts)

    return apply


def _detached(value: Any) -> Any:
    # an in-place function later may change the recorded tensor
    if isinstance(value, _Primal):
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
            if isinstance(value, _Tangent):
                found.append((which, key, None))
            elif isinstance(value, list | tuple):
                found.extend((which, key, i) for i, entry in enumerate(value) if isinstance(entry, _Tangent))
    return found


def _at(args: tuple[Any, ...], kwargs: dict[str, Any], place: Place) -> torch.Tensor:
    which, key, inner = place
    value = args[key] if which == 0 else kwargs[key]
    return value if inner is None else value[inner]


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


def _matched(primal: torch.Tensor, tangent: torch.Tensor, batch: int) -> torch.Tensor:
    """The recorded input, repeated where one sample's record serves many tangents."""
    if primal.shape == tangent.shape:
        return primal
    if primal.ndim and tangent.shape[0] % primal.shape[0] == 0:
        # layers that fold other axes into the batch (windows of an attention) keep the sample as the slowest axis
        return primal.repeat(tangent.shape[0] // primal.shape[0], *([1] * (primal.ndim - 1))).reshape(tangent.shape)
    raise ModelError("The network mixes samples of a batch, so it cannot be frozen at one input.", "Use --method autograd.")
