"""Compare the names and shapes of weights with those of a network, and load them: strictly, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from specdiag.errors import ArchitectureError
from specdiag.loading.extras import without_copy, without_normaliser
from specdiag.loading.reparam import sets, unparametrise
from specdiag.loading.text import shown

Shapes = dict[str, tuple[int, ...]]
Found = dict[str, list[float]] | None
COUNTER = "num_batches_tracked"
UNEXPECTED = "(not in the network)"
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of the network's tensors were loaded, and which prefixes had to go for that.

    normalise: {'mean': [...], 'std': [...]} where the file holds an input normalisation that is no part
    of the network: it belongs in front of it.
    """

    matched: int
    total: int
    stripped: tuple[str, ...] = ()
    normalise: Found = None

    def __str__(self) -> str:
        return f"{self.matched}/{self.total} tensors matched"


class _OnMeta(TorchFunctionMode):
    """Parameters come from torch.empty: on the meta device they cost neither memory nor initialisation.

    `torch.device("meta")` would do it for every tensor, and then networks that compute their layout with
    tensors (torchvision's RegNet) cannot be built.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a network wants to be given.

    shapes: name to shape; hidden: buffers that it keeps out of its state_dict and computes when it is
    built (TorchScript files hold them all the same); tied: groups of names that are one tensor
    (safetensors keeps one of them).
    """

    shapes: Shapes
    hidden: frozenset[str]
    tied: tuple[frozenset[str], ...]


def frame_of(network: nn.Module) -> Frame:
    """The frame of a network."""
    shapes = shapes_of(network.state_dict())
    groups: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    tied = tuple(frozenset(names) for names in groups.values() if len(names) > 1)
    return Frame(shapes, frozenset(name for name, _ in network.named_buffers() if name not in shapes), tied)


def skeleton(make: Callable[[], nn.Module]) -> Frame:
    """The frame of a network, built without memory for its weights."""
    with torch.random.fork_rng(devices=[]), _OnMeta():
        return frame_of(make())


def shapes_of(tensors: Mapping[str, Any]) -> Shapes:
    """Name to shape, for everything that has a shape."""
    return {name: tuple(value.shape) for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def fits(network: Shapes, weights: Shapes) -> bool:
    """Whether all names and shapes are equal; BatchNorm's counters may be absent."""
    return _without_counters(network) == _without_counters(weights) and not any(
        name not in network for name in weights
    )


def variants(names: list[str], wanted: set[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """({name in the file: name in the network}, prefixes taken off): only where that makes them match."""
    plain = {name: name for name in names}
    if _same(plain.values(), wanted):
        return plain, ()
    # DataParallel around a part of the network: features.module.0.weight
    inner = {name: re.sub(r"(?<=\.)module\.", "", name) for name in names}
    if _same(inner.values(), wanted):
        return inner, ("module.",)
    for current, stripped in outer_variants(names):
        if _same(current.values(), wanted):
            return current, stripped
    return plain, ()


def outer_variants(names: Iterable[str]) -> Iterator[tuple[dict[str, str], tuple[str, ...]]]:
    """The names without the first part that all share (`model.`, `net.`, `backbone.`), again and again."""
    current = {name: name for name in names}
    stripped: tuple[str, ...] = ()
    while current:
        heads = {name.partition(".")[0] for name in current.values()}
        if len(heads) != 1 or any("." not in name for name in current.values()):
            return
        stripped = (*stripped, next(iter(heads)) + ".")
        current = {name: short.partition(".")[2] for name, short in current.items()}
        yield current, stripped


def readings(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[dict[str, torch.Tensor], Found]]:
    """The weights as they are, then without a wrapper's copy and without its input normalisation."""
    yield dict(tensors), None
    single = without_copy(tensors)
    if len(single) < len(tensors):
        yield single, None
    rest, normalise = without_normaliser(single)
    if normalise is not None:
        yield rest, normalise


def differences(network: Shapes, weights: Shapes) -> list[str]:
    """One phrase for each tensor that is missing, unexpected or of another shape."""
    lines = []
    for name, shape in network.items():
        if name in weights and weights[name] != shape:
            lines.append(f"{shown(name)} (file {_text(weights[name])}, network {_text(shape)})")
    lines += [
        f"{shown(name)} (missing in the file)"
        for name in network
        if name not in weights and not name.endswith(COUNTER)
    ]
    lines += [f"{shown(name)} {UNEXPECTED}" for name in weights if name not in network]
    return lines


def load(network: nn.Module | Frame, tensors: Mapping[str, torch.Tensor], label: str) -> Coverage:
    """Compare, then copy the weights into the network; with a frame only compare.

    Raises ArchitectureError that lists at most five differing tensors.
    """
    if isinstance(network, nn.Module):
        names = network.state_dict()
        if sets(names) and not set(names) <= set(tensors):
            unparametrise(network)
    frame = network if isinstance(network, Frame) else frame_of(network)
    shapes = frame.shapes
    for reading, normalise in readings(tensors):
        kept = {name: tensor for name, tensor in reading.items() if name not in frame.hidden}
        renamed, stripped = variants(list(kept), set(shapes))
        weights = _with_ties({renamed[name]: tensor for name, tensor in kept.items()}, frame)
        if differences(shapes, shapes_of(weights)):
            continue
        needed = [name for name in shapes if name in weights or not name.endswith(COUNTER)]
        if isinstance(network, nn.Module):
            network.load_state_dict(weights, strict=False)
        return Coverage(len(needed), len(needed), stripped, normalise)
    raise _misfit(shapes, tensors, label)


def _with_ties(weights: dict[str, torch.Tensor], frame: Frame) -> dict[str, torch.Tensor]:
    """The weights with the names that are absent because another name of the same tensor is there."""
    for names in frame.tied:
        present = [name for name in sorted(names) if name in weights]
        if present:
            weights |= {name: weights[present[0]] for name in names if name not in weights}
    return weights


def _misfit(frame: Shapes, tensors: Mapping[str, torch.Tensor], label: str) -> ArchitectureError:
    renamed, _ = variants(list(tensors), set(frame))
    weights = shapes_of({renamed[name]: tensor for name, tensor in tensors.items()})
    lines = differences(frame, weights)
    total = len(_without_counters(frame))
    fit = total - sum(1 for line in lines if not line.endswith(UNEXPECTED))
    first = "; ".join(lines[:SHOWN]) + (f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
    what = f"The weights do not fit {label}: {fit}/{total} tensors matched, {len(lines)} differ: {first}."
    for head in dict.fromkeys(name.partition(".")[0] for name in tensors):
        part = {
            name.removeprefix(head + "."): tensor
            for name, tensor in tensors.items()
            if name.startswith(head + ".")
        }
        if part and len(part) < len(tensors) and not differences(frame, shapes_of(part)):
            return ArchitectureError(what, f"Its part '{shown(head)}' fits: add --weights {shown(head)}.")
    return ArchitectureError(
        what, "Choose another --arch or --arch-arg; `specdiag inspect` lists what matches."
    )


def _same(names: Any, wanted: set[str]) -> bool:
    have = list(names)
    plain = {name for name in have if not name.endswith(COUNTER)}
    return (
        len(set(have)) == len(have)
        and set(have) <= wanted
        and plain == {name for name in wanted if not name.endswith(COUNTER)}
    )


def _without_counters(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape) or "scalar"
