"""Chunks, back-off, and the Python API."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from command import digits_checkpoint
from nets import small_cnn

import specdiag
from specdiag import jobs, plugins, runner, store
from specdiag.api import wrap_model
from specdiag.errors import UsageError
from specdiag.jobs import Common, make_task, run_in_memory, run_to_file
from specdiag.loading.datasets import Data
from specdiag.model import Model
from specdiag.options import build_options
from specdiag.runner import MemoryKeeper, OutOfMemory, Task, assemble, chunk_size, non_finite, run_samples


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return specdiag.load_model(digits_checkpoint(tmp_path / "net.pt"), device="cpu")


@pytest.fixture
def data() -> Data:
    return specdiag.load_data("digits", samples=20)


def task_of(model: Model, data: Data, **common: object) -> Task:
    analyzer = plugins.load("analyzer", "spectrum")
    return make_task(model, data, analyzer, build_options(analyzer, {}), Common(**common))


def test_chunks_are_multiples_of_eight_and_do_not_depend_on_the_samples(model: Model) -> None:
    analyzer = plugins.load("analyzer", "spectrum")
    options = build_options(analyzer, {})
    assert chunk_size(model, analyzer, options) % 8 == 0
    assert [chunk_size(model, analyzer, options, asked) for asked in (1, 7, 8, 9)] == [8, 8, 8, 16]


def test_a_large_network_goes_sample_by_sample() -> None:
    class Large(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 64, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.conv(x)[:, :3]).mean((2, 3))

    analyzer = plugins.load("analyzer", "spectrum")
    large = Model(Large(), (3, 900, 900))
    assert chunk_size(large, analyzer, build_options(analyzer, {})) == 1


def test_chunks_in_any_order_and_in_parts_give_the_same_bytes(model: Model, data: Data) -> None:
    task = task_of(model, data, batch_size=8)
    forwards, backwards = MemoryKeeper(), MemoryKeeper()
    run_samples(task, forwards)
    run_samples(task, backwards, only=[2])
    run_samples(task, backwards, only=[1, 0])
    a, b = assemble(task, forwards), assemble(task, backwards)
    for name in a.data_vars:
        assert a[name].values.tobytes() == b[name].values.tobytes()


def test_progress_counts_samples_not_padding(model: Model, data: Data) -> None:
    seen: list[tuple[int, int]] = []
    run_samples(
        task_of(model, data, batch_size=8), MemoryKeeper(), lambda done, total: seen.append((done, total))
    )
    assert seen == [(0, 20), (8, 20), (16, 20), (20, 20)]


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device on which chunks above 16 do not fit."""
    tried: list[int] = []
    real = runner.compute_chunk

    def compute(task: Task, number: int, facts: dict[str, float]) -> dict[str, np.ndarray]:
        tried.append(task.chunk)
        if task.chunk > 16:
            raise OutOfMemory("The device is out of memory.")
        return real(task, number, facts)

    monkeypatch.setattr(runner, "compute_chunk", compute)
    return tried


def test_out_of_memory_starts_again_on_a_smaller_grid(
    model: Model, data: Data, tmp_path: Path, short_memory: list[int]
) -> None:
    said: list[str] = []
    outcome = run_to_file(task_of(model, data), tmp_path / "r.h5", say=said.append)
    facts = store.provenance(outcome.dataset)
    assert facts["settings"]["chunk"] == 16
    assert short_memory == [64, 32, 16, 16]
    assert any("Out of memory with chunks of 64" in note for note in facts["notes"])
    assert len(said) == 2
    # the same command again finds the result although its own first grid is larger
    assert run_to_file(task_of(model, data), tmp_path / "r.h5").status == "already there"
    small = run_in_memory(task_of(model, data, batch_size=16))
    assert small.singular_values.values.tobytes() == outcome.dataset.singular_values.values.tobytes()


