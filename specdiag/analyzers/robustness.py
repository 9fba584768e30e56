"""Accuracy, vulnerability and damage against the size of attacks (roth2020 Fig. 3 left; simongabriel2019 def. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.attacks._options import known
from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, Summary, option

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch


@dataclass(frozen=True, slots=True)
class Options:
    """Which attacks, at which eps, and what is counted."""

    attack: tuple[AttackSpec, ...] = option((AttackSpec("pgd-l2"),), f"One or several of: {known()}.")
    eps_sweep: tuple[float, ...] = option(
        (), "Sizes to attack at; default 0.25 to 2 times --eps.", above=0, increasing=True
    )
    eps_unit: Literal["data", "8bit"] = option("data", "Unit of the sizes: the data's, or its 1/255.")
    eps_scale: Literal["none", "dimension", "mean-norm", "snr"] = option(
        "none",
        "What a size is multiplied by: nothing, d^(1/p) (the same average change per value in any norm), the mean "
        "||x||_2, or ||x||_2 d^(1/p - 1/2) of each sample.",
    )
    penalty_sweep: tuple[float, ...] = option(
        (), "Penalties for wrm; default 0.25 to 4 times --penalty.", above=0, increasing=True
    )
    clip: bool = option(True, "Keep perturbed inputs in the range of the data.")
    accuracy_only: bool = option(False, "Stop each sample once it is fooled; no loss, several times faster.")
    controls: bool = option(
        True, "Also random directions, one step, and the largest eps alone, for the checks."
    )


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """Who is fooled by which attack at which eps, and the controls; see `ANALYZER.arrays`."""
    import torch

    from specdiag.analyzers import _checks, _sweeps

    sweep = _sweeps.Sweep(model, batch, options)
    kinds = {spec: _sweeps.kind_of(spec) for spec in options.attack}
    gridded = [spec for spec in options.attack if kinds[spec] != "penalised"]
    parts = [sweep.ball(spec) if kinds[spec] == "ball" else sweep.minimal(spec) for spec in gridded]
    arrays = _sweeps.together(parts, len(batch))
    if options.accuracy_only:
        arrays.pop("loss", None)
    for spec in options.attack:
        if kinds[spec] == "penalised":
            arrays |= sweep.penalised(spec)
    if gridded:
        arrays["eps"] = torch.tensor(sweep.grid.eps, dtype=torch.float64)
        arrays["attack"] = [str(spec) for spec in gridded]
    balls = [spec for spec in gridded if kinds[spec] == "ball"]
    if options.controls and balls:
        arrays |= sweep.controls(balls[0])
    again = model.logits(batch.x).double()
    return arrays | {
        "correct": sweep.correct.float(),
        "clean_loss": sweep.clean_loss,
        "label": sweep.labels,
        "predicted": sweep.answers,
        "repeat_gap": (again - sweep.logits).abs().amax(1),
        **_checks.output_facts(sweep.logits),
    }


_CURVES = ("fooled", "changed", "loss", "perturbation_norm", "radius")


def finish(data: xarray.Dataset) -> xarray.Dataset:
    """Put attack and eps first, and add the accuracy curves with their 95 % Wilson intervals."""
    import xarray

    arrays = ANALYZER.arrays
    ordered = {
        name: data[name].transpose("attack", "eps", "sample") if name in _CURVES else data[name]
        for name in map(str, data.data_vars)
    }
    if "fooled" in data:
        fooled = ordered["fooled"].values
        share, low, high = _wilson(1 - fooled)
        for name, values in (("accuracy", share), ("accuracy_low", low), ("accuracy_high", high)):
            spec = arrays[name]
            ordered[name] = xarray.DataArray(
                values, dims=spec.dims, attrs={"units": spec.unit, "long_name": spec.doc}
            )
    return xarray.Dataset(ordered, data.coords, data.attrs)


def _wilson(held: Any) -> tuple[Any, Any, Any]:
    """Share of ones among the numbers of the last axis, and its 95 % Wilson interval."""
    import numpy as np

    count = np.isfinite(held).sum(-1)
    share = np.where(count > 0, np.nansum(held, -1) / np.maximum(count, 1), np.nan)
    z2 = 1.959963984540054**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count) if np.all(count > 0) else share
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return share, np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def summarise(data: xarray.Dataset) -> Summary:
    """Shares with their standard errors, per attack and eps; samples with unknown outcome are left out."""
    import numpy as np

    correct = data["correct"].values
    found: dict[str, Any] = {}
    if "fooled" in data:
        held = 1 - data["fooled"].values
        found["accuracy"] = _share(held)
        found["accuracy_of_correct"] = _share(np.where(correct == 1, held, np.nan))
        found["vulnerability"] = _share(data["changed"].values)
        found["zero_one_damage"] = _mean(correct - held)
        found["worst_accuracy"] = _share(held.min(0))
        if "loss" in data:
            found["damage"] = _mean(data["loss"].values - data["clean_loss"].values)
        found["half_eps"] = (_half_eps(data), np.full(data.sizes["attack"], np.nan))
    # metrics with dimensions are flat lists in the order of their dimensions
    return {name: _flat(value, error) for name, (value, error) in found.items()}


def _flat(value: Any, error: Any) -> Any:
    import numpy as np

    return (np.reshape(value, -1), np.reshape(error, -1)) if np.ndim(value) else (float(value), float(error))


def _mean(values: Any) -> tuple[Any, Any]:
    """Mean and standard error along the last axis without NaN."""
    import warnings

    import numpy as np

    count = np.isfinite(values).sum(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, -1), np.nanstd(values, -1, ddof=1) / np.sqrt(count)


_share = _mean


def _half_eps(data: xarray.Dataset) -> Any:
    """Smallest eps, between those asked for by straight lines, at which half of the clean accuracy is lost."""
    import numpy as np

    clean = float(data["correct"].mean())
    eps = np.concatenate([[0.0], data["eps"].values])
    result = []
    for row in data["accuracy"].values:
        curve = np.concatenate([[clean], row])
        below = np.flatnonzero(curve <= clean / 2)
        if not len(below) or below[0] == 0:
            result.append(np.inf)
            continue
        k = below[0]
        part = (curve[k - 1] - clean / 2) / (curve[k - 1] - curve[k])
        result.append(eps[k - 1] + part * (eps[k] - eps[k - 1]))
    return np.array(result)


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Accuracy against eps, the training eps dashed; loss added, and wrm against its mean norm, where there are any."""
    from specdiag.analyzers import _robustness_plot

    _robustness_plot.draw(runs, figure)


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Accuracy with its interval, vulnerability and loss added, for each attack and eps."""
    import numpy as np

    rows = [["clean", "0", f"{100 * float(data['correct'].mean()):.1f} %", "", "", ""]]
    for a, attack in enumerate(data["attack"].values if "fooled" in data else ()):
        for e, eps in enumerate(data["eps"].values):
            low, high = (float(data[f"accuracy_{side}"].values[a, e]) for side in ("low", "high"))
            loss = (
                data["loss"].values[a, e] - data["clean_loss"].values
                if "loss" in data
                else np.array([np.nan])
            )
            damage = f"{np.nanmean(loss):.3g}" if np.isfinite(loss).any() else "-"
            rows.append(
                [
                    str(attack),
                    f"{eps:.4g}",
                    f"{100 * float(data['accuracy'].values[a, e]):.1f} %",
                    f"{100 * low:.1f} to {100 * high:.1f} %",
                    f"{100 * float(np.nanmean(data['changed'].values[a, e])):.1f} %",
                    damage,
                ]
            )
    for p, penalty in enumerate(data["penalty"].values if "penalty_fooled" in data else ()):
        held = 1 - data["penalty_fooled"].values[:, p]
        size = float(np.nanmean(data["penalty_norm"].values[:, p]))
        added = float(np.nanmean(data["penalty_loss"].values[:, p] - data["clean_loss"].values))
        shown = f"mean norm {size:.3g}"
        rows.append(
            [f"wrm, penalty {penalty:.3g}", shown, f"{100 * np.nanmean(held):.1f} %", "", "", f"{added:.3g}"]
        )
    return ["attack", "eps", "accuracy", "95 % interval", "answers changed", "loss added"], rows


def sentence(data: xarray.Dataset) -> str:
    """Clean accuracy, and the eps at which half of it is gone."""
    import numpy as np

    clean = 100 * float(data["correct"].mean())
    if "fooled" not in data:
        return f"Clean accuracy is {clean:.1f} %."
    accuracy = data["accuracy"].values
    worst = int(accuracy[:, -1].argmin())
    name, eps = data["attack"].values[worst], float(data["eps"].values[-1])
    half = float(_half_eps(data)[worst])
    ending = f"; half of it is lost at eps {half:.3g}" if np.isfinite(half) else ""
    return f"Clean accuracy is {clean:.1f} %; {name} leaves {100 * accuracy[worst, -1]:.1f} % at eps {eps:.4g}{ending}."


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Masked or vanishing gradients, label leaking, softmax outputs, answers that vary."""
    from specdiag.analyzers import _checks, _robustness_checks

    names = data["attack"].values if "attack" in data.coords else ()
    return [
        *_robustness_checks.warnings(data),
        *_checks.output_warnings(data),
        *_checks.foolbox_warning(data, names),
    ]


