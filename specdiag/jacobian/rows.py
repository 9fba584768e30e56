"""The Jacobian row by row: one backward pass per output serves all samples of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specdiag.jacobian.operator import block_rows
from specdiag.kinks import KinkCounter
from specdiag.model import Model


@dataclass(frozen=True, slots=True)
class Jacobian:
    """Jacobians of a batch.

    matrix: (N, K, D), d output_k / d input_d in the model's space; outputs: (N, K); near_kink: (N,) activations within
    rounding of a kink, whose samples may differ between float32 and float64. For regression also bias (N, K), the
    constant of the affine fit at input zero, and r2 (N,), the share of the outputs' variance that the fit explains.
    """

    matrix: torch.Tensor
    outputs: torch.Tensor
    near_kink: torch.Tensor
    bias: torch.Tensor | None = None
    r2: torch.Tensor | None = None


def by_autograd(model: Model, x: torch.Tensor, layer: str = "logits") -> Jacobian:
    """Exact Jacobian by K backward passes with parameters frozen; x: (N, *input shape).

    Where the network ends in a linear layer with fewer inputs than outputs (F < K), the F rows of the features are
    taken instead and multiplied through by its weight.
    """
    through_features = layer == "logits" and 0 < model.facts.features < model.outputs
    source = "features" if through_features else layer
    # a backward pass of a single sample leaves most of a processor idle: copies of it share one
    copies = block_rows(model) if len(x) == 1 else 1
    leaf = x.detach().repeat(copies, *([1] * (x.ndim - 1))) if copies > 1 else x.detach().clone()
    layout = torch.channels_last if model.channels_last else torch.contiguous_format
    leaf = leaf.contiguous(memory_format=layout).requires_grad_(True)
    counter = KinkCounter()
    if model.is_compiled:
        # compiled code calls no torch function that could be watched
        with torch.no_grad(), counter:
            model.forward(x, source)
        with torch.enable_grad():
            outputs = model.forward(leaf, source)
    else:
        with torch.enable_grad(), counter:
            outputs = model.forward(leaf, source)
    rows = _rows(outputs, leaf) if copies == 1 else _rows_of_one(outputs, leaf)
    outputs = outputs[: len(x)]
    near_kink = (
        counter.counts[: len(x)]
        if counter.counts is not None
        else torch.zeros(len(x), dtype=torch.int64, device=x.device)
    )
    if not through_features:
        return Jacobian(rows, outputs.detach(), near_kink)
    matrix = torch.matmul(model.head_weight(), rows)
    return Jacobian(matrix, model.logits(x), near_kink)


def _rows(outputs: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    samples, count = outputs.shape
    rows = torch.empty((samples, count, leaf[0].numel()), dtype=outputs.dtype, device=outputs.device)
    if not outputs.requires_grad:
        return rows.zero_()
    direction = torch.zeros_like(outputs)
    for k in range(count):
        direction[:, k] = 1
        (gradient,) = torch.autograd.grad(outputs, leaf, direction, retain_graph=k < count - 1)
        rows[:, k] = gradient.flatten(1)
        direction[:, k] = 0
    return rows


def _rows_of_one(outputs: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """As `_rows` for one sample, of which outputs and leaf hold copies: each takes another output per pass."""
    copies, count = outputs.shape
    rows = torch.zeros((1, count, leaf[0].numel()), dtype=outputs.dtype, device=outputs.device)
    if not outputs.requires_grad:
        return rows
    for start in range(0, count, copies):
        size = min(copies, count - start)
        direction = torch.zeros_like(outputs)
        direction[torch.arange(size), torch.arange(start, start + size)] = 1
        (gradient,) = torch.autograd.grad(outputs, leaf, direction, retain_graph=start + size < count)
        rows[0, start : start + size] = gradient[:size].flatten(1)
    return rows
