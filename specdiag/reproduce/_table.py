"""The table of claims as text: rows for a terminal, Markdown with every rule spelled out, and JSON."""

from __future__ import annotations

import json
from typing import Any

from specdiag.reproduce._judge import Claim, Estimate
from specdiag.reproduce._run import Outcome
from specdiag.store import json_safe

TITLES = ("claim", "paper", "here", "holds if", "verdict")


def rows(outcome: Outcome) -> list[list[str]]:
    """One row per claim, as texts under TITLES."""
    return [
        [entry.claim, f"{entry.source}: {entry.paper}", shown(entry.found), str(entry.rule), entry.verdict]
        for entry in outcome.claims
    ]


def shown(found: Estimate) -> str:
    """The value with its interval."""
    if found.low == found.high:
        return _number(found.value)
    return f"{_number(found.value)} ({_number(found.low)} to {_number(found.high)})"


def counted(outcome: Outcome) -> str:
    """How many claims hold, do not, and are undecided."""
    verdicts = [entry.verdict for entry in outcome.claims]
    parts = [f"{verdicts.count(kind)} {kind}" for kind in ("holds", "does not hold", "undecided")]
    return f"{len(verdicts)} claims: {', '.join(parts)}"


def footer(outcome: Outcome) -> list[str]:
    """The recipe: data, networks, trainings with constants and accuracies, and how verdicts are reached."""
    results, scene = outcome.results, outcome.results.scene
    lines = [
        f"Data {scene.named}; {len(scene.seeds)} training seed(s); accuracies over {scene.many} test samples, "
        f"spectra and the like over {scene.samples}.",
        "An interval is the 95 % bootstrap interval over test samples (paired: the same samples for all networks) and, "
        "where there are several training seeds, Student's interval over them, added in quadrature. A claim holds where "
        "the whole interval obeys its rule, does not hold where all of it breaks it, and is undecided otherwise.",
    ]
    if len(scene.seeds) == 1:
        lines.append("One training seed: intervals are of these networks, not of the methods.")
    for training in results.plan.trainings:
        facts = results.train(training.name)
        clean = sum(entry["clean_accuracy"] for entry in facts) / len(facts)
        attacked = sum(entry["adversarial_accuracy"] for entry in facts) / len(facts)
        constant = ""
        if training.choice is not None:
            choice = training.choice
            grid = ", ".join(f"{value:g}" for value in choice.grid)
            how = f"of {grid} by {choice.rule} on held-out samples"
            how = f"as {choice.reference}" if choice.rule == "same" else how
            constant = f", {choice.option} = {results.chosen[training.name]:g} ({how})"
        options = "".join(f", {key} {_option(value)}" for key, value in training.options.items())
        settings = facts[0]["settings"]
        taken = settings["train_samples"]
        start = f", from {training.start}" if training.start else ""
        attack = facts[0]["attack"]
        lines.append(
            f"{training.name}: {training.method}{options}{constant}; {training.arch}, {settings['epochs']} epochs"
            f"{f' on {taken} samples' if taken else ''}{start}; clean accuracy {clean:.1%}, "
            f"under {attack['name']} at eps {attack['eps']:.3g} {attacked:.1%}."
        )
    return [*lines, *results.plan.remarks]


def markdown(outcome: Outcome) -> str:
    """The whole table with statistics and recipe."""
    paper = outcome.paper
    title = f"# {paper.name} on {outcome.results.scene.named}: {paper.title}"
    lines = [title, "", f"{counted(outcome)}.", ""]
    lines += [f"| {' | '.join(TITLES)} |", "|" + "---|" * len(TITLES)]
    for row in rows(outcome):
        cells = [cell.replace("|", r"\|") for cell in row]
        cells[-1] = f"**{cells[-1]}**"
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What each number is", ""]
    for number, entry in enumerate(outcome.claims, start=1):
        note = f" {entry.note}" if entry.note else ""
        lines.append(f"{number}. *{entry.claim}*: {entry.statistic}; holds if {entry.rule}.{note}")
    lines += ["", "## Recipe", "", *(f"- {line}" for line in footer(outcome))]
    return "\n".join(lines) + "\n"


def document(outcome: Outcome) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "paper": outcome.paper.name,
        "title": outcome.paper.title,
        "data": outcome.results.scene.data,
        "claims": [_claim(entry) for entry in outcome.claims],
        "recipe": footer(outcome),
        "chosen": dict(outcome.results.chosen),
        "figures": [path.name for path in outcome.figures],
    }


def json_text(outcome: Outcome) -> str:
    """`document` as text."""
    return json.dumps(json_safe(document(outcome)), indent=1, ensure_ascii=False) + "\n"


def _claim(entry: Claim) -> dict[str, Any]:
    found = entry.found
    return {
        "claim": entry.claim,
        "source": entry.source,
        "paper": entry.paper,
        "statistic": entry.statistic,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "seeds": found.seeds,
        "samples": found.samples,
        "rule": str(entry.rule),
        "verdict": entry.verdict,
        "note": entry.note,
    }


def _number(value: float) -> str:
    # what is left of a difference of equal shares
    return "0" if abs(value) < 1e-12 else f"{value:.3g}"


def _option(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
