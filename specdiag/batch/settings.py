"""A configuration file, read whole and checked before anything runs. No torch, no numpy.

Paths in the file are relative to its folder.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from specdiag import config, plugins
from specdiag.batch.keys import SHARED, TABLES, Reports, Shared, Top, checked, names, underscored, unknown
from specdiag.errors import SpecdiagError, UsageError
from specdiag.gate.rules import Rule, check_names, read_rules
from specdiag.options import build_options


@dataclass(frozen=True, slots=True)
class Override:
    """Other settings for the checkpoints that a glob matches, or analyzers that are not run on them, and why."""

    checkpoint: str
    shared: Mapping[str, Any] = field(default_factory=dict)
    analyzers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    reason: str = ""

    def matches(self, path: Path, name: str) -> bool:
        """Whether it is about this checkpoint, by its path or by the name of its results."""
        return fnmatchcase(path.as_posix(), self.checkpoint) or fnmatchcase(name, self.checkpoint)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a configuration file says; `base` is the folder that its paths are relative to."""

    file: Path | None
    base: Path
    top: Top
    shared: Mapping[str, Any]
    analyzers: Mapping[str, Mapping[str, Any]]
    overrides: tuple[Override, ...]
    rules: tuple[Rule, ...]
    reports: Reports
    raw: Mapping[str, Any]

    def inside(self, path: Path | str) -> Path:
        """A path of the file as seen from the working directory."""
        return self.base / path


def load(path: Path | None, changes: Sequence[str] = ()) -> Settings:
    """The settings of a file (None: the one of the working directory), with `--set` changes applied."""
    found = path if path is not None else config.find()
    if found is None:
        raise UsageError(
            "There is no specdiag.toml here, and no [tool.specdiag] in a pyproject.toml.",
            "Name the file, or make one with: specdiag config init",
        )
    return parse(apply(config.read(found), changes), near(found))


def near(path: Path) -> Path:
    """A path as seen from the working directory where it lies inside it, so that messages and records are short."""
    whole = path.absolute()
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else path


def parse(raw: Mapping[str, Any], file: Path | None = None) -> Settings:
    """The settings of a configuration, checked; the first thing that is wrong is a UsageError."""
    for error in problems(raw, file):
        raise error
    return _parse(raw, file)


def problems(raw: Mapping[str, Any], file: Path | None = None) -> list[SpecdiagError]:
    """Everything that is wrong, each part looked at on its own."""
    where = str(file) if file is not None else "configuration"
    table = underscored(raw)
    found: list[SpecdiagError] = []

    def attempt(step: Any) -> None:
        try:
            step()
        except SpecdiagError as error:
            found.append(error)

    known = (*names(Top), *SHARED, *TABLES, *plugins.names("analyzer"))
    for key in table:
        if key.replace("_", "-") not in known and key not in known:
            found.append(unknown(key, known, where))
    for key in names(Top):
        if key in table:
            attempt(lambda key=key: checked(Top, {key: table[key]}, where))
    attempt(lambda: _known_pattern(table, where))
    for key in SHARED:
        if key in table:
            attempt(lambda key=key: check_shared({key: table[key]}, where))
    for name, values in _tables(table).items():
        attempt(lambda name=name, values=values: check_analyzer(name, values, where))
    attempt(lambda: _overrides(table, where))
    attempt(lambda: _rules(table, where))
    attempt(
        lambda: checked(Reports, _mapping(table.get("report", {}), "report", where), f"{where}, [report]")
    )
    return found


def _parse(raw: Mapping[str, Any], file: Path | None) -> Settings:
    where = str(file) if file is not None else "configuration"
    table = underscored(raw)
    return Settings(
        file=file,
        base=file.parent if file is not None else Path(),
        top=checked(Top, {key: table[key] for key in names(Top) if key in table}, where),
        shared={key: table[key] for key in SHARED if key in table},
        analyzers={name: underscored(values) for name, values in _tables(table).items()},
        overrides=_overrides(table, where),
        rules=_rules(table, where),
        reports=checked(Reports, table.get("report", {}), f"{where}, [report]"),
        raw=dict(raw),
    )


