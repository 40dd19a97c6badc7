"""Threads for the CPU engine: how many may be used, by how many fits, and a team that runs them.

Kernels release the GIL, so plain Python threads run them side by side.  No Numba threading layer
is involved: `workqueue` aborts the process when two Python threads meet in it, and `omp` dies
after a fork.

A thread that is woken up often finds itself on the processor of the thread that woke it, behind
that thread, which is waiting for it: epochs of 0.3 ms took up to 77.  So the helpers are kept off
the processor that the caller is on.  Tried and lost: letting a helper that finds itself there move
away (it does not get to run until the next clock tick).
"""

import contextlib
import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

import numpy as np
from joblib.parallel import get_active_backend

from fastmlp.engine.cpu.standby import GO, LEAVE, Standby
from fastmlp.engine.processor import n_processors

_MOST_THREADS = 1024  # that memory is set aside for; a user's limit may be any number
_LINGERING = 0.05  # seconds after which an idle fit no longer counts
_LONGEST_WAIT = 120.0  # seconds for a helper that has nothing more to do than its last step
_LIMITING_VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")  # joblib's workers set these


def available_threads(n_threads: int | None) -> int:
    """Threads that a fit may use.

    Parameters
    ----------
    n_threads : int or None
        The user's limit; None means all processors that affinity, the container's limits, and
        joblib leave to this process.
    """
    if n_threads is not None:
        return min(n_threads, _MOST_THREADS)
    backend, _ = get_active_backend()
    if backend.nesting_level:
        return 1
    limits = [n_processors()]
    for variable in _LIMITING_VARIABLES:
        value = os.environ.get(variable, "")
        if value.isdigit() and int(value) > 0:
            limits.append(int(value))
    return min(limits)


