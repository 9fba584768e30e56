"""Any attack of the library foolbox, by the name of its class: `foolbox:LinfPGD`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specdiag.attacks import _options
from specdiag.schema import Attack, option

if TYPE_CHECKING:
    import torch

    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Foolbox:
    """An attack class of foolbox with its arguments; its random numbers are seeded per chunk of samples."""

    name: str = option("", "Class in foolbox.attacks, as in foolbox:LinfPGD.")
    eps: float | Literal["auto"] | None = _options.eps()
    arguments: tuple[str, ...] = option((), "Arguments of the class, key=value; the rest are foolbox's.")
    target: int | Literal["random", "least-likely"] | None = _options.target()
    label: Literal["true", "predicted"] = _options.label()
    clip: bool = _options.clip()

    def perturb(self, model: Model, batch: Batch) -> torch.Tensor:
        """The perturbed x, (N, *input shape)."""
        from specdiag.attacks._foreign import foolbox_point

        return foolbox_point(self, model, batch)


ATTACK = Attack(
    name="foolbox",
    summary="Any attack of the library foolbox, foolbox:NAME.",
    source="Rauber et al. 2017, 2020",
    options=Foolbox,
    norm=None,
)
