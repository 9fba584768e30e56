"""Train, analyse, draw, judge: one paper from its plan to its table of claims."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from specdiag import plugins
from specdiag.figures import new_figure, save, style
from specdiag.jobs import Common, prepare, run_to_file
from specdiag.loading.checkpoints import read_checkpoint
from specdiag.loading.datasets import load_data
from specdiag.loading.resolve import Wanted
from specdiag.options import build_options
from specdiag.reproduce._judge import Claim
from specdiag.reproduce._plan import Analysis, Choice, Paper, Plan, Scene, Training
from specdiag.reproduce._results import Results
from specdiag.schema import build
from specdiag.training._match import held_out_accuracy
from specdiag.training._run import train
from specdiag.training._settings import Settings, TrainConfig

FEW_SAMPLES = 64

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reproduction ended with."""

    paper: Paper
    results: Results
    claims: tuple[Claim, ...]
    figures: tuple[Path, ...]
    seconds: float


def reproduce(paper: Paper, scene: Scene, out: Path, say: Say, *, overwrite: bool = False) -> Outcome:
    """Everything of one paper in `out`: checkpoints/, NAME.h5, figures; what is there already is reused.

    The same call continues an interrupted one. overwrite: replace what was made with other settings. Raises
    UsageError or ResultsError where such a thing is in the way.
    """
    begun = time.perf_counter()
    scene = paper.adjust(scene)
    out.mkdir(parents=True, exist_ok=True)
    plan = paper.plan(scene, out / "data")
    runner = _Runner(plan, scene, out, say, overwrite)
    runner.train_all()
    for analysis in plan.analyses:
        runner.analyse(analysis)
    results = Results(out, scene, plan, runner.chosen, runner.facts)
    figures = []
    for panel in paper.panels(results):
        figure = new_figure(panel.width, panel.height)
        with style():
            panel.draw(results, figure)
        save(figure, out / panel.file)
        figures.append(out / panel.file)
    claims = tuple(paper.claims(results))
    return Outcome(paper, results, claims, tuple(figures), time.perf_counter() - begun)


