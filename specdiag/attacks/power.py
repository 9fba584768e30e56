"""The dominant right singular vector of the Jacobian as a perturbation (roth2020 eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specdiag.attacks import _options
from specdiag.attacks._losses import parse_loss
from specdiag.schema import Attack

if TYPE_CHECKING:
    import torch

    from specdiag.attacks._gradient import Observe, Outcome
    from specdiag.attacks._run import Ray
    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Power:
    """x + eps v_1 or x - eps v_1, whichever has the larger loss."""

    eps: float | Literal["auto"] | None = _options.eps()
    loss: str = _options.loss()
    target: int | Literal["random", "least-likely"] | None = _options.target()
    label: Literal["true", "predicted"] = _options.label()
    clip: bool = _options.clip()

    def __post_init__(self) -> None:
        """Refuse an unknown loss before anything runs."""
        parse_loss(self.loss)

    def ray(self, model: Model, batch: Batch) -> Ray:
        """The direction that the points for all eps lie along, on either side."""
        from specdiag.attacks._dominant import dominant_ray

        return dominant_ray(model, batch)

    def run(
        self, model: Model, batch: Batch, *, stop: bool = False, observe: Observe | None = None
    ) -> Outcome:
        """The attack with its details; there is nothing to stop, and `observe` is not called."""
        from specdiag.attacks._run import along

        return along(self, "power", "l2", self.ray(model, batch), model, batch)

    def perturb(self, model: Model, batch: Batch) -> torch.Tensor:
        """The perturbed x, (N, *input shape)."""
        return self.run(model, batch).x


ATTACK = Attack(
    name="power",
    summary="Along the dominant right singular vector of the Jacobian.",
    source="roth2020, eq. 7",
    options=Power,
    norm="l2",
)
