"""Whole commands on what training programs leave behind: the suggestion that is printed is the command that works."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from command import run
from torch import nn

from specdiag.loading.architectures import build
from specdiag.loading.datasets import load_data


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return build("cnn4", {"width": 4, "size": 8, "channels": 1}).eval()


def truth(network: nn.Module, x: torch.Tensor) -> np.ndarray:
    """Largest singular value at each sample, from a dense Jacobian in float64."""
    network = network.double().eval()
    found = []
    for sample in x.double():
        matrix = torch.autograd.functional.jacobian(network, sample[None])
        found.append(torch.linalg.svdvals(matrix.flatten(1).reshape(matrix.shape[1], -1))[0])
    return torch.stack(found).numpy()


def follow(path: Path, out: Path, data: str, *flags: str) -> np.ndarray:
    """sigma_max by the command that the refusal of the bare command prints."""
    refused = run("spectrum", path, "--data", data, "-n", 2, "--out", out, *flags)
    assert refused.exit_code == 2
    line = next(line for line in refused.stderr.splitlines() if line.strip().startswith("specdiag spectrum"))
    words = [*shlex.split(line)[1:], "-n", "2", "-q", "--out", str(out), "--dtype", "float64", *flags]
    done = run(*words)
    assert done.exit_code == 0, done.stderr
    name = path.name if path.is_dir() else path.stem
    with h5py.File(out / f"{name}.h5") as file:
        found: np.ndarray = file["spectrum/sigma_max"][:]
    return found


def digits() -> torch.Tensor:
    return torch.from_numpy(load_data("digits", samples=2).x)


def test_lightning_with_omegaconf(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    omegaconf = pytest.importorskip("omegaconf")

    class Module(lightning.LightningModule):
        def __init__(self, config) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = cnn()

    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    module = Module(omegaconf.OmegaConf.create({"width": 4}))
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    found = follow(tmp_path / "last.ckpt", tmp_path / "o", "digits")
    assert np.allclose(found, truth(cnn(), digits()), rtol=1e-9)


def test_data_parallel_under_compile(tmp_path: Path) -> None:
    wrapped = torch.compile(nn.DataParallel(cnn()))
    assert next(iter(wrapped.state_dict())).startswith("_orig_mod.module.")
    torch.save({"state_dict": wrapped.state_dict(), "epoch": 3}, tmp_path / "run.pt")
    found = follow(tmp_path / "run.pt", tmp_path / "o", "digits")
    assert np.allclose(found, truth(cnn(), digits()), rtol=1e-9)


def test_safetensors_folder(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder = tmp_path / "model"
    folder.mkdir()
    names = list(cnn().state_dict())
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        safetensors.save_file({name: cnn().state_dict()[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = follow(folder, tmp_path / "o", "digits")
    assert np.allclose(found, truth(cnn(), digits()), rtol=1e-9)


def test_timm_with_averaged_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.utils import CheckpointSaver, ModelEmaV2

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=3).eval()
    average = ModelEmaV2(network, decay=0.5)
    average.module.conv1[0].weight.data *= 1.5
    saver = CheckpointSaver(
        network,
        torch.optim.SGD(network.parameters(), 0.1),
        args=argparse.Namespace(model="resnet10t"),
        model_ema=average,
        checkpoint_dir=str(tmp_path),
    )
    saver.save_checkpoint(1, metric=0.5)
    path = tmp_path / "last.pth.tar"
    asked = run("spectrum", path, "-q")
    assert asked.exit_code == 3
    assert "--weights state_dict_ema" in asked.stderr
    x = np.random.default_rng(0).random((2, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    flags = ("--weights", "state_dict_ema", "--mean", "0", "--std", "1", "--data", tmp_path / "x.npz")
    done = run("spectrum", path, *flags, "-n", 2, "-q", "--dtype", "float64", "--out", tmp_path / "o")
    assert done.exit_code == 0, done.stderr
    with h5py.File(next((tmp_path / "o").glob("*.h5"))) as file:
        found = file["spectrum/sigma_max"][:]
    assert np.allclose(found, truth(average.module, torch.from_numpy(x)), rtol=1e-6)


def test_the_public_resnet20_needs_no_arch(assets: Path, tmp_path: Path) -> None:
    path = assets / "checkpoints" / "cifar10-resnet20.th"
    x = np.load(assets / "data" / "cifar10-test-1k.npz")
    found = follow(path, tmp_path / "o", str(assets / "data" / "cifar10-test-1k.npz"))
    assert len(found) == 2
    assert (found > 0).all()
    assert x["x"].shape == (1000, 32, 32, 3)
    with h5py.File(tmp_path / "o" / "cifar10-resnet20.h5") as file:
        facts = json.loads(file["spectrum"].attrs["specdiag"])
    assert facts["checkpoint"]["architecture"] == "resnet20"
    assert np.allclose(facts["checkpoint"]["mean"], [0.485, 0.456, 0.406])
