"""What is handed to CI users is tried: the files in ci/, the pre-commit hook, and every command of docs/ci.md."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import digits_checkpoint, run
from conftest import ROOT
from typer.main import get_command

from specdiag.batch.settings import problems

PAGE = ROOT / "docs" / "ci.md"
EXIT_CODES = {0, 1, 2, 3, 4, 5, 130}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def lines_of(text: str) -> Iterator[str]:
    yield from (line.strip() for line in text.splitlines() if line.strip().startswith("specdiag "))


def understood(line: str) -> None:
    """Parsed by the real command, nothing run; SystemExit or an exception where it would be refused."""
    words = shlex.split(line, comments=True)[1:]
    words = [word for word in words if word != "$ARGUMENTS"]
    command: Any = get_command(__import__("specdiag.cli.main", fromlist=["app"]).app)
    context = command.make_context("specdiag", words[:1], resilient_parsing=True)
    while hasattr(command, "get_command"):
        found = command.get_command(context, words[0])
        assert found is not None, line
        command, words = found, words[1:]
    command.make_context(command.name, words, parent=context)


def shell_lines(parsed: Any) -> Iterator[str]:
    """Every line of every `run` and `script` of a CI file."""
    if isinstance(parsed, dict):
        for key, value in parsed.items():
            if key in ("run", "script", "before_script"):
                yield from (value if isinstance(value, list) else value.splitlines())
            else:
                yield from shell_lines(value)
    elif isinstance(parsed, list):
        for value in parsed:
            yield from shell_lines(value)


def test_the_ci_files_are_yaml_and_their_commands_exist() -> None:
    commands = []
    for path in sorted((ROOT / "ci").glob("*.yml")):
        found = list(shell_lines(yaml.safe_load(path.read_text())))
        commands += [line.strip() for line in found if line.strip().startswith("specdiag ")]
    assert len(commands) == 2
    for line in commands:
        understood(line)
    with pytest.raises(Exception, match="--no-such-flag"):
        understood("specdiag batch --no-such-flag")


def test_the_action_is_composite_and_passes_inputs_through_the_environment() -> None:
    action = yaml.safe_load((ROOT / "ci" / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        # an input pasted into a script would be run
        assert "${{" not in step.get("run", "")
        assert "uses" in step or step["shell"] == "bash"
        for name in re.findall(r"inputs\.([\w-]+)", str(step)):
            assert name in action["inputs"]
    assert "always()" in action["runs"]["steps"][-1]["if"]
    workflow = yaml.safe_load((ROOT / "ci" / "github-workflow.yml").read_text())
    (used,) = [step for step in workflow["jobs"]["specdiag"]["steps"] if "specdiag" in step["uses"]]
    assert set(used["with"]) <= set(action["inputs"])
    understood(f"specdiag batch {used['with']['config']} {used['with']['arguments']}")


def test_the_scripts_run_as_written(tmp_path: Path) -> None:
    """The step of the action and the script of the GitLab job, by bash, with its environment."""
    runs = tmp_path / "runs"
    runs.mkdir()
    digits_checkpoint(runs / "net.pt")
    assert run("config", "init", tmp_path / "specdiag.toml").exit_code == 0
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "specdiag"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m specdiag "$@"\n')
    program.chmod(0o755)
    action = yaml.safe_load((ROOT / "ci" / "action.yml").read_text())
    step = next(step for step in action["runs"]["steps"] if "specdiag batch" in step.get("run", ""))
    job = yaml.safe_load((ROOT / "ci" / "gitlab-ci.yml").read_text())["specdiag"]
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CONFIG": "specdiag.toml",
        "ARGUMENTS": "--jobs 1 --set samples=16 --set gate.0.max_increase=5 --write-baseline",
        "CI": "true",
    }
    done = _bash(step["run"], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "specdiag-results" / "junit.xml").is_file()
    assert (tmp_path / "specdiag-results" / "report.html").is_file()
    script = "\n".join(line.replace("--jobs 2", "--set samples=16") for line in job["script"])
    done = _bash(script, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    for path in [*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]]:
        assert (tmp_path / path).exists()


def test_the_hook_names_what_is_wrong_and_goes_on(tmp_path: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    good, bad = digits_checkpoint(tmp_path / "a good.pt"), tmp_path / "bad.pt"
    bad.write_bytes(good.read_bytes()[:2000])
    pattern = re.compile(hook["files"])
    assert pattern.search(str(good))
    assert not pattern.search("runs/data.npz")
    assert hook["id"] in PAGE.read_text()
    (tmp_path / "specdiag").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m specdiag "$@"\n')
    (tmp_path / "specdiag").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    entry = shlex.split(hook["entry"])

    def tried(*files: Path) -> subprocess.CompletedProcess[str]:
        command = [*entry, *map(str, files)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = tried(bad, good)
    assert done.returncode == 3
    assert "a good.pt" in done.stdout
    assert tried(good).returncode == 0


def test_from_nothing_to_a_failing_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block, run line by line; its comments say the exit codes."""
    first = blocks("sh")[0].strip().splitlines()
    assert len(first) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample_checkpoints").mkdir()
    for name in ("digits-adversarial.pt", "digits-standard.pt"):
        shutil.copy(ROOT / "sample_checkpoints" / name, tmp_path / "sample_checkpoints")
    wanted = []
    for line in first:
        words = shlex.split(line, comments=True)
        if words[0] == "specdiag":
            code = int(found[1]) if (found := re.search(r"# exit code (\d)", line)) else 0
            wanted.append(code)
            done = run(*words[1:])
            assert done.exit_code == code, (line, done.stdout, done.stderr)
        elif words[0] != "pip":
            subprocess.run(words, check=True)
    assert 1 in wanted


def test_every_other_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    digits_checkpoint(tmp_path / "runs" / "model.pt")
    assert run("config", "init").exit_code == 0
    assert run("batch", "--set", "samples=16", "--write-baseline", "-q").exit_code == 0
    shutil.rmtree("specdiag-results")
    commands = [line for block in blocks("sh")[1:] for line in lines_of(block)]
    inline = re.findall(r"`(specdiag [^`]+)`", PAGE.read_text())
    assert len(commands) >= 6
    for line in commands:
        words = shlex.split(line, comments=True)[1:]
        small = ["--set", "samples=16"] if words[0] == "batch" and "samples=50" not in words else []
        done = run(*_globbed(words), *small)
        assert done.exit_code in ((0, 2) if words[0] == "gate" else (0,)), (line, done.stderr)
    for line in inline:
        words = shlex.split(line)[1:]
        if len(words) > 1 and words[1] not in ("init", "check", "show"):
            understood(line)
        else:
            assert run(*words, "--help").exit_code == 0, line


def test_the_configuration_on_the_page_is_understood(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    assert problems(tomllib.loads(text), tmp_path / "specdiag.toml") == []


def test_links_lead_somewhere_and_all_exit_codes_are_named() -> None:
    text = PAGE.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (PAGE.parent / target).exists(), target
    table = text.split("## Exit codes")[1].split("##")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == EXIT_CODES
    (hooks,) = blocks("yaml")
    assert yaml.safe_load(hooks)["repos"][0]["hooks"] == [{"id": "specdiag-inspect"}]


def _globbed(words: list[str]) -> list[str]:
    return [
        name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]


def _bash(script: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
