"""Krylov and power methods on maps whose singular values are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specdiag.errors import NumericalError
from specdiag.linalg.bidiagonal import Bidiagonalisation
from specdiag.linalg.krylov import golub_kahan
from specdiag.linalg.layers import convolution
from specdiag.linalg.operators import LinearOperator, from_matrix
from specdiag.linalg.power import power_method


def known(
    values, m: int, n: int, seed: int = 0, dtype=torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix (m, n) with the given singular values, and its vectors."""
    rng = np.random.default_rng(seed)
    rank = len(values)
    u = np.linalg.qr(rng.standard_normal((m, rank)))[0]
    v = np.linalg.qr(rng.standard_normal((n, rank)))[0]
    matrix = torch.from_numpy((u * np.asarray(values)) @ v.T).to(dtype)
    return matrix, torch.from_numpy(u), torch.from_numpy(v)


def starts(rows: int, n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("m", "n"), [(60, 90), (90, 60), (70, 70)])
def test_known_singular_triplets(m, n) -> None:
    values = 1 / np.arange(1, 61)
    matrix, u, v = known(values, m, n)
    found = golub_kahan(from_matrix(matrix), 5, starts(2, n), tolerance=1e-9)
    assert found.converged.all()
    assert np.abs(found.values / values[:5] - 1).max() < 1e-9
    for row in range(2):
        assert float((found.right[row] @ v[:, :5]).diagonal().abs().min()) > 1 - 1e-8
        assert float((found.left[row] @ u[:, :5]).diagonal().abs().min()) > 1 - 1e-8
        values_of = torch.from_numpy(found.values[row])[:, None]
        # one of the two products is exact, the one from the longer side is within the residual
        if m >= n:
            rest = found.right[row] @ matrix.T - values_of * found.left[row]
        else:
            rest = found.left[row] @ matrix - values_of * found.right[row]
        assert float(rest.abs().max()) < 1e-12


def test_the_factorisation_holds() -> None:
    matrix, _, _ = known(np.linspace(3, 0.1, 25), 30, 25)
    process = Bidiagonalisation(from_matrix(matrix), starts(3, 25))
    for _ in range(12):
        process.step()
    b = torch.from_numpy(process.matrix())
    left, right = process.left, process.right
    eye = torch.eye(12, dtype=torch.float64)
    assert float((left @ left.mT - eye).abs().max()) < 1e-13
    assert float((right @ right.mT - eye).abs().max()) < 1e-13
    assert float((right @ matrix.T - torch.einsum("bij,bim->bjm", b, left)).abs().max()) < 1e-13


def test_a_batch_is_its_rows() -> None:
    """Each sample has its own map; what it shares a batch with does not matter."""
    stack = torch.stack([known(np.linspace(s, 0, 20), 20, 30, seed=s)[0] for s in (1, 5, 9)])
    start = starts(3, 30)
    together = golub_kahan(from_matrix(stack), 3, start, tolerance=1e-8)
    for row in range(3):
        alone = golub_kahan(from_matrix(stack[row : row + 1]), 3, start[row : row + 1], tolerance=1e-8)
        assert alone.pairs[0] == together.pairs[row]
        assert np.abs(together.values[row] - np.linspace([1, 5, 9][row], 0, 20)[:3]).max() < 1e-7


def test_errors_cover() -> None:
    rng = np.random.default_rng(2)
    covered = []
    for number in range(60):
        values = np.sort(rng.random(80) ** rng.integers(1, 4))[::-1]
        matrix, _, _ = known(values, 100, 80, seed=number)
        found = golub_kahan(from_matrix(matrix), 4, starts(1, 80, number))
        covered += list(np.abs(found.values[0] - values[:4]) <= found.error[0] + 1e-14)
    assert np.mean(covered) >= 0.97


def test_repeated_values_of_the_identity() -> None:
    eye = torch.eye(12, dtype=torch.float64)
    found = golub_kahan(from_matrix(eye), 4, starts(1, 12))
    assert found.values[0] == pytest.approx(np.ones(4), abs=1e-14)
    vectors = found.right[0]
    assert float((vectors @ vectors.T - torch.eye(4, dtype=torch.float64)).abs().max()) < 1e-13


