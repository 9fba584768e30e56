"""What several of the networks share: choice of activation and normalisation, and how weights start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from specdiag.errors import ArchitectureError

Activation = Callable[[torch.Tensor], torch.Tensor]
Padding = Literal["zeros", "circular"]
ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "elu": F.elu}


def activation_named(name: str) -> Activation:
    """The function called `relu` or `elu`; raises ArchitectureError on another name."""
    if name not in ACTIVATIONS:
        raise ArchitectureError(f"activation={name!r} is not known.", "It is 'relu' or 'elu'.")
    return ACTIVATIONS[name]


def check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ArchitectureError unless the value of an argument is one of the choices."""
    if value not in choices:
        shown = " or ".join(f"'{choice}'" for choice in choices)
        raise ArchitectureError(f"{argument}={value!r} is not known.", f"It is {shown}.")


def check_norm(norm: str) -> None:
    """Raise ArchitectureError unless `norm` is `batch` or `none`."""
    check_choice("norm", norm, ("batch", "none"))


def add_convolution(
    network: nn.Module,
    number: int,
    inner: int,
    outer: int,
    *,
    norm: str,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    padding_mode: Padding = "zeros",
) -> None:
    """Add `conv{number}` (3x3) and, with norm=batch, `bn{number}`; without it the convolution has a bias."""
    convolution = nn.Conv2d(
        inner,
        outer,
        3,
        stride=stride,
        padding=padding,
        dilation=dilation,
        bias=norm == "none",
        padding_mode=padding_mode,
    )
    network.add_module(f"conv{number}", convolution)
    if norm == "batch":
        network.add_module(f"bn{number}", nn.BatchNorm2d(outer))


def convolved(network: nn.Module, number: int, x: torch.Tensor) -> torch.Tensor:
    """`conv{number}`, `bn{number}` where there is one, ReLU."""
    x = network.get_submodule(f"conv{number}")(x)
    if hasattr(network, f"bn{number}"):
        x = network.get_submodule(f"bn{number}")(x)
    return F.relu(x)


def start_as_he(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in (He et al. 2015), biases zero: variance survives ReLU layers."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
