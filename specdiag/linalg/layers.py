"""Convolutions, exactly as the network applies them, as linear operators.

The operator depends on the size of the input: stride, padding and borders are part of it. The reshaped kernel
and the circular convolution of the same kernel have other spectra (up to 90 % off on a strided layer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from specdiag.errors import ModelError
from specdiag.linalg.operators import LinearOperator
from specdiag.linalg.stencil import Axis, Mode, Stencil

Sizes = int | Sequence[int]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_ADJOINT: dict[int, Callable[..., torch.Tensor]] = {1: conv1d_input, 2: conv2d_input, 3: conv3d_input}
_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True, eq=False)
class Convolution:
    """One convolution at one input size, without its bias. Build it with `convolution` or `from_module`.

    weight: (C_out, C_in / groups, *kernel), for a transposed one (C_in, C_out / groups, *kernel); size: the
    input's spatial size; padding: (low, high) per axis; scale: (C_out,) factor per output channel (a folded
    BatchNorm) or None. Everything else is as in torch.nn.
    """

    weight: torch.Tensor
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    mode: Mode
    transposed: bool
    output_padding: tuple[int, ...]
    scale: torch.Tensor | None

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size per axis."""
        return tuple(self.weight.shape[2:])

    @property
    def channels(self) -> tuple[int, int]:
        """(C_in, C_out)."""
        first, second = self.weight.shape[0], self.weight.shape[1] * self.groups
        return (first, second) if self.transposed else (second, first)

    @property
    def out_size(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        sizes = []
        for axis, size in enumerate(self.size):
            reach = self.dilation[axis] * (self.kernel[axis] - 1)
            total = sum(self.padding[axis])
            if self.transposed:
                sizes.append((size - 1) * self.stride[axis] - total + reach + self.output_padding[axis] + 1)
            else:
                sizes.append((size + total - reach - 1) // self.stride[axis] + 1)
        return tuple(sizes)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the operator."""
        inputs, outputs = self.channels
        return outputs * int(np.prod(self.out_size)), inputs * int(np.prod(self.size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer without bias: (B, C_in, *size) -> (B, C_out, *out_size)."""
        axes = len(self.size)
        if self.transposed:
            low = [pair[0] for pair in self.padding]
            y = _TRANSPOSED[axes](
                x, self.weight, None, self.stride, low, self.output_padding, self.groups, self.dilation
            )
        elif self._padded_inside:
            low = [pair[0] for pair in self.padding]
            y = _CONV[axes](x, self.weight, None, self.stride, low, self.dilation, self.groups)
        else:
            mode = "constant" if self.mode == "zeros" else self.mode
            flat = [width for pair in reversed(self.padding) for width in pair]
            x = F.pad(x, flat, mode=mode)
            y = _CONV[axes](x, self.weight, None, self.stride, 0, self.dilation, self.groups)
        return y if self.scale is None else y * _per_channel(self.scale, axes)

    def backward(self, y: torch.Tensor) -> torch.Tensor:
        """The exact transpose: (B, C_out, *out_size) -> (B, C_in, *size)."""
        axes = len(self.size)
        if self.scale is not None:
            y = y * _per_channel(self.scale, axes)
        low = [pair[0] for pair in self.padding]
        if self.transposed:
            x: torch.Tensor = _CONV[axes](y, self.weight, None, self.stride, low, self.dilation, self.groups)
            # an output padding of a whole stride gives rows that the layer never read
            for axis, size in enumerate(self.size):
                x = x.narrow(axis + 2, 0, size)
            return x
        inside = self._padded_inside
        padded = (
            self.size if inside else tuple(n + sum(p) for n, p in zip(self.size, self.padding, strict=True))
        )
        shape = (y.shape[0], self.channels[0], *padded)
        around = low if inside else [0] * axes
        x = _ADJOINT[axes](shape, self.weight, y, self.stride, around, self.dilation, self.groups)
        if inside:
            return x
        for axis in range(axes):
            x = self._unpad(x, axis)
        return x

    def operator(self) -> LinearOperator:
        """The layer as an operator on flattened vectors, in the weight's dtype and on its device."""
        m, n = self.shape
        inputs, outputs = self.channels
        source, target = (inputs, *self.size), (outputs, *self.out_size)
        return LinearOperator(
            (m, n),
            lambda v: self.forward(v.reshape(-1, *source)).reshape(-1, m),
            lambda u: self.backward(u.reshape(-1, *target)).reshape(-1, n),
            self.weight.dtype,
            self.weight.device,
        )

    def stencil(self) -> Stencil:
        """The same map as a regular pattern, in float64.

        A transposed convolution is described by its adjoint, which has the same singular values.
        """
        weight = self.weight.detach().double().cpu()
        if self.scale is not None:
            scale = self.scale.detach().double().cpu()
            if self.transposed:
                factor = scale.reshape(self.groups, -1).repeat_interleave(weight.shape[0] // self.groups, 0)
            else:
                factor = scale[:, None].expand(-1, weight.shape[1])
            weight = weight * factor.reshape(*factor.shape, *[1] * len(self.size))
        kernel = weight.reshape(self.groups, weight.shape[0] // self.groups, *weight.shape[1:]).numpy()
        inputs, outputs = (self.out_size, self.size) if self.transposed else (self.size, self.out_size)
        # without padding all modes are one
        mode: Mode = self.mode if any(low or high for low, high in self.padding) else "zeros"
        axes = tuple(
            Axis(inputs[i], outputs[i], self.kernel[i], self.stride[i], self.dilation[i], self.padding[i][0])
            for i in range(len(self.size))
        )
        return Stencil(kernel, axes, mode)

    @property
    def _padded_inside(self) -> bool:
        return self.mode == "zeros" and all(low == high for low, high in self.padding)

    def _unpad(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """Adjoint of padding along one spatial axis: each padded entry goes back to where it was read."""
        low, high = self.padding[axis]
        size, dim = self.size[axis], axis + 2
        if not low and not high:
            return x
        core = x.narrow(dim, low, size).clone()
        if self.mode == "zeros":
            return core
        for place in [*range(low), *range(low + size, low + size + high)]:
            source = place - low
            if self.mode == "circular":
                source %= size
            elif self.mode == "replicate":
                source = min(max(source, 0), size - 1)
            else:
                source = abs(source) if source < size else 2 * (size - 1) - source
            core.select(dim, source).add_(x.select(dim, place))
        return core


def convolution(
    weight: torch.Tensor,
    size: Sequence[int],
    *,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    mode: Mode = "zeros",
    transposed: bool = False,
    output_padding: Sizes = 0,
    scale: torch.Tensor | None = None,
) -> Convolution:
    """A convolution from its weight and the input's spatial size; the other arguments are those of torch.nn.

    Raises ModelError where the input is too small for the kernel or for the padding mode.
    """
    axes = len(size)
    if weight.ndim != axes + 2:
        raise ModelError(
            f"A kernel of shape {tuple(weight.shape)} does not fit an input with {axes} spatial axes.",
            f"Give an input size of {weight.ndim - 2} numbers.",
        )
    strides, dilations = _each(stride, axes), _each(dilation, axes)
    kernel = tuple(weight.shape[2:])
    if padding == "valid":
        pairs = tuple((0, 0) for _ in range(axes))
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pairs = tuple((total // 2, total - total // 2) for total in totals)
    elif isinstance(padding, str):
        raise ModelError(f"'{padding}' is no padding.", "Padding is a number per axis, 'same' or 'valid'.")
    else:
        pairs = tuple((width, width) for width in _each(padding, axes))
    result = Convolution(
        weight.detach(),
        tuple(int(entry) for entry in size),
        strides,
        pairs,
        dilations,
        groups,
        mode,
        transposed,
        _each(output_padding, axes),
        None if scale is None else scale.detach(),
    )
    limit = {"reflect": -1, "circular": 0}
    for axis in range(axes):
        widest = max(pairs[axis])
        if result.out_size[axis] < 1 or (mode in limit and widest > result.size[axis] + limit[mode]):
            raise ModelError(
                f"An input of size {'x'.join(map(str, size))} is too small for a kernel of "
                f"{'x'.join(map(str, kernel))} with {mode} padding {widest}.",
                "Give the input size that the layer sees in the network.",
            )
    return result


def from_module(module: nn.Module, size: Sequence[int], scale: torch.Tensor | None = None) -> Convolution:
    """The convolution of a torch.nn module at an input of spatial size `size`; `scale` as in Convolution.

    Raises ModelError for a module that is no convolution.
    """
    if not isinstance(module, _MODULES):
        raise ModelError(f"{type(module).__name__} is no convolution.", "Use its weight as a matrix.")
    return convolution(
        module.weight,
        size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        mode=module.padding_mode,
        transposed=isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d),
        output_padding=module.output_padding,
        scale=scale,
    )


def _each(value: Sizes, axes: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * axes
    return tuple(int(entry) for entry in value) if len(value) == axes else (int(value[0]),) * axes


def _per_channel(scale: torch.Tensor, axes: int) -> torch.Tensor:
    return scale.reshape(1, -1, *[1] * axes)
