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
from specdiag.reproduce._simongabriel2019 import (
    FACTORS,
    GRID,
    INITIAL_SEEDS,
    LAMBDAS,
    METHODS,
    POOLS,
    ROOT,
    THRESHOLD,
    TRAINED,
    changed,
    figure_2,
    figure_3,
    figure_4,
    grid,
    norms,
    sweep_of,
)
from specdiag.reproduce._upsampled import upsampled

if TYPE_CHECKING:
    from specdiag.reproduce._results import Results


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
        "Larger images are the data's own with every pixel repeated, without new detail; the paper has photographs of 32 "
        "to 256 pixels and dilated8. Here strided6 with circular padding: at 8 pixels zero padding is most of what a "
        "convolution sees, and its gradients grow faster than theory says.",
    )
    return Plan((*sweep, *pools, *initial, *trained), analyses, remarks)


def claims(results: Results) -> Sequence[Claim]:
    """The rows of Fig. 2, 3 and 4."""
    return (*_relations(results), *_overlays(results), _cross(results), *_larger(results), *_pooling(results))


def panels(results: Results) -> Sequence[Panel]:
    """Fig. 2 (six panels), 3 and 4."""
    return (
        Panel("fig2-penalties.png", figure_2, 12, 7),
        Panel("fig3-dimension.png", figure_3, 10, 4),
        Panel("fig4-pooling.png", figure_4),
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
    """Networks on larger and larger images; circular, for zero padding is most of a small layer's input."""
    initial, trained = [], []
    for number, factor in enumerate(FACTORS[scene.kind]):
        placed: dict[str, Any] = {"arch": "strided6", "data": upsampled(scene, factor, folder)}
        plain = {"width": 16, "padding_mode": "circular", "norm": "none"}
        initial.append(
            scene.training(
                f"initial-x{factor}",
                "standard",
                arch_args=plain,
                normalise="channel",
                seeds=INITIAL_SEEDS,
                epochs=0,
                **placed,
            )
        )
        if number < TRAINED:
            circular = {"width": 16, "padding_mode": "circular"}
            trained.append(scene.training(f"trained-x{factor}", "standard", arch_args=circular, **placed))
    return initial, trained


def _everything() -> list[str]:
    return ["none", *(name for method in METHODS for name in sweep_of(method))]


def _relations(results: Results) -> list[Claim]:
    columns: list[list[float]] = [[], [], []]
    for name in _everything():
        for column, values in zip(
            columns, (norms(results, name), norms(results, name, "2"), changed(results, name)), strict=True
        ):
            column += [float(np.nanmean(entry)) for entry in values]
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
        names = ["none", *sweep_of(first), *sweep_of(second)]
        rows.append(
            Claim(
                text,
                "Fig. 2a",
                "almost superimposed" if first == "q1" and second == "q2" else "excellent match (Prop. 3)",
                "mean |log ratio| of E||grad L||_1 at equal sizes over the log range from no to strongest penalty",
                estimate(overlay_distance, paired(*(norms(results, name) for name in names))),
                below(0.25),
            )
        )
    return rows


def _cross(results: Results) -> Claim:
    references = ["none", *sweep_of("q1"), *sweep_of("q2")]
    strongest = sweep_of("cross")[-1]
    return Claim(
        "cross-Lipschitz worse at high penalty",
        "Fig. 2f",
        "gradient penalties have much better trade-offs",
        "accuracy at the largest lambda less that of the q = 1, 2 penalties at the same vulnerability (interpolated)",
        estimate(
            trade_off,
            paired(
                grid(results, "correct", strongest),
                changed(results, strongest),
                *(grid(results, "correct", name) for name in references),
                *(changed(results, name) for name in references),
            ),
        ),
        below(0),
    )


def _larger(results: Results) -> list[Claim]:
    factors = FACTORS[results.scene.kind]
    initial = [norms(results, f"initial-x{factor}") for factor in factors]
    trained = [norms(results, f"trained-x{factor}") for factor in factors[:TRAINED]]
    fooled = [results.arrays("gradients", "changed", f"trained-x{factor}") for factor in factors[:TRAINED]]
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
            estimate(lambda a, b: float(b.mean() - a.mean()), paired(fooled[0], fooled[-1])),
            above(0),
        ),
    ]


def _pooling(results: Results) -> list[Claim]:
    fooled = {pool: changed(results, f"pool-{pool}") for pool in POOLS}
    lengths = {pool: norms(results, f"pool-{pool}") for pool in POOLS}
    rows = []
    for other in ("strided", "max"):
        gradient = over_seeds(
            [float(b.mean() / a.mean()) for a, b in zip(lengths["avg"], lengths[other], strict=True)]
        )
        rows.append(
            Claim(
                f"average pooling more robust than {other}",
                "Fig. 4, Theorem 7",
                "more robust; strided and max are not",
                f"share of answers changed with average pools less that with {other}",
                estimate(lambda a, b: float(a.mean() - b.mean()), paired(fooled["avg"], fooled[other])),
                below(0),
                f"E||grad L||_1 of {other} over that of average pools: {gradient.value:.3g}.",
            )
        )
    return rows


PAPER = Paper(
    name="simongabriel2019",
    title="Adversarial Vulnerability of Neural Networks Increases with Input Dimension",
    plan=plan,
    claims=claims,
    panels=panels,
    adjust=adjust,
)
