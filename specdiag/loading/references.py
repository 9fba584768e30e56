"""What stands for tensors and foreign objects while a pickle is read without torch's or anyone's classes.

Storages are read only for the tensors that are wanted, and every size is checked against them first.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from specdiag.errors import CheckpointError
from specdiag.loading.text import shown

STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}


class BrokenFileError(ValueError):
    """The file contradicts itself; becomes a CheckpointError where the file's name is known."""


class Storages(Protocol):
    """Where the bytes of storages come from."""

    def read(self, key: str) -> bytes:
        """All bytes of one storage."""


@dataclass(frozen=True, slots=True)
class StorageRef:
    """One storage: its key and the type of its entries; `inline` where its bytes stand in the pickle."""

    key: str
    dtype: torch.dtype
    inline: bytes | None = None


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A strided view of a storage; `problem`: why it is no plain tensor (`quantised`, `sparse`, `meta`)."""

    storage: StorageRef | None
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    problem: str = ""

    def read(self, storages: Storages, cache: dict[str, bytearray]) -> torch.Tensor:
        """The tensor on the CPU. Raises BrokenFileError where it would leave its storage."""
        if self.storage is None:
            raise BrokenFileError("a tensor without values")
        if self.storage.key not in cache:
            inline = self.storage.inline
            cache[self.storage.key] = bytearray(storages.read(self.storage.key) if inline is None else inline)
        raw = cache[self.storage.key]
        size = self.dtype.itemsize
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        if (last + 1) * size > len(raw):
            raise BrokenFileError(f"a tensor of shape {self.shape} in a storage of {len(raw)} bytes")
        flat = torch.frombuffer(raw, dtype=self.dtype, count=len(raw) // size)
        return flat.as_strided(self.shape, self.stride, self.offset)


@dataclass(slots=True)
class DtypeRef:
    """numpy.dtype as a pickle spells it: a code, then its byte order."""

    code: str
    order: str = "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "=", "|"):
            self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        """The dtype; raises BrokenFileError for anything but plain numbers."""
        if not isinstance(self.code, str) or len(self.code) > 4 or self.code[:1] not in "?bBiuf":
            raise BrokenFileError("a numpy array that holds no numbers")
        order: Any = "=" if self.order == "|" else self.order
        return np.dtype(self.code).newbyteorder(order)


class ArrayRef:
    """A numpy array as a pickle spells it: an empty one, then its state."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape by the state, () where that makes no sense."""
        return self.state[1] if isinstance(self.state, tuple) and len(self.state) == 5 else ()

    def numbers(self) -> bool:
        """Whether the state is that of an array of numbers."""
        if (
            not isinstance(self.state, tuple)
            or len(self.state) != 5
            or not isinstance(self.state[2], DtypeRef)
        ):
            return False
        return isinstance(self.state[1], tuple) and self.state[2].code[:1] in "?biuf"

    def tensor(self) -> torch.Tensor:
        """The values. Raises BrokenFileError or ValueError where the state contradicts itself."""
        _, shape, dtype, fortran, raw = self.state
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(data, bytes):
            raise BrokenFileError("a numpy array without bytes")
        flat = np.frombuffer(data, dtype.numpy())
        array = flat.reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))


class Stub:
    """Stands for an object of a class that is never imported; `path` is the name that the pickle gave it."""

    path = ""
    args: tuple[Any, ...]
    state: Any
    entries: list[Any]
    __slots__ = ("args", "entries", "state")

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        """The pickle may create it without calling `__init__`."""
        stub = super().__new__(cls)
        stub.args, stub.state, stub.entries = args, None, []
        return stub

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries.append((key, value))

    def append(self, value: Any) -> None:
        """As a list subclass."""
        self.entries.append(value)

    def extend(self, values: Any) -> None:
        """As a list subclass."""
        self.entries.extend(values)

    def add(self, value: Any) -> None:
        """As a set subclass."""
        self.entries.append(value)

    def attributes(self) -> dict[str, Any]:
        """Instance attributes by the pickle; {} where it has none."""
        state = self.state
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        return {
            name: value
            for part in parts
            if isinstance(part, dict)
            for name, value in dict.items(part)
            if isinstance(name, str)
        }


class ZipStorages:
    """Storages in the `data/` folder of a torch zip."""

    def __init__(self, path: Path, root: str) -> None:
        self.archive = zipfile.ZipFile(path)
        self.root = root

    def read(self, key: str) -> bytes:
        """All bytes of one storage."""
        try:
            return self.archive.read(f"{self.root}data/{key}")
        except KeyError:
            raise BrokenFileError(f"no storage {key[:40]} in it") from None


class LegacyStorages:
    """Storages behind the pickles of a legacy file: each its number of entries (int64), then its bytes."""

    def __init__(self, path: Path, start: int, keys: list[str], itemsizes: dict[str, int]) -> None:
        self.path = path
        self.places = dict(self._places(start, keys, itemsizes))

    def _places(
        self, start: int, keys: list[str], itemsizes: dict[str, int]
    ) -> Iterator[tuple[str, tuple[int, int]]]:
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            for key in keys:
                file.seek(start)
                numel = int.from_bytes(file.read(8), "little", signed=True)
                length = numel * itemsizes.get(key, 1)
                if numel < 0 or start + 8 + length > size:
                    raise BrokenFileError("it ends before its last storage")
                yield key, (start + 8, length)
                start += 8 + length

    def read(self, key: str) -> bytes:
        """All bytes of one storage."""
        if key not in self.places:
            raise BrokenFileError(f"no storage {key[:40]} in it")
        start, length = self.places[key]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(length)


def refuse_problem(name: str, problem: str, path: Path) -> CheckpointError:
    """The error for a tensor that no network can be analysed with."""
    texts = {
        "meta": ("has a shape but no values (meta device)", "Save the model after its weights are loaded."),
        "quantised": ("is quantised", "Give the weights from before quantisation."),
        "sparse": ("is stored sparse", "Save it dense: tensor.to_dense()."),
    }
    text, todo = texts[problem]
    return CheckpointError(f"{path}: tensor '{shown(name)}' {text}.", todo, reason=f"{problem}-weights")
