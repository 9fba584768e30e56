"""The Markdown summary, annotations, and the tables in the terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from report_common import NASTY, content
from rich.console import Console

from specdiag.report import annotations, markdown
from specdiag.report.verdicts import print_metrics, print_verdicts


def test_gates_come_first_and_the_worst_of_them_first(tmp_path: Path) -> None:
    text = markdown.render(content(tmp_path))
    lines = text.splitlines()
    assert lines[0].startswith("## specdiag: 2 checkpoints; 2 results; gates: 1 not judged, 1 failed")
    rows = [line for line in lines if line.startswith("| ") and "spectrum." in line]
    assert [row.split("|")[1].split()[-1] for row in rows[:4]] == ["judged", "fail", "investigate", "pass"]
    assert (
        text.index("### Gates")
        < text.index("### Failures")
        < text.index("### Skipped")
        < text.index("Metrics")
    )


def test_every_row_of_a_table_has_the_columns_of_its_head(tmp_path: Path) -> None:
    lines = markdown.render(content(tmp_path)).splitlines()
    width = 0
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            cells = line.replace("\\|", "").count("|")
            width = width if before.startswith("|") else cells
            assert cells == width


def test_what_comes_from_outside_is_no_markup(tmp_path: Path) -> None:
    text = markdown.render(content(tmp_path))
    assert NASTY not in text
    assert "conv&lt;1>" in text


def test_the_summary_stays_small(tmp_path: Path) -> None:
    many = content(tmp_path)
    many = replace(many, verdicts=list(many.verdicts) * 500, failures=list(many.failures) * 20_000)
    text = markdown.render(many)
    assert len(text) < markdown.LARGEST + 200
    assert "left out" in text


def test_the_summary_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "new" / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    assert markdown.summary_file() == place
    markdown.append("one", place)
    markdown.append("two", place)
    assert place.read_text() == "one\ntwo\n"
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert markdown.summary_file() is None


def test_annotations_point_at_the_gate_in_the_file(tmp_path: Path) -> None:
    lines = list(annotations.lines(content(tmp_path)))
    config = str(tmp_path / "specdiag.toml")
    assert len(lines) == 4
    assert lines[0].startswith(f"::error file={config},line=8,title=specdiag error%3A spectrum.sigma_max_p95")
    assert lines[1].startswith(f"::error file={config},line=2,")
    assert lines[2].startswith(f"::warning file={config},line=5,")
    assert lines[3].startswith("::error title=specdiag%3A broken spectrum failed::")
    assert all("\n" not in line for line in lines)
    assert all("%" in line or "%25" in line for line in lines[:3])


def test_annotations_only_where_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert not annotations.wanted()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert annotations.wanted()


def test_the_terminal_shows_the_same(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160, highlight=False)
    shown = content(tmp_path)
    print_metrics(shown, console)
    print_verdicts(shown, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "bad         spectrum.sigma_max_mean" in text
    assert "fail: bad: spectrum.sigma_max_mean = " in text
    assert "failed: broken · spectrum: It is HTML" in text
    assert "skipped: elsewhere/*.pt: no file matches it" in text
