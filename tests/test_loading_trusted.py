"""Code in checkpoints: run when asked for by a flag and said in the results, never otherwise, never where dangerous."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from command import run
from torch import nn

from specdiag.errors import CheckpointError, ModelError
from specdiag.linearise import Linearised
from specdiag.loading.checkpoints import Trust, read_checkpoint

SOURCE = """
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(256, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv1(x))).flatten(1))


class Marking(Net):
    def __setstate__(self, state):
        Path(state["mark"]).touch()
        self.__dict__.update(state)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module of the user's, importable from the working directory alone."""
    (tmp_path / "users_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("users_nets", None)
    sys.path.insert(0, str(tmp_path))
    import users_nets

    yield users_nets
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))
    sys.modules.pop("users_nets", None)


def network(nets) -> nn.Module:
    torch.manual_seed(0)
    return nets.Net().eval()


def truth(net: nn.Module) -> np.ndarray:
    """Largest singular value of each of the first digits, by a dense Jacobian in float64."""
    from specdiag.loading.datasets import load_data

    x = torch.from_numpy(load_data("digits", samples=3).x).double()
    net = net.double()
    rows = [torch.autograd.functional.jacobian(net, sample[None]).reshape(10, -1) for sample in x]
    return torch.stack([torch.linalg.svdvals(matrix)[0] for matrix in rows]).numpy()


def spectrum(path: Path, *flags: str) -> tuple[np.ndarray, dict]:
    out = run("spectrum", path, "--data", "digits", "-n", 3, "--out", path.parent / "out", "-q", *flags)
    assert out.exit_code == 0, out.stderr
    with h5py.File(path.parent / "out" / f"{path.stem}.h5") as file:
        group = file["spectrum"]
        return group["sigma_max"][:], json.loads(group.attrs["specdiag"])


def save(kind: str, net: nn.Module, path: Path) -> Path:
    x = torch.rand(2, 1, 8, 8)
    if kind in ("whole", "legacy"):
        torch.save(net, path, _use_new_zipfile_serialization=kind == "whole")
    elif kind == "inside":
        torch.save({"model": nn.DataParallel(net), "epoch": 3}, path)
    elif kind == "script":
        torch.jit.save(torch.jit.script(net), path)
    elif kind == "trace":
        torch.jit.save(torch.jit.trace(net, x), path)
    elif kind == "static":
        torch.export.save(torch.export.export(net, (x,)), path)
    elif kind == "dynamic":
        shapes = ({0: torch.export.Dim("samples")},)
        torch.export.save(torch.export.export(net, (x,), dynamic_shapes=shapes), path)
    else:
        with torch.package.PackageExporter(str(path)) as exporter:
            exporter.extern(["torch.**", "pathlib"])
            exporter.intern("users_nets")
            exporter.save_pickle("model", "model.pkl", net)
    return path


CASES = {
    "whole": ("--trust-pickle", "pickle", "pickled users_nets.Net"),
    "legacy": ("--trust-pickle", "pickle", "pickled users_nets.Net"),
    "inside": ("--trust-pickle", "pickle", "pickled users_nets.Net"),
    "script": ("--trust-code", "code", "TorchScript"),
    "trace": ("--trust-code", "code", "TorchScript"),
    "static": ("--trust-code", "code", "torch.export program"),
    "dynamic": ("--trust-code", "code", "torch.export program"),
    "package": ("--trust-code", "code", "pickled <torch_package_"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CASES)
def test_a_network_out_of_a_file_is_measured_and_named(nets, tmp_path: Path, kind: str) -> None:
    flag, used, title = CASES[kind]
    path = save(kind, network(nets), tmp_path / f"{kind}.bin")
    without = run("spectrum", path, "--data", "digits", "-n", 3, "--out", tmp_path / "none", "-q")
    assert without.exit_code in (2, 3)
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").glob("*.h5"))
    found, facts = spectrum(path, flag)
    assert np.allclose(found, truth(network(nets)), rtol=1e-4)
    assert facts["checkpoint"]["trusted"] == [used]
    assert facts["checkpoint"]["architecture"].startswith(title)
    assert any(note.startswith(f"SD311 {flag}") for note in facts["notes"])
    results = next(path.parent.rglob("*.h5"))
    assert run("verify", results, path).exit_code in (2, 3)
    checked = run("verify", results, path, flag)
    assert checked.exit_code == 0, checked.stderr


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["script", "dynamic"])
@pytest.mark.parametrize("method", ["gram", "krylov --top 2", "regression"])
def test_programs_by_every_method(nets, tmp_path: Path, kind: str, method: str) -> None:
    path = save(kind, network(nets), tmp_path / f"{kind}.bin")
    found, _ = spectrum(path, "--trust-code", "--method", *method.split(), "--dtype", "float64")
    assert np.allclose(found, truth(network(nets)), rtol=1e-5)


