from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from specdiag import figures
from specdiag.errors import ResultsError, UsageError
from specdiag.schema import Analyzer

X = np.arange(1.0, 11.0)


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    ax = figure.subplots()
    for number, (label, run) in enumerate(runs.items()):
        figures.line_with_band(ax, X, run["mean"].values, run["error"].values, label, number)
    figures.log_axis(ax, "y")
    ax.set_xlabel("rank")
    ax.legend()


ANALYZER = Analyzer(
    name="demo",
    summary="",
    source="",
    version=1,
    options=object,
    arrays={},
    metrics={},
    compute=None,
    plot=plot,
)


def runs(count: int = 2) -> dict[str, xarray.Dataset]:
    means = [np.exp(-X / 3) * (1 + k) for k in range(count)]
    return {
        f"run {k}": xarray.Dataset({"mean": ("rank", m), "error": ("rank", m / 5)})
        for k, m in enumerate(means)
    }


def pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].astype(int)


def draw_with_axes() -> tuple[Figure, object]:
    figure = figures.new_figure()
    return figure, figure.subplots()


@pytest.mark.parametrize("suffix", figures.SUFFIXES)
def test_equal_figures_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    first, second, again = (tmp_path / f"{name}{suffix}" for name in "abc")
    figure = figures.draw(ANALYZER, runs(), first)
    figures.draw(ANALYZER, runs(), second)
    figures.save(figure, again)
    assert first.read_bytes() == second.read_bytes() == again.read_bytes()
    figures.draw(ANALYZER, runs(3), second)
    assert first.read_bytes() != second.read_bytes()
    assert sorted(os.listdir(tmp_path)) == [f"a{suffix}", f"b{suffix}", f"c{suffix}"]


def test_suffix_picks_the_format(tmp_path: Path) -> None:
    starts = {".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}
    for suffix, start in starts.items():
        figures.draw(ANALYZER, runs(), tmp_path / f"a{suffix.upper()}")
        assert (tmp_path / f"a{suffix.upper()}").read_bytes().startswith(start)
    assert b"<dc:date>" not in (tmp_path / "a.SVG").read_bytes()
    assert b"CreationDate" not in (tmp_path / "a.PDF").read_bytes()


def test_png_has_200_dots_per_inch(tmp_path: Path) -> None:
    figures.draw(ANALYZER, runs(), tmp_path / "a.png")
    head = (tmp_path / "a.png").read_bytes()[16:24]
    assert (int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")) == (1280, 840)


def test_band_is_drawn_where_the_data_are() -> None:
    figure = figures.new_figure()
    with figures.style():
        ax = figure.subplots()
        ax.grid(False)
        figures.line_with_band(ax, X, np.full(10, 5.0), np.full(10, 1.0), "a", 0)
        ax.set_ylim(0, 10)
    image = pixels(figure)
    height = image.shape[0]

    def colour_at(x: float, y: float) -> np.ndarray:
        column, row = ax.transData.transform((x, y))
        return image[height - 1 - int(row), int(column)]

    line = np.array(to_rgba(figures.PALETTE[0])[:3]) * 255
    band = 0.25 * line + 0.75 * 255
    np.testing.assert_allclose(colour_at(5.5, 5.0), line, atol=2)
    for inside in (4.1, 4.6, 5.4, 5.9):
        np.testing.assert_allclose(colour_at(5.5, inside), band, atol=2)
    for outside in (3.9, 6.1):
        np.testing.assert_array_equal(colour_at(5.5, outside), [255, 255, 255])
    np.testing.assert_array_equal(colour_at(0.8, 5.0), [255, 255, 255])


def test_no_band_where_the_error_is_unknown() -> None:
    figure = figures.new_figure()
    ax = figure.subplots()
    error = np.ones(10)
    error[4:7] = np.nan
    figures.line_with_band(ax, X, np.full(10, 5.0), error, "a", 0)
    spans = [(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in ax.collections[0].get_paths()]
    assert spans == [(1.0, 4.0), (8.0, 10.0)]
    figures.line_with_band(ax, X, np.full(10, 5.0), None, "b", 1)
    assert len(ax.collections) == 1


def test_runs_differ_in_colour_and_line_style() -> None:
    figure = figures.new_figure()
    ax = figure.subplots()
    for number in range(9):
        figures.line_with_band(ax, X, X, None, str(number), number)
    lines = ax.lines
    assert len({line.get_color() for line in lines}) == 8
    assert len({str(line._dash_pattern) for line in lines[:8]}) == 8
    assert len({line.get_marker() for line in lines}) == 8
    assert lines[0].get_color() == lines[8].get_color() == figures.colour(8)
    figures.line_with_band(ax, np.arange(31.0), np.arange(31.0), None, "many points", 0)
    assert ax.lines[-1].get_marker() == "None"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (3.0, 3.5, ["3", "3.1", "3.2", "3.3", "3.4", "3.5"]),
        (0.02, 0.9, ["0.02", "0.05", "0.1", "0.2", "0.5"]),
        (0.02, 15.0, ["0.03", "0.1", "0.3", "1", "3", "10"]),
        (
            1e-7,
            2e-6,
            ["$10^{-7}$", r"$2\cdot 10^{-7}$", r"$5\cdot 10^{-7}$", "$10^{-6}$", r"$2\cdot 10^{-6}$"],
        ),
    ],
)
def test_log_axis_labels(low: float, high: float, expected: list[str]) -> None:
    figure = figures.new_figure()
    ax = figure.subplots()
    ax.plot([0, 1], [low, high])
    assert figures.log_axis(ax, "y")
    figure.draw_without_rendering()
    bottom, top = ax.get_ylim()
    assert bottom < low < high < top
    shown = [
        label.get_text()
        for label, place in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)
        if low * 0.999 <= place <= high * 1.001
    ]
    assert shown == expected


