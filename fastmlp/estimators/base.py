"""What the classifier and the regressor share: a fit is a plan, runs that follow it, attributes.

Parameters, attributes, random numbers, warnings and errors are scikit-learn's; the deliberate
differences are listed in the README.  Two of them shape this file.  A call to ``fit`` or
``partial_fit`` that raises leaves the estimator exactly as it was.  And ``coefs_`` and
``intercepts_`` are read again on every call, so a user may assign or edit them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from functools import cache, partial
from inspect import signature
from numbers import Number
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple, Self
from warnings import warn

import numpy as np

from fastmlp._sklearn import (
    NO_TASK,
    SEED_LIMIT,
    BaseEstimator,
    CallbackSupportMixin,
    Task,
    check_is_fitted,
    check_random_state,
    check_scoring,
    fit_context,
    open_callbacks,
    visual_block,
)
from fastmlp._version import __version__
from fastmlp.engine import get_engine, place
from fastmlp.estimators.data import DataSet, checked, has_expected_shape
from fastmlp.estimators.fitted import FittedModel, n_parameters_of, require_layers
from fastmlp.estimators.fitting import Fit, most_epochs, split
from fastmlp.estimators.parameters import SHARED, ByParameters, check_each
from fastmlp.estimators.plan import NOTHING_HELD_OUT, HeldOut, execution, make_plan
from fastmlp.estimators.targets import Labels, Values, check_sorted
from fastmlp.estimators.weights import checked_weight, has_weight
from fastmlp.formulas import activations_of
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import OptimizerState
from fastmlp.schedules import is_over_all_epochs
from fastmlp.training.checkpoint import Checkpoint, KeptFit, checksum, in_words
from fastmlp.training.plan import Plan
from fastmlp.training.run import HISTORY, Run

# scikit-learn's attributes of stochastic solvers, and where a run has them
_STOCHASTIC_ATTRIBUTES = {
    "loss_curve_": "loss_curve",
    "best_loss_": "best_loss",
    "validation_scores_": "validation_scores",
    "best_validation_score_": "best_validation_score",
    "_no_improvement_count": "no_improvement_count",
}

_LISTS = {"loss_curve_", "history_"}

# scikit-learn's private hooks, which nothing calls here, and what does their job instead
HOOKS = {
    "_init_coef": "pass weight_init",
    "_initialize": "pass weight_init",
    "_forward_pass": "pass activation, dropout or layer_norm, or override predict",
    "_forward_pass_fast": "pass activation or layer_norm, or override predict",
    "_predict": "override predict",
    "_compute_loss_grad": "pass loss as a pair of functions (value, derivative)",
    "_loss_grad_lbfgs": "pass loss as a pair of functions (value, derivative)",
    "_backprop": "pass loss or activation as a pair of functions (value, derivative)",
    "_score": "pass scoring",
    "_score_with_function": "pass scoring",
    "_update_no_improvement_count": "pass scoring, tol or n_iter_no_change, or set a callback",
    "_fit": "override fit and partial_fit",
    "_fit_lbfgs": "override fit, or set a callback",
    "_fit_stochastic": "override fit and partial_fit, or set a callback",
    "_unpack": "read coefs_ and intercepts_",
    "_check_solver": "override partial_fit",
    "_validate_input": "override fit and partial_fit, and prepare X and y there",
}
_VALID = ByParameters()


class InconsistentVersionWarning(UserWarning):
    """An estimator was pickled by another version of fastmlp than the one that unpickles it."""


class Batch(NamedTuple):
    """Data as a fitted estimator's training would see them.

    Parameters
    ----------
    X : array or CSR matrix
    y : ndarray
        Encoded.
    weight : ndarray or None
        Sample weights times the weights of the classes.
    objective : Objective
    """

    X: Any
    y: np.ndarray
    weight: np.ndarray | None
    objective: Objective

    @property
    def total_weight(self) -> float:
        """By what a sum of losses is divided."""
        return float(len(self.y) if self.weight is None else self.weight.sum(dtype=np.float64))


class Begun(NamedTuple):
    """A fit with everything that it takes, before it trains.

    Parameters
    ----------
    fit : Fit
    runs : list of Run
    task : Task
    checkpoints : list of Hook
    """

    fit: Fit
    runs: list[Run]
    task: Task
    checkpoints: list[Any]

    def train(self) -> tuple[Run, np.ndarray]:
        """See `Fit.train_all`."""
        return self.fit.train_all(self.runs, self.task, self.checkpoints)


class BaseMLP(CallbackSupportMixin, BaseEstimator, ABC):
    """What the classifier and the regressor share."""

    history_: dict[str, list]
    _parameter_constraints: ClassVar[dict]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for owner in cls.__mro__:
            if owner.__module__.partition(".")[0] == "fastmlp":
                continue
            for name in HOOKS.keys() & vars(owner).keys():
                raise TypeError(
                    f"{owner.__name__} overrides {name}, a private hook of scikit-learn's that "
                    f"fastmlp does not have: {HOOKS[name]} instead."
                )

    # --- what the two estimators answer differently

    @abstractmethod
    def _read(self, X: Any, y: Any, *, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        """Checked ``X`` and encoded ``y`` (see `fastmlp.engine.place`); notes what `fit` learns."""

    @abstractmethod
    def _read_held_out(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        """The same for a user's validation set, after the training data."""

    @property
    @abstractmethod
    def _targets(self) -> Labels | Values:
        """What outputs stand for."""

    @abstractmethod
    def _objective(self, n_outputs: int) -> Objective:
        """What training minimises."""

    def _for_scorers(self, given: tuple, encoded: np.ndarray) -> tuple:
        """X, y and weights of the user's, with ``y`` in the form that `predict` answers in."""
        return given

    def _weights(self, encoded: np.ndarray, sample_weight: Any, reference: np.ndarray) -> Any:
        """Sample weights times what classes weigh by ``reference``, the training data's targets."""
        return sample_weight

    # --- copies and pickles

    def __copy__(self) -> Self:
        model = type(self).__new__(type(self))
        state = model.__dict__
        state |= self.__dict__
        state.pop("_model", None)
        for name in _LISTS & state.keys():  # which `partial_fit` adds to
            state[name] = deepcopy(state[name])
        return model

    def __getstate__(self) -> dict[str, Any]:
        """Plain data: neither what was prepared to predict nor classes of fastmlp's."""
        state = dict(super().__getstate__(), _fastmlp_version=__version__)
        state.pop("_model", None)
        if state.get("_optimizer_state") is not None:
            state["_optimizer_state"] = state["_optimizer_state"].as_dict()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        version = state.pop("_fastmlp_version", "an unknown one")
        if version != __version__:
            warn(
                f"{type(self).__name__} was pickled by fastmlp {version} and is now read by fastmlp"
                f" {__version__}, which may give other results; models that were saved by "
                "fastmlp.io.save can be read by later versions.",
                InconsistentVersionWarning,
            )
            state = _default_parameters(type(self)) | state
        if state.get("_optimizer_state") is not None:
            state["_optimizer_state"] = OptimizerState.from_dict(state["_optimizer_state"])
        super().__setstate__(state)
        self._check_arrays()

    def _check_arrays(self) -> None:
        """Refuse what kernels cannot index with, in a file that somebody handed over."""
        fitted = self.__dict__
        if "coefs_" not in fitted:
            return
        widths = require_layers(self.coefs_, self.intercepts_, fitted.get("n_features_in_"))
        if "classes_" in fitted:
            check_sorted(self.classes_)
        if fitted.get("_optimizer_state") is not None:
            fitted["_optimizer_state"].require_size(n_parameters_of(widths))

    @classmethod
    @cache
    def _get_param_names(cls) -> list[str]:
        """scikit-learn's, which looks at the signature each time: for `clone` three times."""
        return super()._get_param_names()

    def _validate_params(self) -> None:
        """scikit-learn's check of the parameters, once for each set of plain ones."""
        _VALID.get(self, partial(check_each, self))

    # --- fitting

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        resume: bool = False,
    ) -> Self:
        """Fit the network.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Class labels, a label indicator matrix, or target values.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        X_val : {array-like, sparse matrix} of shape (n_val, n_features), default=None
            Validation data for ``early_stopping``, which then sets none aside.  Without
            ``early_stopping`` (and with 'lbfgs') they are for the record only: ``history_``.
        y_val : array-like of shape (n_val,) or (n_val, n_outputs), default=None
            Their targets.
        sample_weight_val : array-like of shape (n_val,), default=None
            Their weights.
        resume : bool, default=False
            Go on from the file ``checkpoint``, if there is one; begin at the beginning if not.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If an input or a parameter is invalid, if the checkpoint is damaged or belongs to a fit
            with other data or parameters, or if the parameters of the network become non-finite.
            The estimator is then as it was before the call.

        Examples
        --------
        >>> from fastmlp import MLPClassifier
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = MLPClassifier(early_stopping=True, n_iter_no_change=50, random_state=0)
        >>> model = model.fit(X[::2], y[::2], X_val=X[1::2], y_val=y[1::2])
        >>> model.stop_reason_, model.best_validation_score_ > 0.9
        ('converged', True)
        """
        # before the attributes are noted down: scikit-learn looks for what this adds to them
        context = open_callbacks(self, **self._task_sizes())
        held_out = HeldOut(X_val, y_val, sample_weight_val)
        with all_or_nothing(self):
            return self._fit(X, y, sample_weight, held_out=held_out, context=context, resume=resume)

    def _task_sizes(self) -> dict[str, Any]:
        """Size of a fit, for progress bars."""
        if self.n_restarts > 1:
            return {"max_subtasks": self.n_restarts, "sequential_subtasks": False}
        return {"max_subtasks": most_epochs(self.max_iter, self.solver)}

    def _fit(
        self, X: Any, y: Any, sample_weight: Any, *, incremental: bool = False,
        held_out: HeldOut = NOTHING_HELD_OUT, context: Any = None, resume: bool = False,
    ) -> Self:  # fmt: skip
        plan = make_plan(self, incremental=incremental, held_out=held_out, resume=resume)
        checkpoint = self._open_checkpoint(plan)
        data, validation = self._read_all(plan, X, y, sample_weight, held_out)
        begun = self._begin(plan, data, validation, context, checkpoint)
        best, scores = begun.train()
        self._end(begun.fit, best, scores)
        begun.task.end(best, lambda: best.parameters)
        return self

    def _read_all(
        self, plan: Plan, X: Any, y: Any, sample_weight: Any, held_out: HeldOut
    ) -> tuple[DataSet, DataSet | None]:
        """Training and validation data of the user's, checked and encoded."""
        data = self._data(X, y, sample_weight, plan.incremental, self._is_first_pass(plan))
        return data, self._given_validation(held_out, data, plan)

    def _is_first_pass(self, plan: Plan) -> bool:
        """Whether to begin with new parameters."""
        return not hasattr(self, "coefs_") or not (plan.warm_start or plan.incremental)

    def _begin(
        self, plan: Plan, data: DataSet, validation: DataSet | None, context: Any = None,
        checkpoint: Checkpoint | None = None, beside: Fit | None = None,
    ) -> Begun:  # fmt: skip
        """Everything up to training; ``beside`` is a fit of the same plan to the same data."""
        network, objective = self._architecture(plan, data)
        self._random_state = check_random_state(self.random_state)
        if checkpoint:
            self._random_state = checkpoint.random_state(self._random_state)
        states, first_pass = self._restart_states(), self._is_first_pass(plan)
        runs = [self._start(plan, network, data.X.dtype, first_pass, state) for state in states]
        if validation is None and plan.early_stopping:
            data, validation = split(plan, data, self._targets, self._random_state)
        checkpoints: list[Any] = []
        if checkpoint:
            arguments = self._arguments(data, validation, runs[0].parameters)
            checkpoints = checkpoint.hooks(arguments, len(runs), plan.max_iter)
        fit = Fit(
            plan, objective, self._targets, data, validation, self._user_score(),
            runs[0].parameters.dtype, self._spare_engine() if plan.incremental else None, beside,
        )  # fmt: skip
        return Begun(fit, runs, self._open_task(context, network, data), checkpoints)

    def _end(self, fit: Fit, best: Run, scores: np.ndarray) -> None:
        """Keep what was trained."""
        self.restart_scores_ = scores
        self._finish(best)
        losses = self.history_["validation_loss"]
        self.validation_loss_curve_ = list(losses) if fit.wants_loss else None
        self._model = self._make_model(best.network, self._made_of(), best.parameters)
        self._model.spare = fit.spare

    def _open_checkpoint(self, plan: Plan) -> Checkpoint | None:
        if plan.checkpoint is None or isinstance(plan.checkpoint, KeptFit):
            return plan.checkpoint
        return Checkpoint(plan.checkpoint, plan.checkpoint_every, plan.resume)

    def _data(self, X: Any, y: Any, sample_weight: Any, incremental: bool, reset: bool) -> DataSet:
        """Checked and encoded training data."""
        given = X, y, sample_weight
        X, encoded = self._read(X, y, incremental=incremental, reset=reset)
        sample_weight = checked_weight("sample_weight", sample_weight, encoded)
        weight = self._weights(encoded, sample_weight, encoded)
        if not has_weight(weight):
            raise ValueError(
                "The weights of all samples (sample_weight times class_weight) sum to zero; give "
                "some sample a weight above zero."
            )
        return DataSet(X, encoded, weight, self._for_scorers(given, encoded))

    def _given_validation(self, held_out: HeldOut, data: DataSet, plan: Plan) -> DataSet | None:
        """A user's validation set, checked and encoded."""
        if held_out.X is None:
            return None
        try:
            X, encoded = self._read_held_out(held_out.X, held_out.y)
            if encoded.shape[1:] != data.y.shape[1:]:
                raise ValueError(
                    f"y_val must have as many outputs as y, {data.y.shape[1:]}, got "
                    f"{encoded.shape[1:]}."
                )
            weight = checked_weight("sample_weight_val", held_out.sample_weight, encoded)
            weight = self._weights(encoded, weight, data.y)
            if not has_weight(weight):
                raise ValueError(
                    "The weights of its samples sum to zero; see sample_weight_val and "
                    "class_weight."
                )
            fewest = self._targets.fewest_scored
            if plan.early_stopping and plan.scoring is None and len(encoded) < fewest:
                raise ValueError(
                    f"It is too small for a score, which takes {fewest} samples; add samples or "
                    "set scoring='loss'."
                )
        except ValueError as error:
            raise ValueError(f"The validation set X_val, y_val is invalid. {error}") from error
        return DataSet(X, encoded, weight, self._for_scorers(tuple(held_out), encoded))

    def _architecture(self, plan: Plan, data: DataSet) -> tuple[Network, Objective]:
        """The network for checked and encoded data, and what its training minimises."""
        objective = self._objective(self._targets.n_outputs(data.y))
        widths = data.X.shape[1], *plan.hidden_layer_sizes, objective.n_outputs
        network = Network(widths, plan.activations, objective.out_activation, plan.layer_norm)
        return network, objective

    def _restart_states(self) -> list[np.random.RandomState]:
        """One source of random numbers per restart; the only one is the estimator's own."""
        if self.n_restarts == 1:
            return [self._random_state]
        seeds = self._random_state.randint(SEED_LIMIT, size=self.n_restarts)
        return [check_random_state(seed) for seed in np.asarray(seeds).tolist()]

    def _start(
        self, plan: Plan, network: Network, dtype: Any, first_pass: bool,
        random_state: np.random.RandomState,
    ) -> Run:  # fmt: skip
        """A run with initial parameters and counters, or those of the previous call."""
        if first_pass:
            parameters = network.initialise(random_state, dtype, plan.weight_init)
            run = Run(plan, network, parameters, random_state)
            run.best_parameters = parameters.copy() if self.early_stopping else None
        else:
            parameters = self._current_parameters(network)
            run = Run(plan, network, parameters, random_state)
            run.n_samples_seen = getattr(self, "t_", 0)
            run.no_improvement_count = getattr(self, "_no_improvement_count", 0)
            run.best_loss = getattr(self, "best_loss_", None)
            run.best_validation_score = getattr(self, "best_validation_score_", None)
            if not plan.incremental:  # else `_finish` adds to it
                run.loss_curve = list(getattr(self, "loss_curve_", ()))
            run.validation_scores = getattr(self, "validation_scores_", None)
            run.n_earlier = len(getattr(self, "history_", {"epoch": ()})["epoch"])
        if self.early_stopping:
            run.best_loss = None
            run.validation_scores = list(run.validation_scores or ())
            if run.best_validation_score is None:
                run.best_validation_score = -np.inf
        else:
            run.validation_scores = run.best_validation_score = None
            if run.best_loss is None:
                run.best_loss = np.inf
        if plan.optimizer is not None:
            run.optimizer_state = self._start_optimizer(plan, parameters)
        return run

    def _current_parameters(self, network: Network) -> np.ndarray:
        """``coefs_`` and ``intercepts_`` as one vector, which must not be changed."""
        model = self.__dict__.get("_model")
        if (
            model is not None
            and model.network.widths == network.widths
            and model.is_made_of(self.coefs_, self.intercepts_, self._made_of())
        ):
            return model.parameters
        dtype = np.result_type(*self.coefs_[:1], np.float32)
        return network.flatten(self.coefs_, self.intercepts_, dtype)

    def _start_optimizer(self, plan: Plan, parameters: np.ndarray) -> OptimizerState:
        """A new state, or for `partial_fit` that of the previous call."""
        earlier = self.__dict__.get("_optimizer_state")
        if plan.incremental and earlier is not None:
            return earlier
        if plan.warm_start and earlier is not None and earlier.trained is not None:
            parameters = earlier.trained  # what is trained goes on, not its average
        assert plan.optimizer is not None
        return OptimizerState.new(plan.optimizer, plan.schedule, parameters)

    def _spare_engine(self) -> Any:
        model = self.__dict__.get("_model")
        return None if model is None else model.spare

    def _arguments(
        self, data: DataSet, validation: DataSet | None, initial: np.ndarray
    ) -> dict[str, str]:
        """What a resumed fit must have in common with the first one."""
        arguments = {
            name: in_words(value)
            for name, value in self.get_params(deep=False).items()
            if not (name in SHARED and SHARED[name].resumable)
        }
        if not is_over_all_epochs(self.learning_rate):
            del arguments["max_iter"]
        arrays = {"X": data.X, "y": data.y, "sample_weight": data.sample_weight}
        if validation is not None and validation.rows is None:
            arrays |= {"X_val": validation.X, "y_val": validation.y}
        arrays["initial weights"] = initial
        types = dict.fromkeys(arrays, data.X.dtype)  # of what is trained on, not of what was given
        if data.y.ndim == 1:  # numbers of classes
            types |= {"y": np.dtype(np.int64), "y_val": np.dtype(np.int64)}
        return arguments | {name: checksum(array, types[name]) for name, array in arrays.items()}

    def _open_task(self, context: Any, network: Network, data: DataSet) -> Task:
        """The fit, for callbacks."""
        if context is None:
            return NO_TASK
        given = cache(data.as_given)
        arguments = {
            "X": lambda: given()[0],
            "y": lambda: given()[1],
            "metadata": lambda: None if given()[2] is None else {"sample_weight": given()[2]},
        }
        return Task(context, self, arguments, self._fitted_attributes)

    def _user_score(self) -> Any:
        """``(run, X, y, **metadata) -> score`` by ``scoring``, if that is one of the user's."""
        if self.scoring is None or self.scoring == "loss":
            return None
        scorer = check_scoring(self, scoring=self.scoring)

        def score(run: Run, *, X: Any, y: Any, **metadata: Any) -> float:
            model = copy(self)
            model.__dict__.update(self._fitted_attributes(run, run.engine.get_parameters()))
            return _as_number(scorer(model, X, y, **metadata))

        return score

    def _finish(self, run: Run) -> None:
        """Write the outcome to scikit-learn's attributes."""
        attributes = self._fitted_attributes(run, run.parameters)
        history = {name: run.column(name) for name in HISTORY}
        if run.plan.incremental:  # a stream has many calls: no copies of what is there
            _put_behind(self.__dict__, attributes, ["loss_curve_"])
            _put_behind(self.__dict__.get("history_", {}), history, HISTORY)
        elif run.n_earlier:
            history = {name: self.history_[name] + lines for name, lines in history.items()}
        self.history_ = history
        self.__dict__.update(attributes)
        self.stop_reason_ = run.stop_reason
        self.engine_info_ = run.engine_info
        if run.optimizer_state is not None:
            self._optimizer_state = run.optimizer_state
        else:
            for name in (*_STOCHASTIC_ATTRIBUTES, "_optimizer_state"):
                self.__dict__.pop(name, None)

    def _fitted_attributes(self, run: Run, parameters: np.ndarray) -> dict[str, Any]:
        """The attributes of an estimator that stands where ``run`` does."""
        network = run.network
        coefs, intercepts = network.unflatten(parameters)
        attributes = {
            "coefs_": coefs,
            "intercepts_": intercepts,
            "n_iter_": run.n_iter,
            "t_": run.n_samples_seen,
            "loss_": run.loss,
            "n_layers_": len(network.widths),
            "n_outputs_": network.n_outputs,
            "out_activation_": network.out_activation,
        }
        if run.plan.optimizer is not None:
            attributes |= {
                name: getattr(run, field) for name, field in _STOCHASTIC_ATTRIBUTES.items()
            }
        return attributes

    @property
    def _optimizer(self) -> SimpleNamespace:
        """Read-only view of the optimizer's state, under scikit-learn's private name."""
        state = self.__dict__.get("_optimizer_state")
        if state is None:
            raise AttributeError(f"{type(self).__name__} has no optimizer state yet.")
        return SimpleNamespace(**state.as_dict())

    def _loss_grad_lbfgs(
        self, packed: np.ndarray, X: Any, y: np.ndarray, sample_weight: Any, *_buffers: Any
    ) -> tuple[float, np.ndarray]:
        """Loss and gradient in scikit-learn's packing: all ``coefs_``, then all ``intercepts_``."""
        network = fitted_model(self).network
        objective = self._objective(network.n_outputs)
        sizes = [array.size for array in (*self.coefs_, *self.intercepts_)]
        parts = np.split(packed, np.cumsum(sizes)[:-1])
        coefs = [part.reshape(coef.shape) for part, coef in zip(parts, self.coefs_, strict=False)]
        if objective.row.per_row:
            y = np.argmax(y, axis=1)
        engine = get_engine("cpu", network, dtype=np.float64, objective=objective, alpha=self.alpha)
        engine.load(place("cpu", X, y, sample_weight, dtype=np.float64, objective=objective))
        engine.set_parameters(network.flatten(coefs, parts[len(coefs) :], np.float64))
        loss, gradient = engine.loss_and_gradient()
        coef_grads, intercept_grads = network.unflatten(gradient)
        return loss, np.hstack([g.ravel() for g in (*coef_grads, *intercept_grads)])

    # --- prediction

    def _outputs(self, X: Any) -> np.ndarray:
        """Outputs of shape (n_samples, n_outputs) for unchecked ``X``."""
        if has_expected_shape(self, X) and "coefs_" in self.__dict__:
            outputs = fitted_model(self).predict.of_unchecked(X)
            if outputs is not None:
                return outputs
        if "coefs_" not in self.__dict__:
            check_is_fitted(self)
        X = checked(self, X, reset=False)
        return fitted_model(self).predict(X)

    def _made_of(self) -> tuple:
        """What a fitted model depends on beside ``coefs_`` and ``intercepts_``."""
        fitted = self.__dict__
        activation = self.activation
        return (
            activation if isinstance(activation, str) else tuple(activation),
            bool(self.layer_norm), fitted.get("out_activation_"), fitted.get("n_features_in_"),
            self.device, self.n_threads, self.matmul_precision, fitted.get("_optimizer_state"),
        )  # fmt: skip

    def _fitted_network(self) -> Network:
        """The network that attributes and parameters describe."""
        widths = require_layers(self.coefs_, self.intercepts_, self.__dict__.get("n_features_in_"))
        activations = activations_of(self.activation, len(widths) - 2)
        return Network(widths, activations, self.out_activation_, bool(self.layer_norm))

    def _make_model(
        self, network: Network, made_of: tuple, flat: np.ndarray | None = None
    ) -> FittedModel:
        return FittedModel(
            network, self.coefs_, self.intercepts_, self._targets,
            self.__dict__.get("_optimizer_state"), execution(self), made_of, flat,
        )  # fmt: skip

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _sk_visual_block_(self) -> Any:
        """scikit-learn's hook for diagrams in notebooks."""
        return visual_block(self, self._summary())

    def _summary(self) -> str:
        """The network and how its training went, in one line; empty before `fit`."""
        if not hasattr(self, "coefs_"):
            return ""
        text = fitted_model(self).summary
        n_epochs = len(getattr(self, "history_", {"epoch": ()})["epoch"])
        if not n_epochs:
            return text
        unit = "iterations" if self.solver == "lbfgs" else "epochs"
        reason = f" ({self.stop_reason_})" if hasattr(self, "stop_reason_") else ""
        return f"{text}; loss {self.loss_:.4g} after {n_epochs} {unit}{reason}"


