"""Stored results through the gates of a configuration. No torch: `specdiag gate` and `report` come here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from specdiag import plugins
from specdiag.batch.settings import Settings
from specdiag.errors import ResultsError, SpecdiagError, UsageError
from specdiag.gate.baseline import read_baseline, write_baseline
from specdiag.gate.judge import Baseline, Verdict, judge
from specdiag.gate.observations import Observation, observe
from specdiag.gate.rules import Rule
from specdiag.locks import name_of
from specdiag.report.content import Stored
from specdiag.store import groups, read_group


def read_results(files: Iterable[Path], only: Iterable[tuple[Path, str]] | None = None) -> list[Stored]:
    """All groups of the files (those in `only`, where given), in the order of the files.

    Two files of one name are told apart by their folder, else by their whole path.
    """
    paths = list(dict.fromkeys(Path(file) for file in files))
    chosen = None if only is None else set(only)
    found = []
    for path, name in zip(paths, _roles(paths), strict=True):
        for analyzer in groups(path):
            if chosen is None or (path, analyzer) in chosen:
                found.append(Stored(name, analyzer, path, read_group(path, analyzer)))
    return found


def _roles(paths: Sequence[Path]) -> list[str]:
    names = [name_of(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.absolute().parent.name}/{name}" for path, name in zip(paths, names, strict=True)]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return names


def declared(name: str) -> Any:
    """The declaration of an analyzer, or None where it is not installed."""
    return plugins.load("analyzer", name) if name in plugins.names("analyzer") else None


def observations(results: Sequence[Stored], rules: Sequence[Rule]) -> list[Observation]:
    """Every number that a gate can judge; rules: of which some compare with a baseline."""
    comparing = [rule for rule in rules if rule.compares]

    def numbers(stored: Stored) -> list[Observation]:
        def compared(metric: str) -> bool:
            return any(rule.names(stored.name, stored.analyzer, metric) for rule in comparing)

        return observe(stored.name, stored.dataset, declared(stored.analyzer), str(stored.path), compared)

    return [number for stored in results for number in numbers(stored)]


def judged(settings: Settings, results: Sequence[Stored]) -> list[Verdict]:
    """The verdicts of all gates on the results, worst first."""
    baselines: dict[str, Baseline | str] = {}
    for rule in settings.rules:
        if rule.compares and rule.baseline is not None and rule.baseline not in baselines:
            baselines[rule.baseline] = _baseline(settings.inside(rule.baseline))
    return judge(settings.rules, observations(results, settings.rules), baselines)


def _baseline(path: Path) -> Baseline | str:
    try:
        return read_baseline(path)
    except SpecdiagError as error:
        return str(error).rstrip(".")


def make_baselines(settings: Settings, results: Sequence[Stored]) -> dict[Path, int]:
    """Write the baseline files that the comparing gates name; returns how many numbers each holds."""
    files: dict[str, list[Rule]] = {}
    for rule in settings.rules:
        if rule.compares and rule.baseline is not None:
            files.setdefault(rule.baseline, []).append(rule)
    if not files:
        raise UsageError(
            f"No gate in {settings.file} compares with a baseline.",
            'Write [[gate]] with max_increase or max_decrease, and baseline = "baseline.json".',
        )
    numbers = observations(results, settings.rules)
    written = {}
    for name, rules in files.items():
        chosen = [
            entry
            for entry in numbers
            if any(
                rule.matches(entry.origin.checkpoint, entry.origin.analyzer, entry.metric, entry.label)
                for rule in rules
            )
        ]
        _refuse_bad(chosen, name)
        path = settings.inside(name)
        write_baseline(path, chosen)
        written[path] = len(chosen)
    return written


def _refuse_bad(numbers: Sequence[Observation], name: str) -> None:
    for entry in numbers:
        if entry.value != entry.value or entry.excluded:
            raise ResultsError(
                f"{entry.name} of {entry.origin.checkpoint} rests on NaN or infinite values; {name} is not written.",
                "Find out why with: specdiag show RESULTS.h5",
            )
