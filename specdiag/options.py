"""Options of an analyzer together with those of all attacks, where it takes one; names resolved to plugins."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from specdiag import plugins
from specdiag.errors import UsageError, suggest
from specdiag.schema import Analyzer, AttackSpec, OptionField, as_json, build, convert, fields


def takes_attack(analyzer: Analyzer) -> bool:
    """Whether one of the analyzer's options names an attack."""
    return any(_is_attack(item.type) for item in fields(analyzer.options))


@cache
def _attack_fields() -> dict[str, tuple[OptionField, tuple[str, ...]]]:
    """Every option of any attack, with the attacks that have it; same name means same type."""
    found: dict[str, tuple[OptionField, tuple[str, ...]]] = {}
    for name in plugins.names("attack"):
        for item in fields(plugins.load("attack", name).options):
            first, owners = found.get(item.name, (item, ()))
            if first.type != item.type:
                raise TypeError(
                    f"option '{item.name}' of attack '{name}' has another type than in '{owners[0]}'"
                )
            found[item.name] = (first, (*owners, name))
    return found


def all_fields(analyzer: Analyzer) -> tuple[OptionField, ...]:
    """The analyzer's own options, then those of the attacks where it takes one."""
    own = fields(analyzer.options)
    if not takes_attack(analyzer):
        return own
    names = {item.name for item in own}
    return own + tuple(item for name, (item, _) in _attack_fields().items() if name not in names)


def build_options(analyzer: Analyzer, values: Mapping[str, Any]) -> Any:
    """The analyzer's options from flag text, TOML or Python values, the attack's options inside its AttackSpec."""
    own = {item.name: item for item in fields(analyzer.options)}
    known = [item.name for item in all_fields(analyzer)]
    for name in values:
        if name not in known:
            raise UsageError(f"'{analyzer.name}' has no option '{name}'.", suggest(name, known))
    result: Any = build(analyzer.options, {name: value for name, value in values.items() if name in own})
    extra = {name: value for name, value in values.items() if name not in own}
    for name, item in own.items():
        if _is_attack(item.type):
            result = dataclasses.replace(result, **{name: _with_values(getattr(result, name), extra)})
    return result


def build_attack(spec: AttackSpec) -> Any:
    """The attack that a spec names, ready to `perturb(model, batch)`."""
    return build(load_attack(spec).options, spec.values)


def load_attack(spec: str) -> Any:
    """The declaration of an attack; `foolbox:NAME` is the plugin `foolbox` with its option `name`."""
    return plugins.load("attack", spec.partition(":")[0])


def json_options(options: Any) -> dict[str, Any]:
    """Options as the results file stores them."""
    return {item.name: as_json(getattr(options, item.name)) for item in dataclasses.fields(options)}


def _is_attack(kind: Any) -> bool:
    return kind is AttackSpec or AttackSpec in typing.get_args(kind)


def _with_values(value: Any, extra: Mapping[str, Any]) -> Any:
    specs = value if isinstance(value, tuple) else (value,)
    real = [spec for spec in specs if spec not in (None, "clean", "none")]
    for name in extra:
        if not real:
            raise UsageError(f"--{name.replace('_', '-')} needs an --attack.")
        if not any(name in _declared(spec) for spec in real):
            owners = _attack_fields()[name][1]
            raise UsageError(
                f"Attack '{real[0]}' has no option '{name}'.", f"These have: {', '.join(owners)}."
            )
    filled = tuple(_filled(spec, extra) if spec in real else spec for spec in specs)
    return filled if isinstance(value, tuple) else filled[0]


def _declared(spec: str) -> dict[str, OptionField]:
    return {item.name: item for item in fields(load_attack(spec).options)}


def _filled(spec: AttackSpec, extra: Mapping[str, Any]) -> AttackSpec:
    declared = _declared(spec)
    given = {name: convert(declared[name], raw) for name, raw in extra.items() if name in declared}
    inline = spec.partition(":")[2]
    if inline and "name" in declared:
        given["name"] = inline
    defaults = {name: item.default for name, item in declared.items()}
    return AttackSpec(spec, {**defaults, **spec.values, **given})
