"""A batch from its configuration to its files: bytes, exit codes, what is continued, what is left out."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from batch_common import CONFIG, GATE, contents, leftovers, project
from command import digits_checkpoint, run
from conftest import ROOT

from specdiag import journal, store
from specdiag.batch.ending import exit_code
from specdiag.batch.local import Serial
from specdiag.batch.schedule import shares


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return project(tmp_path)


def test_the_same_bytes_as_the_command_for_one_checkpoint(config: Path, tmp_path: Path) -> None:
    done = run("batch", config, "--out", tmp_path / "batch", "-q")
    assert (done.exit_code, done.stdout) == (0, "")
    one = ["--out", tmp_path / "one", "--samples", 40, "--batch-size", 8, "--threads", 1, "--figure", "none"]
    # the path of a checkpoint is part of its record
    assert run("spectrum", *sorted((tmp_path / "runs").glob("*.pt")), "--data", "digits", *one).exit_code == 0
    assert contents(tmp_path / "batch") == contents(tmp_path / "one")
    assert list(contents(tmp_path / "batch")) == ["net0.h5", "net1.h5"]
    assert leftovers(tmp_path / "batch") == []


def test_again_is_recognised_and_other_settings_are_named(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("batch", config, "--out", out).exit_code == 0
    before = contents(out)
    again = run("batch", config, "--out", out)
    assert again.exit_code == 0
    assert again.stderr.count("already there") == 2
    other = run("batch", config, "--out", out, "--set", "spectrum.top=2")
    assert other.exit_code == 2
    assert "options.top: 0 -> 2" in other.stderr
    assert contents(out) == before
    assert run("batch", config, "--out", out, "--set", "spectrum.top=2", "--overwrite").exit_code == 0
    assert contents(out) != before


def test_one_bad_checkpoint_does_not_stop_the_others(config: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "broken.pt").write_bytes(b"<html>not found</html>")
    done = run("batch", config, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 4
    document = json.loads(done.stdout)
    assert [item["name"] for item in document["failures"]] == ["broken"]
    assert document["failures"][0]["code"] == 3
    assert document["exit_code"] == 4
    assert len(document["results"]) == 2
    assert list(contents(tmp_path / "out")) == ["net0.h5", "net1.h5"]


def test_only_bad_checkpoints(tmp_path: Path) -> None:
    config = project(tmp_path, 0)
    (tmp_path / "runs" / "broken.pt").write_bytes(b"")
    assert run("batch", config, "--out", tmp_path / "out").exit_code == 3


def test_a_checkpoint_named_outright_must_exist(tmp_path: Path) -> None:
    config = project(tmp_path, 1, CONFIG.replace("runs/*.pt", "runs/gone.pt"))
    done = run("batch", config, "--out", tmp_path / "out")
    assert done.exit_code == 3
    assert "gone.pt" in done.stderr


def test_nothing_analysed_is_no_success(tmp_path: Path) -> None:
    done = run("batch", project(tmp_path, 0), "--out", tmp_path / "out")
    assert done.exit_code == 5
    assert "no file matches" in done.stdout


def test_a_defect_is_one_line_and_no_gate_failure(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdiag.batch.work.run_to_file", lambda *_, **__: 1 / 0)
    done = run("batch", config, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "internal error: ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("number", [0, 2, 7, 9])
def test_a_full_disk_loses_nothing_that_was_finished(
    number: int, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC at the n-th file: explained, everything before it is kept, and the same command ends in the same bytes."""
    assert run("batch", config, "--out", tmp_path / "whole", "-q").exit_code == 0
    out, real, left = tmp_path / "out", os.fsync, [number]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    done = run("batch", config, "--out", out)
    assert done.exit_code in (2, 4)
    assert "No space left on device" in done.stderr
    monkeypatch.setattr(os, "fsync", real)
    continued = run("batch", config, "--out", out)
    assert continued.exit_code == 0
    # two syncs for each file: the settings first, then the chunks
    assert ("continued" in continued.stderr) == (number >= 4)
    assert contents(out) == contents(tmp_path / "whole")
    assert leftovers(out) == []


