"""From an architecture spec to the callable that builds the network, and from text to its arguments."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from specdiag.errors import ArchitectureError, MissingExtra, suggest
from specdiag.loading import huggingface
from specdiag.loading.networks.alexnet_zhang import AlexNetZhang
from specdiag.loading.networks.carlini import Carlini
from specdiag.loading.networks.cnn import Cnn4, Cnn7
from specdiag.loading.networks.elunet import EluNet
from specdiag.loading.networks.inception_zhang import InceptionZhang
from specdiag.loading.networks.lenet import LeNet
from specdiag.loading.networks.mlp import Mlp
from specdiag.loading.networks.resnet_cifar import ResNetCifar
from specdiag.loading.networks.vulnerability import Dilated8, Pool6, Strided6
from specdiag.loading.networks.wide_resnet import wrn50_2

Factory = Callable[..., nn.Module]
DEPTHS = (20, 32, 44, 56, 110)
BUILTIN: dict[str, Factory] = {
    "alexnet-zhang": AlexNetZhang,
    "carlini": Carlini,
    "cnn4": Cnn4,
    "cnn7": Cnn7,
    "dilated8": Dilated8,
    "elunet": EluNet,
    "inception-zhang": InceptionZhang,
    "lenet": LeNet,
    "mlp": Mlp,
    "pool6": Pool6,
    "strided6": Strided6,
    "wrn50-2": wrn50_2,
    **{f"resnet{depth}": partial(ResNetCifar, depth) for depth in DEPTHS},
}
FORMS = "torchvision:NAME, timm:NAME, hf:NAME, path/to/file.py:factory or package.module:factory"
DOWNLOADS = ("weights", "weights_backbone", "pretrained", "pretrained_cfg", "checkpoint_path")


def factory(spec: str) -> Factory:
    """The callable behind a spec; raises ArchitectureError with the nearest known names."""
    library, _, name = spec.rpartition(":")
    if not library:
        if spec in BUILTIN:
            return BUILTIN[spec]
        known = [*BUILTIN, *(f"torchvision:{entry}" for entry in torchvision_names())]
        bare = f"torchvision:{spec}"
        hint = f"Did you mean {bare}?" if bare in known else suggest(spec, known)
        if not hint.startswith("Did"):
            hint = f"Known: {', '.join(BUILTIN)}, {FORMS}."
        raise ArchitectureError(f"There is no architecture named '{spec}'.", hint)
    if library == "torchvision":
        return _torchvision(name)
    if spec.startswith("timm:"):
        return _timm(spec.removeprefix("timm:"))
    if spec.startswith("hf:"):
        return huggingface.factory(spec.removeprefix("hf:"))
    if library.endswith(".py"):
        return _attribute(_module_from_file(Path(library)), name, spec)
    return _attribute(_module_by_name(library, spec), name, spec)


def runs_code(spec: str) -> bool:
    """Whether building the spec imports the user's code: never to be done on a checkpoint's word alone."""
    return ":" in spec and not spec.startswith(("torchvision:", "timm:", "hf:"))


def torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's classification models."""
    from torchvision import models

    return tuple(models.list_models(module=models))


def parse_arch_args(texts: Sequence[str]) -> dict[str, Any]:
    """Factory arguments from texts 'key=value'; the value is a TOML literal, else a string."""
    result: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise ArchitectureError(
                f"--arch-arg '{text}' is not key=value.", "Write it like --arch-arg width=32."
            )
        if key in result:
            raise ArchitectureError(f"--arch-arg {key} is given twice.", "Give it once.")
        result[key] = _literal(value.strip())
    return result


def _literal(text: str) -> Any:
    if "\n" in text:
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _torchvision(name: str) -> Factory:
    from torchvision import models

    known = torchvision_names()
    if name not in known:
        hint = suggest(name, known)
        hint = (
            hint
            if hint.startswith("Did")
            else "List them: python -c 'import torchvision.models as m; print(m.list_models(m))'"
        )
        raise ArchitectureError(f"torchvision has no classification model named '{name}'.", hint)
    builder = models.get_model_builder(name)

    def build(**args: Any) -> nn.Module:
        # the new initialisation is drawn in milliseconds; the weights are replaced anyway
        if name in ("googlenet", "inception_v3"):
            args.setdefault("init_weights", False)
        network: nn.Module = builder(weights=None, **_without_downloads(args))
        return network

    return build


def _timm(name: str) -> Factory:
    try:
        import timm
    except ImportError:
        raise MissingExtra("timm", "timm") from None
    if ":" in name or "/" in name:
        raise ArchitectureError(f"timm:{name} would be downloaded.", "Give the name of a timm architecture.")
    if not timm.is_model(name):
        known = timm.list_models()
        hint = suggest(name.split(".")[0], known)
        hint = (
            hint
            if hint.startswith("Did")
            else "List them: python -c 'import timm; print(timm.list_models())'"
        )
        raise ArchitectureError(f"timm has no model named '{name}'.", hint)

    def build(**args: Any) -> nn.Module:
        network: nn.Module = timm.create_model(name, pretrained=False, **_without_downloads(args))
        return network

    return build


def _without_downloads(args: Mapping[str, Any]) -> dict[str, Any]:
    for key in DOWNLOADS:
        if args.get(key):
            what = f"The argument '{key}' would download or read other weights."
            raise ArchitectureError(what, "Leave it out: the weights come from the checkpoint.")
    return {key: value for key, value in args.items() if key not in DOWNLOADS}


def _module_from_file(path: Path) -> Any:
    if not path.is_file():
        raise ArchitectureError(f"There is no file {path}.", "Check the path before the ':'.")
    name = "specdiag_user_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ArchitectureError(f"{path} is not a Python file.", "Give a file that ends in .py.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        with _on_path(path.resolve().parent):
            found.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise ArchitectureError(
            f"{path} cannot be imported: {_short(error)}.", "Run it with python to see why."
        ) from error
    return module


def _module_by_name(name: str, spec: str) -> Any:
    try:
        with _on_path(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        hint = f"Write {FORMS}."
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ArchitectureError(
                f"There is no architecture '{spec}': no module named '{error.name}'.", hint
            ) from None
        raise ArchitectureError(
            f"{name} cannot be imported: {_short(error)}.", "Install what it needs."
        ) from error
    except Exception as error:
        raise ArchitectureError(
            f"{name} cannot be imported: {_short(error)}.", "Import it in python to see why."
        ) from error


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _attribute(module: Any, name: str, spec: str) -> Factory:
    target = getattr(module, name, None)
    if target is None:
        public = [
            entry for entry in vars(module) if not entry.startswith("_") and callable(vars(module)[entry])
        ]
        raise ArchitectureError(
            f"'{spec}': there is no '{name}' in it.", suggest(name, public) if public else ""
        )
    if isinstance(target, nn.Module):
        return lambda: target
    if not callable(target):
        raise ArchitectureError(
            f"'{spec}' is a {type(target).__name__}.", "Name a class or a function that builds a network."
        )
    made: Factory = target
    return made


def _short(error: BaseException) -> str:
    detail = str(error).strip().split("\n", 1)[0][:160].rstrip(".")
    return f"{type(error).__name__}: {detail}" if detail else type(error).__name__
