"""Covariance of adversarial perturbations against that of the data (roth2018 4.2, eq. 15 and 16)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from specdiag.errors import UsageError
from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, Summary, option

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch

FULL_INPUTS = 1024


@dataclass(frozen=True, slots=True)
class Options:
    """Whose perturbations, and which form of their moments is kept."""

    attack: AttackSpec = option(AttackSpec("pgd-linf"), "The attack whose perturbations are taken.")
    clip: bool = option(False, "Keep perturbed inputs in the range of the data.")
    form: Literal["auto", "function", "full"] = option(
        "auto",
        "Moments by pixel displacement alone (function), or the whole matrix too (full); auto: full up to "
        f"{FULL_INPUTS} inputs.",
    )


class Moments:
    """Sums over samples, one group of them at a time left out for the errors; see `Analyzer.compute`."""

    def start(self, model: Model, options: Options) -> dict[str, Any]:
        """Sums of nothing; UsageError for inputs that are no images."""
        from specdiag.analyzers import _moments

        if len(model.input_shape) != 3:
            raise UsageError(
                "covariance is a function of pixel displacement and needs images.",
                "Use a network that takes images.",
            )
        full = options.form == "full" or (options.form == "auto" and model.inputs <= FULL_INPUTS)
        return dict(_moments.empty(model.input_shape, full))

    def update(self, state: dict[str, Any], model: Model, batch: Batch, options: Options) -> dict[str, Any]:
        """Add a batch: its perturbations as far as there are any, and its samples."""
        from specdiag.analyzers import _attacked, _moments

        found = _attacked.attacked(_attacked.attack_of(options.attack, clip=options.clip), model, batch)
        usable = found.usable.cpu().numpy()
        delta = found.offset.reshape(batch.x.shape)
        _moments.add(state, "delta", delta[found.usable], batch.index[usable])
        _moments.add(state, "data", batch.x, batch.index)
        state["seen"] = state["seen"] + len(batch)
        return state

    def merge(self, left: dict[str, Any], right: dict[str, Any], options: Options) -> dict[str, Any]:
        """Sums of both."""
        return {name: left[name] + right[name] for name in left}

    def finish(self, state: dict[str, Any], options: Options) -> Arrays:
        """Means, covariance functions and decay lengths; see `ANALYZER.arrays`."""
        import numpy as np

        from specdiag.analyzers import _moments

        groups = range(_moments.GROUPS)
        arrays: Arrays = {"samples": state["seen"], "used": np.array([state["delta_count"].sum()])}
        radial, error, lengths, length_errors = [], [], [], []
        for what, centred in (("delta", False), ("data", True)):
            curve = _moments.radial_of(state, what, centred)
            left_out = np.stack([_moments.radial_of(state, what, centred, group) for group in groups])
            decays = np.array([_moments.decay_length(curves[0]) for curves in left_out])
            radial.append(curve)
            error.append(_moments.jackknife(left_out))
            lengths.append(_moments.decay_length(curve[0]))
            finite = np.isfinite(decays).all()
            length_errors.append(float(_moments.jackknife(decays)) if finite else np.nan)
        names = {"delta": "second_moments", "data": "data_covariance"}
        for what, name in names.items():
            if f"{what}_moments" in state:
                count = max(1.0, float(state[f"{what}_count"].sum()))
                matrix = state[f"{what}_moments"] / count
                if what == "data":
                    mean = state["data_total"].sum(0).ravel() / count
                    matrix = matrix - np.outer(mean, mean)
                arrays[name] = matrix
        count = max(1.0, float(state["delta_count"].sum()))
        mean = state["delta_total"].sum(0) / count
        moment = float(np.nanmean(radial[0][0][0]))
        height, width = state["delta_total"].shape[2:]
        return arrays | {
            "covariance_function": _moments.function_of(state, "delta", False),
            "data_covariance_function": _moments.function_of(state, "data", True),
            "radial": np.stack(radial),
            "radial_error": np.stack(error),
            "decay_length": np.array(lengths),
            "decay_length_error": np.array(length_errors),
            "mean_share": np.array([np.square(mean).mean() / moment if moment > 0 else np.nan]),
            "of": np.array(["perturbation", "data"]),
            "pair": np.array(["within", "between"]),
            "displacement": np.arange(radial[0].shape[1]),
            "down": np.arange(1 - height, height),
            "right": np.arange(1 - width, width),
        }


def summarise(data: xarray.Dataset) -> Summary:
    """Decay lengths, their ratio, and what the mean perturbation contributes."""
    (length, of_data), (error, data_error) = data["decay_length"].values, data["decay_length_error"].values
    found: Summary = {
        "decay_length": (float(length), float(error)),
        "data_decay_length": (float(of_data), float(data_error)),
        "mean_share": (float(data["mean_share"].values[0]), float("nan")),
    }
    if length < float("inf") and of_data < float("inf") and of_data > 0:
        ratio = float(length / of_data)
        relative = ((error / length) ** 2 + (data_error / of_data) ** 2) ** 0.5 if length > 0 else 0.0
        found["decay_ratio"] = (ratio, ratio * float(relative))
    return found


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Covariance functions by distance, and by displacement as images (roth2018 Fig. 2)."""
    from specdiag.analyzers._covariance_plot import plot_functions, plot_images

    panels = min(3, len(runs)) + 1
    figure.set_size_inches(5.6 + 2.6 * panels, 4.4)
    grid = figure.add_gridspec(1, 2, width_ratios=(5.6, 2.6 * panels))
    plot_functions(runs, figure.add_subplot(grid[0]))
    images = grid[1].subgridspec(1, panels)
    plot_images(runs, [figure.add_subplot(images[0, k]) for k in range(panels)])


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Covariance functions over their values at 0, by distance in pixels."""
    import numpy as np

    radial = data["radial"].values
    shown = [("perturbations", radial[0]), ("data", radial[1])]
    titles, columns = ["pixels"], []
    for name, curves in shown:
        for pair, curve in zip(data["pair"].values.astype(str), curves, strict=True):
            if np.isfinite(curve).any():
                titles.append(f"{name}, {pair} channels")
                columns.append(curve / curves[0][0] if curves[0][0] else curve * np.nan)
    count = radial.shape[2]
    rows = sorted({*range(min(7, count))} | {2**k for k in range(3, 12) if 2**k < count})
    return titles, [[str(r), *(f"{column[r]:.3f}" for column in columns)] for r in rows]


def sentence(data: xarray.Dataset) -> str:
    """How far perturbations and data correlate."""
    length, of_data = (float(value) for value in data["decay_length"].values)
    if length != length:
        return "No sample has a perturbation."
    return (
        f"The covariance of perturbations falls to 1/e within {_pixels(length)}, that of the data within "
        f"{_pixels(of_data)}."
    )


def _pixels(length: float) -> str:
    return "more than the image" if length == float("inf") else f"{length:.2g} pixels"


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Samples without a perturbation."""
    from specdiag.analyzers import _checks

    seen, used = int(data["samples"].values[0]), int(data["used"].values[0])
    if used == seen:
        return []
    text = (
        f"The attack left {seen - used} of {seen} samples unperturbed; they are left out of its covariance."
    )
    return [_checks.warning("SD301", text)]


