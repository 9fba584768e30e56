from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

from specdiag import store
from specdiag.errors import ResultsError


def make(scale: float = 1.0) -> xarray.Dataset:
    dataset = xarray.Dataset(
        {
            "singular_values": (
                ("sample", "rank"),
                scale * np.arange(12, dtype=np.float32).reshape(4, 3) / 7,
                {"units": "logit / input", "long_name": "singular values of the Jacobian"},
            ),
            "fooled": ("sample", np.array([True, False, True, False])),
            "label": ("sample", np.array([3, 1, 4, 1])),
            "elapsed": ("sample", np.array([0.5, np.nan, np.inf, -0.0]), {"units": "seconds"}),
            "total": ((), np.float64(0.1)),
            "empty": ("nothing", np.zeros(0, np.float32)),
        },
        coords={
            "sample": np.array([2, 3, 5, 8]),
            "split": ("sample", np.array(["test", "train", "test", "test"])),
            "layer": ["conv1", "layer1.0.conv2"],
        },
    )
    facts = {
        "analyzer": "spectrum",
        "checkpoint": {"path": Path("runs/a.pt"), "sha256": "ab" * 32, "architecture": "cnn4"},
        "data": {"spec": "digits", "split": "test", "samples": 4, "total": 397},
        "settings": {"seed": 0, "radii": (0.1, 0.2)},
        "metrics": {
            "sigma": {"value": np.float32(1.5), "error": float("nan"), "low": -np.inf, "high": 2.0, "n": 4},
            "std": {"value": [1.0, float("nan")], "error": [0.1, None], "labels": ["nan", "inf"]},
        },
        "notes": ["nan"],
    }
    return store.with_provenance(dataset, facts)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.h5"
    store.write_group(path, "spectrum", make())
    xarray.testing.assert_identical(store.read_group(path, "spectrum").drop_attrs(), make().drop_attrs())
    read = store.read_group(path, "spectrum")
    assert read["fooled"].dtype == bool
    assert read["singular_values"].dtype == np.float32
    assert read["elapsed"].dtype == np.float64
    assert read["singular_values"].attrs == {
        "units": "logit / input",
        "long_name": "singular values of the Jacobian",
    }
    assert os.listdir(path.parent) == ["a.h5"]


def test_other_tools_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    store.write_group(path, "spectrum", make())
    with h5py.File(path) as file:
        values = file["spectrum/singular_values"]
        np.testing.assert_array_equal(values[()], make()["singular_values"].values)
        assert [dim[0].name for dim in values.dims] == ["/spectrum/sample", "/spectrum/rank"]
        assert values.attrs["units"] == "logit / input"
        assert file["spectrum"].attrs["architecture"] == "cnn4"
        assert file["spectrum"].attrs["metric_sigma"] == 1.5
        json.loads(file["spectrum"].attrs["specdiag"], parse_constant=lambda name: pytest.fail(name))
    with xarray.open_dataset(path, group="spectrum", engine="h5netcdf") as dataset:
        assert dataset["singular_values"].dims == ("sample", "rank")
        assert list(dataset["sample"].values) == [2, 3, 5, 8]
        assert "split" in dataset.coords


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    store.write_group(first, "spectrum", make())
    store.write_group(first, "alignment", make(2.0))
    # a time stamp of one-second resolution would show
    time.sleep(1.1)
    store.write_group(second, "alignment", make(3.0))
    store.write_group(second, "spectrum", make())
    assert digest(first) != digest(second)
    store.write_group(second, "alignment", make(2.0), overwrite=True)
    assert digest(first) == digest(second)


def test_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_store; from specdiag import store;"
        "from pathlib import Path; store.write_group(Path(sys.argv[1]), 'spectrum', test_store.make())"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path / f"{seed}.h5"), str(Path(__file__).parent)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert digest(tmp_path / "1.h5") == digest(tmp_path / "2.h5")


def test_a_group_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    store.write_group(path, "spectrum", make())
    before = digest(path)
    with pytest.raises(ResultsError, match="holds results of spectrum already"):
        store.write_group(path, "spectrum", make(2.0))
    assert digest(path) == before
    store.write_group(path, "spectrum", make(2.0), overwrite=True)
    xarray.testing.assert_equal(store.read_group(path, "spectrum"), make(2.0))


@pytest.mark.parametrize("unit", ["seconds", "days", "days since 2000-01-01"])
def test_units_do_not_turn_numbers_into_times(tmp_path: Path, unit: str) -> None:
    dataset = xarray.Dataset({"x": ("i", np.array([0.5, 1.5]), {"units": unit})})
    store.write_group(tmp_path / "a.h5", "x", dataset)
    # a second write carries the first group over
    store.write_group(tmp_path / "a.h5", "y", dataset)
    xarray.testing.assert_identical(store.read_group(tmp_path / "a.h5", "x"), dataset)


def test_an_open_reader_keeps_the_whole_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    store.write_group(path, "spectrum", make())
    before = path.read_bytes()
    with path.open("rb") as reader:
        store.write_group(path, "spectrum", make(2.0), overwrite=True)
        assert reader.read() == before
    assert path.read_bytes() != before


