"""Run one analyzer over the checkpoints of the command line: load, compute, store, print, draw."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from specdiag import bundled, config
from specdiag.cli.common import common_of
from specdiag.cli.ending import report, say
from specdiag.cli.progress import ProgressBar
from specdiag.errors import SpecdiagError, UsageError
from specdiag.options import build_options
from specdiag.schema import Analyzer

if TYPE_CHECKING:
    import xarray

    from specdiag.jobs import Common


def run_analyzer(
    analyzer: Analyzer, checkpoints: Sequence[Path], own: Mapping[str, Any], shared: Mapping[str, Any]
) -> None:
    """All checkpoints, one after the other; one that fails does not stop the others."""
    file = config.find()
    settings = config.read(file)
    options = build_options(analyzer, {**_table(settings, analyzer.name), **own})
    common = common_of(shared, settings)
    paths, notes = _checkpoints(checkpoints, settings, file)
    out = (
        Path(settings["out"])
        if shared["out"] == Path("specdiag-results") and "out" in settings
        else Path(shared["out"])
    )
    outcomes, failures = _run_all(analyzer, paths, options, common, settings, out, notes, shared)
    _warn_of_different_eps([outcome.dataset for outcome in outcomes.values()])
    figure = _draw(analyzer, outcomes, out, shared)
    _print(analyzer, outcomes, figure, shared)
    _finish(outcomes, failures)


def _run_all(
    analyzer: Analyzer,
    paths: Sequence[Path],
    options: Any,
    common: Common,
    settings: Mapping[str, Any],
    out: Path,
    notes: Sequence[str],
    shared: Mapping[str, Any],
) -> tuple[dict[Path, Any], list[SpecdiagError]]:
    from specdiag.store import result_paths

    for note in notes:
        say(note)
    if analyzer.kind == "cross":
        target = out / f"{analyzer.name}.h5"
        return {
            paths[0]: _run_one(analyzer, paths[0], options, common, settings, target, shared, paths[1:])
        }, []
    targets = result_paths(paths, out)
    outcomes: dict[Path, Any] = {}
    failures: list[SpecdiagError] = []
    for path in paths:
        try:
            outcomes[path] = _run_one(analyzer, path, options, common, settings, targets[path], shared)
        except SpecdiagError as error:
            report(error, f"{path}: " if len(paths) > 1 else "")
            failures.append(error)
    return outcomes, failures


def _run_one(
    analyzer: Analyzer,
    path: Path,
    options: Any,
    common: Common,
    settings: Mapping[str, Any],
    target: Path,
    shared: Mapping[str, Any],
    others: Sequence[Path] = (),
) -> Any:
    from specdiag import jobs

    hush = shared["quiet"]
    bar = nullcontext(None) if hush else ProgressBar(path.name)
    with bar as progress:
        prepared = jobs.prepare(analyzer, path, options, common, settings, others)
        for line in prepared.notes:
            say(line)
        if not hush:
            say(prepared.header)
            if analyzer.forecast is not None:
                task: Any = prepared.task
                say(analyzer.forecast(task.model, task.options, len(task.data), task.chunk))
        return jobs.run_to_file(
            prepared.task,
            target,
            overwrite=shared["overwrite"],
            progress=progress,
            say=say,
            notes=prepared.notes,
        )


def _warn_of_different_eps(datasets: Sequence[xarray.Dataset]) -> None:
    """Attacks whose eps was left out take each checkpoint's own: no comparison at one strength."""
    from specdiag.store import provenance

    found = []
    for dataset in datasets:
        attack = provenance(dataset)["options"].get("attack")
        first = attack[0] if isinstance(attack, list) and attack else attack
        found.append(first.get("eps") if isinstance(first, dict) else None)
    if len(set(found)) > 1:
        listed = ", ".join(f"{eps:.4g}" if isinstance(eps, float) else str(eps) for eps in found)
        say(
            f"the checkpoints were attacked with different eps ({listed}); pass --eps to compare them at one."
        )


def _table(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = settings.get(name, {})
    if not isinstance(table, Mapping):
        raise UsageError(f"'{name}' in the configuration must be a table: [{name}].")
    return {key.replace("-", "_"): value for key, value in table.items()}


def _checkpoints(
    given: Sequence[Path], settings: Mapping[str, Any], file: Path | None
) -> tuple[list[Path], list[str]]:
    if given:
        return list(dict.fromkeys(given)), []
    listed = settings.get("checkpoints") or ([settings["checkpoint"]] if "checkpoint" in settings else [])
    if listed:
        from specdiag.loading.patterns import matches

        base = file.parent if file is not None else Path.cwd()
        found = sorted({match for pattern in listed for match in matches(base, pattern)})
        if not found:
            raise UsageError(f"No checkpoint matches {', '.join(listed)} in {file}.")
        return found, [f"No checkpoint named: taking {len(found)} from {file.name if file else ''}."]
    path = bundled.default()
    return [path], [f"No checkpoint named: taking the bundled {path.name}."]


def _draw(
    analyzer: Analyzer, outcomes: Mapping[Path, Any], out: Path, shared: Mapping[str, Any]
) -> Path | None:
    if not outcomes or shared["figure"] == "none":
        return None
    from specdiag import figures
    from specdiag.cli.results import labels_of

    stored = [outcome.path for outcome in outcomes.values()]
    default = (
        out / f"{stored[0].stem}.{analyzer.name}.svg" if len(stored) == 1 else out / f"{analyzer.name}.svg"
    )
    target = Path(shared["figure"]) if shared["figure"] else default
    figures.draw(analyzer, labels_of(stored, [outcome.dataset for outcome in outcomes.values()]), target)
    return target


def _print(
    analyzer: Analyzer, outcomes: Mapping[Path, Any], figure: Path | None, shared: Mapping[str, Any]
) -> None:
    if shared["json"]:
        import json

        from specdiag.report.json_report import document

        typer.echo(json.dumps(document([outcome.dataset for outcome in outcomes.values()]), indent=1))
        return
    if shared["quiet"]:
        return
    from specdiag.report.terminal import print_result

    console = Console(
        file=sys.stdout, highlight=False, no_color=bool(os.environ.get("NO_COLOR") or os.environ.get("CI"))
    )
    for number, outcome in enumerate(outcomes.values()):
        if number:
            console.print()
        if outcome.status == "already there":
            say(
                f"{outcome.path} holds these results already, made with the same settings; nothing was computed."
            )
        last = number == len(outcomes) - 1
        print_result(outcome.dataset, analyzer, console, path=outcome.path, figure=figure if last else None)


def _finish(outcomes: Mapping[Path, Any], failures: Sequence[SpecdiagError]) -> None:
    if not failures:
        return
    if outcomes:
        say(
            f"{len(failures)} of {len(failures) + len(outcomes)} checkpoints failed; the results of the others are saved."
        )
        raise typer.Exit(4)
    codes = {error.exit_code for error in failures}
    raise typer.Exit(3 if codes == {3} else min(codes - {3}))
