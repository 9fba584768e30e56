"""All singular values from J J^T, built in blocks: memory for K x K numbers where J itself has K x D.

Each block of unit vectors is pulled back to the input and pushed forward again. The price is accuracy: an error of
relative size e in J J^T moves sigma by about e sigma_max^2 / (2 sigma), so that values below sqrt(e) sigma_max are lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specdiag.jacobian.operator import Products, block_rows
from specdiag.model import Model


@dataclass(frozen=True, slots=True)
class GramSpectrum:
    """Singular values of each Jacobian through its Gram matrix.

    values: (N, min(K, D)) float64, falling; error: (N, min(K, D)) estimated absolute errors; outputs: (N, K);
    near_kink: (N,).
    """

    values: torch.Tensor
    error: torch.Tensor
    outputs: torch.Tensor
    near_kink: torch.Tensor


def by_gram(model: Model, x: torch.Tensor, layer: str = "logits") -> GramSpectrum:
    """Singular values at each sample of x (N, *input shape), one sample after the other.

    J^T J is built where D < K. Where the network ends in a linear layer W with fewer inputs than outputs, the Gram
    matrix is that of the features, multiplied by W from both sides.
    """
    found = [_of_sample(model, sample[None], layer) for sample in x]
    values, error = gram_values(torch.stack([gram for gram, _, _ in found]), model.dtype, model.inputs)
    return GramSpectrum(
        values,
        error,
        torch.cat([outputs for _, outputs, _ in found]),
        torch.cat([near for _, _, near in found]),
    )


def gram_values(gram: torch.Tensor, dtype: torch.dtype, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values and their errors from computed matrices J J^T, (N, m, m) float64 -> (N, min(m, inputs)) each.

    The skew part, zero but for rounding, measures the error of the products; with a few roundings of `dtype`
    it bounds the error of every eigenvalue (Weyl).
    """
    skew = torch.linalg.matrix_norm(gram - gram.mT, 2) / 2
    squares = torch.linalg.eigvalsh((gram + gram.mT) / 2).flip(1)[:, :inputs]
    values = squares.clamp_min(0).sqrt()
    # a few roundings of the network, and those of the eigenvalues themselves
    rounding = 4 * torch.finfo(dtype).eps + gram.shape[1] * torch.finfo(torch.float64).eps
    noise = (skew + rounding * values[:, 0] ** 2)[:, None]
    kept = values**2
    below = values - (kept - noise).clamp_min(0).sqrt()
    above = (kept + noise).sqrt() - values
    return values, torch.maximum(below, above)


def _of_sample(model: Model, x: torch.Tensor, layer: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    through_features = layer == "logits" and 0 < model.facts.features < model.outputs
    products = Products(model, x, "features" if through_features else layer, block_rows(model))
    outputs, inputs = products.shape
    if inputs < outputs and not through_features:
        gram = _built(inputs, lambda unit: products.pull(products.push(unit)), products)
    else:
        gram = _built(outputs, lambda unit: products.push(products.pull(unit)), products)
    if not through_features:
        return gram, products.outputs, products.near_kink
    weight = model.head_weight().double()
    return weight @ gram @ weight.T, model.logits(x), products.near_kink


def _built(size: int, product: object, products: Products) -> torch.Tensor:
    like = products.outputs
    gram = torch.zeros((size, size), dtype=torch.float64, device=like.device)
    block = max(8, products.width)
    for start in range(0, size, block):
        stop = min(start + block, size)
        unit = torch.zeros((stop - start, size), dtype=like.dtype, device=like.device)
        unit[torch.arange(stop - start), torch.arange(start, stop)] = 1
        gram[start:stop] = product(unit).double()  # type: ignore[operator]
    return gram
