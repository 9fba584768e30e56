"""One point per checkpoint: a metric against a training setting or another metric, over groups and seeds.

wen2020 Fig. 1c and 3, simongabriel2019 Fig. 1 to 3 and farnia2019 Fig. 6 are of this kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specdiag.errors import UsageError, suggest
from specdiag.report.content import Stored
from specdiag.store import provenance

# what may differ between two trainings of one recipe
_FREE = ("seed", "device", "threads")


@dataclass(frozen=True, slots=True)
class Point:
    """One checkpoint: its group, its recipe (training settings but the seed), and its two numbers."""

    name: str
    group: str
    recipe: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """The checkpoints of one group and recipe: medians, and 10 and 90 % of both numbers over seeds."""

    group: str
    count: int
    x: tuple[float, float, float]
    y: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Relation:
    """All points and clusters, what was left out and why, and how x and y go together over checkpoints."""

    x: str
    y: str
    points: tuple[Point, ...]
    clusters: tuple[Cluster, ...]
    omitted: tuple[str, ...]
    pearson: float
    spearman: float


def relate(results: Sequence[Stored], x: str, y: str, group: str | None) -> Relation:
    """The relation over all checkpoints.

    x, y, group: a setting such as `train.eps`, `train.method`, `checkpoint.architecture`, or a metric such as
    `spectrum.sigma_max_mean`, with a label as `robustness.accuracy[pgd-l2/1.0]`. A checkpoint without one of them is
    left out, with the reason; without any left it is a UsageError that names what there is.
    """
    checkpoints: dict[str, list[dict[str, Any]]] = {}
    for stored in results:
        checkpoints.setdefault(stored.name, []).append(provenance(stored.dataset))
    points, omitted = [], []
    for name, facts in checkpoints.items():
        try:
            numbers = [_number(facts, key) for key in (x, y)]
            label = "" if group is None else str(_value(facts, group))
        except KeyError as missing:
            omitted.append(f"{name} has no {missing.args[0]}")
            continue
        if not all(map(math.isfinite, numbers)):
            omitted.append(f"{name}: {x} or {y} is not finite")
            continue
        recipe = _recipe(facts)
        # a setting that is drawn over tells recipes apart even where the record of the training does not
        points.append(Point(name, label, f"{recipe} {numbers[0]}" if _is_setting(x) else recipe, *numbers))
    if not points:
        known = sorted({key for facts in checkpoints.values() for key in _known(facts)})
        wanted = next((key for key in (x, y, group) if key is not None and key not in known), y)
        raise UsageError(f"No checkpoint has {x} and {y}: {'; '.join(omitted[:3])}.", suggest(wanted, known))
    xs, ys = np.array([point.x for point in points]), np.array([point.y for point in points])
    return Relation(
        x,
        y,
        tuple(points),
        _clusters(points),
        tuple(omitted),
        _correlation(xs, ys),
        _correlation(_ranks(xs), _ranks(ys)),
    )


def _clusters(points: Sequence[Point]) -> tuple[Cluster, ...]:
    members: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        members.setdefault((point.group, point.recipe), []).append(point)

    def spread(values: Sequence[float]) -> tuple[float, float, float]:
        low, middle, high = np.percentile(values, [10, 50, 90])
        return float(low), float(middle), float(high)

    found = [
        Cluster(
            group, len(inside), spread([point.x for point in inside]), spread([point.y for point in inside])
        )
        for (group, _), inside in members.items()
    ]
    return tuple(sorted(found, key=lambda cluster: (cluster.group, cluster.x[1])))


def draw(relation: Relation, figure: Any) -> None:
    """Medians with 10 to 90 % bars over seeds, joined within a group where x is a setting; single checkpoints faint."""
    from specdiag.figures import LINES, MARKERS, colour, log_axis

    ax = figure.add_subplot()
    groups = list(dict.fromkeys(cluster.group for cluster in relation.clusters))
    joined = _is_setting(relation.x)
    for number, group in enumerate(groups):
        inside = [cluster for cluster in relation.clusters if cluster.group == group]
        xs, ys = np.array([cluster.x for cluster in inside]), np.array([cluster.y for cluster in inside])
        ax.errorbar(
            xs[:, 1],
            ys[:, 1],
            xerr=np.abs(xs[:, [0, 2]].T - xs[:, 1]),
            yerr=np.abs(ys[:, [0, 2]].T - ys[:, 1]),
            color=colour(number),
            marker=MARKERS[number % len(MARKERS)],
            linestyle=LINES[number % len(LINES)] if joined and len(inside) > 1 else "none",
            capsize=2,
            lw=1.2,
            label=group or None,
        )
        own = [point for point in relation.points if point.group == group]
        if len(own) > len(inside):
            ax.scatter(
                [p.x for p in own], [p.y for p in own], s=9, color=colour(number), alpha=0.35, linewidths=0
            )
    ax.set_xlabel(relation.x)
    ax.set_ylabel(relation.y)
    for axis, values in (("x", [p.x for p in relation.points]), ("y", [p.y for p in relation.points])):
        if min(values) > 0 and max(values) > 30 * min(values):
            log_axis(ax, axis)  # type: ignore[arg-type]
    known = "" if math.isnan(relation.spearman) else f", rank correlation {relation.spearman:.2f}"
    ax.set_title(f"{len(relation.points)} checkpoints{known}")
    if any(groups):
        ax.legend()


def _is_setting(key: str) -> bool:
    return key.partition(".")[0] in ("train", "checkpoint", "data", "options")


def _number(facts: Sequence[Mapping[str, Any]], key: str) -> float:
    value = _value(facts, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{key} is '{value}', not a number.", "Use it as --group.")
    return float(value)


def _value(facts: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The setting or metric that `key` names; KeyError where the checkpoint has none."""
    metric, _, label = key.partition("[")
    analyzer, _, name = metric.partition(".")
    for entry in facts:
        found = (entry.get("metrics") or {}).get(name) if entry.get("analyzer") == analyzer else None
        if found is None:
            continue
        if not isinstance(found["value"], list):
            return found["value"]
        labels = [str(entry) for entry in found.get("labels") or ()]
        if not label:
            raise UsageError(
                f"{key} has one value per {'/'.join(found['dims'])}.", f"Write {key}[{labels[0]}]."
            )
        if label.removesuffix("]") in labels:
            return found["value"][labels.index(label.removesuffix("]"))]
        raise UsageError(f"There is no {key}.", suggest(label.removesuffix("]"), labels))
    head, *rest = key.split(".")
    value: Any = facts[0].get(head)
    for part in rest:
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None and key == "train.eps" and (facts[0].get("train") or {}).get("method") == "standard":
        # standard training is adversarial training without perturbations
        return 0.0
    if value is None or isinstance(value, Mapping | list):
        raise KeyError(key)
    return value


def _known(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [f"{entry['analyzer']}.{name}" for entry in facts for name in entry.get("metrics") or {}]
    train = facts[0].get("train") or {}
    return names + [f"train.{key}" for key, value in train.items() if not isinstance(value, Mapping | list)]


def _recipe(facts: Sequence[Mapping[str, Any]]) -> str:
    """The training settings without what may differ between repeats."""
    train = facts[0].get("train") or {}
    settings = {key: value for key, value in (train.get("settings") or {}).items() if key not in _FREE}
    kept = {"method": train.get("method"), "options": train.get("options"), "settings": settings}
    checkpoint = facts[0].get("checkpoint") or {}
    kept |= {"architecture": checkpoint.get("architecture"), "arguments": checkpoint.get("arch_args")}
    if not train:
        # nothing says how it was trained: it stands for itself
        kept["sha256"] = checkpoint.get("sha256")
    return json.dumps(kept, sort_keys=True, default=str)


def _ranks(values: Any) -> Any:
    """Ranks, ties sharing their mean."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values))
    for value in np.unique(values):
        same = values == value
        ranks[same] = ranks[same].mean()
    return ranks


def _correlation(a: Any, b: Any) -> float:
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
