"""Read the tensors of a pickle that also names other classes: those become stubs, nothing is imported.

The unpickler can reach only the makers below: a name in the file is looked up in their table, never in a
module. Their pickles must have passed `scan` first, which also bounds the memo.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from specdiag.loading.pickle_names import is_allowed
from specdiag.loading.references import (
    STORAGE_TYPES,
    ArrayRef,
    BrokenFileError,
    DtypeRef,
    LegacyStorages,
    StorageRef,
    Storages,
    Stub,
    TensorRef,
    ZipStorages,
)
from specdiag.loading.scan import LEGACY_PICKLES, modern, scan_stream

MAX_RANK = 64


class Maker:
    """A function that a pickle may call; it cannot be changed by what the pickle says about it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "function", function)

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        return self.function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("a pickle that changes a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a pickle that changes a function")


class Table(dict[Any, Any]):
    """OrderedDict, defaultdict, Counter and dict alike; attributes that a pickle sets on it are dropped."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        for entry in args:
            if isinstance(entry, dict):
                self.update(dict.items(entry))
            elif isinstance(entry, list):
                self.update(
                    (pair[0], pair[1]) for pair in entry if isinstance(pair, tuple | list) and len(pair) == 2
                )

    def __setstate__(self, state: Any) -> None:
        pass


class Row(list[Any]):
    """list, tuple, set, frozenset and deque alike."""

    def __init__(self, *args: Any) -> None:
        super().__init__(args[0] if args and isinstance(args[0], list | tuple) else ())

    def add(self, value: Any) -> None:
        """As a set."""
        self.append(value)

    def __setstate__(self, state: Any) -> None:
        pass


class Unpickler(pickle.Unpickler):
    """Containers, numbers, texts, tensor references and stubs; nothing else can come out of it."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="latin1")
        self.stubs: dict[str, type[Stub]] = {}
        self.itemsizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A maker, a container class, or a fresh stub class: never anything imported."""
        path = modern(module, name)
        if path in MAKERS:
            return MAKERS[path]
        if path in TABLES:
            return Table
        if path in ROWS:
            return Row
        leaf = path.rsplit(".", 1)[-1]
        if path.startswith("torch.") and leaf in STORAGE_TYPES:
            return STORAGE_TYPES[leaf]
        if (
            path.startswith("torch.")
            and isinstance(getattr(torch, leaf, None), torch.dtype)
            and path.count(".") == 1
        ):
            return getattr(torch, leaf)
        if path not in self.stubs:
            self.stubs[path] = type("Stub", (Stub,), {"path": path, "__slots__": ()})
        return self.stubs[path]

    def persistent_load(self, pid: Any) -> Any:
        """A storage: ('storage', type, key, device, number of entries[, view]).

        Or the class of a legacy module with its source text, ('module', class, file, source): the
        class's stub.
        """
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]
        if (
            not isinstance(pid, tuple)
            or len(pid) < 5
            or pid[0] != "storage"
            or not isinstance(pid[1], torch.dtype)
        ):
            raise BrokenFileError("a reference that is no storage")
        _, dtype, key = pid[:3]
        if len(pid) > 5 and pid[5] is not None:
            raise BrokenFileError("a view of a storage, as torch wrote before 0.4")
        self.itemsizes[str(key)] = dtype.itemsize
        return StorageRef(str(key), dtype)


def salvage_zip(path: Path) -> tuple[Any, Storages]:
    """The content of a torch zip (or the data of a TorchScript archive) and its storages."""
    with zipfile.ZipFile(path) as archive:
        place = next(name for name in archive.namelist() if name.rsplit("/", 1)[-1] == "data.pkl")
        root = place.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise BrokenFileError("it was written on a big-endian machine")
        content = Unpickler(io.BytesIO(archive.read(place))).load()
    return content, ZipStorages(path, root)


def has_data(path: Path) -> bool:
    """Whether a zip has the pickle that `salvage_zip` reads; TorchScript before torch 1.2 has none."""
    with zipfile.ZipFile(path) as archive:
        return any(name.rsplit("/", 1)[-1] == "data.pkl" for name in archive.namelist())


def salvage_legacy(path: Path) -> tuple[Any, Storages]:
    """The content of a legacy torch file and its storages."""
    with path.open("rb") as file:
        for _ in range(2):
            Unpickler(file).load()
        system = Unpickler(file).load()
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise BrokenFileError("it was written on a big-endian machine")
        reader = Unpickler(file)
        content = reader.load()
        keys = Unpickler(file).load()
        start = file.tell()
    if not isinstance(keys, list):
        raise BrokenFileError("it has no list of storages")
    return content, LegacyStorages(path, start, [str(key) for key in keys], reader.itemsizes)


def salvage_pickle(path: Path) -> Any:
    """The content of a bare pickle: numpy arrays are its tensors."""
    with path.open("rb") as file:
        return Unpickler(file).load()


def _nested(raw: Any) -> StorageRef:
    """A storage that plain pickling wrote as a legacy torch file inside the pickle."""
    if not isinstance(raw, bytes):
        raise BrokenFileError("a storage without bytes")
    stream = io.BytesIO(raw)
    for _ in range(LEGACY_PICKLES):
        if any(not is_allowed(name) for name in scan_stream(stream, "a storage")):
            raise BrokenFileError("a storage that needs code")
    stream.seek(0)
    parts = [Unpickler(stream).load() for _ in range(LEGACY_PICKLES)]
    storage, keys = parts[3], parts[4]
    if not isinstance(storage, StorageRef) or keys != [storage.key]:
        raise BrokenFileError("a storage that is something else")
    length = int.from_bytes(stream.read(8), "little", signed=True) * storage.dtype.itemsize
    data = stream.read()
    if not 0 <= length <= len(data):
        raise BrokenFileError("a storage that is cut off")
    # storages of one pickle may share a key: the position in memory of its bytes tells them apart
    return StorageRef(f"inline-{id(raw)}-{storage.key}", storage.dtype, data[:length])


def _view(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, dtype: Any = None) -> TensorRef:
    if not isinstance(storage, StorageRef):
        raise BrokenFileError("a tensor without a storage")
    shape, steps = tuple(size), tuple(stride)
    if len(shape) != len(steps) or len(shape) > MAX_RANK:
        raise BrokenFileError("a tensor whose shape and strides differ in length")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, *steps, offset)):
        raise BrokenFileError("a tensor with a negative size")
    return TensorRef(storage, dtype or storage.dtype, int(offset), shape, steps)


def _view_typed(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> TensorRef:
    if not isinstance(dtype, torch.dtype):
        raise BrokenFileError("a tensor without a type")
    return _view(storage, offset, size, stride, dtype=dtype)


def _problem(problem: str) -> Callable[..., TensorRef]:
    def make(*args: Any) -> TensorRef:
        shape = next((tuple(entry) for entry in args if isinstance(entry, tuple | list)), ())
        shape = shape if all(isinstance(n, int) for n in shape) else ()
        return TensorRef(None, torch.float32, 0, shape, (0,) * len(shape), problem)

    return make


def _first(value: Any, *rest: Any) -> Any:
    return value


def _from_type(function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
    if not isinstance(function, Maker):
        raise BrokenFileError("a tensor subclass without its function")
    return function(*arguments)


def _array(kind: Any, shape: Any = (), code: Any = b"b") -> ArrayRef:
    return ArrayRef()


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    if not isinstance(dtype, DtypeRef) or dtype.code[:1] not in "?biuf":
        return None
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(data, dtype.numpy())[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise BrokenFileError("bytes in an unknown encoding")
    return text.encode("latin1")


def _reconstruct(kind: Any, base: Any = None, state: Any = None) -> Any:
    return kind() if isinstance(kind, type) and issubclass(kind, Stub | Table | Row) else None


def _number(*args: Any) -> Any:
    return args[0] if args and isinstance(args[0], int | float | str | bool) else None


TABLES = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict")
ROWS = (
    "builtins.list",
    "builtins.tuple",
    "builtins.set",
    "builtins.frozenset",
    "collections.deque",
    "torch.Size",
)
MAKERS = {
    "torch._utils._rebuild_tensor": Maker(_view),
    "torch._utils._rebuild_tensor_v2": Maker(_view),
    "torch._utils._rebuild_tensor_v3": Maker(_view_typed),
    "torch._utils._rebuild_parameter": Maker(_first),
    "torch._utils._rebuild_parameter_with_state": Maker(_first),
    "torch._tensor._rebuild_from_type_v2": Maker(_from_type),
    "torch._utils._rebuild_qtensor": Maker(_problem("quantised")),
    "torch._utils._rebuild_sparse_tensor": Maker(_problem("sparse")),
    "torch._utils._rebuild_meta_tensor_no_storage": Maker(_problem("meta")),
    "numpy.core.multiarray._reconstruct": Maker(_array),
    "numpy._core.multiarray._reconstruct": Maker(_array),
    "numpy.core.multiarray.scalar": Maker(_scalar),
    "numpy._core.multiarray.scalar": Maker(_scalar),
    "numpy.dtype": Maker(lambda code="", *rest: DtypeRef(code if isinstance(code, str) else "")),
    "_codecs.encode": Maker(_encode),
    "torch.storage._load_from_bytes": Maker(_nested),
    "copyreg._reconstructor": Maker(_reconstruct),
    "builtins.int": Maker(_number),
    "builtins.float": Maker(_number),
    "builtins.str": Maker(_number),
    "builtins.bool": Maker(_number),
}
