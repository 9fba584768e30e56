"""Robustness against closed forms on linear networks, and its self-checks on networks built to set them off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from attacks_common import batch_of, digits_batch, linear_model, trained_model
from torch import nn

from specdiag import figures
from specdiag.analyzers import robustness
from specdiag.attacks._eps import resolve_options
from specdiag.errors import UsageError
from specdiag.metrics import summarise
from specdiag.model import Model
from specdiag.options import build_options
from specdiag.runner import as_numpy, to_dataset
from specdiag.sampling import Batch


def measured(model: Model, batch: Batch, **values: Any) -> Any:
    """As the command line would: options built and settled, arrays assembled and finished."""
    options, _ = resolve_options(
        build_options(robustness.ANALYZER, values), model, batch.facts, lambda: [batch]
    )
    arrays = robustness.compute(model, batch, options)
    found = {name: as_numpy(value) for name, value in arrays.items()}
    coords = {name: found.pop(name) for name in list(found) if name in robustness.ANALYZER.coordinates}
    return robustness.finish(to_dataset(robustness.ANALYZER, found, coords, batch.index))


def warned(data: Any) -> set[str]:
    return {entry["id"] for entry in robustness.checks(data)}


def two_classes(count: int = 300) -> tuple[Model, Batch, torch.Tensor, torch.Tensor]:
    """Points, signed l2 distances to the boundary (negative: wrong), and the ratio of l1 to l2 norm of the slope."""
    model = linear_model(classes=2, inputs=6)
    x = torch.rand(count, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = model.logits(x)
    right = z.argmax(1)
    y = torch.where(torch.arange(count) % 10 == 0, 1 - right, right)
    slope = model.head_weight()[0] - model.head_weight()[1]
    gap = z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]
    return model, batch_of(model, x, y), gap / slope.norm(), slope.abs().sum() / slope.norm()


@pytest.mark.parametrize("accuracy_only", [False, True])
def test_accuracy_of_a_linear_network_is_closed_form(accuracy_only: bool) -> None:
    """Right within eps as long as the distance to the boundary exceeds it."""
    model, batch, distance, _ = two_classes()
    eps = (0.1, 0.3, 1.0)
    data = measured(
        model, batch, attack="pgd-l2", alpha=math.inf, eps_sweep=eps, clip=False, accuracy_only=accuracy_only
    )
    assert data.fooled.dims == ("attack", "eps", "sample")
    assert data.accuracy.dims == ("attack", "eps")
    assert data.eps.values.tolist() == list(eps)
    for number, value in enumerate(eps):
        held = (distance > value).numpy()
        assert np.array_equal(data.fooled[0, number] == 0, held)
        assert float(data.accuracy[0, number]) == pytest.approx(held.mean())
        changed = (distance.abs() < value).numpy()
        assert np.array_equal(data.changed[0, number] == 1, changed), (
            "def. 1 counts wrong answers that change"
        )
    numbers = summarise(robustness.ANALYZER, data)
    clean = float((distance > 0).double().mean())
    assert numbers["clean_accuracy"]["value"] == pytest.approx(clean)
    held = float((distance > 0.3).double().mean())
    assert numbers["accuracy_of_correct"]["value"][1] == pytest.approx(held / clean)
    assert numbers["zero_one_damage"]["value"][1] == pytest.approx(clean - held)
    assert numbers["vulnerability"]["value"][1] >= numbers["zero_one_damage"]["value"][1]
    assert numbers["accuracy"]["labels"]
    assert ("damage" in numbers) is not accuracy_only


def test_damage_of_a_linear_network_is_closed_form() -> None:
    """Cross-entropy at margin m is softplus(-m), and the attack takes eps ||w|| off the margin."""
    model, batch, distance, _ = two_classes()
    length = float((model.head_weight()[0] - model.head_weight()[1]).norm())
    data = measured(model, batch, attack="fgm-l2", eps_sweep=(0.2,), clip=False)
    expected = nn.functional.softplus(-(distance - 0.2) * length)
    assert np.allclose(data.loss[0, 0], expected, atol=1e-12)
    assert np.allclose(data.clean_loss, nn.functional.softplus(-distance * length), atol=1e-12)


def test_wilson_interval_by_its_definition() -> None:
    """Ends solve (p - q)^2 = z^2 q (1 - q) / n."""
    held = np.array([1.0] * 30 + [0.0] * 10 + [np.nan] * 5)
    share, low, high = (float(v) for v in robustness._wilson(held))
    assert share == 0.75
    for q in (low, high):
        assert (share - q) ** 2 == pytest.approx(1.959963984540054**2 * q * (1 - q) / 40)
    assert [float(v) for v in robustness._wilson(np.ones(20))][2] == 1


@pytest.mark.parametrize(
    ("scale", "unit", "factor"),
    [
        ("none", "data", 1.0),
        ("none", "8bit", 1 / 255),
        ("dimension", "data", math.sqrt(6)),
        ("mean-norm", "data", None),
    ],
)
def test_scales_and_units(scale: str, unit: str, factor: float | None) -> None:
    model, batch, distance, _ = two_classes()
    eps = 0.3 if unit == "data" else 60.0
    options = {"attack": "fgm-l2", "eps_sweep": (eps,), "eps_scale": scale, "eps_unit": unit, "clip": False}
    data = measured(model, batch, **options)
    radius = eps * (batch.facts["mean_norm"] if factor is None else factor)
    assert np.allclose(data.radius, radius, rtol=1e-12)
    assert np.array_equal(data.fooled[0, 0] == 0, (distance > radius).numpy())
    assert data.eps.values.tolist() == [eps]


def test_snr_has_one_radius_per_sample() -> None:
    model, batch, distance, ratio = two_classes()
    data = measured(model, batch, attack="fgm-l2", eps_sweep=(0.2,), eps_scale="snr", clip=False)
    size = batch.x.norm(dim=1)
    assert np.allclose(data.radius[0, 0], 0.2 * size)
    assert np.array_equal(data.fooled[0, 0] == 0, (distance > 0.2 * size).numpy())
    other = measured(model, batch, attack="fgsm", eps_sweep=(0.2,), eps_scale="snr", clip=False)
    assert np.allclose(other.radius[0, 0], 0.2 * size / math.sqrt(6))
    assert np.array_equal(other.fooled[0, 0] == 0, (distance > 0.2 * size / math.sqrt(6) * ratio).numpy())
    with pytest.raises(UsageError, match="defined for l2"):
        measured(model, batch, attack="fgsm", eps_sweep=(0.2,), eps_scale="mean-norm", clip=False)


def test_deepfool_is_swept_by_its_norm() -> None:
    model, batch, distance, _ = two_classes()
    data = measured(model, batch, attack="deepfool", eps_sweep=(0.1, 0.3, 1.0), clip=False)
    for number, value in enumerate((0.1, 0.3, 1.0)):
        held = (distance * 1.02 > value).numpy()
        assert (held == (data.fooled[0, number] == 0)).mean() > 0.99
    assert np.isfinite(data.loss).all()


def test_wrm_is_swept_by_its_penalty() -> None:
    model = trained_model()
    batch = digits_batch(model, 48)
    data = measured(model, batch, attack="wrm", penalty_sweep=(0.1, 0.5, 2.0, 8.0))
    assert "fooled" not in data
    size = data.penalty_norm.mean("sample").values
    assert (np.diff(size) < 0).all(), "a larger penalty moves less"
    figure = figures.new_figure()
    robustness.plot({"one": data}, figure)
    assert figure.axes[0].get_xlabel()
    assert len(robustness.table(data)[1]) == 5
    assert robustness.sentence(data).startswith("Clean accuracy")


def test_several_attacks_on_digits() -> None:
    model = trained_model()
    batch = digits_batch(model, 100)
    data = measured(model, batch, attack="pgd-l2,deepfool,random-l2", eps_sweep=(0.2, 0.5, 0.8, 2.5))
    accuracy = data.accuracy.sel(attack="pgd-l2").values
    assert (np.diff(accuracy) <= 0).all()
    assert accuracy[-1] < 0.02
    assert np.abs(accuracy - data.accuracy.sel(attack="deepfool").values).max() < 0.12
    assert float(data.accuracy.sel(attack="random-l2")[2]) > 0.85
    assert not warned(data)
    numbers = summarise(robustness.ANALYZER, data)
    assert numbers["worst_accuracy"]["value"][0] <= accuracy[0]
    half = numbers["half_eps"]["value"]
    assert 0.2 < half[0] < 0.8
    figure = figures.new_figure()
    robustness.plot({"one": data, "two": data}, figure)
    assert len(figure.axes) == 2
    assert "pgd-l2 leaves" in robustness.sentence(data) or "deepfool leaves" in robustness.sentence(data)
    quick = measured(model, batch, attack="pgd-l2", eps_sweep=(0.2, 0.5, 0.8, 2.5), accuracy_only=True)
    assert (quick.accuracy.values[0] <= accuracy + 0.02).all(), "stopping early is no weaker"


def test_default_sizes_follow_the_attack() -> None:
    model = trained_model()
    batch = digits_batch(model, 16)
    data = measured(model, batch, attack="fgsm", eps=0.1, controls=False)
    assert np.allclose(data.eps, 0.1 * np.arange(1, 9) / 4)
    assert "random_fooled" not in data
    with pytest.raises(UsageError, match="different norms"):
        measured(model, batch, attack="fgsm,fgm-l2")
    both = measured(model, batch, attack="fgsm,fgm-l2", eps_scale="dimension")
    assert np.allclose(both.radius.sel(attack="fgm-l2"), 8 * both.radius.sel(attack="fgsm"))
    with pytest.raises(UsageError, match="not increasing"):
        measured(model, batch, eps_sweep="1,0.5")
    with pytest.raises(UsageError, match="not above 0"):
        measured(model, batch, eps_sweep="-1,0.5")


class _Rounded(nn.Module):
    """A trained network behind a staircase: its gradient is that of a tiny leak, and says nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.round(8 * x.detach()) / 8
        wave = torch.zeros(1, 8, 8).to(x) + torch.eye(8).to(x)[0][:, None]
        return self.inner(steps) + 1e-6 * (x * wave).sum((1, 2, 3))[:, None] * torch.linspace(-1, 1, 10).to(x)


