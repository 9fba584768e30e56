"""Architectures of transformers and graphs of ONNX: optional libraries; their absence names the command that helps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import run

from specdiag.errors import ArchitectureError, CheckpointError, MissingExtra
from specdiag.loading import architectures
from specdiag.loading.checkpoints import read_checkpoint

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "num_labels": 10,
}


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'specdiag\[hf\]'"):
        architectures.build("hf:vit")


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'specdiag\[timm\]'"):
        architectures.build("timm:resnet18")


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x10" + bytes(30))
    with pytest.raises(CheckpointError, match=r"pip install 'specdiag\[onnx\]'"):
        read_checkpoint(path)
    assert run("spectrum", path).exit_code == 3


def hf_folder(folder: Path) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("vit", **TINY)
    network = transformers.AutoModelForImageClassification.from_config(config).eval()
    network.save_pretrained(folder)
    return network


def test_a_folder_of_transformers_brings_its_architecture(tmp_path: Path) -> None:
    network = hf_folder(tmp_path / "vit")
    without = run("spectrum", tmp_path / "vit", "--data", "digits", "-n", 2, "--out", tmp_path / "o")
    assert without.exit_code == 2
    assert "how its inputs were normalised is not known" in without.stderr
    settings = {"image_mean": [0.5], "image_std": [0.25]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))
    done = run(
        *("spectrum", tmp_path / "vit", "--data", "digits", "-n", 2, "--dtype", "float64"),
        *("--out", tmp_path / "o", "--json"),
    )
    assert done.exit_code == 0, done.stderr
    assert "--mean 0.5 --std 0.25 (stated in the folder)" in done.stderr
    import h5py

    from specdiag.loading.datasets import load_data

    with h5py.File(tmp_path / "o" / "vit.h5") as file:
        found = file["spectrum/sigma_max"][:]
    x = torch.from_numpy(load_data("digits", samples=2).x).double()
    network = network.double()
    for i, sample in enumerate(x):
        matrix = torch.autograd.functional.jacobian(lambda v: network((v - 0.5) / 0.25).logits, sample[None])
        assert np.isclose(found[i], torch.linalg.svdvals(matrix.reshape(10, -1))[0].item(), rtol=1e-9)


def test_names_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    network = architectures.build("hf:vit", TINY)
    assert type(network).__name__ == "ViTForImageClassification"
    assert architectures.input_shape("hf:vit", TINY) == (1, 8, 8)
    with pytest.raises(ArchitectureError, match="Did you mean vit"):
        architectures.build("hf:vitt")
    with pytest.raises(ArchitectureError, match="neither an image nor a text classifier"):
        architectures.build("hf:whisper")


def graph(path: Path, samples: int | str, side: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """tanh(x W + b) as an ONNX file; returns W (side, 3) and b."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weight = generator.standard_normal((side, 3)).astype(np.float32)
    bias = generator.standard_normal(3).astype(np.float32)
    made = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "head.weight", "head.bias"], ["z"]),
            helper.make_node("Tanh", ["z"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [samples, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [samples, 3])],
        [numpy_helper.from_array(weight, "head.weight"), numpy_helper.from_array(bias, "head.bias")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return weight, bias


@pytest.mark.parametrize("samples", ["n", 1, 4])
@pytest.mark.parametrize("method", ["regression", "difference"])
def test_an_onnx_graph(tmp_path: Path, samples: int | str, method: str) -> None:
    import h5py

    weight, bias = graph(tmp_path / "tiny.onnx", samples)
    x = np.random.default_rng(1).random((5, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    flags = ["--method", method] + (
        ["--activations", "free", "--radius", "0.001"] if method == "regression" else []
    )
    done = run(
        *("jacobian", tmp_path / "tiny.onnx", "--data", tmp_path / "x.npz", "-n", 3, "-q"),
        *("--out", tmp_path / "o", *flags),
    )
    assert done.exit_code == 0, done.stderr
    with h5py.File(tmp_path / "o" / "tiny.h5") as file:
        found, index = file["jacobian/matrix"][:], file["jacobian/sample"][:]
    for i, place in enumerate(index):
        slope = 1 - np.tanh(x[place] @ weight + bias) ** 2
        assert np.allclose(found[i], slope[:, None] * weight.T, atol=5e-3)


def test_what_an_onnx_graph_cannot(tmp_path: Path) -> None:
    graph(tmp_path / "tiny.onnx", "n")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).random((5, 6)), y=np.arange(5) % 3)
    given = ("--data", tmp_path / "x.npz", "-n", 3, "-q", "--out", tmp_path / "o")
    for analyzer, flags in (
        ("spectrum", ()),
        ("spectrum", ("--method", "gram")),
        ("spectrum", ("--method", "regression")),
        ("gradients", ()),
        ("alignment", ("--eps", "0.1")),
    ):
        done = run(analyzer, tmp_path / "tiny.onnx", *given, *flags)
        assert done.exit_code == 2, (analyzer, flags, done.stderr)
        assert "internal error" not in done.stderr
        assert "--activations free" in done.stderr
    assert run("layers", tmp_path / "tiny.onnx", "-q", "--out", tmp_path / "o").exit_code == 0
    assert "head.weight" in run("inspect", tmp_path / "tiny.onnx", "--json").stdout
