"""The README says what is there."""

from __future__ import annotations

import re

from conftest import ROOT

from specdiag import plugins

README = (ROOT / "README.md").read_text()


def test_the_table_lists_every_analyzer_as_it_declares_itself() -> None:
    table = README.split("<!-- analyzers")[1].split("<!-- end -->")[0]
    rows = dict(re.findall(r"\| `specdiag ([\w-]+)` \| (.*?) \|", table))
    declared = {name: plugins.load("analyzer", name).summary for name in plugins.names("analyzer")}
    assert rows == declared


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
