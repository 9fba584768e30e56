"""The ELU network for MNIST of Sinha, Namkoong and Duchi (ICLR 2018), as farnia2019 5.3 uses it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from specdiag.errors import ArchitectureError

LARGE = 28


class EluNet(nn.Module):
    """Convolutions 8x8 (stride 2), 6x6 (stride 2) and 5x5 with ELU, then a linear layer.

    width, 2 width and 2 width outputs; the last two are not padded, except on images below 28x28, on which
    they would have nothing left. Inputs (N, channels, size, size).
    """

    def __init__(self, width: int = 64, classes: int = 10, channels: int = 1, size: int = 28) -> None:
        super().__init__()
        if size < 4:
            raise ArchitectureError(f"elunet needs images of at least 4x4, not size={size}.", "Use mlp.")
        padding = 0 if size >= LARGE else 2
        self.conv1 = nn.Conv2d(channels, width, 8, stride=2, padding=3)
        self.conv2 = nn.Conv2d(width, 2 * width, 6, stride=2, padding=padding)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 5, padding=padding)
        side = ((size - 2) // 2 + 1 + 2 * padding - 6) // 2 + 1
        side += 2 * padding - 4
        self.linear = nn.Linear(2 * width * side * side, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.elu(convolution(x))
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits
