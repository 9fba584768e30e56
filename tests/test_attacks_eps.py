"""eps left out, `auto`, and where it came from."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from attacks_common import batch_of, digits_batch, linear_model, trained_model

from specdiag.attacks._eps import norm_of, resolve_eps, resolve_options
from specdiag.attacks.pgd_l2 import PgdL2
from specdiag.errors import UsageError
from specdiag.model import Model, ModelInfo, Normalisation
from specdiag.options import build_attack, build_options
from specdiag.plugins import load
from specdiag.schema import AttackSpec

FACTS = {"mean_norm": 4.0, "median_norm": 4.0, "low": 0.0, "high": 1.0}


def trained_with(**train: Any) -> Model:
    model = linear_model()
    model.info = ModelInfo(train=train)
    return model


@pytest.mark.parametrize(
    ("name", "train", "expected", "words"),
    [
        ("pgd-l2", {}, 0.2, "0.05 mean ||x||_2"),
        ("pgd-linf", {}, 0.005, "default for linf"),
        ("pgd-l2", {"norm": "l2", "eps": 1.75}, 1.75, "trained with"),
        ("pgd-linf", {"norm": "l2", "eps": 1.75}, 0.005, "default for linf"),
        ("fgsm", {"norm": "linf", "eps": 0.03}, 0.03, "trained with"),
        ("power", {"eps": 1.75}, 0.2, "0.05 mean ||x||_2"),
    ],
)
def test_eps_left_out(name: str, train: dict[str, Any], expected: float, words: str) -> None:
    spec, note = resolve_eps(AttackSpec(name), trained_with(**train), FACTS)
    assert spec.values["eps"] == pytest.approx(expected)
    assert words in note
    assert str(spec) == name


def test_eps_given_is_kept_and_needs_no_words() -> None:
    spec, note = resolve_eps(
        AttackSpec("pgd-l2", {"eps": 0.3, "steps": 4}), trained_with(norm="l2", eps=1.0), FACTS
    )
    assert spec.values == {"eps": 0.3, "steps": 4}
    assert note == ""


def test_attacks_without_eps() -> None:
    assert resolve_eps(AttackSpec("deepfool"), linear_model(), FACTS) == (AttackSpec("deepfool"), "")
    spec, note = resolve_eps(AttackSpec("wrm"), linear_model(), FACTS)
    assert spec.values["penalty"] == pytest.approx(0.16)
    assert "penalty" in note
    colour = Model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)), (3, 4, 4))
    assert resolve_eps(AttackSpec("wrm"), colour, FACTS)[0].values["penalty"] == pytest.approx(0.008)


def test_behind_the_normalisation_the_training_eps_has_another_unit() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    model = Model(
        network,
        (3, 4, 4),
        normalisation=Normalisation("channel", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        info=ModelInfo(train={"norm": "linf", "eps": 0.03}),
        space="model",
    )
    assert resolve_eps(AttackSpec("pgd-linf"), model, FACTS)[0].values["eps"] == pytest.approx(0.02)


def test_auto_is_the_smallest_that_fools_99_percent() -> None:
    model = trained_model()
    batch = digits_batch(model, 200)
    spec, note = resolve_eps(AttackSpec("pgd-l2", {"eps": "auto"}), model, batch.facts, lambda: [batch])
    eps = spec.values["eps"]
    assert "99 %" in note

    def fooled(at: float) -> float:
        x = PgdL2(eps=at).run(model, batch, stop=True).x
        return float((model.logits(x).argmax(1) != batch.y).double().mean())

    assert fooled(eps) >= 0.985
    assert fooled(0.93 * eps) < 0.99


def test_auto_on_a_linear_network_is_the_quantile_of_the_distances() -> None:
    model = linear_model(classes=2, inputs=6)
    x = torch.rand(300, 6, dtype=torch.float64)
    y = model.logits(x).argmax(1)
    weight, z = model.head_weight(), model.logits(x)
    distance = (z[:, 0] - z[:, 1]).abs() / (weight[0] - weight[1]).norm()
    batch = batch_of(model, x, y)
    spec, _ = resolve_eps(AttackSpec("fgm-l2", {"eps": "auto"}), model, batch.facts, lambda: [batch])
    exact = float(distance.sort().values[int(0.99 * 300) - 1])
    assert spec.values["eps"] == pytest.approx(exact, rel=0.02)
    assert spec.values["eps"] >= exact


def test_auto_says_when_there_is_no_answer() -> None:
    model = trained_model()
    batch = digits_batch(model, 16)
    with pytest.raises(UsageError, match="labelled samples"):
        resolve_eps(AttackSpec("pgd-l2", {"eps": "auto"}), model, batch.facts)
    clipped = AttackSpec("random-linf", {"eps": "auto", "clip": True})
    with pytest.raises(UsageError, match="does not fool 99 %"):
        resolve_eps(clipped, model, batch.facts, lambda: [batch])


def test_options_of_analyzers_are_settled_and_carry_their_clip() -> None:
    robustness = load("analyzer", "robustness")
    options = build_options(robustness, {"attack": "pgd-l2,fgm-l2,deepfool", "steps": "3"})
    settled, notes = resolve_options(options, linear_model(), FACTS)
    assert [spec.values.get("eps") for spec in settled.attack] == [
        pytest.approx(0.2),
        pytest.approx(0.2),
        None,
    ]
    assert all(spec.values["clip"] for spec in settled.attack)
    assert settled.attack[0].values["steps"] == 3
    assert len(notes) == 2
    assert build_attack(settled.attack[0]).clip
    alignment = load("analyzer", "alignment")
    settled, notes = resolve_options(build_options(alignment, {}), linear_model(), FACTS)
    assert not settled.attack.values["clip"]
    assert notes[0].startswith("pgd-l2: eps = 0.2")
    spectrum = load("analyzer", "spectrum")
    settled, notes = resolve_options(build_options(spectrum, {}), linear_model(), FACTS)
    assert settled.at == "clean"
    assert not notes


def test_norms() -> None:
    assert norm_of(AttackSpec("pgd-l2")) == "l2"
    assert norm_of(AttackSpec("fgsm")) == "linf"
    assert norm_of(AttackSpec("deepfool")) is None
    assert dataclasses.is_dataclass(load("attack", "power").options)
