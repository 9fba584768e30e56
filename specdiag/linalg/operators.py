"""A linear map given by its two products, without its matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

Product = Callable[[torch.Tensor], torch.Tensor]
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class LinearOperator:
    """A linear map R^n -> R^m, or one such map per sample.

    shape: (m, n). forward: (B, n) -> (B, m), each row by itself; adjoint: (B, m) -> (B, n), its transpose.
    batch: None when every row meets the same map; N when row i meets map i and B must be N (the Jacobians
    of N samples). dtype, device: of the vectors it takes.
    """

    shape: tuple[int, int]
    forward: Product
    adjoint: Product
    dtype: torch.dtype = torch.float64
    device: torch.device = CPU
    batch: int | None = None

    def matmat(self, v: torch.Tensor) -> torch.Tensor:
        """A v for each row: (..., n) -> (..., m); (N, n) -> (N, m) where `batch` is N."""
        return self._apply(self.forward, v, self.shape[1], self.shape[0])

    def rmatmat(self, u: torch.Tensor) -> torch.Tensor:
        """A^T u for each row: (..., m) -> (..., n); (N, m) -> (N, n) where `batch` is N."""
        return self._apply(self.adjoint, u, self.shape[0], self.shape[1])

    @property
    def T(self) -> LinearOperator:  # noqa: N802
        """The transpose, (n, m)."""
        return replace(self, shape=(self.shape[1], self.shape[0]), forward=self.adjoint, adjoint=self.forward)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """The composition `self` after `other`; ValueError where the shapes do not meet."""
        if self.shape[1] != other.shape[0]:
            raise ValueError(f"shapes {self.shape} and {other.shape} do not compose")
        if self.batch is not None and other.batch is not None and self.batch != other.batch:
            raise ValueError(f"batches of {self.batch} and {other.batch} maps do not compose")
        return LinearOperator(
            (self.shape[0], other.shape[1]),
            lambda v: self.matmat(other.matmat(v)),
            lambda u: other.rmatmat(self.rmatmat(u)),
            self.dtype,
            self.device,
            self.batch if self.batch is not None else other.batch,
        )

    def dense(self, chunk: int = 256) -> torch.Tensor:
        """The matrix, (m, n), or (N, m, n) where `batch` is N: one product per column. For oracles."""
        m, n = self.shape
        if self.batch is None:
            eye = torch.eye(n, dtype=self.dtype, device=self.device)
            return torch.cat([self.matmat(part) for part in torch.split(eye, chunk)]).T.contiguous()
        columns = torch.zeros((self.batch, m, n), dtype=self.dtype, device=self.device)
        unit = torch.zeros((self.batch, n), dtype=self.dtype, device=self.device)
        for column in range(n):
            unit[:, column] = 1
            columns[:, :, column] = self.matmat(unit)
            unit[:, column] = 0
        return columns

    def _apply(self, product: Product, x: torch.Tensor, size: int, result: int) -> torch.Tensor:
        if x.shape[-1] != size:
            raise ValueError(f"expected vectors of length {size}, got {x.shape[-1]}")
        if self.batch is not None:
            if x.shape != (self.batch, size):
                raise ValueError(f"expected one row per map, ({self.batch}, {size}), got {tuple(x.shape)}")
            return product(x)
        return product(x.reshape(-1, size)).reshape(*x.shape[:-1], result)


def from_matrix(matrix: torch.Tensor) -> LinearOperator:
    """The operator of a matrix (m, n), or of one matrix per sample (N, m, n)."""
    if matrix.ndim == 2:
        return LinearOperator(
            (matrix.shape[0], matrix.shape[1]),
            lambda v: v @ matrix.T,
            lambda u: u @ matrix,
            matrix.dtype,
            matrix.device,
        )
    return LinearOperator(
        (matrix.shape[1], matrix.shape[2]),
        lambda v: torch.einsum("bmn,bn->bm", matrix, v),
        lambda u: torch.einsum("bmn,bm->bn", matrix, u),
        matrix.dtype,
        matrix.device,
        matrix.shape[0],
    )


def diagonal(scale: torch.Tensor) -> LinearOperator:
    """The operator x -> scale * x, scale (n,)."""
    size = scale.numel()
    return LinearOperator((size, size), lambda v: v * scale, lambda u: u * scale, scale.dtype, scale.device)


def adjoint_error(operator: LinearOperator, generator: torch.Generator, rows: int = 4) -> float:
    """Largest |<A v, u> - <v, A^T u>| / (||A v|| ||u|| + ||v|| ||A^T u||) for random pairs: about 0."""
    rows = operator.batch or rows
    m, n = operator.shape
    v = torch.randn(rows, n, generator=generator, dtype=torch.float64).to(operator.device, operator.dtype)
    u = torch.randn(rows, m, generator=generator, dtype=torch.float64).to(operator.device, operator.dtype)
    av, atu = operator.matmat(v), operator.rmatmat(u)
    gap = ((av * u).sum(1) - (v * atu).sum(1)).abs()
    scale = av.norm(dim=1) * u.norm(dim=1) + v.norm(dim=1) * atu.norm(dim=1)
    return float((gap / scale.clamp_min(torch.finfo(operator.dtype).tiny)).max())
