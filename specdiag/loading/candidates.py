"""Which mapping in a checkpoint holds the weights? The largest; where that is unclear, the user is asked."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from specdiag.errors import CheckpointError, suggest
from specdiag.loading.prefixes import strip_wrappers
from specdiag.loading.references import ArrayRef, Stub, TensorRef
from specdiag.loading.text import shown

MAX_DEPTH = 8
MAX_ROWS = 1000
MAX_SHOWN = 8
TOP = "."
OVERLAP = 0.5
OPTIMISER = ("optim", "lr_sched", "scheduler", "scaler", "amp", "rng", "loops")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One mapping of names to tensors.

    key: its dotted place in the file, '' for the top level; tensors: tensors, or what stands for them
    until they are wanted; others: names in the mapping that are no tensors; module: it was put together
    from a pickled network or TorchScript module; network: that network itself, where its code was allowed to run.
    """

    key: str
    tensors: dict[str, Any]
    others: tuple[str, ...] = ()
    module: bool = False
    network: nn.Module | None = None

    @property
    def flag(self) -> str:
        """What to give `--weights` to choose it."""
        return self.key or TOP

    def shapes(self) -> set[tuple[str, tuple[int, ...]]]:
        """(plain name, shape) of every tensor."""
        plain, _ = strip_wrappers(self.tensors)
        return {(plain[name], tuple(tensor.shape)) for name, tensor in self.tensors.items()}


def candidates(content: Any) -> list[Candidate]:
    """Every mapping of names to tensors in a loaded file, largest first; what an optimiser keeps is none."""
    return sorted(_walk(content, "", 0, set()), key=lambda entry: -len(entry.tensors))


def choose(found: list[Candidate], weights: str | None, name: str) -> Candidate:
    """The candidate that `weights` names, or the largest.

    `weights` may also name the front of the tensors' names (`encoder_q`, `state_dict.model`): then only
    those are taken. Raises CheckpointError: `no-weights` without any candidate, `unknown-weights` when
    the name fits none, `ambiguous-weights` when another mapping is as large or holds the same network
    (raw and averaged).
    """
    if not found:
        todo = "Save a state_dict: torch.save(model.state_dict(), 'weights.pt')."
        raise CheckpointError(f"{name} holds no mapping of names to tensors.", todo, reason="no-weights")
    if weights is not None:
        return _named(found, weights, name)
    best = found[0]
    rivals = [entry for entry in found[1:] if _rivals(best, entry)]
    if rivals:
        several = [best, *rivals]
        listing = ", ".join(
            f"{shown(entry.flag)} ({len(entry.tensors)} tensors)" for entry in several[:MAX_SHOWN]
        )
        choice = " or ".join(f"--weights {shlex.quote(shown(entry.flag))}" for entry in several[:MAX_SHOWN])
        what = f"{name} holds several sets of weights: {listing}."
        raise CheckpointError(what, f"Choose one: {choice}.", reason="ambiguous-weights")
    return best


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor, or stands for one."""
    return isinstance(value, torch.Tensor | TensorRef) or (isinstance(value, ArrayRef) and value.numbers())


def _named(found: list[Candidate], weights: str, name: str) -> Candidate:
    wanted = "" if weights == TOP else weights
    for entry in found:
        if entry.key == wanted:
            return entry
    parts = [part for entry in found for part in _fronts(entry, weights)]
    if len(parts) > 1:
        choice = " or ".join(f"--weights {shlex.quote(shown(part.key))}" for part in parts[:MAX_SHOWN])
        what = f"{name} holds '{shown(weights)}' {len(parts)} times."
        raise CheckpointError(what, f"Choose one: {choice}.", reason="ambiguous-weights")
    if parts:
        return parts[0]
    hint = suggest(weights, [shown(entry.flag) for entry in found[:MAX_SHOWN]])
    raise CheckpointError(f"{name} has no weights named '{weights}'.", hint, reason="unknown-weights")


def _fronts(entry: Candidate, weights: str) -> Iterator[Candidate]:
    """The part of a mapping whose names begin with `weights`, given with or without the mapping's own place."""
    plain, _ = strip_wrappers(entry.tensors)
    for front in dict.fromkeys((weights.removeprefix(entry.key + "."), weights)):
        part = {
            plain[key].removeprefix(front + "."): value
            for key, value in entry.tensors.items()
            if plain[key].startswith(front + ".")
        }
        if part:
            place = f"{entry.key}.{front}" if entry.key else front
            yield Candidate(place, part, module=entry.module)