def test_an_interrupted_run_continues_and_no_resume_starts_again(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("batch", config, "--out", out, "-q").exit_code == 0
    whole = contents(out)
    dataset = store.read_group(out / "net0.h5", "spectrum")
    facts = store.provenance(dataset)
    folder = journal.folder_of(out / "net0.h5", "spectrum")
    kept = journal.Journal(folder, facts["settings_hash"], facts["settings"])
    wrong = {str(name): np.full_like(array.values[:8], 0) for name, array in dataset.data_vars.items()}
    kept.write(0, wrong)
    (out / "net0.h5").unlink()
    # what the journal holds is taken, as made with the same settings
    done = run("batch", config, "--out", out)
    assert done.exit_code == 0
    assert "continued" in done.stderr
    assert (store.read_group(out / "net0.h5", "spectrum")["sigma_max"].values[:8] == 0).all()
    journal.Journal(folder, facts["settings_hash"], facts["settings"]).write(0, wrong)
    (out / "net0.h5").unlink()
    assert run("batch", config, "--out", out, "--no-resume").exit_code == 0
    assert contents(out) == whole


def test_a_journal_of_other_settings_is_an_error_that_names_them(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("batch", config, "--out", out, "-q").exit_code == 0
    facts = store.provenance(store.read_group(out / "net0.h5", "spectrum"))
    (out / "net0.h5").unlink()
    other = {**facts["settings"], "seed": 7}
    journal.Journal(journal.folder_of(out / "net0.h5", "spectrum"), store.settings_hash(other), other)
    done = run("batch", config, "--out", out)
    assert done.exit_code == 4
    assert "seed: 7 -> 0" in done.stderr


def test_gates_from_the_first_baseline_to_a_failed_build(config: Path, tmp_path: Path) -> None:
    config.write_text(CONFIG + GATE)
    out = tmp_path / "out"
    missing = run("batch", config, "--out", out)
    assert missing.exit_code == 2
    assert "--write-baseline" in missing.stdout
    made = run("batch", config, "--out", out, "--write-baseline")
    assert made.exit_code == 0
    assert (tmp_path / "baseline.json").is_file()
    assert run("batch", config, "--out", out).exit_code == 0
    digits_checkpoint(tmp_path / "runs" / "net1.pt", seed=1, train={})
    _scale(tmp_path / "runs" / "net1.pt", 1.5)
    worse = run("batch", config, "--out", tmp_path / "worse")
    assert worse.exit_code == 1
    assert "fail: net1: spectrum.sigma_max_mean changed by +50 %" in worse.stdout
    assert run("batch", config, "--out", tmp_path / "worse", "--exit-zero").exit_code == 0
    files = sorted((tmp_path / "worse").glob("*.h5"))
    judged = run("gate", *files, "--config", config)
    assert judged.exit_code == 1
    assert run("gate", *files, "--config", config, "--write-baseline").exit_code == 0
    assert run("gate", *files, "--config", config).exit_code == 0


def _scale(path: Path, factor: float) -> None:
    import torch

    content = torch.load(path, weights_only=True)
    tensors = next(value for value in content.values() if isinstance(value, dict) and len(value) > 5)
    last = list(tensors)[-2:]
    for name in last:
        tensors[name] *= factor
    torch.save(content, path)


def test_stored_results_are_judged_where_torch_cannot_be_imported(config: Path, tmp_path: Path) -> None:
    config.write_text(CONFIG + GATE)
    out = tmp_path / "out"
    assert run("batch", config, "--out", out, "--write-baseline", "-q").exit_code == 0
    script = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'specdiag';"
        "from specdiag.cli.main import main; main()"
    )
    files = [str(path) for path in sorted(out.glob("*.h5"))]
    for more, code in ([], 0), (["--set", "gate.0.max_increase=-1"], 1):
        command = [sys.executable, "-c", script, "gate", *files, "--config", str(config), *more]
        command += ["--junit", str(tmp_path / "j.xml"), "--html", str(tmp_path / "r.html")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
    assert "<failure" in (tmp_path / "j.xml").read_text()
    assert (tmp_path / "r.html").stat().st_size > 10_000


def test_dry_run_writes_nothing(config: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "broken.pt").write_bytes(b"")
    done = run("batch", config, "--out", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0
    assert "net0" in done.stdout
    assert "cannot run: broken" in done.stdout
    assert not (tmp_path / "out").exists()


def test_quick_run(config: Path, tmp_path: Path) -> None:
    config.write_text(CONFIG + GATE)
    done = run("batch", config, "--out", tmp_path / "out", "--quick")
    assert done.exit_code == 0
    assert "gates are not judged" in done.stderr
    assert store.read_group(tmp_path / "out" / "quick" / "net0.h5", "spectrum").sizes["sample"] == 16


def test_ray_that_is_not_installed_is_said(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "ray" else real(name, *more)
    )
    done = run("batch", config, "--out", tmp_path / "out", "--executor", "ray")
    assert done.exit_code == 2
    assert "pip install 'specdiag[ray]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_order_of_exit_codes() -> None:
    assert exit_code([], []) == 5
    assert exit_code(None, []) == 0


def test_shares_are_whole_chunks_in_order() -> None:
    assert shares(list(range(10)), 3) == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9]]
    assert shares([4, 7], 8) == [[4], [7]]
    assert shares([], 4) == []


def test_a_serial_executor_closes_its_models() -> None:
    executor = Serial()
    executor.close()
