"""Gradients of loss and logits in the input, for every label at once, and what is made of them.

With p the softmax of the logits f, the gradient of the cross-entropy loss of label y is sum_k p_k (grad f_k - grad f_y)
(simongabriel2019 eq. 9 and 10, whose printed sign is the opposite).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from specdiag.jacobian.rows import by_autograd

if TYPE_CHECKING:
    from specdiag.model import Model
    from specdiag.schema import AttackSpec

ORDERS: tuple[float, ...] = (1.0, 2.0, float("inf"))


def label_weights(logits: torch.Tensor) -> torch.Tensor:
    """Gradient in the logits of the cross-entropy loss of each label, (N, K labels, K logits) float64.

    The label's own entry is minus the sum of the others, which keeps its digits where softmax has saturated.
    """
    p = torch.softmax(logits.double(), 1)
    count = p.shape[1]
    eye = torch.eye(count, dtype=torch.bool, device=p.device)
    others = torch.where(eye, 0.0, p[:, None, :].expand(-1, count, -1))
    return torch.where(eye, -others.sum(2, keepdim=True), others)


def loss_gradient(logits: torch.Tensor, jacobian: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Gradient of the loss of `labels`, (N, D) float64. logits: (N, K); jacobian: (N, K, D); labels: (N,)."""
    rows = torch.arange(len(labels), device=labels.device)
    weights = label_weights(logits)[rows, labels]
    return (weights[:, None, :] @ jacobian.double())[:, 0]


def all_norms(values: torch.Tensor) -> torch.Tensor:
    """Norms of order 1, 2 and inf along the last axis, stacked behind it."""
    return torch.stack([torch.linalg.vector_norm(values, ord=q, dim=-1) for q in ORDERS], -1)


def cross_lipschitz(jacobian: torch.Tensor) -> torch.Tensor:
    """Mean over all pairs of classes of ||grad f_h - grad f_k||_2^2, (N,) (simongabriel2019 eq. 17)."""
    centred = jacobian.double() - jacobian.double().mean(1, keepdim=True)
    return 2 * centred.square().sum((1, 2)) / jacobian.shape[1]


def lower_bound(logits: torch.Tensor, jacobian: torch.Tensor, order: float) -> torch.Tensor:
    """min_k (f_c - f_k) / ||grad f_c - grad f_k||_order at x, c the answer, (N,) (simongabriel2019 eq. 16).

    A lower bound of the smallest perturbation that changes the answer as long as the ball of that size lies in one linear
    cell, an estimate beyond. Infinite where no logit moves.
    """
    values, jacobian = logits.double(), jacobian.double()
    answer = values.argmax(1)
    rows = torch.arange(len(values), device=values.device)
    gap = values[rows, answer][:, None] - values
    slope = torch.linalg.vector_norm(jacobian[rows, answer][:, None] - jacobian, ord=order, dim=2)
    reach = torch.where(slope > 0, gap / slope, torch.inf)
    return reach.scatter(1, answer[:, None], torch.inf).amin(1)


def norm_and_dual(spec: AttackSpec) -> tuple[Literal["l2", "linf"], float]:
    """Norm of an attack's ball and the order of the dual norm; an attack without a ball is measured in l2."""
    from specdiag.attacks._eps import norm_of

    norm = norm_of(spec) or "l2"
    return norm, 1.0 if norm == "linf" else 2.0


def least_gradient(model: Model, points: list[torch.Tensor]) -> torch.Tensor:
    """Smallest ||grad_x loss||_2 over all labels and the points given, (N,) float64.

    An upper estimate of kappa (farnia2019 Theorem 2), which is a minimum over whole balls.
    """
    found: Any = None
    for x in points:
        jacobian = by_autograd(model, x)
        every = label_weights(jacobian.outputs) @ jacobian.matrix.double()
        least = torch.linalg.vector_norm(every, dim=2).amin(1)
        found = least if found is None else torch.minimum(found, least)
    result: torch.Tensor = found
    return result


def towards_certainty(
    model: Model, x: torch.Tensor, length: torch.Tensor, norm: Literal["l2", "linf"]
) -> torch.Tensor:
    """One step of the given l2 length (or linf half width) down the loss of the network's own answer."""
    jacobian = by_autograd(model, x)
    gradient = loss_gradient(jacobian.outputs, jacobian.matrix, jacobian.outputs.argmax(1))
    if norm == "linf":
        step = gradient.sign() * length[:, None]
    else:
        size = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        step = torch.where(size > 0, gradient / size, 0.0) * length[:, None]
    return x - step.reshape(x.shape).to(x.dtype)
