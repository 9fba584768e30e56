"""The singular-value spectrum of the input-output Jacobian, sample by sample (roth2020 5.2, Fig. 1 left)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, Summary, option

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Options:
    """How the Jacobian is taken and what of its decomposition is kept."""

    layer: str = option("logits", "What to differentiate: logits, features, or a module path.")
    method: Literal["autograd", "gram", "krylov", "regression"] = option(
        "autograd",
        "Exact rows by backward passes; J J^T in blocks (less memory, small values inexact); the --top largest by "
        "Golub-Kahan-Lanczos; or least squares on randomly perturbed inputs (roth2020 A.5).",
    )
    activations: Literal["fixed", "free"] = option(
        "fixed", "For regression: nonlinearities fixed as they are at x, or free (black box)."
    )
    perturbations: int | None = option(None, "For regression: how many; default 1.25 (D + 1).", min=2)
    radius: float | None = option(
        None, "For regression: norm of a perturbation; default 0.01 median ||x||.", above=0
    )
    top: int = option(0, "How many singular vectors to store; for krylov also how many values.", min=0)
    at: AttackSpec = option(
        AttackSpec("clean"), "Also at the points that an attack leads to, by its name; clean: there only."
    )


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """Singular values and logits of each sample; see `ANALYZER.arrays`."""
    arrays = _at_points(model, batch, options)
    if options.at != "clean":
        arrays |= _at_attacked(model, batch, options)
    return arrays


def _at_attacked(model: Model, batch: Batch, options: Options) -> Arrays:
    """The same spectrum at perturbed points; NaN where the attack has no sound gradient."""
    import dataclasses

    import torch

    from specdiag.analyzers import _attacked

    found = _attacked.attacked(_attacked.attack_of(options.at), model, batch)
    values = _at_points(model, dataclasses.replace(batch, x=found.x), options)["singular_values"]
    values = torch.where(found.usable[:, None], values, torch.nan)
    return {
        "attacked_singular_values": values,
        "attacked_sigma_max": values[:, 0],
        "perturbation_norm": found.norm,
        "usable": found.usable,
    }


def _at_points(model: Model, batch: Batch, options: Options) -> Arrays:
    import torch

    from specdiag.analyzers._jacobian import extract
    from specdiag.analyzers._large import by_products
    from specdiag.linalg.svd import svd

    if options.method in ("gram", "krylov"):
        return by_products(model, batch, options)
    jacobian = extract(model, batch, options)
    finite = torch.isfinite(jacobian.matrix).flatten(1).all(1)
    safe = jacobian.matrix
    if not bool(finite.all()):
        safe = torch.where(finite[:, None, None], safe, torch.zeros_like(safe))
    found = svd(safe, top=min(options.top, *safe.shape[1:]))
    values = torch.where(finite[:, None], found.values, torch.nan)
    logits = jacobian.outputs if options.layer == "logits" else model.logits(batch.x)
    arrays: Arrays = {
        "singular_values": values,
        "logits": logits,
        "predicted": logits.argmax(1),
        "near_kink": jacobian.near_kink,
    }
    if logits.shape[1] > 1:
        highest = logits.topk(2, dim=1).values
        arrays["lead"] = highest[:, 0] - highest[:, 1]
    if batch.y is not None:
        arrays["label"] = batch.y
    if jacobian.r2 is not None:
        arrays["r2"] = jacobian.r2
    if found.left is not None and found.right is not None:
        arrays["left_vectors"] = found.left.mT
        arrays["right_vectors"] = found.right.mT
    arrays |= _shape_figures(values, safe)
    return arrays


def _shape_figures(values: Any, matrices: Any) -> Arrays:
    import torch

    from specdiag.linalg.svd import cutoff

    frobenius = values.square().sum(1).sqrt()
    largest, smallest = values[:, 0], values[:, -1]
    limit = cutoff(matrices.dtype, tuple(matrices.shape[1:]), 1.0) * largest
    return {
        "sigma_max": largest,
        "frobenius": frobenius,
        "stable_rank": (frobenius / largest).square(),
        "rank_count": (values > limit[:, None]).sum(1),
        # a matrix without full rank has no finite condition; the share of them is in rank_count
        "condition": torch.where(smallest > limit, largest / smallest, torch.inf),
    }


def summarise(data: xarray.Dataset) -> Summary:
    """Median condition number; infinite where half of the matrices lack full rank."""
    import numpy as np

    if "condition" not in data:
        return {}
    values = data["condition"].values
    values = values[~np.isnan(values)]
    if not len(values):
        return {"condition_median": (float("nan"), float("nan"))}
    ordered = np.sort(values)
    # distribution-free standard error of a median: half the distance between the order statistics one sd around it
    half = np.sqrt(len(ordered)) / 2
    low, high = (int(np.clip(len(ordered) / 2 + side * half, 0, len(ordered) - 1)) for side in (-1, 1))
    # by order, because infinities are legitimate here and would spoil an average of two
    median = float(ordered[(len(ordered) - 1) // 2])
    with np.errstate(invalid="ignore"):
        return {"condition_median": (median, float(ordered[high] - ordered[low]) / 2)}


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Mean singular value against rank with a standard-error band, one curve per run (roth2020 Fig. 1 left)."""
    import numpy as np

    from specdiag.analyzers._keys import keys, labelled
    from specdiag.figures import colour, line_with_band, log_axis

    runs = labelled(runs)
    ax = figure.add_subplot()
    for number, (label, data) in enumerate(runs.items()):
        values = data["singular_values"].values
        count = np.sqrt(max(1, np.isfinite(values).all(1).sum()))
        line_with_band(
            ax,
            data["rank"].values,
            np.nanmean(values, 0),
            np.nanstd(values, 0, ddof=1 if len(values) > 1 else 0) / count,
            label,
            number,
        )
        if "attacked_singular_values" in data:
            shown = f"{label}, at attacked points"
            mean = np.nanmean(data["attacked_singular_values"].values, 0)
            ax.plot(data["rank"].values, mean, color=colour(number), ls=(0, (1, 1)), label=shown)
    ax.set_xlabel("rank of the singular value")
    unit = next(iter(runs.values()))["singular_values"].attrs.get("units", "")
    ax.set_ylabel(f"singular value of the Jacobian ({unit})")
    means = np.concatenate([np.nanmean(data["singular_values"].values, 0) for data in runs.values()])
    if np.nanmax(means) > 30 * max(np.nanmin(means), 1e-300):
        log_axis(ax, "y")
    else:
        ax.set_ylim(bottom=0)
    if len(ax.get_lines()) and len(next(iter(runs.values()))["rank"]) <= 20:
        ax.set_xticks(next(iter(runs.values()))["rank"].values)
    ax.set_title("Jacobian spectrum: mean and standard error over samples")
    keys(figure, runs)


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Rank, mean, standard error and quartiles over the samples."""
    import numpy as np

    values = data["singular_values"].values
    values = values[np.isfinite(values).all(1)]
    if not len(values):
        return ["rank"], []
    error = (
        values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(values.shape[1], np.nan)
    )
    quartiles = np.percentile(values, (25, 50, 75), axis=0)
    ranks = _shown_ranks(values.shape[1])
    columns = [values.mean(0), error, *quartiles]
    titles = ["rank", "mean", "std. error", "25 %", "median", "75 %"]
    if "attacked_singular_values" in data:
        columns.append(np.nanmean(data["attacked_singular_values"].values, 0))
        titles.append("mean, attacked")
    rows = [[str(r + 1), *(f"{column[r]:.4g}" for column in columns)] for r in ranks]
    return titles, rows


def _shown_ranks(count: int) -> list[int]:
    if count <= 12:
        return list(range(count))
    spread = {0, 1, 2, 3, 4, count - 1} | {2**power - 1 for power in range(3, 20) if 2**power < count}
    return sorted(spread)


def sentence(data: xarray.Dataset) -> str:
    """How far the logits can move for a small step of the input, beside the median margin."""
    import numpy as np

    sigma = data["sigma_max"].values
    sigma = sigma[np.isfinite(sigma)]
    if not len(sigma):
        return "No sample has a finite Jacobian."
    typical = float(np.median(sigma))
    text = (
        f"A small step of length r in the worst direction of the input moves the output by up to {typical:.3g} r "
        "(median over samples)"
    )
    if "lead" not in data:
        return text + "."
    lead = float(np.median(data["lead"].values))
    # the gap of two logits moves by at most sqrt(2) sigma per unit step; where nothing moves, no step is long enough
    gaps = data["lead"].values[np.isfinite(data["sigma_max"].values)]
    reaches = np.divide(gaps, np.sqrt(2) * sigma, out=np.full(len(sigma), np.inf), where=sigma > 0)
    reach = float(np.median(reaches))
    if np.isinf(reach):
        return f"{text}: most samples do not react to one at all."
    return (
        f"{text}; the top logit leads the next by {lead:.3g} (median), so to first order no step shorter than about "
        f"{reach:.2g} can change the typical prediction."
    )


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Probabilities where logits are expected, outputs with a constant sum, gradients that vanish, lost values."""
    from specdiag.analyzers import _checks

    logits = data["logits"].astype("float64")
    seen = data.assign(
        logit_sum=logits.sum("output"),
        logit_lowest=logits.min("output"),
        logit_rms=(logits**2).mean("output") ** 0.5,
    )
    return [
        *_checks.output_warnings(seen),
        *(_checks.vanishing_warning(data["usable"]) if "usable" in data else []),
        *_lost_values(data),
    ]


