"""The demonstration in examples/ci: passes, fails, and is to be investigated, with the reports as documented."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from command import run
from conftest import ROOT

from specdiag import store
from specdiag.loading.checkpoints import read_checkpoint, save_checkpoint

EXAMPLE = ROOT / "examples" / "ci" / "specdiag.toml"
SAMPLES = ROOT / "sample_checkpoints"


def batch(tmp_path: Path, name: str, checkpoint: Path | None = None, *more: object) -> tuple[int, str, Path]:
    changes = [] if checkpoint is None else ["--set", f'checkpoints=["{checkpoint}"]']
    junit = tmp_path / f"{name}.xml"
    done = run("batch", EXAMPLE, *changes, "--out", tmp_path / name, "--junit", junit, *more)
    return done.exit_code, done.stdout, junit


def test_the_model_passes_with_its_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    code, text, junit = batch(tmp_path, "same")
    # when the sample checkpoints or an analyzer's options change: specdiag batch examples/ci/specdiag.toml --write-baseline
    assert code == 0, text
    assert "gates: 4 passed" in text
    suites = ElementTree.parse(junit).getroot()
    assert [suite.attrib["name"] for suite in suites] == ["model"]
    cases = {case.attrib["name"] for case in suites[0].findall("testcase")}
    assert {"spectrum", "robustness", "spectrum.sigma_max_mean", "robustness.accuracy[pgd-l2/1.0]"} <= cases
    assert not suites.findall(".//failure")
    assert "✅ pass | model | `spectrum.sigma_max_mean`" in summary.read_text()


def test_the_standard_model_in_its_place_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    code, text, junit = batch(tmp_path, "worse", SAMPLES / "digits-standard.pt")
    assert code == 1, text
    failures = ElementTree.parse(junit).getroot().findall(".//failure")
    assert len(failures) == 3
    assert any("beyond max_increase = 10 %" in str(failure.text) for failure in failures)
    assert "❌ fail | model | `spectrum.sigma_max_mean`" in summary.read_text()
    annotations = [line for line in text.splitlines() if line.startswith("::error file=")]
    assert len(annotations) == 3
    lines = EXAMPLE.read_text().splitlines()
    for annotation in annotations:
        assert lines[int(annotation.partition("line=")[2].partition(",")[0]) - 1] == "[[gate]]"
    assert batch(tmp_path, "worse", SAMPLES / "digits-standard.pt", "--exit-zero")[0] == 0


def test_a_borderline_model_is_to_be_investigated(tmp_path: Path) -> None:
    """Weights with a little noise, scaled so that the largest singular value rises by 10 % in the mean."""
    noisy = tmp_path / "noisy.pt"
    _changed(noisy, noise=0.02, scale=1.0)
    assert batch(tmp_path, "noisy", noisy)[0] in (0, 1)
    before, after = (_sigma(tmp_path / name / "model.h5", tmp_path) for name in ("same", "noisy"))
    borderline = tmp_path / "borderline.pt"
    _changed(borderline, noise=0.02, scale=1.1 * before / after)
    code, text, _ = batch(tmp_path, "borderline", borderline, "--set", "gate.1.max_increase=20%")
    assert "investigate: model: spectrum.sigma_max_mean changed by +10 %" in text, text
    assert code == 0
    files = [tmp_path / "borderline" / "model.h5", "--config", EXAMPLE, "--set", "gate.1.max_increase=20%"]
    assert run("gate", *files).exit_code == 0
    assert run("gate", *files, "--fail-on", "investigate").exit_code == 1


def _sigma(path: Path, tmp_path: Path) -> float:
    if not path.exists():
        batch(tmp_path, path.parent.name)
    metrics = store.provenance(store.read_group(path, "spectrum"))["metrics"]
    return float(metrics["sigma_max_mean"]["value"])


def _changed(path: Path, *, noise: float, scale: float) -> None:
    found = read_checkpoint(SAMPLES / "digits-adversarial.pt")
    generator = torch.Generator().manual_seed(0)
    tensors = dict(found.tensors)
    for name, tensor in tensors.items():
        if name.endswith("weight") and tensor.ndim > 1:
            size = noise * tensor.std()
            tensors[name] = tensor + size * torch.randn(tensor.shape, generator=generator)
    for name in [name for name in tensors if tensors[name].ndim == 2 or name.startswith("linear")]:
        tensors[name] = tensors[name] * scale
    save_checkpoint(path, tensors, dict(found.metadata))
