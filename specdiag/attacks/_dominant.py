"""The dominant right singular vector of J(x) (roth2020 eq. 7), from the matrix or, where that is large, from products."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specdiag.attacks._ball import lengths_and_units, like, per_sample
from specdiag.attacks._run import Ray
from specdiag.jacobian.rows import by_autograd
from specdiag.jacobian.topk import by_krylov
from specdiag.linalg.svd import svd
from specdiag.model import Model
from specdiag.sampling import Batch

# numbers in J beyond which its matrix is not built
LARGE = 2**24
# for more vectors than this products cost as much as the matrix
FEW = 64


def is_large(model: Model) -> bool:
    """Whether one sample's J (K, D) is too large to be built as a matrix."""
    return model.outputs * model.inputs > LARGE


@dataclass(frozen=True, slots=True)
class Leading:
    """The largest singular values and vectors of the logits' J at each sample, float64.

    values: (N, k) falling, NaN where J is not finite; left: (N, K, k), right: (N, D, k); sound: (N,) J is finite and
    not zero; outputs: (N, K) logits; near_kink: (N,).
    """

    values: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    sound: torch.Tensor
    outputs: torch.Tensor
    near_kink: torch.Tensor


def leading(model: Model, batch: Batch, count: int) -> Leading:
    """The `count` largest singular values and vectors, by Golub-Kahan-Lanczos where J is too large to build."""
    count = min(count, model.outputs, model.inputs)
    if is_large(model) and count <= FEW:
        drawn = batch.draws.normal("krylov-start", batch.index, (model.outputs,))
        found = by_krylov(model, batch.x, count, torch.from_numpy(drawn))
        values = found.values.to(batch.x.device)
        sound = torch.isfinite(values).all(1) & (values[:, 0] > 0)
        left, right = found.left.mT.double(), found.right.mT.double()
        return Leading(values, left, right, sound, found.outputs, found.near_kink)
    jacobian = by_autograd(model, batch.x)
    matrix = jacobian.matrix
    finite = torch.isfinite(matrix).flatten(1).all(1)
    sound = finite & (matrix != 0).flatten(1).any(1)
    spectrum = svd(torch.where(finite[:, None, None], matrix, 0.0), top=count)
    if spectrum.left is None or spectrum.right is None:
        raise TypeError("svd returns vectors when asked for them")
    values = torch.where(finite[:, None], spectrum.values[:, :count], torch.nan)
    return Leading(values, spectrum.left, spectrum.right, sound, jacobian.outputs, jacobian.near_kink)


def dominant_ray(model: Model, batch: Batch) -> Ray:
    """v_1 as a ray with two sides; dead where J is zero or not finite."""
    found = leading(model, batch, 1)
    _, unit = lengths_and_units(like(found.right[:, :, 0].reshape(batch.x.shape).to(batch.x.dtype), batch.x))
    return Ray(torch.where(per_sample(found.sound, unit).bool(), unit, 0.0), ~found.sound, two_sided=True)
