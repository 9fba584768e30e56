"""Checkpoint files: read safely (no byte is executed), or written so that equal content gives equal bytes."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from specdiag.errors import CheckpointError, SpecdiagError, UsageError
from specdiag.loading import huggingface, onnx, readers, remote, reparam, sniff, trusted
from specdiag.loading.candidates import Candidate, candidates, choose
from specdiag.loading.checks import check_tensors, tied
from specdiag.loading.extras import without_copy, without_normaliser
from specdiag.loading.factories import runs_code
from specdiag.loading.facts import facts_of
from specdiag.loading.prefixes import COUNTERS, strip_wrappers
from specdiag.loading.programs import Carried
from specdiag.loading.readers import sha256_of
from specdiag.loading.references import ArrayRef, TensorRef, refuse_problem
from specdiag.loading.text import shown, some
from specdiag.loading.trusted import Trust

__all__ = ["FORMAT_VERSION", "Checkpoint", "Trust", "read_checkpoint", "save_checkpoint", "sha256_of"]

# 1: {'specdiag': JSON text, 'state_dict': {name: tensor}}
FORMAT_VERSION = 1
SAFE_TORCH = (2, 10)
DETAIL = 160


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of one file and what is known about them.

    sha256: of the whole file; format: id of `sniff.identify`; weights: dotted place of the chosen
    mapping, '' for the top level; candidates: places of all mappings of names to tensors; tensors: plain
    name -> CPU tensor, wrapper prefixes removed, reparametrised weights folded; stripped: those
    prefixes; metadata: what specdiag wrote when it saved the file (empty for other files); findings:
    remarks for the user, each led by an id; facts: what another program wrote beside its weights
    (`arch`, `epoch`, ...); carried: a network that the file brings along; trusted: what of the file was run
    because the user asked for it (`pickle`, `code`); source: where it was fetched from, where it is not local.
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
    facts: dict[str, Any] = field(default_factory=dict)
    carried: Carried | None = None
    trusted: tuple[str, ...] = ()
    source: str = ""


NO_TRUST = Trust()


def read_checkpoint(
    path: Path | str, weights: str | None = None, *, finite: bool = True, trust: Trust = NO_TRUST
) -> Checkpoint:
    """Read the weights of a checkpoint without executing any of it, unless `trust` says so.

    weights: dotted place of the mapping to take (`.` for the top level), or the front of its tensors'
    names; by default the largest mapping; finite: refuse NaN and infinite weights. Raises
    CheckpointError with a stable `reason`; every failure of a parser becomes one.
    """
    source = remote.url_of(path) if remote.is_remote(path) else ""
    path = remote.fetch(path)
    format = sniff.identify(path)
    allowed = trust.code and format in trusted.PROGRAMS
    if format not in sniff.LOADABLE and not allowed:
        raise sniff.refusal(path, format)
    try:
        found = _read(path, format, weights, finite, trust)
        return dataclasses.replace(found, source=source) if source else found
    except SpecdiagError:
        raise
    except Exception as error:
        # torch.load alone raises eight kinds of exception on damaged files: none is for the user to read
        detail = shown((str(error).strip().split("\n", 1)[0] or "no detail")[:DETAIL].rstrip("."))
        what = f"{path} cannot be read as a checkpoint ({type(error).__name__}: {detail})."
        raise CheckpointError(what, "Download or save it again.", reason="damaged-checkpoint") from error


def _read(path: Path, format: str, weights: str | None, finite: bool, trust: Trust) -> Checkpoint:
    digest = sha256_of(path)
    content = (
        onnx.read(path)
        if format == "onnx"
        else trusted.read(path, format, trust) or readers.read(path, format)
    )
    found = candidates(content.root)
    if not found and content.scan is not None and content.scan.blocked:
        raise readers.needs_code(path, content.scan)
    chosen = choose(found, weights, path.name)
    if chosen.module and weights is None and content.scan is not None:
        raise readers.needs_code(path, content.scan, chosen.flag)
    raw = {name: value for name, value in _tensors(chosen, content, path).items() if name not in COUNTERS}
    plain, stripped = strip_wrappers(raw)
    stated = {plain[name]: value for name, value in raw.items() if plain[name] not in COUNTERS}
    check_tensors(stated, path, finite)
    tensors, folded = reparam.fold(stated)
    if folded:
        check_tensors(tensors, path, finite)
    spelled: tuple[str, ...] = ()
    folder = content.facts.get("hf_config")
    translated = None if folder is None or weights is not None else huggingface.renamed(folder, tensors)
    if translated is not None and set(translated) != set(tensors):
        tensors = translated
        spelled = ("SD333 names are those of the installed transformers; the values are the file's.",)
    _, normalise = without_normaliser(without_copy(tensors))
    metadata, refused = _without_code(_metadata(content.root, path))
    return Checkpoint(
        path=path,
        sha256=digest,
        format=format,
        weights=chosen.key,
        candidates=tuple(entry.key for entry in found),
        tensors=tensors,
        stripped=stripped,
        metadata=metadata,
        findings=(*_old_torch(), *content.findings, *_remarks(chosen, tensors, folded), *spelled, *refused),
        facts={**facts_of(content.root), **content.facts, **(normalise or {})},
        carried=content.carried if chosen.network is None else trusted.carried(chosen.network),
        trusted=content.trusted,
    )


def _tensors(chosen: Candidate, content: readers.Content, path: Path) -> dict[str, torch.Tensor]:
    """The chosen mapping with its references read from the file."""
    cache: dict[str, bytearray] = {}
    result = {}
    for name, value in chosen.tensors.items():
        if isinstance(value, TensorRef):
            if value.problem:
                raise refuse_problem(name, value.problem, path)
            value = value.read(content.storages, cache)  # type: ignore[arg-type]
        elif isinstance(value, ArrayRef):
            value = value.tensor()
        result[name] = value.detach()
    return result


def _metadata(root: Any, path: Path) -> dict[str, Any]:
    """What specdiag wrote into its own checkpoint; {} for any other file."""
    text = dict.get(root, "specdiag") if isinstance(root, dict) else None
    if not isinstance(text, str):
        return {}
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        metadata = None
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(version, int):
        what = f"{path}: its specdiag metadata cannot be read."
        raise CheckpointError(what, "Save it again with specdiag.", reason="damaged-checkpoint")
    if version > FORMAT_VERSION:
        what = f"{path} was written by a newer specdiag (format {version})."
        raise CheckpointError(what, "Install a newer specdiag.", reason="newer-format")
    return metadata


def _without_code(metadata: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The metadata without an architecture that is code: a file must not say what is imported."""
    spec = metadata.get("architecture")
    if spec is None or (isinstance(spec, str) and not runs_code(spec) and not spec.startswith("hf:")):
        return metadata, []
    rest = {key: value for key, value in metadata.items() if key not in ("architecture", "arch_args")}
    return rest, [
        f"SD306 it names the architecture {shown(str(spec))}, which is code or would be fetched: pass --arch yourself."
    ]


