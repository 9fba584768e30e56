"""Options: one dataclass is flags, configuration keys and keyword arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from specdiag.errors import UsageError
from specdiag.schema import AttackSpec, as_json, build, fields, option


@dataclass(frozen=True, slots=True)
class Sample:
    flag: bool = option(False, "a flag")
    count: int = option(3, "a count", min=1, max=9)
    size: float = option(1.0, "a size", above=0.0)
    name: str = option("x", "a name")
    place: Path = option(Path("."), "a place")
    mode: Literal["fast", "slow"] = option("fast", "a mode")
    steps: int | Literal["auto"] = option("auto", "steps")
    eps: float | None = option(None, "radius")
    sweep: tuple[float, ...] = option((), "a sweep", increasing=True, min=0)
    attack: AttackSpec | None = option(None, "an attack")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("flag", True, True),
        ("flag", "on", True),
        ("count", "4", 4),
        ("count", 4, 4),
        ("count", "4e0", 4),
        ("size", "0.5", 0.5),
        ("size", 2, 2.0),
        ("size", "inf", math.inf),
        ("place", "a/b", Path("a/b")),
        ("mode", "slow", "slow"),
        ("steps", "auto", "auto"),
        ("steps", "7", 7),
        ("eps", None, None),
        ("eps", "0.1", 0.1),
        ("sweep", "0, 0.5,1", (0.0, 0.5, 1.0)),
        ("sweep", [0, 2], (0.0, 2.0)),
        ("sweep", 3, (3.0,)),
        ("attack", "pgd-l2", "pgd-l2"),
    ],
)
def test_values_from_flags_toml_and_python(name: str, given: Any, expected: Any) -> None:
    result = getattr(build(Sample, {name: given}), name)
    assert result == expected
    assert type(result) in (type(expected), AttackSpec)


@pytest.mark.parametrize(
    ("name", "given", "part"),
    [
        ("flag", "maybe", "neither on nor off"),
        ("count", "4.5", "not a whole number"),
        ("count", 0, "below"),
        ("count", 10, "above"),
        ("count", True, "not a value"),
        ("size", "nan", "NaN"),
        ("size", 0, "not above"),
        ("size", "big", "not a number"),
        ("mode", "quick", "none of fast, slow"),
        ("steps", "some", "not"),
        ("eps", "x", "not a number"),
        ("sweep", "1,1", "not increasing"),
        ("sweep", "1,x", "not a number"),
        ("sweep", "-1,2", "below"),
        ("name", 3, "not text"),
    ],
)
def test_bad_values_name_the_flag(name: str, given: Any, part: str) -> None:
    with pytest.raises(UsageError, match=part) as caught:
        build(Sample, {name: given})
    assert f"--{name}" in str(caught.value)


def test_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean sweep"):
        build(Sample, {"sweeps": 1})


def test_unsupported_types_are_refused_when_loaded() -> None:
    @dataclass(frozen=True)
    class Bad:
        table: dict[str, int] = option(None, "no flag can carry it")

    with pytest.raises(TypeError, match="table"):
        fields(Bad)


def test_flags_and_metavars() -> None:
    described = {item.name: (item.flag, item.metavar) for item in fields(Sample)}
    assert described["mode"] == ("--mode", "fast|slow")
    assert described["sweep"][1] == "NUMBER,NUMBER,..."
    assert described["steps"][1] == "INTEGER|auto"


def test_json_form() -> None:
    assert as_json(build(Sample, {"size": "inf", "sweep": "1,2"})) == {
        "flag": False, "count": 3, "size": "inf", "name": "x", "place": ".", "mode": "fast", "steps": "auto",
        "eps": None, "sweep": [1.0, 2.0], "attack": None,
    }  # fmt: skip
    assert as_json(AttackSpec("pgd-l2", {"eps": 1.0})) == {"name": "pgd-l2", "eps": 1.0}
