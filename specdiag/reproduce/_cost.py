"""What a plan will cost, before anything of it runs: passes through the network, times a measured pass."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from specdiag import plugins
from specdiag.loading.architectures import build
from specdiag.loading.datasets import load_data
from specdiag.reproduce._plan import Plan, Scene, Training
from specdiag.training._network import fill_arguments

PROBE = 64
# forward and backward passes per sample of a step, beside those of an attack's or power method's iterations
STEP = {
    "standard": 1.0,
    "cross-lipschitz": 14.0,
    "dd-snr": 4.0,
    "gradient-penalty": 4.0,
    "gradient-norm": 4.0,
}
ITERATED = ("steps", "iterations")
# the same per test sample of an analysis
PASSES = {
    "spectrum": 15.0,
    "alignment": 150.0,
    "linearity": 900.0,
    "robustness": 150.0,
    "margins": 300.0,
    "gain": 80.0,
    "gradients": 120.0,
}
ANALYSIS_SECONDS = 0.5


def seconds(plan: Plan, scene: Scene, folder: Path) -> tuple[float, int, int]:
    """(seconds of what is still to be done, trainings, runs of analyzers); checkpoints in `folder` cost nothing.

    A rough figure, from a probe of a few steps on this machine.
    """
    probed: dict[tuple[str, str], tuple[float, int]] = {}
    total, trainings, runs = 0.0, 0, 0
    for training in plan.trainings:
        data = training.data or scene.data
        key = training.arch, data
        if key not in probed:
            probed[key] = _pass(training, data)
        one, count = probed[key]
        seeds = scene.seeds if training.seeds is None else training.seeds
        searched = training.choice is not None and training.choice.rule != "same"
        values: list[float | None] = list(training.choice.grid) if training.choice and searched else [None]
        names = {training.file(seeds[0], value) for value in values}
        names |= {training.file(seed, values[0]) for seed in seeds[1:]}
        open_ones = sum(not (folder / "checkpoints" / f"{name}.pt").exists() for name in names)
        taken = training.settings.get("train_samples") or count
        epochs = training.settings["epochs"]
        total += open_ones * epochs * min(taken, count) * _passes(training) * one
        trainings += len(names)
    for analysis in plan.analyses:
        places = [plan.training(name) for name in analysis.of]
        count = sum(len(scene.seeds if entry.seeds is None else entry.seeds) for entry in places)
        one = probed[places[0].arch, places[0].data or scene.data][0]
        samples = analysis.samples or scene.samples
        total += count * (ANALYSIS_SECONDS + samples * PASSES.get(analysis.analyzer, 100.0) * one)
        runs += count
    return total, trainings, runs


def _passes(training: Training) -> float:
    methods = training.method.split("+")
    total = sum(STEP.get(name, 1.5) for name in methods)
    for name in methods:
        declared: Any = plugins.load("training", name).options
        known: Mapping[str, Any] = declared.__dataclass_fields__
        for option in ITERATED:
            if option in known and name not in ("global-snr", "spectral-normalisation"):
                total += float(training.options.get(option, known[option].default))
    return total


def _pass(training: Training, data: str) -> tuple[float, int]:
    """Seconds per sample of one forward and backward pass, and the number of training samples."""
    samples = load_data(data, split="train", samples=PROBE, seed=0)
    shape = tuple(samples.x.shape[1:])
    arguments = fill_arguments(training.arch, training.arch_args, shape, samples.classes or 10)
    with torch.random.fork_rng(devices=[]):
        network = build(training.arch, arguments)
    x, y = (
        torch.from_numpy(samples.x),
        torch.from_numpy(samples.y if samples.y is not None else samples.index * 0),
    )
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        torch.autograd.backward(F.cross_entropy(network(x), y))
        times.append(time.perf_counter() - begun)
    return min(times) / len(x), samples.total
