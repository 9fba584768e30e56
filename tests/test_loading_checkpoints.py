"""Checkpoints: known answers on a public file, and every way in which a file can be bad."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from specdiag.errors import CheckpointError, UsageError
from specdiag.loading import candidates, scan, sniff
from specdiag.loading.checkpoints import read_checkpoint, save_checkpoint, sha256_of
from specdiag.loading.prefixes import strip_wrappers


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"fc1.weight": torch.randn(5, 4, generator=draw), "fc1.bias": torch.randn(5, generator=draw)}


def save(path: Path, content, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def refused(path: Path, reason: str, weights: str | None = None) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, weights)
    assert caught.value.reason == reason, caught.value
    assert caught.value.exit_code == 3
    assert caught.value.todo
    assert "\n" not in str(caught.value)
    return caught.value


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".th", ".safetensors", ""])
def test_weights_come_back_whatever_the_suffix(tmp_path: Path, legacy: bool, suffix: str) -> None:
    path = save(tmp_path / f"w{suffix}", {"state_dict": weights(), "epoch": 3}, legacy)
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == ("torch-legacy" if legacy else "torch-zip")
    assert (checkpoint.weights, checkpoint.candidates) == ("state_dict", ("state_dict",))
    assert same(checkpoint.tensors, weights())
    assert checkpoint.metadata == {}
    assert checkpoint.facts == {"epoch": 3}
    assert checkpoint.sha256 == sha256_of(path)


def test_public_resnet20(assets: Path) -> None:
    checkpoint = read_checkpoint(assets / "checkpoints/cifar10-resnet20.th")
    assert checkpoint.format == "torch-legacy"
    assert checkpoint.stripped == ("module.",)
    assert len(checkpoint.tensors) == 97
    assert checkpoint.sha256.startswith("12fca82f")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_payload_is_refused_and_never_runs(tmp_path: Path, legacy: bool, protocol: int) -> None:
    marker = tmp_path / "executed"
    path = tmp_path / "bad.pt"
    content = {"state_dict": weights(), "x": Payload(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    error = refused(path, "dangerous-pickle")
    assert "posix.system" in str(error)
    assert scan.blocked_globals(path, sniff.identify(path)) == ("posix.system",)
    assert not marker.exists()


def test_a_name_put_together_through_the_memo_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    # STACK_GLOBAL whose two strings come from the memo
    code = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x02ls\x85R."
    path.write_bytes(code)
    assert scan.blocked_globals(path, "pickle") == ("posix.system",)
    refused(path, "dangerous-pickle")


def test_a_name_that_is_no_constant_counts_as_dangerous(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(b"\x80\x04]\x8c\x06system\x93)R.")
    assert scan.scan(path, "pickle").dangerous == ("?.system",)


def test_a_huge_memo_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.pkl"
    path.write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")
    refused(path, "bad-pickle")


def test_torch_takes_every_name_that_the_scan_lets_through() -> None:
    from torch._weights_only_unpickler import _get_allowed_globals

    from specdiag.loading.pickle_names import _TORCH_NAMES, TENSORS

    assert set(_get_allowed_globals()) >= TENSORS
    names = {f"torch.{name}" for name in _TORCH_NAMES}
    assert names <= set(_get_allowed_globals())


def test_whole_module_needs_code_and_its_tensors_can_be_asked_for(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    path = save(tmp_path / "module.pt", network)
    error = refused(path, "needs-code")
    assert "torch.nn.modules.container.Sequential" in str(error)
    assert "--weights ." in error.todo
    assert same(read_checkpoint(path, ".").tensors, dict(network.state_dict()))
    nested = save(tmp_path / "nested.pt", {"model": network, "epoch": 1}, legacy=True)
    assert "--weights model" in refused(nested, "needs-code").todo
    assert same(read_checkpoint(nested, "model").tensors, dict(network.state_dict()))


def test_missing_and_empty(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "missing")
    (tmp_path / "empty.pt").write_bytes(b"")
    refused(tmp_path / "empty.pt", "empty")
    refused(tmp_path, "folder")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "html"),
        (b"\n\n  <HTML><head></head></HTML>", "html"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n", "lfs-pointer"),
        (b"Entry not found", "text"),
        (b'{"error": "Repository not found"}', "json"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "png"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "jpeg"),
        (b"\x1f\x8b\x08" + bytes(50), "gzip"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(50), "7z"),
        (b"GGUF\x03\0\0\0" + bytes(50), "gguf"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "keras-hdf5"),
        (b"\x08\x07\x12\x07pytorch\x1a\x032.0", "onnx"),
        (b"\x93NUMPY\x01\0" + bytes(60), "npy"),
        (b"\x82\xa6params\x81\xa1w\x93\x01\x02\x03", "flax-msgpack"),
        (bytes(5000), "zeros"),
        (b"PK\x03\x04" + bytes(100), "truncated-zip"),
        (b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1", "torch7"),
        (b"\xde\xad\xbe\xef" * 20, "unknown"),
        (b"\x80\x02", "bad-pickle"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    refused(path, reason)


def test_every_refused_format_has_a_cause_and_a_next_step() -> None:
    for format in sniff.CAUSES:
        what, todo = sniff.explain(format)
        assert what
        assert todo.endswith((".", "pull", "joined.pt", "pt)", "--data).")), format


def test_truncated_zip_and_legacy(tmp_path: Path) -> None:
    for legacy, reason in ((False, "truncated-zip"), (True, "damaged-checkpoint")):
        path = save(tmp_path / "w.pt", weights(), legacy)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - 40])
        if legacy:
            refused(path, reason)
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert caught.value.reason in (reason, "bad-pickle")


def test_a_flipped_bit_of_a_weight_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", weights())
    data = bytearray(path.read_bytes())
    place = bytes(data).index(weights()["fc1.weight"].numpy().tobytes())
    data[place + 2] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["fc1.weight"].shape == (5, 4), "torch itself does not notice"
    assert "CRC" in str(refused(path, "damaged-zip"))


def test_every_single_byte_of_a_file_flipped_is_explained_or_harmless(tmp_path: Path) -> None:
    for legacy in (False, True):
        path = save(tmp_path / "w.pt", {"state_dict": {"a": torch.ones(2)}}, legacy)
        data = path.read_bytes()
        for place in range(0, len(data), 7):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
            with contextlib.suppress(CheckpointError):
                read_checkpoint(path)


def test_duplicate_members_and_bombs_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", weights())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("w/data.pkl", b"x")
    refused(path, "duplicate-members")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/version", b"3")
        with archive.open("a/data/0", "w", force_zip64=True) as member:
            for _ in range(400):
                member.write(bytes(2**20))
    refused(bomb, "archive-bomb")


def test_a_tensor_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {"a": torch.ones(1).expand(10**11), "b": torch.ones(2)})
    refused(path, "damaged-checkpoint")


def test_many_views_of_one_storage_do_not_take_long(tmp_path: Path) -> None:
    base = torch.ones(2**20)
    content = {f"w{number}": base[number:] for number in range(1000)}
    refused(save(tmp_path / "w.pt", content), "damaged-checkpoint")


def test_nested_lists_that_share_their_parts_do_not_take_long(tmp_path: Path) -> None:
    level: list = [torch.ones(1)]
    for _ in range(30):
        level = [level] * 100
    refused(save(tmp_path / "w.pt", level), "no-weights")


def test_nan_weights_name_the_tensor(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        bad = weights()
        bad["fc1.bias"][2] = value
        assert "'fc1.bias' holds 1 NaN or infinite values of 5" in str(
            refused(save(tmp_path / "w.pt", bad), "nan-weights")
        )


def test_unusual_tensors_are_named(tmp_path: Path) -> None:
    cases = {
        "meta-weights": torch.ones(2, device="meta"),
        "sparse-weights": torch.eye(3).to_sparse(),
        "quantised-weights": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    }
    for reason, tensor in cases.items():
        path = save(tmp_path / "w.pt", {"ok": torch.ones(2), "odd": tensor})
        assert "'odd'" in str(refused(path, reason))


def test_half_and_integer_tensors_load(tmp_path: Path) -> None:
    content = {
        "a": torch.ones(3, dtype=torch.bfloat16),
        "b": torch.arange(3),
        "c": torch.ones(2, dtype=torch.float8_e4m3fn),
    }
    assert same(read_checkpoint(save(tmp_path / "w.pt", content)).tensors, content)


def test_a_tie_is_asked_about(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {"state_dict": weights(), "ema": weights(1)})
    error = refused(path, "ambiguous-weights")
    assert "--weights state_dict" in error.todo
    assert "--weights ema" in error.todo
    assert same(read_checkpoint(path, "ema").tensors, weights(1))
    assert same(read_checkpoint(path, "state_dict").tensors, weights())
    assert "Did you mean ema" in refused(path, "unknown-weights", "emma").todo


def test_averaged_weights_with_a_counter_are_still_asked_about(tmp_path: Path) -> None:
    average = {
        "n_averaged": torch.tensor(7),
        **{f"module.{name}": value for name, value in weights(1).items()},
    }
    path = save(tmp_path / "w.pt", {"state_dict": weights(), "model_ema": average})
    refused(path, "ambiguous-weights")
    checkpoint = read_checkpoint(path, "model_ema")
    assert same(checkpoint.tensors, weights(1))
    assert checkpoint.stripped == ("module.",)


def test_the_optimiser_is_never_taken_for_the_weights(tmp_path: Path) -> None:
    network = nn.Linear(3, 1)
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    content = {"model": network.state_dict(), "optimizer": optimiser.state_dict()}
    checkpoint = read_checkpoint(save(tmp_path / "w.pt", content))
    assert checkpoint.candidates == ("model",)


def test_the_top_level_is_named_by_a_dot(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {**weights(), "teacher": weights(1)})
    assert "--weights ." in refused(path, "ambiguous-weights").todo
    checkpoint = read_checkpoint(path, ".")
    assert checkpoint.weights == ""
    assert same(checkpoint.tensors, weights())


def test_part_of_a_mapping_by_its_front(tmp_path: Path) -> None:
    content = {
        f"module.encoder_{which}.{name}": value
        for which in "qk"
        for name, value in weights(ord(which)).items()
    }
    path = save(tmp_path / "w.pt", {"state_dict": content})
    for name in ("encoder_k", "state_dict.encoder_k"):
        assert same(read_checkpoint(path, name).tensors, weights(ord("k")))


def test_a_front_that_occurs_twice_is_asked_about(tmp_path: Path) -> None:
    content = {
        key: {f"encoder.{name}": value for name, value in weights(seed).items()}
        for seed, key in enumerate("ab")
    }
    path = save(tmp_path / "w.pt", content)
    assert "--weights a.encoder or --weights b.encoder" in refused(path, "ambiguous-weights", "encoder").todo
    assert same(read_checkpoint(path, "b.encoder").tensors, weights(1))


def test_no_tensors_at_all(tmp_path: Path) -> None:
    refused(save(tmp_path / "w.pt", {"epoch": 3}), "no-weights")
    refused(save(tmp_path / "t.pt", torch.ones(3)), "no-weights")


@pytest.mark.parametrize(
    "front",
    ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module.", "_forward_module.module.",
     "module._fsdp_wrapped_module._checkpoint_wrapped_module.", "_orig_mod.module._orig_mod.module."],
)  # fmt: skip
def test_prefixes_go_to_a_fixed_point(tmp_path: Path, front: str) -> None:
    path = save(tmp_path / "w.pt", {front + name: value for name, value in weights().items()})
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.tensors, weights())
    assert set(checkpoint.stripped) == {part + "." for part in front.split(".") if part}


def test_prefixes_inside_and_at_the_edge() -> None:
    plain, stripped = strip_wrappers(["features._orig_mod.0.weight", "fc._fsdp_wrapped_module.bias"])
    assert list(plain.values()) == ["features.0.weight", "fc.bias"]
    assert stripped == ("_orig_mod.", "_fsdp_wrapped_module.")
    # not at the front of every name: part of the network's own naming
    assert strip_wrappers(["module.a", "head.b"])[1] == ()
    assert strip_wrappers(["mymodule.a", "mymodule.b"])[1] == ()
    assert strip_wrappers(["a.module.w"])[1] == ()
    # a name is never emptied, and two names never become one
    assert strip_wrappers(["module", "module.a"])[1] == ()
    assert strip_wrappers(["_orig_mod.a", "a"]) == ({"_orig_mod.a": "_orig_mod.a", "a": "a"}, ())


def test_own_format_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    metadata = {
        "architecture": "mlp",
        "arch_args": {"sizes": (4, 5)},
        "normalise": "none",
        "train": {"eps": 1.5},
    }
    first, second = tmp_path / "a.pt", tmp_path / "other-name.pt"
    base = torch.cat([value.flatten() for value in weights().values()])
    views = {"fc1.weight": base[:20].view(5, 4), "fc1.bias": base[20:]}
    save_checkpoint(first, weights(), metadata)
    save_checkpoint(second, views, metadata)
    assert first.read_bytes() == second.read_bytes()
    checkpoint = read_checkpoint(first)
    assert same(checkpoint.tensors, weights())
    assert checkpoint.metadata == {
        "format_version": 1,
        "architecture": "mlp",
        "arch_args": {"sizes": [4, 5]},
        "normalise": "none",
        "train": {"eps": 1.5},
    }
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.pt", "other-name.pt"]


def test_own_format_into_a_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "w.pt", weights(), {})


def test_own_format_of_the_future_and_with_broken_metadata(tmp_path: Path) -> None:
    refused(
        save(tmp_path / "w.pt", {"specdiag": '{"format_version": 99}', "state_dict": weights()}),
        "newer-format",
    )
    refused(save(tmp_path / "w.pt", {"specdiag": "{", "state_dict": weights()}), "damaged-checkpoint")


def test_a_file_cannot_name_code_as_its_architecture(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", weights(), {"architecture": "evil.py:make", "arch_args": {}})
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    assert "architecture" not in checkpoint.metadata
    assert any(finding.startswith("SD306") for finding in checkpoint.findings)


def test_an_attribute_named_items_does_not_get_in_the_way(tmp_path: Path) -> None:
    class Odd:
        def __reduce__(self):
            return OrderedDict, (), {"items": [1, 2]}, None, iter(weights().items())

    path = save(tmp_path / "w.pt", Odd())
    assert torch.load(path, weights_only=True).items == [1, 2]
    assert same(read_checkpoint(path).tensors, weights())


def test_unreadable_file(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", weights())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("running as a user who may read everything")
    refused(path, "unreadable")


def test_sniffing_and_scanning_need_no_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", weights())
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from specdiag.loading import scan, sniff, archive, prefixes\n"
        f"p = Path({str(path)!r}); f = sniff.identify(p); archive.check_zip(p); print(f, scan.blocked_globals(p, f))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch-zip ()"


def test_a_candidate_walk_is_sorted_by_size() -> None:
    found = candidates.candidates({"a": {"x": torch.ones(1)}, "b": {"x": torch.ones(1), "y": torch.ones(1)}})
    assert [entry.key for entry in found] == ["b", "a"]


def test_legacy_magic_is_what_torch_writes(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", weights(), legacy=True)
    with path.open("rb") as file:
        assert pickle.load(file) == 0x1950A86A20F9469CFC6C
    assert sniff.identify(path) == "torch-legacy"


@pytest.mark.parametrize("length", [0x80, 0x0280, 0x0480, 0x8B1F, 0x5A42, 0x0A0D, 0x0708])
def test_a_safetensors_header_may_spell_another_format(tmp_path: Path, length: int) -> None:
    header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(length)
    path = tmp_path / "w.pt"
    path.write_bytes(struct.pack("<Q", length) + header + bytes(16))
    assert read_checkpoint(path).format == "safetensors"


def test_safetensors_that_is_cut_off(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    path = tmp_path / "w.pt"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    refused(path, "truncated-safetensors")
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    assert same(read_checkpoint(path).tensors, {"a": torch.zeros(4)})
