"""BatchNorm folding: equal outputs, and only where nothing else uses the unnormalised values."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from specdiag.folding import fold_batchnorm


def shaken(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.2, 3)
            if module.weight is not None:
                module.weight.data.normal_()
                module.bias.data.normal_()
    return network.eval().double().requires_grad_(False)


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (4, 9)),
        (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (4, 7, 7)),
        (nn.Conv3d(2, 3, 2, bias=False), nn.BatchNorm3d(3), (2, 4, 4, 4)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False), (4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 2, stride=2), nn.BatchNorm1d(6), (4, 5)),
        (nn.Linear(5, 3), nn.BatchNorm1d(3), (5,)),
    ],
)
def test_each_kind_of_layer(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = shaken(nn.Sequential(layer, norm, nn.ReLU()))
    x = torch.randn(4, *shape, dtype=torch.float64)
    folded, pairs = fold_batchnorm(network, x[:1])
    assert pairs == {"0": "1"}
    assert isinstance(folded[1], nn.Identity)
    assert float((folded(x) - network(x)).abs().max()) < 1e-12 * float(network(x).abs().max())
    assert isinstance(network[1], nn.modules.batchnorm._BatchNorm), "the original is left alone"


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 20), ("densenet121", 59), ("mobilenet_v3_small", 34)]
)
def test_real_networks(name: str, count: int) -> None:
    torch.manual_seed(0)
    network = shaken(torchvision.models.get_model(name, weights=None))
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    folded, pairs = fold_batchnorm(network, x[:1])
    assert len(pairs) == count
    assert float((folded(x) - network(x)).abs().max()) < 1e-11 * float(network(x).abs().max())


def test_not_folded_where_the_raw_output_is_used_too() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.conv(x)
            return self.norm(z) + z

    network = shaken(Both())
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    folded, pairs = fold_batchnorm(network, x)
    assert pairs == {}
    assert torch.equal(folded(x), network(x))


def test_not_folded_where_a_layer_is_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.norm(self.conv(x)))

    assert fold_batchnorm(shaken(Twice()), torch.randn(1, 2, 3, 3, dtype=torch.float64))[1] == {}
