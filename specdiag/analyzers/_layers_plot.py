"""Figure, table, sentence and warnings of `layers`, from stored arrays. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STDS = {"sigma_std": "operator", "circular_std": "circular", "kernel_std": "reshaped kernel"}


def draw(runs: Mapping[str, xarray.Dataset], figure: Figure) -> None:
    """Two panels for one checkpoint, three for several."""
    from specdiag.analyzers._keys import keys

    known = {label: data for label, data in runs.items() if "sigma_std" in data}
    panels: list[Any] = [_stds, _spectra] if len(known) == 1 else [_stds, _accumulated, _spectra]
    if not known:
        panels, known = [_kernels], dict(runs)
    figure.set_size_inches(6.2 * len(panels), 4.8)
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(known, ax)
    keys(figure, known)


def _stds(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """STD per layer, one series per checkpoint (wen2020 Fig. 1a, 5c-d); for one checkpoint beside its stand-ins."""
    from specdiag.figures import LINES, MARKERS, colour

    names: list[str] = []
    for number, (label, data) in enumerate(runs.items()):
        names = max(names, [str(layer) for layer in data["layer"].values], key=len)
        shown = STDS if len(runs) == 1 else {"sigma_std": ""}
        for kind, (array, what) in enumerate(shown.items()):
            series = number + kind
            ax.plot(
                range(data.sizes["layer"]),
                data[array].values,
                color=colour(series),
                marker=MARKERS[series % len(MARKERS)],
                ls=LINES[kind % len(LINES)] if len(runs) == 1 else "",
                lw=1.2,
                label=f"{label}: {what}" if what else label,
            )
    _name_layers(ax, names)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("STD of the singular values")
    ax.set_title("Spread of each layer's spectrum")


def _accumulated(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Running sum over the layers of the difference in STD to the first checkpoint (wen2020 B.2), three ways."""
    import numpy as np

    from specdiag.figures import LINES, colour

    (base, first), *others = runs.items()
    names: list[str] = []
    for number, (label, data) in enumerate(others, 1):
        shared = [str(layer) for layer in first["layer"].values if layer in data["layer"].values]
        names = max(names, shared, key=len)
        for kind, (array, what) in enumerate(STDS.items()):
            gap = np.nan_to_num(data[array].sel(layer=shared).values - first[array].sel(layer=shared).values)
            up, down = gap[gap > 0], gap[gap < 0]
            total = f": +{up.sum():.3g} in {len(up)}, {down.sum():.3g} in {len(down)}"
            ax.plot(
                range(len(shared)),
                np.cumsum(gap),
                color=colour(number),
                ls=LINES[kind],
                lw=1.4,
                label=f"{label}, {what}{total if len(others) == 1 else ''}",
            )
    ax.axhline(0, color="#888888", lw=0.8)
    _name_layers(ax, names)
    ax.set_ylabel(f"accumulated STD minus that of {base}")
    ax.set_title("Which layers grew or fell")


