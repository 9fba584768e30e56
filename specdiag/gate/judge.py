"""Rules and numbers to verdicts. Pure: nothing is read or written here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from specdiag.gate import statistics
from specdiag.gate.observations import Contrast, Observation, contrast
from specdiag.gate.rules import Limit, Rule, faces
from specdiag.schema import Reduce

Outcome = Literal["error", "fail", "investigate", "pass", "skipped"]
Pairing = Literal["paired", "unpaired", "exact", ""]
ORDER: tuple[Outcome, ...] = ("error", "fail", "investigate", "pass", "skipped")
# numbers without an interval, made on another machine or with other versions, agree to rounding only
_ROUNDING = 1e-4

Baseline = Mapping[tuple[str, str, str, str | None], Observation]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one limit says of one number.

    outcome: `pass`, `fail`, `investigate` (the data do not show which), `error` (it could not be judged) or `skipped`
    (the limit does not guard this metric's worse direction). judged, low, high: the value, or new minus old (a share
    of the old when the limit is relative), with its interval. detectable: the smallest excess over the limit that
    the data could have shown. text: one plain sentence.
    """

    rule: Rule
    limit: Limit | None
    outcome: Outcome
    text: str
    checkpoint: str = ""
    analyzer: str = ""
    metric: str = ""
    label: str | None = None
    unit: str = ""
    better: str = ""
    value: float = math.nan
    baseline: float = math.nan
    judged: float = math.nan
    low: float = math.nan
    high: float = math.nan
    level: float = math.nan
    detectable: float = math.nan
    n: int | None = None
    pairing: Pairing = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`spectrum.sigma_max_mean`, or the rule's pattern where no number stands behind the verdict."""
        if not self.metric:
            return self.rule.metric
        label = "" if self.label is None else f"[{self.label}]"
        return f"{self.analyzer}.{self.metric}{label}"

    @property
    def severity(self) -> tuple[int, float]:
        """Sorts worst first: by outcome, then by how far beyond the limit."""
        excess = 0.0
        if self.limit is not None and math.isfinite(self.judged):
            beyond = self.limit.beyond(self.judged)
            excess = beyond / (abs(self.limit.value) or abs(self.value) or 1.0)
        return ORDER.index(self.outcome), -excess


def judge(
    rules: Sequence[Rule], observations: Sequence[Observation], baselines: Mapping[str, Baseline | str]
) -> list[Verdict]:
    """All rules over all numbers, worst first.

    baselines: per file that the rules name, its contents, or the reason why there are none. A rule that matches
    nothing fails; NaN fails; what cannot be compared is an `error`.
    """
    verdicts: list[Verdict] = []
    for rule in rules:
        matched = [
            entry
            for entry in observations
            if rule.matches(entry.origin.checkpoint, entry.origin.analyzer, entry.metric, entry.label)
        ]
        if not matched:
            text = f"No stored number matches {rule}."
            verdicts.append(Verdict(rule, None, "fail", text))
            continue
        for limit in rule.limits:
            verdicts += _judge_limit(rule, limit, matched, baselines)
    return sorted(verdicts, key=lambda verdict: verdict.severity)


def _judge_limit(
    rule: Rule, limit: Limit, matched: Sequence[Observation], baselines: Mapping[str, Baseline | str]
) -> list[Verdict]:
    guarded = [entry for entry in matched if faces(limit, entry.better)]
    if not guarded:
        text = f"{rule}: every metric that it matches gets better that way, so {limit} guards nothing."
        return [Verdict(rule, limit, "error", text)]
    blank = Verdict(rule, limit, "skipped", "")
    verdicts = [
        _about(blank, entry, "skipped", f"{entry.name}: {entry.better} is better, so {limit} does not apply.")
        for entry in matched
        if not faces(limit, entry.better)
    ]
    tail = (1 - statistics.LEVEL) / 2 / len(guarded)
    if not limit.compares:
        return verdicts + [_judge_value(blank, limit, entry, tail) for entry in guarded]
    baseline = baselines.get(rule.baseline or "", "it was not read")
    if isinstance(baseline, str):
        text = f"{rule}: no baseline {rule.baseline}: {baseline}."
        return [*verdicts, Verdict(rule, limit, "error", text)]
    verdicts += [_judge_change(blank, limit, entry, baseline.get(entry.key), tail) for entry in guarded]
    return verdicts + _vanished(blank, rule, limit, matched, baseline)


