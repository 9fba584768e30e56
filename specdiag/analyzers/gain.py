"""How much a network stretches inputs and perturbations, as a whole and layer by layer (farnia2019 Fig. 2a).

Beside the gains stand what bounds them: each layer's operator norm, the Lipschitz bound of the network up to each layer,
and the largest singular value of the Jacobian (roth2020 eq. 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, Summary, option

if TYPE_CHECKING:
    import torch
    import xarray
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch

# a gain counts as above the first-order one beyond rounding
SLACK = 1e-4


@dataclass(frozen=True, slots=True)
class Options:
    """What is put through the network, and in which norm."""

    order: float = option(2.0, "Norm order p of ||f(x)||_p / ||x||_p; inf for the largest entry.", min=1.0)
    of: tuple[Literal["input", "perturbation"], ...] = option(
        ("input", "perturbation"), "Gains of the inputs themselves, of perturbations, or both."
    )
    attack: AttackSpec = option(
        AttackSpec("pgd-l2"), "The perturbations; random ones of the same length stand beside them."
    )
    clip: bool = option(False, "Keep perturbed inputs in the range of the data.")


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """Gains of a batch; see `ANALYZER.arrays`."""
    arrays: Arrays = {}
    if "input" in options.of:
        arrays |= _input_gain(model, batch, options.order)
    if "perturbation" in options.of:
        arrays |= _perturbation_gain(model, batch, options)
    return arrays


def _input_gain(model: Model, batch: Batch, order: float) -> Arrays:
    import torch

    into = torch.linalg.vector_norm(batch.x.double().flatten(1), ord=order, dim=1)
    out = torch.linalg.vector_norm(model.logits(batch.x).double(), ord=order, dim=1)
    return {"gain": out / into, "input_norm": into, "output_norm": out}


def _perturbation_gain(model: Model, batch: Batch, options: Options) -> Arrays:
    """Random and attacked perturbations of the same l2 length through every layer."""
    import numpy as np
    import torch

    from specdiag.analyzers import _attacked
    from specdiag.analyzers._lipschitz import bounds_of
    from specdiag.analyzers._operators import norms_of
    from specdiag.jacobian.rows import by_autograd
    from specdiag.linalg.svd import svd

    found = _attacked.attacked(_attacked.attack_of(options.attack, clip=options.clip), model, batch)
    drawn = _attacked.random_directions(batch, "gain/random")
    shape = (-1, *[1] * (batch.x.ndim - 1))
    moved = batch.x + drawn * found.norm.to(batch.x.dtype).reshape(shape)
    clean = _layers(model, batch.x)
    parts = [_gains(clean, _layers(model, x), x, batch.x) for x in (moved, found.x)]
    jacobian = by_autograd(model, batch.x)
    finite = torch.isfinite(jacobian.matrix).flatten(1).all(1)
    safe = torch.where(finite[:, None, None], jacobian.matrix, 0.0)
    sigma = torch.where(finite, svd(safe).values[:, 0], torch.nan)
    total, layer, local = (torch.stack([part[k] for part in parts], 1) for k in range(3))
    norms, bounds = norms_of(model, True), bounds_of(model, True)
    operator = torch.from_numpy(norms.sigma_max).to(local)
    return {
        "perturbation_gain": total,
        "layer_gain": layer,
        "local_gain": local,
        "worst_case_share": local / operator,
        "perturbation_norm": found.norm,
        "sigma_max": sigma,
        "first_order_ratio": total / sigma[:, None],
        "exceeds": total > (1 + SLACK) * sigma[:, None],
        "usable": found.usable,
        "near_kink": jacobian.near_kink,
        "outside_range": _attacked.outside_share(found.x, batch, model),
        "operator_norm": norms.sigma_max,
        "operator_norm_error": norms.error,
        "sigma_std": norms.sigma_std,
        "sigma_std_error": norms.sigma_std_error,
        "frobenius": norms.frobenius,
        "lipschitz_bound": np.array(bounds.after),
        "network_bound": np.array([np.nan if bounds.total is None else bounds.total]),
        "layer": np.array(norms.names),
        "perturbation": np.array(["random", str(options.attack)]),
    }


def _layers(model: Model, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """(input, output) of every use of a linear layer, flattened float64, and the logits."""
    import torch

    from specdiag.analyzers._operators import Capture

    with torch.no_grad(), Capture(model.fast) as capture:
        logits = model.forward(x)
    pairs = [(a.double().flatten(1), b.double().flatten(1)) for _, _, a, b in capture.calls]
    return pairs, logits.double()


def _gains(
    clean: tuple[Any, torch.Tensor], moved: tuple[Any, torch.Tensor], x: torch.Tensor, origin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gain of the network (N,), of the network up to each layer (N, L) and of each layer by itself (N, L)."""
    import torch

    from specdiag.errors import ModelError

    def length(values: torch.Tensor) -> torch.Tensor:
        norm: torch.Tensor = torch.linalg.vector_norm(values, dim=1)
        return norm

    step = length((x.double() - origin.double()).flatten(1))
    step = torch.where(step > 0, step, torch.nan)
    up_to, alone = [], []
    for (a, b), (c, d) in zip(clean[0], moved[0], strict=True):
        into, out = length(c - a), length(d - b)
        up_to.append(out / step)
        # a perturbation that died before the layer has no gain there
        alone.append(torch.where(into > 0, out / into, 0.0))
    if not up_to:
        raise ModelError("The network has no linear layer to follow.", "Use --of input.")
    return length(moved[1] - clean[1]) / step, torch.stack(up_to, 1), torch.stack(alone, 1)


