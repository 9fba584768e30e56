"""The keys of a configuration file, besides the table of each analyzer. No torch, no numpy.

Keys of `Shared` mean what the flag of the same name means, and may be overridden for some checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from specdiag.errors import UsageError, suggest
from specdiag.schema import build, fields, option

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shared:
    """What every analyzer of one checkpoint is told."""

    arch: str | None = option(None, "Architecture, as --arch.")
    data: str | None = option(None, "Data: digits, FILE.npz, cifar10:ROOT, folder:ROOT, random.")
    split: Literal["train", "test", "both"] = option("test", "Split of the data set.")
    samples: int = option(200, "How many samples.", min=1)
    seed: int = option(0, "Seed of the choice of samples and of every draw.", min=0)
    mean: tuple[float, ...] | None = option(None, "Mean per channel, subtracted inside the model.")
    std: tuple[float, ...] | None = option(None, "Standard deviation per channel.")
    normalise: Literal["channel", "per-image", "none"] | None = option(None, "How inputs are normalised.")
    space: Literal["data", "model"] = option("data", "Measure in the data's space or after normalisation.")
    weights: str | None = option(None, "Which weights of a file that holds several.")
    input_layer: str | None = option(None, "Take the output of this module as the input.")
    trust_pickle: bool = option(False, "Run the Python code of pickled networks, as --trust-pickle.")
    trust_code: bool = option(False, "Run the programs that files carry, as --trust-code.")
    layout: Literal["nchw", "nhwc"] | None = option(None, "Axes of images in an .npz.")
    device: str = option("auto", "Where to compute.")
    dtype: Literal["float32", "float64"] = option("float32", "Precision.")
    compile: Literal["off", "on"] = option("off", "Compile the network's passes.")
    batch_size: int | Literal["auto"] = option("auto", "Samples per chunk.", min=1)
    max_memory: str | None = option(None, "Refuse or shrink what needs more, such as 4GB.")
    threads: int = option(1, "CPU threads of each task; part of what makes bytes equal.", min=1)
    download: bool = option(False, "Let torchvision download the data set.")


@dataclass(frozen=True, slots=True)
class Top:
    """What is said once in a configuration file."""

    checkpoints: tuple[str, ...] = option((), "Checkpoints, as globs relative to this file.")
    checkpoint: str | None = option(None, "One checkpoint.")
    name: str | None = option(None, "Name of the results: {stem}, {parent}, {grandparent}, {seed}.")
    seeds: tuple[int, ...] = option((), "Several seeds: everything is done for each.", min=0)
    out: Path | None = option(None, "Folder of the results.")
    jobs: int = option(1, "How many tasks at a time.", min=1)
    executor: Literal["local", "ray"] = option("local", "Who computes.")
    address: str | None = option(None, "Address of a Ray cluster.")
    baseline: str | None = option(None, "Baseline file of the gates that name none.")
    fail_on: Literal["fail", "investigate"] = option(
        "fail", "From which outcome of a gate on to exit with 1."
    )


@dataclass(frozen=True, slots=True)
class Reports:
    """Files that are written after every run: the table `report`."""

    markdown: Path | None = option(None, "Markdown summary.")
    junit: Path | None = option(None, "JUnit XML.")
    html: Path | None = option(None, "Self-contained HTML report.")
    json: Path | None = option(None, "JSON document.")


def names(options: type) -> tuple[str, ...]:
    """The keys of one of the tables above."""
    return tuple(item.name for item in fields(options))


# arch_args is a table of free keys and so no option
SHARED = (*names(Shared), "arch_args")
TABLES = ("gate", "override", "report")


def underscored(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with `batch-size` written as `batch_size`; the same key twice is an error."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        plain = key.replace("-", "_")
        if plain in result:
            raise UsageError(f"'{key}' and '{plain}' are the same key.")
        result[plain] = value
    return result


def checked(options: type[T], values: Mapping[str, Any], where: str) -> T:
    """`build`, with the place in the file in front of its errors."""
    try:
        return build(options, values)
    except UsageError as error:
        raise UsageError(f"{where}: {error.what.replace('--', '', 1)}", error.todo) from None


def unknown(key: str, known: Sequence[str], where: str) -> UsageError:
    """The error for a key that nothing knows."""
    return UsageError(f"{where}: unknown key '{key}'.", suggest(key, sorted(known)))
