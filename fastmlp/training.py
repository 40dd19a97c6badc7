"""The training loops: epochs, shuffling, validation, stopping, history.  They know no target.

`train` is scikit-learn's stochastic loop with the batches taken out: per epoch it draws the sample
order and the learning rates, and makes one engine call.  Everything that decides when to stop
happens here, on the host, in scikit-learn's order and with its messages.  `minimise` hands the
engine's loss and gradient to SciPy's L-BFGS-B.  `side_by_side` runs several trainings at once.

All state is in a `Progress`, which callers build and read; nothing else is touched, so a fit that
fails leaves its estimator as it was.
"""

import math
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.optimize

from fastmlp import schedules
from fastmlp._sklearn import NO_TASK, ConvergenceWarning, Task, check_optimize_result
from fastmlp.engine import Engine, available_threads
from fastmlp.schedules import Schedule

HISTORY = ("epoch", "loss", "validation_loss", "validation_score", "learning_rate", "seconds")


class DivergedError(ValueError):
    """The parameters became non-finite."""


@dataclass
class Progress:
    """Where a training run stands: what scikit-learn keeps in its estimators' attributes.

    ``history`` has one tuple of `HISTORY` per epoch, numbered on from ``n_earlier`` epochs.
    ``best_parameters`` are the parameters to go back to at the end of early stopping; None means
    those of the last epoch.  ``stop_reason`` says why training ended, None while it goes on;
    ``engine_info`` where and how it runs; ``finite_outputs`` whether the parameters, finite
    themselves, give finite outputs for the training data.
    """

    parameters: np.ndarray
    learning_rate: float
    n_iter: int = 0
    n_steps: int = 0
    n_samples_seen: int = 0
    no_improvement_count: int = 0
    loss: float = np.nan
    best_loss: float | None = np.inf
    best_validation_score: float | None = None
    best_parameters: np.ndarray | None = None
    loss_curve: list[float] = field(default_factory=list)
    validation_scores: list[float] | None = None
    n_earlier: int = 0
    history: list[tuple] = field(default_factory=list)
    plateau: tuple[float, int] = (np.inf, 0)
    stop_reason: str | None = None
    engine_info: dict[str, Any] = field(default_factory=dict)
    finite_outputs: bool = True


@dataclass(frozen=True)
class Settings:
    """What `train` needs to know of an estimator's parameters."""

    max_iter: int
    batch_size: int
    shuffle: bool
    tol: float
    n_iter_no_change: float
    schedule: Schedule
    verbose: bool


@dataclass(frozen=True)
class Validation:
    """How to judge the engine's current parameters by data that it does not train on.

    Parameters
    ----------
    score : callable or None
        Higher is better; None means minus the loss.
    loss : callable or None
        Mean loss without penalty; None means that nobody asked for it.
    early_stopping : bool
        Whether the score decides when to stop and which parameters to keep.
    """

    score: Callable[[], float] | None
    loss: Callable[[], float] | None
    early_stopping: bool

    def evaluate(self) -> tuple[float, float]:
        """Loss, NaN if nobody asked for it, and score."""
        loss = np.nan if self.loss is None else self.loss()
        return loss, -loss if self.score is None else self.score()


class Keeper:
    """What could keep the state of a run beyond the process; this one keeps nothing."""

    def restore(self, engine: Engine, progress: Progress, order, random_state) -> bool:
        """Set everything to a state that was kept; False if there is none."""
        return False

    def update(self, engine: Engine, progress: Progress, order, random_state) -> None:
        """An epoch ended: keep the state if it is time to, or if training ends with it."""


class Limit:
    """What ends training whatever the loss: time, and Ctrl-C while other threads train.

    Parameters
    ----------
    max_time : float or None
        Seconds from now.
    """

    def __init__(self, max_time: float | None = None):
        self._end = np.inf if max_time is None else time.perf_counter() + max_time
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self.interrupted = False

    def watch(self, engine: Engine) -> None:
        """Have `interrupt` end what ``engine`` does."""
        self._engines.add(engine)

    def interrupt(self) -> None:
        """After Ctrl-C: end all trainings.  To be said until it is heard: a call begins anew."""
        self.interrupted = True
        for engine in list(self._engines):
            engine.stop()

    def reason(self) -> str | None:
        """Why to stop now, or None."""
        if self.interrupted:
            return "interrupted"
        return "max_time" if time.perf_counter() >= self._end else None


