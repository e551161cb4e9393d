"""Jobs run in processes of their own: a hostile file can cost a worker, never the page.

A worker has a bound on its memory; a job that goes beyond its time, or whose visitor left, is killed with its
worker, and another one is started.  OVITO also wants to be called from the main thread of a process, which
the threads of a web server are not.
"""

from __future__ import annotations

import multiprocessing
import queue
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from zoo_space.errors import VisitorError

#: ``job(request, folder, tell)`` returns a result; ``folder`` is its own and temporary, ``tell`` is given
#: progress on the way.
Job = Callable[[Any, Path, Callable[[Any], None]], Any]

_POLL = 0.2
_NO_ROOM = "the page has no room for another job now: try it again in a minute"


@dataclass(frozen=True)
class Told:
    """Something a job tells on its way."""

    value: Any


@dataclass(frozen=True)
class Done:
    """What a job returned."""

    value: Any


class Workers:
    """A few processes that wait for jobs; started when first needed, or by `warm`.

    Parameters
    ----------
    number : of processes.
    memory_gb : address space of each.
    imports : modules that a worker imports before its first job.
    """

    def __init__(self, number: int, memory_gb: float, imports: tuple[str, ...] = ()) -> None:
        self._memory_gb, self._imports = memory_gb, imports
        self._free: queue.Queue[_Worker | None] = queue.Queue()
        for _ in range(number):
            self._free.put(None)
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def warm(self) -> None:
        """Start all processes now, in the background."""
        waiting = []
        with suppress(queue.Empty):
            while True:
                waiting.append(self._free.get_nowait())
        for each in waiting:
            self._free.put(each or self._start())

    def run(self, job: str, request: Any, seconds: float) -> Iterator[Told | Done]:
        """Run ``module:function`` on a request; yields what it tells, then what it returns.

        Raises
        ------
        VisitorError : the job said so, took longer than ``seconds``, or took its process down.
        """
        try:
            # The job's own, for what it needs on the way; made and removed here: a worker may be killed.
            folder = Path(tempfile.mkdtemp(prefix="zoo-job-"))
        except OSError:
            raise VisitorError(_NO_ROOM) from None
        worker = self._free.get()
        if worker is None or not worker.alive():
            try:
                worker = self._start()
            except OSError:
                self._free.put(None)
                folder.rmdir()
                raise VisitorError(_NO_ROOM) from None
        healthy = False
        try:
            worker.send(job, request, folder)
            for kind, value in worker.messages(seconds):
                if kind == "told":
                    yield Told(value)
                elif kind == "done":
                    healthy = True
                    yield Done(value)
                    return
                else:
                    healthy = kind == "visitor"
                    raise VisitorError(value)
        finally:  # also where the visitor has left in the middle
            if healthy:
                self._free.put(worker)
            else:
                self._stop(worker)
                self._free.put(None)
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End all processes."""
        self._closed = True
        for worker in list(self._all):
            self._stop(worker)

    def _start(self) -> _Worker:
        worker = _Worker(self._memory_gb, self._imports)
        with self._lock:
            self._all.add(worker)
        if self._closed:
            self._stop(worker)
        return worker

    def _stop(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.kill()


class _Worker:
    def __init__(self, memory_gb: float, imports: tuple[str, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, memory_gb, imports), daemon=True, name="zoo-space-worker"
        )
        self._process.start()
        theirs.close()

    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, job: str, request: Any, folder: Path) -> None:
        try:
            self._pipe.send((job, request, folder))
        except OSError:
            raise VisitorError("the job could not be started: try it again") from None

    def messages(self, seconds: float) -> Iterator[tuple[str, Any]]:
        end = time.monotonic() + seconds
        while True:
            if time.monotonic() > end:
                raise VisitorError(
                    f"stopped: the job took longer than {seconds:.0f} s, the limit of this page; ask for "
                    "less, or run it at home, where there is no limit"
                )
            try:
                if self._pipe.poll(_POLL):
                    yield self._pipe.recv()
                elif not self.alive() and not self._pipe.poll():
                    raise EOFError
            except (EOFError, OSError):
                raise VisitorError(
                    "the job took its process down, probably for want of memory: try a smaller structure"
                ) from None

    def kill(self) -> None:
        self._process.kill()
        self._process.join(5)
        self._pipe.close()


def _serve(pipe: Connection, memory_gb: float, imports: tuple[str, ...]) -> None:
    """What a worker does all its life."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the page's to handle
    _bound_memory(memory_gb)
    for module in imports:
        import_module(module)
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            name, request, folder = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(_answer(name, request, folder, lambda value: pipe.send(("told", value))))


def _answer(name: str, request: Any, folder: Path, tell: Callable[[Any], None]) -> tuple[str, Any]:
    from zoo.errors import ZooError
    from zoo_space.uploads import told

    module, _, function = name.partition(":")
    try:
        job: Job = getattr(import_module(module), function)
        return "done", job(request, folder, tell)
    except ZooError as error:
        return "visitor", told(error, folder)
    except MemoryError:
        return "visitor", "this structure needs more memory than this page has: try a smaller one"
    except Exception:
        traceback.print_exc(file=sys.stderr)  # for whoever keeps the page
        return "fault", "something went wrong on this page's side; it has been noted, please try again"


def _bound_memory(gigabytes: float) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    with suppress(ValueError, OSError):
        bound = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
