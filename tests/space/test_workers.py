"""Jobs in processes: answers, faults, time, memory, and visitors who leave."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zoo_space.errors import VisitorError
from zoo_space.workers import Done, Told, Workers

# By its own name: "tests" may be somebody else's, MACE installs a package of that name.
JOBS = "slow_jobs"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _jobs_can_be_imported() -> Iterator[None]:
    """In the workers, which begin with the paths of this process."""
    sys.path.append(str(Path(__file__).parent))
    yield
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(1, memory_gb=4.0)
    yield made
    made.close()


def ask(workers: Workers, job: str, request: Any = None, seconds: float = 30.0) -> list[Any]:
    return list(workers.run(f"{JOBS}:{job}", request, seconds))


def gone(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_job_tells_and_returns(workers: Workers) -> None:
    assert ask(workers, "double", 21) == [Told("on it"), Done(42)]


def test_a_worker_serves_many_jobs_and_keeps_nothing_of_them(workers: Workers) -> None:
    (first,), (second,) = ask(workers, "where"), ask(workers, "where")
    assert first.value[0] == second.value[0]
    assert first.value[1] != second.value[1]
    assert not Path(first.value[1]).exists()


def test_a_visitors_mistake_is_told_without_folders_of_this_machine(workers: Workers) -> None:
    with pytest.raises(VisitorError) as told:
        ask(workers, "refuse", "NaN")
    assert str(told.value) == "upload.dump, frame 3: NaN"


def test_a_bug_is_not_shown_to_visitors(workers: Workers) -> None:
    with pytest.raises(VisitorError, match="this page's side") as told:
        ask(workers, "fail")
    assert "secrets" not in str(told.value)
    assert ask(workers, "double", 1)[-1] == Done(2)


def test_a_job_that_takes_its_process_down_costs_nobody_else_anything(workers: Workers) -> None:
    with pytest.raises(VisitorError, match="took its process down"):
        ask(workers, "die")
    assert ask(workers, "double", 1)[-1] == Done(2)


def test_time_is_limited_and_the_process_is_gone(workers: Workers) -> None:
    job = workers.run(f"{JOBS}:sleep", 60.0, 1.0)
    told = next(job)
    assert isinstance(told, Told)
    started = time.monotonic()
    with pytest.raises(VisitorError, match="longer than 1 s"):
        list(job)
    assert time.monotonic() - started < 30  # not the sixty seconds of the job
    assert gone(told.value)
    assert ask(workers, "double", 1)[-1] == Done(2)


def test_memory_is_limited(workers: Workers) -> None:
    with pytest.raises(VisitorError, match="more memory"):
        ask(workers, "devour", 8 << 30)
    assert ask(workers, "devour", 1 << 20) == [Done(1 << 20)]


def test_a_visitor_who_leaves_takes_the_job_along(workers: Workers) -> None:
    job = workers.run(f"{JOBS}:sleep", 60.0, 60.0)
    told = next(job)
    assert isinstance(told, Told)
    job.close()  # type: ignore[attr-defined]
    assert gone(told.value)
    assert ask(workers, "double", 1)[-1] == Done(2)


def test_closing_ends_all_processes() -> None:
    workers = Workers(1, memory_gb=4.0)
    (done,) = ask(workers, "where")
    workers.close()
    assert gone(done.value[0])
