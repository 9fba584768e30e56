"""`report`, and the files and lines that every judging command leaves behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdiag.cli.ending import guarded, say
from specdiag.errors import NothingAnalysed, ResultsError

if TYPE_CHECKING:
    from rich.console import Console

    from specdiag.batch.settings import Settings
    from specdiag.report.content import Content

SUMMARY = typer.Option(
    "--summary", help="Append a Markdown summary to this file.", metavar="FILE", show_default=False
)
JUNIT = typer.Option("--junit", help="Write JUnit XML.", metavar="FILE", show_default=False)
HTML = typer.Option(
    "--html", help="Write the self-contained HTML report.", metavar="FILE", show_default=False
)
SET = typer.Option(
    "--set", help="Change a key of the file; repeats.", metavar="KEY=VALUE", show_default=False
)
CONFIG = typer.Option(
    "--config",
    "-c",
    help="Configuration file with the gates.",
    metavar="FILE",
    show_default="specdiag.toml or pyproject.toml here",
)


@guarded
def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="RESULTS.h5...", help="Results files.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The report: .html, .md or .xml (JUnit).", metavar="FILE")
    ] = Path("report.html"),
    config: Annotated[Path | None, CONFIG] = None,
    changes: Annotated[list[str] | None, SET] = None,
) -> None:
    """Write a report of stored results: one self-contained HTML file, Markdown or JUnit XML."""
    from specdiag.batch.judging import judged, read_results
    from specdiag.errors import UsageError
    from specdiag.report.content import Content

    if out.suffix.lower() not in (".html", ".htm", ".md", ".xml"):
        raise UsageError(f"'{out}' is no report.", "Use one of the suffixes .html, .md, .xml.")
    results = read_results(files)
    if not results:
        raise NothingAnalysed("The files hold no results.")
    settings = settings_or_none(config, changes or ())
    verdicts = judged(settings, results) if settings is not None and settings.rules else []
    content = Content(results, verdicts, config=None if settings is None else settings.file)
    _write(rendered(content, out), out)
    say(f"report: {out}")


def settings_or_none(config: Path | None, changes: Sequence[str]) -> Settings | None:
    """The settings of a file, or of the one of the working directory; None where there is none."""
    from specdiag import config as files
    from specdiag.batch.settings import load

    if config is None and files.find() is None and not changes:
        return None
    return load(config, changes)


def rendered(content: Content, path: Path) -> str:
    """The report as text, in the format that the suffix says."""
    suffix = path.suffix.lower()
    if suffix == ".md":
        from specdiag.report import markdown

        return markdown.render(content)
    if suffix == ".xml":
        from specdiag.report import junit

        return junit.render(content)
    from specdiag.report import html

    return html.render(content)


def leave(content: Content, settings: Settings, asked: dict[str, Path | None], *, json: bool) -> None:
    """Write every report that flags, the file or the CI ask for; a flag wins over the file."""
    from specdiag.report import annotations, markdown

    named = settings.reports
    places = {
        "junit": asked.get("junit") or _inside(settings, named.junit),
        "html": asked.get("html") or _inside(settings, named.html),
        "markdown": _inside(settings, named.markdown),
        "json": _inside(settings, named.json),
    }
    for kind, path in places.items():
        if path is not None:
            _write(_of_kind(kind, content), path)
            say(f"report: {path}")
    for summary in (asked.get("summary"), markdown.summary_file()):
        if summary is not None:
            markdown.append(markdown.render(content), summary)
    if annotations.wanted():
        for line in annotations.lines(content):
            typer.echo(line, err=json)


def document(content: Content) -> dict[str, Any]:
    """The content as one JSON document."""
    from specdiag.gate.judge import Verdict
    from specdiag.report.json_report import document as of_results
    from specdiag.store import json_safe

    def plain(verdict: Verdict) -> dict[str, Any]:
        kept = {
            name: getattr(verdict, name)
            for name in Verdict.__dataclass_fields__
            if name not in ("rule", "limit", "notes")
        }
        limit = None if verdict.limit is None else str(verdict.limit)
        return {"gate": verdict.rule.number, "limit": limit, **kept, "notes": list(verdict.notes)}

    result = of_results([stored.dataset for stored in content.results])
    result["gates"] = [json_safe(plain(verdict)) for verdict in content.verdicts]
    result["failures"] = [json_safe(item) for item in content.failures]
    result["skipped"] = [json_safe(item) for item in content.omitted]
    result["exit_code"] = content.exit_code
    return result


def console() -> Console:
    """The console of results: stdout, plain where it is no terminal."""
    from rich.console import Console

    plain = bool(os.environ.get("NO_COLOR") or os.environ.get("CI"))
    # a log has no width of its own: tables stay in one piece
    width = None if sys.stdout.isatty() else 160
    return Console(file=sys.stdout, highlight=False, no_color=plain, width=width)


def _inside(settings: Settings, path: Path | None) -> Path | None:
    return None if path is None else settings.inside(path)


def _of_kind(kind: str, content: Content) -> str:
    if kind == "json":
        import json

        return json.dumps(document(content), indent=1) + "\n"
    return rendered(content, Path({"junit": "a.xml", "html": "a.html", "markdown": "a.md"}[kind]))


def _write(text: str, path: Path) -> None:
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise ResultsError(f"Cannot write the report {path}: {error.strerror or error}.") from error
