"""The small Inception of Zhang et al. (ICLR 2017), with ReLU there, with ReLU or ELU in farnia2019 5.3."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from specdiag.errors import ArchitectureError
from specdiag.loading.networks._parts import Activation, activation_named, check_norm

# outputs of the 1x1 and the 3x3 convolutions of each module; without the former it halves the side
MODULES: tuple[tuple[int, int], ...] = (
    (32, 32),
    (32, 48),
    (0, 80),
    (112, 48),
    (96, 64),
    (80, 80),
    (48, 96),
    (0, 96),
    (176, 160),
    (176, 160),
)
FIRST = 96


class Unit(nn.Module):
    """Convolution, BatchNorm, activation; without BatchNorm the convolution has a bias."""

    def __init__(
        self, inner: int, outer: int, kernel: int, stride: int, activation: Activation, norm: str
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride=stride, padding=kernel // 2, bias=norm == "none")
        self.norm: nn.Module = nn.BatchNorm2d(outer) if norm == "batch" else nn.Identity()
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inner, H, W) to (N, outer, ceil(H / stride), ceil(W / stride))."""
        return self.activation(self.norm(self.conv(x)))


class Mixed(nn.Module):
    """Outputs of a 1x1 and a 3x3 unit side by side."""

    def __init__(self, inner: int, narrow: int, wide: int, activation: Activation, norm: str) -> None:
        super().__init__()
        self.narrow = Unit(inner, narrow, 1, 1, activation, norm)
        self.wide = Unit(inner, wide, 3, 1, activation, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inner, H, W) to (N, narrow + wide, H, W)."""
        return torch.cat([self.narrow(x), self.wide(x)], 1)


class Halved(nn.Module):
    """Outputs of a 3x3 unit of stride 2 and of a 3x3 max-pool of stride 2 side by side."""

    def __init__(self, inner: int, outer: int, activation: Activation, norm: str) -> None:
        super().__init__()
        self.unit = Unit(inner, outer, 3, 2, activation, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inner, H, W) to (N, inner + outer, ceil(H / 2), ceil(W / 2))."""
        return torch.cat([self.unit(x), F.max_pool2d(x, 3, stride=2, padding=1)], 1)


class InceptionZhang(nn.Module):
    """One 3x3 unit, ten modules of which two halve the side, a mean over the image, a linear layer.

    With norm=none it has the paper's 1,649,402 parameters; norm=batch has 1,712 more, for there a channel
    has a scale and a shift in place of a bias. Inputs (N, channels, size, size).
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        size: int = 32,
        activation: str = "relu",
        norm: str = "batch",
    ) -> None:
        super().__init__()
        check_norm(norm)
        if size < 4:
            raise ArchitectureError(
                f"inception-zhang needs images of at least 4x4, not size={size}.", "Use mlp."
            )
        function = activation_named(activation)
        self.conv1 = Unit(channels, FIRST, 3, 1, function, norm)
        inner, rows = FIRST, list[nn.Module]()
        for narrow, wide in MODULES:
            if narrow:
                rows.append(Mixed(inner, narrow, wide, function, norm))
                inner = narrow + wide
            else:
                rows.append(Halved(inner, wide, function, norm))
                inner += wide
        self.blocks = nn.Sequential(*rows)
        self.linear = nn.Linear(inner, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        x = self.blocks(self.conv1(x))
        logits: torch.Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
