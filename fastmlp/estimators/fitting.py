"""One call of ``fit``, from checked data to the best of its runs."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any
from warnings import warn

import numpy as np
from scipy import sparse

from fastmlp._sklearn import ConvergenceWarning, Task, train_test_split
from fastmlp.engine import Engine, Samples, place
from fastmlp.estimators.data import DataSet
from fastmlp.estimators.targets import Labels, Values
from fastmlp.estimators.weights import has_weight, in_range, with_alpha
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.training.epochs import StoppingRule, train
from fastmlp.training.hooks import Callbacks, EpochLimit, Hook, Limit, Validation
from fastmlp.training.lbfgs import Recorder, minimise
from fastmlp.training.plan import Plan
from fastmlp.training.restarts import best_of, side_by_side
from fastmlp.training.run import Run, is_finite
from fastmlp.training.start import Setting, load, setting_of, unload


class Fit:
    """Trains every run of a plan on the same samples.

    Parameters
    ----------
    plan : Plan
    objective : Objective
    targets : Labels or Values
    data : DataSet
        To train on.
    validation : DataSet or None
    user_score : callable or None
        ``(run, X, y, **metadata) -> score``, by the parameter ``scoring``.
    dtype : numpy dtype
        Of the initial parameters.
    spare : (Setting, Engine) or None
        An engine of an earlier call that nobody uses.
    beside : Fit or None
        A fit of the same plan to the same data, whose time and samples this one shares.
    """

    def __init__(
        self, plan: Plan, objective: Objective, targets: Labels | Values, data: DataSet,
        validation: DataSet | None, user_score: Callable[..., float] | None, dtype: np.dtype,
        spare: tuple[Setting, Engine] | None = None, beside: "Fit | None" = None,
    ):  # fmt: skip
        self._plan, self._objective, self._targets = plan, objective, targets
        self._data, self._validation, self._user_score = data, validation, user_score
        self._dtype = np.dtype(np.float64) if plan.optimizer is None else np.dtype(dtype)
        self.spare = spare
        self._samples: Samples
        self._held_out: Samples
        self.limit: Limit = Limit(plan.max_time) if beside is None else beside.limit
        weight, self._alpha = with_alpha(data.sample_weight, plan.alpha, self._dtype, data.rows)
        self._weight = weight
        if beside is not None and beside._weight is weight and beside._dtype == self._dtype:
            self._samples = beside._samples
        else:
            self._samples = self._place(data._replace(rows=None), weight)
        if validation is None:
            return
        if beside is not None and beside._validation is validation:
            self._held_out = beside._held_out
        else:
            weight, _ = in_range(validation.sample_weight, self._dtype, validation.rows)
            self._held_out = self._place(validation, weight)

    def _place(self, data: DataSet, weight: np.ndarray | None) -> Samples:
        return place(
            self._plan.execution["device"], data.X, data.y, weight, dtype=self._dtype,
            objective=self._objective, rows=data.rows,
        )  # fmt: skip

    @property
    def wants_loss(self) -> bool:
        """Whether to spend a pass over the validation data on their loss."""
        validation = self._validation
        return validation is not None and (self._plan.scoring == "loss" or validation.rows is None)

    def train_all(
        self, runs: Sequence[Run], task: Task, checkpoints: Sequence[Hook]
    ) -> tuple[Run, np.ndarray]:
        """Train every run; returns the best, and the scores of all.

        Parameters
        ----------
        runs : sequence of Run
        task : Task
            The fit, for callbacks.
        checkpoints : sequence of Hook
            One for each run, or none at all.

        Raises
        ------
        DivergedError, KeyboardInterrupt
            If nothing is left of any run.
        """

        def train_one(i: int) -> None:
            run, part = runs[i], task
            if len(runs) > 1:
                part = task.subtask("restart", task_id=i, max_subtasks=self._most_epochs())
            try:
                self._train(run, [*self._hooks(part), *checkpoints[i : i + 1]])
            finally:
                run.engine = None  # type: ignore[assignment]  # its memory is the next run's
            if part is not task:
                part.end(run, lambda: run.parameters)

        jobs = [partial(train_one, i) for i in range(len(runs))]
        where = self._plan.execution
        outcomes = side_by_side(jobs, self.limit, where["n_threads"], where["device"])
        best, scores = best_of(outcomes, lambda i: self._final_score(runs[i]))
        self._warn_of_no_score(runs[best])
        _warn_of_overflow(runs[best])
        return runs[best], scores

    def _train(self, run: Run, hooks: Sequence[Hook]) -> None:
        """One run, from its engine to its final parameters and state."""
        rows = self._data.rows
        run.order = np.arange(self._samples.n_samples) if rows is None else rows.copy()
        setting = setting_of(run, self._objective, self._dtype, self._alpha)
        spare, self.spare = self.spare, None
        engine = spare[1] if spare is not None and spare[0] == setting else setting.make()
        load(run, engine, self._samples)
        if self._plan.optimizer is None:
            minimise(run, hooks, self.limit)
            engine.set_parameters(run.parameters)
        else:
            train(run, hooks, self.limit)
            unload(run)
        if self._plan.incremental:  # the next call's loss shows what this step did
            engine.unload()
            self.spare = setting, engine
            return
        if self._plan.early_stopping:
            engine.set_parameters(run.parameters)
        run.finite_outputs = _has_finite_outputs(run, self._samples, self._data.X)

    def _hooks(self, task: Task) -> Iterator[Hook]:
        """What takes part in a run, in the order in which it hears of epochs."""
        is_stochastic = self._plan.optimizer is not None
        if self._validation is not None:
            yield Validation(self._held_out, self._scorer(), self.wants_loss)
        yield StoppingRule() if is_stochastic else Recorder()
        if task.is_heard:
            yield Callbacks(task, "epoch" if is_stochastic else "iteration")
        if is_stochastic:
            yield EpochLimit(1 if self._plan.incremental else self._plan.max_iter)
        yield self.limit

    def _most_epochs(self) -> int:
        return most_epochs(self._plan.max_iter, self._plan.solver)

    def _scorer(self) -> Callable[[Run], float] | None:
        """``run -> score`` on the validation data; None means minus the loss."""
        if self._plan.scoring == "loss":
            return None
        assert self._validation is not None
        y, weight = self._validation.of_rows()
        if self._user_score is None:
            out = np.empty((len(y), self._objective.n_outputs), self._dtype)
            return lambda run: self._targets.score(
                run.engine.predict(self._held_out, out), y, weight
            )
        X, y, _ = self._validation.as_given()
        metadata = {} if weight is None else {"sample_weight": weight}
        return partial(self._user_score, X=X, y=y, **metadata)

    def _final_score(self, run: Run) -> float | None:
        """Score of the parameters that a run ended with."""
        if self._plan.early_stopping:
            return run.best_validation_score
        if self._validation is None:
            return -run.loss
        return run.column("validation_score")[-1] if run.n_iter else np.nan

    def _warn_of_no_score(self, run: Run) -> None:
        """Early stopping that no score told anything; a run with a score would be better."""
        scores = run.column("validation_score")
        if self._plan.early_stopping and scores and not any(score > -np.inf for score in scores):
            warn(
                f"The validation score (scoring={self._plan.scoring!r}) was {scores[-1]} after "
                "every epoch, so early_stopping kept the parameters of the last one; give "
                "validation data for which the score is defined, or choose another scoring."
            )


def most_epochs(max_iter: int, solver: str) -> int:
    """Most epochs that callbacks hear of; the last that 'lbfgs' begins may come to nothing."""
    return max_iter + (solver == "lbfgs")


def split(
    plan: Plan, data: DataSet, targets: Labels | Values, random_state: np.random.RandomState
) -> tuple[DataSet, DataSet]:
    """Rows to train on, and rows set aside to validate with, as in scikit-learn."""
    kept, held_out = train_test_split(
        np.arange(data.X.shape[0]),
        random_state=random_state,
        test_size=plan.validation_fraction,
        stratify=targets.stratify(data.y),
    )
    if held_out.size < 2:
        raise ValueError(
            "The validation set is too small. Increase 'validation_fraction' "
            "or the size of your dataset."
        )
    parts = (
        (kept, "left for training", "decrease"),
        (held_out, "set aside for validation", "increase"),
    )
    for rows, what, change in parts:
        if data.sample_weight is not None and not has_weight(data.sample_weight[rows]):
            raise ValueError(
                f"All samples that early_stopping {what} have a sample_weight of zero (times "
                f"class_weight); {change} 'validation_fraction' or drop such samples."
            )
    return data.part(kept), data.part(held_out)


def _has_finite_outputs(run: Run, samples: Samples, X: Any) -> bool:
    """Whether the engine's parameters give finite outputs for the training data.

    A batch's loss is that before its step, so the last loss does not show what became of them; nor
    does that of an exponential, which is finite where the output is not.
    """
    if not _may_overflow(run.network, X, run.parameters):
        return True
    return bool(np.isfinite(run.engine.predict(samples)).all())


def _may_overflow(network: Network, X: Any, parameters: np.ndarray) -> bool:
    """Whether a bound on what the layers hand on is beyond the parameters' type."""
    values = X.data if sparse.issparse(X) else X
    known = not any(activation.by_user for activation in network.hidden)
    if not (known and isinstance(values, np.ndarray)) or network.out_activation == "exp":
        return True
    largest = np.finfo(parameters.dtype).max
    with np.errstate(over="ignore"):
        # no number is larger than the root of their squares; without a copy, for data may be
        # memory-mapped, and in one pass
        axes = "ij"[: values.ndim]
        bound = np.sqrt(np.float64(np.einsum(f"{axes},{axes}->", values, values)))
        weight = np.float64(np.abs(parameters).max())
        for fan_in, fan_out in pairwise(network.widths):
            # no activation, and no normalised score, is larger than this
            bound = bound * (fan_in * weight) + weight + fan_out
        return not bound < (np.sqrt(largest) if network.layer_norm else largest)


def _warn_of_overflow(run: Run) -> None:
    """Say what is not finite in a run whose parameters are; 'diverged' was said already."""
    if run.stop_reason == "diverged":
        return
    lines = zip(run.column("epoch"), run.column("loss"), strict=True)
    bad = [line for line in lines if not np.isfinite(line[1])]
    if bad:
        what = f"the loss was {bad[-1][1]} in epoch {bad[-1][0]}"
    elif not np.isfinite(run.loss) and run.stop_reason != "interrupted":  # in the first epoch
        what = f"the loss is {run.loss}"
    elif run.optimizer_state is not None and not is_finite(run.optimizer_state.slots):
        what = "squares of the gradient are infinite, so that some parameters no longer move"
    elif not run.finite_outputs:
        what = "the predictions for the training data are not finite"
    else:
        return
    warn(
        f"Training left the range of {run.parameters.dtype}: {what}. Scale X (for instance with "
        "StandardScaler), and y for a regression, or lower learning_rate_init.",
        ConvergenceWarning,
    )
