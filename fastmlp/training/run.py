"""Run: one training of one network, what it works on, and where it stands."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastmlp.engine import Engine
from fastmlp.network import Network
from fastmlp.optimizers import OptimizerState
from fastmlp.training.plan import Plan

HISTORY = ("epoch", "loss", "validation_loss", "validation_score", "learning_rate", "seconds")


class DivergedError(ValueError):
    """The parameters became non-finite."""


@dataclass
class Run:
    """One training run: whoever trains changes it, and nothing else of the estimator's.

    Parameters
    ----------
    plan : Plan
    network : Network
    parameters : ndarray
        Initial, later final parameters, flat.
    random_state : RandomState
        Draws the sample orders.
    optimizer_state : OptimizerState or None
        Where the optimizer stands before and after training; None with L-BFGS.
    engine : Engine
        Loaded with samples and parameters; None before and after training.
    order : ndarray of int64
        The rows of the loaded samples to train on; each epoch shuffles them in place.
    batch_size : int
        Samples per step.

    Attributes
    ----------
    learning_rate, plateau
        Of schedules that go from epoch to epoch.
    last_rate : float
        The last step's learning rate.
    n_iter, n_steps, n_samples_seen : int
        Epochs of this call, steps and samples of all calls.
    loss, validation_loss, validation_score : float
        Of the last epoch; NaN if nobody asked for it.
    best_loss, best_validation_score, loss_curve, validation_scores, no_improvement_count
        What scikit-learn keeps in its estimators' attributes; None for what does not apply.
    best_parameters : ndarray or None
        What to go back to at the end of early stopping; None means those of the last epoch.
    history : list of tuple
        One tuple of `HISTORY` per epoch, numbered on from ``n_earlier`` epochs.
    stop_reason : str or None
        Why training ended; None while it goes on.
    engine_info : dict
        Where and how it ran.
    finite_outputs : bool
        Whether the parameters, finite themselves, give finite outputs for the training data.
    """

    plan: Plan
    network: Network
    parameters: np.ndarray
    random_state: np.random.RandomState
    optimizer_state: OptimizerState | None = None
    engine: Engine = None  # type: ignore[assignment]
    order: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    batch_size: int = 0
    learning_rate: float = np.nan
    last_rate: float = np.nan
    plateau: tuple[float, int] = (np.inf, 0)
    n_iter: int = 0
    n_steps: int = 0
    n_samples_seen: int = 0
    no_improvement_count: int = 0
    loss: float = np.nan
    validation_loss: float = np.nan
    validation_score: float = np.nan
    best_loss: float | None = np.inf
    best_validation_score: float | None = None
    best_parameters: np.ndarray | None = None
    loss_curve: list[float] = field(default_factory=list)
    validation_scores: list[float] | None = None
    n_earlier: int = 0
    history: list[tuple] = field(default_factory=list)
    stop_reason: str | None = None
    engine_info: dict[str, Any] = field(default_factory=dict)
    finite_outputs: bool = True

    def record(self, learning_rate: float, seconds: float) -> None:
        """Write the epoch's line of history."""
        epoch = self.n_earlier + len(self.history) + 1
        self.history.append((
            epoch, self.loss, self.validation_loss, self.validation_score, learning_rate, seconds,
        ))  # fmt: skip

    def has_best(self) -> bool:
        """Whether there are parameters to go back to.

        The initial ones are none: no score was better than they.
        """
        return self.best_parameters is not None and self.best_validation_score != -np.inf

    def column(self, name: str) -> list:
        """An entry of every line of history."""
        i = HISTORY.index(name)
        return [line[i] for line in self.history]

    def require_finite(self) -> None:
        """
        Raises
        ------
        DivergedError
            If the parameters are not.
        """
        if is_finite(self.parameters):
            return
        raise DivergedError(
            "Solver produced non-finite parameter weights. The input data may contain large values "
            f"and need to be preprocessed. It happened in epoch {max(self.n_iter, 1)}: scale X "
            "(for instance with StandardScaler), and y for a regression, or lower "
            "learning_rate_init."
        )


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite, as their sum tells in one pass unless it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())
