"""The baseline file, observations of stored results, and values over samples found one by one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from gate_common import number, population
from report_common import stored

from specdiag import plugins
from specdiag.errors import NothingAnalysed, ResultsError
from specdiag.gate.alone import values_alone
from specdiag.gate.baseline import read_baseline, write_baseline
from specdiag.gate.observations import contrast, observe
from specdiag.schema import Analyzer, ArraySpec, MetricSpec


def test_a_baseline_gives_back_what_was_written(tmp_path: Path) -> None:
    values = population(50)
    values[7] = np.nan
    numbers = [
        number(values),
        number(values.astype(np.float32), metric="other", label="conv1"),
        number(value=float("inf"), error=0.5, checkpoint="b", analyzer="layers", metric="x", label="fc"),
        number([1, 0, 1], checkpoint="b", metric="share", index=[3, 9, 4]),
    ]
    path = tmp_path / "new" / "baseline.json"
    write_baseline(path, numbers)
    found = read_baseline(path)
    assert set(found) == {entry.key for entry in numbers}
    for entry in numbers:
        again = found[entry.key]
        # equal in everything but the values over samples, which dataclasses leave out, and NaN
        for item in dataclasses.fields(entry):
            mine, theirs = getattr(entry, item.name), getattr(again, item.name)
            assert item.name == "values" or mine == theirs or repr(mine) == repr(theirs)
        if entry.values is not None:
            assert again.values is not None
            assert np.array_equal(again.values, entry.values, equal_nan=True)


def test_equal_contents_give_equal_bytes_and_lines_are_short_of_settings(tmp_path: Path) -> None:
    numbers = [number(population(50), metric=name) for name in ("a", "b")]
    write_baseline(tmp_path / "1.json", numbers)
    write_baseline(tmp_path / "2.json", numbers[::-1])
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    # the array that both aggregate is kept once
    assert (tmp_path / "1.json").read_text().count('"values"') == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "", "cannot be read"),
        (lambda text: text[:-20], "cannot be read"),
        (lambda text: "[]", "no baseline of specdiag"),
        (lambda text: text.replace("specdiag-baseline", "other"), "no baseline of specdiag"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "newer specdiag"),
        (lambda text: text.replace('"dtype": "float32"', '"dtype": "float64"', 1), "edited"),
        (lambda text: text.replace('"arrays"', '"arays"'), "damaged"),
    ],
)
def test_a_baseline_that_is_not_whole_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    entry = number(population(5))
    write_baseline(path, [entry])
    text = path.read_text()
    # the settings are sorted after the arrays, so that the first dtype of float32 is theirs or an array's
    changed = change(text.replace('"dtype": "float64"', '"dtype": "f8"'))
    if said == "edited":
        content = json.loads(text)
        content["checkpoints"]["a"]["spectrum"]["settings"]["dtype"] = "float64"
        changed = json.dumps(content)
    path.write_text(changed)
    with pytest.raises(ResultsError, match=said):
        read_baseline(path)


def test_no_baseline_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="--write-baseline"):
        read_baseline(tmp_path / "baseline.json")
    with pytest.raises(NothingAnalysed):
        write_baseline(tmp_path / "baseline.json", [])


def test_observations_of_a_stored_result(tmp_path: Path) -> None:
    result = stored(tmp_path, "net")
    numbers = {
        entry.metric: entry for entry in observe("net", result.dataset, plugins.load("analyzer", "spectrum"))
    }
    mean = numbers["sigma_max_mean"]
    assert mean.values is not None
    assert mean.value == pytest.approx(mean.values.mean())
    assert (mean.reduce, mean.array, mean.n, mean.better) == ("mean", "sigma_max", 60, "lower")
    assert mean.origin.index == tuple(range(60))
    assert mean.origin.splits == ("test",) * 60
    assert numbers["condition_median"].values is None
    bare = {entry.metric: entry for entry in observe("net", result.dataset, None)}
    assert bare["sigma_max_mean"].values is None
    assert bare["sigma_max_mean"].value == mean.value


def test_settings_are_told_apart_by_what_they_do() -> None:
    old = {
        "seed": 0,
        "dtype": "float32",
        "versions": {"torch": "1"},
        "checkpoint": {"sha256": "a", "space": "data"},
    }
    new = {
        "seed": 1,
        "dtype": "float64",
        "versions": {"torch": "2"},
        "checkpoint": {"sha256": "b", "space": "data"},
    }
    found = contrast(old, new)
    assert found.forbidding == ("dtype: float32 -> float64",)
    assert found.samples == ("seed: 0 -> 1",)
    assert found.machine == ("versions.torch: 1 -> 2",)


def _analyzer(summarise: Any) -> Analyzer:
    metrics = {name: MetricSpec("1", "higher", name) for name in ("mean", "median", "ratio", "pair")}
    return Analyzer(
        "x",
        "",
        "",
        1,
        object,
        {"v": ArraySpec(("sample",), "1", "v")},
        metrics,
        None,
        lambda runs, figure: None,
        summarise,
    )


def test_means_are_recognised_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.standard_normal(40), rng.random(40)
    data = xarray.Dataset({"v": ("sample", values), "w": ("sample", weights)})

    def summarise(part: xarray.Dataset) -> dict[str, Any]:
        v, w = part["v"].values, part["w"].values
        return {
            "mean": (float((v > 0).mean()), 0.1),
            "median": (float(np.median(v)), 0.1),
            "ratio": (float(v.sum() / w.sum()), 0.1),
            "pair": ([v.mean(), w.mean()], [0.1, 0.1]),
        }

    found = values_alone(_analyzer(summarise), data)
    assert set(found) == {"mean", "pair"}
    assert np.array_equal(found["mean"], (values > 0)[None].astype(float))
    assert np.array_equal(found["pair"], np.stack([values, weights]))


def test_an_analyzer_that_takes_too_long_or_cannot_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = xarray.Dataset({"v": ("sample", np.arange(10.0))})
    assert values_alone(_analyzer(None), data) == {}

    def picky(part: xarray.Dataset) -> dict[str, Any]:
        if part.sizes["sample"] < 2:
            raise ValueError("needs two")
        return {"mean": (1.0, 0.0)}

    assert values_alone(_analyzer(picky), data) == {}
    monkeypatch.setattr("specdiag.gate.alone.PATIENCE", -1.0)
    assert values_alone(_analyzer(lambda part: {"mean": (1.0, 0.0)}), data) == {}
