"""What holds for every training method: sums, resuming, options, matched accuracy."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_common import (
    SMALL,
    linear,
    method,
    slim,
    step_of,
)

from specdiag import plugins
from specdiag.errors import UsageError
from specdiag.loading.checkpoints import read_checkpoint
from specdiag.schema import fields
from specdiag.training._match import held_out_accuracy
from specdiag.training._recipe import parse
from specdiag.training._run import train
from specdiag.training._settings import Settings, TrainConfig


def test_dropout_acts_in_training_alone() -> None:
    run = linear(size=500)
    method("dropout", rate=0.5).prepare(run)
    x = torch.ones(1, 500).double()
    run.network.eval()
    torch.testing.assert_close(run.forward(x), run.network[0].weight.sum(1)[None] + run.network[0].bias)
    run.network.train()
    torch.manual_seed(0)
    assert not torch.equal(run.forward(x), run.forward(x))
    assert set(run.network.state_dict()) == {"0.weight", "0.bias"}


def test_weight_decay_is_the_optimisers() -> None:
    assert parse("weight-decay", {"lam": 0.25}).adjust(Settings()).weight_decay == 0.25


def test_sums_of_methods(tmp_path: Path) -> None:
    for several, kind in (("pgm+fgm", "attack"), ("spectral-normalisation+sv-clip", "weight step")):
        with pytest.raises(UsageError, match=kind):
            parse(several)
    options = {"global-snr.lam": 0.125, "gradient-norm.lam": 0.5, "eps": 0.25, "steps": 2}
    recipe = parse("pgm+global-snr+gradient-norm+spectral-normalisation", options)
    assert recipe.parts["global-snr"].lam == 0.125
    assert recipe.parts["gradient-norm"].lam == 0.5
    assert recipe.parts["pgm"].attack_weight == "auto"
    known = read_checkpoint(train(slim(tmp_path / "a.pt", recipe.name, options))).metadata["train"]
    assert (known["method"], known["eps"], known["beta"]) == (recipe.name, 0.25, 1.0)


def test_a_sum_adds_its_penalties_to_the_attacks_loss() -> None:
    run = linear()
    recipe = parse("fgm+gradient-norm+cross-lipschitz", {"eps": 0.1})
    total = recipe.loss(step_of(run), recipe.initial_states(run))
    parts = [
        method("fgm", eps=0.1).batch_loss(step_of(run)),
        method("gradient-norm").penalty(step_of(run)),
        method("cross-lipschitz").penalty(step_of(run)),
    ]
    torch.testing.assert_close(total, parts[0] + parts[1] + parts[2], rtol=1e-12, atol=0)


FACTORY = """
import torch
from torch import nn


def small(norm="none", classes=10):
    between = [nn.BatchNorm2d(4)] if norm == "batch" else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), *between, nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))
"""


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", plugins.names("training"))
def test_every_method_trains_and_resumes_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / "nets.py").write_text(FACTORY)

    def config(out: str) -> TrainConfig:
        settings = Settings(**{**SMALL, "train_samples": 64})
        return TrainConfig(
            method=name, out=tmp_path / out, settings=settings, arch=f"{tmp_path / 'nets.py'}:small"
        )

    def stop(progress: Any) -> None:
        if (progress.epoch, progress.step) == (2, 1):
            raise Stop

    whole = train(config("whole.pt"))
    with pytest.raises(Stop):
        train(config("broken.pt"), stop)
    assert train(config("broken.pt")).read_bytes() == whole.read_bytes()
    known = read_checkpoint(whole).metadata["train"]
    assert known["method"] == name
    assert all(math.isfinite(value) for value in known["curves"]["loss"])


def test_options_mean_the_same_everywhere() -> None:
    found: dict[str, Any] = {}
    plain = {item.name for item in (*fields(Settings), *dataclasses.fields(TrainConfig))}
    for name in plugins.names("training"):
        for item in fields(plugins.load("training", name).options):
            assert found.setdefault(item.name, item.type) == item.type, f"{name}.{item.name}"
            assert item.name not in plain, f"{name}.{item.name}"


def test_matching_the_accuracy_of_another_checkpoint(tmp_path: Path) -> None:
    target = train(
        slim(tmp_path / "target.pt", "weight-decay", {"lam": 0.05}, train_samples=600, curve_samples=0)
    )
    # far too strong a constant: the search has to come down
    config = slim(tmp_path / "a.pt", "weight-decay", {"lam": 8.0}, train_samples=600, curve_samples=0)
    too_strong = held_out_accuracy(read_checkpoint(train(config)), config)
    wanted = held_out_accuracy(read_checkpoint(target), config)
    assert too_strong < wanted - 0.2
    found = train(dataclasses.replace(config, out=tmp_path / "b.pt", match_accuracy=target))
    assert abs(held_out_accuracy(read_checkpoint(found), config) - wanted) < 0.1
    assert read_checkpoint(found).metadata["train"]["options"]["weight-decay"]["lam"] < 8
    assert {path.name for path in tmp_path.iterdir()} == {"target.pt", "a.pt", "b.pt"}
    with pytest.raises(UsageError, match="no constant"):
        train(dataclasses.replace(config, method="standard", options={}, match_accuracy=target))
