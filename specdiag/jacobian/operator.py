"""J v and J^T u at a batch of points: one forward pass is recorded, each product then costs about one pass.

J^T u is a backward pass. J v goes through the network with its nonlinearities frozen (`specdiag.linearise`) where
all of them have a rule of their own; otherwise by differentiating the backward pass once more, which is linear in u.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from specdiag.errors import SpecdiagError
from specdiag.kinks import KinkCounter
from specdiag.linalg.operators import LinearOperator
from specdiag.linearise import Linearised
from specdiag.model import Model

# frozen products that miss the backward pass by more than this are not trusted
AGREEMENT = 1e-3
GRAPH_BYTES = 2**29
LARGEST_BLOCK = 32


class Products:
    """Products with the Jacobians of a model at x (N, *input shape).

    copies: for N = 1, so many vectors share one backward pass, at the memory of so many samples. `outputs`: (N, K);
    `near_kink`: (N,) activations within rounding of a kink; `frozen`: whether J v goes by frozen nonlinearities.
    """

    def __init__(self, model: Model, x: torch.Tensor, layer: str = "logits", copies: int = 1) -> None:
        self._shape = model.input_shape
        self._channels_last = model.channels_last
        self.samples = len(x)
        self.width = copies if len(x) == 1 else len(x)
        linear = _frozen(model, x, layer)
        points = x.detach().repeat(copies, *([1] * (x.ndim - 1))) if len(x) == 1 else x.detach().clone()
        self._leaf = self._laid_out(points).requires_grad_(True)
        # the fused attention kernels cannot be differentiated twice
        kernels = nullcontext() if linear is not None else sdpa_kernel(SDPBackend.MATH)
        with torch.enable_grad(), kernels:
            with KinkCounter() as counter:
                self._graph = model.forward(self._leaf, layer)
            self.outputs = self._graph.detach()[: self.samples]
            self._linear = linear if linear is not None and self._agrees(linear) else None
            if self._linear is None:
                self._build_second(model, layer)
        counts = counter.counts
        none = torch.zeros(self.width, dtype=torch.int64, device=x.device)
        self.near_kink = (none if counts is None else counts)[: self.samples]

    @property
    def frozen(self) -> bool:
        """Whether J v goes by frozen nonlinearities."""
        return self._linear is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(K, D)."""
        return int(self.outputs.shape[1]), math.prod(self._shape)

    def pull(self, u: torch.Tensor) -> torch.Tensor:
        """J^T u: (N, K) -> (N, D), row i at sample i; any number of rows where N = 1."""
        if not self._graph.requires_grad:
            return torch.zeros((len(u), self.shape[1]), dtype=u.dtype, device=u.device)
        return self._in_blocks(
            u,
            lambda part: torch.autograd.grad(self._graph, self._leaf, part, retain_graph=True)[0].flatten(1),
        )

    def push(self, v: torch.Tensor) -> torch.Tensor:
        """J v: (N, D) -> (N, K), row i at sample i; any number of rows where N = 1."""
        if not self._graph.requires_grad:
            return torch.zeros((len(v), self.shape[0]), dtype=v.dtype, device=v.device)
        if self._linear is not None:
            return self._linear.jvp(self._laid_out(v.reshape(-1, *self._shape)))
        if not self._backward.requires_grad:
            return torch.zeros((len(v), self.shape[0]), dtype=v.dtype, device=v.device)
        return self._in_blocks(
            v,
            lambda part: torch.autograd.grad(
                self._backward, self._direction, part.reshape(self._leaf.shape), retain_graph=True
            )[0],
        )

    def operator(self) -> LinearOperator:
        """The N Jacobians as one operator."""
        return LinearOperator(
            self.shape, self.push, self.pull, self.outputs.dtype, self.outputs.device, self.samples
        )

    def _build_second(self, model: Model, layer: str) -> None:
        with sdpa_kernel(SDPBackend.MATH):
            self._graph = model.forward(self._leaf, layer)
        self._direction = torch.zeros_like(self._graph, requires_grad=True)
        self._backward = self._leaf
        if self._graph.requires_grad:
            (self._backward,) = torch.autograd.grad(
                self._graph, self._leaf, self._direction, create_graph=True
            )

    def _agrees(self, linear: Linearised) -> bool:
        """Whether <J v, u> by the frozen pass is <v, J^T u> by the backward pass, at one random pair."""
        if not self._graph.requires_grad:
            return True
        generator = torch.Generator().manual_seed(0)
        like = self._graph
        v = torch.randn(self.samples, self.shape[1], generator=generator, dtype=torch.float64).to(like)
        u = torch.randn(self.samples, self.shape[0], generator=generator, dtype=torch.float64).to(like)
        try:
            pushed = linear.jvp(self._laid_out(v.reshape(-1, *self._shape)))
        except (SpecdiagError, RuntimeError):
            return False
        pulled = self.pull(u)
        gap = ((pushed * u).sum(1) - (v * pulled).sum(1)).abs()
        scale = pushed.norm(dim=1) * u.norm(dim=1) + v.norm(dim=1) * pulled.norm(dim=1)
        return bool((gap <= AGREEMENT * scale).all())

    def _in_blocks(self, rows: torch.Tensor, product: object) -> torch.Tensor:
        """The product of blocks of exactly `width` rows, the last filled up with zeros."""
        parts = []
        for start in range(0, len(rows), self.width):
            part = rows[start : start + self.width]
            count = len(part)
            if count < self.width:
                part = torch.cat([part, part.new_zeros(self.width - count, part.shape[1])])
            parts.append(product(part)[:count])  # type: ignore[operator]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self._channels_last else x.contiguous()


def block_rows(model: Model) -> int:
    """Vectors that share one backward pass: their activations stay near 512 MB. Depends on shapes and dtype only."""
    item = torch.finfo(model.dtype).bits // 8
    return max(1, min(LARGEST_BLOCK, GRAPH_BYTES // max(1, item * model.facts.activations)))


def _frozen(model: Model, x: torch.Tensor, layer: str) -> Linearised | None:
    """The frozen network, where every nonlinearity has a rule of its own; None elsewhere."""
    try:
        linear = Linearised(lambda value: model.forward(value, layer), x)
    except (SpecdiagError, RuntimeError):
        return None
    return None if linear.general else linear
