"""The bundled checkpoints are what their metadata and their README say they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from specdiag.api import load_data, load_model
from specdiag.loading.architectures import network_for
from specdiag.loading.checkpoints import read_checkpoint
from specdiag.options import build_attack
from specdiag.sampling import Batch, Draws
from specdiag.schema import AttackSpec
from specdiag.training._run import train

FOLDER = Path(__file__).resolve().parent.parent / "sample_checkpoints"
FILES = sorted(FOLDER.glob("digits-*.pt"))
MAIN = ("digits-standard", "digits-adversarial", "digits-random")


def facts(name: str) -> dict[str, Any]:
    return read_checkpoint(FOLDER / f"{name}.pt").metadata["train"]


def recipes() -> Any:
    spec = importlib.util.spec_from_file_location("make_samples", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_main_checkpoints_are_there() -> None:
    assert {path.stem for path in FILES} >= set(MAIN)
    assert {path.stem for path in FILES} == set(recipes().RECIPES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_small_and_complete(path: Path) -> None:
    assert path.stat().st_size < 300_000
    metadata = read_checkpoint(path).metadata
    assert metadata["architecture"] == "cnn4"
    assert metadata["arch_args"] == {"width": 16, "channels": 1, "size": 8, "classes": 10}
    assert metadata["normalise"] == "channel"
    assert len(metadata["mean"]) == len(metadata["std"]) == 1
    assert (metadata["data"], metadata["input_shape"], metadata["classes"]) == ("digits", [1, 8, 8], 10)
    assert metadata["train"]["attack"]["samples"] == 397


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_clean_accuracy_by_a_plain_forward_pass(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    known = checkpoint.metadata
    network = network_for(checkpoint.tensors, known["architecture"], known["arch_args"])[0]
    data = load_data("digits", samples=None)
    x = (torch.as_tensor(data.x).double() - known["mean"][0]) / known["std"][0]
    with torch.no_grad():
        answers = network.double().eval()(x).argmax(1)
    assert float((answers == torch.as_tensor(data.y)).double().mean()) == known["train"]["clean_accuracy"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_attacked_accuracy_by_the_attack_that_the_file_names(path: Path) -> None:
    model = load_model(path, dtype="float64", device="cpu")
    known = facts(path.stem)
    attack = known["attack"]
    values = {key: attack[key] for key in ("eps", "steps", "alpha", "clip")}
    data = load_data("digits", samples=None)
    batch = Batch(
        model.to_input(data.x),
        torch.as_tensor(data.y),
        data.index,
        "test",
        Draws(attack["seed"]),
        {"low": 0.0, "high": 1.0},
    )
    perturbed = build_attack(AttackSpec(attack["name"], values)).perturb(model, batch)
    right = int((model.logits(perturbed).argmax(1) == batch.y).sum())
    assert right / 397 == known["adversarial_accuracy"]


def test_the_models_are_good() -> None:
    standard, adversarial, random = (facts(name) for name in MAIN)
    assert standard["clean_accuracy"] >= 0.97
    assert adversarial["clean_accuracy"] >= 0.97
    assert random["clean_accuracy"] < 0.3
    assert standard["adversarial_accuracy"] < 0.05
    assert adversarial["adversarial_accuracy"] > standard["adversarial_accuracy"] + 0.3
    assert standard["attack"]["eps"] == adversarial["attack"]["eps"] == adversarial["eps"]
    assert adversarial["alpha"] == pytest.approx(2 * adversarial["eps"] / adversarial["steps"])


def test_readme_table_says_what_the_files_say() -> None:
    lines = (FOLDER / "README.md").read_text().splitlines()
    rows = {cells[1].strip(" `"): cells for cells in (line.split("|") for line in lines) if len(cells) == 10}
    for path in FILES:
        known = facts(path.stem)
        assert rows[path.name][5].strip() == f"{known['clean_accuracy']:.2%}"
        assert rows[path.name][6].strip() == f"{known['adversarial_accuracy']:.2%}"


def test_the_untrained_checkpoint_is_made_again_from_its_seed(tmp_path: Path) -> None:
    config = recipes().RECIPES["digits-random"](tmp_path / "again.pt", "")
    made, kept = read_checkpoint(train(config)), read_checkpoint(FOLDER / "digits-random.pt")
    assert made.metadata == kept.metadata
    assert all(torch.equal(made.tensors[name], tensor) for name, tensor in kept.tensors.items())
