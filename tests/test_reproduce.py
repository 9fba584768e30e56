"""Verdicts on constructed numbers, and every paper's pipeline on a handful of samples."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from specdiag import plugins
from specdiag.reproduce import _judge, _table
from specdiag.reproduce._judge import Claim, Estimate, above, below, between, estimate, over_seeds, verdict
from specdiag.reproduce._plan import Choice, Paper, Plan, Scene, scene_of

PAPERS = plugins.names("paper")


@pytest.mark.parametrize(
    ("low", "high", "rule", "expected"),
    [
        (0.1, 0.3, above(0), "holds"),
        (-0.3, -0.1, above(0), "does not hold"),
        (-0.1, 0.3, above(0), "undecided"),
        (-0.3, -0.1, below(0), "holds"),
        (0.1, 0.3, below(0), "does not hold"),
        (0.2, 0.3, between(0.1, 0.4), "holds"),
        (0.2, 0.5, between(0.1, 0.4), "undecided"),
        (0.5, 0.6, between(0.1, 0.4), "does not hold"),
        (math.nan, math.nan, above(0), "undecided"),
        (0.0, 0.0, above(0), "does not hold"),
    ],
)
def test_verdict_follows_from_interval_and_rule(
    low: float, high: float, rule: _judge.Rule, expected: str
) -> None:
    assert verdict(Estimate((low + high) / 2, low, high, 1, 10), rule) == expected


def test_interval_over_samples_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 4000)
    found = estimate(np.mean, [(values,)])
    half = 1.96 * values.std() / math.sqrt(4000)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_paired_samples_cancel() -> None:
    generator = np.random.default_rng(1)
    shared = generator.normal(0, 10, 500)
    rows = [(shared, shared + 0.5 + generator.normal(0, 0.1, 500))]
    found = estimate(lambda a, b: b.mean() - a.mean(), rows)
    assert verdict(found, above(0.4)) == "holds"
    assert found.high - found.low < 0.05


def test_samples_that_could_not_be_measured_are_left_out_for_all() -> None:
    a, b = np.arange(40.0), np.ones((40, 2))
    a[3], b[7, 1] = np.nan, np.nan
    kept = np.delete(np.arange(40), [3, 7])
    found = estimate(lambda x, y: float(x.mean() * y.mean()), [(a, b), (np.arange(40), np.ones((40, 2)))])
    assert found.value == pytest.approx(kept.mean())
    assert found.samples == 38
    assert math.isfinite(found.low)
    assert estimate(lambda x: float(x.mean()), [(np.full(5, np.nan),)]).samples == 0
    assert math.isnan(_judge.spearman(np.array([1.0, np.nan, 3.0]), np.arange(3.0)))


def test_interval_over_seeds_is_students() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    half = 4.303 * 1.0 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    rows = [(np.full(50, value),) for value in (1.0, 2.0, 3.0)]
    assert (estimate(np.mean, rows).low, estimate(np.mean, rows).high) == pytest.approx((2 - half, 2 + half))


def test_a_further_error_widens_an_exact_estimate() -> None:
    found = _judge.widened(over_seeds([-0.01]), 0.01)
    assert (found.low, found.high) == pytest.approx((-0.0296, 0.0096), abs=1e-4)
    assert verdict(found, below(0)) == "undecided"


def test_seeds_that_disagree_leave_a_claim_undecided() -> None:
    generator = np.random.default_rng(2)
    rows = [(generator.normal(centre, 0.1, 300),) for centre in (-1.0, 2.0, 0.5)]
    assert verdict(estimate(np.mean, rows), above(0)) == "undecided"


def test_rank_correlation_of_a_monotone_relation_is_one() -> None:
    x = np.array([0.1, 0.5, 0.9, 2.0, 7.0])
    assert _judge.spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert _judge.spearman(x, -np.exp(x)) == pytest.approx(-1.0)
    assert math.isnan(_judge.spearman(x, np.ones(5)))


def test_roth2020_statistics_know_damping_from_none() -> None:
    from specdiag.reproduce import roth2020

    spectrum = np.random.default_rng(3).uniform(1, 2, (200, 10))
    assert roth2020.nuclear_change(spectrum, spectrum / 2) == pytest.approx(-0.5)
    assert roth2020.damping_share(spectrum, spectrum / 4, spectrum / 2) == pytest.approx(0.5)
    assert roth2020.damping_share(spectrum, spectrum / 4, spectrum) == pytest.approx(0.0)
    cosine = np.tile(np.array([0.9, 0.5, 0.1, 0.1]), (20, 1))
    assert roth2020.fall_with_rank(cosine) == pytest.approx(0.8)
    assert roth2020.relative_fall(np.full((20, 4), 0.3), cosine) == pytest.approx(0.0)
    # a straight line is as steep beyond eps as before
    assert roth2020.later_rise(np.full(5, 2.0), np.full(5, 4.0)) == pytest.approx(1.0)
    fooled = [np.full((10, 3), share) for share in (0.9, 0.1, 0.5)]
    assert roth2020.share_of_gain(*(1 - entry for entry in fooled)) == pytest.approx(0.5)


def test_wen2020_statistics() -> None:
    from specdiag.reproduce import wen2020

    assert wen2020.sums_of_differences(np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.5, 1.0])) == (2.5, 0.5)
    split = np.array([True, True, False, False])
    gaps = [np.array([level, level, 0.0, 0.0]) for level in (0.0, 0.25, 0.5, 1.0)]
    assert wen2020.gap_slope(split, *gaps) == pytest.approx(1.0)
    assert wen2020.mean_change(split, gaps[2], gaps[1]) == pytest.approx(-0.5)


def test_strings_of_a_claim_say_what_the_verdict_rests_on() -> None:
    found = Estimate(-0.5, -0.6, -0.4, 3, 200)
    assert _table.shown(found) == "-0.5 (-0.6 to -0.4)"
    assert str(above(0)) == "above 0"
    assert str(between(-0.25, 0.25)) == "-0.25 to 0.25"
    assert Claim("c", "f", "p", "s", found, above(0)).verdict == "does not hold"


def test_simongabriel2019_statistics() -> None:
    from specdiag.reproduce import simongabriel2019 as paper

    # a norm that goes as sqrt(D): widths double, D quadruples
    assert paper.growth(*(np.full(9, 2.0**k) for k in range(4))) == pytest.approx(0.5)
    none, weak, strong = np.full(5, 8.0), np.full(5, 4.0), np.full(5, 1.0)
    assert paper.overlay_distance(none, weak, strong, weak, strong) == pytest.approx(0.0)
    assert paper.overlay_distance(none, weak, strong, strong, weak) == pytest.approx(2 / 3)
    half, all_ = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    # references: accuracy 1 at vulnerability 1, 0.5 at 0.5; the network: 0.5 at 1
    assert paper.trade_off(half, all_, all_, half, all_, half) == pytest.approx(-0.5)


def test_farnia2019_statistics() -> None:
    from specdiag.reproduce import farnia2019 as paper

    split = np.array([True, True, False, False])
    plain, normalised = np.array([1.0, 0.0, 0.0, 0.0]), np.array([1.0, 0.0, 1.0, 0.0])
    assert paper.accuracy_gap(split, plain, normalised) == pytest.approx(-0.5)
    assert paper.most_robust(np.zeros((4, 2)), np.ones((4, 2)), np.full((4, 2), 0.5)) == pytest.approx(0.5)


def test_roth2018_statistics() -> None:
    from specdiag.reproduce import roth2018 as paper

    white_box_is_lowest = np.ones((6, 3, 3)) - 0.4 * np.eye(3)
    assert paper.transfer_gap(white_box_is_lowest) == pytest.approx(0.4)
    white_box_is_lowest[:, 0, 0] = 1.0
    assert paper.transfer_gap(white_box_is_lowest) == pytest.approx(0.0)
    assert paper.advantage(np.zeros((4, 2)), np.full((4, 2), 0.25)) == pytest.approx(0.25)


def test_sigma_of_correlated_noise_is_what_the_attack_draws_from() -> None:
    import types

    from specdiag.training.sgr import Sgr

    run: object = types.SimpleNamespace(input_shape=(1, 1, 4))
    moments = Sgr(source="lrc", decay_length=2.0).noise_moments(run).numpy()  # type: ignore[arg-type]
    distance = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    np.testing.assert_allclose(moments, np.exp(-distance / 2.0), atol=1e-6)


def test_the_page_joins_what_the_folders_hold(tmp_path: Path) -> None:
    from specdiag.errors import ResultsError
    from specdiag.reproduce._page import main, page

    with pytest.raises(ResultsError):
        page(tmp_path)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "claims.md").write_text(f"# {name}: title\n\n| claim |\n")
    assert main([str(tmp_path), "-o", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    assert text.index("## a: title") < text.index("## b: title")


def tiny(data: str = "digits") -> Scene:
    return scene_of(data, "digits", seeds=1, epochs=1, samples=16, train_samples=60)


@pytest.mark.parametrize("name", PAPERS)
def test_every_plan_names_what_it_trains(name: str, tmp_path: Path) -> None:
    paper: Paper = plugins.load("paper", name)
    for kind in ("digits", "colour"):
        scene = paper.adjust(scene_of("digits", kind))
        plan = paper.plan(scene, tmp_path)
        known = [entry.name for entry in plan.trainings]
        assert len(set(known)) == len(known)
        for analysis in plan.analyses:
            assert set(analysis.of) <= set(known)
            plugins.load("analyzer", analysis.analyzer)
        for place, training in enumerate(plan.trainings):
            earlier = known[:place]
            assert training.start is None or training.start in earlier
            reference = training.choice.reference if training.choice else ""
            assert not reference or reference in earlier


def run(paper: Paper, out: Path, scene: Scene) -> tuple[object, list[str]]:
    from specdiag.reproduce._run import reproduce

    told: list[str] = []
    return reproduce(paper, scene, out, told.append), told


def smaller(paper: Paper) -> Paper:
    """The paper with one constant where it would search."""

    def plan(scene: Scene, folder: Path) -> Plan:
        made = paper.plan(scene, folder)
        trainings = [
            entry
            if entry.choice is None
            else dataclasses.replace(
                entry, choice=dataclasses.replace(entry.choice, grid=entry.choice.grid[:1])
            )
            for entry in made.trainings
        ]
        return dataclasses.replace(made, trainings=tuple(trainings))

    return dataclasses.replace(paper, plan=plan)


@pytest.mark.parametrize("name", PAPERS)
def test_pipeline_ends_with_its_table_and_goes_on_where_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdiag.reproduce import simongabriel2019

    monkeypatch.setattr(_judge, "RESAMPLES", 50)
    monkeypatch.setattr(simongabriel2019, "INITIAL_SEEDS", (0,))
    monkeypatch.setitem(simongabriel2019.FACTORS, "digits", (1, 2))
    paper = smaller(plugins.load("paper", name))
    out = tmp_path / name
    outcome, _ = run(paper, out, tiny())
    document = json.loads(_table.json_text(outcome))  # type: ignore[arg-type]
    verdicts = {entry["verdict"] for entry in document["claims"]}
    assert len(document["claims"]) >= 5
    assert verdicts <= {"holds", "does not hold", "undecided"}
    assert all((out / figure).stat().st_size > 5000 for figure in document["figures"])
    assert "| claim |" in _table.markdown(outcome)  # type: ignore[arg-type]
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")}
    lost = sorted((out / "checkpoints").glob("*.pt"))[0]
    before = lost.read_bytes()
    lost.unlink()
    again, told = run(dataclasses.replace(paper, panels=lambda results: ()), out, tiny())
    assert _table.rows(again) == _table.rows(outcome)  # type: ignore[arg-type]
    assert lost.read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")} == written
    trained = [line for line in told if line.startswith("trained")]
    assert sum("reused" not in line for line in trained) == 1


def test_choice_takes_the_strongest_that_costs_no_accuracy(tmp_path: Path) -> None:
    from specdiag.reproduce._run import _Runner

    scene = tiny()
    reference = scene.training("adversarial", "standard", epochs=0)
    chosen = scene.training(
        "dd", "global-snr", choice=Choice("lam", (0.1, 1.0, 2.0), "match-clean", "adversarial"), epochs=0
    )
    runner = _Runner(Plan((reference, chosen), ()), scene, tmp_path, lambda text: None, False)
    runner.train_all()
    # untrained networks are all the same: every constant costs nothing
    assert runner.chosen == {"dd": 2.0}


def test_command_says_cost_first_and_ends_with_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from specdiag.cli.main import app
    from specdiag.reproduce import roth2020

    small = smaller(roth2020.PAPER)
    monkeypatch.setattr(roth2020, "PAPER", small)
    plugins.load.cache_clear()
    arguments = ["reproduce", "roth2020", "--seeds", "1", "--epochs", "0", "--train-samples", "40"]
    done = CliRunner().invoke(app, [*arguments, "--samples", "8", "--out", str(tmp_path / "r")])
    plugins.load.cache_clear()
    assert done.exit_code == 0, done.output
    assert "7 trainings" in done.stderr.splitlines()[0] or "trainings and" in done.stderr.splitlines()[0]
    assert (tmp_path / "r" / "claims.md").exists()
    assert "claims:" in done.stdout


def test_command_explains_what_is_missing() -> None:
    from typer.testing import CliRunner

    from specdiag.cli.main import app

    for arguments, words in (
        (["reproduce", "roth2021"], "roth2020"),
        (["reproduce", "roth2020", "--data", "cifar10"], "--data-file"),
        (["reproduce", "roth2020", "--data", "digits", "--data-file", "x.npz"], "bundled"),
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2
        assert words in done.stderr
