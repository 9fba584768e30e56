"""A real Ray cluster of two nodes on this machine, bound to 127.0.0.1: equal bytes, also when a node is lost."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_common import contents, leftovers, project
from command import run
from conftest import ROOT

from specdiag.batch import plan as plans
from specdiag.batch.on_ray import RETRIES, Cluster
from specdiag.batch.ray_address import settle
from specdiag.batch.schedule import Schedule
from specdiag.batch.settings import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="ray is not installed (specdiag[ray])"
    ),
]
LIMIT = 240

CONFIG = """
checkpoints = ["runs/*.pt"]
data = "digits"
samples = 100
batch_size = 8
[spectrum]
top = 1
[layers]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("ray"), 2, CONFIG)


@pytest.fixture(scope="module")
def whole(config: Path) -> dict[str, bytes]:
    """The results of the local executor."""
    assert run("batch", config, "--out", config.parent / "whole", "-q").exit_code == 0
    return contents(config.parent / "whole")


@pytest.fixture(autouse=True)
def not_for_ever() -> Iterator[None]:
    """A cluster that hangs fails its test and not the whole run."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The head of a cluster on 127.0.0.1 with one CPU."""
    settle(None)
    from ray.cluster_utils import Cluster as Nodes

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    # objects in a file: /dev/shm is small in many containers
    store = {"object_store_memory": 80_000_000, "plasma_directory": str(tmp_path_factory.mktemp("objects"))}
    nodes = Nodes()
    nodes.more = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False, **store}
    nodes.add_node(**nodes.more)
    yield nodes
    nodes.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture
def two_nodes(head: Any) -> Iterator[Any]:
    """The head and one more node; the first task on each starts its worker process."""
    import ray

    if len(head.list_all_nodes()) < 2:
        head.second = head.add_node(**head.more)
    ray.init(address=head.address, log_to_driver=False, logging_level="ERROR")
    yield head
    ray.shutdown()


def test_the_command_gives_the_bytes_of_the_local_executor(
    config: Path, whole: dict[str, bytes], two_nodes: Any, tmp_path: Path
) -> None:
    done = run("batch", config, "--executor", "ray", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "ray: 2 nodes, 2 tasks at a time" in done.stderr
    assert "overhead per task" in done.stderr
    assert contents(tmp_path / "out") == whole
    assert leftovers(tmp_path / "out") == []
    again = run("batch", config, "--executor", "ray", "--out", tmp_path / "out")
    assert again.stderr.count("already there") == 4


def test_nodes_that_see_no_journal_send_their_chunks(
    config: Path, whole: dict[str, bytes], two_nodes: Any, tmp_path: Path
) -> None:
    import ray

    def there(call: Any, folder: str) -> Any:
        from specdiag.batch import on_ray

        on_ray._sees_journal = lambda call: False
        return on_ray._there(call, folder)

    cluster = Cluster()
    cluster._remote = ray.remote(there)
    results = Schedule(cluster).run(plans.make(load(config), out=tmp_path))
    assert {result.status for result in results} == {"computed"}
    assert contents(tmp_path) == whole


def test_a_lost_node_costs_no_result(
    config: Path, whole: dict[str, bytes], two_nodes: Any, tmp_path: Path
) -> None:
    """The second node is killed while it computes chunks; they are computed on the other."""
    import ray

    victim, marker = two_nodes.second.node_id, tmp_path / "computing"

    def there(call: Any, folder: str) -> Any:
        from specdiag.batch import on_ray

        if call.step == "compute" and ray.get_runtime_context().get_node_id() == victim:
            marker.touch()
            time.sleep(60)
        # a fast first node would else finish everything before the second one has a task
        until = time.monotonic() + 60
        while call.step == "compute" and not marker.exists() and time.monotonic() < until:
            time.sleep(0.05)
        return on_ray._there(call, folder)

    def kill() -> None:
        while not marker.exists():
            time.sleep(0.05)
        two_nodes.remove_node(two_nodes.second, allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    cluster = Cluster()
    cluster._remote = ray.remote(max_retries=RETRIES)(there)
    results = Schedule(cluster).run(plans.make(load(config), out=tmp_path / "out"))
    assert marker.exists()
    assert {result.status for result in results} == {"computed"}
    assert contents(tmp_path / "out") == whole
    assert leftovers(tmp_path / "out") == []


def test_a_cluster_that_is_not_there(config: Path, tmp_path: Path) -> None:
    done = run("batch", config, "--executor", "ray", "--address", "127.0.0.1:1", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "127.0.0.1:1 cannot be reached: nothing listens there" in done.stderr
    assert not list(tmp_path.iterdir())
