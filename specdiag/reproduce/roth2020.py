"""roth2020: adversarial training damps the spectrum, data-dependent spectral norm regularisation does the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specdiag.reproduce._judge import Claim, above, below, between, estimate, relative_change
from specdiag.reproduce._panels import overlay
from specdiag.reproduce._plan import Analysis, Choice, Panel, Paper, Plan, Scene
from specdiag.reproduce._results import Values, paired

if TYPE_CHECKING:
    from specdiag.reproduce._results import Results

# smallest round eps at which ten steps fool 99 % of the training samples of a standard network (5.1); on
# CIFAR-10 the paper's 1.75 in units of an image's standard deviation, 0.25 on average
L2 = {"digits": 1.0, "grey": 1.5, "colour": 0.44}
LINF = {"digits": 0.15, "grey": 0.1, "colour": 8 / 255}
# sqrt(D): the l2 length of a perturbation that moves every value by 1
ROOT = {"digits": 8.0, "grey": 28.0, "colour": 3072**0.5}
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
METHODS = ("standard", "adversarial", "dd-snr", "global-snr")
LINF_METHODS = ("standard", "adversarial-linf", "dd-snr", "global-snr")


def plan(scene: Scene, folder: Path) -> Plan:
    """Standard, adversarial (l2 and linf), dd-snr, global-snr; constants as A.4 chooses them."""
    eps, linf = L2[scene.kind], LINF[scene.kind]
    dd = Choice("lam", (0.1, 0.3, 1.0), "match-clean", "adversarial")
    snr = Choice("lam", (3e-4, 1e-2, 1e-1), "match-clean", "adversarial")
    if scene.kind == "colour":
        # from the paper's own constant on; more values would cost hours here
        dd = Choice("lam", (2e-2, 2e-1), "match-clean", "adversarial")
    sweep = tuple(round(eps * share, 6) for share in SHARES)
    linf_sweep = tuple(round(linf * share, 6) for share in SHARES)
    linf_lengths = tuple(round(linf * ROOT[scene.kind] * share, 6) for share in SHARES)
    attack = {"eps": eps, "steps": 10, "alpha": eps / 5}
    trainings = (
        scene.training("standard", "standard", attack_eps=eps),
        scene.training("adversarial", "adversarial", {"norm": "l2", "eps": eps, "steps": scene.steps}),
        scene.training(
            "adversarial-linf", "adversarial", {"norm": "linf", "eps": linf, "steps": scene.steps}
        ),
        scene.training("dd-snr", "dd-snr", {"eps": eps, "iterations": scene.iterations}, choice=dd),
        scene.training("global-snr", "global-snr", {"iterations": 1}, choice=snr, attack_eps=eps),
    )
    everything = (*METHODS, "adversarial-linf")
    analyses = (
        Analysis("spectrum", {}, everything),
        Analysis("alignment", {"attack": "pgd-l2", **attack, "eps_sweep": sweep}, METHODS),
        Analysis(
            "alignment",
            {"attack": "pgd-linf", "eps": linf, "steps": 10, "alpha": linf / 5, "eps_sweep": linf_sweep},
            LINF_METHODS,
            variant="linf",
        ),
        Analysis("linearity", {"attack": "pgd-l2", **attack, "distances": sweep}, METHODS),
        Analysis(
            "linearity",
            {"attack": "pgd-linf", "eps": linf, "steps": 10, "alpha": linf / 5, "distances": linf_lengths},
            LINF_METHODS,
            variant="linf",
        ),
        Analysis(
            "robustness",
            {"attack": "pgd-l2", "steps": 10, "eps_sweep": sweep, "controls": False},
            METHODS,
            samples=scene.many,
        ),
        Analysis(
            "robustness",
            {"attack": "pgd-linf", "steps": 10, "eps_sweep": linf_sweep, "controls": False},
            LINF_METHODS,
            variant="linf",
            samples=scene.many,
        ),
    )
    remarks = (
        f"l2 eps {eps:g}, linf eps {linf:g}; alignment and linearity are unclipped, accuracies clipped to [0, 1].",
    )
    return Plan(trainings, analyses, remarks)


def claims(results: Results) -> Sequence[Claim]:
    """The rows on spectrum, alignment, linearity and accuracy, in l2 and in linf."""
    return (
        *_spectrum(results),
        *_alignment(results, "", "adversarial", "l2"),
        *_linearity(results, "", "adversarial"),
        *_accuracy(results, "", "adversarial", "l2"),
        *_linf(results),
    )


def panels(results: Results) -> Sequence[Panel]:
    """Fig. 1 to 5 as the analyzers draw them, first seed."""
    return (
        Panel("fig1-left-spectrum.png", overlay("spectrum", METHODS)),
        Panel("fig1-right-fig3-right-alignment.png", overlay("alignment", METHODS)),
        Panel("fig2-linearity.png", overlay("linearity", METHODS)),
        Panel("fig3-left-accuracy.png", overlay("robustness", METHODS)),
        Panel("fig4-linearity-linf.png", overlay("linearity", LINF_METHODS, "linf")),
        Panel("fig5-left-accuracy-linf.png", overlay("robustness", LINF_METHODS, "linf")),
        Panel("fig5-right-alignment-linf.png", overlay("alignment", LINF_METHODS, "linf")),
    )


def nuclear_change(old: Values, new: Values) -> float:
    """Relative change of the mean sum of singular values; old, new: (N, R)."""
    return relative_change(old.sum(1), new.sum(1))


def damping_share(standard: Values, adversarial: Values, other: Values) -> float:
    """How much of adversarial training's log damping of the sum of singular values another method has."""
    sums = [np.log(values.sum(1).mean()) for values in (standard, adversarial, other)]
    return float((sums[2] - sums[0]) / (sums[1] - sums[0]))


