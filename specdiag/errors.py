"""Everything that specdiag can explain to a user: each error says what is wrong and what to do next.

One root, so that one place (`specdiag.cli.main`) turns an error into one line and an exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class SpecdiagError(Exception):
    """Root of all explained errors.

    `what` is one plain sentence; `todo` is what to do next (a command where there is one).
    `exit_code` is the exit code of the process when nothing catches the error.
    """

    exit_code = 2

    def __init__(self, what: str, todo: str = "") -> None:
        super().__init__(f"{what} {todo}".strip())
        self.what = what
        self.todo = todo


class UsageError(SpecdiagError):
    """An option, a spec or a configuration that cannot be meant."""


class ArchitectureError(SpecdiagError):
    """The architecture is unknown, ambiguous or does not fit the weights."""


class DataError(SpecdiagError):
    """The data cannot be read, or do not fit the model."""


class ModelError(SpecdiagError):
    """The loaded model cannot be analysed; names the module to blame."""


class NumericalError(SpecdiagError):
    """A NaN, an infinity or a decomposition that did not converge; names the sample or layer."""


class ResultsError(SpecdiagError):
    """A results file or journal is missing, unreadable, locked or made with other settings."""


class MissingExtra(SpecdiagError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed.", f"Install it with: pip install 'specdiag[{extra}]'")


class CheckpointError(SpecdiagError):
    """The checkpoint is missing, unreadable or refused. `reason` is a stable id such as `truncated-zip`."""

    exit_code = 3

    def __init__(self, what: str, todo: str = "", reason: str = "unreadable") -> None:
        super().__init__(what, todo)
        self.reason = reason


class PartialError(SpecdiagError):
    """One of several tasks failed; the results of the others are saved."""

    exit_code = 4


class NothingAnalysed(SpecdiagError):
    """The run ended without a single analysed sample or layer."""

    exit_code = 5


def suggest(name: str, known: Sequence[str]) -> str:
    """'Did you mean ...?' with the nearest names, or the list of all of them."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
