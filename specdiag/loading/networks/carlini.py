"""The convolutional network of Carlini and Wagner (2017), as roth2018 7.4 uses it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from specdiag.errors import ArchitectureError


class Carlini(nn.Module):
    """w, w, pool, 2w, 2w, pool (3x3 convolutions), two hidden layers of `dense`, one of classes; ReLU.

    width and dense left out: 32 and 200 for grey images (MNIST), 64 and 256 for colour (CIFAR-10). The
    convolutions are not padded; images below 16x16 need padding=1. Inputs (N, channels, size, size).
    """

    def __init__(
        self,
        width: int | None = None,
        dense: int | None = None,
        classes: int = 10,
        channels: int = 1,
        size: int = 28,
        padding: int = 0,
    ) -> None:
        super().__init__()
        width = width or (32 if channels == 1 else 64)
        dense = dense or (200 if channels == 1 else 256)
        loss = 4 - 4 * padding
        side = ((size - loss) // 2 - loss) // 2
        if side < 1:
            what = f"carlini needs images of at least 16x16, not size={size}, where it does not pad."
            raise ArchitectureError(what, "Pass --arch-arg padding=1.")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=padding)
        self.conv2 = nn.Conv2d(width, width, 3, padding=padding)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=padding)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, padding=padding)
        self.fc1 = nn.Linear(2 * width * side * side, dense)
        self.fc2 = nn.Linear(dense, dense)
        self.fc3 = nn.Linear(dense, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.max_pool2d(F.relu(self.conv4(F.relu(self.conv3(x)))), 2).flatten(1)
        logits: torch.Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
        return logits
