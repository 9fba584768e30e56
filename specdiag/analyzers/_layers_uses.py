"""Which linear maps a network applies, and at which sizes, read off one forward pass or off bare weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from specdiag.errors import ModelError, SpecdiagError
from specdiag.linalg.layers import Convolution, convolution

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
KNOWN = (*CONVOLUTIONS, nn.Linear, nn.Embedding, nn.MultiheadAttention, *BATCH_NORMS)
NORMALISERS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One linear map as one call applies it.

    name: module path, with #2, #3, ... for further calls of the same module; exactly one of the three is given:
    layer, a convolution at the size of its input; matrix (outputs, inputs), for linear layers, embeddings and
    projections; scale (entries,), for a BatchNorm. kernel: the weight reshaped to (outputs, rest), or None.
    same_as: identifies calls that are the same map.
    """

    name: str
    same_as: tuple[Any, ...]
    layer: Convolution | None = None
    matrix: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    kernel: torch.Tensor | None = None


@dataclass(slots=True)
class Found:
    """Maps in the order of the forward pass, and modules with weights that are left out: name -> reason."""

    uses: list[Use] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def of_network(network: nn.Module, input_shape: tuple[int, ...], norms: bool) -> Found:
    """Every linear map that one forward pass of (1, *input_shape) applies.

    norms: also the scales of BatchNorm layers. Raises ModelError where the pass fails.
    """
    found = Found()
    calls: dict[str, int] = {}
    seen: set[int] = set()

    def visit(path: str, module: nn.Module, x: torch.Tensor) -> None:
        calls[path] = calls.get(path, 0) + 1
        seen.add(id(module))
        number = f"#{calls[path]}" if calls[path] > 1 else ""
        try:
            uses = _uses(path + number, module, x, norms)
        except SpecdiagError as error:
            found.skipped[path + number] = f"{error.what} {error.todo}".strip()
            return
        if isinstance(uses, str):
            found.skipped[path] = uses
        else:
            found.uses += uses
        if isinstance(module, nn.MultiheadAttention):
            seen.add(id(module.out_proj))

    def restart() -> None:
        found.uses.clear()
        found.skipped.clear()
        calls.clear()

    with _watching(network, visit):
        _forward(network, input_shape, restart)
    for path, module in network.named_modules():
        own = any(True for _ in module.parameters(recurse=False)) and ".parametrizations" not in path
        if id(module) not in seen and own:
            found.skipped.setdefault(path or "network", _reason(module) or "never called in a forward pass")
    return found


