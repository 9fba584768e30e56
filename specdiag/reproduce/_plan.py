"""What a paper's file declares: trainings, analyses, panels and claims. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdiag.reproduce._judge import Claim
    from specdiag.reproduce._results import Results

# below this many samples a run is a trial, and its final accuracies are taken over no more
FEW = 300


@dataclass(frozen=True, slots=True)
class Scene:
    """The data, the network and the budget that a paper's claims are tested with.

    data: spec as `--data` takes it; kind: digits, grey (28x28, as Fashion-MNIST) or colour (32x32, as CIFAR-10);
    seeds: of trainings, each with its own weights, order and held-out samples; epochs: of trainings from scratch;
    later_epochs: of trainings that start from the standard network, where `start_from_standard`; train_samples: of those
    (and of all where nothing starts from standard), None for all; steps, iterations: of attacks and power methods while
    training; samples: test samples of spectra and the like; many: test samples of accuracies.
    """

    data: str
    kind: Literal["digits", "grey", "colour"]
    seeds: tuple[int, ...]
    epochs: int
    samples: int
    many: int
    arch: str
    arch_args: Mapping[str, Any]
    steps: int = 10
    iterations: int = 10
    later_epochs: int | None = None
    train_samples: int | None = None
    threads: int = 1
    device: str = "cpu"

    @property
    def named(self) -> str:
        """The data in a word: the stem of a file, or what stands before the place."""
        return Path(self.data).stem if self.data.endswith(".npz") else self.data.partition(":")[0]

    def choose(self, digits: Any, grey: Any, colour: Any) -> Any:
        """The value for the scene's kind of data."""
        return {"digits": digits, "grey": grey, "colour": colour}[self.kind]

    def training(
        self,
        name: str,
        method: str,
        options: Mapping[str, Any] | None = None,
        *,
        choice: Choice | None = None,
        start: str | None = "standard",
        **other: Any,
    ) -> Training:
        """A training by the scene's budget; other: further settings of the loop, or `arch`, `arch_args`, `normalise`.

        start: the training to start from where the budget says that later ones do; None: always from scratch.
        """
        places = ("arch", "arch_args", "normalise", "data", "seeds")
        placed = {key: other.pop(key) for key in places if key in other}
        later = self.later_epochs is not None and start is not None and start != name
        settings: dict[str, Any] = {
            "epochs": self.later_epochs if later else self.epochs,
            "attack_steps": self.steps,
            "threads": self.threads,
            "device": self.device,
            "test_samples": max(self.many, 2000) if self.many >= FEW else self.many,
            "curve_samples": 200 if choice is not None and choice.rule == "best-attacked" else 0,
        }
        if later or self.later_epochs is None:
            settings["train_samples"] = self.train_samples
        arch = placed.pop("arch", self.arch)
        arch_args = placed.pop("arch_args", self.arch_args if arch == self.arch else {})
        return Training(
            name,
            method,
            dict(options or {}),
            {**settings, **other},
            arch,
            arch_args,
            choice=choice,
            start=start if later else None,
            **placed,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """A constant that is chosen on held-out training samples, never on test samples.

    The networks of the first seed are trained for every value of `grid`, which goes from weak to strong regularisation.
    `match-clean`: the strongest value whose held-out clean accuracy is at least that of `reference` less one standard
    error of it (roth2020 A.4: constants that cost as much clean accuracy as adversarial training does); the weakest
    where none is. `best-attacked`: the strongest value whose held-out accuracy under attack is within one standard
    error of the highest one (farnia2019, section 5, takes the best of 500 samples; here are fewer, and differences below
    that error are noise). `same`: the value that was chosen for `reference`; nothing is searched.
    """

    option: str
    grid: tuple[float, ...]
    rule: Literal["match-clean", "best-attacked", "same"]
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Training:
    """One method, trained once per seed; `name` is the stem of its files."""

    name: str
    method: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    arch: str
    arch_args: Mapping[str, Any]
    normalise: Literal["channel", "per-image", "none"] | None = None
    choice: Choice | None = None
    start: str | None = None
    data: str | None = None
    seeds: tuple[int, ...] | None = None

    def file(self, seed: int, value: float | None = None) -> str:
        """Stem of the checkpoint of a seed; value: of the constant, while it is being chosen."""
        middle = "" if value is None else f"-{value:g}"
        return f"{self.name}{middle}-s{seed}"


@dataclass(frozen=True, slots=True)
class Analysis:
    """One analyzer over trainings; variant: a folder of its own for another set of options.

    samples None takes `Scene.samples`; data None takes the training's; together: all checkpoints of a seed in one run
    (analyzers of kind `cross`).
    """

    analyzer: str
    options: Mapping[str, Any]
    of: tuple[str, ...]
    variant: str = ""
    samples: int | None = None
    split: str = "test"
    data: str | None = None
    together: bool = False
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure: `draw` fills it from the results."""

    file: str
    draw: Callable[[Results, Figure], None]
    width: float = 6.4
    height: float = 4.2


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is trained and analysed, in order; remarks stand in the footer of the claims."""

    trainings: tuple[Training, ...]
    analyses: tuple[Analysis, ...]
    remarks: tuple[str, ...] = ()

    def training(self, name: str) -> Training:
        """The training of that name."""
        return next(entry for entry in self.trainings if entry.name == name)


@dataclass(frozen=True, slots=True)
class Paper:
    """One paper: what a file of this folder exports as PAPER.

    plan: from a scene and a folder for prepared data to everything that is run; claims: from the results to the rows of
    the table; panels: the figures.
    """

    name: str
    title: str
    plan: Callable[[Scene, Path], Plan]
    claims: Callable[[Results], Sequence[Claim]]
    panels: Callable[[Results], Sequence[Panel]]
    adjust: Callable[[Scene], Scene] = field(default=lambda scene: scene)


def scene_of(
    data: str,
    kind: Literal["digits", "grey", "colour"],
    *,
    seeds: int | None = None,
    epochs: int | None = None,
    samples: int | None = None,
    train_samples: int | None = None,
    device: str = "cpu",
) -> Scene:
    """The scene of a kind of data by its budget, with what the user asks for instead.

    digits: 10 epochs, three seeds. grey: 5 epochs on 6,000 samples, one seed. colour: a `cnn7` of width 16, standard for
    20 epochs on all samples; the others start from it, 5 epochs on 20,000 samples, 5 attack steps, 2 power iterations.
    """
    three, one = (0, 1, 2), (0,)
    width = {"width": 16}
    made = {
        "digits": Scene(data, "digits", three, 10, 200, 397, "cnn4", width),
        "grey": Scene(data, "grey", one, 5, 200, 1000, "cnn4", width, 5, 5, None, 6000),
        "colour": Scene(data, "colour", one, 20, 200, 1000, "cnn7", width, 5, 2, 5, 20_000, 2),
    }[kind]
    asked: dict[str, Any] = {"device": device}
    if seeds is not None:
        asked["seeds"] = tuple(range(seeds))
    if epochs is not None:
        asked |= {"epochs": epochs}
        if made.later_epochs is not None:
            asked["later_epochs"] = epochs
    if samples is not None:
        asked |= {"samples": min(samples, made.samples), "many": samples}
    if train_samples is not None:
        asked["train_samples"] = train_samples
    return dataclasses.replace(made, **asked)
