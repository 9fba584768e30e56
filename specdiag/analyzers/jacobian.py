"""The Jacobian matrices themselves, by one of three methods (roth2020 A.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specdiag.schema import Analyzer, Arrays, ArraySpec, MetricSpec, option

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Options:
    """How the Jacobian is taken."""

    layer: str = option("logits", "What to differentiate: logits, features, or a module path.")
    method: Literal["autograd", "regression", "difference"] = option(
        "autograd",
        "Exact backward passes; least squares on perturbed inputs; or one basis vector at a time (unstable).",
    )
    activations: Literal["fixed", "free"] = option(
        "fixed", "For regression: nonlinearities fixed as they are at x, or free (black box)."
    )
    perturbations: int | None = option(None, "For regression: how many; default 1.25 (D + 1).", min=2)
    radius: float | None = option(
        None, "For regression: norm of a perturbation; default 0.01 median ||x||.", above=0
    )


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """The matrices and, for methods other than autograd, their distance from the exact ones."""
    import torch

    from specdiag.analyzers._jacobian import extract
    from specdiag.jacobian.rows import by_autograd

    found = extract(model, batch, options)
    arrays: Arrays = {
        "matrix": found.matrix,
        "outputs": found.outputs,
        "near_kink": found.near_kink,
        "frobenius": torch.linalg.vector_norm(found.matrix.double().flatten(1), dim=1),
    }
    if found.bias is not None and found.r2 is not None:
        arrays |= {"bias": found.bias, "r2": found.r2}
    if options.method != "autograd" and model.differentiable:
        exact = by_autograd(model, batch.x, options.layer).matrix.double()
        distance = torch.linalg.vector_norm((found.matrix.double() - exact).flatten(1), dim=1)
        arrays["error"] = distance / torch.linalg.vector_norm(exact.flatten(1), dim=1)
    return arrays


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Distribution over samples of the Jacobian's Frobenius norm, one step curve per run."""
    import numpy as np

    from specdiag.figures import colour

    ax = figure.add_subplot()
    for number, (label, data) in enumerate(runs.items()):
        values = np.sort(data["frobenius"].values[np.isfinite(data["frobenius"].values)])
        share = np.arange(1, len(values) + 1) / max(1, len(values))
        ax.step(values, share, where="post", color=colour(number), label=label)
    ax.set_xlabel("Frobenius norm of the Jacobian (output / input)")
    ax.set_ylabel("share of samples at or below")
    ax.set_ylim(0, 1)
    ax.set_title("Size of the Jacobian over samples")
    ax.legend()


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """What was stored, and how exact it is."""
    samples, outputs, inputs = data["matrix"].shape
    rows = [["matrices", f"{samples} of {outputs} x {inputs}, {data['matrix'].nbytes / 1e6:.3g} MB"]]
    if "error" in data:
        rows.append(["relative distance to autograd, median", f"{float(data['error'].median()):.2e}"])
        rows.append(["relative distance to autograd, largest", f"{float(data['error'].max()):.2e}"])
    if "r2" in data:
        rows.append(["R^2 of the fit, smallest", f"{float(data['r2'].min()):.8f}"])
    return ["stored", "value"], rows


ANALYZER = Analyzer(
    name="jacobian",
    summary="The Jacobian matrices themselves, stored.",
    source="roth2020, A.5",
    version=1,
    options=Options,
    arrays={
        "matrix": ArraySpec(("sample", "output", "input"), "output / input", "Jacobian, rows = outputs"),
        "outputs": ArraySpec(("sample", "output"), "output", "value of the differentiated layer at x"),
        "bias": ArraySpec(("sample", "output"), "output", "constant of the affine fit W x + b"),
        "r2": ArraySpec(("sample",), "1", "share of the outputs' variance that the fit explains"),
        "error": ArraySpec(("sample",), "1", "||J - J_autograd||_F / ||J_autograd||_F"),
        "frobenius": ArraySpec(("sample",), "output / input", "Frobenius norm"),
        "near_kink": ArraySpec(
            ("sample",), "1", "activations within rounding of a kink, where dtypes may differ"
        ),
    },
    metrics={
        "frobenius_mean": MetricSpec("output / input", "lower", "mean Frobenius norm", "frobenius", "mean"),
        "error_median": MetricSpec("1", "lower", "median relative distance to autograd", "error", "median"),
        "r2_min": MetricSpec("1", "higher", "smallest R^2 of the fits", "r2", "min"),
    },
    compute=compute,
    plot=plot,
    table=table,
    memory=lambda options, sizes: 3 * sizes["K"] * sizes["D"],
)
