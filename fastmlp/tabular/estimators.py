"""TabularMLPClassifier, TabularMLPRegressor: from a table with columns of any kinds to predictions.

An estimator consists of a `TabularEncoder`, ``encoder_``, and an ensemble of networks behind it,
``network_``, with the parameters of `fastmlp.tabular.presets`.
"""

import time
import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_consistent_length, column_or_1d

from fastmlp._sklearn import (
    BaseEstimator,
    ClassifierMixin,
    ConvergenceWarning,
    Interval,
    RegressorMixin,
    StrOptions,
    check_is_fitted,
    fit_context,
    safe_indexing,
    train_test_split,
)
from fastmlp.ensemble import MLPEnsembleClassifier, MLPEnsembleRegressor
from fastmlp.estimators import MLPClassifier, MLPRegressor, all_or_nothing, fitted_model
from fastmlp.tabular.encoder import TabularEncoder
from fastmlp.tabular.presets import PRESETS, completed, recipe_for, share_held_out

_RESERVE = 0.75  # of the time that is left: what training may plan with
_FEW_EPOCHS = 50  # if there is no time for so many, there are fewer networks
_LOG_TEMPERATURES = (-3.0, 3.0)


class _TabularMLP(BaseEstimator):
    """What the two share."""

    _task: ClassVar[str]
    _network: ClassVar[Any]
    _ensemble: ClassVar[Any]
    encoder_: TabularEncoder
    network_: Any

    _parameter_constraints: ClassVar[dict] = {
        "preset": [StrOptions(set(PRESETS))],
        "network": [BaseEstimator, None],
        "n_members": [Interval(Integral, 1, None, closed="left"), None],
        "n_bins": [Interval(Integral, 0, None, closed="left"), None],
        "categorical_features": [StrOptions({"auto"}), "array-like"],
        "max_categories": [Interval(Integral, 2, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="left"), None],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
        "random_state": ["random_state"],
        "n_threads": [Interval(Integral, 1, None, closed="left"), None],
    }

    @property
    def n_features_in_(self) -> int:
        """Columns seen during `fit`."""
        return self.encoder_.n_features_in_

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Their names, if ``X`` had any."""
        return self.encoder_.feature_names_in_

    def _fit(
        self, X: Any, y: Any, sample_weight: Any, X_val: Any, y_val: Any, sample_weight_val: Any,
        n_classes: int = 1,
    ) -> Self:  # fmt: skip
        """`fit`, with ``y`` as the networks get it."""
        start = time.perf_counter()
        check_consistent_length(X, y, sample_weight)
        if len(y) == 0:
            raise ValueError("X has 0 sample(s) while a minimum of 1 is required.")
        network = self._checked_network()
        share = self._share_held_out(len(y), n_classes) if X_val is None else 0
        n_rows = len(y) - int(np.ceil(share * len(y)))
        recipe = recipe_for(self.preset, n_rows, bool(share) or X_val is not None)
        n_bins = recipe.n_bins if self.n_bins is None else self.n_bins
        encoder = TabularEncoder(
            n_bins=n_bins, strategy=recipe.strategy, task=self._task, random_state=0,
            categorical_features=self.categorical_features, max_categories=self.max_categories,
        )  # fmt: skip
        Z = encoder.fit_transform(X, y)
        Z_val = None if X_val is None else encoder.transform(X_val)
        n_members = recipe.n_members if self.n_members is None else self.n_members
        own = {} if self._task == "regression" else {"class_weight": self.class_weight}
        own |= {"validation_fraction": share} if share else {}
        network = completed(network, recipe.parameters | own)
        network, n_members = self._within_time(network, n_members, Z, y, start)
        ensemble = self._ensemble(
            network, n_members, random_state=self.random_state, n_threads=self.n_threads
        )
        with warnings.catch_warnings():
            # the number of epochs is the preset's, who looks for the best of them
            warnings.simplefilter("ignore", ConvergenceWarning)
            ensemble.fit(Z, y, sample_weight, X_val=Z_val, y_val=y_val,
                         sample_weight_val=sample_weight_val)  # fmt: skip
        self.encoder_, self.network_ = encoder, ensemble
        return self

    def _checked_network(self) -> Any:
        network = self._network() if self.network is None else self.network
        if type(network) is not self._network:
            raise TypeError(
                f"network must be an {self._network.__name__} of fastmlp or None, got {network!r}."
            )
        return network

    def _share_held_out(self, n_rows: int, n_classes: int) -> float:
        """The share of the rows that is set aside to find the best epoch."""
        share = self.validation_fraction
        return share_held_out(n_rows, n_classes) if share is None else share

    def _within_time(
        self, network: Any, n_members: int, Z: np.ndarray, y: np.ndarray, start: float
    ) -> tuple[Any, int]:
        """The network with as many epochs as ``max_time`` has room for, and how many of it.

        Schedules go over all epochs, so they must know the number before they begin; an epoch that
        is not kept tells how long one takes.  Rather one network that is trained than several that
        are not.
        """
        if self.max_time is None:
            return network, n_members
        if network.solver == "lbfgs":
            return network.set_params(max_time=self.max_time), n_members
        trial = clone(network).set_params(
            max_iter=1, learning_rate="cosine", n_iter_no_change=np.inf, early_stopping=False,
            scoring=None, random_state=0, n_threads=self.n_threads,
        )  # fmt: skip
        before = time.perf_counter()
        trial.fit(Z, y)
        of_an_epoch = time.perf_counter() - before
        left = max(self.max_time - (time.perf_counter() - start), 1e-3)
        epochs = _RESERVE * left / of_an_epoch  # of all networks together
        n_members = int(np.clip(epochs / min(_FEW_EPOCHS, network.max_iter), 1, n_members))
        epochs = int(np.clip(epochs / n_members, 1, network.max_iter))
        return network.set_params(max_iter=epochs, max_time=left), n_members

    def describe(self) -> str:
        """What each column was taken for, and how the networks were trained.

        Returns
        -------
        str

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        """
        check_is_fitted(self)
        member = self.network_.members_[0]
        widths = ", ".join(map(str, np.atleast_1d(member.hidden_layer_sizes)))
        epochs = ", ".join(str(member.n_iter_) for member in self.network_.members_)
        n = len(self.network_.members_)
        return (
            f"{self.encoder_.describe()}\n"
            f"{n} network{'s' * (n > 1)} of {member.coefs_[0].shape[0]} inputs and "
            f"hidden layers of {widths} units, trained for {epochs} epochs"
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags


class TabularMLPClassifier(ClassifierMixin, _TabularMLP):
    """Classify rows of a table with columns of any kinds.

    A `TabularEncoder` turns the table into numbers, and an ensemble of networks with parameters
    that suit tables learns from them.

    Parameters
    ----------
    preset : {'fast', 'default', 'best'}, default='default'
        How much time to spend: see Notes.
    network : MLPClassifier, default=None
        Its parameters win over the preset's where they differ from their defaults, so this is the
        place for ``dropout``, ``hidden_layer_sizes`` or ``device``; with one given, a grid search
        reaches them, as in ``network__dropout``.  It is not changed itself.
    n_members : int or None, default=None
        Networks whose predictions are averaged; None is the preset's.
    n_bins : int or None, default=None
        Most bins of a number, see `PiecewiseLinearEncoder`; 0 for none, None is the preset's.
    categorical_features : 'auto' or array-like of str or int, default='auto'
        Names or positions of columns that are categories although they hold numbers.
    max_categories : int, default=100
        Most columns of a column of categories; the rarest share one.
    class_weight : dict, 'balanced' or None, default=None
        Weights of the classes, see `MLPClassifier`.
    calibrate : bool, default=False
        Whether to bring the networks' confidence into line with how often they are right, by a
        temperature (Guo and others, 2017) that minimises the log loss of rows set aside.  These
        are ``X_val``, or ``validation_fraction`` of the rows, then the same for all networks.
    validation_fraction : float or None, default=None
        Share of the rows that each network sets aside, to keep its best epoch; None is the
        preset's.  With 0, all rows are for training, and the last epoch is kept.
    max_time : float or None, default=None
        Seconds that `fit` may take; if there are too few of them, networks have fewer epochs, and
        there are fewer networks.
    random_state : int, RandomState instance or None, default=None
        Source of all random numbers.
    n_threads : int or None, default=None
        Most threads to use; None means as many as pay.

    Attributes
    ----------
    encoder_ : TabularEncoder
        What turns tables into numbers.
    network_ : MLPEnsembleClassifier
        What predicts from these.
    temperature_ : float
        What the logarithms of probabilities are divided by; 1 without ``calibrate``.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    n_features_in_ : int
        Columns seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    See Also
    --------
    tabular_pipeline : RealMLP-TD-S as a pipeline of scikit-learn's parts.

    Notes
    -----
    Numbers become piecewise linear functions of themselves (Gorishniy and others, 2022), categories
    columns of 0 and 1.  'fast' trains one network, 'default' 4 and 'best' 12 of two hidden layers
    of 128 units; of more than 20,000 rows, 'default' trains 2 and 'best' 4 of 256 units.  Training
    goes on until the validation loss has not improved for some epochs, and its best epoch is kept.
    `fastmlp.tabular.presets` has all parameters, and what each of them pays.  `describe` says what
    columns were taken for.

    Dates are refused: turn them into what may matter about them, such as a number of days, the
    month or the weekday.  A category that `fit` did not see counts as a rare one, or as none of
    them; a number may be missing in new rows even if none was in `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmlp import TabularMLPClassifier
    >>> weight = np.linspace(1, 5, 80)
    >>> X = [["tall" if i % 3 else "short", w] for i, w in enumerate(weight)]
    >>> y = np.where(weight > 3, "heavy", "light")
    >>> model = TabularMLPClassifier("fast", random_state=0).fit(X, y)
    >>> model.predict([["tall", 1.5], ["tall", 4.5]]).tolist()
    ['light', 'heavy']
    >>> print(model.encoder_.describe())
    0: category of 2
    1: number, 32 bins
    """

    _task = "classification"
    _network = MLPClassifier
    _ensemble = MLPEnsembleClassifier

    _parameter_constraints: ClassVar[dict] = {
        **_TabularMLP._parameter_constraints,
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "calibrate": ["boolean"],
    }

    def __init__(
        self, preset: str = "default", *, network: Any = None, n_members: int | None = None,
        n_bins: int | None = None, categorical_features: Any = "auto", max_categories: int = 100,
        class_weight: Any = None, calibrate: bool = False,
        validation_fraction: float | None = None, max_time: float | None = None,
        random_state: Any = None, n_threads: int | None = None,
    ):  # fmt: skip
        self.preset = preset
        self.network = network
        self.n_members = n_members
        self.n_bins = n_bins
        self.categorical_features = categorical_features
        self.max_categories = max_categories
        self.class_weight = class_weight
        self.calibrate = calibrate
        self.validation_fraction = validation_fraction
        self.max_time = max_time
        self.random_state = random_state
        self.n_threads = n_threads

    @property
    def classes_(self) -> np.ndarray:
        """Class labels."""
        return self.network_.classes_

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:  # fmt: skip
        """Fit to a table.

        Parameters
        ----------
        X : {frame, array-like} of shape (n_samples, n_features)
            A pandas or polars frame, an array or lists; columns of any kinds but dates, values may
            be missing.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.
        X_val : {frame, array-like} of shape (n_val, n_features), default=None
            Rows by which the networks' best epochs are told, encoded as ``X`` is; without them,
            each network sets rows aside.
        y_val : array-like of shape (n_val,), default=None
            Their labels.
        sample_weight_val : array-like of shape (n_val,), default=None
            Their weights.

        Returns
        -------
        self : object

        Raises
        ------
        TypeError
            If ``network`` is of another class.
        ValueError
            If a column cannot be used as it is, or a parameter is invalid.
        """
        y = labels_of(y, "y")
        held_out = X_val, y_val, sample_weight_val
        if self.calibrate and X_val is None:
            X, y, sample_weight, held_out = self._set_aside(X, y, sample_weight)
        with all_or_nothing(self):
            self._fit(X, y, sample_weight, *held_out, n_classes=len(np.unique(y)))
            self.temperature_ = self._temperature(*held_out) if self.calibrate else 1.0
        return self

    def _set_aside(self, X: Any, y: np.ndarray, sample_weight: Any) -> tuple:
        """X, y and weights to train on, and the same of the rows set aside."""
        share = self._share_held_out(len(y), len(np.unique(y)))
        if share == 0:
            raise ValueError(
                "calibrate=True needs rows that are set aside: give X_val and y_val to fit, or set "
                "validation_fraction to a number above 0."
            )
        rows, others = train_test_split(
            np.arange(len(y)), test_size=share, stratify=y, random_state=self.random_state
        )
        parts = [
            [None if one is None else safe_indexing(one, chosen) for one in (X, y, sample_weight)]
            for chosen in (rows, others)
        ]
        return *parts[0], parts[1]

    def _temperature(self, X: Any, y: Any, sample_weight: Any) -> float:
        """That with the smallest log loss."""
        p = self.network_.predict_proba(self.encoder_.transform(X))
        logarithms = np.log(np.maximum(p.astype(np.float64), np.finfo(p.dtype).tiny))
        chosen = np.searchsorted(self.classes_, labels_of(y, "y_val")), np.arange(len(p))

        def log_loss(log_temperature: float) -> float:
            scaled = logarithms / np.exp(log_temperature)
            losses = logsumexp(scaled, axis=1) - scaled[chosen[1], chosen[0]]
            return float(np.average(losses, weights=sample_weight))

        found = minimize_scalar(log_loss, bounds=_LOG_TEMPERATURES, method="bounded")
        return float(np.exp(found.x))

    def predict(self, X: Any) -> np.ndarray:
        """Predict class labels.

        Parameters
        ----------
        X : {frame, array-like} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has other columns than in `fit`.
        """
        check_is_fitted(self)
        return self.network_.predict(self.encoder_.transform(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict class probabilities.

        Parameters
        ----------
        X : {frame, array-like} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Columns are in the order of ``classes_``.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has other columns than in `fit`.
        """
        check_is_fitted(self)
        p = self.network_.predict_proba(self.encoder_.transform(X))
        if self.temperature_ == 1:
            return p
        return softmax(np.log(np.maximum(p, np.finfo(p.dtype).tiny)) / self.temperature_, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithm of `predict_proba`.

        Parameters
        ----------
        X : {frame, array-like} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        p = self.predict_proba(X)
        return np.log(np.maximum(p, np.finfo(p.dtype).tiny))


class TabularMLPRegressor(RegressorMixin, _TabularMLP):
    """Predict values for rows of a table with columns of any kinds.

    A `TabularEncoder` turns the table into numbers, and an ensemble of networks with parameters
    that suit tables learns from them.

    Parameters
    ----------
    preset : {'fast', 'default', 'best'}, default='default'
        How much time to spend: see Notes.
    network : MLPRegressor, default=None
        Its parameters win over the preset's where they differ from their defaults, so this is the
        place for ``loss``, ``dropout``, ``hidden_layer_sizes`` or ``device``; with one given, a
        grid search reaches them, as in ``network__dropout``.  It is not changed itself.
    n_members : int or None, default=None
        Networks whose predictions are averaged; None is the preset's.
    n_bins : int or None, default=None
        Most bins of a number, see `PiecewiseLinearEncoder`; 0 for none, None is the preset's.
    categorical_features : 'auto' or array-like of str or int, default='auto'
        Names or positions of columns that are categories although they hold numbers.
    max_categories : int, default=100
        Most columns of a column of categories; the rarest share one.
    target_transformer : transformer, default=None
        What is done to targets before training and undone to predictions, as
        ``PowerTransformer()`` or ``FunctionTransformer(np.log1p, np.expm1)``.  They are
        standardised after it, but with the losses 'poisson' and 'gamma', whose targets stay.
    validation_fraction : float or None, default=None
        Share of the rows that each network sets aside, to keep its best epoch; None is the
        preset's.  With 0, all rows are for training, and the last epoch is kept.
    max_time : float or None, default=None
        Seconds that `fit` may take; if there are too few of them, networks have fewer epochs, and
        there are fewer networks.
    random_state : int, RandomState instance or None, default=None
        Source of all random numbers.
    n_threads : int or None, default=None
        Most threads to use; None means as many as pay.

    Attributes
    ----------
    encoder_ : TabularEncoder
        What turns tables into numbers.
    network_ : MLPEnsembleRegressor
        What predicts from these.
    target_transformer_ : transformer or None
        The fitted copy of the parameter.
    target_scaler_ : StandardScaler or None
        What standardised the targets.
    n_features_in_ : int
        Columns seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    See Also
    --------
    tabular_pipeline : RealMLP-TD-S as a pipeline of scikit-learn's parts.

    Notes
    -----
    Numbers become piecewise linear functions of themselves (Gorishniy and others, 2022), categories
    columns of 0 and 1.  'fast' trains one network, 'default' 4 and 'best' 12 of two hidden layers
    of 128 units; of more than 20,000 rows, 'default' trains 2 and 'best' 4 of 256 units.  Training
    goes on until the validation loss has not improved for some epochs, and its best epoch is kept.
    `fastmlp.tabular.presets` has all parameters, and what each of them pays.  `describe` says what
    columns were taken for.

    Dates are refused: turn them into what may matter about them, such as a number of days, the
    month or the weekday.  A category that `fit` did not see counts as a rare one, or as none of
    them; a number may be missing in new rows even if none was in `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmlp import TabularMLPRegressor
    >>> weight = np.linspace(1, 5, 80)
    >>> X = [["tall" if i % 3 else "short", w] for i, w in enumerate(weight)]
    >>> model = TabularMLPRegressor("fast", random_state=0).fit(X, weight**2)
    >>> bool(model.score(X, weight**2) > 0.9)
    True
    """

    _task = "regression"
    _network = MLPRegressor
    _ensemble = MLPEnsembleRegressor

    _parameter_constraints: ClassVar[dict] = {
        **_TabularMLP._parameter_constraints,
        "target_transformer": [BaseEstimator, None],
    }

    def __init__(
        self, preset: str = "default", *, network: Any = None, n_members: int | None = None,
        n_bins: int | None = None, categorical_features: Any = "auto", max_categories: int = 100,
        target_transformer: Any = None, validation_fraction: float | None = None,
        max_time: float | None = None, random_state: Any = None, n_threads: int | None = None,
    ):  # fmt: skip
        self.preset = preset
        self.network = network
        self.n_members = n_members
        self.n_bins = n_bins
        self.categorical_features = categorical_features
        self.max_categories = max_categories
        self.target_transformer = target_transformer
        self.validation_fraction = validation_fraction
        self.max_time = max_time
        self.random_state = random_state
        self.n_threads = n_threads

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:  # fmt: skip
        """Fit to a table.

        Parameters
        ----------
        X : {frame, array-like} of shape (n_samples, n_features)
            A pandas or polars frame, an array or lists; columns of any kinds but dates, values may
            be missing.
        y : array-like of shape (n_samples,)
            Target values.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.
        X_val : {frame, array-like} of shape (n_val, n_features), default=None
            Rows by which the networks' best epochs are told, encoded as ``X`` is; without them,
            each network sets rows aside.
        y_val : array-like of shape (n_val,), default=None
            Their targets.
        sample_weight_val : array-like of shape (n_val,), default=None
            Their weights.

        Returns
        -------
        self : object

        Raises
        ------
        TypeError
            If ``network`` is of another class.
        ValueError
            If a column cannot be used as it is, or a parameter is invalid.
        """
        y = values_of(y, "y")
        y_val = None if y_val is None else values_of(y_val, "y_val")
        with all_or_nothing(self):
            self.target_transformer_ = self.target_scaler_ = None
            if self.target_transformer is not None:
                self.target_transformer_ = clone(self.target_transformer).fit(y)
            if self._checked_network().loss not in ("poisson", "gamma"):
                self.target_scaler_ = StandardScaler().fit(self._transformed(y))
            held_out = X_val, None if y_val is None else self._encoded(y_val), sample_weight_val
            return self._fit(X, self._encoded(y), sample_weight, *held_out)

    def _transformed(self, y: np.ndarray) -> np.ndarray:
        one = self.target_transformer_
        return y if one is None else np.asarray(one.transform(y), np.float64).reshape(-1, 1)

    def _encoded(self, y: np.ndarray) -> np.ndarray:
        y = self._transformed(y)
        y = y if self.target_scaler_ is None else self.target_scaler_.transform(y)
        return y.ravel().astype(np.float32)

    def predict(self, X: Any) -> np.ndarray:
        """Predict target values.

        Parameters
        ----------
        X : {frame, array-like} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_levels)
            A column for each level of a network with ``loss='quantile'`` and several.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has other columns than in `fit`.
        """
        check_is_fitted(self)
        found = np.asarray(self.network_.predict(self.encoder_.transform(X)), np.float64)
        decoded = found.reshape(-1, 1)
        for one in (self.target_scaler_, self.target_transformer_):
            decoded = decoded if one is None else np.asarray(one.inverse_transform(decoded))
        return decoded.reshape(found.shape)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Score the predictions.

        Parameters
        ----------
        X : {frame, array-like} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Target values.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        float
            R^2, or with ``loss='quantile'`` `sklearn.metrics.d2_pinball_score`, as the network's.
        """
        check_is_fitted(self)
        targets: Any = fitted_model(self.network_.members_[0]).targets
        if targets.are_quantiles:
            return targets.score_quantiles(y, self.predict(X), sample_weight)
        return super().score(X, y, sample_weight)


def labels_of(y: Any, name: str) -> np.ndarray:
    """Class labels as an array of one dimension."""
    if y is None:
        raise ValueError(f"fit requires {name} to be passed, but the target {name} is None.")
    return column_or_1d(y, warn=True)


def values_of(y: Any, name: str) -> np.ndarray:
    """Targets as float64, (n_samples, 1), for transformers."""
    if y is None:
        raise ValueError(f"fit requires {name} to be passed, but the target {name} is None.")
    try:
        values = column_or_1d(y, warn=True, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must hold a number for each row, for a regression: {error}; for classes, use "
            "TabularMLPClassifier."
        ) from error
    if not np.isfinite(values).all():
        raise ValueError(f"Input {name} contains NaN or infinity; leave these rows out.")
    return values[:, None]
