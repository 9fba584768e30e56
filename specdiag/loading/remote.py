"""Checkpoints that lie elsewhere (`s3://`, `gs://`, `hf://`, `https://`): fetched once through fsspec, checked by hash. No torch.

The command line turns `s3://bucket/x.pt` into a path, which drops one of the slashes; both spellings are understood.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specdiag.errors import CheckpointError, MissingExtra

CACHE = "SPECDIAG_CACHE"
BLOCK = 2**20
# scheme: the library that fsspec needs for it, and the extra that brings it
SCHEMES: dict[str, tuple[str, str]] = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "hf": ("huggingface_hub", "hf"),
    "http": ("aiohttp", "remote"),
    "https": ("aiohttp", "remote"),
    "file": ("fsspec", "remote"),
    "memory": ("fsspec", "remote"),
}
_URL = re.compile(r"^([a-z][a-z0-9]+):/+(.*?)(?:#sha256=([0-9a-f]{64}))?$", re.DOTALL)
FOLDER_FILES = re.compile(
    r"(?:.*\.safetensors|.*\.index\.json|(?:preprocessor_)?config\.json|pytorch_model.*\.bin)$"
)


def is_remote(path: Path | str) -> bool:
    """Whether a path is a URL of one of the schemes."""
    found = _URL.match(str(path))
    return found is not None and found[1] in SCHEMES


def url_of(path: Path | str) -> str:
    """The URL, with both slashes and without the hash."""
    found = _URL.match(str(path))
    if found is None:
        raise ValueError(f"{path} is no URL")
    front = "///" if found[1] == "file" else "://"
    return f"{found[1]}:///{found[2]}" if front == "///" else f"{found[1]}://{found[2]}"


def fetch(path: Path | str) -> Path:
    """The local copy of a remote file or folder; a local path comes back as it is.

    A copy from an earlier run is used only where the remote side still gives the same size and version, and the copy
    still has the hash that it was stored with. `URL#sha256=HEX` states the hash that the file must have. Raises
    MissingExtra, or CheckpointError (`remote`, `missing`, `hash-mismatch`).
    """
    if not is_remote(path):
        return Path(path)
    url, found = url_of(path), _URL.match(str(path))
    expected = found[3] if found is not None else None
    with _explained(url):
        system, place = _system(url)
        folder = bool(system.isdir(place))
    if not folder:
        return _one(system, place, url, expected)
    return _folder(system, place, url)


def glob(pattern: Path | str) -> list[str]:
    """URLs of the files that a URL with wildcards names, in order. Raises MissingExtra or CheckpointError (`remote`)."""
    url = url_of(pattern)
    with _explained(url):
        system, place = _system(url)
        found = system.glob(place, detail=True)
        files = sorted(str(entry) for entry, facts in found.items() if facts.get("type") != "directory")
        return [str(system.unstrip_protocol(entry)) for entry in files]


def _system(url: str) -> tuple[Any, str]:
    try:
        import fsspec  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise MissingExtra("fsspec", "remote") from None
    system, place = fsspec.core.url_to_fs(url)
    return system, place


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """What a far file system raises, as one line."""
    try:
        yield
    except MissingExtra:
        raise
    except ImportError:
        library, extra = SCHEMES[url.partition(":")[0]]
        raise MissingExtra(library, extra) from None
    except Exception as error:
        raise _failed(url, error) from error


def _folder(system: Any, place: str, url: str) -> Path:
    """The weight files and settings of a folder, as Hugging Face has them."""
    try:
        files = [str(entry) for entry in system.ls(place, detail=False)]
    except Exception as error:
        raise _failed(url, error) from error
    wanted = {file.rsplit("/", 1)[-1]: file for file in files}
    wanted = {name: file for name, file in wanted.items() if FOLDER_FILES.match(name)}
    if any(name.endswith(".safetensors") for name in wanted):
        wanted = {name: file for name, file in wanted.items() if ".bin" not in name}
    if not wanted:
        what = f"{url} is a folder without weight files."
        raise CheckpointError(what, "Give the file you mean.", reason="folder")
    target = _cache() / hashlib.sha256(url.encode()).hexdigest()[:24] / url.rstrip("/").rsplit("/", 1)[-1]
    target.mkdir(parents=True, exist_ok=True)
    for name, file in wanted.items():
        local = _one(system, file, f"{url.rstrip('/')}/{name}", None)
        if not (target / name).exists() or not (target / name).samefile(local):
            (target / name).unlink(missing_ok=True)
            _link(local, target / name)
    return target


def _one(system: Any, place: str, url: str, expected: str | None) -> Path:
    try:
        facts = {"size": system.info(place).get("size"), "version": _version(system, place)}
    except FileNotFoundError:
        raise CheckpointError(f"There is no file {url}.", "Check the address.", reason="missing") from None
    except Exception as error:
        raise _failed(url, error) from error
    folder = _cache() / hashlib.sha256(url.encode()).hexdigest()[:24]
    target, note = folder / (url.rsplit("/", 1)[-1] or "checkpoint"), folder / "fetched.json"
    stored = _read(note)
    same = stored.get("facts") == facts and target.is_file() and _sha256(target) == stored.get("sha256")
    if not same:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(system, place, target, note, {"url": url, "facts": facts})
        except OSError as error:
            raise _failed(url, error) from error
    digest = _read(note).get("sha256")
    if expected is not None and digest != expected:
        what = f"{url} has the SHA-256 {digest}, not {expected}."
        raise CheckpointError(what, "Do not use it before you know why.", reason="hash-mismatch")
    return target


def _version(system: Any, place: str) -> str:
    """What the remote side says changes with the content: its checksum, tag or time."""
    try:
        return str(system.ukey(place))
    except Exception:
        return ""


def _download(system: Any, place: str, target: Path, note: Path, facts: dict[str, Any]) -> None:
    digest = hashlib.sha256()
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".fetching-")
    try:
        with os.fdopen(descriptor, "wb") as out:
            try:
                with system.open(place, "rb") as source:
                    while block := source.read(BLOCK):
                        digest.update(block)
                        out.write(block)
            except Exception as error:
                raise _failed(facts["url"], error) from error
            out.flush()
            os.fsync(out.fileno())
            size = out.tell()
        if facts["facts"]["size"] not in (None, size):
            what = f"{facts['url']} ended after {size:,} of {facts['facts']['size']:,} bytes."
            raise CheckpointError(what, "Try again.", reason="remote")
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    note.write_text(json.dumps({**facts, "sha256": digest.hexdigest()}))


def _cache() -> Path:
    """SPECDIAG_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get(CACHE) or Path(base) / "specdiag")


def _read(note: Path) -> dict[str, Any]:
    try:
        found = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _failed(url: str, error: BaseException) -> CheckpointError:
    detail = (str(error).strip().splitlines() or [""])[0][:160]
    what = f"{url} cannot be fetched ({type(error).__name__}: {detail})."
    return CheckpointError(what, "Check the address, your access and the network.", reason="remote")