def train(
    engine: Engine,
    progress: Progress,
    settings: Settings,
    samples: np.ndarray,
    random_state: np.random.RandomState,
    limit: Limit,
    *,
    validation: Validation | None = None,
    task: Task = NO_TASK,
    keeper: Keeper | None = None,
    single_epoch: bool = False,
) -> None:
    """Train by stochastic gradient descent until something ends it: see `Progress.stop_reason`.

    Parameters
    ----------
    engine : Engine
        Loaded with data, parameters and optimizer state.
    progress : Progress
        Updated in place, parameters included.
    settings : Settings
    samples : ndarray of shape (n_train,), int64
        The rows of the loaded data to train on.
    random_state : RandomState
        Draws one permutation per epoch.
    limit : Limit
        Asked after every epoch.
    validation : Validation, optional
        Asked after every epoch.
    task : Task
        Hears of every epoch, and may end training.
    keeper : Keeper, optional
        Knows where to begin, and hears of every epoch.
    single_epoch : bool
        Stop after one epoch, without a word about convergence (``partial_fit``).

    Raises
    ------
    DivergedError
        When the parameters become non-finite, in the epoch where it happens.
    KeyboardInterrupt
        After Ctrl-C, if not a step was made or ``single_epoch``; else training ends with a warning.
    """
    from fastmlp._random import shuffle  # loads the CPU engine

    early_stopping = validation is not None and validation.early_stopping
    order = samples.copy()
    keeper = keeper or Keeper()
    if not keeper.restore(engine, progress, order, random_state):
        progress.n_iter = 0
        progress.stop_reason = None
    limit.watch(engine)
    first_step = progress.n_steps
    try:
        while progress.stop_reason is None:
            started = time.perf_counter()
            epoch = task.subtask("epoch")
            if settings.shuffle:
                shuffle(order, random_state)
            rate = _run_epoch(engine, progress, settings, order)
            loss, score = validation.evaluate() if validation else (np.nan, np.nan)
            if early_stopping:
                _compare_score(progress, settings, score, engine)
            else:
                _compare_loss(progress, settings)
            _record(progress, loss, score, rate, started)
            reason = _end_of_epoch(engine, progress, settings, early_stopping)
            if epoch.end(progress, engine.get_parameters):
                reason = reason or "callback"
            if reason is None and (single_epoch or progress.n_iter == settings.max_iter):
                reason = "max_iter"
            progress.stop_reason = reason or limit.reason()
            keeper.update(engine, progress, order, random_state)
        if progress.stop_reason == "max_iter" and not (single_epoch or _as_planned(settings)):
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({settings.max_iter}) "
                "reached and the optimization hasn't converged yet.",
                ConvergenceWarning,
            )
    except KeyboardInterrupt:
        _interrupt(progress, limit, single_epoch or engine.n_steps == first_step)
    progress.parameters = engine.get_parameters()
    best = _best_parameters(progress) if early_stopping else None
    if best is not None:
        progress.parameters = best
    _require_finite(progress)