def marking(nets, tmp_path: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    net = nets.Marking().eval()
    net.mark = str(tmp_path / "ran")
    torch.save(net, tmp_path / "marking.pt")
    return tmp_path / "marking.pt", tmp_path / "ran"


def test_code_runs_only_with_its_own_flag(nets, tmp_path: Path) -> None:
    path, mark = marking(nets, tmp_path)
    for flags in ([], ["--trust-code"], ["--weights", "."]):
        run("spectrum", path, "--data", "digits", "-n", 3, "--out", tmp_path / "o", *flags)
        run("inspect", path)
        assert not mark.exists()
    spectrum(path, "--trust-pickle")
    assert mark.exists()


def test_the_configuration_of_a_folder_cannot_trust(nets, tmp_path: Path) -> None:
    path, mark = marking(nets, tmp_path)
    (tmp_path / "specdiag.toml").write_text('trust_pickle = true\ndata = "digits"\n')
    assert run("spectrum", path, "-n", 3, "--out", tmp_path / "o").exit_code == 3
    assert not mark.exists()


def test_a_batch_trusts_where_its_file_says_so(nets, tmp_path: Path) -> None:
    path, mark = marking(nets, tmp_path)
    config = tmp_path / "specdiag.toml"
    text = f'checkpoints = ["{path.name}"]\ndata = "digits"\nsamples = 3\n'
    config.write_text(text + "[spectrum]\n")
    assert run("batch", config).exit_code == 3
    assert not mark.exists()
    config.write_text(text + "trust_pickle = true\n[spectrum]\n")
    assert run("batch", config).exit_code == 0
    assert mark.exists()


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_dangerous_files_stay_refused_and_no_flag_is_suggested(nets, tmp_path: Path, legacy: bool) -> None:
    target = tmp_path / "ran"
    path = tmp_path / "bad.pt"
    content = {"model": network(nets), "extra": Payload(target)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for trust in (Trust(), Trust(pickle=True, code=True)):
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(path, trust=trust)
        assert error.value.reason == "dangerous-pickle"
        assert "--trust" not in str(error.value)
    assert "--trust" not in run("inspect", path).stdout
    assert not target.exists()


def test_a_flag_is_suggested_for_code_that_is_not_known_to_be_dangerous(nets, tmp_path: Path) -> None:
    path = save("whole", network(nets), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="--trust-pickle") as error:
        read_checkpoint(path)
    assert error.value.reason == "needs-code"


class Writer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "written.pt")
        return x


def test_a_program_that_touches_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(Writer()), "writer.pt")
    with pytest.raises(CheckpointError) as error:
        read_checkpoint("writer.pt", trust=Trust(code=True))
    assert error.value.reason == "dangerous-program"
    assert not Path("written.pt").exists()


def test_a_class_that_cannot_be_imported(nets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save("whole", network(nets), tmp_path / "whole.pt")
    sys.modules.pop("users_nets")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    monkeypatch.chdir("/")
    with pytest.raises(CheckpointError, match="needs a class that is not here") as error:
        read_checkpoint(path, trust=Trust(pickle=True))
    assert error.value.reason == "needs-code"


def test_weights_of_a_program_without_running_it(nets, tmp_path: Path) -> None:
    path = save("script", network(nets), tmp_path / "script.pt")
    plain, trusted = read_checkpoint(path), read_checkpoint(path, trust=Trust(code=True))
    assert plain.carried is None
    assert set(plain.tensors) == set(trusted.tensors)
    out = run("layers", path, "--trust-code", "--out", tmp_path / "o", "-q")
    assert out.exit_code == 0, out.stderr


def test_what_cannot_be_watched_is_not_frozen() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.from_numpy(np.tanh(x.detach().numpy()))

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError

    x = torch.rand(1, 4)
    with pytest.raises(ModelError, match="cannot be watched"):
        Linearised(lambda value: Hidden.apply(value).as_subclass(torch.Tensor), x)
    assert torch.equal(Linearised(lambda value: torch.ones(1, 2), x).value, torch.ones(1, 2))