def test_masked_gradients_are_noticed() -> None:
    network = trained_model().network
    model = Model(_Rounded(network), (1, 8, 8))
    batch = digits_batch(model, 100)
    data = measured(model, batch, attack="pgd-l2", eps_sweep=(1.0, 2.5, 4.0))
    assert "SD302" in warned(data)
    plain = measured(trained_model(), batch, attack="pgd-l2", eps_sweep=(0.5, 1.0))
    assert not warned(plain)


class _Flat(nn.Module):
    """No gradient at all where the first pixel row is empty."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lit = (x.detach()[:, :, 0].sum((1, 2)) > 0).to(x)[:, None]
        z = self.inner(x)
        return lit * z + (1 - lit) * z.detach()


def test_vanishing_gradients_are_counted_and_left_out() -> None:
    model = Model(_Flat(trained_model().network), (1, 8, 8))
    batch = digits_batch(model, 60)
    empty = (batch.x[:, :, 0].sum((1, 2)) == 0) & (model.logits(batch.x).argmax(1) == batch.y)
    batch.x[:3, :, 0] = 0
    empty[:3] = model.logits(batch.x[:3]).argmax(1) == batch.y[:3]
    data = measured(model, batch, attack="pgd-l2", start="clean", eps_sweep=(2.0, 3.0))
    unknown = np.isnan(data.fooled[0, 0].values)
    assert np.array_equal(unknown, empty.numpy())
    assert float(data.accuracy[0, 1]) < 0.05, "unknown samples count neither way"
    texts = {entry["id"]: entry["text"] for entry in robustness.checks(data)}
    assert f"{int(empty.sum())} of 60 samples" in texts["SD301"]


class _Leaky(nn.Module):
    """Answers by a colour that the attack itself leaves: a step against label 0 brightens, and bright means 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x[:, 0:1], x[:, 1:2]
        truth = torch.cat([first, -first], 1)
        tell = (second.detach() < -0.5).to(x) - (second.detach() > 0.5).to(x)
        return (
            truth
            + second * torch.tensor([[1e-3, -1e-3]]).to(x)
            + 100 * tell * torch.tensor([[1.0, -1.0]]).to(x)
        )