def apply(raw: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The configuration with each `key=value` put in; `spectrum.top=3`, `gate.0.max=9` reach into tables.

    A value is a TOML literal, else a text.
    """
    result: dict[str, Any] = _copy(raw)
    for text in changes:
        dotted, equals, value = text.partition("=")
        keys = [key.strip() for key in dotted.split(".")]
        if not equals or not all(keys):
            raise UsageError(f"--set '{text}' is not key=value.", "Write it like --set samples=50.")
        _put(result, keys, literal(value.strip()), text)
    return result


def literal(text: str) -> Any:
    """A TOML literal, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def check_shared(values: Mapping[str, Any], where: str) -> Shared:
    """The shared keys, converted and checked; `arch_args` is a free table."""
    arguments = values.get("arch_args", {})
    _mapping(arguments, "arch_args", where)
    return checked(Shared, {key: value for key, value in values.items() if key != "arch_args"}, where)


def check_analyzer(name: str, values: Any, where: str) -> Any:
    """The options of an analyzer's table."""
    table = underscored(_mapping(values, name, where))
    try:
        return build_options(plugins.load("analyzer", name), table)
    except UsageError as error:
        raise UsageError(f"{where}, [{name}]: {error.what}", error.todo) from None


def _tables(table: Mapping[str, Any]) -> dict[str, Any]:
    known = plugins.names("analyzer")
    return {key.replace("_", "-"): value for key, value in table.items() if key.replace("_", "-") in known}


def _known_pattern(table: Mapping[str, Any], where: str) -> None:
    if "checkpoints" in table and "checkpoint" in table:
        raise UsageError(f"{where}: 'checkpoint' and 'checkpoints' say the same.", "Keep one of them.")
    if "seed" in table and "seeds" in table:
        raise UsageError(f"{where}: 'seed' and 'seeds' say the same.", "Keep one of them.")
    name = table.get("name")
    if isinstance(name, str):
        try:
            name.format(stem="", parent="", grandparent="", seed=0)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{where}: name = '{name}' has an unknown part {error}.",
                "Known: {stem}, {parent}, {grandparent}, {seed}.",
            ) from None


def _overrides(table: Mapping[str, Any], where: str) -> tuple[Override, ...]:
    entries = table.get("override", [])
    if not isinstance(entries, list):
        raise UsageError(f"{where}: 'override' must be tables.", "Write [[override]] above each.")
    return tuple(_override(number, entry, _tables(table), where) for number, entry in enumerate(entries, 1))


def _override(number: int, entry: Any, tables: Mapping[str, Any], where: str) -> Override:
    place = f"{where}, [[override]] {number}"
    values = underscored(_mapping(entry, "override", where))
    known = ("skip", "reason", *SHARED, *plugins.names("analyzer"))
    pattern = values.pop("checkpoint", None)
    if not isinstance(pattern, str) or not pattern:
        raise UsageError(f"{place} names no checkpoint.", 'Write checkpoint = "runs/old-*.pt".')
    for key in values:
        if key not in known and key.replace("_", "-") not in known:
            raise unknown(key, ("checkpoint", *known), place)
    shared = {key: values[key] for key in SHARED if key in values}
    check_shared(shared, place)
    analyzers = {}
    for name, own in _tables(values).items():
        analyzers[name] = underscored(_mapping(own, name, place))
        if name not in tables:
            raise UsageError(
                f"{place}: there is no table [{name}] to override.", f"Add [{name}] to the file."
            )
        # together with what they override: an eps needs its attack
        base = tables.get(name)
        merged = {**(underscored(base) if isinstance(base, Mapping) else {}), **analyzers[name]}
        check_analyzer(name, merged, place)
    skip = values.get("skip", [])
    skip = [skip] if isinstance(skip, str) else skip
    for name in skip:
        if name not in plugins.names("analyzer"):
            raise unknown(name, plugins.names("analyzer"), f"{place}, skip")
    reason = values.get("reason", "")
    if skip and not reason:
        raise UsageError(f"{place} skips {', '.join(skip)} without a reason.", 'Write reason = "...".')
    return Override(pattern, shared, analyzers, tuple(skip), str(reason))


def _rules(table: Mapping[str, Any], where: str) -> tuple[Rule, ...]:
    if "gate" not in table:
        return ()
    baseline = table.get("baseline")
    try:
        rules = read_rules(table["gate"], baseline if isinstance(baseline, str) else None)
        check_names(rules, [plugins.load("analyzer", name) for name in plugins.names("analyzer")])
    except UsageError as error:
        raise UsageError(f"{where}, {error.what}", error.todo) from None
    return rules


def _mapping(value: Any, name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: '{name}' must be a table: [{name}].")
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(entry) for key, entry in value.items()}
    return [_copy(entry) for entry in value] if isinstance(value, list) else value


def _put(table: Any, keys: Sequence[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        table = table[_index(table, key, text)] if isinstance(table, list) else table.setdefault(key, {})
        if not isinstance(table, dict | list):
            raise UsageError(f"--set '{text}': '{key}' is a value and has no keys inside.")
    table[_index(table, keys[-1], text) if isinstance(table, list) else keys[-1]] = value


def _index(table: list[Any], key: str, text: str) -> int:
    if not key.isdigit() or int(key) >= len(table):
        raise UsageError(f"--set '{text}': there is no entry {key}; there are {len(table)}, counted from 0.")
    return int(key)


def with_baseline(settings: Settings, baseline: Path | None) -> Settings:
    """The settings with every comparing rule on another baseline file, where one is given."""
    if baseline is None:
        return settings
    seen_from_file = os.path.relpath(baseline, settings.base)
    return replace(settings, rules=tuple(replace(rule, baseline=seen_from_file) for rule in settings.rules))
