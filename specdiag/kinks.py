"""Count activations that sit on (or within rounding of) a kink: there float32 and float64 may take different sides.

A sample with such an activation is marked `near_kink`, because its Jacobian in float32 can be that of a neighbouring
linear region (errors up to 1e-2 were measured on a CIFAR ResNet).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

RELATIVE = 1e-6
# kink positions by function name; max-pooling is treated apart
KINKS: dict[str, tuple[float, ...]] = {
    "relu": (0.0,),
    "relu_": (0.0,),
    "leaky_relu": (0.0,),
    "prelu": (0.0,),
    "rrelu": (0.0,),
    "threshold": (0.0,),
    "relu6": (0.0, 6.0),
    "hardswish": (-3.0, 3.0),
    "hardsigmoid": (-3.0, 3.0),
    "abs": (0.0,),
}
POOLS = {"max_pool1d": 1, "max_pool2d": 2, "max_pool3d": 3}


class KinkCounter(TorchFunctionMode):
    """While active, counts per sample the activations with |z - kink| < 1e-6 of their layer's rms.

    `counts`: (N,) int64 on the device of the pass; None before the first kinked function. The rms is that of the
    sample's own activations of the layer, so the count does not depend on the batch.
    """

    def __init__(self) -> None:
        self.counts: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in KINKS and args and isinstance(args[0], torch.Tensor):
            self._add(_near(args[0].detach(), KINKS[name]))
        elif name == "hardtanh" and isinstance(args[0], torch.Tensor):
            low = kwargs.get("min_val", args[1] if len(args) > 1 else -1.0)
            high = kwargs.get("max_val", args[2] if len(args) > 2 else 1.0)
            self._add(_near(args[0].detach(), (low, high)))
        elif name in POOLS:
            self._add(_near_ties(args[0].detach(), POOLS[name], args[1:], kwargs))
        return func(*args, **kwargs)

    def _add(self, counts: torch.Tensor) -> None:
        self.counts = counts if self.counts is None else self.counts + counts


def _rows(z: torch.Tensor) -> torch.Tensor:
    """(N, values) in memory order, so that channels-last activations are not copied."""
    if z.ndim == 4 and z.is_contiguous(memory_format=torch.channels_last):
        z = z.permute(0, 2, 3, 1)
    return z.flatten(1) if z.ndim > 1 else z[:, None]


def _limit(rows: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(rows, dim=1)
    share: float = RELATIVE / max(1.0, rows.shape[1] ** 0.5)
    return norm * share


def _near(z: torch.Tensor, kinks: tuple[float, ...]) -> torch.Tensor:
    rows = _rows(z)
    limit = _limit(rows)
    counts = torch.zeros(len(rows), dtype=torch.int64, device=z.device)
    for kink in kinks:
        distance = rows.abs() if kink == 0 else (rows - kink).abs_()
        # most samples have none: one minimum is cheaper than counting everywhere
        found = (distance.amin(1) < limit).nonzero().flatten()
        if len(found):
            counts[found] += (distance[found] < limit[found, None]).sum(1)
    return counts


def _near_ties(z: torch.Tensor, dims: int, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Windows of a max-pool whose two largest entries lie within rounding; both exactly zero (after a ReLU) is no kink."""
    get = dict(zip(("kernel_size", "stride", "padding", "dilation"), rest, strict=False)) | kwargs

    def spread(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, list | tuple) else (int(value),) * dims

    kernel = spread(get["kernel_size"])
    stride = spread(get.get("stride") or kernel)
    padding = spread(get.get("padding", 0))
    if z.ndim != dims + 2 or any(step != 1 for step in spread(get.get("dilation", 1))) or max(kernel) == 1:
        return torch.zeros(z.shape[0], dtype=torch.int64, device=z.device)
    limit = _limit(_rows(z)).view(-1, *([1] * (dims + 1)))
    if any(padding):
        z = F.pad(z, [amount for side in reversed(padding) for amount in (side, side)], value=-torch.inf)
    first, second = _two_largest(z, kernel, stride)
    near = (first - second < limit) & ~((first == 0) & (second == 0))
    return near.flatten(1).sum(1)


def _two_largest(
    z: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest and second largest entry of every pooling window."""
    sizes = [(side - k) // step + 1 for side, k, step in zip(z.shape[2:], kernel, stride, strict=True)]
    first: torch.Tensor | None = None
    second = torch.empty(0)
    for offsets in itertools.product(*(range(k) for k in kernel)):
        value = z
        for axis, (offset, size, step) in enumerate(zip(offsets, sizes, stride, strict=True)):
            value = value.narrow(axis + 2, offset, (size - 1) * step + 1)
            value = value[(slice(None),) * (axis + 2) + (slice(None, None, step),)]
        if first is None:
            first, second = value, torch.full_like(value, -torch.inf)
        else:
            second = torch.maximum(second, torch.minimum(first, value))
            first = torch.maximum(first, value)
    return (z if first is None else first), second
