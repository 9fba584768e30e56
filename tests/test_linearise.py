"""J v by the frozen pass against forward-mode differentiation and against the adjoint."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from specdiag.errors import ModelError
from specdiag.linearise import Linearised

NETWORKS = {
    "resnet18": 48,
    "mobilenet_v3_small": 48,
    "densenet121": 32,
    "convnext_tiny": 32,
    "efficientnet_b0": 32,
    "shufflenet_v2_x0_5": 48,
    "squeezenet1_1": 48,
    "swin_t": 64,
    "googlenet": 32,
    "mnasnet0_5": 32,
    "regnet_y_400mf": 32,
}


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    extra = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **extra).eval().double().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 2)
            module.bias.normal_(0, 0.1)
    return network


def pushed(frozen: Linearised, v: torch.Tensor) -> torch.Tensor:
    """The product, twice: the first runs the network, the second what was written down of it, around another one."""
    first, given = frozen.jvp(v), v.clone()
    other = frozen.jvp(torch.randn_like(v))
    assert other.shape == first.shape
    assert not torch.equal(other, first)
    assert torch.equal(frozen.jvp(v), first)
    assert torch.equal(v, given)
    return first


def close(a: torch.Tensor, b: torch.Tensor, slack: float = 1e-12) -> bool:
    return float((a - b).abs().max()) <= slack * float(b.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_forward_mode(name: str) -> None:
    network, side = network_of(name), NETWORKS[name]
    x, v = torch.randn(2, 2, 3, side, side, dtype=torch.float64).unbind()
    frozen = Linearised(network, x)
    assert torch.equal(frozen.value, network(x))
    assert close(pushed(frozen, v), torch.func.jvp(network, (x,), (v,))[1])
    # a second product from the same record, and many vectors at one sample
    one = Linearised(network, x[:1])
    many = torch.cat([v, -2 * v[:1]])
    expected = torch.func.jvp(network, (x[:1].expand(3, -1, -1, -1).contiguous(),), (many,))[1]
    assert close(pushed(one, many), expected)
    assert close(one.jvp(v[:1]), expected[:1])


def test_attention_network_by_its_adjoint() -> None:
    """Forward mode cannot differentiate the fused attention; <u, J v> = <J^T u, v> can be checked all the same."""
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval().double()
    network.heads.head.weight.data.normal_()
    network.requires_grad_(False)
    x, v = torch.randn(2, 3, 3, 32, 32, dtype=torch.float64).unbind()
    u = torch.randn(3, 5, dtype=torch.float64)
    leaf = x.clone().requires_grad_(True)
    (pulled,) = torch.autograd.grad(network(leaf), leaf, u)
    left = (u * Linearised(network, x).jvp(v)).sum(1)
    assert close(left, (pulled * v).flatten(1).sum(1))


class SequenceFirst(nn.Module):
    """Attention over the sequence as the first axis, and over several sequence lengths equal to the batch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.attention = nn.MultiheadAttention(8, 2, batch_first=kind == "batch")
        self.recurrent = nn.LSTM(8, 6, 2, bidirectional=True)
        self.last = nn.Linear(8 if kind != "lstm" else 12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x if self.kind == "batch" else x.transpose(0, 1)
        z = self.recurrent(z)[0] if self.kind == "lstm" else self.attention(z, z, z, need_weights=False)[0]
        return self.last(z.mean(1 if self.kind == "batch" else 0).tanh())


@pytest.mark.parametrize("kind", ["batch", "sequence", "lstm"])
@pytest.mark.parametrize("many", [1, 4, 5, 10])
def test_many_tangents_at_one_sample_of_an_attention(kind: str, many: int) -> None:
    """5 is the length of the sequence, 4 and 10 are not: the axis of the samples is told from the lengths."""
    torch.manual_seed(0)
    network = SequenceFirst(kind).double().eval().requires_grad_(False)
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    v = torch.randn(many, 5, 8, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(network, x).flatten(2)[0].reshape(3, -1)
    assert close(pushed(Linearised(network, x), v), v.flatten(1) @ matrix.T)


def test_many_tangents_at_one_image_of_a_vision_transformer() -> None:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).double().eval()
    network.heads.head.weight.data.normal_()
    network.requires_grad_(False)
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    v = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(network, x).reshape(5, -1)
    assert close(pushed(Linearised(network, x), v), v.flatten(1) @ matrix.T)


class Mixed(nn.Module):
    """In-place functions, two-tensor products, constants, padding, indexing, a where and a comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.last = nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.first(x)
        shortcut = z
        z = F.relu(z, inplace=True)
        z += shortcut
        z = 1 - z * self.scale / 2
        z = F.pad(z, (1, 1, 0, 0), value=3.0)
        z = z * torch.sigmoid(z)
        z = torch.where(z > 0.1, z, 0.2 * z)
        z = torch.cat([z[:, :2], torch.ones_like(z[:, :1]), z[:, 2:]], 1)
        z = F.adaptive_avg_pool2d(F.max_pool2d(z, 2), 2).flatten(1)
        z = z / z.square().mean(1, keepdim=True).sqrt()
        return self.last(2.0 / (1.0 + z.exp()))


def test_mixed_operations() -> None:
    torch.manual_seed(1)
    network = Mixed().double().requires_grad_(False)
    x, v = torch.randn(2, 3, 2, 6, 6, dtype=torch.float64).unbind()
    # forward mode cannot see through an in-place write to a tensor used twice; central differences can
    step = 1e-6
    expected = (network(x + step * v) - network(x - step * v)) / (2 * step)
    assert close(pushed(Linearised(network, x), v), expected, 1e-6)


def test_linear_in_v_and_zero_at_zero() -> None:
    network = network_of("resnet18")
    x, v, w = torch.randn(3, 1, 3, 48, 48, dtype=torch.float64).unbind()
    frozen = Linearised(network, x)
    assert close(frozen.jvp(2 * v - 3 * w), 2 * frozen.jvp(v) - 3 * frozen.jvp(w))
    assert float(frozen.jvp(torch.zeros_like(v)).abs().max()) == 0


def test_later_products_do_without_the_network() -> None:
    class Counted(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            first, second = x.T.chunk(2)
            return (first * second.tanh() + x.T[:1]).T.flatten(1)

    network = Counted()
    x, v = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    frozen = Linearised(network, x)
    expected = torch.func.jvp(network, (x,), (v,))[1]
    before = network.calls
    assert close(pushed(frozen, v), expected)
    assert network.calls == before + 1
    # another shape or dtype is another program
    assert close(frozen.jvp(v.float()), expected.float(), 1e-6)
    assert network.calls == before + 2


def test_control_flow_on_values_is_explained() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x.flatten(1) if self.calls == 1 else x.exp().flatten(1)

    frozen = Linearised(Forked(), torch.ones(1, 2))
    with pytest.raises(ModelError, match="another path"):
        frozen.jvp(torch.ones(1, 2))
