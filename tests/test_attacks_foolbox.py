"""Beside foolbox: at least as strong, deepfool as short, and its attacks behind our name."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from attacks_common import cifar_batch, digits_batch, resnet20, trained_model

from specdiag.attacks._ball import norms
from specdiag.attacks._eps import norm_of, resolve_eps
from specdiag.attacks.deepfool import DeepFool
from specdiag.attacks.foolbox import Foolbox
from specdiag.attacks.pgd_l2 import PgdL2
from specdiag.attacks.pgd_linf import PgdLinf
from specdiag.errors import MissingExtra, UsageError
from specdiag.model import Model
from specdiag.options import build_attack, build_options
from specdiag.plugins import load
from specdiag.sampling import Batch
from specdiag.schema import AttackSpec

foolbox = pytest.importorskip("foolbox")


class Wrapped(torch.nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.forward(x)


def accuracy(model: Model, batch: Batch, x: torch.Tensor) -> float:
    return float((model.logits(model.to_input(x)).argmax(1) == batch.y).double().mean())


def theirs(model: Model, batch: Batch, attack: Any, eps: float | None) -> torch.Tensor:
    inner = foolbox.PyTorchModel(Wrapped(model).eval(), bounds=(0, 1), device="cpu")
    criterion = foolbox.criteria.Misclassification(batch.y)
    x = batch.x.contiguous()
    return attack.run(inner, x, criterion) if eps is None else attack.run(inner, x, criterion, epsilon=eps)


@pytest.mark.parametrize(
    ("kind", "name", "eps"),
    [(PgdL2, "L2ProjectedGradientDescentAttack", 0.6), (PgdLinf, "LinfProjectedGradientDescentAttack", 0.08)],
)
def test_at_least_as_strong_on_digits(kind: Any, name: str, eps: float) -> None:
    model = trained_model()
    batch = digits_batch(model, 300)
    ours, others = [], []
    for seed in range(3):
        chosen = digits_batch(model, 300, seed)
        ours.append(accuracy(model, batch, kind(eps=eps, clip=True).perturb(model, chosen)))
        torch.manual_seed(seed)
        attack = getattr(foolbox.attacks, name)(rel_stepsize=0.2, steps=10, random_start=True)
        others.append(accuracy(model, batch, theirs(model, batch, attack, eps)))
    assert 0.05 < np.mean(others) < 0.95
    assert np.mean(ours) <= np.mean(others) + 0.01


def test_at_least_as_strong_on_a_resnet(assets) -> None:
    model = resnet20(assets)
    batch = cifar_batch(assets, model, 48)
    ours = accuracy(model, batch, PgdLinf(eps=1 / 255, clip=True).perturb(model, batch))
    torch.manual_seed(0)
    attack = foolbox.attacks.LinfProjectedGradientDescentAttack(rel_stepsize=0.2, steps=10, random_start=True)
    other = accuracy(model, batch, theirs(model, batch, attack, 1 / 255))
    assert ours <= other + 0.01


def test_deepfool_is_as_short_as_theirs() -> None:
    model = trained_model()
    batch = digits_batch(model, 200)
    found = DeepFool(clip=True).perturb(model, batch)
    other = theirs(model, batch, foolbox.attacks.L2DeepFoolAttack(), None)
    assert accuracy(model, batch, found) == 0
    assert float(norms(found - batch.x).median()) == pytest.approx(
        float(norms(other - batch.x).median()), rel=0.02
    )


def test_their_attacks_by_name() -> None:
    model = trained_model()
    batch = digits_batch(model, 16)
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    x = Foolbox(name="L2PGD", eps=0.5).perturb(model, batch)
    assert torch.equal(Foolbox(name="L2PGD", eps=0.5).perturb(model, batch), x)
    assert torch.equal(torch.random.get_rng_state(), state[0]), "torch's generator is put back"
    assert (np.random.get_state()[1] == state[1]).all()
    assert float(norms(x - batch.x).max()) <= 0.5 * (1 + 1e-5)
    assert float(x.min()) < 0, "without --clip the range does not bind"
    clipped = Foolbox(name="L2PGD", eps=0.5, clip=True).perturb(model, batch)
    assert float(clipped.min()) >= 0
    spec = AttackSpec("foolbox:LinfFastGradientAttack", {"name": "LinfFastGradientAttack"})
    assert norm_of(spec) == "linf"
    assert resolve_eps(spec, model, batch.facts)[0].values["eps"] == 0.005
    minimal = AttackSpec("foolbox:L2DeepFoolAttack", {"name": "L2DeepFoolAttack"})
    assert resolve_eps(minimal, model, batch.facts)[0].values.get("eps") is None
    shortest = build_attack(minimal).perturb(model, batch)
    assert accuracy(model, batch, shortest) == 0


def test_arguments_reach_them() -> None:
    model = trained_model()
    batch = digits_batch(model, 8)
    one = Foolbox(name="LinfPGD", eps=0.1, arguments=("steps=1", "random_start=false", "rel_stepsize=1.0"))
    x = one.perturb(model, batch)
    expected = load("attack", "fgsm").options(eps=0.1).perturb(model, batch)
    # their cross-entropy gradient cancels for confident samples, so a few signs differ
    assert float(((x - expected).abs() < 1e-5).double().mean()) > 0.98
    spec = build_options(
        load("analyzer", "alignment"), {"attack": "foolbox:LinfPGD", "eps": "0.1", "arguments": "steps=3"}
    )
    assert build_attack(spec.attack) == Foolbox(name="LinfPGD", eps=0.1, arguments=("steps=3",))


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (Foolbox(name="LinfPGDD", eps=0.1), "LinfPGD"),
        (Foolbox(eps=0.1), "needs the name"),
        (Foolbox(name="LinfPGD", eps=0.1, arguments=("stepz=3",)), "It takes"),
        (Foolbox(name="LinfPGD", eps=0.1, arguments=("steps",)), "key=value"),
        (Foolbox(name="LinfPGD"), "has no eps"),
    ],
)
def test_wrong_names_are_explained(attack: Foolbox, words: str) -> None:
    model = trained_model()
    with pytest.raises(UsageError) as error:
        attack.perturb(model, digits_batch(model, 8))
    assert words in str(error.value)


def test_without_the_library_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    model = trained_model()
    with pytest.raises(MissingExtra, match=r"pip install 'specdiag\[foolbox\]'"):
        Foolbox(name="LinfPGD", eps=0.1).perturb(model, digits_batch(model, 8))
