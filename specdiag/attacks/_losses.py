"""The losses that attacks climb, each by its gradient with respect to the logits.

Gradients are formed in float64 without cancellation: the label's entry is minus the sum of the others, and
the common factor of all entries is kept apart, so that the direction is exact also where softmax has
saturated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specdiag.errors import UsageError, suggest

if TYPE_CHECKING:
    import torch

Kind = Literal["cross-entropy", "sum-of-squares", "margin"]
NAMES = ("cross-entropy", "sum-of-squares", "margin", "temperature=BETA")


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by kind; `beta` is the inverse temperature of the softmax (roth2020 A.3), 1 without one."""

    kind: Kind
    beta: float = 1.0

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the logits at the clean point."""
        return self.kind == "sum-of-squares"

    def direction(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor | None,
        reference: torch.Tensor | None,
        targeted: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradient with respect to the logits as unit vectors (N, K) and their lengths (N,).

        logits: (N, K) float64; labels: (N,) int64, unused by sum-of-squares; reference: (N, K) logits at the
        clean point for sum-of-squares. Targeted: minus the gradient of the loss of `labels`. A zero gradient
        gives a zero vector.
        """
        if self.kind == "sum-of-squares":
            return _unit(logits - _given(reference))
        unit, length = self._towards_others(logits, _given(labels))
        return (-unit if targeted else unit), length

    def value(
        self, logits: torch.Tensor, labels: torch.Tensor | None, reference: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss of each sample, (N,); for margin max_{j != y} z_j - z_y."""
        import torch
        from torch.nn import functional as F

        if self.kind == "sum-of-squares":
            return 0.5 * (logits - _given(reference)).square().sum(1)
        labels = _given(labels)
        others = _without(logits, labels)
        own = logits.gather(1, labels[:, None])[:, 0]
        if self.kind == "margin":
            return others.amax(1) - own
        return F.softplus(torch.logsumexp(self.beta * others, 1) - self.beta * own)

    def _towards_others(
        self, logits: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        others = _without(logits, labels)
        if self.kind == "margin":
            rest = torch.zeros_like(logits).scatter_(1, others.argmax(1, keepdim=True), 1.0)
            return _unit(rest.scatter_(1, labels[:, None], -1.0))
        highest = others.amax(1, keepdim=True)
        # softmax of the others up to the factor exp(beta highest) / sum, which underflows long before they do
        rest = torch.exp(self.beta * (others - highest))
        unit, length = _unit(rest.scatter(1, labels[:, None], -rest.sum(1, keepdim=True)))
        factor = torch.exp(self.beta * highest[:, 0] - torch.logsumexp(self.beta * logits, 1))
        return unit, self.beta * factor * length


def parse_loss(text: str) -> Loss:
    """A loss by name, `temperature=BETA` with any BETA above zero; raises UsageError with the names known."""
    if text in ("cross-entropy", "sum-of-squares", "margin"):
        return Loss(text)  # type: ignore[arg-type]
    name, _, value = text.partition("=")
    if name != "temperature":
        raise UsageError(f"There is no loss named '{text}'.", suggest(text, NAMES))
    try:
        beta = float(value)
    except ValueError:
        beta = math.nan
    if not 0 < beta < math.inf:
        raise UsageError(
            f"--loss {text}: BETA must be a finite number above zero.", "Its limit is --loss margin."
        )
    return Loss("cross-entropy", beta)


def _without(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logits with minus infinity at the label."""
    if logits.shape[1] < 2:
        raise UsageError(
            "The network has one output, so there is no other class to attack.", "Use --loss sum-of-squares."
        )
    return logits.scatter(1, labels[:, None], -math.inf)


def _unit(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    length = torch.linalg.vector_norm(vectors, dim=1)
    return vectors / torch.where(length > 0, length, 1.0)[:, None], length


def _given(value: torch.Tensor | None) -> torch.Tensor:
    if value is None:
        raise UsageError("This loss needs labels, and the data have none.", "Use --label predicted.")
    return value
