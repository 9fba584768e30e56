"""Golub-Kahan bidiagonalisation of many maps or from many start vectors at once, fully reorthogonalised."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from specdiag.linalg.operators import LinearOperator

Array = np.ndarray[Any, np.dtype[Any]]


class Bidiagonalisation:
    """A V = U B and A^T U = V B^T + beta v_next e^T after `pairs` products with A and with A^T.

    start: (N, n), one row per map of the operator, or N start vectors for one map. B is upper bidiagonal with
    `alphas` (N, pairs) on and `betas` (N, pairs) above its diagonal, the last beta outside of it. When the
    space of a row is exhausted (beta = 0), it goes on from a fresh vector orthogonal to it.
    """

    def __init__(self, operator: LinearOperator, start: torch.Tensor, seed: int = 0) -> None:
        self.operator = operator
        self.rows = int(start.shape[0])
        self.pairs = 0
        self.limit = min(operator.shape)
        self._generator = torch.Generator().manual_seed(seed)
        self._right = torch.empty(0)
        self._left = torch.empty(0)
        self._alphas: list[torch.Tensor] = []
        self._betas: list[torch.Tensor] = []
        self._scale = torch.zeros(self.rows, dtype=operator.dtype, device=operator.device)
        # a start of zeros is replaced by a random one
        self._next, _ = self._orthonormal(start.to(operator.device, operator.dtype), None)

    @property
    def right(self) -> torch.Tensor:
        """V, (N, pairs, n)."""
        return self._right[:, : self.pairs]

    @property
    def left(self) -> torch.Tensor:
        """U, (N, pairs, m)."""
        return self._left[:, : self.pairs]

    @property
    def alphas(self) -> Array:
        """Diagonal of B, (N, pairs) float64."""
        return _numbers(self._alphas)

    @property
    def betas(self) -> Array:
        """Superdiagonal of B and the beta that leads on, (N, pairs) float64."""
        return _numbers(self._betas)

    def matrix(self, pairs: int | None = None) -> Array:
        """B, or its leading part, (N, pairs, pairs) float64."""
        size = self.pairs if pairs is None else pairs
        result = np.zeros((self.rows, size, size))
        place = np.arange(size)
        result[:, place, place] = self.alphas[:, :size]
        result[:, place[:-1], place[1:]] = self.betas[:, : size - 1]
        return result

    def step(self) -> None:
        """One product with A and one with A^T."""
        done = self.pairs
        self._right = _grown(self._right, done, (self.rows, self.operator.shape[1]), self._next)
        v = self._next
        self._right[:, done] = v
        u = self.operator.matmat(v)
        if done:
            u = u - self._betas[-1][:, None] * self._left[:, done - 1]
        u, alpha = self._orthonormal(u, self._left[:, :done] if done else None)
        self._left = _grown(self._left, done, (self.rows, self.operator.shape[0]), u)
        self._left[:, done] = u
        self._alphas.append(alpha)
        self._scale = torch.maximum(self._scale, alpha)
        w = self.operator.rmatmat(u) - alpha[:, None] * v
        if done + 1 < self.operator.shape[1]:
            w, beta = self._orthonormal(w, self._right[:, : done + 1])
        else:
            beta = torch.zeros_like(alpha)
        self._betas.append(beta)
        self._scale = torch.maximum(self._scale, beta)
        self._next = w
        self.pairs += 1

    def _orthonormal(self, x: torch.Tensor, basis: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors along x off the basis, and the length of x there: 0 where nothing but rounding is left."""
        x = _off(x, basis)
        unit, length = _unit(x)
        tiny = 100 * torch.finfo(x.dtype).eps * self._scale
        lost = length <= torch.maximum(tiny, torch.full_like(tiny, torch.finfo(x.dtype).tiny))
        if bool(lost.any()):
            fresh = torch.randn(x.shape, generator=self._generator, dtype=torch.float64)
            fresh = fresh.to(x.device, x.dtype)
            unit = torch.where(lost[:, None], _unit(_off(_unit(fresh)[0], basis))[0], unit)
            length = torch.where(lost, torch.zeros_like(length), length)
        return unit, length


def _off(x: torch.Tensor, basis: torch.Tensor | None) -> torch.Tensor:
    if basis is None:
        return x
    # twice is enough to be orthogonal to rounding (Parlett, after Kahan)
    for _ in range(2):
        x = x - torch.einsum("bj,bjn->bn", torch.einsum("bjn,bn->bj", basis, x), basis)
    return x


def _unit(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    length = torch.linalg.vector_norm(x, dim=1)
    return x / length.clamp_min(torch.finfo(x.dtype).tiny)[:, None], length


def _grown(basis: torch.Tensor, used: int, shape: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    if used < (basis.shape[1] if basis.ndim == 3 else 0):
        return basis
    larger = torch.zeros((shape[0], max(16, 2 * used), shape[1]), dtype=like.dtype, device=like.device)
    if used:
        larger[:, :used] = basis[:, :used]
    return larger


def _numbers(entries: list[torch.Tensor]) -> Array:
    return np.asarray(torch.stack(entries, dim=1).double().cpu().numpy())
