"""A small example of each family of networks goes through `spectrum`: stored, by J J^T and by Krylov, and agrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import specdiag
from specdiag.jacobian.gram import by_gram
from specdiag.jacobian.rows import by_autograd
from specdiag.jacobian.topk import by_krylov
from specdiag.linalg.svd import svd
from specdiag.loading.architectures import build
from specdiag.model import Model

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "torchvision:vit_b_16": ({}, 32),
    "torchvision:convnext_tiny": ({}, 32),
    "torchvision:densenet121": ({}, 32),
    "torchvision:efficientnet_b0": ({}, 32),
    "timm:vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "timm:convnext_atto": ({}, 32),
    "timm:densenet121": ({"block_config": [2, 2, 2, 2]}, 32),
    "timm:efficientnet_b0": ({}, 32),
    "timm:swin_tiny_patch4_window7_224": ({"img_size": 32}, 32),
}


class Recurrent(nn.Module):
    """A GRU or LSTM over the rows of an image."""

    def __init__(self, kind: Callable[..., nn.Module], bidirectional: bool) -> None:
        super().__init__()
        self.cell = kind(8, 6, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(12 if bidirectional else 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x[:, 0])[0][:, -1])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    return nn.Sequential(
        nn.Flatten(1, 2),
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def unequal_head(network: nn.Module) -> nn.Module:
    """Last layers drawn anew: some libraries start them at zero, where every Jacobian would be zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, std=0.1)
    return network


def agree(model: Model, layer: str = "logits") -> None:
    x = model.to_input(torch.rand(1, *model.input_shape, generator=torch.Generator().manual_seed(1)))
    stored = by_autograd(model, x, layer)
    values = svd(stored.matrix).values
    assert bool((values[:, 0] > 0).all())
    gram = by_gram(model, x, layer)
    assert bool(((gram.values - values).abs() <= gram.error + 1e-5 * values[:, :1]).all())
    starts = torch.randn(1, values.shape[1], generator=torch.Generator().manual_seed(2)).double()
    if len(starts[0]) == stored.matrix.shape[1]:
        top = by_krylov(model, x, 2, starts, layer)
        assert bool(((top.values - values[:, :2]).abs() <= 1e-3 * values[:, :2]).all())


@pytest.mark.parametrize("spec", CASES)
def test_families(spec: str) -> None:
    if spec.startswith("timm:"):
        pytest.importorskip("timm")
    arguments, size = CASES[spec]
    arguments = dict(arguments)
    torch.manual_seed(0)
    if spec == "torchvision:vit_b_16":
        from torchvision.models.vision_transformer import VisionTransformer

        network: nn.Module = VisionTransformer(
            image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4
        )
    else:
        network = build(spec, {"num_classes": 4, **arguments})
    agree(Model(unequal_head(network), (3, size, size)))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent(kind: Callable[..., nn.Module], bidirectional: bool) -> None:
    torch.manual_seed(0)
    agree(Model(Recurrent(kind, bidirectional), (1, 8, 8)))


def test_attention_and_its_inner_layers() -> None:
    torch.manual_seed(0)
    model = Model(encoder(), (1, 8, 8))
    agree(model)
    matrix = by_autograd(model, torch.rand(2, 1, 8, 8), "1.layers.0").matrix
    assert matrix.shape == (2, 64, 64)
    agree(model, "1.layers.0")


def test_a_segmentation_map_and_a_regression_head() -> None:
    torch.manual_seed(0)
    segmentation = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1))
    agree(Model(segmentation, (1, 6, 6)))
    regression = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 1))
    data = specdiag.load_data("random", samples=2, input_shape=(1, 6, 6))
    found = specdiag.analyze(Model(regression, (1, 6, 6)), data, "spectrum")
    assert found.singular_values.shape == (2, 1)
