"""`train(config)`: from a configuration to a checkpoint with every training fact in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from specdiag.errors import CheckpointError, UsageError
from specdiag.loading.checkpoints import read_checkpoint, save_checkpoint
from specdiag.loading.datasets import load_data
from specdiag.model import Normalisation, Scaler
from specdiag.sampling import Draws
from specdiag.training import _data, _network
from specdiag.training._attack import radius
from specdiag.training._context import Run, own_generator
from specdiag.training._evaluate import Attacker, accuracies, curves_on, final_model
from specdiag.training._loop import Report, fit
from specdiag.training._match import matched
from specdiag.training._network import Plan
from specdiag.training._recipe import Recipe, parse
from specdiag.training._settings import Settings, TrainConfig, fingerprint, settings_json

UNTRAINED = "untrained"


def train(config: TrainConfig, report: Report | None = None) -> Path:
    """Train a network and write its checkpoint; returns the path.

    report: called after every step and epoch. The same configuration again: a finished checkpoint is left as
    it is; an unfinished run goes on from its last whole epoch, on CPU to the same bytes. Raises UsageError
    where the checkpoint exists with other settings, and whatever loading and training raise.
    """
    config = matched(config, lambda trial: train(trial, report))
    recipe = parse(config.method, config.options)
    settings = recipe.adjust(config.settings)
    device = _device(settings.device)
    with own_generator(device, settings.threads):
        data = _data.load(config.data, settings)
        config = replace(config, arch_args={**config.arch_args, **recipe.arch_args()})
        plan = _network.plan(config, data)
        facts = _facts(config, recipe, replace(settings, device=device.type), plan, data)
        key = fingerprint(facts)
        if config.overwrite:
            config.state_path.unlink(missing_ok=True)
        elif _finished(config.out, key):
            return config.out
        run = _prepare(plan, settings, data, device)
        recipe.prepare(run)
        used = recipe.facts(run)
        attacker = _attacker(run, used)
        measure = curves_on(data, attacker, settings.curve_samples)
        curves = fit(run, recipe, data, measure, state_path=config.state_path, key=key, report=report)
        test = load_data(config.data, split="test", samples=settings.test_samples, seed=settings.seed)
        clean, attacked = accuracies(final_model(run, plan.normalisation), test, attacker, settings.seed)
    trained = {
        **used,
        "method": recipe.name if settings.epochs else UNTRAINED,
        "epochs": settings.epochs,
        "seed": settings.seed,
        "labels": settings.labels,
        "clean_accuracy": clean,
        "adversarial_accuracy": attacked,
        "attack": {
            "name": attacker.name,
            **attacker.values(),
            "samples": len(test),
            "seed": settings.seed,
            "dtype": "float64",
        },
        "options": recipe.options(),
        "settings": facts["settings"],
        "train_data_sha256": data.sha256,
        "test_data_sha256": test.sha256,
        "curves": curves,
        "key": key,
    }
    if plan.init is not None:
        trained["init_sha256"] = plan.init.sha256
    metadata = {
        "architecture": plan.arch,
        "arch_args": plan.arch_args,
        **_normalisation_json(plan.normalisation),
        "data": config.data,
        "input_shape": list(data.input_shape),
        "classes": data.classes,
        "train": trained,
    }
    save_checkpoint(config.out, run.network.state_dict(), metadata)
    config.state_path.unlink(missing_ok=True)
    return config.out


def _prepare(plan: Plan, settings: Settings, data: _data.TrainingData, device: torch.device) -> Run:
    network = _network.build(plan, settings.seed).to(device)
    scale = Scaler(plan.normalisation, data.input_shape).to(device=device, dtype=torch.float32)
    channels_last = len(data.input_shape) == 3 and any(p.ndim == 4 for p in network.parameters())
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Run(
        network=network,
        scale=scale,
        settings=settings,
        input_shape=data.input_shape,
        classes=data.classes,
        mean_norm=data.mean_norm,
        low=data.low,
        high=data.high,
        draws=Draws(settings.seed),
        device=device,
        samples=data.train,
        channels_last=channels_last,
    )


def _attacker(run: Run, used: dict[str, Any]) -> Attacker:
    """The evaluation's attack: in the norm and at the eps of the training, where it has them."""
    settings = run.settings
    norm = used.get("norm", "l2")
    eps = settings.attack_eps
    return Attacker(
        norm, radius(run, used.get("eps", "auto") if eps == "auto" else eps, norm), settings.attack_steps
    )


def _facts(
    config: TrainConfig, recipe: Recipe, settings: Settings, plan: Plan, data: _data.TrainingData
) -> dict[str, Any]:
    """Everything that decides the bytes of the checkpoint."""
    return {
        "method": recipe.name,
        "options": recipe.options(),
        "settings": settings_json(settings),
        "architecture": plan.arch,
        "arch_args": plan.arch_args,
        **_normalisation_json(plan.normalisation),
        "data": config.data,
        "data_sha256": data.sha256,
        "init": plan.init.sha256 if plan.init else None,
    }


def _finished(out: Path, key: str) -> bool:
    """Whether `out` is the finished checkpoint of this run; UsageError where it is something else."""
    if not out.exists():
        return False
    try:
        found = read_checkpoint(out).metadata.get("train", {})
    except CheckpointError:
        found = {}
    if found.get("key") == key:
        return True
    raise UsageError(f"{out} exists and was made with other settings.", "Pass --overwrite or another --out.")


def _normalisation_json(normalisation: Normalisation) -> dict[str, Any]:
    return {
        "normalise": normalisation.kind,
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
    }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        detail = str(error).split("\n", 1)[0]
        raise UsageError(f"--device {name} cannot be used: {detail}.", "Pass --device cpu.") from None
    return device
