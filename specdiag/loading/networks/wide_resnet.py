"""WRN-50-2 with bottlenecks for 64x64 images (wen2020 D.2; Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from torch import nn

from specdiag.errors import ArchitectureError


def wrn50_2(classes: int = 10, channels: int = 3, size: int = 64) -> nn.Module:
    """Wide ResNet-50-2 of torchvision for small images: a first 3x3 convolution of stride 1, no max-pool after it.

    Convolutions start from Glorot and Bengio's uniform weights, as in the paper. Inputs (N, channels, H, W),
    64x64 in the paper (the network takes other sizes too); Tiny ImageNet has classes=200.
    """
    if size < 8:
        raise ArchitectureError(f"wrn50-2 needs images of at least 8x8, not size={size}.", "Use cnn4 or mlp.")
    from torchvision.models import wide_resnet50_2

    network: nn.Module = wide_resnet50_2(weights=None, num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    return network
