"""`config`: make, show and check a configuration file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdiag.cli.ending import guarded, say
from specdiag.cli.reporting import SET
from specdiag.errors import UsageError

if TYPE_CHECKING:
    from specdiag.batch.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Make, show and check a configuration file.")
Place = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FILE]",
        help="Default: specdiag.toml, or the table tool.specdiag of pyproject.toml.",
        show_default=False,
    ),
]

TEMPLATE = """\
# specdiag batch specdiag.toml · everything here can be changed for one run by --set key=value
checkpoints = ["{checkpoints}"]   # globs, relative to this file
data = "{data}"                          # digits, FILE.npz, cifar10:ROOT, folder:ROOT
samples = 200
seed = 0

# one table per analyzer; its keys are the flags of specdiag ANALYZER --help
[spectrum]

# other settings for some checkpoints, or analyzers left out, with the reason
# [[override]]
# checkpoint = "runs/old-*"
# samples = 100

# limits: max, min, or max_increase and max_decrease from a baseline, absolute or in per cent
[[gate]]
metric = "spectrum.sigma_max_mean"       # globs over analyzer.metric; also: layer, checkpoint
max_increase = "10%"
baseline = "baseline.json"               # make it with: specdiag batch --write-baseline

# written after every run
# [report]
# junit = "specdiag.xml"
# html = "specdiag.html"
"""


@app.command("init")
@guarded
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to make.")] = Path("specdiag.toml"),
    checkpoints: Annotated[
        str, typer.Option("--checkpoints", help="Glob of the checkpoints.", metavar="GLOB")
    ] = "runs/*.pt",
    data: Annotated[str, typer.Option("--data", help="The data.", metavar="SPEC")] = "digits",
) -> None:
    """Make a configuration file with one analyzer and one gate."""
    text = TEMPLATE.format(checkpoints=_quoted(checkpoints), data=_quoted(data))
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(f"{file} exists already.", "Choose another name, or edit it.") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror or error}.") from None
    say(f"made {file}; next: specdiag config check {file}")


@app.command("show")
@guarded
def show(file: Place = None, changes: Annotated[list[str] | None, SET] = None) -> None:
    """Print the configuration as it is understood, with every default filled in, as TOML."""
    from specdiag.batch.settings import load

    typer.echo("\n".join(_lines(load(file, changes or ()))))


@app.command("check")
@guarded
def check(file: Place = None, changes: Annotated[list[str] | None, SET] = None) -> None:
    """Look for everything that is wrong in a configuration; nothing is loaded or run."""
    from specdiag import config
    from specdiag.batch import plan as plans
    from specdiag.batch.settings import apply, near, parse, problems
    from specdiag.report.content import counted

    place = file or config.find()
    if place is None:
        raise UsageError("There is no specdiag.toml here.", "Make one with: specdiag config init")
    found = near(place)
    raw = apply(config.read(found), changes or ())
    wrong = problems(raw, found)
    for error in wrong:
        say(f"error: {error}")
    if wrong:
        raise typer.Exit(2)
    settings = parse(raw, found)
    plan = plans.make(settings)
    missing = [rule.baseline for rule in settings.rules if rule.compares and rule.baseline is not None]
    for name in dict.fromkeys(missing):
        if not settings.inside(name).is_file():
            say(f"note: there is no {settings.inside(name)} yet: specdiag batch {found} --write-baseline")
    for skipped in plan.skipped:
        say(f"skipped: {skipped.what}: {skipped.reason}")
    checkpoints = len({job.checkpoint for job in plan.jobs})
    parts = [
        counted(checkpoints, "checkpoint"),
        counted(len(settings.analyzers), "analyzer"),
        counted(len(plan.jobs), "job"),
        counted(len(settings.rules), "gate"),
    ]
    typer.echo(f"{found}: {', '.join(parts)}: all understood.")


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _lines(settings: Settings) -> Iterator[str]:
    from specdiag import plugins
    from specdiag.batch.keys import names
    from specdiag.batch.settings import check_analyzer, check_shared
    from specdiag.options import json_options

    yield f"# {settings.file}"
    shared = check_shared(settings.shared, str(settings.file))
    for source in (settings.top, shared):
        for name in names(type(source)):
            value = getattr(source, name)
            if value is not None and value != ():
                yield f"{name} = {toml(value)}"
    if settings.shared.get("arch_args"):
        yield f"arch_args = {toml(settings.shared['arch_args'])}"
    for name, values in settings.analyzers.items():
        yield f"\n[{name}]   # {plugins.load('analyzer', name).summary}"
        options = check_analyzer(name, values, str(settings.file))
        flat = {key: value for key, value in json_options(options).items() if value is not None}
        for key, value in flat.items():
            if isinstance(value, Mapping):
                # an attack: its name, and its own options beside it
                yield f"{key} = {toml(value['name'])}"
                yield from (
                    f"{own} = {toml(v)}" for own, v in value.items() if own != "name" and v is not None
                )
            else:
                yield f"{key} = {toml(value)}"
    for override in settings.raw.get("override", []):
        yield from _table("override", override)
    for gate in settings.raw.get("gate", []):
        yield from _table("gate", gate)
    reports = {
        name: value for name in names(type(settings.reports)) if (value := getattr(settings.reports, name))
    }
    if reports:
        yield "\n[report]"
        yield from (f"{name} = {toml(value)}" for name, value in reports.items())


def _table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n[[{name}]]"
    yield from (f"{key} = {toml(value)}" for key, value in values.items())


def toml(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(toml(entry) for entry in value) + "]"
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    return f'"{_quoted(text)}"'
