"""The stochastic solvers: epochs, shuffling, stopping.

`train` is scikit-learn's loop with the batches taken out: per epoch it draws the sample order and
the learning rates, and makes one engine call.  Everything that decides when to stop happens here,
on the host, in scikit-learn's order and with its messages.
"""

import math
import time
import warnings
from collections.abc import Sequence

from fastmlp import schedules
from fastmlp._sklearn import ConvergenceWarning
from fastmlp.training.hooks import Hook, Limit, begin_epoch, end_epoch
from fastmlp.training.run import Run, is_finite
from fastmlp.training.shuffle import Shuffler


def train(run: Run, hooks: Sequence[Hook], limit: Limit) -> None:
    """Train by stochastic gradient descent until something ends it: see `Run.stop_reason`.

    Parameters
    ----------
    run : Run
        Updated in place.
    hooks : sequence of Hook
        Hear of every epoch, ``limit`` among them.
    limit : Limit
        Told of Ctrl-C.

    Raises
    ------
    DivergedError
        When the parameters become non-finite, in the epoch where it happens.
    KeyboardInterrupt
        After Ctrl-C, if not a step was made or in ``partial_fit``; else training ends with a
        warning.
    """
    plan, engine = run.plan, run.engine
    run.n_iter, run.stop_reason = 0, None
    for hook in hooks:
        hook.begin(run)
    first_step, shuffle = run.n_steps, Shuffler(run.order, run.random_state)
    with limit.around(run, lambda: plan.incremental or engine.n_steps == first_step):
        while run.stop_reason is None:
            begin_epoch(run, hooks)
            if plan.shuffle:
                shuffle()
            _run_epoch(run)
            end_epoch(run, hooks)
        if run.stop_reason == "max_iter" and not (plan.incremental or plan.is_as_planned):
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({plan.max_iter}) "
                "reached and the optimization hasn't converged yet.",
                ConvergenceWarning,
            )
    run.parameters = engine.get_parameters()
    if plan.early_stopping and run.has_best():
        assert run.best_parameters is not None
        run.parameters = run.best_parameters
    run.require_finite()


def _run_epoch(run: Run) -> None:
    """One pass over the training data."""
    assert run.optimizer_state is not None
    n_samples = run.order.size
    n_steps = -(-n_samples // run.batch_size)
    rates = schedules.learning_rates(
        run.optimizer_state.schedule, run.learning_rate, run.n_steps, n_steps
    )
    run.loss = run.engine.run_epoch(run.order, rates) / n_samples
    run.last_rate = float(rates[-1])
    run.n_iter += 1
    run.n_steps += n_steps
    run.n_samples_seen += n_samples
    run.loss_curve.append(run.loss)
    if run.plan.verbose:
        print(f"Iteration {run.n_iter}, loss = {run.loss:.8f}")


class StoppingRule(Hook):
    """Compares epochs, sets the next one's rate, and knows when it is enough; keeps history."""

    def epoch_begins(self, run: Run) -> None:
        self._started = time.perf_counter()

    def epoch_ends(self, run: Run) -> str | None:
        if run.plan.early_stopping:
            _compare_score(run)
        else:
            _compare_loss(run)
        run.record(run.last_rate, time.perf_counter() - self._started)
        if not math.isfinite(run.loss) and _diverged(run):
            return "diverged"
        _follow_schedule(run)
        if run.no_improvement_count > run.plan.n_iter_no_change:
            if _trigger_stopping(run):
                return "converged"
            run.no_improvement_count = 0
        return None


def _compare_loss(run: Run) -> None:
    """Compare the last epoch's training loss with the best so far."""
    assert run.best_loss is not None
    worse = run.loss > run.best_loss - run.plan.tol
    run.no_improvement_count = run.no_improvement_count + 1 if worse else 0
    if run.loss < run.best_loss:
        run.best_loss = run.loss


def _compare_score(run: Run) -> None:
    """Compare a validation score with the best so far; a NaN counts as no deterioration."""
    assert run.validation_scores is not None
    assert run.best_validation_score is not None
    score = run.validation_score
    run.validation_scores.append(score)
    if run.plan.verbose:
        print(f"Validation score: {score:f}")
    worse = score < run.best_validation_score + run.plan.tol
    run.no_improvement_count = run.no_improvement_count + 1 if worse else 0
    if score > run.best_validation_score:
        run.best_validation_score = score
        run.best_parameters = run.engine.get_parameters()


def _diverged(run: Run) -> bool:
    """Whether a non-finite loss means that the parameters are lost."""
    if is_finite(run.engine.get_parameters()):
        return False
    if run.plan.early_stopping and run.has_best():
        warnings.warn(
            f"Training diverged in epoch {run.n_iter}: the loss is {run.loss}. The "
            "parameters with the best validation score so far are kept; scale X (for instance "
            "with StandardScaler) or lower learning_rate_init.",
            ConvergenceWarning,
        )
    return True


def _follow_schedule(run: Run) -> None:
    """Set the next epoch's rate, where a schedule goes from epoch to epoch."""
    assert run.optimizer_state is not None
    schedule = run.optimizer_state.schedule
    if schedule.name == "invscaling":
        run.learning_rate = schedules.invscaling(
            schedule.learning_rate_init, run.n_samples_seen, schedule.power_t
        )
    if schedule.name == "plateau":
        loss = -run.validation_score if run.plan.early_stopping else run.loss
        if math.isfinite(loss):  # else there is nothing to compare
            run.learning_rate, run.plateau = schedules.plateau(
                schedule, run.learning_rate, run.plateau, loss, run.plan.tol
            )


def _trigger_stopping(run: Run) -> bool:
    """Whether to stop; the adaptive schedule lowers its rate instead while it can."""
    assert run.optimizer_state is not None
    plan = run.plan
    what = "Validation score" if plan.early_stopping else "Training loss"
    message = (
        f"{what} did not improve more than tol={plan.tol:f} for "
        f"{plan.n_iter_no_change:.0f} consecutive epochs."
    )
    if run.optimizer_state.schedule.name != "adaptive":
        outcome = "Stopping."
        rate = None
    else:
        rate = schedules.shrink(run.learning_rate)
        outcome = (
            "Learning rate too small. Stopping."
            if rate is None
            else f"Setting learning rate to {rate:f}"
        )
    if plan.verbose:
        print(f"{message} {outcome}")
    if rate is None:
        return True
    run.learning_rate = rate
    return False
