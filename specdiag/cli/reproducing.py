"""`reproduce`: a paper's claims on models trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from specdiag import plugins
from specdiag.cli.ending import guarded, say
from specdiag.errors import UsageError

KINDS = {"digits": "digits", "fashion-mnist": "grey", "cifar10": "colour"}


@guarded
def reproduce(
    paper: Annotated[str, typer.Argument(help="|".join(plugins.names("paper")), show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            "--data", help="digits, fashion-mnist, cifar10, or a spec such as FILE.npz.", metavar="SPEC"
        ),
    ] = "digits",
    data_file: Annotated[
        str | None,
        typer.Option(
            "--data-file",
            help="Where fashion-mnist or cifar10 are: FILE.npz or cifar10:ROOT.",
            metavar="SPEC",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder.", metavar="DIR", show_default="specdiag-reproduce/PAPER-DATA"
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="Trainings per method.", min=1, show_default="by the data")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", help="Epochs of every training.", min=0, show_default="by the data"),
    ] = None,
    train_samples: Annotated[
        int | None,
        typer.Option("--train-samples", help="Training samples.", min=20, show_default="by the data"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Test samples.", min=8, show_default="by the data")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what was made with other settings.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")
    ] = False,
) -> None:
    """Train a paper's models, run its analyses, and print which of its claims hold here.

    Checkpoints, results (NAME.h5), figures, claims.md and claims.json go to --out. The same command again continues
    where it was. The exit code is 0 whatever the verdicts are.
    """
    from specdiag.locks import locked

    declared = plugins.load("paper", paper)
    spec, kind, name = _data(data, data_file)
    folder = out or Path("specdiag-reproduce") / f"{paper}-{name}"
    scene = _scene(spec, kind, seeds, epochs, samples, train_samples, device)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "claims"):
        _run(declared, scene, folder, overwrite, json)


def _scene(
    spec: str,
    kind: str | None,
    seeds: int | None,
    epochs: int | None,
    samples: int | None,
    train_samples: int | None,
    device: str,
) -> Any:
    from specdiag.reproduce._plan import scene_of
    from specdiag.reproduce._run import kind_of

    return scene_of(
        spec,
        kind or kind_of(spec),  # type: ignore[arg-type]
        seeds=seeds,
        epochs=epochs,
        samples=samples,
        train_samples=train_samples,
        device=device,
    )


def _run(paper: Any, scene: Any, folder: Path, overwrite: bool, json: bool) -> None:
    from specdiag.cli.reporting import console
    from specdiag.report.terminal import print_table
    from specdiag.reproduce import _table
    from specdiag.reproduce._cost import seconds
    from specdiag.reproduce._run import reproduce

    adjusted = paper.adjust(scene)
    took, trainings, runs = seconds(paper.plan(adjusted, folder / "data"), adjusted, folder)
    say(
        f"{paper.name} on {scene.data}: {trainings} trainings and {runs} analyses, about "
        f"{_duration(took)} on this machine for what {folder} does not hold yet; an interrupted run continues."
    )
    outcome = reproduce(paper, scene, folder, say, overwrite=overwrite)
    (folder / "claims.md").write_text(_table.markdown(outcome))
    (folder / "claims.json").write_text(_table.json_text(outcome))
    if json:
        typer.echo(_table.json_text(outcome), nl=False)
        return
    output = console()
    output.print(f"{paper.name}: {paper.title}", soft_wrap=True)
    print_table(output, list(_table.TITLES), _table.rows(outcome))
    output.print()
    for line in _table.footer(outcome):
        output.print(line, soft_wrap=True)
    output.print()
    output.print(_table.counted(outcome), style="bold", soft_wrap=True)
    output.print(f"claims:  {folder / 'claims.md'}", soft_wrap=True)
    for path in outcome.figures:
        output.print(f"figure:  {path}", soft_wrap=True)


def _data(data: str, file: str | None) -> tuple[str, str | None, str]:
    """(spec, kind of scene or None where the data must tell, name for the folder)."""
    if data == "digits":
        if file is not None:
            raise UsageError("digits are bundled.", "Leave out --data-file.")
        return "digits", "digits", "digits"
    if data in KINDS:
        if file is None:
            example = f"{data}:ROOT"
            raise UsageError(
                f"--data {data} needs the place of the data.",
                f"Pass --data-file FILE.npz or --data-file {example}.",
            )
        return file, KINDS[data], data
    if file is not None:
        raise UsageError("--data names the data already.", "Leave out --data-file.")
    prefix = data.partition(":")[0]
    stem = Path(data).stem if data.endswith(".npz") else prefix
    return data, KINDS.get(prefix), stem


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
