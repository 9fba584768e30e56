"""The `spectrum` command on a network of torchvision, random weights, against the dense Jacobian."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from command import run

from specdiag.loading.architectures import build

SPECS = {"torchvision:efficientnet_b0": 64}


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_spectrum_by_krylov(spec: str, tmp_path: Path) -> None:
    if spec.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    network = build(spec, {"num_classes": 5})
    for parameter in network.parameters():
        # some libraries start the last layer or the scales of blocks at zero: no Jacobian would be left
        if float(parameter.detach().abs().max()) < 1e-3:
            torch.nn.init.normal_(parameter, std=0.02)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    x = np.random.default_rng(0).random((1, 3, SPECS[spec], SPECS[spec])).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    flags = (
        "--arch",
        spec,
        "--arch-arg",
        "num_classes=5",
        "--normalise",
        "none",
        "--data",
        tmp_path / "x.npz",
    )
    done = run(
        *("spectrum", tmp_path / "model.pt", *flags, "-n", 1, "-q", "--out", tmp_path / "o"),
        *("--method", "krylov", "--top", 2),
    )
    assert done.exit_code == 0, done.stderr
    with h5py.File(tmp_path / "o" / "model.h5") as file:
        found = file["spectrum/singular_values"][0]
        assert json.loads(file["spectrum"].attrs["specdiag"])["checkpoint"]["architecture"] == spec
    network.eval()
    matrix = torch.autograd.functional.jacobian(network, torch.from_numpy(x)).reshape(5, -1)
    expected = torch.linalg.svdvals(matrix.double())[:2].numpy()
    assert np.allclose(found, expected, rtol=1e-3)
