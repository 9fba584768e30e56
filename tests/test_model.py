"""A frozen network in input space: spaces, layers, features, and what the probe refuses."""

from __future__ import annotations

import pytest
import torch
from nets import small_cnn
from torch import nn

from specdiag.errors import DataError, ModelError, UsageError
from specdiag.model import Model, Normalisation

X = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()
CHANNEL = Normalisation("channel", (0.4, 0.5), (0.2, 0.3))


def model(network: nn.Module | None = None, shape: tuple[int, ...] = (2, 8, 8), **kwargs: object) -> Model:
    return Model(network or small_cnn(), shape, dtype=torch.float64, **kwargs)  # type: ignore[arg-type]


def test_normalisation_is_inside() -> None:
    plain = small_cnn().double().eval()
    mean, std = torch.tensor([0.4, 0.5]).view(1, 2, 1, 1), torch.tensor([0.2, 0.3]).view(1, 2, 1, 1)
    expected = plain((X - mean.double()) / std.double())
    assert torch.allclose(model(normalisation=CHANNEL).logits(X), expected, rtol=1e-6)
    outside = model(normalisation=CHANNEL, space="model")
    assert torch.allclose(outside.logits(outside.to_model_space(X)), expected, rtol=1e-6)


def test_per_image_normalisation() -> None:
    scaled = model(normalisation=Normalisation("per-image"))
    assert torch.allclose(scaled.logits(X), scaled.logits(3 * X - 1), rtol=1e-9)
    constant = torch.full((1, 2, 8, 8), 0.5, dtype=torch.float64)
    assert bool(torch.isfinite(scaled.logits(constant)).all())


def test_layers_features_and_head() -> None:
    found = model()
    assert found.facts.head == "10"
    assert (found.outputs, found.inputs, found.facts.features) == (4, 128, 7)
    features = found.forward(X, "features")
    assert torch.allclose(
        features @ found.head_weight().T + found.fast.get_submodule("10").bias, found.logits(X)
    )
    assert found.forward(X, "2").shape == (3, 6 * 64)
    # a folded convolution still answers with what its own path means
    plain = small_cnn().double().eval()
    assert torch.allclose(found.forward(X, "0"), plain[0](X).flatten(1))
    assert torch.allclose(found.forward(X, "1"), plain[1](plain[0](X)).flatten(1))
    assert found.size_of("features") == 7
    with pytest.raises(UsageError, match="no layer 'layer3'"):
        found.forward(X, "layer3")


def test_no_features_without_a_linear_head() -> None:
    headless = model(nn.Sequential(nn.Conv2d(2, 3, 8), nn.Flatten()))
    with pytest.raises(ModelError, match="does not end in a linear layer"):
        headless.forward(X, "features")


def test_nothing_is_left_on_the_network() -> None:
    network = small_cnn()
    found = model(network)
    found.forward(X, "features")
    with pytest.raises(RuntimeError):
        found.forward(torch.rand(3, 5, 8, 8).double(), "features")
    for each in (found.network, found.fast):
        for module in each.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
    assert not any(parameter.requires_grad for parameter in found.fast.parameters())
    assert not found.fast.training


class Blamed(nn.Module):
    def __init__(self, broken: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.broken = broken
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.broken(self.first(x)))


class Infinite(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / torch.zeros_like(x)


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Mixing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Infinite(), "NaN or infinite values: first at 'broken' .Infinite"),
        (Noisy(), "answers differently twice: first at 'broken' .Noisy"),
        (Mixing(), "depends on the others of its batch: first at 'broken' .Mixing"),
        (nn.BatchNorm1d(4, track_running_stats=False), "depends on the others .* 'broken' .BatchNorm1d"),
    ],
)
def test_the_probe_names_the_module_to_blame(broken: nn.Module, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        model(Blamed(broken), (4,))


def test_wrong_shapes_are_explained() -> None:
    with pytest.raises(DataError, match="cannot run on inputs of shape"):
        model(shape=(3, 8, 8))
    with pytest.raises(DataError, match="The data have shape"):
        model().to_input(X[:, :1])
    with pytest.raises(UsageError, match="one per channel"):
        model(normalisation=Normalisation("channel", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0)))


def test_random_twin_is_keyed_by_the_seed() -> None:
    found = model(factory=small_cnn_anew)
    one, same, other = found.random_twin(3), found.random_twin(3), found.random_twin(4)
    assert torch.equal(one.logits(X), same.logits(X))
    assert not torch.allclose(one.logits(X), other.logits(X))
    assert not torch.allclose(one.logits(X), found.logits(X))


def small_cnn_anew() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
