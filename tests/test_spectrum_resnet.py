"""The spectrum of a real checkpoint on real images against a plain float64 computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import specdiag
from specdiag.loading.datasets import Data
from specdiag.model import Model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAMPLES = 200


def load(assets: Path, dtype: str) -> Model:
    path = assets / "checkpoints" / "cifar10-resnet20.th"
    return specdiag.load_model(path, "resnet20", mean=MEAN, std=STD, dtype=dtype, device="cpu")


@pytest.fixture(scope="module")
def data(assets: Path) -> Data:
    return specdiag.load_data(str(assets / "data" / "cifar10-test-1k.npz"), samples=SAMPLES)


@pytest.fixture(scope="module")
def truth(assets: Path, data: Data) -> np.ndarray:
    """Singular values by torch.autograd and numpy.linalg.svd in float64, one output at a time."""
    network = load(assets, "float64").network
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    values = []
    for start in range(0, SAMPLES, 50):
        x = torch.from_numpy(data.x[start : start + 50]).double().requires_grad_(True)
        logits = network((x - mean) / std)
        rows = [
            torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0].flatten(1) for k in range(10)
        ]
        values.append(np.linalg.svd(torch.stack(rows, 1).numpy(), compute_uv=False))
    return np.concatenate(values)


def error(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.abs(found - truth).max(1) / truth[:, 0]


def test_float64_agrees_to_rounding(assets: Path, data: Data, truth: np.ndarray) -> None:
    found = specdiag.analyze(load(assets, "float64"), data, "spectrum")
    assert error(found.singular_values.values, truth).max() < 1e-10


def test_float32_agrees_but_for_marked_samples(assets: Path, data: Data, truth: np.ndarray) -> None:
    found = specdiag.analyze(load(assets, "float32"), data, "spectrum")
    errors = error(found.singular_values.values, truth)
    assert np.median(errors) < 1e-6
    off = errors > 1e-5
    marked = found.near_kink.values > 0
    assert off.any(), "rounding flips an activation in a few of these samples; if not, the test says nothing"
    assert off.sum() <= 6
    assert (errors > 1e-4).sum() <= 4
    assert marked[off].all(), "every sample whose activations flip is marked"
    assert marked.sum() < SAMPLES // 4


def test_float32_is_exact_where_activations_agree(assets: Path, data: Data) -> None:
    """With the float32 network's masks imposed on the float64 network, all samples agree to rounding."""
    few = specdiag.load_data(data.spec, samples=64)
    single, double = load(assets, "float32"), load(assets, "float64")
    found = specdiag.analyze(single, few, "spectrum").singular_values.values
    masks = Masks()
    with torch.no_grad(), masks.recording():
        single.forward(single.to_input(few.x))
    leaf = double.to_input(few.x).requires_grad_(True)
    with masks.imposed():
        logits = double.forward(leaf)
    rows = [torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0].flatten(1) for k in range(10)]
    truth = np.linalg.svd(torch.stack(rows, 1).numpy(), compute_uv=False)
    assert error(found, truth).max() < 1e-5


class Masks(torch.overrides.TorchFunctionMode):
    """Records the signs at every ReLU of one pass, and puts them in the place of another pass's."""

    def __init__(self) -> None:
        self.signs: list[torch.Tensor] = []
        self.position = 0
        self.impose = False

    def recording(self) -> Masks:
        return self

    def imposed(self) -> Masks:
        self.impose = True
        return self

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(func, "__name__", "") != "relu":
            return func(*args, **(kwargs or {}))
        if self.impose:
            self.position += 1
            return args[0] * self.signs[self.position - 1].to(args[0].dtype)
        self.signs.append(args[0] > 0)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-5)])
def test_batch_sizes_agree(assets: Path, data: Data, dtype: str, bound: float) -> None:
    from specdiag import plugins
    from specdiag.options import build_options
    from specdiag.runner import data_facts, make_batch

    model = load(assets, dtype)
    few = specdiag.load_data(data.spec, samples=40)
    analyzer = plugins.load("analyzer", "spectrum")
    options, facts = build_options(analyzer, {}), data_facts(model, few)
    auto = specdiag.analyze(model, few, "spectrum")
    for size in (1, 7):
        parts = [
            analyzer.compute(model, make_batch(model, few, i, min(i + size, 40), 0, facts), options)[
                "singular_values"
            ]
            for i in range(0, 40, size)
        ]
        errors = error(torch.cat(parts).numpy(), auto.singular_values.values)
        clear = auto.near_kink.values == 0
        assert errors[clear].max() < bound
        assert dtype == "float32" or errors.max() < bound


def test_on_a_gpu(assets: Path, data: Data, truth: np.ndarray, cuda: str) -> None:
    path = assets / "checkpoints" / "cifar10-resnet20.th"
    for dtype in ("float64", "float32"):
        model = specdiag.load_model(path, "resnet20", mean=MEAN, std=STD, dtype=dtype, device=cuda)
        found = specdiag.analyze(model, data, "spectrum")
        errors = error(found.singular_values.values, truth)
        if dtype == "float64":
            assert errors.max() < 1e-10
        else:
            assert np.median(errors) < 1e-6
            assert (found.near_kink.values > 0)[errors > 1e-5].all()
