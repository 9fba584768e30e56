"""One job: one checkpoint through one analyzer, into its group of the results file."""

from specdiag.jobs.opening import (
    DTYPES,
    Common,
    Prepared,
    device_of,
    make_task,
    open_checkpoint,
    open_data,
    open_model,
    prepare,
    settle,
)
from specdiag.jobs.running import (
    Outcome,
    Sheet,
    admit,
    finish,
    run_in_memory,
    run_to_file,
    sheet_of,
    stored_group,
)

__all__ = [
    "DTYPES",
    "Common",
    "Outcome",
    "Prepared",
    "Sheet",
    "admit",
    "device_of",
    "finish",
    "make_task",
    "open_checkpoint",
    "open_data",
    "open_model",
    "prepare",
    "run_in_memory",
    "run_to_file",
    "settle",
    "sheet_of",
    "stored_group",
]
