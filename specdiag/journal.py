"""Finished chunks on disk as they come, so that a killed run loses only the chunk in flight. Torch-free.

A journal is a folder with `settings.json` and one file per finished chunk. A chunk file is one line of
JSON (settings hash, chunk number, length and SHA-256 of the rest) and then a plain npz. It appears under
its name only when whole (temporary file, fsync, rename, fsync of the folder).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from specdiag.errors import ResultsError

_SETTINGS = "settings.json"
_CHUNK = re.compile(r"chunk-(\d{8})")
_STALE_AFTER = 3600.0

Array = np.ndarray[Any, np.dtype[Any]]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Which settings differ, as lines `options.method: autograd -> regression`, in the order of the keys.

    Compared as JSON, as their hash is: a tuple equals a list, but 1 is not 1.0.
    """
    lines = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif _text(before) != _text(after) or (key in old) != (key in new):
            left = _show(before) if key in old else "absent"
            right = _show(after) if key in new else "absent"
            lines.append(f"{prefix}{key}: {left} -> {right}")
    return lines


class Journal:
    """The finished chunks of one run. Several processes may write different chunks of one journal."""

    def __init__(self, folder: Path, settings_hash: str, settings: Mapping[str, Any]) -> None:
        """Open or create the journal; `settings` must be what JSON holds (`settings_hash` is its hash).

        Raises ResultsError when the folder belongs to a run with other settings (names them), or cannot
        be written to.
        """
        self.folder = Path(folder)
        self.settings_hash = settings_hash
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            known = self._stored()
            if known is None:
                text = json.dumps(
                    {"settings_hash": settings_hash, "settings": dict(settings)}, indent=1, default=str
                )
                self._place(self.folder / _SETTINGS, text.encode())
            self._drop_stale()
        if known is not None and known["settings_hash"] != settings_hash:
            changed = "; ".join(
                differences(known["settings"], json.loads(json.dumps(dict(settings), default=str)))
            )
            raise ResultsError(
                f"{self.folder} holds an unfinished run with other settings: {changed or 'not named'}.",
                "Use the old settings to continue it, --overwrite to discard it, or another --out.",
            )

    def write(self, chunk: int, arrays: Mapping[str, Array]) -> None:
        """Keep the arrays of a finished chunk; on return they are on the disk."""
        buffer = io.BytesIO()
        plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        np.savez(buffer, allow_pickle=False, **plain)
        payload = buffer.getbuffer()
        header = {
            "settings_hash": self.settings_hash,
            "chunk": chunk,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        with _explained(self.folder):
            self._place(self._file(chunk), json.dumps(header).encode() + b"\n", payload)

    def finished(self) -> tuple[int, ...]:
        """Numbers of the valid chunks, sorted. A torn, corrupt or foreign chunk file is removed."""
        result = []
        with _explained(self.folder):
            for file in sorted(self.folder.iterdir()):
                match = _CHUNK.fullmatch(file.name)
                if match is None:
                    continue
                if self._payload(int(match[1])) is None:
                    file.unlink(missing_ok=True)
                else:
                    result.append(int(match[1]))
        return tuple(result)

    def read(self, chunk: int) -> dict[str, Array]:
        """The arrays of a finished chunk; ResultsError when it is missing or damaged."""
        payload = self._payload(chunk)
        if payload is not None:
            with suppress(ValueError, OSError, zipfile.BadZipFile), np.load(io.BytesIO(payload)) as stored:
                return {name: stored[name] for name in stored.files}
        raise ResultsError(
            f"{self._file(chunk)} is missing or damaged.", "Run the same command again to compute it."
        )

    def remove(self) -> None:
        """Delete the journal: its chunks are in the results file now."""
        discard(self.folder)

    def _stored(self) -> dict[str, Any] | None:
        # chunks carry the hash themselves: a lost settings file never makes foreign chunks ours
        try:
            known = json.loads((self.folder / _SETTINGS).read_bytes())
            return known if isinstance(known["settings"], dict) and known["settings_hash"] else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _file(self, chunk: int) -> Path:
        return self.folder / f"chunk-{chunk:08d}"

    def _payload(self, chunk: int) -> bytes | None:
        try:
            line, _, payload = self._file(chunk).read_bytes().partition(b"\n")
            header = json.loads(line)
            expected = (self.settings_hash, chunk, len(payload), hashlib.sha256(payload).hexdigest())
            found = (header["settings_hash"], header["chunk"], header["bytes"], header["sha256"])
        except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError):
            return None
        return payload if found == expected else None

    def _place(self, file: Path, *parts: bytes | memoryview) -> None:
        temporary = file.parent / f".{file.name}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as stream:
                for part in parts:
                    stream.write(part)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        handle = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _drop_stale(self) -> None:
        # a young temporary file may belong to another process that is writing now
        for file in self.folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > _STALE_AFTER:
                    file.unlink()


def folder_of(path: Path, analyzer: str) -> Path:
    """The journal of an analyzer's group of the results file DIR/NAME.h5: DIR/.NAME.ANALYZER.journal."""
    return path.parent / f".{path.name.removesuffix('.h5')}.{analyzer}.journal"


def discard(folder: Path) -> None:
    """Delete the journal in `folder`, whatever its settings; nothing happens where there is none."""
    with _explained(folder), suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _show(value: Any) -> str:
    return value if isinstance(value, str) else _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultsError(
            f"Cannot keep finished chunks in {folder}: {error.strerror or error}.",
            "Free space or choose another folder with --out.",
        ) from error
