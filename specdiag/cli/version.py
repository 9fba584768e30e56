"""What `specdiag --version` prints: enough for a bug report."""

from __future__ import annotations

import platform
from importlib import metadata

from specdiag import __version__


def lines() -> list[str]:
    """specdiag, Python, torch with its devices and BLAS, and the libraries that compute."""
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    blas = "MKL" if torch.backends.mkl.is_available() else "other BLAS"  # type: ignore[no-untyped-call]
    capability = torch.backends.cpu.get_cpu_capability()
    found = [
        f"specdiag {__version__}",
        f"python {platform.python_version()} on {platform.machine()}",
        f"torch {torch.__version__} ({blas}; CPU {capability}; CUDA: {', '.join(devices) or 'none'})",
    ]
    for name in ("torchvision", "numpy", "scipy", "scikit-learn", "h5py", "h5netcdf", "xarray", "matplotlib"):
        found.append(f"{name} {metadata.version(name)}")
    return found