def test_memory_errors_of_torch_are_recognised(
    model: Model, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(model, data)

    def fail(*args: object) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"
        )

    broken = Task(model, data, Replaced(task.analyzer, fail), task.options, 0, 1)
    with pytest.raises(OutOfMemory):
        run_samples(broken, MemoryKeeper())
    with pytest.raises(OutOfMemory, match="Not even one sample"):
        run_in_memory(broken)


class Replaced:
    """An analyzer with another compute."""

    def __init__(self, analyzer: object, compute: object) -> None:
        self._analyzer, self.compute = analyzer, compute

    def __getattr__(self, name: str) -> object:
        return getattr(self._analyzer, name)


def test_non_finite_samples_are_named_and_left_out(data: Data, tmp_path: Path) -> None:
    class Spiky(torch.nn.Module):
        """Its derivative is infinite where the first pixel row is dark, its value is finite."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1)) + x[:, 0, 0, 2].sqrt()[:, None]

    model = Model(Spiky(), (1, 8, 8))
    dark = np.flatnonzero(data.x[:, 0, 0, 2] == 0)
    assert 0 < len(dark) < 20
    found = specdiag.analyze(model, data, "spectrum")
    bad = np.isnan(found.singular_values.values).any(1)
    assert np.array_equal(np.flatnonzero(bad), dark)
    facts = store.provenance(found)
    assert any(str(data.index[dark[0]]) in warning["text"] for warning in facts["warnings"])
    metric = facts["metrics"]["sigma_max_mean"]
    assert np.isfinite(metric["value"])
    assert metric["excluded"] == len(dark)
    lines = [warning["text"] for warning in facts["warnings"] if warning["id"] == "SD201"]
    assert len(lines) == 1, "one line for one set of samples, whatever the number of arrays"
    for name in ("singular_values", "sigma_max", "frobenius"):
        assert name in lines[0]


def test_other_samples_have_a_line_of_their_own() -> None:
    analyzer = plugins.load("analyzer", "spectrum")
    nan, values = np.nan, np.ones(4)
    data = xarray.Dataset(
        {
            "sigma_max": ("sample", np.array([1, nan, nan, 1])),
            "lead": ("sample", np.array([1, 1, np.inf, nan])),
            "frobenius": ("sample", np.array([1, np.inf, nan, 1])),
            "stable_rank": ("sample", values),
            "condition": ("sample", np.array([np.inf, 1, 1, 1])),
        },
        {"sample": [3, 5, 8, 9]},
    )
    assert non_finite(analyzer, data) == [
        "2 of 4 samples have NaN or infinite sigma_max, frobenius (sample 5, 8); left out of the metrics.",
        "2 of 4 samples have NaN or infinite lead (sample 8, 9); left out of the metrics.",
    ]


def test_wrap_model_leaves_yours_alone() -> None:
    network = small_cnn().train()
    wrapped = wrap_model(network, (2, 8, 8), device="cpu")
    assert network.training
    assert network[0].weight.requires_grad
    assert wrapped.logits(torch.rand(2, 2, 8, 8)).shape == (2, 4)


def test_api_errors_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no analyzer named 'spectrums'"):
        specdiag.analyze(None, None, "spectrums")
    path = digits_checkpoint(tmp_path / "net.pt")
    with pytest.raises(UsageError, match="dtype"):
        specdiag.load_model(path, dtype="half")
    model, data = specdiag.load_model(path, device="cpu"), specdiag.load_data("digits", samples=2)
    with pytest.raises(UsageError, match="no option 'tops'"):
        specdiag.analyze(model, data, "spectrum", tops=3)


def test_only_finished_runs_are_results(model: Model, data: Data, tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    first = run_to_file(task_of(model, data), path)
    assert first.status == "computed"
    assert jobs.run_to_file(task_of(model, data), path).status == "already there"
    assert [entry.name for entry in tmp_path.iterdir() if "journal" in entry.name] == []
