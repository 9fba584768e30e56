"""Rules, verdicts and their boundaries; what must never pass in silence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from gate_common import number, population

from specdiag import plugins
from specdiag.errors import UsageError
from specdiag.gate.judge import Verdict, judge
from specdiag.gate.rules import Rule, check_names, read_rules

METRIC = "spectrum.sigma_max_mean"


def rule(**table: Any) -> Rule:
    return read_rules([{"metric": METRIC, **table}], "baseline.json")[0]


def compare(table: dict[str, Any], old: Any, new: Any) -> Verdict:
    (verdict,) = judge([rule(**table)], [new], {"baseline.json": {old.key: old}})
    return verdict


@pytest.mark.parametrize(
    ("table", "value", "outcome"),
    [
        ({"max": 12.0}, 12.0, "pass"),
        ({"max": 12.0}, np.nextafter(12.0, 13), "fail"),
        ({"max": 12.0}, -5.0, "pass"),
        ({"min": 0.5}, 0.5, "pass"),
        ({"min": 0.5}, np.nextafter(0.5, 0), "fail"),
        ({"max": 0.0}, 0.0, "pass"),
        ({"max": -1}, -1.0, "pass"),
        ({"max": 12.0}, math.nan, "fail"),
        ({"min": 0.0}, math.nan, "fail"),
        ({"max": 12.0}, math.inf, "fail"),
        ({"min": 0.0}, math.inf, "fail"),
    ],
)
def test_an_exact_value_against_a_constant(table: dict[str, Any], value: float, outcome: str) -> None:
    (verdict,) = judge([rule(**table)], [number(value=value)], {})
    assert verdict.outcome == outcome
    assert verdict.checkpoint == "a"
    assert verdict.name == METRIC


@pytest.mark.parametrize(
    ("table", "old", "new", "outcome"),
    [
        ({"max_increase": "10%"}, 10.0, 11.0, "pass"),
        ({"max_increase": "10%"}, 10.0, 11.01, "fail"),
        ({"max_increase": "10%"}, -10.0, -9.5, "pass"),
        ({"max_increase": "10%"}, -10.0, -8.9, "fail"),
        ({"max_increase": 1}, 10.0, 11.0, "pass"),
        ({"max_increase": 1}, 10.0, 11.5, "fail"),
        ({"max_increase": 0}, 10.0, 10.0, "pass"),
        ({"max_increase": "-5%"}, 10.0, 9.6, "fail"),
        ({"max_increase": "-5%"}, 10.0, 9.4, "pass"),
        ({"max_increase": "10%"}, 10.0, 2.0, "pass"),
        ({"max_increase": "10%"}, 10.0, math.nan, "fail"),
        ({"max_increase": "10%"}, math.nan, 10.0, "fail"),
        ({"max_increase": "10%"}, 0.0, 10.0, "error"),
        ({"max_increase": 0.5}, 0.0, 0.5, "pass"),
    ],
)
def test_an_exact_change(table: dict[str, Any], old: float, new: float, outcome: str) -> None:
    assert compare(table, number(value=old), number(value=new)).outcome == outcome


def test_a_decrease_is_guarded_where_more_is_better() -> None:
    table = {"max_decrease": "10%"}
    old = number(value=0.5, better="higher")
    assert compare(table, old, number(value=0.46, better="higher")).outcome == "pass"
    assert compare(table, old, number(value=0.44, better="higher")).outcome == "fail"
    assert compare(table, old, number(value=0.9, better="higher")).outcome == "pass"


def test_standard_errors_make_an_interval_where_there_are_no_samples() -> None:
    # 98 %: 2.326 standard errors on each side
    assert judge([rule(max=12)], [number(value=11.0, error=0.4)], {})[0].outcome == "pass"
    assert judge([rule(max=12)], [number(value=11.1, error=0.4)], {})[0].outcome == "investigate"
    assert judge([rule(max=12)], [number(value=12.9, error=0.4)], {})[0].outcome == "investigate"
    verdict = judge([rule(max=12)], [number(value=13.0, error=0.4)], {})[0]
    assert verdict.outcome == "fail"
    assert verdict.low == pytest.approx(13 - 2.3263479 * 0.4)
    assert verdict.detectable == pytest.approx(2.3263479 * 0.4)


def test_an_equal_rise_of_every_sample_has_no_width() -> None:
    values = population(200)
    verdict = compare({"max_increase": "4.9%"}, number(values), number(1.05 * values))
    assert (verdict.outcome, verdict.pairing) == ("fail", "paired")
    assert verdict.low == pytest.approx(0.05)
    assert verdict.high == pytest.approx(0.05)
    assert compare({"max_increase": "5.1%"}, number(values), number(1.05 * values)).outcome == "pass"


def test_the_same_numbers_pass_a_limit_of_zero() -> None:
    values = population(200)
    assert compare({"max_increase": 0}, number(values), number(values)).outcome == "pass"


def test_a_borderline_change_is_to_be_investigated() -> None:
    rng = np.random.default_rng(1)
    values = population(200)
    verdict = compare(
        {"max_increase": "5%"}, number(values), number(1.05 * values * np.exp(0.3 * rng.standard_normal(200)))
    )
    assert verdict.outcome == "investigate"
    assert verdict.low < 0.05 < verdict.high
    assert "smallest excess" in verdict.text


def test_other_samples_are_compared_unpaired_and_said_so() -> None:
    first, second = population(400).reshape(2, 200)
    new = number(second, index=range(200, 400), settings={"data": {"sha256": "ee"}, "seed": 1})
    verdict = compare({"max_increase": "50%"}, number(first), new)
    assert (verdict.outcome, verdict.pairing) == ("pass", "unpaired")
    assert any("unpaired" in note and "seed: 0 -> 1" in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"options": {"layer": "features", "method": "autograd"}}, "options.layer: logits -> features"),
        ({"dtype": "float64"}, "dtype: float32 -> float64"),
        ({"analyzer_version": 2}, "analyzer_version: 1 -> 2"),
        (
            {"checkpoint": {"sha256": "bb", "architecture": "cnn7", "space": "data"}},
            "checkpoint.architecture: cnn4 -> cnn7",
        ),
        ({"something_new": True}, "something_new: absent -> true"),
    ],
)
def test_a_baseline_of_other_settings_is_an_error_that_names_them(
    changed: dict[str, Any], named: str
) -> None:
    values = population(200)
    verdict = compare({"max_increase": "10%"}, number(values), number(values, settings=changed))
    assert verdict.outcome == "error"
    assert named in verdict.text


def test_other_weights_are_what_a_comparison_is_about() -> None:
    values = population(200)
    other = {"checkpoint": {"sha256": "bb", "architecture": "cnn4", "space": "data"}}
    assert compare({"max_increase": 0}, number(values), number(values, settings=other)).outcome == "pass"


def test_another_machine_is_a_note_and_never_fails_an_exact_number() -> None:
    old, new = number(value=10.0), number(value=10.0 * (1 + 1e-6), settings={"versions": {"torch": "2.13"}})
    verdict = compare({"max_increase": 0}, old, new)
    assert verdict.outcome == "investigate"
    assert any("2.12 -> 2.13" in note for note in verdict.notes)
    assert compare({"max_increase": 0}, old, number(value=10.0 * (1 + 1e-6))).outcome == "fail"


def test_samples_left_out_fail() -> None:
    values = population(200)
    values[3] = math.nan
    entry = number(values, excluded=1)
    assert judge([rule(max=1e9)], [entry], {})[0].outcome == "fail"
    assert compare({"max_increase": "10%"}, number(population(200)), entry).outcome == "fail"
    assert compare({"max_increase": "10%"}, entry, number(population(200))).outcome == "fail"


def test_what_is_missing_fails() -> None:
    (verdict,) = judge([rule(max=1)], [], {})
    assert verdict.outcome == "fail"
    (verdict,) = judge([rule(max=1, checkpoint="b*")], [number(value=0.5)], {})
    assert verdict.outcome == "fail"
    assert "No stored number matches" in verdict.text


def test_an_entry_that_left_the_results_fails() -> None:
    one, two = number(value=1.0, label="conv1"), number(value=1.0, label="conv2")
    verdicts = judge([rule(max_increase=1)], [one], {"baseline.json": {one.key: one, two.key: two}})
    assert [(v.outcome, v.label) for v in verdicts] == [("fail", "conv2"), ("pass", "conv1")]


def test_a_checkpoint_that_is_not_judged_now_is_not_missed() -> None:
    one, two = number(value=1.0), number(value=1.0, checkpoint="b")
    verdicts = judge([rule(max_increase=1)], [one], {"baseline.json": {one.key: one, two.key: two}})
    assert [v.outcome for v in verdicts] == ["pass"]


def test_no_baseline_is_an_error() -> None:
    (verdict,) = judge(
        [rule(max_increase=1)], [number(value=1.0)], {"baseline.json": "there is no such file"}
    )
    assert verdict.outcome == "error"
    (verdict,) = judge([rule(max_increase=1)], [number(value=1.0)], {"baseline.json": {}})
    assert verdict.outcome == "error"
    assert "--write-baseline" in verdict.text


def test_globs_over_checkpoint_analyzer_metric_and_layer() -> None:
    numbers = [
        number(value=value, checkpoint=checkpoint, analyzer="layers", metric=metric, label=label)
        for value, checkpoint, metric, label in [
            (1.0, "a-1", "sigma_std", "layer3.0.conv1"),
            (2.0, "a-2", "sigma_std", "layer3.1.conv1"),
            (3.0, "a-1", "sigma_std", "layer2.0.conv1"),
            (4.0, "b-1", "sigma_std", "layer3.0.conv1"),
            (5.0, "a-1", "sigma_max", "layer3.0.conv1"),
        ]
    ]
    (one,) = read_rules([{"metric": "layers.sigma_s*", "layer": "layer3.*", "checkpoint": "a-*", "max": 0.5}])
    verdicts = judge([one], numbers, {})
    assert [verdict.value for verdict in verdicts] == [2.0, 1.0]
    assert {verdict.outcome for verdict in verdicts} == {"fail"}


def test_the_worst_come_first() -> None:
    numbers = [number(value=value, metric=f"m{value}") for value in (1.0, 30.0, 5.0, 20.0)]
    verdicts = judge(
        read_rules([{"metric": "spectrum.m*", "max": 10}, {"metric": "x.y", "max": 1}]), numbers, {}
    )
    assert [verdict.value for verdict in verdicts[:2]] == [30.0, 20.0]
    assert [verdict.outcome for verdict in verdicts] == ["fail", "fail", "fail", "pass", "pass"]
    assert verdicts[2].rule.metric == "x.y"


def test_a_pattern_leaves_out_metrics_that_improve_that_way() -> None:
    numbers = [number(value=2.0), number(value=2.0, metric="accuracy", better="higher")]
    baseline = {
        entry.key: entry
        for entry in (number(value=1.0), number(value=1.0, metric="accuracy", better="higher"))
    }
    (one,) = read_rules([{"metric": "spectrum.*", "max_increase": "10%"}], "b.json")
    verdicts = judge([one], numbers, {"b.json": baseline})
    assert [(v.outcome, v.metric) for v in verdicts] == [("fail", "sigma_max_mean"), ("skipped", "accuracy")]
    (two,) = read_rules([{"metric": "spectrum.acc*", "max_increase": "10%"}], "b.json")
    assert [v.outcome for v in judge([two], numbers, {"b.json": baseline})] == ["error"]


def test_the_level_is_divided_among_the_metrics_of_a_rule() -> None:
    numbers = [number(value=1.0, error=0.1, metric=f"m{i}") for i in range(4)]
    verdicts = judge(read_rules([{"metric": "spectrum.m*", "max": 10}]), numbers, {})
    assert {round(verdict.level, 6) for verdict in verdicts} == {0.995}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "no metric"),
        ({"metric": METRIC}, "no limit"),
        ({"metric": "sigma_max_mean", "max": 1}, "analyzer.metric"),
        ({"metric": METRIC, "max": math.nan}, "no limit"),
        ({"metric": METRIC, "max": math.inf}, "no limit"),
        ({"metric": METRIC, "max": True}, "not a number"),
        ({"metric": METRIC, "max": "12"}, "percentage"),
        ({"metric": METRIC, "max": "12%"}, "nothing to take it of"),
        ({"metric": METRIC, "max_increase": "ten%"}, "percentage"),
        ({"metric": METRIC, "max_increase": "nan%"}, "percentage"),
        ({"metric": METRIC, "max_increase": "1%"}, "no baseline"),
        ({"metric": METRIC, "maximum": 1}, "Did you mean max"),
        ({"metric": METRIC, "max": 1, "layer": 3}, "not a text"),
        ({"metric": 3, "max": 1}, "not a text"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(table: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_rules([table])


def test_names_that_no_analyzer_declares_are_refused() -> None:
    analyzers = [plugins.load("analyzer", "spectrum")]
    check_names(
        read_rules([{"metric": METRIC, "max": 1}, {"metric": "spectrum.*_mean", "max": 1}]), analyzers
    )
    with pytest.raises(UsageError, match=r"Did you mean spectrum.sigma_max_mean"):
        check_names(read_rules([{"metric": "spectrum.sigma_max_maen", "max": 1}]), analyzers)
    with pytest.raises(UsageError, match="no metric matches"):
        check_names(read_rules([{"metric": "spektrum.*", "max": 1}]), analyzers)
    with pytest.raises(UsageError, match="Use max_increase"):
        check_names(read_rules([{"metric": METRIC, "max_decrease": 1}], "b.json"), analyzers)
