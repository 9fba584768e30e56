"""The largest singular values of the Jacobian by Golub-Kahan-Lanczos: a few dozen pairs of passes, nothing stored but
the Krylov vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specdiag.jacobian.operator import Products
from specdiag.linalg.krylov import golub_kahan
from specdiag.model import Model

GRAPH_BYTES = 2**29
MAX_PAIRS = 300
# what products in the dtype are worth, in units of its rounding
ROUNDING = 16


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest singular values of each Jacobian.

    values, error: (N, k) float64, values falling; left: (N, k, K); right: (N, k, D); outputs: (N, K); near_kink: (N,);
    pairs: (N,) products with J, and as many with J^T; converged: (N,), whether all errors are below the tolerance.
    """

    values: torch.Tensor
    error: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    outputs: torch.Tensor
    near_kink: torch.Tensor
    pairs: torch.Tensor
    converged: torch.Tensor


def group_size(model: Model, samples: int) -> int:
    """Samples that go through the network together; depends on shapes and dtype only."""
    item = torch.finfo(model.dtype).bits // 8
    return max(1, min(samples, GRAPH_BYTES // max(1, 2 * item * model.facts.activations)))


def by_krylov(
    model: Model,
    x: torch.Tensor,
    k: int,
    starts: torch.Tensor,
    layer: str = "logits",
    max_pairs: int = MAX_PAIRS,
) -> TopK:
    """The k largest singular values and vectors at each sample of x (N, *input shape).

    starts: (N, K) random vectors in the output space; they are pulled back to the input, so that the Krylov space
    stays clear of the null space. Each value is sought to 100 roundings of the dtype.
    """
    size = group_size(model, len(x))
    parts = [
        _group(model, x[i : i + size], k, starts[i : i + size], layer, max_pairs)
        for i in range(0, len(x), size)
    ]
    return _joined(parts)


def _group(model: Model, x: torch.Tensor, k: int, starts: torch.Tensor, layer: str, max_pairs: int) -> TopK:
    products = Products(model, x, layer)
    eps = torch.finfo(model.dtype).eps
    tolerance = 100 * eps
    start = products.pull(starts.to(products.outputs))
    dead = torch.linalg.vector_norm(start, dim=1) == 0
    # a Jacobian of zeros: any direction will do
    start = torch.where(dead[:, None], torch.ones_like(start), start)
    found = golub_kahan(products.operator(), k, start, tolerance, max_pairs=max(max_pairs, 3 * k))
    values, error = torch.from_numpy(found.values), torch.from_numpy(found.error)
    return TopK(
        values,
        error + ROUNDING * eps * values[:, :1],
        found.left,
        found.right,
        products.outputs,
        products.near_kink,
        torch.from_numpy(found.pairs),
        (error <= tolerance * values).all(1),
    )


def _joined(parts: Sequence[TopK]) -> TopK:
    names = [item.name for item in dataclasses.fields(TopK)]
    return TopK(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
