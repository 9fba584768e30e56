"""The HTML report: figures as data, and the page in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from report_common import content

from specdiag import figures
from specdiag.report import html
from specdiag.report.content import Content
from specdiag.report.html.charts import charts


def figure_data() -> list[dict[str, Any]]:
    """One of every kind of mark."""
    figure = figures.new_figure()
    with figures.style():
        ax, bars, cells = figure.subplots(1, 3)
        ax.plot([1, 2, 3], [1.0, np.nan, 9.0], "--", label="line", color="#0072B2")
        ax.plot([1, 2, 3], [1, 2, 3], drawstyle="steps-post", marker="o")
        ax.fill_between([1, 2], [0.5, 1], [2, 3], alpha=0.25)
        ax.scatter([1.5, 2.5], [4, 5], label="points")
        ax.axhline(2.0, label="level")
        ax.axvline(1.25)
        ax.errorbar([2], [5], [1])
        ax.text(0.5, 0.9, r"$\sigma_{max}$", transform=ax.transAxes)
        ax.set_yscale("log")
        ax.set_xlabel("rank")
        bars.bar(["conv1", "conv2"], [3, 4], label="bars")
        bars.hist([1, 1, 2], histtype="step")
        image = cells.imshow(np.arange(6.0).reshape(2, 3))
        figure.colorbar(image, ax=cells, label="value")
        return charts(figure)


def test_every_kind_of_mark_becomes_data() -> None:
    line, bars, cells = figure_data()
    kinds = [mark["type"] for mark in line["marks"]]
    assert sorted(set(kinds)) == ["area", "hline", "line", "points", "segments", "text", "vline"]
    first = next(mark for mark in line["marks"] if mark["label"] == "line")
    assert first["x"] == [1, 2, 3]
    assert first["y"] == [1, None, 9]
    assert first["dash"]
    assert next(mark for mark in line["marks"] if mark.get("step"))["marker"]
    assert next(mark for mark in line["marks"] if mark["type"] == "points")["y"] == [4, 5]
    text = next(mark for mark in line["marks"] if mark["type"] == "text")
    assert (text["text"], text["inside"]) == ("σ_max", False)
    assert line["y"]["log"]
    assert line["x"]["label"] == "rank"
    assert [mark["box"] for mark in bars["marks"] if mark["type"] == "bar"] == [
        [-0.4, 0, 0.4, 3],
        [0.6, 0, 1.4, 4],
    ]
    assert bars["x"]["ticks"] == [[0, "conv1"], [1, "conv2"]]
    (image,) = [mark for mark in cells["marks"] if mark["type"] == "image"]
    assert image["values"] == [[0, 1, 2], [3, 4, 5]]
    assert image["extent"] == [-0.5, 2.5, -0.5, 1.5]
    assert image["unit"] == "value"
    # rows count downwards, as the figure shows them
    assert cells["y"]["limits"] == [1.5, -0.5]
    assert not line["unknown"]
    assert not bars["unknown"]
    json.dumps([line, bars, cells], allow_nan=False)


def test_an_image_from_below_and_a_mesh_come_out_rising() -> None:
    figure = figures.new_figure()
    lower, mesh = figure.subplots(1, 2)
    lower.imshow([[0.0, 1.0], [2.0, 3.0]], origin="lower")
    mesh.pcolormesh([0, 1, 2], [5, 4, 3], [[0.0, 1.0], [2.0, 3.0]])
    first, second = (chart["marks"][0] for chart in charts(figure))
    assert first["values"] == [[0, 1], [2, 3]]
    assert second["values"] == [[2, 3], [0, 1]]
    assert second["extent"] == [0, 2, 3, 5]


def test_a_large_image_is_averaged_and_says_so() -> None:
    figure = figures.new_figure()
    figure.subplots().imshow(np.ones((500, 300)))
    (chart,) = charts(figure)
    assert len(chart["marks"][0]["values"]) <= 160
    assert chart["marks"][0]["averaged"] == 4


def test_the_page_is_one_file_without_addresses(tmp_path: Path) -> None:
    page = html.render(content(tmp_path))
    assert "<script>alert(1)</script>" not in page
    for attribute in re.findall(r"(?:src|href)=[\"']([^\"']*)", page):
        assert attribute.startswith(("#", "data:")), attribute
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page
    assert len(page) < 300_000


def test_equal_contents_give_equal_pages(tmp_path: Path) -> None:
    assert html.render(content(tmp_path)) == html.render(content(tmp_path))


def test_an_analyzer_that_is_not_installed_is_said(tmp_path: Path) -> None:
    from dataclasses import replace

    results = [replace(item, analyzer="unheard-of") for item in content(tmp_path).results]
    page = html.render(Content(results))
    assert "No analyzer &#x27;unheard-of&#x27; is installed here" in page


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Browser:
    path = tmp_path / "report.html"
    path.write_text(html.render(content(tmp_path)), encoding="utf-8")
    browser.problems.clear()
    browser.requests.clear()
    browser.size(1280, 900)
    browser.dark(False)
    browser.open(path)
    assert browser.requests == [path.resolve().as_uri()]
    return browser


ROWS = "[...document.querySelectorAll('#metrics tbody tr')].map((row) => row.cells[{}].textContent)"


@pytest.mark.slow
@needs_chromium
def test_it_opens_from_disk_in_silence(page: Browser) -> None:
    assert page.problems == []
    assert len(page.requests) == 1
    drawn = page.run("document.querySelectorAll('.chart svg .marks path').length")
    assert drawn >= 4
    outcomes = page.run("[...document.querySelectorAll('#gates .mark')].map((mark) => mark.textContent)")
    assert outcomes == ["not judged", "fail", "investigate", "pass"]


@pytest.mark.slow
@needs_chromium
def test_sorting_filtering_and_settings(page: Browser) -> None:
    values = (
        "[...document.querySelectorAll('#metrics tbody tr')].map((row) => Number(row.cells[2].dataset.v))"
    )
    click = "document.querySelectorAll('#metrics thead button')[{}].click()"
    page.run(click.format(2))
    rising = page.run(values)
    assert rising == sorted(rising)
    assert page.run("document.querySelectorAll('#metrics th')[2].getAttribute('aria-sort')") == "ascending"
    page.run(click.format(2))
    assert page.run(values) == rising[::-1]
    page.run(click.format(0))
    names = page.run(ROWS.format(0))
    assert names == sorted(names)
    page.run(
        "(() => { const i = document.querySelector('.filter'); i.value = 'bad p95'; i.dispatchEvent(new Event('input')); })()"
    )
    assert (
        page.run("[...document.querySelectorAll('#metrics tbody tr')].filter((row) => !row.hidden).length")
        == 1
    )
    page.run("document.querySelector('#metrics tbody tr:not([hidden]) a[data-settings]').click()")
    assert page.run("document.getElementById('dialog').open")
    assert "runs/bad.pt" in page.run("document.getElementById('dialog').textContent")
    page.run("document.querySelector('#dialog .close').click()")
    assert not page.run("document.getElementById('dialog').open")
    assert page.problems == []


@pytest.mark.slow
@needs_chromium
def test_figures_zoom_and_tell_values(page: Browser) -> None:
    ticks = "[...document.querySelectorAll('.chart svg > text')].map((text) => text.textContent).join(' ')"
    page.run("document.querySelector('.chart').scrollIntoView()")
    before = page.run(ticks)
    box = page.run("document.querySelector('.chart svg .marks circle').getBoundingClientRect().toJSON()")
    page.mouse("mouseMoved", box["x"] + 3, box["y"] + 3)
    shown = page.run("document.querySelector('.tip').textContent")
    assert shown.startswith("rank of the singular value: 1\n")
    assert "good: " in shown
    assert "bad: " in shown
    assert not page.run("document.querySelector('.tip').hidden")
    frame = page.run("document.querySelector('.chart svg').getBoundingClientRect().toJSON()")
    start = (frame["x"] + 0.3 * frame["width"], frame["y"] + 0.3 * frame["height"])
    end = (frame["x"] + 0.6 * frame["width"], frame["y"] + 0.6 * frame["height"])
    page.mouse("mousePressed", *start)
    page.mouse("mouseMoved", *end)
    page.mouse("mouseReleased", *end)
    zoomed = page.run(ticks)
    assert zoomed != before
    page.run("document.querySelector('.chart .tool[aria-label=\"show all\"]').click()")
    assert page.run(ticks) == before
    page.run("document.querySelector('.legend button').click()")
    assert page.run("document.querySelector('.legend button').getAttribute('aria-pressed')") == "false"
    assert page.problems == []


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("width", "height", "phone"), [(390, 844, True), (1280, 900, False)])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_phone_and_desktop_in_both_themes(
    page: Browser, width: int, height: int, phone: bool, dark: bool
) -> None:
    page.size(width, height, phone=phone)
    page.dark(dark)
    assert page.run("document.documentElement.scrollWidth") <= width
    # no axis label leaves its figure, and the sentence of a gate has the width of its row on a phone
    beyond = """Array.from(document.querySelectorAll('figure.chart')).flatMap((figure) => {
        const frame = figure.querySelector('svg').getBoundingClientRect();
        return Array.from(figure.querySelectorAll('text.label'), (text) => text.getBoundingClientRect()).filter(
            (box) => box.left < frame.left - 1 || box.right > frame.right + 1
                || box.top < frame.top - 1 || box.bottom > frame.bottom + 1).length;
    })"""
    assert page.run("document.querySelectorAll('text.label').length") >= 2
    assert set(page.run(beyond)) == {0}
    if phone:
        assert page.run("document.querySelector('td.metric').offsetWidth") > 0.8 * width
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 24, 29)") == dark
    page.run("document.getElementById('theme').click()")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    page.run("document.getElementById('theme').click()")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
