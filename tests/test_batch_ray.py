"""A real Ray cluster of two nodes on this machine, bound to 127.0.0.1: equal bytes, also when a node is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_common import contents, leftovers, project
from command import run
from conftest import ROOT

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")

from specdiag.batch import plan as plans  # noqa: E402
from specdiag.batch.on_ray import Cluster  # noqa: E402
from specdiag.batch.schedule import Schedule  # noqa: E402
from specdiag.batch.settings import load  # noqa: E402

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


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A head and one more node, with one CPU each."""
    from ray.cluster_utils import Cluster as Nodes

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    arguments = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=arguments)
    nodes.second = nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
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


@pytest.mark.slow
def test_nodes_that_see_no_journal_send_their_chunks(
    config: Path, whole: dict[str, bytes], two_nodes: Any, tmp_path: Path
) -> None:
    def there(call: Any, folder: str) -> Any:
        from specdiag.batch import on_ray

        on_ray._sees_journal = lambda call: False
        return on_ray._there(call, folder)

    cluster = Cluster()
    cluster._remote = ray.remote(there)
    results = Schedule(cluster).run(plans.make(load(config), out=tmp_path))
    assert {result.status for result in results} == {"computed"}
    assert contents(tmp_path) == whole


@pytest.mark.slow
def test_a_lost_node_costs_no_result(
    config: Path, whole: dict[str, bytes], two_nodes: Any, tmp_path: Path
) -> None:
    """The second node is killed when the first chunks are done; its tasks are computed on the other."""
    said: list[int] = []

    def samples(count: int) -> None:
        if count and not said:
            said.append(count)
            two_nodes.remove_node(two_nodes.second, allow_graceful=False)

    results = Schedule(Cluster(), samples).run(plans.make(load(config), out=tmp_path))
    assert said
    assert {result.status for result in results} == {"computed"}
    assert contents(tmp_path) == whole
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_cluster_that_is_not_there(config: Path, tmp_path: Path) -> None:
    if ray.is_initialized():
        ray.shutdown()
    done = run("batch", config, "--executor", "ray", "--address", "127.0.0.1:1", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "cannot be reached" in done.stderr
