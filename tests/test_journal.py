from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from specdiag.errors import ResultsError
from specdiag.journal import Journal, differences, discard

SETTINGS = {"samples": 200, "options": {"method": "autograd", "radii": (0.1, 0.2)}, "paths": None}


def chunk(number: int) -> dict[str, np.ndarray]:
    return {
        "values": np.random.default_rng(number).standard_normal((8, 3)).astype(np.float32),
        "odd": np.array([np.nan, -0.0, np.inf]),
        "flag": np.array([True, False]),
        "text": np.array(["a", "bb"]),
        "none": np.zeros((0, 4), np.int64),
    }


def opened(folder: Path) -> Journal:
    return Journal(folder, "hash", SETTINGS)


def test_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / ".a.spectrum.journal"
    for number in (3, 0, 11):
        opened(folder).write(number, chunk(number))
    journal = opened(folder)
    assert journal.finished() == (0, 3, 11)
    for number in journal.finished():
        read = journal.read(number)
        assert list(read) == list(chunk(number))
        for name, array in chunk(number).items():
            assert read[name].dtype == array.dtype
            assert read[name].shape == array.shape
            assert read[name].tobytes() == array.tobytes()
    assert not [file for file in folder.iterdir() if file.suffix == ".h5"]
    journal.remove()
    assert not folder.exists()
    discard(folder)


def test_a_chunk_may_be_written_again(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.write(0, {"x": np.zeros(2)})
    journal.write(0, {"x": np.ones(2)})
    assert journal.finished() == (0,)
    np.testing.assert_array_equal(journal.read(0)["x"], np.ones(2))


def test_other_settings_are_named(tmp_path: Path) -> None:
    opened(tmp_path / "j").write(0, chunk(0))
    changed = {"samples": 400, "options": {"method": "autograd", "radii": (0.1, 0.3)}, "dtype": "float64"}
    with pytest.raises(ResultsError) as caught:
        Journal(tmp_path / "j", "other", changed)
    assert (
        "other settings: samples: 200 -> 400; options.radii: [0.1, 0.2] -> [0.1, 0.3]; "
        "paths: null -> absent; dtype: absent -> float64." in caught.value.what
    )
    assert "--overwrite" in caught.value.todo
    assert opened(tmp_path / "j").finished() == (0,)


def test_differences() -> None:
    assert differences({"a": 1, "b": {"c": [1], "d": 2}}, {"a": 1, "b": {"c": [1], "d": 2}}) == []
    assert differences({"b": {"d": 2, "e": "x"}}, {"b": {"d": 3, "e": "y"}}) == ["b.d: 2 -> 3", "b.e: x -> y"]
    assert differences({"a": [1, 2]}, {"a": (1, 2)}) == []
    assert differences({"a": 1}, {"a": 1.0}) == ["a: 1 -> 1.0"]
    assert differences({"a": None}, {}) == ["a: null -> absent"]
    assert differences({"a": {"b": 1}}, {"a": 1}) == ['a: {"b": 1} -> 1']


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "append", "rename", "garbage"])
def test_damaged_chunks_are_ignored_and_removed(tmp_path: Path, damage: str) -> None:
    journal = opened(tmp_path / "j")
    for number in range(3):
        journal.write(number, chunk(number))
    file = tmp_path / "j" / "chunk-00000001"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    texts = {
        "truncate": bytes(data[:-1]),
        "flip": bytes(data),
        "empty": b"",
        "append": bytes(data) + b"\0",
        "garbage": b"\xff\x00" * 100,
    }
    if damage == "rename":
        file = file.rename(file.with_name("chunk-00000007"))
    else:
        file.write_bytes(texts[damage])
    journal = opened(tmp_path / "j")
    assert journal.finished() == (0, 2)
    assert not file.exists()
    with pytest.raises(ResultsError, match="missing or damaged"):
        journal.read(1)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.write(0, {"x": np.arange(3.0)})
    file = tmp_path / "j" / "chunk-00000000"
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(ResultsError):
            journal.read(0)
    file.write_bytes(data)
    assert journal.finished() == (0,)


