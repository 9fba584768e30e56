"""Forward products J v by running the network itself on v with every nonlinearity frozen at x.

One pass over x records, at each nonlinear call, what its derivative needs: the mask of a ReLU, the argmax of a max-pool,
the local slope of a smooth elementwise function, the inputs of anything else. A pass over v then replaces each nonlinear
call by multiplication with its derivative and drops biases, so that it costs about one forward pass, where forward-mode
differentiation costs four to seven.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from specdiag.errors import ModelError
from specdiag.linearise.marks import Marked, has_float, look, marked, name_of, plain, wrap
from specdiag.linearise.program import Program, Step
from specdiag.linearise.rules import Entry, is_general, record

LOOKS = frozenset(
    """__get__ __set__ size dim ndimension numel nelement stride storage_offset is_floating_point is_complex
    is_contiguous element_size get_device data_ptr __len__""".split()
)


class Linearised:
    """J(x) of a function, as products with vectors.

    function: (B, *input shape) -> (B, m), made of torch functions, rows independent. x: (N, *input shape). `value` is the
    function at x, (N, m).
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
        self._function = function
        self._tape = _Tape()
        self._programs: dict[tuple[Any, ...], Program] = {}
        with torch.no_grad():
            primal = x.detach().as_subclass(_Primal)
            primal.tape = self._tape
            out = function(primal)
        if not isinstance(out, _Primal) and _depends(function, x):
            raise ModelError(
                "The network computes where its functions cannot be watched (TorchScript, ONNX), so it cannot be frozen.",
                "Use --method autograd, or --method regression --activations free.",
            )
        self.value = out.as_subclass(torch.Tensor)

    @property
    def general(self) -> tuple[str, ...]:
        """Names of the calls without a rule of their own: their tangents cost several passes each."""
        return tuple(name for name, entry in self._tape.entries if is_general(entry))

    def jvp(self, v: torch.Tensor) -> torch.Tensor:
        """J(x) v per sample, (N, m). v: (N, *input shape), or (P, *input shape) for any P where x is one sample.

        Works without a graph.
        """
        key = v.shape, v.dtype, v.stride()
        with torch.no_grad():
            # functions that work in place may change it
            given = v.detach().clone()
            if key in self._programs:
                return self._programs[key].run(given)
            self._tape.begin()
            tangent = given.as_subclass(_Tangent)
            tangent.tape, tangent.number = self._tape, 0
            out = self._function(tangent)
        if isinstance(out, _Tangent):
            self._tape.program.finish(out.number)
            self._programs[key] = self._tape.program
        return out.as_subclass(torch.Tensor)


def _depends(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Whether the function says that its values depend on x: a constant one needs no record."""
    with torch.enable_grad():
        return function(x.detach().clone().requires_grad_(True)).requires_grad


class _Tape:
    def __init__(self) -> None:
        self.entries: list[tuple[str, Entry | None]] = []
        self.begin()

    def begin(self) -> None:
        """A pass over a tangent starts."""
        self.position = 0
        self.program = Program()

    def next(self, name: str) -> Entry | None:
        if self.position >= len(self.entries) or self.entries[self.position][0] != name:
            raise ModelError(
                f"The network takes another path through '{name}' for another input, so it cannot be frozen at one.",
                "Use --method autograd.",
            )
        entry = self.entries[self.position][1]
        self.position += 1
        return entry


class _Primal(Marked):
    """A tensor of the pass over x; every function it meets goes on the tape."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name in LOOKS:
            return look(cls, func, args, kwargs)
        sources = marked((args, kwargs))
        tape = sources[0].tape
        entry = record(name, func, args, kwargs)
        out = func(*plain(args), **plain(kwargs))
        if not has_float(out):
            kept = out
            entry = lambda args, kwargs: kept  # noqa: E731
        tape.entries.append((name, entry))
        if (
            (name.endswith("_") and not name.startswith("__"))
            or kwargs.get("inplace") is True
            or name.startswith("__i")
        ):
            return args[0] if isinstance(args[0], _Primal) else wrap(out, _Primal, tape)
        return wrap(out, _Primal, tape)


class _Tangent(Marked):
    """A tensor of the pass over v."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        tape = marked((args, kwargs))[0].tape
        entry = None if name in LOOKS else tape.next(name)
        # before the call, which may change its arguments in place
        step = Step.of(func, entry, args, kwargs)
        out = func(*plain(args), **plain(kwargs)) if entry is None else entry(args, kwargs)
        if name not in LOOKS or isinstance(out, torch.Tensor):
            # of the looks, only views such as x.T are part of the pass
            out = wrap(out, _Tangent, tape)
            tape.program.add(step, out)
        return out
