"""What a pass over tangents calls, in order, so that the next one of the same shape runs without the network around it.

The modules, the checks and the marks of a small network cost as much as its arithmetic; a frozen network calls the
same functions with the same constants each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from specdiag.linearise.marks import Marked, marked
from specdiag.linearise.rules import Entry


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a tangent stands in an argument."""

    number: int


@dataclass(slots=True)
class Step:
    """One call. results: numbers of the tangents it gives; spent: of those that nothing later reads."""

    function: Callable[..., Any]
    entry: Entry | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...] = ()
    spent: tuple[int, ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Any], entry: Entry | None, args: Any, kwargs: Any) -> Step:
        """The call as it is about to be made, with numbers in place of its tangents."""
        return cls(function, entry, _template(args), _template(kwargs))


class Program:
    """The calls of one pass; tangents are numbered, the one that comes in is 0."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._numbers = 1
        self._result = 0

    def add(self, step: Step, out: Any) -> None:
        """A call that was made; its marked results get their numbers."""
        found = marked(out)
        step.results = tuple(range(self._numbers, self._numbers + len(found)))
        for tensor, number in zip(found, step.results, strict=True):
            tensor.number = number
        self._numbers += len(found)
        self._steps.append(step)

    def finish(self, result: int) -> None:
        """The pass is over and gave that tangent."""
        self._result = result
        last: dict[int, int] = {}
        for place, step in enumerate(self._steps):
            last |= dict.fromkeys((*_read(step.args), *_read(step.kwargs), *step.results), place)
        last.pop(result, None)
        for place, step in enumerate(self._steps):
            step.spent = tuple(number for number, at in last.items() if at == place)

    def run(self, v: torch.Tensor) -> torch.Tensor:
        """The same pass over another tangent of the same shape; v itself may be changed."""
        held: list[Any] = [None] * self._numbers
        held[0] = v
        for step in self._steps:
            if step.entry is None:
                out = step.function(*_filled(step.args, held, False), **_filled(step.kwargs, held, False))
            else:
                out = step.entry(_filled(step.args, held, True), _filled(step.kwargs, held, True))
            if len(step.results) == 1 and isinstance(out, torch.Tensor):
                held[step.results[0]] = out
            else:
                for number, tensor in zip(step.results, _floats(out), strict=True):
                    held[number] = tensor
            for number in step.spent:
                held[number] = None
        result: torch.Tensor = held[self._result]
        return result


def _template(value: Any) -> Any:
    if isinstance(value, Marked):
        return _Slot(value.number)
    if isinstance(value, list | tuple):
        entries = [_template(entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if isinstance(value, dict):
        return {key: _template(entry) for key, entry in value.items()}
    return value


def _filled(value: Any, held: list[Any], mark: bool) -> Any:
    kind = type(value)
    if kind is _Slot:
        tensor = held[value.number]
        return tensor.as_subclass(Marked) if mark else tensor
    if kind is tuple or kind is list:
        return kind([_filled(entry, held, mark) for entry in value])
    if kind is dict:
        return {key: _filled(entry, held, mark) for key, entry in value.items()} if value else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*(_filled(entry, held, mark) for entry in value))
    return value


def _read(value: Any) -> list[int]:
    if isinstance(value, _Slot):
        return [value.number]
    if isinstance(value, dict):
        value = list(value.values())
    return [number for entry in value for number in _read(entry)] if isinstance(value, list | tuple) else []


def _floats(out: Any) -> list[torch.Tensor]:
    if isinstance(out, torch.Tensor):
        return [out] if out.is_floating_point() else []
    return [found for entry in out for found in _floats(entry)] if isinstance(out, list | tuple) else []