_FUNCTION = ("channel", "other_channel", "down", "right")
_INPUTS = ("input", "other_input")
_RADIAL = ("of", "pair", "displacement")
ANALYZER = Analyzer(
    name="covariance",
    summary="Covariance of adversarial perturbations and of the data against pixel displacement.",
    source="roth2018, eq. 15, 16, Fig. 2",
    version=1,
    kind="reduce",
    options=Options,
    arrays={
        "covariance_function": ArraySpec(
            _FUNCTION, "input^2", "mean product of two perturbations by displacement (eq. 16)"
        ),
        "data_covariance_function": ArraySpec(
            _FUNCTION, "input^2", "covariance of two data values by displacement"
        ),
        "radial": ArraySpec(_RADIAL, "input^2", "both by distance, within channels and between them"),
        "radial_error": ArraySpec(_RADIAL, "input^2", "standard error of `radial`, jackknife over 8 groups"),
        "second_moments": ArraySpec(
            _INPUTS, "input^2", "E[d d^T], raw second moments of perturbations (eq. 15)"
        ),
        "data_covariance": ArraySpec(_INPUTS, "input^2", "covariance matrix of the data"),
        "decay_length": ArraySpec(
            ("of",), "pixel", "distance at which the function falls to 1/e", may_be_infinite=True
        ),
        "decay_length_error": ArraySpec(("of",), "pixel", "standard error of `decay_length`"),
        "mean_share": ArraySpec(("run",), "1", "||E d||^2 over E ||d||^2"),
        "samples": ArraySpec(("run",), "1", "samples taken"),
        "used": ArraySpec(("run",), "1", "samples with a perturbation"),
    },
    metrics={
        "decay_length": MetricSpec("pixel", "neither", "decay length of the perturbations' covariance"),
        "data_decay_length": MetricSpec("pixel", "neither", "decay length of the data's covariance"),
        "decay_ratio": MetricSpec("1", "higher", "decay length of perturbations over that of the data"),
        "mean_share": MetricSpec(
            "1", "neither", "share of the perturbations' second moments that is their mean's"
        ),
    },
    coordinates={
        "of": "whose covariance",
        "pair": "values of one channel or of two",
        "displacement": "distance of two pixels, rounded",
        "down": "rows between two pixels",
        "right": "columns between two pixels",
    },
    compute=Moments(),
    summarise=summarise,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
    memory=lambda options, sizes: 64 * sizes["D"],
)