def minimise(
    engine: Engine,
    progress: Progress,
    limit: Limit,
    *,
    max_iter: int,
    max_fun: int,
    tol: float,
    validation: Validation | None = None,
    task: Task = NO_TASK,
) -> None:
    """Train on all loaded data with SciPy's L-BFGS-B.

    Parameters
    ----------
    engine : Engine
        Loaded with data and parameters.
    progress : Progress
        Updated in place, parameters included.
    limit : Limit
        Asked after every iteration.
    max_iter, max_fun : int
        Limits on iterations and on evaluations of the loss.
    tol : float
        Tolerance on the largest component of the projected gradient.
    validation : Validation, optional
        Asked after every iteration, for the record.
    task : Task
        Hears of every iteration, and may end training.

    Raises
    ------
    DivergedError
        When the parameters become non-finite.
    """
    started = time.perf_counter()
    iteration = task.subtask("iteration")

    def objective(flat):
        engine.set_parameters(flat)
        return engine.loss_and_gradient()

    def accept(intermediate_result):
        nonlocal started, iteration
        progress.parameters = intermediate_result.x.copy()
        progress.loss = float(intermediate_result.fun)
        progress.n_iter += 1
        engine.set_parameters(progress.parameters)
        loss, score = validation.evaluate() if validation else (np.nan, np.nan)
        _record(progress, loss, score, np.nan, started)
        stop = iteration.end(progress, engine.get_parameters)
        progress.stop_reason = "callback" if stop else limit.reason()
        if progress.stop_reason is not None:
            raise StopIteration
        started, iteration = time.perf_counter(), task.subtask("iteration")

    progress.n_iter = 0
    progress.stop_reason = None
    limit.watch(engine)
    try:
        result = scipy.optimize.minimize(
            objective,
            progress.parameters,
            method="L-BFGS-B",
            jac=True,
            callback=accept,
            options={"maxfun": max_fun, "maxiter": max_iter, "gtol": tol},
        )
        progress.loss = result.fun
        progress.parameters = result.x
        if progress.stop_reason is None:
            iteration.end(progress, None)  # begun, but SciPy found nothing left to do
            progress.n_iter = check_optimize_result("lbfgs", result, max_iter)
            progress.stop_reason = {0: "converged", 1: "max_iter"}.get(result.status, "failed")
    except KeyboardInterrupt:
        _interrupt(progress, limit, progress.n_iter == 0)
    _require_finite(progress)


def _interrupt(progress: Progress, limit: Limit, nothing_to_keep: bool) -> None:
    """What is to be done in the handler of a KeyboardInterrupt."""
    told = limit.interrupted
    limit.interrupt()
    if nothing_to_keep:
        raise
    progress.stop_reason = "interrupted"
    if not told:
        warnings.warn("Training interrupted by user.")


def side_by_side(
    jobs: Sequence[Callable[[], Any]], limit: Limit, n_threads: int | None
) -> list[Any]:
    """Run trainings, at once as far as there are processors for them.

    The first runs in any case; another that the limit leaves no time for is not started.

    Parameters
    ----------
    jobs : sequence of callable
    limit : Limit
        The one that the jobs obey: Ctrl-C ends them all, and is no reason to warn a second time.
    n_threads : int or None
        Most jobs at once; None means as many as `fastmlp.engine.available_threads`.

    Returns
    -------
    list
        What each job returned, or the DivergedError or KeyboardInterrupt that it raised.
    """

    def run(job):
        if job is not jobs[0] and limit.reason():
            return DivergedError("There was no time left for it.")
        try:
            return job()
        except (DivergedError, KeyboardInterrupt) as error:
            return error

    if len(jobs) == 1:
        return [run(jobs[0])]
    n_at_once = min(available_threads(n_threads), len(jobs))
    if n_at_once == 1:
        return [run(job) for job in jobs]
    with ThreadPoolExecutor(n_at_once) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            wait(futures)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.")
            limit.interrupt()
            while wait(futures, timeout=0.05).not_done:
                limit.interrupt()
        return [future.result() for future in futures]


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite, as their sum tells in one pass unless it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())


def _require_finite(progress: Progress) -> None:
    if is_finite(progress.parameters):
        return
    raise DivergedError(
        "Solver produced non-finite parameter weights. The input data may contain large values "
        f"and need to be preprocessed. It happened in epoch {max(progress.n_iter, 1)}: scale X "
        "(for instance with StandardScaler), and y for a regression, or lower "
        "learning_rate_init."
    )


def _as_planned(settings: Settings) -> bool:
    """Whether the user asked for all epochs, by a schedule over them and no way to stop earlier."""
    over_all_epochs = schedules.is_over_all_epochs(settings.schedule.name)
    return over_all_epochs and settings.n_iter_no_change == np.inf


