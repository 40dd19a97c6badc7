"""What is private or version-dependent in scikit-learn, in one place.

Third-party estimators need a few names that scikit-learn does not promise to keep: the decorator
that validates parameters against ``_parameter_constraints``, the constraint classes, the check of
the first ``partial_fit`` call, and the report on an L-BFGS result.

`sklearn.callback` came with version 1.9 and is experimental; `Task` is all that the rest of
fastmlp sees of it, and without it or without callbacks a fit gets `NO_TASK`.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import numpy as np
from sklearn import __version__, get_config
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
    clone,
)
from sklearn.base import _fit_context as fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring, d2_pinball_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils import check_random_state as _check_random_state
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.fixes import parse_version
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call as check_partial_fit_first_call,
)
from sklearn.utils.multiclass import type_of_target, unique_labels
from sklearn.utils.optimize import _check_optimize_result as check_optimize_result
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _check_feature_names_in as check_feature_names_in
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import check_is_fitted, validate_data

try:
    from sklearn.model_selection._validation import _fit_and_score
except ImportError:
    _fit_and_score = None

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # it is experimental, so a later version may not have it

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: estimators have no ``set_callbacks``."""


__all__ = [
    "NO_TASK",
    "SEED_LIMIT",
    "BaseEstimator",
    "CallbackSupportMixin",
    "ClassifierMixin",
    "ConvergenceWarning",
    "Interval",
    "LabelBinarizer",
    "Options",
    "Parallel",
    "RegressorMixin",
    "StrOptions",
    "Task",
    "assert_all_finite",
    "available_if",
    "check_feature_names_in",
    "check_is_fitted",
    "check_optimize_result",
    "check_partial_fit_first_call",
    "check_random_state",
    "check_sample_weight",
    "check_scoring",
    "clone",
    "column_or_1d",
    "compute_class_weight",
    "constraints_of",
    "d2_pinball_score",
    "delayed",
    "fit_context",
    "get_config",
    "is_valid_parameter",
    "neural_network",
    "open_callbacks",
    "partial_fit_context",
    "safe_indexing",
    "search_task",
    "squared_error_is_mean",
    "train_test_split",
    "type_of_target",
    "unique_labels",
    "validate_data",
    "validate_parameter_constraints",
    "visual_block",
    "with_config",
]

SEED_LIMIT = np.iinfo(np.int32).max
"""Seeds that are drawn stay below it, as scikit-learn's do."""


def squared_error_is_mean(version: str = __version__) -> bool:
    """Whether this scikit-learn reports the squared error of several outputs as their mean.

    From 1.10 on it is their sum, which the gradient always was of (its pull request 34830).
    """
    return parse_version(version) < parse_version("1.10.dev0")


class _Unseeded(np.random.SeedSequence):
    """Sets no state, because something else will; pickles as a plain sequence."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return (0,) * n_words  # which NumPy copies faster than an array

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return np.random.SeedSequence, (0,)


_UNSEEDED = _Unseeded(0)


def check_random_state(seed: Any) -> np.random.RandomState:
    """scikit-learn's, which for an integer spends 80 microseconds on a state that it throws away.

    Parameters
    ----------
    seed : int, RandomState instance or None
    """
    if type(seed) is not int:
        return _check_random_state(seed)
    state = np.random.RandomState(np.random.MT19937(_UNSEEDED))
    state.seed(seed)
    return state


def open_callbacks(estimator: Any, **options: Any) -> Any:
    """The root context of an estimator's callbacks; None if it has none.

    Parameters
    ----------
    options : dict
        See ``sklearn.callback.CallbackSupportMixin._init_callback_context``.
    """
    if not getattr(estimator, "_skl_callbacks", None):
        return None
    return estimator._init_callback_context(**options)


def partial_fit_context(partial_fit: Callable[..., Any]) -> Callable[..., Any]:
    """scikit-learn's decorator, which checks parameters, where it does something: in a first call.

    In others it would take as long as a small batch.
    """
    first = fit_context(prefer_skip_nested_validation=True)(partial_fit)

    @wraps(partial_fit)
    def call(estimator: Any, *args: Any, **kwargs: Any) -> Any:
        of_call = partial_fit if "coefs_" in vars(estimator) else first
        return of_call(estimator, *args, **kwargs)

    return call


def constraints_of(kind: Any) -> dict[str, list[Any]]:
    """What an estimator class of scikit-learn's takes as parameters."""
    return dict(kind._parameter_constraints)


