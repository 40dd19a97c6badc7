"""How many threads pay: chosen by the time that epochs take.

Results have the same bits for every number of threads, so the number can be chosen by timing, and
changed at any epoch (`Tuner`).  That is the only safe guide: on a virtual machine the cost of
handing a cache line from core to core changes by a factor of three within seconds, and a second
thread that halves the time in one minute doubles it in the next.
"""

from collections.abc import Callable

import numpy as np

_LONGEST_PAUSE = 64  # epochs between two looks at the other thread counts
_SUDDEN = 1.5  # times the usual time, at which the others are tried at once
_LEAST_GAP = 10  # times what the last trials lost, before the next
_GAIN = 0.97  # a change must take this much off the time
_FIRST_STEPS = 2  # that a number of threads on trial takes before it is judged
_WORSE, _GRACE = 1.5, 1e-3  # how much slower it may be, and seconds in which threads wake up


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

    Attributes
    ----------
    current : int
        The number in use between trials.
    seconds : float
        What an epoch takes with it, lately; 0 before the first.
    lost : float
        Seconds that the trials since took longer than the usual number of threads.
    """

    def __init__(self, limit: int, first: int, pause: int = 1):
        powers = (2**i for i in range(limit.bit_length()))
        self._counts = sorted({first, limit, *powers})
        self.current = first
        self.seconds = 0.0
        self.lost = 0.0
        self._trials: list[int] = []
        self._better: tuple[float, int] = (np.inf, first)
        self._pause = self._until_check = pause

    def choose(self) -> int:
        """Threads for the next epoch."""
        return self._trials[-1] if self._trials else self.current

    def report(self, n_threads: int, seconds: float) -> None:
        """Take note of an epoch's time."""
        if not self._trials:
            self._until_check -= 1
            if n_threads > 1 and self.seconds and seconds > _SUDDEN * self.seconds:
                self._until_check = 0  # something else has begun to use the processors
            self.seconds += (0.25 if self.seconds else 1.0) * (seconds - self.seconds)
            if self._until_check <= 0:
                self._trials = [count for count in self._counts if count != self.current]
                self._better = (_GAIN * self.seconds, self.current)
                self._until_check = self._pause
            return
        self._trials.pop()
        self._better = min(self._better, (seconds, n_threads))
        if self._trials:
            return
        seconds, best = self._better
        if best == self.current:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        else:
            self.current, self.seconds, self._pause = best, seconds, 2
        self._until_check = max(self._pause, int(_LEAST_GAP * self.lost / self.seconds))
        self.lost = 0.0


def run_trial(
    tuner: Tuner,
    n_threads: int,
    share: int,
    n_steps: int,
    run: Callable[[int, int, int, float], tuple[float, float]],
) -> float:
    """An epoch of ``n_steps`` with a number of threads on trial; returns its loss.

    The trial takes ever longer runs of steps, and the rest goes to the usual number as soon as it
    is clearly slower: where other programs keep the processors busy, threads that wait for each
    other take a thousand times as long.

    Parameters
    ----------
    tuner : Tuner
        Has seen an epoch.
    n_threads : int
        On trial.
    share : int
        Most threads to use.
    n_steps : int
    run : callable
        ``(n_threads, first, stop, loss) -> (loss, seconds)``: takes these steps of the epoch and
        adds to the loss.
    """
    per_step = tuner.seconds / n_steps
    loss, seconds, done, n_next = 0.0, 0.0, 0, _FIRST_STEPS
    while done < n_steps and seconds <= _WORSE * per_step * done + _GRACE:
        stop = min(done + n_next, n_steps)
        loss, more = run(n_threads, done, stop, loss)
        seconds, done, n_next = seconds + more, stop, 2 * n_next
    tuner.lost += max(0.0, seconds - per_step * done)
    if n_threads == tuner.choose():  # else fewer were to be had
        tuner.report(n_threads, seconds * n_steps / done)
    if done < n_steps:
        loss, _ = run(min(tuner.current, share), done, n_steps, loss)
    return loss
