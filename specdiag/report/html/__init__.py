"""One self-contained HTML file: gates worst first, figures that zoom and tell values, tables that sort.

No network: styles, script and data are inside, and a content policy forbids everything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdiag import __version__, plugins
from specdiag.report.content import Content, Stored
from specdiag.report.html import page
from specdiag.store import provenance

if TYPE_CHECKING:
    import xarray

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def render(content: Content) -> str:
    """The whole report."""
    links = {
        (stored.name, stored.analyzer): f"settings-{number}" for number, stored in enumerate(content.results)
    }
    figures: dict[str, list[dict[str, Any]]] = {}
    sections = [
        _analyzer(name, stored, links, figures) for name, stored in _by_analyzer(content.results).items()
    ]
    # nothing in the data may end the script element
    data = json.dumps({"figures": figures}, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    settings = "".join(
        page.settings(stored, links[stored.name, stored.analyzer]) for stored in content.results
    )
    source = f" · gates of {content.config}" if content.config is not None and content.verdicts else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>specdiag: {escape(content.headline)}</title>
<link rel="icon" href="data:,">
<style>{_asset("report.css")}</style>
</head>
<body>
<header>
<h1>specdiag</h1>
<p class="sub">{escape(content.headline)}{escape(source)}</p>
<button class="tool" id="theme" type="button">Colours: as the system</button>
</header>
<main>
<noscript><p>Figures and sorting need JavaScript; all numbers are here without it.</p></noscript>
<section id="gates-section"><h2>Gates</h2>{page.gates(content, links)}</section>
{page.troubles(content)}
<section><h2>Results</h2>
<p class="note">Drag over a figure to zoom, double-click to see all; on a touch screen use + and −. Point at it for values.</p>
{"".join(sections)}</section>
<section><h2>Metrics</h2>{page.metrics(content.results, links)}</section>
<section><h2>Settings</h2><details><summary>What made each result ({len(content.results)})</summary>
{settings}</details></section>
</main>
<dialog id="dialog" aria-label="settings"><button class="tool close" type="button">close</button>
<div id="dialog-content"></div></dialog>
<footer>Made by specdiag {escape(__version__)} from stored results.</footer>
<script type="application/json" id="data">{data}</script>
<script>{_asset("report.js")}</script>
</body>
</html>
"""


def _by_analyzer(results: Sequence[Stored]) -> dict[str, list[Stored]]:
    found: dict[str, list[Stored]] = {}
    for stored in results:
        found.setdefault(stored.analyzer, []).append(stored)
    return found


def _analyzer(
    name: str,
    results: Sequence[Stored],
    links: Mapping[tuple[str, str], str],
    figures: dict[str, list[dict[str, Any]]],
) -> str:
    """One analyzer: what it is, its figure over all checkpoints, what the numbers say, its tables."""
    analyzer = plugins.load("analyzer", name) if name in plugins.names("analyzer") else None
    about = "" if analyzer is None else f"{analyzer.summary} {analyzer.source}."
    trouble = ""
    if analyzer is not None:
        figures[name], trouble = _charts(analyzer, {stored.name: stored.dataset for stored in results})
    else:
        trouble = f"No analyzer '{name}' is installed here, so there is no figure."
    parts = [f"<h3 id='analyzer-{escape(name)}'>{escape(name)}</h3><p class='note'>{escape(about)}</p>"]
    if trouble:
        parts.append(f"<p class='note'>{escape(trouble)}</p>")
    if figures.get(name):
        parts.append(f"<div class='charts' data-figure='{escape(name)}'></div>")
    for stored in results:
        link = links[stored.name, stored.analyzer]
        facts = provenance(stored.dataset)
        sentence = str(facts.get("sentence") or "")
        parts.append(
            f"<p><b>{escape(stored.name)}</b>: {escape(sentence)} "
            f"<a href='#{link}' data-settings='{link}'>settings</a></p>"
        )
        for warning in facts.get("warnings") or []:
            parts.append(
                f"<p class='note'>{escape(str(warning.get('id')))}: {escape(str(warning.get('text')))}</p>"
            )
        if analyzer is not None and analyzer.table is not None:
            titles, rows = analyzer.table(stored.dataset)
            parts.append(page.own_table(f"{stored.name}: table", titles, rows))
    return "".join(parts)


def _charts(analyzer: Any, runs: Mapping[str, xarray.Dataset]) -> tuple[list[dict[str, Any]], str]:
    """The analyzer's figure as data, or why there is none."""
    from specdiag import figures
    from specdiag.report.html.charts import charts

    figure = figures.new_figure()
    try:
        with figures.style():
            analyzer.plot(runs, figure)
            return charts(figure), ""
    except Exception as error:
        # one analyzer that cannot draw must not cost the whole report
        return [], f"The figure could not be drawn: {type(error).__name__}: {error}"


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
