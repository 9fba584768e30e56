"""Attacks of other libraries behind `perturb`."""

from __future__ import annotations

import hashlib
import inspect
import math
import random
import tomllib
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from specdiag.attacks._ball import Ball, Norm, like
from specdiag.attacks._losses import Loss
from specdiag.attacks._run import aim, radius
from specdiag.errors import MissingExtra, UsageError, suggest
from specdiag.model import Model
from specdiag.sampling import Batch


class _Plain(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self._forward = model.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(x)


def foolbox_point(attack: Any, model: Model, batch: Batch) -> torch.Tensor:
    """Run one attack class of foolbox.

    foolbox needs a range to stay in. Without `clip` and with an eps it is widened by eps, so that it never
    binds; attacks without eps keep the range of the data. Random numbers come from torch's and numpy's
    generators, seeded by the run's seed and the first sample of the chunk, and are put back afterwards.
    """
    foolbox = _library()
    made, norm = _build(foolbox, attack.name, attack.arguments)
    eps = None if _minimal(made) and attack.eps is None else _number(radius(attack.eps, attack.name, batch))
    low, high = float(batch.facts["low"]), float(batch.facts["high"])
    if model.space == "model":
        low, high = -math.inf, math.inf
    if not attack.clip and eps is not None:
        low, high = low - eps, high + eps
    labels, targeted = aim(attack, Loss("cross-entropy"), model, batch)
    wrapped = foolbox.PyTorchModel(_Plain(model).eval(), bounds=(low, high), device=batch.x.device)
    criterion: Any = (
        foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification
    )(labels)
    start = batch.x.contiguous().clamp(low, high)
    with _seeded(batch, attack.name):
        _, x, _ = made(wrapped, start, criterion, epsilons=eps)
    x = like(x.detach(), batch.x)
    if eps is not None and norm is not None:
        Ball(norm, eps).check(x, batch.x)
    return x


def foolbox_norm(name: str, arguments: tuple[str, ...] = ()) -> Norm | None:
    """The norm in which a foolbox attack measures its eps, by its class; None for others than l2 and linf."""
    return _build(_library(), name, arguments)[1]


def is_minimal(name: str, arguments: tuple[str, ...] = ()) -> bool:
    """Whether a foolbox attack looks for the smallest perturbation by itself, so that it needs no eps."""
    return _minimal(_build(_library(), name, arguments)[0])


def _library() -> Any:
    try:
        import foolbox
    except ImportError as error:
        raise MissingExtra("foolbox", "foolbox") from error
    return foolbox


def _build(foolbox: Any, name: str, arguments: tuple[str, ...]) -> tuple[Any, Norm | None]:
    known = {
        key: value
        for key, value in vars(foolbox.attacks).items()
        if inspect.isclass(value)
        and issubclass(value, foolbox.attacks.base.Attack)
        and not inspect.isabstract(value)
    }
    if name not in known:
        what = f"foolbox has no attack '{name}'." if name else "Attack 'foolbox' needs the name of a class."
        raise UsageError(what, suggest(name, sorted(known)) if name else "Write foolbox:LinfPGD.")
    given = dict(_argument(entry) for entry in arguments)
    try:
        made = known[name](**given)
    except TypeError as error:
        takes = ", ".join(inspect.signature(known[name]).parameters)
        raise UsageError(f"foolbox:{name}: {error}.", f"It takes: {takes or 'nothing'}.") from None
    distance = str(getattr(made, "distance", ""))
    norm = "l2" if "l2" in distance.lower() else "linf" if "inf" in distance.lower() else None
    return made, cast("Norm | None", norm)


def _argument(entry: str) -> tuple[str, Any]:
    key, separator, text = entry.partition("=")
    if not separator or not key:
        raise UsageError(f"--arguments: '{entry}' is not of the form key=value.")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def _minimal(made: Any) -> bool:
    """Whether the attack looks for the smallest perturbation by itself."""
    return any(kind.__name__ == "MinimizationAttack" for kind in type(made).__mro__)


def _number(eps: float | torch.Tensor) -> float:
    if isinstance(eps, torch.Tensor):
        if eps.numel() != 1 and float(eps.min()) != float(eps.max()):
            raise UsageError("foolbox attacks take one eps for all samples.", "Use another --eps-scale.")
        return float(eps.flatten()[0])
    return eps


class _seeded:  # noqa: N801
    """Seed the global generators that foreign code draws from, and put them back."""

    def __init__(self, batch: Batch, name: str) -> None:
        first = int(batch.index[0]) if len(batch) else 0
        digest = hashlib.sha256(f"{batch.draws.seed}/foolbox:{name}/{first}".encode()).digest()
        self.seed = int.from_bytes(digest[:4], "big")

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng()
        self.fork.__enter__()
        self.numpy, self.python = np.random.get_state(), random.getstate()
        torch.manual_seed(self.seed)
        np.random.seed(self.seed)
        random.seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        np.random.set_state(self.numpy)
        random.setstate(self.python)
        self.fork.__exit__(*error)
