"""tabular_pipeline: preprocessing and training parameters that suit tables, in one call.

The recipe is RealMLP-TD-S (Holzmüller, Grinsztajn and Steinwart, 2024; its constants are in
pytabkit's ``default_params.py``) as far as this engine expresses it.  scikit-learn does the work:
the pipeline consists of its own parts, but for the scaling.

RealMLP trains ``x W / sqrt(fan_in) + b`` with standard normal ``W`` (the NTK parametrisation).
With Adam, whose steps do not depend on the scale of gradients, that is ``x W + b`` with ``W`` of
variance ``1 / fan_in`` and ``1 / sqrt(fan_in)`` of the learning rate: here 1 / 16 of it in all
layers, because its hidden layers have 256 units.  RealMLP gives biases 1 / 10, which is near.
"""

from collections.abc import Iterable
from datetime import date, time, timedelta
from decimal import Decimal
from numbers import Number, Real
from typing import Any, Literal, NoReturn, Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.utils import check_array

from fastmlp._sklearn import check_is_fitted, validate_data
from fastmlp.estimators import MLPClassifier, MLPRegressor

__all__ = ["RobustScaleSmoothClip", "tabular_pipeline"]

_LIMIT = 3.0  # of scaled features
_MAX_CATEGORIES = 100  # RealMLP-TD-S has no limit; a column of identifiers needs one
_WIDTH = 256
_KINDS: dict[type, str] = {str: "strings", bytes: "bytes"}

_SHARED: dict[str, Any] = {
    "hidden_layer_sizes": (_WIDTH,) * 3,
    "alpha": 0.0,
    "weight_init": "lecun_normal",
}
_TRAINING: dict[str, Any] = {
    "beta_2": 0.95,
    "max_iter": 256,
    "learning_rate": "coslog4",
    "early_stopping": True,  # to keep the best epoch, not to stop
    "n_iter_no_change": np.inf,
    "validation_fraction": 0.2,
    "scoring": "loss",
}
_CHOICES: dict[str, dict[str, Any]] = {
    "classification": {"activation": "selu", "label_smoothing": 0.1},
    "regression": {"activation": "mish"},
}
_RATES = {"classification": 0.04 / _WIDTH**0.5, "regression": 0.07 / _WIDTH**0.5}
_ESTIMATORS = {"classification": MLPClassifier, "regression": MLPRegressor}