def test_foreign_chunks_are_ignored(tmp_path: Path) -> None:
    Journal(tmp_path / "theirs", "theirs", {}).write(1, chunk(1))
    journal = opened(tmp_path / "j")
    journal.write(0, chunk(0))
    (tmp_path / "theirs" / "chunk-00000001").rename(tmp_path / "j" / "chunk-00000001")
    (tmp_path / "j" / "notes.txt").write_text("kept")
    assert journal.finished() == (0,)
    assert (tmp_path / "j" / "notes.txt").exists()


def test_lost_settings_file(tmp_path: Path) -> None:
    opened(tmp_path / "j").write(0, chunk(0))
    settings = tmp_path / "j" / "settings.json"
    for text in (None, "", "{}", "[]"):
        if text is None:
            settings.unlink()
        else:
            settings.write_text(text)
        assert opened(tmp_path / "j").finished() == (0,)
        assert json.loads(settings.read_text())["settings_hash"] == "hash"


def test_leftover_temporary_files(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    old, young = tmp_path / "j" / ".chunk-00000000.1.tmp", tmp_path / "j" / ".chunk-00000000.2.tmp"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 1e5,) * 2)
    assert opened(tmp_path / "j").finished() == ()
    assert not old.exists()
    assert young.exists()
    journal.remove()
    assert not (tmp_path / "j").exists()


def test_objects_are_refused(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    with pytest.raises(ValueError, match="allow_pickle"):
        journal.write(0, {"x": np.array([object()])})
    assert journal.finished() == ()


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=str(tmp_path / "file" / "j")):
        opened(tmp_path / "file" / "j")
    with pytest.raises(ResultsError, match="Cannot keep finished chunks"):
        opened(tmp_path / "file")


def run(code: str, folder: Path) -> subprocess.Popen[str]:
    prelude = (
        "import sys, numpy as np; from pathlib import Path; from specdiag.journal import Journal\n"
        "from specdiag.errors import ResultsError\n"
        "journal = Journal(Path(sys.argv[1]), 'hash', {'samples': 200})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code, str(folder)], stdout=subprocess.PIPE, text=True
    )


def test_kill_loses_only_the_chunk_in_flight(tmp_path: Path) -> None:
    code = (
        "start = len(journal.finished())\n"
        "for k in range(start, 100_000):\n"
        "    journal.write(k, {'x': np.full(50_000, float(k))})\n"
        "    print(k, flush=True)\n"
    )
    for delay in (0.0, 0.007, 0.011, 0.023):
        process = run(code, tmp_path / "j")
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(delay)
        process.kill()
        reported = [int(line) for line in (first + process.stdout.read()).split()]
        process.wait()
        journal = Journal(tmp_path / "j", "hash", {"samples": 200})
        finished = journal.finished()
        assert finished == tuple(range(len(finished)))
        assert set(reported) <= set(finished)
        assert len(finished) - 1 - reported[-1] <= 1
        for number in reported:
            np.testing.assert_array_equal(journal.read(number)["x"], np.full(50_000, float(number)))


def test_full_disk(tmp_path: Path) -> None:
    """The size limit of a process stands in for a full disk."""
    code = (
        "journal.write(0, {'x': np.zeros(10)})\n"
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: journal.write(1, {'x': np.zeros(50_000)})\n"
        "except ResultsError as error: print(error)\n"
        "print(journal.finished())\n"
    )
    process = run(code, tmp_path / "j")
    assert process.communicate()[0] == (
        f"Cannot keep finished chunks in {tmp_path / 'j'}: File too large. "
        "Free space or choose another folder with --out.\n(0,)\n"
    )
    assert sorted(os.listdir(tmp_path / "j")) == ["chunk-00000000", "settings.json"]
