"""The spectrum from products with the Jacobian, for outputs and inputs too many to store the matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specdiag.errors import UsageError

if TYPE_CHECKING:
    import torch

    from specdiag.model import Model
    from specdiag.sampling import Batch
    from specdiag.schema import Arrays


def by_products(model: Model, batch: Batch, options: Any) -> Arrays:
    """The arrays of `spectrum` that the method gives: all singular values (gram), or the largest (krylov), with errors."""
    found = _gram(model, batch, options) if options.method == "gram" else _krylov(model, batch, options)
    found = {name: _filled(value, len(batch)) for name, value in found.items()}
    values = found["singular_values"]
    outputs = found.pop("outputs")
    logits = outputs if options.layer == "logits" else model.logits(batch.x)
    arrays: Arrays = {**found, "logits": logits, "predicted": logits.argmax(1), "sigma_max": values[:, 0]}
    if logits.shape[1] > 1:
        highest = logits.topk(2, dim=1).values
        arrays["lead"] = highest[:, 0] - highest[:, 1]
    if batch.y is not None:
        arrays["label"] = batch.y
    return arrays


def _gram(model: Model, batch: Batch, options: Any) -> Arrays:
    """All values; rank and condition are left out, because small values are rounding here."""
    from specdiag.jacobian.gram import by_gram

    if options.top:
        raise UsageError(
            "--method gram gives no singular vectors.", "Leave out --top, or use --method krylov."
        )
    # sample by sample: no time goes into padding
    found = by_gram(model, batch.x[: batch.count], options.layer)
    frobenius = found.values.square().sum(1).sqrt()
    return {
        "singular_values": found.values,
        "error": found.error,
        "frobenius": frobenius,
        "stable_rank": (frobenius / found.values[:, 0]).square(),
        "near_kink": found.near_kink,
        "outputs": found.outputs,
    }


def _krylov(model: Model, batch: Batch, options: Any) -> Arrays:
    import torch

    from specdiag.jacobian.topk import by_krylov, group_size

    if not options.top:
        raise UsageError("--method krylov needs to know how many values.", "Pass --top 20, say.")
    # whole groups, so that padding costs no more than it must
    size = group_size(model, len(batch))
    count = min(len(batch), -(-batch.count // size) * size)
    outputs = model.size_of(options.layer)
    starts = torch.from_numpy(batch.draws.normal("krylov-start", batch.index[:count], (outputs,)))
    top = min(options.top, outputs, model.inputs)
    found = by_krylov(model, batch.x[:count], top, starts, options.layer)
    largest = found.left.abs().argmax(2, keepdim=True)
    sign = torch.where(found.left.gather(2, largest) < 0, -1.0, 1.0).to(found.left.dtype)
    return {
        "singular_values": found.values,
        "error": found.error,
        "left_vectors": found.left * sign,
        "right_vectors": found.right * sign,
        "near_kink": found.near_kink,
        "outputs": found.outputs,
    }


def _filled(value: torch.Tensor, size: int) -> torch.Tensor:
    """The rows with the last one repeated for padding."""
    import torch

    missing = size - len(value)
    return torch.cat([value, value[-1:].expand(missing, *value.shape[1:])]) if missing else value
