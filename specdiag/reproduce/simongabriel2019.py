"""simongabriel2019: vulnerability follows the norm of the loss gradient, and grows with the input's dimension."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.reproduce._judge import (
    Claim,
    above,
    below,
    between,
    estimate,
    over_checkpoints,
    over_seeds,
    pearson,
    slope,
    spearman,
)
from specdiag.reproduce._plan import Analysis, Panel, Paper, Plan, Scene, Training
from specdiag.reproduce._results import Values, paired
from specdiag.reproduce._upsampled import upsampled

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
INITIAL_SEEDS = tuple(range(6))
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


def adjust(scene: Scene) -> Scene:
    """The strided network of 4.1, 16 channels wide where the paper has 64; from scratch on all kinds of data."""
    later: dict[str, Any] = {
        "train_samples": scene.train_samples,
        "later_epochs": None,
        "epochs": scene.epochs,
    }
    if scene.later_epochs is not None:
        later["epochs"] = scene.later_epochs
    return dataclasses.replace(scene, arch="strided6", arch_args={"width": 16}, **later)


def plan(scene: Scene, folder: Path) -> Plan:
    """Penalties and augmentation over a grid, pools, and networks on larger and larger images."""
    sweep = [scene.training("none", "standard")]
    for place in range(3):
        for method in METHODS:
            sweep.append(scene.training(f"{method}-{place + 1}", *_method(method, scene, place)))
    pools = [
        scene.training(f"pool-{pool}", "standard", arch="pool6", arch_args={"width": 16, "pool": pool})
        for pool in POOLS
    ]
    initial, trained = _growth(scene, folder)
    eps = THRESHOLD[scene.kind]
    gradients = {"attack": "pgd-linf", "eps": eps, "initialisation": False, "cell_budget": 0}
    attack = {"attack": "pgd-linf", "eps_sweep": (eps,), "controls": False}
    names = tuple(entry.name for entry in (*sweep, *pools))
    larger = tuple(entry.name for entry in (*initial, *trained))
    analyses = (
        Analysis("gradients", gradients, names, samples=scene.many),
        Analysis("robustness", attack, names, samples=scene.many),
        Analysis("gradients", gradients, larger),
    )
    remarks = (
        f"Vulnerability: share of answers changed by pgd-linf at eps {eps:g}. Training sizes eps_inf "
        f"{', '.join(f'{value:g}' for value in GRID[scene.kind])}, l2 sizes times sqrt(d) = "
        f"{ROOT[scene.kind]:.4g} (eq. 3); cross-Lipschitz lambda {', '.join(f'{value:g}' for value in LAMBDAS)}.",
        "Larger images are the data's own with every pixel repeated, without new detail; the paper has photographs.",
    )
    return Plan((*sweep, *pools, *initial, *trained), analyses, remarks)


def claims(results: Results) -> Sequence[Claim]:
    """The rows of Fig. 2, 3 and 4."""
    return (*_relations(results), *_overlays(results), _cross(results), *_larger(results), *_pooling(results))


def panels(results: Results) -> Sequence[Panel]:
    """Fig. 2 (six panels), 3 and 4."""
    return (
        Panel("fig2-penalties.png", _figure_2, 12, 7),
        Panel("fig3-dimension.png", _figure_3, 10, 4),
        Panel("fig4-pooling.png", _figure_4),
    )


def overlay_distance(none: Values, *grids: Values) -> float:
    """Mean |log| of the ratio of two curves over the range of the first; each array holds ||grad L||_1 of N samples.

    grids: the networks of the first curve, then those of the second at the same sizes.
    """
    logs = [np.log(values.mean()) for values in (none, *grids)]
    half = len(grids) // 2
    first, second = np.array(logs[1 : 1 + half]), np.array(logs[1 + half :])
    return float(np.abs(first - second).mean() / (logs[0] - first.min()))


def trade_off(accuracy: Values, vulnerability: Values, *references: Values) -> float:
    """Accuracy less that which the reference curve has at the same vulnerability; references: accuracies, vulnerabilities.

    Each array is per sample; outside the curve's range its end counts.
    """
    half = len(references) // 2
    points = sorted(
        (float(changed.mean()), float(right.mean()))
        for right, changed in zip(references[:half], references[half:], strict=True)
    )
    expected = np.interp(vulnerability.mean(), [at for at, _ in points], [value for _, value in points])
    return float(accuracy.mean() - expected)


def growth(*norms: Values) -> float:
    """Slope of log mean ||grad L||_1 against log D, widths doubling; one array per width."""
    steps = [2 * place * np.log(2.0) for place in range(len(norms))]
    return slope(steps, [float(np.log(values.mean())) for values in norms])


def _method(method: str, scene: Scene, place: int) -> tuple[str, dict[str, Any]]:
    size = GRID[scene.kind][place]
    wide = size * ROOT[scene.kind]
    return {
        "q1": ("gradient-penalty", {"q": 1, "eps": size}),
        "q2": ("gradient-penalty", {"q": 2, "eps": wide}),
        "aug-linf": ("adversarial-augmentation", {"norm": "linf", "eps": size}),
        "aug-l2": ("adversarial-augmentation", {"norm": "l2", "eps": wide}),
        "cross": ("cross-lipschitz", {"lam": LAMBDAS[place]}),
    }[method]


def _growth(scene: Scene, folder: Path) -> tuple[list[Training], list[Training]]:
    initial, trained = [], []
    for number, factor in enumerate(FACTORS[scene.kind]):
        data = upsampled(scene, factor, folder)
        plain: dict[str, Any] = {
            "arch": "dilated8",
            "arch_args": {"width": 16, "norm": "none"},
            "normalise": "channel",
        }
        initial.append(
            scene.training(
                f"initial-x{factor}", "standard", data=data, seeds=INITIAL_SEEDS, **plain, epochs=0
            )
        )
        if number < TRAINED:
            trained.append(
                scene.training(
                    f"trained-x{factor}", "standard", data=data, arch="dilated8", arch_args={"width": 16}
                )
            )
    return initial, trained


def _norms(results: Results, name: str, q: str = "1") -> list[Values]:
    return results.arrays("gradients", "loss_gradient_norm", name, q=q)


def _changed(results: Results, name: str) -> list[Values]:
    return [values[:, 0, 0] for values in _grid(results, "changed", name)]


def _grid(results: Results, array: str, name: str) -> list[Values]:
    return results.arrays("robustness", array, name)


def _sweep(method: str) -> list[str]:
    return [f"{method}-{place + 1}" for place in range(3)]


def _everything() -> list[str]:
    return ["none", *(name for method in METHODS for name in _sweep(method))]


def _relations(results: Results) -> list[Claim]:
    columns: list[list[float]] = [[], [], []]
    for name in _everything():
        for column, values in zip(
            columns, (_norms(results, name), _norms(results, name, "2"), _changed(results, name)), strict=True
        ):
            column += [float(entry.mean()) for entry in values]
    one, two, vulnerable = columns
    return [
        Claim(
            "vulnerability monotone in E||grad L||_1",
            "Fig. 2d",
            "near functional relation",
            f"rank correlation over {len(one)} checkpoints (interval: bootstrap over checkpoints)",
            over_checkpoints(spearman, one, vulnerable),
            above(0.9),
        ),
        Claim(
            "E||grad L||_1 linear in E||grad L||_2",
            "Fig. 2e",
            "near-perfect linear relation",
            f"correlation over {len(one)} checkpoints (interval: bootstrap over checkpoints)",
            over_checkpoints(pearson, one, two),
            above(0.95),
        ),
    ]


def _overlays(results: Results) -> list[Claim]:
    rows = []
    for first, second, text in (
        ("q1", "q2", "q = 1 and q = 2 penalties overlay on eps d^(1/p)"),
        ("q1", "aug-linf", "q = 1 penalty overlays linf augmentation"),
        ("q2", "aug-l2", "q = 2 penalty overlays l2 augmentation"),
    ):
        names = ["none", *_sweep(first), *_sweep(second)]
        rows.append(
            Claim(
                text,
                "Fig. 2a",
                "almost superimposed" if first == "q1" and second == "q2" else "excellent match (Prop. 3)",
                "mean |log ratio| of E||grad L||_1 at equal sizes over the log range from no to strongest penalty",
                estimate(overlay_distance, paired(*(_norms(results, name) for name in names))),
                below(0.25),
            )
        )
    return rows


def _cross(results: Results) -> Claim:
    references = ["none", *_sweep("q1"), *_sweep("q2")]
    strongest = _sweep("cross")[-1]
    return Claim(
        "cross-Lipschitz worse at high penalty",
        "Fig. 2f",
        "gradient penalties have much better trade-offs",
        "accuracy at the largest lambda less that of the q = 1, 2 penalties at the same vulnerability (interpolated)",
        estimate(
            trade_off,
            paired(
                _grid(results, "correct", strongest),
                _changed(results, strongest),
                *(_grid(results, "correct", name) for name in references),
                *(_changed(results, name) for name in references),
            ),
        ),
        below(0),
    )


def _larger(results: Results) -> list[Claim]:
    factors = FACTORS[results.scene.kind]
    initial = [_norms(results, f"initial-x{factor}") for factor in factors]
    trained = [_norms(results, f"trained-x{factor}") for factor in factors[:TRAINED]]
    changed = [results.arrays("gradients", "changed", f"trained-x{factor}") for factor in factors[:TRAINED]]
    what = "slope of log E||grad L||_1 against log D"
    return [
        Claim(
            "E||grad L||_1 grows with sqrt(D) at initialisation",
            "Theorem 5, Corollary 6",
            "slope 1/2",
            f"{what}, {len(INITIAL_SEEDS)} draws of untrained networks without BatchNorm",
            estimate(growth, paired(*initial)),
            between(0.4, 0.6),
        ),
        Claim(
            "E||grad L||_1 grows with sqrt(D) after training",
            "Fig. 3 right",
            "linear in sqrt(D)",
            f"{what}, trained networks",
            estimate(growth, paired(*trained)),
            between(0.25, 0.75),
        ),
        Claim(
            "vulnerability grows with D after training",
            "Fig. 3 left",
            "grows, dampened at high dimension",
            "share of answers changed at the largest images less that at the smallest",
            estimate(lambda a, b: float(b.mean() - a.mean()), paired(changed[0], changed[-1])),
            above(0),
        ),
    ]


def _pooling(results: Results) -> list[Claim]:
    changed = {pool: _changed(results, f"pool-{pool}") for pool in POOLS}
    norms = {pool: _norms(results, f"pool-{pool}") for pool in POOLS}
    rows = []
    for other in ("strided", "max"):
        gradient = over_seeds(
            [float(b.mean() / a.mean()) for a, b in zip(norms["avg"], norms[other], strict=True)]
        )
        rows.append(
            Claim(
                f"average pooling more robust than {other}",
                "Fig. 4, Theorem 7",
                "more robust; strided and max are not",
                f"share of answers changed with average pools less that with {other}",
                estimate(lambda a, b: float(a.mean() - b.mean()), paired(changed["avg"], changed[other])),
                below(0),
                f"E||grad L||_1 of {other} over that of average pools: {gradient.value:.3g}.",
            )
        )
    return rows


def _figure_2(results: Results, figure: Figure) -> None:
    from specdiag.figures import LINES, MARKERS, colour, log_axis

    axes = figure.subplots(2, 3).flatten()
    for number, method in enumerate(METHODS):
        look: dict[str, Any] = {"color": colour(number), "marker": MARKERS[number], "ls": LINES[number]}
        names = ["none", *_sweep(method)]
        sizes = [size * ROOT[results.scene.kind] for size in GRID[results.scene.kind]]
        one, two = ([_mean(_norms(results, name, q)) for name in names] for q in ("1", "2"))
        vulnerable = [_mean(_changed(results, name)) for name in names]
        accuracy = [_mean(_grid(results, "correct", name)) for name in names]
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


def _figure_3(results: Results, figure: Figure) -> None:
    from specdiag.figures import log_axis
    from specdiag.reproduce._panels import against

    left, right = figure.subplots(1, 2)
    factors = FACTORS[results.scene.kind]
    first = 32 if results.scene.kind == "colour" else round(ROOT[results.scene.kind])
    widths = [float(first * factor) for factor in factors]
    trained = [f"trained-x{factor}" for factor in factors[:TRAINED]]
    changed = [results.arrays("gradients", "changed", name) for name in trained]
    against(left, widths[:TRAINED], [[float(v.mean()) for v in entry] for entry in changed], "trained", 0)
    for number, (word, names) in enumerate(
        {"trained": trained, "at initialisation": [f"initial-x{factor}" for factor in factors]}.items()
    ):
        means = [[float(values.mean()) for values in _norms(results, name)] for name in names]
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


def _figure_4(results: Results, figure: Figure) -> None:
    from specdiag.figures import MARKERS, colour

    ax = figure.subplots()
    for number, pool in enumerate(POOLS):
        x = [float(values.mean()) for values in _norms(results, f"pool-{pool}")]
        y = [float(values.mean()) for values in _changed(results, f"pool-{pool}")]
        ax.plot(x, y, MARKERS[number], color=colour(number), label=f"{pool} (one point per seed)", ms=8)
    ax.set_xlabel("E ||grad L||_1 (nat / input)")
    ax.set_ylabel("vulnerability (share changed)")
    ax.legend()


def _mean(columns: Sequence[Values]) -> float:
    return float(np.mean([values.mean() for values in columns]))


PAPER = Paper(
    name="simongabriel2019",
    title="Adversarial Vulnerability of Neural Networks Increases with Input Dimension",
    plan=plan,
    claims=claims,
    panels=panels,
    adjust=adjust,
)
