"""The installed package works anywhere: a wheel in a fresh environment, run from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_package_and_samples_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for sample in ("digits-standard.pt", "digits-adversarial.pt", "digits-random.pt"):
        assert f"specdiag/sample_checkpoints/{sample}" in names
    assert all(name.startswith(("specdiag/", "specdiag-")) for name in names)


def test_it_runs_from_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    (packages,) = (environment / "lib").glob("python*/site-packages")
    # the libraries are borrowed from this environment, specdiag itself is not: its editable install is a .pth file
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    code = (
        f"import sys; sys.path.append({libraries!r})\n"
        "import specdiag; assert 'env' in specdiag.__file__, specdiag.__file__\n"
        "from specdiag.cli.main import main; sys.argv = ['specdiag', 'spectrum', '--samples', '16']; main()"
    )
    done = subprocess.run(
        [python, "-I", "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "taking the bundled digits-standard.pt" in done.stderr
    assert "sigma_max_mean" in done.stdout
    assert (tmp_path / "specdiag-results" / "digits-standard.h5").is_file()
