"""A frozen network in input space: eval mode, no parameter gradients, normalisation inside.

Inputs are as the data set gives them (images in [0, 1]); Jacobians, eps and norms are in that space unless the
boundary is put after the normalisation by `space="model"`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from specdiag.compiling import compiled
from specdiag.errors import DataError, ModelError, UsageError, suggest
from specdiag.folding import fold_batchnorm
from specdiag.probing import first_tensor, probe

Space = Literal["data", "model"]
Scaling = Literal["channel", "per-image", "none"]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What happens to inputs before the first layer: (x - mean) / std per channel, each image to zero mean and unit
    variance (roth2020 A.4), or nothing.
    """

    kind: Scaling = "none"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Where a model comes from; stored with every result."""

    name: str = "model"
    path: str = ""
    sha256: str = ""
    architecture: str = ""
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    coverage: str = ""
    trusted: tuple[str, ...] = ()
    input_layer: str = ""


class Model:
    """A network ready to be measured.

    network: as loaded, frozen; fast: the same with BatchNorm folded, in the memory format of `channels_last`; both
    take normalised inputs. K outputs, D input values, F features (input of the last linear layer `head`).
    """

    def __init__(
        self,
        network: nn.Module,
        input_shape: tuple[int, ...],
        *,
        normalisation: Normalisation | None = None,
        info: ModelInfo | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        space: Space = "data",
        factory: Callable[[], nn.Module] | None = None,
        example: torch.Tensor | None = None,
    ) -> None:
        """Freeze, move and probe `network`.

        example: (2, *input_shape) real samples to probe on; without it, two uniform random ones. factory builds the
        same architecture with fresh weights, for `random_twin`.
        """
        _no_tf32()
        self.info = info or ModelInfo()
        self.normalisation = normalisation or Normalisation()
        self.input_shape = tuple(input_shape)
        self.device, self.dtype, self.space = torch.device(device), dtype, space
        self.factory = factory
        self.network = network.eval().requires_grad_(False).to(device=self.device, dtype=dtype)
        self._scale = Scaler(self.normalisation, self.input_shape).to(device=self.device, dtype=dtype)
        two = self._example(example)
        with torch.no_grad():
            entered = two if space == "model" else self._scale(two)
        self.facts = probe(self.network, entered)
        self.channels_last = self.facts.has_convolution and len(self.input_shape) == 3
        if self.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.fast, self.folded = fold_batchnorm(self.network, entered[:1])
        self.fast.eval().requires_grad_(False)
        self._compiled: tuple[int, nn.Module] | None = None

    @property
    def outputs(self) -> int:
        """K, the number of outputs per sample."""
        return self.facts.outputs

    @property
    def differentiable(self) -> bool:
        """Whether the network can be differentiated; ONNX graphs give outputs only."""
        return not getattr(self.network, "outputs_only", False)

    @property
    def inputs(self) -> int:
        """D, the number of input values per sample."""
        size = 1
        for side in self.input_shape:
            size *= side
        return size

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the modules that ran and put out one tensor, in order."""
        return tuple(dict.fromkeys(self.facts.layers))

    def to_input(self, x: Any) -> torch.Tensor:
        """An array or tensor (N, *input shape) on the model's device, in its dtype and memory format."""
        tensor = torch.as_tensor(x).to(device=self.device, dtype=self.dtype)
        if tuple(tensor.shape[1:]) != self.input_shape:
            raise DataError(
                f"The data have shape {tuple(tensor.shape[1:])}, the model takes {self.input_shape}.",
                "Pass the data set that the model was made for with --data.",
            )
        return (
            tensor.contiguous(memory_format=torch.channels_last)
            if self.channels_last
            else tensor.contiguous()
        )

    def to_model_space(self, x: torch.Tensor) -> torch.Tensor:
        """Data-space inputs moved to this model's space: normalised when the boundary lies after the normalisation."""
        return self._scale(x) if self.space == "model" else x

    def forward(self, x: torch.Tensor, layer: str = "logits") -> torch.Tensor:
        """Output (N, size) of `logits`, `features` (the input of the last linear layer) or a module by its path.

        Differentiable in x. x: (N, *input shape) in the model's space.
        """
        entered = x if self.space == "model" else self._scale(x)
        if layer == "logits":
            return first_tensor(self._network_at(entered)(entered)).flatten(1)
        if layer == "features":
            if self.facts.head is None:
                raise ModelError(
                    "The network does not end in a linear layer, so 'features' is not defined.",
                    "Name a layer with --layer; specdiag inspect lists them.",
                )
            return _capture(self.fast, self.facts.head, entered, of_input=True)
        return _capture(self._network_for(layer), layer, entered)

    def compile(self, samples: int) -> str:
        """Compile the row pass for batches of `samples`; returns why not where it cannot be, else ''."""
        with torch.no_grad():
            x = self.to_input(torch.full((samples, *self.input_shape), 0.5))
            entered = x if self.space == "model" else self._scale(x)
        network, reason = compiled(self.fast, entered)
        self._compiled = (samples, network) if not reason else None
        return reason

    @property
    def is_compiled(self) -> bool:
        """Whether the row pass is compiled."""
        return self._compiled is not None

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, K) without a graph."""
        with torch.no_grad():
            return self.forward(x)

    def size_of(self, layer: str) -> int:
        """Number of output values per sample of a layer, as `forward` returns them."""
        if layer == "logits":
            return self.outputs
        if layer == "features" and self.facts.head is not None:
            return self.facts.features
        shape = (1, *self.input_shape)
        with torch.no_grad():
            return int(
                self.forward(torch.full(shape, 0.5, device=self.device, dtype=self.dtype), layer).shape[1]
            )

    def head_weight(self) -> torch.Tensor:
        """Weight (K, F) of the last linear layer, where the network ends in one."""
        if self.facts.head is None:
            raise ModelError("The network does not end in a linear layer.")
        weight: Any = self.fast.get_submodule(self.facts.head).weight
        detached: torch.Tensor = weight.detach()
        return detached

    def random_twin(self, seed: int) -> Model:
        """The same architecture with fresh random weights, keyed by the seed; same normalisation, device and dtype."""
        if self.factory is None:
            raise ModelError(
                "The architecture cannot be rebuilt with random weights.", "Load it with --arch."
            )
        digest = hashlib.sha256(f"{seed}/random-twin".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
            network = self.factory()
        info = ModelInfo(
            name=f"{self.info.name} (random)",
            architecture=self.info.architecture,
            arch_args=self.info.arch_args,
        )
        return Model(
            network,
            self.input_shape,
            normalisation=self.normalisation,
            info=info,
            device=str(self.device),
            dtype=self.dtype,
            space=self.space,
            factory=self.factory,
        )

    def _network_at(self, entered: torch.Tensor) -> nn.Module:
        """The compiled network where it was compiled for this pass, else the plain one."""
        if self._compiled is None or len(entered) != self._compiled[0] or not entered.requires_grad:
            return self.fast
        return self._compiled[1]

    def _network_for(self, layer: str) -> nn.Module:
        if layer not in self.layers:
            raise UsageError(
                f"The network has no layer '{layer}' that puts out one tensor.",
                suggest(layer, list(self.layers)),
            )
        return self.network if layer in self.folded or layer in self.folded.values() else self.fast

    def _example(self, example: torch.Tensor | None) -> torch.Tensor:
        if example is None:
            generator = torch.Generator().manual_seed(0)
            example = torch.rand((2, *self.input_shape), generator=generator)
        elif example.shape[0] == 1:
            example = torch.cat([example, example.flip(-1)])
        if tuple(example.shape[1:]) != self.input_shape:
            raise DataError(
                f"The data have shape {tuple(example.shape[1:])}, the model takes {self.input_shape}."
            )
        return example[:2].to(device=self.device, dtype=self.dtype)


class Scaler(nn.Module):
    """A `Normalisation` as a module: data space in, what the network takes out."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, normalisation: Normalisation, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind = normalisation.kind
        if self.kind == "channel":
            mean, std = normalisation.mean, normalisation.std
            channels = input_shape[0]
            if len(mean) not in (1, channels) or len(std) not in (1, channels):
                raise UsageError(
                    f"--mean and --std need one value or one per channel ({channels}), not {len(mean)} and {len(std)}.",
                )
            if any(value <= 0 for value in std):
                raise UsageError("--std must be above zero.")
            shape = (1, -1) + (1,) * (len(input_shape) - 1)
            self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).reshape(shape))
            self.register_buffer("scale", 1 / torch.tensor(std, dtype=torch.float64).reshape(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised x, same shape."""
        if self.kind == "channel":
            return (x - self.mean) * self.scale
        if self.kind == "per-image":
            dims = tuple(range(1, x.ndim))
            centred = x - x.mean(dims, keepdim=True)
            variance = centred.square().mean(dims, keepdim=True)
            # a constant image must not divide by zero: the floor is the variance of one pixel one 8-bit level off
            return centred * torch.rsqrt(variance.clamp_min(1 / (255.0**2 * x[0].numel())))
        return x


class _Stop(Exception):
    """Ends a forward pass at the layer that was asked for."""


def _capture(network: nn.Module, layer: str, x: torch.Tensor, of_input: bool = False) -> torch.Tensor:
    found: list[torch.Tensor] = []

    def stop(value: torch.Tensor) -> None:
        found.append(value)
        raise _Stop

    module = network.get_submodule(layer)
    if of_input:
        handle = module.register_forward_pre_hook(lambda module, inputs: stop(inputs[0]))
    else:
        handle = module.register_forward_hook(lambda module, inputs, output: stop(first_tensor(output)))
    try:
        network(x)
    except _Stop:
        pass
    finally:
        handle.remove()
    return found[0].flatten(1)


@contextmanager
def input_graph(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """A leaf copy of x that asks for gradients, for passes that differentiate in the input."""
    with torch.enable_grad():
        yield x.detach().requires_grad_(True)


def _no_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