_SAMPLE = ("sample",)
# as computed; `finish` stores them as (attack, eps, sample)
_GRID = ("sample", "attack", "eps")
_CURVE = ("attack", "eps")
ANALYZER = Analyzer(
    name="robustness",
    summary="Accuracy, vulnerability and damage against the size of attacks.",
    source="roth2020, Fig. 3 left, 5 left; simongabriel2019, Definition 1; wen2020, D.2",
    version=1,
    options=Options,
    arrays={
        "fooled": ArraySpec(
            _GRID, "1", "the attack makes the answer wrong within this eps; wrong from the start: 1"
        ),
        "changed": ArraySpec(_GRID, "1", "the attack changes the answer within this eps"),
        "loss": ArraySpec(_GRID, "nat", "largest cross-entropy found within this eps"),
        "perturbation_norm": ArraySpec(_GRID, "input", "||perturbation||_2 of the last attack on the sample"),
        "radius": ArraySpec(_GRID, "input", "radius of the attack in its norm, in the units of the data"),
        "accuracy": ArraySpec(_CURVE, "1", "share of samples not fooled"),
        "accuracy_low": ArraySpec(_CURVE, "1", "lower end of its 95 % Wilson interval"),
        "accuracy_high": ArraySpec(_CURVE, "1", "upper end of its 95 % Wilson interval"),
        "penalty_fooled": ArraySpec(("sample", "penalty"), "1", "wrm makes the answer wrong at this penalty"),
        "penalty_norm": ArraySpec(("sample", "penalty"), "input", "||perturbation||_2 of wrm"),
        "penalty_loss": ArraySpec(("sample", "penalty"), "nat", "cross-entropy under wrm"),
        "random_fooled": ArraySpec(("sample", "eps"), "1", "a random direction makes the answer wrong"),
        "one_step_fooled": ArraySpec(("sample", "eps"), "1", "one gradient step makes the answer wrong"),
        "alone_fooled": ArraySpec(
            _SAMPLE, "1", "the first attack at the largest eps alone makes the answer wrong"
        ),
        "correct": ArraySpec(_SAMPLE, "1", "the answer at x is the label"),
        "clean_loss": ArraySpec(_SAMPLE, "nat", "cross-entropy at x"),
        "label": ArraySpec(
            _SAMPLE, "class", "label of the data set; the network's answer where there is none"
        ),
        "predicted": ArraySpec(_SAMPLE, "class", "answer at x"),
        "repeat_gap": ArraySpec(_SAMPLE, "logit", "largest difference of the outputs when asked twice"),
        "logit_sum": ArraySpec(_SAMPLE, "logit", "sum of the outputs"),
        "logit_lowest": ArraySpec(_SAMPLE, "logit", "smallest output"),
        "logit_rms": ArraySpec(_SAMPLE, "logit", "root mean square of the outputs"),
    },
    metrics={
        "clean_accuracy": MetricSpec("1", "higher", "share of samples answered rightly", "correct", "mean"),
        "accuracy": MetricSpec("1", "higher", "share not fooled", dims=_CURVE),
        "accuracy_of_correct": MetricSpec("1", "higher", "share of those right at x not fooled", dims=_CURVE),
        "worst_accuracy": MetricSpec("1", "higher", "share not fooled by any of the attacks", dims=("eps",)),
        "vulnerability": MetricSpec("1", "lower", "share whose answer changes", dims=_CURVE),
        "zero_one_damage": MetricSpec("1", "lower", "accuracy lost", dims=_CURVE),
        "damage": MetricSpec("nat", "lower", "mean cross-entropy added", dims=_CURVE),
        "half_eps": MetricSpec(
            "eps", "higher", "eps at which half of the accuracy is lost", dims=("attack",)
        ),
    },
    coordinates={
        "eps": "size of the attack, in the unit and scale asked for",
        "attack": "name of the attack",
        "penalty": "penalty of wrm",
    },
    compute=compute,
    summarise=summarise,
    finish=finish,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
)
