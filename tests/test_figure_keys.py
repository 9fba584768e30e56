"""Legends of the analyzers' figures: said once, clear of what is drawn, and honest about different attacks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xarray
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specdiag import figures
from specdiag.analyzers._keys import keys, labelled
from specdiag.store import FORMAT_VERSION


def run_of(eps: float | None) -> xarray.Dataset:
    attack = {"name": "pgd-l2", "eps": eps}
    return xarray.Dataset(
        attrs={"specdiag": json.dumps({"format_version": FORMAT_VERSION, "options": {"attack": attack}})}
    )


def drawn(names: list[str], kinds: list[str], panels: int = 1) -> Figure:
    figure = figures.new_figure()
    with figures.style():
        for ax in figure.subplots(1, panels, squeeze=False)[0]:
            ax.set_title("title")
            for number, name in enumerate(names):
                for place, kind in enumerate(kinds):
                    ax.plot(
                        [0, 1],
                        [number, place],
                        color=figures.colour(number),
                        ls=figures.LINES[place],
                        label=f"{name}: {kind}" if kind else name,
                    )
        keys(figure, dict.fromkeys(names, xarray.Dataset()))
    return figure


def texts(figure: Figure) -> list[str]:
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_words_that_repeat_are_said_once() -> None:
    figure = drawn(["one", "two", "three"], ["ball", "line"])
    assert texts(figure) == ["one", "two", "three", "ball", "line"]
    legend: Any = figure.axes[0].get_legend()
    assert [handle.get_color() for handle in legend.legend_handles[:3]] == [
        figures.colour(k) for k in range(3)
    ]
    assert [handle.get_linestyle() for handle in legend.legend_handles[3:]] == ["-", "--"]


@pytest.mark.parametrize("kinds", [[""], ["alone"]])
def test_few_words_stay_as_they_are(kinds: list[str]) -> None:
    figure = drawn(["one", "two"], kinds)
    assert texts(figure) == [f"{name}: {kinds[0]}" if kinds[0] else name for name in ("one", "two")]


@pytest.mark.parametrize("panels", [1, 3])
def test_many_entries_stand_above_the_axes(panels: int) -> None:
    names = [f"a checkpoint of length {number}" for number in range(5)]
    figure = drawn(names, ["ball", "along the first step"], panels)
    FigureCanvasAgg(figure).draw()
    for ax in figure.axes:
        legend: Any = ax.get_legend()
        box, area, title = legend.get_window_extent(), ax.get_window_extent(), ax.title.get_window_extent()
        assert box.y0 >= area.y1 - 1, "above what is drawn"
        assert title.y0 >= box.y1 - 1, "below the title"
        assert title.y1 <= figure.bbox.y1, "inside the figure"


def test_different_eps_are_said() -> None:
    same = {"a": run_of(0.5), "b": run_of(0.5)}
    assert labelled(same) is same
    assert list(labelled({"a": run_of(0.5), "b": run_of(1.0), "c": run_of(None)})) == [
        "a (eps 0.5)",
        "b (eps 1)",
        "c",
    ]
    bare = {"a": xarray.Dataset(), "b": xarray.Dataset()}
    assert labelled(bare) is bare
