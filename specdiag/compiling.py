"""Compile a frozen network's forward and row passes, where a compiler is at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def compiled(network: nn.Module, example: torch.Tensor) -> tuple[nn.Module, str]:
    """(`network` compiled for inputs that ask for gradients, '') or (`network` itself, why it is not).

    example: (N, *input shape) that a first pass is tried on, so that a missing compiler shows here and not in the
    middle of a run.
    """
    import torch._functorch.config as settings

    # a graph that is run backward once per output must keep its buffers
    settings.donated_buffer = False
    try:
        candidate: Any = torch.compile(network, dynamic=False)
        leaf = example.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
        with torch.enable_grad():
            out = candidate(leaf)
            torch.autograd.grad(out, leaf, torch.ones_like(out), retain_graph=True)
            torch.autograd.grad(out, leaf, torch.ones_like(out))
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:160]
        return network, f"Not compiled ({type(error).__name__}: {first}); running uncompiled."
    return candidate, ""
