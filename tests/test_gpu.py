"""On a GPU every analyzer and attack gives what the CPU gives; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_contract import ANALYZERS, load, quick

import specdiag
from specdiag import options, plugins
from specdiag.runner import data_facts, make_batch
from specdiag.schema import AttackSpec, fields


def models(samples: Path, cuda: str, dtype: str) -> list[specdiag.model.Model]:
    return [specdiag.load_model(samples / "digits-standard.pt", device=d, dtype=dtype) for d in ("cpu", cuda)]


@pytest.mark.parametrize("name", [n for n in ANALYZERS if load(n).kind == "sample"])
def test_analyzers_in_float64(name: str, samples: Path, cuda: str) -> None:
    data = specdiag.load_data("digits", samples=24)
    host, device = (specdiag.analyze(m, data, name, **quick(name)) for m in models(samples, cuda, "float64"))
    clear = np.ones(24, bool)
    if "near_kink" in host:
        clear = (host.near_kink.values == 0) & (device.near_kink.values == 0)
    for variable in host.data_vars:
        if host[variable].dims[:1] != ("sample",):
            continue
        a, b = host[variable].values[clear], device[variable].values[clear]
        if a.dtype.kind != "f":
            assert (a == b).mean() > 0.98, variable
            continue
        scale = np.nanmax(np.abs(a[np.isfinite(a)]), initial=1e-300)
        bound = 1e-10 if name == "spectrum" and variable == "singular_values" else 1e-6
        assert np.nanmax(np.abs(np.where(np.isfinite(a), a - b, 0)), initial=0) <= bound * scale, variable


@pytest.mark.parametrize("name", plugins.names("attack"))
def test_attacks_in_float64(name: str, samples: Path, cuda: str) -> None:
    declared = {item.name for item in fields(plugins.load("attack", name).options)}
    if name in ("foolbox", "lrc"):
        pytest.skip("random numbers of a third party, or needs data of its own")
    values = {"eps": 0.5} if "eps" in declared else {}
    values |= {"penalty": 0.5} if "penalty" in declared else {}
    data = specdiag.load_data("digits", samples=16)
    found = []
    for model in models(samples, cuda, "float64"):
        batch = make_batch(model, data, 0, 16, 0, data_facts(model, data))
        spec = AttackSpec(
            name, {item.name: item.default for item in fields(plugins.load("attack", name).options)} | values
        )
        found.append(options.build_attack(spec).perturb(model, batch).cpu())
    close = (
        (found[0] - found[1]).flatten(1).norm(dim=1) < 1e-6 * (1 + found[0].flatten(1).norm(dim=1))
    ).float()
    assert float(close.mean()) > 0.9


def test_command_line(samples: Path, tmp_path: Path, cuda: str) -> None:
    from command import run

    done = run("spectrum", samples / "digits-standard.pt", "--device", cuda, "--out", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "cuda" in done.stderr


def test_out_of_memory_on_the_device_backs_off(cuda: str, tmp_path: Path, samples: Path) -> None:
    """A cap on the device's memory makes large chunks fail; the run ends on a smaller grid."""
    data = specdiag.load_data("random", samples=64, input_shape=(3, 224, 224))
    model = specdiag.api.wrap_model(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 64, 3),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(64, 4),
        ),
        (3, 224, 224),
        device=cuda,
    )
    whole = specdiag.analyze(model, data, "spectrum", batch_size=8)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 600 * 2**20) / total)
    try:
        capped = specdiag.analyze(model, data, "spectrum", batch_size=64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    from specdiag.store import provenance

    assert provenance(capped)["settings"]["chunk"] < 64
    assert np.allclose(whole.singular_values, capped.singular_values, rtol=1e-4)
