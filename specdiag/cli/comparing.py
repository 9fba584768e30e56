"""`compare`: stored results side by side, or one point per checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdiag.cli.ending import guarded, say
from specdiag.cli.reporting import console
from specdiag.errors import UsageError

if TYPE_CHECKING:
    from specdiag.report.comparison import Angles, Difference
    from specdiag.report.content import Stored
    from specdiag.report.relation import Relation

OUT = Path("specdiag-compare")
_SHOWN = 80


@guarded
def compare(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="A.h5 B.h5...", help="Results files; all are compared with the first.", show_default=False
        ),
    ],
    analyzer: Annotated[
        str | None,
        typer.Option("--analyzer", "-a", help="Only this analyzer.", metavar="NAME", show_default=False),
    ] = None,
    x: Annotated[
        str | None,
        typer.Option(
            "--x", help="One point per checkpoint: across, such as train.eps.", metavar="SETTING|METRIC"
        ),
    ] = None,
    y: Annotated[
        str | None,
        typer.Option("--y", help="And upwards, such as spectrum.sigma_max_mean.", metavar="METRIC"),
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="One colour each, such as train.method.", metavar="SETTING")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the figures.", metavar="DIR")] = OUT,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")
    ] = False,
) -> None:
    """Metrics side by side with paired intervals, samples against samples, singular subspaces; or --x against --y."""
    from specdiag.batch.judging import read_results

    if (x is None) != (y is None):
        raise UsageError("--x and --y belong together.", "Example: --x train.eps --y spectrum.sigma_max_mean")
    results = read_results(files)
    if x is not None and y is not None:
        _relation(results, x, y, group, out, json)
        return
    if group is not None:
        raise UsageError("--group is for --x and --y.")
    if len({stored.path for stored in results}) < 2:
        raise UsageError("There is nothing to compare with.", "Give two results files or more.")
    _side_by_side(results, analyzer, out, json)


def _side_by_side(results: Sequence[Stored], only: str | None, out: Path, json: bool) -> None:
    from specdiag.batch.judging import declared
    from specdiag.report.comparison import compared, principal_angles

    names = [name for name in dict.fromkeys(stored.analyzer for stored in results) if only in (None, name)]
    document: list[dict[str, Any]] = []
    output = console()
    shared = 0
    for name in names:
        held = [stored for stored in results if stored.analyzer == name]
        if len(held) < 2:
            say(f"{name}: only {held[0].name} holds results of it.")
            continue
        shared += 1
        entry: dict[str, Any] = {"analyzer": name, "first": held[0].name, "others": [], "figures": []}
        for other in held[1:]:
            differences, found = compared(held[0], other, declared(name))
            angles = principal_angles(held[0].dataset, other.dataset)
            if not json:
                _print_pair(output, name, held[0], other, differences, found, angles)
            entry["others"].append(_as_json(other, differences, found, angles))
        entry["figures"] = [str(path) for path in _figures(name, held, out)]
        if not json:
            for path in entry["figures"]:
                output.print(f"figure:  {path}", soft_wrap=True)
        document.append(entry)
    if not shared:
        raise UsageError("The files share no analyzer.", "See what they hold with: specdiag show FILE.h5")
    if json:
        _echo({"comparisons": document})


def _print_pair(
    output: Any,
    name: str,
    first: Stored,
    other: Stored,
    differences: Sequence[Difference],
    found: Any,
    angles: Sequence[Angles],
) -> None:
    from specdiag.report.terminal import format_number, print_table

    output.print(f"{name}: {other.name} beside {first.name}", soft_wrap=True)
    if found.forbidding:
        output.print(f"warning: made with other settings: {'; '.join(found.forbidding)}", soft_wrap=True)
    if found.samples:
        output.print(
            f"note: other samples, so the intervals are unpaired: {'; '.join(found.samples)}", soft_wrap=True
        )
    rows = []
    for item in differences[:_SHOWN]:
        interval = ""
        if math.isfinite(item.low):
            interval = f"{item.low:+.4g} to {item.high:+.4g}"
        share = ""
        if item.first.value and math.isfinite(item.change / item.first.value):
            share = f"{100 * item.change / abs(item.first.value):+.3g} %"
        rows.append(
            [
                item.name,
                format_number(item.first.value),
                format_number(item.other.value),
                f"{item.change:+.4g}",
                share,
                interval,
                item.pairing,
                "differs" if item.differs else "",
            ]
        )
    titles = ["metric", first.name, other.name, "change", "", "95 % interval", "", ""]
    print_table(output, titles, rows)
    if len(differences) > _SHOWN:
        output.print(f"and {len(differences) - _SHOWN} more (--json has all)")
    for angle in angles:
        _print_angles(output, angle)
    output.print()


def _print_angles(output: Any, angle: Angles) -> None:
    from specdiag.report.terminal import print_table

    mean = angle.degrees.mean(0)
    print_table(
        output,
        [f"{angle.array}: principal angle", "mean", "10 %", "90 %"],
        [
            [str(rank + 1), f"{mean[rank]:.1f}", *(f"{v:.1f}" for v in _percentiles(angle.degrees[:, rank]))]
            for rank in range(min(10, len(mean)))
        ],
    )
    output.print(
        f"degrees; mean squared cosine {angle.overlap:.3f}, of random subspaces {angle.expected:.3f}",
        soft_wrap=True,
    )


def _percentiles(values: Any) -> list[float]:
    import numpy as np

    return [float(value) for value in np.percentile(values, [10, 90])]


def _figures(name: str, held: Sequence[Stored], out: Path) -> list[Path]:
    from specdiag import figures
    from specdiag.batch.judging import declared
    from specdiag.report.comparison import sample_pairs, scatter_figure

    analyzer = declared(name)
    if analyzer is None:
        return []
    written = [out / f"{name}.svg"]
    figures.draw(analyzer, {stored.name: stored.dataset for stored in held}, written[0])
    for other in held[1:]:
        pairs = sample_pairs(held[0].dataset, other.dataset, analyzer)
        if not pairs or not len(next(iter(pairs.values()))[0]):
            continue
        columns = min(3, len(pairs))
        figure = figures.new_figure(4.0 * columns, 3.6 * -(-len(pairs) // columns))
        with figures.style():
            scatter_figure(name, (held[0].name, other.name), pairs, figure)
        suffix = "" if len(held) == 2 else f".{other.name.replace('/', '-')}"
        written.append(out / f"{name}.samples{suffix}.svg")
        figures.save(figure, written[-1])
    return written


def _relation(results: Sequence[Stored], x: str, y: str, group: str | None, out: Path, json: bool) -> None:
    from specdiag import figures
    from specdiag.report.relation import draw, relate
    from specdiag.report.terminal import format_number, print_table

    relation = relate(results, x, y, group)
    figure = figures.new_figure()
    with figures.style():
        draw(relation, figure)
    path = out / f"{_file_name(y)}-over-{_file_name(x)}.svg"
    figures.save(figure, path)
    for line in relation.omitted:
        say(f"left out: {line}")
    if json:
        _echo(_relation_json(relation, path))
        return
    output = console()
    rows = [
        [
            cluster.group,
            str(cluster.count),
            *(format_number(value) for value in (cluster.x[1], cluster.x[0], cluster.x[2])),
            *(format_number(value) for value in (cluster.y[1], cluster.y[0], cluster.y[2])),
        ]
        for cluster in relation.clusters
    ]
    titles = [group or "", "checkpoints", x, "10 %", "90 %", y, "10 %", "90 %"]
    print_table(output, titles, rows)
    output.print()
    output.print(_together(relation), soft_wrap=True)
    output.print(f"figure:  {path}", soft_wrap=True)


def _together(relation: Relation) -> str:
    count = len(relation.points)
    if math.isnan(relation.pearson):
        return f"{count} checkpoints: a correlation needs three that differ in both"
    return (
        f"{count} checkpoints: correlation {relation.pearson:.3f}, rank correlation {relation.spearman:.3f}"
    )


def _file_name(text: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in text)


def _as_json(
    other: Stored, differences: Sequence[Difference], found: Any, angles: Sequence[Angles]
) -> dict[str, Any]:
    return {
        "name": other.name,
        "other_settings": list(found.forbidding),
        "other_samples": list(found.samples),
        "metrics": [
            {
                "name": item.name,
                "first": item.first.value,
                "other": item.other.value,
                "change": item.change,
                "low": item.low,
                "high": item.high,
                "pairing": item.pairing,
                "unit": item.first.unit,
                "better": item.first.better,
            }
            for item in differences
        ],
        "angles": [
            {
                "array": angle.array,
                "space": angle.space,
                "mean_degrees": angle.degrees.mean(0).tolist(),
                "squared_cosine": angle.overlap,
                "random": angle.expected,
            }
            for angle in angles
        ],
    }


def _relation_json(relation: Relation, path: Path) -> dict[str, Any]:
    from specdiag.store import json_safe

    found: dict[str, Any] = json_safe(relation)
    return {**found, "figure": str(path)}


def _echo(document: Any) -> None:
    import json as encoder

    from specdiag.store import json_safe

    typer.echo(encoder.dumps(json_safe(document), indent=1))