def test_low_rank_and_zero_maps() -> None:
    matrix, _, _ = known([2.0, 1.0], 30, 40)
    found = golub_kahan(from_matrix(matrix), 4, starts(1, 40))
    assert found.values[0] == pytest.approx([2, 1, 0, 0], abs=1e-13)
    zero = golub_kahan(from_matrix(torch.zeros(5, 6, dtype=torch.float64)), 2, starts(1, 6))
    assert zero.values[0] == pytest.approx([0, 0])


def test_a_map_smaller_than_k() -> None:
    matrix, _, _ = known([3.0, 2.0, 1.0], 3, 50)
    found = golub_kahan(from_matrix(matrix), 10, starts(1, 50))
    assert found.values[0] == pytest.approx([3, 2, 1], abs=1e-13)


def test_too_few_pairs_are_admitted() -> None:
    values = np.linspace(1, 0.99, 200)
    matrix, _, _ = known(values, 200, 200)
    found = golub_kahan(from_matrix(matrix), 3, starts(1, 200), tolerance=1e-8, max_pairs=12)
    assert not found.converged[0]
    assert found.pairs[0] == 12
    assert (np.abs(found.values[0] - values[:3]) <= found.error[0]).all()


def test_float32_maps() -> None:
    matrix, _, _ = known(np.logspace(0, -3, 60), 80, 60, dtype=torch.float32)
    found = golub_kahan(from_matrix(matrix), 5, starts(1, 60))
    assert found.converged[0]
    assert found.right.dtype == torch.float32
    truth = torch.linalg.svdvals(matrix.double())[:5].numpy()
    assert np.abs(found.values[0] / truth - 1).max() < 1e-6


def test_products_are_counted() -> None:
    matrix, _, _ = known(1 / np.arange(1, 81), 80, 80)
    calls = {"forward": 0, "adjoint": 0}

    def forward(v):
        calls["forward"] += 1
        return v @ matrix.T

    def adjoint(u):
        calls["adjoint"] += 1
        return u @ matrix

    found = golub_kahan(LinearOperator((80, 80), forward, adjoint), 3, starts(1, 80))
    assert calls == {"forward": int(found.pairs[0]), "adjoint": int(found.pairs[0])}
    assert found.pairs[0] < 25


def test_infinite_products_name_the_row() -> None:
    stack = torch.ones(3, 5, 5, dtype=torch.float64)
    stack[1, 2, 2] = float("inf")
    with pytest.raises(NumericalError, match="row 1"):
        golub_kahan(from_matrix(stack), 2, starts(3, 5))
    with pytest.raises(NumericalError, match="row 1"):
        power_method(from_matrix(stack), starts(3, 5), 3)


def test_power_method_step_by_step() -> None:
    matrix, u, v = known([3.0, 2.0, 1.0], 6, 5)
    start = starts(1, 5)
    found = power_method(from_matrix(matrix), start, 60)
    x = start[0].numpy()
    x = x / np.linalg.norm(x)
    for step in range(3):
        y = matrix.numpy() @ x
        y = y / np.linalg.norm(y)
        x = matrix.numpy().T @ y
        x = x / np.linalg.norm(x)
        assert found.values[0, step] == pytest.approx(y @ matrix.numpy() @ x, rel=1e-14)
    assert found.values[0, -1] == pytest.approx(3, rel=1e-12)
    assert abs(float(found.right[0] @ v[:, 0])) == pytest.approx(1, abs=1e-10)
    assert abs(float(found.left[0] @ u[:, 0])) == pytest.approx(1, abs=1e-10)
    assert (np.diff(found.values[0]) >= -1e-14).all()


def test_power_method_on_a_strided_convolution() -> None:
    torch.manual_seed(0)
    layer = convolution(torch.randn(6, 4, 3, 3).double(), (8, 9), stride=2, padding=1)
    truth = float(torch.linalg.svdvals(layer.operator().dense())[0])
    found = power_method(layer.operator(), starts(2, 288), 3000, tolerance=1e-13)
    assert found.values.shape[1] < 3000
    assert found.values[:, -1] == pytest.approx([truth, truth], rel=1e-6)


def test_power_method_refuses_a_zero_map() -> None:
    with pytest.raises(NumericalError, match="zero"):
        power_method(from_matrix(torch.zeros(3, 3, dtype=torch.float64)), starts(1, 3), 3)