def _old_torch() -> tuple[str, ...]:
    numbers = torch.__version__.split(".")[:2]
    if tuple(int(number) for number in numbers) >= SAFE_TORCH:
        return ()
    wanted = ".".join(str(number) for number in SAFE_TORCH)
    return (f"SD310 torch {torch.__version__} has known flaws in its loader; install torch >= {wanted}.",)


def _remarks(chosen: Candidate, tensors: dict[str, torch.Tensor], folded: tuple[str, ...]) -> list[str]:
    remarks = []
    extra = [name for name in chosen.others if name.endswith("_extra_state")]
    if extra:
        remarks.append(f"SD320 not analysed, no tensors: {some(extra)}.")
    for names in tied(tensors):
        remarks.append(f"SD330 tied weights: {some(names)} share their values.")
    if folded:
        remarks.append(f"SD331 folded into plain weights: {some(folded)}.")
    left = reparam.unknown(tensors)
    if left:
        remarks.append(f"SD332 parametrised in a way that is not folded: {some(left)}.")
    return remarks


def save_checkpoint(
    path: Path | str, state_dict: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write specdiag's own format; equal content gives equal bytes; atomic (temporary file, fsync, rename).

    metadata: JSON-able; `format_version` is added. Keys that loading understands: architecture,
    arch_args, normalise (`channel`, `per-image` or `none`), mean, std, data, input_shape, classes,
    train. Raises UsageError where the folder cannot be written.
    """
    path = Path(path)
    facts = {"format_version": FORMAT_VERSION, **metadata}
    content = {
        "specdiag": json.dumps(_jsonable(facts), sort_keys=True, allow_nan=False),
        # a storage of its own for each: views and shared storages would show in the bytes
        "state_dict": {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in state_dict.items()
        },
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _jsonable(value: Any) -> Any:
    """The value with tuples as lists; a NaN or an infinity becomes its name, which JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
