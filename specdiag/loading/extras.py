"""Tensors beside the network's own: the input normalisation of a wrapper, and second copies of the network.

`robustness` keeps mean and std as `normalizer.new_mean`, `normalizer.new_std` and every tensor again under
`attacker.`; RobustBench's models keep `mu`, `sigma` or `normalize.mean`, `normalize.std`; others wrap the
network in Sequential(Normalize, network).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

PAIRS = (("new_mean", "new_std"), ("mean", "std"), ("mu", "sigma"))
COPY = "attacker."
MOST_CHANNELS = 4


def without_copy(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the copy under `attacker.`, where it is equal to what it copies."""
    copies = {name: name.removeprefix(COPY) for name in tensors if name.startswith(COPY)}
    for name, original in copies.items():
        # the attacker's own copy of the normalisation is spelled differently
        twin = original if original in tensors else original.replace("normalize.", "normalizer.", 1)
        if twin not in tensors or not torch.equal(tensors[name], tensors[twin]):
            return dict(tensors)
    return {name: tensor for name, tensor in tensors.items() if name not in copies}


def without_normaliser(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, list[float]] | None]:
    """(the rest, {'mean', 'std'}) where exactly one pair is an input normalisation, else (all, None)."""
    found = []
    for name in tensors:
        front, _, leaf = name.rpartition(".")
        for mean_leaf, std_leaf in PAIRS:
            other = f"{front}.{std_leaf}" if front else std_leaf
            if leaf == mean_leaf and other in tensors and _is_pair(tensors[name], tensors[other]):
                found.append((name, other))
    if len(found) != 1:
        return dict(tensors), None
    names = found[0]
    mean, std = (tensors[name].double().flatten().tolist() for name in names)
    return {name: tensor for name, tensor in tensors.items() if name not in names}, {"mean": mean, "std": std}


def _is_pair(mean: torch.Tensor, std: torch.Tensor) -> bool:
    same = mean.shape == std.shape and mean.is_floating_point() and std.is_floating_point()
    return same and 1 <= mean.numel() <= MOST_CHANNELS and bool((std > 0).all())
