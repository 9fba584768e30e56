"""What holds for every registered analyzer, attack and training method."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import specdiag
from specdiag import figures, jobs, options, plugins, store
from specdiag.model import Model
from specdiag.schema import Analyzer, fields

ANALYZERS = plugins.names("analyzer")
COMMON = {
    "arch",
    "data",
    "split",
    "samples",
    "seed",
    "out",
    "checkpoints",
    "checkpoint",
    "gate",
    "baseline",
    "report",
    "jobs",
}


def load(name: str) -> Analyzer:
    analyzer: Analyzer = plugins.load("analyzer", name)
    return analyzer


@pytest.fixture(scope="module")
def model(samples: Path) -> Model:
    return specdiag.load_model(samples / "digits-standard.pt", device="cpu")


@pytest.mark.parametrize("name", ANALYZERS)
def test_declaration(name: str) -> None:
    analyzer = load(name)
    assert analyzer.name == name
    assert analyzer.summary.endswith(".")
    assert analyzer.version >= 1
    assert analyzer.source
    for spec in analyzer.arrays.values():
        assert spec.doc
        assert spec.unit
        if analyzer.kind == "sample" and "sample" in spec.dims:
            assert spec.dims[0] == "sample"
    for metric, spec in analyzer.metrics.items():
        assert spec.doc, metric
        assert spec.better in ("lower", "higher", "neither")
        if spec.of is not None:
            assert spec.of in analyzer.arrays, metric
        else:
            assert analyzer.summarise is not None, metric
    assert dataclasses.is_dataclass(analyzer.options)


@pytest.mark.parametrize("name", ANALYZERS)
def test_every_option_is_described_and_none_shadows_a_common_one(name: str) -> None:
    for item in options.all_fields(load(name)):
        assert item.doc, item.name
        assert item.name not in COMMON
        assert item.flag.startswith("--")


@pytest.mark.parametrize("name", plugins.names("attack"))
def test_attacks_are_named_like_their_file(name: str) -> None:
    attack = plugins.load("attack", name)
    assert attack.name == name
    assert attack.summary
    assert all(item.doc for item in fields(attack.options))
    assert callable(attack.options.perturb)


def quick(name: str) -> dict[str, object]:
    """Options that do not depend on which samples are chosen: the default eps is a share of their mean norm."""
    known = {item.name for item in options.all_fields(load(name))}
    attacks = [item.default for item in fields(load(name).options) if item.name in ("attack", "at")]
    if not options.takes_attack(load(name)) or attacks in (["clean"], ["none"], [None]):
        return {}
    return {"eps": 0.5} if "eps" in known else {}


@pytest.mark.parametrize("name", [n for n in ANALYZERS if load(n).kind == "sample"])
def test_sample_analyzers_do_not_depend_on_the_chunks(name: str, model: Model) -> None:
    """Declared arrays only, one row per sample, equal for another chunk grid, drawn and summarised."""
    analyzer = load(name)
    data = specdiag.load_data("digits", samples=11)
    small, large = (specdiag.analyze(model, data, name, batch_size=size, **quick(name)) for size in (8, 16))
    assert set(small.data_vars) <= set(analyzer.arrays)
    assert small.sizes["sample"] == 11
    clear = np.ones(11, bool)
    if "near_kink" in small:
        clear = (small.near_kink.values == 0) & (large.near_kink.values == 0)
    for variable in small.data_vars:
        if "sample" not in small[variable].dims:
            continue
        a, b = (run[variable].transpose("sample", ...).values[clear] for run in (small, large))
        if a.dtype.kind == "f":
            scale = np.nanmax(np.abs(a[np.isfinite(a)]), initial=0)
            assert np.allclose(a, b, rtol=2e-3, atol=2e-4 * max(1.0, scale), equal_nan=True), variable
        else:
            assert (a == b).mean() > 0.95, variable
    facts = store.provenance(small)
    assert set(facts["metrics"]) <= set(analyzer.metrics)
    assert facts["metrics"]
    assert all(len(warning["id"]) >= 5 for warning in facts["warnings"])
    figure = figures.new_figure()
    with figures.style():
        analyzer.plot({"one": small, "other": large}, figure)
    assert figure.axes
    for ax in figure.axes[:1]:
        assert ax.get_xlabel()
        assert ax.get_ylabel()
    if analyzer.table is not None:
        titles, rows = analyzer.table(small)
        assert rows
        assert all(len(row) == len(titles) for row in rows)
    if analyzer.sentence is not None:
        assert analyzer.sentence(small).endswith(".")


@pytest.mark.parametrize("name", [n for n in ANALYZERS if load(n).kind == "sample"])
def test_the_second_sample_has_no_say_in_the_first(name: str, model: Model) -> None:
    few, more = (specdiag.load_data("digits", samples=n) for n in (4, 9))
    alone = specdiag.analyze(model, few, name, batch_size=8, **quick(name))
    together = specdiag.analyze(model, more, name, batch_size=16, **quick(name))
    shared = sorted(set(alone.sample.values) & set(together.sample.values))
    assert shared == sorted(alone.sample.values), "a smaller choice is a subset"
    first = next(
        v for v in alone.data_vars if alone[v].dims[:1] == ("sample",) and alone[v].dtype.kind == "f"
    )
    a, b = alone[first].sel(sample=shared).values, together[first].sel(sample=shared).values
    scale = np.nanmax(np.abs(a[np.isfinite(a)]), initial=1e-30)
    assert np.nanmedian(np.abs(a - b)) <= 1e-4 * scale


def test_nothing_is_left_on_the_model(model: Model) -> None:
    for module in (*model.network.modules(), *model.fast.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_grad_mode_of_the_caller_does_not_matter(model: Model) -> None:
    data = specdiag.load_data("digits", samples=4)
    with torch.no_grad():
        inside = specdiag.analyze(model, data, "spectrum")
    assert np.array_equal(inside.singular_values, specdiag.analyze(model, data, "spectrum").singular_values)
    assert jobs.DTYPES["float32"] == torch.float32