@dataclass(slots=True)
class _Runner:
    plan: Plan
    scene: Scene
    out: Path
    say: Say
    overwrite: bool
    chosen: dict[str, float] = dataclasses.field(default_factory=dict)
    facts: dict[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    _done: int = 0

    def train_all(self) -> None:
        for training in self.plan.trainings:
            if training.choice is not None:
                self.chosen[training.name] = self.choose(training, training.choice)
            for seed in self.seeds(training):
                self.train(training, seed, self.chosen.get(training.name))

    def seeds(self, training: Training) -> tuple[int, ...]:
        return self.scene.seeds if training.seeds is None else training.seeds

    def checkpoint(self, training: Training, seed: int, value: float | None = None) -> Path:
        return self.out / "checkpoints" / f"{training.file(seed, value)}.pt"

    def train(self, training: Training, seed: int, value: float | None = None) -> Path:
        config = self.config(training, seed, value)
        config.out.parent.mkdir(parents=True, exist_ok=True)
        begun, there = time.perf_counter(), config.out.exists()
        path = train(dataclasses.replace(config, overwrite=self.overwrite and not self._reusable(config)))
        facts = read_checkpoint(path).metadata["train"]
        self.facts[training.file(seed)] = facts
        self._done += 1
        how = "reused" if there else f"{time.perf_counter() - begun:.0f} s"
        told = f"clean {facts['clean_accuracy']:.1%}, attacked {facts['adversarial_accuracy']:.1%}"
        self.say(f"trained {path.stem}: {told} ({how})")
        return path

    def _reusable(self, config: TrainConfig) -> bool:
        """With --overwrite the finished checkpoint of the same settings is still kept: trial by training on it."""
        from specdiag.errors import UsageError

        if not config.out.exists():
            # an unfinished run of the same settings goes on
            return True
        try:
            train(config)
        except UsageError:
            return False
        return True

    def config(self, training: Training, seed: int, value: float | None) -> TrainConfig:
        options = dict(training.options)
        if training.choice is not None and value is not None:
            options[training.choice.option] = value
        start = None
        if training.start is not None:
            first = self.plan.training(training.start)
            start = self.checkpoint(first, seed, self.chosen.get(first.name))
        return TrainConfig(
            method=training.method,
            out=self.checkpoint(training, seed, value),
            data=training.data or self.scene.data,
            options=options,
            settings=build(Settings, {**training.settings, "seed": seed}),
            arch=None if start is not None else training.arch,
            arch_args={} if start is not None else training.arch_args,
            normalise=None if start is not None else training.normalise,
            init=start,
        )

    def choose(self, training: Training, choice: Choice) -> float:
        if choice.rule == "same":
            return self.chosen[choice.reference]
        seed = self.seeds(training)[0]
        scores = []
        for value in choice.grid:
            path = self.train(training, seed, value)
            config = self.config(training, seed, value)
            if choice.rule == "best-attacked":
                curves = read_checkpoint(path).metadata["train"]["curves"]
                scores.append(float(curves["validation_attacked_accuracy"][-1]))
            else:
                scores.append(held_out_accuracy(read_checkpoint(path), config))
        target = max(scores)
        if choice.rule == "match-clean":
            reference = self.plan.training(choice.reference)
            asked = self.checkpoint(reference, seed, self.chosen.get(reference.name))
            target = held_out_accuracy(read_checkpoint(asked), self.config(training, seed, choice.grid[0]))
        limit = target - standard_error(target, self.judged_on(training, seed, choice))
        fitting = [value for value, score in zip(choice.grid, scores, strict=True) if score >= limit]
        best = fitting[-1] if fitting else choice.grid[0]
        told = ", ".join(f"{value:g}: {score:.1%}" for value, score in zip(choice.grid, scores, strict=True))
        self.say(f"{training.name}: {choice.option} = {best:g} ({choice.rule}; held-out accuracies {told})")
        return best

    def judged_on(self, training: Training, seed: int, choice: Choice) -> int:
        """Held-out samples behind a score."""
        config = self.config(training, seed, choice.grid[0])
        count = held_out(config)
        return min(count, config.settings.curve_samples) if choice.rule == "best-attacked" else count

    def analyse(self, analysis: Analysis) -> None:
        analyzer = plugins.load("analyzer", analysis.analyzer)
        options = build_options(analyzer, analysis.options)
        begun, count = time.perf_counter(), 0
        samples = analysis.samples or self.scene.samples
        for name, paths, data in self._places(analysis):
            common = Common(
                wanted=Wanted(data=data if analyzer.kind != "weights" else None),
                samples=samples,
                # a trial on a few samples need not pay for a whole chunk
                batch_size=samples if samples < FEW_SAMPLES else None,
                split=analysis.split,
                device=self.scene.device,
                dtype=analysis.dtype,
                threads=self.scene.threads,
            )
            prepared = prepare(analyzer, paths[0], options, common, {}, paths[1:])
            target = self.out / analysis.variant / f"{name}.h5"
            target.parent.mkdir(parents=True, exist_ok=True)
            run_to_file(prepared.task, target, overwrite=self.overwrite)
            count += 1
        where = f" {analysis.variant}" if analysis.variant else ""
        self.say(f"analysed{where} {analysis.analyzer}: {count} runs ({time.perf_counter() - begun:.0f} s)")

    def _places(self, analysis: Analysis) -> Iterator[tuple[str, list[Path], str]]:
        trainings = [self.plan.training(name) for name in analysis.of]
        if analysis.together:
            for seed in self.seeds(trainings[0]):
                paths = [self.checkpoint(entry, seed, self.chosen.get(entry.name)) for entry in trainings]
                yield f"{analysis.analyzer}-s{seed}", paths, analysis.data or self.scene.data
            return
        for training in trainings:
            for seed in self.seeds(training):
                path = self.checkpoint(training, seed, self.chosen.get(training.name))
                yield training.file(seed), [path], analysis.data or training.data or self.scene.data


def standard_error(share: float, count: int) -> float:
    """Standard error of a share of `count` samples."""
    return math.sqrt(max(share * (1 - share), 1 / count) / count)


def held_out(config: TrainConfig) -> int:
    """How many training samples a run holds out."""
    from specdiag.training import _data

    data = _data.load(config.data, config.settings)
    return len(data.validation) or len(data.train)


def kind_of(spec: str) -> Literal["grey", "colour"]:
    """Which scene fits data that have no name: colour for three channels or 32x32 and more."""
    shape = load_data(spec, split="test", samples=2).x.shape
    return "colour" if len(shape) == 4 and (shape[1] == 3 or shape[2] >= 32) else "grey"
