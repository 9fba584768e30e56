"""The options that every analyzer command shares, and what is made of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdiag.errors import UsageError, suggest

if TYPE_CHECKING:
    from specdiag.jobs import Common

PANEL = "Common options"


def _option(*names: str, help: str, default: str | bool = False, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, show_default=default, metavar=metavar, rich_help_panel=PANEL)


OptionalText = str | None
PARAMETERS: dict[str, tuple[Any, Any]] = {
    "arch": (
        OptionalText,
        _option(
            "--arch",
            help="Architecture: cnn7, resnet20, torchvision:NAME, file.py:factory, package.module:factory.",
            metavar="SPEC",
        ),
    ),
    "arch_arg": (
        list[str] | None,
        _option("--arch-arg", help="Factory argument; repeats.", metavar="KEY=VALUE"),
    ),
    "data": (
        OptionalText,
        _option("--data", help="Data: digits, FILE.npz, cifar10:ROOT, folder:ROOT, random.", metavar="SPEC"),
    ),
    "split": (
        OptionalText,
        _option("--split", help="Split of the data set.", default="test", metavar="train|test|both"),
    ),
    "samples": (
        OptionalText,
        _option("--samples", "-n", help="How many samples.", default="200", metavar="INTEGER"),
    ),
    "seed": (
        OptionalText,
        _option(
            "--seed", help="Seed of the choice of samples and of every draw.", default="0", metavar="INTEGER"
        ),
    ),
    "mean": (
        OptionalText,
        _option("--mean", help="Mean per channel, subtracted inside the model.", metavar="A,B,C"),
    ),
    "std": (
        OptionalText,
        _option(
            "--std", help="Standard deviation per channel, divided by inside the model.", metavar="A,B,C"
        ),
    ),
    "normalise": (
        OptionalText,
        _option(
            "--normalise",
            help="How inputs are normalised inside the model.",
            metavar="channel|per-image|none",
        ),
    ),
    "space": (
        OptionalText,
        _option(
            "--space",
            help="Measure in the data's space or after the normalisation.",
            default="data",
            metavar="data|model",
        ),
    ),
    "weights": (
        OptionalText,
        _option("--weights", help="Which weights of a file that holds several.", metavar="NAME"),
    ),
    "input_layer": (
        OptionalText,
        _option(
            "--input-layer",
            help="Take the output of this module as the input: embeddings of a text model.",
            metavar="MODULE",
        ),
    ),
    "trust_pickle": (
        bool,
        _option(
            "--trust-pickle",
            help="Run the Python code of a pickled network; only where you trust its author.",
        ),
    ),
    "trust_code": (
        bool,
        _option(
            "--trust-code",
            help="Run the program in a TorchScript, torch.export or torch.package file; likewise.",
        ),
    ),
    "layout": (OptionalText, _option("--layout", help="Axes of images in an .npz.", metavar="nchw|nhwc")),
    "device": (
        OptionalText,
        _option("--device", help="Where to compute.", default="auto", metavar="auto|cpu|cuda"),
    ),
    "dtype": (
        OptionalText,
        _option("--dtype", help="Precision.", default="float32", metavar="float32|float64"),
    ),
    "batch_size": (
        OptionalText,
        _option(
            "--batch-size",
            help="Samples per chunk, rounded up to a multiple of 8.",
            default="auto",
            metavar="INTEGER|auto",
        ),
    ),
    "compile": (
        OptionalText,
        _option(
            "--compile", help="Compile the backward pass: pays on long runs.", default="off", metavar="off|on"
        ),
    ),
    "max_memory": (
        OptionalText,
        _option("--max-memory", help="Refuse or shrink what needs more.", default="no limit", metavar="4GB"),
    ),
    "threads": (
        OptionalText,
        _option("--threads", help="CPU threads.", default="all cores", metavar="INTEGER"),
    ),
    "download": (bool, _option("--download", help="Let torchvision download the data set.")),
    "out": (
        Path,
        _option("--out", "-o", help="Folder of the results.", default="specdiag-results", metavar="DIR"),
    ),
    "figure": (
        OptionalText,
        _option(
            "--figure",
            help="Figure file (.svg, .png, .pdf), or none.",
            default="in the results folder",
            metavar="FILE|none",
        ),
    ),
    "overwrite": (bool, _option("--overwrite", help="Replace results made with other settings.")),
    "json": (bool, _option("--json", help="Print one JSON document on stdout, nothing else.")),
    "quiet": (bool, _option("--quiet", "-q", help="No progress and no tables.")),
}
DEFAULTS: dict[str, Any] = {
    "trust_pickle": False,
    "trust_code": False,
    "download": False,
    "overwrite": False,
    "json": False,
    "quiet": False,
    "out": Path("specdiag-results"),
}
CONFIG_KEYS = (
    "split",
    "samples",
    "seed",
    "device",
    "dtype",
    "space",
    "threads",
    "compile",
    "batch_size",
    "layout",
    "weights",
    "input_layer",
    "out",
)


def parameters() -> list[inspect.Parameter]:
    """The shared options as parameters of a command function."""
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=Annotated[kind, info]
        )
        for name, (kind, info) in PARAMETERS.items()
    ]


def common_of(values: Mapping[str, Any], config: Mapping[str, Any]) -> Common:
    """The shared options, checked: flag, then configuration file, then default."""
    from specdiag.jobs import Common
    from specdiag.jobs.memory import parse_bytes
    from specdiag.loading.checkpoints import Trust
    from specdiag.loading.factories import parse_arch_args
    from specdiag.loading.resolve import Wanted

    def take(name: str, default: Any) -> Any:
        if values.get(name) is not None:
            return values[name]
        return config.get(name, default)

    wanted = Wanted(
        arch=values.get("arch"),
        arch_args=parse_arch_args(values.get("arch_arg") or ()),
        normalise=values.get("normalise"),
        mean=numbers("--mean", values.get("mean")),
        std=numbers("--std", values.get("std")),
        data=values.get("data"),
    )
    batch_size = take("batch_size", None)
    limit = values.get("max_memory")
    return Common(
        wanted=wanted,
        weights=take("weights", None),
        split=_choice("--split", take("split", "test"), ("train", "test", "both")),
        samples=_whole("--samples", take("samples", 200), 1),
        seed=_whole("--seed", take("seed", 0), 0),
        layout=_choice("--layout", take("layout", None), ("nchw", "nhwc")),
        download=bool(values.get("download")),
        device=str(take("device", "auto")),
        dtype=_choice("--dtype", take("dtype", "float32"), ("float32", "float64")),
        space=_choice("--space", take("space", "data"), ("data", "model")),
        compile=_choice("--compile", take("compile", "off"), ("off", "on")),
        threads=None if take("threads", None) is None else _whole("--threads", take("threads", 1), 1),
        batch_size=None if batch_size in (None, "auto") else _whole("--batch-size", batch_size, 1),
        max_memory=None if limit is None else parse_bytes(limit),
        input_layer=take("input_layer", None),
        # by flags alone: a specdiag.toml that came with a download must not decide this
        trust=Trust(bool(values.get("trust_pickle")), bool(values.get("trust_code"))),
    )


def numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers separated by commas, as `--mean` takes them."""
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag}: '{text}' is not numbers separated by commas.") from None
    if not all(math.isfinite(number) for number in found):
        raise UsageError(f"{flag}: '{text}' must be finite.")
    return found


def _whole(flag: str, value: Any, least: int) -> int:
    try:
        number = int(str(value).replace("_", ""))
    except ValueError:
        raise UsageError(f"{flag}: '{value}' is not a whole number.") from None
    if number < least:
        raise UsageError(f"{flag}: {number} is below the smallest value, {least}.")
    return number


def _choice(flag: str, value: Any, known: tuple[str, ...]) -> Any:
    if value is not None and value not in known:
        raise UsageError(f"{flag}: '{value}' is not known.", suggest(str(value), known))
    return value
