"""Stored results and verdicts to report on, made without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from specdiag import plugins, store
from specdiag.gate.judge import judge
from specdiag.gate.observations import observe
from specdiag.gate.rules import read_rules
from specdiag.metrics import summarise
from specdiag.report.content import Content, Omitted, Stored, Trouble
from specdiag.runner import to_dataset

NASTY = 'conv<1>&"|`x`'


def stored(folder: Path, name: str, factor: float = 1.0, seed: int = 0) -> Stored:
    """A result of `spectrum` on 60 samples with singular values around 3, 2 and 1 times `factor`."""
    analyzer = plugins.load("analyzer", "spectrum")
    rng = np.random.default_rng(seed)
    values = -np.sort(
        -factor * np.array([3.0, 2.0, 1.0]) * np.exp(0.2 * rng.standard_normal((60, 3))), axis=1
    )
    arrays: dict[str, Any] = {
        "singular_values": values,
        "sigma_max": values[:, 0],
        "frobenius": np.sqrt((values**2).sum(1)),
        "stable_rank": (values**2).sum(1) / values[:, 0] ** 2,
        "condition": values[:, 0] / values[:, 2],
        "logits": rng.standard_normal((60, 10)),
        "lead": np.ones(60),
    }
    dataset = to_dataset(analyzer, arrays, {}, np.arange(60))
    settings = {
        "analyzer": "spectrum",
        "options": {"layer": "logits", "top": 0},
        "checkpoint": {"sha256": f"{seed:064d}"},
        "data": {"split": "test", "samples": 60, "sha256": "aa"},
        "seed": 0,
    }
    facts = {
        "analyzer": "spectrum",
        "settings": settings,
        "settings_hash": store.settings_hash(settings),
        "options": settings["options"],
        "checkpoint": {"path": f"runs/{name}.pt", "name": name, "sha256": f"{seed:064d}"},
        "data": {"spec": "digits", "split": "test", "samples": 60},
        "metrics": summarise(analyzer, dataset),
        "warnings": [{"id": "SD201", "text": f"beware of {NASTY}"}],
        "sentence": "A step <script>alert(1)</script> moves it.",
        "train": {"eps": 0.5},
    }
    path = folder / f"{name}.h5"
    store.write_group(path, "spectrum", store.with_provenance(dataset, facts), overwrite=True)
    return Stored(name, "spectrum", path, store.read_group(path, "spectrum"))


def content(folder: Path, *, strict: bool = False) -> Content:
    """Two checkpoints; one gate that fails, one to investigate, one that passes, one that cannot be judged."""
    results = [stored(folder, "good"), stored(folder, "bad", 1.5, 1)]
    analyzer = plugins.load("analyzer", "spectrum")
    numbers = [number for item in results for number in observe(item.name, item.dataset, analyzer)]
    value = next(n.value for n in numbers if n.key[:3] == ("bad", "spectrum", "frobenius_mean"))
    rules = read_rules(
        [
            {"metric": "spectrum.sigma_max_mean", "max": 4.0},
            {"metric": "spectrum.frobenius_mean", "checkpoint": "bad", "max": value},
            {"metric": "spectrum.sigma_max_p95", "checkpoint": "good", "max_increase": "10%"},
        ],
        "baseline.json",
    )
    config = folder / "specdiag.toml"
    config.write_text(
        'samples = 60\n[[gate]]\nmetric = "a"\n\n[[ gate ]]\nmetric = "b"\n# [[gate]]\n[[gate]]\n'
    )
    return Content(
        results,
        judge(rules, numbers, {"baseline.json": "there is no such file"}),
        [Trouble("broken", "spectrum", f"It is HTML: {NASTY}", 3, "CheckpointError")],
        [Omitted("elsewhere/*.pt", "no file matches it"), Omitted("old · spectrum", "known to be broken")],
        {("good", "spectrum"): 1.25},
        config,
        1,
        strict,
    )
