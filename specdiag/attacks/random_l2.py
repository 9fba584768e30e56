"""Random perturbations on the sphere of radius eps: the control of every attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specdiag.attacks import _options
from specdiag.schema import Attack

if TYPE_CHECKING:
    import torch

    from specdiag.attacks._run import Ray
    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class RandomL2:
    """x plus a random offset, on the sphere of radius eps."""

    eps: float | Literal["auto"] | None = _options.eps()
    clip: bool = _options.clip()

    def ray(self, model: Model, batch: Batch) -> Ray:
        """The direction that the points for all eps lie along."""
        from specdiag.attacks._run import random_ray

        return random_ray("random-l2", "l2", batch)

    def perturb(self, model: Model, batch: Batch) -> torch.Tensor:
        """The perturbed x, (N, *input shape)."""
        from specdiag.attacks._run import along

        return along(self, "random-l2", "l2", self.ray(model, batch), model, batch).x


ATTACK = Attack(
    name="random-l2",
    summary="Random perturbations on the sphere of radius eps.",
    source="roth2020, 5.2",
    options=RandomL2,
    norm="l2",
)
