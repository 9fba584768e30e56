"""Distributionally robust perturbations: the loss less a quadratic penalty (farnia2019 eq. 7, Lemma 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specdiag.attacks import _options
from specdiag.attacks._losses import parse_loss
from specdiag.schema import Attack, option

if TYPE_CHECKING:
    import torch

    from specdiag.attacks._gradient import Observe, Outcome
    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Wrm:
    """argmax over delta of loss(x + delta) - (penalty / 2) ||delta||_2^2; it has no eps."""

    penalty: float | None = option(
        None, "Its lambda; default 0.04 mean ||x||_2 for images with one channel, else 0.002.", above=0
    )
    steps: int = _options.steps(15)
    loss: str = _options.loss()
    target: int | Literal["random", "least-likely"] | None = _options.target()
    label: Literal["true", "predicted"] = _options.label()
    clip: bool = _options.clip()

    def __post_init__(self) -> None:
        """Refuse an unknown loss before anything runs."""
        parse_loss(self.loss)

    def run(
        self, model: Model, batch: Batch, *, stop: bool = False, observe: Observe | None = None
    ) -> Outcome:
        """The attack with its details; it does not stop early, and `observe` is not called."""
        from specdiag.attacks._penalised import wrm

        return wrm(self, model, batch)

    def perturb(self, model: Model, batch: Batch) -> torch.Tensor:
        """The perturbed x, (N, *input shape)."""
        return self.run(model, batch).x


ATTACK = Attack(
    name="wrm",
    summary="The loss less a quadratic penalty on the perturbation; no eps.",
    source="farnia2019, eq. 7",
    options=Wrm,
    norm=None,
)
