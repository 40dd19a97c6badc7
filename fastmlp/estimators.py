"""MLPClassifier and MLPRegressor: the scikit-learn surface and nothing else.

An estimator validates, encodes targets, calls `fastmlp.training`, and decodes.  Parameters,
attributes, random numbers, warnings and errors are scikit-learn's; the deliberate differences are
listed in the README.  Two of them shape this file.  A call to ``fit`` or ``partial_fit`` that
raises leaves the estimator exactly as it was.  And ``coefs_`` and ``intercepts_`` are read again
on every call, so a user may assign or edit them.

The parameter documentation is kept once (`_PARAMETERS`) and inserted in both classes.
"""

from abc import ABC, abstractmethod
from contextlib import contextmanager
from numbers import Integral, Real
from types import SimpleNamespace
from warnings import warn
from weakref import WeakKeyDictionary

import numpy as np
from scipy import sparse

from fastmlp._sklearn import (
    BaseEstimator,
    ClassifierMixin,
    Interval,
    LabelBinarizer,
    Options,
    RegressorMixin,
    StrOptions,
    available_if,
    check_is_fitted,
    check_partial_fit_first_call,
    check_random_state,
    check_sample_weight,
    column_or_1d,
    d2_pinball_score,
    fit_context,
    train_test_split,
    type_of_target,
    unique_labels,
    validate_data,
)
from fastmlp.engine import Engine, get_engine, get_row_predictor
from fastmlp.functions import ACTIVATIONS, LOSSES, USER, Activation, Loss
from fastmlp.network import Network
from fastmlp.optimizers import N_SLOTS, Optimizer
from fastmlp.training import Progress, Settings, minimise, train

_STOCHASTIC_SOLVERS = ("sgd", "adam", "rmsprop", "nadam", "lion")
_REGRESSION_LOSSES = (
    "squared_error", "poisson", "absolute_error", "huber", "quantile", "gamma", "log_cosh"
)  # fmt: skip
_FEW_ROWS = 8
# beside the estimators, because predicting must not change an estimator's attributes
_ROW_PREDICTORS: WeakKeyDictionary = WeakKeyDictionary()

_PARAMETERS = """\
hidden_layer_sizes : int or array-like of int, default=(100,)
        Units of each hidden layer.  ``()`` means no hidden layer: linear, logistic or softmax
        regression.
    activation : str, (callable, callable), or sequence of these, default='relu'
        Activation of the hidden layers, or one for each of them.  In scikit-learn: 'identity',
        'logistic', 'tanh', 'relu'.  Besides: 'step' (0 or 1; its gradient counts as 1),
        'leaky_relu' (slope 0.01 below zero), 'elu', 'selu', 'gelu' (in its tanh form), 'silu',
        'mish', 'softplus', 'hard_sigmoid', 'hard_swish', as in PyTorch.  A pair of functions gives
        the value and the derivative at one number ``z``; Numba compiles them anew in each process.
    solver : {'lbfgs', 'sgd', 'adam', 'rmsprop', 'nadam', 'lion'}, default='adam'
        'lbfgs' is SciPy's L-BFGS-B on the whole data set, in float64; 'sgd' is stochastic
        gradient descent with momentum; 'adam' is Adam (Kingma and Ba, 2014).  Not in
        scikit-learn: 'rmsprop' (Tieleman and Hinton, 2012); 'nadam' (Dozat, 2016), as PyTorch's
        NAdam; 'lion' (Chen et al., 2023), whose authors advise ``beta_2=0.99`` and a learning rate
        of a third to a tenth of Adam's.
    alpha : float, default=0.0001
        Strength of the L2 penalty ``alpha / (2 sum of weights) ||W||^2`` on the weights, not the
        biases; the sum is over the batch's sample weights, its length without them.
    batch_size : int or 'auto', default='auto'
        Samples per step of the stochastic solvers; 'auto' is ``min(200, n_samples)``.
    learning_rate : {'constant', 'invscaling', 'adaptive'}, default='constant'
        Schedule for ``solver='sgd'``: constant; ``learning_rate_init / (t + 1)^power_t`` after
        ``t`` samples; or a fifth of the rate whenever training would have stopped.
    learning_rate_init : float, default=0.001
        Initial learning rate of the stochastic solvers.
    power_t : float, default=0.5
        Exponent of the 'invscaling' schedule.
    max_iter : int, default=200
        Most epochs (stochastic solvers) or iterations ('lbfgs') of one call to `fit`.
    shuffle : bool, default=True
        Whether to draw a new order of the samples for each epoch.
    random_state : int, RandomState instance or None, default=None
        Source of initial weights, validation split and sample order.  The same integer gives the
        same numbers as in scikit-learn.
    tol : float, default=1e-4
        Improvement of loss or validation score below which an epoch does not count as better.
    verbose : bool, default=False
        Print the loss of every epoch.
    warm_start : bool, default=False
        Start `fit` from the previous solution.
    momentum : float, default=0.9
        Momentum of 'sgd', in [0, 1].
    nesterovs_momentum : bool, default=True
        Whether that momentum is Nesterov's.
    early_stopping : bool, default=False
        Set aside ``validation_fraction`` of the data, stop when its score no longer improves, and
        keep the parameters of the best epoch.  Stochastic solvers only.
    validation_fraction : float, default=0.1
        Share of the data set aside by ``early_stopping``, in [0, 1).
    beta_1, beta_2 : float, default=0.9, 0.999
        Decay rates of Adam's first and second moments, in [0, 1); for 'lion', of the mean whose
        sign is the step, and of its memory.
    epsilon : float, default=1e-8
        Term for numerical stability of 'adam', 'nadam' and 'rmsprop'.
    n_iter_no_change : int, default=10
        Epochs in a row without improvement that are tolerated.
    max_fun : int, default=15000
        Most evaluations of the loss by 'lbfgs'.
    n_threads : int or None, default=None
        Most threads to use; not in scikit-learn.  None means as many as pay, within the limits of
        the process (affinity, container, joblib).  Any number gives the same bits.
    rho : float, default=0.9
        Decay rate of the mean of squared gradients of 'rmsprop', in [0, 1); not in scikit-learn.
    weight_decay : float, default=0.0
        Decoupled weight decay of the stochastic solvers: before each update, weights (not biases)
        lose ``learning_rate * weight_decay`` of themselves.  With 'adam' it makes AdamW (Loshchilov
        and Hutter, 2019; set ``alpha=0`` for theirs).  Not in scikit-learn."""

