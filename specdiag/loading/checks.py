"""Are these tensors weights that a network can be analysed with? Each problem names the tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from specdiag.errors import CheckpointError
from specdiag.loading.references import refuse_problem
from specdiag.loading.text import shown

OVERLAP = 4
FREE = 64 * 2**20
FLAT = ("_flat_param", "flat_param")


def check_tensors(tensors: Mapping[str, torch.Tensor], path: Path, finite: bool = True) -> None:
    """Refuse weights that cannot be analysed; without `finite`, NaN and infinite values pass.

    Raises CheckpointError; reasons: `meta-weights`, `quantised-weights`, `sparse-weights`, `lora-adapter`,
    `flat-params`, `sharded-weights`, `damaged-checkpoint`, `nan-weights`.
    """
    _check_names(tensors, path)
    for name, tensor in tensors.items():
        problem = _problem(tensor)
        if problem:
            raise refuse_problem(name, problem, path)
    _check_claims(tensors, path)
    if finite:
        _check_finite(tensors, path)


def _check_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    seen: set[object] = set()
    for name, tensor in tensors.items():
        if view(tensor) in seen:
            continue
        seen.add(view(tensor))
        bad = not_finite(tensor)
        if bad:
            what = (
                f"{path}: tensor '{shown(name)}' holds {bad:,} NaN or infinite values of {tensor.numel():,}."
            )
            raise CheckpointError(
                what, "Take a checkpoint from before training diverged.", reason="nan-weights"
            )


def not_finite(tensor: torch.Tensor) -> int:
    """Number of NaN or infinite entries."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return 0
    values = tensor.float() if tensor.element_size() == 1 else tensor
    return int(values.numel() - int(torch.isfinite(values).sum()))


def tied(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, ...]]:
    """Groups of names that share one set of values."""
    groups: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel() > 1:
            groups.setdefault(view(tensor), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def view(tensor: torch.Tensor) -> object:
    """What two tensors that look at the same values share."""
    return (
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
    )


def _problem(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return "meta"
    if tensor.is_quantized:
        return "quantised"
    return "" if tensor.layout == torch.strided else "sparse"


def _check_names(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    adapters = [name for name in tensors if ".lora_A." in name or ".lora_B." in name]
    if adapters:
        what = f"{path} is a LoRA adapter (it holds {shown(adapters[0])}), which needs its base model."
        raise CheckpointError(
            what, "Merge it into the base model and save the result.", reason="lora-adapter"
        )
    flat = [name for name in tensors if name.rsplit(".", 1)[-1].startswith(FLAT)]
    if flat:
        what = f"{path} holds flattened FSDP parameters ({shown(flat[0])}), not the network's tensors."
        todo = "Save a full state_dict: FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT)."
        raise CheckpointError(what, todo, reason="flat-params")
    empty = [
        name for name, tensor in tensors.items() if tensor.numel() == 0 and name.endswith(("weight", "bias"))
    ]
    if empty:
        what = f"{path}: tensor '{shown(empty[0])}' is empty, as in one shard of a distributed checkpoint."
        raise CheckpointError(
            what, "Join the shards first, e.g. python zero_to_fp32.py . joined.pt", reason="sharded-weights"
        )


def _check_claims(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Tensors may share storages, but not claim many times what the file holds: a stride of 0 is free."""
    views = {view(tensor): tensor for tensor in tensors.values()}
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in views.values()
    }
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in views.values())
    if claimed > OVERLAP * sum(held.values()) + FREE:
        worst = max(tensors, key=lambda name: tensors[name].numel())
        have = sum(held.values())
        what = f"{path}: its tensors claim {claimed:,} bytes but hold {have:,} (largest: '{shown(worst)}')."
        raise CheckpointError(what, "Save it again.", reason="damaged-checkpoint")