class RobustScaleSmoothClip(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Scale features by their quartiles, and squeeze outliers smoothly into (-3, 3).

    A value ``x`` becomes ``z / sqrt(1 + (z / 3)^2)`` with
    ``z = (x - median) / (q75 - q25)``.  A column whose quartiles coincide is divided by
    ``(max - min) / 2`` instead, and a constant one becomes 0.  NaN are left out of the statistics,
    and stay.  From RealMLP (Holzmüller, Grinsztajn and Steinwart, 2024).

    Attributes
    ----------
    center_ : ndarray of shape (n_features,)
        Medians.
    factor_ : ndarray of shape (n_features,)
        What the distances from the medians are multiplied by.
    n_features_in_ : int
        Features seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    Examples
    --------
    >>> from fastmlp import RobustScaleSmoothClip
    >>> X = [[0.0], [1.0], [2.0], [3.0], [1e9]]
    >>> RobustScaleSmoothClip().fit_transform(X).round(2).ravel().tolist()
    [-0.95, -0.49, 0.0, 0.49, 3.0]
    """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find medians and quartiles.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Numbers; NaN are allowed.
        y : None
            Ignored.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If ``X`` is sparse, infinite or not numeric.
        """
        X = self._validate(X, reset=True)
        X = np.where(np.isnan(X).all(axis=0), 0.0, X)
        low, q25, median, q75, high = np.nanquantile(X, [0, 0.25, 0.5, 0.75, 1], axis=0)
        width = np.where(q75 > q25, q75 - q25, (high - low) / 2)
        self.center_ = median
        usable = width >= np.finfo(width.dtype).tiny
        self.factor_ = np.divide(1, width, out=np.zeros_like(width), where=usable)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Scale and clip.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            float32 if ``X`` is, else float64.

        Raises
        ------
        ValueError
            As `fit`, or if ``X`` has another number of features.
        """
        check_is_fitted(self)
        X = self._validate(X, reset=False)
        largest = np.sqrt(np.finfo(X.dtype).max)  # a larger one would be squared to infinity
        with np.errstate(over="ignore"):
            z = (X - self.center_.astype(X.dtype)) * self.factor_.astype(X.dtype)
        z = np.clip(z, -largest, largest)
        return z / np.sqrt(1 + (z / _LIMIT) ** 2)

    def _validate(self, X: Any, reset: bool) -> np.ndarray:
        if hasattr(X, "dtypes") and any(getattr(dtype, "kind", "") == "O" for dtype in X.dtypes):
            X = _missing_as_none(X)
        return validate_data(
            self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan"
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def tabular_pipeline(
    estimator: MLPClassifier | MLPRegressor | None = None,
    *,
    task: Literal["classification", "regression"],
) -> Pipeline:
    """Preprocessing for tables and a network with parameters to match, after RealMLP-TD-S.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor or None, default=None
        Its parameters win over the preset's where they differ from their defaults, so this is the
        place for ``random_state``, ``n_threads`` or ``device``.  To go back to a default, set the
        parameter on the pipeline.  The estimator itself is not changed.
    task : {'classification', 'regression'}
        What to predict.

    Returns
    -------
    Pipeline
        Not fitted, of two steps.  Both take arrays and pandas or polars frames.

        ``features`` scales numbers and booleans by `RobustScaleSmoothClip` and puts the median in
        the place of missing ones; strings, categories and other objects become one-hot columns,
        scaled likewise.  Columns of Python objects go by what is in them, and strings are numbers
        if all of them are and not all are whole (postal codes stay categories).  Missing is a
        category of its own.  Of more than 100 categories the rarest share one column with those
        that `fit` did not see, which else are zero in all columns.

        ``network`` is the estimator; for a regression it is a `TransformedTargetRegressor` around
        it that standardises targets (not with ``loss='poisson'`` or ``'gamma'``).  So parameters
        are reached as ``network__alpha`` or ``network__regressor__alpha``, the fitted network
        is ``pipeline["network"]`` or ``pipeline["network"].regressor_``, and sample weights go to
        ``pipeline.fit(X, y, network__sample_weight=...)``.

    Raises
    ------
    TypeError
        If the estimator does not fit the task.
    ValueError
        If the task is none of the two.

    Notes
    -----
    The network's parameters are three hidden layers of 256 units, 'selu' or 'mish',
    ``label_smoothing=0.1``, ``weight_init='lecun_normal'``, ``alpha=0``, and with
    ``solver='adam'``: ``beta_2=0.95`` and 256 epochs with ``learning_rate='coslog4'`` and
    ``learning_rate_init`` 0.0025 or 0.004375, its highest rate.  A fifth of the rows is set aside,
    and the epoch with the smallest loss on it is kept; to train on all rows, set
    ``early_stopping=False, scoring=None``.  Turn label smoothing off where probabilities matter
    more than classes.

    Of RealMLP-TD-S, this is not expressed: the learnable scale of each input (with six times the
    learning rate), learning rates that go by a layer's inputs or that are lower for biases, random
    biases, the last layer's zeros, and batches of 256 (they are 200) without the last, shorter one.
    It keeps the epoch with the fewest errors on the rows set aside, the last of several; here the
    first would be kept, and with few rows it comes too early, hence the loss.

    Examples
    --------
    >>> from fastmlp import MLPClassifier, tabular_pipeline
    >>> from sklearn.datasets import load_wine
    >>> X, y = load_wine(return_X_y=True, as_frame=True)
    >>> model = tabular_pipeline(MLPClassifier(max_iter=30, random_state=0), task="classification")
    >>> model.fit(X[::2], y[::2]).score(X[1::2], y[1::2]) > 0.9
    True
    """
    if task not in _ESTIMATORS:
        raise ValueError(f"task must be 'classification' or 'regression', got {task!r}.")
    expected = _ESTIMATORS[task]
    estimator = expected() if estimator is None else estimator
    if not isinstance(estimator, expected):
        raise TypeError(f"task={task!r} needs an estimator of type {expected.__name__}, or None, "
                        f"got {estimator!r}.")  # fmt: skip
    network = _with_preset(estimator, task)
    if task == "regression":
        is_positive = network.loss in ("poisson", "gamma")
        transformer = None if is_positive else StandardScaler()
        network = TransformedTargetRegressor(network, transformer=transformer)
    return Pipeline([("features", _features()), ("network", network)])


def _with_preset(
    estimator: MLPClassifier | MLPRegressor, task: str
) -> MLPClassifier | MLPRegressor:
    """A copy with the preset's parameters where the estimator has defaults."""
    defaults = type(estimator)().get_params()
    # repr, because arrays and pairs of functions are parameters, too
    chosen = {
        name
        for name, value in estimator.get_params().items()
        if repr(value) != repr(defaults[name])
    }
    preset = _SHARED | _CHOICES[task]
    if estimator.solver == "adam":
        preset |= _TRAINING | {"learning_rate_init": _RATES[task]}
    if "loss" in chosen:
        preset.pop("label_smoothing", None)  # not every loss has it
    missing = {name: value for name, value in preset.items() if name not in chosen}
    return clone(estimator).set_params(**missing)


def _features() -> ColumnTransformer:
    """RealMLP's preprocessing: one-hot, then scaling of all columns."""
    # RobustScaleSmoothClip takes the median to 0
    numeric = make_pipeline(
        RobustScaleSmoothClip(),
        SimpleImputer(strategy="constant", fill_value=0.0, keep_empty_features=True),
    )
    one_hot = OneHotEncoder(
        sparse_output=False, handle_unknown="infrequent_if_exist",
        max_categories=_MAX_CATEGORIES, dtype=np.float32,
    )  # fmt: skip
    prepare = FunctionTransformer(_missing_as_none, feature_names_out="one-to-one")
    categorical = make_pipeline(prepare, one_hot, RobustScaleSmoothClip())
    return ColumnTransformer([
        ("numeric", numeric, _numeric_columns),
        ("categorical", categorical, _categorical_columns),
    ])  # fmt: skip


def _missing_as_none(X: Any) -> Any:
    """OneHotEncoder does not know pandas' NA."""
    return X.astype(object).where(X.notna(), None) if hasattr(X, "notna") else X


def _numeric_columns(X: Any) -> list[int]:
    """Positions of the columns of numbers and booleans."""
    return _columns(X, numeric=True)


def _categorical_columns(X: Any) -> list[int]:
    return _columns(X, numeric=False)


def _columns(X: Any, numeric: bool) -> list[int]:
    _require_table(X)
    names = X.columns if hasattr(X, "dtypes") else range(X.shape[1])
    kinds = [_holds_numbers(X, j, name) for j, name in enumerate(names)]
    return [j for j, kind in enumerate(kinds) if kind == numeric]


def _require_table(X: Any) -> None:
    if getattr(getattr(X, "dtype", None), "names", None):
        raise ValueError(
            "X is a structured array; give a frame, such as pandas.DataFrame(X), or an array of "
            "two dimensions."
        )
    if len(X.shape) != 2:
        check_array(X, dtype=None, ensure_all_finite=False)  # which raises, in its own words


def _holds_numbers(X: Any, j: int, name: Any) -> bool:
    """Whether a column of a frame or an array is numeric, by its values where its type is open."""
    column = X.iloc[:, j] if hasattr(X, "iloc") else X[:, j]
    dtype = column.dtype
    if hasattr(dtype, "is_numeric"):
        return _is_numeric_in_polars(column, name)
    if hasattr(dtype, "categories"):
        _refuse_mixture(dtype.categories, name)
        return False
    if dtype.kind in ("m", "M"):
        _refuse_dates(dtype, name)
    if dtype.kind == "c":
        raise ValueError(f"Column {name!r} of X holds complex numbers; give their parts as columns "
                         "of their own.")  # fmt: skip
    return dtype.kind in "biuf" or _are_numbers(column, name)


def _is_numeric_in_polars(column: Any, name: Any) -> bool:
    dtype = column.dtype
    if dtype.is_temporal():
        _refuse_dates(dtype, name)
    if dtype.is_nested():
        _refuse_nested(dtype, name)
    if str(dtype) in ("Object", "String"):
        return _are_numbers(column, name)
    return dtype.is_numeric() or str(dtype) == "Boolean"


def _are_numbers(column: Any, name: Any) -> bool:
    """Whether all values that are there are numbers, or strings of which some are fractions.

    Strings of whole numbers are categories, because postal codes and the like are such.
    """
    values = [value for value in column if not _is_missing(value)]
    if all(isinstance(value, Real | Decimal) for value in values):
        return True
    if all(isinstance(value, str) for value in values):
        return all(map(_is_number_as_text, values)) and not all(map(_is_whole, values))
    for value in values:
        if isinstance(value, date | time | timedelta | np.datetime64 | np.timedelta64):
            _refuse_dates(type(value).__name__, name)
    _refuse_mixture(values, name)
    return False


def _is_number_as_text(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _is_whole(value: str) -> bool:
    return value.strip().lstrip("+-").isdigit()


def _is_missing(value: Any) -> bool:
    """None, NaN, pandas' NA and NaT."""
    if isinstance(value, Real | Decimal):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _refuse_mixture(values: Iterable[Any], name: Any) -> None:
    """Refuse what are no categories, or not of one kind."""
    kinds = set()
    for value in values:
        if isinstance(value, list | tuple | dict | set | np.ndarray):
            _refuse_nested(type(value).__name__, name)
        kinds.add("numbers" if isinstance(value, Number) else _KINDS.get(type(value), "objects"))
    if len(kinds) > 1:
        raise ValueError(
            f"Column {name!r} of X holds {' and '.join(sorted(kinds))}; turn it into numbers, or "
            "into strings."
        )


def _refuse_dates(dtype: Any, name: Any) -> NoReturn:
    raise ValueError(
        f"Column {name!r} of X holds dates or times ({dtype}); turn them into numbers or "
        "categories first."
    )


def _refuse_nested(dtype: Any, name: Any) -> NoReturn:
    raise ValueError(
        f"Column {name!r} of X holds several values in one cell ({dtype}); spread them over "
        "columns of their own."
    )