_ATTRIBUTES = """\
coefs_ : list of ndarray of shape (fan_in, fan_out)
        Weights of each layer.
    intercepts_ : list of ndarray of shape (fan_out,)
        Biases of each layer.
    loss_ : float
        Loss of the last epoch, penalty included.
    best_loss_ : float or None
        Smallest loss of any epoch; None with early stopping.  Stochastic solvers only.
    loss_curve_ : list of float
        Loss of every epoch.  Stochastic solvers only.
    validation_scores_ : list of float or None
        Validation score of every epoch with early stopping.  Stochastic solvers only.
    best_validation_score_ : float or None
        The best of them.
    n_iter_ : int
        Epochs or iterations run by the last call.
    t_ : int
        Training samples seen.
    n_layers_, n_outputs_ : int
        Layers, input and output included; units of the output layer.
    out_activation_ : str
        Activation of the output layer.
    n_features_in_ : int
        Features seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any."""


class _BaseMLP(BaseEstimator, ABC):
    """What the classifier and the regressor share."""

    _parameter_constraints: dict = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS)), "array-like"],
        "solver": [StrOptions({"lbfgs", *_STOCHASTIC_SOLVERS})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [
            Interval(Integral, 1, None, closed="left"),
            Options(Real, {np.inf}),
        ],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "n_threads": [None, Interval(Integral, 1, None, closed="left")],
        "rho": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
    }

    # --- what the two estimators answer differently

    @abstractmethod
    def _validate_input(self, X, y, incremental, reset):
        """Checked ``X`` and encoded ``y`` (see `fastmlp.engine.Engine`), and `Network`'s loss."""

    @abstractmethod
    def _loss_options(self, n_outputs: int) -> dict:
        """What `Network` takes beside the loss."""

    @abstractmethod
    def _scorer(self, engine: Engine, X, y, sample_weight):
        """A function that scores the engine's current parameters on validation data."""

    def _stratify(self, y):
        """Labels to stratify the validation split by, or None."""
        return None

    # --- fitting

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Fit the network.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Class labels, a label indicator matrix, or target values.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If an input or a parameter is invalid, or if the parameters of the network become
            non-finite.  The estimator is then as it was before the call.
        """
        with self._all_or_nothing():
            return self._fit(X, y, sample_weight, incremental=False)

    @contextmanager
    def _all_or_nothing(self):
        """Put the attributes back if the block raises."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _fit(self, X, y, sample_weight, incremental):
        hidden = self._hidden_layer_sizes()
        activations = self._activations(len(hidden))
        if self.weight_decay and self.solver == "lbfgs":
            raise ValueError(
                "weight_decay does not work with solver='lbfgs'; use alpha, or a stochastic solver."
            )
        if self.early_stopping and incremental and self.solver in _STOCHASTIC_SOLVERS:
            raise ValueError("partial_fit does not support early_stopping=True")
        first_pass = not hasattr(self, "coefs_") or not (self.warm_start or incremental)

        X, y, loss = self._validate_input(X, y, incremental, reset=first_pass)
        if sample_weight is not None:
            sample_weight = check_sample_weight(sample_weight, X)
        n_outputs = self._n_outputs(y)
        widths = (X.shape[1], *hidden, n_outputs)
        network = Network(widths, activations, loss, **self._loss_options(n_outputs))
        self._random_state = check_random_state(self.random_state)
        progress = self._start(network, X.dtype, first_pass)

        if self.solver == "lbfgs":
            engine = get_engine(
                "cpu", network, dtype=np.float64, alpha=self.alpha, n_threads=self.n_threads
            )
            engine.load(X, y, sample_weight)
            minimise(engine, progress, max_iter=self.max_iter, max_fun=self.max_fun, tol=self.tol)
        else:
            self._fit_stochastic(network, progress, X, y, sample_weight, incremental)
        self._finish(network, progress)
        return self

    def _hidden_layer_sizes(self) -> tuple[int, ...]:
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if hasattr(sizes, "__iter__") else [sizes]
        if not all(isinstance(size, Integral) and not isinstance(size, bool) for size in sizes):
            raise ValueError(f"hidden_layer_sizes must contain integers, got {sizes}.")
        if any(size <= 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        return tuple(int(size) for size in sizes)

    def _activations(self, n_hidden: int) -> str | tuple[str | Activation, ...]:
        """``activation`` as `Network` takes it, for ``n_hidden`` hidden layers."""
        chosen = self.activation
        if isinstance(chosen, str):
            return chosen
        if _is_pair(chosen):
            return (_user_activation(chosen),) * max(1, n_hidden)
        if len(chosen) != n_hidden:
            raise ValueError(
                f"activation must have one entry for each of the {n_hidden} hidden layers of "
                f"hidden_layer_sizes, got {len(chosen)}."
            )
        return tuple(_user_activation(one) if _is_pair(one) else _known(one) for one in chosen)

    def _start(self, network: Network, dtype, first_pass: bool) -> Progress:
        """Initial parameters and counters, or those of the previous call."""
        if first_pass:
            parameters = network.initialise(self._random_state, dtype)
            progress = Progress(parameters, self.learning_rate_init)
            progress.best_parameters = parameters.copy() if self.early_stopping else None
        else:
            dtype = np.result_type(self.coefs_[0], np.float32)
            parameters = network.flatten(self.coefs_, self.intercepts_, dtype)
            progress = Progress(
                parameters,
                self.learning_rate_init,
                n_samples_seen=getattr(self, "t_", 0),
                no_improvement_count=getattr(self, "_no_improvement_count", 0),
                best_loss=getattr(self, "best_loss_", None),
                best_validation_score=getattr(self, "best_validation_score_", None),
                loss_curve=list(getattr(self, "loss_curve_", ())),
                validation_scores=getattr(self, "validation_scores_", None),
            )
        if self.early_stopping:
            progress.best_loss = None
            progress.validation_scores = list(progress.validation_scores or ())
            if progress.best_validation_score is None:
                progress.best_validation_score = -np.inf
        else:
            progress.validation_scores = progress.best_validation_score = None
            if progress.best_loss is None:
                progress.best_loss = np.inf
        return progress

    def _fit_stochastic(self, network, progress, X, y, sample_weight, incremental):
        n_samples = X.shape[0]
        samples = np.arange(n_samples)
        if self.early_stopping:
            samples, held_out = train_test_split(
                samples,
                random_state=self._random_state,
                test_size=self.validation_fraction,
                stratify=self._stratify(y),
            )
            if held_out.size < 2:
                raise ValueError(
                    "The validation set is too small. Increase 'validation_fraction' "
                    "or the size of your dataset."
                )
            if sample_weight is not None and not sample_weight[held_out].any():
                raise ValueError(
                    "All samples that early_stopping set aside for validation have a "
                    "sample_weight of zero; increase 'validation_fraction' or drop such samples."
                )
        state = getattr(self, "_optimizer_state", None) if incremental else None
        if state is None:
            state = self._new_optimizer_state(progress.parameters)
        progress.learning_rate = state["learning_rate"]

        batch_size = self._batch_size(samples.size)
        engine = get_engine(
            "cpu",
            network,
            dtype=progress.parameters.dtype,
            alpha=self.alpha,
            optimizer=Optimizer(state["rule"], tuple(state["constants"]), state["weight_decay"]),
            batch_size=batch_size,
            n_threads=self.n_threads,
        )
        engine.load(X, y, sample_weight)
        engine.set_parameters(progress.parameters)
        engine.set_state(state["slots"], state["step"])
        score = None
        if self.early_stopping:
            score = self._scorer(
                engine,
                X[held_out],
                y[held_out],
                None if sample_weight is None else sample_weight[held_out],
            )
        settings = Settings(
            max_iter=self.max_iter,
            batch_size=batch_size,
            shuffle=self.shuffle,
            tol=self.tol,
            n_iter_no_change=self.n_iter_no_change,
            learning_rate_init=state["learning_rate_init"],
            schedule=state["schedule"],
            power_t=state["power_t"],
            verbose=bool(self.verbose),
        )
        train(
            engine,
            progress,
            settings,
            samples,
            self._random_state,
            score=score,
            single_epoch=incremental,
        )
        slots, step = engine.get_state()
        self._optimizer_state = state | {
            "learning_rate": progress.learning_rate,
            "slots": slots,
            "step": step,
        }

    def _new_optimizer_state(self, parameters: np.ndarray) -> dict:
        """The optimizer's settings, frozen until the next `fit` as in scikit-learn, and slots."""
        rule, constants = self.solver, [self.beta_1, self.beta_2, self.epsilon]
        if self.solver == "sgd":
            rule = "nesterov" if self.nesterovs_momentum else "sgd"
            constants = [self.momentum, 0.0, 0.0]
        elif self.solver == "rmsprop":
            constants = [self.rho, self.epsilon, 0.0]
        return {
            "rule": rule,
            "constants": [float(constant) for constant in constants],
            "weight_decay": float(self.weight_decay),
            "schedule": self.learning_rate if self.solver == "sgd" else "constant",
            "power_t": float(self.power_t),
            "learning_rate_init": float(self.learning_rate_init),
            "learning_rate": float(self.learning_rate_init),
            "slots": np.zeros((N_SLOTS, parameters.size), parameters.dtype),
            "step": 0,
        }

    def _batch_size(self, n_samples: int) -> int:
        if self.batch_size == "auto":
            return min(200, n_samples)
        if self.batch_size > n_samples:
            warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            )
        return min(self.batch_size, n_samples)

    def _finish(self, network: Network, progress: Progress) -> None:
        """Write the outcome to scikit-learn's attributes."""
        self.coefs_, self.intercepts_ = network.unflatten(progress.parameters)
        self.n_iter_ = progress.n_iter
        self.t_ = progress.n_samples_seen
        self.loss_ = progress.loss
        self.n_layers_ = len(network.widths)
        self.n_outputs_ = network.n_outputs
        self.out_activation_ = network.out_activation
        stochastic = {
            "loss_curve_": progress.loss_curve,
            "best_loss_": progress.best_loss,
            "validation_scores_": progress.validation_scores,
            "best_validation_score_": progress.best_validation_score,
            "_no_improvement_count": progress.no_improvement_count,
        }
        if self.solver in _STOCHASTIC_SOLVERS:
            self.__dict__.update(stochastic)
        else:
            for name in (*stochastic, "_optimizer_state"):
                self.__dict__.pop(name, None)

    @property
    def _optimizer(self) -> SimpleNamespace:
        """Read-only view of the optimizer's state, under scikit-learn's private name."""
        if "_optimizer_state" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no optimizer state yet.")
        return SimpleNamespace(**self._optimizer_state)

    def _loss_grad_lbfgs(self, packed, X, y, sample_weight, *_buffers):
        """Loss and gradient in scikit-learn's packing: all ``coefs_``, then all ``intercepts_``."""
        network = self._fitted_network()
        sizes = [array.size for array in (*self.coefs_, *self.intercepts_)]
        parts = np.split(packed, np.cumsum(sizes)[:-1])
        coefs = [part.reshape(coef.shape) for part, coef in zip(parts, self.coefs_, strict=False)]
        if network.loss_row.per_row:
            y = np.argmax(y, axis=1)
        engine = get_engine("cpu", network, dtype=np.float64, alpha=self.alpha)
        engine.load(X, y, sample_weight)
        engine.set_parameters(network.flatten(coefs, parts[len(coefs) :], np.float64))
        loss, gradient = engine.loss_and_gradient()
        coef_grads, intercept_grads = network.unflatten(gradient)
        return loss, np.hstack([g.ravel() for g in (*coef_grads, *intercept_grads)])

    # --- prediction

    def _fitted_network(self) -> Network:
        """The network that ``coefs_``, ``activation`` and ``out_activation_`` describe."""
        widths = (self.coefs_[0].shape[0], *(coef.shape[1] for coef in self.coefs_))
        loss = next(
            name for name, row in LOSSES.items() if row.out_activation == self.out_activation_
        )
        return Network(widths, self._activations(len(widths) - 2), loss)

    def _outputs(self, X) -> np.ndarray:
        """Outputs of shape (n_samples, n_outputs) for unchecked ``X``."""
        outputs = self._outputs_of_few_rows(X)
        if outputs is not None:
            return outputs
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        network = self._fitted_network()
        dtype = np.result_type(X.dtype, self.coefs_[0].dtype)
        dtype = np.dtype(np.float32 if dtype == np.float32 else np.float64)
        engine = get_engine("cpu", network, dtype=dtype, n_threads=self.n_threads)
        engine.set_parameters(network.flatten(self.coefs_, self.intercepts_, dtype))
        return engine.predict(_row_access(X))

    def _outputs_of_few_rows(self, X) -> np.ndarray | None:
        """A short way for plain arrays of a few rows, for which scikit-learn's checks would pass.

        None means that they might not, or that the short way is none.
        """
        if type(X) is not np.ndarray or X.ndim != 2 or not 0 < len(X) <= _FEW_ROWS:
            return None
        fitted = self.__dict__
        if X.shape[1] != fitted.get("n_features_in_") or "feature_names_in_" in fitted:
            return None
        coefs, intercepts = fitted.get("coefs_"), fitted.get("intercepts_")
        if coefs is None or intercepts is None or X.strides[1] != X.itemsize:
            return None
        predictor = _ROW_PREDICTORS.get(self)
        if predictor is None or not self._is_current(predictor, coefs, intercepts):
            predictor = get_row_predictor(self._fitted_network(), coefs, intercepts)
            if predictor is None:
                return None
            _ROW_PREDICTORS[self] = predictor
        return predictor(X) if X.dtype == predictor.dtype else None

    def _row_predictor(self):
        """A predictor of a few rows from the fitted arrays."""
        check_is_fitted(self)
        predictor = get_row_predictor(self._fitted_network(), self.coefs_, self.intercepts_)
        if predictor is None:
            raise ValueError(
                "coefs_ and intercepts_ must be C-contiguous arrays of one type, float32 or "
                "float64; fit the model again."
            )
        return predictor

    def _is_current(self, predictor, coefs, intercepts) -> bool:
        """Whether a predictor was made from these arrays and settings."""
        arrays = predictor.arrays
        if len(arrays) != 2 * len(coefs):
            return False
        if self._activations(len(coefs) - 1) != predictor.network.activations:
            return False
        return all(
            coef is W and intercept is b
            for coef, intercept, W, b in zip(
                coefs, intercepts, arrays[::2], arrays[1::2], strict=True
            )
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _n_outputs(self, y: np.ndarray) -> int:
        return y.shape[1]


def _is_pair(choice) -> bool:
    """Whether ``choice`` is a pair of functions: a formula of the user's."""
    is_sequence = isinstance(choice, tuple | list)
    return is_sequence and len(choice) == 2 and all(callable(one) for one in choice)


def _known(activation) -> str:
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must consist of names among {sorted(ACTIVATIONS)} and pairs of functions "
            f"(value, derivative), got {activation!r}."
        )
    return activation


