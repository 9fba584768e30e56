"""Checkpoint files: read safely (no byte is executed), or written so that equal content gives equal bytes."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from specdiag.errors import CheckpointError
from specdiag.loading import scan, sniff
from specdiag.loading.archive import check_zip
from specdiag.loading.candidates import candidates, choose
from specdiag.loading.prefixes import COUNTERS, strip_wrappers

FORMAT_VERSION = 1
SAFE_TORCH = (2, 10)
EXPANDED_FREE = 64 * 2**20
BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of one file and what is known about them.

    sha256: of the whole file; format: id of `sniff.identify`; weights: dotted place of the chosen mapping, '' for
    the top level; candidates: places of all mappings of names to tensors; tensors: plain name -> CPU tensor,
    wrapper prefixes removed; stripped: those prefixes; metadata: what specdiag wrote when it saved the file
    (empty for other files); findings: remarks for the user, each led by an id.
    """

    path: Path
    sha256: str
    format: str
    weights: str
    candidates: tuple[str, ...]
    tensors: dict[str, torch.Tensor]
    stripped: tuple[str, ...]
    metadata: dict[str, Any]
    findings: tuple[str, ...]


def read_checkpoint(path: Path | str, weights: str | None = None) -> Checkpoint:
    """Read the weights of a checkpoint without executing any of it.

    weights: dotted place of the mapping to take (`.` for the top level); by default the largest.
    Raises CheckpointError with a stable `reason`; every failure of a parser becomes one.
    """
    path = Path(path)
    format = sniff.identify(path)
    if format not in sniff.LOADABLE:
        raise sniff.refusal(path, format)
    digest = sha256_of(path)
    content = _load(path, format)
    found = candidates(content)
    chosen = choose(found, weights, path.name)
    plain, stripped = strip_wrappers(chosen.tensors)
    tensors = {plain[name]: value for name, value in chosen.tensors.items() if plain[name] not in COUNTERS}
    check_tensors(tensors, path)
    return Checkpoint(
        path=path,
        sha256=digest,
        format=format,
        weights=chosen.key,
        candidates=tuple(entry.key for entry in found),
        tensors=tensors,
        stripped=stripped,
        metadata=read_metadata(content, path),
        findings=(*torch_findings(), *_leftovers(chosen.others, content)),
    )


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror}."
        raise CheckpointError(what, "Check its permissions.", reason="unreadable") from None


def _load(path: Path, format: str) -> Any:
    if format == "torch-zip":
        check_zip(path)
    found = scan.scan(path, format)
    if found.blocked:
        raise needs_code(path, found)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises eight kinds of exception on damaged files: none of them is the user's to read
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that its parser gave up on."""
    detail = (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:160].rstrip(".")
    what = f"{path} cannot be read as a checkpoint ({type(error).__name__}: {detail})."
    return CheckpointError(what, "Download or save it again.", reason="damaged-checkpoint")


def needs_code(path: Path, found: scan.Scan) -> CheckpointError:
    """The error for a pickle that names more than tensors; lists the names, nothing was executed."""
    listing = ", ".join(found.blocked[:8]) + (
        f" and {len(found.blocked) - 8} more" if len(found.blocked) > 8 else ""
    )
    if found.dangerous:
        what = f"{path} is refused: loading it would call {', '.join(found.dangerous[:8])}. Nothing was executed."
        todo = "Do not load it anywhere; ask its author for a state_dict or safetensors file."
        return CheckpointError(what, todo, reason="dangerous-pickle")
    what = f"{path} needs Python code to load: {listing}. Nothing was executed."
    todo = (
        "Where you trust it, load it with its own code and save torch.save(model.state_dict(), 'weights.pt')."
    )
    return CheckpointError(what, todo, reason="needs-code")


def check_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that no network can be analysed with; each error names the tensor.

    Reasons: `meta-weights`, `quantised-weights`, `sparse-weights`, `damaged-checkpoint`, `nan-weights`.
    """
    expanded = 0
    for name, tensor in tensors.items():
        if tensor.is_meta:
            what, reason = f"{path}: tensor '{name}' has a shape but no values (meta device).", "meta-weights"
            raise CheckpointError(what, "Save the model after its weights are loaded.", reason=reason)
        if tensor.is_quantized:
            what, reason = f"{path}: tensor '{name}' is quantised.", "quantised-weights"
            raise CheckpointError(what, "Give the weights from before quantisation.", reason=reason)
        if tensor.layout != torch.strided:
            what, reason = f"{path}: tensor '{name}' is stored as {tensor.layout}.", "sparse-weights"
            raise CheckpointError(what, "Save it dense: tensor.to_dense().", reason=reason)
        expanded += max(0, tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes())
        if expanded > EXPANDED_FREE:
            what = (
                f"{path}: tensor '{name}' claims {tensor.numel():,} values but the file does not hold them."
            )
            raise CheckpointError(what, "Save it again.", reason="damaged-checkpoint")
    for name, tensor in tensors.items():
        bad = not_finite(tensor)
        if bad:
            what = f"{path}: tensor '{name}' holds {bad:,} NaN or infinite values of {tensor.numel():,}."
            raise CheckpointError(
                what, "Take a checkpoint from before training diverged.", reason="nan-weights"
            )


