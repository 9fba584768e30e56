"""Intervals: known answers, and the rates of false alarms and misses on a small number of trials."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gate_common import number, population

from specdiag.gate import statistics
from specdiag.gate.judge import judge
from specdiag.gate.rules import read_rules

RULES = read_rules([{"metric": "spectrum.sigma_max_mean", "max_increase": 0}], "b.json")


def test_the_interval_of_a_mean_is_the_normal_one_for_normal_values() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    found = statistics.of_value(values, "mean", 0.01)
    half = 2.3263 * values.std() / math.sqrt(400)
    assert found.estimate == values.mean()
    assert found.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_the_far_tail_is_never_narrower_than_the_normal_one() -> None:
    values = population(100)
    found = statistics.of_value(values, "mean", 1e-6)
    half = 4.7534 * values.std() / math.sqrt(100)
    assert found.low <= values.mean() - 0.95 * half
    assert found.high >= values.mean() + 0.95 * half


@pytest.mark.parametrize("reduce", ["mean", "median", "p95", "max", "std"])
def test_pairing_cancels_what_samples_share(reduce: str) -> None:
    values = population(300)
    paired = statistics.of_paired_change(values, 1.02 * values, reduce, 0.01, relative=True)  # type: ignore[arg-type]
    unpaired = statistics.of_unpaired_change(values, 1.02 * values, reduce, 0.01, relative=True)  # type: ignore[arg-type]
    assert paired.low == pytest.approx(0.02)
    assert paired.high == pytest.approx(0.02)
    assert unpaired.high - unpaired.low > 0.1


def test_the_same_call_gives_the_same_numbers() -> None:
    values, other = population(150), population(150, seed=8)
    first = statistics.of_unpaired_change(values, other, "mean", 0.01, relative=False)
    assert first == statistics.of_unpaired_change(values, other, "mean", 0.01, relative=False)


def test_a_baseline_around_zero_has_no_relative_interval() -> None:
    found = statistics.of_paired_change(
        np.array([0.0, 0.0]), np.array([1.0, 1.0]), "mean", 0.01, relative=True
    )
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_false_alarms_and_misses_in_a_few_trials() -> None:
    """The full 2,000 trials are in benchmarks/gate_statistics.py."""
    everything, rng = population(2000), np.random.default_rng(3)
    alarms = caught = 0
    trials = 120
    for _ in range(trials):
        order = rng.permutation(2000)
        old, new = everything[order[:200]], everything[order[200:400]]
        before = number(old)
        baseline = {"b.json": {before.key: before}}
        other = number(new, index=range(200, 400), settings={"seed": 1})
        alarms += judge(RULES, [other], baseline)[0].outcome == "fail"
        noisy = number(old * 1.05 * np.exp(0.1 * rng.standard_normal(200)))
        caught += judge(RULES, [noisy], baseline)[0].outcome == "fail"
    # at 1.7 % six or more alarms in 120 trials would be met once in 60 runs of this test, were it not seeded
    assert alarms <= 5
    assert caught >= 0.95 * trials
