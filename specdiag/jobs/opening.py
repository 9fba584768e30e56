"""From the options of a command to a task that is ready to run: checkpoint, data, model, chunk grid."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from specdiag.attacks._eps import resolve_options
from specdiag.errors import ArchitectureError, UsageError
from specdiag.jobs import inner
from specdiag.jobs.memory import fitting_chunk, predicted, readable
from specdiag.loading import architectures
from specdiag.loading.checkpoints import Checkpoint, Trust, read_checkpoint
from specdiag.loading.datasets import Data, load_data
from specdiag.loading.labels import as_trained
from specdiag.loading.matching import Coverage
from specdiag.loading.reparam import unparametrise
from specdiag.loading.resolve import Resolved, Wanted, resolve
from specdiag.model import Model, ModelInfo, Normalisation, Scaler, Space
from specdiag.options import takes_attack
from specdiag.runner import Task, data_facts, make_batch
from specdiag.sampling import Batch
from specdiag.schema import Analyzer
from specdiag.weights import Weights, WeightsTask

SETTLING_BATCH = 64
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every analyzer command shares; None where they are left out."""

    wanted: Wanted = field(default_factory=Wanted)
    weights: str | None = None
    split: str = "test"
    samples: int = 200
    seed: int = 0
    layout: str | None = None
    download: bool = False
    device: str = "auto"
    dtype: str = "float32"
    space: str = "data"
    threads: int | None = None
    compile: str = "off"
    batch_size: int | None = None
    max_memory: int | None = None
    input_layer: str | None = None
    trust: Trust = field(default_factory=Trust)


def device_of(name: str) -> str:
    """`auto` is the first CUDA device where there is one, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used: {reason}", "Use --device cpu.") from None
    return name


def open_checkpoint(
    path: Path, common: Common, config: Mapping[str, Any], *, weights_only: bool = False
) -> tuple[Checkpoint, Resolved]:
    """Read a checkpoint and settle what it is to be loaded as."""
    checkpoint = read_checkpoint(path, common.weights, trust=common.trust)
    return checkpoint, resolve(checkpoint, common.wanted, config, weights_only=weights_only)


def open_data(common: Common, resolved: Resolved, where: Path) -> Data:
    """The samples that the options name, or those of the checkpoint's metadata."""
    if resolved.data is None:
        raise UsageError(
            f"{where} does not say which data it was made for.",
            "Pass --data digits, --data FILE.npz, --data cifar10:ROOT, --data folder:ROOT or --data random.",
        )
    return load_data(
        resolved.data,
        split=common.split,
        samples=common.samples,
        seed=common.seed,
        layout=common.layout,
        input_shape=resolved.input_shape,
        download=common.download,
    )


def open_model(checkpoint: Checkpoint, resolved: Resolved, data: Data, common: Common) -> Model:
    """Build the network, load its weights strictly, freeze, move and probe it on two of the samples."""
    return open_both(checkpoint, resolved, data, common)[0]


def open_both(checkpoint: Checkpoint, resolved: Resolved, data: Data, common: Common) -> tuple[Model, Data]:
    """As `open_model`, and the data that the model takes: with --input-layer those are what that module puts out."""
    if resolved.architecture is None:
        raise ArchitectureError(
            f"{checkpoint.path} holds weights but no architecture.", "Pass it with --arch."
        )
    spec, args = resolved.architecture.spec, resolved.architecture.args
    if common.dtype not in DTYPES:
        raise UsageError(f"--dtype: '{common.dtype}' is neither float32 nor float64.")
    if common.space not in ("data", "model"):
        raise UsageError(f"--space: '{common.space}' is neither data nor model.")
    network, coverage = _network(checkpoint, resolved)
    info = ModelInfo(
        name=checkpoint.path.stem,
        path=checkpoint.source or str(checkpoint.path),
        sha256=checkpoint.sha256,
        architecture=spec,
        arch_args=args,
        train=resolved.train,
        data=resolved.data or "",
        coverage=str(coverage),
        trusted=checkpoint.trusted,
        input_layer=common.input_layer or "",
    )
    normalisation = _normalisation(resolved, coverage)

    def fresh() -> nn.Module:
        return architectures.build(spec, args)

    make = fresh
    if common.input_layer is not None:
        layer = common.input_layer
        network = network.eval().requires_grad_(False).float()
        shape = tuple(data.x.shape[1:])
        x = Scaler(normalisation, shape)(torch.from_numpy(data.x)).float()
        network, data = inner.from_layer(network, layer, x, data)
        first = inner.as_tokens(network, x[:1])
        normalisation = Normalisation()

        def make() -> nn.Module:
            return inner.cut(fresh(), layer, first)

    model = Model(
        network,
        tuple(data.x.shape[1:]),
        normalisation=normalisation,
        info=info,
        device=device_of(common.device),
        dtype=DTYPES[common.dtype],
        space=cast(Space, common.space),
        factory=None if resolved.architecture.carried else make,
        example=torch.from_numpy(data.x[:2]),
    )
    return model, data


def _normalisation(resolved: Resolved, coverage: Any) -> Normalisation:
    """What was said; else what the file holds beside a network that the user's code built."""
    if not resolved.stated and resolved.normalise == "none" and coverage.normalise:
        found = coverage.normalise
        return Normalisation("channel", tuple(found["mean"]), tuple(found["std"]))
    return Normalisation(resolved.normalise, resolved.mean, resolved.std)


