"""Where a Ray cluster listens. A cluster on this machine alone is bound to 127.0.0.1 and found there."""

from __future__ import annotations

import os
import socket

from specdiag.errors import UsageError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PATIENCE = 5.0
# Ray replaces 127.0.0.1 by the machine's outer address unless this says that there are no clusters of several machines
_STAY_INSIDE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def settle(address: str | None) -> None:
    """Set Ray's environment for an address (None: a cluster started here); call it before Ray is imported.

    Raises UsageError at once where nothing listens at HOST:PORT; Ray itself tries for minutes. Addresses of other
    forms (auto, ray://...) are left to Ray.
    """
    # nothing is reported to anyone
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ.setdefault(_STAY_INSIDE, "0")
        return
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        return
    outer = _outer_address() if host in _LOOPBACK else host
    if _listens(outer, int(port)):
        return
    if host in _LOOPBACK and _listens(host, int(port)):
        os.environ.setdefault(_STAY_INSIDE, "0")
        return
    raise UsageError(
        f"The Ray cluster {address} cannot be reached: nothing listens there.",
        "Start one with: ray start --head, and pass its --address.",
    )


def _outer_address() -> str:
    """The address by which other machines know this one; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 1))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _PATIENCE).close()
    except OSError:
        return False
    return True
