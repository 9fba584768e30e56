"""Memory is predicted, said before the run, and kept below a limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import digits_checkpoint, run
from nets import small_cnn

from specdiag import plugins
from specdiag.errors import UsageError
from specdiag.jobs.memory import BASE, fitting_chunk, parse_bytes, predicted, readable
from specdiag.model import Model
from specdiag.options import build_options

SPECTRUM = plugins.load("analyzer", "spectrum")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4e9), ("700MB", 7e8), ("1.5g", 1.5e9), ("2000000000", 2e9), ("512 KiB", 512e3), ("3t", 3e12)],
)
def test_amounts(text: str, expected: float) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "much", "-4GB", "4 GB or so", "nan"])
def test_no_amounts(text: str) -> None:
    with pytest.raises(UsageError, match="max-memory"):
        parse_bytes(text)


def test_readable() -> None:
    assert readable(1.26e9) == "1.3 GB"
    assert readable(7e8) == "700 MB"


def test_more_samples_more_memory_and_the_limit_holds() -> None:
    model = Model(small_cnn(), (2, 8, 8))
    options = build_options(SPECTRUM, {})
    amounts = [predicted(model, SPECTRUM, options, chunk) for chunk in (8, 64, 512)]
    assert BASE < amounts[0] < amounts[1] < amounts[2]
    assert fitting_chunk(model, SPECTRUM, options, 512, None) == 512
    fitted = fitting_chunk(model, SPECTRUM, options, 512, amounts[1])
    assert fitted == 64
    with pytest.raises(UsageError, match=r"One sample at a time needs about 40. MB"):
        fitting_chunk(model, SPECTRUM, options, None, BASE)


def test_the_stored_route_needs_the_matrix_and_the_others_do_not() -> None:
    sizes = {"K": 1000, "D": 150_528, "F": 2048}
    needs = {
        name: SPECTRUM.memory(build_options(SPECTRUM, {"method": name, "top": top}), sizes)
        for name, top in (("autograd", 0), ("gram", 0), ("krylov", 20))
    }
    assert needs["autograd"] >= 1000 * 150_528
    assert max(needs["gram"], needs["krylov"]) < needs["autograd"] / 5


def test_the_command_says_it_and_refuses(tmp_path: Path) -> None:
    checkpoint = digits_checkpoint(tmp_path / "net.pt")
    common = ("--samples", 8, "--figure", "none", "--device", "cpu", "--out", tmp_path / "out")
    done = run("spectrum", checkpoint, *common, "--max-memory", "2GB")
    assert done.exit_code == 0, done.output
    assert "MB of memory" in done.stderr
    refused = run("spectrum", checkpoint, *common, "--max-memory", "100MB", "--overwrite")
    assert refused.exit_code == 2
    assert "more than --max-memory 100 MB" in refused.stderr.replace("\n", " ")
    assert "--method gram" in refused.stderr.replace("\n", " ")
