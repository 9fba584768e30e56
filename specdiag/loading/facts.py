"""What a foreign training script wrote beside its weights, as far as it is plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from specdiag.loading.references import Stub

PLACES = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt")
WANTED = (
    "arch",
    "architecture",
    "model",
    "model_name",
    "dataset",
    "num_classes",
    "classes",
    "pytorch-lightning_version",
)
MAX_TEXT = 200


def facts_of(root: Any) -> dict[str, Any]:
    """Scalars at the top of a checkpoint, and the architecture and data set that its settings name."""
    if not isinstance(root, dict):
        return {}
    facts = {name: value for name, value in _pairs(root) if _is_scalar(value) and name != "specdiag"}
    for place in PLACES:
        for name, value in _pairs(dict.get(root, place)):
            if name in WANTED and _is_scalar(value):
                facts.setdefault(name, value)
    return facts


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Stub):
        content = content.attributes()
    if isinstance(content, Mapping):
        entries = dict.items(content) if isinstance(content, dict) else content.items()
        yield from (
            (name, value) for name, value in entries if isinstance(name, str) and len(name) <= MAX_TEXT
        )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= MAX_TEXT)