def test_provenance_round_trip() -> None:
    facts = store.provenance(make())
    assert facts["format_version"] == store.FORMAT_VERSION
    assert facts["checkpoint"]["path"] == "runs/a.pt"
    assert facts["settings"] == {"seed": 0, "radii": [0.1, 0.2]}
    sigma, std = facts["metrics"]["sigma"], facts["metrics"]["std"]
    assert sigma["value"] == 1.5
    assert np.isnan(sigma["error"])
    assert sigma["low"] == -np.inf
    assert np.isnan(std["value"][1])
    assert std["error"] == [0.1, None]
    assert std["labels"] == ["nan", "inf"]
    assert facts["notes"] == ["nan"]


def test_provenance_replaces_older_facts() -> None:
    again = store.with_provenance(
        make(), {"analyzer": "gain", "metrics": {"gain": {"value": 2.0, "error": 0.1}}}
    )
    assert "metric_sigma" not in again.attrs
    assert again.attrs["metric_gain_error"] == 0.1
    assert store.provenance(again)["analyzer"] == "gain"
    assert "metric_sigma" in make().attrs


@pytest.mark.parametrize("text", [None, "", "{", "[1]", 7])
def test_no_provenance_is_explained(text: object) -> None:
    dataset = make()
    dataset.attrs["specdiag"] = text
    with pytest.raises(ResultsError, match="specdiag"):
        store.provenance(dataset)


def test_many_layers_fit_the_attributes(tmp_path: Path) -> None:
    metrics = {f"m{k}": {"value": [0.5] * 400, "error": [None] * 400} for k in range(40)}
    dataset = store.with_provenance(
        make(), {"analyzer": "layers", "metrics": metrics, "notes": ["x" * 200_000]}
    )
    store.write_group(tmp_path / "a.h5", "layers", dataset)
    assert store.provenance(store.read_group(tmp_path / "a.h5", "layers"))["metrics"] == metrics


def test_settings_hash() -> None:
    base = {"seed": 0, "options": {"eps": 1.75, "radii": (0.1, 0.2), "path": Path("a")}}
    same = {"options": {"path": "a", "radii": [0.1, 0.2], "eps": np.float64(1.75)}, "seed": np.int64(0)}
    assert store.settings_hash(base) == store.settings_hash(same)
    assert store.settings_hash(base) != store.settings_hash(base | {"seed": 1})
    assert store.settings_hash({"a": float("inf")}) != store.settings_hash({"a": None})
    # worked by hand: sha256 of {"a":[1,2.5],"b":null}
    assert (
        store.settings_hash({"b": None, "a": (1, 2.5)})
        == hashlib.sha256(b'{"a":[1,2.5],"b":null}').hexdigest()
    )
    with pytest.raises(TypeError):
        store.settings_hash({"a": object()})


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    missing, text, foreign, torn = (tmp_path / name for name in ("no.h5", "text.h5", "foreign.h5", "torn.h5"))
    text.write_text("hello")
    with h5py.File(foreign, "w") as file:
        file["x"] = 1
    store.write_group(torn, "spectrum", make())
    torn.write_bytes(torn.read_bytes()[:-4000])
    for path, words in (
        (missing, "no results file"),
        (text, "not an HDF5"),
        (foreign, "not written by"),
        (torn, "damaged"),
    ):
        with pytest.raises(ResultsError, match=words) as caught:
            store.groups(path)
        assert "\n" not in str(caught.value)
        assert caught.value.todo
    for path in (text, foreign, torn):
        before = path.read_bytes()
        with pytest.raises(ResultsError):
            store.write_group(path, "spectrum", make(), overwrite=True)
        assert path.read_bytes() == before


def test_missing_group_names_those_held(tmp_path: Path) -> None:
    store.write_group(tmp_path / "a.h5", "spectrum", make())
    with pytest.raises(ResultsError, match=r"holds no results of gain.* It holds: spectrum"):
        store.read_group(tmp_path / "a.h5", "gain")


