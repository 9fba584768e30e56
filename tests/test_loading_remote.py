"""Checkpoints fetched through fsspec: its memory and local file systems stand for the far ones."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import fsspec
import h5py
import pytest
import torch
from command import digits_checkpoint, run

from specdiag.errors import CheckpointError, MissingExtra
from specdiag.loading import remote
from specdiag.loading.checkpoints import read_checkpoint


@pytest.fixture(autouse=True)
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty far file system, and a cache of this test's own."""
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


def put(far, place: str, content: bytes) -> str:
    far.pipe_file(place, content)
    return f"memory://{place.lstrip('/')}"


@pytest.mark.parametrize("spelling", ["memory://box/digits.pt", Path("memory://box/digits.pt")])
def test_a_far_checkpoint_is_measured(far, tmp_path: Path, spelling) -> None:
    put(far, "/box/digits.pt", digits_checkpoint(tmp_path / "digits.pt").read_bytes())
    done = run("spectrum", spelling, "-n", 2, "-q", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    with h5py.File(tmp_path / "out" / "digits.h5") as file:
        facts = json.loads(file["spectrum"].attrs["specdiag"])
    assert facts["checkpoint"]["path"] == "memory://box/digits.pt"
    assert facts["checkpoint"]["sha256"] == read_checkpoint(tmp_path / "digits.pt").sha256
    assert json.loads(run("inspect", spelling, "--json").stdout)["path"] == "memory://box/digits.pt"


def test_a_batch_takes_far_checkpoints_by_name_and_by_pattern(far, tmp_path: Path) -> None:
    content = digits_checkpoint(tmp_path / "digits.pt").read_bytes()
    for name in ("a.pt", "b.pt", "notes.txt"):
        put(far, f"/runs/{name}", content)
    put(far, "/other/c.pt", content)
    (tmp_path / "specdiag.toml").write_text(
        'checkpoints = ["memory://runs/*.pt", "memory://other/c.pt", "memory://none/*.pt"]\n'
        'data = "digits"\nsamples = 2\n[spectrum]\n'
    )
    done = run("batch", tmp_path / "specdiag.toml", "--jobs", 1, "--out", tmp_path / "o")
    assert sorted(path.name for path in (tmp_path / "o").glob("*.h5")) == ["a.h5", "b.h5", "c.h5"], (
        done.stderr
    )
    assert "no file matches it there" in done.stdout + done.stderr


def test_file_urls(tmp_path: Path) -> None:
    path = digits_checkpoint(tmp_path / "digits.pt")
    found = read_checkpoint(f"file://{path}")
    assert found.sha256 == read_checkpoint(path).sha256
    assert found.source == f"file://{path}"


def test_a_copy_is_used_until_the_far_file_or_the_copy_changes(far, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(far, "/a.bin", b"first")
    fetched: list[str] = []
    download = remote._download
    monkeypatch.setattr(remote, "_download", lambda *given: (fetched.append(given[1]), download(*given))[1])
    copy = remote.fetch(url)
    assert copy.read_bytes() == b"first"
    assert remote.fetch(url) == copy
    assert len(fetched) == 1
    copy.write_bytes(b"fiRst")
    assert remote.fetch(url).read_bytes() == b"first"
    assert len(fetched) == 2
    put(far, "/a.bin", b"other")
    assert remote.fetch(url).read_bytes() == b"other"
    assert len(fetched) == 3


def test_a_stated_hash_is_checked(far) -> None:
    url = put(far, "/a.bin", b"content")
    good = hashlib.sha256(b"content").hexdigest()
    assert remote.fetch(f"{url}#sha256={good}").read_bytes() == b"content"
    with pytest.raises(CheckpointError) as error:
        remote.fetch(f"{url}#sha256={'0' * 64}")
    assert error.value.reason == "hash-mismatch"


def test_what_is_not_there(far) -> None:
    with pytest.raises(CheckpointError) as error:
        remote.fetch("memory://nothing/here.pt")
    assert error.value.reason == "missing"
    assert run("spectrum", "memory://nothing/here.pt").exit_code == 3
    assert run("inspect", "memory://nothing/here.pt").exit_code == 3


def test_a_far_folder_of_shards(far) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    parts = {"one": {"a.weight": torch.ones(2, 2)}, "two": {"b.weight": torch.zeros(3, 2)}}
    for name, tensors in parts.items():
        put(far, f"/model/{name}.safetensors", safetensors.save(tensors))
    places = {tensor: f"{name}.safetensors" for name, tensors in parts.items() for tensor in tensors}
    put(far, "/model/model.safetensors.index.json", json.dumps({"weight_map": places}).encode())
    put(far, "/model/pytorch_model.bin", b"not wanted")
    put(far, "/model/run.py", b"not wanted")
    folder = remote.fetch("memory://model")
    assert sorted(file.name for file in folder.iterdir()) == [
        "model.safetensors.index.json",
        "one.safetensors",
        "two.safetensors",
    ]
    assert set(read_checkpoint("memory://model").tensors) == {"a.weight", "b.weight"}


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("s3://b/x.pt", "s3fs", "s3"), ("gs://b/x.pt", "gcsfs", "gs"), ("memory://x", "fsspec", "remote")],
)
def test_the_command_that_installs_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'specdiag\[{extra}\]'"):
        remote.fetch(url)


@pytest.mark.parametrize("path", ["model.pt", "/tmp/s3/x.pt", "C:/x.pt", "ftp://x/y", "a:b"])
def test_local_paths_stay_local(path: str) -> None:
    assert not remote.is_remote(path)
    assert remote.fetch(path) == Path(path)


def test_a_failing_far_side_is_explained(far, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(far, "/a.bin", b"first")

    def broken(*given, **more):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(type(far), "open", broken)
    with pytest.raises(CheckpointError, match="ConnectionError: reset by peer") as error:
        remote.fetch(url)
    assert error.value.reason == "remote"