def of_tensors(tensors: Mapping[str, torch.Tensor], size: tuple[int, ...] | None) -> Found:
    """Weights without an architecture: matrices as they are; convolutions with stride 1 and full padding at `size`.

    Without a size convolutions have their reshaped kernel only.
    """
    found = Found()
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not (tensor.dtype.is_floating_point or tensor.is_quantized):
            continue
        weight, label = dense_weight(tensor), name.removesuffix(".weight")
        if weight.ndim == 2:
            found.uses.append(Use(label, (label,), matrix=weight, kernel=weight))
            continue
        axes = weight.ndim - 2
        spatial = (size or ())[-axes:]
        if weight.ndim > 5 or (spatial and len(spatial) < axes):
            found.skipped[label] = f"a tensor of shape {tuple(weight.shape)} is no kernel that specdiag knows"
            continue
        if not spatial:
            found.uses.append(Use(label, (label,), kernel=weight.flatten(1)))
            continue
        padding = [side // 2 for side in weight.shape[2:]]
        layer = convolution(weight, spatial, padding=padding)
        found.uses.append(Use(label, (label,), layer=layer, kernel=weight.flatten(1)))
    return found


def dense_weight(weight: Any) -> torch.Tensor:
    """A weight as a plain floating-point tensor: sparse ones filled in, quantised ones as the numbers they stand for."""
    value: torch.Tensor = weight() if callable(weight) else weight
    value = value.detach()
    if value.is_quantized:
        value = value.dequantize()
    if value.layout != torch.strided:
        value = value.to_dense()
    return value.cpu()


def _uses(name: str, module: nn.Module, x: torch.Tensor, norms: bool) -> list[Use] | str:
    """The maps of one call, or why there are none."""
    if isinstance(module, CONVOLUTIONS) or _is_quantised(module, "Conv"):
        return [_convolution(name, module, tuple(x.shape[-_axes(module) :]))]
    if isinstance(module, nn.Linear) or _is_quantised(module, "Linear"):
        weight = dense_weight(module.weight)
        return [Use(name, (id(module),), matrix=weight, kernel=weight)]
    if isinstance(module, nn.Embedding):
        weight = dense_weight(module.weight).T
        return [Use(name, (id(module),), matrix=weight, kernel=weight)]
    if isinstance(module, nn.MultiheadAttention):
        return _projections(name, module)
    if isinstance(module, BATCH_NORMS):
        if not norms:
            return "a scale per channel: --norms lists it, --fold-batchnorm folds it into the layer before"
        return _batch_norm(name, module, x)
    return _reason(module) or f"{type(module).__name__} is no linear map that specdiag knows"


def _reason(module: nn.Module) -> str:
    if isinstance(module, NORMALISERS):
        return "divides each input by its own spread: no linear map"
    if isinstance(module, nn.PReLU):
        return "an activation"
    if isinstance(module, nn.RNNBase):
        return "recurrent: no single linear map"
    return ""


def _convolution(name: str, module: Any, size: tuple[int, ...]) -> Use:
    transposed = "Transpose" in type(module).__name__
    weight = dense_weight(module.weight)
    layer = convolution(
        weight,
        size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        mode=module.padding_mode,
        transposed=transposed,
        output_padding=module.output_padding if transposed else 0,
    )
    # outputs first, as spectral normalisation reshapes a transposed kernel
    kernel = weight.transpose(0, 1).flatten(1) if transposed else weight.flatten(1)
    return Use(name, (id(module), size), layer=layer, kernel=kernel)


def _projections(name: str, module: nn.MultiheadAttention) -> list[Use]:
    joined: Any = module.in_proj_weight
    if joined is not None:
        parts = dense_weight(joined).chunk(3)
    else:
        parts = tuple(
            dense_weight(w) for w in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        )
    named = dict(zip(("q", "k", "v"), parts, strict=True)) | {"out": dense_weight(module.out_proj.weight)}
    return [
        Use(f"{name}.{part}_proj", (id(module), part), matrix=weight, kernel=weight)
        for part, weight in named.items()
    ]


def _batch_norm(name: str, module: Any, x: torch.Tensor) -> list[Use] | str:
    if module.running_var is None:
        return "BatchNorm without running statistics: no linear map"
    scale = torch.rsqrt(module.running_var.double() + module.eps)
    if module.weight is not None:
        scale = scale * module.weight.detach().double()
    cells = x[0, 0].numel() if x.ndim > 2 else 1
    return [Use(name, (id(module), cells), scale=scale.detach().cpu().repeat_interleave(cells))]


def _is_leaf(module: nn.Module) -> bool:
    """A module with weights of its own and no children, or a quantised one, which keeps its weights packed."""
    if next(module.children(), None) is not None:
        return False
    return any(True for _ in module.parameters(recurse=False)) or "quantized" in type(module).__module__


def _axes(module: Any) -> int:
    return len(module.kernel_size)


def _is_quantised(module: nn.Module, kind: str) -> bool:
    return "quantized" in type(module).__module__ and kind in type(module).__name__


@contextmanager
def _watching(network: nn.Module, visit: Callable[[str, nn.Module, torch.Tensor], None]) -> Iterator[None]:
    """Call `visit` before every call of a module with weights of its own; nothing is left on the network after."""
    handles = []

    def hook_for(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            if values:
                visit(path, module, values[0])

        return hook

    fast = torch.backends.mha.get_fastpath_enabled()
    # the fused encoder calls no submodules
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for path, module in network.named_modules():
            if isinstance(module, KNOWN) or _is_leaf(module):
                handles.append(module.register_forward_pre_hook(hook_for(path), with_kwargs=True))
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


def _forward(network: nn.Module, input_shape: tuple[int, ...], restart: Callable[[], None]) -> None:
    first = next(network.parameters(), torch.zeros(1))
    dtype = first.dtype if first.dtype.is_floating_point else torch.float32
    problems = []
    # token networks take whole numbers
    for kind in (dtype, torch.long):
        restart()
        try:
            with torch.no_grad():
                network(torch.zeros((1, *input_shape), dtype=kind, device=first.device))
            return
        except Exception as error:
            problems.append(error)
    raise ModelError(
        f"The network does not run on an input of shape {'x'.join(map(str, input_shape))}: {problems[0]}",
        "Pass the shape of one sample with --input-size.",
    ) from problems[0]
