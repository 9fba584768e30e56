"""What `margins` makes of its arrays once all samples are there. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.analyzers._capacity import THEOREM_OF, capacity, log_phi

if TYPE_CHECKING:
    import xarray

    from specdiag.schema import Summary

Array = np.ndarray[Any, np.dtype[Any]]
GRID = 512
LARGEST = 1400.0


def split_of(data: xarray.Dataset) -> dict[str, Array]:
    """Samples of each split, as masks (N,); one entry named `all` where there is only one."""
    if "split" not in data.coords:
        return {"all": np.ones(data.sizes["sample"], bool)}
    splits = data["split"].values.astype(str)
    return {name: splits == name for name in ("train", "test") if (splits == name).any()}


def with_capacity(data: xarray.Dataset) -> xarray.Dataset:
    """Normalised margins M / sqrt(Phi) of every theorem that covers a column and is defined."""
    scale = float(data["input_scale"].values[0])
    sigma, frobenius = data["operator_norm"].values.copy(), data["frobenius"].values.copy()
    if not len(sigma) or not (np.isfinite(scale) and (sigma > 0).all()):
        return data
    # the normalisation in front is part of the first layer
    sigma[0], frobenius[0] = sigma[0] * scale, frobenius[0] * scale
    known = capacity(list(sigma), list(frobenius))
    kappas = data["kappa"].values
    kappas = kappas[np.isfinite(kappas)]
    names: list[str] = []
    terms: list[tuple[float, float]] = []
    columns: list[int] = []
    for column, name in enumerate(data["attack"].values.astype(str)):
        theorem = THEOREM_OF.get(name)
        if theorem is None:
            continue
        given: dict[str, Any] = {
            "kappa": float(kappas.min()) if len(kappas) else float("nan"),
            "eps": float(data["attack_eps"].values[column]),
            "steps": int(np.nan_to_num(data["attack_steps"].values[column], nan=1)),
            "alpha": float(data["attack_alpha"].values[column]),
            "penalty": float(data["attack_penalty"].values[column]),
        }
        pair = tuple(log_phi(theorem, known, with_frobenius=whole, **given) for whole in (True, False))
        # beyond it the normalised margins are zero as floats
        if np.isfinite(pair).all() and pair[0] < LARGEST:
            names.append(theorem)
            terms.append((pair[0], pair[1]))
            columns.append(column)
    if not names:
        return data
    logs, margin = np.array(terms), data["margin"].values[:, columns]
    with np.errstate(under="ignore"):
        factors = np.exp(-logs / 2)
    return data.assign_coords(theorem=("theorem", names, {"long_name": "theorem of farnia2019"})).assign(
        log_phi=("theorem", logs[:, 0], _facts("1", "log of the capacity term Phi")),
        log_phi_spectral=("theorem", logs[:, 1], _facts("1", "log Phi without its Frobenius factor")),
        normalised_margin=(
            ("sample", "theorem"),
            margin * factors[:, 0],
            _facts("1", "margin over sqrt(Phi) of the theorem"),
        ),
        normalised_margin_spectral=(
            ("sample", "theorem"),
            margin * factors[:, 1],
            _facts("1", "margin over sqrt(Phi) without its Frobenius factor"),
        ),
    )


def _facts(unit: str, doc: str) -> dict[str, str]:
    return {"units": unit, "long_name": doc}


def undefined(data: xarray.Dataset) -> list[str]:
    """Theorems of the columns whose capacity term has no value here."""
    defined = set(data["theorem"].values.astype(str)) if "theorem" in data.coords else set()
    wanted = [THEOREM_OF[name] for name in data["attack"].values.astype(str) if name in THEOREM_OF]
    return [name for name in wanted if name not in defined]


def with_least_margin(data: xarray.Dataset) -> xarray.Dataset:
    """Smallest margin of a right answer, on training data where there are any, and u_min (wen2020 eq. 5)."""
    masks = split_of(data)
    chosen = masks.get("train", next(iter(masks.values())))
    right = chosen & ~data["wrong"].values[:, 0].astype(bool)
    if not right.any():
        return data
    margin = data["margin"].values[right, 0]
    data = data.assign(
        smallest_margin=(
            "network",
            [float(margin.min())],
            _facts("logit", "smallest margin of a right answer"),
        )
    )
    if "instance_margin" not in data or "head_distance" not in data or not float(data["chain"].values[0]):
        return data
    distance = data["instance_margin"].values[right]
    inner = data["sigma_min"].values[:-1]
    least = float(data["input_scale_min"].values[0])
    u_min = float(data["head_distance"].values[0]) * float(np.prod(inner)) * least * float(np.min(distance))
    if not np.isfinite(u_min):
        return data
    return data.assign(u_min=("network", [u_min], _facts("logit", "u_min of wen2020 eq. 5")))


def no_u_min(data: xarray.Dataset) -> str:
    """Why there is no u_min (wen2020 eq. 5); empty where there is one."""
    if "u_min" in data:
        return ""
    if not float(data["chain"].values[0]):
        return (
            "it is defined for chains of layers, and this network has branches or functions of no known bound"
        )
    if "head_distance" not in data:
        return "the network does not end in a linear layer"
    if "instance_margin" not in data:
        return "it needs the distances to the decision boundary (--instance)"
    unknown = data["layer"].values[:-1][~np.isfinite(data["sigma_min"].values[:-1])].astype(str)
    if len(unknown):
        return f"the smallest singular value is not known of {', '.join(unknown)}"
    if not np.isfinite(float(data["input_scale_min"].values[0])):
        return "the normalisation of each image has no smallest singular value"
    return "no sample is answered rightly"


def mode(values: Array) -> float:
    """Where a Gaussian kernel estimate (Silverman's width) of the density is highest."""
    grid, density = kernel_density(values)
    return float(grid[density.argmax()]) if len(grid) else float("nan")


def kernel_density(values: Array) -> tuple[Array, Array]:
    """Grid and density of a Gaussian kernel estimate with Silverman's width; empty without two distinct values."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if len(values) < 2 or values.min() == values.max():
        return np.zeros(0), np.zeros(0)
    low, high = np.percentile(values, [25, 75])
    spread = min(values.std(ddof=1), (high - low) / 1.349) or values.std(ddof=1)
    width = 0.9 * spread * len(values) ** -0.2
    grid = np.linspace(values.min() - 3 * width, values.max() + 3 * width, GRID)
    density = np.zeros(GRID)
    # in blocks, so that a million samples do not make a table of half a billion
    for part in np.array_split(values, max(1, len(values) // 4096)):
        density += np.exp(-0.5 * ((grid[:, None] - part) / width) ** 2).sum(1)
    return grid, density / (len(values) * width * np.sqrt(2 * np.pi))


def skewness(values: Array) -> float:
    """Third central moment over the cubed STD (population); NaN without spread."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if len(values) < 3 or values.std() == 0:
        return float("nan")
    return float(((values - values.mean()) ** 3).mean() / values.std() ** 3)


def shapes(data: xarray.Dataset) -> Summary:
    """Skewness (standard error of a normal sample) and mode per attack, smallest margin, u_min."""
    margin = data["margin"].values
    count = margin.shape[1]
    found: Any = {
        "margin_skewness": (
            np.array([skewness(margin[:, k]) for k in range(count)]),
            np.full(count, np.sqrt(6 / max(1, len(margin)))),
        ),
        "margin_mode": (np.array([mode(margin[:, k]) for k in range(count)]), np.full(count, np.nan)),
    }
    for name in ("smallest_margin", "u_min"):
        if name in data:
            found[name] = (float(data[name].values[0]), float("nan"))
    summary: Summary = found
    return summary


def gaps(data: xarray.Dataset) -> Summary:
    """Test minus training mean of loss, error and margin loss per attack, with the error of a difference."""
    masks = split_of(data)
    if len(masks) < 2:
        return {}
    found: Any = {}
    for name, array in (("loss_gap", "loss"), ("error_gap", "wrong"), ("margin_loss_gap", "margin_loss")):
        parts = [data[array].values[masks[split]].astype(float) for split in ("test", "train")]
        squares = [
            part.var(0, ddof=1) / len(part) if len(part) > 1 else np.full(part.shape[1], np.nan)
            for part in parts
        ]
        found[name] = (parts[0].mean(0) - parts[1].mean(0), np.sqrt(squares[0] + squares[1]))
    summary: Summary = found
    return summary


def rows(data: xarray.Dataset) -> list[list[str]]:
    """A row per split and attack: share wrong, mean, STD, skewness and mode of margins, near 0, L_gamma, ramp, loss."""
    found = []
    single = data.attrs.get("split", "")
    for split, mask in split_of(data).items():
        for column, name in enumerate(data["attack"].values.astype(str)):
            margin = data["margin"].values[mask, column]
            means = [
                float(data[array].values[mask, column].mean())
                for array in ("wrong", "near_boundary", "margin_loss", "ramp_loss", "loss")
            ]
            label = f"{single or ''} {name}".strip() if split == "all" else f"{split} {name}"
            found.append(
                [
                    label,
                    str(int(mask.sum())),
                    f"{100 * means[0]:.1f} %",
                    f"{margin.mean():.3g}",
                    f"{margin.std():.3g}",
                    f"{skewness(margin):.2f}",
                    f"{mode(margin):.3g}",
                    f"{100 * means[1]:.1f} %",
                    f"{100 * means[2]:.1f} %",
                    f"{means[3]:.3f}",
                    f"{means[4]:.3g}",
                ]
            )
    return found
