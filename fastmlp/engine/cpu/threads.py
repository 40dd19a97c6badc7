"""Threads for the CPU engine: how many may be used, how many pay, and a team that runs them.

Kernels release the GIL, so plain Python threads run them side by side.  No Numba threading layer
is involved: `workqueue` aborts the process when two Python threads meet in it, and `omp` dies
after a fork.

Results have the same bits for every number of threads, so the number can be chosen by timing, and
changed at any epoch (`Tuner`).  That is the only safe guide: on a virtual machine the cost of
handing a cache line from core to core changes by a factor of three within seconds, and a second
thread that halves the time in one minute doubles it in the next.

A thread that wakes up often finds itself on the processor of the thread that woke it, and Linux may
leave both there for many milliseconds, each spinning until the other's turn: epochs of 2 ms took 30
to 100.  So a helper that finds itself there moves on (`_move_away`).  Pinning helpers for good was
not chosen: another process on that processor would hold up the whole team.
"""

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

import joblib
import numpy as np
from joblib.parallel import get_active_backend

_LONGEST_PAUSE = 64  # epochs between two looks at the other thread counts
_GAIN = 0.97  # a change must take this much off the time
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
        return n_threads
    backend, _ = get_active_backend()
    if backend.nesting_level:
        return 1
    limits = [joblib.cpu_count()]
    for variable in _LIMITING_VARIABLES:
        value = os.environ.get(variable, "")
        if value.isdigit() and int(value) > 0:
            limits.append(int(value))
    return min(limits)


class Tuner:
    """Chooses the number of threads of each epoch by the time that epochs took.

    Every now and then one epoch is run with each of the other counts: soon after the start and
    after a change, ever more rarely while nothing changes.  The first epochs may be misleading,
    because threads of whatever ran before (a BLAS) can still be spinning.

    Parameters
    ----------
    limit : int
        Most threads to use.
    first : int
        Threads of the first epoch.
    pause : int
        Epochs before the others are tried.
    """

    def __init__(self, limit: int, first: int, pause: int = 1):
        powers = (2**i for i in range(limit.bit_length()))
        self._counts = sorted({first, limit, *powers})
        self._current = first
        self._seconds = 0.0
        self._trials: list[int] = []
        self._better: tuple[float, int] = (np.inf, first)
        self._pause = self._until_check = pause

    def choose(self) -> int:
        """Threads for the next epoch."""
        return self._trials[-1] if self._trials else self._current

    def report(self, n_threads: int, seconds: float) -> None:
        """Take note of an epoch's time."""
        if not self._trials:
            share = 0.25 if self._seconds else 1.0
            self._seconds += share * (seconds - self._seconds)
            self._until_check -= 1
            if self._until_check == 0:
                self._trials = [count for count in self._counts if count != self._current]
                self._better = (_GAIN * self._seconds, self._current)
                self._until_check = self._pause
            return
        self._trials.pop()
        self._better = min(self._better, (seconds, n_threads))
        if self._trials:
            return
        seconds, best = self._better
        if best == self._current:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        else:
            self._current, self._seconds, self._pause = best, seconds, 2
        self._until_check = self._pause


class Team:
    """Helper threads, kept from epoch to epoch; they end with the team.

    Only the main thread ever sees Ctrl-C, and never inside a compiled call.  A short call runs its
    first share in the calling thread.  For a long one the calling thread only waits, so that it can
    tell the kernel to stop.
    """

    def __init__(self):
        self._helpers: list[_Helper] = []
        weakref.finalize(self, _dismiss, self._helpers)

    def run(
        self,
        call: Callable[[int], float],
        n_threads: int,
        *,
        supervised: bool,
        stop: Callable[[], None],
        abort: Callable[[], None],
    ) -> float:
        """Run ``call(0) ... call(n_threads - 1)`` side by side.

        Parameters
        ----------
        call : callable
            Runs the kernel as one thread.
        n_threads : int
        supervised : bool
            Whether the calling thread only waits.
        stop, abort : callable
            Tell the kernel to end after the current step; or, when not all threads were started,
            to give up waiting for the others.

        Returns
        -------
        What ``call(0)`` returned.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C, when all threads have ended.
        """
        own = 0 if supervised else 1
        here = _processor() if n_threads > own else -1
        while len(self._helpers) < n_threads - own:
            self._helpers.append(_Helper())
        busy = self._helpers[: n_threads - own]
        all_running = False
        try:
            for thread, helper in enumerate(busy, own):
                helper.tasks.put((call, thread, here))
            results = [] if supervised else [call(0)]
            all_running = True
            results += [helper.wait() for helper in busy]
        except KeyboardInterrupt:
            if all_running:
                stop()
            else:
                abort()
            _dismiss(self._helpers)
            for helper in busy:
                helper.thread.join()
            self._helpers.clear()
            raise
        return results[0]


class _Helper:
    """A thread that does one task at a time."""

    def __init__(self):
        self.tasks: SimpleQueue = SimpleQueue()
        self._results: SimpleQueue = SimpleQueue()
        self.thread = threading.Thread(
            target=_work, args=(self.tasks, self._results), name="fastmlp", daemon=True
        )
        self.thread.start()

    def wait(self):
        """The task's result; what it raised is raised here."""
        while True:
            try:
                result, error = self._results.get(timeout=0.1)
            except Empty:
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


def _move_away(processor: int, thread: int) -> None:
    """Move the calling thread to another processor, without tying it down there."""
    allowed = os.sched_getaffinity(0)
    others = sorted(allowed - {processor})
    if others:
        os.sched_setaffinity(0, {others[thread % len(others)]})
        os.sched_setaffinity(0, allowed)


def _work(tasks: SimpleQueue, results: SimpleQueue) -> None:
    while (task := tasks.get()) is not None:
        call, thread, caller = task
        try:
            if thread > 0 and caller >= 0 and _processor() == caller:
                _move_away(caller, thread)
            results.put((call(thread), None))
        except BaseException as error:
            results.put((None, error))
        del task, call


def _dismiss(helpers: list[_Helper]) -> None:
    for helper in helpers:
        helper.tasks.put(None)