# --- what the rest of the package asks of an estimator


@contextmanager
def all_or_nothing(estimator: Any) -> Iterator[None]:
    """Put an estimator's attributes back if the block raises."""
    before = estimator.__dict__.copy()
    try:
        yield
    except BaseException:
        estimator.__dict__.clear()
        estimator.__dict__.update(before)
        raise


def fitted_model(estimator: Any) -> FittedModel:
    """The model that an estimator's attributes and parameters describe now.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If it was not fitted.
    ValueError
        If its arrays do not fit together.
    """
    fitted = estimator.__dict__
    if "coefs_" not in fitted:
        check_is_fitted(estimator)
        raise TypeError(
            f"model must be an MLPClassifier or MLPRegressor, got {estimator!r}; of an ensemble, "
            "take one of members_."
        )
    made_of = estimator._made_of()
    model = fitted.get("_model")
    if model is None or not model.is_made_of(fitted["coefs_"], fitted["intercepts_"], made_of):
        network = estimator._fitted_network()
        model = fitted["_model"] = estimator._make_model(network, made_of)
    return model


def read_batch(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> Batch:
    """Data as a fitted estimator's training would see them.

    Weights of classes are included; ``class_weight='balanced'`` goes by this batch.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        It is not changed.
    X, y, sample_weight
        As `fit` takes them.
    """
    estimator = copy(estimator)
    estimator.warm_start = False  # else every class must occur
    data = estimator._data(X, y, sample_weight, incremental=True, reset=False)
    objective = estimator._objective(estimator._targets.n_outputs(data.y))
    return Batch(data.X, data.y, data.sample_weight, objective)


def start(estimator: Any, X: Any, y: Any) -> None:
    """Make an estimator one that `fit` would begin with: initial parameters, no epoch.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Unfitted; it is changed.
    X, y
        As `fit` takes them.
    """
    plan = make_plan(estimator)
    data = estimator._data(X, y, None, incremental=False, reset=True)
    network, _ = estimator._architecture(plan, data)
    estimator._random_state = check_random_state(estimator.random_state)
    state = estimator._restart_states()[0]
    run = estimator._start(plan, network, data.X.dtype, True, state)
    estimator.__dict__.update(estimator._fitted_attributes(run, run.parameters))


def go_on_from(estimator: Any, parameters: np.ndarray, state: OptimizerState) -> Any:
    """A copy of a fitted estimator that goes on from other parameters and another state.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
    parameters : ndarray
        Flat.
    state : OptimizerState
    """
    coefs, intercepts = fitted_model(estimator).network.unflatten(parameters)
    estimator = copy(estimator)
    estimator.coefs_, estimator.intercepts_ = coefs, intercepts
    estimator._optimizer_state = state
    return estimator


def check_parameters(estimator: Any) -> None:
    """
    Raises
    ------
    ValueError
        If a parameter is of a wrong type or out of its range.
    """
    estimator._validate_params()


def _put_behind(earlier: dict[str, Any], new: dict[str, Any], names: Sequence[str]) -> None:
    """Add new lists to earlier ones of the same names, which take their place."""
    for name in names:
        if name in earlier and name in new:
            earlier[name] += new[name]
            new[name] = earlier[name]


def _default_parameters(kind: type) -> dict[str, Any]:
    """For parameters that came later than a pickle."""
    parameters = signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _as_number(score: Any) -> float:
    """What a user's scorer returned; scikit-learn takes arrays of one element, too."""
    number = score
    with suppress(AttributeError, ValueError, RuntimeError):
        number = score.item()
    if not isinstance(number, Number) or isinstance(number, complex):
        raise ValueError(f"scoring must return one number, got {score!r}.")
    return float(number)  # type: ignore[arg-type]
