"""`specdiag train` at the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import run

SHORT = ("--epochs", 1, "--train-samples", 200, "--test-samples", 40, "--curve-samples", 20)


def test_a_trained_checkpoint_is_analysed_without_flags(tmp_path: Path) -> None:
    out = tmp_path / "net.pt"
    done = run("train", "adversarial", "--eps", 0.5, *SHORT, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "clean accuracy" in done.stdout
    assert "epoch 1 of 1" in done.stderr
    again = run("train", "adversarial", "--eps", 0.5, *SHORT, "--out", out)
    assert again.exit_code == 0, again.stderr
    assert "epoch 1" not in again.stderr, "a finished checkpoint is left as it is"
    analysed = run("spectrum", out, "--samples", 8, "--out", tmp_path)
    assert analysed.exit_code == 0, analysed.stderr


def test_a_configuration_file(tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(
        'method = "gradient-penalty"\nepochs = 1\ntrain_samples = 100\ncurve_samples = 0\ntest_samples = 20\n'
    )
    done = run("train", config, "--out", tmp_path / "net.pt", "--quiet")
    assert done.exit_code == 0, done.stderr
    config.write_text('method = "standard"\nepoch = 1\n')
    wrong = run("train", config)
    assert wrong.exit_code == 2
    assert "'epoch'" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["standrd"], "Did you mean standard"),
        (["standard", "--eps", "1"], "no option 'eps'"),
        (["fgm+pgm"], "takes one"),
        (["standard", "--epochs", "-1"], "--epochs"),
        (["standard", "--data", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run("train", *arguments, "--out", tmp_path / "net.pt")
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert "Traceback" not in done.stderr
