"""The exit code of a batch: worst reason first."""

from __future__ import annotations

from collections.abc import Sequence

from specdiag.batch.schedule import Result
from specdiag.gate.judge import Verdict

# an explained error, a failed gate, partial, refused checkpoints, nothing analysed
PRECEDENCE = (2, 1, 4, 3, 5)
RAN = ("computed", "continued", "already there")


def exit_code(
    results: Sequence[Result] | None,
    verdicts: Sequence[Verdict],
    *,
    fail_on: str = "fail",
    exit_zero: bool = False,
) -> int:
    """0, or the first of PRECEDENCE that applies; results: None where only stored results were judged.

    exit_zero: a failed gate is reported and does not count.
    """
    reasons = set()
    outcomes = {verdict.outcome for verdict in verdicts}
    if "error" in outcomes:
        reasons.add(2)
    if not exit_zero and ("fail" in outcomes or (fail_on == "investigate" and "investigate" in outcomes)):
        reasons.add(1)
    if results is not None:
        reasons |= _of_results(results)
    return next((code for code in PRECEDENCE if code in reasons), 0)


def _of_results(results: Sequence[Result]) -> set[int]:
    failures = [result.failure for result in results if result.failure is not None]
    if not any(result.status in RAN for result in results):
        return {failure.exit_code for failure in failures} or {5}
    return {4} if failures else set()
