"""What the figures of several analyzers share. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes


def mean_and_error(values: Any) -> tuple[Any, Any]:
    """Mean and standard error along the first axis, over the samples without NaN or infinity."""
    import numpy as np

    values = np.asarray(values, dtype=float)
    kept = values[np.isfinite(values.reshape(len(values), -1)).all(1)]
    nothing = np.full(values.shape[1:], np.nan)
    if not len(kept):
        return nothing, nothing
    return kept.mean(0), kept.std(0, ddof=1) / np.sqrt(len(kept)) if len(kept) > 1 else nothing


def training_eps(data: xarray.Dataset) -> tuple[str, float] | None:
    """Norm and eps that the checkpoint was trained with; None where it was not, or the dataset does not say."""
    from specdiag import store
    from specdiag.errors import ResultsError

    try:
        train = store.provenance(data).get("train", {})
    except ResultsError:
        return None
    norm, eps = train.get("norm"), train.get("eps")
    return (str(norm), float(eps)) if norm and isinstance(eps, int | float) else None


def training_lines(runs: Mapping[str, xarray.Dataset], ax: Axes, norm: str, scale: float = 1.0) -> None:
    """Dashed vertical lines at the eps of adversarial training, for runs trained in this norm."""
    from specdiag.figures import colour

    low, high = ax.get_xlim()
    for number, (label, data) in enumerate(runs.items()):
        found = training_eps(data)
        if found is None or found[0] != norm or not low <= found[1] * scale <= high:
            continue
        ax.axvline(
            found[1] * scale, color=colour(number), lw=1.0, ls="--", zorder=1, label=f"{label}: training eps"
        )
    ax.set_xlim(low, high)


def distribution(ax: Axes, values: Any, label: str, number: int, line: Any = "-") -> None:
    """Share of values at or below each value, a stair of one line; values that are not finite are left out."""
    import numpy as np

    from specdiag.figures import colour

    values = np.sort(np.asarray(values, dtype=float).ravel())
    values = values[np.isfinite(values)]
    if values.size:
        steps = np.arange(1, values.size + 1) / values.size
        ax.plot(values, steps, drawstyle="steps-post", color=colour(number), ls=line, label=label)
