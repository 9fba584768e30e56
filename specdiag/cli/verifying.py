"""`verify`: are stored numbers reproduced, and to which precision?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdiag.cli.ending import guarded
from specdiag.cli.reporting import console
from specdiag.errors import NothingAnalysed, UsageError, suggest

if TYPE_CHECKING:
    from specdiag.batch.verifying import Verified


@guarded
def verify(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.h5", help="Results file.", show_default=False)],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CKPT]", help="The checkpoint, where it is not where it was.", show_default=False
        ),
    ] = None,
    analyzer: Annotated[
        str | None,
        typer.Option("--analyzer", "-a", help="Only this analyzer.", metavar="NAME", show_default=False),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", "-n", min=1, help="How many samples to recompute.")
    ] = 8,
    data: Annotated[
        str | None,
        typer.Option("--data", help="The data, where they moved.", metavar="SPEC", show_default=False),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option("--layout", help="Axes of images in an .npz.", metavar="nchw|nhwc", show_default=False),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Which weights of a file that holds several.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Run the Python code of a pickled network once more.")
    ] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the program that the file carries once more.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")
    ] = False,
) -> None:
    """Recompute a few stored samples with the stored settings: 0 reproduced, 1 not, 5 nothing could be verified."""
    from specdiag.batch.verifying import Given
    from specdiag.batch.verifying import verify as check
    from specdiag.loading.trusted import Trust
    from specdiag.store import groups, json_safe

    names = groups(results)
    if analyzer is not None and analyzer not in names:
        raise UsageError(f"{results} holds no results of '{analyzer}'.", suggest(analyzer, names))
    given = Given(checkpoint, data, layout, weights, Trust(trust_pickle, trust_code))
    found = [check(results, name, samples, given) for name in names if analyzer in (None, name)]
    if json:
        import json as encoder

        typer.echo(encoder.dumps(json_safe({"results": str(results), "verified": found}), indent=1))
    else:
        _print(found)
    if any(item.status == "differs" for item in found):
        raise typer.Exit(1)
    if all(item.status == "skipped" for item in found):
        raise NothingAnalysed(f"Nothing in {results} could be verified.")


def _print(found: list[Verified]) -> None:
    from specdiag.report.terminal import print_table

    output = console()
    rows = []
    for item in found:
        for array in item.arrays:
            if not array.equal:
                kinks = f"{array.kinks} at a kink" if array.kinks else ""
                holds = "" if array.holds else "differs"
                rows.append([item.analyzer, array.array, f"{array.deviation:.1e}", kinks, holds])
    if rows:
        print_table(output, ["analyzer", "array", "largest deviation", "", ""], rows)
        output.print()
    for item in found:
        output.print(_sentence(item), soft_wrap=True)
        for change in item.changed:
            output.print(f"  now other than then: {change}", soft_wrap=True)


def _sentence(item: Verified) -> str:
    if item.status == "skipped":
        return f"{item.analyzer}: not verified: {item.reason}."
    what = f"{item.samples} samples" if item.samples else "all of it"
    same = sum(array.equal for array in item.arrays)
    if item.equal:
        return f"{item.analyzer}: reproduced in every bit ({what}, {same} arrays)."
    of = f"({what}, {same} of {len(item.arrays)} arrays in every bit)"
    if item.status == "reproduced":
        return f"{item.analyzer}: reproduced to {item.deviation:.1e} of the largest value {of}."
    return (
        f"{item.analyzer}: NOT reproduced: deviations up to {item.deviation:.1e} of the largest value {of}."
    )
