"""Plain convolutional networks with ReLU and max-pooling, with BatchNorm or without.

`cnn7` is the network family of roth2020, A.4 (seven convolutional layers for 32x32 images); `cnn4` is its
little sister for images of 8x8 to 28x28. Inputs (N, channels, size, size); outputs (N, classes).
norm=none leaves the BatchNorm out and gives the convolutions a bias: the control of farnia2019, A.2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from specdiag.errors import ArchitectureError
from specdiag.loading.networks._parts import add_convolution, check_norm, convolved, start_as_he


class Cnn7(nn.Module):
    """w, w, pool, 2w, 2w, pool, 4w, 4w, pool, 8w (no padding), pool, linear; 3x3, BatchNorm, ReLU."""

    def __init__(
        self, width: int = 32, classes: int = 10, channels: int = 3, size: int = 32, norm: str = "batch"
    ) -> None:
        super().__init__()
        check_norm(norm)
        side = (size // 8 - 2) // 2
        if side < 1:
            what = f"cnn7 needs images of at least 32x32, not size={size}."
            raise ArchitectureError(what, "Use cnn4 for smaller images.")
        widths = [channels, width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width]
        for number, (inner, outer) in enumerate(pairwise(widths), start=1):
            add_convolution(self, number, inner, outer, norm=norm, padding=0 if number == 7 else 1)
        self.linear = nn.Linear(8 * width * side * side, classes)
        if norm == "none":
            start_as_he(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of images (N, channels, size, size)."""
        for number in range(1, 8):
            x = convolved(self, number, x)
            if number in (2, 4, 6, 7):
                x = F.max_pool2d(x, 2)
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits


class Cnn4(nn.Module):
    """w, w, pool, 2w, 2w, pool, linear; 3x3 convolutions with padding 1, BatchNorm, ReLU."""

    def __init__(
        self, width: int = 16, classes: int = 10, channels: int = 1, size: int = 8, norm: str = "batch"
    ) -> None:
        super().__init__()
        check_norm(norm)
        side = size // 4
        if side < 1:
            raise ArchitectureError(
                f"cnn4 needs images of at least 4x4, not size={size}.", "Pass a larger size."
            )
        widths = [channels, width, width, 2 * width, 2 * width]
        for number, (inner, outer) in enumerate(pairwise(widths), start=1):
            add_convolution(self, number, inner, outer, norm=norm)
        self.linear = nn.Linear(2 * width * side * side, classes)
        if norm == "none":
            start_as_he(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of images (N, channels, size, size)."""
        for number in range(1, 5):
            x = convolved(self, number, x)
            if number in (2, 4):
                x = F.max_pool2d(x, 2)
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits
