"""`gate`: stored results through the gates again, without torch; and the end of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from specdiag.cli.ending import guarded, say
from specdiag.cli.reporting import CONFIG, HTML, JUNIT, SET, SUMMARY, console, document, leave
from specdiag.errors import NothingAnalysed, UsageError

if TYPE_CHECKING:
    from specdiag.batch.plan import Plan
    from specdiag.batch.schedule import Result
    from specdiag.batch.settings import Settings
    from specdiag.gate.judge import Verdict
    from specdiag.report.content import Content, Stored


@guarded
def gate(
    files: Annotated[
        list[Path], typer.Argument(metavar="RESULTS.h5...", help="Results files.", show_default=False)
    ],
    config: Annotated[Path | None, CONFIG] = None,
    changes: Annotated[list[str] | None, SET] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="Baseline of all gates.", metavar="FILE", show_default=False),
    ] = None,
    write_baseline: Annotated[
        bool,
        typer.Option("--write-baseline", help="Make the baseline from these results instead of judging."),
    ] = False,
    fail_on: Annotated[
        Literal["fail", "investigate"] | None,
        typer.Option("--fail-on", help="From which outcome on to exit with 1.", show_default="fail"),
    ] = None,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit with 0 although a gate failed.")
    ] = False,
    summary: Annotated[Path | None, SUMMARY] = None,
    junit: Annotated[Path | None, JUNIT] = None,
    html: Annotated[Path | None, HTML] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No tables.")] = False,
) -> None:
    """Judge stored results by the gates of a configuration: 0 passed, 1 failed, 2 not judged."""
    from specdiag.batch.judging import read_results
    from specdiag.batch.settings import load, with_baseline

    settings = with_baseline(load(config, changes or ()), baseline)
    if not settings.rules:
        raise UsageError(
            f"{settings.file} has no gates.", "Write [[gate]] tables: specdiag config init shows one."
        )
    results = read_results(files)
    if not results:
        raise NothingAnalysed("The files hold no results.")
    content = concluded(
        settings, results, None, write_baseline=write_baseline, fail_on=fail_on, exit_zero=exit_zero
    )
    leave(content, settings, {"summary": summary, "junit": junit, "html": html}, json=json)
    if json:
        import json as encoder

        typer.echo(encoder.dumps(document(content), indent=1))
    elif not quiet:
        from specdiag.report.verdicts import print_verdicts

        output = console()
        print_verdicts(content, output)
        output.print(content.headline, soft_wrap=True)
    if content.exit_code:
        raise typer.Exit(content.exit_code)


def conclude(
    settings: Settings,
    plan: Plan,
    results: Sequence[Result],
    *,
    write_baseline: bool,
    fail_on: str | None,
    exit_zero: bool,
) -> Content:
    """Read what a batch stored, judge it, and say how the batch ended."""
    from specdiag.batch.ending import RAN
    from specdiag.batch.judging import read_results

    ran = [result.job for result in results if result.status in RAN]
    stored = read_results([job.target for job in ran], [(job.target, job.analyzer) for job in ran])
    return concluded(
        settings,
        stored,
        results,
        plan,
        write_baseline=write_baseline,
        fail_on=fail_on,
        exit_zero=exit_zero,
    )


def concluded(
    settings: Settings,
    stored: Sequence[Stored],
    results: Sequence[Result] | None,
    plan: Plan | None = None,
    *,
    write_baseline: bool,
    fail_on: str | None,
    exit_zero: bool,
) -> Content:
    """The content of all reports, with the exit code."""
    from specdiag.batch.ending import exit_code
    from specdiag.report.content import Content, Omitted, Trouble

    verdicts = _verdicts(settings, stored, results, write_baseline)
    threshold = fail_on or settings.top.fail_on
    failures, omitted = [], []
    if plan is not None:
        omitted += [Omitted(item.what, item.reason) for item in plan.skipped]
    for result in results or ():
        if result.failure is not None:
            failure = result.failure
            failures.append(
                Trouble(result.job.name, result.job.analyzer, str(failure), failure.exit_code, failure.kind)
            )
        elif result.status == "skipped":
            omitted.append(Omitted(str(result.job), result.reason))
    return Content(
        stored,
        verdicts,
        failures,
        omitted,
        {(result.job.name, result.job.analyzer): result.seconds for result in results or ()},
        settings.file,
        exit_code(results, verdicts, fail_on=threshold, exit_zero=exit_zero),
        threshold == "investigate",
    )


def _verdicts(
    settings: Settings, stored: Sequence[Stored], results: Sequence[Result] | None, write_baseline: bool
) -> list[Verdict]:
    from specdiag.batch.judging import judged, make_baselines

    if not write_baseline:
        # with nothing stored every gate would fail for want of numbers and hide why there are none
        return judged(settings, stored) if settings.rules and (stored or results is None) else []
    if any(result.failure is not None for result in results or ()):
        say("no baseline is written: some jobs failed.")
        return []
    for path, count in make_baselines(settings, stored).items():
        say(f"baseline: {path} ({count} numbers)")
    return []