class ThreadBudget:
    """Shares the processors out among the fits of this process that run side by side.

    Two fits of two threads each on two processors take 2.5 times as long as one; of one thread
    each, 1.5 times.  A fit counts until `_LINGERING` seconds after its last epoch, for between two
    epochs it only looks idle.
    """

    def __init__(self) -> None:
        self._until: dict[int, float] = {}

    def enter(self, fit: object, limit: int) -> int:
        """``fit`` begins to run; its share of ``limit`` threads, 1 at least."""
        until, own = self._until, id(fit)
        if own not in until:
            weakref.finalize(fit, until.pop, own, None).atexit = False
        until[own] = np.inf
        if len(until) == 1:
            return limit
        now = time.perf_counter()
        return max(1, limit // sum(end > now for end in list(until.values())))

    def leave(self, fit: object) -> None:
        """``fit`` has run."""
        self._until[id(fit)] = time.perf_counter() + _LINGERING


THREAD_BUDGET = ThreadBudget()


class Team:
    """Helper threads, kept from epoch to epoch; they end with the team.

    Only the main thread ever sees Ctrl-C, and never inside a compiled call.  A short call runs its
    first share in the calling thread.  For a long one the calling thread only waits, so that it can
    tell the kernel to stop.  Helpers whose call has a standby stay in it after their share,
    ready for the same call again.
    """

    def __init__(self) -> None:
        self._helpers: list[_Helper] = []
        self._standby: Standby | None = None
        self._standing: list[_Helper] = []
        self._kept_off = -1
        weakref.finalize(self, _dismiss, self._helpers)

    def settle(self, describe: Callable[[], str], abort: Callable[[], None]) -> None:
        """Wait until no helper uses anything of an earlier call, but for what keeps it there.

        Raises
        ------
        RuntimeError
            If one never gets there, which would be a fault of the kernels: see `run`.
        """
        if self._standby is None or self._standby.settle(_LONGEST_WAIT):
            return
        raise self._lost(f"{self._standby.describe()}, {describe()}", abort)

    def run(
        self,
        call: Callable[[int], float],
        n_threads: int,
        *,
        supervised: bool,
        standby: Standby | None,
        stop: Callable[[], None],
        abort: Callable[[], None],
        describe: Callable[[], str],
    ) -> float:
        """Run ``call(0) ... call(n_threads - 1)`` side by side.

        Parameters
        ----------
        call : callable
            Runs the kernel as one thread.
        n_threads : int
        supervised : bool
            Whether the calling thread only waits.
        standby : Standby or None
            Where helpers wait after their share.  With that of the last run, ``call`` must be the
            same call, of as many threads.
        stop, abort : callable
            Tell the kernel to end after the current step; or, when not all threads were started,
            to give up waiting for the others.
        describe : callable
            Tells where the threads are, for a report that some do not end.

        Returns
        -------
        What ``call(0)`` returned.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C, when all threads have ended.
        RuntimeError
            If a helper does not end although thread 0 has, which would be a fault of the kernels.
        """
        again = standby is self._standby
        if not again:
            self._recall()
        own = 0 if supervised else 1
        while len(self._helpers) < n_threads - own:
            self._helpers.append(_Helper())
            self._kept_off = -1
        busy = self._helpers[: n_threads - own]
        if not supervised:
            self._keep_off(_processor())
        all_running = False
        try:
            if standby is not None and again:
                standby.tell(GO)
            elif standby is not None:
                standby.open()
            self._standby, self._standing = standby, busy if standby else []
            for thread, helper in enumerate(busy, own):
                if standby is not None and again:
                    if not standby.reopen(thread):
                        continue
                    helper.wait(_LONGEST_WAIT)
                helper.send(call, thread)
            results = [] if supervised else [call(0)]
            all_running = True
            if standby is None:
                for thread, helper in enumerate(busy, own):
                    results.append(helper.wait(_LONGEST_WAIT if thread else np.inf))
        except KeyboardInterrupt:
            if all_running:
                stop()
            else:
                abort()
            _dismiss(self._helpers)
            for helper in busy:
                helper.thread.join()
            self._helpers.clear()
            self._standby, self._standing = None, []
            raise
        except TimeoutError:
            raise self._lost(describe(), abort) from None
        return results[0]

    def _lost(self, report: str, abort: Callable[[], None]) -> RuntimeError:
        """Give helpers up that do not end."""
        abort()
        _dismiss(self._helpers)
        self._helpers.clear()
        self._standby, self._standing = None, []
        return RuntimeError(
            f"A thread of this fit did not end within {_LONGEST_WAIT:.0f} s ({report}); this is a "
            "fault of fastmlp: please report it with this line, and set n_threads=1 meanwhile."
        )

    def _recall(self) -> None:
        """Have the helpers that stand by, which `settle` has seen to, return from their call."""
        if self._standby is None:
            return
        self._standby.tell(LEAVE)
        for helper in self._standing:
            helper.wait(_LONGEST_WAIT)
        self._standby, self._standing = None, []

    def _keep_off(self, processor: int) -> None:
        """Let the helpers run on any allowed processor but this one."""
        if processor == self._kept_off or processor < 0:
            return
        allowed = os.sched_getaffinity(0)
        for helper in self._helpers:
            helper.restrict(allowed - {processor} or allowed)
        self._kept_off = processor


class _Helper:
    """A thread that does one task at a time."""

    def __init__(self) -> None:
        self.tasks: SimpleQueue = SimpleQueue()
        self._results: SimpleQueue = SimpleQueue()
        self.thread = threading.Thread(
            target=_work, args=(self.tasks, self._results), name="fastmlp", daemon=True
        )
        self.thread.start()

    def restrict(self, processors: set[int]) -> None:
        """Say where the thread may run."""
        with contextlib.suppress(OSError):  # where this is not allowed, nothing is lost but time
            os.sched_setaffinity(self.thread.native_id or 0, processors)

    def send(self, call: Callable[[int], float], thread: int) -> None:
        """Have ``call(thread)`` run."""
        self.tasks.put((call, thread))

    def wait(self, limit: float = np.inf) -> float:
        """The task's result; what it raised is raised here, and TimeoutError after ``limit`` s."""
        end = time.monotonic() + limit
        while True:
            try:
                result, error = self._results.get(timeout=0.1)
            except Empty:
                if time.monotonic() > end:
                    raise TimeoutError from None
                continue
            if error is not None:
                raise error
            return result


def _no_processor() -> int:
    return -1


def _find_getcpu() -> Callable[[], int]:
    """The function that tells the calling thread's processor; -1 where there is none."""
    if sys.platform != "linux" or not hasattr(os, "sched_setaffinity"):
        return _no_processor
    return getattr(ctypes.CDLL(None), "sched_getcpu", _no_processor)


_processor = _find_getcpu()


def _work(tasks: SimpleQueue, results: SimpleQueue) -> None:
    while (task := tasks.get()) is not None:
        call, thread = task
        try:
            results.put((call(thread), None))
        except BaseException as error:
            results.put((None, error))
        del task, call


def _dismiss(helpers: list[_Helper]) -> None:
    for helper in helpers:
        helper.tasks.put(None)
