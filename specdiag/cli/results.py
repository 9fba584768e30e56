"""`show` and `plot`: stored results as tables and figures, without torch and without a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdiag import plugins
from specdiag.cli.ending import guarded
from specdiag.errors import NothingAnalysed, ResultsError, UsageError, suggest

if TYPE_CHECKING:
    import xarray

Files = Annotated[
    list[Path], typer.Argument(metavar="RESULTS.h5...", help="Results files.", show_default=False)
]
Which = Annotated[
    str | None,
    typer.Option("--analyzer", "-a", help="Only this analyzer.", metavar="NAME", show_default=False),
]


@guarded
def show(
    files: Files,
    analyzer: Which = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")
    ] = False,
    field: Annotated[
        str | None,
        typer.Option(
            "--field",
            help="Print one number only, such as spectrum.sigma_max_mean.",
            metavar="ANALYZER.METRIC",
        ),
    ] = None,
) -> None:
    """Print what a results file holds: tables, metrics, settings."""
    found = _load(files, field.partition(".")[0] if field else analyzer)
    if field:
        _print_field(found, field)
        return
    if json:
        import json as encoder

        from specdiag.report.json_report import document

        typer.echo(encoder.dumps(document([dataset for _, _, dataset in found]), indent=1))
        return
    from rich.console import Console

    from specdiag.report.terminal import print_result

    console = Console(
        file=sys.stdout, highlight=False, no_color=bool(os.environ.get("NO_COLOR") or os.environ.get("CI"))
    )
    for number, (path, name, dataset) in enumerate(found):
        if number:
            console.print()
        print_result(dataset, _declared(name), console, path=path)


@guarded
def plot(
    files: Files,
    analyzer: Which = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Figure file: .svg, .png or .pdf.",
            metavar="FILE",
            show_default="ANALYZER.svg",
        ),
    ] = None,
) -> None:
    """Draw stored results, several files overlaid."""
    from specdiag import figures

    found = _load(files, analyzer)
    names = list(dict.fromkeys(name for _, name, _ in found))
    if out is not None and len(names) > 1:
        raise UsageError(
            f"The files hold results of {', '.join(names)}; one figure shows one analyzer.",
            "Choose with --analyzer.",
        )
    for name in names:
        declared = _declared(name)
        if declared is None:
            raise ResultsError(f"No analyzer '{name}' is installed, so its results cannot be drawn.")
        chosen = [(path, dataset) for path, entry, dataset in found if entry == name]
        target = out or Path(f"{name}.svg")
        figures.draw(
            declared, labels_of([path for path, _ in chosen], [dataset for _, dataset in chosen]), target
        )
        typer.echo(f"figure:  {target}")


def labels_of(paths: Sequence[Path], datasets: Sequence[xarray.Dataset]) -> dict[str, xarray.Dataset]:
    """Datasets by a distinct label each: the file's name, with its folder where two share one."""
    stems = [path.stem for path in paths]
    labels = [
        stem if stems.count(stem) == 1 else f"{path.parent.name}/{stem}"
        for stem, path in zip(stems, paths, strict=True)
    ]
    if len(set(labels)) < len(labels):
        labels = [str(path) for path in paths]
    return dict(zip(labels, datasets, strict=True))


def _load(files: Sequence[Path], only: str | None) -> list[tuple[Path, str, xarray.Dataset]]:
    from specdiag.store import groups, read_group

    found = []
    held: list[str] = []
    for path in files:
        if not path.is_file():
            raise ResultsError(
                f"There is no results file {path}.", "Run an analyzer first, e.g. specdiag spectrum."
            )
        for name in groups(path):
            held.append(name)
            if only is None or name == only:
                found.append((path, name, read_group(path, name)))
    if not found:
        if only is not None and held:
            raise UsageError(f"No file holds results of '{only}'.", suggest(only, sorted(set(held))))
        raise NothingAnalysed("The files hold no results.")
    return found


def _declared(name: str) -> Any:
    return plugins.load("analyzer", name) if name in plugins.names("analyzer") else None


def _print_field(found: Sequence[tuple[Path, str, xarray.Dataset]], field: str) -> None:
    from specdiag.store import provenance

    name, _, metric = field.partition(".")
    for _, entry, dataset in found:
        metrics = provenance(dataset)["metrics"]
        if entry == name and metric in metrics:
            typer.echo(f"{metrics[metric]['value']!r}")
        elif entry == name:
            raise UsageError(f"{name} has no metric '{metric}'.", suggest(metric, sorted(metrics)))
