"""`train`: a network by one of the papers' methods, or a sum of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from specdiag import config, plugins
from specdiag.cli.common import numbers
from specdiag.cli.ending import guarded, say
from specdiag.cli.progress import ProgressBar
from specdiag.errors import UsageError
from specdiag.schema import OptionField, build, fields

SETTINGS_PANEL = "Training"
METHOD_PANEL = "Options of the methods"
PLAIN: dict[str, tuple[Any, Any]] = {
    "out": (
        Path,
        typer.Option("--out", "-o", help="Checkpoint to write.", metavar="FILE", show_default="METHOD.pt"),
    ),
    "data": (
        str | None,
        typer.Option("--data", help="Data to train on.", metavar="SPEC", show_default="digits"),
    ),
    "arch": (
        str | None,
        typer.Option("--arch", help="Architecture.", metavar="SPEC", show_default="by the data"),
    ),
    "arch_arg": (
        list[str] | None,
        typer.Option("--arch-arg", help="Factory argument; repeats.", metavar="KEY=VALUE"),
    ),
    "normalise": (
        str | None,
        typer.Option(
            "--normalise", help="How inputs are normalised inside.", metavar="channel|per-image|none"
        ),
    ),
    "mean": (str | None, typer.Option("--mean", help="Mean per channel.", metavar="A,B,C")),
    "std": (str | None, typer.Option("--std", help="Standard deviation per channel.", metavar="A,B,C")),
    "init": (
        Path,
        typer.Option("--init", help="Checkpoint to start from.", metavar="CKPT", show_default=False),
    ),
    "match_accuracy": (
        Path,
        typer.Option(
            "--match-accuracy",
            help="Pick the method's constant for the clean accuracy of this checkpoint.",
            metavar="CKPT",
            show_default=False,
        ),
    ),
    "curves": (
        Path,
        typer.Option("--curves", help="Draw the training curves.", metavar="FILE", show_default=False),
    ),
    "overwrite": (bool, typer.Option("--overwrite", help="Replace the checkpoint and start anew.")),
    "quiet": (bool, typer.Option("--quiet", "-q", help="No progress.")),
}


def command() -> Callable[..., None]:
    """The function behind `specdiag train METHOD|CONFIG.toml [options]`."""
    from specdiag.training._settings import Settings

    settings, methods = fields(Settings), _method_fields()

    def run(method: str, **values: Any) -> None:
        given = {key: value for key, value in values.items() if value is not None}
        _train(method, given, [item.name for item in settings], list(methods))

    wrapped = guarded(run)
    place = inspect.Parameter(
        "method",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        annotation=Annotated[
            str,
            typer.Argument(
                metavar="METHOD|CONFIG.toml",
                help="A method, a sum such as pgm+spectral-normalisation, or a configuration file.",
                show_default=False,
            ),
        ],
    )
    parameters = [place]
    parameters += [_parameter(item, SETTINGS_PANEL, item.doc) for item in settings]
    parameters += [
        _parameter(item, METHOD_PANEL, f"{item.doc} ({', '.join(owners)})")
        for item, owners in methods.values()
    ]
    for name, (kind, info) in PLAIN.items():
        default = False if kind is bool else None
        optional: Any = kind if kind is bool else kind | None
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[optional, info]
            )
        )
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapped.__name__ = "train"
    wrapped.__doc__ = help_text()
    del wrapped.__wrapped__  # type: ignore[attr-defined]
    return wrapped


def help_text() -> str:
    """What `specdiag train --help` says above the options."""
    lines = [f"- {name}: {plugins.load('training', name).summary}" for name in plugins.names("training")]
    return "Train a network by a method of the papers.\n\nMethods:\n\n" + "\n".join(lines)


def _method_fields() -> dict[str, tuple[OptionField, list[str]]]:
    found: dict[str, tuple[OptionField, list[str]]] = {}
    for name in plugins.names("training"):
        for item in fields(plugins.load("training", name).options):
            found.setdefault(item.name, (item, []))[1].append(name)
    return found


def _parameter(item: OptionField, panel: str, doc: str) -> inspect.Parameter:
    if item.is_bool:
        info = typer.Option(
            f"{item.flag}/--no-{item.flag[2:]}", help=doc, show_default=False, rich_help_panel=panel
        )
    else:
        shown = str(item.default) if item.default is not None and panel == SETTINGS_PANEL else False
        info = typer.Option(
            item.flag, help=doc, metavar=item.metavar, show_default=shown, rich_help_panel=panel
        )
    kind = bool | None if item.is_bool else str | None
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, info]
    )


def _train(method: str, given: dict[str, Any], settings: list[str], options: list[str]) -> None:
    from specdiag.loading.factories import parse_arch_args
    from specdiag.training._run import train
    from specdiag.training._settings import Settings, TrainConfig

    if method.endswith(".toml"):
        table = config.read(Path(method))
        file = {key.replace("-", "_"): value for key, value in dict(table.get("train", table)).items()}
        if "method" not in file:
            raise UsageError(f"{method} names no method.", 'Add: method = "standard".')
        method = str(file.pop("method"))
        arch_args = dict(file.pop("arch_args", {}))
        unknown = [key for key in file if key not in (*settings, *options, *PLAIN)]
        if unknown:
            raise UsageError(f"The configuration has an unknown key '{unknown[0]}'.")
        given = {**file, **{key: value for key, value in given.items() if value is not False}}
    else:
        arch_args = {}
    arch_args |= parse_arch_args(given.get("arch_arg") or ())
    out = Path(given.get("out") or f"{method.replace('+', '-')}.pt")
    wanted = TrainConfig(
        method=method,
        out=out,
        data=given.get("data", "digits"),
        options={key: given[key] for key in options if key in given},
        settings=build(Settings, {key: given[key] for key in settings if key in given}),
        arch=given.get("arch"),
        arch_args=arch_args,
        normalise=given.get("normalise"),
        mean=_tuple("--mean", given.get("mean")),
        std=_tuple("--std", given.get("std")),
        init=Path(given["init"]) if given.get("init") else None,
        overwrite=bool(given.get("overwrite")),
        match_accuracy=Path(given["match_accuracy"]) if given.get("match_accuracy") else None,
    )
    with ProgressBar(method, unit="steps") as bar:
        train(wanted, None if given.get("quiet") else _report(bar, wanted.settings.epochs))
    _say_result(out)
    if given.get("curves"):
        _draw_curves(out, Path(given["curves"]))


def _report(bar: ProgressBar, epochs: int) -> Callable[[Any], None]:
    def report(progress: Any) -> None:
        bar((progress.epoch - 1) * progress.steps + progress.step, progress.epochs * progress.steps)
        if progress.curves is not None and not bar.visible:
            told = ", ".join(f"{name} {value:.3f}" for name, value in progress.curves.items())
            say(f"epoch {progress.epoch} of {epochs}: {told}")

    return report


def _say_result(out: Path) -> None:
    from specdiag.loading.checkpoints import read_checkpoint

    facts: Mapping[str, Any] = read_checkpoint(out).metadata.get("train", {})
    attack = facts.get("attack", {})
    typer.echo(f"checkpoint: {out}")
    typer.echo(f"clean accuracy:    {facts['clean_accuracy']:.2%}")
    typer.echo(
        f"attacked accuracy: {facts['adversarial_accuracy']:.2%} ({attack.get('name')}, eps {attack.get('eps')})"
    )


def _draw_curves(checkpoint: Path, target: Path) -> None:
    from specdiag.loading.checkpoints import read_checkpoint
    from specdiag.training._drawing import draw_curves

    draw_curves({checkpoint.stem: read_checkpoint(checkpoint).metadata["train"]}, target)
    typer.echo(f"curves:     {target}")


def _tuple(flag: str, value: Any) -> tuple[float, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else numbers(flag, str(value)) or ()
