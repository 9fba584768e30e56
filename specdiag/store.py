"""Results on disk: one HDF5 file per checkpoint, one group per analyzer. Torch-free.

`h5py.File(p)["spectrum/singular_values"]` and `xarray.open_dataset(p, group="spectrum",
engine="h5netcdf")` both read what is written here. A file is never changed in place: a writer makes a
whole new file beside it and renames, under a lock, so that a reader or a killed process never meets a
half-written one. Equal contents give equal bytes, in whichever order the groups were written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray

from specdiag.errors import ResultsError
from specdiag.locks import alone, explained, first_line, locked, name_of

# History of the format. A reader accepts its own version and all older ones.
# 1: one group per analyzer; JSON provenance in the group attribute `specdiag`; version in the root.
FORMAT_VERSION = 1

_ROOT = "specdiag_format"
_NUMBERS = ("value", "error", "low", "high")


def json_safe(value: Any) -> Any:
    """`value` as strict JSON can hold it.

    Mappings, dataclasses, tuples, paths and numpy values become their plain counterparts; NaN and
    infinities become the texts "nan", "inf" and "-inf". Raises TypeError on anything else.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: json_safe(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return json_safe(value.tolist())
    if isinstance(value, np.generic):
        return json_safe(value.item())
    if isinstance(value, list | tuple):
        return [json_safe(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def settings_hash(settings: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of the settings; the order of keys does not matter."""
    text = json.dumps(json_safe(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_group(
    path: Path, group: str, dataset: xarray.Dataset, *, overwrite: bool = False, wait: float = 60.0
) -> None:
    """Write `dataset` as the group of one analyzer, keeping all other groups of the file.

    The new file is complete on disk (fsync) before it takes the place of the old one. Raises
    ResultsError when the group exists and `overwrite` is off, when another process holds the lock for
    more than `wait` seconds, when the existing file is not specdiag's, or when the folder is not
    writable or full.
    """
    path = Path(path)
    with locked(path, wait), alone(path):
        present = groups(path) if path.exists() else ()
        if group in present and not overwrite:
            raise ResultsError(
                f"{path} holds results of {group} already.",
                "Replace them with --overwrite, or choose another --out.",
            )
        temporary = path.parent / f".{name_of(path)}.tmp"
        try:
            with explained(path.parent):
                _write_file(temporary, path, group, dataset, sorted({*present, group}))
                os.replace(temporary, path)
                _fsync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()


def read_group(path: Path, group: str) -> xarray.Dataset:
    """The stored results of one analyzer, loaded in memory; raises ResultsError where there are none."""
    path = Path(path)
    present = groups(path)
    if group not in present:
        held = ", ".join(present) or "nothing"
        raise ResultsError(f"{path} holds no results of {group}.", f"It holds: {held}.")
    with _damaged(path), _open(path, group) as dataset:
        return dataset.load()


def groups(path: Path) -> tuple[str, ...]:
    """Names of the analyzers with results in the file, sorted.

    Raises ResultsError for a missing or damaged file, one that specdiag did not write, and one of a
    newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise ResultsError(
            f"There is no results file {path}.", "Run an analyzer first, for example: specdiag spectrum"
        )
    with _damaged(path):
        if not h5py.is_hdf5(path):
            raise ResultsError(f"{path} is not an HDF5 file.", "Give a results file that specdiag wrote.")
        with h5py.File(path, "r") as file:
            _check_version(path, file.attrs.get(_ROOT))
            return tuple(sorted(name for name, item in file.items() if isinstance(item, h5py.Group)))


def with_provenance(dataset: xarray.Dataset, facts: Mapping[str, Any]) -> xarray.Dataset:
    """A copy of the dataset that carries `facts` as one JSON attribute `specdiag` plus flat ones for people.

    The flat attributes (checkpoint, sha256, architecture, analyzer, data, split, samples, settings_hash,
    sentence, metric_NAME, metric_NAME_error) are for reading with other tools; specdiag reads the JSON.
    """
    safe = json_safe({"format_version": FORMAT_VERSION, **facts})
    checkpoint, data = facts.get("checkpoint") or {}, facts.get("data") or {}
    flat: dict[str, Any] = {
        "specdiag_version": facts.get("specdiag_version"),
        "analyzer": facts.get("analyzer"),
        "checkpoint": checkpoint.get("path"),
        "sha256": checkpoint.get("sha256"),
        "architecture": checkpoint.get("architecture"),
        "data": data.get("spec"),
        "split": data.get("split"),
        "samples": data.get("samples"),
        "settings_hash": facts.get("settings_hash"),
        "sentence": facts.get("sentence"),
    }
    for name, metric in (facts.get("metrics") or {}).items():
        flat[f"metric_{name}"] = metric.get("value")
        flat[f"metric_{name}_error"] = metric.get("error")
    kept = {key: value for key, value in dataset.attrs.items() if not key.startswith("metric_")}
    result = dataset.copy()
    result.attrs = {**kept, **_attributes(flat), "specdiag": json.dumps(safe, allow_nan=False)}
    return result


def provenance(dataset: xarray.Dataset) -> dict[str, Any]:
    """What made the numbers: the parsed `specdiag` attribute; ResultsError where it is missing or damaged."""
    text = dataset.attrs.get("specdiag")
    try:
        facts = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise ResultsError("These results carry no readable 'specdiag' attribute.", "Run the analyzer again.")
    _check_version("These results", facts.get("format_version"))
    for metric in (facts.get("metrics") or {}).values():
        for key in _NUMBERS:
            if key in metric:
                metric[key] = _as_number(metric[key])
    return facts


def result_paths(checkpoints: Sequence[Path], out: Path) -> dict[Path, Path]:
    """The results file of each checkpoint: DIR/NAME.h5, NAME being the file name without suffix.

    Checkpoints that share a NAME get the shortest parent path that tells them apart, joined by `-`
    (`runs/a/best.pt` and `runs/b/best.pt`: `a-best.h5` and `b-best.h5`); where only the suffix differs, it
    is kept.
    """
    resolved = {path: path.resolve() for path in map(Path, checkpoints)}
    siblings = Counter((path.parent, path.stem.casefold()) for path in set(resolved.values()))
    parts = {}
    for path in resolved.values():
        alone = siblings[path.parent, path.stem.casefold()] == 1
        parts[path] = (*path.parts[1:-1], path.stem if alone else path.name)
    depth = dict.fromkeys(parts, 1)
    while True:
        named = {path: "-".join(parts[path][-depth[path] :]) for path in parts}
        owners: dict[str, list[Path]] = {}
        for path, name in named.items():
            owners.setdefault(name.casefold(), []).append(path)
        clashes = [paths for paths in owners.values() if len(paths) > 1]
        if not clashes:
            return {path: Path(out) / f"{named[real]}.h5" for path, real in resolved.items()}
        for paths in clashes:
            longer = [path for path in paths if depth[path] < len(parts[path])]
            if not longer:
                raise ResultsError(f"No distinct results name for {paths[0]}.", "Rename the checkpoint.")
            # `a/best.pt` beside `a-best.pt`: the one that has a parent path already gets more of it
            deepest = max(depth[path] for path in longer)
            depth |= {path: deepest + 1 for path in longer if depth[path] == deepest}


def _write_file(
    temporary: Path, old: Path, group: str, dataset: xarray.Dataset, names: Sequence[str]
) -> None:
    xarray.Dataset(attrs={_ROOT: FORMAT_VERSION}).to_netcdf(temporary, mode="w", engine="h5netcdf")
    for name in names:
        if name == group:
            _append(temporary, name, dataset)
        else:
            with _open(old, name) as other:
                _append(temporary, name, other)
    _fsync(temporary)


def _append(path: Path, group: str, dataset: xarray.Dataset) -> None:
    ordered = dataset[sorted(map(str, dataset.data_vars))].drop_encoding()
    ordered = ordered.assign_coords(
        {str(name): dataset.coords[name] for name in dataset.coords}
    ).drop_encoding()
    ordered.attrs = _attributes(dataset.attrs)
    for variable in ordered.variables.values():
        variable.attrs = _attributes(variable.attrs)
    encoding = {str(name): {"_FillValue": None} for name in ordered.variables}
    _reserve(path, path.stat().st_size + _room(ordered))
    ordered.to_netcdf(path, mode="a", group=group, engine="h5netcdf", encoding=encoding)


def _reserve(path: Path, size: int) -> None:
    """Take the room on the disk before HDF5 writes: it crashes the process where the disk fills up under it.

    What is too much is given back when HDF5 closes the file. Raises OSError where there is no room.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    handle = os.open(path, os.O_WRONLY)
    try:
        os.posix_fallocate(handle, 0, size)
    finally:
        os.close(handle)


def _room(dataset: xarray.Dataset) -> int:
    """Bytes that a dataset takes at most, with its names, texts and attributes."""
    size = 1 << 16
    for attributes in (dataset.attrs, *(variable.attrs for variable in dataset.variables.values())):
        size += 4096
        size += sum(512 + 2 * len(str(key)) + 4 * len(str(value)) for key, value in attributes.items())
    for variable in dataset.variables.values():
        size += variable.nbytes
        if variable.dtype == object:
            size += sum(64 + 4 * len(str(value)) for value in variable.values.flat)
    return size


def _attributes(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as netCDF holds them: no None, no bool, no mapping, no path."""
    result: dict[str, Any] = {}
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, bool | np.bool_):
            value = int(value)
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, Mapping):
            value = json.dumps(json_safe(value))
        elif isinstance(value, list | tuple):
            # HDF5 keeps an attribute in the object header: 64 KiB in all
            if len(value) > 500:
                continue
            value = [math.nan if entry is None else entry for entry in value]
        result[str(key)] = value
    return result


def _open(path: Path, group: str) -> xarray.Dataset:
    # no decoding: a unit such as "s" must not turn numbers into time spans
    return xarray.open_dataset(
        path, group=group, engine="h5netcdf", mask_and_scale=False, decode_times=False, decode_timedelta=False
    )


def _check_version(where: Path | str, version: Any) -> None:
    number = (
        version.item() if isinstance(version, np.generic | np.ndarray) and np.size(version) == 1 else version
    )
    if not isinstance(number, int) or number < 1:
        raise ResultsError(f"{where}: not written by specdiag.", "Give a results file that specdiag wrote.")
    if number > FORMAT_VERSION:
        raise ResultsError(
            f"{where}: format {number}, written by a newer specdiag (this one reads up to {FORMAT_VERSION}).",
            "Upgrade with: pip install --upgrade specdiag",
        )


def _as_number(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_number(entry) for entry in value]
    return float(value) if isinstance(value, str) else value


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = first_line(error)
        raise ResultsError(
            f"{path} is damaged or unreadable: {reason}", "Delete it and run the analyzer again."
        ) from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
