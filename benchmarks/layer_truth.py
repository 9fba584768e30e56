"""Every singular value of every convolution of a CIFAR ResNet, from dense Gram matrices. Takes about an hour.

    python benchmarks/layer_truth.py CHECKPOINT [--layer NAME ...] [--out benchmarks/results/layer-truth.json]

Layers already in the file, made from the same checkpoint, are kept; so the run can be stopped and begun again.
For each layer: shape, number of values, mean, population STD, largest and smallest value, 1,001 evenly spaced quantiles and
the seconds the eigenvalues took on one thread. Gram matrices leave values below about 1e-6 of the largest
uncertain; `sigma_min` is given for layers of at most 8,192 values, where they were computed again.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from specdiag.linalg import dense
from specdiag.linalg.layers import Convolution, from_module
from specdiag.linalg.stencil import Stencil
from specdiag.loading.networks.resnet_cifar import ResNetCifar

QUANTILES = 1001
REFINED = 8192


def convolutions(path: Path, depth: int = 20) -> dict[str, Convolution]:
    """The convolutions of a public CIFAR ResNet checkpoint as the network applies them."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    network = ResNetCifar(depth)
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    found: dict[str, Convolution] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: found.update(
                    {name: from_module(module, inputs[0].shape[2:])}
                )
            )
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    return found


def two_stage(stencil: Stencil) -> np.ndarray:
    """Square roots of the Gram matrix's eigenvalues, falling, by LAPACK's two-stage tridiagonal reduction.

    scipy does not offer that routine; the library that numpy brings has it.
    """
    (library,) = (Path(np.__file__).parent.parent / "numpy.libs").glob("libscipy_openblas64_*")
    solve = ctypes.CDLL(str(library)).scipy_LAPACKE_dsyevd_2stage64_
    solve.restype = ctypes.c_int64
    (part, copies), *others = stencil.split()
    if part.groups != 1 or copies != 1 or others:
        raise ValueError("only for one stencil without groups")
    matrix = part.sparse(0)
    gram = np.asfortranarray((matrix.T @ matrix).toarray())
    side = len(gram)
    values = np.empty(side)
    pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)  # noqa: E731
    column_major, n = ctypes.c_int(102), ctypes.c_int64(side)
    failed = solve(
        column_major, ctypes.c_char(b"N"), ctypes.c_char(b"L"), n, pointer(gram), n, pointer(values)
    )
    if failed:
        raise RuntimeError(f"LAPACK ended with {failed}")
    return np.sqrt(np.maximum(values[::-1], 0.0))[: stencil.count]


def measure(layer: Convolution) -> dict[str, object]:
    """The spectrum of one layer, in numbers that fit a file."""
    stencil = layer.stencil()
    start = time.perf_counter()
    if stencil.count > REFINED:
        # several times faster than the one-stage reduction, whose products stream the whole matrix
        values = two_stage(stencil)
    else:
        values = dense.singular_values(stencil)
    return {
        "shape": list(stencil.shape),
        "count": len(values),
        "seconds": round(time.perf_counter() - start, 1),
        "sigma_max": float(values[0]),
        "sigma_min": float(values[-1]) if stencil.count <= REFINED else None,
        "mean": float(values.mean()),
        "std": float(values.std()),
        "quantiles": [float(value) for value in np.quantile(values, np.linspace(0, 1, QUANTILES))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layer", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "layer-truth.json")
    options = parser.parse_args()
    digest = hashlib.sha256(options.checkpoint.read_bytes()).hexdigest()
    record = {
        "command": f"python benchmarks/layer_truth.py {options.checkpoint.name}",
        "checkpoint": options.checkpoint.name,
        "sha256": digest,
        "versions": f"numpy {np.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}",
        "layers": {},
    }
    if options.out.exists():
        earlier = json.loads(options.out.read_text())
        if earlier["sha256"] == digest:
            record["layers"] = earlier["layers"]
    todo = convolutions(options.checkpoint)
    for name in sorted(todo, key=lambda name: min(todo[name].shape)):
        if name in record["layers"] or (options.layer and name not in options.layer):
            continue
        record["layers"][name] = measure(todo[name])
        options.out.write_text(json.dumps(record) + "\n")
        print(
            name,
            {key: value for key, value in record["layers"][name].items() if key != "quantiles"},
            flush=True,
        )


if __name__ == "__main__":
    main()
