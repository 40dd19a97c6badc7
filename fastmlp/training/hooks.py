"""What takes part in a training run between its epochs: one protocol for all of it.

The order of a run's hooks is the order in which they hear of an epoch: validation comes before the
rule that goes by its score (`fastmlp.training.epochs.StoppingRule`), what may end training before
the checkpoint, which writes the reason down.
"""

import contextlib
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from threading import Lock

import numpy as np

from fastmlp._interrupts import heard_by
from fastmlp._sklearn import Task
from fastmlp.engine import Engine, Samples
from fastmlp.training.run import Run


class Hook:
    """Hears of a run and its epochs, and may end it."""

    def begin(self, run: Run) -> None:
        """The engine is loaded, no epoch was run yet."""

    def epoch_begins(self, run: Run) -> None:
        """An epoch, or an iteration of L-BFGS, begins."""

    def epoch_ends(self, run: Run) -> str | None:
        """An epoch ended; returns a reason to stop, or None."""

    def end(self, run: Run) -> None:
        """Training ended of itself."""


def begin_epoch(run: Run, hooks: Sequence[Hook]) -> None:
    """Tell the hooks that an epoch begins."""
    for hook in hooks:
        hook.epoch_begins(run)


def end_epoch(run: Run, hooks: Sequence[Hook]) -> None:
    """Tell the hooks that an epoch ended; the first reason to stop is the run's."""
    for hook in hooks:
        reason = hook.epoch_ends(run)
        if run.stop_reason is None:
            run.stop_reason = reason


class Validation(Hook):
    """Judges the engine's parameters by data that it does not train on.

    Parameters
    ----------
    samples : Samples
        On the engine's device.
    score : callable or None
        ``run -> score``, higher is better; None means minus the loss.
    wants_loss : bool
        Whether somebody asked for the mean loss without penalty.
    """

    def __init__(self, samples: Samples, score: Callable[[Run], float] | None, wants_loss: bool):
        self._samples, self._score, self._wants_loss = samples, score, wants_loss

    def epoch_ends(self, run: Run) -> None:
        if self._wants_loss:
            run.validation_loss = run.engine.evaluate(self._samples)
        run.validation_score = -run.validation_loss if self._score is None else self._score(run)


class Callbacks(Hook):
    """Hands epochs on to the estimator's callbacks.

    Parameters
    ----------
    task : Task
        The run.
    name : str
        What an epoch is called.
    """

    def __init__(self, task: Task, name: str):
        self._task, self._name = task, name
        self._epoch: Task | None = None

    def epoch_begins(self, run: Run) -> None:
        self._epoch = self._task.subtask(self._name)

    def epoch_ends(self, run: Run) -> str | None:
        epoch, self._epoch = self._epoch, None
        return "callback" if epoch and epoch.end(run, run.engine.get_parameters) else None

    def end(self, run: Run) -> None:
        if self._epoch is not None:  # begun, but there was nothing left to do
            self._epoch.end(run, None)


class EpochLimit(Hook):
    """Ends training after a number of epochs."""

    def __init__(self, n: int):
        self._n = n

    def epoch_ends(self, run: Run) -> str | None:
        return "max_iter" if run.n_iter == self._n else None


class Limit(Hook):
    """What ends training whatever the loss: time, and Ctrl-C while other threads train.

    All runs of a fit share one; what ends a search (`LIMIT_OF_SEARCH`) ends its fits.

    Parameters
    ----------
    max_time : float or None
        Seconds from now.
    """

    def __init__(self, max_time: float | None = None):
        self._end = np.inf if max_time is None else time.perf_counter() + max_time
        self._engines: tuple[weakref.ref[Engine], ...] = ()
        self._lock = Lock()
        self._search = LIMIT_OF_SEARCH.get()
        self.interrupted = False

    def begin(self, run: Run) -> None:
        with self._lock:
            known = [engine for engine in self._engines if engine() is not None]
            self._engines = (*known, weakref.ref(run.engine))
        if self._search is not None:
            self._search.begin(run)

    def epoch_ends(self, run: Run) -> str | None:
        return self.reason()

    def reason(self) -> str | None:
        """Why to stop now, or None."""
        if self.interrupted:
            return "interrupted"
        if time.perf_counter() >= self._end:
            return "max_time"
        return None if self._search is None else self._search.reason()

    def interrupt(self) -> None:
        """After Ctrl-C: end all trainings.  To be said until it is heard: a call begins anew.

        It takes no lock, for a signal handler calls it.
        """
        self.interrupted = True
        for known in self._engines:
            engine = known()
            if engine is not None:
                engine.stop()

    def _listener(self) -> tuple[list[bool], Callable[[], None]]:
        """What Ctrl-C is to call, with a list that is not empty once it did."""
        heard: list[bool] = []

        def listen() -> None:
            heard.append(True)
            self.interrupt()

        return heard, listen

    @contextlib.contextmanager
    def beside_threads(self) -> Iterator[list[bool]]:
        """While other threads train, Ctrl-C tells them and raises nothing.

        They are told as well if an error ends the block.  It is handed a list that is not empty
        once Ctrl-C was heard.
        """
        heard, listen = self._listener()
        with heard_by(listen):
            try:
                yield heard
            except BaseException:
                self.interrupt()
                raise

    @contextlib.contextmanager
    def around(self, run: Run, has_nothing: Callable[[], bool]) -> Iterator[None]:
        """While a run trains, Ctrl-C ends it with a warning.

        Parameters
        ----------
        run : Run
        has_nothing : callable
            Whether there is nothing to keep, so that a KeyboardInterrupt is raised.
        """
        heard, listen = self._listener()
        is_short = run.plan.incremental  # and listening takes a part of that
        try:
            with contextlib.nullcontext() if is_short else heard_by(listen, raises=True):
                yield
            if heard:  # what was raised got lost
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            told = not heard and self.reason() == "interrupted"
            self.interrupt()
            if has_nothing():
                raise
            run.stop_reason = "interrupted"
            if not told:
                warnings.warn("Training interrupted by user.")


LIMIT_OF_SEARCH: ContextVar[Limit | None] = ContextVar("LIMIT_OF_SEARCH", default=None)
"""That of the search to which the fits of a thread belong."""
