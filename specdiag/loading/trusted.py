"""Files whose code the user asked to run: whole pickled networks, TorchScript, torch.export, torch.package.

Nothing here happens without a `Trust` that says so, and never to a file whose scan shows known-dangerous calls.
"""

from __future__ import annotations

import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.package.package_importer import PackageImporter

from specdiag.errors import CheckpointError
from specdiag.loading import readers, salvage, tensor_files
from specdiag.loading.archive import check_zip
from specdiag.loading.programs import Carried, Program, Script
from specdiag.loading.readers import Content
from specdiag.loading.scan import scan
from specdiag.loading.text import shown, some

MAX_SOURCE = 64 * 2**20
# what a TorchScript program has no business with: files, and operators of libraries that are not torch's own
_SUSPECT = re.compile(
    r"\btorch\.(?:save|load|from_file|package|hub|classes)\b|\bops\.(?!aten\b|prim\b|prims\b|quantized\b|torchvision\b)\w+"
)
UNSEEN = "SD312 kinks inside the program are not watched: near_kink says nothing about them."


@dataclass(frozen=True, slots=True)
class Trust:
    """What the user allows: pickle: Python code by way of pickles; code: programs that a file carries."""

    pickle: bool = False
    code: bool = False


def read(path: Path, format: str, trust: Trust) -> Content | None:
    """The content of a file by running its code; None where that is not allowed, or not needed."""
    if trust.pickle and format in ("torch-zip", "torch-legacy", "pickle"):
        return _pickled(path, format)
    if trust.code and format in PROGRAMS:
        return PROGRAMS[format](path)
    return None


def _pickled(path: Path, format: str) -> Content | None:
    if format == "torch-zip":
        check_zip(path)
    found = scan(path, format)
    if found.dangerous:
        raise readers.needs_code(path, found)
    code = [name for name in found.blocked if name not in found.plain]
    if not code:
        return None
    with _loading(path, "--trust-pickle"), path.open("rb") as file:
        root = (
            pickle.load(file)
            if format == "pickle"
            else torch.load(file, map_location="cpu", weights_only=False)
        )
    finding = f"SD311 --trust-pickle: code of the file was run; it names {some(code, 8)}."
    return Content(root, None, found, (finding,), trusted=("pickle",))


def _script(path: Path) -> Content:
    check_zip(path)
    found = scan(path, "torchscript")
    if found.dangerous:
        raise readers.needs_code(path, found)
    _check_source(path)
    with _loading(path, "--trust-code"):
        script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    carried = Carried(Script(script), "TorchScript")
    if salvage.has_data(path):
        root, storages = salvage.salvage_zip(path)
    else:
        root, storages = dict(script.state_dict()), None
    finding = "SD311 --trust-code: the TorchScript program in the file is run."
    return Content(root, storages, None, (finding, UNSEEN), carried=carried, trusted=("code",))


def _check_source(path: Path) -> None:
    """Refuse a TorchScript program that would touch files or call operators beyond torch's."""
    with zipfile.ZipFile(path) as archive:
        members = [
            member
            for member in archive.infolist()
            if "/code/" in f"/{member.filename}" and member.filename.endswith(".py")
        ]
        if sum(member.file_size for member in members) > MAX_SOURCE:
            what = f"{path} holds more than {MAX_SOURCE // 2**20} MiB of program text."
            raise CheckpointError(what, "Save the weights alone.", reason="archive-bomb")
        calls = [
            call
            for member in members
            for call in _SUSPECT.findall(archive.read(member).decode("utf-8", "replace"))
        ]
    if calls:
        what = f"{path} is refused: its program calls {some(sorted(set(calls)), 8)}. Nothing was executed."
        todo = "Its weights can be read without the program: leave out --trust-code and pass --arch."
        raise CheckpointError(what, todo, reason="dangerous-program")


def _exported(path: Path) -> Content:
    check_zip(path)
    with _loading(path, "--trust-code"):
        program = torch.export.load(str(path))
        carried = Program.carried(program)
    try:
        tensors = tensor_files.read_exported(path)
    except CheckpointError:
        tensors = {name: tensor.detach() for name, tensor in program.state_dict.items()}
    finding = "SD311 --trust-code: the torch.export program in the file is run."
    return Content(tensors, findings=(finding, UNSEEN), carried=carried, trusted=("code",))


def _packaged(path: Path) -> Content:
    check_zip(path)
    with zipfile.ZipFile(path) as archive:
        inner = [name.split("/", 1)[-1] for name in archive.namelist()]
    pickles = [name for name in inner if name.endswith(".pkl") and not name.startswith(".data/")]
    if len(pickles) != 1:
        what = f"{path} is a torch.package archive with {len(pickles)} pickled objects: {some(pickles)}."
        raise CheckpointError(what, "Load the one you mean and save its state_dict.", reason="torch-package")
    found = scan(path, "torch-package")
    if found.dangerous:
        raise readers.needs_code(path, found)
    package, _, resource = pickles[0].rpartition("/")
    with _loading(path, "--trust-code"):
        importer = PackageImporter(str(path))
        root = importer.load_pickle(package.replace("/", "."), resource, map_location="cpu")
    finding = "SD311 --trust-code: the Python code in the torch.package archive was run."
    return Content(root, findings=(finding,), trusted=("code",))


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside DataParallel and torch.compile."""
    for _ in range(8):
        inner = getattr(network, "_orig_mod", None)
        if inner is None and type(network).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = getattr(network, "module", None)
        if not isinstance(inner, nn.Module):
            break
        network = inner
    return network


def carried(network: nn.Module) -> Carried:
    """A network that came out of a pickle."""
    network = unwrapped(network)
    kind = type(network)
    settings = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    size = settings.get("input_size") if isinstance(settings, dict) else None
    shape = tuple(int(side) for side in size) if isinstance(size, list | tuple) else None
    return Carried(network, f"pickled {kind.__module__}.{kind.__qualname__}", shape, modules=True)


@contextmanager
def _loading(path: Path, flag: str) -> Iterator[None]:
    """The working directory can be imported from, as under `python script.py`; failures are explained."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointError:
        raise
    except (ImportError, AttributeError) as error:
        what = f"{path} needs a class that is not here ({shown(str(error).splitlines()[0])})."
        todo = "Run specdiag in the folder that its code is imported from, or set PYTHONPATH to it."
        if "__main__" in str(error):
            todo = "It was defined in a script: read the tensors alone with --weights and --arch SCRIPT.py:CLASS."
        raise CheckpointError(what, todo, reason="needs-code") from error
    except Exception as error:
        detail = shown((str(error).strip().splitlines() or [""])[0])
        what = f"{path} cannot be loaded with {flag} ({type(error).__name__}: {detail})."
        raise CheckpointError(what, "Load it in Python to see why.", reason="trusted-load-failed") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)


PROGRAMS: dict[str, Callable[[Path], Content]] = {
    "torchscript": _script,
    "torch-export": _exported,
    "torch-package": _packaged,
}
