"""What a checkpoint is to be loaded as: flag, then the checkpoint's metadata, then the configuration file.

Architecture only: where none of the three says it, the one known architecture that matches every name
and shape is taken. Normalisation is never guessed: names and shapes do not tell it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from specdiag.errors import ArchitectureError, UsageError, suggest
from specdiag.loading import architectures
from specdiag.loading.architectures import Architecture
from specdiag.loading.checkpoints import Checkpoint
from specdiag.loading.factories import factory

Scaling = Literal["channel", "per-image", "none"]
SCALINGS = ("channel", "per-image", "none")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What flags or keyword arguments say; None where they say nothing."""

    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    normalise: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    data: str | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """Everything needed to build the model; `architecture` is None where only weights exist.

    notes: lines for the user on what was taken from where. data: spec or None. input_shape: from
    metadata or the architecture, or None. stated: the normalisation was said by flag, metadata or configuration.
    """

    architecture: Architecture | None
    normalise: Scaling
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str | None
    input_shape: tuple[int, ...] | None
    train: Mapping[str, Any]
    notes: tuple[str, ...]
    stated: bool = True


def resolve(
    checkpoint: Checkpoint, wanted: Wanted, config: Mapping[str, Any], *, weights_only: bool = False
) -> Resolved:
    """Settle architecture, normalisation and data of a checkpoint.

    weights_only: the analyzer needs no forward pass, so nothing is asked for that only a forward pass needs.
    """
    metadata = checkpoint.metadata
    _no_conflict(metadata, config)
    architecture, notes = _architecture(checkpoint, wanted, config, weights_only)
    normalisation = (
        _normalisation(wanted)
        or _normalisation(_from_mapping(metadata))
        or _normalisation(_from_mapping(config))
    )
    stated = normalisation is not None
    if normalisation is None and architecture is not None:
        normalisation = _beside(checkpoint, architecture, notes)
    if normalisation is None and architecture is not None and architecture.carried:
        notes.append(
            "Its inputs are what the data give; where it expects them normalised, pass --mean and --std."
        )
    if normalisation is None:
        free = weights_only or architecture is None or not _is_image(architecture)
        if not free:
            raise _unknown_normalisation(checkpoint, architecture, wanted, config)
        normalisation = ("none", (), ())
    shape = metadata.get("input_shape")
    if shape is None and architecture is not None and architecture.carried and checkpoint.carried is not None:
        shape = checkpoint.carried.input_shape
    elif shape is None and architecture is not None:
        shape = architectures.input_shape(architecture.spec, architecture.args)
    data = wanted.data or metadata.get("data") or config.get("data")
    kind, mean, std = normalisation
    return Resolved(
        architecture,
        cast(Scaling, kind),
        mean,
        std,
        data,
        None if shape is None else tuple(int(side) for side in shape),
        dict(metadata.get("train") or {}),
        tuple(notes),
        stated,
    )


def _beside(
    checkpoint: Checkpoint, architecture: Architecture, notes: list[str]
) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
    """The normalisation that the file holds beside the network, as wrappers of robust training store it."""
    if architecture.carried:
        return None
    facts = checkpoint.facts
    found = architectures.normaliser(checkpoint.tensors, architecture.spec, architecture.args)
    place = "the file holds it beside the network"
    if found is None and "stated_mean" in facts and architecture.spec.startswith(("hf:", "timm:")):
        found = {"mean": facts["stated_mean"], "std": facts["stated_std"]}
        place = "stated in the folder"
    if found is None:
        return None
    mean, std = (tuple(round(value, 7) for value in found[key]) for key in ("mean", "std"))
    texts = [",".join(f"{value:.6g}" for value in values) for values in (mean, std)]
    notes.append(f"Normalisation: --mean {texts[0]} --std {texts[1]} ({place}).")
    return "channel", mean, std


