"""Residual networks for CIFAR (He et al. 2016, section 4.2): 6n + 2 layers, three stages of width 16, 32, 64.

Parameter names are those of the widespread public checkpoints of the family (`conv1`, `layer1.0.conv1`,
`linear`). norm=none leaves BatchNorm out; init=fixup (Zhang, Dauphin and Ma, ICLR 2019) makes such networks
trainable. Both together, without fixup's scalars, are the networks of wen2020 D.3.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from specdiag.errors import ArchitectureError
from specdiag.loading.networks._parts import check_choice, check_norm


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

    def __init__(self, inner: int, outer: int, stride: int, shortcut: str, norm: str = "batch") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.bn1 = normalisation(outer, norm)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn2 = normalisation(outer, norm)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or inner != outer:
            if shortcut == "A":
                self.shortcut = PaddedShortcut(inner, outer)
            else:
                convolution = nn.Conv2d(inner, outer, 1, stride=stride, bias=False)
                self.shortcut = nn.Sequential(convolution, normalisation(outer, norm))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inner, H, W) to (N, outer, H/stride, W/stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNetCifar(nn.Module):
    """depth = 6 n + 2; `shortcut` is `A` (zero padding, the paper's for CIFAR) or `B` (1x1 convolution).

    norm: `batch`, or `none`; init: `he`, or `fixup`, which needs norm=none.
    """

    def __init__(
        self,
        depth: int,
        width: int = 16,
        classes: int = 10,
        channels: int = 3,
        shortcut: str = "A",
        norm: str = "batch",
        init: str = "he",
    ) -> None:
        super().__init__()
        check_choice("shortcut", shortcut, ("A", "B"))
        check_norm(norm)
        check_choice("init", init, ("he", "fixup"))
        if init == "fixup" and norm == "batch":
            raise ArchitectureError("init=fixup is for networks without BatchNorm.", "Pass norm=none too.")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = normalisation(width, norm)
        inner = width
        for stage, (outer, stride) in enumerate(((width, 1), (2 * width, 2), (4 * width, 2)), start=1):
            rows = []
            for number in range(blocks):
                rows.append(Block(inner, outer, stride if number == 0 else 1, shortcut, norm))
                inner = outer
            self.add_module(f"layer{stage}", nn.Sequential(*rows))
        self.linear = nn.Linear(inner, classes)
        # the start of He et al. 2016: normal weights of variance 2 / fan-in
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        if init == "fixup":
            self._start_as_fixup()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of images (N, channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = getattr(self, f"layer{stage}")(x)
        logits: torch.Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits

    def _start_as_fixup(self) -> None:
        """Each branch starts at zero, its first convolution damped by the root of the number of branches."""
        branches = [module for module in self.modules() if isinstance(module, Block)]
        with torch.no_grad():
            for block in branches:
                block.conv1.weight.mul_(len(branches) ** -0.5)
                block.conv2.weight.zero_()
            self.linear.weight.zero_()
            self.linear.bias.zero_()


def normalisation(channels: int, norm: str) -> nn.Module:
    """BatchNorm, or nothing."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()
