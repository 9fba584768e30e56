"""Formats that hold named tensors and nothing else: safetensors, .npz, and Hugging Face folders of them."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specdiag.errors import CheckpointError
from specdiag.loading.archive import check_zip
from specdiag.loading.references import BrokenFileError
from specdiag.loading.sniff import identify, refusal

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises BrokenFileError where header and content disagree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        start = 8 + length
        if not isinstance(header, dict):
            raise BrokenFileError("its header is no table")
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        _check_layout(entries, size - start)
        tensors = {}
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            shape, dtype = entry["shape"], TYPES.get(entry["dtype"])
            if dtype is None:
                raise BrokenFileError(f"tensor '{name}' has the type {entry['dtype']}")
            count = int(np.prod([int(n) for n in shape], dtype=object)) if shape else 1
            if any(not isinstance(n, int) or n < 0 for n in shape) or count * dtype.itemsize != end - begin:
                raise BrokenFileError(f"tensor '{name}' has another size than its shape")
            file.seek(start + begin)
            raw = bytearray(file.read(end - begin))
            flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            tensors[name] = flat.reshape(shape)
    return tensors


def _check_layout(entries: dict[str, Any], size: int) -> None:
    """Tensors lie side by side, none over another, all inside the file."""
    end = 0
    for begin, stop in sorted(tuple(entry["data_offsets"]) for entry in entries.values()):
        if not end <= begin <= stop <= size:
            raise BrokenFileError("tensors overlap or leave the file")
        end = stop


def read_npz(path: Path) -> dict[str, torch.Tensor]:
    """All numeric arrays of an .npz file; pickled ones are refused."""
    check_zip(path)
    tensors = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.dtype.kind in "?biuf":
                tensors[name] = torch.from_numpy(
                    np.array(array.astype(array.dtype.newbyteorder("=")), order="C")
                )
    return tensors


def folder_files(path: Path) -> list[Path]:
    """The weight files of a Hugging Face folder: safetensors rather than .bin, shards by their index.

    Raises CheckpointError (`missing-shard`, `several-files`).
    """
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (path / single).is_file():
            return [path / single]
        if (path / index).is_file():
            return _shards(path, path / index)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files
    listing = ", ".join(file.name for file in files[:5])
    what = f"{path} holds several weight files and no index: {listing}."
    raise CheckpointError(what, "Give the file you mean.", reason="several-files")


def _shards(path: Path, index: Path) -> list[Path]:
    weight_map = json.loads(index.read_text())["weight_map"]
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if "/" in name or "\\" in name or name.startswith("."):
            raise BrokenFileError(f"its index names {name[:60]}, outside the folder")
        if not (path / name).is_file():
            what = f"{path} lacks {name}, which {index.name} names."
            raise CheckpointError(what, "Download the whole folder again.", reason="missing-shard")
        if identify(path / name) not in ("safetensors", "torch-zip", "torch-legacy"):
            raise refusal(path / name, identify(path / name))
    return [path / name for name in names]


def folder_facts(path: Path) -> dict[str, Any]:
    """What a folder's config.json says of the network."""
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    wanted = ("architectures", "architecture", "model_type", "num_classes", "num_labels", "image_size")
    if not isinstance(config, dict):
        return {}
    facts = {key: config[key] for key in wanted if key in config}
    if isinstance(config.get("model_type"), str):
        facts["hf_config"] = path.absolute()
    return facts | _normalisation(path, config)


def _normalisation(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Mean and std that the folder states for its inputs: transformers beside its config, timm inside."""
    try:
        beside = json.loads((path / "preprocessor_config.json").read_text())
    except (OSError, ValueError, RecursionError):
        beside = {}
    inside = config.get("pretrained_cfg")
    for source, names in ((beside, ("image_mean", "image_std")), (inside, ("mean", "std"))):
        if not isinstance(source, dict) or source.get("do_normalize") is False:
            continue
        values = [source.get(name) for name in names]
        if all(
            isinstance(value, list) and value and all(isinstance(n, int | float) for n in value)
            for value in values
        ):
            return {"stated_mean": values[0], "stated_std": values[1]}
    return {}


def read_exported(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a torch.export archive (.pt2), by its table; nothing of the program is loaded.

    Raises CheckpointError (`torch-export`) for the layouts of older torch releases.
    """
    check_zip(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        tables = [name for name in names if name.endswith("data/weights/model_weights_config.json")]
        if len(tables) != 1:
            raise refusal(path, "torch-export")
        folder = tables[0].removesuffix("model_weights_config.json")
        tensors = {}
        for name, entry in json.loads(archive.read(tables[0]))["config"].items():
            meta = entry["tensor_meta"]
            if entry.get("use_pickle") or f"{folder}{entry['path_name']}" not in names:
                raise refusal(path, "torch-export")
            raw = bytearray(archive.read(f"{folder}{entry['path_name']}"))
            tensors[name] = _exported_tensor(name, raw, meta)
    return tensors


EXPORT_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}


def _exported_tensor(name: str, raw: bytearray, meta: dict[str, Any]) -> torch.Tensor:
    dtype = EXPORT_TYPES.get(meta["dtype"])
    if dtype is None:
        raise BrokenFileError(f"tensor '{name}' has an unknown type")
    shape = [int(entry["as_int"]) for entry in meta["sizes"]]
    stride = [int(entry["as_int"]) for entry in meta["strides"]]
    offset = int(meta["storage_offset"]["as_int"])
    if min([offset, *shape, *stride]) < 0 or len(shape) != len(stride):
        raise BrokenFileError(f"tensor '{name}' has a negative size")
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if (last + 1) * dtype.itemsize > len(raw):
        raise BrokenFileError(f"tensor '{name}' leaves its storage")
    flat = torch.frombuffer(raw, dtype=dtype, count=len(raw) // dtype.itemsize)
    return flat.as_strided(shape, stride, offset)
