"""`layers` at the command line: true operators of a real checkpoint against their dense matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from command import run
from torch.nn import functional as F

from specdiag.loading.checkpoints import read_checkpoint
from specdiag.store import read_group


def test_layers_of_a_checkpoint_against_dense_matrices(samples: Path, tmp_path: Path) -> None:
    done = run("layers", samples / "digits-standard.pt", "--out", tmp_path)
    assert done.exit_code == 0, done.stderr
    found = read_group(tmp_path / "digits-standard.h5", "layers")
    tensors = read_checkpoint(samples / "digits-standard.pt").tensors
    names = [str(name) for name in found.layer.values]
    first = next(name for name in names if tensors[f"{name}.weight"].ndim == 4)
    last = next(name for name in names if tensors[f"{name}.weight"].ndim == 2)
    basis = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    dense = F.conv2d(basis, tensors[f"{first}.weight"].double(), padding=1).flatten(1).numpy()
    for name, matrix in ((first, dense), (last, tensors[f"{last}.weight"].double().numpy())):
        values = np.linalg.svd(matrix, compute_uv=False)
        row = found.sel(layer=name)
        assert abs(float(row.sigma_max) - values[0]) < 1e-5 * values[0]
        assert abs(float(row.sigma_std) - values.std()) < 1e-3 * values.std()
        assert abs(float(row.frobenius) - np.sqrt((values**2).sum())) < 1e-8 * values[0] * len(values)
