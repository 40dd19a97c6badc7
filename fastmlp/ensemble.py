"""Ensembles: networks that differ in their random numbers, whose predictions are averaged.

Where a network's errors depend on its random numbers, they shrink in an average (Hansen and
Salamon, 1990), and how far members are apart says how sure they are (Lakshminarayanan and others,
2017).

An ensemble is a list of ordinary estimators, ``members_``; everything else that it tells is theirs.
"""

from copy import copy
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np

from fastmlp._sklearn import (
    SEED_LIMIT,
    BaseEstimator,
    ClassifierMixin,
    Interval,
    RegressorMixin,
    available_if,
    check_is_fitted,
    check_random_state,
    clone,
    fit_context,
)
from fastmlp.estimators import (
    MLPClassifier,
    MLPRegressor,
    fit_members,
    fitted_model,
    outputs_of,
    partial_fit_members,
)
from fastmlp.estimators.data import where_it_belongs
from fastmlp.estimators.plan import HeldOut


def _is_stochastic(ensemble: Any) -> bool:
    """Whether there is a `partial_fit`."""
    if getattr(ensemble.estimator, "solver", "adam") == "lbfgs":
        raise AttributeError("partial_fit is only available for stochastic solvers, not 'lbfgs'.")
    return True


class _MLPEnsemble(BaseEstimator):
    """What the two ensembles share."""

    _kind: ClassVar[Any]  # the members' class
    members_: list

    def __init__(
        self, estimator: Any = None, n_members: int = 5, *, random_state: Any = None,
        n_threads: int | None = None,
    ):  # fmt: skip
        self.estimator = estimator
        self.n_members = n_members
        self.random_state = random_state
        self.n_threads = n_threads

    _parameter_constraints: ClassVar[dict] = {
        "estimator": [BaseEstimator, None],
        "n_members": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "n_threads": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __copy__(self) -> Any:
        model = type(self).__new__(type(self))
        model.__dict__ |= self.__dict__
        if "members_" in self.__dict__:  # which `partial_fit` changes
            model.members_ = [copy(member) for member in self.members_]
        return model

    # --- what members know

    @property
    def n_features_in_(self) -> int:
        """Features seen during `fit`."""
        return self.members_[0].n_features_in_

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Their names, if ``X`` had any."""
        return self.members_[0].feature_names_in_

    @property
    def n_outputs_(self) -> int:
        """Outputs of each network."""
        return self.members_[0].n_outputs_

    @property
    def loss_(self) -> float:
        """Mean of the members' ``loss_``."""
        return float(np.mean([member.loss_ for member in self.members_]))

    # --- fitting

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:  # fmt: skip
        """Fit all members.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Class labels, a label indicator matrix, or target values.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        X_val : {array-like, sparse matrix} of shape (n_val, n_features), default=None
            Validation data for all members.  With ``early_stopping`` and without these, each
            member sets aside rows of its own.
        y_val : array-like of shape (n_val,) or (n_val, n_outputs), default=None
            Their targets.
        sample_weight_val : array-like of shape (n_val,), default=None
            Their weights.

        Returns
        -------
        self : object
            The fitted ensemble.

        Raises
        ------
        TypeError
            If ``estimator`` is of another class.
        ValueError
            If an input or a parameter is invalid, or if all members diverge.  The ensemble is then
            as it was before the call.

        Examples
        --------
        >>> from fastmlp import MLPEnsembleRegressor, MLPRegressor
        >>> X, y = [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]
        >>> model = MLPEnsembleRegressor(MLPRegressor(solver="lbfgs"), n_members=3, random_state=0)
        >>> len(model.fit(X, y).members_)
        3
        """
        held_out = HeldOut(X_val, y_val, sample_weight_val)
        self.members_ = fit_members(self._new_members(), X, y, sample_weight, held_out)
        return self

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Any:
        members = getattr(self, "members_", None) or self._new_members()
        partial_fit_members(members, X, y, sample_weight, classes)
        self.members_ = members
        return self

    def _new_members(self) -> list:
        """Copies of ``estimator`` with seeds of their own; refuses one that makes no members."""
        estimator = self._kind() if self.estimator is None else self.estimator
        if type(estimator) is not self._kind:
            raise TypeError(
                f"estimator must be an {self._kind.__name__} of fastmlp, not of a subclass, got "
                f"{estimator!r}; sklearn.ensemble has ensembles of others."
            )
        if estimator.warm_start:
            raise ValueError(
                "estimator has warm_start=True, but fit makes new members; set "
                "estimator__warm_start=False, or go on by partial_fit."
            )
        if estimator.checkpoint is not None:
            raise ValueError(
                f"estimator has checkpoint={estimator.checkpoint!r}, a file for the fit of one "
                "network; set estimator__checkpoint=None."
            )
        threads = {} if self.n_threads is None else {"n_threads": self.n_threads}
        seeds = check_random_state(self.random_state).randint(SEED_LIMIT, size=self.n_members)
        return [
            clone(estimator).set_params(random_state=seed, **threads) for seed in seeds.tolist()
        ]

    # --- prediction

    def _outputs(self, X: Any) -> list[np.ndarray]:
        """Outputs of each member, (n_samples, n_outputs)."""
        if "members_" not in self.__dict__:
            check_is_fitted(self)
        return outputs_of(self.members_, X)

    @property
    def _targets(self) -> Any:
        """What outputs stand for."""
        return fitted_model(self.members_[0]).targets

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _mean(arrays: list[np.ndarray]) -> np.ndarray:
    """Element by element, in the arrays' own type."""
    return sum(arrays[1:], start=arrays[0]) / len(arrays)


class MLPEnsembleClassifier(ClassifierMixin, _MLPEnsemble):
    """Classifiers that differ in their random numbers, with averaged probabilities.

    Parameters
    ----------
    estimator : MLPClassifier, default=None
        What the members are copies of; None is ``MLPClassifier()``.  Its ``random_state`` does not
        matter, and its ``max_time`` holds for the whole ensemble.
    n_members : int, default=5
        Number of members.
    random_state : int, RandomState instance or None, default=None
        Source of the members' seeds.  A larger ``n_members`` keeps the seeds of a smaller one.
    n_threads : int or None, default=None
        Most threads to use; None leaves it to the estimator's ``n_threads``.  Members are trained
        side by side as far as there are threads, with the same bits for any number.

    Attributes
    ----------
    members_ : list of MLPClassifier
        Each has the bits that it would have if it had been fitted alone with its
        ``random_state``.  Members that diverged, or that Ctrl-C or ``max_time`` left no time for,
        are not in it, and `fit` says so.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    loss_ : float
        Mean of the members' ``loss_``.
    n_features_in_ : int
        Features seen during `fit`.
    n_outputs_ : int
        Outputs of each network.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    See Also
    --------
    MLPEnsembleRegressor : The same for target values.
    sklearn.ensemble.VotingClassifier : Averages classifiers of any kind.

    Examples
    --------
    >>> from fastmlp import MLPClassifier, MLPEnsembleClassifier
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPEnsembleClassifier(MLPClassifier(solver="lbfgs"), 3, random_state=0)
    >>> model.fit(X[::2], y[::2]).score(X[1::2], y[1::2]) > 0.9
    True
    """

    _kind = MLPClassifier

    @property
    def classes_(self) -> np.ndarray:
        """Class labels."""
        return self.members_[0].classes_

    @available_if(_is_stochastic)
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Go on for one epoch over the given data, with each member.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Class labels or a label indicator matrix.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        classes : array of shape (n_classes,), default=None
            All classes that any call will see; needed in the first call.

        Returns
        -------
        self : object
            The ensemble.

        Raises
        ------
        ValueError
            If an input or a parameter is invalid, or if a member diverges.  All members are then
            as they were before the call.

        Examples
        --------
        >>> from fastmlp import MLPEnsembleClassifier
        >>> model = MLPEnsembleClassifier(random_state=0)
        >>> model = model.partial_fit([[0.0], [1.0]], ["a", "b"], classes=["a", "b"])
        >>> [member.t_ for member in model.members_]
        [2, 2, 2, 2, 2]
        """
        return self._partial_fit(X, y, sample_weight, classes)

    def predict(self, X: Any) -> Any:
        """Predict class labels, by averaged probabilities.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_classes)
            Labels, or a label indicator matrix.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPClassifier, MLPEnsembleClassifier
        >>> model = MLPEnsembleClassifier(MLPClassifier(solver="lbfgs"), random_state=0)
        >>> model.fit([[0.0], [1.0]], ["no", "yes"]).predict([[0.1], [0.9]]).tolist()
        ['no', 'yes']
        """
        outputs = _mean(self._outputs(X))
        return where_it_belongs(self._targets.decode(outputs), X)

    def predict_proba(self, X: Any, return_std: bool = False) -> Any:
        """Predict probabilities, the members' average.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        return_std : bool, default=False
            Whether to return how far the members are apart, too.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Columns in the order of ``classes_``.
        std : ndarray of shape (n_samples, n_classes)
            With ``return_std`` only: their standard deviation over the members.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Notes
        -----
        A mean near 1/2 has two reasons, which the standard deviation tells apart: members that
        agree that the classes overlap there, and members that disagree, as they do where there
        were few samples.

        Examples
        --------
        >>> from fastmlp import MLPClassifier, MLPEnsembleClassifier
        >>> model = MLPEnsembleClassifier(MLPClassifier(solver="lbfgs"), random_state=0)
        >>> model = model.fit([[0.0], [1.0]], ["no", "yes"])
        >>> probabilities, std = model.predict_proba([[1.0], [0.5]], return_std=True)
        >>> bool(std[0, 1] < std[1, 1])
        True
        """
        outputs = self._outputs(X)
        probabilities = self._targets.probabilities
        mean = where_it_belongs(probabilities(_mean(outputs)), X)
        if not return_std:
            return mean
        std = np.std([probabilities(one) for one in outputs], axis=0)
        return mean, where_it_belongs(std, X)

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithm of `predict_proba`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPClassifier, MLPEnsembleClassifier
        >>> model = MLPEnsembleClassifier(MLPClassifier(solver="lbfgs"), random_state=0)
        >>> model.fit([[0.0], [1.0]], ["no", "yes"]).predict_log_proba([[1.0]]).shape
        (1, 2)
        """
        outputs = _mean(self._outputs(X))
        return where_it_belongs(np.log(self._targets.probabilities(outputs)), X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPEnsembleRegressor(RegressorMixin, _MLPEnsemble):
    """Regressors that differ in their random numbers, with averaged predictions.

    Parameters
    ----------
    estimator : MLPRegressor, default=None
        What the members are copies of; None is ``MLPRegressor()``.  Its ``random_state`` does not
        matter, and its ``max_time`` holds for the whole ensemble.
    n_members : int, default=5
        Number of members.
    random_state : int, RandomState instance or None, default=None
        Source of the members' seeds.  A larger ``n_members`` keeps the seeds of a smaller one.
    n_threads : int or None, default=None
        Most threads to use; None leaves it to the estimator's ``n_threads``.  Members are trained
        side by side as far as there are threads, with the same bits for any number.

    Attributes
    ----------
    members_ : list of MLPRegressor
        Each has the bits that it would have if it had been fitted alone with its
        ``random_state``.  Members that diverged, or that Ctrl-C or ``max_time`` left no time for,
        are not in it, and `fit` says so.
    loss_ : float
        Mean of the members' ``loss_``.
    n_features_in_ : int
        Features seen during `fit`.
    n_outputs_ : int
        Outputs of each network.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    See Also
    --------
    MLPEnsembleClassifier : The same for classes.
    sklearn.ensemble.VotingRegressor : Averages regressors of any kind.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmlp import MLPEnsembleRegressor, MLPRegressor
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> model = MLPEnsembleRegressor(MLPRegressor(solver="lbfgs"), random_state=0)
    >>> mean, std = model.fit(X, X[:, 0] ** 2).predict([[0.5], [5.0]], return_std=True)
    >>> bool(std[0] < std[1])  # they were fitted around the first, and guess at the second
    True
    """

    _kind = MLPRegressor

    @available_if(_is_stochastic)
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Go on for one epoch over the given data, with each member.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Target values.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        self : object
            The ensemble.

        Raises
        ------
        ValueError
            If an input or a parameter is invalid, or if a member diverges.  All members are then
            as they were before the call.

        Examples
        --------
        >>> from fastmlp import MLPEnsembleRegressor
        >>> model = MLPEnsembleRegressor(random_state=0).partial_fit([[0.0], [1.0]], [1.0, 2.0])
        >>> [member.t_ for member in model.members_]
        [2, 2, 2, 2, 2]
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predict target values, the members' average.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        return_std : bool, default=False
            Whether to return how far the members are apart, too.

        Returns
        -------
        y : ndarray of shape (n_samples,), (n_samples, n_outputs) or (n_samples, n_levels)
            Quantiles of several levels are averaged level by level, and still do not cross.
        std : ndarray of the same shape
            With ``return_std`` only: the standard deviation over the members.  It says how much
            they disagree, not how much ``y`` scatters; for that there is ``loss='quantile'``.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPEnsembleRegressor, MLPRegressor
        >>> linear = MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", alpha=0)
        >>> model = MLPEnsembleRegressor(linear, random_state=0).fit([[0.0], [1.0]], [1.0, 3.0])
        >>> mean, std = model.predict([[2.0]], return_std=True)
        >>> mean.round(3).tolist(), std.round(3).tolist()
        ([5.0], [0.0])
        """
        outputs = self._outputs(X)
        decode = self._targets.decode
        predictions = [decode(one) for one in outputs]
        mean = where_it_belongs(_mean(predictions), X)
        if not return_std:
            return mean
        return mean, where_it_belongs(np.std(predictions, axis=0), X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Score the predictions.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Target values.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        score : float
            R^2, or with ``loss='quantile'`` `sklearn.metrics.d2_pinball_score`, as the members'.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPEnsembleRegressor, MLPRegressor
        >>> X, y = [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]
        >>> linear = MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", alpha=0)
        >>> round(MLPEnsembleRegressor(linear, random_state=0).fit(X, y).score(X, y), 3)
        1.0
        """
        check_is_fitted(self)
        if not self._targets.are_quantiles:
            return super().score(X, y, sample_weight)
        return self._targets.score_quantiles(y, self.predict(X), sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def way_to_the_network(model: Any, whole: str) -> str:
    """The end of a refusal of what holds an ensemble as its ``network_``; else nothing.

    Parameters
    ----------
    model : object
        What was refused.
    whole : str
        What to do instead with all of it.
    """
    held = getattr(model, "network_", None)
    if not isinstance(held, MLPEnsembleClassifier | MLPEnsembleRegressor):
        return ""
    is_scaled = getattr(model, "target_scaler_", None) is not None
    outputs = " and whose outputs model.target_scaler_.inverse_transform turns back" * is_scaled
    return (
        f"; give model.network_, whose inputs are model.encoder_.transform(X){outputs}, or {whole}"
    )