@pytest.mark.parametrize(
    ("version", "words"), [(store.FORMAT_VERSION + 1, "newer"), (0, "not written"), ("x", "not written")]
)
def test_format_versions(tmp_path: Path, version: object, words: str) -> None:
    path = tmp_path / "a.h5"
    store.write_group(path, "spectrum", make())
    with h5py.File(path, "a") as file:
        file.attrs["specdiag_format"] = version
    with pytest.raises(ResultsError, match=words):
        store.read_group(path, "spectrum")
    dataset = make()
    dataset.attrs["specdiag"] = json.dumps({"format_version": version})
    with pytest.raises(ResultsError, match=words):
        store.provenance(dataset)


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=str(tmp_path / "file")):
        store.write_group(tmp_path / "file" / "a.h5", "spectrum", make())
    with pytest.raises(ResultsError, match="Cannot write results in"):
        store.write_group(Path("/proc/specdiag/a.h5"), "spectrum", make())


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """The size limit of a process stands in for a full disk."""
    path = tmp_path / "a.h5"
    store.write_group(path, "spectrum", make())
    before = digest(path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import resource, test_store, numpy, xarray\n"
        "from pathlib import Path; from specdiag import store; from specdiag.errors import ResultsError\n"
        "big = xarray.Dataset({'x': ('i', numpy.ones(500_000))})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "try: store.write_group(Path(sys.argv[1]), 'big', big)\n"
        "except ResultsError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(Path(__file__).parent)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout.startswith(f"Cannot write results in {tmp_path}: ")
    assert result.stderr == ""
    assert digest(path) == before
    assert os.listdir(tmp_path) == ["a.h5"]


def other_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    prelude = (
        "import sys, time; from pathlib import Path; from specdiag import store; path = Path(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", prelude + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_lock_against_a_second_process(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    holder = other_process(
        "with store.locked(path):\n    print('held', flush=True)\n    time.sleep(60)", path
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            ResultsError, match=rf"in use by another run of specdiag \(process {holder.pid}\)"
        ):
            store.write_group(path, "spectrum", make(), wait=0.1)
        with store.locked(tmp_path / "b.h5"):
            pass
    finally:
        holder.kill()
        holder.wait()
    # a lock file that outlives its process locks nobody out
    assert (tmp_path / ".a.lock").exists()
    store.write_group(path, "spectrum", make(), wait=0)
    assert os.listdir(tmp_path) == ["a.h5"]


def test_waiting_for_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    holder = other_process(
        "with store.locked(path):\n    print('held', flush=True)\n    time.sleep(0.5)", path
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    store.write_group(path, "spectrum", make(), wait=30)
    holder.wait()
    assert store.groups(path) == ("spectrum",)


def test_lock_may_be_taken_again_by_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with store.locked(path):
        store.write_group(path, "spectrum", make(), wait=0)
        with store.locked(path), pytest.raises(ValueError, match="inside"):
            raise ValueError("inside")
        assert (tmp_path / ".a.lock").exists()
    assert not (tmp_path / ".a.lock").exists()


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    code = (
        "import xarray\n"
        "for k in range(6):\n"
        "    store.write_group(path, sys.argv[2] + str(k), xarray.Dataset({'x': ('i', [float(k)])}))"
    )
    writers = [other_process(code, path, name) for name in "pq"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert store.groups(path) == tuple(f"{name}{k}" for name in "pq" for k in range(6))
    assert float(store.read_group(path, "q5")["x"][0]) == 5.0


def test_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    code = (
        "import numpy, xarray\n"
        "for k in range(10_000):\n"
        "    dataset = xarray.Dataset({'x': ('i', numpy.full(300_000, float(k)))})\n"
        "    store.write_group(path, 'x', dataset, overwrite=True)\n"
        "    print(k, flush=True)"
    )
    for delay in (0.0, 0.013, 0.031):
        writer = other_process(code, path)
        assert writer.stdout is not None
        last = int(writer.stdout.readline())
        time.sleep(delay)
        writer.kill()
        last = max([last, *(int(line) for line in writer.stdout.read().split())])
        writer.wait()
        values = store.read_group(path, "x")["x"].values
        assert values.min() == values.max() >= last
        assert values.size == 300_000
    store.write_group(path, "y", make())
    assert os.listdir(tmp_path) == ["a.h5"]


def names(checkpoints: list[str]) -> list[str]:
    paths = store.result_paths([Path(checkpoint) for checkpoint in checkpoints], Path("out"))
    assert list(paths) == [Path(checkpoint) for checkpoint in checkpoints]
    assert {path.parent for path in paths.values()} == {Path("out")}
    return [path.name for path in paths.values()]


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        (["/r/a.pt", "/r/b.th"], ["a.h5", "b.h5"]),
        (["/r/a/best.pt", "/r/b/best.pt", "/r/c.pt"], ["a-best.h5", "b-best.h5", "c.h5"]),
        (["/x/a/best.pt", "/y/a/best.pt"], ["x-a-best.h5", "y-a-best.h5"]),
        (["/r/a/best.pt", "/r/b/best.pt", "/r/a-best.pt"], ["r-a-best.h5", "b-best.h5", "a-best.h5"]),
        (["/r/a.pt", "/r/a.th"], ["a.pt.h5", "a.th.h5"]),
        (["/r/v1.0.pt", "/r/v1.1.pt"], ["v1.0.h5", "v1.1.h5"]),
        (["/r/A.pt", "/s/a.pt"], ["r-A.h5", "s-a.h5"]),
    ],
)
def test_result_paths(checkpoints: list[str], expected: list[str]) -> None:
    assert names(checkpoints) == expected


def test_importing_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import specdiag.store, specdiag.journal, specdiag.metrics"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_checkpoint_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = store.result_paths([Path("a.pt"), tmp_path / "a.pt", Path("a.pt")], Path("out"))
    assert set(paths.values()) == {Path("out/a.h5")}
