from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from rich.console import Console

from specdiag import store
from specdiag.errors import ResultsError
from specdiag.report import json_report
from specdiag.report.terminal import format_number, print_result, print_table
from specdiag.schema import Analyzer

TITLES = ["rank", "mean", "std. error", "25 %", "median", "75 %", "largest", "smallest"]
METRICS: dict[str, dict[str, Any]] = {
    "sigma_max_mean": {
        "value": 5.9789,
        "error": 0.1218,
        "low": 5.762,
        "high": 6.226,
        "unit": "logit / input",
    },
    "condition_median": {"value": 4.73e8, "error": 1.7e7, "low": 4.44e8, "high": 5.107e8, "unit": "1"},
    "sigma_std": {
        "value": [0.1, 0.5, math.nan],
        "error": [math.nan] * 3,
        "low": [math.nan] * 3,
        "high": [math.nan] * 3,
        "unit": "logit",
        "dims": ["layer"],
        "labels": ["conv1", "layer1.0.conv2", "fc"],
    },
    "r2": {"value": 0.997, "error": math.nan, "low": math.nan, "high": math.nan, "unit": "1"},
}
BETTER = {"sigma_max_mean": "lower", "condition_median": "neither", "sigma_std": "lower", "r2": "higher"}


def table(dataset: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    return TITLES, [
        [str(rank + 1), *[f"{10.0 / (rank + column):.4g}" for column in range(1, 8)]] for rank in range(3)
    ]


ANALYZER = Analyzer(
    name="spectrum",
    summary="",
    source="",
    version=1,
    options=object,
    arrays={},
    metrics={},
    compute=None,
    plot=lambda runs, figure: None,
    table=table,
)


def result(**changes: Any) -> xarray.Dataset:
    facts: dict[str, Any] = {
        "analyzer": "spectrum",
        "checkpoint": {"path": "runs/digits-standard.pt", "name": "digits-standard", "architecture": "cnn4"},
        "data": {"spec": "digits", "split": "test", "samples": 200, "total": 397},
        "settings": {"seed": 0, "dtype": "float32"},
        "options": {"method": "autograd", "radius": None, "eps_sweep": [0.5, 1.0], "clip": False},
        "device": "cpu",
        "metrics": {name: metric | {"better": BETTER[name]} for name, metric in METRICS.items()},
        "warnings": [
            {"id": "SD203", "text": "The outputs look like probabilities; every row of them sums to 1."}
        ],
        "notes": ["N was larger than the data set: all 397 samples were taken."],
        "sentence": "A step of length r moves the output by up to 5.7 r.",
    }
    dataset = xarray.Dataset({"near_kink": ("sample", np.array([0, 3, 0, 1]))})
    return store.with_provenance(dataset, facts | changes)


def shown(
    dataset: xarray.Dataset, width: int, terminal: bool = False, encoding: str = "utf-8", **options: Any
) -> str:
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding, newline="\n")
    console = Console(
        file=file, width=width, force_terminal=terminal, color_system="truecolor" if terminal else None
    )
    print_result(dataset, options.pop("analyzer", ANALYZER), console, **options)
    file.flush()
    return buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("terminal", [False, True])
def test_everything_is_shown(width: int, terminal: bool) -> None:
    text = shown(result(), width, terminal, path=Path("out/a.h5"), figure=Path("out/a.svg"))
    flat = " ".join(text.split())
    for words in (
        "spectrum: digits-standard (cnn4)",
        "digits test, 200 of 397 samples, seed 0, dtype float32, on cpu",
        "method=autograd eps_sweep=0.5,1 clip=off",
        "rank",
        "5.98 ± 0.12",
        "5.762 to 6.226",
        "logit / input",
        "(4.73 ± 0.17)e+08",
        "4.440e+08 to 5.107e+08",
        "0.1000 to 0.5000 (per layer), 1 not finite",
        "0.9970",
        "warning SD203: The outputs look like probabilities; every row of them sums to 1.",
        "note: 2 of 4 samples are within rounding of an activation boundary",
        "note: N was larger than the data set: all 397 samples were taken.",
        "A step of length r moves the output by up to 5.7 r.",
        "results: out/a.h5",
        "figure: out/a.svg",
    ):
        assert words in (flat if not terminal else plain(flat)), words
    for title in TITLES:
        assert title in text


def plain(text: str) -> str:
    import re

    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def test_no_colour_and_no_boxes_in_a_file() -> None:
    text = shown(result(), 80)
    assert not set(text) & set("\x1b─│┃━═║╭╮|")
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_terminal_is_not_overrun(width: int) -> None:
    import re

    text = re.sub(r"\x1b\[[0-9;]*m", "", shown(result(), width, terminal=True, path=Path("out/a.h5")))
    assert max(len(line) for line in text.splitlines()) <= width
    # no number is broken across lines
    for number in ("5.98 ± 0.12", "4.440e+08 to 5.107e+08", "0.1000 to 0.5000 (per layer)"):
        assert number in text or width == 40


