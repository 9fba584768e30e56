"""How far a network stays linear around its points (roth2020 5.3, Fig. 2 and 4; wen2020 Lemma 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdiag.attacks._options import known
from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, option

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch

DIRECTIONS = ("random", "adversarial", "dominant")
POINTS = 12
# numbers in J beyond which it is not built, and its largest singular value comes from products
LARGE = 2**24


@dataclass(frozen=True, slots=True)
class Options:
    """Along which directions, how far, and what is measured there."""

    attack: AttackSpec = option(
        AttackSpec("pgd-l2"), f"Gives the adversarial direction, at its --eps: {known()}."
    )
    clip: bool = option(False, "Keep the attack's result in the range of the data.")
    layer: str = option("features", "Whose deviation: features, logits, or a module path.")
    distances: tuple[float, ...] = option(
        (), "||z||_2 to measure at; default 12 steps to 2 eps.", above=0, increasing=True
    )
    readapt: bool = option(False, "Attack anew at each distance, with it as eps.")
    sigma: bool = option(True, "Also the largest singular value of J(x + z), the costliest part.")
    walk: int = option(
        0,
        "Follow every cell along each direction, up to so many: exact counts and the sum of Lemma 3.1.",
        min=0,
    )


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """Deviation, largest singular value and activation signs along the directions; see `ANALYZER.arrays`."""
    import torch

    from specdiag.analyzers import _attacked, _checks, _rays
    from specdiag.attacks._dominant import leading

    layer = _layer(model, options.layer)
    distances = _distances(model, options)
    top = leading(model, batch, 1)
    attack = _attacked.attack_of(options.attack, clip=options.clip)
    found = _attacked.attacked(attack, model, batch)
    directions = {
        "random": _attacked.random_directions(batch, "linearity/random"),
        "adversarial": _rays.unit(found.offset, found.usable, batch),
        "dominant": _rays.dominant(model, batch, top, attack),
    }
    ray = _rays.Ray(model, batch, layer, distances, options.sigma)
    parts = []
    for name, direction in directions.items():
        again = (
            _rays.adapted(model, batch, options, distances)
            if options.readapt and name == "adversarial"
            else None
        )
        parts.append(ray.measure(direction, again))
    arrays: Arrays = {key: torch.stack([part[key] for part in parts], 1) for key in parts[0]}
    arrays |= _rays.walks(model, batch, options.walk, list(directions.values()), distances)
    return arrays | {
        "sigma_clean": top.values[:, 0],
        "perturbation_norm": found.norm,
        "usable": found.usable,
        "near_kink": top.near_kink,
        **_checks.output_facts(top.outputs),
        "distance": torch.tensor(distances, dtype=torch.float64),
        "direction": list(DIRECTIONS),
    }


def _layer(model: Model, layer: str) -> str:
    """Features, or the logits of a network that does not end in a linear layer."""
    return "logits" if layer == "features" and model.facts.head is None else layer


def _distances(model: Model, options: Options) -> tuple[float, ...]:
    from specdiag.attacks._eps import norm_of
    from specdiag.errors import UsageError

    if options.distances:
        return options.distances
    eps = options.attack.values.get("eps")
    if not isinstance(eps, int | float) or eps <= 0:
        raise UsageError(
            f"Attack '{options.attack}' has no eps to measure distances by.", "Pass --distances."
        )
    reach = 2 * eps * (model.inputs**0.5 if norm_of(options.attack) == "linf" else 1.0)
    return tuple(reach * (k + 1) / POINTS for k in range(POINTS))


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Deviation from linearity and largest singular value against distance (roth2020 Fig. 2)."""
    from specdiag.analyzers._keys import keys

    figure.set_size_inches(10.8, 4.6)
    left, right = figure.subplots(1, 2)
    first = next(iter(runs.values()))
    _curves(runs, left, "deviation", f"deviation from linearity ({_unit_of(first, 'deviation')})")
    left.set_title("Deviation from linearity (mean, std. error)")
    if any("sigma_max" in data for data in runs.values()):
        _curves(runs, right, "sigma_max", "largest singular value of J(x + z)")
        right.set_title("Largest singular value along the way")
    else:
        _curves(runs, right, "same_activations", "share of activations with the same sign")
        right.set_title("Activation signs in common with x")
    keys(figure, runs)


def _unit_of(data: xarray.Dataset, name: str) -> str:
    return str(data[name].attrs.get("units", "")) if name in data else ""


def _curves(runs: Mapping[str, xarray.Dataset], ax: Axes, name: str, ylabel: str) -> None:
    from specdiag.analyzers._drawing import mean_and_error, training_lines
    from specdiag.figures import colour

    looks = {"adversarial": ("-", 1.8), "dominant": ("-.", 1.2), "random": (":", 1.5)}
    for number, (label, data) in enumerate(runs.items()):
        if name not in data:
            continue
        for place, direction in enumerate(data["direction"].values):
            line, width = looks.get(str(direction), ("--", 1.2))
            mean, error = mean_and_error(data[name].values[:, place])
            start, start_error = _at_zero(data, name)
            x = _joined(0.0, data["distance"].values)
            mean, error = _joined(start, mean), _joined(start_error, error)
            shown = f"{label}, {direction}" if len(runs) > 1 else str(direction)
            ax.plot(x, mean, color=colour(number), ls=line, lw=width, label=shown, zorder=3)
            ax.fill_between(x, mean - error, mean + error, color=colour(number), alpha=0.2, lw=0, zorder=2)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    training_lines(runs, ax, "l2")
    ax.set_xlabel("distance ||z|| from x")
    ax.set_ylabel(ylabel)


