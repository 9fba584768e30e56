"""Random perturbations uniform in the cube of half width eps: the control of every attack."""

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
class RandomLinf:
    """x plus a random offset, uniform in the cube of half width eps."""

    eps: float | Literal["auto"] | None = _options.eps()
    clip: bool = _options.clip()

    def ray(self, model: Model, batch: Batch) -> Ray:
        """The direction that the points for all eps lie along."""
        from specdiag.attacks._run import random_ray

        return random_ray("random-linf", "linf", batch)

    def perturb(self, model: Model, batch: Batch) -> torch.Tensor:
        """The perturbed x, (N, *input shape)."""
        from specdiag.attacks._run import along

        return along(self, "random-linf", "linf", self.ray(model, batch), model, batch).x


ATTACK = Attack(
    name="random-linf",
    summary="Random perturbations uniform in the cube of half width eps.",
    source="roth2020, 5.2",
    options=RandomLinf,
    norm="linf",
)
