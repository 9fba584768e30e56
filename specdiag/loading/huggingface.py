"""Networks of `transformers` by `hf:`: image classifiers, and text classifiers for `--input-layer`.

`hf:FOLDER` reads the config.json of a folder, `hf:MODEL_TYPE` takes a type's usual settings (`hf:vit`), `hf:USER/NAME` asks the
hub for the settings alone. Weights always come from the checkpoint, and code from the library: never from the hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from specdiag.errors import ArchitectureError, MissingExtra, suggest

KINDS = ("AutoModelForImageClassification", "AutoModelForSequenceClassification")


def factory(name: str) -> Callable[..., nn.Module]:
    """The callable that builds `hf:NAME`; its arguments replace settings. Raises ArchitectureError, MissingExtra."""
    library = _library()

    def build(**args: Any) -> nn.Module:
        return _build(library, _settings(library, name, args), name)

    return build


def input_shape(name: str, args: dict[str, Any]) -> tuple[int, ...] | None:
    """(channels, height, width) of an image classifier by its settings; None for what takes no images."""
    try:
        settings = _settings(_library(), name, args)
    except (ArchitectureError, MissingExtra):
        return None
    size, channels = getattr(settings, "image_size", None), getattr(settings, "num_channels", 3)
    if isinstance(size, dict):
        size = (size.get("height"), size.get("width"))
    if size is None and str(settings.model_type) in (
        "resnet",
        "convnext",
        "convnextv2",
        "regnet",
        "efficientnet",
    ):
        size = 224
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        return None
    return (int(channels), int(sides[0]), int(sides[1]))


def renamed(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The tensors of a folder under the names that the installed transformers gives them.

    Releases spell names differently and translate old files when they load them. The translation is taken only where
    it is one: the values must be those of the file, each once. None where it is not, or without transformers.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    library = _library()
    options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        settings = _settings(library, str(folder), {})
        auto = next(
            getattr(library, kind)
            for kind in KINDS
            if type(settings) in getattr(library, kind)._model_mapping
        )
        network, report = auto.from_pretrained(str(folder), output_loading_info=True, **options)
    except Exception:
        return None
    if any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return None
    found = {name: value.detach() for name, value in network.state_dict().items()}
    return found if _contents(found) == _contents(tensors) else None


def _contents(tensors: Mapping[str, torch.Tensor]) -> Counter[tuple[tuple[int, ...], str]]:
    return Counter(
        (tuple(value.shape), hashlib.sha256(value.double().contiguous().numpy().tobytes()).hexdigest())
        for value in tensors.values()
    )


def _library() -> Any:
    try:
        import transformers  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise MissingExtra("transformers", "hf") from None
    return transformers


def _settings(library: Any, name: str, args: dict[str, Any]) -> Any:
    known = sorted(library.CONFIG_MAPPING.keys())
    place = Path(name)
    if place.name == "config.json":
        place = place.parent
    try:
        if name and (place / "config.json").is_file():
            return library.AutoConfig.from_pretrained(
                str(place), trust_remote_code=False, local_files_only=True, **args
            )
        if name in known:
            return library.AutoConfig.for_model(name, **args)
        if name.count("/") == 1 and not place.exists():
            return library.AutoConfig.from_pretrained(name, trust_remote_code=False, **args)
    except Exception as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        what = f"The settings of 'hf:{name}' cannot be read ({detail})."
        raise ArchitectureError(what, "Give a folder with config.json: --arch hf:FOLDER.") from error
    hint = suggest(name, known)
    if not hint.startswith("Did"):
        hint = "Write hf:FOLDER (with config.json), hf:MODEL_TYPE such as hf:vit, or hf:USER/NAME."
    raise ArchitectureError(f"transformers has no model type '{name}', and there is no such folder.", hint)


def _build(library: Any, settings: Any, name: str) -> nn.Module:
    for kind in KINDS:
        auto = getattr(library, kind)
        if type(settings) in auto._model_mapping:
            network: nn.Module = auto.from_config(settings, trust_remote_code=False)
            return network
    what = f"'hf:{name}' ({settings.model_type}) is neither an image nor a text classifier."
    raise ArchitectureError(what, "Pass a factory of your own: --arch path/to/file.py:factory.")