def _run_epoch(engine: Engine, progress: Progress, settings: Settings, order: np.ndarray) -> float:
    """One pass over the training data; returns the learning rate of the last step."""
    n_samples = order.size
    n_steps = -(-n_samples // settings.batch_size)
    rates = schedules.learning_rates(
        settings.schedule, progress.learning_rate, progress.n_steps, n_steps
    )
    progress.loss = engine.run_epoch(order, rates) / n_samples
    progress.n_iter += 1
    progress.n_steps += n_steps
    progress.n_samples_seen += n_samples
    progress.loss_curve.append(progress.loss)
    if settings.verbose:
        print(f"Iteration {progress.n_iter}, loss = {progress.loss:.8f}")
    return float(rates[-1])


def _record(progress: Progress, loss, score, learning_rate, started: float) -> None:
    """Write the epoch's line of history."""
    seconds = time.perf_counter() - started
    epoch = progress.n_earlier + len(progress.history) + 1
    progress.history.append((epoch, progress.loss, loss, score, learning_rate, seconds))


def _end_of_epoch(
    engine: Engine, progress: Progress, settings: Settings, early_stopping: bool
) -> str | None:
    """Set the next epoch's rate; the reason to stop, or None."""
    if not math.isfinite(progress.loss) and _diverged(engine, progress, early_stopping):
        return "diverged"
    schedule = settings.schedule
    if schedule.name == "invscaling":
        progress.learning_rate = schedules.invscaling(
            schedule.learning_rate_init, progress.n_samples_seen, schedule.power_t
        )
    if schedule.name == "plateau":
        loss = progress.loss
        if early_stopping and progress.validation_scores:
            loss = -progress.validation_scores[-1]
        if np.isfinite(loss):  # else there is nothing to compare
            progress.learning_rate, progress.plateau = schedules.plateau(
                schedule, progress.learning_rate, progress.plateau, loss, settings.tol
            )
    if progress.no_improvement_count > settings.n_iter_no_change:
        if _trigger_stopping(progress, settings, early_stopping):
            return "converged"
        progress.no_improvement_count = 0
    return None


def _best_parameters(progress: Progress) -> np.ndarray | None:
    """The parameters to go back to; not the initial ones, which no score was better than."""
    return None if progress.best_validation_score == -np.inf else progress.best_parameters


def _diverged(engine: Engine, progress: Progress, early_stopping: bool) -> bool:
    """Whether a non-finite loss means that the parameters are lost."""
    if is_finite(engine.get_parameters()):
        return False
    if early_stopping and _best_parameters(progress) is not None:
        warnings.warn(
            f"Training diverged in epoch {progress.n_iter}: the loss is {progress.loss}. The "
            "parameters with the best validation score so far are kept; scale X (for instance "
            "with StandardScaler) or lower learning_rate_init.",
            ConvergenceWarning,
        )
    return True


def _compare_loss(progress: Progress, settings: Settings) -> None:
    """Compare the last epoch's training loss with the best so far."""
    assert progress.best_loss is not None
    worse = progress.loss > progress.best_loss - settings.tol
    progress.no_improvement_count = progress.no_improvement_count + 1 if worse else 0
    if progress.loss < progress.best_loss:
        progress.best_loss = progress.loss


def _compare_score(progress: Progress, settings: Settings, score: float, engine: Engine) -> None:
    """Compare a validation score with the best so far; a NaN counts as no deterioration."""
    assert progress.validation_scores is not None
    assert progress.best_validation_score is not None
    progress.validation_scores.append(score)
    if settings.verbose:
        print(f"Validation score: {score:f}")
    worse = score < progress.best_validation_score + settings.tol
    progress.no_improvement_count = progress.no_improvement_count + 1 if worse else 0
    if score > progress.best_validation_score:
        progress.best_validation_score = score
        progress.best_parameters = engine.get_parameters()


def _trigger_stopping(progress: Progress, settings: Settings, early_stopping: bool) -> bool:
    """Whether to stop; the adaptive schedule lowers its rate instead while it can."""
    what = "Validation score" if early_stopping else "Training loss"
    message = (
        f"{what} did not improve more than tol={settings.tol:f} for "
        f"{settings.n_iter_no_change:.0f} consecutive epochs."
    )
    if settings.schedule.name != "adaptive":
        outcome = "Stopping."
        rate = None
    else:
        rate = schedules.shrink(progress.learning_rate)
        outcome = (
            "Learning rate too small. Stopping."
            if rate is None
            else f"Setting learning rate to {rate:f}"
        )
    if settings.verbose:
        print(f"{message} {outcome}")
    if rate is None:
        return True
    progress.learning_rate = rate
    return False
