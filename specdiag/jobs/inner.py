"""A network from the output of one of its modules on: what comes before is computed once, and becomes the data.

That is how a text model is measured: its input is token numbers, which have no derivative; its embeddings have one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from specdiag.errors import ModelError, UsageError, suggest
from specdiag.loading.datasets import Data, hash_arrays
from specdiag.probing import first_tensor

BATCH = 32
SLACK = 1e4


def from_layer(network: nn.Module, layer: str, x: torch.Tensor, data: Data) -> tuple[nn.Module, Data]:
    """(the network as a function of the output of `layer`, the data with those outputs as x).

    x: the samples as the network takes them. Raises UsageError where there is no such module, ModelError where the
    network's answer depends on its input by another way than through that module.
    """
    names = [name for name, _ in network.named_modules() if name]
    if layer not in names:
        raise UsageError(f"--input-layer: the network has no module '{layer}'.", suggest(layer, names))
    x = as_tokens(network, x)
    parts = [_output_of(network, layer, x[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    values = torch.cat(parts)
    _require_cut(network, layer, x, values)
    stored = values.float().cpu().numpy()
    note = f"The input is the output of '{layer}', {'x'.join(str(side) for side in stored.shape[1:])} values."
    moved = dataclasses.replace(
        data,
        x=stored,
        sha256=hash_arrays(stored, data.y),
        low=-np.inf,
        high=np.inf,
        notes=(*data.notes, note),
    )
    return cut(network, layer, x[:1]), moved


def cut(network: nn.Module, layer: str, x: torch.Tensor) -> nn.Module:
    """The same network, taking what `layer` puts out; its modules keep their names.

    x: (1, ...) an input for the modules before, whose answers are not used.
    """
    base: Any = type(network)

    def forward(self: Any, value: torch.Tensor) -> Any:
        filler = self.input_of_front.expand(value.shape[0], *self.input_of_front.shape[1:])
        # first of all hooks: others shall see the value that goes on
        handle = self.get_submodule(layer).register_forward_hook(lambda *_: value, prepend=True)
        try:
            return base.forward(self, filler)
        finally:
            handle.remove()

    network.register_buffer("input_of_front", x.detach().clone(), persistent=False)
    network.__class__ = type(base.__name__, (base,), {"forward": forward})
    return network


def as_tokens(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Whole numbers as integers, where the network has a table to look them up in."""
    tables = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in network.modules())
    whole = not x.is_floating_point() or bool((x == x.round()).all())
    return x.round().long() if tables and whole else x


def _output_of(network: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    found: list[Any] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, given, out: found.append(out))
    try:
        with torch.no_grad():
            network(x)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The network cannot run on the data: {reason}", "Check --arch and --data."
        ) from error
    finally:
        handle.remove()
    what = f"--input-layer: '{layer}'"
    if len(found) != 1:
        raise ModelError(f"{what} runs {len(found)} times for one input.", "Name a module that runs once.")
    out = found[0]
    if not isinstance(out, torch.Tensor) or not out.is_floating_point() or not out.ndim or len(out) != len(x):
        raise ModelError(
            f"{what} does not put out one tensor with the samples first.", "Name a module that does."
        )
    return out


def _require_cut(network: nn.Module, layer: str, x: torch.Tensor, values: torch.Tensor) -> None:
    """Another sample in front must not change the answer to this one's value."""
    other = x[1:2] if len(x) > 1 else x[:1].flip(-1)
    handle = network.get_submodule(layer).register_forward_hook(lambda *_: values[:1], prepend=True)
    try:
        with torch.no_grad():
            found = first_tensor(network(other))
    finally:
        handle.remove()
    with torch.no_grad():
        expected = first_tensor(network(x[:1]))
    slack = SLACK * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    if found.shape != expected.shape or float((found - expected).abs().max()) > slack:
        raise ModelError(
            f"The output depends on the input not only through '{layer}' (a skip connection, or a mask around it).",
            "Name a module that everything goes through, such as the embedding.",
        )
