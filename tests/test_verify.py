"""Recomputed samples against stored ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import digits_checkpoint, run

from specdiag import store
from specdiag.batch.verifying import Given, verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its results: two analyzers, one with an attack."""
    place = tmp_path_factory.mktemp("verify")
    digits_checkpoint(place / "net.pt")
    common = [
        "--data",
        "digits",
        "--samples",
        20,
        "--batch-size",
        8,
        "--figure",
        "none",
        "--quiet",
        "--threads",
        1,
    ]
    assert run("spectrum", place / "net.pt", "--top", 2, "--out", place / "out", *common).exit_code == 0
    attack = ["--attack", "pgd-l2", "--eps", 0.5, "--steps", 3]
    assert run("alignment", place / "net.pt", *attack, "--out", place / "out", *common).exit_code == 0
    return place


@pytest.fixture
def results(folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy" / "out" / "net.h5"


def spoil(path: Path, array: str, place: int, factor: float, *, kink: bool = False) -> None:
    """Change one sample of one array."""
    dataset = store.read_group(path, "spectrum")
    values = dataset[array].values.copy()
    values[place] *= factor
    changed = dataset.assign({array: dataset[array].copy(data=values)})
    if kink:
        marks = dataset["near_kink"].values.copy()
        marks[place] = 1
        changed = changed.assign(near_kink=dataset["near_kink"].copy(data=marks))
    changed.attrs = dataset.attrs
    store.write_group(path, "spectrum", changed, overwrite=True)


def test_what_was_stored_is_reproduced_bit_by_bit(results: Path) -> None:
    done = run("verify", results, results.parent.parent / "net.pt")
    assert done.exit_code == 0, done.stderr
    assert "spectrum: reproduced in every bit (8 samples" in done.stdout
    assert "alignment: reproduced" in done.stdout
    found = verify(results, "spectrum", 5, Given(results.parent.parent / "net.pt"))
    assert (found.status, found.samples, found.changed) == ("reproduced", 5, ())
    assert {array.array for array in found.arrays} >= {"singular_values", "logits", "right_vectors"}


def test_the_checkpoint_is_found_beside_the_results(results: Path) -> None:
    """The record says where the checkpoint was; here it is looked for from the folders above the results."""
    dataset = store.read_group(results, "spectrum")
    facts = store.provenance(dataset)
    facts["checkpoint"]["path"] = "net.pt"
    store.write_group(results, "spectrum", store.with_provenance(dataset, facts), overwrite=True)
    assert run("verify", results, "--analyzer", "spectrum").exit_code == 0


def test_another_number_is_found_and_named(results: Path) -> None:
    # first and last sample are always among those that are recomputed
    spoil(results, "sigma_max", 19, 1.001)
    done = run("verify", results, results.parent.parent / "net.pt", "-a", "spectrum", "--json")
    assert done.exit_code == 1
    (entry,) = json.loads(done.stdout)["verified"]
    assert entry["status"] == "differs"
    wrong = {array["array"]: array for array in entry["arrays"] if not array["holds"]}
    assert list(wrong) == ["sigma_max"]
    sigma = store.read_group(results, "spectrum")["sigma_max"].values
    expected = sigma[19] * (1 - 1 / 1.001) / sigma[np.linspace(0, 19, 8).round().astype(int)].max()
    assert wrong["sigma_max"]["deviation"] == pytest.approx(expected)


def test_rounding_is_told_from_a_difference(results: Path) -> None:
    spoil(results, "sigma_max", 0, 1 + 1e-6)
    done = run("verify", results, results.parent.parent / "net.pt", "-a", "spectrum")
    assert done.exit_code == 0
    assert "reproduced to " in done.stdout


def test_a_sample_on_a_kink_is_counted_apart_where_versions_changed(results: Path) -> None:
    spoil(results, "frobenius", 0, 1.01, kink=True)
    given = Given(results.parent.parent / "net.pt")
    assert verify(results, "spectrum", 8, given).status == "differs"
    dataset = store.read_group(results, "spectrum")
    facts = store.provenance(dataset)
    facts["settings"]["versions"]["torch"] = "1.0"
    store.write_group(results, "spectrum", store.with_provenance(dataset, facts), overwrite=True)
    found = verify(results, "spectrum", 8, given)
    (array,) = [array for array in found.arrays if array.array == "frobenius"]
    assert (array.kinks, array.holds, found.status) == (1, True, "reproduced")
    assert found.changed[0].startswith("versions.torch: 1.0 -> ")


def test_singular_vectors_count_up_to_sign(results: Path) -> None:
    spoil(results, "right_vectors", 0, -1.0)
    assert verify(results, "spectrum", 8, Given(results.parent.parent / "net.pt")).status == "reproduced"
    spoil(results, "left_vectors", 0, 0.5)
    assert verify(results, "spectrum", 8, Given(results.parent.parent / "net.pt")).status == "differs"


def test_other_sources_are_errors(results: Path, tmp_path: Path) -> None:
    other = digits_checkpoint(tmp_path / "other.pt", seed=5)
    done = run("verify", results, other)
    assert done.exit_code == 2
    assert "not the checkpoint" in done.stderr
    done = run("verify", results, results.parent.parent / "net.pt", "--data", "random")
    assert done.exit_code == 2
    assert "not those that made these results" in done.stderr
    assert run("verify", results, tmp_path / "gone.pt").exit_code == 3
    assert run("verify", results, "-a", "spectrun").exit_code == 2
    assert run("verify", tmp_path / "gone.h5").exit_code == 2


def test_what_cannot_be_verified_says_why(results: Path) -> None:
    dataset = store.read_group(results, "spectrum")
    facts = store.provenance(dataset)
    facts["settings"]["analyzer_version"] = 99
    store.write_group(results, "spectrum", store.with_provenance(dataset, facts), overwrite=True)
    done = run("verify", results, "-a", "spectrum")
    assert done.exit_code == 5
    assert "made by version 99" in done.stdout


def test_both_splits_and_double_precision(folder: Path, tmp_path: Path) -> None:
    more = [
        "--split",
        "both",
        "--samples",
        9,
        "--dtype",
        "float64",
        "--data",
        "digits",
        "--figure",
        "none",
        "-q",
    ]
    assert run("spectrum", folder / "net.pt", *more, "--out", tmp_path).exit_code == 0
    found = verify(tmp_path / "net.h5", "spectrum", 18, Given(folder / "net.pt"))
    assert (found.status, found.samples) == ("reproduced", 18)
