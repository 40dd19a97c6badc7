"""MLPRegressor: values in, values out."""

from numbers import Real
from typing import Any, Self

import numpy as np

from fastmlp._sklearn import RegressorMixin, column_or_1d, partial_fit_context
from fastmlp.estimators.base import BaseMLP, all_or_nothing
from fastmlp.estimators.data import checked, where_it_belongs
from fastmlp.estimators.parameters import ATTRIBUTES, REGRESSOR, constraints, documentation
from fastmlp.estimators.targets import Values, check_numbers
from fastmlp.formulas import loss_of
from fastmlp.functions import LOSSES
from fastmlp.objective import Objective


class MLPRegressor(RegressorMixin, BaseMLP):
    __module__ = "fastmlp.estimators"  # pickles and `fastmlp.io.TRUSTED_TYPES` go by it
    __doc__ = f"""Multilayer perceptron regressor.

    Takes the place of `sklearn.neural_network.MLPRegressor`: same parameters, attributes and
    numbers, trained by compiled kernels.

    Parameters
    ----------
    {documentation(REGRESSOR)}

    Attributes
    ----------
    {ATTRIBUTES}

    See Also
    --------
    MLPClassifier : The same network for classes.

    Examples
    --------
    >>> from fastmlp import MLPRegressor
    >>> from sklearn.datasets import make_regression
    >>> X, y = make_regression(n_samples=200, n_features=20, random_state=1)
    >>> model = MLPRegressor(random_state=1, max_iter=2000, tol=0.1).fit(X, y)
    >>> model.predict(X[:2]).shape
    (2,)
    >>> model.score(X, y) > 0.98
    True
    """

    _parameter_constraints = constraints(REGRESSOR)

    def __init__(
        self,
        loss="squared_error",
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        n_threads=None,
        device="cpu",
        matmul_precision="highest",
        rho=0.9,
        weight_decay=0.0,
        scoring=None,
        decay_rate=0.1,
        decay_epochs=30,
        patience=5,
        warmup_epochs=0,
        weight_init="auto",
        n_restarts=1,
        max_time=None,
        dropout=0.0,
        max_grad_norm=None,
        ema_decay=None,
        layer_norm=False,
        checkpoint=None,
        checkpoint_every=60.0,
        huber_delta=1.0,
        quantile=0.5,
    ):
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.n_threads = n_threads
        self.device = device
        self.matmul_precision = matmul_precision
        self.rho = rho
        self.weight_decay = weight_decay
        self.scoring = scoring
        self.decay_rate = decay_rate
        self.decay_epochs = decay_epochs
        self.patience = patience
        self.warmup_epochs = warmup_epochs
        self.weight_init = weight_init
        self.n_restarts = n_restarts
        self.max_time = max_time
        self.dropout = dropout
        self.max_grad_norm = max_grad_norm
        self.ema_decay = ema_decay
        self.layer_norm = layer_norm
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.huber_delta = huber_delta
        self.quantile = quantile

    @partial_fit_context
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Go on for one epoch over the given data.

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
            The estimator.

        Raises
        ------
        ValueError
            If an input or a parameter is invalid.  The estimator is then as it was before the call.

        Examples
        --------
        >>> from fastmlp import MLPRegressor
        >>> model = MLPRegressor(random_state=0)
        >>> for X, y in [([[0.0], [1.0]], [1.0, 2.0]), ([[2.0], [3.0]], [3.0, 4.0])]:
        ...     model = model.partial_fit(X, y)
        >>> model.t_
        4
        """
        with all_or_nothing(self):
            return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Any:
        """Predict target values.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.

        Returns
        -------
        y : ndarray of shape (n_samples,), (n_samples, n_outputs) or (n_samples, n_levels)

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPRegressor
        >>> model = MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", alpha=0, random_state=0)
        >>> model.fit([[0.0], [1.0]], [1.0, 3.0]).predict([[2.0]]).round(3).tolist()
        [5.0]
        """
        outputs = self._outputs(X)
        return where_it_belongs(self._targets.decode(outputs), X)

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
            The coefficient of determination R^2; with ``loss='quantile'``, which does not predict
            means, `sklearn.metrics.d2_pinball_score`, averaged over outputs or levels.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPRegressor
        >>> X, y = [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0]
        >>> model = MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", alpha=0, random_state=0)
        >>> round(model.fit(X, y).score(X, y), 3)
        1.0
        """
        if not self._targets.are_quantiles:
            return super().score(X, y, sample_weight)
        return self._targets.score_quantiles(y, self.predict(X), sample_weight)

    # --- what `BaseMLP` asks

    @property
    def _targets(self) -> Values:
        if self.loss != "quantile":
            return Values()
        if isinstance(self.quantile, Real):
            return Values(level=float(self.quantile))
        levels = list(self.quantile)
        if not levels or not all(isinstance(q, Real) and 0 < float(q) < 1 for q in levels):
            raise ValueError(f"quantile must consist of levels between 0 and 1, got {levels}.")
        return Values(levels=tuple(float(q) for q in levels))

    def _objective(self, n_outputs: int) -> Objective:
        if not isinstance(self.loss, str):
            return Objective(loss_of(self.loss, "identity"), n_outputs)
        levels, constant = self._targets.levels, LOSSES[self.loss].constant
        if levels is not None:
            return Objective(self.loss, n_outputs, levels)
        constants = () if constant is None else (float(getattr(self, constant)),) * n_outputs
        return Objective(self.loss, n_outputs, constants)

    def _read(self, X: Any, y: Any, *, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = checked(
            self, X, y, multi_output=True, y_numeric=True, dtype=(np.float64, np.float32),
            reset=reset,
        )  # fmt: skip
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        check_numbers(y, X.dtype)
        encoded = self._targets.encode(y)
        self._objective(encoded.shape[1]).check_range(y)
        return X, encoded

    def _read_held_out(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        return self._read(X, y, incremental=False, reset=False)

    def _made_of(self) -> tuple:
        quantile = self.quantile
        if not isinstance(quantile, Real):
            quantile = tuple(quantile)
        return *super()._made_of(), self.loss, quantile

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