def summarise(data: xarray.Dataset) -> Summary:
    """The network's Lipschitz bound over the largest singular value met: how loose it is."""
    import numpy as np

    if "network_bound" not in data:
        return {}
    bound = float(data["network_bound"].values[0])
    sigma = data["sigma_max"].values
    sigma = sigma[np.isfinite(sigma)]
    if not np.isfinite(bound) or not len(sigma):
        return {}
    exact = float("nan")
    return {"lipschitz_bound": (bound, exact), "bound_looseness": (bound / float(sigma.max()), exact)}


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Distribution of the input gain, and gains of perturbations layer by layer beside the operator norms."""
    from specdiag.analyzers._gain_plot import plot_first_order, plot_inputs, plot_layers
    from specdiag.analyzers._keys import keys, labelled

    runs = labelled(runs)
    panels = []
    if any("gain" in data for data in runs.values()):
        panels.append(plot_inputs)
    if any("local_gain" in data for data in runs.values()):
        panels += [plot_layers, plot_first_order]
    figure.set_size_inches(5.6 * len(panels), 4.8)
    for ax, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(runs, ax)
    keys(figure, runs)


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Per layer the gains of random and attacked perturbations, mean and STD, beside what bounds them."""
    import numpy as np

    if "local_gain" not in data:
        gain = data["gain"].values
        gain = gain[np.isfinite(gain)]
        marks = (5, 25, 50, 75, 95)
        return ["percentile", "||f(x)|| / ||x||"], [
            [str(mark), f"{np.percentile(gain, mark):.4g}" if len(gain) else "-"] for mark in marks
        ]
    name = str(data["perturbation"].values[1])
    titles = ["layer", "random", name, "operator norm", "sigma STD", f"up to here: {name}", "bound"]
    rows = []
    local, up_to = data["local_gain"].values, data["layer_gain"].values
    for number, layer in enumerate(data["layer"].values):
        spread = [
            f"{np.nanmean(local[:, kind, number]):.3g} ± {np.nanstd(local[:, kind, number]):.2g}"
            for kind in (0, 1)
        ]
        rows.append(
            [
                str(layer),
                *spread,
                _number(data["operator_norm"].values[number]),
                _number(data["sigma_std"].values[number]),
                _number(np.nanmean(up_to[:, 1, number])),
                _number(data["lipschitz_bound"].values[number]),
            ]
        )
    return titles, rows


def _number(value: float) -> str:
    return f"{value:.4g}" if value == value else "-"


def sentence(data: xarray.Dataset) -> str:
    """Typical gains, and how far they are from the worst case."""
    import numpy as np

    parts = []
    if "gain" in data:
        parts.append(
            f"the network's output is {np.nanmedian(data['gain'].values):.3g} times as long as its input (median)"
        )
    if "local_gain" in data:
        name, share = str(data["perturbation"].values[1]), data["worst_case_share"].values
        gain = np.nanmean(data["perturbation_gain"].values, 0)
        exceeding = 100 * data["exceeds"].values.mean(0)
        parts.append(
            f"perturbations of {name} grow {gain[1]:.3g} times, random ones {gain[0]:.3g} times; in its layers they reach "
            f"{100 * np.nanmean(share[:, 1]):.0f} % and {100 * np.nanmean(share[:, 0]):.0f} % of the operator norm, and "
            f"{exceeding[1]:.0f} % and {exceeding[0]:.0f} % of them exceed the largest singular value of the Jacobian"
        )
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Samples without gradients, inputs outside the data's range, networks without a bound."""
    import numpy as np

    from specdiag.analyzers import _checks

    if "usable" not in data:
        return []
    found = [*_checks.vanishing_warning(data["usable"]), *_checks.outside_warning(data)]
    found += _checks.foolbox_warning(data, data["perturbation"].values)
    if not np.isfinite(data["network_bound"].values).all():
        text = (
            "The network holds a function without a known Lipschitz constant, so it has no Lipschitz bound."
        )
        found.append(_checks.warning("SD320", text))
    return found


