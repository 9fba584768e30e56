"""What an analyzer, attack or training method declares about itself. No torch, no numpy: `--help` reads this.

An option dataclass is at once the flags of the command line, the keys of the configuration file and
the keyword arguments of the Python API; `build` turns any of the three into a checked instance.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from specdiag.errors import UsageError, suggest

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

Kind = Literal["sample", "weights", "reduce", "cross"]
Better = Literal["lower", "higher", "neither"]
Reduce = Literal["mean", "median", "std", "p05", "p95", "min", "max", "share"]
T = TypeVar("T")


def option(
    default: Any,
    doc: str,
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    increasing: bool = False,
) -> Any:
    """A field of an options dataclass.

    `min` and `max` are inclusive bounds, `above` an exclusive lower one; for a tuple they hold for every
    entry. `increasing` asks for a strictly increasing tuple.
    """
    rules = {"doc": doc, "min": min, "max": max, "above": above, "increasing": increasing}
    return field(default=default, metadata=rules)


class AttackSpec(str):
    """The type of an analyzer's `attack` option: the name of one attack, with the values of its own options.

    The framework adds the options of all attacks to an analyzer that has such a field and puts their values
    here, so that `specdiag.options.build_attack(options.attack)` gives the attack ready to run.
    """

    values: Mapping[str, Any]

    def __new__(cls, name: str, values: Mapping[str, Any] | None = None) -> AttackSpec:
        """The name, as text, and the options given for it."""
        spec = super().__new__(cls, name)
        spec.values = dict(values or {})
        return spec


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One stored array: its dimension names, unit and meaning. `sample` is always the first of several.

    may_be_infinite: an infinity is an answer (a condition number), not a failure to be warned of.
    """

    dims: tuple[str, ...]
    unit: str
    doc: str
    may_be_infinite: bool = False


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One gate-able number.

    With `of` and `reduce` it is an aggregate over the samples of an array, and the framework computes
    value, error and bootstrap interval. Without them the analyzer's `summarise` returns it.
    `dims=("layer",)` makes it one number per layer.
    """

    unit: str
    better: Better
    doc: str
    of: str | None = None
    reduce: Reduce | None = None
    dims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attack:
    """Everything the framework knows of an attack.

    options: a frozen dataclass whose fields are the attack's options and whose method
    `perturb(model, batch) -> perturbed x` runs it (torch is imported inside). norm: of its eps ball, or None where the
    attack has no eps.
    """

    name: str
    summary: str
    source: str
    options: type
    norm: Literal["l2", "linf"] | None


@dataclass(frozen=True, slots=True)
class TrainingMethod:
    """Everything the framework knows of a training method: a frozen options dataclass whose methods the loop calls."""

    name: str
    summary: str
    source: str
    options: type


Arrays = dict[str, Any]
Summary = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Analyzer:
    """Everything the framework knows of an analyzer; see DESIGN: one analyzer, one file.

    compute: kind `sample`: (model, batch, options) -> {array name: array with `sample` first};
        kind `weights`: (weights, options) -> arrays; kind `reduce`: an object with start(model, options) -> state,
        update(state, model, batch, options) -> state, merge(left, right, options) -> state and
        finish(state, options) -> arrays, states being dictionaries of arrays; kind `cross`: (models, batch, options)
        -> arrays. Runs torch.
    summarise: (dataset) -> {metric: (value, standard error)}, for metrics that are no plain aggregate.
    plot: (runs: {label: dataset}, figure) -> None, draws one run or several overlaid.
    sentence: (dataset) -> one plain sentence for people on what the numbers mean.
    table: (dataset) -> (column titles, rows) of the table that the terminal shows above the metrics.
    checks: (dataset) -> warnings as {"id", "text"}, for results that a reader should distrust.
    finish: (dataset of all samples) -> the dataset with curves over samples added, or dimensions in another order; runs
        once, before metrics, and needs no torch.
    memory: (options, {"K", "D", "F"}) -> values held per sample beside the network's own activations.
    forecast: (model, options, samples, samples per chunk) -> one line on what the run will cost, said before it starts,
        for analyzers that take long.
    """

    name: str
    summary: str
    source: str
    version: int
    options: type
    arrays: Mapping[str, ArraySpec]
    metrics: Mapping[str, MetricSpec]
    compute: Any
    plot: Callable[[Mapping[str, xarray.Dataset], Figure], None]
    summarise: Callable[[xarray.Dataset], Summary] | None = None
    sentence: Callable[[xarray.Dataset], str] | None = None
    table: Callable[[xarray.Dataset], tuple[list[str], list[list[str]]]] | None = None
    coordinates: Mapping[str, str] = field(default_factory=dict)
    kind: Kind = "sample"
    needs: tuple[str, ...] = ("test",)
    checks: Callable[[xarray.Dataset], list[dict[str, str]]] | None = None
    finish: Callable[[xarray.Dataset], xarray.Dataset] | None = None
    memory: Callable[[Any, Mapping[str, int]], int] | None = None
    forecast: Callable[[Any, Any, int, int], str] | None = None


@dataclass(frozen=True, slots=True)
class OptionField:
    """One field of an options dataclass, with its type resolved."""

    name: str
    type: Any
    default: Any
    doc: str
    rules: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """Name on the command line, `--batch-size` for `batch_size`."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_bool(self) -> bool:
        """True for a plain on/off flag."""
        return self.type is bool

    @property
    def metavar(self) -> str:
        """What stands for the value in `--help`: the choices, or the kind of value."""
        return _describe(self.type)


_known_fields: dict[type, tuple[OptionField, ...]] = {}


