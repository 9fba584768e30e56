"""What a file says about itself is used: noted architectures, normalisation beside the network; and what is not said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import run

from specdiag.errors import ArchitectureError
from specdiag.jobs import Common, open_checkpoint, open_data, open_model
from specdiag.loading.architectures import build
from specdiag.loading.resolve import Wanted

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def robust(path: Path, seed: int = 0) -> Path:
    """As a robust-training library writes it: the network under `model.`, its normalisation beside it."""
    torch.manual_seed(seed)
    content = {f"module.model.{name}": value for name, value in build("resnet20").state_dict().items()}
    content["module.normalizer.new_mean"] = torch.tensor(MEAN).view(3, 1, 1)
    content["module.normalizer.new_std"] = torch.tensor(STD).view(3, 1, 1)
    torch.save({"model": content, "epoch": 3}, path)
    return path


def opened(path: Path, **wanted: object):
    common = Common(wanted=Wanted(data="random", **wanted), samples=2, device="cpu")  # type: ignore[arg-type]
    checkpoint, resolved = open_checkpoint(path, common, {})
    return open_model(checkpoint, resolved, open_data(common, resolved, path), common), resolved


def test_normalisation_beside_the_network_is_taken_and_said(tmp_path: Path) -> None:
    model, resolved = opened(robust(tmp_path / "w.pt"))
    assert model.normalisation.kind == "channel"
    assert model.normalisation.mean == pytest.approx(MEAN, abs=1e-6)
    assert model.normalisation.std == pytest.approx(STD, abs=1e-6)
    assert any("beside the network" in note for note in resolved.notes)
    torch.manual_seed(0)
    network = build("resnet20").eval()
    x = torch.rand(4, 3, 32, 32)
    expected = network((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    assert torch.allclose(model.logits(model.to_input(x)), expected, atol=1e-4)


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    model, resolved = opened(robust(tmp_path / "w.pt"), normalise="none")
    assert model.normalisation.kind == "none"
    assert resolved.stated


def test_a_network_that_normalises_by_itself_is_not_normalised_twice(tmp_path: Path) -> None:
    code = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.2))
        self.linear = nn.Linear(48, 2)
    def forward(self, x):
        return self.linear(((x - self.mean) / self.std).flatten(1))
class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 2)
    def forward(self, x):
        return self.linear(x.flatten(1))
"""
    (tmp_path / "nets.py").write_text(code)
    weights = {"mean": torch.full((1, 3, 1, 1), 0.5), "std": torch.full((1, 3, 1, 1), 0.2)}
    weights |= {"linear.weight": torch.randn(2, 48), "linear.bias": torch.zeros(2)}
    torch.save(weights, tmp_path / "w.pt")
    data = {"x": torch.rand(4, 4, 4, 3).numpy(), "y": torch.zeros(4).long().numpy()}
    import numpy as np

    np.savez(tmp_path / "d.npz", **data)
    kinds = {}
    for name in ("Net", "Plain"):
        wanted = Wanted(arch=f"{tmp_path / 'nets.py'}:{name}", data=str(tmp_path / "d.npz"))
        common = Common(wanted=wanted, samples=2, device="cpu", layout="nhwc")
        checkpoint, resolved = open_checkpoint(tmp_path / "w.pt", common, {})
        model = open_model(checkpoint, resolved, open_data(common, resolved, tmp_path / "w.pt"), common)
        kinds[name] = (model.normalisation.kind, model.logits(model.to_input(torch.ones(1, 3, 4, 4))))
    assert (kinds["Net"][0], kinds["Plain"][0]) == ("none", "channel")
    assert torch.allclose(kinds["Net"][1], kinds["Plain"][1], atol=1e-4)


def test_without_a_normalisation_nothing_runs(tmp_path: Path) -> None:
    torch.save(build("resnet20").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ArchitectureError, match="how its inputs were normalised"):
        opened(tmp_path / "w.pt")


def test_the_architecture_that_a_training_script_noted(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", num_classes=3)
    torch.save({"arch": "resnet10t", "state_dict": network.state_dict()}, tmp_path / "w.pt")
    done = run("spectrum", tmp_path / "w.pt", "--data", "random", "--figure", "none", "--out", tmp_path)
    assert done.exit_code == 2
    assert "fits timm:resnet10t" in done.stderr.replace("\n", " ")


def test_a_misspelt_architecture_is_said_before_the_data_are_asked_for(tmp_path: Path) -> None:
    done = run("spectrum", robust(tmp_path / "w.pt"), "--arch", "resnet2", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "no architecture named 'resnet2'" in done.stderr
    assert "resnet20" in done.stderr
