"""roth2018: perturbations are short-range correlated, and regularisation by a structured covariance uses that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag import plugins
from specdiag.reproduce._judge import (
    Claim,
    Estimate,
    above,
    below,
    between,
    estimate,
    over_seeds,
    relative_change,
)
from specdiag.reproduce._panels import overlay
from specdiag.reproduce._plan import Analysis, Choice, Panel, Paper, Plan, Scene
from specdiag.reproduce._results import Values, paired
from specdiag.store import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdiag.reproduce._results import Results

LINF = {"digits": 0.1, "grey": 0.1, "colour": 8 / 255}
# lengths of the correlated noise; its decay length, and one so short that all values are independent
NOISE = {"digits": (1.0, 2.0, 3.0, 4.0), "grey": (4.0, 6.0, 8.0, 10.0), "colour": (3.0, 6.0, 9.0, 12.0)}
DECAY, SHORT = 3.0, 0.1
GRID = (0.1, 1.0, 10.0)
TABLE = ("clean", "pgd", "fgsm", "gn", "sgr")


def plan(scene: Scene, folder: Path) -> Plan:
    """Clean, attack, gradient-norm and structured gradient training; SGR for correlated noise; noise itself."""
    eps = LINF[scene.kind]
    noise = NOISE[scene.kind]
    chosen = Choice("lam", GRID, "match-clean", "clean")
    pgd = {"norm": "linf", "eps": eps, "steps": scene.steps, "objective": "mix"}
    source = {"eps": eps, "steps": scene.steps}
    augmented = {"eps": noise[1], "decay_length": DECAY}

    def training(name: str, method: str, options: dict[str, Any] | None = None, **other: Any) -> Any:
        return scene.training(name, method, options, start="clean", attack_eps=eps, **other)

    trainings = (
        training("clean", "standard"),
        training("pgd", "adversarial", pgd),
        training("fgsm", "fgsm", {"eps": eps, "objective": "mix"}),
        training("gn", "gradient-norm", choice=chosen),
        training("sgr", "sgr", {"source": "pgd", **source}, choice=chosen),
        training("sgr-lrc", "sgr", {"source": "lrc", "decay_length": DECAY}, choice=chosen),
        training("sgr-lrc-short", "sgr", {"source": "lrc", "decay_length": SHORT}, choice=chosen),
        training("lrc", "lrc-augmented", augmented),
    )
    attack = {"attack": "pgd-linf", "eps": eps, "steps": 10, "alpha": eps / 5}
    lrc = {"attack": "lrc", "eps_sweep": noise, "tries": 10, "controls": False}
    analyses = (
        Analysis("covariance", attack, ("clean",), samples=scene.many),
        Analysis(
            "robustness",
            {**lrc, "decay_length": DECAY},
            ("clean", "gn", "sgr-lrc", "lrc"),
            variant="lrc",
            samples=scene.many,
        ),
        Analysis(
            "robustness",
            {**lrc, "decay_length": SHORT},
            ("clean", "gn", "sgr-lrc-short"),
            variant="lrc-short",
            samples=scene.many,
        ),
        Analysis("transfer", attack, TABLE, samples=scene.many, together=True),
        Analysis("trajectory", attack, ("clean", "gn", "sgr"), samples=scene.samples),
    )
    remarks = (
        f"linf eps {eps:g}; correlated noise of l2 length {', '.join(f'{size:g}' for size in noise)}, the worst of 10 "
        f"draws, decay length {DECAY:g} pixels (and {SHORT:g}). Sigma of sgr: of PGD perturbations; of sgr-lrc: of the "
        "noise, both scaled to the data's mean variance.",
    )
    return Plan(trainings, analyses, remarks)


def claims(results: Results) -> Sequence[Claim]:
    """The rows on decay length, noise, transfer and trajectories."""
    return (_decay(results), *_noise(results), *_transfer(results), _smoother(results))


def panels(results: Results) -> Sequence[Panel]:
    """Fig. 2, 3 (accuracy), Table 1 and Fig. 6 as the analyzers draw them."""
    noisy = {"clean": "clean", "GN": "gn", "SGR": "sgr-lrc", "LRC noise": "lrc"}
    return (
        Panel("fig2-covariance.png", overlay("covariance", ("clean",))),
        Panel("fig3-lrc-accuracy.png", overlay("robustness", noisy, "lrc")),
        Panel("table1-transfer.png", _draw_transfer),
        Panel("fig6-trajectories.png", overlay("trajectory", ("clean", "gn", "sgr"))),
    )


def advantage(own: Values, other: Values) -> float:
    """Accuracy of the first less that of the second, mean over sizes; fooled (N, E)."""
    return float(other.mean() - own.mean())


def transfer_gap(correct: Values) -> float:
    """Accuracy on others' examples less white-box accuracy, of the checkpoint where it is smallest.

    correct: (N, checkpoint, source).
    """
    accuracy = correct.mean(axis=0)
    own = np.diag(accuracy)
    others = (accuracy.sum(axis=1) - own) / (len(own) - 1)
    return float((others - own).min())


def _decay(results: Results) -> Claim:
    ratios, errors, lengths = [], [], []
    for seed in results.seeds("clean"):
        metrics = provenance(results.dataset("covariance", "clean", seed))["metrics"]
        ratios.append(float(metrics["decay_ratio"]["value"]))
        errors.append(float(metrics["decay_ratio"]["error"]))
        lengths.append([float(metrics[name]["value"]) for name in ("decay_length", "data_decay_length")])
    found = over_seeds(ratios)
    half = math.hypot(found.high - found.value, 1.96 * float(np.nanmean(errors)))
    own, data = np.mean(lengths, axis=0)
    return Claim(
        "decay length of perturbations far below the data's",
        "Fig. 2, 4.2",
        "correlations decay much faster",
        "decay length (to 1/e) of PGD perturbations' covariance function over that of the data; interval from a "
        "jackknife over samples",
        Estimate(found.value, found.value - half, found.value + half, found.seeds, results.scene.many),
        below(0.5),
        f"Perturbations {own:.3g} pixels, data {data:.3g} pixels.",
    )


def _noise(results: Results) -> list[Claim]:
    long = [results.arrays("robustness", "fooled", name, "lrc", attack="lrc") for name in ("sgr-lrc", "gn")]
    short = [
        results.arrays("robustness", "fooled", name, "lrc-short", attack="lrc")
        for name in ("sgr-lrc-short", "gn")
    ]
    what = "accuracy under the worst of 10 draws, mean over sizes: SGR less GN"
    return [
        Claim(
            "SGR above GN on long-range correlated noise",
            "Fig. 3, 4",
            "clearly and consistently",
            f"{what}, decay length {DECAY:g}, Sigma that of the noise",
            estimate(advantage, paired(*long)),
            above(0),
        ),
        Claim(
            "SGR equal to GN as the decay length goes to 0",
            "4.3",
            "approaches GN performance",
            f"{what}, decay length {SHORT:g}",
            estimate(advantage, paired(*short)),
            between(-0.05, 0.05),
        ),
    ]


def _transfer(results: Results) -> list[Claim]:
    correct = [_table(results, seed) for seed in results.seeds("clean")]
    table = np.mean([values.mean(axis=0) for values in correct], axis=0)
    listed = ", ".join(
        f"{name} {row[place]:.0%} / {(row.sum() - row[place]) / (len(row) - 1):.0%}"
        for place, (name, row) in enumerate(zip(TABLE, table, strict=True))
    )
    gained = {place: [values[:, place, place] for values in correct] for place in (0, 3, 4)}
    return [
        Claim(
            "transfer accuracy above white-box accuracy",
            "Tables 1, 3, 4",
            "every model, off the diagonal",
            "accuracy on the other models' PGD examples less that on its own, of the model where it is smallest",
            estimate(transfer_gap, [(values,) for values in correct]),
            above(0),
            f"White-box / transfer: {listed}.",
        ),
        Claim(
            "SGR raises white-box accuracy",
            "Table 1",
            "remarkable accuracies on MNIST",
            "white-box accuracy of SGR less that of the clean model",
            estimate(lambda a, b: float(b.mean() - a.mean()), paired(gained[0], gained[4])),
            above(0),
        ),
        Claim(
            "SGR and GN differ little in white-box accuracy",
            "Table 1, 4.4",
            "less significant than on correlated noise",
            "white-box accuracy of SGR less that of GN",
            estimate(lambda a, b: float(b.mean() - a.mean()), paired(gained[3], gained[4])),
            between(-0.1, 0.1),
        ),
    ]


def _smoother(results: Results) -> Claim:
    slope = {name: results.arrays("trajectory", "max_slope", name) for name in ("clean", "sgr")}
    ratio = {
        name: float(np.nanmedian(np.concatenate(results.arrays("trajectory", "sharpness", name))))
        for name in ("clean", "sgr")
    }
    return Claim(
        "SGR trajectories smoother",
        "Fig. 6",
        "softmax changes gradually",
        "relative change of the mean largest slope of the softmax along the line from clean to adversarial, SGR "
        "against clean training",
        estimate(relative_change, paired(slope["clean"], slope["sgr"])),
        below(0),
        f"Largest over mean slope (median): clean {ratio['clean']:.3g}, SGR {ratio['sgr']:.3g}.",
    )


def _table(results: Results, seed: int) -> Values:
    data = results.dataset("transfer", "transfer", seed)
    found: Values = data["correct"].transpose("sample", "checkpoint", "source").values.astype(float)
    return found


def _draw_transfer(results: Results, figure: Figure) -> None:
    data = results.dataset("transfer", "transfer", results.scene.seeds[0])
    plugins.load("analyzer", "transfer").plot({"transfer": data}, figure)


PAPER = Paper(
    name="roth2018",
    title="Adversarially Robust Training through Structured Gradient Regularization",
    plan=plan,
    claims=claims,
    panels=panels,
)
