"""Fold BatchNorm layers in eval mode into the convolution or linear layer before them.

Who feeds whom is read off one real forward pass, so that it works for any network, traceable or not: a
layer is folded only if both were called once and nothing but the BatchNorm consumed its output.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

FOLDABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Linear,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batchnorm(network: nn.Module, example: torch.Tensor) -> tuple[nn.Module, dict[str, str]]:
    """A copy of `network` with BatchNorm folded, and {folded layer: its BatchNorm}.

    example: (1, *input shape) to run the network on. The copy is equal to the original to rounding; where a check
    on the example shows otherwise, an unfolded copy is returned with an empty mapping.
    """
    pairs = _pairs(network, example)
    plain = copy.deepcopy(network)
    if not pairs:
        return plain, {}
    folded = copy.deepcopy(network)
    for layer_name, norm_name in pairs.items():
        _fold(folded, layer_name, norm_name)
    with torch.no_grad():
        expected, found = _tensor(network(example)), _tensor(folded(example))
    slack = 1e3 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    if float((expected - found).abs().max()) > slack:
        return plain, {}
    return folded, pairs


class _Uses(TorchFunctionMode):
    """Counts how often each tensor is an argument of a torch function."""

    def __init__(self) -> None:
        self.count: dict[int, int] = {}
        self.watched: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # a look at the shape is no use: only what yields a tensor consumes the values
        if _flat(out):
            for value in _flat((args, kwargs or {})):
                if id(value) in self.watched:
                    self.count[id(value)] = self.count.get(id(value), 0) + 1
        return out


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for entry in value for tensor in _flat(entry)]


def _tensor(output: Any) -> torch.Tensor:
    return _flat(output)[0]


def _pairs(network: nn.Module, example: torch.Tensor) -> dict[str, str]:
    uses = _Uses()
    produced: dict[int, tuple[str, torch.Tensor]] = {}
    calls: dict[str, int] = {}
    fed: dict[str, str] = {}

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        if isinstance(module, NORMS):
            source = produced.get(id(inputs[0]))
            if source is not None:
                fed[name] = source[0]
        else:
            # keeping the tensor alive keeps its id from being given to another one
            produced[id(output)] = (name, output)
            uses.watched.add(id(output))

    handles = []
    for name, module in network.named_modules(remove_duplicate=False):
        plain_weights = not getattr(module, "parametrizations", None)
        if (isinstance(module, FOLDABLE) and plain_weights) or (
            isinstance(module, NORMS) and module.track_running_stats
        ):
            hook = lambda module, inputs, output, name=name: after(name, module, inputs, output)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad(), uses:
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    ids = {name: key for key, (name, _) in produced.items()}
    # the one use is the call of F.batch_norm by the norm itself
    return {
        layer: norm
        for norm, layer in fed.items()
        if calls[norm] == 1 and calls[layer] == 1 and uses.count.get(ids[layer], 0) == 1
    }


def _fold(network: nn.Module, layer_name: str, norm_name: str) -> None:
    layer: Any = network.get_submodule(layer_name)
    norm: Any = network.get_submodule(norm_name)
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    weight = layer.weight.double()
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    if transposed:
        per_group = scale.view(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1)
        factor = per_group.reshape(weight.shape[0], -1, *([1] * (weight.ndim - 2)))
    else:
        factor = scale.view(-1, *([1] * (weight.ndim - 1)))
    bias = shift if layer.bias is None else shift + scale * layer.bias.double()
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter((weight * factor).to(dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    parent, _, leaf = norm_name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Identity())
