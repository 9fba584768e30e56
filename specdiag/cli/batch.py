"""`batch`: everything that a configuration file asks for, with gates and reports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from specdiag.cli.ending import guarded, say
from specdiag.cli.progress import ProgressBar
from specdiag.cli.reporting import HTML, JUNIT, SET, SUMMARY, console, document, leave
from specdiag.errors import UsageError

if TYPE_CHECKING:
    from specdiag.batch.calls import Executor
    from specdiag.batch.plan import Plan
    from specdiag.batch.schedule import Result
    from specdiag.batch.settings import Settings
    from specdiag.report.content import Content

RUN, JUDGE, WRITE = "What is run", "Gates", "Reports"
FailOn = Literal["fail", "investigate"]


@guarded
def batch(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG.toml]",
            help="The configuration; default: specdiag.toml, or the table tool.specdiag of pyproject.toml.",
            show_default=False,
        ),
    ] = None,
    changes: Annotated[list[str] | None, SET] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Tasks at a time.", show_default="1", rich_help_panel=RUN),
    ] = None,
    executor: Annotated[
        Literal["local", "ray"] | None,
        typer.Option(
            "--executor", help="This machine, or a Ray cluster.", show_default="local", rich_help_panel=RUN
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="Address of the Ray cluster.", metavar="HOST:PORT", rich_help_panel=RUN
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the results.",
            metavar="DIR",
            show_default="specdiag-results",
            rich_help_panel=RUN,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan with its predicted cost and stop.", rich_help_panel=RUN
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A smoke run: at most 16 samples, all cores, no gates, into DIR/quick.",
            rich_help_panel=RUN,
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue what was interrupted.", rich_help_panel=RUN)
    ] = True,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace results made with other settings.", rich_help_panel=RUN),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="Baseline of all gates.", metavar="FILE", rich_help_panel=JUDGE),
    ] = None,
    write_baseline: Annotated[
        bool,
        typer.Option("--write-baseline", help="Make the baseline instead of judging.", rich_help_panel=JUDGE),
    ] = False,
    fail_on: Annotated[
        FailOn | None,
        typer.Option(
            "--fail-on",
            help="From which outcome on to exit with 1.",
            show_default="fail",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit with 0 although a gate failed.", rich_help_panel=JUDGE)
    ] = False,
    summary: Annotated[Path | None, SUMMARY] = None,
    junit: Annotated[Path | None, JUNIT] = None,
    html: Annotated[Path | None, HTML] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON document on stdout, nothing else.", rich_help_panel=WRITE
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no tables.", rich_help_panel=WRITE)
    ] = False,
) -> None:
    """Analyse many checkpoints as a configuration file says, judge the gates, write the reports."""
    from specdiag.batch import plan as plans
    from specdiag.batch.settings import load

    settings = load(config, changes or ())
    if quick and write_baseline:
        raise UsageError("A smoke run makes no baseline.", "Leave out --quick.")
    plan = plans.make(settings, out=out, overwrite=overwrite, quick=quick)
    if dry_run:
        _show_plan(plan, jobs or settings.top.jobs)
        return
    if quick and jobs is None and "jobs" not in settings.raw:
        jobs = min(os.cpu_count() or 1, len(plan.jobs)) or None
    chosen = _executor(settings, executor, jobs, address)
    results = _run(plan, chosen, resume=resume, quiet=quiet)
    from specdiag.cli.gating import conclude

    content = conclude(
        _settings_of(settings, baseline, quick),
        plan,
        results,
        write_baseline=write_baseline,
        fail_on=fail_on,
        exit_zero=exit_zero,
    )
    leave(content, settings, {"summary": summary, "junit": junit, "html": html}, json=json)
    _print(content, json=json, quiet=quiet)
    if content.exit_code:
        raise typer.Exit(content.exit_code)


def _settings_of(settings: Settings, baseline: Path | None, quick: bool) -> Settings:
    from dataclasses import replace

    from specdiag.batch.settings import with_baseline

    if quick:
        if settings.rules:
            say("smoke run: the gates are not judged.")
        return replace(settings, rules=())
    return with_baseline(settings, baseline)


def _executor(settings: Settings, name: str | None, jobs: int | None, address: str | None) -> Executor:
    count = jobs or settings.top.jobs
    if (name or settings.top.executor) == "ray":
        from specdiag.batch.on_ray import Cluster

        return Cluster(address or settings.top.address, jobs or (count if settings.top.jobs > 1 else None))
    if address is not None:
        raise UsageError("--address is for --executor ray.")
    from specdiag.batch.local import Pool, Serial

    return Serial() if count == 1 else Pool(count)


def _run(plan: Plan, executor: Executor, *, resume: bool, quiet: bool) -> list[Result]:
    from specdiag.batch.schedule import PATIENCE, Schedule
    from specdiag.journal import discard, folder_of
    from specdiag.locks import locked

    total = sum(job.shared.samples for job in plan.jobs)
    bar = nullcontext(None) if quiet else ProgressBar(f"{len(plan.jobs)} jobs")
    with locked(plan.out / "specdiag-batch", PATIENCE), bar as progress:
        if not resume:
            for job in plan.jobs:
                discard(folder_of(job.target, job.analyzer))
        done = [0, 0]

        def samples(count: int) -> None:
            done[0] += count
            if progress is not None:
                progress(done[0], max(total, done[0]))

        def ended(result: Result) -> None:
            done[1] += 1
            if not quiet or result.failure is not None:
                say(f"[{done[1]}/{len(plan.jobs)}] {result.job}: {_ending(result)}")

        schedule = Schedule(executor, samples, say, ended)
        if hasattr(executor, "describe") and not quiet:
            say(executor.describe())
        if hasattr(executor, "listener"):
            executor.listener = schedule.heard
        return schedule.run(plan)


def _ending(result: Result) -> str:
    if result.failure is not None:
        return f"failed: {result.failure}"
    if result.status == "skipped":
        return f"skipped: {result.reason}"
    return f"{result.status} in {result.seconds:.1f} s"


def _print(content: Content, *, json: bool, quiet: bool) -> None:
    if json:
        import json as encoder

        typer.echo(encoder.dumps(document(content), indent=1))
        return
    if quiet:
        return
    from specdiag.report.verdicts import print_metrics, print_verdicts

    output = console()
    print_metrics(content, output)
    print_verdicts(content, output)
    output.print(content.headline, soft_wrap=True)


def _show_plan(plan: Plan, jobs: int) -> None:
    from specdiag.batch.predict import Forecast, forecast
    from specdiag.report.terminal import print_table

    output = console()
    rows: list[Sequence[str]] = []
    found: list[Forecast] = []
    for item in forecast(plan):
        found.append(item)
        rows.append(_forecast_row(item))
    print_table(output, ["checkpoint", "analyzer", "samples", "time", "size", "file"], rows)
    output.print()
    for item in found:
        if item.failure is not None:
            output.print(f"cannot run: {item.job}: {item.failure}", soft_wrap=True)
    for skipped in plan.skipped:
        output.print(f"skipped: {skipped.what}: {skipped.reason}", soft_wrap=True)
    known = [item.seconds for item in found if item.seconds is not None]
    unknown = len(found) - len(known)
    output.print(
        f"{len(found)} jobs, about {_duration(sum(known) / jobs)} on {jobs} at a time"
        + (f", and {unknown} whose time is not known beforehand" if unknown else "")
        + ". Nothing was written.",
        soft_wrap=True,
    )


def _forecast_row(item: Any) -> list[str]:
    job = item.job
    return [
        job.name,
        job.analyzer,
        "-" if item.samples is None else str(item.samples),
        "?" if item.seconds is None else _duration(item.seconds),
        "?" if item.bytes is None else f"{item.bytes / 1e6:.3g} MB",
        str(job.target),
    ]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
