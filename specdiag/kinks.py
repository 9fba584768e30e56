"""Count activations that sit on (or within rounding of) a kink: there float32 and float64 may take different sides.

A sample with such an activation is marked `near_kink`, because its Jacobian in float32 can be that of a neighbouring
linear region (errors up to 1e-2 were measured on a CIFAR ResNet).
"""

from __future__ import annotations

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


def _rms(z: torch.Tensor) -> torch.Tensor:
    flat = z.flatten(1)
    norm = torch.linalg.vector_norm(
        flat, dim=1, dtype=torch.float64 if z.dtype == torch.float64 else torch.float32
    )
    rms: torch.Tensor = norm / max(1.0, flat.shape[1] ** 0.5)
    return rms


def _near(z: torch.Tensor, kinks: tuple[float, ...]) -> torch.Tensor:
    limit = (RELATIVE * _rms(z)).view(-1, *([1] * (z.ndim - 1)))
    dims = tuple(range(1, z.ndim))
    counts = torch.zeros(z.shape[0], dtype=torch.int64, device=z.device)
    for kink in kinks:
        distance = z.abs() if kink == 0 else (z - kink).abs_()
        counts += (distance < limit).sum(dims) if dims else (distance < limit)
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
    limit = (RELATIVE * _rms(z)).view(-1, *([1] * (dims + 1)))
    if any(padding):
        z = F.pad(z, [amount for side in reversed(padding) for amount in (side, side)], value=-torch.inf)
    windows = z
    for axis in range(dims):
        windows = windows.unfold(axis + 2, kernel[axis], stride[axis])
    top = windows.flatten(-dims).topk(2, dim=-1).values
    first, second = top[..., 0], top[..., 1]
    near = (first - second < limit) & ~((first == 0) & (second == 0))
    return near.flatten(1).sum(1)
