"""One reader per format: from a file to its content, tensors or what stands for them. Nothing is executed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from specdiag.errors import CheckpointError
from specdiag.loading import salvage, tensor_files
from specdiag.loading.archive import check_zip
from specdiag.loading.programs import Carried
from specdiag.loading.references import Storages
from specdiag.loading.scan import Scan, scan
from specdiag.loading.sniff import identify, refusal
from specdiag.loading.text import shown, some


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: nested containers with tensors or references to them, and remarks.

    carried: a network that the file brings along; trusted: what the user's trust was used for (`pickle`, `code`).
    """

    root: Any
    storages: Storages | None = None
    scan: Scan | None = None
    findings: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    carried: Carried | None = None
    trusted: tuple[str, ...] = ()


def read(path: Path, format: str) -> Content:
    """The content of a file in one of the loadable formats. Raises whatever a parser raises."""
    return READERS[format](path)


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; of a folder: of its weight files' names and hashes."""
    path = Path(path)
    try:
        if path.is_dir():
            lines = [f"{file.name} {sha256_of(file)}" for file in tensor_files.folder_files(path)]
            return hashlib.sha256("\n".join(lines).encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror}."
        raise CheckpointError(what, "Check the path and its permissions.", reason="unreadable") from None


def needs_code(path: Path, found: Scan, flag: str = "") -> CheckpointError:
    """The error for a pickle that names more than tensors. `flag`: the weights that can be salvaged."""
    if found.dangerous:
        what = f"{path} is refused: loading it would call {some(found.dangerous, 8)}. Nothing was executed."
        todo = "Do not load it anywhere; ask its author for a state_dict or safetensors file."
        return CheckpointError(what, todo, reason="dangerous-pickle")
    what = f"{path} needs Python code to load: {some(found.blocked, 8)}. Nothing was executed."
    todo = "where you trust its author, --trust-pickle runs that code."
    if flag:
        todo = f"its tensors alone can be read: add --weights {shown(flag)} and --arch. Or, {todo}"
    todo = todo[0].upper() + todo[1:]
    return CheckpointError(what, todo, reason="needs-code")


def _torch(path: Path, format: str) -> Content:
    """Through torch's own safe loading, or tensors only where the file names classes beside its tensors."""
    if format == "torch-zip":
        check_zip(path)
    found = scan(path, format)
    if found.dangerous:
        raise needs_code(path, found)
    if found.blocked:
        root, storages = (salvage.salvage_zip if format == "torch-zip" else salvage.salvage_legacy)(path)
        return Content(root, storages, found, _left_out(found))
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Content(torch.load(file, map_location="cpu", weights_only=True))


def _pickle(path: Path) -> Content:
    found = scan(path, "pickle")
    if found.dangerous:
        raise needs_code(path, found)
    return Content(salvage.salvage_pickle(path), None, found, _left_out(found))


def _script(path: Path) -> Content:
    check_zip(path)
    found = scan(path, "torchscript")
    if found.dangerous:
        raise needs_code(path, found)
    if not salvage.has_data(path):
        raise refusal(path, "torchscript")
    root, storages = salvage.salvage_zip(path)
    finding = "SD305 TorchScript: the weights were read, the program in the file was not run."
    return Content(root, storages, None, (finding,))


def _npz(path: Path) -> Content:
    tensors = tensor_files.read_npz(path)
    if tensors and set(tensors) <= {"x", "y", "x_train", "y_train", "x_test", "y_test"}:
        raise refusal(path, "npz")
    return Content(tensors)


def _exported(path: Path) -> Content:
    finding = "SD305 torch.export: the weights were read, the program in the file was not loaded."
    return Content(tensor_files.read_exported(path), findings=(finding,))


def _folder(path: Path) -> Content:
    tensors: dict[str, Any] = {}
    findings: list[str] = []
    for file in tensor_files.folder_files(path):
        part = read(file, identify(file))
        if not isinstance(part.root, dict) or part.scan is not None:
            raise (
                needs_code(file, part.scan)
                if part.scan
                else ValueError(f"{file.name} is no table of tensors")
            )
        tensors |= part.root
        findings += part.findings
    return Content(tensors, findings=tuple(findings), facts=tensor_files.folder_facts(path))


def _left_out(found: Scan) -> tuple[str, ...]:
    """What to tell about names that were not looked up."""
    other = [name for name in found.blocked if name not in found.plain]
    if not other:
        return (f"SD304 plain data beside the weights were left out: {some(found.plain)}.",)
    return (f"SD302 only tensors were read; objects that need code were left out: {some(other, 8)}.",)


READERS: dict[str, Callable[[Path], Content]] = {
    "torch-zip": lambda path: _torch(path, "torch-zip"),
    "torch-legacy": lambda path: _torch(path, "torch-legacy"),
    "pickle": _pickle,
    "torchscript": _script,
    "torch-export": _exported,
    "safetensors": lambda path: Content(tensor_files.read_safetensors(path)),
    "npz": _npz,
    "hf-folder": _folder,
}
