"""Standby: how helper threads wait between epochs without going to sleep.

A thread that sleeps takes 60 to 190 microseconds to wake up and get hold of the interpreter (less
right after it slept in), on digits a fifth of an epoch.  So a helper that has finished an epoch
stays in compiled code for a moment and watches a word in memory, its flag; the caller, who
arrives with the next epoch some 50 microseconds later, finds it there.  If nobody comes, the helper
goes back to its Python loop.

A flag says BUSY while its helper works, then WAITING.  The caller answers GO (another epoch) or
LEAVE; a helper that runs out of patience writes GONE.  Each of these replaces WAITING in one atomic
step, so that only one of them happens.

Tried and lost: watching in the Python loop, before the blocking read of the queue.  The wait for
the interpreter lock is another sleep (71 to 54 microseconds, nothing in an epoch).
"""

import time

import numpy as np

from fastmlp.engine.cpu.blocks import Watch
from fastmlp.engine.cpu.layout import aligned
from fastmlp.engine.objects import entry

BUSY, WAITING, GO, LEAVE, GONE = range(5)
SPINS = 300  # before a waiting thread offers its processor to others
LOOKS = SPINS + 1000  # before a helper gives up, after about half a millisecond
WORDS = 8  # int64s per flag: a cache line


class Standby:
    """One flag for each of a team's threads; that of thread 0, the caller, is not used.

    Attributes
    ----------
    address : int
        For the kernel.
    """

    def __init__(self, n_threads: int):
        self._words = aligned(n_threads * WORDS, np.int64)
        self.address = self._words.__array_interface__["data"][0]
        self._watch = Watch(flags=self.address, n_threads=n_threads, most=LOOKS)

    def open(self) -> None:
        """Let every flag say BUSY, before helpers are sent to work."""
        self._words[:] = BUSY

    def settle(self, limit: float) -> bool:
        """Wait until no helper is at work; False if that takes more than ``limit`` seconds."""
        end = time.monotonic() + limit
        look = entry("settle")
        while not look(0, self._watch.address):
            if time.monotonic() > end:
                return False
        return True

    def describe(self) -> str:
        """What the flags say, for a report."""
        return f"flags {self._words[::WORDS].tolist()}"

    def tell(self, word: int) -> None:
        """Tell GO or LEAVE to the helpers that wait."""
        self._watch.word = word
        entry("tell")(0, self._watch.address)

    def reopen(self, thread: int) -> bool:
        """Make the flag of a helper that is gone say BUSY again; whether it was gone."""
        word = self._words[thread * WORDS]
        if word == GONE:
            self._words[thread * WORDS] = BUSY
        return word == GONE
