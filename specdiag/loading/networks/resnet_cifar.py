"""Residual networks for CIFAR (He et al. 2016, section 4.2): 6n + 2 layers, three stages of width 16, 32, 64.

Parameter names are those of the widespread public checkpoints of the family (`conv1`, `layer1.0.conv1`,
`linear`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from specdiag.errors import ArchitectureError


class PaddedShortcut(nn.Module):
    """Option A: every second pixel; new channels are zeros, half before, half after. No parameters."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.before = (outer - inner) // 2
        self.after = outer - inner - self.before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inner, H, W) to (N, outer, ceil(H/2), ceil(W/2))."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or inner != outer:
            if shortcut == "A":
                self.shortcut = PaddedShortcut(inner, outer)
            else:
                convolution = nn.Conv2d(inner, outer, 1, stride=stride, bias=False)
                self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inner, H, W) to (N, outer, H/stride, W/stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNetCifar(nn.Module):
    """depth = 6 n + 2; `shortcut` is `A` (zero padding, the paper's for CIFAR) or `B` (1x1 convolution)."""

    def __init__(
        self, depth: int, width: int = 16, classes: int = 10, channels: int = 3, shortcut: str = "A"
    ) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ArchitectureError(f"shortcut={shortcut!r} is not known.", "It is 'A' or 'B'.")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inner = width
        for stage, (outer, stride) in enumerate(((width, 1), (2 * width, 2), (4 * width, 2)), start=1):
            rows = []
            for number in range(blocks):
                rows.append(Block(inner, outer, stride if number == 0 else 1, shortcut))
                inner = outer
            self.add_module(f"layer{stage}", nn.Sequential(*rows))
        self.linear = nn.Linear(inner, classes)
        # the start of He et al. 2016: normal weights of variance 2 / fan-in
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of images (N, channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = getattr(self, f"layer{stage}")(x)
        logits: torch.Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
