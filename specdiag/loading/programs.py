"""Networks that a file brings along, as modules that take any number of samples."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.jit._fuser import optimized_execution


@dataclass(frozen=True, slots=True)
class Carried:
    """A network out of a checkpoint.

    title: what it is (`TorchScript`, `pickled models.Net`); input_shape: of one sample, where the file says it;
    modules: whether it consists of torch modules, whose operators can be looked at one by one.
    """

    network: nn.Module
    title: str
    input_shape: tuple[int, ...] | None = None
    modules: bool = False


class Script(nn.Module):
    """A TorchScript program, without its optimiser: that would compute differently in the first and later passes.

    Its modules take no hooks, so they are no submodules of this one; its weights are moved and frozen all the same.
    """

    script: Any

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.__dict__["script"] = script

    def _apply(self, fn: Any, recurse: bool = True) -> Script:
        self.script._apply(fn)
        return self

    def train(self, mode: bool = True) -> Script:
        """As a module."""
        self.script.train(mode)
        return super().train(mode)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the program."""
        yield from self.script.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Those of the program."""
        yield from self.script.named_buffers(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> Any:
        """What the program answers."""
        with optimized_execution(False):
            return self.script(x)


class Program(nn.Module):
    """A torch.export program; one that was exported for so many samples runs on pieces of that size."""

    def __init__(self, graph: nn.Module, samples: int | None) -> None:
        super().__init__()
        self.graph = graph
        self.samples = samples

    @classmethod
    def carried(cls, program: Any) -> Carried:
        """The network of an ExportedProgram with one input tensor; raises ValueError where it takes several."""
        names = program.graph_signature.user_inputs
        values = [
            node.meta["val"]
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in names
        ]
        if len(values) != 1 or not isinstance(values[0], torch.Tensor) or not values[0].ndim:
            raise ValueError(f"it takes {len(names)} inputs, not one tensor")
        sides = [side if isinstance(side, int) else None for side in values[0].shape]
        shape = tuple(side for side in sides[1:] if side is not None)
        return Carried(
            cls(program.module(), sides[0]),
            "torch.export program",
            shape if len(shape) == len(sides) - 1 else None,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        with warnings.catch_warnings():
            # torch warns of its own way to copy a graph
            warnings.simplefilter("ignore")
            return Program(copy.deepcopy(self.graph, memo), self.samples)

    # an exported graph has no modes: it is as it was when it was exported
    def train(self, mode: bool = True) -> Program:
        """Nothing changes."""
        return self

    def forward(self, x: torch.Tensor) -> Any:
        """The first output, (N, ...)."""
        if self.samples is None:
            return self.graph(x)
        parts = []
        for start in range(0, len(x), self.samples):
            part = x[start : start + self.samples]
            missing = self.samples - len(part)
            if missing:
                part = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])
            out = self.graph(part)
            while isinstance(out, list | tuple | dict):
                out = next(iter(out.values())) if isinstance(out, dict) else out[0]
            parts.append(out[: self.samples - missing])
        return torch.cat(parts)