def fields(options: type) -> tuple[OptionField, ...]:
    """The fields of an options dataclass; raises TypeError on a field of a type that no flag can carry."""
    if options in _known_fields:
        return _known_fields[options]
    hints = typing.get_type_hints(options)
    result = []
    for item in dataclasses.fields(options):
        kind = hints[item.name]
        _check_supported(item.name, kind)
        rules = {key: value for key, value in item.metadata.items() if key != "doc"}
        result.append(OptionField(item.name, kind, item.default, item.metadata.get("doc", ""), rules))
    _known_fields[options] = tuple(result)
    return _known_fields[options]


def build(options: type[T], values: Mapping[str, Any]) -> T:
    """An instance of an options dataclass from flag text, TOML values or Python values.

    Unknown names, wrong types, NaN and values out of bounds are a UsageError that names the option.
    """
    known = {item.name: item for item in fields(options)}
    unknown = [name for name in values if name not in known]
    if unknown:
        raise UsageError(f"Unknown option '{unknown[0]}'.", suggest(unknown[0], sorted(known)))
    return options(**{name: convert(known[name], value) for name, value in values.items()})


def convert(item: OptionField, value: Any) -> Any:
    """`value` (flag text, TOML or Python) as the type of the field, checked against its bounds."""
    try:
        result = _convert(item.type, value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{item.flag}: {error}") from None
    _check_bounds(item, result)
    return result


def as_json(value: Any) -> Any:
    """An option value as JSON can hold it (paths as text, tuples as lists)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: as_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, AttackSpec):
        return {"name": str(value), **{key: as_json(entry) for key, entry in value.values.items()}}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [as_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _check_supported(name: str, kind: Any) -> None:
    if not _is_supported(kind):
        raise TypeError(f"option '{name}' has a type no flag can carry: {kind}")


def _is_supported(kind: Any) -> bool:
    if kind in (bool, int, float, str, Path, AttackSpec):
        return True
    origin: Any = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is tuple:
        return len(arguments) == 2 and arguments[1] is Ellipsis and _is_supported(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return all(_is_supported(argument) for argument in arguments if argument is not type(None))
    return origin is Literal


def _describe(kind: Any) -> str:
    origin: Any = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is Literal:
        return "|".join(str(choice) for choice in arguments)
    if origin is tuple:
        inner = _describe(arguments[0])
        return f"{inner},{inner},..."
    if origin in (types.UnionType, typing.Union):
        return "|".join(_describe(argument) for argument in arguments if argument is not type(None))
    names = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH", AttackSpec: "ATTACK", bool: "on|off"}
    return names[kind]


def _convert(kind: Any, value: Any) -> Any:
    origin: Any = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        raise ValueError(f"'{value}' is none of {', '.join(str(choice) for choice in arguments)}.")
    if origin is tuple:
        entries = value.split(",") if isinstance(value, str) else value
        if not isinstance(entries, list | tuple):
            entries = [entries]
        return tuple(
            _convert(arguments[0], entry.strip() if isinstance(entry, str) else entry) for entry in entries
        )
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value)
    return _convert_scalar(kind, value)


def _is_no_literal(kind: Any) -> bool:
    origin: Any = typing.get_origin(kind)
    return origin is not Literal


def _convert_union(arguments: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in arguments:
        return None
    kinds = [argument for argument in arguments if argument is not type(None)]
    # literals first: "auto" must not be taken for a text where both are allowed
    kinds.sort(key=_is_no_literal)
    problems = []
    for kind in kinds:
        try:
            return _convert(kind, value)
        except (ValueError, TypeError) as error:
            problems.append(str(error))
    raise ValueError(
        problems[0]
        if len(problems) == 1
        else f"'{value}' is not one of {_describe(arguments[0])}, "
        + ", ".join(_describe(kind) for kind in arguments[1:] if kind is not type(None))
        + "."
    )


def _convert_scalar(kind: Any, value: Any) -> Any:
    if kind is bool:
        words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise ValueError(f"'{value}' is neither on nor off.")
    if isinstance(value, bool):
        raise ValueError(f"'{value}' is not a value for it.")
    if kind is int:
        number = _number(value)
        if not number.is_integer():
            raise ValueError(f"'{value}' is not a whole number.")
        return int(value) if isinstance(value, int) else int(number)
    if kind is float:
        return _number(value)
    if kind is Path:
        return Path(value)
    if not isinstance(value, str):
        raise ValueError(f"'{value}' is not text.")
    return value if isinstance(value, kind) else kind(value)


def _number(value: Any) -> float:
    if not isinstance(value, int | float | str):
        raise ValueError(f"'{value}' is not a number.")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"'{value}' is not a number.") from None
    if math.isnan(number):
        raise ValueError("NaN is not a value.")
    return number


def _check_bounds(item: OptionField, value: Any) -> None:
    rules = item.rules
    entries = value if isinstance(value, tuple) else (value,)
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            continue
        if rules.get("min") is not None and entry < rules["min"]:
            raise UsageError(f"{item.flag}: {entry:g} is below the smallest value, {rules['min']:g}.")
        if rules.get("max") is not None and entry > rules["max"]:
            raise UsageError(f"{item.flag}: {entry:g} is above the largest value, {rules['max']:g}.")
        if rules.get("above") is not None and entry <= rules["above"]:
            raise UsageError(f"{item.flag}: {entry:g} is not above {rules['above']:g}.")
    if rules.get("increasing") and isinstance(value, tuple):
        for left, right in itertools.pairwise(value):
            if right <= left:
                raise UsageError(f"{item.flag}: {left:g},{right:g} is not increasing.")
