"""What the scheduler asks of whoever computes, and what comes back. Small, and fit to travel between processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from specdiag.batch.plan import Job
from specdiag.errors import CheckpointError, SpecdiagError

if TYPE_CHECKING:
    import xarray

    from specdiag.jobs import Sheet

Step = Literal["whole", "begin", "compute", "finish"]
Listener = Callable[[str, Any], None]


@dataclass(frozen=True, slots=True)
class Call:
    """One piece of work on a job.

    step: `whole` runs the job to its end; `begin` opens it and says which chunks are missing; `compute` computes
    `chunks`; `finish` writes the results file. run: of the batch, so that nothing is kept from another one. bring: the
    chunks travel back instead of being journalled where they are computed.
    """

    run: str
    job: Job
    step: Step
    sheet: Sheet | None = None
    chunks: tuple[int, ...] = ()
    continued: bool = False
    bring: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The job's results are stored."""

    status: Literal["computed", "continued", "already there"]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Begun:
    """The job is open: its sheet and the samples in each missing chunk."""

    sheet: Sheet
    missing: Mapping[int, int]
    finished: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Parcel:
    """Chunks are computed; `arrays` by chunk where they travel, else they are in the journal."""

    chunks: tuple[int, ...]
    seconds: float = 0.0
    arrays: Mapping[int, Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Weighed:
    """An analyzer of weights is ready to run elsewhere: the settings by which its results are recognised."""

    settings: Mapping[str, Any]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Carried:
    """The whole result of an analyzer of weights, to be written where the command runs."""

    dataset: xarray.Dataset
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Left:
    """The job does not apply to its checkpoint, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong: `kind` is the class of the error; exit_code as the error's own."""

    what: str
    todo: str = ""
    exit_code: int = 2
    kind: str = "SpecdiagError"
    reason: str = ""
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.todo}".strip()


Answer = Done | Begun | Parcel | Weighed | Carried | Left | Failure


def failure_of(error: BaseException, trace: str = "") -> Failure:
    """An exception as a failure; one that specdiag did not expect is named as its own defect."""
    kind = type(error).__name__
    if isinstance(error, SpecdiagError):
        reason = error.reason if isinstance(error, CheckpointError) else ""
        return Failure(error.what, error.todo, error.exit_code, kind, reason, trace)
    first = (str(error).splitlines() or [""])[0][:300]
    return Failure(f"internal error: {kind}: {first}", "--debug shows where.", 2, kind, "", trace)


@dataclass(frozen=True, slots=True)
class News:
    """Something that happened to a call: `answer`, or `samples` finished, or a line to `say`."""

    call: Call
    kind: Literal["answer", "samples", "say"]
    body: Any


class Executor(Protocol):
    """Who computes. Calls are independent of each other; answers come in any order."""

    @property
    def width(self) -> int:
        """How many calls run at a time."""

    @property
    def splits(self) -> Literal["never", "tail", "always"]:
        """Whether jobs are split into calls of a few chunks: never, the last ones of a batch, or all."""

    def submit(self, call: Call) -> None:
        """Take a call."""

    def next(self) -> News:
        """Wait for the next thing that happens; at least one call must be under way."""

    def close(self) -> None:
        """Stop; calls that are under way are dropped."""
