"""The command line: what users do, and what they get wrong."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray
from command import COMMAND, digits_checkpoint, run, spawn
from conftest import ROOT

HOSTILE = "hostile-was-here"


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {HOSTILE}",)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(here: Path) -> Path:
    return digits_checkpoint(here / "net.pt")


def test_spectrum_writes_results_figure_and_table(checkpoint: Path, here: Path) -> None:
    done = run("spectrum", checkpoint, "--samples", 24, "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    for part in (
        "rank",
        "std. error",
        "sigma_max_mean",
        "condition_median",
        "digits",
        "A small step",
        "specdiag-results/net.h5",
    ):
        assert part in done.stdout
    assert "tensors matched" in done.stderr
    with h5py.File(here / "specdiag-results/net.h5") as file:
        values = file["spectrum/singular_values"][...]
        assert values.shape == (24, 10)
        assert (np.diff(values, axis=1) <= 0).all()
        assert {"logits", "label", "predicted", "near_kink"} <= set(file["spectrum"])
    opened = xarray.open_dataset(here / "specdiag-results/net.h5", group="spectrum", engine="h5netcdf")
    assert opened.singular_values.dims == ("sample", "rank")
    assert opened.singular_values.attrs["units"] == "output / input"
    assert opened.attrs["metric_sigma_max_mean"] == pytest.approx(values[:, 0].mean())
    assert (here / "specdiag-results/net.spectrum.svg").read_text().count("<path") > 5


def test_two_checkpoints_give_two_files_and_one_figure(checkpoint: Path, here: Path) -> None:
    other = digits_checkpoint(here / "other.pt", seed=1)
    done = run("spectrum", checkpoint, other, "--samples", 8)
    assert done.exit_code == 0, done.stderr
    assert (here / "specdiag-results/other.h5").is_file()
    drawn = (here / "specdiag-results/spectrum.svg").read_text()
    assert "net" in drawn
    assert "other" in drawn


def test_json_is_one_document(checkpoint: Path) -> None:
    done = run("spectrum", checkpoint, "--samples", 8, "--json")
    document = json.loads(done.stdout)
    result = document["results"][0]
    assert result["metrics"]["sigma_max_mean"]["better"] == "lower"
    assert result["data"]["samples"] == 8
    assert result["checkpoint"]["architecture"] == "cnn4"


def test_same_command_again_computes_nothing(checkpoint: Path, here: Path) -> None:
    first = run("spectrum", checkpoint, "--samples", 8)
    before = (here / "specdiag-results/net.h5").read_bytes()
    again = run("spectrum", checkpoint, "--samples", 8)
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert "already" in again.stderr
    assert "sigma_max_mean" in again.stdout
    assert (here / "specdiag-results/net.h5").read_bytes() == before


def test_other_settings_are_refused_and_named(checkpoint: Path) -> None:
    run("spectrum", checkpoint, "--samples", 8)
    other = run("spectrum", checkpoint, "--samples", 8, "--seed", 3)
    assert other.exit_code == 2
    assert "seed: 0 -> 3" in other.stderr
    assert "--overwrite" in other.stderr
    assert run("spectrum", checkpoint, "--samples", 8, "--seed", 3, "--overwrite").exit_code == 0


def test_other_groups_are_kept(checkpoint: Path, here: Path) -> None:
    run("spectrum", checkpoint, "--samples", 8)
    assert run("jacobian", checkpoint, "--samples", 8).exit_code == 0
    with h5py.File(here / "specdiag-results/net.h5") as file:
        assert set(file) == {"spectrum", "jacobian"}
        assert file["jacobian/matrix"].shape == (8, 10, 64)


def test_show_and_plot(checkpoint: Path, here: Path) -> None:
    run("spectrum", checkpoint, "--samples", 8)
    results = here / "specdiag-results/net.h5"
    shown = run("show", results)
    assert shown.exit_code == 0
    assert "sigma_max_mean" in shown.stdout
    number = run("show", results, "--field", "spectrum.sigma_max_mean")
    assert float(number.stdout) > 0
    assert json.loads(run("show", results, "--json").stdout)["results"][0]["analyzer"] == "spectrum"
    assert run("plot", results, "-o", here / "f.png").exit_code == 0
    assert (here / "f.png").read_bytes().startswith(b"\x89PNG")


def test_inspect(checkpoint: Path, here: Path) -> None:
    done = run("inspect", checkpoint)
    assert done.exit_code == 0
    for part in ("torch-zip", "cnn4", "specdiag spectrum"):
        assert part in done.stdout
    assert json.loads(run("inspect", checkpoint, "--json").stdout)["loadable"] is True


def test_module_and_version_run() -> None:
    assert "specdiag" in spawn("--version").stdout
    assert "spectrum" in spawn("--help").stdout


def test_the_configuration_file_fills_what_is_left_out(checkpoint: Path, here: Path) -> None:
    (here / "specdiag.toml").write_text(
        'checkpoint = "net.pt"\nsamples = 16\nseed = 5\n[spectrum]\ntop = 2\n'
    )
    done = run("spectrum", "--json")
    assert done.exit_code == 0, done.stderr
    settings = json.loads(done.stdout)["results"][0]["settings"]
    assert (settings["data"]["samples"], settings["seed"], settings["options"]["top"]) == (16, 5, 2)
    assert "net.pt" in done.stderr
    flagged = run("spectrum", "--json", "--samples", 8, "--out", "elsewhere")
    assert json.loads(flagged.stdout)["results"][0]["settings"]["data"]["samples"] == 8


def test_configuration_that_contradicts_the_checkpoint(checkpoint: Path, here: Path) -> None:
    (here / "specdiag.toml").write_text('arch = "cnn7"\n')
    done = run("spectrum", checkpoint)
    assert done.exit_code == 2
    assert "cnn7" in done.stderr
    assert "cnn4" in done.stderr


def bad(here: Path, name: str, content: bytes) -> Path:
    (here / name).write_bytes(content)
    return here / name


def plain_weights(here: Path) -> dict[str, torch.Tensor]:
    stored = torch.load(digits_checkpoint(here / "source.pt"), weights_only=True)
    weights: dict[str, torch.Tensor] = stored["state_dict"]
    return weights


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
CASES = {
    "missing file": (lambda here: here / "none.pt", 3, "no file"),
    "empty file": (lambda here: bad(here, "a.pt", b""), 3, "empty"),
    "html": (lambda here: bad(here, "a.pt", b"<!DOCTYPE html><html><body>Sign in</body></html>"), 3, "HTML"),
    "lfs": (
        lambda here: bad(here, "a.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        3,
        "git lfs pull",
    ),
    "truncated": (
        lambda here: bad(here, "a.pt", digits_checkpoint(here / "s.pt").read_bytes()[:4000]),
        3,
        "cut off",
    ),
    "hostile": (lambda here: hostile(here), 3, "posix.system"),
    "no architecture": (lambda here: saved(here, {"a.weight": torch.ones(3, 3)}), 2, "--arch"),
    "NaN weights": (lambda here: saved(here, nan_weights(here)), 3, "NaN"),
    "folder": (lambda here: here, 3, ""),
}


def saved(here: Path, content: object) -> Path:
    torch.save(content, here / "a.pt")
    return here / "a.pt"


def hostile(here: Path) -> Path:
    path = here / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Hostile()}))
        archive.writestr("archive/version", "3\n")
    return path


def nan_weights(here: Path) -> dict[str, torch.Tensor]:
    weights = plain_weights(here)
    name = next(name for name in weights if name.endswith("weight"))
    weights[name].view(-1)[0] = torch.nan
    return weights


@pytest.mark.parametrize("case", CASES)
def test_a_bad_checkpoint_gets_one_line_and_its_exit_code(case: str, here: Path) -> None:
    make, code, words = CASES[case]
    done = run("spectrum", make(here), "--data", "digits")
    assert done.exit_code == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("specdiag: error:")]
    assert len(errors) == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / HOSTILE).exists(), "nothing in the file was executed"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--arch", "cnn7", "--arch-arg", "width=4", "--data", "digits"], "differ"),
        (["--arch", "resnet21"], "Did you mean"),
        (["--data", "nowhere.npz"], "nowhere.npz"),
        (["--data", "digitz"], "Did you mean"),
        (["--split", "valid"], "--split"),
        (["--samples", "0"], "--samples"),
        (["--samples", "many"], "--samples"),
        (["--method", "magic"], "--method"),
        (["--top", "-1"], "--top"),
        (["--dtype", "float16"], "--dtype"),
        (["--device", "tpu"], "--device"),
        (["--normalise", "maybe"], "--normalise"),
        (["--mean", "0.5"], "belong together"),
        (["--mean", "a,b", "--std", "1,1"], "--mean"),
        (["--layer", "nope"], "no layer"),
        (["--activations", "loose"], "--activations"),
        (["--method", "regression", "--perturbations", "10"], "too few"),
    ],
)
def test_a_bad_option_gets_one_line(checkpoint: Path, flags: list[str], words: str) -> None:
    done = run("spectrum", checkpoint, *flags)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.random.default_rng(0).random((4, 3, 3, 1)), "shape"),
        (np.random.default_rng(0).random((4, 8, 8, 1)) * 255, "outside [0, 1]"),
        (np.random.default_rng(0).standard_normal((4, 8, 8, 1)), "outside [0, 1]"),
        (np.full((4, 8, 8, 1), np.nan), "NaN"),
    ],
)
def test_data_of_the_wrong_shape_or_range(
    checkpoint: Path, here: Path, array: np.ndarray, words: str
) -> None:
    np.savez(here / "d.npz", x=array, y=np.zeros(4, int))
    done = run("spectrum", checkpoint, "--data", "d.npz")
    assert done.exit_code == 2, done.output
    assert words in done.stderr


def test_unwritable_output_folder(checkpoint: Path, here: Path) -> None:
    (here / "file").write_text("in the way")
    done = run("spectrum", checkpoint, "--samples", 8, "--out", here / "file" / "results")
    assert done.exit_code == 2
    assert "file" in done.stderr


def test_one_bad_checkpoint_among_good_ones(checkpoint: Path, here: Path) -> None:
    done = run("spectrum", checkpoint, here / "none.pt", "--samples", 8)
    assert done.exit_code == 4
    assert (here / "specdiag-results/net.h5").is_file()
    assert "1 of 2 checkpoints failed" in done.stderr


def test_an_unexpected_exception_is_exit_2_and_says_so(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdiag import jobs

    monkeypatch.setattr(jobs, "prepare", lambda *args: 1 / 0)
    done = run("spectrum", checkpoint)
    assert done.exit_code == 2
    assert "internal error: ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr


def start(cwd: Path, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, *(str(argument) for argument in arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background ignores interrupts, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_chunks(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    for _ in range(3000):
        if len(list(folder.glob("*"))) > count or process.poll() is not None:
            return
        time.sleep(0.01)
    raise AssertionError("no chunk appeared")


LONG = (
    "--samples",
    397,
    "--batch-size",
    8,
    "--method",
    "regression",
    "--threads",
    1,
    "--figure",
    "none",
    "--device",
    "cpu",
)


def test_kill_and_continue_gives_the_same_bytes(checkpoint: Path, here: Path) -> None:
    process = start(here, "spectrum", checkpoint, *LONG, "--out", "killed")
    wait_for_chunks(process, here / "killed/.net.spectrum.journal", 4)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was still running"
    assert not (here / "killed/net.h5").exists()
    kept = len(list((here / "killed/.net.spectrum.journal").glob("*")))
    assert kept >= 4
    continued = spawn("spectrum", checkpoint, *LONG, "--out", "killed", cwd=here)
    whole = spawn("spectrum", checkpoint, *LONG, "--out", "whole", cwd=here)
    assert (continued.returncode, whole.returncode) == (0, 0), continued.stderr + whole.stderr
    assert (here / "killed/net.h5").read_bytes() == (here / "whole/net.h5").read_bytes()
    assert not (here / "killed/.net.spectrum.journal").exists()


def test_interrupt_is_130_and_keeps_finished_chunks(checkpoint: Path, here: Path) -> None:
    process = start(here, "spectrum", checkpoint, *LONG)
    wait_for_chunks(process, here / "specdiag-results/.net.spectrum.journal", 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert list((here / "specdiag-results/.net.spectrum.journal").glob("*"))


def test_a_journal_of_other_settings_is_named(checkpoint: Path, here: Path) -> None:
    process = start(here, "spectrum", checkpoint, *LONG)
    wait_for_chunks(process, here / "specdiag-results/.net.spectrum.journal", 3)
    process.kill()
    process.communicate()
    other = spawn("spectrum", checkpoint, *LONG, "--seed", 1, cwd=here)
    assert other.returncode == 2
    assert "seed" in other.stderr
    fresh = spawn("spectrum", checkpoint, "--samples", 8, "--overwrite", cwd=here)
    assert fresh.returncode == 0, fresh.stderr
