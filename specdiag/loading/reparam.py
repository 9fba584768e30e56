"""Reparametrised weights become the weights that the network computes with.

Spectral norm (`weight_orig`, `weight_u`, `weight_v`), weight norm (`weight_g`, `weight_v`) and pruning
(`weight_orig`, `weight_mask`), in the old spelling and under `parametrizations`. `weight_orig` and
`weight_v` each occur in two schemes, so the full set of names decides. In eval mode the vectors u, v are
constants, so folding is exact.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

PATTERNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("spectral", ("{}_orig", "{}_u", "{}_v")),
    ("norm", ("{}_g", "{}_v")),
    ("mask", ("{}_orig", "{}_mask")),
    (
        "spectral",
        ("{0}parametrizations.{1}.original", "{0}parametrizations.{1}.0._u", "{0}parametrizations.{1}.0._v"),
    ),
    ("norm", ("{0}parametrizations.{1}.original0", "{0}parametrizations.{1}.original1")),
)
MARKS = re.compile(r"(_orig|_g|\.original|\.original0)$")


def fold(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """(tensors with plain names and effective values, one phrase for each that was folded)."""
    found = sets(tensors)
    starts = {parts[0]: (plain, scheme, parts) for plain, scheme, parts in found}
    gone = {name for _, _, parts in found for name in parts}
    result = {}
    for name, tensor in tensors.items():
        if name in starts:
            plain, scheme, parts = starts[name]
            result[plain] = FOLDS[scheme](*(tensors[part] for part in parts))
        elif name not in gone:
            result[name] = tensor
    return result, tuple(f"{plain} ({TITLES[scheme]})" for plain, scheme, _ in found)


def unparametrise(network: nn.Module) -> None:
    """Take spectral norm, weight norm, pruning and the like off a network: it keeps plain weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in list(network.modules()):
            for name in list(getattr(module, "parametrizations", {})):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            for hook in list(module._forward_pre_hooks.values()):
                if isinstance(hook, WeightNorm):
                    remove_weight_norm(module, hook.name)
                elif isinstance(hook, SpectralNorm):
                    remove_spectral_norm(module, hook.name)
                elif isinstance(hook, prune.BasePruningMethod):
                    prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]


def sets(names: Iterable[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """(plain name, scheme, names that make it up) of every reparametrised tensor among the names."""
    have = set(names)
    found = []
    for name in list(dict.fromkeys(names)):
        if not MARKS.search(name):
            continue
        plain = _plain(name)
        for scheme, spelling in PATTERNS:
            parts = tuple(_spell(pattern, plain) for pattern in spelling)
            if parts[0] == name and have.issuperset(parts) and plain not in have:
                found.append((plain, scheme, parts))
                break
    return found


def unknown(names: Iterable[str]) -> list[str]:
    """Parametrised tensors in a scheme that is not folded."""
    left = {name for _, _, parts in sets(names) for name in parts}
    return [name for name in names if "parametrizations." in name and name not in left]


def _plain(name: str) -> str:
    return (
        MARKS.sub("", name).replace("parametrizations.", "")
        if "parametrizations." in name
        else MARKS.sub("", name)
    )


def _spell(pattern: str, plain: str) -> str:
    front, dot, leaf = plain.rpartition(".")
    return pattern.format(front + dot, leaf) if "{0}" in pattern else pattern.format(plain)


def _spectral(weight: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """W / (u^T W v) with W flattened along its output axis: 0, or 1 for a transposed convolution.

    Where both axes fit, the one with the larger u^T W v is meant: u and v are its top singular vectors.
    """
    best = None
    for axis in range(min(2, weight.ndim)):
        matrix = weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
        if u.numel() != matrix.shape[0] or v.numel() != matrix.shape[1]:
            continue
        sigma = torch.dot(u, matrix @ v)
        best = sigma if best is None or abs(sigma) > abs(best) else best
    if best is None:
        raise ValueError("spectral norm vectors that do not fit their weight")
    return weight / best


def _weight_norm(g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return g v / ||v||, the norm over every axis along which g has one entry (all for a scalar g)."""
    axes = [axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1]
    result: torch.Tensor = v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=g.ndim > 0))
    return result


def _mask(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return weight * mask.to(weight.dtype)


FOLDS: dict[str, Callable[..., torch.Tensor]] = {"spectral": _spectral, "norm": _weight_norm, "mask": _mask}
TITLES = {"spectral": "spectral norm", "norm": "weight norm", "mask": "pruning mask"}
