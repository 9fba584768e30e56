"""The training loop: equal bytes, resume, objectives by hand, schedules, errors."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specdiag.errors import NumericalError, ResultsError, UsageError
from specdiag.loading.checkpoints import read_checkpoint
from specdiag.loading.labels import random_labels
from specdiag.sampling import Draws
from specdiag.training import _data
from specdiag.training._adversarial import Adversarial
from specdiag.training._attack import perturb, radius
from specdiag.training._context import Run, Step
from specdiag.training._drawing import draw_curves
from specdiag.training._loop import Progress, rate
from specdiag.training._method import roles
from specdiag.training._recipe import parse
from specdiag.training._run import train
from specdiag.training._settings import Settings, TrainConfig
from specdiag.training.standard import Standard

SAMPLES = Path(__file__).resolve().parent.parent / "sample_checkpoints"
SMALL: dict[str, Any] = {
    "epochs": 3,
    "train_samples": 160,
    "batch_size": 32,
    "test_samples": 40,
    "curve_samples": 16,
    "device": "cpu",
}
SLIM = {"arch": "cnn4", "arch_args": {"width": 4}}
METHODS = [("standard", {}), ("adversarial", {"eps": 0.5, "steps": 2})]


def config(out: Path, method: str = "standard", options: Any = None, **settings: Any) -> TrainConfig:
    return TrainConfig(
        method=method, out=out, options=options or {}, settings=Settings(**{**SMALL, **settings}), **SLIM
    )


class Interrupted(Exception):
    """Stands for whatever ends a run before its time."""


def stop_at(epoch: int, step: int) -> Any:
    def report(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step):
            raise Interrupted

    return report


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_same_seed_same_bytes(tmp_path: Path, method: str, options: Any) -> None:
    first = train(config(tmp_path / "a.pt", method, options, epochs=1)).read_bytes()
    torch.manual_seed(123)
    assert train(config(tmp_path / "b.pt", method, options, epochs=1)).read_bytes() == first
    assert train(config(tmp_path / "c.pt", method, options, epochs=1, seed=1)).read_bytes() != first


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_resumed_run_has_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, method: str, options: Any, optimiser: str
) -> None:
    whole = train(config(tmp_path / "whole.pt", method, options, optimiser=optimiser)).read_bytes()
    broken = config(tmp_path / "broken.pt", method, options, optimiser=optimiser)
    for place in ((1, 2), (2, 3), (3, 1)):
        with pytest.raises(Interrupted):
            train(broken, stop_at(*place))
    assert not broken.out.exists()
    seen: list[Progress] = []
    assert train(broken, seen.append).read_bytes() == whole
    assert {progress.epoch for progress in seen} == {3}
    assert not broken.state_path.exists()


def test_killed_process_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    whole = train(config(tmp_path / "whole.pt")).read_bytes()
    script = f"""
from pathlib import Path
from specdiag.training._run import train
from specdiag.training._settings import Settings, TrainConfig
import sys, time
def report(progress):
    if progress.epoch == 2 and progress.step == 2:
        print("here", flush=True)
        time.sleep(60)
train(TrainConfig(out=Path({str(tmp_path / "killed.pt")!r}), settings=Settings(**{SMALL!r}), **{SLIM!r}), report)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    killed = config(tmp_path / "killed.pt")
    assert killed.state_path.is_file()
    assert train(killed).read_bytes() == whole


