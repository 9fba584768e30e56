"""From names to networks, and from weights to the architectures whose every name and shape match."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from specdiag.errors import ArchitectureError, SpecdiagError
from specdiag.loading import huggingface
from specdiag.loading.factories import BUILTIN, factory, parse_arch_args, runs_code, torchvision_names
from specdiag.loading.guesses import guesses, with_classes
from specdiag.loading.matching import (
    Coverage,
    Frame,
    Shapes,
    fits,
    load,
    outer_variants,
    readings,
    shapes_of,
    skeleton,
)

__all__ = [
    "Architecture",
    "Coverage",
    "build",
    "hints",
    "input_shape",
    "known",
    "load_weights",
    "match",
    "network_for",
    "normaliser",
    "parse_arch_args",
    "ready_command",
    "runs_code",
]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A spec for `build` and its arguments; carried: the file brings the network along, and spec is what it is."""

    spec: str
    args: dict[str, Any] = field(default_factory=dict)
    carried: bool = False

    def __str__(self) -> str:
        """As flags: `--arch cnn7 --arch-arg width=32`."""
        if self.carried:
            return self.spec
        flags = [f"--arch {shlex.quote(self.spec)}"]
        flags += [f"--arch-arg {shlex.quote(f'{key}={toml(value)}')}" for key, value in self.args.items()]
        return " ".join(flags)


def known() -> tuple[str, ...]:
    """All names that need no code of the user's: the built-in networks and torchvision's classifiers."""
    return (*sorted(BUILTIN), *(f"torchvision:{name}" for name in torchvision_names()))


