"""Threads for the CPU engine: how many may be used, how many pay, and a team that runs them.

Kernels release the GIL, so plain Python threads run them side by side.  No Numba threading layer
is involved: `workqueue` aborts the process when two Python threads meet in it, and `omp` dies
after a fork.

Results have the same bits for every number of threads, so the number can be chosen by timing, and
changed at any epoch (`Tuner`).  That is the only safe guide: on a virtual machine the cost of
handing a cache line from core to core changes by a factor of three within seconds, and a second
thread that halves the time in one minute doubles it in the next.
"""

import os
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

import joblib
from joblib.parallel import get_active_backend

_RECHECK = 64  # epochs between two looks at the other thread counts
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

    Parameters
    ----------
    limit : int
        Most threads to use.
    first : int
        Threads of the first epoch.
    """

    def __init__(self, limit: int, first: int):
        counts = {first, limit}
        count = 1
        while count < limit:
            counts.add(count)
            count *= 2
        self._best_time = dict.fromkeys(sorted(counts), 0.0)
        self._queue = [first, *(c for c in self._best_time if c != first)] * 2
        self._epochs = 0

    def choose(self) -> int:
        """Threads for the next epoch."""
        if self._queue:
            return self._queue[0]
        return min(self._best_time, key=lambda count: self._best_time[count])

    def report(self, n_threads: int, seconds: float) -> None:
        """Take note of an epoch's time."""
        self._epochs += 1
        if self._queue:
            self._queue.pop(0)
            known = self._best_time[n_threads]
            self._best_time[n_threads] = min(seconds, known) if known else seconds
            return
        self._best_time[n_threads] += 0.25 * (seconds - self._best_time[n_threads])
        if self._epochs % _RECHECK == 0 and len(self._best_time) > 1:
            self._queue = [count for count in self._best_time if count != n_threads]
            for count in self._queue:
                self._best_time[count] = 0.0


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
        while len(self._helpers) < n_threads - own:
            self._helpers.append(_Helper())
        busy = self._helpers[: n_threads - own]
        all_running = False
        try:
            for thread, helper in enumerate(busy, own):
                helper.tasks.put((call, thread))
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