def test_the_caller_finds_torch_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(config(tmp_path / "a.pt", epochs=1, threads=1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_finished_run_is_left_alone_and_others_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "a.pt"
    train(config(out, epochs=1))
    stamp = out.stat().st_mtime_ns
    assert train(config(out, epochs=1), stop_at(1, 1)) == out
    assert out.stat().st_mtime_ns == stamp
    with pytest.raises(UsageError, match="other settings"):
        train(config(out, epochs=2))
    again = dataclasses.replace(config(out, epochs=2), overwrite=True)
    assert read_checkpoint(train(again)).metadata["train"]["epochs"] == 2


def test_state_of_another_run_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(config(tmp_path / "a.pt"), stop_at(2, 1))
    with pytest.raises(ResultsError, match="other settings"):
        train(config(tmp_path / "a.pt", lr=0.01))
    state = config(tmp_path / "a.pt").state_path
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(ResultsError, match="cannot be read"):
        train(config(tmp_path / "a.pt"))
    train(dataclasses.replace(config(tmp_path / "a.pt"), overwrite=True))


def test_a_loss_that_explodes_is_named(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="epoch 1"):
        train(config(tmp_path / "a.pt", lr=1e30, warmup=0.0, schedule="constant"))
    assert not (tmp_path / "a.pt").exists()


def test_metadata_carry_the_training(tmp_path: Path) -> None:
    out = train(config(tmp_path / "a.pt", "adversarial", {"eps": 0.5, "steps": "4", "objective": "mix"}))
    known = read_checkpoint(out).metadata["train"]
    wanted = {"method": "adversarial", "norm": "l2", "eps": 0.5, "steps": 4, "alpha": 0.25, "lambda": 0.5}
    assert {key: known[key] for key in wanted} == wanted
    assert known["attack"]["eps"] == 0.5
    assert known["attack"]["name"] == "pgd-l2"
    assert all(len(curve) == 3 for curve in known["curves"].values())
    assert {"loss", "train_accuracy", "validation_attacked_accuracy"} <= set(known["curves"])


def test_start_from_a_checkpoint(tmp_path: Path) -> None:
    first = train(config(tmp_path / "a.pt"))
    settings = Settings(**{**SMALL, "epochs": 0})
    second = train(TrainConfig(out=tmp_path / "b.pt", init=first, settings=settings))
    one, two = read_checkpoint(first), read_checkpoint(second)
    assert all(torch.equal(one.tensors[name], tensor) for name, tensor in two.tensors.items())
    assert two.metadata["train"]["init_sha256"] == one.sha256
    for key in ("architecture", "arch_args", "normalise", "mean", "std"):
        assert two.metadata[key] == one.metadata[key]


def test_training_learns(tmp_path: Path) -> None:
    out = train(config(tmp_path / "a.pt", train_samples=None, epochs=4, test_samples=397))
    assert read_checkpoint(out).metadata["train"]["clean_accuracy"] > 0.9


# one batch, by hand


def linear_run(batchnorm: bool = False) -> Run:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(6) if batchnorm else nn.Identity(), nn.Linear(6, 2)).double()
    return Run(network, nn.Identity(), Settings(), (6,), 2, 3.0, 0.0, 1.0, Draws(0), torch.device("cpu"))


def step_of(run: Run, count: int = 5) -> Step:
    torch.manual_seed(1)
    return Step(run, torch.rand(count, 6).double(), torch.arange(count) % 2, np.arange(count), 0, 0)


def test_objectives_on_a_linear_network_in_closed_form() -> None:
    run = linear_run()
    step = step_of(run)
    weight, eps = run.network[1].weight.detach(), 0.3
    # two classes: the loss rises fastest along w_other - w_label, whatever the point
    towards = (weight[1] - weight[0]) * torch.where(step.y == 0, 1.0, -1.0)[:, None]
    worst = step.x + eps * towards / towards.norm(dim=1, keepdim=True)
    clean = F.cross_entropy(run.forward(step.x), step.y)
    attacked = F.cross_entropy(run.forward(worst), step.y)
    cases = {("clean+lambda", 0.7): clean + 0.7 * attacked, ("only", "auto"): attacked}
    cases[("mix", "auto")] = 0.5 * clean + 0.5 * attacked
    for (objective, lam), wanted in cases.items():
        method = Adversarial(eps=eps, objective=objective, attack_weight=lam, start="clean")
        torch.testing.assert_close(method.batch_loss(step_of(run)), wanted, rtol=1e-12, atol=0)


def test_linf_points_on_a_linear_network_in_closed_form() -> None:
    run = linear_run()
    step = step_of(run)
    weight = run.network[1].weight.detach()
    towards = (weight[1] - weight[0]) * torch.where(step.y == 0, 1.0, -1.0)[:, None]
    found = Adversarial(norm="linf", eps=0.1, steps=10).perturb(step)
    torch.testing.assert_close(found, step.x + 0.1 * towards.sign(), rtol=1e-12, atol=1e-15)


def test_sum_of_squares_objective_compares_the_two_outputs() -> None:
    run = linear_run(batchnorm=True)
    run.network[0].running_mean.fill_(0.5)
    run.network.eval()
    step = step_of(run)
    method = Adversarial(eps=0.2, attack_loss="sum-of-squares", objective="only", steps=3)
    perturbed = method.perturb(step)
    wanted = 0.5 * (run.forward(perturbed) - run.forward(step.x)).square().sum(1).mean()
    torch.testing.assert_close(method.batch_loss(step), wanted, rtol=1e-12, atol=0)


def test_attacks_leave_the_network_as_it_was() -> None:
    run = linear_run(batchnorm=True)
    run.network[1].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    step = step_of(run)
    perturb(step, "pgd-l2", {"eps": 0.1, "steps": 2})
    with contextlib.suppress(ZeroDivisionError), run.evaluating(parameters=False):
        assert not run.network[0].training
        raise ZeroDivisionError
    assert run.network[0].training
    assert [p.requires_grad for p in run.network.parameters()] == [True, True, True, False]
    assert all(torch.equal(before[name], value) for name, value in run.network.state_dict().items())
    assert all(p.grad is None for p in run.network.parameters())


def test_attack_in_training_sees_batchnorm_in_eval_mode() -> None:
    run = linear_run(batchnorm=True)
    step = step_of(run)
    alone = step_of(run)
    alone.x, alone.y, alone.index = step.x[:1], step.y[:1], step.index[:1]
    both = (perturb(each, "pgd-l2", {"eps": 0.1, "steps": 3}) for each in (step, alone))
    torch.testing.assert_close(next(both)[:1], next(both), rtol=1e-12, atol=1e-14)


def test_default_eps() -> None:
    run = linear_run()
    assert radius(run, "auto", "l2") == pytest.approx(0.05 * run.mean_norm)
    assert radius(run, "auto", "linf") == 0.005


# pieces


def test_rates() -> None:
    cosine = Settings(epochs=10, lr=1.0, warmup=0.0)
    assert rate(cosine, 0, 4) == 1.0
    assert rate(cosine, 20, 4) == pytest.approx(0.5)
    assert rate(cosine, 39, 4) == pytest.approx(0.5 * (1 + math.cos(math.pi * 39 / 40)))
    step = Settings(epochs=4, lr=1.0, schedule="step", warmup=0.0)
    assert [rate(step, k, 1) for k in range(4)] == pytest.approx([1, 1, 0.1, 0.01])
    warm = Settings(epochs=4, lr=1.0, schedule="constant", warmup=0.5)
    assert [rate(warm, k, 4) for k in range(4)] == pytest.approx([0.5, 1, 1, 1])


def test_batches_cover_the_samples_once_and_differ_by_epoch() -> None:
    x = torch.arange(50.0)[:, None]
    samples = _data.Samples(x, torch.zeros(50, dtype=torch.int64), np.arange(50))
    taken = [list(_data.batches(samples, 10, epoch, Draws(0), "none")) for epoch in (0, 0, 1)]
    flat = [torch.cat([batch.x for batch in epoch])[:, 0] for epoch in taken]
    assert torch.equal(flat[0].sort().values, x[:, 0])
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])