def _architecture(
    checkpoint: Checkpoint, wanted: Wanted, config: Mapping[str, Any], weights_only: bool
) -> tuple[Architecture | None, list[str]]:
    for source, spec, args in (
        ("", wanted.arch, wanted.arch_args),
        (
            "the checkpoint",
            checkpoint.metadata.get("architecture"),
            checkpoint.metadata.get("arch_args") or {},
        ),
        ("the configuration", config.get("arch"), config.get("arch_args") or {}),
    ):
        if spec:
            if not source and ":" not in spec:
                # a misspelt name is said before anything else is asked for
                factory(spec)
            merged = dict(args) if not source else {**args, **wanted.arch_args}
            return Architecture(str(spec), merged), []
        if not source and checkpoint.carried is not None:
            return Architecture(checkpoint.carried.title, {}, carried=True), [
                f"Architecture: {checkpoint.carried.title}, which the file brings along."
            ]
    matches = architectures.match(checkpoint.tensors, architectures.hints(checkpoint.facts))
    if len(matches) == 1:
        return matches[0], [
            f"Architecture: {matches[0]} (the only known one that matches every name and shape)."
        ]
    if weights_only:
        return None, []
    name = shlex.quote(str(checkpoint.path))
    if matches:
        lines = "".join(f"\n  specdiag spectrum {name} {match} --data DATA" for match in matches)
        raise ArchitectureError(
            f"{len(matches)} architectures match the weights of {checkpoint.path}.", f"Choose one:{lines}"
        )
    raise ArchitectureError(
        f"{checkpoint.path} holds weights but no architecture, and no known architecture matches them.",
        f"Pass it: specdiag spectrum {name} --arch path/to/file.py:factory --data DATA "
        "(or cnn7, resnet20, torchvision:NAME, package.module:factory; specdiag inspect lists the tensors).",
    )


def _is_image(architecture: Architecture) -> bool:
    if architecture.carried or architectures.runs_code(architecture.spec):
        # the user's own code may normalise inside
        return False
    shape = architectures.input_shape(architecture.spec, architecture.args)
    return shape is not None and len(shape) == 3


def _from_mapping(source: Mapping[str, Any]) -> Wanted:
    def floats(key: str) -> tuple[float, ...] | None:
        value = source.get(key)
        if value is None:
            return None
        entries = value if isinstance(value, list | tuple) else (value,)
        return tuple(float(entry) for entry in entries)

    return Wanted(normalise=source.get("normalise"), mean=floats("mean"), std=floats("std"))


def _normalisation(wanted: Wanted) -> tuple[str, tuple[float, ...], tuple[float, ...]] | None:
    kind, mean, std = wanted.normalise, wanted.mean or (), wanted.std or ()
    if kind is not None and kind not in SCALINGS:
        raise UsageError(f"--normalise: '{kind}' is not known.", suggest(kind, SCALINGS))
    if kind is None:
        kind = "channel" if mean or std else None
    if kind is None:
        return None
    if kind == "channel":
        if bool(mean) != bool(std):
            raise UsageError("--mean and --std belong together.", "Pass both, one value or one per channel.")
        if not mean:
            raise UsageError("--normalise channel needs --mean and --std.")
        return kind, mean, std
    if any(mean) or any(value != 1 for value in std):
        raise UsageError(f"--normalise {kind} takes no --mean and --std.")
    return kind, (), ()


def _no_conflict(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    pairs = (
        ("architecture", "arch"),
        ("arch_args", "arch_args"),
        ("normalise", "normalise"),
        ("mean", "mean"),
        ("std", "std"),
    )
    for theirs, ours in pairs:
        if (
            metadata.get(theirs)
            and config.get(ours)
            and _comparable(metadata[theirs]) != _comparable(config[ours])
        ):
            raise UsageError(
                f"The configuration says {ours} = {config[ours]!r}, the checkpoint says {metadata[theirs]!r}.",
                f"Remove '{ours}' from the configuration, or state it with --{ours.replace('_args', '-arg')}.",
            )


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _unknown_normalisation(
    checkpoint: Checkpoint, architecture: Architecture | None, wanted: Wanted, config: Mapping[str, Any]
) -> ArchitectureError:
    assert architecture is not None  # narrows the type
    data = wanted.data or config.get("data")
    ready = architectures.ready_command(checkpoint.path, architecture, data)
    return ArchitectureError(
        f"{checkpoint.path} fits {architecture.spec}, but how its inputs were normalised is not known.",
        f"State it with --mean and --std, --normalise per-image, or --normalise none:\n  {ready}",
    )