def _at_zero(data: xarray.Dataset, name: str) -> tuple[float, float]:
    """Mean and standard error of a curve at x itself."""
    from specdiag.analyzers._drawing import mean_and_error

    if name == "sigma_max":
        mean, error = mean_and_error(data["sigma_clean"].values[:, None])
        return float(mean[0]), float(error[0])
    return (1.0 if name == "same_activations" else 0.0), 0.0


def _joined(first: Any, rest: Any) -> Any:
    import numpy as np

    return np.concatenate([[first], rest])


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Means along the three directions at every distance."""
    from specdiag.analyzers._drawing import mean_and_error

    shown = [name for name in ("deviation", "sigma_max", "same_activations", "walls_crossed") if name in data]
    short = {"same_activations": "same signs", "sigma_max": "sigma_max", "walls_crossed": "walls"}
    directions = [str(entry) for entry in data["direction"].values]
    columns, titles = [], []
    for name in shown:
        for place, direction in enumerate(directions):
            titles.append(f"{short.get(name, name)} {direction}")
            columns.append(mean_and_error(data[name].values[:, place])[0])
    rows = []
    for number, distance in enumerate(data["distance"].values):
        rows.append([f"{distance:.4g}", *(f"{column[number]:.4g}" for column in columns)])
    return ["distance", *titles], rows


def sentence(data: xarray.Dataset) -> str:
    """Share of the movement that the linear picture misses at the end of the adversarial way."""
    import numpy as np

    names = [str(entry) for entry in data["direction"].values]
    ratio = data["deviation"].values / data["change"].values
    last = {name: float(np.nanmedian(ratio[:, place, -1])) for place, name in enumerate(names)}
    reach = float(data["distance"].values[-1])
    text = (
        f"At distance {reach:.3g} the linear picture misses {100 * last['adversarial']:.0f} % of the movement along the "
        f"adversarial direction and {100 * last['random']:.0f} % along a random one (medians)"
    )
    if "first_wall" in data:
        first = float(np.nanmedian(data["first_wall"].values[:, names.index("adversarial")]))
        text += f"; the first activation on the adversarial way flips at distance {first:.2g}"
    return text + "."


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Samples without gradients, softmax outputs."""
    from specdiag.analyzers import _checks

    return [*_checks.vanishing_warning(data["usable"]), *_checks.output_warnings(data)]


_SAMPLE = ("sample",)
_WAY = ("sample", "direction", "distance")
ANALYZER = Analyzer(
    name="linearity",
    summary="Deviation from linearity and largest singular value with growing distance.",
    source="roth2020, Fig. 2 and 4; wen2020, Lemma 3.1",
    version=1,
    options=Options,
    arrays={
        "deviation": ArraySpec(_WAY, "output", "||phi(x + z) - phi(x) - J z||_2"),
        "change": ArraySpec(_WAY, "output", "||phi(x + z) - phi(x)||_2"),
        "sigma_max": ArraySpec(_WAY, "logit / input", "largest singular value of the logits' J(x + z)"),
        "same_activations": ArraySpec(_WAY, "1", "share of activation signs that x and x + z have in common"),
        "activations_changed": ArraySpec(
            _WAY,
            "1",
            "activations and max-pool winners changed from distance to distance, summed: a lower bound",
        ),
        "walls_crossed": ArraySpec(
            _WAY, "1", "walls between linear cells crossed up to each distance, exact"
        ),
        "first_wall": ArraySpec(
            ("sample", "direction"),
            "input",
            "exact distance to the first wall of the cell",
            may_be_infinite=True,
        ),
        "path_error": ArraySpec(
            ("sample", "direction"),
            "1",
            "||sum over cells of J times piece - (f(x + z) - f(x))|| / ||the latter||",
        ),
        "sigma_clean": ArraySpec(_SAMPLE, "logit / input", "largest singular value of J(x)"),
        "perturbation_norm": ArraySpec(_SAMPLE, "input", "||perturbation||_2 of the attack"),
        "usable": ArraySpec(_SAMPLE, "1", "the perturbation rests on finite gradients that are not zero"),
        "near_kink": ArraySpec(
            _SAMPLE, "1", "activations within rounding of a kink, where dtypes may differ"
        ),
        "logit_sum": ArraySpec(_SAMPLE, "logit", "sum of the outputs"),
        "logit_lowest": ArraySpec(_SAMPLE, "logit", "smallest output"),
        "logit_rms": ArraySpec(_SAMPLE, "logit", "root mean square of the outputs"),
    },
    metrics={
        "deviation_mean": MetricSpec(
            "output", "lower", "mean deviation from linearity", "deviation", "mean", ("direction", "distance")
        ),
        "sigma_max_mean": MetricSpec(
            "logit / input",
            "lower",
            "mean largest singular value along the way",
            "sigma_max",
            "mean",
            ("direction", "distance"),
        ),
        "same_activations_mean": MetricSpec(
            "1", "higher", "mean share of equal signs", "same_activations", "mean", ("direction", "distance")
        ),
        "first_wall_median": MetricSpec(
            "input", "higher", "median distance to the first wall", "first_wall", "median", ("direction",)
        ),
        "path_error_max": MetricSpec(
            "1", "lower", "largest error of the sum over cells", "path_error", "max", ("direction",)
        ),
    },
    coordinates={"distance": "||z||_2", "direction": "direction of z"},
    compute=compute,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
    memory=lambda options, sizes: 3 * min(sizes["K"] * sizes["D"], LARGE),
)