def build(spec: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """A network with fresh weights, from torch's generator.

    spec: `cnn7`, `torchvision:NAME`, `timm:NAME`, `path/to/file.py:factory` or `package.module:factory`.
    A file or a package is imported, that is executed. Raises ArchitectureError: unknown name (nearest
    names shown), bad argument (which one), a factory that fails or returns no torch.nn.Module;
    MissingExtra without timm.
    """
    make = factory(spec)
    arguments = dict(args or {})
    _check_arguments(spec, make, arguments)
    try:
        network: object = make(**arguments)
    except SpecdiagError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        detail = str(error).strip().split("\n", 1)[0][:200].rstrip(".")
        what = f"'{spec}' cannot be built with {given} ({type(error).__name__}: {detail})."
        raise ArchitectureError(what, "Check --arch-arg.") from error
    if not isinstance(network, nn.Module):
        what = f"'{spec}' returned a {type(network).__name__}, not a torch.nn.Module."
        raise ArchitectureError(what, "Name a factory that returns the network.")
    return network


def input_shape(spec: str, args: Mapping[str, Any] | None = None) -> tuple[int, ...] | None:
    """The usual shape of one input, without the batch axis; None where the spec does not say."""
    arguments = dict(args or {})
    if spec.startswith("torchvision:"):
        size = int(arguments.get("image_size", 299 if spec.endswith(":inception_v3") else 224))
        return (3, size, size)
    if spec.startswith("timm:"):
        return _timm_shape(spec.removeprefix("timm:"), arguments)
    if spec.startswith("hf:"):
        return huggingface.input_shape(spec.removeprefix("hf:"), arguments)
    if spec == "mlp":
        sizes = arguments.get("sizes", inspect.signature(BUILTIN["mlp"]).parameters["sizes"].default)
        return (int(sizes[0]),)
    if spec in BUILTIN:
        parameters = inspect.signature(BUILTIN[spec]).parameters
        channels = int(arguments.get("channels", parameters["channels"].default))
        size = int(arguments.get("size", parameters["size"].default)) if "size" in parameters else 32
        return (channels, size, size)
    return None


def match(tensors: Mapping[str, torch.Tensor], hints: Sequence[str] = ()) -> list[Architecture]:
    """All known architectures whose every name and shape are those of the weights, built-in ones first.

    Counters of BatchNorm (`num_batches_tracked`) may be absent from the weights. hints: more specs to
    try, such as those that a training script noted in the file. Names and shapes do not fix the
    normalisation of the inputs: that is for the caller to settle.
    """
    for reading, _ in readings(tensors):
        shapes = shapes_of(reading)
        spellings = [{new: shapes[old] for old, new in names.items()} for names, _ in outer_variants(shapes)]
        for spelling in (shapes, *spellings):
            found = _match(spelling, hints)
            if found:
                return found
    return []


def hints(facts: Mapping[str, Any]) -> list[str]:
    """Specs that a training script's notes (`arch`, `model`, `architecture`) may mean; none that runs code."""
    names = [
        facts[key]
        for key in ("arch", "architecture", "model", "model_name")
        if isinstance(facts.get(key), str)
    ]
    specs = [
        name if ":" in name else f"timm:{name}" for name in names if re.fullmatch(r"(timm:)?[\w.]+", name)
    ]
    # the place of a folder's own config.json: put there by the reader, not by the file
    if isinstance(facts.get("hf_config"), Path):
        specs.append(f"hf:{facts['hf_config']}")
    return list(dict.fromkeys(specs))


def _match(shapes: Shapes, specs: Sequence[str]) -> list[Architecture]:
    found: list[Architecture] = []
    more = [(spec, {} if spec.startswith("hf:") else with_classes(shapes)) for spec in specs]
    for spec, args in (*guesses(shapes), *more):
        if found and spec in specs:
            break
        frame = _skeleton_or_none(spec, args)
        if frame is not None and fits(frame.shapes, shapes):
            found.append(Architecture(spec, dict(args)))
    return found


def network_for(
    tensors: Mapping[str, torch.Tensor], spec: str, args: Mapping[str, Any] | None = None
) -> tuple[nn.Module, Coverage]:
    """Build a network and load the weights into it, strictly.

    Where no code of the user's runs, names and shapes are compared on the meta device first, so that absurd
    arguments in a file cost no memory. Raises as `build` and `load_weights` do.
    """
    if not runs_code(spec):
        frame = _skeleton_or_none(spec, dict(args or {}))
        if frame is not None:
            load(frame, tensors, spec)
    network = build(spec, args)
    return network, load(network, tensors, spec)


def normaliser(
    tensors: Mapping[str, torch.Tensor], spec: str, args: Mapping[str, Any] | None = None
) -> dict[str, list[float]] | None:
    """{'mean', 'std'} of the input normalisation that the weights hold beside the network's own tensors.

    None where there is none, where the network normalises by itself, or where the user's code would have to run.
    """
    frame = None if runs_code(spec) else _skeleton_or_none(spec, dict(args or {}))
    try:
        return None if frame is None else load(frame, tensors, spec).normalise
    except SpecdiagError:
        return None


def load_weights(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Coverage:
    """Copy the weights into the network: every name and shape must match.

    A prefix such as `model.` or `net.` is taken off only where that makes all of them match. Raises
    ArchitectureError that lists at most five differing tensors.
    """
    return load(network, tensors, type(network).__name__)


def ready_command(
    checkpoint_path: Path | str, match: Architecture, data: str | None, command: str = "spectrum"
) -> str:
    """The command that analyses a checkpoint with a matched architecture.

    Normalisation is what checkpoints of that family were usually trained with: a reader must still know
    whether it holds for this one.
    """
    shape = input_shape(match.spec, match.args)
    usual = (
        match.spec.startswith(("torchvision:", "timm:", "hf:", "resnet"))
        and shape is not None
        and shape[0] == 3
    )
    normalise = "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" if usual else "--normalise none"
    where = shlex.quote(str(checkpoint_path))
    return f"specdiag {command} {where} {match} --data {shlex.quote(data) if data else 'DATA'} {normalise}"


def toml(value: Any) -> str:
    """A factory argument as `--arch-arg` takes it back."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(toml(entry) for entry in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def _check_arguments(spec: str, make: Any, arguments: Mapping[str, Any]) -> None:
    """Name an argument that the factory does not have, and one that it needs."""
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):
        return
    kinds = inspect.Parameter
    parameters = signature.parameters
    if any(entry.kind is kinds.VAR_KEYWORD for entry in parameters.values()):
        return
    taken = [
        name
        for name, entry in parameters.items()
        if entry.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    ]
    for name in arguments:
        if name not in taken:
            choice = f"It takes: {', '.join(taken)}." if taken else "It takes none."
            raise ArchitectureError(f"'{spec}' has no argument '{name}'.", choice)
    for name in taken:
        if parameters[name].default is kinds.empty and name not in arguments:
            raise ArchitectureError(
                f"'{spec}' needs the argument '{name}'.", f"Pass --arch-arg {name}=VALUE."
            )


def _skeleton_or_none(spec: str, args: Mapping[str, Any]) -> Frame | None:
    """Names and shapes of a network without its memory; None where it cannot be built that way."""
    try:
        return skeleton(lambda: build(spec, args))
    except SpecdiagError:
        return None


def _timm_shape(name: str, arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    try:
        from timm.models import get_pretrained_cfg
    except ImportError:
        return None
    configuration = get_pretrained_cfg(name)
    shape = tuple(getattr(configuration, "input_size", None) or (3, 224, 224))
    channels = int(arguments.get("in_chans", shape[0]))
    size = arguments.get("img_size", shape[1])
    return (channels, int(size), int(size)) if isinstance(size, int) else (channels, *shape[1:])
