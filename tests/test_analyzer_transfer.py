"""Who is right on whose examples, on networks whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attacks_common import batch_of, digits_batch, linear_model, trained_model
from command import run
from torch import nn

from specdiag import figures
from specdiag.analyzers.transfer import ANALYZER, Options, unique
from specdiag.errors import DataError, UsageError
from specdiag.model import Model, ModelInfo
from specdiag.runner import to_dataset
from specdiag.schema import AttackSpec
from specdiag.store import read_group


def along(axis: int) -> Model:
    """Two classes, told apart by the sign of one input."""
    network = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[1, axis] = 1.0
    model = Model(network, (2,), dtype=torch.float64)
    model.info = ModelInfo(name=f"axis{axis}")
    return model


def test_each_is_fooled_by_its_own_examples_alone() -> None:
    """An l2 step along one input cannot change the sign of the other."""
    models = [along(0), along(1)]
    points = torch.tensor([[0.3, 0.4], [-0.3, -0.4], [0.9, 0.2], [-0.2, -0.9]]).double()
    batch = batch_of(models[0], points, [1, 0, 1, 0])
    options = Options(attack=AttackSpec("fgm-l2", {"eps": 0.5}), clip=False)
    found = ANALYZER.compute(models, batch, options)
    assert found["checkpoint"].tolist() == ["axis0", "axis1"]
    assert bool(found["clean_correct"].all())
    wanted = torch.ones(4, 2, 2, dtype=torch.bool)
    wanted[:, 0, 0] = points[:, 0].abs() > 0.5
    wanted[:, 1, 1] = points[:, 1].abs() > 0.5
    assert torch.equal(found["correct"], wanted)
    assert torch.allclose(found["perturbation_norm"], torch.full((4, 2), 0.5).double())
    names = {"checkpoint": found.pop("checkpoint"), "source": found.pop("source")}
    data = to_dataset(ANALYZER, {k: v.numpy() for k, v in found.items()}, names, batch.index)
    assert ANALYZER.summarise is not None
    summary = ANALYZER.summarise(data)
    own, others = np.array([0.25, 0.25]), np.ones(2)
    assert np.allclose(summary["white_box_accuracy"][0], own)
    assert np.allclose(summary["transfer_accuracy"][0], others)
    assert np.allclose(summary["transfer_gap"][0], others - own)
    assert np.allclose(summary["transfer_gap"][1], np.sqrt(0.25 * 0.75 / 3))
    assert ANALYZER.table is not None
    assert ANALYZER.table(data)[1] == [
        ["axis0", "100.0", "25.0", "100.0"],
        ["axis1", "100.0", "100.0", "25.0"],
    ]
    figure = figures.new_figure()
    with figures.style():
        ANALYZER.plot({"all": data}, figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["100", "25", "100", "100", "100", "25"]


def test_a_copy_is_as_vulnerable_as_the_original() -> None:
    model = trained_model(torch.float64)
    batch = digits_batch(model, 40)
    options = Options(attack=AttackSpec("pgd-l2", {"eps": 1.0}))
    found = ANALYZER.compute([model, trained_model(torch.float64)], batch, options)
    correct = found["correct"]
    for row, column in ((0, 1), (1, 0), (1, 1)):
        assert torch.equal(correct[:, row, column], correct[:, 0, 0])
    assert found["checkpoint"].tolist() == ["model", "model (2)"]


def test_names_that_repeat() -> None:
    assert unique(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]


def test_what_cannot_be_compared() -> None:
    model = linear_model()
    options = Options(attack=AttackSpec("fgm-l2", {"eps": 0.1}))
    batch = batch_of(model, torch.rand(3, 6))
    with pytest.raises(DataError, match="no labels"):
        ANALYZER.compute([model, model], batch, options)
    labelled = batch_of(model, torch.rand(3, 6), torch.zeros(3))
    with pytest.raises(UsageError, match="inputs"):
        ANALYZER.compute([model, linear_model(inputs=5)], labelled, options)
    behind = Model(nn.Linear(6, 3), (6,), dtype=torch.float64, space="model")
    with pytest.raises(UsageError, match="data space"):
        ANALYZER.compute([model, behind], labelled, options)


def test_command_line(samples: Path, tmp_path: Path) -> None:
    paths = [samples / "digits-standard.pt", samples / "digits-adversarial.pt"]
    options = ("--samples", "40", "--attack", "pgd-l2", "--eps", "1.0", "--out", tmp_path)
    done = run("transfer", *paths, *options)
    assert done.exit_code == 0, done.stderr
    data = read_group(tmp_path / "transfer.h5", "transfer")
    accuracy = data["correct"].values.mean(0)
    assert accuracy.shape == (2, 2)
    assert accuracy[0, 1] > accuracy[0, 0]
    assert "digits-adversarial" in done.stdout
    again = run("transfer", *paths, *options)
    assert again.exit_code == 0
    # another set of checkpoints is another result
    other = run("transfer", paths[0], *options)
    assert other.exit_code == 2
