"""The training loops: epochs, shuffling, validation, stopping.  They know no target.

`train` is scikit-learn's stochastic loop with the batches taken out: per epoch it draws the sample
order and the learning rates, and makes one engine call.  Everything that decides when to stop
happens here, on the host, in scikit-learn's order and with its messages.  `minimise` hands the
engine's loss and gradient to SciPy's L-BFGS-B.

All state is in a `Progress`, which callers build and read; nothing else is touched, so a fit that
fails leaves its estimator as it was.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize

from fastmlp import schedules
from fastmlp._sklearn import ConvergenceWarning, check_optimize_result
from fastmlp.engine import Engine


@dataclass
class Progress:
    """Where a training run stands: what scikit-learn keeps in its estimators' attributes.

    ``best_parameters`` are the parameters to go back to at the end of early stopping; None means
    those of the last epoch.
    """

    parameters: np.ndarray
    learning_rate: float
    n_iter: int = 0
    n_samples_seen: int = 0
    no_improvement_count: int = 0
    loss: float = np.nan
    best_loss: float | None = np.inf
    best_validation_score: float | None = None
    best_parameters: np.ndarray | None = None
    loss_curve: list[float] = field(default_factory=list)
    validation_scores: list[float] | None = None


@dataclass(frozen=True)
class Settings:
    """What `train` needs to know of an estimator's parameters."""

    max_iter: int
    batch_size: int
    shuffle: bool
    tol: float
    n_iter_no_change: float
    learning_rate_init: float
    schedule: str
    power_t: float
    verbose: bool


def train(
    engine: Engine,
    progress: Progress,
    settings: Settings,
    samples: np.ndarray,
    random_state: np.random.RandomState,
    *,
    score: Callable[[], float] | None = None,
    single_epoch: bool = False,
) -> None:
    """Train by stochastic gradient descent until a stopping rule of scikit-learn's ends it.

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
    score : callable, optional
        Validation score of the engine's current parameters: early stopping.
    single_epoch : bool
        Stop after one epoch, without a word about convergence (``partial_fit``).

    Raises
    ------
    ValueError
        When the parameters become non-finite, in the epoch where it happens.
    """
    from fastmlp._random import shuffle  # needs Numba, which importing fastmlp does not load

    n_samples = samples.size
    n_steps = -(-n_samples // settings.batch_size)
    order = samples.copy()
    progress.n_iter = 0
    try:
        while progress.n_iter < settings.max_iter:
            if settings.shuffle:
                shuffle(order, random_state)
            rates = np.full(n_steps, progress.learning_rate)
            progress.loss = engine.run_epoch(order, rates) / n_samples
            progress.n_iter += 1
            progress.n_samples_seen += n_samples
            progress.loss_curve.append(progress.loss)
            if settings.verbose:
                print(f"Iteration {progress.n_iter}, loss = {progress.loss:.8f}")
            if score is None:
                _compare_loss(progress, settings)
            else:
                _compare_score(progress, settings, score(), engine)
            if not np.isfinite(progress.loss) and _diverged(engine, progress, score):
                break
            if settings.schedule == "invscaling":
                progress.learning_rate = schedules.invscaling(
                    settings.learning_rate_init, progress.n_samples_seen, settings.power_t
                )
            if progress.no_improvement_count > settings.n_iter_no_change:
                if _trigger_stopping(progress, settings, early_stopping=score is not None):
                    break
                progress.no_improvement_count = 0
            if single_epoch:
                break
            if progress.n_iter == settings.max_iter:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({settings.max_iter}) "
                    "reached and the optimization hasn't converged yet.",
                    ConvergenceWarning,
                )
    except KeyboardInterrupt:
        warnings.warn("Training interrupted by user.")
    progress.parameters = engine.get_parameters()
    if score is not None and progress.best_parameters is not None:
        progress.parameters = progress.best_parameters
    _require_finite(progress)


def minimise(
    engine: Engine, progress: Progress, *, max_iter: int, max_fun: int, tol: float
) -> None:
    """Train on all loaded data with SciPy's L-BFGS-B.

    Parameters
    ----------
    engine : Engine
        Loaded with data and parameters.
    progress : Progress
        Updated in place, parameters included.
    max_iter, max_fun : int
        Limits on iterations and on evaluations of the loss.
    tol : float
        Tolerance on the largest component of the projected gradient.

    Raises
    ------
    ValueError
        When the parameters become non-finite.
    """

    def objective(flat):
        engine.set_parameters(flat)
        return engine.loss_and_gradient()

    def accept(intermediate_result):
        progress.parameters = intermediate_result.x.copy()
        progress.loss = float(intermediate_result.fun)
        progress.n_iter += 1

    progress.n_iter = 0
    try:
        result = scipy.optimize.minimize(
            objective,
            progress.parameters,
            method="L-BFGS-B",
            jac=True,
            callback=accept,
            options={"maxfun": max_fun, "maxiter": max_iter, "gtol": tol},
        )
        progress.n_iter = check_optimize_result("lbfgs", result, max_iter)
        progress.loss = result.fun
        progress.parameters = result.x
    except KeyboardInterrupt:
        warnings.warn("Training interrupted by user.")
    _require_finite(progress)


def _require_finite(progress: Progress) -> None:
    if np.isfinite(progress.parameters).all():
        return
    raise ValueError(
        "Solver produced non-finite parameter weights. The input data may contain large values "
        f"and need to be preprocessed. It happened in epoch {max(progress.n_iter, 1)}: scale X "
        "(for instance with StandardScaler), and y for a regression, or lower "
        "learning_rate_init."
    )


def _diverged(engine: Engine, progress: Progress, score) -> bool:
    """Whether a non-finite loss means that the parameters are lost."""
    if np.isfinite(engine.get_parameters()).all():
        return False
    if score is not None and progress.best_parameters is not None:
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
    if settings.schedule != "adaptive":
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
