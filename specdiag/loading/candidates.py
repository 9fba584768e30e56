"""Which mapping in a checkpoint holds the weights? The largest one; where that is no clear answer, the user is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from specdiag.errors import CheckpointError
from specdiag.loading.prefixes import strip_wrappers
from specdiag.plugins import suggest

MAX_DEPTH = 6
TOP = "."
OVERLAP = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """One mapping of names to tensors; `key` is its dotted place in the file, '' for the top level."""

    key: str
    tensors: dict[str, torch.Tensor]
    others: tuple[str, ...]

    @property
    def flag(self) -> str:
        """What to give `--weights` to choose it."""
        return self.key or TOP

    def shapes(self) -> set[tuple[str, tuple[int, ...]]]:
        """(plain name, shape) of every tensor."""
        plain, _ = strip_wrappers(self.tensors)
        return {(plain[name], tuple(tensor.shape)) for name, tensor in self.tensors.items()}


def candidates(content: Any) -> list[Candidate]:
    """Every mapping of names to tensors in a loaded file, largest first; what optimisers keep is no candidate."""
    found = sorted(_walk(content, "", 0), key=lambda entry: -len(entry.tensors))
    seen: dict[int, None] = {}
    return [entry for entry in found if seen.setdefault(id(entry.tensors), None) is None]


def choose(found: list[Candidate], weights: str | None, name: str) -> Candidate:
    """The candidate that `weights` names, or the largest.

    Raises CheckpointError: `no-weights` without any candidate, `unknown-weights` when the name fits none,
    `ambiguous-weights` when another mapping is as large or holds the same network (raw and averaged weights).
    """
    if not found:
        todo = "Save a state_dict: torch.save(model.state_dict(), 'weights.pt')."
        raise CheckpointError(f"{name} holds no mapping of names to tensors.", todo, reason="no-weights")
    if weights is not None:
        wanted = "" if weights == TOP else weights
        for entry in found:
            if entry.key == wanted:
                return entry
        hint = suggest(weights, [entry.flag for entry in found])
        raise CheckpointError(f"{name} has no weights named '{weights}'.", hint, reason="unknown-weights")
    best = found[0]
    rivals = [entry for entry in found[1:] if _rivals(best, entry)]
    if rivals:
        listing = ", ".join(f"{entry.flag} ({len(entry.tensors)} tensors)" for entry in [best, *rivals])
        choice = " or ".join(f"--weights {entry.flag}" for entry in [best, *rivals])
        what = f"{name} holds several sets of weights: {listing}."
        raise CheckpointError(what, f"Choose one: {choice}.", reason="ambiguous-weights")
    return best


def _rivals(best: Candidate, other: Candidate) -> bool:
    """Whether another mapping could be meant as well: as large, or mostly the same names and shapes."""
    if len(other.tensors) == len(best.tensors):
        return True
    shapes = best.shapes()
    return len(shapes & other.shapes()) > OVERLAP * len(shapes)


def _walk(content: Any, key: str, depth: int) -> Iterator[Candidate]:
    if depth > MAX_DEPTH:
        return
    if isinstance(content, Mapping):
        if _is_optimiser(content, key):
            return
        tensors = {
            name: value.detach()
            for name, value in content.items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }
        if tensors:
            others = tuple(str(name) for name in content if name not in tensors)
            yield Candidate(key, tensors, others)
        entries = [(str(name), value) for name, value in content.items()]
    elif isinstance(content, list | tuple):
        entries = [(str(number), value) for number, value in enumerate(content[:64])]
    else:
        return
    for name, value in entries:
        yield from _walk(value, f"{key}.{name}" if key else name, depth + 1)


def _is_optimiser(content: Mapping[Any, Any], key: str) -> bool:
    leaf = key.rsplit(".", 1)[-1].lower()
    if "state" in content and "param_groups" in content:
        return True
    return leaf.startswith(("optim", "lr_sched", "sched", "scaler", "amp", "rng"))
