"""The papers' networks: shapes, the parameter counts that the papers give, and how they start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from specdiag.errors import ArchitectureError
from specdiag.loading.architectures import build, input_shape, match, network_for
from specdiag.loading.networks.resnet_cifar import Block

FLATTENED = 128 * 25 * 256
# spec, arguments, image, parameters: Zhang et al. 2017 Table 1 (28x28 centres), Carlini and Wagner's layers counted
# by hand, torchvision's Wide ResNet-50-2 less what was taken out
COUNTS: list[tuple[str, dict[str, Any], int, int]] = [
    ("alexnet-zhang", {"size": 28}, 28, 1_387_786),
    ("inception-zhang", {"norm": "none"}, 28, 1_649_402),
    ("inception-zhang", {}, 28, 1_649_402 + 1_712),
    ("mlp", {"sizes": [2352, 512, 10], "activation": "elu"}, 28, 1_209_866),
    ("carlini", {}, 28, 312_202),
    (
        "carlini",
        {"channels": 3, "size": 32},
        32,
        28 * 64 + 36_928 + 73_856 + 147_584 + FLATTENED + 256 + 65_792 + 2_570,
    ),
    ("elunet", {}, 28, 65 * 64 + 128 * 2305 + 128 * 3201 + 1_290),
    ("strided6", {"norm": "none"}, 32, 28 * 64 + 5 * 64 * 577 + 650),
    ("dilated8", {"classes": 12}, 32, 27 * 64 + 7 * 64 * 576 + 16 * 64 + 65 * 12),
    ("dilated8", {"classes": 12, "size": 128}, 128, 27 * 64 + 7 * 64 * 576 + 16 * 64 + 65 * 12),
    ("pool6", {"pool": "strided"}, 32, 27 * 64 + 5 * 64 * 576 + 12 * 64 + 650),
    (
        "wrn50-2",
        {"classes": 200},
        64,
        68_883_240 - 49 * 3 * 64 + 9 * 3 * 64 - 2049 * 1000 + 2049 * 200,
    ),
    ("resnet20", {"norm": "none"}, 32, 269_722 - 2 * (7 * 16 + 6 * 32 + 6 * 64)),
]


@pytest.mark.parametrize(("spec", "args", "size", "count"), COUNTS)
def test_parameters_of_the_papers(spec: str, args: dict[str, Any], size: int, count: int) -> None:
    network = build(spec, args).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    channels = (input_shape(spec, args) or (3,))[0] if spec != "mlp" else 3
    with torch.no_grad():
        assert network(torch.rand(2, channels, size, size)).shape == (2, args.get("classes", 10))


SIZES: list[tuple[str, dict[str, Any]]] = [
    *(
        (spec, {"size": size, "width": 4, "norm": norm})
        for spec in ("strided6", "dilated8", "pool6")
        for size in (8, 32, 64, 256)
        for norm in ("batch", "none")
    ),
    *(
        ("pool6", {"size": size, "width": 4, "pool": pool})
        for pool in ("avg", "strided", "max")
        for size in (16, 28)
    ),
    ("strided6", {"size": 28, "width": 4}),
    ("pool6", {"size": 16, "width": 4, "padding_mode": "circular"}),
    *(("carlini", {"size": size, "channels": 3, "width": 4, "dense": 5}) for size in (16, 28, 32)),
    ("carlini", {"size": 8, "channels": 3, "width": 4, "dense": 5, "padding": 1}),
    *(("elunet", {"size": size, "channels": 3, "width": 4}) for size in (8, 16, 27, 28, 32)),
    *(("alexnet-zhang", {"size": size, "width": 4, "activation": "elu"}) for size in (8, 28, 32)),
    ("alexnet-zhang", {"size": 32, "width": 4, "lrn": False}),
    ("alexnet-zhang", {"size": 32, "width": 4, "norm": "batch"}),
    *(("inception-zhang", {"size": size, "activation": "elu"}) for size in (8, 32)),
    ("cnn4", {"size": 8, "channels": 3, "norm": "none"}),
    ("cnn7", {"size": 32, "width": 4, "norm": "none"}),
    ("resnet20", {"width": 4, "norm": "none", "init": "fixup"}),
    ("resnet20", {"width": 4, "norm": "none", "shortcut": "B"}),
]


@pytest.mark.parametrize(("spec", "args"), SIZES)
def test_sizes_and_their_weights_find_them(spec: str, args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    size = args.get("size", 32)
    network = build(spec, args).eval()
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()
    tensors = network.state_dict()
    found = match(tensors)
    assert spec in {entry.spec for entry in found}
    rebuilt, coverage = network_for(tensors, spec, args)
    assert coverage.matched == coverage.total
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(x), logits)


def test_only_one_reading_of_networks_without_batch_norm() -> None:
    for spec, args in (("cnn4", {"width": 5, "norm": "none"}), ("resnet20", {"norm": "none"})):
        assert [entry.spec for entry in match(build(spec, args).state_dict())] == [spec]


def test_shapes_that_fit_several_functions_are_all_named() -> None:
    found = match(build("pool6", {"pool": "max"}).state_dict())
    assert [(entry.spec, entry.args.get("pool")) for entry in found] == [
        ("strided6", None),
        ("pool6", "avg"),
        ("pool6", "strided"),
        ("pool6", "max"),
    ]


def test_fixup_starts_every_branch_at_zero() -> None:
    torch.manual_seed(0)
    network = build("resnet20", {"norm": "none", "init": "fixup"})
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    assert len(blocks) == 9
    for block in blocks:
        assert not block.conv2.weight.any()
        fan_in = block.conv1.weight[0].numel()
        # He's deviation, damped by L^(-1 / (2 m - 2)) for m = 2 layers in L = 9 branches
        assert float(block.conv1.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5 / 3, rel=0.05)
    assert not network.linear.weight.any()
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(blocks[0](x), x)


def test_inputs_keep_their_size_through_networks_without_batch_norm() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 32, 32)
    for spec in ("cnn7", "resnet20"):
        deviation = float(build(spec, {"norm": "none"})(x).detach().std())
        assert 0.05 < deviation < 50, spec


def test_the_activation_is_the_one_asked_for() -> None:
    torch.manual_seed(0)
    relu, elu = build("mlp", {"sizes": [3, 4, 2]}), build("mlp", {"sizes": [3, 4, 2], "activation": "elu"})
    elu.load_state_dict(relu.state_dict())
    x = torch.randn(5, 3)
    hidden = elu.hidden[0](x)
    assert torch.allclose(elu(x), elu.linear(torch.where(hidden > 0, hidden, torch.expm1(hidden))))
    assert torch.equal(relu(x), relu.linear(hidden.clamp_min(0)))


def test_pools_differ_in_what_they_do() -> None:
    torch.manual_seed(0)
    networks = {pool: build("pool6", {"pool": pool, "width": 4}).eval() for pool in ("avg", "max", "strided")}
    for network in networks.values():
        network.load_state_dict(networks["avg"].state_dict())
    x = torch.rand(1, 3, 32, 32)
    outputs = [network(x) for network in networks.values()]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    strides = [module.stride for module in networks["strided"].modules() if isinstance(module, nn.Conv2d)]
    assert strides == [(1, 1), (2, 2)] * 3


@pytest.mark.parametrize(
    ("spec", "args", "words"),
    [
        ("resnet20", {"init": "fixup"}, "norm=none"),
        ("resnet20", {"norm": "layer"}, "'batch' or 'none'"),
        ("cnn4", {"norm": True}, "'batch' or 'none'"),
        ("pool6", {"pool": "mean"}, "avg"),
        ("strided6", {"size": 4}, "8x8"),
        ("carlini", {"size": 8}, "padding=1"),
        ("mlp", {"activation": "tanh"}, "'relu' or 'elu'"),
        ("wrn50-2", {"size": 4}, "8x8"),
        ("elunet", {"size": 2}, "4x4"),
    ],
)
def test_arguments_that_cannot_be_meant(spec: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchitectureError, match=words):
        build(spec, args)