def _vanished(
    blank: Verdict, rule: Rule, limit: Limit, matched: Sequence[Observation], baseline: Baseline
) -> list[Verdict]:
    """Numbers of the baseline that the results of the same checkpoints no longer have."""
    present = {entry.key for entry in matched}
    checkpoints = {entry.origin.checkpoint for entry in matched}
    gone = [
        old
        for key, old in baseline.items()
        if key not in present and key[0] in checkpoints and rule.matches(*key) and faces(limit, old.better)
    ]
    return [
        replace(
            _about(blank, old, "fail", f"{old.name} is in the baseline but not in the results."),
            value=math.nan,
            baseline=old.value,
        )
        for old in gone
    ]


def _about(blank: Verdict, entry: Observation, outcome: Outcome, text: str) -> Verdict:
    return replace(
        blank,
        outcome=outcome,
        text=text,
        checkpoint=entry.origin.checkpoint,
        analyzer=entry.origin.analyzer,
        metric=entry.metric,
        label=entry.label,
        unit=entry.unit,
        better=entry.better,
        value=entry.value,
        n=entry.n,
    )


def _judge_value(blank: Verdict, limit: Limit, entry: Observation, tail: float) -> Verdict:
    bad = _unusable(entry)
    if bad:
        return _about(blank, entry, "fail", bad)
    if entry.values is not None and entry.reduce is not None:
        interval = _of_samples(entry.value, entry.values, entry.reduce, tail)
    else:
        interval = statistics.by_errors(None, entry.value, math.nan, entry.error, tail, relative=False)
    return _verdict(_about(blank, entry, "pass", ""), limit, interval, tail)


def _of_samples(value: float, values: statistics.Values, reduce: Reduce, tail: float) -> statistics.Interval:
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return statistics.Interval(value, -math.inf, math.inf)
    return replace(statistics.of_value(finite, reduce, tail), estimate=value)


def _judge_change(
    blank: Verdict, limit: Limit, entry: Observation, old: Observation | None, tail: float
) -> Verdict:
    about = _about(blank, entry, "error", "")
    baseline = blank.rule.baseline
    if old is None:
        todo = "If it is new, make the baseline again with --write-baseline."
        return replace(about, text=f"{entry.name} of {entry.origin.checkpoint} is not in {baseline}. {todo}")
    about = replace(about, baseline=old.value)
    found = contrast(old.origin.settings, entry.origin.settings)
    if found.forbidding:
        changed = "; ".join(found.forbidding)
        todo = "Use the settings of the baseline, or make it again with --write-baseline."
        return replace(
            about, text=f"{entry.name}: {baseline} was made with other settings ({changed}). {todo}"
        )
    for which, bad in (("", _unusable(entry)), ("baseline: ", _unusable(old))):
        if bad:
            return replace(about, outcome="fail", text=which + bad)
    if limit.relative and old.value == 0:
        return replace(
            about, text=f"{entry.name} is 0 in {baseline}: a percentage of it means nothing; give a number."
        )
    interval, pairing = _change(limit, entry, old, found, tail)
    notes = []
    if pairing == "unpaired":
        why = "no value for each sample"
        if found.samples or entry.origin.index != old.origin.index:
            why = "other samples than the baseline's" + (
                f" ({'; '.join(found.samples)})" if found.samples else ""
            )
        notes.append(f"unpaired ({why}): a change must be larger to show")
    if found.machine:
        notes.append(f"the baseline was made with {'; '.join(found.machine)}")
    return _verdict(replace(about, pairing=pairing, notes=tuple(notes)), limit, interval, tail)


