"""Reading a configuration: what is understood, what is refused, and how it is said."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from batch_common import CONFIG, GATE, project
from command import run
from conftest import ROOT

from specdiag.batch import plan as plans
from specdiag.batch.keys import Shared, names
from specdiag.batch.settings import apply, literal, load, parse, problems
from specdiag.cli.common import PARAMETERS
from specdiag.errors import UsageError

BASE: dict[str, Any] = {"checkpoints": ["runs/*.pt"], "data": "digits", "spectrum": {}}


def plan_of(config: Path, **kwargs: Any) -> plans.Plan:
    return plans.make(load(config), **kwargs)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sample": 3}, "unknown key 'sample'. Did you mean samples"),
        ({"spektrum": {}}, "unknown key 'spektrum'. Did you mean spectrum"),
        ({"gates": []}, "unknown key 'gates'. Did you mean gate"),
        ({"samples": "many"}, "samples: 'many' is not a number"),
        ({"samples": 0}, "samples: 0 is below the smallest value"),
        ({"dtype": "float16"}, "dtype: 'float16' is none of float32, float64"),
        ({"split": "val"}, "split"),
        ({"spectrum": {"tops": 1}}, r"\[spectrum\]: 'spectrum' has no option 'tops'. Did you mean top"),
        ({"spectrum": {"top": -1}}, r"\[spectrum\]: --top: -1 is below"),
        ({"spectrum": 3}, "'spectrum' must be a table"),
        ({"gate": {"metric": "a.b"}}, "must be tables"),
        ({"gate": [{"metric": "spectrum.sigma_max_mean"}]}, "no limit"),
        ({"gate": [{"metric": "spectrum.sigma_mox_mean", "max": 1}]}, "Did you mean spectrum.sigma_max_mean"),
        ({"gate": [{"metric": "spectrum.sigma_max_mean", "mox": 1}]}, "Did you mean max"),
        ({"override": [{"samples": 3}]}, "names no checkpoint"),
        ({"override": [{"checkpoint": "a", "sampels": 3}]}, "unknown key 'sampels'. Did you mean samples"),
        ({"override": [{"checkpoint": "a", "spectrum": {"tap": 3}}]}, "no option 'tap'"),
        ({"override": [{"checkpoint": "a", "jacobian": {}}]}, r"no table \[jacobian\] to override"),
        ({"override": [{"checkpoint": "a", "skip": ["spectrum"]}]}, "without a reason"),
        ({"override": [{"checkpoint": "a", "skip": "spektrum", "reason": "x"}]}, "Did you mean spectrum"),
        ({"name": "{steam}"}, "unknown part"),
        ({"seed": 1, "seeds": [1, 2]}, "say the same"),
        ({"checkpoint": "a"}, "say the same"),
        ({"jobs": 0}, "jobs: 0 is below"),
        ({"executor": "slurm"}, "executor"),
        ({"report": {"html5": "a"}}, "Unknown option 'html5'. Did you mean html"),
        ({"arch_args": 3}, "'arch_args' must be a table"),
        ({"batch-size": 8, "batch_size": 8}, "the same key"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_the_nearest_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse({**BASE, **changed}, Path("specdiag.toml"))


def test_everything_that_is_wrong_is_found() -> None:
    wrong = problems({**BASE, "sample": 3, "spectrum": {"tops": 1}, "gate": [{"metric": "x.y", "max": 1}]})
    assert len(wrong) == 3


def test_hyphens_and_underscores_are_one() -> None:
    assert parse({**BASE, "batch-size": 8}).shared["batch_size"] == 8


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"3"', "3"),
        ("digits", "digits"),
        ("", ""),
    ],
)
def test_set_takes_toml_literals_else_texts(text: str, value: Any) -> None:
    assert literal(text) == value


def test_set_reaches_into_tables_and_lists() -> None:
    raw = {**BASE, "gate": [{"metric": "spectrum.sigma_max_mean", "max": 3}]}
    changed = apply(raw, ["spectrum.top=2", "gate.0.max=9", "samples=5", "override.x=1"])
    assert changed["spectrum"] == {"top": 2}
    assert changed["gate"][0]["max"] == 9
    assert changed["samples"] == 5
    assert raw["spectrum"] == {}
    for text in ("samples", "=3", "gate.1.max=2", "gate.x.max=2", "data.x=1"):
        with pytest.raises(UsageError, match="--set"):
            apply(raw, [text])


def test_pyproject_is_read_and_must_have_the_table(tmp_path: Path) -> None:
    config = project(tmp_path)
    table = config.read_text().replace("[spectrum]", "[tool.specdiag.spectrum]")
    place = tmp_path / "pyproject.toml"
    place.write_text("[tool.specdiag]\n" + table)
    assert load(place).analyzers == {"spectrum": {}}
    place.write_text("[project]\nname = 'x'\n")
    with pytest.raises(UsageError, match=r"no \[tool.specdiag\]"):
        load(place)


def test_globs_are_relative_to_the_file_and_what_matches_nothing_is_listed(tmp_path: Path) -> None:
    config = project(tmp_path, 3, CONFIG.replace('["runs/*.pt"]', '["runs/net[01].pt", "elsewhere/*.pt"]'))
    plan = plan_of(config)
    assert [job.name for job in plan.jobs] == ["net0", "net1"]
    assert [entry.what for entry in plan.skipped] == ["elsewhere/*.pt"]


def test_names_come_from_the_template(tmp_path: Path) -> None:
    config = project(tmp_path, 2, 'name = "{parent}-{stem}-{seed}"\nseeds = [3, 4]\n' + CONFIG)
    assert [job.name for job in plan_of(config).jobs] == [
        "runs-net0-3",
        "runs-net1-3",
        "runs-net0-4",
        "runs-net1-4",
    ]
    assert [job.shared.seed for job in plan_of(config).jobs] == [3, 3, 4, 4]
    config = project(tmp_path, 2, 'name = "{parent}"\n' + CONFIG)
    with pytest.raises(UsageError, match=r"gives runs.h5 for both"):
        plan_of(config)


def test_seeds_without_a_template_are_told_apart(tmp_path: Path) -> None:
    config = project(tmp_path, 1, "seeds = [0, 1]\n" + CONFIG)
    assert [job.target.name for job in plan_of(config).jobs] == ["net0-seed0.h5", "net0-seed1.h5"]


def test_overrides_by_glob_in_order(tmp_path: Path) -> None:
    text = CONFIG + (
        '[[override]]\ncheckpoint = "*net*"\nsamples = 8\n[override.spectrum]\ntop = 1\n'
        '[[override]]\ncheckpoint = "net1"\nsamples = 9\n'
        '[[override]]\ncheckpoint = "net2"\nskip = ["spectrum"]\nreason = "known to be broken"\n'
    )
    plan = plan_of(project(tmp_path, 3, text))
    assert [(job.name, job.shared.samples, job.values) for job in plan.jobs] == [
        ("net0", 8, {"top": 1}),
        ("net1", 9, {"top": 1}),
    ]
    assert [(entry.what, entry.reason) for entry in plan.skipped] == [
        ("net2 · spectrum", "known to be broken")
    ]


def test_paths_of_data_and_architectures_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.npz").touch()
    (tmp_path / "nets.py").touch()
    text = CONFIG.replace('"digits"', '"mine.npz"').replace("samples", 'arch = "nets.py:make"\nsamples')
    job = plan_of(project(tmp_path, 1, text)).jobs[0]
    assert job.shared.data == str(tmp_path / "mine.npz")
    assert job.config["arch"] == f"{tmp_path / 'nets.py'}:make"


def test_quick_is_small_and_elsewhere(tmp_path: Path) -> None:
    plan = plan_of(project(tmp_path, 1), quick=True)
    assert plan.jobs[0].shared.samples == 16
    assert plan.out.name == "quick"


def test_init_show_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path).unlink()
    monkeypatch.chdir(tmp_path)
    made = run("config", "init")
    assert made.exit_code == 0
    assert run("config", "init").exit_code == 2
    checked = run("config", "check")
    assert checked.exit_code == 0
    assert "2 checkpoints, 1 analyzer" in checked.stdout
    assert "there is no baseline.json yet" in checked.stderr
    shown = run("config", "show", "--set", "samples=7", "--set", "spectrum.top=2")
    content = tomllib.loads(shown.stdout)
    assert content["samples"] == 7
    assert content["spectrum"]["top"] == 2
    # what is shown is a configuration that means the same
    again = tmp_path / "again.toml"
    again.write_text(shown.stdout)
    assert tomllib.loads(run("config", "show", again).stdout) == content
    (tmp_path / "specdiag.toml").write_text('sampels = 3\n[spektrum]\n[[gate]]\nmetric = "a.b"\n')
    checked = run("config", "check")
    assert checked.exit_code == 2
    assert checked.stderr.count("error:") == 3


def test_every_common_flag_is_a_key() -> None:
    """What one command takes, a batch takes; the rest is about one run's output."""
    output = {"out", "figure", "overwrite", "json", "quiet", "arch_arg"}
    assert set(PARAMETERS) - output == set(names(Shared))


def test_no_configuration_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["batch"], ["config", "check"], ["config", "show"]):
        done = run(*command)
        assert done.exit_code == 2
        assert "specdiag config init" in done.stderr
    assert run("batch", tmp_path / "nowhere.toml").exit_code == 2


def test_no_analyzer_and_no_checkpoints_are_errors(tmp_path: Path) -> None:
    config = project(tmp_path, 1, 'checkpoints = ["runs/*.pt"]\n')
    assert "names no analyzer" in run("batch", config).stderr
    config.write_text("[spectrum]\n")
    assert "names no checkpoints" in run("batch", config).stderr


def test_reading_a_configuration_needs_no_torch(tmp_path: Path) -> None:
    config = project(tmp_path, 1, CONFIG + GATE)
    code = (
        "import sys; sys.modules['torch'] = None\nfrom specdiag.cli.main import app\n"
        f"try:\n    app(['config', 'check', {str(config)!r}])\nexcept SystemExit as end:\n    sys.exit(end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
