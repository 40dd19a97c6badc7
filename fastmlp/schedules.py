"""Learning-rate schedules: plain functions on the host.

`learning_rates` gives the rates of an epoch's steps.  A schedule in `STEP_SCHEDULES`, or a user's
function, knows them from the number of the step alone.  scikit-learn's ``invscaling`` and
``adaptive``, and ``plateau``, carry one rate from epoch to epoch instead, which the training loop
changes by `invscaling`, `shrink` and `plateau`.  A warm-up multiplies whatever comes out.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

RateFunction = Callable[[int, int, int], float]
"""A user's schedule: ``(step, steps_per_epoch, max_iter) -> rate``."""

_PEAK_AT = 0.3  # the defaults of PyTorch's OneCycleLR
_INITIAL_DIVISOR = 25.0
_FINAL_DIVISOR = 1e4


class Schedule(NamedTuple):
    """What the rate of a step depends on, beside the step.

    Parameters
    ----------
    name : str or callable
        One of scikit-learn's schedules, 'plateau', a key of `STEP_SCHEDULES`, or a user's function.
    learning_rate_init, power_t, decay_rate, decay_epochs, patience, warmup_epochs, max_iter
        The estimators' parameters.
    """

    name: str | RateFunction
    learning_rate_init: float
    max_iter: int
    power_t: float = 0.5
    decay_rate: float = 0.1
    decay_epochs: int = 30
    patience: int = 5
    warmup_epochs: int = 0


def exponential(step: np.ndarray, steps_per_epoch: int, schedule: Schedule) -> np.ndarray:
    """``decay_rate^(epochs / decay_epochs)``."""
    return schedule.decay_rate ** (step / (steps_per_epoch * schedule.decay_epochs))


def staircase(step: np.ndarray, steps_per_epoch: int, schedule: Schedule) -> np.ndarray:
    """``decay_rate^floor(epochs / decay_epochs)``."""
    return schedule.decay_rate ** (step // (steps_per_epoch * schedule.decay_epochs))


def cosine(step: np.ndarray, steps_per_epoch: int, schedule: Schedule) -> np.ndarray:
    """Half a cosine, from 1 at the first step to 0 after ``max_iter`` epochs."""
    return _cosine_between(1.0, 0.0, step / (steps_per_epoch * schedule.max_iter))


def one_cycle(step: np.ndarray, steps_per_epoch: int, schedule: Schedule) -> np.ndarray:
    """Smith's (2017): from 1 / 25 up to 1 in the first 30 % of the steps, then down to 4e-6."""
    n_steps = steps_per_epoch * schedule.max_iter
    peak = _PEAK_AT * n_steps - 1
    first, last = 1 / _INITIAL_DIVISOR, 1 / (_INITIAL_DIVISOR * _FINAL_DIVISOR)
    rise = _cosine_between(first, 1.0, step / peak)
    fall = _cosine_between(1.0, last, (step - peak) / (n_steps - 1 - peak))
    return np.where(step <= peak, rise, fall)


def coslog4(step: np.ndarray, steps_per_epoch: int, schedule: Schedule) -> np.ndarray:
    """RealMLP's: four cycles from 0 to 1 and back, each twice as long as the one before.

    ``(1 - cos(2 pi log2(1 + 15 t))) / 2`` after the share ``t`` of ``max_iter`` epochs (Holzmüller,
    Grinsztajn and Steinwart, 2024).
    """
    t = np.minimum(1.0, step / (steps_per_epoch * schedule.max_iter))
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.log2(1 + 15 * t))


SCIKIT_LEARN_SCHEDULES = ("constant", "invscaling", "adaptive")
"""scikit-learn's, which only its 'sgd' obeys."""

STEP_SCHEDULES = {
    "exponential": exponential,
    "step": staircase,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "coslog4": coslog4,
}


def is_over_all_epochs(name: str | RateFunction) -> bool:
    """Whether a schedule depends on the number of epochs (``max_iter``)."""
    return callable(name) or name in ("cosine", "one_cycle", "coslog4")


def _cosine_between(start: float, end: float, fraction: np.ndarray) -> np.ndarray:
    return end + (start - end) / 2 * (1 + np.cos(np.pi * np.clip(fraction, 0, 1)))


def learning_rates(schedule: Schedule, current: float, first_step: int, n_steps: int) -> np.ndarray:
    """Rates of one epoch's steps.

    Parameters
    ----------
    schedule : Schedule
    current : float
        The rate of a schedule that goes from epoch to epoch.
    first_step : int
        Steps taken before this epoch.
    n_steps : int
        Steps of this epoch.

    Returns
    -------
    ndarray of shape (n_steps,), float64
        Not to be written to.

    Raises
    ------
    ValueError
        If a user's function returns anything but finite numbers that are not negative.
    """
    by_step = callable(schedule.name) or schedule.name in STEP_SCHEDULES
    if not (by_step or schedule.warmup_epochs):
        return _constant(current, n_steps)
    steps = np.arange(first_step, first_step + n_steps)
    if callable(schedule.name):
        rates = _rates_of_user(schedule.name, steps, schedule.max_iter)
    elif schedule.name in STEP_SCHEDULES:
        factors = STEP_SCHEDULES[schedule.name](steps, n_steps, schedule)
        rates = schedule.learning_rate_init * factors
    else:
        rates = np.full(n_steps, current)
    if schedule.warmup_epochs:
        rates = rates * np.minimum(1.0, (steps + 1) / (schedule.warmup_epochs * n_steps))
    return rates


@lru_cache(maxsize=16)
def _constant(rate: float, n_steps: int) -> np.ndarray:
    rates = np.full(n_steps, rate)
    rates.flags.writeable = False
    return rates


def _rates_of_user(function: RateFunction, steps: np.ndarray, max_iter: int) -> np.ndarray:
    rates = np.empty(steps.size)
    for i, step in enumerate(steps.tolist()):
        rates[i] = function(step, steps.size, max_iter)
        if not 0 <= rates[i] < np.inf:
            raise ValueError(
                f"learning_rate must return a finite number >= 0, got {rates[i]} for step {step}."
            )
    return rates


def invscaling(learning_rate_init: float, t: int, power_t: float) -> float:
    """``learning_rate_init / (t + 1)^power_t`` after ``t`` samples (scikit-learn's formula)."""
    return float(learning_rate_init) / (t + 1) ** power_t


def shrink(learning_rate: float) -> float | None:
    """A fifth of the rate, or None when it is already at or below 1e-6 and training should end."""
    return None if learning_rate <= 1e-6 else learning_rate / 5.0


def plateau(
    schedule: Schedule, learning_rate: float, state: tuple[float, int], loss: float, tol: float
) -> tuple[float, tuple[float, int]]:
    """PyTorch's ReduceLROnPlateau, with ``tol`` as its absolute threshold.

    Parameters
    ----------
    state : (float, int)
        The best loss, and the epochs since; (inf, 0) at first.
    loss : float
        Of the last epoch: training loss, or minus the validation score.

    Returns
    -------
    learning_rate : float
    state : (float, int)
    """
    best, n_bad = state
    if loss < best - tol:
        return learning_rate, (loss, 0)
    if n_bad < schedule.patience:
        return learning_rate, (best, n_bad + 1)
    return learning_rate * schedule.decay_rate, (best, 0)
