"""Theorem 1 of roth2020 on this checkpoint: projected gradient ascent is the power method inside a linear cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdiag.schema import Analyzer, Arrays, ArraySpec, AttackSpec, MetricSpec, Summary, option

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from specdiag.model import Model
    from specdiag.sampling import Batch

PLACES = ("inside", "outside")
# share of the cell's radius taken as eps inside
SHARE = 0.9
# with a tolerance beyond this the cell is too small for the precision to say anything
DECIDABLE = 0.1
# gradients after which the nearest wall is usually certain
USUAL = 32


@dataclass(frozen=True, slots=True)
class Options:
    """The attack at --eps and --steps; its loss is sum-of-squares and its alpha infinite, as the theorem has it."""

    attack: AttackSpec = option(AttackSpec("pgd-l2"), "pgd-l2, whose --eps is the one outside the cell.")
    clip: bool = option(False, "Keep perturbed inputs in the range of the data; the theorem knows no range.")
    cell_budget: int = option(
        20_000, "Gradients per sample for the exact radius; beyond, the radius is an upper bound.", min=1
    )


def compute(model: Model, batch: Batch, options: Options) -> Arrays:
    """Cell radius, and both iterations step by step inside and outside the cell; see `ANALYZER.arrays`.

    Everything is computed in float64 whatever the model's dtype: cells are far smaller than float32 resolves.
    """
    import dataclasses

    import torch

    from specdiag.analyzers import _attacked, _cells, _checks, _iterations, _regression
    from specdiag.jacobian.rows import by_autograd
    from specdiag.linearise import Linearised
    from specdiag.sampling import CHUNK_MULTIPLE

    eps = _eps(options)
    model = _attacked.in_double(model)
    # no time for padding: the runner takes the rows of real samples only
    batch = batch.unpadded().padded(min(len(batch), -(-batch.count // CHUNK_MULTIPLE) * CHUNK_MULTIPLE))
    batch = dataclasses.replace(batch, x=batch.x.double())
    _cells.require_flat(
        model,
        batch.x,
        "specdiag alignment, linearity (deviation, sigma) and spectrum work for it all the same.",
    )
    radius, exact = _cells.cell_radius(model, batch, options.cell_budget)
    jacobian = by_autograd(model, batch.x)
    finite = torch.isfinite(jacobian.matrix).flatten(1).all(1) & (jacobian.matrix != 0).flatten(1).any(1)
    matrix = torch.where(finite[:, None, None], jacobian.matrix, 0.0).double()
    inner = torch.minimum(SHARE * radius, torch.full_like(radius, eps))
    on_wall = finite & ~(inner > 0)
    usable = finite & ~on_wall
    parts = {}
    for place, size in (("inside", inner), ("outside", torch.full_like(inner, eps))):
        parts[place] = _iterations.both(
            model, batch, matrix, torch.where(size > 0, size, eps), usable, _steps(options), options.clip
        )
    arrays: Arrays = {
        key: torch.stack([parts[place][key] for place in PLACES], 1) for key in parts["inside"] if key != "v"
    }
    walls = Linearised(_cells.wall_distances(model), batch.x)
    visited = [_cells.radius_along(walls, direction) for direction in parts["outside"]["v"]]
    decided = usable & (arrays["tolerance"][:, 0] <= DECIDABLE).all(1)
    random = torch.from_numpy(batch.draws.normal("theorem/regression", batch.index, (model.inputs,)))
    return arrays | {
        "cell_radius": torch.where(finite, radius, torch.nan),
        "cell_exact": exact,
        "eps_inside": torch.where(usable, inner, torch.nan),
        "visited_radius": torch.stack(visited, 1),
        "agrees": torch.where(decided, _iterations.agree(arrays).double(), torch.nan),
        "decided": decided,
        "on_wall": on_wall,
        "usable": finite,
        "regression_gap": _regression.identity_gap(
            matrix, jacobian.outputs.double(), random.to(matrix.device), 1.0
        ),
        "near_kink": jacobian.near_kink,
        **_checks.output_facts(jacobian.outputs),
        "place": list(PLACES),
        "step": torch.arange(1, _steps(options) + 1),
        "pair": list(_regression.PAIRS),
    }


def _eps(options: Options) -> float:
    from specdiag.errors import UsageError

    values = options.attack.values
    if options.attack != "pgd-l2":
        raise UsageError(f"Theorem 1 is about pgd-l2, not '{options.attack}'.", "Leave out --attack.")
    if values.get("loss", "cross-entropy") not in ("cross-entropy", "sum-of-squares"):
        raise UsageError("Theorem 1 is about --loss sum-of-squares.", "Leave out --loss.")
    if values.get("target") is not None or values.get("start", "random") != "random":
        raise UsageError("Theorem 1 is about an untargeted attack from a random start.", "Leave these out.")
    eps = values.get("eps")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or eps <= 0:
        raise UsageError("The theorem needs an eps above zero.", "Give one with --eps.")
    return float(eps)


def _steps(options: Options) -> int:
    return int(options.attack.values.get("steps", 10))


def forecast(model: Model, options: Options, samples: int, chunk: int) -> str:
    """Gradients of the cells' radii and their rough time, measured on one gradient."""
    from specdiag.analyzers import _attacked, _cells
    from specdiag.errors import SpecdiagError
    from specdiag.sampling import CHUNK_MULTIPLE

    double = _attacked.in_double(model)
    rows = min(chunk, -(-samples // CHUNK_MULTIPLE) * CHUNK_MULTIPLE)
    try:
        walls, gradients, products, each = _cells.cost(double, rows, options.cell_budget)
    except SpecdiagError:
        # the run itself says what is wrong
        return "theorem: the cost cannot be told beforehand."
    chunks = -(-samples // rows)
    least = chunks * (products + each * (model.outputs + 4 * _steps(options)))
    if not gradients:
        return (
            f"theorem: {walls:,} walls of the cell for each of {samples} samples, about {_readable(least)}."
        )
    most = least + chunks * gradients * each
    return (
        f"theorem: {walls:,} walls of the cell for each of {samples} samples, nearest ones first, at most {gradients:,} "
        f"gradients (--cell-budget): about {_readable(least + chunks * USUAL * each)} if the usual {USUAL} are enough, "
        f"at most {_readable(most)}."
    )


def _readable(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def summarise(data: xarray.Dataset) -> Summary:
    """Share of decidable samples for which both iterations agree."""
    import numpy as np

    agrees = data["agrees"].values
    agrees = agrees[np.isfinite(agrees)]
    if not len(agrees):
        return {"agreement": (float("nan"), float("nan"))}
    share = float(agrees.mean())
    return {"agreement": (share, float(np.sqrt(share * (1 - share) / len(agrees))))}


def plot(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Radii of the cells, and how far the attack's direction is from the power method's, step by step."""
    from specdiag.analyzers._keys import keys, labelled

    runs = labelled(runs)
    figure.set_size_inches(10.8, 4.4)
    left, right = figure.subplots(1, 2)
    _plot_radii(runs, left)
    _plot_steps(runs, right)
    keys(figure, runs)


def _plot_radii(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    import numpy as np

    from specdiag.figures import colour, log_axis

    for number, (label, data) in enumerate(runs.items()):
        for name, line, what in (
            ("cell_radius", "-", "ball"),
            ("visited_radius", ":", "along the attack's first step"),
        ):
            values = data[name].values if name == "cell_radius" else data[name].values[:, 0]
            known = np.sort(values[~np.isnan(values)])
            shown = np.isfinite(known) & (known > 0)
            # points on a wall have radius zero: left of the axis, and counted
            values, share = known[shown], (np.arange(1, len(known) + 1) / max(1, len(known)))[shown]
            ax.step(values, share, where="post", color=colour(number), ls=line, label=f"{label}: {what}")
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("distance to the nearest wall of the linear cell")
    ax.set_ylabel("share of samples up to it")
    ax.set_title("Size of the linear cells")
    log_axis(ax, "x")


def _plot_steps(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    import numpy as np

    from specdiag.figures import colour, log_axis

    for number, (label, data) in enumerate(runs.items()):
        for place, line in zip(data["place"].values, ("-", "--"), strict=True):
            values = data["difference"].sel(place=place).values
            values = np.maximum(values[np.isfinite(values).all(1)], 1e-17)
            if not len(values):
                continue
            low, middle, high = np.percentile(values, (10, 50, 90), axis=0)
            steps = data["step"].values
            ax.plot(steps, middle, color=colour(number), ls=line, label=f"{label}: {place}")
            ax.fill_between(steps, low, high, color=colour(number), alpha=0.2, lw=0)
    ax.set_xlabel("iteration")
    ax.set_ylabel("||v_attack - v_power||")
    ax.set_title("Attack against power method (median, 10-90 %)")
    log_axis(ax, "y")


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """Both iterations step by step, medians over samples."""
    import numpy as np

    rows = []
    for number, step in enumerate(data["step"].values):
        row = [str(step)]
        for place in data["place"].values:
            for name in ("cosine", "difference", "sigma_gap"):
                values = data[name].sel(place=place).values[:, number]
                row.append(f"{np.nanmedian(values):.4g}" if np.isfinite(values).any() else "-")
        rows.append(row)
    titles = [
        f"{name} {place}" for place in data["place"].values for name in ("cos", "distance", "sigma gap")
    ]
    return ["step", *titles], rows


def sentence(data: xarray.Dataset) -> str:
    """Whether the theorem holds where it claims to, and how far its premise is from the attack's eps."""
    import numpy as np

    radius = data["cell_radius"].values
    radius = radius[np.isfinite(radius)]
    agrees = data["agrees"].values
    agrees = agrees[np.isfinite(agrees)]
    if not len(radius) or not len(agrees):
        return "No sample has a cell that is large enough to decide anything in float64."
    outside = data["cosine"].sel(place="outside").values[:, -1]
    held = (
        f"{int(agrees.sum())} of {len(agrees)} samples"
        if agrees.sum() < len(agrees)
        else f"all {len(agrees)} samples"
    )
    return (
        f"Inside the linear cells (median radius {np.median(radius):.2g}) attack and power method agree for {held}; "
        f"at the eps of the attack their directions have a median |cos| of {np.nanmedian(outside):.3f} after the "
        "last step."
    )


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Samples without a gradient or on a wall, cells too small for float64, disagreement, softmax outputs."""
    from specdiag.analyzers import _checks

    found = [*_checks.vanishing_warning(data["usable"], "network"), *_checks.output_warnings(data)]
    on_wall = data["on_wall"].astype(bool)
    undecided = data["usable"].astype(bool) & ~on_wall & ~data["decided"].astype(bool)
    counted = {
        "SD314": (
            on_wall,
            "lie on a wall between cells (such as equal entries in a max-pool window), so no ball around them is inside "
            "one; they are left out",
        ),
        "SD311": (undecided, "lie in cells too small for float64 to decide; they are left out"),
        "SD312": (
            data["agrees"] == 0,
            "have iterations that differ inside the cell, which Theorem 1 excludes",
        ),
        "SD313": (
            ~data["cell_exact"].astype(bool),
            "have an upper bound for the cell radius (--cell-budget)",
        ),
    }
    for identity, (which, text) in counted.items():
        if int(which.sum()):
            found.append(_checks.warning(identity, f"{int(which.sum())} of {which.size} samples {text}."))
    return found


_SAMPLE = ("sample",)
_STEPS = ("sample", "place", "step")
ANALYZER = Analyzer(
    name="theorem",
    summary="Theorem 1 on this checkpoint: gradient ascent against the power method, in and out of the linear cell.",
    source="roth2020, Theorem 1, A.1, A.2",
    version=1,
    options=Options,
    arrays={
        "cell_radius": ArraySpec(
            _SAMPLE, "input", "largest ball around x inside its linear cell", may_be_infinite=True
        ),
        "cell_exact": ArraySpec(_SAMPLE, "1", "1: the radius is exact; 0: an upper bound"),
        "visited_radius": ArraySpec(
            ("sample", "step"),
            "input",
            "distance to the first wall along each step's direction",
            may_be_infinite=True,
        ),
        "eps_inside": ArraySpec(_SAMPLE, "input", "eps of the attack inside the cell"),
        "cosine": ArraySpec(_STEPS, "1", "|cos| of the attack's direction with the power method's"),
        "difference": ArraySpec(_STEPS, "1", "||v_attack - v_power||_2"),
        "update_gap": ArraySpec(_STEPS, "1", "||v_attack - one power step from the attack's last point||_2"),
        "sigma_attack": ArraySpec(
            _STEPS, "output / input", "||f(x_k) - f(x)|| / ||x_k - x|| before the step"
        ),
        "sigma_power": ArraySpec(_STEPS, "output / input", "||J v_k|| of the power method before the step"),
        "sigma_gap": ArraySpec(_STEPS, "1", "relative difference of the attack's sigma and the power step's"),
        "same_cell": ArraySpec(_STEPS, "1", "all iterates so far have the activations of x"),
        "tolerance": ArraySpec(_STEPS, "1", "max(1e-9, 100 u ||f|| / (eps sigma)), sigma of the step"),
        "agrees": ArraySpec(
            _SAMPLE, "1", "inside, updates, sigma and cosines agree to the tolerance at every step"
        ),
        "decided": ArraySpec(_SAMPLE, "1", "the tolerance is below 0.1"),
        "on_wall": ArraySpec(_SAMPLE, "1", "x lies on a wall: no ball around it is inside one cell"),
        "usable": ArraySpec(_SAMPLE, "1", "J is finite and not zero"),
        "regression_gap": ArraySpec(("sample", "pair"), "1", "relative gap of A.1's identity, by norms g, h"),
        "near_kink": ArraySpec(
            _SAMPLE, "1", "activations within rounding of a kink, where dtypes may differ"
        ),
        "logit_sum": ArraySpec(_SAMPLE, "logit", "sum of the outputs"),
        "logit_lowest": ArraySpec(_SAMPLE, "logit", "smallest output"),
        "logit_rms": ArraySpec(_SAMPLE, "logit", "root mean square of the outputs"),
    },
    metrics={
        "agreement": MetricSpec("1", "higher", "share of decidable samples where both iterations agree"),
        "cell_radius_median": MetricSpec("input", "neither", "median cell radius", "cell_radius", "median"),
        "cosine_mean": MetricSpec("1", "neither", "mean |cos|", "cosine", "mean", ("place", "step")),
        "regression_gap_max": MetricSpec(
            "1", "lower", "largest gap of A.1's identity", "regression_gap", "max", ("pair",)
        ),
    },
    coordinates={"place": "where the attack ran", "step": "iteration", "pair": "norms g, h of A.1"},
    compute=compute,
    summarise=summarise,
    plot=plot,
    table=table,
    sentence=sentence,
    checks=checks,
    memory=lambda options, sizes: 8 * sizes["K"] * sizes["D"],
    forecast=forecast,
)
