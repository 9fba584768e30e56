"""The Jacobian by differences, one basis vector at a time: the way that roth2020 A.5 found unstable, kept to show it."""

from __future__ import annotations

import torch

from specdiag.jacobian.rows import Jacobian
from specdiag.model import Model

BLOCK = 64


def by_difference(
    model: Model, x: torch.Tensor, layer: str = "logits", step: float | None = None
) -> Jacobian:
    """Central differences along each of the D basis vectors; x: (N, *input shape).

    step: in input units; default the cube root of the dtype's epsilon, which balances rounding against curvature.
    """
    size = step if step is not None else torch.finfo(model.dtype).eps ** (1 / 3)
    with torch.no_grad():
        outputs = model.forward(x, layer)
        matrix = torch.empty((len(x), outputs.shape[1], model.inputs), dtype=model.dtype, device=x.device)
        for i, sample in enumerate(x):
            for start in range(0, model.inputs, BLOCK):
                stop = min(start + BLOCK, model.inputs)
                basis = torch.zeros((stop - start, model.inputs), dtype=model.dtype, device=x.device)
                basis[torch.arange(stop - start), torch.arange(start, stop)] = size
                basis = basis.view(-1, *model.input_shape)
                ends = model.forward(torch.cat([sample + basis, sample - basis]), layer)
                ahead, behind = ends.chunk(2)
                matrix[i, :, start:stop] = ((ahead - behind) / (2 * size)).mT
    return Jacobian(matrix, outputs, torch.zeros(len(x), dtype=torch.int64, device=x.device))
