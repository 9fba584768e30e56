"""Robust linear regression with rank-one worst cases (roth2020 A.1; Bertsimas and Copenhaver 2018)."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch

Norm = Literal["l1", "l2", "linf"]
NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")
PAIRS = tuple(f"{g},{h}" for g, h in itertools.product(NORMS, NORMS))
_ORDER: dict[str, float] = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


def worst_case(residual: torch.Tensor, w: torch.Tensor, size: float, g: Norm, h: Norm) -> torch.Tensor:
    """The Delta with ||Delta||_{g,h} = size that raises g(residual - Delta w) most, (N, n, d).

    residual: (N, n) y - X w; w: (N, d). The sign is minus that of the printed eq. 16, which attains the minimum.
    """
    scaled = residual / _norm(residual, g)[:, None]
    return -size * scaled[:, :, None] * dual_vector(w, h)[:, None, :]


def dual_vector(w: torch.Tensor, h: Norm) -> torch.Tensor:
    """The v with dual norm h*(v) = 1 and v^T w = h(w), (N, d)."""
    if h == "l2":
        return w / _norm(w, h)[:, None]
    if h == "l1":
        return torch.where(w < 0, -1.0, 1.0).to(w.dtype)
    place = w.abs().argmax(1, keepdim=True)
    return torch.zeros_like(w).scatter_(1, place, torch.where(w.gather(1, place) < 0, -1.0, 1.0).to(w.dtype))


def identity_gap(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, size: float) -> torch.Tensor:
    """|g(y - (X + Delta) w) - (g(y - X w) + size h(w))| relative to the latter, (N, 9): one per pair g, h.

    x: (N, n, d); y: (N, n); w: (N, d).
    """
    residual = y - (x @ w[:, :, None])[:, :, 0]
    columns = []
    for g, h in itertools.product(NORMS, NORMS):
        delta = worst_case(residual, w, size, g, h)
        reached = _norm(residual - (delta @ w[:, :, None])[:, :, 0], g)
        bound = _norm(residual, g) + size * _norm(w, h)
        columns.append((reached - bound).abs() / bound)
    return torch.stack(columns, 1)


def _norm(x: torch.Tensor, which: Norm) -> torch.Tensor:
    length: torch.Tensor = torch.linalg.vector_norm(x, _ORDER[which], dim=1)
    return length