def test_every_crop_is_a_window_of_the_padded_image() -> None:
    torch.manual_seed(0)
    x = torch.rand(40, 2, 8, 8)
    found = _data.crop_and_flip(x, Draws(0).generator("test"), flip=True)
    padded = F.pad(x, (1, 1, 1, 1))
    kinds = set()
    for image, frame in zip(found, padded, strict=True):
        windows = {
            (i, j, mirrored): frame[:, i : i + 8, j : j + 8].flip(-1)
            if mirrored
            else frame[:, i : i + 8, j : j + 8]
            for i in range(3)
            for j in range(3)
            for mirrored in (False, True)
        }
        matches = [key for key, window in windows.items() if torch.equal(window, image)]
        assert len(matches) == 1
        kinds.add(matches[0])
    assert len(kinds) > 10


def test_random_labels_depend_on_seed_and_sample_alone() -> None:
    index = np.arange(300)
    labels = random_labels(index, 10, Draws(0))
    assert np.array_equal(random_labels(index[100:], 10, Draws(0)), labels[100:])
    assert not np.array_equal(random_labels(index, 10, Draws(1)), labels)
    assert set(labels) == set(range(10))
    data = _data.load("digits", Settings(labels="random"))
    wanted = random_labels(data.train.index, 10, Draws(0))
    assert np.array_equal(data.train.y.numpy(), wanted)


def test_held_out_samples_are_not_trained_on() -> None:
    data = _data.load("digits", Settings(validation=100))
    assert len(data.validation) == 100
    assert len(data.train) == 1300
    assert not set(data.train.index) & set(data.validation.index)


def test_recipes() -> None:
    assert roles(Standard()) == ()
    assert roles(Adversarial()) == ("attack",)
    recipe = parse("adversarial", {"eps": "1.5", "norm": "linf"})
    assert recipe.parts["adversarial"] == Adversarial(eps=1.5, norm="linf")
    for method, options, message in (
        ("adversarail", {}, "adversarial"),
        ("adversarial+adversarial", {}, "twice"),
        ("adversarial", {"epss": 1}, "eps"),
        ("standard", {"eps": 1}, "no option"),
        ("adversarial", {"steps": 0}, "smallest"),
        ("adversarial", {"standard.eps": 1}, "no option"),
    ):
        with pytest.raises(UsageError, match=message):
            parse(method, options)


def test_curves_are_drawn(tmp_path: Path) -> None:
    runs = {
        name: read_checkpoint(SAMPLES / f"digits-{name}.pt").metadata["train"]
        for name in ("standard", "adversarial")
    }
    figure = draw_curves(runs, tmp_path / "curves.svg")
    loss, accuracy = figure.axes
    assert [len(line.get_xdata()) for line in loss.lines] == [30, 30]
    assert len(accuracy.lines) == 8
    assert accuracy.lines[3].get_ydata()[-1] == runs["standard"]["curves"]["validation_attacked_accuracy"][-1]
    assert (tmp_path / "curves.svg").stat().st_size > 1000
    with pytest.raises(ResultsError, match="curves"):
        draw_curves({"random": {"curves": {}}}, tmp_path / "none.svg")
