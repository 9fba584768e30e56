"""Long-range correlated Gaussian noise, the worst of several draws (roth2018 4.3)."""

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
class Lrc:
    """x plus Gaussian noise whose values at near pixels are alike; of `tries` draws the one with the smallest margin.

    The smallest margin is below zero where any draw fools the network.
    """

    eps: float | Literal["auto"] | None = _options.eps()
    covariance: str = option(
        "exponential",
        "Of the noise: exponential (in pixel distance), data (of the training data), or a file with the matrix.",
    )
    decay_length: float = option(3.0, "Pixels over which the exponential covariance falls to 1/e.", above=0)
    channel_factor: float = option(
        0.5, "Exponential covariance between two channels over that within one.", min=0, max=1
    )
    tries: int = option(10, "Draws per sample, of which the worst counts.", min=1)
    noise_size: Literal["sphere", "gaussian"] = option(
        "sphere", "Every draw of length eps, or Gaussian with E ||d||_2^2 = eps^2, which may exceed eps."
    )
    label: Literal["true", "predicted"] = _options.label()
    clip: bool = _options.clip()

    def perturb(self, model: Model, batch: Batch) -> torch.Tensor:
        """The perturbed x, (N, *input shape)."""
        import torch

        from specdiag.attacks._ball import Ball, data_range, per_sample
        from specdiag.attacks._losses import parse_loss
        from specdiag.attacks._run import labels_of, radius

        low, high = data_range(model, batch, self.clip)
        ball = Ball("l2", radius(self.eps, "lrc", batch), low, high)
        size = ball.radius(batch.x)
        labels = labels_of(self.label, model, batch)
        loss = parse_loss("margin")
        clean = model.logits(batch.x).double()
        worst, kept = torch.full((len(batch),), -torch.inf, dtype=torch.float64), batch.x
        worst = worst.to(batch.x.device)
        for number in range(self.tries):
            offset = self.noise(model, batch, number).to(device=batch.x.device, dtype=batch.x.dtype) * size
            x = ball.put(batch.x, offset) if self.noise_size == "sphere" else ball.cut(batch.x + offset)
            value = loss.value(model.logits(x).double(), labels, clean)
            better = value > worst
            worst = torch.where(better, value, worst)
            kept = torch.where(per_sample(better, kept).bool(), x, kept)
        return kept

    def noise(self, model: Model, batch: Batch, number: int) -> torch.Tensor:
        """Draw `number` for every sample, (N, *input shape) float64, of size 1 by `noise_size`."""
        import torch

        from specdiag.attacks._correlated import exponential_root, root_for

        shape = tuple(batch.x.shape[1:])
        if self.covariance == "exponential":
            root = exponential_root(shape, self.decay_length, self.channel_factor)
        else:
            root = root_for(self.covariance, model)
        drawn = torch.from_numpy(batch.draws.normal(f"lrc/{number}", batch.index, (root.size,)))
        flat: torch.Tensor = root.times(drawn)
        if self.noise_size == "sphere":
            flat = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        else:
            flat = flat / root.size**0.5
        return flat.reshape(len(batch), *shape)


ATTACK = Attack(
    name="lrc",
    summary="Long-range correlated Gaussian noise, the worst of several draws.",
    source="roth2018, 4.3",
    options=Lrc,
    norm="l2",
)