@pytest.mark.parametrize("decades", [0.01, 0.1, 0.4, 0.7, 1.5, 2.5, 4.0, 9.0, 20.0])
def test_log_axis_always_has_labels(decades: float) -> None:
    for low in (1e-9, 0.013, 1.0, 7.7, 3e5):
        figure = figures.new_figure()
        ax = figure.subplots()
        ax.plot([low, low * 10**decades], [1, 2])
        figures.log_axis(ax, "x")
        figure.draw_without_rendering()
        left, right = ax.get_xlim()
        texts = [
            label.get_text()
            for label, place in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True)
            if left <= place <= right and label.get_text()
        ]
        assert 2 <= len(texts) <= 14, (low, decades, texts)
        assert len(set(texts)) == len(texts)


def test_log_axis_looks_at_data_only() -> None:
    figure = figures.new_figure()
    ax = figure.subplots()
    figures.line_with_band(ax, X * 100, X, X - 1e-9, "a", 0)
    # a line across has its ends at 0 and 1 of the axes: no data; a tiny lower band edge is no range
    ax.axhline(5.0)
    ax.axvline(300.0)
    assert figures.log_axis(ax, "x")
    assert figures.log_axis(ax, "y")
    assert 50 < ax.get_xlim()[0] < 100
    assert 0.05 < ax.get_ylim()[0] < 1.0
    assert 19 < ax.get_ylim()[1] < 40


def test_log_axis_of_bars_and_points() -> None:
    figure = figures.new_figure()
    first, second = figure.subplots(1, 2)
    first.bar([1, 2, 3], [10.0, 2000.0, 3.0])
    second.scatter([0.001, 1.0], [5.0, 6.0])
    assert figures.log_axis(first, "y")
    assert figures.log_axis(second, "x")
    assert 1.0 < first.get_ylim()[0] < 3.0
    assert first.get_ylim()[1] > 2000.0
    assert second.get_xlim()[0] < 0.001 < 1.0 < second.get_xlim()[1]


@pytest.mark.parametrize("values", [[0.0, 0.0], [-1.0, 0.0], [np.nan, np.nan], []])
def test_log_axis_stays_linear_without_positive_data(values: list[float]) -> None:
    figure = figures.new_figure()
    ax = figure.subplots()
    ax.plot(range(len(values)), values)
    assert not figures.log_axis(ax, "y")
    assert ax.get_yscale() == "linear"


def test_nothing_global_is_left(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figures.draw(ANALYZER, runs(), tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys; sys.modules['torch'] = None; from specdiag import figures; figures.new_figure()\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_the_user_do_not_show(tmp_path: Path) -> None:
    figures.draw(ANALYZER, runs(), tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "lines.linewidth": 9}):
        figures.draw(ANALYZER, runs(), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no figure file.*\.svg, \.png, \.pdf"):
        figures.draw(ANALYZER, runs(), tmp_path / "a.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="Cannot write the figure"):
        figures.draw(ANALYZER, runs(), tmp_path / "file" / "a.svg")
    assert os.listdir(tmp_path) == ["file"]