def _rivals(best: Candidate, other: Candidate) -> bool:
    """Whether another mapping could be meant as well: as large, or mostly the same names and shapes."""
    if len(other.tensors) == len(best.tensors):
        return True
    shapes = best.shapes()
    return len(shapes & other.shapes()) > OVERLAP * len(shapes)


def _walk(content: Any, key: str, depth: int, seen: set[int]) -> Iterator[Candidate]:
    """Depth-first; a container that is reached twice counts once, so that no file can make the walk long."""
    if depth > MAX_DEPTH or id(content) in seen:
        return
    if isinstance(content, Stub):
        seen.add(id(content))
        yield from _from_stub(content, key, depth, seen)
        return
    if isinstance(content, nn.Module):
        seen.add(id(content))
        yield Candidate(key, dict(content.state_dict()), network=content)
        return
    if isinstance(content, Mapping):
        entries = [(str(name), value) for name, value in _items(content)]
    elif isinstance(content, list | tuple):
        entries = [(str(number), value) for number, value in enumerate(content[:MAX_ROWS])]
    else:
        return
    seen.add(id(content))
    if isinstance(content, Mapping):
        if _is_optimiser(content, key):
            return
        tensors = {
            name: value for name, value in _items(content) if isinstance(name, str) and is_tensor(value)
        }
        if tensors:
            yield Candidate(key, tensors, tuple(name for name, _ in entries if name not in tensors))
    for name, value in entries:
        yield from _walk(value, f"{key}.{name}" if key else name, depth + 1, seen)


def _from_stub(stub: Stub, key: str, depth: int, seen: set[int]) -> Iterator[Candidate]:
    attributes = stub.attributes()
    script = stub.path.startswith("__torch__")
    if script or {"_parameters", "_modules"} <= set(attributes):
        tensors = dict(_module_tensors(stub, "", script, set()))
        if tensors:
            yield Candidate(key, tensors, module=not script)
        return
    for name, value in [*attributes.items(), ("args", stub.args), ("entries", stub.entries)]:
        yield from _walk(value, f"{key}.{name}" if key else name, depth + 1, seen)


def _module_tensors(stub: Stub, front: str, script: bool, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of a module's state_dict, from its pickled attributes."""
    if id(stub) in seen or front.count(".") > 64:
        return
    seen.add(id(stub))
    attributes = stub.attributes()
    groups = [attributes] if script else [attributes.get("_parameters"), attributes.get("_buffers")]
    hidden = attributes.get("_non_persistent_buffers_set")
    hidden = hidden if isinstance(hidden, list) else []
    for group in groups:
        for name, value in _items(group) if isinstance(group, Mapping) else []:
            if is_tensor(value) and name not in hidden:
                yield front + str(name), value
    children = attributes if script else attributes.get("_modules")
    for name, value in _items(children) if isinstance(children, Mapping) else []:
        if isinstance(value, Stub):
            yield from _module_tensors(value, f"{front}{name}.", script, seen)


def _items(content: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    # a pickle can set an attribute named `items` on an OrderedDict
    return list(dict.items(content)) if isinstance(content, dict) else list(content.items())


def _is_optimiser(content: Mapping[Any, Any], key: str) -> bool:
    names = {name for name, _ in _items(content) if isinstance(name, str)}
    return {"state", "param_groups"} <= names or key.rsplit(".", 1)[-1].lower().startswith(OPTIMISER)