def fall_with_rank(cosine: Values) -> float:
    """Mean |cos| with v_1 less that with the lower half of the ranks; cosine: (N, R)."""
    return float(cosine[:, 0].mean() - cosine[:, cosine.shape[1] // 2 :].mean())


def relative_fall(control: Values, cosine: Values) -> float:
    """The control's fall with rank over the trained network's."""
    return fall_with_rank(control) / fall_with_rank(cosine)


def smallest_fall(*cosines: Values) -> float:
    """Mean |cos| at the smallest eps less that at the largest, of the method where it falls least; each (N, E)."""
    return min(float(cosine[:, 0].mean() - cosine[:, -1].mean()) for cosine in cosines)


def lead(own: Values, *others: Values) -> float:
    """Mean less the highest mean of the others."""
    return float(own.mean() - max(other.mean() for other in others))


def share_of_gain(standard: Values, adversarial: Values, other: Values) -> float:
    """How much of the accuracy that adversarial training adds, mean over eps, another method adds; fooled (N, E)."""
    return float((other.mean() - standard.mean()) / (adversarial.mean() - standard.mean()))


def later_rise(near: Values, far: Values) -> float:
    """(far - near) / near of the means: 1 for a straight line through the origin, where far is twice as far."""
    return float((far.mean() - near.mean()) / near.mean())


def _mean(by_seed: Sequence[Values]) -> float:
    return float(np.mean([values.mean() for values in by_seed]))


def _spectrum(results: Results) -> list[Claim]:
    values = {name: results.arrays("spectrum", "singular_values", name) for name in METHODS}
    what = "relative change of the mean sum of singular values against standard training"
    rows = []
    for name, found in (("adversarial", "significantly damped"), ("dd-snr", "damped slightly more")):
        change = estimate(nuclear_change, paired(values["standard"], values[name]))
        top = estimate(
            relative_change, paired([v[:, 0] for v in values["standard"]], [v[:, 0] for v in values[name]])
        )
        note = f"Of sigma_max alone: {top.value:.3g} ({top.low:.3g} to {top.high:.3g})."
        rows.append(Claim(f"spectrum damped by {name}", "Fig. 1 left", found, what, change, below(0), note))
    share = estimate(damping_share, paired(values["standard"], values["adversarial"], values["global-snr"]))
    rows.append(
        Claim(
            "spectrum not damped by global-snr",
            "Fig. 1 left",
            "almost no effect",
            "log change of the mean sum of singular values by global-snr over that by adversarial training",
            share,
            below(0.5),
            "The threshold is half of adversarial training's damping.",
        )
    )
    return rows


def _alignment(results: Results, variant: str, adversarial: str, norm: str) -> list[Claim]:
    figure = "Fig. 1 right" if norm == "l2" else "Fig. 5 right, A.6"
    names = ("standard", adversarial, "dd-snr", "global-snr")
    cosine = results.arrays("alignment", "cosine", "standard", variant)
    control = results.arrays("alignment", "random_network_cosine", "standard", variant)
    swept = {name: results.arrays("alignment", "eps_cosine", name, variant) for name in names}
    falls = estimate(fall_with_rank, paired(cosine))
    flat = estimate(relative_fall, paired(control, cosine))
    eps = estimate(smallest_fall, paired(*swept.values()))
    ahead = [
        Claim(
            f"{norm}: alignment with v_1 higher for {name}",
            "Fig. 3 right" if norm == "l2" else "Fig. 5 right",
            "larger than for standard and global-snr",
            f"mean over eps of |cos|: that of {name} less the higher of standard and global-snr",
            estimate(lead, paired(swept[name], swept["standard"], swept["global-snr"])),
            above(0),
        )
        for name in (adversarial, "dd-snr")
    ]
    return [
        Claim(
            f"{norm} perturbations align with dominant vectors, less with rank",
            figure,
            "strongly aligned, falling",
            "mean |cos| with v_1 less mean |cos| with the lower half of the ranks, standard network",
            falls,
            above(0),
        ),
        Claim(
            f"{norm}: alignment flat in a random network's vectors",
            figure,
            "flat",
            "the same difference in a random network's vectors over that in the network's own",
            flat,
            between(-0.25, 0.25),
        ),
        Claim(
            f"{norm}: alignment with v_1 falls with eps",
            "Fig. 3 right" if norm == "l2" else "Fig. 5 right",
            "for all training methods",
            "mean |cos| at the smallest eps less at the largest, of the method where it falls least",
            eps,
            above(0),
        ),
        *ahead,
    ]


def _linearity(results: Results, variant: str, adversarial: str) -> list[Claim]:
    kind, direction = results.scene.kind, "adversarial"
    eps = L2[kind] if variant == "" else LINF[kind] * ROOT[kind]
    figures = ("Fig. 2 left", "Fig. 2 right") if variant == "" else ("Fig. 4 left", "Fig. 4 right")
    rows = []
    for name in (adversarial, "dd-snr"):
        at = {
            method: results.arrays(
                "linearity", "deviation", method, variant, direction=direction, distance=eps
            )
            for method in ("standard", name)
        }
        lower = estimate(relative_change, paired(at["standard"], at[name]))
        rows.append(
            Claim(
                f"{name}: features closer to linear at the training eps",
                figures[0],
                "considerably more linear",
                "relative change of the mean deviation from linearity at ||z|| = eps, adversarial direction",
                lower,
                below(0),
            )
        )
    near = results.arrays("linearity", "deviation", adversarial, variant, direction=direction, distance=eps)
    plain = [
        results.arrays("linearity", "deviation", "standard", variant, direction=direction, distance=at)
        for at in (eps, 2 * eps)
    ]
    half = results.arrays(
        "linearity", "deviation", adversarial, variant, direction=direction, distance=eps / 2
    )
    far = results.arrays(
        "linearity", "deviation", adversarial, variant, direction=direction, distance=2 * eps
    )
    rows.append(
        Claim(
            "deviation flat up to the training eps, then rising",
            figures[0],
            "flat up to the order of eps, then roughly linear",
            "rise of the mean deviation from eps to 2 eps over its value at eps, adversarially trained network: how much "
            "steeper it is beyond eps than before (flat: at least twice)",
            estimate(later_rise, paired(near, far)),
            above(2),
            f"Deviation at eps / 2 {_mean(half):.3g}, at eps {_mean(near):.3g}, at 2 eps {_mean(far):.3g}; the same "
            f"ratio for the standard network: {_mean(plain[1]) / _mean(plain[0]) - 1:.3g}.",
        )
    )
    for name in (adversarial, "dd-snr"):
        low = {}
        for method in ("standard", name):
            values = results.arrays("linearity", "sigma_max", method, variant, direction=direction)
            distances = results.dataset("linearity", method, 0, variant)["distance"].values
            low[method] = [entry[:, distances <= eps * 1.001].mean(1) for entry in values]
        rows.append(
            Claim(
                f"{name}: sigma_max kept low near x",
                figures[1],
                "small within eps",
                "relative change of the mean sigma_max of J(x + z) over distances up to eps, adversarial direction",
                estimate(relative_change, paired(low["standard"], low[name])),
                below(0),
            )
        )
    return rows


def _accuracy(results: Results, variant: str, adversarial: str, norm: str) -> list[Claim]:
    names = ("standard", adversarial, "dd-snr", "global-snr")
    kept = {
        name: [
            1.0 - fooled
            for fooled in results.arrays("robustness", "fooled", name, variant, attack=f"pgd-{norm}")
        ]
        for name in names
    }
    figure = "Fig. 3 left" if norm == "l2" else "Fig. 5 left"
    what = "accuracy under attack, mean over eps: what {} adds to standard training over what {} adds"
    return [
        Claim(
            f"{norm}: dd-snr accuracy under attack near that of {adversarial}",
            figure,
            "comparable",
            what.format("dd-snr", adversarial),
            estimate(share_of_gain, paired(kept["standard"], kept[adversarial], kept["dd-snr"])),
            above(0.5),
        ),
        Claim(
            f"{norm}: global-snr does not robustify",
            figure,
            "no effect",
            what.format("global-snr", adversarial),
            estimate(share_of_gain, paired(kept["standard"], kept[adversarial], kept["global-snr"])),
            below(0.5),
        ),
    ]


def _linf(results: Results) -> list[Claim]:
    values = {name: results.arrays("spectrum", "singular_values", name) for name in LINF_METHODS}
    return [
        Claim(
            "linf: spectrum damped by adversarial-linf",
            "A.6",
            "the same conclusions",
            "relative change of the mean sum of singular values against standard training",
            estimate(nuclear_change, paired(values["standard"], values["adversarial-linf"])),
            below(0),
        ),
        *_alignment(results, "linf", "adversarial-linf", "linf"),
        *_linf_linearity(results),
        *_accuracy(results, "linf", "adversarial-linf", "linf"),
    ]


def _linf_linearity(results: Results) -> list[Claim]:
    import dataclasses

    return [
        dataclasses.replace(row, claim=f"linf: {row.claim}")
        for row in _linearity(results, "linf", "adversarial-linf")
    ]


PAPER = Paper(
    name="roth2020",
    title="Adversarial Training Generalizes Data-dependent Spectral Norm Regularization",
    plan=plan,
    claims=claims,
    panels=panels,
)
