"""Static scan of pickles: which names would loading look up? Nothing is executed. No torch.

`pickletools.genops` reads the opcodes; a symbolic stack follows the strings that reach STACK_GLOBAL, so that
names put together through the memo are seen as well.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdiag.errors import CheckpointError

MAX_PICKLE = 256 * 2**20
UNKNOWN = "?"

ALLOWED_EXACT = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.set",
        "builtins.complex",
        "torch.Size",
        "torch.device",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.serialization._get_layout",
        "torch._tensor._rebuild_from_type_v2",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
    }
)  # fmt: skip
REBUILD = "torch._utils._rebuild_"
DTYPES = frozenset(
    "float16 float32 float64 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz half float double int8 int16 int32 "
    "int64 uint8 uint16 uint32 uint64 bool complex32 complex64 complex128 qint8 quint8 qint32 per_tensor_affine "
    "per_channel_affine strided sparse_coo".split()
)
HARMLESS = frozenset(
    {
        "argparse.Namespace",
        "collections.defaultdict",
        "collections.deque",
        "builtins.dict",
        "builtins.list",
        "builtins.int",
        "builtins.float",
        "builtins.str",
        "builtins.tuple",
        "builtins.slice",
        "builtins.frozenset",
        "builtins.bool",
        "builtins.bytes",
        "builtins.range",
        "datetime.datetime",
        "datetime.timedelta",
        "typing.Any",
        "copyreg._reconstructor",
        "builtins.object",
        "numpy.dtype",
        "numpy.ndarray",
    }
)
HARMLESS_STARTS = (
    "pathlib.",
    "omegaconf.",
    "numpy.core.multiarray.",
    "numpy._core.multiarray.",
    "numpy.dtypes.",
)
DANGEROUS_MODULES = frozenset(
    "os posix nt subprocess sys shutil socket runpy code codeop pty commands importlib imp pip webbrowser ctypes "
    "multiprocessing threading asyncio signal tempfile urllib http requests httpx aiohttp ftplib smtplib pickle _pickle cPickle dill cloudpickle joblib "
    "marshal types zipimport pkgutil timeit cProfile profile pdb bdb trace doctest venv ensurepip fileinput functools operator "
    "_operator builtins __builtin__ io _io".split()
)
DANGEROUS_EXACT = frozenset(
    {
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.serialization.load",
        "torch._inductor.codecache.compile_file",
        "torch.utils._config_module.load_config",
        "torch.storage._load_from_bytes",
        "numpy.testing._private.utils.runstring",
        "numpy.f2py.crackfortran.myeval",
    }
)


@dataclass(frozen=True, slots=True)
class Scan:
    """The global names of a file's pickles. `blocked` are those that safe loading will not look up.

    `harmless` are blocked names of plain data (paths, numpy scalars, argparse), `dangerous` names known to run commands,
    read files or load code.
    """

    globals: tuple[str, ...]
    blocked: tuple[str, ...]
    harmless: tuple[str, ...]
    dangerous: tuple[str, ...]


def scan(path: Path, format: str) -> Scan:
    """Scan all pickles of a zip or legacy file. Raises CheckpointError (reason `bad-pickle`) on broken opcodes."""
    names = sorted(set(_names(Path(path), format)))
    blocked = tuple(name for name in names if not is_allowed(name))
    dangerous = tuple(name for name in blocked if is_dangerous(name))
    harmless = tuple(name for name in blocked if is_harmless(name))
    return Scan(tuple(names), blocked, harmless, dangerous)


def blocked_globals(path: Path, format: str) -> tuple[str, ...]:
    """Names that the file's pickles want and that safe loading refuses, sorted."""
    return scan(path, format).blocked


def is_allowed(name: str) -> bool:
    """Whether torch's weights_only loading takes this global name."""
    module, _, leaf = name.rpartition(".")
    if name in ALLOWED_EXACT or name.startswith(REBUILD):
        return True
    if module in ("torch", "torch.cuda") and leaf.endswith("Storage"):
        return True
    return module == "torch" and leaf in DTYPES


def is_harmless(name: str) -> bool:
    """Whether a blocked name only describes plain data, as training scripts put beside their weights."""
    return name in HARMLESS or name.startswith(HARMLESS_STARTS)


def is_dangerous(name: str) -> bool:
    """Whether a name is known to run commands, read or write files, or load code; an unreadable name counts."""
    if is_harmless(name) or is_allowed(name):
        return False
    return UNKNOWN in name or name in DANGEROUS_EXACT or name.split(".", 1)[0] in DANGEROUS_MODULES


def _names(path: Path, format: str) -> Iterator[str]:
    for stream, several in _streams(path, format):
        while True:
            try:
                yield from names_in_pickle(stream)
            except (
                ValueError,
                KeyError,
                IndexError,
                TypeError,
                OverflowError,
                UnicodeError,
                EOFError,
            ) as error:
                detail = str(error).split("\n", 1)[0][:120]
                what = f"{path.name} holds a pickle that cannot be read: {detail}."
                raise CheckpointError(what, "Download or save it again.", reason="bad-pickle") from None
            several -= 1
            if several <= 0:
                break


def _streams(path: Path, format: str) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """The pickle streams of a file, each with the number of pickles that follow one another in it."""
    if format in ("torch-legacy", "pickle"):
        with path.open("rb") as file:
            # magic number, protocol, system info, the object itself, storage keys
            yield file, 5 if format == "torch-legacy" else 1
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".pkl"):
                continue
            if member.file_size > MAX_PICKLE:
                what = f"{path.name} holds a pickle of {member.file_size / 2**20:,.0f} MiB."
                raise CheckpointError(what, "Save the weights alone.", reason="archive-bomb")
            yield io.BytesIO(archive.read(member)), 1


def names_in_pickle(stream: Any) -> Iterator[str]:
    """Global names that the next pickle of a stream looks up, as 'module.name'; '?' where it is not a constant."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    mark = pickletools.markobject
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            yield _modern(*str(argument).split(" ", 1))
        elif name == "STACK_GLOBAL":
            module, leaf = stack[-2:] if len(stack) >= 2 else (None, None)
            yield _modern(*(part if isinstance(part, str) else UNKNOWN for part in (module, leaf)))
        elif name.startswith("EXT"):
            yield f"copyreg.{UNKNOWN}"
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1] if stack else None
            continue
        if name == "MEMOIZE":
            memo[len(memo)] = stack[-1] if stack else None
            continue
        if name == "DUP":
            stack.append(stack[-1] if stack else None)
            continue
        _pop(stack, opcode, mark)
        for _ in range(len(opcode.stack_after) - (mark in opcode.stack_after)):
            if name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo.get(argument))
            else:
                stack.append(argument if isinstance(argument, str) and name != "GLOBAL" else None)
        if name == "MARK":
            stack.append(mark)


def _modern(module: str, name: str = UNKNOWN) -> str:
    """'module.name' with the names of Python 2, which protocols 0 to 2 write, brought up to date."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _pop(stack: list[Any], opcode: Any, mark: Any) -> None:
    before = opcode.stack_before
    if pickletools.stackslice in before:
        while stack and stack.pop() is not mark:
            pass
        # what stood below the mark and is consumed as well (the list of APPENDS, the dict of SETITEMS)
        for _ in range(before.index(mark)):
            if stack:
                stack.pop()
        return
    for _ in before:
        if stack and (stack[-1] is not mark or opcode.name == "POP"):
            stack.pop()
