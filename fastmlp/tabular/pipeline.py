"""tabular_pipeline: preprocessing and training parameters that suit tables, in one call.

The recipe is RealMLP-TD-S (Holzmüller, Grinsztajn and Steinwart, 2024; its constants are in
pytabkit's ``default_params.py``) as far as this engine expresses it.  scikit-learn does the work:
the pipeline consists of its own parts, but for the scaling.

RealMLP trains ``x W / sqrt(fan_in) + b`` with standard normal ``W`` (the NTK parametrisation).
With Adam, whose steps do not depend on the scale of gradients, that is ``x W + b`` with ``W`` of
variance ``1 / fan_in`` and ``1 / sqrt(fan_in)`` of the learning rate: here 1 / 16 of it in all
layers, because its hidden layers have 256 units.  RealMLP gives biases 1 / 10, which is near.
"""

from typing import Any, Literal

import numpy as np
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from fastmlp.estimators import MLPClassifier, MLPRegressor
from fastmlp.tabular.columns import (
    column_of,
    holds_numbers,
    missing_as_none,
    names_of,
    require_table,
)
from fastmlp.tabular.presets import completed
from fastmlp.tabular.scaling import RobustScaleSmoothClip

_MAX_CATEGORIES = 100  # RealMLP-TD-S has no limit; a column of identifiers needs one
_WIDTH = 256

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

    See Also
    --------
    TabularMLPClassifier, TabularMLPRegressor : One estimator, faster and more accurate.

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
    preset = _SHARED | _CHOICES[task]
    if estimator.solver == "adam":
        preset |= _TRAINING | {"learning_rate_init": _RATES[task]}
    if estimator.loss != type(estimator)().loss:
        preset.pop("label_smoothing", None)  # not every loss has it
    return completed(estimator, preset)


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
    prepare = FunctionTransformer(missing_as_none, feature_names_out="one-to-one")
    categorical = make_pipeline(prepare, one_hot, RobustScaleSmoothClip())
    return ColumnTransformer([
        ("numeric", numeric, _numeric_columns),
        ("categorical", categorical, _categorical_columns),
    ])  # fmt: skip


def _numeric_columns(X: Any) -> list[int]:
    """Positions of the columns of numbers and booleans."""
    return _columns(X, numeric=True)


def _categorical_columns(X: Any) -> list[int]:
    return _columns(X, numeric=False)


def _columns(X: Any, numeric: bool) -> list[int]:
    require_table(X)
    kinds = [holds_numbers(column_of(X, j), name) for j, name in enumerate(names_of(X))]
    return [j for j, kind in enumerate(kinds) if kind == numeric]
