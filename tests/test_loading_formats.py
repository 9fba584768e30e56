"""One file for each thing that people have on disk, good or bad: the right weights, or a refusal with the next step.

Every pickle that is made to be bad carries a payload that would create a file; the file must never appear.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import tarfile
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from specdiag.errors import CheckpointError
from specdiag.loading.checkpoints import read_checkpoint
from specdiag.loading.inspect import inspect

Tensors = dict[str, torch.Tensor]
MARKER = "EXECUTED"


def weights(seed: int = 0) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=draw),
        "bn.running_mean": torch.randn(4, generator=draw),
        "fc.weight": torch.randn(2, 4, generator=draw),
        "fc.bias": torch.randn(2, generator=draw),
    }


def under(front: str, seed: int = 0) -> Tensors:
    return {front + name: value for name, value in weights(seed).items()}


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.fc = nn.Linear(4, 2)
        self.register_buffer("hidden", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


class Loss:
    def __init__(self) -> None:
        self.scale = 3


@dataclass
class Case:
    """A file to make, and what must come of it: tensors, or a reason."""

    make: Callable[[Path], object]
    outcome: Tensors | str
    weights: str | None = None
    format: str | None = None


CASES: dict[str, Case] = {}


def case(outcome: Tensors | str, weights: str | None = None, format: str | None = None):
    def register(make: Callable[[Path], object]) -> Callable[[Path], object]:
        CASES[make.__name__] = Case(make, outcome, weights, format)
        return make

    return register


def add(
    name: str, content, outcome: Tensors | str, weights: str | None = None, format: str | None = None
) -> None:
    """Two cases: the content as a zip and as a legacy file."""
    for legacy in (False, True):
        kind = format or ("torch-legacy" if legacy else "torch-zip")

        def make(path: Path, legacy: bool = legacy) -> None:
            value = content(path) if isinstance(content, types.FunctionType) else content
            torch.save(value, path, _use_new_zipfile_serialization=not legacy)

        CASES[f"{name}_{'legacy' if legacy else 'zip'}"] = Case(make, outcome, weights, kind)


def net_weights() -> Tensors:
    torch.manual_seed(0)
    return dict(Net().state_dict())


def net() -> Net:
    torch.manual_seed(0)
    return Net()


# --- plain weights under the keys that training scripts use ---------------------------------------------------------
add("top_level", weights(), weights())
add("ordered", collections.OrderedDict(weights()), weights())
for key in ("state_dict", "model", "net", "model_state_dict", "weights", "params", "generator"):
    add(f"key_{key}", {key: weights(), "epoch": 2}, weights())
add("nested", {"state": {"model": weights()}, "cfg": {"lr": 0.1}}, weights())
add("parallel", {"state_dict": under("module.")}, weights())
add("compiled_parallel", under("_orig_mod.module."), weights())
add("parallel_compiled", under("module._orig_mod."), weights())
add("fsdp", under("_fsdp_wrapped_module."), weights())
add("deepspeed_single", {"module": under("module."), "ds_version": "0.1", "optimizer": None}, weights())
add("swa", {**under("module."), "n_averaged": torch.tensor(3)}, weights())
add("parameters", {name: nn.Parameter(value) for name, value in weights().items()}, weights())

# --- several sets of weights ----------------------------------------------------------------------------------------
add("ema_asked", {"state_dict": weights(), "state_dict_ema": weights(1)}, "ambiguous-weights")
add("ema_chosen", {"state_dict": weights(), "state_dict_ema": weights(1)}, weights(1), "state_dict_ema")
add("params_ema", {"params": weights(), "params_ema": weights(1)}, "ambiguous-weights")
add(
    "teacher",
    {"student": under("module."), "teacher": under("backbone.", 1)},
    under("backbone.", 1),
    "teacher",
)
add("teacher_asked", {"student": under("module."), "teacher": under("", 1)}, "ambiguous-weights")
add("best_last", {"best": weights(), "last": weights(1)}, weights(), "best")
add(
    "moco",
    {"state_dict": {**under("module.encoder_q."), **under("module.encoder_k.", 1)}},
    weights(1),
    "encoder_k",
)
add("gan", {"g_ema": weights(), "d": {"a": torch.ones(1)}}, weights())

# --- training checkpoints with plain data beside the weights --------------------------------------------------------
EXTRAS = {
    "namespace": argparse.Namespace(lr=0.1, arch="resnet18", out=pathlib.PurePosixPath("runs")),
    "path": Path("runs/1"),
    "windows_path": pathlib.PureWindowsPath("runs"),
    "numpy_scalar": np.float64(0.5),
    "numpy_array": np.arange(3.0),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "simple": types.SimpleNamespace(a=1),
    "set": {1, 2},
    "deque": collections.deque([1, 2]),
    "dtype": np.dtype("float32"),
    "loss": Loss(),
    "function": shutil.which.__class__,
}
EXTRAS.pop("function")
for name, extra in EXTRAS.items():
    add(f"beside_{name}", {"state_dict": weights(), "extra": extra}, weights())


@case(weights(), format="torch-zip")
def omegaconf(path: Path) -> None:
    configuration = pytest.importorskip("omegaconf").OmegaConf.create({"model": {"width": 3}, "lr": [1, 2]})
    torch.save({"state_dict": under("model."), "hyper_parameters": configuration}, path)


CASES["omegaconf"] = Case(CASES["omegaconf"].make, under("model."), None, "torch-zip")

# --- code and payloads ----------------------------------------------------------------------------------------------
add(
    "payload_system",
    lambda path: {"state_dict": weights(), "x": Call(os.system, f"touch {path.parent / MARKER}")},
    "dangerous-pickle",
)
add(
    "payload_open",
    lambda path: {"w": torch.ones(1), "x": Call(builtins.open, str(path.parent / MARKER), "w")},
    "dangerous-pickle",
)
add(
    "payload_exec",
    lambda path: [Call(builtins.exec, f"open({str(path.parent / MARKER)!r}, 'w')")],
    "dangerous-pickle",
)
add(
    "payload_eval",
    lambda path: Call(builtins.eval, f"open({str(path.parent / MARKER)!r}, 'w')"),
    "dangerous-pickle",
)
add(
    "payload_touch",
    lambda path: {**weights(), "x": Call(Path.touch, path.parent / MARKER)},
    "dangerous-pickle",
)
add(
    "payload_popen",
    lambda path: {**weights(), "x": Call(subprocess.Popen, ["touch", str(path.parent / MARKER)])},
    "dangerous-pickle",
)
add(
    "payload_getattr",
    lambda path: {**weights(), "x": Call(getattr, path.parent / MARKER, "touch")},
    "dangerous-pickle",
)
add(
    "payload_unknown",
    lambda path: {**weights(), "x": Call(torch.nn.functional.relu, 3)},
    weights(),
)
add("payload_nested_load", lambda path: Call(torch.load, str(path)), "dangerous-pickle")
add(
    "payload_in_module",
    lambda path: {"model": net(), "x": Call(os.system, f"touch {path.parent / MARKER}")},
    "dangerous-pickle",
)
add("whole_module", net(), "needs-code")
add("whole_module_chosen", net(), net_weights(), ".")
add("whole_module_nested", {"model": net(), "ema": None, "train_args": {}}, net_weights(), "model")
add("only_code", {"a": Loss()}, "needs-code")


@case("dangerous-pickle")
def bare_pickle_payload(path: Path) -> None:
    path.write_bytes(pickle.dumps(Call(os.system, f"touch {path.parent / MARKER}")))


@case("dangerous-pickle")
def protocol_0_payload(path: Path) -> None:
    path.write_bytes(b"\x80\x02" + pickle.dumps(Call(os.system, f"touch {path.parent / MARKER}"), protocol=0))


@case("dangerous-pickle")
def payload_inside_a_storage(path: Path) -> None:
    inner = pickle.dumps(Call(os.system, f"touch {path.parent / MARKER}"))
    content = {
        "w": Call(
            torch._utils._rebuild_tensor_v2,
            Call(torch.storage._load_from_bytes, inner),
            0,
            (1,),
            (1,),
            False,
            {},
        )
    }
    path.write_bytes(pickle.dumps(content, protocol=4) + inner)


CASES["payload_inside_a_storage"].outcome = "damaged-checkpoint"


# --- numpy, plain pickle, safetensors, folders ----------------------------------------------------------------------
@case(weights(), format="pickle")
def detectron_pickle(path: Path) -> None:
    arrays = {name: value.numpy() for name, value in weights().items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}))


@case(weights(), format="pickle")
def pickled_state_dict(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": weights()}))


@case(weights(), format="npz")
def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **{name: value.numpy() for name, value in weights().items()})


@case("npz")
def npz_of_data(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.ones((2, 3)), y=np.zeros(2))


@case("torchscript")
def torchscript_of_torch_1_0(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/model.json", "{}")
        archive.writestr("m/tensors/0", b"x")


@case("damaged-checkpoint")
def npz_of_objects(path: Path) -> None:
    array = np.empty(1, object)
    array[0] = Call(os.system, f"touch {path.parent / MARKER}")
    with path.open("wb") as file:
        np.savez(file, w=array)


@case(weights(), format="safetensors")
def safetensors(path: Path) -> None:
    pytest.importorskip("safetensors.torch").save_file(weights(), path, {"format": "pt"})


@case(
    {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(3), "c": torch.zeros(0, 2)},
    format="safetensors",
)
def safetensors_types(path: Path) -> None:
    content = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(3), "c": torch.zeros(0, 2)}
    pytest.importorskip("safetensors.torch").save_file(content, path)


def raw_safetensors(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@case("damaged-checkpoint")
def safetensors_overlap(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2]}
    raw_safetensors(
        path, {"a": {**entry, "data_offsets": [0, 8]}, "b": {**entry, "data_offsets": [4, 12]}}, bytes(12)
    )


@case("damaged-checkpoint")
def safetensors_shape(path: Path) -> None:
    raw_safetensors(path, {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, bytes(8))


@case("truncated-safetensors")
def safetensors_truncated(path: Path) -> None:
    raw_safetensors(path, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4))


@case("nan-weights")
def safetensors_nan(path: Path) -> None:
    raw_safetensors(path, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0\0\xc0\x7f")


def folder(path: Path, **files) -> None:
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("__", ".").replace("_dash_", "-")).write_text(json.dumps(content))


@case(weights(), format="hf-folder")
def hf_folder(path: Path) -> None:
    folder(path, config__json={"architectures": ["ResNetForImageClassification"], "model_type": "resnet"})
    pytest.importorskip("safetensors.torch").save_file(weights(), path / "model.safetensors")


@case(weights(), format="hf-folder")
def hf_folder_bin(path: Path) -> None:
    folder(path, config__json={})
    torch.save(weights(), path / "pytorch_model.bin")


@case(weights(), format="hf-folder")
def hf_shards(path: Path) -> None:
    save = pytest.importorskip("safetensors.torch").save_file
    names = sorted(weights())
    parts = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    folder(
        path,
        config__json={},
        model__safetensors__index__json={"weight_map": {n: f for f, ns in parts.items() for n in ns}},
    )
    for file, part in parts.items():
        save({name: weights()[name] for name in part}, path / file)


@case("missing-shard")
def hf_shard_missing(path: Path) -> None:
    folder(
        path, config__json={}, model__safetensors__index__json={"weight_map": {"a": "model-1.safetensors"}}
    )


@case("damaged-checkpoint")
def hf_shard_outside(path: Path) -> None:
    folder(
        path, config__json={}, model__safetensors__index__json={"weight_map": {"a": "../model.safetensors"}}
    )


@case("dangerous-pickle")
def hf_folder_payload(path: Path) -> None:
    folder(path, config__json={})
    torch.save({"x": Call(os.system, f"touch {path.parent / MARKER}")}, path / "pytorch_model.bin")


@case("several-files")
def hf_several(path: Path) -> None:
    folder(path, config__json={})
    for name in ("a", "b"):
        pytest.importorskip("safetensors.torch").save_file(weights(), path / f"{name}.safetensors")


@case("peft-folder")
def peft(path: Path) -> None:
    folder(path, adapter_config__json={"peft_type": "LORA"})


@case("lora-adapter")
def lora_file(path: Path) -> None:
    torch.save(
        {"base.layer.lora_A.weight": torch.ones(1, 2), "base.layer.lora_B.weight": torch.ones(2, 1)}, path
    )


@case("dcp-folder")
def dcp(path: Path) -> None:
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(Call(os.system, f"touch {path.parent / MARKER}")))
    (path / "__0_0.distcp").write_bytes(b"x")


@case("deepspeed-folder")
def deepspeed(path: Path) -> None:
    (path / "global_step10").mkdir(parents=True)
    (path / "latest").write_text("global_step10")


@case("sharded-weights")
def zero_shard(path: Path) -> None:
    torch.save({"module": {name: torch.empty(0) for name in weights()}}, path)


@case("flat-params")
def fsdp_flat(path: Path) -> None:
    torch.save({"_fsdp_wrapped_module._flat_param": torch.ones(9)}, path)


@case("tf-saved-model")
def saved_model(path: Path) -> None:
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"x")


# --- programs -------------------------------------------------------------------------------------------------------
@case(net_weights(), format="torchscript")
def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.script(net()), str(path))


@case(net_weights(), format="torchscript")
def torchscript_traced(path: Path) -> None:
    torch.jit.save(torch.jit.trace(net(), torch.rand(1, 3, 8, 8)), str(path))


for script in ("torchscript", "torchscript_traced"):
    # TorchScript keeps every buffer
    CASES[script].outcome = {**net_weights(), "hidden": torch.ones(3)}


@case(net_weights(), format="torch-export")
def exported(path: Path) -> None:
    target = path.with_suffix(".pt2")
    torch.export.save(torch.export.export(net(), (torch.rand(2, 3, 8, 8),)), target)
    target.rename(path)


@case("torch-package")
def package(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/.data/extern_modules", "torch")
        archive.writestr("m/model/model.pkl", pickle.dumps(Call(os.system, f"touch {path.parent / MARKER}")))


@case("mar")
def mar(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", "{}")
        archive.writestr("handler.py", "raise SystemExit")
        archive.writestr("model.pt", "x")


# --- other programs' files and what is no model at all --------------------------------------------------------------
@case("torch-tar")
def torch_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Call(os.system, f"touch {path.parent / MARKER}"))
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@case("tar")
def plain_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"), io.BytesIO(b""))


@case("keras-zip")
def keras_v3(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            archive.writestr(name, "{}")


@case("keras-hdf5")
def keras_h5(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["kernel"] = np.ones(3)


@case("zip")
def zip_of_something(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


@case("empty-zip")
def zip_of_nothing(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        pass


@case("npy")
def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


BYTES = {
    "onnx": b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x10" + bytes(30),
    "gguf": b"GGUF\x03\0\0\0" + bytes(60),
    "flax-msgpack": b"\x81\xa6params\x82\xa1w\x93\x01\x02\x03",
    "tf-index": bytes(40) + b"\x01" + bytes.fromhex("57fb808b247547db"),
    "html": b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>",
    "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "xml": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "json": b'{"detail": "not found"}',
    "text": b"Invalid username or password.\n",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(30),
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "pdf": b"%PDF-1.7\n",
    "gzip": b"\x1f\x8b\x08\0" + bytes(20),
    "7z": b"7z\xbc\xaf\x27\x1c\0\4" + bytes(20),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
    "rar": b"Rar!\x1a\x07\x01\0",
    "torch7": b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1\x0f\0\0\0torch.FloatTensor",
    "zeros": bytes(1000),
    "empty": b"",
    "truncated-zip": b"PK\x03\x04\x14" + bytes(200),
    "program": b"\x7fELF\x02\x01\x01" + bytes(50),
    "unknown": bytes(range(200, 256)) * 3,
}
for reason, content in BYTES.items():
    CASES[f"bytes_{reason}"] = Case(lambda path, content=content: path.write_bytes(content), reason)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_outcome(name: str, tmp_path: Path) -> None:
    entry = CASES[name]
    # the suffix lies
    path = tmp_path / "model.dat"
    entry.make(path)
    report = inspect(path, entry.weights)
    json.dumps(report)
    if isinstance(entry.outcome, str):
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path, entry.weights)
        assert caught.value.reason == entry.outcome, caught.value
        assert caught.value.exit_code == 3
        assert caught.value.todo, caught.value
        assert (report["loadable"], report["reason"]) == (False, entry.outcome)
        assert report["error"]
        assert report["next"]
    else:
        checkpoint = read_checkpoint(path, entry.weights)
        assert checkpoint.format == entry.format
        assert set(checkpoint.tensors) == set(entry.outcome)
        for key, value in entry.outcome.items():
            assert torch.equal(checkpoint.tensors[key], value), key
            assert checkpoint.tensors[key].dtype == value.dtype
        assert report["loadable"]
        assert report["count"] == len(entry.outcome)
        assert report["sha256"] == checkpoint.sha256
        assert report["next"][0].startswith("specdiag ")
    assert not (tmp_path / MARKER).exists()


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


def test_the_payloads_would_work(tmp_path: Path) -> None:
    """What the cases above rely on: loaded without care, the payload does create the file."""
    CASES["payload_system_zip"].make(tmp_path / "model.dat")
    torch.load(tmp_path / "model.dat", weights_only=False)
    assert (tmp_path / MARKER).exists()


def test_lightning_checkpoint(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    omegaconf = pytest.importorskip("omegaconf")

    class Module(lightning.LightningModule):
        def __init__(self, config, folder) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = nn.Linear(3, 2)
            self.loss = nn.CrossEntropyLoss()

        def training_step(self, batch, number):
            return self.loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    data = torch.utils.data.TensorDataset(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))
    module = Module(omegaconf.OmegaConf.create({"width": 3}), Path("runs"))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data))
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    checkpoint = read_checkpoint(path)
    assert checkpoint.candidates[0] == "state_dict"
    assert list(checkpoint.tensors) == ["model.weight", "model.bias"]
    assert torch.equal(checkpoint.tensors["model.weight"], module.model.weight)
    assert checkpoint.facts["pytorch-lightning_version"] == lightning.__version__
    assert any(finding.startswith("SD304") for finding in checkpoint.findings)


def test_timm_checkpoint_with_averaged_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", num_classes=3)
    from timm.utils import CheckpointSaver, ModelEmaV2

    average = ModelEmaV2(network, decay=0.5)
    average.module.conv1[0].weight.data += 1
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    args = argparse.Namespace(model="resnet10t", lr=0.1)
    saver = CheckpointSaver(network, optimiser, args=args, model_ema=average, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(1, metric=0.5)
    path = tmp_path / "last.pth.tar"
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.reason == "ambiguous-weights"
    assert "--weights state_dict_ema" in caught.value.todo
    checkpoint = read_checkpoint(path, "state_dict_ema")
    assert torch.equal(checkpoint.tensors["conv1.0.weight"], average.module.conv1[0].weight)
    assert checkpoint.facts["arch"] == "resnet10t"


def test_report_of_the_public_file(assets: Path) -> None:
    report = inspect(assets / "checkpoints/cifar10-resnet20.th")
    assert report["count"] == 97
    assert report["parameters"] == 271_098
    assert report["dtypes"] == {"float32": 97}
    assert report["stripped"] == ["module."]
    assert report["architectures"] == ["--arch resnet20"]
    assert report["safety"] == [{"id": "SD300", "text": "Its pickle names tensors only."}]
    assert report["tensors"][0] == ("conv1.weight", [16, 3, 3, 3], "float32")
    assert report["layers"][0] == {"name": "conv1", "depth": 0, "tensors": 1, "parameters": 432}
    assert {"name": "layer1.0", "depth": 1, "tensors": 10, "parameters": 2 * (2304 + 64)} in report["layers"]


def test_report_counts_what_is_not_finite(tmp_path: Path) -> None:
    content = weights()
    content["fc.bias"][:] = torch.nan
    content["fc.weight"][0, 0] = torch.inf
    torch.save(content, tmp_path / "w.pt")
    report = inspect(tmp_path / "w.pt")
    assert (report["not_finite"], report["count"], report["loadable"]) == (3, 4, False)
    assert report["reason"] == "nan-weights"


def test_report_lists_dangerous_calls(tmp_path: Path) -> None:
    CASES["payload_system_legacy"].make(tmp_path / "w.pt")
    report = inspect(tmp_path / "w.pt")
    assert report["dangerous"] == ["posix.system"]
    assert report["safety"][0]["id"] == "SD301"
    assert report["reason"] == "dangerous-pickle"


def test_report_uses_the_notes_of_a_training_script(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", num_classes=3)
    torch.save({"arch": "resnet10t", "state_dict": network.state_dict()}, tmp_path / "w.pt")
    report = inspect(tmp_path / "w.pt")
    assert report["architectures"] == ["--arch timm:resnet10t --arch-arg num_classes=3"]
    # a note never makes anything run
    torch.save({"arch": "os:getcwd", "state_dict": weights()}, tmp_path / "w.pt")
    assert inspect(tmp_path / "w.pt")["architectures"] == []


def test_names_from_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    torch.save({"a\x1b[2J\n": torch.tensor([torch.nan]), "b": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "w.pt")
    assert str(caught.value).isprintable()
