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
from typing import Any, BinaryIO

from specdiag.errors import CheckpointError
from specdiag.loading.pickle_names import UNKNOWN, is_allowed, is_dangerous, is_plain
from specdiag.loading.text import shown

MAX_PICKLE = 256 * 2**20
LEGACY_PICKLES = 5
ZIPS = ("torch-zip", "torchscript", "torch-package", "mar", "torch-export", "zip")
PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
GETS = ("GET", "BINGET", "LONG_BINGET")
_MARK = pickletools.markobject


@dataclass(frozen=True, slots=True)
class Scan:
    """The global names of a file's pickles, each sorted.

    blocked: those that safe loading does not look up; of these `plain` describe plain data (paths, numpy
    scalars, argparse) and `dangerous` are known to run commands, touch files or load code.
    """

    globals: tuple[str, ...]

    @property
    def blocked(self) -> tuple[str, ...]:
        """Names that torch's weights_only loading refuses."""
        return tuple(name for name in self.globals if not is_allowed(name))

    @property
    def plain(self) -> tuple[str, ...]:
        """Blocked names of plain data."""
        return tuple(name for name in self.blocked if is_plain(name))

    @property
    def dangerous(self) -> tuple[str, ...]:
        """Blocked names that a weights file has no business with."""
        return tuple(name for name in self.blocked if is_dangerous(name))


def scan(path: Path, format: str) -> Scan:
    """Scan all pickles of a file. Raises CheckpointError (`bad-pickle`) where the opcodes are broken."""
    names: set[str] = set()
    for stream, count in _streams(Path(path), format):
        for _ in range(count):
            names |= scan_stream(stream, Path(path).name)
    return Scan(tuple(sorted(names)))


def blocked_globals(path: Path, format: str) -> tuple[str, ...]:
    """Names that the file's pickles want and that safe loading refuses, sorted."""
    return scan(path, format).blocked


def scan_stream(stream: BinaryIO, name: str) -> set[str]:
    """Global names of the next pickle of a stream, which is left behind that pickle."""
    try:
        return set(names_in_pickle(stream))
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, EOFError, MemoryError) as error:
        detail = (str(error).split("\n", 1)[0] or type(error).__name__)[:120].rstrip(".")
        what = f"{name} holds a pickle that cannot be read: {detail}."
        raise CheckpointError(what, "Download or save it again.", reason="bad-pickle") from None


def names_in_pickle(stream: BinaryIO) -> Iterator[str]:
    """Each global name that a pickle looks up, as 'module.name'; '?' where a part is no constant.

    Raises ValueError on broken opcodes and on a memo index beyond what the pickle could have used.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            yield modern(*str(argument).split(" ", 1))
        elif name == "STACK_GLOBAL":
            parts = stack[-2:] if len(stack) >= 2 else (None, None)
            yield modern(*(part if isinstance(part, str) else UNKNOWN for part in parts))
        elif name.startswith("EXT"):
            yield f"copyreg.{UNKNOWN}"
        if name in PUTS:
            if not 0 <= _index(argument) <= count:
                # a real unpickler makes a table of that size: four bytes could ask for 64 GB
                raise ValueError(f"memo index {argument} after {count} opcodes")
            memo[_index(argument)] = stack[-1] if stack else None
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1] if stack else None
        elif name == "DUP":
            stack.append(stack[-1] if stack else None)
        else:
            _pop(stack, opcode)
            _push(stack, opcode, argument, memo)


def _push(stack: list[Any], opcode: Any, argument: Any, memo: dict[Any, Any]) -> None:
    if opcode.name == "MARK":
        stack.append(_MARK)
        return
    for _ in opcode.stack_after:
        if opcode.name in GETS:
            stack.append(memo.get(_index(argument)))
        else:
            stack.append(argument if isinstance(argument, str) and opcode.name != "GLOBAL" else None)


def _pop(stack: list[Any], opcode: Any) -> None:
    before = opcode.stack_before
    if pickletools.stackslice in before:
        while stack and stack.pop() is not _MARK:
            pass
        # what stands below the mark and is consumed as well: the list of APPENDS, the dict of SETITEMS
        for _ in range(before.index(_MARK)):
            if stack:
                stack.pop()
        return
    for _ in before:
        if stack and (stack[-1] is not _MARK or opcode.name == "POP"):
            stack.pop()


def modern(module: str, name: str = UNKNOWN) -> str:
    """'module.name' with the names of Python 2, which protocols 0 to 2 write, brought up to date."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[module, name]
    return shown(f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}")


def _streams(path: Path, format: str) -> Iterator[tuple[BinaryIO, int]]:
    """The pickle streams of a file, each with the number of pickles that follow one another in it."""
    if format in ZIPS:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".pkl"):
                    if member.file_size > MAX_PICKLE:
                        what = f"{path.name} holds a pickle of {member.file_size / 2**20:,.0f} MiB."
                        raise CheckpointError(what, "Save the weights alone.", reason="archive-bomb")
                    yield io.BytesIO(archive.read(member)), 1
        return
    with path.open("rb") as file:
        # legacy: magic number, protocol, system info, the object itself, storage keys
        yield file, LEGACY_PICKLES if format == "torch-legacy" else 1


def _index(argument: Any) -> int:
    return int(argument)
