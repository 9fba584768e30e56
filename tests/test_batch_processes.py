"""Several processes: equal bytes for any number of jobs, killed runs, workers that die, two runs on one output."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_common import contents, leftovers, project
from command import COMMAND, run
from conftest import ROOT

from specdiag.batch import plan as plans
from specdiag.batch.calls import Call, Done, Failure, News
from specdiag.batch.local import Pool, Serial
from specdiag.batch.schedule import Schedule
from specdiag.batch.settings import load

sys.path.insert(0, str(ROOT / "benchmarks"))

SPLIT = """
checkpoints = ["runs/*.pt"]
data = "digits"
samples = 60
batch_size = 8
[spectrum]
top = 1
[jacobian]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("batch"), 3, SPLIT)


@pytest.fixture(scope="module")
def whole(config: Path) -> dict[str, bytes]:
    """The results of one job at a time."""
    assert run("batch", config, "--out", config.parent / "whole", "-q").exit_code == 0
    return contents(config.parent / "whole")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two workers for all tests: starting them takes most of the time."""
    found = Pool(2)
    yield found
    found.close()


class Kept:
    """An executor that survives the end of a schedule."""

    def __init__(self, pool: Pool, splits: str = "tail") -> None:
        self.width, self.splits = pool.width, splits
        self.submit, self.next = pool.submit, pool.next

    def close(self) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("splits", ["never", "tail", "always"])
def test_any_number_of_jobs_gives_the_same_bytes(
    splits: str, config: Path, whole: dict[str, bytes], pool: Pool, tmp_path: Path
) -> None:
    plan = plans.make(load(config), out=tmp_path)
    counted = [0]

    def samples(count: int) -> None:
        counted[0] += count

    results = Schedule(Kept(pool, splits), samples).run(plan)  # type: ignore[arg-type]
    assert [result.status for result in results] == ["computed"] * 6
    assert counted[0] == 6 * 60
    assert contents(tmp_path) == whole
    assert leftovers(tmp_path) == []
    # split jobs took several calls: begin, shares of chunks, finish
    assert (max(result.calls for result in results) > 3) == (splits != "never")


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_call_tried_again(
    config: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    plan = plans.make(load(config), out=tmp_path)
    pool, said = Pool(2), []

    def killing(count: int) -> None:
        # the first sign of life of a job costs its worker its life
        if count and not said:
            said.append("")
            os.kill(pool.workers()[0], signal.SIGKILL)

    results = Schedule(pool, killing, said.append).run(plan)
    assert {result.status for result in results} <= {"computed", "continued"}
    assert any("trying once more" in line for line in said)
    assert contents(tmp_path) == whole


def test_a_worker_that_dies_twice_is_given_up(config: Path, tmp_path: Path) -> None:
    job = plans.make(load(config), out=tmp_path).jobs[0]
    pool = Pool(1)
    pool.submit(Call("run", job, "whole"))
    said: list[News] = []
    while True:
        os.kill(pool.workers()[0], signal.SIGKILL)
        news = pool.next()
        said.append(news)
        if news.kind == "answer":
            break
    pool.close()
    assert len(said) == 2
    assert isinstance(news.body, Failure)
    assert "signal 9" in news.body.what


def test_a_schedule_with_a_failing_share_ends_the_job_and_frees_its_lock(
    config: Path, tmp_path: Path
) -> None:
    """A call that fails leaves its chunks to be computed by the next run; other jobs go on."""

    class Failing(Serial):
        splits = "always"  # type: ignore[assignment]

        def next(self) -> News:
            news = super().next()
            if news.call.step == "compute" and news.call.job.number == 0:
                return News(news.call, "answer", Failure("no", kind="OutOfMemory2"))
            return news

    plan = plans.make(load(config), out=tmp_path)
    results = Schedule(Failing()).run(plan)
    assert [result.status for result in results] == ["failed"] + ["computed"] * 5
    again = Schedule(Serial()).run(plan)
    assert again[0].status == "continued"


def test_out_of_memory_in_a_share_runs_the_job_in_one_piece(
    config: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    class Short(Serial):
        splits = "always"  # type: ignore[assignment]

        def next(self) -> News:
            news = super().next()
            if news.call.step == "compute":
                return News(news.call, "answer", Failure("no memory", kind="OutOfMemory"))
            assert news.call.step in ("begin", "whole")
            assert news.call.step == "begin" or isinstance(news.body, Done)
            return news

    results = Schedule(Short()).run(plans.make(load(config), out=tmp_path))
    assert {result.status for result in results} == {"continued"}
    assert contents(tmp_path) == whole


@pytest.mark.slow
def test_two_runs_on_one_output_never_corrupt_it(
    config: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """The second waits for a while, then stops and says who is in the way; or comes late and finds everything."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "batch", str(config), "--out", str(tmp_path / "out")]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    ended = [(*process.communicate(), process.returncode) for process in both]
    assert 0 in [code for _, _, code in ended]
    for _, stderr, code in ended:
        assert code == 0 or (code == 2 and "in use by another run of specdiag (process" in stderr)
    assert contents(tmp_path / "out") == whole
    assert leftovers(tmp_path / "out") == []


@pytest.mark.slow
def test_killed_runs_lose_nothing_that_was_finished(tmp_path: Path) -> None:
    """The long version, with 50 kills, is benchmarks/kill_batch.py."""
    import kill_batch

    tally = kill_batch.run(tmp_path, 3, [1, 2], 2, random.Random(1))
    assert tally.problems == []
    assert tally.kills == 3


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1_000, 60_000])
def test_a_file_that_may_not_grow_is_as_good_as_a_full_disk(
    limit: int, config: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """No file may be longer than `limit` bytes: first no chunk can be kept, then chunks can but HDF5 files cannot."""
    out = tmp_path / "out"
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from specdiag.cli.main import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, "batch", str(config), "--out", str(out)]
    full = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert full.returncode == 2, full.stderr
    assert "File too large" in full.stderr
    assert "Traceback" not in full.stderr
    assert contents(out) == {}
    done = run("batch", config, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert ("continued" in done.stderr) == (limit == 60_000)
    assert contents(out) == whole
    assert leftovers(out) == []
