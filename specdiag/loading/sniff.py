"""What a file is, by its bytes: the suffix is never asked. No torch; headers alone are parsed."""

from __future__ import annotations

import json
import struct
import tarfile
from pathlib import Path

from specdiag.errors import CheckpointError
from specdiag.loading.archive import kind_of_zip

LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
HEAD = 4096
MAX_HEADER = 100 * 2**20

STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"%PDF", "pdf"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "rar"),
    (b"\x89HDF\r\n\x1a\n", "keras-hdf5"),
    (b"\x93NUMPY", "npy"),
    (b"GGUF", "gguf"),
    (b"version https://git-lfs", "lfs-pointer"),
    (b"\x7fELF", "program"),
)
TORCH_SAVE = "Save its weights with torch.save(model.state_dict(), 'weights.pt') and give that file."
AGAIN = "Download it again; the file in your folder is not the checkpoint."
UNPACK = "Unpack it and give the checkpoint inside."

LOADABLE = (
    "torch-zip",
    "torch-legacy",
    "safetensors",
    "npz",
    "pickle",
    "torchscript",
    "torch-export",
    "hf-folder",
    "onnx",
)
CAUSES: dict[str, tuple[str, str]] = {
    "empty": ("is empty (0 bytes)", "Download or save it again."),
    "zeros": ("holds only zero bytes, as an interrupted download leaves behind", "Download it again."),
    "html": (
        "is a web page (HTML), not a checkpoint",
        "Open the link in a browser to see why, then download it again.",
    ),
    "xml": ("is an XML document, often an error message of a download server", AGAIN),
    "json": ("is a JSON text, not a checkpoint", "Give the file with the weights beside it."),
    "text": ("is a plain text, not a checkpoint", AGAIN),
    "lfs-pointer": ("is a Git-LFS pointer, not the file itself", "Run: git lfs pull"),
    "png": ("is a PNG image", "Give the checkpoint; images are data (--data)."),
    "jpeg": ("is a JPEG image", "Give the checkpoint; images are data (--data)."),
    "gif": ("is a GIF image", "Give the checkpoint; images are data (--data)."),
    "pdf": ("is a PDF document", AGAIN),
    "program": ("is a program (ELF), not a checkpoint", AGAIN),
    "gzip": ("is compressed with gzip", "Unpack it (gunzip, or tar xzf) and give the checkpoint inside."),
    "bzip2": ("is compressed with bzip2", UNPACK),
    "xz": ("is compressed with xz", UNPACK),
    "zstd": ("is compressed with zstd", UNPACK),
    "7z": ("is a 7z archive", UNPACK),
    "rar": ("is a RAR archive", UNPACK),
    "tar": ("is a tar archive", UNPACK),
    "zip": ("is a zip archive without a checkpoint's layout", UNPACK),
    "empty-zip": ("is a zip archive with nothing inside", "Save or download it again."),
    "truncated-zip": (
        "is cut off: the end of its zip archive is missing",
        "Download or copy it again, to the end.",
    ),
    "damaged-zip": ("is a damaged zip archive", "Download or copy it again."),
    "truncated-safetensors": (
        "is cut off: it is shorter than its safetensors header says",
        "Download it again.",
    ),
    "torchscript": ("is a TorchScript archive, which carries code", TORCH_SAVE),
    "torch-export": ("is a torch.export program (.pt2)", TORCH_SAVE),
    "torch-package": ("is a torch.package archive, which carries Python code", TORCH_SAVE),
    "mar": (
        "is a TorchServe model archive, which carries Python code",
        "Unzip it and give the .pt file inside.",
    ),
    "torch-tar": (
        "is in the tar format of torch before 0.1.2",
        "Load it with an old torch and save it again with torch.save.",
    ),
    "torch7": ("is a Lua Torch7 file", "Convert it to a torch state_dict first."),
    "keras-hdf5": (
        "is an HDF5 file (Keras weights?)",
        "Not supported: export the weights to .npz or to a torch state_dict.",
    ),
    "keras-zip": (
        "is a Keras 3 archive",
        "Not supported: export the weights to .npz or to a torch state_dict.",
    ),
    "gguf": (
        "is a GGUF file of quantised weights",
        "Not supported: give the original torch or safetensors weights.",
    ),
    "tf-index": (
        "is the index of a TensorFlow checkpoint",
        "Not supported: export the weights to .npz or to torch.",
    ),
    "tf-saved-model": (
        "is a TensorFlow SavedModel",
        "Not supported: export the weights to .npz or to torch.",
    ),
    "flax-msgpack": (
        "looks like a Flax (msgpack) checkpoint",
        "Not supported: export the weights to .npz or safetensors.",
    ),
    "npy": (
        "is one NumPy array, not a set of named weights",
        "Give an .npz, or name it as data with --data.",
    ),
    "npz": ("holds data (x, y), not weights", "Name it as data: --data FILE.npz."),
    "peft-folder": (
        "is a LoRA adapter, which needs its base model",
        "Merge it into the base model and save the result.",
    ),
    "dcp-folder": (
        "is a distributed checkpoint (DCP)",
        "Join it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER joined.pt",
    ),
    "deepspeed-folder": (
        "is a DeepSpeed checkpoint in shards",
        "Join it: python zero_to_fp32.py . joined.pt",
    ),
    "folder": ("is a folder without a checkpoint's layout", "Give the checkpoint file inside."),
    "unknown": ("is in no format specdiag knows", TORCH_SAVE),
}