def _user_activation(pair) -> Activation:
    value, derivative = pair
    _try_out("activation", pair, 0.0)
    return Activation(USER, value, derivative, of_score=True)


def _try_out(parameter: str, pair, *arguments: float) -> None:
    """Call a user's functions once, so that the plainest mistakes show at the door."""
    where = ", ".join(map(str, arguments))
    try:
        with np.errstate(all="ignore"):
            finite = np.isfinite([float(function(*arguments)) for function in pair]).all()
    except Exception as error:
        raise ValueError(f"{parameter}: {pair} fails at {where} with {error!r}.") from error
    if not finite:
        raise ValueError(f"{parameter}: both functions of {pair} must be finite at {where}.")


def _row_access(X):
    """``X`` in a form whose rows an engine can read: CSC becomes CSR."""
    return X.tocsr() if sparse.issparse(X) else X


def _accuracy(matches: np.ndarray, sample_weight) -> float:
    return float(np.average(matches, weights=sample_weight))


def _r2(y: np.ndarray, prediction: np.ndarray, sample_weight) -> float:
    """Coefficient of determination, averaged over outputs, as `sklearn.metrics.r2_score`.

    Written out because it runs once per epoch, and the checks in front of scikit-learn's take
    longer than a small network's epoch.
    """
    if not np.isfinite(prediction).all():
        return float("nan")
    y, prediction = y.astype(np.float64), prediction.astype(np.float64)
    mean = np.average(y, axis=0, weights=sample_weight)
    weight = np.ones((len(y), 1)) if sample_weight is None else sample_weight[:, None]
    with np.errstate(over="ignore"):
        residual = (weight * (y - prediction) ** 2).sum(axis=0)
        total = (weight * (y - mean) ** 2).sum(axis=0)
        ratio = np.divide(residual, total, out=np.ones_like(total), where=total != 0)
    return float(np.mean(np.where(residual == 0, 1.0, 1.0 - ratio)))


