"""How a command ends: errors become one line and an exit code, in one place."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from specdiag import heap
from specdiag.errors import SpecdiagError

DEBUG = "SPECDIAG_DEBUG"


def take_debug_flag(arguments: list[str]) -> list[str]:
    """The arguments without `--debug`; where it stood, tracebacks are shown."""
    if "--debug" in arguments:
        os.environ[DEBUG] = "1"
    return [argument for argument in arguments if argument != "--debug"]


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every error turned into one explained line on stderr and its exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        heap.keep()
        try:
            return function(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            say("interrupted; finished samples are kept, the same command continues.")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # the reader of our output went away, as `| head` does
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            raise typer.Exit(0) from None
        except SpecdiagError as error:
            report(error)
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if os.environ.get(DEBUG):
                traceback.print_exc()
            first = (str(error).splitlines() or [""])[0][:300]
            say(
                f"internal error: {type(error).__name__}: {first} (this is a defect of specdiag; --debug shows where)"
            )
            raise typer.Exit(2) from None

    return run


def report(error: SpecdiagError, prefix: str = "") -> None:
    """One explained error on stderr."""
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    say(f"error: {prefix}{error}")


def say(text: str) -> None:
    """One line on stderr."""
    typer.echo(f"specdiag: {text}", err=True)
