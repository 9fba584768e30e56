"""Zip archives as checkpoints use them: which kind it is, and whether it is whole. No torch.

Nothing is unpacked to disk. Sizes and checksums are checked before any reader sees the content, because
torch itself loads a file with a flipped weight bit without a word.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from specdiag.errors import CheckpointError

MAX_MEMBERS = 200_000
MAX_RATIO = 20
RATIO_FREE = 256 * 2**20
BLOCK = 2**20
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OSError, RuntimeError)


def kind_of_zip(path: Path) -> str:
    """Format id of a file that starts like a zip: by the names of its members alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (*DAMAGED, UnicodeDecodeError, OverflowError, MemoryError, KeyError, IndexError):
        return "truncated-zip" if not _has_directory(path) else "damaged-zip"
    return kind_of_names(names)


def kind_of_names(names: list[str]) -> str:
    """Format id by the member names of a zip; torch roots its members in one folder of any name."""
    inner = {name.split("/", 1)[1] if "/" in name else name for name in names}
    tops = set(names)
    if not names:
        return "empty-zip"
    if any(name.startswith("MAR-INF/") for name in names):
        return "mar"
    if any(name.startswith(".data/extern_modules") for name in inner | tops):
        return "torch-package"
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return "torchscript"
    if "archive_format" in inner | tops or "serialized_exported_program.json" in inner | tops:
        return "torch-export"
    if "data.pkl" in inner:
        return "torch-zip"
    if "model.json" in inner and any(name.startswith("tensors/") for name in inner):
        return "torchscript"
    if all(name.endswith(".npy") for name in names):
        return "npz"
    if {"config.json", "metadata.json"} <= tops and any(name.endswith(".h5") for name in tops):
        return "keras-zip"
    return "zip"


def _has_directory(path: Path) -> bool:
    """Whether the end-of-directory record, which a truncated zip lacks, is in the last 64 KiB."""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 2**16 - 22))
        return b"PK\x05\x06" in file.read()


def check_zip(path: Path) -> None:
    """Refuse a zip that is damaged, ambiguous or unreasonably large once unpacked; reads every byte once.

    Raises CheckpointError with reason `damaged-zip`, `duplicate-members`, `archive-bomb` or `encrypted-zip`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            for member in archive.infolist():
                _check_sum(archive, member)
    except (*DAMAGED, UnicodeDecodeError, OverflowError, MemoryError, KeyError, IndexError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: BaseException) -> CheckpointError:
    """The error for a zip whose bytes are not what its checksums say."""
    detail = str(error).split("\n", 1)[0][:160] or type(error).__name__
    return CheckpointError(
        f"{path.name} is damaged: {detail}.".replace("..", "."),
        "Download or copy it again, and compare its SHA-256 with the source's.",
        reason="damaged-zip",
    )


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    members = archive.infolist()
    again = "Save it again with torch.save."
    if len(members) > MAX_MEMBERS:
        raise CheckpointError(f"{path.name} has {len(members):,} members.", again, reason="archive-bomb")
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        what = f"{path.name} holds the member '{twice[:80]}' twice, so readers disagree on its content."
        raise CheckpointError(what, again, reason="duplicate-members")
    if any(member.flag_bits & 1 for member in members):
        raise CheckpointError(f"{path.name} is encrypted.", "Decrypt it first.", reason="encrypted-zip")
    if any(name.startswith("/") or ".." in name.split("/") for name in names):
        raise CheckpointError(
            f"{path.name} has member names that leave its folder.", again, reason="archive-paths"
        )
    total = sum(member.file_size for member in members)
    if total > MAX_RATIO * path.stat().st_size + RATIO_FREE:
        what = f"{path.name} would unpack to {total / 2**30:,.1f} GiB, far more than its own size."
        raise CheckpointError(what, again, reason="archive-bomb")


def _check_sum(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Read one member through; zipfile raises BadZipFile when its CRC-32 is wrong."""
    with archive.open(member) as file:
        while file.read(BLOCK):
            pass
