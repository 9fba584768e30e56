"""Balls around the clean points: random points in them, steps and projections, and the check of a result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from specdiag.errors import NumericalError, UsageError

if TYPE_CHECKING:
    from specdiag.model import Model
    from specdiag.sampling import Batch

Norm = Literal["l2", "linf"]
Bound = float | torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Ball:
    """{x + d : ||d|| <= eps}, cut to [low, high] where these are given.

    eps: one radius, or (N,) one per sample. low, high: a number or a tensor that broadcasts over samples.
    """

    norm: Norm
    eps: float | torch.Tensor
    low: Bound = None
    high: Bound = None

    def radius(self, like: torch.Tensor, rows: torch.Tensor | None = None) -> float | torch.Tensor:
        """eps, shaped to multiply samples `like`; `rows` picks samples of a per-sample eps."""
        if not isinstance(self.eps, torch.Tensor) or self.eps.ndim == 0:
            return self.eps
        picked = self.eps if rows is None else self.eps[rows]
        return per_sample(picked, like)

    def put(
        self, origin: torch.Tensor, offset: torch.Tensor, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Origin + offset projected into the ball, then into the range; `offset` is overwritten."""
        eps = self.radius(origin, rows)
        if self.norm == "linf":
            offset = offset.clamp_(-eps, eps) if isinstance(eps, float) else offset.clamp_(min=-eps, max=eps)
        else:
            length = norms(offset)
            limit = torch.as_tensor(eps, dtype=length.dtype, device=length.device).reshape(-1)
            shrink = torch.where(
                length > limit, limit / length.clamp_min(torch.finfo(length.dtype).tiny), 1.0
            )
            offset = offset.mul_(per_sample(shrink, origin))
        return self.cut(offset.add_(origin))

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """Cut x to the range, in place."""
        if self.low is None and self.high is None:
            return x
        low: Any = self.low
        high: Any = self.high
        return x.clamp_(min=low, max=high)

    def random(self, batch: Batch, purpose: str, surface: bool = False) -> torch.Tensor:
        """One offset per sample, uniform in the ball, not cut to the range.

        With `surface`: uniform on the sphere, or among the corners of the cube.
        """
        shape = tuple(batch.x.shape[1:])
        if self.norm == "linf":
            drawn = torch.from_numpy(batch.draws.uniform(purpose, batch.index, shape)) * 2 - 1
            unit = torch.where(drawn < 0, -1.0, 1.0).double() if surface else drawn
        else:
            flat = torch.from_numpy(batch.draws.normal(purpose, batch.index, (math.prod(shape),)))
            unit = (flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True)).reshape(len(batch), *shape)
            if not surface:
                share = torch.from_numpy(batch.draws.uniform(f"{purpose}/radius", batch.index, ()))
                unit = unit * per_sample(share ** (1 / math.prod(shape)), unit)
        unit = like(unit.to(device=batch.x.device, dtype=batch.x.dtype), batch.x)
        scaled: torch.Tensor = unit * self.radius(batch.x)
        return scaled

    def check(self, x: torch.Tensor, origin: torch.Tensor) -> None:
        """Raise NumericalError where a result left the ball or the range by more than rounding."""
        offset = x - origin
        length = (
            offset.abs().amax(dim=tuple(range(1, x.ndim))).double() if self.norm == "linf" else norms(offset)
        )
        unit = torch.finfo(x.dtype).eps
        limit = torch.as_tensor(self.eps, dtype=torch.float64, device=x.device)
        # adding the offset to the clean point rounds by half a unit of the sum, entry by entry
        size = (
            origin.abs().amax(dim=tuple(range(1, x.ndim))).double() if self.norm == "linf" else norms(origin)
        )
        outside = length > limit * (1 + 8 * unit) + 4 * unit * (size + limit)
        if bool(outside.any()):
            worst = int(outside.nonzero()[0])
            raise NumericalError(
                f"A perturbation left its eps ball: {float(length[worst]):.6g} at row {worst}."
            )
        below = self.low is not None and bool((x < self.low).any())
        if below or (self.high is not None and bool((x > self.high).any())):
            raise NumericalError("A perturbed input left the range of the data.")


def data_range(model: Model, batch: Batch, clip: bool) -> tuple[Bound, Bound]:
    """The range that clipped perturbations stay in, in the model's space; (None, None) without clipping."""
    if not clip:
        return None, None
    if "low" not in batch.facts or "high" not in batch.facts:
        raise UsageError("The range of the data is not known, so --clip has no meaning.", "Pass --no-clip.")
    low, high = float(batch.facts["low"]), float(batch.facts["high"])
    if model.space == "data":
        return low, high
    if model.normalisation.kind == "per-image":
        raise UsageError(
            "Images normalised one by one have no common range.", "Pass --no-clip or --space data."
        )
    edges = [torch.full_like(batch.x[:1], value) for value in (low, high)]
    return model.to_model_space(edges[0]), model.to_model_space(edges[1])


def norms(x: torch.Tensor) -> torch.Tensor:
    """||x||_2 of each sample, (N,) float64."""
    length: torch.Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), dtype=torch.float64)
    return length


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values (N,) or (1,) as a factor of samples `like`, in their dtype."""
    shaped: torch.Tensor = values.to(like.dtype).reshape(-1, *([1] * (like.ndim - 1)))
    return shaped


def like(x: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Bring x into the memory format of the tensor `model`."""
    channels_last = (
        model.ndim == 4
        and not model.is_contiguous()
        and model.is_contiguous(memory_format=torch.channels_last)
    )
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def lengths_and_units(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """||x||_2 of each sample, (N,) float64, and x scaled to unit length; zero stays zero."""
    length = norms(x)
    return length, x / per_sample(torch.where(length > 0, length, 1.0), x)
