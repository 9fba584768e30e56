"""What roth2020 reports, on the bundled digits models, and the commands that show it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from conftest import ROOT

import specdiag
from specdiag import figures, plugins
from specdiag.loading.datasets import Data, hash_arrays

SAMPLES = ROOT / "sample_checkpoints"
OVERLAID = {
    "spectrum": {"at": "pgd-l2"},
    "alignment": {"eps_sweep": (0.1, 0.3), "steps_sweep": 2},
    "linearity": {"distances": (0.25, 0.5)},
    "robustness": {"eps_sweep": (0.1, 0.5)},
    "theorem": {},
    "margins": {},
    "gain": {},
    "gradients": {},
}


@cache
def measured(analyzer: str, name: str, count: int, **options: Any) -> Any:
    model = specdiag.load_model(SAMPLES / f"{name}.pt", device="cpu")
    return specdiag.analyze(model, specdiag.load_data("digits", samples=count), analyzer, **options)


def both(analyzer: str, count: int = 32, **options: Any) -> tuple[Any, Any]:
    standard, adversarial = (
        measured(analyzer, f"digits-{name}", count, **options) for name in ("standard", "adversarial")
    )
    return standard, adversarial


def test_adversarial_training_lowers_the_spectrum() -> None:
    standard, adversarial = both("spectrum")
    assert float(adversarial.sigma_max.mean()) < 0.6 * float(standard.sigma_max.mean())


def test_adversarial_training_makes_networks_more_linear() -> None:
    standard, adversarial = both("linearity", attack="pgd-l2", eps=0.5, distances=(0.25, 0.5))
    for direction in ("random", "adversarial", "dominant"):
        far = [
            float(data.deviation.sel(direction=direction)[:, -1].mean()) for data in (standard, adversarial)
        ]
        assert far[1] < 0.7 * far[0], direction


def test_adversarial_training_makes_networks_robust() -> None:
    standard, adversarial = both("robustness", count=96, eps_sweep=(1.0,))
    assert float(adversarial.accuracy[0, 0]) > float(standard.accuracy[0, 0]) + 0.25


def test_alignment_falls_with_rank_and_chance_is_as_expected() -> None:
    data = measured("alignment", "digits-standard", 96)
    mean = data.cosine.mean("sample").values
    assert mean[0] > 4 * float(data.random_expectation[0])
    assert (np.diff(mean[:6]) < 0).all()
    spread = data.random_cosine.std("sample").values / np.sqrt(96)
    gap = np.abs(data.random_cosine.mean("sample").values - float(data.random_expectation[0]))
    assert (gap < 4 * spread).all()


@pytest.mark.parametrize("name", OVERLAID)
def test_two_models_in_one_figure(name: str) -> None:
    """Each is named in every panel that has lines of both."""
    analyzer = plugins.load("analyzer", name)
    runs = dict(zip(("standard", "adversarial"), both(name, 8, **OVERLAID[name]), strict=True))
    figure = figures.new_figure()
    with figures.style():
        analyzer.plot(runs, figure)
    for ax in figure.axes:
        legend: Any = ax.get_legend()
        said = " ".join(text.get_text() for text in legend.get_texts())
        assert "standard" in said, ax.get_title()
        assert "adversarial" in said, ax.get_title()


def test_with_nothing_else_on_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("alignment", "--attack", "pgd-l2", "--samples", 8)
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "No checkpoint named: taking the bundled digits-standard.pt" in said
    assert "digits test, 8 samples" in said
    assert "pgd-l2: eps = 0.19" in said
    assert "0.05 mean ||x||_2" in said


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("alignment", ["--attack", "pdg-l2"], "pgd-l2"),
        ("alignment", ["--attack", "foolbox:L2PGDD"], "L2PGD"),
        ("alignment", ["--eps", "-0.5"], "below the smallest value"),
        ("robustness", ["--eps-sweep", "0.5,0.25"], "not increasing"),
        ("alignment", ["--eps-sweep", "0.5,0.5"], "not increasing"),
        ("robustness", ["--eps-sweep", "-1,1"], "not above 0"),
        ("alignment", ["--attack", "deepfool", "--alpha", "0.1"], "pgd-l2"),
    ],
)
def test_bad_attacks_are_usage_errors(
    command: str, flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(command, SAMPLES / "digits-standard.pt", "--samples", 2, *flags)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERLAID)
def test_every_analyzer_runs_on_the_resnet(name: str, assets: Path) -> None:
    from attacks_common import resnet20

    found = np.load(assets / "data" / "cifar10-test-1k.npz")
    x = found["x"][:2].transpose(0, 3, 1, 2).astype(np.float32) / 255
    y = found["y"][:2].astype(np.int64)
    data = Data(x, y, np.arange(2), "test", "cifar", 2, hash_arrays(x, y), 0.0, 1.0, 10, ())
    options = {**OVERLAID[name], **({"at": "pgd-l2"} if name == "spectrum" else {"attack": "pgd-l2"})}
    if name == "linearity":
        options["distances"] = (0.1,)
    result = specdiag.analyze(resnet20(assets), data, name, eps=0.1, steps=2, **options)
    analyzer = plugins.load("analyzer", name)
    assert analyzer.sentence(result).endswith(".")
    measures = [
        array for array in result.data_vars.values() if "sample" in array.dims and array.dtype.kind == "f"
    ]
    assert measures
    assert all(np.isfinite(array.values).any() for array in measures)
    figure = figures.new_figure()
    with figures.style():
        analyzer.plot({"resnet20": result}, figure)
    assert figure.axes
