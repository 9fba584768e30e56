"""`inspect`: what is in this file, is it safe, which layers, what to run next."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from specdiag.cli.ending import guarded


@guarded
def inspect(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT", help="The file to look at; nothing in it is executed.", show_default=False
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Which weights of a file that holds several.", metavar="NAME"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")
    ] = False,
) -> None:
    """What is in this file, is it safe, which layers, what to run next."""
    from specdiag.loading.inspect import inspect as look

    found = look(checkpoint, weights)
    if json:
        import json as encoder

        typer.echo(encoder.dumps(found, indent=1))
    else:
        from rich.console import Console

        from specdiag.report.inspection import print_inspection

        console = Console(
            file=sys.stdout,
            highlight=False,
            no_color=bool(os.environ.get("NO_COLOR") or os.environ.get("CI")),
        )
        print_inspection(found, console)
    if found.get("error"):
        raise typer.Exit(3)
