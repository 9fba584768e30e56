"""wen2020: adversarial robustness makes layers smoother, concentrates margins at zero and closes the loss gap."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.reproduce._judge import Claim, above, below, estimate, over_seeds, relative_change, slope
from specdiag.reproduce._panels import against, overlay
from specdiag.reproduce._plan import Analysis, Choice, Panel, Paper, Plan, Scene, Training
from specdiag.reproduce._results import Values, paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdiag.reproduce._results import Results

# strengths in the ratio 4 : 8 : 16 of the paper; on digits half a grey level, one and two of the 16
LINF = {"digits": (1 / 32, 1 / 16, 1 / 8), "grey": (0.025, 0.05, 0.1), "colour": (4 / 255, 8 / 255, 16 / 255)}
GRADES = (4, 8, 16)
# bounds of B.4.2, from weak to strong
BOUNDS = (5.0, 3.0, 1.0)
# without BatchNorm, SGD at the usual rate leaves most networks at a constant under the strongest attack
OPTIMISER: dict[str, Any] = {"optimiser": "adam", "lr": 3e-3}
FAMILIES = {"pgd": "adversarial", "fgsm": "fgsm", "pgd+clip": "adversarial"}


def adjust(scene: Scene) -> Scene:
    """Networks without BatchNorm (D.3), which would undo what training does to the scale of a layer."""
    return dataclasses.replace(scene, arch_args={**scene.arch_args, "norm": "none"})


def plan(scene: Scene, folder: Path) -> Plan:
    """Standard, PGD and FGSM training at three strengths; standard and PGD with clipped singular values."""
    sizes = LINF[scene.kind]
    searched = f"pgd+clip-{GRADES[-1]}"
    same = Choice("bound", BOUNDS, "same", searched)
    strong = {"norm": "linf", "eps": sizes[-1], "steps": scene.steps, "objective": "only"}

    def train(name: str, method: str, options: Any = None, choice: Choice | None = None) -> Training:
        return scene.training(name, method, options, choice=choice, attack_eps=sizes[1], **OPTIMISER)

    trainings: list[Training] = [
        train("standard", "standard"),
        train(searched, "adversarial+sv-clip", strong, choice=Choice("bound", BOUNDS, "best-attacked")),
        train("clip", "sv-clip", choice=same),
    ]
    for grade, eps in zip(GRADES, sizes, strict=True):
        pgd = {**strong, "eps": eps}
        one = {"eps": eps, "objective": "only"}
        trainings += [train(f"pgd-{grade}", "adversarial", pgd), train(f"fgsm-{grade}", "fgsm", one)]
        if grade != GRADES[-1]:
            trainings.append(train(f"pgd+clip-{grade}", "adversarial+sv-clip", pgd, choice=same))
    names = tuple(entry.name for entry in trainings)
    attack = {"attack": "pgd-linf", "eps": sizes[1], "steps": 10, "alpha": sizes[1] / 5}
    analyses = (
        Analysis("layers", {}, names),
        Analysis("margins", {**attack, "instance": False}, names, samples=scene.many, split="both"),
    )
    listed = ", ".join(f"{grade}: {eps:.4g}" for grade, eps in zip(GRADES, sizes, strict=True))
    remarks = (
        f"Training strengths by the names of the paper (linf eps): {listed}; losses under attack at {sizes[1]:.4g}.",
        "clip: singular values of every layer at most the bound after each epoch (B.4.2), which is chosen for the "
        "strongest attack. Networks without BatchNorm, trained by Adam at a rate of 0.003.",
        "The claims of D.2 on accuracy against foreign attacks are not in this table.",
    )
    return Plan(tuple(trainings), analyses, remarks)


def claims(results: Results) -> Sequence[Claim]:
    """The rows for PGD, the same for FGSM, and the error gap with clipped singular values."""
    return (*_family(results, "pgd"), *_family(results, "fgsm"), *_gaps(results))


def panels(results: Results) -> Sequence[Panel]:
    """Layer spectra and margins as the analyzers draw them, and what falls and rises with the training eps."""
    ladder = {"standard": "standard", **{f"PGD {grade}": f"pgd-{grade}" for grade in GRADES}}
    fgsm = {"standard": "standard", **{f"FGSM {grade}": f"fgsm-{grade}" for grade in GRADES}}
    return (
        Panel("fig1a-5c-layers.png", overlay("layers", ladder)),
        Panel("fig1b-4-margins.png", overlay("margins", ladder), 11, 5),
        Panel("fig10-margins-fgsm.png", overlay("margins", fgsm), 11, 5),
        Panel("fig3-6-8-trends.png", _trends, 11, 7),
    )


def sums_of_differences(low: Values, high: Values) -> tuple[float, float]:
    """(sum of the falls, sum of the rises) of a quantity per layer from the low to the high strength (B.2)."""
    change = high - low
    return float(-change[change < 0].sum()), float(change[change > 0].sum())


def gap(split: Values, values: Values) -> float:
    """Mean over test samples less mean over training samples; split: (N,) bool, True for test."""
    return float(values[split].mean() - values[~split].mean())


def gap_slope(split: Values, *columns: Values) -> float:
    """Slope of the gap against the training strength, from none to the largest, per largest strength."""
    return slope(_positions(len(columns)), [gap(split, values) for values in columns])


def test_slope(split: Values, *columns: Values) -> float:
    """Slope of the mean over test samples against the training strength, per largest strength."""
    return slope(_positions(len(columns)), [float(values[split].mean()) for values in columns])


def std_change(split: Values, low: Values, high: Values) -> float:
    """Relative change of the standard deviation over test samples."""
    return float(high[split].std() / low[split].std() - 1)


def mean_change(split: Values, low: Values, high: Values) -> float:
    """Relative change of the mean over test samples."""
    return relative_change(low[split], high[split])


def _positions(count: int) -> list[float]:
    return [0.0, *(grade / GRADES[-1] for grade in GRADES)][-count:]


def _family(results: Results, family: str) -> list[Claim]:
    weak, strong = f"{family}-{GRADES[0]}", f"{family}-{GRADES[-1]}"
    word = family.upper()
    chain = ["standard", *(f"{family}-{grade}" for grade in GRADES)]
    split = _split(results, weak)
    margin = {name: _column(results, "margin", name) for name in chain}
    distance = {name: [np.abs(values) for values in margin[name]] for name in (weak, strong)}
    loss = {name: _column(results, "loss", name) for name in chain}
    wrong = {name: _column(results, "wrong", name) for name in chain}
    variation = {
        name: [after - before for after, before in zip(_attacked(results, name), loss[name], strict=True)]
        for name in (weak, strong)
    }
    pgd = family == "pgd"
    spread = estimate(std_change, paired(split, variation[weak], variation[strong]))
    return [
        _std_claim(results, weak, strong, word),
        Claim(
            f"{word}: margins concentrate",
            "Fig. 1b, 4" if pgd else "Fig. 10",
            "distribution more concentrated",
            f"relative change of the STD of clean test margins from strength {GRADES[0]} to {GRADES[-1]}",
            estimate(std_change, paired(split, margin[weak], margin[strong])),
            below(0),
        ),
        Claim(
            f"{word}: margins concentrate at zero",
            "Fig. 1b, 4" if pgd else "Fig. 10",
            "around zero",
            f"relative change of the mean |margin| of clean test samples from strength {GRADES[0]} to {GRADES[-1]}",
            estimate(mean_change, paired(split, distance[weak], distance[strong])),
            below(0),
        ),
        Claim(
            f"{word}: loss gap falls",
            "Fig. 3" if pgd else "Fig. 9a",
            "decreases with strength",
            "slope of (mean test loss less mean training loss) against the training strength, none to largest",
            estimate(gap_slope, paired(split, *loss.values())),
            below(0),
        ),
        Claim(
            f"{word}: test error rises",
            "Fig. 3" if pgd else "Fig. 9b",
            "standard performance degrades",
            "slope of the clean test error against the training strength, none to largest",
            estimate(test_slope, paired(split, *wrong.values())),
            above(0),
        ),
        Claim(
            f"{word}: loss variation falls",
            "Fig. 8, Table 1" if pgd else "B.6",
            "average and STD decrease",
            "relative change of the mean rise of the test loss under attack, "
            f"from strength {GRADES[0]} to {GRADES[-1]}",
            estimate(mean_change, paired(split, variation[weak], variation[strong])),
            below(0),
            f"Its STD changes by {spread.value:.3g} ({spread.low:.3g} to {spread.high:.3g}).",
        ),
    ]


def _std_claim(results: Results, weak: str, strong: str, word: str) -> Claim:
    shares, falls, rises, counts = [], [], [], []
    for low, high in zip(_std(results, weak), _std(results, strong), strict=True):
        fall, rise = sums_of_differences(low, high)
        falls.append(fall)
        rises.append(rise)
        counts.append(int((high < low).sum()))
        shares.append(fall / (fall + rise))
    layers = len(_std(results, weak)[0])
    return Claim(
        f"{word}: STD of singular values falls in most layers",
        "Fig. 1a, 5c, B.2" if word == "PGD" else "Fig. 11",
        "falls sum to 4.75, rises to 0.44 (CIFAR-10)",
        f"sum over layers of the falls of the STD from strength {GRADES[0]} to {GRADES[-1]}, over the sum of falls "
        "and rises (the paper's figures give 0.92)",
        over_seeds(shares),
        above(0.5),
        f"Mean over seeds: falls {np.mean(falls):.3g}, rises {np.mean(rises):.3g}; layers that fall: "
        f"{', '.join(f'{count} of {layers}' for count in counts)}.",
    )


def _gaps(results: Results) -> list[Claim]:
    rows = []
    for family, first, rule, found in (
        ("pgd", "standard", above(0), "increases (CIFAR-10)"),
        ("pgd+clip", "clip", below(0), "changes from an increasing to a decreasing trend"),
    ):
        chain = [first, *(f"{family}-{grade}" for grade in GRADES)]
        columns = [_column(results, "wrong", name) for name in chain]
        words = "error gap rises without" if family == "pgd" else "error gap falls under"
        rows.append(
            Claim(
                f"{words} clipped singular values",
                "Fig. 6",
                found,
                "slope of (test error less training error) against the training strength, none to largest",
                estimate(gap_slope, paired(_split(results, first), *columns)),
                rule,
            )
        )
    return rows


def _trends(results: Results, figure: Figure) -> None:
    axes = figure.subplots(2, 3).flatten()
    eps = [0.0, *LINF[results.scene.kind]]
    quantities: list[tuple[str, Any]] = [
        ("test loss - training loss [nat]", lambda name: _gap_of(results, "loss", name)),
        ("test error [share]", lambda name: _test_mean(results, "wrong", name)),
        ("test error - training error [share]", lambda name: _gap_of(results, "wrong", name)),
        ("mean |margin| [logit]", lambda name: _test_mean(results, "margin", name)),
        ("rise of the loss under attack [nat]", lambda name: _rise(results, name)),
        ("mean STD over layers", lambda name: [float(v.mean()) for v in _std(results, name)]),
    ]
    families = {
        "PGD": ("standard", "pgd"),
        "FGSM": ("standard", "fgsm"),
        "PGD, clipped": ("clip", "pgd+clip"),
    }
    for ax, (label, values) in zip(axes, quantities, strict=True):
        for number, (word, (first, family)) in enumerate(families.items()):
            chain = [first, *(f"{family}-{grade}" for grade in GRADES)]
            against(ax, eps, [values(name) for name in chain], word, number)
        ax.set_xlabel("training eps (linf, input)")
        ax.set_ylabel(label)
    axes[0].legend()


def _column(results: Results, array: str, name: str) -> list[Values]:
    return results.arrays("margins", array, name, attack="clean")


def _attacked(results: Results, name: str) -> list[Values]:
    return results.arrays("margins", "loss", name, attack="pgd-linf")


def _split(results: Results, name: str) -> list[Values]:
    return [
        np.array([str(entry) == "test" for entry in results.dataset("margins", name, seed)["split"].values])
        for seed in results.seeds(name)
    ]


def _std(results: Results, name: str) -> list[Values]:
    return results.arrays("layers", "sigma_std", name)


def _gap_of(results: Results, array: str, name: str) -> list[float]:
    return [gap(s, v) for s, v in zip(_split(results, name), _column(results, array, name), strict=True)]


def _test_mean(results: Results, array: str, name: str) -> list[float]:
    found = zip(_split(results, name), _column(results, array, name), strict=True)
    return [float(np.abs(values[split]).mean()) for split, values in found]


def _rise(results: Results, name: str) -> list[float]:
    found = zip(_split(results, name), _column(results, "loss", name), _attacked(results, name), strict=True)
    return [float((after[split] - before[split]).mean()) for split, before, after in found]


PAPER = Paper(
    name="wen2020",
    title="Towards Understanding the Regularization of Adversarial Robustness on Neural Networks",
    plan=plan,
    claims=claims,
    panels=panels,
    adjust=adjust,
)
