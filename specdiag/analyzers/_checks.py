"""Warnings with ids on results that a reader should distrust, from stored arrays alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import xarray

    from specdiag.sampling import Batch

Warnings = list[dict[str, str]]
SOFTMAX, CONSTANT = 1e-3, 1e-4
OUTSIDE = 0.01


def output_facts(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the checks of the outputs need: sum, smallest and root mean square of each sample's logits."""
    exact = logits.double()
    return {
        "logit_sum": exact.sum(1),
        "logit_lowest": exact.amin(1),
        "logit_rms": exact.square().mean(1).sqrt(),
    }


def output_warnings(data: xarray.Dataset) -> Warnings:
    """Softmax where logits are expected; logits whose sum never changes."""
    import numpy as np

    if "logit_sum" not in data or data.sizes["sample"] < 2:
        return []
    total, lowest, rms = (data[name].values for name in ("logit_sum", "logit_lowest", "logit_rms"))
    if not len(total) or not np.isfinite(total).all():
        return []
    if (np.abs(total - 1) < SOFTMAX).all() and (lowest >= 0).all():
        return [
            warning(
                "SD306",
                "The outputs of every sample are positive and sum to 1: they look like probabilities, not logits. "
                "Singular values, margins and losses are then those of softmax; remove the last softmax.",
            )
        ]
    if total.std() < CONSTANT * rms.mean():
        return [
            warning(
                "SD307",
                f"The outputs of every sample sum to {total.mean():.4g}: one singular value is zero for this reason.",
            )
        ]
    return []


def vanishing_warning(usable: Any, what: str = "attack") -> Warnings:
    """Samples whose gradient is zero or not finite; usable: (N,) booleans with the dimension `sample`."""
    import numpy as np

    bad = ~np.asarray(usable.values, bool)
    if not bad.any():
        return []
    which = usable["sample"].values[bad]
    listed = ", ".join(str(entry) for entry in which[:5]) + (", ..." if len(which) > 5 else "")
    return [
        warning(
            "SD301",
            f"The gradient of the {what} is zero or not finite for {len(which)} of {len(bad)} samples "
            f"(sample {listed}); they are left out. Many of them are a sign of masked gradients.",
        )
    ]


def outside_warning(data: xarray.Dataset) -> Warnings:
    """Perturbed inputs outside the range that the network has seen."""
    if "outside_range" not in data:
        return []
    share = float(data["outside_range"].mean())
    if not share > OUTSIDE:
        return []
    return [
        warning(
            "SD308",
            f"{100 * share:.0f} % of the values of the perturbed inputs lie outside the range of the data, which the "
            "network has not seen in training; --clip keeps them inside.",
        )
    ]


def foolbox_warning(data: xarray.Dataset, names: Any) -> Warnings:
    """Attacks whose random numbers are not keyed by sample."""
    foreign = [name for name in names if str(name).startswith("foolbox")]
    if not foreign:
        return []
    return [
        warning(
            "SD310",
            f"{foreign[0]} draws from torch's generator, seeded once per chunk: its result depends on the chunk size.",
        )
    ]


def keep_unpadded(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    """The rows of real samples; the rest repeat the last one."""
    return values[: batch.count]


def warning(identity: str, text: str) -> dict[str, str]:
    """One warning as the results file stores it."""
    return {"id": identity, "text": text}
