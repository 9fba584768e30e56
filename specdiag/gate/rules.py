"""The rules of a configuration file: `[[gate]]` tables, read and checked. Pure: no numbers are judged here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from specdiag.errors import UsageError, suggest
from specdiag.schema import Analyzer

Kind = Literal["max", "min", "max_increase", "max_decrease"]
KINDS: tuple[Kind, ...] = ("max", "min", "max_increase", "max_decrease")
COMPARING: tuple[Kind, ...] = ("max_increase", "max_decrease")
KEYS = ("metric", "layer", "checkpoint", *KINDS, "baseline")
_PERCENT = re.compile(r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*%\s*")
_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a rule. `value` is in the metric's unit, or a share of the baseline's value when `relative`."""

    kind: Kind
    value: float
    relative: bool = False

    @property
    def compares(self) -> bool:
        """Whether the limit is on the change from a baseline."""
        return self.kind in COMPARING

    @property
    def upper(self) -> bool:
        """Whether larger is worse."""
        return self.kind in ("max", "max_increase")

    def beyond(self, value: float) -> float:
        """How far a value, or a change (new minus old), is past the limit; negative inside it."""
        if self.kind == "max_decrease":
            return -value - self.value
        return value - self.value if self.upper else self.value - value

    def __str__(self) -> str:
        shown = f"{100 * self.value:g} %" if self.relative else f"{self.value:g}"
        return f"{self.kind} = {shown}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[gate]]` table: which numbers (globs over checkpoint, analyzer.metric and layer), and their limits.

    number: its place in the file, from 1; baseline: file that holds the values to compare with, or None.
    """

    number: int
    metric: str
    limits: tuple[Limit, ...]
    layer: str | None = None
    checkpoint: str = "*"
    baseline: str | None = None

    @property
    def compares(self) -> bool:
        """Whether any limit needs a baseline."""
        return any(limit.compares for limit in self.limits)

    def names(self, checkpoint: str, analyzer: str, metric: str) -> bool:
        """Whether the rule is about this metric, whatever the label."""
        return fnmatchcase(checkpoint, self.checkpoint) and fnmatchcase(f"{analyzer}.{metric}", self.metric)

    def matches(self, checkpoint: str, analyzer: str, metric: str, label: str | None) -> bool:
        """Whether the rule is about this number; `label` is the layer (or other label) of a metric with several values."""
        if not self.names(checkpoint, analyzer, metric):
            return False
        return self.layer is None or (label is not None and fnmatchcase(label, self.layer))

    def __str__(self) -> str:
        parts = [self.metric]
        if self.layer is not None:
            parts.append(f"layer {self.layer}")
        if self.checkpoint != "*":
            parts.append(f"checkpoint {self.checkpoint}")
        return f"gate {self.number} ({', '.join(parts)}: {', '.join(map(str, self.limits))})"


def read_rules(tables: Any, baseline: str | None = None) -> tuple[Rule, ...]:
    """The rules of the `gate` tables; `baseline` is the file for rules that name none.

    Raises UsageError that names the table for an unknown key, no metric, no limit, or a limit that is no number.
    """
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise UsageError("'gate' must be tables.", "Write [[gate]] above each rule.")
    return tuple(_read(number, table, baseline) for number, table in enumerate(tables, 1))


def check_names(rules: Sequence[Rule], analyzers: Iterable[Analyzer]) -> None:
    """Refuse names that no analyzer declares, so that a typing error is no silent gap; names the nearest.

    A pattern that cannot match any declared metric is refused too. An increase of a metric where more is better
    (or a decrease where less is) is refused when named outright.
    """
    declared = {
        f"{analyzer.name}.{name}": spec for analyzer in analyzers for name, spec in analyzer.metrics.items()
    }
    for rule in rules:
        if not _WILD & set(rule.metric):
            if rule.metric not in declared:
                raise UsageError(
                    f"{rule}: there is no metric '{rule.metric}'.", suggest(rule.metric, sorted(declared))
                )
            for limit in rule.limits:
                if not faces(limit, declared[rule.metric].better):
                    way = "higher" if limit.upper else "lower"
                    other = "max_decrease" if limit.upper else "max_increase"
                    raise UsageError(f"{rule}: {way} is better for {rule.metric}.", f"Use {other}.")
        elif not any(fnmatchcase(name, rule.metric) for name in declared):
            raise UsageError(
                f"{rule}: no metric matches '{rule.metric}'.", suggest(rule.metric, sorted(declared))
            )


def faces(limit: Limit, better: str) -> bool:
    """Whether a limit on a change guards the metric's worse direction; limits on values always apply."""
    if not limit.compares or better == "neither":
        return True
    return limit.upper == (better == "lower")


def _read(number: int, table: Mapping[str, Any], baseline: str | None) -> Rule:
    where = f"[[gate]] {number}"
    for key in table:
        if key not in KEYS:
            raise UsageError(f"{where}: unknown key '{key}'.", suggest(key, KEYS))
    metric = _text(where, table, "metric")
    if not metric:
        raise UsageError(f"{where} names no metric.", 'Write metric = "spectrum.sigma_max_mean".')
    if "." not in metric and metric != "*":
        raise UsageError(
            f"{where}: '{metric}' is no analyzer.metric.",
            f'Write metric = "*.{metric}" or name the analyzer.',
        )
    limits = tuple(_limit(where, kind, table[kind]) for kind in KINDS if kind in table)
    if not limits:
        raise UsageError(f"{where} ({metric}) has no limit.", f"Give one of {', '.join(KINDS)}.")
    rule = Rule(
        number,
        metric,
        limits,
        _text(where, table, "layer"),
        _text(where, table, "checkpoint") or "*",
        _text(where, table, "baseline") or baseline,
    )
    if rule.compares and rule.baseline is None:
        raise UsageError(
            f"{rule}: no baseline to compare with.",
            'Write baseline = "baseline.json" and make the file with: specdiag gate RESULTS --write-baseline',
        )
    return rule


def _text(where: str, table: Mapping[str, Any], key: str) -> str | None:
    value = table.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise UsageError(f"{where}: {key} = {value!r} is not a text.")
    return value


def _limit(where: str, kind: Kind, value: Any) -> Limit:
    if isinstance(value, str):
        match = _PERCENT.fullmatch(value)
        if match is None:
            raise UsageError(
                f"{where}: {kind} = '{value}' is neither a number nor a percentage.",
                f'Write {kind} = 0.5 or {kind} = "10%".',
            )
        if kind not in COMPARING:
            raise UsageError(
                f"{where}: {kind} = '{value}' is a percentage, and {kind} has nothing to take it of.",
                f'Write a number, or max_{"increase" if kind == "max" else "decrease"} = "{value}".',
            )
        return Limit(kind, _finite(where, kind, float(match[1])) / 100, relative=True)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where}: {kind} = {value!r} is not a number.")
    return Limit(kind, _finite(where, kind, float(value)))


def _finite(where: str, kind: str, value: float) -> float:
    if not math.isfinite(value):
        raise UsageError(f"{where}: {kind} = {value} is no limit.", "Give a finite number.")
    return value
