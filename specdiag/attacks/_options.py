"""Options that several attacks share, so that the same name means the same everywhere."""

from __future__ import annotations

from typing import Any

from specdiag import plugins
from specdiag.schema import option


def known() -> str:
    """All attacks by name, for the description of an analyzer's option."""
    names = [name for name in plugins.names("attack") if name != "foolbox"]
    return ", ".join([*names, "foolbox:NAME"])


def eps() -> Any:
    """Radius of the ball."""
    return option(
        None,
        "Radius in the units of the data; left out: the training eps of the checkpoint, else 0.05 mean "
        "||x||_2 (l2) or 0.005 (linf); auto: the smallest that fools 99 %.",
        min=0,
    )


def steps(default: int) -> Any:
    """Number of iterations."""
    return option(default, "Attack iterations; default 10, for wrm 15, for deepfool 50.", min=1)


def alpha() -> Any:
    """Step length."""
    return option(None, "Step length; default 2 eps / steps; inf puts all weight on the gradient.", above=0)


def loss() -> Any:
    """Loss to climb."""
    return option("cross-entropy", "Loss to climb: cross-entropy, sum-of-squares, margin, temperature=BETA.")


def target() -> Any:
    """Class to reach."""
    return option(
        None, "Class to reach, or random, or least-likely; left out: any other than the label.", min=0
    )


def label() -> Any:
    """Which label counts."""
    return option("true", "Label to leave: the data set's, or the network's own answer.")


def start() -> Any:
    """First point."""
    return option("random", "First point: uniform in the ball, or the clean point.")


def clip() -> Any:
    """Range of the data."""
    return option(False, "Keep perturbed inputs in the range of the data.")
