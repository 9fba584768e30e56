"""The settings, the data access and the figures of simongabriel2019."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.reproduce._results import Values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdiag.reproduce._results import Results

# training sizes eps_inf of penalties and attacks; cross-Lipschitz has a scale of its own
GRID = {"digits": (0.01, 0.03, 0.1), "grey": (0.005, 0.015, 0.05), "colour": (0.0025, 0.005, 0.01)}
LAMBDAS = (1e-3, 1e-2, 1e-1)
THRESHOLD = {"digits": 0.05, "grey": 0.02, "colour": 0.005}
ROOT = {"digits": 8.0, "grey": 28.0, "colour": 3072**0.5}
# image widths over that of the data
FACTORS = {"digits": (1, 2, 4, 8), "grey": (1, 2, 4), "colour": (1, 2, 4)}
INITIAL_SEEDS = tuple(range(8))
TRAINED = 3
POOLS = ("avg", "strided", "max")
METHODS = ("q1", "q2", "aug-linf", "aug-l2", "cross")
WORDS = {
    "q1": "penalty q = 1",
    "q2": "penalty q = 2",
    "aug-linf": "augmentation linf",
    "aug-l2": "augmentation l2",
    "cross": "cross-Lipschitz",
}


def norms(results: Results, name: str, q: str = "1") -> list[Values]:
    """||grad L||_q per seed, (N,)."""
    return results.arrays("gradients", "loss_gradient_norm", name, q=q)


def changed(results: Results, name: str) -> list[Values]:
    """Whether the attack changes the answer, per seed, (N,)."""
    return [values[:, 0, 0] for values in grid(results, "changed", name)]


def grid(results: Results, array: str, name: str) -> list[Values]:
    """An array of `robustness` per seed."""
    return results.arrays("robustness", array, name)


def sweep_of(method: str) -> list[str]:
    """The trainings of a method, from weak to strong."""
    return [f"{method}-{place + 1}" for place in range(3)]


def figure_2(results: Results, figure: Figure) -> None:
    """Means over seeds: three quantities against the training size, and three against each other."""
    from specdiag.figures import LINES, MARKERS, colour, log_axis

    axes = figure.subplots(2, 3).flatten()
    for number, method in enumerate(METHODS):
        look: dict[str, Any] = {"color": colour(number), "marker": MARKERS[number], "ls": LINES[number]}
        names = ["none", *sweep_of(method)]
        sizes = [size * ROOT[results.scene.kind] for size in GRID[results.scene.kind]]
        one, two = ([_mean(norms(results, name, q)) for name in names] for q in ("1", "2"))
        vulnerable = [_mean(changed(results, name)) for name in names]
        accuracy = [_mean(grid(results, "correct", name)) for name in names]
        if method != "cross":
            for ax, values in zip(axes[:3], (one, vulnerable, accuracy), strict=True):
                ax.plot(sizes, values[1:], label=WORDS[method], **look)
        axes[3].plot(one, vulnerable, label=WORDS[method], **look)
        axes[4].plot(two, one, label=WORDS[method], **look)
        axes[5].plot(vulnerable, accuracy, label=WORDS[method], **look)
    upper = "training size eps d^(1/p) (input)"
    labels = [
        (upper, "E ||grad L||_1 (nat / input)"),
        (upper, "vulnerability (share changed)"),
        (upper, "accuracy (share)"),
        ("E ||grad L||_1 (nat / input)", "vulnerability (share changed)"),
        ("E ||grad L||_2 (nat / input)", "E ||grad L||_1 (nat / input)"),
        ("vulnerability (share changed)", "accuracy (share)"),
    ]
    for ax, (x, y) in zip(axes, labels, strict=True):
        ax.set_xlabel(x)
        ax.set_ylabel(y)
    for ax in (*axes[:3], axes[3]):
        log_axis(ax, "x")
    axes[3].legend()


def figure_3(results: Results, figure: Figure) -> None:
    """Vulnerability and gradient norm against the image width, with the range over seeds."""
    from specdiag.figures import log_axis
    from specdiag.reproduce._panels import against

    left, right = figure.subplots(1, 2)
    factors = FACTORS[results.scene.kind]
    first = 32 if results.scene.kind == "colour" else round(ROOT[results.scene.kind])
    widths = [float(first * factor) for factor in factors]
    trained = [f"trained-x{factor}" for factor in factors[:TRAINED]]
    fooled = [results.arrays("gradients", "changed", name) for name in trained]
    against(left, widths[:TRAINED], [[float(np.nanmean(v)) for v in entry] for entry in fooled], "trained", 0)
    for number, (word, names) in enumerate(
        {"trained": trained, "at initialisation": [f"initial-x{factor}" for factor in factors]}.items()
    ):
        means = [[float(values.mean()) for values in norms(results, name)] for name in names]
        against(right, widths[: len(names)], means, word, number)
        start = float(np.mean(means[0]))
        label = "proportional to sqrt(D)" if number == 0 else None
        line = [start * width / widths[0] for width in widths[: len(names)]]
        right.plot(widths[: len(names)], line, color="#777777", ls=":", lw=1, label=label, zorder=1)
    for ax, label in ((left, "vulnerability (share changed)"), (right, "E ||grad L||_1 (nat / input)")):
        ax.set_xlabel("image width sqrt(D) (pixels)")
        ax.set_ylabel(label)
        log_axis(ax, "x")
        ax.legend()
    log_axis(right, "y")


def figure_4(results: Results, figure: Figure) -> None:
    """One point per network and kind of pool."""
    from specdiag.figures import MARKERS, colour

    ax = figure.subplots()
    for number, pool in enumerate(POOLS):
        x = [float(values.mean()) for values in norms(results, f"pool-{pool}")]
        y = [float(np.nanmean(values)) for values in changed(results, f"pool-{pool}")]
        ax.plot(x, y, MARKERS[number], color=colour(number), label=f"{pool} (one point per seed)", ms=8)
    ax.set_xlabel("E ||grad L||_1 (nat / input)")
    ax.set_ylabel("vulnerability (share changed)")
    ax.legend()


def _mean(columns: Sequence[Values]) -> float:
    # NaN: a sample without a gradient to attack by
    return float(np.mean([np.nanmean(values) for values in columns]))