def _user_loss(pair, out_activation: str, of_class: bool = False) -> Loss:
    if not _is_pair(pair):
        raise ValueError(
            f"loss must be a name or a pair of functions (value, derivative), got {pair!r}."
        )
    _try_out("loss", pair, 0.5, 1.0)
    value, gradient = pair
    per_row = out_activation == "softmax"
    return Loss(USER, value, gradient, out_activation, per_row=per_row, of_probability=of_class)


class MLPClassifier(ClassifierMixin, _BaseMLP):
    __doc__ = f"""Multilayer perceptron classifier.

    Takes the place of `sklearn.neural_network.MLPClassifier`: same parameters, attributes and
    numbers, trained by compiled kernels.  It minimises the log loss unless ``loss`` says otherwise;
    the output layer is softmax for several classes, logistic for two classes and for multilabel
    targets.

    Parameters
    ----------
    {_PARAMETERS}
    loss : {{'log_loss', 'squared_error', 'focal'}} or (callable, callable), default='log_loss'
        'squared_error' is half the squared error of the probabilities of all classes (for two
        classes Brier's score), 'focal' the log loss times ``(1 - p)^focal_gamma`` (Lin et al.,
        2017).  A pair of functions of one class's probability ``p`` and its target ``y`` gives a
        value and its derivative with respect to ``p``; a sample's loss is the sum over the classes,
        which for two classes and for each label are ``p`` and ``1 - p``.  Not in scikit-learn.
    focal_gamma : float, default=2.0
        Exponent of ``loss='focal'``; not in scikit-learn.
    label_smoothing : float, default=0.0
        Share of a class's target that is spread evenly over all classes, in [0, 1), while losses
        are computed; not in scikit-learn.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    {_ATTRIBUTES}

    See Also
    --------
    MLPRegressor : The same network for target values.

    Examples
    --------
    >>> from fastmlp import MLPClassifier
    >>> from sklearn.datasets import make_classification
    >>> from sklearn.model_selection import train_test_split
    >>> X, y = make_classification(n_samples=100, random_state=1)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=1)
    >>> clf = MLPClassifier(random_state=1, max_iter=300).fit(X_train, y_train)
    >>> clf.predict_proba(X_test[:1]).round(3).tolist()
    [[0.038, 0.962]]
    >>> clf.predict(X_test[:5]).tolist()
    [1, 0, 1, 0, 1]
    """

    _parameter_constraints = _BaseMLP._parameter_constraints | {
        "loss": [StrOptions({"log_loss", "squared_error", "focal"}), "array-like"],
        "focal_gamma": [Interval(Real, 0, None, closed="left")],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
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
        rho=0.9,
        weight_decay=0.0,
        loss="log_loss",
        focal_gamma=2.0,
        label_smoothing=0.0,
    ):
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
        self.rho = rho
        self.weight_decay = weight_decay
        self.loss = loss
        self.focal_gamma = focal_gamma
        self.label_smoothing = label_smoothing

    def _loss(self, multiclass: bool) -> str | Loss:
        """``loss`` as `Network` takes it."""
        if self.label_smoothing and self.loss == "focal":
            raise ValueError(
                "label_smoothing does not work with loss='focal'; use loss='log_loss' or "
                "'squared_error'."
            )
        if not isinstance(self.loss, str):
            return _user_loss(self.loss, "softmax" if multiclass else "logistic", of_class=True)
        if self.loss == "log_loss" and multiclass:
            return "cross_entropy" if self.label_smoothing else "log_loss"
        name = "brier" if self.loss == "squared_error" else self.loss
        return name if multiclass else f"binary_{name}"

    def _loss_options(self, n_outputs):
        constants = (float(self.focal_gamma),) * n_outputs if self.loss == "focal" else ()
        return {"loss_constants": constants, "label_smoothing": float(self.label_smoothing)}

    def _check_solver(self):
        if self.solver not in _STOCHASTIC_SOLVERS:
            raise AttributeError(
                "partial_fit is only available for stochastic"
                f" optimizers. {self.solver} is not stochastic."
            )
        return True

    @available_if(lambda estimator: estimator._check_solver())
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Go on for one epoch over the given data.

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
            The estimator.
        """
        with self._all_or_nothing():
            if check_partial_fit_first_call(self, classes):
                self._label_binarizer = LabelBinarizer()
                if type_of_target(y).startswith("multilabel"):
                    self._label_binarizer.fit(y)
                else:
                    self._label_binarizer.fit(classes)
            return self._fit(X, y, sample_weight, incremental=True)

    def _validate_input(self, X, y, incremental, reset):
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=(np.float64, np.float32),
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            self._check_classes(unique_labels(y))
        kind = self._label_binarizer.y_type_
        X = _row_access(X)
        if kind == "multiclass":
            return X, np.searchsorted(self.classes_, y), self._loss(multiclass=True)
        if kind == "binary":
            positive = y == self.classes_[-1] if len(self.classes_) == 2 else np.zeros(len(y))
            return X, positive.astype(X.dtype)[:, None], self._loss(multiclass=False)
        labels = self._label_binarizer.transform(y).astype(X.dtype)
        return X, labels, self._loss(multiclass=False)

    def _check_classes(self, classes):
        if self.warm_start:
            if set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the "
                    f"previous call to fit. Previously got {self.classes_}, `y` has {classes}"
                )
        elif len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                "`y` has classes not in `self.classes_`. "
                f"`self.classes_` has {self.classes_}. 'y' has {classes}."
            )

    def _n_outputs(self, y):
        return len(self.classes_) if y.ndim == 1 else y.shape[1]

    def _stratify(self, y):
        return y.astype(bool) if y.ndim == 2 and y.shape[1] == 1 else None

    def _scorer(self, engine, X, y, sample_weight):
        single_class = len(self.classes_) == 1

        def accuracy():
            outputs = engine.predict(X)
            if y.ndim == 1:
                matches = outputs.argmax(axis=1) == y
            elif single_class:
                matches = np.ones(len(y), dtype=bool)
            else:
                matches = ((outputs > 0.5) == y).all(axis=1)
            return _accuracy(matches, sample_weight)

        return accuracy

    def predict(self, X):
        """Predict class labels.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_classes)
            Labels, or a label indicator matrix.
        """
        outputs = self._outputs(X)
        if self.n_outputs_ == 1:
            outputs = outputs.ravel()
        return self._label_binarizer.inverse_transform(outputs)

    def predict_proba(self, X):
        """Predict probabilities.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Columns in the order of ``classes_``.
        """
        outputs = self._outputs(X)
        return np.hstack([1 - outputs, outputs]) if self.n_outputs_ == 1 else outputs

    def predict_log_proba(self, X):
        """Logarithm of `predict_proba`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
        """
        probabilities = self.predict_proba(X)
        return np.log(probabilities, out=probabilities)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, _BaseMLP):
    __doc__ = f"""Multilayer perceptron regressor.

    Takes the place of `sklearn.neural_network.MLPRegressor`: same parameters, attributes and
    numbers, trained by compiled kernels.

    Parameters
    ----------
    loss : str or (callable, callable), default='squared_error'
        'squared_error' is half the squared error, 'poisson' half the Poisson deviance of counts
        ``y >= 0`` with the exponential as output activation.  Not in scikit-learn:
        'absolute_error'; 'huber' (half the squared error up to a distance of ``huber_delta``,
        straight on from there); 'quantile'; 'gamma', half the gamma deviance of ``y > 0``, with the
        exponential; 'log_cosh'.  A pair of functions of a prediction and its target gives a value
        and its derivative with respect to the prediction.  A sample's loss is the sum over the
        outputs, but for scikit-learn's 'squared_error' (the README says how).
    {_PARAMETERS}
    huber_delta : float, default=1.0
        Where 'huber' becomes straight; not in scikit-learn.
    quantile : float or array-like of float, default=0.5
        Level of ``loss='quantile'``, in (0, 1).  With several, the network has an output for each,
        ``y`` is one-dimensional, and `predict` returns an array of shape (n_samples, n_levels)
        whose columns never cross, because each row is sorted by level.  Not in scikit-learn.

    Attributes
    ----------
    {_ATTRIBUTES}

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

    _parameter_constraints = _BaseMLP._parameter_constraints | {
        "loss": [StrOptions(set(_REGRESSION_LOSSES)), "array-like"],
        "huber_delta": [Interval(Real, 0, None, closed="neither")],
        "quantile": [Interval(Real, 0, 1, closed="neither"), "array-like"],
    }

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
        rho=0.9,
        weight_decay=0.0,
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
        self.rho = rho
        self.weight_decay = weight_decay
        self.huber_delta = huber_delta
        self.quantile = quantile

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
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
        """
        with self._all_or_nothing():
            return self._fit(X, y, sample_weight, incremental=True)

    def _validate_input(self, X, y, incremental, reset):
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=True,
            dtype=(np.float64, np.float32),
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._check_range(y)
        own = None if isinstance(self.loss, str) else _user_loss(self.loss, "identity")
        return _row_access(X), self._spread(y.reshape(len(y), -1)), own or self.loss

    def _check_range(self, y: np.ndarray) -> None:
        if self.loss == "poisson" and np.any(y < 0):
            condition = ">= 0"
        elif self.loss == "gamma" and np.any(y <= 0):
            condition = "> 0"
        else:
            return
        raise ValueError(
            f"Some value(s) of y are out of the valid range of the loss '{self.loss}': "
            f"y must be {condition}."
        )

    def _levels(self) -> list[float] | None:
        """The levels, if ``quantile`` lists them and is in use."""
        if self.loss != "quantile" or isinstance(self.quantile, Real):
            return None
        levels = list(self.quantile)
        if not levels or not all(isinstance(q, Real) and 0 < float(q) < 1 for q in levels):
            raise ValueError(f"quantile must consist of levels between 0 and 1, got {levels}.")
        return [float(q) for q in levels]

    def _spread(self, y: np.ndarray) -> np.ndarray:
        """A column of targets for each level."""
        levels = self._levels()
        if levels is None:
            return y
        if y.shape[1] != 1:
            raise ValueError(
                "quantile with several levels needs a one-dimensional y; fit one model per output, "
                "or give one level."
            )
        return np.repeat(y, len(levels), axis=1)

    def _loss_options(self, n_outputs):
        constants = ()
        if self.loss == "huber":
            constants = (float(self.huber_delta),) * n_outputs
        if self.loss == "quantile":
            constants = tuple(self._levels() or (float(self.quantile),) * n_outputs)
        return {"loss_constants": constants}

    def _scorer(self, engine, X, y, sample_weight):
        if self.loss == "quantile":
            return lambda: self._d2_pinball(y, self._sorted(engine.predict(X)), sample_weight)
        return lambda: _r2(y, engine.predict(X), sample_weight)

    def _d2_pinball(self, y, outputs, sample_weight) -> float:
        """Share of the pinball loss that constant quantiles leave and the model does not."""
        if not np.isfinite(outputs).all():
            return float("nan")
        levels = self._levels() or [self.quantile] * outputs.shape[1]
        scores = [
            d2_pinball_score(target, output, alpha=level, sample_weight=sample_weight)
            for target, output, level in zip(y.T, outputs.T, levels, strict=True)
        ]
        return float(np.mean(scores))

    def _sorted(self, outputs: np.ndarray) -> np.ndarray:
        """Quantiles of several levels, each row sorted by level: on average, none gets worse."""
        levels = self._levels()
        if levels is None:
            return outputs
        ranks = np.argsort(np.argsort(levels, kind="stable"))
        return np.sort(outputs, axis=1)[:, ranks]

    def predict(self, X):
        """Predict target values.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.

        Returns
        -------
        y : ndarray of shape (n_samples,), (n_samples, n_outputs) or (n_samples, n_levels)
        """
        outputs = self._outputs(X)
        if self._levels() is not None:
            return self._sorted(outputs)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs

    def score(self, X, y, sample_weight=None):
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
        """
        if self.loss != "quantile":
            return super().score(X, y, sample_weight)
        outputs = self.predict(X)
        y = np.asarray(y)
        return self._d2_pinball(
            self._spread(y.reshape(len(y), -1)), outputs.reshape(len(outputs), -1), sample_weight
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