def not_finite(tensor: torch.Tensor) -> int:
    """Number of NaN or infinite entries."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return 0
    values = tensor.float() if tensor.element_size() == 1 else tensor
    return int(values.numel() - int(torch.isfinite(values).sum()))


def read_metadata(content: Any, path: Path) -> dict[str, Any]:
    """What specdiag wrote into its own checkpoint; {} for any other file. A broken entry is a CheckpointError."""
    if not isinstance(content, Mapping) or not isinstance(content.get("specdiag"), str):
        return {}
    try:
        metadata = json.loads(content["specdiag"])
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        what = f"{path}: its specdiag metadata are no JSON object."
        raise CheckpointError(what, "Save it again with specdiag.", reason="damaged-checkpoint")
    version = metadata.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        what = f"{path} was written by a newer specdiag (format {version})."
        raise CheckpointError(what, "Install a newer specdiag.", reason="newer-format")
    return metadata


def torch_findings() -> tuple[str, ...]:
    """A warning where torch is older than the release that fixed its loader."""
    numbers = torch.__version__.split(".")[:2]
    if tuple(int(number) for number in numbers) >= SAFE_TORCH:
        return ()
    wanted = ".".join(str(number) for number in SAFE_TORCH)
    return (f"SD310 torch {torch.__version__} has known flaws in its loader; install torch >= {wanted}.",)


def _leftovers(others: tuple[str, ...], content: Any) -> tuple[str, ...]:
    if isinstance(content, Mapping) and "specdiag" in content:
        return ()
    extra = [name for name in others if name.endswith("_extra_state")]
    return (f"SD320 not analysed: {', '.join(extra[:5])} (extra state, no tensor).",) if extra else ()


def save_checkpoint(
    path: Path | str, state_dict: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write specdiag's own format; equal content gives equal bytes; atomic (temporary file, fsync, rename).

    metadata: JSON-able; `format_version` is added. Keys that loading understands: architecture, arch_args,
    normalise (`channel`, `per-image` or `none`), mean, std, data, input_shape, classes, train.
    """
    path = Path(path)
    facts = {"format_version": FORMAT_VERSION, **metadata}
    content = {
        "specdiag": json.dumps(_finite(facts), sort_keys=True, allow_nan=False),
        "state_dict": {name: _plain(tensor) for name, tensor in state_dict.items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write(file, buffer)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, buffer: io.BytesIO) -> None:
    file.write(buffer.getbuffer())
    file.flush()
    os.fsync(file.fileno())


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with a storage of its own: views and shared storages would leak into the bytes."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _finite(value: Any) -> Any:
    """The value with tuples as lists; a NaN or an infinity becomes its name, which JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
