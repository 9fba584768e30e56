"""Tensors that carry a mark through a network, so that every function they meet can be watched."""

from __future__ import annotations

from typing import Any

import torch


class Marked(torch.Tensor):
    """A tensor of a watched pass; `tape` is the record of the pass over x, `number` its place in a `Program`."""

    tape: Any
    number: int


def name_of(func: Any) -> str:
    """Name of a torch function or method."""
    return str(getattr(func, "__name__", func))


def plain(value: Any) -> Any:
    """The value with all marks taken off."""
    if isinstance(value, Marked):
        return value.as_subclass(torch.Tensor)
    if isinstance(value, list | tuple):
        if hasattr(value, "_fields"):
            return type(value)(*(plain(entry) for entry in value))
        return type(value)(plain(entry) for entry in value)
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return value


def wrap(value: Any, kind: type, tape: Any) -> Any:
    """The value with every floating-point tensor in it marked as `kind`."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        wrapped = value if isinstance(value, kind) else value.as_subclass(kind)
        wrapped.tape = tape  # type: ignore[attr-defined]
        return wrapped
    if isinstance(value, list | tuple) and any(isinstance(entry, torch.Tensor) for entry in value):
        entries = [wrap(entry, kind, tape) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def marked(value: Any, kind: type = Marked) -> list[Any]:
    """All marked tensors in a value, at any depth, in order."""
    if isinstance(value, kind):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [found for entry in value for found in marked(entry, kind)]
    return []


def look(kind: type, func: Any, args: Any, kwargs: Any) -> Any:
    """A look at shape, dtype or device; the views among the properties (x.T, x.mT, x.data) stay marked."""
    out = func(*plain(args), **plain(kwargs))
    return wrap(out, kind, marked(args)[0].tape) if isinstance(out, torch.Tensor) else out


def has_float(out: Any) -> bool:
    """Whether a result holds a floating-point tensor."""
    if isinstance(out, torch.Tensor):
        return out.is_floating_point()
    return isinstance(out, list | tuple) and any(has_float(entry) for entry in out)
