"""linf projected gradient ascent along the signs of the gradient (roth2020 eq. 11, A.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specdiag.attacks import _options
from specdiag.attacks._losses import parse_loss
from specdiag.schema import Attack

if TYPE_CHECKING:
    import torch

    from specdiag.attacks._gradient import Observe, Outcome
    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class PgdLinf:
    """x_k = project(x_{k-1} + alpha sign(g)) into the cube of half width eps around x."""

    eps: float | Literal["auto"] | None = _options.eps()
    steps: int = _options.steps(10)
    alpha: float | None = _options.alpha()
    loss: str = _options.loss()
    target: int | Literal["random", "least-likely"] | None = _options.target()
    label: Literal["true", "predicted"] = _options.label()
    start: Literal["random", "clean"] = _options.start()
    clip: bool = _options.clip()

    def __post_init__(self) -> None:
        """Refuse an unknown loss before anything runs."""
        parse_loss(self.loss)

    def run(
        self, model: Model, batch: Batch, *, stop: bool = False, observe: Observe | None = None
    ) -> Outcome:
        """The attack with its details; `stop` ends samples that are fooled, `observe` sees every step."""
        from specdiag.attacks._run import pgd

        return pgd(self, "pgd-linf", "linf", model, batch, stop, observe)

    def perturb(self, model: Model, batch: Batch) -> torch.Tensor:
        """The perturbed x, (N, *input shape)."""
        return self.run(model, batch).x


ATTACK = Attack(
    name="pgd-linf",
    summary="linf projected gradient ascent along the signs of the gradient.",
    source="roth2020, eq. 11 and A.6",
    options=PgdLinf,
    norm="linf",
)
