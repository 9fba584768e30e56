"""Architectures: known sizes and accuracies, matching by names and shapes, and what a user can get wrong."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from specdiag.errors import ArchitectureError, MissingExtra
from specdiag.loading import architectures, factories, guesses, matching
from specdiag.loading.architectures import Architecture, build, input_shape, load_weights, match, network_for
from specdiag.loading.checkpoints import read_checkpoint
from specdiag.loading.datasets import load_data
from specdiag.loading.torchvision_names import FINGERPRINTS

# number of parameters, by hand: convolutions without bias, two per channel for BatchNorm, linear with bias
PARAMETERS = {
    ("resnet20", ()): 269_722,
    ("resnet56", ()): 853_018,
    ("resnet110", ()): 1_727_962,
    ("lenet", ()): 61_706,
    ("mlp", (("sizes", (3, 2)),)): 8,
    ("cnn4", (("width", 16),)): (9 * 1 * 16 + 9 * 16 * 16 + 9 * 16 * 32 + 9 * 32 * 32) + 2 * (16 + 16 + 32 + 32)
    + 10 * (32 * 4 + 1),
    ("cnn7", (("width", 4),)): 9 * (3 * 4 + 4 * 4 + 4 * 8 + 8 * 8 + 8 * 16 + 16 * 16 + 16 * 32)
    + 2 * (4 + 4 + 8 + 8 + 16 + 16 + 32) + 10 * 33,
}  # fmt: skip


@pytest.mark.parametrize(("spec", "args"), PARAMETERS)
def test_parameters_count(spec: str, args: tuple) -> None:
    network = build(spec, dict(args))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[spec, args]


@pytest.mark.parametrize("spec", [name for name in architectures.known() if ":" not in name])
def test_builtin_networks(spec: str) -> None:
    network = build(spec).eval()
    shape = input_shape(spec)
    x = torch.rand(3, *shape)
    before = x.clone()
    logits = network(x)
    assert logits.shape == (3, 10)
    assert torch.equal(x, before)
    # samples do not see one another (bytes may differ between batch sizes)
    assert torch.allclose(network(x[1:2]), logits[1:2], atol=1e-5)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    assert last.out_features == 10
    assert any(spec == found.spec for found in match(network.state_dict()))


def test_equal_seeds_give_equal_networks() -> None:
    def draw() -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return build("cnn4").linear.weight

    assert torch.equal(draw(), draw())


def test_public_resnet20_on_its_data(assets: Path) -> None:
    checkpoint = read_checkpoint(assets / "checkpoints/cifar10-resnet20.th")
    started = time.perf_counter()
    found = match(checkpoint.tensors)
    assert time.perf_counter() - started < 2
    assert found == [Architecture("resnet20", {})]
    network, coverage = network_for(checkpoint.tensors, found[0].spec, found[0].args)
    assert str(coverage) == "97/97 tensors matched"
    data = load_data(
        str(assets / "data/cifar10-test-1k.npz"), samples=None, input_shape=input_shape("resnet20")
    )
    mean, std = (
        np.array(row, np.float32).reshape(3, 1, 1) for row in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        predicted = network.eval()(torch.from_numpy((data.x - mean) / std)).argmax(1).numpy()
    assert (predicted == data.y).mean() >= 0.90
    assert architectures.ready_command(checkpoint.path, found[0], "x.npz") == (
        f"specdiag spectrum {checkpoint.path} --arch resnet20 --data x.npz "
        "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
    )


@pytest.mark.parametrize(
    ("spec", "args"),
    [
        ("cnn7", {"width": 12, "classes": 7, "channels": 3, "size": 32}),
        ("cnn7", {"width": 4, "classes": 10, "channels": 1, "size": 48}),
        ("cnn4", {"width": 5, "classes": 3, "channels": 2, "size": 28}),
        ("mlp", {"sizes": [12, 7, 5, 4]}),
        ("mlp", {"sizes": [6, 2], "bias": False}),
        ("resnet32", {"width": 8, "classes": 100}),
        ("resnet20", {"shortcut": "B"}),
        ("torchvision:resnet18", {}),
        ("torchvision:mobilenet_v2", {"num_classes": 10}),
        ("torchvision:regnet_y_400mf", {"num_classes": 5}),
        ("torchvision:vit_b_32", {}),
        ("torchvision:squeezenet1_1", {"num_classes": 4}),
        ("torchvision:densenet121", {"num_classes": 3}),
    ],
)
def test_weights_find_their_architecture(spec: str, args: dict) -> None:
    tensors = build(spec, args).state_dict()
    started = time.perf_counter()
    assert match(tensors) == [Architecture(spec, args)]
    assert time.perf_counter() - started < 2
    # as an old file has them: without BatchNorm's counters
    old = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    assert match(old) == [Architecture(spec, args)]
    assert match({f"model.net.{name}": value for name, value in old.items()}) == [Architecture(spec, args)]
    changed = {**old, next(iter(old)): torch.zeros(1, 2, 3)}
    assert match(changed) == []


def test_padding_of_lenet_is_not_guessed() -> None:
    found = match(build("lenet", {"classes": 10}).state_dict())
    assert [entry.args["size"] for entry in found] == [28, 32]


def test_wide_and_plain_resnet50_are_told_apart() -> None:
    for name in ("resnet50", "resnext50_32x4d", "wide_resnet50_2"):
        with torch.device("meta"):
            tensors = build(f"torchvision:{name}").state_dict()
        assert match(tensors) == [Architecture(f"torchvision:{name}", {})]


def test_the_table_of_torchvision_is_up_to_date() -> None:
    for key, names in FINGERPRINTS.items():
        for name in names:
            assert (
                guesses.fingerprint(list(matching.skeleton(factories.factory(f"torchvision:{name}")).shapes))
                == key
            )


def test_skeleton_leaves_the_generator_alone_and_costs_no_memory() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    shapes = matching.skeleton(lambda: build("mlp", {"sizes": [10**6, 10**6, 10]})).shapes
    assert shapes["hidden.0.weight"] == (10**6, 10**6)
    assert torch.equal(torch.rand(1), expected)


def test_absurd_arguments_of_a_file_cost_no_memory() -> None:
    with pytest.raises(ArchitectureError, match="do not fit mlp"):
        network_for({"linear.weight": torch.ones(2, 2)}, "mlp", {"sizes": [10**6, 10**6, 10]})


def test_misfit_lists_at_most_five_tensors() -> None:
    tensors = dict(build("resnet20").state_dict())
    tensors["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    del tensors["bn1.bias"]
    tensors["surplus"] = torch.zeros(2)
    network = build("resnet20")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ArchitectureError) as caught:
        load_weights(network, tensors)
    text = str(caught.value)
    assert "95/97 tensors matched, 3 differ" in text
    assert "conv1.weight (file 16x1x3x3, network 16x3x3x3)" in text
    assert "bn1.bias (missing in the file)" in text
    assert "surplus (not in the network)" in text
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    with pytest.raises(ArchitectureError, match=r"and \d+ more\."):
        load_weights(build("resnet32"), tensors)


@pytest.mark.parametrize(
    "front", ["model.", "net.", "backbone.", "encoder.", "model.net.", "backbone.model."]
)
def test_outer_names_are_stripped_only_where_that_fits(front: str) -> None:
    tensors = {front + name: value for name, value in build("mlp").state_dict().items()}
    coverage = load_weights(build("mlp"), tensors)
    assert "".join(coverage.stripped) == front
    assert str(coverage) == "4/4 tensors matched"
    with pytest.raises(ArchitectureError):
        load_weights(build("mlp"), {**tensors, "loss.scale": torch.ones(1)})


def test_a_network_that_has_such_a_name_itself_keeps_it() -> None:
    network = nn.Module()
    network.model = build("mlp")
    assert load_weights(network, network.state_dict()).stripped == ()


def test_a_buffer_that_is_computed_need_not_be_loaded() -> None:
    network = nn.Linear(3, 2)
    network.register_buffer("table", torch.ones(3), persistent=False)
    assert load_weights(network, {**network.state_dict(), "table": torch.zeros(3)}).matched == 2
    assert torch.equal(network.table, torch.ones(3))


def test_tied_weights_that_a_file_keeps_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 4, bias=False)
            self.head = nn.Linear(3, 4, bias=False)
            self.head.weight = self.embed.weight

    network = Tied()
    assert str(load_weights(network, {"embed.weight": torch.ones(4, 3)})) == "2/2 tensors matched"
    assert torch.equal(network.head.weight, torch.ones(4, 3))
    assert network.head.weight is network.embed.weight


def test_data_parallel_around_a_part() -> None:
    class Net(nn.Module):
        def __init__(self, parallel: bool) -> None:
            super().__init__()
            features = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
            self.features = nn.DataParallel(features) if parallel else features
            self.head = nn.Linear(4, 2)

    assert load_weights(Net(False), Net(True).state_dict()).stripped == ("module.",)


def test_a_part_that_fits_is_named() -> None:
    tensors = build("mlp").state_dict()
    both = {f"encoder_{side}.{name}": value for side in "qk" for name, value in tensors.items()}
    with pytest.raises(ArchitectureError, match="--weights encoder_q"):
        load_weights(build("mlp"), both)


def test_input_normalisation_of_a_wrapper_is_handed_back() -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), torch.tensor([0.2, 0.1, 0.3]).view(1, 3, 1, 1)
    plain = build("resnet20").state_dict()
    robustness = {
        "normalizer.new_mean": mean, "normalizer.new_std": std, "attacker.normalize.new_mean": mean,
        "attacker.normalize.new_std": std,
        **{f"{front}model.{name}": value for front in ("", "attacker.") for name, value in plain.items()},
    }  # fmt: skip
    zoo = {"mu": mean, "sigma": std, **plain}
    sequential = {"0.mean": mean, "0.std": std, **{f"1.{name}": value for name, value in plain.items()}}
    for tensors in (robustness, zoo, sequential):
        coverage = load_weights(build("resnet20"), tensors)
        assert coverage.matched == 97 + 19
        assert coverage.normalise == {
            "mean": pytest.approx([0.5, 0.4, 0.3]),
            "std": pytest.approx([0.2, 0.1, 0.3]),
        }
        assert match(tensors) == [Architecture("resnet20", {})]
    robustness["attacker.model.conv1.weight"] = robustness["attacker.model.conv1.weight"] + 1
    with pytest.raises(ArchitectureError):
        load_weights(build("resnet20"), robustness)


def reparametrised(kind: str) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)]
    for layer in (layers[0], layers[1], layers[3]):
        if kind == "old spectral":
            nn.utils.spectral_norm(layer)
        elif kind == "new spectral":
            nn.utils.parametrizations.spectral_norm(layer)
        elif kind == "old weight norm":
            nn.utils.weight_norm(layer)
        elif kind == "scalar weight norm":
            nn.utils.weight_norm(layer, dim=None)
        elif kind == "new weight norm":
            nn.utils.parametrizations.weight_norm(layer)
        else:
            prune.l1_unstructured(layer, "weight", amount=0.3)
            prune.random_unstructured(layer, "bias", amount=1)
    network = nn.Sequential(*layers)
    network.train()
    for _ in range(20):
        network(torch.rand(2, 3, 6, 6))
    return network.eval()


KINDS = ("old spectral", "new spectral", "old weight norm", "scalar weight norm", "new weight norm", "pruned")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_reparametrised_weights_are_folded(kind: str, tmp_path: Path) -> None:
    network = reparametrised(kind)
    path = tmp_path / "w.pt"
    torch.save(network.state_dict(), path)
    checkpoint = read_checkpoint(path)
    assert any(finding.startswith("SD331") for finding in checkpoint.findings)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()
    assert list(checkpoint.tensors) != []
    load_weights(plain, checkpoint.tensors)
    x = torch.rand(2, 3, 6, 6)
    assert torch.allclose(plain(x), network(x), atol=1e-6)
    # a factory that builds the reparametrised network gets the same function
    torch.manual_seed(5)
    again = reparametrised(kind)
    for parameter in again.parameters():
        nn.init.normal_(parameter)
    load_weights(again, checkpoint.tensors)
    assert torch.allclose(again(x), network(x), atol=1e-6)


def test_unknown_names_show_the_nearest() -> None:
    cases = {
        "resnet2": "resnet20",
        "torchvision:resnet5": "resnet50",
        "resnet50": "torchvision:resnet50",
        "nonsense_q": "path/to/file.py:factory",
        "nopackage.sub:make": "no module named 'nopackage'",
        "missing.py:make": "There is no file missing.py",
        "torchvision.nope:make": "no module named",
        "torch.nn:Liner": "Linear",
    }
    for spec, hint in cases.items():
        with pytest.raises(ArchitectureError) as caught:
            build(spec)
        assert hint in str(caught.value), str(caught.value)


def test_bad_arguments_are_named() -> None:
    cases = [
        ("cnn7", {"wdth": 3}, "no argument 'wdth'"),
        ("cnn7", {"size": 16}, "size=16"),
        ("cnn7", {"width": "big"}, "width='big'"),
        ("mlp", {"sizes": "a"}, "sizes='a'"),
        ("resnet20", {"shortcut": "C"}, "shortcut='C'"),
        ("resnet20", {"depth": 8}, "depth"),
        ("torchvision:resnet18", {"num_clases": 3}, "num_clases"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "'weights'"),
        ("torch.nn:Linear", {"in_features": 3}, "needs the argument 'out_features'"),
    ]
    for spec, args, words in cases:
        with pytest.raises(ArchitectureError) as caught:
            build(spec, args)
        assert words in str(caught.value), str(caught.value)


def test_factories_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper_of_net.py").write_text("SIZE = 4\n")
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\nfrom helper_of_net import SIZE\n"
        "def make(classes=3):\n    return nn.Linear(SIZE, classes)\n"
        "def wrong():\n    return 3\n"
        "def fails():\n    raise KeyError('boom')\n"
        "network = nn.Linear(2, 2)\nnumber = 3\n"
    )
    path_before = list(sys.path)
    assert build(f"{file}:make", {"classes": 5}).out_features == 5
    assert isinstance(build(f"{file}:network"), nn.Linear)
    assert sys.path == path_before
    for name, words in {
        "wrong": "returned a int",
        "fails": "KeyError",
        "mak": "Did you mean make",
        "number": "int",
    }.items():
        with pytest.raises(ArchitectureError, match=words):
            build(f"{file}:{name}")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ArchitectureError, match="nothing_of_that_name"):
        build(f"{tmp_path / 'broken.py'}:make")
    monkeypatch.chdir(tmp_path)
    assert build("helper_net_pkg:make").out_features == 3 if _package(tmp_path) else None
    assert factories.runs_code("net.py:make")
    assert factories.runs_code("pkg.net:make")
    assert not factories.runs_code("torchvision:resnet18")
    assert not factories.runs_code("cnn7")


def _package(folder: Path) -> bool:
    (folder / "helper_net_pkg.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Linear(1, 3)\n"
    )
    return True


def test_arguments_from_text() -> None:
    texts = [
        "width=32",
        "norm=batch",
        "sizes=[64, 128,10]",
        "p=0.5",
        "on=true",
        'name="a b"',
        "empty=",
        "x=1.2.3",
    ]
    assert factories.parse_arch_args(texts) == {
        "width": 32, "norm": "batch", "sizes": [64, 128, 10], "p": 0.5, "on": True, "name": "a b", "empty": "",
        "x": "1.2.3",
    }  # fmt: skip
    for bad in (["width"], ["=3"], ["a b=3"], ["a=1", "a=2"]):
        with pytest.raises(ArchitectureError):
            factories.parse_arch_args(bad)


def test_arguments_survive_the_ready_command() -> None:
    args = {"sizes": [4, 5], "bias": False, "name": 'it\'s "x"', "p": 0.5}
    import shlex

    words = shlex.split(str(Architecture("mlp", args)))
    assert words[:2] == ["--arch", "mlp"]
    assert factories.parse_arch_args(words[3::2]) == args


def test_input_shapes() -> None:
    assert input_shape("resnet20") == (3, 32, 32)
    assert input_shape("cnn7", {"channels": 1, "size": 64}) == (1, 64, 64)
    assert input_shape("mlp", {"sizes": [7, 2]}) == (7,)
    assert input_shape("torchvision:resnet18") == (3, 224, 224)
    assert input_shape("torchvision:inception_v3") == (3, 299, 299)
    assert input_shape("file.py:make") is None


def test_timm() -> None:
    pytest.importorskip("timm")
    network = build("timm:resnet10t", {"num_classes": 4})
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 4)
    assert input_shape("timm:resnet10t") == (3, 176, 176)
    with pytest.raises(ArchitectureError, match="Did you mean"):
        build("timm:resnet1000t")
    with pytest.raises(ArchitectureError, match="downloaded"):
        build("timm:hf-hub:someone/model")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"specdiag\[timm\]"):
        build("timm:resnet18")


def test_a_factory_may_be_a_namespace_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_up_nets")
    module.make = lambda width=2: nn.Linear(width, width)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_nets", module)
    assert build("made_up_nets:make", {"width": 6}).in_features == 6