def test_wide_tables_continue_below() -> None:
    file = io.StringIO()
    rows = [[f"layer{k}", *[f"{k}.{column}234567" for column in range(8)]] for k in range(3)]
    print_table(Console(file=file, width=45), ["layer", *[f"column {c}" for c in range(8)]], rows)
    blocks = file.getvalue().strip().split("\n\n")
    assert [len(block.splitlines()) for block in blocks] == [4] * len(blocks)
    assert len(blocks) == 3
    assert all(block.splitlines()[1].startswith("layer0") for block in blocks)
    assert max(map(len, file.getvalue().splitlines())) <= 45
    for column in range(8):
        assert file.getvalue().count(f"2.{column}234567") == 1


def test_numbers_are_aligned_right() -> None:
    file = io.StringIO()
    print_table(
        Console(file=file, width=60), ["name", "value", "kind"], [["a", "1.5", "x"], ["b", "-100.25", "yy"]]
    )
    assert file.getvalue().strip().splitlines() == [
        "name    value  kind",
        "a         1.5  x",
        "b     -100.25  yy",
    ]


def test_markup_is_not_interpreted() -> None:
    text = shown(result(sentence="[red]x[/red] [/]", notes=["[bold]"]), 80)
    assert "[red]x[/red] [/]" in text
    assert "note: [bold]" in text


def test_ascii_output() -> None:
    text = shown(result(), 120, encoding="ascii")
    assert "5.98 +- 0.12" in text
    assert "value +- error" in text


def test_layers_are_listed_without_the_analyzer() -> None:
    text = shown(result(), 80, analyzer=None)
    assert "layer1.0.conv2     0.5000" in text
    assert "fc                    nan" in text
    assert TITLES[2] not in text


def test_left_out_values_are_said_once() -> None:
    metric = METRICS["sigma_max_mean"] | {"excluded": 2, "excluded_samples": [3, 9]}
    text = shown(result(metrics={"sigma_max_mean": metric}, warnings=[]), 120)
    assert "note: 2 non-finite values are left out of sigma_max_mean (sample 3, 9)." in text
    said = [
        {"id": "SD201", "text": "2 of 4 samples have NaN sigma_max (sample 3, 9); left out of the metrics."}
    ]
    text = shown(result(metrics={"sigma_max_mean": metric}, warnings=said), 120)
    assert text.count("left out") == 1


def test_bare_results() -> None:
    dataset = store.with_provenance(xarray.Dataset(), {"analyzer": "gain"})
    assert shown(dataset, 80, analyzer=None) == "gain: ?\n"
    with pytest.raises(ResultsError):
        shown(xarray.Dataset(), 80)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.3456, 0.123, "12.35 ± 0.12"),
        (12.3456, 1.23, "12.3 ± 1.2"),
        (1234.2, 12.3, "1234 ± 12"),
        (0.001234, 0.000056, "0.001234 ± 0.000056"),
        (1.2348e-7, 2e-9, "(1.235 ± 0.020)e-07"),
        (0.1, 1.4e-17, "0.1000000 ± 1e-17"),
        (-0.001, 0.5, "0.00 ± 0.50"),
        (4.73e8, 1.7e7, "(4.73 ± 0.17)e+08"),
        (0.1, 25.0, "0 ± 25"),
        (0.0, 0.5, "0.00 ± 0.50"),
        (-3.0, 0.25, "-3.00 ± 0.25"),
        (3.0, 0.0, "3.000 ± 0"),
        (3.0, math.nan, "3.000"),
        (3.0, math.inf, "3.000"),
        (math.nan, 0.1, "nan"),
        (math.inf, None, "inf"),
        (-math.inf, 1.0, "-inf"),
        (None, None, "-"),
        (397, None, "397"),
        (0.0, None, "0"),
        (1234.56, None, "1235"),
        (0.00012341, None, "0.0001234"),
        (1.2341e-5, None, "1.234e-05"),
        (999999.0, None, "999999"),
        (1e6, None, "1.000e+06"),
    ],
)
def test_format_number(value: float | None, error: float | None, text: str) -> None:
    assert format_number(value, error) == text


def test_json_document() -> None:
    document = json_report.document([result(), result(analyzer="gain")])
    text = json.dumps(document, allow_nan=False)
    again = json.loads(text)
    assert again["format_version"] == store.FORMAT_VERSION
    assert [entry["analyzer"] for entry in again["results"]] == ["spectrum", "gain"]
    metrics = again["results"][0]["metrics"]
    assert metrics["sigma_max_mean"]["value"] == 5.9789
    assert metrics["sigma_std"]["value"] == [0.1, 0.5, "nan"]
    assert float(metrics["r2"]["error"]) != float(metrics["r2"]["error"])


def test_no_torch_and_no_matplotlib() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import specdiag.report.terminal, specdiag.report.json_report\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