_OF_TASKS = {"train", "test", "parameters", "split_progress", "candidate_progress"}


def search_task(
    batch: Any,
) -> tuple[Callable[..., dict[str, Any]], tuple[Any, ...], dict[str, Any]] | None:
    """What a search handed to joblib: fits a candidate on a split, and scores it.

    Parameters
    ----------
    batch : callable
        What a joblib backend was told to run.

    Returns
    -------
    (function, (estimator, X, y), keywords) or None
        None if it is not what this scikit-learn and this joblib are known to make.
    """
    items: Any = getattr(batch, "items", ())
    if len(items) != 1 or _fit_and_score is None:
        return None
    function, arguments, keywords = items[0]
    if getattr(function, "function", None) is not _fit_and_score:
        return None
    if len(arguments) != 3 or not keywords.keys() >= _OF_TASKS:
        return None
    return function.function, arguments, keywords


def with_config(function: Any) -> Any:
    """What ``delayed`` made, as `Parallel` would hand it out.

    That is with scikit-learn's configuration and the filters of warnings of this thread.
    """
    filters = getattr(warnings, "_get_filters", lambda: warnings.filters)()
    return function.with_config_and_warning_filters(get_config(), filters)


def visual_block(estimator: Any, caption: str) -> Any:
    """An estimator's box in the diagrams of notebooks, with a line below its name, if there is one.

    If this fails, scikit-learn draws the box without the line.
    """
    from sklearn.utils._repr_html.estimator import _VisualBlock

    return _VisualBlock(
        "single", estimator, names=type(estimator).__name__, name_details=str(estimator),
        name_caption=caption or None,
    )  # fmt: skip


def neural_network() -> ModuleType:
    """`sklearn.neural_network` with its private module of optimizers, imported only now."""
    from sklearn import neural_network
    from sklearn.neural_network import _stochastic_optimizers  # noqa: F401

    return neural_network


def is_valid_parameter(kind: Any, name: str, value: Any) -> bool:
    """Whether an estimator of scikit-learn's would take this value."""
    constraints = {name: kind._parameter_constraints[name]}
    try:
        validate_parameter_constraints(constraints, {name: value}, caller_name=kind.__name__)
    except InvalidParameterError:
        return False
    return True


class Task:
    """A task that callbacks hear of: a fit, one of its restarts, or an epoch.

    Parameters
    ----------
    context : sklearn.callback.CallbackContext or None
        None: nobody listens.
    estimator : estimator
    data : dict
        ``X``, ``y``, ``metadata`` for the callbacks, or functions that return them.
    fitted_attributes : callable
        ``(progress, parameters) -> dict`` of what the estimator would have been fitted to.
    """

    def __init__(
        self,
        context: Any = None,
        estimator: Any = None,
        data: dict[str, Any] | None = None,
        fitted_attributes: Callable[[Any, np.ndarray], dict[str, Any]] | None = None,
    ) -> None:
        self._context = context
        self._estimator = estimator
        self._data = {} if data is None else data
        self._fitted_attributes = fitted_attributes
        if context is not None:
            context.call_on_fit_task_begin(estimator=estimator, **self._data)

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return self._context is not None

    def subtask(self, name: str, **options: Any) -> "Task":
        """Begin a task that is part of this one."""
        if self._context is None:
            return self
        context = self._context.subcontext(task_name=name, **options)
        return Task(context, self._estimator, self._data, self._fitted_attributes)

    def end(
        self, progress: Any = None, get_parameters: Callable[[], np.ndarray] | None = None
    ) -> bool:
        """End the task; True if a callback wants training to end."""
        if self._context is None:
            return False

        attributes, fitted = None, self._fitted_attributes
        if get_parameters is not None and fitted is not None:
            attributes = lambda: fitted(progress, get_parameters())  # noqa: E731
        return self._context.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=attributes, **self._data
        )


NO_TASK = Task()
