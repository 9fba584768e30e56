"""The small AlexNet of Zhang et al. (ICLR 2017), with ReLU there, with ReLU or ELU in farnia2019 5.3."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from specdiag.errors import ArchitectureError
from specdiag.loading.networks._parts import activation_named, check_norm


class AlexNetZhang(nn.Module):
    """Twice (5x5 convolution, activation, 3x3 max-pool of stride 2, local response normalisation), then 384, 192, classes.

    The paper's 1,387,786 parameters are those of width=64 on the 28x28 centres of CIFAR-10. lrn=false leaves
    the response normalisation out; norm=batch puts BatchNorm before every activation, the control of farnia2019 A.2.
    Inputs (N, channels, size, size).
    """

    def __init__(
        self,
        width: int = 64,
        classes: int = 10,
        channels: int = 3,
        size: int = 32,
        activation: str = "relu",
        lrn: bool = True,
        norm: str = "none",
    ) -> None:
        super().__init__()
        if size < 4:
            raise ArchitectureError(
                f"alexnet-zhang needs images of at least 4x4, not size={size}.", "Use mlp."
            )
        check_norm(norm)
        self.activation = activation_named(activation)
        side = (size + 1) // 2
        side = (side + 1) // 2
        self.conv1 = nn.Conv2d(channels, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, width, 5, padding=2)
        self.lrn = nn.LocalResponseNorm(9, alpha=1e-3, beta=0.75, k=1.0) if lrn else nn.Identity()
        self.fc1 = nn.Linear(width * side * side, 384)
        self.fc2 = nn.Linear(384, 192)
        self.linear = nn.Linear(192, classes)
        batch = norm == "batch"
        self.bn1 = nn.BatchNorm2d(width) if batch else nn.Identity()
        self.bn2 = nn.BatchNorm2d(width) if batch else nn.Identity()
        self.bn3 = nn.BatchNorm1d(384) if batch else nn.Identity()
        self.bn4 = nn.BatchNorm1d(192) if batch else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        for convolution, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            x = self.lrn(F.max_pool2d(self.activation(bn(convolution(x))), 3, stride=2, padding=1))
        x = self.activation(self.bn3(self.fc1(x.flatten(1))))
        logits: torch.Tensor = self.linear(self.activation(self.bn4(self.fc2(x))))
        return logits