def test_label_leaking_is_noticed() -> None:
    model = Model(_Leaky(), (2,), dtype=torch.float64)
    x = torch.zeros(80, 2, dtype=torch.float64)
    x[:, 0] = torch.where(torch.arange(80) % 3 == 0, -0.01, 0.01)
    batch = batch_of(model, x, torch.zeros(80))
    data = measured(model, batch, attack="pgd-linf", eps_sweep=(0.6, 0.9), clip=False)
    assert "SD309" in warned(data)


class _Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(3, 2), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x) + (0.5 * self.calls if self.calls > 20 else 0.0)


def test_a_network_that_changes_its_answers_is_noticed() -> None:
    model = Model(_Forgetful(), (3,))
    data = measured(model, batch_of(model, torch.rand(8, 3), torch.zeros(8)), eps_sweep=(0.1,), clip=False)
    assert "SD305" in warned(data)


def test_foolbox_attacks_are_marked() -> None:
    pytest.importorskip("foolbox")
    model = trained_model()
    batch = digits_batch(model, 16)
    data = measured(model, batch, attack="foolbox:L2PGD", eps_sweep=(0.3, 0.9))
    assert "SD310" in warned(data)
    assert float(data.accuracy[0, 1]) < float(data.accuracy[0, 0]) + 1e-9