def make_task(model: Model, data: Data, analyzer: Analyzer, options: Any, common: Common) -> Task:
    """The task with its chunk grid; the eps of attacks must be settled already.

    An analyzer that needs training data sees the labels that the network was trained on.
    """
    if "train" in analyzer.needs:
        data = as_trained(data, model.info.data, model.info.train, model.outputs)
    chunk = fitting_chunk(model, analyzer, options, common.batch_size, common.max_memory)
    return Task(model, data, analyzer, options, common.seed, chunk)


def settle(
    model: Model, data: Data, analyzer: Analyzer, options: Any, common: Common
) -> tuple[Any, list[str]]:
    """Options with the eps of every attack filled in, and one line on each for the user."""
    if not takes_attack(analyzer):
        return options, []
    facts = data_facts(model, data)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(data), SETTLING_BATCH):
            stop = min(start + SETTLING_BATCH, len(data))
            yield make_batch(model, data, start, stop, common.seed, facts)

    return resolve_options(options, model, facts, batches)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task ready to run, with one line that says what it is, and lines on what was taken from where."""

    task: Task | WeightsTask
    header: str
    notes: tuple[str, ...]


def prepare(
    analyzer: Analyzer,
    path: Path,
    options: Any,
    common: Common,
    config: Mapping[str, Any],
    others: Sequence[Path] = (),
) -> Prepared:
    """Load checkpoint and data of one job. others: further checkpoints, for analyzers that compare several."""
    if common.threads is not None:
        torch.set_num_threads(common.threads)
    if analyzer.kind == "weights":
        return _prepare_weights(analyzer, path, options, common, config)
    checkpoint, resolved = open_checkpoint(path, common, config)
    data = open_data(common, resolved, path)
    model, data = open_both(checkpoint, resolved, data, common)
    further = []
    if others and common.input_layer is not None:
        raise UsageError(
            "--input-layer makes data of its own for each checkpoint, so several cannot be compared on them.",
            "Leave it out.",
        )
    for other in others:
        theirs = open_checkpoint(other, common, config)
        further.append(open_model(*theirs, data, common))
    options, settled = settle(model, data, analyzer, options, common)
    task = dataclasses.replace(make_task(model, data, analyzer, options, common), others=tuple(further))
    if common.compile == "on":
        reason = model.compile(task.chunk)
        settled += [reason] if reason else []
    header = _header(path, model, data, common)
    if model.device.type == "cpu":
        header += f", about {readable(predicted(model, analyzer, options, task.chunk))} of memory"
    return Prepared(task, header, (*checkpoint.findings, *resolved.notes, *settled))


def _header(path: Path, model: Model, data: Data, common: Common) -> str:
    return (
        f"{path.name}: {model.info.architecture} ({model.info.coverage}), {data.spec} {data.split}, "
        f"{len(data)} samples, seed {common.seed}, {model.device.type} {common.dtype}"
    )


def _prepare_weights(
    analyzer: Analyzer, path: Path, options: Any, common: Common, config: Mapping[str, Any]
) -> Prepared:
    checkpoint, resolved = open_checkpoint(path, common, config, weights_only=True)
    normalisation = Normalisation(resolved.normalise, resolved.mean, resolved.std)
    info = ModelInfo(
        name=path.stem,
        path=str(path),
        sha256=checkpoint.sha256,
        train=resolved.train,
        trusted=checkpoint.trusted,
    )
    module, model, x = None, None, None
    shape = tuple(getattr(options, "input_size", None) or ()) or resolved.input_shape
    if resolved.architecture is not None and not _opaque(checkpoint, resolved):
        spec, args = resolved.architecture.spec, resolved.architecture.args
        network, coverage = _network(checkpoint, resolved)
        module = network.eval().requires_grad_(False)
        info = dataclasses.replace(info, architecture=spec, arch_args=args, coverage=str(coverage))
        if common.wanted.data is not None:
            data = open_data(common, resolved, path)
            model, data = open_both(checkpoint, resolved, data, common)
            x = model.to_model_space(model.to_input(data.x))
            shape = model.input_shape
    weights = Weights(module, checkpoint.tensors, shape, info, normalisation, model, x)
    where = info.architecture or "no architecture"
    header = f"{path.name}: {where} ({info.coverage or f'{len(checkpoint.tensors)} tensors'}), weights alone"
    return Prepared(
        WeightsTask(weights, analyzer, options, common.seed), header, (*checkpoint.findings, *resolved.notes)
    )


def _opaque(checkpoint: Checkpoint, resolved: Resolved) -> bool:
    """Whether the network is a program without modules: then its weights are all that can be looked at."""
    carried = checkpoint.carried
    return (
        resolved.architecture is not None
        and resolved.architecture.carried
        and carried is not None
        and not carried.modules
    )


def _network(checkpoint: Checkpoint, resolved: Resolved) -> tuple[Any, Any]:
    if resolved.architecture is None:
        raise ArchitectureError(
            f"{checkpoint.path} holds weights but no architecture.", "Pass it with --arch."
        )
    if resolved.architecture.carried and checkpoint.carried is not None:
        network = copy.deepcopy(checkpoint.carried.network.requires_grad_(False)).eval()
        unparametrise(network)
        count = len(checkpoint.tensors)
        return network, Coverage(count, count)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return architectures.network_for(
            checkpoint.tensors, resolved.architecture.spec, resolved.architecture.args
        )
