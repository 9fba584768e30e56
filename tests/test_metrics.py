from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import xarray

from specdiag import metrics
from specdiag.metrics import aggregate
from specdiag.schema import Analyzer, MetricSpec, Reduce

SAMPLE = np.array([4.0, 1.0, 7.0, 2.0, 100.0])


@pytest.mark.parametrize(
    ("reduce", "value"),
    [
        ("mean", 22.8),
        ("median", 4.0),
        # deviations -18.8, -21.8, -15.8, -20.8, 77.2: squares sum to 7470.8
        ("std", math.sqrt(7470.8 / 4)),
        ("p05", 1.2),
        ("p95", 81.4),
        ("min", 1.0),
        ("max", 100.0),
        ("share", 1.0),
    ],
)
def test_values_by_hand(reduce: Reduce, value: float) -> None:
    assert aggregate(SAMPLE, reduce).value == pytest.approx(value, rel=1e-14)
    assert aggregate(SAMPLE[::-1].astype(np.float32), reduce).value == pytest.approx(value, rel=1e-14)


def test_standard_error_of_the_mean() -> None:
    values = np.random.default_rng(0).lognormal(size=400)
    metric = aggregate(values, "mean")
    assert metric.error == pytest.approx(values.std(ddof=1) / 20, rel=1e-14)
    # the percentile interval of a mean is near mean +- 1.96 standard errors
    assert metric.low == pytest.approx(metric.value - 1.96 * metric.error, abs=0.25 * metric.error)
    assert metric.high == pytest.approx(metric.value + 1.96 * metric.error, abs=0.25 * metric.error)
    assert (metric.n, metric.excluded) == (400, 0)


def test_share_of_true_values() -> None:
    metric = aggregate(np.array([True] * 30 + [False] * 70), "share")
    assert metric.value == 0.3
    assert metric.error == pytest.approx(math.sqrt(0.3 * 0.7 / 99), rel=1e-14)
    assert metric.low < 0.3 < metric.high


def test_median_interval_covers() -> None:
    """The exact coverage of an order-statistics interval is 95 %; 400 trials have a deviation of 1.1 %."""
    hits = 0
    for trial in range(400):
        values = np.random.default_rng(trial).standard_normal(100)
        metric = aggregate(values, "median", seed=trial)
        hits += metric.low <= 0.0 <= metric.high
    assert 0.915 <= hits / 400 <= 0.985


def test_bootstrap_error_of_the_median() -> None:
    """Known answer: the median of n normal values has the deviation sqrt(pi / (2 n)) for large n."""
    errors = [aggregate(np.random.default_rng(k).standard_normal(400), "median").error for k in range(50)]
    assert np.mean(errors) == pytest.approx(math.sqrt(math.pi / 800), rel=0.1)


def test_bootstrap_of_three_values() -> None:
    """All 27 resamples of (0, 1, 2): their median is 0, 1, 2 with probability 7, 13, 7 / 27."""
    metric = aggregate(np.array([0.0, 1.0, 2.0]), "median")
    exact = math.sqrt(14 / 27)
    assert metric.value == 1.0
    assert metric.error == pytest.approx(exact, rel=0.06)
    assert (metric.low, metric.high) == (0.0, 2.0)


def test_seeded() -> None:
    first, again, other = (aggregate(SAMPLE, "p95", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert aggregate(SAMPLE, "mean", seed=0).error == aggregate(SAMPLE, "mean", seed=1).error


def test_constant_values() -> None:
    metric = aggregate(np.full(50, 0.1), "p95")
    assert metric.value == metric.low == metric.high == 0.1
    assert metric.error == pytest.approx(0.0, abs=1e-16)


def test_values_that_are_not_finite() -> None:
    metric = aggregate(np.array([1.0, math.nan, 3.0, math.inf, -math.inf]), "mean")
    assert (metric.value, metric.n, metric.excluded) == (2.0, 2, 3)
    assert metric.error == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[], [math.nan, math.inf]])
@pytest.mark.parametrize("reduce", ["mean", "median", "std", "p05", "p95", "min", "max", "share"])
def test_nothing_to_aggregate(values: list[float], reduce: Reduce) -> None:
    metric = aggregate(np.array(values), reduce)
    assert (metric.n, metric.excluded) == (0, len(values))
    assert all(math.isnan(number) for number in (metric.value, metric.error, metric.low, metric.high))


def test_one_value_has_no_error() -> None:
    metric = aggregate(np.array([3.0]), "median")
    assert metric.value == 3.0
    assert math.isnan(metric.error)
    assert math.isnan(metric.low)
    assert math.isnan(aggregate(np.array([3.0]), "std").value)


def test_blocks_are_not_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).standard_normal(300)
    whole = aggregate(values, "median")
    # generator.integers draws the same numbers in one call as in several
    monkeypatch.setattr(metrics, "_BLOCK", 300 * 1000)
    assert aggregate(values, "median") == whole


def analyzer(specs: dict[str, MetricSpec], summarise: Any = None) -> Analyzer:
    return Analyzer(
        name="demo",
        summary="",
        source="",
        version=1,
        options=object,
        arrays={},
        metrics=specs,
        compute=None,
        plot=lambda runs, figure: None,
        summarise=summarise,
    )


