"""From METHOD text, such as `pgm+spectral-normalisation`, to the hooks of all its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdiag import plugins
from specdiag.errors import UsageError, suggest
from specdiag.schema import OptionField, as_json, build, fields
from specdiag.training._method import Method, roles

if TYPE_CHECKING:
    import torch

    from specdiag.training._context import Run, State, Step
    from specdiag.training._settings import Settings

ONLY_ONE = ("attack", "weight step")


@dataclass(frozen=True, slots=True)
class Recipe:
    """The parts of a METHOD in their order, by name."""

    parts: Mapping[str, Method]

    @property
    def name(self) -> str:
        """The METHOD text."""
        return "+".join(self.parts)

    def adjust(self, settings: Settings) -> Settings:
        """The settings after all parts."""
        for part in self.parts.values():
            settings = part.adjust(settings)
        return settings

    def arch_args(self) -> dict[str, Any]:
        """The architecture's arguments that the parts stand for."""
        return {key: value for part in self.parts.values() for key, value in part.arch_args().items()}

    def prepare(self, run: Run) -> None:
        """Let every part attach to the network what it needs."""
        for part in self.parts.values():
            part.prepare(run)

    def initial_states(self, run: Run) -> dict[str, State]:
        """The parts' states, by part."""
        return {name: part.initial_state(run) for name, part in self.parts.items()}

    def loss(self, step: Step, states: Mapping[str, State]) -> torch.Tensor:
        """The attack's loss, or cross-entropy without one, plus all penalties."""
        attack = self._with("attack")
        name, part = attack[0] if attack else ("", Method())
        step.state = states.get(name, {})
        total = part.batch_loss(step)
        for name, part in self._with("penalty"):
            step.state = states[name]
            total = total + part.penalty(step)
        return total

    def weight_step(self, step: Step, states: Mapping[str, State]) -> None:
        """The weight step, where there is one."""
        for name, part in self._with("weight step"):
            step.state = states[name]
            part.weight_step(step)

    def last_weight_step(self, run: Run, states: Mapping[str, State]) -> None:
        """Let every part change the weights after the last step."""
        for name, part in self.parts.items():
            part.last_weight_step(run, states[name])

    def facts(self, run: Run) -> dict[str, Any]:
        """Training facts of all parts; the attack's come last and win, for analyzers read its eps."""
        ordered = sorted(self.parts.values(), key=lambda part: "attack" in roles(part))
        return {key: value for part in ordered for key, value in part.facts(run).items()}

    def options(self) -> dict[str, Any]:
        """All options as JSON, by part."""
        return {name: as_json(part) for name, part in self.parts.items()}

    def _with(self, role: str) -> list[tuple[str, Method]]:
        return [(name, part) for name, part in self.parts.items() if role in roles(part)]


def parse(method: str, values: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from METHOD text and option values (flag text, TOML or Python values).

    An option goes to every part that has it; `gradient-penalty.lam` goes to one part. Raises UsageError:
    unknown method (nearest names), a part twice, two attacks or weight steps, an option that no part has.
    """
    names = [name.strip() for name in method.split("+")]
    declared = {name: _fields(name) for name in names}
    if len(declared) < len(names):
        raise UsageError(f"'{method}' names a method twice.")
    given: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in (values or {}).items():
        for name, plain in _owners(key, declared):
            given[name][plain] = value
    parts: dict[str, Method] = {
        name: build(plugins.load("training", name).options, given[name]) for name in names
    }
    for role in ONLY_ONE:
        several = [name for name, part in parts.items() if role in roles(part)]
        if len(several) > 1:
            raise UsageError(
                f"{' and '.join(several)} are both a kind of {role}, and a run takes one.",
                "Train with one of them.",
            )
    return Recipe(parts)


def _fields(name: str) -> dict[str, OptionField]:
    return {item.name: item for item in fields(plugins.load("training", name).options)}


def _owners(key: str, declared: Mapping[str, Mapping[str, OptionField]]) -> list[tuple[str, str]]:
    part, dot, plain = key.rpartition(".")
    plain = plain.replace("-", "_")
    owners = [name for name in declared if plain in declared[name] and (not dot or name == part)]
    if not owners:
        known = sorted({option for own in declared.values() for option in own})
        hint = suggest(plain, known) if known else "It has none."
        raise UsageError(f"'{'+'.join(declared)}' has no option '{key}'.", hint)
    return [(name, plain) for name in owners]