def _lost_values(data: xarray.Dataset) -> list[dict[str, str]]:
    """SD203: singular values whose estimated error is above 1 % of themselves."""
    import numpy as np

    if "error" not in data:
        return []
    values, error = data["singular_values"].values, data["error"].values
    lost = error > 0.01 * values
    if not lost.any():
        return []
    limit = float(np.max(values[lost]))
    text = (
        f"{int(lost.sum())} of {lost.size} singular values have an estimated error above 1 % of themselves, all at or below "
        f"{limit:.3g}: J J^T squares the condition number. For those use --method autograd, or --dtype float64."
    )
    return [{"id": "SD203", "text": text}]


def memory(options: Options, sizes: Mapping[str, int]) -> int:
    """Values per sample beside the activations."""
    outputs, inputs = sizes["K"], sizes["D"]
    if options.method == "gram":
        return 4 * outputs * outputs + 64 * inputs
    if options.method == "krylov":
        return 6 * options.top * (outputs + inputs)
    # a matrix too large to be copied is reduced block by block
    return (1 if outputs * inputs > 2**24 else 4) * outputs * inputs


_PER_SAMPLE = ("sample",)
ANALYZER = Analyzer(
    name="spectrum",
    summary="Singular values of the Jacobian at each sample.",
    source="roth2020, Fig. 1 left",
    version=1,
    options=Options,
    arrays={
        "singular_values": ArraySpec(
            ("sample", "rank"), "output / input", "singular values of the Jacobian, falling"
        ),
        "logits": ArraySpec(("sample", "output"), "logit", "outputs of the network"),
        "label": ArraySpec(_PER_SAMPLE, "class", "label of the data set"),
        "predicted": ArraySpec(_PER_SAMPLE, "class", "class of the largest logit"),
        "lead": ArraySpec(_PER_SAMPLE, "logit", "largest logit minus the second largest"),
        "sigma_max": ArraySpec(_PER_SAMPLE, "output / input", "largest singular value"),
        "frobenius": ArraySpec(_PER_SAMPLE, "output / input", "Frobenius norm of the Jacobian"),
        "stable_rank": ArraySpec(_PER_SAMPLE, "1", "||J||_F^2 / sigma_max^2"),
        "rank_count": ArraySpec(_PER_SAMPLE, "1", "singular values above the rank cut-off"),
        "condition": ArraySpec(
            _PER_SAMPLE, "1", "largest over smallest singular value; infinite below full rank", True
        ),
        "error": ArraySpec(
            ("sample", "rank"), "output / input", "estimated error of the singular value (gram, krylov)"
        ),
        "near_kink": ArraySpec(
            _PER_SAMPLE, "1", "activations within rounding of a kink, where dtypes may differ"
        ),
        "r2": ArraySpec(_PER_SAMPLE, "1", "share of the outputs' variance that the regression explains"),
        "attacked_singular_values": ArraySpec(
            ("sample", "rank"), "output / input", "singular values at the attacked points"
        ),
        "attacked_sigma_max": ArraySpec(
            _PER_SAMPLE, "output / input", "largest singular value at the attacked point"
        ),
        "perturbation_norm": ArraySpec(_PER_SAMPLE, "input", "||perturbation||_2 of the attack"),
        "usable": ArraySpec(_PER_SAMPLE, "1", "the perturbation rests on finite gradients that are not zero"),
        "left_vectors": ArraySpec(
            ("sample", "vector", "output"), "1", "left singular vectors of the largest values"
        ),
        "right_vectors": ArraySpec(
            ("sample", "vector", "input"), "1", "right singular vectors of the largest values"
        ),
    },
    metrics={
        "sigma_max_mean": MetricSpec(
            "output / input", "lower", "mean largest singular value", "sigma_max", "mean"
        ),
        "sigma_max_p95": MetricSpec(
            "output / input", "lower", "95th percentile of the largest singular value", "sigma_max", "p95"
        ),
        "attacked_sigma_max_mean": MetricSpec(
            "output / input",
            "lower",
            "mean largest singular value at the attacked points",
            "attacked_sigma_max",
            "mean",
        ),
        "frobenius_mean": MetricSpec("output / input", "lower", "mean Frobenius norm", "frobenius", "mean"),
        "stable_rank_mean": MetricSpec("1", "neither", "mean stable rank", "stable_rank", "mean"),
        "condition_median": MetricSpec("1", "neither", "median condition number"),
    },
    compute=compute,
    summarise=summarise,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
    memory=memory,
)
