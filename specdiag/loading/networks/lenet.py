"""LeNet-5 with ReLU and max-pooling, under the names that tutorials use (`conv1` to `fc3`)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from specdiag.errors import ArchitectureError


class LeNet(nn.Module):
    """Two 5x5 convolutions with pooling, three linear layers.

    Images of 28x28 are padded by 2, as in LeCun et al. 1998; larger ones are not. Inputs (N, channels,
    size, size).
    """

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 28) -> None:
        super().__init__()
        padding = 2 if size <= 28 else 0
        side = ((size + 2 * padding - 4) // 2 - 4) // 2
        if side < 1:
            raise ArchitectureError(
                f"lenet needs images of at least 12x12, not size={size}.", "Use cnn4 or mlp."
            )
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        logits: torch.Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
        return logits
