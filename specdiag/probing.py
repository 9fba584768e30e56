"""Try a network on two samples before spending time on it; name the module to blame for each failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from specdiag.errors import DataError, ModelError


@dataclass(frozen=True, slots=True)
class Facts:
    """What one forward pass tells.

    outputs: K; head: path of the last linear layer if its output is the network's output, else None; features: size F
    of its input; activations: number of values that the leaf modules put out for one sample (without any,
    that a backward pass keeps); layers: module paths in the order in which they ran; has_convolution: whether a 2-d
    convolution ran.
    """

    outputs: int
    head: str | None
    features: int
    activations: int
    layers: tuple[str, ...]
    has_convolution: bool


def first_tensor(output: Any) -> torch.Tensor:
    """The tensor a network's answer consists of, or its first one (tuples, dictionaries, output classes)."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, dict):
        return first_tensor(output["logits"] if "logits" in output else next(iter(output.values())))
    if isinstance(output, list | tuple) and output:
        return first_tensor(output[0])
    if hasattr(output, "logits"):
        return first_tensor(output.logits)
    raise ModelError(
        f"The network returns {type(output).__name__}, not a tensor.",
        "Pass an architecture that returns logits.",
    )


def probe(network: nn.Module, x: torch.Tensor) -> Facts:
    """Run `network` on two samples (2, *input shape) and check what the analyses rely on.

    Finite outputs, the same output twice, and no dependence between the samples of a batch; raises ModelError naming
    the first module that breaks one of them, DataError where the shape does not fit.
    """
    mixed = torch.cat([x[:1], _other(x[1:])])
    first = _trace(network, x)
    if first.not_finite is not None:
        raise ModelError(
            f"The network puts out NaN or infinite values: first at {first.not_finite}.",
            "Look at its weights with: specdiag inspect CKPT",
        )
    if not torch.equal(first.result, _trace(network, x).result):
        raise ModelError(
            f"The network answers differently twice: first at {_where(network, x, x, torch.equal)}.",
            "Randomness in eval mode cannot be analysed; remove it from the architecture.",
        )
    if not _same_first_row(first.result, _trace(network, mixed).result):
        raise ModelError(
            "The output for one sample depends on the others of its batch: "
            f"first at {_where(network, x, mixed, _same_first_row)}.",
            "Use a layer that treats samples apart (BatchNorm needs its running statistics).",
        )
    if not first.activations:
        first.activations = _saved(network, x[:1])
    return _facts(first, x)


class _Trace:
    """One pass. Values of inner modules are kept only where they are asked for: a large network's are large."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.outputs: list[tuple[str, torch.Tensor]] = []
        self.not_finite: str | None = None
        self.head: tuple[str, int, torch.Tensor] | None = None
        self.activations = 0
        self.layers: list[str] = []
        self.has_convolution = False
        self.result = torch.empty(0)

    def see(self, name: str, module: nn.Module, output: torch.Tensor) -> None:
        title = f"'{name}' ({type(module).__name__})"
        if self.not_finite is None and not bool(torch.isfinite(output).all()):
            self.not_finite = title
        if self.keep:
            self.outputs.append((title, output.detach().clone()))


def _trace(network: nn.Module, x: torch.Tensor, keep: bool = False) -> _Trace:
    trace = _Trace(keep)
    handles = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            return
        trace.layers.append(name)
        if not any(True for _ in module.children()):
            trace.see(name, module, output)
            trace.activations += output[:1].numel()
        trace.has_convolution |= isinstance(module, nn.Conv2d)
        if isinstance(module, nn.Linear):
            trace.head = (name, module.in_features, output)

    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_hook(lambda m, i, o, name=name: after(name, m, i, o)))
    try:
        with torch.no_grad():
            trace.result = first_tensor(network(x))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        todo = "Check that --arch, --data and --arch-arg belong together."
        tables = [name for name, module in network.named_modules() if isinstance(module, nn.Embedding)]
        if tables and bool((x == x.round()).all()):
            todo = f"Token numbers have no derivative; their embeddings have: add --input-layer {tables[0]}."
        raise DataError(
            f"The network cannot run on inputs of shape {tuple(x.shape[1:])}: {reason}.", todo
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    trace.see("output", network, trace.result)
    return trace


def _saved(network: nn.Module, x: torch.Tensor) -> int:
    """Number of values that a backward pass would keep for one sample: for networks without modules to watch."""
    weights = {value.untyped_storage().data_ptr() for value in (*network.parameters(), *network.buffers())}
    seen: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        place = value.untyped_storage().data_ptr()
        if place not in weights:
            seen[place] = max(seen.get(place, 0), value.numel())
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        network(x.detach().clone().requires_grad_(x.is_floating_point()))
    return sum(seen.values())


def _where(
    network: nn.Module,
    x: torch.Tensor,
    other: torch.Tensor,
    same: Callable[[torch.Tensor, torch.Tensor], bool],
) -> str:
    """The first module whose values for x and for other are not the same."""
    first, second = _trace(network, x, keep=True), _trace(network, other, keep=True)
    for (name, a), (_, b) in zip(first.outputs, second.outputs, strict=False):
        if not same(a, b):
            return name
    return "the output"


def _other(x: torch.Tensor) -> torch.Tensor:
    """A different second sample inside the same range."""
    return x.flip(-1) * 0.5 + 0.25 * x.mean() if x.is_floating_point() else x.flip(-1)


def _same_first_row(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.ndim == 0 or a.shape[0] != 2 or a.shape != b.shape:
        return a.shape == b.shape
    if not a.is_floating_point():
        return bool(torch.equal(a[0], b[0]))
    slack = 1e3 * torch.finfo(a.dtype).eps * float(a[0].abs().max())
    return float((a[0] - b[0]).abs().max()) <= slack


def _facts(trace: _Trace, x: torch.Tensor) -> Facts:
    result = trace.result
    if result.ndim == 0 or result.shape[0] != x.shape[0]:
        raise ModelError(
            f"The network puts out shape {tuple(result.shape)} for {x.shape[0]} samples.",
            "The first dimension must be the sample.",
        )
    head, features = None, 0
    if trace.head is not None:
        name, width, output = trace.head
        if output.shape == result.shape and result.ndim == 2 and torch.equal(output, result):
            head, features = name, width
    return Facts(
        result[0].numel(), head, features, trace.activations, tuple(trace.layers), trace.has_convolution
    )