def _change(
    limit: Limit, entry: Observation, old: Observation, found: Contrast, tail: float
) -> tuple[statistics.Interval, Pairing]:
    same = (
        not found.samples
        and entry.origin.index == old.origin.index
        and entry.origin.splits == old.origin.splits
    )
    if entry.values is None or old.values is None or entry.reduce is None or entry.reduce != old.reduce:
        interval = statistics.by_errors(
            old.value, entry.value, old.error, entry.error, tail, relative=limit.relative
        )
        if interval.low != interval.high:
            return interval, "unpaired"
        slack = _ROUNDING * (1.0 if limit.relative else abs(old.value)) if found.machine else 0.0
        return replace(interval, low=interval.low - slack, high=interval.high + slack), "exact"
    before, after = old.values, entry.values
    if same and len(before) == len(after):
        both = np.isfinite(before) & np.isfinite(after)
        before, after = before[both], after[both]
        compute, pairing = statistics.of_paired_change, "paired"
    else:
        before, after = before[np.isfinite(before)], after[np.isfinite(after)]
        compute, pairing = statistics.of_unpaired_change, "unpaired"
    if min(len(before), len(after)) < 2:
        change = (entry.value - old.value) / (abs(old.value) if limit.relative else 1.0)
        return statistics.Interval(change, -math.inf, math.inf), "unpaired"
    interval = compute(before, after, entry.reduce, tail, relative=limit.relative)
    return interval, "paired" if pairing == "paired" else "unpaired"


def _unusable(entry: Observation) -> str:
    if not math.isfinite(entry.value):
        return f"{entry.name} is {entry.value}."
    if entry.excluded:
        return f"{entry.name} leaves out {entry.excluded} samples whose values are NaN or infinite; it is no number to go by."
    return ""


def _verdict(about: Verdict, limit: Limit, interval: statistics.Interval, tail: float) -> Verdict:
    ends = sorted((limit.beyond(interval.low), limit.beyond(interval.high)))
    outcome: Outcome = "fail" if ends[0] > 0 else "pass" if ends[1] <= 0 else "investigate"
    filled = replace(
        about,
        outcome=outcome,
        judged=interval.estimate,
        low=interval.low,
        high=interval.high,
        level=1 - 2 * tail,
        detectable=limit.beyond(interval.estimate) - ends[0],
    )
    return replace(filled, text=_sentence(filled, limit))


def _sentence(verdict: Verdict, limit: Limit) -> str:
    exact = verdict.low == verdict.high
    interval = ""
    if not exact:
        ends = f"{_shown(verdict.low, limit)} to {_shown(verdict.high, limit)}"
        interval = f" ({100 * verdict.level:.4g} % interval {ends})"
    if limit.compares:
        moved = f"{verdict.baseline:.4g} to {verdict.value:.4g}"
        subject = f"{verdict.name} changed by {_shown(verdict.judged, limit)}{interval}, from {moved}"
    else:
        subject = f"{verdict.name} = {verdict.value:.4g}{interval}"
    ending = {
        "pass": f"within {limit}",
        "fail": f"beyond {limit}",
        "investigate": f"neither shown to be within {limit} nor beyond it",
    }[verdict.outcome]
    text = f"{subject}: {ending}."
    if not exact and math.isfinite(verdict.detectable):
        smallest = _shown(verdict.detectable, limit).lstrip("+")
        text += f" The smallest excess over the limit that these data can show is {smallest}."
    return text


def _shown(value: float, limit: Limit) -> str:
    if not limit.compares:
        return f"{value:.4g}"
    return f"{100 * value:+.3g} %" if limit.relative else f"{value:+.4g}"
