"""One command per analyzer, made from what the analyzer declares."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from specdiag import options as option_tools
from specdiag.cli.common import PARAMETERS, parameters
from specdiag.cli.ending import guarded
from specdiag.schema import Analyzer, OptionField, as_json


def help_text(analyzer: Analyzer) -> str:
    """Summary and source, as `--help` shows them."""
    return f"{analyzer.summary}\n\nSource: {analyzer.source}. Without CKPT the bundled sample checkpoint is analysed."


def command(analyzer: Analyzer) -> Callable[..., None]:
    """The function behind `specdiag NAME CKPT ... [options]`."""
    fields = option_tools.all_fields(analyzer)
    for item in fields:
        if item.name in PARAMETERS:
            raise TypeError(
                f"option '{item.name}' of analyzer '{analyzer.name}' is named like a common option"
            )

    def run(checkpoints: list[Path] | None = None, **values: Any) -> None:
        from specdiag.cli.running import run_analyzer

        own = {item.name: values.pop(item.name) for item in fields}
        run_analyzer(
            analyzer, list(checkpoints or ()), {k: v for k, v in own.items() if v is not None}, values
        )

    wrapped = guarded(run)
    checkpoint = inspect.Parameter(
        "checkpoints",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[
            list[Path] | None,
            typer.Argument(
                metavar="[CKPT]...", help="Checkpoints; one curve each in the figure.", show_default=False
            ),
        ],
    )
    own = [_parameter(analyzer, item) for item in fields]
    wrapped.__signature__ = inspect.Signature([checkpoint, *own, *parameters()])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in (checkpoint, *own, *parameters())}
    wrapped.__name__ = analyzer.name.replace("-", "_")
    del wrapped.__wrapped__  # type: ignore[attr-defined]
    return wrapped


def _parameter(analyzer: Analyzer, item: OptionField) -> inspect.Parameter:
    default = as_json(item.default)
    if isinstance(default, list):
        default = ",".join(str(entry) for entry in default)
    shown = str(default) if default not in (None, "") and not item.is_bool else False
    panel = f"Options of {analyzer.name}"
    if item.is_bool:
        names = f"{item.flag}/--no-{item.flag.removeprefix('--')}"
        info = typer.Option(
            names,
            help=f"{item.doc} [default: {'on' if item.default else 'off'}]",
            show_default=False,
            rich_help_panel=panel,
        )
        kind: Any = bool | None
    else:
        info = typer.Option(
            item.flag, help=item.doc, metavar=item.metavar, show_default=shown, rich_help_panel=panel
        )
        kind = str | None
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, info]
    )
