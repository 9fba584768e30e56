"""What a training method is: a frozen options dataclass with hooks that one shared loop calls.

A method overrides `batch_loss` (an attack: what the batch is trained on), `penalty` (a term added to the
loss) or `weight_step` (a change of the weights after the optimiser's), or several of them. METHOD may be a
sum, `pgm+spectral-normalisation`: at most one attack, any penalties, at most one weight step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Run, State, Step
    from specdiag.training._settings import Settings

HOOKS = {"batch_loss": "attack", "penalty": "penalty", "weight_step": "weight step"}


class Method:
    """The hooks with what standard training does: cross-entropy on the batch, nothing else."""

    __slots__ = ()

    def adjust(self, settings: Settings) -> Settings:
        """The settings of the loop, where the method is one of them (weight decay)."""
        return settings

    def arch_args(self) -> Mapping[str, Any]:
        """Arguments of the architecture that the method stands for (normalisation layers)."""
        return {}

    def prepare(self, run: Run) -> None:
        """Attach to the network what acts in training alone (dropout), before the first step."""

    def initial_state(self, run: Run) -> State:
        """Tensors kept from step to step, by name; they are saved and come back on resume."""
        return {}

    def batch_loss(self, step: Step) -> torch.Tensor:
        """The loss of the batch, a scalar with a graph to the parameters."""
        return step.cross_entropy(step.logits)

    def penalty(self, step: Step) -> torch.Tensor:
        """A scalar added to the loss, with a graph to the parameters."""
        raise NotImplementedError

    def weight_step(self, step: Step) -> None:
        """Change the weights in place, after the optimiser's step."""

    def last_weight_step(self, run: Run, state: State) -> None:
        """Change the weights in place once more, after the last step."""

    def facts(self, run: Run) -> Mapping[str, Any]:
        """What the checkpoint keeps under `train`: eps, norm, alpha, steps and constants as used."""
        return {}


def roles(method: Method) -> tuple[str, ...]:
    """Which kinds of method this is: of attack, penalty and weight step."""
    kind = type(method)
    return tuple(role for hook, role in HOOKS.items() if getattr(kind, hook) is not getattr(Method, hook))
