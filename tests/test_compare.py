"""Stored results side by side: intervals, samples, subspaces, and one point per checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from command import run
from conftest import ROOT
from report_common import stored

from specdiag import figures, plugins, store
from specdiag.errors import UsageError
from specdiag.report.comparison import compared, principal_angles, sample_pairs, scatter_figure
from specdiag.report.content import Stored
from specdiag.report.relation import draw, relate

SPECTRUM = plugins.load("analyzer", "spectrum")


def test_a_rise_of_every_sample_is_found_exactly(tmp_path: Path) -> None:
    first, other = stored(tmp_path, "a"), stored(tmp_path, "b", 1.5)
    differences, found = compared(first, other, SPECTRUM)
    assert not found.forbidding
    assert not found.samples
    mean = next(item for item in differences if item.name == "spectrum.sigma_max_mean")
    assert mean.pairing == "paired"
    assert mean.change == pytest.approx(0.5 * mean.first.value)
    assert mean.low < mean.change < mean.high
    assert mean.differs
    # the interval of 0.5 sigma is that of its mean
    values = first.dataset["sigma_max"].values
    assert mean.high - mean.change == pytest.approx(1.96 * 0.5 * values.std() / np.sqrt(60), rel=0.1)
    same, _ = compared(first, stored(tmp_path, "c"), SPECTRUM)
    assert not any(item.differs for item in same)


def test_samples_are_paired_by_index(tmp_path: Path) -> None:
    first, other = stored(tmp_path, "a").dataset, stored(tmp_path, "b", 2.0).dataset
    shuffled = other.isel(sample=np.r_[40:60, 0:30])
    pairs = sample_pairs(first, shuffled, SPECTRUM)
    assert set(pairs) == {"sigma_max", "frobenius", "stable_rank"}
    a, b = pairs["sigma_max"]
    assert len(a) == 50
    assert np.allclose(b, 2 * a)
    figure = figures.new_figure()
    scatter_figure("spectrum", ("a", "b"), pairs, figure)
    assert sum(ax.get_visible() for ax in figure.axes) == 3


def test_principal_angles_of_known_planes() -> None:
    """The plane of e1, e2 against that of e1 and e2 turned by 30 degrees towards e3, in another basis."""
    turned = np.array([[1.0, 0, 0, 0], [0, np.cos(np.pi / 6), np.sin(np.pi / 6), 0]])
    mixed = np.array([[0.6, 0.8], [-0.8, 0.6]]) @ turned
    first, other = (
        xarray.Dataset(
            {"right_vectors": (("sample", "vector", "input"), np.stack([vectors] * 3))},
            {"sample": ("sample", np.arange(3))},
        )
        for vectors in (np.eye(4)[:2], mixed)
    )
    (angles,) = principal_angles(first, other)
    assert angles.degrees.shape == (3, 2)
    # near 0 degrees an angle is known to the square root of rounding only
    assert np.allclose(angles.degrees, [0.0, 30.0], atol=1e-5)
    assert angles.overlap == pytest.approx((1 + 0.75) / 2)
    assert angles.expected == 0.5
    assert principal_angles(first.drop_vars("right_vectors"), other) == []


def checkpoint(folder: Path, name: str, factor: float, train: dict[str, Any]) -> Stored:
    """A result whose values are exactly `factor` times those of any other."""
    result = stored(folder, name, factor)
    facts = store.provenance(result.dataset)
    facts["train"] = train
    dataset = store.with_provenance(result.dataset, facts)
    store.write_group(result.path, "spectrum", dataset, overwrite=True)
    return replace(result, dataset=store.read_group(result.path, "spectrum"))


@pytest.fixture
def family(tmp_path: Path) -> list[Stored]:
    """Two methods, three strengths, five seeds each; sigma falls with eps, and spreads over seeds."""
    found = []
    for method in ("adversarial", "penalty"):
        for eps in (0.5, 1.0, 2.0):
            for seed in range(5):
                train = {"method": method, "eps": eps, "seed": seed, "settings": {"seed": seed, "lr": 0.1}}
                factor = (3 if method == "penalty" else 1) / eps * (1 + 0.01 * seed)
                found.append(checkpoint(tmp_path, f"{method}-{eps}-{seed}", factor, train))
    found.append(checkpoint(tmp_path, "standard", 9.0, {"method": "standard", "seed": 0}))
    found.append(checkpoint(tmp_path, "unknown", 5.0, {}))
    return found


def test_one_point_per_checkpoint_and_a_cluster_per_recipe(family: list[Stored]) -> None:
    found = relate(family, "train.eps", "spectrum.sigma_max_mean", "train.method")
    assert len(found.points) == 31
    assert found.omitted == ("unknown has no train.eps",)
    assert [(c.group, c.count, c.x[1]) for c in found.clusters] == [
        ("adversarial", 5, 0.5),
        ("adversarial", 5, 1.0),
        ("adversarial", 5, 2.0),
        ("penalty", 5, 0.5),
        ("penalty", 5, 1.0),
        ("penalty", 5, 2.0),
        ("standard", 1, 0.0),
    ]
    unit = found.clusters[1].y[1] / 1.02
    # of 1.00, 1.01, ..., 1.04 the 10th, 50th and 90th percentiles
    assert np.allclose(found.clusters[1].y, unit * np.array([1.004, 1.02, 1.036]))
    xs, ys = np.array([p.x for p in found.points]), np.array([p.y for p in found.points])
    assert found.pearson == pytest.approx(np.corrcoef(xs, ys)[0, 1])
    figure = figures.new_figure()
    draw(found, figure)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "adversarial",
        "penalty",
        "standard",
    ]


def test_a_metric_against_a_metric(family: list[Stored]) -> None:
    found = relate(family, "spectrum.frobenius_mean", "spectrum.sigma_max_mean", None)
    assert len(found.points) == 32
    assert found.spearman == pytest.approx(1.0)
    assert found.pearson == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ("train.eps", "spectrum.sigma_mox_mean", "Did you mean spectrum.sigma_max_mean"),
        ("train.ops", "spectrum.sigma_max_mean", "Did you mean train.eps"),
        ("train.method", "spectrum.sigma_max_mean", "not a number"),
    ],
)
def test_names_that_nothing_has(x: str, y: str, said: str, family: list[Stored]) -> None:
    with pytest.raises(UsageError, match=said):
        relate(family, x, y, None)


def test_the_command(family: list[Stored], tmp_path: Path) -> None:
    a, b = tmp_path / "adversarial-0.5-0.h5", tmp_path / "penalty-0.5-0.h5"
    out = tmp_path / "figures"
    done = run("compare", a, b, "--out", out)
    assert done.exit_code == 0
    assert "+200 %" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["spectrum.samples.svg", "spectrum.svg"]
    document = json.loads(run("compare", a, b, "--out", out, "--json").stdout)
    (entry,) = document["comparisons"]
    assert entry["others"][0]["metrics"][0]["pairing"] == "paired"
    files = [stored.path for stored in family]
    related = ["--x", "train.eps", "--y", "spectrum.sigma_max_mean", "--group", "train.method", "--out", out]
    done = run("compare", *files, *related)
    assert done.exit_code == 0
    assert "31 checkpoints: correlation" in done.stdout
    assert "unknown has no train.eps" in done.stderr
    assert (out / "spectrum.sigma_max_mean-over-train.eps.svg").is_file()
    assert run("compare", a).exit_code == 2
    assert run("compare", a, b, "--x", "train.eps").exit_code == 2
    assert run("compare", a, tmp_path / "none.h5").exit_code == 2


def test_other_settings_are_named(family: list[Stored], tmp_path: Path) -> None:
    facts = store.provenance(family[0].dataset)
    facts["settings"] = {**facts["settings"], "options": {"layer": "features", "top": 0}, "seed": 3}
    other = tmp_path / "other.h5"
    store.write_group(other, "spectrum", store.with_provenance(family[0].dataset, facts))
    done = run("compare", family[0].path, other, "--out", tmp_path / "figures")
    assert "options.layer: logits -> features" in done.stdout
    assert "seed: 0 -> 3" in done.stdout
    assert "unpaired" in done.stdout


def test_comparing_needs_no_torch(family: list[Stored], tmp_path: Path) -> None:
    command = ["compare", str(family[0].path), str(family[1].path), "--out", str(tmp_path / "figures")]
    code = (
        "import sys; sys.modules['torch'] = None\nfrom specdiag.cli.main import app\n"
        f"try:\n    app({command!r})\nexcept SystemExit as end:\n    sys.exit(end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
