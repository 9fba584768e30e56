"""The spectrum of every layer as the linear operator that the network really applies (wen2020 4.2.2, farnia2019 4 and A.1).

Stride, padding, dilation, groups and the size of the input are part of the operator. Beside its singular values
stand those of the usual stand-ins: the reshaped kernel (Miyato et al.) and the circular convolution without stride
(Sedghi et al.).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.schema import Analyzer, Arrays, ArraySpec, MetricSpec, Summary, option

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.weights import Weights

SHARES = tuple(round(0.05 * step, 2) for step in range(1, 20))
CHUNK = 16


@dataclass(frozen=True, slots=True)
class Options:
    """How the singular values are found, and of what."""

    method: Literal["auto", "fft", "cut", "exact", "krylov", "power", "extrapolate", "quadrature"] = option(
        "auto",
        "fft: circular padding, every value; cut: zero padding, sums and counts without a matrix; exact: dense; krylov, "
        "power: sigma_max alone; extrapolate: quick look; quadrature: stochastic; auto: the cheapest exact one.",
    )
    fold_batchnorm: bool = option(False, "Fold each BatchNorm into the layer before it.")
    norms: bool = option(False, "Also list the scales of BatchNorm layers.")
    fine: bool = option(
        False, "Sums to 1e-7, sigma_min to 1 %, exact ranks of quantiles, where the method is cut."
    )
    input_size: tuple[int, ...] | None = option(
        None, "Shape of one sample without batch (3,32,32), where nothing else says it.", min=1
    )
    budget: float = option(60.0, "About how many seconds auto may take for one layer.", above=0)
    memory: float = option(8.0, "How many GB one layer may take.", above=0)


def compute(weights: Weights, options: Options) -> Arrays:
    """Numbers of every layer and of the network; see `ANALYZER.arrays`."""
    import numpy as np

    from specdiag.analyzers import _layers_rows, _layers_uses
    from specdiag.linalg.spectra import Settings

    network, shape = _network(weights, options)
    if network is None or shape is None:
        found = _layers_uses.of_tensors(weights.tensors, shape)
    else:
        found = _layers_uses.of_network(network, shape, options.norms)
    settings = Settings(
        method=options.method,
        seconds=options.budget,
        memory=options.memory * 1e9,
        fine=options.fine,
        shares=SHARES,
    )
    rows = _layers_rows.rows_of(found.uses, settings)
    arrays: Arrays = _layers_rows.arrays_of(rows, SHARES)
    arrays |= {"layer": np.array([use.name for use in found.uses]), "share": np.array(SHARES)}
    if found.skipped:
        arrays |= {
            "skipped": np.array(list(found.skipped)),
            "reason": np.array(list(found.skipped.values())),
        }
    known = network is not None and shape is not None
    arrays["traced"] = np.array([known])
    arrays["sized"] = np.array([shape is not None])
    arrays |= _bounds(weights, shape) if known else {}
    return arrays


def _network(weights: Weights, options: Options) -> tuple[Any, tuple[int, ...] | None]:
    """The module to trace, with BatchNorm folded where asked, and the shape of a sample."""
    import torch

    from specdiag.folding import fold_batchnorm

    shape = options.input_size or weights.input_shape
    module = weights.module
    if module is None or shape is None:
        return None, shape
    if options.fold_batchnorm:
        module, _ = fold_batchnorm(module, torch.zeros(1, *shape))
    return module, shape


def _bounds(weights: Weights, shape: tuple[int, ...] | None) -> Arrays:
    """Lipschitz bound by a walk through the network, and where samples are given the largest sigma of the Jacobian."""
    import copy

    import numpy as np

    from specdiag.analyzers._lipschitz import bounds_of
    from specdiag.errors import SpecdiagError
    from specdiag.model import Model

    if weights.module is None or shape is None:
        return {}
    try:
        # a Model moves the network that it is given to its own dtype
        model = weights.model or Model(
            copy.deepcopy(weights.module), shape, normalisation=weights.normalisation
        )
        bounds = bounds_of(model, False)
    except SpecdiagError as error:
        return {"lipschitz_bound": np.array([np.nan]), "no_bound": np.array([error.what])}
    arrays: Arrays = {
        "lipschitz_bound": np.array([np.nan if bounds.total is None else bounds.total]),
        "no_bound": np.array(
            [f"no bound is known for the function {bounds.failed}" if bounds.failed else ""]
        ),
    }
    if weights.data_x is not None:
        arrays["jacobian_sigma_max"] = np.array([_largest_jacobian(model, weights.data_x)])
    return arrays


def _largest_jacobian(model: Model, x: Any) -> float:
    """The largest singular value of the Jacobian of the logits over all samples."""
    import torch

    from specdiag.jacobian.rows import by_autograd
    from specdiag.linalg.svd import svd

    return max(float(svd(by_autograd(model, part).matrix).values.max()) for part in torch.split(x, CHUNK))


def summarise(data: xarray.Dataset) -> Summary:
    """Per layer the estimates with their errors; for the network the product of norms and what bounds it."""
    import numpy as np

    nan = float("nan")
    found: dict[str, Any] = {}
    for name in ("sigma_max", "sigma_min", "sigma_std", "effective_rank"):
        if name in data:
            found[name] = (data[name].values.tolist(), data[f"{name}_error"].values.tolist())
    if "sigma_max" in data:
        top = data["sigma_max"].values
        known = np.isfinite(top) & (data["kernel_norm"].values > 0)
        if known.any():
            logs = np.log10(top[known])
            error = np.nansum(data["sigma_max_error"].values[known] / top[known]) / np.log(10)
            found["log_spectral_complexity"] = (float(logs.sum()), float(error))
    bound = _number(data, "lipschitz_bound")
    if np.isfinite(bound):
        found["lipschitz_bound"] = (bound, nan)
        reached = _number(data, "jacobian_sigma_max")
        if np.isfinite(reached):
            found["bound_looseness"] = (bound / reached, nan)
    return found


def _number(data: xarray.Dataset, name: str) -> float:
    return float(data[name].values[0]) if name in data else float("nan")


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """STD per layer with its stand-ins, spectra, and for several checkpoints the accumulated differences."""
    from specdiag.analyzers import _layers_plot

    _layers_plot.draw(runs, figure)


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """One line per layer."""
    from specdiag.analyzers import _layers_plot

    return _layers_plot.table(data)


def sentence(data: xarray.Dataset) -> str:
    """What the operators are like, and how far off the stand-ins are."""
    from specdiag.analyzers import _layers_plot

    return _layers_plot.sentence(data)


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """What was left out, estimated or assumed."""
    from specdiag.analyzers import _layers_plot

    return _layers_plot.checks(data)


_LAYER = ("layer",)
_NETWORK = ("network",)
ANALYZER = Analyzer(
    name="layers",
    summary="Spectrum of every layer as the operator that the network applies.",
    source="wen2020, 4.2.2, B.2, def. 7; farnia2019, 4, A.1; roth2020, eq. 4",
    version=1,
    options=Options,
    kind="weights",
    needs=(),
    arrays={
        "sigma_max": ArraySpec(_LAYER, "1", "largest singular value of the operator"),
        "sigma_max_error": ArraySpec(_LAYER, "1", "its error"),
        "sigma_min": ArraySpec(
            _LAYER, "1", "smallest of all min(m, n) singular values; NaN where not computed"
        ),
        "sigma_min_error": ArraySpec(_LAYER, "1", "its error"),
        "sigma_mean": ArraySpec(_LAYER, "1", "mean of all min(m, n) singular values"),
        "sigma_mean_error": ArraySpec(_LAYER, "1", "its error"),
        "sigma_std": ArraySpec(_LAYER, "1", "population STD of all min(m, n) singular values"),
        "sigma_std_error": ArraySpec(_LAYER, "1", "its error"),
        "effective_rank": ArraySpec(_LAYER, "1", "exp of the entropy of sigma / sum sigma"),
        "effective_rank_error": ArraySpec(_LAYER, "1", "its error"),
        "stable_rank": ArraySpec(_LAYER, "1", "||A||_F^2 / sigma_max^2"),
        "frobenius": ArraySpec(_LAYER, "1", "Frobenius norm of the operator, exact"),
        "condition": ArraySpec(
            _LAYER, "1", "sigma_max / sigma_min; infinite below the rank cut-off", may_be_infinite=True
        ),
        "kernel_norm": ArraySpec(
            _LAYER, "1", "largest singular value of the reshaped kernel (Miyato et al.)"
        ),
        "kernel_std": ArraySpec(_LAYER, "1", "population STD of the reshaped kernel's singular values"),
        "circular_norm": ArraySpec(
            _LAYER, "1", "largest singular value of the circular convolution without stride (Sedghi et al.)"
        ),
        "circular_std": ArraySpec(
            _LAYER, "1", "population STD of the circular convolution's singular values"
        ),
        "outputs": ArraySpec(_LAYER, "1", "m, outputs of the operator"),
        "inputs": ArraySpec(_LAYER, "1", "n, inputs of the operator"),
        "quantile": ArraySpec(
            ("layer", "share"), "1", "value below which a share of the singular values lies"
        ),
        "quantile_error": ArraySpec(("layer", "share"), "1", "its error"),
        "method": ArraySpec(_LAYER, "1", "method that was taken"),
        "note": ArraySpec(_LAYER, "1", "why not the method that was asked for"),
        "pairs": ArraySpec(_LAYER, "1", "products with the operator and with its transpose"),
        "counts": ArraySpec(_LAYER, "1", "inertia counts"),
        "lipschitz_bound": ArraySpec(
            _NETWORK, "logit / input", "Lipschitz bound of the network, BatchNorm folded"
        ),
        "no_bound": ArraySpec(_NETWORK, "1", "why there is no Lipschitz bound"),
        "jacobian_sigma_max": ArraySpec(
            _NETWORK, "logit / input", "largest singular value of the Jacobian at any sample"
        ),
        "traced": ArraySpec(_NETWORK, "1", "layers come from a forward pass, not from bare weights"),
        "sized": ArraySpec(_NETWORK, "1", "the input size is known"),
        "reason": ArraySpec(("skipped",), "1", "why a module with weights is left out"),
    },
    metrics={
        "sigma_max": MetricSpec("1", "lower", "operator norm of each layer", dims=_LAYER),
        "sigma_min": MetricSpec("1", "neither", "smallest singular value of each layer", dims=_LAYER),
        "sigma_std": MetricSpec("1", "lower", "STD of each layer's singular values", dims=_LAYER),
        "stable_rank": MetricSpec("1", "neither", "stable rank of each layer", "stable_rank", None, _LAYER),
        "effective_rank": MetricSpec("1", "neither", "effective rank of each layer", dims=_LAYER),
        "condition": MetricSpec("1", "lower", "condition number of each layer", "condition", None, _LAYER),
        "frobenius": MetricSpec("1", "lower", "Frobenius norm of each layer", "frobenius", None, _LAYER),
        "kernel_norm": MetricSpec(
            "1", "neither", "norm of each reshaped kernel", "kernel_norm", None, _LAYER
        ),
        "kernel_std": MetricSpec("1", "neither", "STD of each reshaped kernel", "kernel_std", None, _LAYER),
        "circular_norm": MetricSpec(
            "1", "neither", "norm of each circular stand-in", "circular_norm", None, _LAYER
        ),
        "circular_std": MetricSpec(
            "1", "neither", "STD of each circular stand-in", "circular_std", None, _LAYER
        ),
        "sigma_std_mean": MetricSpec("1", "lower", "mean of sigma_std over the layers", "sigma_std", "mean"),
        "sigma_max_largest": MetricSpec(
            "1", "lower", "largest operator norm of all layers", "sigma_max", "max"
        ),
        "log_spectral_complexity": MetricSpec(
            "log10", "lower", "log10 of the product of all operator norms (wen2020 def. 7); no bound"
        ),
        "lipschitz_bound": MetricSpec("logit / input", "lower", "Lipschitz bound of the network"),
        "bound_looseness": MetricSpec(
            "1", "neither", "Lipschitz bound over the largest singular value of the Jacobian at any sample"
        ),
    },
    coordinates={
        "layer": "module path of the layer; #2, #3 for further calls",
        "share": "share of the singular values",
        "skipped": "module path",
    },
    compute=compute,
    summarise=summarise,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
)
