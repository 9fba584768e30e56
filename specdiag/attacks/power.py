"""The dominant right singular vector of the Jacobian as a perturbation (roth2020 eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specdiag.attacks import _options
from specdiag.attacks._losses import parse_loss
from specdiag.schema import Attack

if TYPE_CHECKING:
    import torch

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

    def perturb(self, model: Model, batch: Batch) -> torch.Tensor:
        """The perturbed x, (N, *input shape)."""
        from specdiag.attacks._dominant import power

        return power(self, model, batch)


ATTACK = Attack(
    name="power",
    summary="Along the dominant right singular vector of the Jacobian.",
    source="roth2020, eq. 7",
    options=Power,
    norm="l2",
)
