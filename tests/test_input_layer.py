"""The Jacobian with respect to the output of a module: embeddings of a text model, inner activations."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from command import digits_checkpoint, run
from torch import nn

from specdiag.errors import ModelError, UsageError
from specdiag.jobs.inner import cut, from_layer
from specdiag.loading.datasets import load_data

SOURCE = """
import torch
from torch import nn


class Text(nn.Module):
    def __init__(self, positions=True):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.recurrent = nn.GRU(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        z = self.attention(self.embedding(tokens))
        return self.head(self.recurrent(z)[0][:, -1])
"""


def text_model(tmp_path: Path) -> tuple[nn.Module, Path, Path]:
    """(network, checkpoint, data) of token numbers (20, 7)."""
    (tmp_path / "text.py").write_text(SOURCE)
    space: dict = {}
    exec(SOURCE, space)
    torch.manual_seed(0)
    network = space["Text"]().eval()
    torch.save(network.state_dict(), tmp_path / "text.pt")
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "tokens.npz",
        x=generator.integers(0, 50, (20, 7)),
        y=generator.integers(0, 3, 20),
    )
    return network, tmp_path / "text.pt", tmp_path / "tokens.npz"


def command(tmp_path: Path, analyzer: str, *flags: object):
    return run(
        analyzer,
        tmp_path / "text.pt",
        "--arch",
        f"{tmp_path / 'text.py'}:Text",
        "--data",
        tmp_path / "tokens.npz",
        "-n",
        4,
        "-q",
        "--out",
        tmp_path / "out",
        *flags,
    )


def test_embeddings_of_a_text_model(tmp_path: Path) -> None:
    network, _, data = text_model(tmp_path)
    done = command(tmp_path, "spectrum", "--input-layer", "embedding", "--dtype", "float64")
    assert done.exit_code == 0, done.stderr
    with h5py.File(tmp_path / "out" / "text.h5") as file:
        found, facts = file["spectrum/singular_values"][:], json.loads(file["spectrum"].attrs["specdiag"])
    x = torch.from_numpy(load_data(str(data), samples=4).x).long()
    network = network.double()

    def rest(value: torch.Tensor) -> torch.Tensor:
        return network.head(network.recurrent(network.attention(value))[0][:, -1])

    for i, tokens in enumerate(x):
        # the embeddings are stored in float32
        e = network.embedding(tokens[None]).detach().float().double()
        matrix = torch.autograd.functional.jacobian(rest, e).reshape(3, -1)
        assert np.allclose(found[i], torch.linalg.svdvals(matrix).numpy(), rtol=1e-9)
    assert facts["settings"]["checkpoint"]["input_layer"] == "embedding"
    assert any("output of 'embedding', 7x8 values" in note for note in facts["notes"])
    checked = run("verify", tmp_path / "out" / "text.h5")
    assert checked.exit_code == 0, checked.stderr


@pytest.mark.parametrize(
    "analyzer", ["jacobian", "alignment", "robustness", "linearity", "gain", "gradients", "margins"]
)
def test_other_analyzers_of_embeddings(tmp_path: Path, analyzer: str) -> None:
    text_model(tmp_path)
    done = command(tmp_path, analyzer, "--input-layer", "embedding")
    assert done.exit_code == 0 or "internal error" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    if analyzer not in ("gain", "margins"):
        assert done.exit_code == 0, done.stderr


def test_without_it_tokens_have_no_derivative(tmp_path: Path) -> None:
    text_model(tmp_path)
    done = command(tmp_path, "spectrum")
    assert done.exit_code == 2
    assert "--input-layer" in done.stderr


def test_an_inner_layer_of_a_convolutional_network(tmp_path: Path) -> None:
    path = digits_checkpoint(tmp_path / "cnn.pt")
    done = run(
        "spectrum", path, "-n", 3, "-q", "--out", tmp_path, "--input-layer", "conv2", "--layer", "conv3"
    )
    assert done.exit_code == 0, done.stderr
    unknown = run("spectrum", path, "-n", 3, "-q", "--out", tmp_path, "--input-layer", "conf2")
    assert unknown.exit_code == 2
    assert "Did you mean conv2" in unknown.stderr


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu())


def test_a_way_around_the_module_is_explained() -> None:
    torch.manual_seed(0)
    data = load_data("random", samples=3, input_shape=(4,))
    x = torch.from_numpy(data.x)
    with pytest.raises(ModelError, match="not only through 'first'"):
        from_layer(Skipping(), "first", x, data)
    with pytest.raises(UsageError, match="no module 'third'"):
        from_layer(Skipping(), "third", x, data)
    network = nn.Sequential(Skipping(), nn.Linear(4, 2))
    tail, moved = from_layer(network, "0", x, data)
    assert torch.allclose(tail(torch.from_numpy(moved.x)), network[1](torch.from_numpy(moved.x)))
    assert moved.sha256 != data.sha256


def test_copies_of_a_cut_network_are_cut() -> None:
    import copy

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    reference = copy.deepcopy(network)
    tail = copy.deepcopy(cut(network, "1", torch.zeros(1, 4)))
    value = torch.rand(6, 5)
    assert torch.equal(tail(value), reference[2](value))
    assert not tail[1]._forward_hooks
