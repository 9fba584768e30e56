"""The shape of the house: imports one way, plugins free of torch, small files, fast help."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "specdiag"
RANKS = {
    "__init__": 0,
    "errors": 0,
    "heap": 0,
    "bundled": 1,
    "schema": 1,
    "plugins": 1,
    "sampling": 1,
    "locks": 1,
    "options": 2,
    "config": 2,
    "metrics": 2,
    "linalg": 2,
    "loading": 2,
    "store": 2,
    "journal": 2,
    "gate": 3,
    "figures": 2,
    "folding": 2,
    "kinks": 2,
    "linearise": 2,
    "probing": 2,
    "compiling": 2,
    "model": 3,
    "jacobian": 4,
    "attacks": 5,
    "runner": 5,
    "weights": 6,
    "provenance": 7,
    "analyzers": 6,
    "training": 7,
    "report": 7,
    "jobs": 8,
    "api": 9,
    "batch": 9,
    "reproduce": 9,
    "cli": 10,
    "__main__": 11,
}
PLUGIN_FOLDERS = ("analyzers", "attacks", "training")
HEAVY = ("torch", "torchvision", "numpy", "scipy", "xarray", "h5py", "h5netcdf", "matplotlib", "sklearn")


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def ranked() -> list[Path]:
    """All files but the package's own, which re-exports the API when asked for it."""
    return [path for path in files() if path != PACKAGE / "__init__.py"]


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def runtime_imports(tree: ast.AST) -> list[tuple[str, bool]]:
    """(module, at module level) of all imports except those under TYPE_CHECKING."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ("specdiag", *(f"specdiag.{folder}" for folder in RANKS)):
                found.extend((f"{node.module}.{alias.name}", top) for alias in node.names)
            else:
                found.append((node.module, top))
        for child in ast.iter_child_nodes(node):
            visit(child, top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(tree, True)
    return found


@pytest.mark.parametrize("path", ranked(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_to_lower_ranks(path: Path) -> None:
    own = part_of(path)
    for module, _ in runtime_imports(ast.parse(path.read_text())):
        if not module.startswith("specdiag."):
            continue
        parts = module.split(".")
        other = parts[1] if parts[1] in RANKS else "__init__"
        if other == own and path.parent != PACKAGE:
            if own in PLUGIN_FOLDERS:
                assert len(parts) < 3 or parts[2].startswith("_"), (
                    f"{path} imports its sibling plugin {module}"
                )
            continue
        assert RANKS[other] < RANKS[own], (
            f"{path.name} (rank {RANKS[own]}) imports {module} (rank {RANKS[other]})"
        )


@pytest.mark.parametrize(
    "path", [p for p in files() if part_of(p) in PLUGIN_FOLDERS], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_plugins_import_nothing_heavy_at_module_level(path: Path) -> None:
    if path.name.startswith("_"):
        return
    heavy = [
        module
        for module, top in runtime_imports(ast.parse(path.read_text()))
        if top and module.split(".")[0] in HEAVY
    ]
    assert not heavy


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_typer_only_in_cli_and_rich_only_in_cli_and_report() -> None:
    for path in files():
        modules = {module.split(".")[0] for module, _ in runtime_imports(ast.parse(path.read_text()))}
        assert "typer" not in modules or part_of(path) == "cli", path
        assert "rich" not in modules or part_of(path) in ("cli", "report"), path


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_every_plugin_loads_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['torchvision'] = None\n"
        "from specdiag import plugins, options\n"
        "for kind in plugins.KINDS:\n"
        "    for name in plugins.names(kind):\n"
        "        plugins.load(kind, name)\n"
        "for name in plugins.names('analyzer'):\n"
        "    options.build_options(plugins.load('analyzer', name), {})\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["spectrum", "--help"], ["show", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom specdiag.cli.main import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_show_and_plot_do_not_import_torch(tmp_path: Path) -> None:
    import numpy as np

    from specdiag import plugins, store
    from specdiag.runner import to_dataset

    analyzer = plugins.load("analyzer", "spectrum")
    arrays = {"singular_values": np.array([[3.0, 1.0], [2.0, 1.0]]), "sigma_max": np.array([3.0, 2.0])}
    dataset = to_dataset(analyzer, arrays, {}, np.array([0, 1]))
    path = tmp_path / "a.h5"
    store.write_group(
        path, "spectrum", store.with_provenance(dataset, {"analyzer": "spectrum", "metrics": {}})
    )
    for command in (["show", str(path)], ["plot", str(path), "--out", str(tmp_path / "a.svg")]):
        code = (
            "import sys; sys.modules['torch'] = None\nfrom specdiag.cli.main import app\n"
            f"try:\n    app({command!r})\nexcept SystemExit as end:\n    sys.exit(end.code)"
        )
        done = run_python(code)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_help_is_quick() -> None:
    """At most five times the bare import of typer: the median of interleaved runs."""

    def seconds(command: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run(
            command, capture_output=True, check=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
        )
        return time.perf_counter() - start

    bare, helped = [sys.executable, "-c", "import typer"], [sys.executable, "-m", "specdiag", "--help"]
    seconds(bare), seconds(helped)
    ratios = sorted(seconds(helped) / seconds(bare) for _ in range(5))
    assert ratios[2] <= 5