def identify(path: Path) -> str:
    """Format id of a file or folder, by its bytes.

    Raises CheckpointError (reason `missing` or `unreadable`) where there is nothing to read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _identify_folder(path)
        if not path.exists():
            raise CheckpointError(f"There is no file {path}.", "Check the path.", reason="missing")
        if not path.is_file():
            raise CheckpointError(
                f"{path} is not a regular file.", "Give a checkpoint file.", reason="unreadable"
            )
        return _identify_file(path)
    except OSError as error:
        detail = error.strerror or type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read: {detail}.", "Check its permissions.", reason="unreadable"
        ) from None


def explain(format: str) -> tuple[str, str]:
    """(what, todo) for a format id that is not loaded: what the file is, and the next step."""
    return CAUSES.get(format, CAUSES["unknown"])


def refusal(path: Path, format: str) -> CheckpointError:
    """The error for a file whose format is not loaded; its reason is the format id."""
    what, todo = explain(format)
    return CheckpointError(f"{path} {what}.", todo, reason=format)


def _identify_file(path: Path) -> str:
    size = path.stat().st_size
    if size == 0:
        return "empty"
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return kind_of_zip(path)
    # first, because its length field can spell the start of any other format
    found = _identify_safetensors(path, head, size)
    if found:
        return found
    for start, name in STARTS:
        if head.startswith(start):
            return name
    return (
        _identify_pickle(head)
        or _identify_tar(path, head)
        or _identify_text(head)
        or _identify_binary(path, head, size)
    )


def _identify_pickle(head: bytes) -> str | None:
    if len(head) < 2 or head[0] != 0x80 or not 2 <= head[1] <= 5:
        return None
    return "torch-legacy" if LEGACY_MAGIC in head[:40] else "pickle"


def _identify_safetensors(path: Path, head: bytes, size: int) -> str | None:
    if len(head) < 10 or head[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", head[:8])
    if not 2 <= length <= MAX_HEADER:
        return None
    if length + 8 > size:
        return "truncated-safetensors"
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return None
    ends = [entry["data_offsets"][1] for entry in header.values() if _has_offsets(entry)]
    return "truncated-safetensors" if ends and max(ends) + 8 + length > size else "safetensors"


def _has_offsets(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    offsets = entry.get("data_offsets")
    return isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(end, int) for end in offsets)


def _identify_tar(path: Path, head: bytes) -> str | None:
    if head[257:262] != b"ustar":
        return None
    try:
        with tarfile.open(path, "r:") as archive:
            names = [member.name for member, _ in zip(archive, range(16), strict=False)]
    except (tarfile.TarError, EOFError, ValueError):
        return "tar"
    return "torch-tar" if {"pickle", "storages", "tensors"} <= set(names) else "tar"


def _identify_text(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<!--")):
        return "html"
    if text.startswith(b"<?xml"):
        return "html" if b"<html" in text else "xml"
    if b"\x00" in head or not text:
        return None
    try:
        head[: len(head) - 3].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 8:
            return None
    if any(byte < 9 for byte in head):
        return None
    return "json" if text.startswith((b"{", b"[")) else "text"


def _identify_binary(path: Path, head: bytes, size: int) -> str:
    if (
        head[:1] == b"\x08"
        and head[1] in range(1, 32)
        and len(head) > 2
        and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)
    ):
        return "onnx"
    if head[:8] in (b"\x04\0\0\0\x01\0\0\0", b"\x03\0\0\0\x01\0\0\0"):
        return "torch7"
    if len(head) > 2 and (0x81 <= head[0] <= 0x8F and (0xA1 <= head[1] <= 0xBF or head[1] == 0xD9)):
        return "flax-msgpack"
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        if file.read() == bytes.fromhex("57fb808b247547db"):
            return "tf-index"
    if not any(head):
        return "zeros"
    return "unknown"


def _identify_folder(path: Path) -> str:
    names = {entry.name for entry in path.iterdir()}
    if "adapter_config.json" in names:
        return "peft-folder"
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return "dcp-folder"
    if "zero_to_fp32.py" in names or any(name.startswith(("mp_rank_", "zero_pp_rank_")) for name in names):
        return "deepspeed-folder"
    if "latest" in names and any((path / name).is_dir() and name.startswith("global_step") for name in names):
        return "deepspeed-folder"
    if "saved_model.pb" in names:
        return "tf-saved-model"
    if any(name.endswith((".safetensors", ".index.json")) or name == "pytorch_model.bin" for name in names):
        return "hf-folder"
    return "folder"
