"""ONNX graphs, run by onnxruntime. They answer, but cannot be differentiated: Jacobians come from regression.

An ONNX graph is data for an interpreter of fixed operators, without access to files: none of its bytes is code.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from specdiag.errors import CheckpointError, ModelError
from specdiag.loading.programs import Carried
from specdiag.loading.readers import Content
from specdiag.loading.trusted import UNSEEN

FINDING = (
    "SD313 ONNX: outputs by onnxruntime; Jacobians by --method regression --activations free, or difference."
)
STANDARD = ("", "ai.onnx", "ai.onnx.ml")


def read(path: Path) -> Content:
    """The weights of an ONNX graph and the graph as a network. Raises CheckpointError (`onnx`) without onnxruntime."""
    try:
        import onnx  # type: ignore[import-not-found, import-untyped, unused-ignore]
        import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        todo = "Install it with: pip install 'specdiag[onnx]'"
        what = f"{path} is an ONNX graph, and onnxruntime is not installed."
        raise CheckpointError(what, todo, reason="onnx") from None
    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        what = f"{path} looks like an ONNX graph, but cannot be read ({detail})."
        raise CheckpointError(what, "Export it again.", reason="onnx") from error
    outside = [entry.name for entry in model.graph.initializer if entry.external_data]
    if outside:
        what = f"{path} keeps weights in other files ('{outside[0][:80]}')."
        raise CheckpointError(what, "Save it as one file.", reason="onnx-external-data")
    strange = [entry.domain for entry in model.opset_import if entry.domain not in STANDARD]
    used = {node.domain for node in model.graph.node}
    if any(domain in used for domain in strange):
        what = f"{path} uses operators of '{strange[0][:80]}', beyond ONNX's own."
        raise CheckpointError(what, "Export it with standard operators.", reason="onnx-operators")
    tensors = {
        entry.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(entry)))
        for entry in model.graph.initializer
        if entry.data_type in NUMBERS
    }
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(path.read_bytes(), settings, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in TYPES or not inputs[0].shape:
        what = f"{path} takes {len(inputs)} inputs ({', '.join(entry.type for entry in inputs)}), not one tensor."
        raise CheckpointError(what, "Export it with one floating-point input.", reason="onnx-inputs")
    sides = [side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape]
    shape = tuple(side for side in sides[1:] if side is not None)
    network = Graph(session, inputs[0].name, TYPES[inputs[0].type], sides[0])
    carried = Carried(network, "ONNX graph", shape if len(shape) == len(sides) - 1 else None)
    return Content(tensors, findings=(FINDING, UNSEEN), carried=carried)


# TensorProto: float, uint8, int8, int32, int64, bool, float16, double
NUMBERS = (1, 2, 3, 6, 7, 9, 10, 11)
TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class Graph(nn.Module):
    """An onnxruntime session as a module; one that was exported for so many samples runs on pieces of that size."""

    outputs_only = True

    def __init__(self, session: Any, name: str, kind: Any, samples: int | None) -> None:
        super().__init__()
        self.session, self.name, self.kind, self.samples = session, name, kind, samples

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        # a session cannot be copied, and nothing changes it
        return copy.copy(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The first output, (N, ...), in the dtype of x."""
        answer: torch.Tensor = _Answer.apply(x, self)  # type: ignore[no-untyped-call]
        return answer

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """As `forward`, without a graph."""
        values = np.ascontiguousarray(x.detach().cpu().numpy().astype(self.kind, copy=False))
        size = self.samples or max(1, len(values))
        parts = []
        for start in range(0, len(values), size):
            part = values[start : start + size]
            missing = size - len(part)
            full = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            parts.append(self.session.run(None, {self.name: full})[0][: len(part)])
        return torch.from_numpy(np.concatenate(parts)).to(x)


class _Answer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, graph: Graph) -> torch.Tensor:
        return graph.run(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise ModelError(
            "An ONNX graph cannot be differentiated.",
            "Use --method regression --activations free (spectrum, jacobian), or give the torch checkpoint.",
        )
