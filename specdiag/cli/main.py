"""The `specdiag` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from specdiag import plugins
from specdiag.cli import (
    analyzers,
    batch,
    comparing,
    configuring,
    gating,
    inspecting,
    reporting,
    reproducing,
    results,
    training,
    verifying,
)
from specdiag.cli.ending import guarded, take_debug_flag

EPILOG = (
    "Exit codes: 0 done; 1 a gate failed; 2 wrong usage, bad configuration or another explained error; "
    "3 the checkpoint was refused or could not be read; 4 partial, the rest is saved; 5 nothing was analysed; "
    "130 interrupted. --debug anywhere shows tracebacks."
)

app = typer.Typer(
    name="specdiag",
    help="How sensitive is this model, where does it come from, and is it getting worse?",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        guarded(_print_version)()
        raise typer.Exit


def _print_version() -> None:
    from specdiag.cli.version import lines

    typer.echo("\n".join(lines()))


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Versions of specdiag, torch and devices."
        ),
    ] = False,
) -> None:
    """How sensitive is this model, where does it come from, and is it getting worse?"""


def _register() -> None:
    for name in plugins.names("analyzer"):
        analyzer = plugins.load("analyzer", name)
        app.command(
            name, help=analyzers.help_text(analyzer), short_help=analyzer.summary, rich_help_panel="Analyzers"
        )(analyzers.command(analyzer))
    app.command("inspect", rich_help_panel="Files")(inspecting.inspect)
    app.command("show", rich_help_panel="Files")(results.show)
    app.command("plot", rich_help_panel="Files")(results.plot)
    app.command("train", short_help="Train a network by a method of the papers.", rich_help_panel="Training")(
        training.command()
    )
    app.command("reproduce", rich_help_panel="Training")(reproducing.reproduce)
    app.command("gate", rich_help_panel="Many checkpoints and CI")(gating.gate)
    app.command("report", rich_help_panel="Many checkpoints and CI")(reporting.report)
    app.command("compare", rich_help_panel="Files")(comparing.compare)
    app.command("verify", rich_help_panel="Files")(verifying.verify)
    app.command("batch", rich_help_panel="Many checkpoints and CI")(batch.batch)
    app.add_typer(configuring.app, name="config", rich_help_panel="Many checkpoints and CI")


_register()


def main() -> None:
    """Entry point of the console script."""
    sys.argv[1:] = take_debug_flag(sys.argv[1:])
    try:
        app(prog_name="specdiag")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