@pytest.fixture
def dataset() -> xarray.Dataset:
    rng = np.random.default_rng(0)
    return xarray.Dataset(
        {
            "sigma": ("sample", np.array([1.0, 2.0, np.nan, 6.0])),
            "gain": (("layer", "sample"), rng.random((3, 4))),
            "std": ("layer", np.array([0.1, 0.3, 0.2], np.float32)),
            "grid": (("sample", "attack", "eps"), rng.random((4, 2, 2))),
        },
        coords={
            "sample": [10, 20, 30, 40],
            "layer": ["a", "b", "c"],
            "attack": ["pgd", "fgm"],
            "eps": [0.5, 1.0],
        },
    )


def test_summarise_aggregates(dataset: xarray.Dataset) -> None:
    spec = MetricSpec("logit", "lower", "Mean sigma.", of="sigma", reduce="mean")
    result = metrics.summarise(analyzer({"sigma_mean": spec}), dataset)["sigma_mean"]
    expected = aggregate([1.0, 2.0, 6.0], "mean")
    assert {key: result[key] for key in ("value", "error", "low", "high", "n")} == {
        key: getattr(expected, key) for key in ("value", "error", "low", "high", "n")
    }
    assert (result["unit"], result["better"], result["doc"]) == ("logit", "lower", "Mean sigma.")
    assert (result["excluded"], result["excluded_samples"]) == (1, [30])


def test_summarise_per_layer(dataset: xarray.Dataset) -> None:
    specs = {
        "gain_mean": MetricSpec("1", "lower", "", of="gain", reduce="mean", dims=("layer",)),
        "std": MetricSpec("logit", "lower", "", of="std", dims=("layer",)),
        "std_max": MetricSpec("logit", "lower", "", of="std", reduce="max"),
    }
    result = metrics.summarise(analyzer(specs), dataset)
    assert list(result) == list(specs)
    gain = result["gain_mean"]
    np.testing.assert_allclose(gain["value"], dataset["gain"].values.mean(axis=1), rtol=1e-15)
    assert gain["low"][1] == aggregate(dataset["gain"].values[1], "mean").low
    assert (gain["labels"], gain["dims"], gain["n"]) == (["a", "b", "c"], ["layer"], [4, 4, 4])
    np.testing.assert_array_equal(result["std"]["value"], dataset["std"].values.astype(float))
    assert all(math.isnan(error) for error in result["std"]["error"])
    # layers are no random sample: no error is claimed
    assert result["std_max"]["value"] == dataset["std"].values.max().astype(float)
    assert math.isnan(result["std_max"]["error"])


def test_summarise_two_dimensions(dataset: xarray.Dataset) -> None:
    spec = MetricSpec("1", "lower", "", of="grid", reduce="max", dims=("attack", "eps"))
    result = metrics.summarise(analyzer({"worst": spec}), dataset)["worst"]
    assert result["labels"] == ["pgd/0.5", "pgd/1.0", "fgm/0.5", "fgm/1.0"]
    np.testing.assert_array_equal(result["value"], dataset["grid"].values.max(axis=0).ravel())


def test_summarise_of_the_analyzer(dataset: xarray.Dataset) -> None:
    specs = {"gap": MetricSpec("1", "lower", ""), "per": MetricSpec("1", "higher", "", dims=("layer",))}
    own = {"gap": (0.5, 0.1), "per": (np.array([1.0, 2.0, 3.0]), math.nan)}
    result = metrics.summarise(analyzer(specs, lambda data: own), dataset)
    assert result["gap"]["low"] == pytest.approx(0.5 - 1.959964 * 0.1, rel=1e-7)
    assert result["gap"]["n"] == 4
    assert result["per"]["value"] == [1.0, 2.0, 3.0]
    assert len(result["per"]["error"]) == 3
    assert result["per"]["labels"] == ["a", "b", "c"]


def test_summarise_leaves_out_what_is_absent(dataset: xarray.Dataset) -> None:
    specs = {"r2": MetricSpec("1", "higher", "", of="r2", reduce="mean"), "gap": MetricSpec("1", "lower", "")}
    assert metrics.summarise(analyzer(specs, lambda data: {}), dataset) == {}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (MetricSpec("1", "lower", "", of="gain", reduce="mean"), "one dimension to reduce"),
        (MetricSpec("1", "lower", "", of="sigma", reduce="mean", dims=("layer",)), "no dimension 'layer'"),
        (MetricSpec("1", "lower", "", of="gain", dims=("layer",)), "no reduce"),
    ],
)
def test_declarations_that_do_not_fit(dataset: xarray.Dataset, spec: MetricSpec, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metrics.summarise(analyzer({"m": spec}), dataset)


def test_undeclared_metric(dataset: xarray.Dataset) -> None:
    with pytest.raises(ValueError, match="'gap', which it does not declare"):
        metrics.summarise(analyzer({}, lambda data: {"gap": (1.0, 0.1)}), dataset)