_SAMPLE = ("sample",)
_LAYER = ("layer",)
_KIND = ("sample", "perturbation")
_BOTH = ("sample", "perturbation", "layer")
ANALYZER = Analyzer(
    name="gain",
    summary="Norm gain of inputs and perturbations, of the network and of its layers.",
    source="farnia2019, Fig. 2a; wen2020, 1.1, 4.2.2; roth2020, eq. 3",
    version=1,
    options=Options,
    arrays={
        "gain": ArraySpec(_SAMPLE, "logit / input", "||f(x)||_p / ||x||_p"),
        "input_norm": ArraySpec(_SAMPLE, "input", "||x||_p"),
        "output_norm": ArraySpec(_SAMPLE, "logit", "||f(x)||_p"),
        "perturbation_gain": ArraySpec(_KIND, "logit / input", "||f(x + d) - f(x)||_2 / ||d||_2"),
        "layer_gain": ArraySpec(
            _BOTH, "1 / input", "||h(x + d) - h(x)||_2 / ||d||_2 of the layer's output h"
        ),
        "local_gain": ArraySpec(_BOTH, "1", "change of the layer's output over change of its input, l2"),
        "worst_case_share": ArraySpec(_BOTH, "1", "local gain over the layer's operator norm"),
        "perturbation_norm": ArraySpec(_SAMPLE, "input", "||d||_2, the same for the random one"),
        "sigma_max": ArraySpec(_SAMPLE, "logit / input", "largest singular value of the Jacobian at x"),
        "first_order_ratio": ArraySpec(_KIND, "1", "perturbation gain over sigma_max (roth2020 eq. 3)"),
        "exceeds": ArraySpec(_KIND, "1", "the perturbation gain is above sigma_max"),
        "usable": ArraySpec(_SAMPLE, "1", "the perturbation rests on finite gradients that are not zero"),
        "near_kink": ArraySpec(
            _SAMPLE, "1", "activations within rounding of a kink, where dtypes may differ"
        ),
        "outside_range": ArraySpec(_SAMPLE, "1", "share of perturbed values outside the range of the data"),
        "operator_norm": ArraySpec(
            _LAYER, "1", "largest singular value of the layer as an operator, BatchNorm folded"
        ),
        "operator_norm_error": ArraySpec(_LAYER, "1", "error of the operator norm"),
        "sigma_std": ArraySpec(
            _LAYER, "1", "population STD of all singular values of the layer as an operator"
        ),
        "sigma_std_error": ArraySpec(_LAYER, "1", "error of sigma_std"),
        "frobenius": ArraySpec(_LAYER, "1", "Frobenius norm of the layer as an operator"),
        "lipschitz_bound": ArraySpec(
            _LAYER,
            "1 / input",
            "Lipschitz bound from the input to the layer's output; NaN where there is none",
        ),
        "network_bound": ArraySpec(("network",), "logit / input", "Lipschitz bound of the whole network"),
    },
    metrics={
        "gain_mean": MetricSpec("logit / input", "lower", "mean norm gain of the inputs", "gain", "mean"),
        "gain_p95": MetricSpec(
            "logit / input", "lower", "95th percentile of the inputs' gain", "gain", "p95"
        ),
        "perturbation_gain_mean": MetricSpec(
            "logit / input",
            "lower",
            "mean gain of perturbations",
            "perturbation_gain",
            "mean",
            ("perturbation",),
        ),
        "perturbation_gain_std": MetricSpec(
            "logit / input",
            "lower",
            "STD of the gain of perturbations",
            "perturbation_gain",
            "std",
            ("perturbation",),
        ),
        "exceeding_share": MetricSpec(
            "1",
            "lower",
            "share of perturbations whose gain is above sigma_max",
            "exceeds",
            "share",
            ("perturbation",),
        ),
        "layer_gain_mean": MetricSpec(
            "1", "lower", "mean gain within each layer", "local_gain", "mean", ("perturbation", "layer")
        ),
        "layer_gain_std": MetricSpec(
            "1", "lower", "STD of the gain within each layer", "local_gain", "std", ("perturbation", "layer")
        ),
        "lipschitz_bound": MetricSpec("logit / input", "lower", "Lipschitz bound of the network"),
        "bound_looseness": MetricSpec(
            "1", "neither", "Lipschitz bound over the largest singular value at any sample"
        ),
    },
    coordinates={
        "layer": "module path of the layer",
        "perturbation": "what is put through: random or the attack",
    },
    compute=compute,
    summarise=summarise,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
    memory=lambda options, sizes: 12 * sizes["K"] * sizes["D"],
)
