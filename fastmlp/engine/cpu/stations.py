"""Stations: where helper threads wait between epochs without going to sleep.

A thread that sleeps takes 60 to 190 microseconds to wake up and get hold of the interpreter (less
right after it slept in), on digits a fifth of an epoch.  So a helper that has finished an epoch
stays in compiled code for a moment and watches a word in memory, its station; the caller, who
arrives with the next epoch some 50 microseconds later, finds it there.  If nobody comes, the helper
goes back to its Python loop.

A station says BUSY while its helper works, then WAITING.  The caller answers GO (another epoch) or
LEAVE; a helper that runs out of patience writes GONE.  Each of these replaces WAITING in one atomic
step, so that only one of them happens.

Tried and lost: watching in the Python loop, before the blocking read of the queue.  The wait for
the interpreter lock is another sleep (71 to 54 microseconds, nothing in an epoch).
"""

import time

import numpy as np

from fastmlp._jit import Entry, jit
from fastmlp.engine.cpu.layout import aligned
from fastmlp.engine.cpu.vector import atomic_load, compare_and_swap, pause, yield_thread

BUSY, WAITING, GO, LEAVE, GONE = range(5)
_SPINS = 300  # before a waiting thread offers its processor to others
_YIELDS = 1000  # before a helper gives up, after about half a millisecond
_WORDS = 8  # int64s per station: a cache line


@jit
def _watch(station, word, most):
    """Wait until the station says something else; False if it takes too long."""
    i = 0
    while atomic_load(station) == word:
        if i == most:
            return False
        if i < _SPINS:
            pause()
        else:
            yield_thread()
        i += 1
    return True


@jit
def stand_by(stations, thread):
    """Wait for the caller's next epoch, as ``thread``; whether it came."""
    if not stations:
        return False
    station = stations + 8 * _WORDS * thread
    compare_and_swap(station, BUSY, WAITING)
    if not _watch(station, WAITING, _SPINS + _YIELDS):
        compare_and_swap(station, WAITING, GONE)
    return compare_and_swap(station, GO, BUSY)


def _settle(stations, n_threads, most):
    settled = True
    for thread in range(1, n_threads):
        settled &= _watch(stations + 8 * _WORDS * thread, BUSY, most)
    return settled


def _tell(stations, n_threads, word):
    for thread in range(1, n_threads):
        compare_and_swap(stations + 8 * _WORDS * thread, WAITING, word)


_compiled_settle, _compiled_tell = Entry(_settle, ""), Entry(_tell, "")


class Stations:
    """One station for each of a team's threads; that of thread 0, the caller, is not used.

    Attributes
    ----------
    address : int
        For the kernel.
    """

    def __init__(self, n_threads: int):
        self._n_threads = n_threads
        self._words = aligned(n_threads * _WORDS, np.int64)
        self.address = self._words.__array_interface__["data"][0]

    def open(self) -> None:
        """Let every station say BUSY, before helpers are sent to work."""
        self._words[:] = BUSY

    def settle(self, limit: float) -> bool:
        """Wait until no helper is at work; False if that takes more than ``limit`` seconds."""
        end = time.monotonic() + limit
        while not _compiled_settle(self.address, self._n_threads, _SPINS + _YIELDS):
            if time.monotonic() > end:
                return False
        return True

    def describe(self) -> str:
        """What the stations say, for a report."""
        return f"stations {self._words[::_WORDS].tolist()}"

    def tell(self, word: int) -> None:
        """Tell GO or LEAVE to the helpers that wait."""
        _compiled_tell(self.address, self._n_threads, word)

    def reopen(self, thread: int) -> bool:
        """Make the station of a helper that is gone say BUSY again; whether it was gone."""
        word = self._words[thread * _WORDS]
        if word == GONE:
            self._words[thread * _WORDS] = BUSY
        return word == GONE
