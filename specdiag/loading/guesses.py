"""Which known architectures could have these names and shapes? Cheap: nothing is built here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from importlib.metadata import version

from specdiag.loading.factories import DEPTHS, torchvision_names
from specdiag.loading.matching import COUNTER, Shapes
from specdiag.loading.torchvision_names import FINGERPRINTS, TABLE_OF

Guess = tuple[str, dict[str, object]]
CLASSES = 1000


def guesses(shapes: Shapes) -> Iterator[Guess]:
    """(spec, args) worth building and comparing."""
    plain = {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}
    yield from _cnn(plain)
    yield from _resnet(plain)
    yield from _mlp(plain)
    yield from _lenet(plain)
    yield from _papers(plain)
    yield from _torchvision(plain)


def fingerprint(names: list[str]) -> str:
    """Twelve hexadecimal digits that stand for a set of names, BatchNorm's counters left out."""
    text = "\n".join(sorted(name for name in names if not name.endswith(COUNTER)))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _cnn(shapes: Shapes) -> Iterator[Guess]:
    first, last = shapes.get("conv1.weight", ()), shapes.get("linear.weight", ())
    if len(first) != 4 or len(last) != 2 or first[0] == 0:
        return
    width, channels, classes = first[0], first[1], last[0]
    for spec, convolutions, factor in (("cnn4", 4, 2), ("cnn7", 7, 8)):
        side = math.isqrt(last[1] // (factor * width))
        for norm, tensors in (("batch", 5), ("none", 2)):
            if len(shapes) == tensors * convolutions + 2 and side >= 1:
                # several sizes give the same shapes and the same function: the smallest stands for them
                size = 4 * side if spec == "cnn4" else 16 * (side + 1)
                args: dict[str, object] = {
                    "width": width,
                    "classes": classes,
                    "channels": channels,
                    "size": size,
                }
                yield spec, args if norm == "batch" else {**args, "norm": norm}


def _resnet(shapes: Shapes) -> Iterator[Guess]:
    first, last = shapes.get("conv1.weight", ()), shapes.get("linear.weight", ())
    if len(first) != 4 or len(last) != 2 or "layer3.0.conv1.weight" not in shapes:
        return
    args: dict[str, object] = {"width": first[0], "classes": last[0], "channels": first[1]}
    defaults = {"width": 16, "classes": 10, "channels": 3}
    args = {key: value for key, value in args.items() if value != defaults[key]}
    if "layer2.0.shortcut.0.weight" in shapes:
        args["shortcut"] = "B"
    if "bn1.weight" not in shapes:
        args["norm"] = "none"
    blocks = sum(1 for name in shapes if name.startswith("layer1.") and name.endswith(".conv1.weight"))
    if 6 * blocks + 2 in DEPTHS:
        yield f"resnet{6 * blocks + 2}", args


def _mlp(shapes: Shapes) -> Iterator[Guess]:
    last = shapes.get("linear.weight", ())
    if len(last) != 2:
        return
    count = sum(1 for name in shapes if name.startswith("hidden.") and name.endswith(".weight"))
    hidden = [shapes.get(f"hidden.{number}.weight", ()) for number in range(count)]
    if any(len(shape) != 2 for shape in hidden):
        return
    args: dict[str, object] = {"sizes": [*(shape[1] for shape in hidden), last[1], last[0]]}
    if "linear.bias" not in shapes:
        args["bias"] = False
    yield "mlp", args


def _lenet(shapes: Shapes) -> Iterator[Guess]:
    first, middle, last = (
        shapes.get("conv1.weight", ()),
        shapes.get("fc1.weight", ()),
        shapes.get("fc3.weight", ()),
    )
    if len(first) != 4 or len(middle) != 2 or len(last) != 2:
        return
    side = math.isqrt(middle[1] // 16)
    # padded small images and larger ones without padding have the same shapes, but are not the same function
    for size in (4 * side + 8, 4 * side + 12):
        yield "lenet", {"classes": last[0], "channels": first[1], "size": size}


def _papers(shapes: Shapes) -> Iterator[Guess]:
    """Networks of the papers; where shapes do not fix the function, every reading of them."""
    last = shapes.get("linear.weight", shapes.get("fc3.weight", shapes.get("fc.weight", ())))
    first = shapes.get("conv1.weight", shapes.get("conv1.conv.weight", ()))
    if len(first) != 4 or len(last) != 2:
        return
    width, channels, classes = first[0], first[1], last[0]
    args: dict[str, object] = {"classes": classes, "channels": channels}
    norm: dict[str, object] = (
        {} if any(name.endswith("running_mean") for name in shapes) else {"norm": "none"}
    )
    if "blocks.0.narrow.conv.weight" in shapes:
        for activation in ("relu", "elu"):
            yield "inception-zhang", {**args, "activation": activation, **norm}
    elif shapes.get("layer1.0.conv2.weight") == (128, 128, 3, 3) and first[2] == 3:
        yield "wrn50-2", args
    elif "fc1.weight" in shapes and "conv4.weight" in shapes:
        side = math.isqrt(shapes["fc1.weight"][1] // max(1, 2 * width))
        plain = {**args, "width": width, "dense": shapes["fc1.weight"][0]}
        yield "carlini", {**plain, "size": 4 * side + 12}
        yield "carlini", {**plain, "size": 4 * side, "padding": 1}
    elif "fc1.weight" in shapes and width:
        side = math.isqrt(shapes["fc1.weight"][1] // width)
        batch: dict[str, object] = {} if norm else {"norm": "batch"}
        for activation in ("relu", "elu"):
            for lrn in (True, False):
                found = {"width": width, "size": 4 * side, "activation": activation, "lrn": lrn}
                yield "alexnet-zhang", {**args, **found, **batch}
    elif "conv8.weight" in shapes:
        # one size stands for all: dilation follows from it and leaves no trace
        yield "dilated8", {**args, "width": width, **norm}
    elif "conv6.weight" in shapes and width:
        side = math.isqrt(last[1] // width)
        yield "strided6", {**args, "width": width, "size": 32 * side, **norm}
        for pool in ("avg", "strided", "max"):
            yield "pool6", {**args, "width": width, "pool": pool, **norm}
    elif "conv3.weight" in shapes and width:
        side = math.isqrt(last[1] // (2 * width))
        yield "elunet", {**args, "width": width, "size": 4 * side + 24}
        yield "elunet", {**args, "width": width, "size": 4 * side}


def _torchvision(shapes: Shapes) -> Iterator[Guess]:
    names = FINGERPRINTS.get(fingerprint(list(shapes)), ())
    fresh: tuple[str, ...] = ()
    if tuple(int(part) for part in version("torchvision").split(".")[:2]) > TABLE_OF:
        listed = {name for group in FINGERPRINTS.values() for name in group}
        fresh = tuple(name for name in torchvision_names() if name not in listed)
    for name in (*names, *fresh):
        yield f"torchvision:{name}", with_classes(shapes)


def with_classes(shapes: Shapes) -> dict[str, object]:
    """The argument that gives a library's network the number of outputs of the weights."""
    classes = _classes(shapes)
    return {} if classes in (None, CLASSES) else {"num_classes": classes}


def _classes(shapes: Shapes) -> int | None:
    """Number of outputs of the last linear layer or 1x1 convolution in the file's order."""
    for name, shape in reversed(shapes.items()):
        if (
            name.endswith(".weight")
            and len(shape) in (2, 4)
            and name.startswith(("fc", "classifier", "head"))
        ):
            return shape[0]
    return None
