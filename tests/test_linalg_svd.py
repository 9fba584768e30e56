"""Batched SVD: known answers, both orientations, vectors, cut-off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import with_singular_values

from specdiag.errors import NumericalError
from specdiag.linalg.svd import cutoff, svd

VALUES = np.array([7.0, 3.0, 3.0, 0.5, 1e-6])


@pytest.mark.parametrize(("rows", "columns"), [(5, 40), (40, 5), (5, 5)])
def test_known_singular_values(rows: int, columns: int) -> None:
    matrix = torch.from_numpy(
        np.stack([with_singular_values(VALUES, rows, columns, seed) for seed in range(3)])
    )
    found = svd(matrix, top=2)
    assert float((found.values - torch.from_numpy(VALUES)).abs().max()) < 1e-13
    assert found.left is not None
    assert found.right is not None
    assert found.left.shape == (3, rows, 2)
    assert found.right.shape == (3, columns, 2)
    assert torch.allclose(matrix @ found.right, found.left * found.values[:, None, :2], atol=1e-13)


def test_signs_are_fixed() -> None:
    matrix = torch.from_numpy(with_singular_values(VALUES, 5, 9))[None]
    one, other = svd(matrix, top=3), svd(matrix.flip(2).flip(2) * 1.0, top=3)
    assert torch.equal(one.left, other.left)
    largest = one.left.abs().argmax(1, keepdim=True)
    assert bool((one.left.gather(1, largest) > 0).all())


def test_float32_input_is_decomposed_in_float64() -> None:
    matrix = torch.from_numpy(with_singular_values(VALUES, 5, 300)).float()[None]
    reference = np.linalg.svd(matrix[0].double().numpy(), compute_uv=False)
    assert np.abs(svd(matrix).values[0].numpy() - reference).max() < 1e-13 * reference[0]


def test_zero_matrix_and_single_row() -> None:
    assert torch.equal(svd(torch.zeros(2, 3, 4)).values, torch.zeros(2, 3, dtype=torch.float64))
    row = torch.tensor([[[3.0, 4.0]]])
    assert float(svd(row).values) == pytest.approx(5, rel=1e-15)


def test_non_finite_matrices_are_named() -> None:
    matrices = torch.ones(4, 2, 3)
    matrices[2, 0, 0] = torch.nan
    with pytest.raises(NumericalError, match="Matrix 2"):
        svd(matrices)


def test_cutoff_is_that_of_numpy_rank() -> None:
    matrix = with_singular_values(np.array([1.0, 1e-3, 1e-17]), 6, 50)
    values = np.linalg.svd(matrix, compute_uv=False)
    limit = cutoff(torch.float64, (6, 50), values[0])
    assert (values > limit).sum() == np.linalg.matrix_rank(matrix) == 2