def _spectra(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """The distribution of each layer's singular values, as quantiles between its 5th and 95th percentile."""
    import numpy as np

    from specdiag.figures import colour, log_axis

    for number, (label, data) in enumerate(runs.items()):
        share, rows = data["share"].values, data["quantile"].values
        depth = np.linspace(0.25, 1.0, len(rows))
        for place, row in enumerate(rows):
            if np.isfinite(row).all():
                last = place == len(rows) - 1
                ax.plot(
                    row,
                    share,
                    color=colour(number),
                    alpha=depth[place],
                    lw=0.9,
                    label=label if last else None,
                )
    log_axis(ax, "x")
    ax.set_xlabel("singular value")
    ax.set_ylabel("share of the singular values below")
    ax.set_title("Spectra, first layer pale to last layer full")


def _kernels(runs: Mapping[str, xarray.Dataset], ax: Axes) -> None:
    """Norms of the reshaped kernels, where nothing else is known."""
    from specdiag.figures import MARKERS, colour

    names: list[str] = []
    for number, (label, data) in enumerate(runs.items()):
        names = max(names, [str(layer) for layer in data["layer"].values], key=len)
        mark = MARKERS[number % len(MARKERS)]
        ax.plot(
            range(data.sizes["layer"]),
            data["kernel_norm"].values,
            marker=mark,
            color=colour(number),
            label=label,
        )
    _name_layers(ax, names)
    ax.set_ylabel("norm of the reshaped kernel")
    ax.set_title("Reshaped kernels (no input size known)")


def _name_layers(ax: Axes, names: list[str]) -> None:
    step = -(-len(names) // 30)
    places = range(0, len(names), max(1, step))
    ax.set_xticks(
        list(places),
        [names[place] for place in places],
        rotation=60 if len(names) > 6 else 30,
        ha="right",
        rotation_mode="anchor",
        fontsize=7 if len(names) > 12 else 9,
    )
    ax.set_xlabel("layer")


def table(data: xarray.Dataset) -> tuple[list[str], list[list[str]]]:
    """One line per layer: the operator with its errors, and the stand-ins beside it."""
    layers = [str(layer) for layer in data["layer"].values]
    if "sigma_max" not in data:
        rows = [
            [layer, _number(norm), _number(std)]
            for layer, norm, std in zip(
                layers, data["kernel_norm"].values, data["kernel_std"].values, strict=True
            )
        ]
        return ["layer", "kernel norm", "kernel STD"], rows
    titles = [
        "layer",
        "m x n",
        "method",
        "sigma_max",
        "sigma_std",
        "circular",
        "kernel",
        "sigma_min",
        "stable rank",
    ]
    rows = []
    for place, layer in enumerate(layers):
        at = {name: array.values[place] for name, array in data.data_vars.items() if array.dims == ("layer",)}
        shape = f"{at['outputs']:.0f} x {at['inputs']:.0f}" if at["outputs"] == at["outputs"] else "-"
        rows.append(
            [
                layer,
                shape,
                str(at["method"]),
                _with_error(at["sigma_max"], at["sigma_max_error"]),
                _with_error(at["sigma_std"], at["sigma_std_error"]),
                f"{_number(at['circular_norm'])} / {_number(at['circular_std'])}",
                f"{_number(at['kernel_norm'])} / {_number(at['kernel_std'])}",
                _smallest(at["sigma_min"], at["sigma_min_error"]),
                _number(at["stable_rank"]),
            ]
        )
    return titles, rows


def _number(value: float) -> str:
    return f"{value:.4g}" if value == value else "-"


def _smallest(value: float, error: float) -> str:
    return f"< {error:.0e}" if value == 0 and error > 0 else _number(value)


def _with_error(value: float, error: float) -> str:
    """Value to five digits; the error where it shows in them."""
    if value != value:
        return "-"
    if error != error:
        return f"{value:.5g} ± ?"
    return f"{value:.5g} ± {error:.0e}" if error > 1e-5 * abs(value) else f"{value:.5g}"


def sentence(data: xarray.Dataset) -> str:
    """The spread of the operators, how far off the stand-ins are, and the network-wide numbers."""
    import numpy as np

    count = data.sizes["layer"]
    if "sigma_std" not in data:
        return f"{count} kernels, as matrices: without an input size the operators that the network applies are not known."
    std, top = data["sigma_std"].values, data["sigma_max"].values
    largest = int(np.nanargmax(top))
    text = (
        f"the singular values of {count} layers have an STD of {np.nanmean(std):.3g} on average; the largest operator norm "
        f"is {top[largest]:.4g}, of {data['layer'].values[largest]}"
    )
    convolutions = (data["circular_std"].values != data["kernel_std"].values) & np.isfinite(std) & (std > 0)
    if convolutions.any():
        off = [
            np.nanmax(np.abs(data[name].values / std - 1)[convolutions])
            for name in ("circular_std", "kernel_std")
        ]
        text += (
            f"; the circular stand-in is off by up to {100 * off[0]:.0f} % in the STD, the reshaped kernel by up to "
            f"{100 * off[1]:.0f} %"
        )
    if "lipschitz_bound" in data and np.isfinite(data["lipschitz_bound"].values[0]):
        bound = float(data["lipschitz_bound"].values[0])
        text += f"; the network's Lipschitz bound is {bound:.3g}"
        if "jacobian_sigma_max" in data:
            reached = float(data["jacobian_sigma_max"].values[0])
            text += f", {bound / reached:.3g} times the largest singular value of the Jacobian at the samples"
    return text[0].upper() + text[1:] + "."


def checks(data: xarray.Dataset) -> list[dict[str, str]]:
    """Skipped modules, methods that gave way, unknown sizes, estimates with wide errors, no bound."""
    import numpy as np

    from specdiag.analyzers._checks import warning

    found = []
    if "reason" in data:
        reasons: dict[str, list[str]] = {}
        for name, reason in zip(data["skipped"].values, data["reason"].values, strict=True):
            reasons.setdefault(str(reason), []).append(str(name))
        lines = [f"{_some(names)} ({reason})" for reason, names in reasons.items()]
        found.append(warning("SD330", f"Left out: {'; '.join(lines)}."))
    gave_way: dict[str, list[str]] = {}
    for name, note in zip(data["layer"].values, data["note"].values, strict=True):
        if note:
            gave_way.setdefault(str(note), []).append(str(name))
    for note, names in gave_way.items():
        found.append(warning("SD331", f"{_some(names)}: {note} The method auto was taken there."))
    if not bool(data["sized"].values[0]):
        text = "The size of the input is not known, so convolutions have the norms of their kernels alone. Pass --input-size."
        found.append(warning("SD332", text))
    elif not bool(data["traced"].values[0]):
        text = (
            "The architecture is not known: every convolution is taken with stride 1 and full zero padding at the input "
            "size given. Pass --arch for the operators that the network applies."
        )
        found.append(warning("SD333", text))
    if "sigma_std_error" in data:
        wide = data["sigma_std_error"].values > 0.01 * data["sigma_std"].values
        wide &= data["sigma_std"].values > 1e-6 * data["sigma_max"].values
        if wide.any():
            names = [str(name) for name in data["layer"].values[wide]]
            found.append(
                warning(
                    "SD334",
                    f"The STD of {_some(names)} is known to more than 1 % only; --budget allows more.",
                )
            )
    if "no_bound" in data and str(data["no_bound"].values[0]):
        found.append(warning("SD320", f"No Lipschitz bound: {data['no_bound'].values[0]}."))
    infinite = "condition" in data and bool(np.isinf(data["condition"].values).any())
    if infinite:
        names = [str(name) for name in data["layer"].values[np.isinf(data["condition"].values)]]
        found.append(
            warning(
                "SD335", f"{_some(names)}: the smallest singular value is zero, or below 1e-7 of the largest."
            )
        )
    return found


def _some(names: list[str]) -> str:
    """Up to four names, and how many more."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
