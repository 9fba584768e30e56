"""A network trained on random labels is measured against those labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import specdiag
from specdiag.loading.labels import as_trained, random_labels
from specdiag.sampling import Draws
from specdiag.store import provenance
from specdiag.training._run import train
from specdiag.training._settings import Settings, TrainConfig


def test_labels_of_training_samples_are_drawn_again() -> None:
    facts = {"labels": "random", "seed": 3}
    both = specdiag.load_data("digits", split="both", samples=20)
    found = as_trained(both, "digits", facts, 10)
    assert found.y is not None
    assert both.y is not None
    is_train = np.array(both.splits) == "train"
    assert np.array_equal(found.y[~is_train], both.y[~is_train])
    assert np.array_equal(found.y[is_train], random_labels(both.index[is_train], 10, Draws(3)))
    assert found.sha256 != both.sha256
    assert as_trained(both, "digits", {"labels": "true", "seed": 3}, 10) is both
    assert as_trained(both, "other.npz", facts, 10) is both
    test = specdiag.load_data("digits", samples=5)
    assert as_trained(test, "digits", facts, 10) is test


def test_margins_are_those_of_the_labels_that_were_learned(tmp_path: Path) -> None:
    settings = Settings(
        epochs=120,
        batch_size=25,
        weight_decay=0.0,
        train_samples=100,
        validation=0,
        labels="random",
        curve_samples=0,
        test_samples=20,
        lr=0.05,
        device="cpu",
    )
    path = train(TrainConfig(out=tmp_path / "random.pt", settings=settings, arch_args={"width": 24}))
    model = specdiag.load_model(path, device="cpu")
    assert model.info.train["labels"] == "random"
    data = specdiag.load_data("digits", split="train", samples=100)
    found = specdiag.analyze(model, data, "margins", attack="pgd-l2", eps=0.1)
    metrics = provenance(found)["metrics"]
    error = metrics["error"]["value"][metrics["error"]["labels"].index("clean")]
    assert error < 0.1, "fitted by heart"
    answers = model.logits(model.to_input(data.x)).argmax(1).numpy()
    assert (answers != data.y).mean() > 0.8, "the true labels are another matter"
