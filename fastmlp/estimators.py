"""MLPClassifier and MLPRegressor: the scikit-learn surface and nothing else.

An estimator validates, encodes targets, calls `fastmlp.training`, and decodes.  Parameters,
attributes, random numbers, warnings and errors are scikit-learn's; the deliberate differences are
listed in the README.  Two of them shape this file.  A call to ``fit`` or ``partial_fit`` that
raises leaves the estimator exactly as it was.  And ``coefs_`` and ``intercepts_`` are read again
on every call, so a user may assign or edit them.

The parameter documentation is kept once (`_PARAMETERS`) and inserted in both classes.
"""

import copy
import os
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, partial
from importlib import import_module
from inspect import signature
from itertools import pairwise
from numbers import Integral, Number, Real
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple
from warnings import warn

import numpy as np
from scipy import sparse

from fastmlp import prediction
from fastmlp._arrays import GpuArray, on_gpu
from fastmlp._sklearn import (
    NO_TASK,
    BaseEstimator,
    CallbackSupportMixin,
    ClassifierMixin,
    ConvergenceWarning,
    Interval,
    LabelBinarizer,
    Options,
    RegressorMixin,
    StrOptions,
    Task,
    assert_all_finite,
    available_if,
    check_is_fitted,
    check_partial_fit_first_call,
    check_random_state,
    check_sample_weight,
    check_scoring,
    column_or_1d,
    compute_class_weight,
    d2_pinball_score,
    fit_context,
    get_config,
    open_callbacks,
    safe_indexing,
    squared_error_is_mean,
    train_test_split,
    type_of_target,
    unique_labels,
    validate_data,
    visual_block,
)
from fastmlp.checkpoints import Checkpoint, checksum, in_words
from fastmlp.dropout import Dropout
from fastmlp.engine import (
    DEVICES,
    MATMUL_PRECISIONS,
    Engine,
    Samples,
    get_engine,
    get_row_predictor,
    place,
    to_host,
)
from fastmlp.engine.idle import IdleEngines
from fastmlp.functions import ACTIVATIONS, LOSSES, USER, Activation, Loss
from fastmlp.initialisers import INITIALISERS
from fastmlp.network import Network, widths_of
from fastmlp.objective import Objective
from fastmlp.optimizers import N_SLOTS, Optimizer
from fastmlp.schedules import STEP_SCHEDULES, Schedule, is_over_all_epochs
from fastmlp.training import (
    HISTORY,
    DivergedError,
    Keeper,
    Limit,
    Progress,
    Settings,
    Validation,
    is_finite,
    minimise,
    side_by_side,
    train,
)

# the reported squared error of several outputs is the installed scikit-learn's
LOSSES["squared_error"] = LOSSES["squared_error"]._replace(
    mean_over_outputs=squared_error_is_mean()
)
_STOCHASTIC_SOLVERS = ("sgd", "adam", "rmsprop", "nadam", "lion")
# scikit-learn's; others than 'sgd' ignore them
_SGD_SCHEDULES = ("constant", "invscaling", "adaptive")
_STOCHASTIC_ATTRIBUTES = {
    "loss_curve_": "loss_curve",
    "best_loss_": "best_loss",
    "validation_scores_": "validation_scores",
    "best_validation_score_": "best_validation_score",
    "_no_improvement_count": "no_improvement_count",
}
# parameters that a resumed fit may have other values of: they do not change the numbers
_FREE_TO_CHANGE = ("checkpoint", "checkpoint_every", "max_time", "n_threads", "verbose")
_REGRESSION_LOSSES = (
    "squared_error", "poisson", "absolute_error", "huber", "quantile", "gamma", "log_cosh"
)  # fmt: skip
# parts of the optimizer's state that a pickle of an earlier version may lack
_LATER_FIELDS = {
    "weight_decay": 0.0,
    "max_grad_norm": None,
    "ema_decay": None,
    "plateau": (np.inf, 0),
    "dropout_seed": None,
}

_TRAINING = IdleEngines()  # of `partial_fit`

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
    learning_rate : str or callable, default='constant'
        Schedule of the learning rate.  For ``solver='sgd'`` only, as in scikit-learn: 'constant';
        'invscaling', ``learning_rate_init / (t + 1)^power_t`` after ``t`` samples; 'adaptive', a
        fifth of the rate whenever training would have stopped.  For every stochastic solver, with
        ``t`` the epochs up to the step, fractions included: 'exponential',
        ``learning_rate_init decay_rate^(t / decay_epochs)``; 'step', the same with
        ``t / decay_epochs`` rounded down; 'cosine',
        ``learning_rate_init (1 + cos(pi t / max_iter)) / 2``; 'one_cycle', PyTorch's OneCycleLR
        over ``max_iter`` epochs with ``learning_rate_init`` as its peak (the momentum stays);
        'coslog4', RealMLP's four cycles from 0 to ``learning_rate_init`` and back over ``max_iter``
        epochs, each twice as long as the one before;
        'plateau', ``decay_rate`` times the rate whenever more than ``patience`` epochs in a row
        were no better than the best by more than ``tol``.  A function
        ``(step, steps_per_epoch, max_iter) -> rate`` is called for every step; steps count from 0.
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
        Epochs in a row without improvement that are tolerated.  With ``np.inf`` and a
        ``learning_rate`` over ``max_iter`` epochs ('cosine', 'one_cycle', 'coslog4', a function),
        ending at ``max_iter`` is no reason to warn.
    max_fun : int, default=15000
        Most evaluations of the loss by 'lbfgs'.
    n_threads : int or None, default=None
        Most threads to use; this and what follows is not in scikit-learn.  None means as many as
        pay, within the limits of the process (affinity, container, joblib).  Any number gives the
        same bits.
    device : {'cpu', 'cuda'}, default='cpu'
        Where to train and predict.  'cuda' is the current NVIDIA GPU and
        needs ``pip install "fastmlp[cuda]"``.  There, ``X`` may also be an array that is on the
        GPU already (CuPy, PyTorch, JAX, Numba; float32 or float64, contiguous in C order).
    matmul_precision : {'highest', 'high', 'medium'}, default='highest'
        Matrix products of float32 numbers on a GPU: in float32, in TF32, or of inputs rounded to
        bfloat16; sums are float32.
    rho : float, default=0.9
        Decay rate of the mean of squared gradients of 'rmsprop', in [0, 1).
    weight_decay : float, default=0.0
        Decoupled weight decay of the stochastic solvers: before each update, weights (not biases)
        lose ``learning_rate * weight_decay`` of themselves.  With 'adam' it makes AdamW (Loshchilov
        and Hutter, 2019; set ``alpha=0`` for theirs).
    scoring : None, 'loss', str or callable, default=None
        Validation score.  None is accuracy or R^2; 'loss' is minus the validation loss; else the
        name of a scorer of scikit-learn's, or a function ``(estimator, X, y) -> score``, higher is
        better.  It gets validation data in the form that `fit` got them, and the sample weights as
        ``sample_weight`` if there are any.
    decay_rate : float, default=0.1
        Factor of the schedules 'exponential', 'step' and 'plateau', in (0, 1).
    decay_epochs : int, default=30
        Epochs in which 'exponential' and 'step' multiply the rate by ``decay_rate``.
    patience : int, default=5
        Epochs without improvement that 'plateau' tolerates; fewer than ``n_iter_no_change``, or
        training stops first.
    warmup_epochs : int, default=0
        Multiply the rates of the first epochs, whatever the schedule, by a factor that grows
        linearly from step to step and reaches 1 at their last step.
    weight_init : str or callable, default='auto'
        Initial weights.  'auto' is scikit-learn's: uniform, biases too.  With biases of 0:
        'glorot_uniform', 'glorot_normal', 'he_uniform', 'he_normal', 'lecun_normal' (normal
        distributions are not truncated), 'orthogonal', 'zeros', or a function
        ``(fan_in, fan_out, random_state) -> array of shape (fan_in, fan_out)``.
    n_restarts : int, default=1
        Train from that many random initialisations, at once as far as there are processors, and
        keep the best by ``restart_scores_``.  All share one validation split.
    max_time : float or None, default=None
        Seconds after which `fit` ends with what it has, once the current epoch is complete.
    dropout : float or sequence of float, default=0.0
        Share of the units that every training step sets to 0, in [0, 1), for all hidden layers or
        one for each; the others are multiplied by ``1 / (1 - dropout)`` (Srivastava et al., 2014).
        Predictions and validation have none; the training loss has, as in Keras.  Stochastic
        solvers only.
    max_grad_norm : float or None, default=None
        A step whose gradient (of all parameters, penalty included) has a larger norm than this is
        made with the gradient scaled down to it, as by PyTorch's clip_grad_norm_.  Stochastic
        solvers only.
    ema_decay : float or None, default=None
        Average the parameters exponentially over the steps: after each of them,
        ``average = ema_decay average + (1 - ema_decay) parameters``, in [0, 1).  The average starts
        from the initial parameters without correction, so ``1 / (1 - ema_decay)`` should be a small
        part of all steps.  It is what ``coefs_``, predictions and validation use; the training loss
        is that of the parameters themselves.  Stochastic solvers only.
    layer_norm : bool, default=False
        Normalise the scores of each hidden layer over its units before the activation,
        ``(z - mean) / sqrt(variance + 1e-5)`` (Ba et al., 2016), in training and prediction alike.
        There is no gain and no offset: the weights and the biases of the layer that follows can do
        their work.
    checkpoint : str, path-like or None, default=None
        File to which `fit` writes where it stands, between epochs.  If the process dies, the same
        `fit` with ``resume=True`` goes on from there and ends with the same bits as if nothing had
        happened; it does so after ``max_time``, Ctrl-C and with a larger ``max_iter``, too.  What
        callbacks remember is not in it.  A file is for one fit: do not share it among those of a
        grid search.  Stochastic solvers only.
    checkpoint_every : float, default=60.0
        Seconds between two writes; 0 means after every epoch.  The end of training is written in
        any case."""

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
    history_ : dict of str to list
        One entry per epoch (iteration of 'lbfgs') in each list: 'epoch', 'loss',
        'validation_loss' and 'validation_score' (NaN without; see ``validation_loss_curve_``),
        'learning_rate' (of the epoch's last step), 'seconds' (validation included).
    validation_loss_curve_ : list of float or None
        Validation loss of every epoch, without penalty.  Only if `fit` got ``X_val``, or with
        ``scoring='loss'``: it takes a further pass over the validation data.
    stop_reason_ : str
        Why training ended: 'converged', 'max_iter' (or the one epoch of `partial_fit`),
        'max_time', 'callback', 'interrupted', 'diverged' (the best epoch's parameters were kept),
        or 'failed' (the line search of 'lbfgs').
    restart_scores_ : ndarray of shape (n_restarts,)
        Score of each restart's final parameters: the validation score if there is one, else minus
        the loss.  NaN for a restart that diverged, or that ``max_time`` left no time for.
    validation_scores_ : list of float or None
        Validation score of every epoch with early stopping; higher is better, so with
        ``scoring='loss'`` it is minus the validation loss.  Stochastic solvers only.
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
        Their names, if ``X`` had any.
    engine_info_ : dict
        Where and how the last fit ran: device, element type, threads at most; on a GPU its name,
        the way through an epoch ('resident', one launch, or 'tiled'), the precision of products
        and whether the samples were streamed because they do not fit in its memory."""


# scikit-learn's private hooks, which nothing calls here, and what does their job instead
_HOOKS = {
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
    "_validate_input": "override fit and partial_fit, and prepare X and y there",
}


class InconsistentVersionWarning(UserWarning):
    """An estimator was pickled by another version of fastmlp than the one that unpickles it."""


class _Data(NamedTuple):
    """A data set in the form that an engine takes, and as the user gave it.

    ``given`` are X, y and weights; ``rows`` says which rows of all arrays, None for all.
    """

    X: Any
    y: np.ndarray
    sample_weight: np.ndarray | None
    given: tuple
    rows: np.ndarray | None = None

    def chosen(self, array):
        """Its rows of an array; None stays None."""
        return array if array is None or self.rows is None else array[self.rows]

    def as_given(self) -> tuple:
        """X, y and weights for scorers and callbacks, which expect the user's containers."""
        if self.rows is None:
            return self.given
        return tuple(_some_rows(array, self.rows) for array in self.given)


class _Placed(NamedTuple):
    """Training and validation samples on a device, and what goes with their weights."""

    samples: Samples
    alpha: float
    validation: Samples | None = None
    validation_weight: np.ndarray | None = None


class _BaseMLP(CallbackSupportMixin, BaseEstimator, ABC):
    """What the classifier and the regressor share."""

    history_: dict[str, list]
    _fewest_scored = 1  # samples with which `_scorer`'s function is defined

    _parameter_constraints: dict = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS)), "array-like"],
        "solver": [StrOptions({"lbfgs", *_STOCHASTIC_SOLVERS})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({*_SGD_SCHEDULES, *STEP_SCHEDULES, "plateau"}), callable],
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
        "device": [StrOptions(set(DEVICES))],
        "matmul_precision": [StrOptions(set(MATMUL_PRECISIONS))],
        "rho": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "scoring": [None, str, callable],
        "decay_rate": [Interval(Real, 0, 1, closed="neither")],
        "decay_epochs": [Interval(Integral, 1, None, closed="left")],
        "patience": [Interval(Integral, 0, None, closed="left")],
        "warmup_epochs": [Interval(Integral, 0, None, closed="left")],
        "weight_init": [StrOptions({"auto", *INITIALISERS}), callable],
        "n_restarts": [Interval(Integral, 1, None, closed="left")],
        "max_time": [None, Interval(Real, 0, None, closed="neither")],
        "dropout": [Interval(Real, 0, 1, closed="left"), "array-like"],
        "max_grad_norm": [None, Interval(Real, 0, None, closed="neither")],
        "ema_decay": [None, Interval(Real, 0, 1, closed="left")],
        "layer_norm": ["boolean"],
        "checkpoint": [None, str, os.PathLike],
        "checkpoint_every": [Interval(Real, 0, None, closed="left")],
    }

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for owner in cls.__mro__:
            if owner.__module__ == __name__:
                continue
            for name in _HOOKS.keys() & vars(owner).keys():
                raise TypeError(
                    f"{owner.__name__} overrides {name}, a private hook of scikit-learn's that "
                    f"fastmlp does not have: {_HOOKS[name]} instead."
                )

    # --- copies and pickles

    def __copy__(self):
        model = type(self).__new__(type(self))
        model.__dict__.update(self.__dict__)
        return model

    def __getstate__(self):
        return dict(super().__getstate__(), _fastmlp_version=_version())

    def __setstate__(self, state):
        state = dict(state)
        version = state.pop("_fastmlp_version", "an unknown one")
        if version != _version():
            warn(
                f"{type(self).__name__} was pickled by fastmlp {version} and is now read by fastmlp"
                f" {_version()}, which may give other results; models that were saved by "
                "fastmlp.io.save can be read by later versions.",
                InconsistentVersionWarning,
            )
            state = _default_parameters(type(self)) | state
        super().__setstate__(state)
        self._check_arrays()

    def _check_arrays(self) -> None:
        """Refuse what kernels cannot index with, in a file that somebody handed over."""
        fitted = self.__dict__
        if "coefs_" not in fitted:
            return
        widths = widths_of(self.coefs_, self.intercepts_)
        self._check_n_features(widths)
        if "classes_" in fitted:
            _check_sorted(self.classes_)
        state = fitted.get("_optimizer_state")
        if state is not None:
            self._optimizer_state = _LATER_FIELDS | state
            n_parameters = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))
            _check_slots(self._optimizer_state, n_parameters)

    def _check_n_features(self, widths: tuple[int, ...]) -> None:
        n_features = getattr(self, "n_features_in_", widths[0])
        if widths[0] != n_features:
            raise ValueError(
                f"coefs_[0] must have a row for each of the {n_features} features that "
                f"n_features_in_ says, got {widths[0]}."
            )

    # --- what the two estimators answer differently

    @abstractmethod
    def _validate_input(self, X, y, incremental, reset):
        """Checked ``X`` and encoded ``y`` (see `fastmlp.engine.place`), and `Objective`'s loss."""

    @abstractmethod
    def _loss(self, multiclass: bool = False) -> str | Loss:
        """``loss`` as `Objective` takes it."""

    @abstractmethod
    def _loss_options(self, n_outputs: int) -> dict:
        """What `Objective` takes beside the loss."""

    @abstractmethod
    def _validate_held_out(self, X, y):
        """The same for a user's validation set, after the training data; no loss."""

    def _for_scorers(self, given: tuple, encoded) -> tuple:
        """X, y and weights of the user's, with ``y`` in the form that `predict` answers in."""
        return given

    def _class_weights(self, y):
        """Weights of the classes for each column of encoded ``y``, or None."""
        return None

    @abstractmethod
    def _scorer(self, engine: Engine, X, y, sample_weight):
        """A function that scores the engine's current parameters on validation data."""

    def _stratify(self, y):
        """Labels to stratify the validation split by, or None."""
        return None

    def _validate(self, X, *y, **options):
        """scikit-learn's checks of ``X``, or of ``X`` and ``y``.

        For samples on a GPU a stand-in of their shape is checked, and they are wrapped; the engine
        looks for NaN and infinity itself.
        """
        targets = [_host(array) for array in y]
        if self._is_plain(X, targets, options["reset"]):
            if options["reset"]:
                self.__dict__.pop("feature_names_in_", None)
                self.n_features_in_ = X.shape[1]
            return (X, *targets) if targets else X
        if not on_gpu(X):
            return validate_data(self, X, *targets, accept_sparse=["csr", "csc"], **options)
        if self.device != "cuda":
            raise ValueError(
                "X is on a GPU, but device='cpu'; use device='cuda', or copy X to the host."
            )
        wrapped = GpuArray.wrap(X)
        stand_in = np.broadcast_to(np.zeros((), wrapped.dtype), wrapped.shape)
        checked = validate_data(self, stand_in, *targets, ensure_all_finite=False, **options)
        return (wrapped, *checked[1:]) if y else wrapped

    def _is_plain(self, X, targets, reset: bool) -> bool:
        """Whether scikit-learn's checks would pass and change nothing, seen at a glance.

        They take longer than a small network's epoch; what this does not know is left to them.
        """
        if not (_is_matrix(X) if reset else self._has_expected_shape(X)):
            return False
        if X.dtype not in (np.float32, np.float64):  # in the machine's byte order
            return False
        for y in targets:
            plain = type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "biuf"
            if not plain or len(y) != len(X) or not y.dtype.isnative:
                return False
            if y.dtype.kind == "f" and not is_finite(y):
                return False
        return is_finite(X)

    def _validate_params(self):
        """scikit-learn's check of the parameters, once for each set of plain ones."""
        key = _plain_parameters(self)
        if key is None or key not in _CHECKED_PARAMETERS:
            super()._validate_params()
            if key is not None:
                if len(_CHECKED_PARAMETERS) >= _MOST_CHECKED:
                    _CHECKED_PARAMETERS.clear()
                _CHECKED_PARAMETERS.add(key)

    # --- fitting

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X,
        y,
        sample_weight=None,
        *,
        X_val=None,
        y_val=None,
        sample_weight_val=None,
        resume=False,
    ):
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
        with self._all_or_nothing():
            held_out = (X_val, y_val, sample_weight_val)
            return self._fit(X, y, sample_weight, False, held_out, context, resume)

    def _task_sizes(self) -> dict:
        """Size of a fit, for progress bars."""
        if self.n_restarts > 1:
            return {"max_subtasks": self.n_restarts, "sequential_subtasks": False}
        return {"max_subtasks": self._max_epoch_tasks()}

    def _max_epoch_tasks(self) -> int:
        """Most epochs that callbacks hear of; the last that 'lbfgs' begins may come to nothing."""
        return self.max_iter + (self.solver == "lbfgs")

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

    def _fit(self, X, y, sample_weight, incremental, held_out=(None, None, None), context=None,
             resume=False):  # fmt: skip
        hidden = self._hidden_layer_sizes()
        activations = self._activations(len(hidden))
        dropout_rates = self._dropout(len(hidden))
        self._check_layer_norm(hidden)
        self._refuse_combinations(incremental, held_out)
        checkpoint = self._open_checkpoint(incremental, resume)
        first_pass = not hasattr(self, "coefs_") or not (self.warm_start or incremental)

        given = X, y, sample_weight
        X, y, loss = self._validate_input(X, y, incremental, reset=first_pass)
        given = self._for_scorers(given, y)
        sample_weight = _checked_weight("sample_weight", sample_weight, y)
        class_weights = self._class_weights(y)
        weight = _weigh(y, sample_weight, class_weights)
        if not _has_weight(weight):
            raise ValueError(
                "The weights of all samples (sample_weight times class_weight) sum to zero; give "
                "some sample a weight above zero."
            )
        data = _Data(X, y, weight, given)
        validation = self._given_validation(held_out, y, class_weights)
        objective = self._objective(loss, self._n_outputs(y))
        network = self._network(hidden, activations, X, objective)

        self._random_state = check_random_state(self.random_state)
        if checkpoint:
            self._random_state = checkpoint.random_state(self._random_state)
        states = self._restart_states()
        runs = [self._start(network, X.dtype, first_pass, state) for state in states]
        data, validation = self._split(data, validation)
        keepers: list[Keeper] = [Keeper() for _ in runs]
        if checkpoint:
            arguments = self._arguments(data, validation, runs)
            keepers = checkpoint.keepers(arguments, len(runs), self.max_iter)
        task = self._open_task(context, network, data)
        best = self._train_all(
            network, objective, dropout_rates, runs, states, data, validation, task, keepers,
            incremental,
        )  # fmt: skip
        self._finish(network, best)
        losses = self.history_["validation_loss"]
        self.validation_loss_curve_ = list(losses) if self._asks_for_loss(validation) else None
        task.end(best, lambda: best.parameters)
        return self

    def _objective(self, loss: str | Loss, n_outputs: int) -> Objective:
        return Objective(loss, n_outputs, **self._loss_options(n_outputs))

    def _network(self, hidden, activations, X, objective: Objective) -> Network:
        """The network for checked ``X``."""
        return Network(
            (X.shape[1], *hidden, objective.n_outputs), activations, objective.out_activation,
            layer_norm=bool(self.layer_norm),
        )  # fmt: skip

    def _refuse_combinations(self, incremental, held_out) -> None:
        """Refuse parameters that could not do what they say."""
        stochastic = self.solver in _STOCHASTIC_SOLVERS
        X_val, y_val, weight_val = held_out
        if incremental and self._stops_early():
            raise ValueError("partial_fit does not support early_stopping=True")
        if (X_val is None) != (y_val is None):
            missing = "X_val" if X_val is None else "y_val"
            raise ValueError(f"X_val and y_val belong together: {missing} is missing.")
        if weight_val is not None and X_val is None:
            raise ValueError("sample_weight_val needs X_val and y_val.")
        if self.scoring is not None and X_val is None and not self._stops_early():
            raise ValueError(
                f"scoring={self.scoring!r} needs validation data: give X_val and y_val to fit, or "
                "set early_stopping=True with a stochastic solver."
            )
        if self.weight_decay and not stochastic:
            raise ValueError(
                "weight_decay does not work with solver='lbfgs'; use alpha, or a stochastic solver."
            )
        for name in ("max_grad_norm", "ema_decay"):
            if getattr(self, name) is not None and not stochastic:
                raise ValueError(
                    f"{name} does not work with solver='lbfgs'; use a stochastic solver."
                )
        if not stochastic and (self.learning_rate not in _SGD_SCHEDULES or self.warmup_epochs):
            name = (
                "warmup_epochs" if self.warmup_epochs else f"learning_rate={self.learning_rate!r}"
            )
            raise ValueError(f"{name} needs a stochastic solver, not solver={self.solver!r}.")
        if self.n_restarts > 1 and (incremental or self.warm_start):
            what = "partial_fit" if incremental else "warm_start=True"
            raise ValueError(
                f"{what} does not support n_restarts={self.n_restarts}: it goes on from one "
                "solution; set n_restarts=1."
            )

    def _open_checkpoint(self, incremental: bool, resume: bool) -> Checkpoint | None:
        if self.checkpoint is None:
            if resume:
                raise ValueError("resume=True needs a file: set checkpoint.")
            return None
        if incremental:
            raise ValueError(
                "partial_fit does not support checkpoint; set checkpoint=None, and save the model "
                "between calls by fastmlp.io.save(model, path, optimizer_state=True)."
            )
        if self.solver not in _STOCHASTIC_SOLVERS:
            raise ValueError(
                "checkpoint does not work with solver='lbfgs', since SciPy does not give its state "
                "away; use a stochastic solver."
            )
        return Checkpoint(self.checkpoint, self.checkpoint_every, resume)

    def _arguments(self, data: _Data, validation: _Data | None, runs) -> dict[str, str]:
        """What a resumed fit must have in common with the first one."""
        parameters = self.get_params(deep=False)
        for name in _FREE_TO_CHANGE:
            del parameters[name]
        if not is_over_all_epochs(self.learning_rate):
            del parameters["max_iter"]
        arguments = {name: in_words(value) for name, value in parameters.items()}
        arrays = {"X": data.X, "y": data.y, "sample_weight": data.sample_weight}
        if validation is not None and validation.rows is None:
            arrays |= {"X_val": validation.X, "y_val": validation.y}
        arrays["initial weights"] = runs[0].parameters
        types = dict.fromkeys(arrays, data.X.dtype)  # of what is trained on, not of what was given
        if data.y.ndim == 1:  # numbers of classes
            types |= {"y": np.dtype(np.int64), "y_val": np.dtype(np.int64)}
        return arguments | {name: checksum(array, types[name]) for name, array in arrays.items()}

    def _restart_states(self) -> list[np.random.RandomState]:
        """One source of random numbers per restart; the only one is the estimator's own."""
        if self.n_restarts == 1:
            return [self._random_state]
        seeds = self._random_state.randint(np.iinfo(np.int32).max, size=self.n_restarts)
        return [np.random.RandomState(seed) for seed in seeds]

    def _engine(self, network: Network, dtype, **options) -> Engine:
        """An engine on the device that the user chose."""
        return get_engine(
            self.device, network, dtype=dtype, n_threads=self.n_threads,
            matmul_precision=self.matmul_precision, **options,
        )  # fmt: skip

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

    def _dropout(self, n_hidden: int) -> tuple[float, ...]:
        """The rate of each of ``n_hidden`` hidden layers; empty without dropout."""
        one_for_all = isinstance(self.dropout, Real)
        rates = [self.dropout] * n_hidden if one_for_all else list(self.dropout)
        if len(rates) != n_hidden:
            raise ValueError(
                f"dropout must have one entry for each of the {n_hidden} hidden layers of "
                f"hidden_layer_sizes, got {len(rates)}."
            )
        if not all(isinstance(rate, Real) and 0 <= float(rate) < 1 for rate in rates):
            raise ValueError(f"dropout must consist of numbers in [0, 1), got {rates}.")
        if one_for_all and self.dropout and not rates:
            raise ValueError("dropout needs a hidden layer; set dropout=0.0.")
        if any(rates) and self.solver not in _STOCHASTIC_SOLVERS:
            raise ValueError(
                f"dropout does not work with solver={self.solver!r}; use a stochastic solver."
            )
        return tuple(float(rate) for rate in rates) if any(rates) else ()

    def _check_layer_norm(self, hidden: tuple[int, ...]) -> None:
        if self.layer_norm and (not hidden or min(hidden) < 2):
            raise ValueError(
                "layer_norm needs hidden layers of at least 2 units, over which it normalises, got "
                f"hidden_layer_sizes={hidden}; set layer_norm=False."
            )

    def _start(self, network: Network, dtype, first_pass: bool, random_state) -> Progress:
        """Initial parameters and counters, or those of the previous call."""
        if first_pass:
            parameters = network.initialise(random_state, dtype, self.weight_init)
            progress = Progress(parameters, self.learning_rate_init)
            progress.best_parameters = parameters.copy() if self.early_stopping else None
        else:
            dtype = np.result_type(*self.coefs_[:1], np.float32)
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
            progress.n_earlier = len(getattr(self, "history_", {"epoch": ()})["epoch"])
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

    def _given_validation(self, held_out, y, class_weights) -> _Data | None:
        """A user's validation set, checked and encoded."""
        X_val, y_val, weight = held_out
        if X_val is None:
            return None
        try:
            X, encoded = self._validate_held_out(X_val, y_val)
            if encoded.shape[1:] != y.shape[1:]:
                raise ValueError(
                    f"y_val must have as many outputs as y, {y.shape[1:]}, got {encoded.shape[1:]}."
                )
            weight = _checked_weight("sample_weight_val", weight, encoded)
            weight = _weigh(encoded, weight, class_weights)
            if not _has_weight(weight):
                raise ValueError(
                    "The weights of its samples sum to zero; see sample_weight_val and "
                    "class_weight."
                )
            if self._stops_early() and self.scoring is None and len(encoded) < self._fewest_scored:
                raise ValueError(
                    f"It is too small for a score, which takes {self._fewest_scored} samples; add "
                    "samples or set scoring='loss'."
                )
        except ValueError as error:
            raise ValueError(f"The validation set X_val, y_val is invalid. {error}") from error
        return _Data(X, encoded, weight, self._for_scorers(held_out, encoded))

    def _split(self, data: _Data, validation: _Data | None):
        """Rows to train on set apart from rows to validate with, if early stopping needs them."""
        if validation is not None or not self._stops_early():
            return data, validation
        samples, held_out = train_test_split(
            np.arange(data.X.shape[0]),
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=self._stratify(data.y),
        )
        if held_out.size < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' "
                "or the size of your dataset."
            )
        parts = (
            (samples, "left for training", "decrease"),
            (held_out, "set aside for validation", "increase"),
        )
        for rows, what, change in parts:
            if data.sample_weight is not None and not _has_weight(data.sample_weight[rows]):
                raise ValueError(
                    f"All samples that early_stopping {what} have a sample_weight of zero (times "
                    f"class_weight); {change} 'validation_fraction' or drop such samples."
                )
        return data._replace(rows=samples), data._replace(rows=held_out)

    def _open_task(self, context, network: Network, data: _Data) -> Task:
        if context is None:
            return NO_TASK
        given = cache(data.as_given)
        arguments = {
            "X": lambda: given()[0],
            "y": lambda: given()[1],
            "metadata": lambda: None if given()[2] is None else {"sample_weight": given()[2]},
        }
        return Task(context, self, arguments, partial(self._fitted_attributes, network))

    def _train_all(
        self, network, objective, dropout_rates, runs, states, data, validation, task, keepers,
        incremental,
    ) -> Progress:  # fmt: skip
        """Train every restart; the best one's optimizer becomes the estimator's."""
        limit = Limit(self.max_time)
        placed = self._place(objective, runs[0].parameters.dtype, data, validation)

        def train_one(i):
            part = task
            if len(runs) > 1:
                part = task.subtask("restart", task_id=i, max_subtasks=self._max_epoch_tasks())
            optimizer = self._train(
                network, objective, dropout_rates, runs[i], states[i], data, validation, placed,
                limit, part, keepers[i], incremental,
            )  # fmt: skip
            if part is not task:
                part.end(runs[i], lambda: runs[i].parameters)
            return optimizer

        jobs = [partial(train_one, i) for i in range(len(runs))]
        outcomes = side_by_side(jobs, limit, self.n_threads)
        failed = [isinstance(outcome, DivergedError | KeyboardInterrupt) for outcome in outcomes]
        if all(failed):
            raise next((o for o in outcomes if isinstance(o, KeyboardInterrupt)), outcomes[0])
        self.restart_scores_ = np.array([
            np.nan if bad else self._final_score(run, validation)
            for run, bad in zip(runs, failed, strict=True)
        ])  # fmt: skip
        best = 0
        if len(runs) > 1:
            scores = np.nan_to_num(self.restart_scores_, nan=-1e300)
            best = int(np.argmax(np.where(failed, -np.inf, scores)))
        if outcomes[best] is not None:
            self._optimizer_state = outcomes[best]
        self._warn_of_no_score(runs[best])
        _warn_of_overflow(runs[best], outcomes[best])
        return runs[best]

    def _warn_of_no_score(self, run: Progress) -> None:
        """Early stopping that no score told anything; a run with a score would have been better."""
        scores = [line[HISTORY.index("validation_score")] for line in run.history]
        if self._stops_early() and scores and not any(score > -np.inf for score in scores):
            warn(
                f"The validation score (scoring={self.scoring!r}) was {scores[-1]} after every "
                "epoch, so early_stopping kept the parameters of the last one; give validation "
                "data for which the score is defined, or choose another scoring."
            )

    def _stops_early(self) -> bool:
        return self.early_stopping and self.solver in _STOCHASTIC_SOLVERS

    def _final_score(self, run: Progress, validation: _Data | None) -> float | None:
        """Score of the parameters that a training run ended with."""
        if self._stops_early():
            return run.best_validation_score
        if validation is None:
            return -run.loss
        return run.history[-1][HISTORY.index("validation_score")] if run.n_iter else np.nan

    def _asks_for_loss(self, validation: _Data | None) -> bool:
        """Whether to spend a pass over the validation data on their loss."""
        return validation is not None and (self.scoring == "loss" or validation.rows is None)

    def _weight_and_alpha(self, data: _Data, dtype) -> tuple[np.ndarray | None, float]:
        """Sample weights in the range of ``dtype``, and the ``alpha`` that goes with them.

        Losses are divided by the sum of the weights, so a factor of all weights is one of alpha.
        """
        weight, exponent = _in_range(data.sample_weight, dtype, data.rows)
        if weight is None or not exponent:
            return weight, self.alpha
        with np.errstate(over="ignore"):
            alpha = float(np.ldexp(self.alpha, -exponent))
        largest = np.sqrt(np.finfo(dtype).max)  # the penalty's gradient is squared
        if alpha > largest * np.abs(weight).sum():
            raise ValueError(
                f"alpha={self.alpha}, which is divided by the sum of the weights, is too large for "
                f"{np.dtype(dtype)} beside weights of at most {np.ldexp(1.0, exponent + 1):.0e}; "
                "multiply sample_weight or class_weight by a constant, or set alpha=0."
            )
        return weight, alpha

    def _place(self, objective: Objective, dtype, data: _Data, held_out: _Data | None) -> _Placed:
        """All samples, for the engines of every restart."""
        dtype = np.dtype(np.float64) if self.solver == "lbfgs" else dtype
        weight, alpha = self._weight_and_alpha(data, dtype)
        options = {"dtype": dtype, "objective": objective}
        samples = place(self.device, data.X, data.y, weight, **options)
        if held_out is None:
            return _Placed(samples, alpha)
        weight = _in_range(held_out.sample_weight, dtype, held_out.rows)[0]
        validation = place(
            self.device, held_out.X, held_out.y, weight, rows=held_out.rows, **options
        )
        return _Placed(samples, alpha, validation, held_out.chosen(weight))

    def _validation(
        self, network, engine, progress, held_out: _Data | None, placed: _Placed
    ) -> Validation | None:
        if held_out is None:
            return None
        loss = None
        if self._asks_for_loss(held_out):
            loss = partial(engine.evaluate, placed.validation)
        score = None
        if self.scoring is None:
            y = held_out.chosen(held_out.y)
            score = self._scorer(engine, placed.validation, y, placed.validation_weight)
        elif self.scoring != "loss":
            score = self._user_scorer(network, engine, progress, held_out)
        return Validation(score, loss, self._stops_early())

    def _user_scorer(self, network, engine, progress, held_out: _Data):
        """A function that calls ``scoring`` on a copy with the engine's current parameters."""
        scorer = check_scoring(self, scoring=self.scoring)
        X, y, _ = held_out.as_given()
        weight = held_out.chosen(held_out.sample_weight)
        metadata = {} if weight is None else {"sample_weight": weight}

        def score():
            model = copy.copy(self)
            attributes = self._fitted_attributes(network, progress, engine.get_parameters())
            model.__dict__.update(attributes)
            return _as_number(scorer(model, X, y, **metadata))

        return score

    def _train(
        self, network, objective, dropout_rates, progress, random_state, data, held_out, placed,
        limit, task, keeper, incremental,
    ) -> dict | None:  # fmt: skip
        """One training run; returns the state of the optimizer, if there is one."""
        if self.solver == "lbfgs":
            self._train_lbfgs(network, objective, progress, data, held_out, placed, limit, task)
            return None
        samples = np.arange(data.X.shape[0]) if data.rows is None else data.rows
        state = getattr(self, "_optimizer_state", None) if incremental else None
        if state is None:
            state = self._new_optimizer_state(progress.parameters)
        _check_slots(state, network.n_parameters)
        dropout = None
        if dropout_rates:
            if state["dropout_seed"] is None:
                state = state | {"dropout_seed": random_state.randint(np.iinfo(np.int32).max)}
            dropout = Dropout(dropout_rates, state["dropout_seed"])
        progress.learning_rate = state["learning_rate"]
        progress.n_steps = state["step"]
        progress.plateau = state["plateau"]
        settings = self._settings(samples.size, Schedule(**state["schedule"]))
        optimizer = Optimizer(
            state["rule"],
            tuple(state["constants"]),
            state["weight_decay"],
            state["max_grad_norm"],
            state["ema_decay"],
        )
        dtype = progress.parameters.dtype
        made_for = (
            self.device, network, objective, dropout, dtype, placed.alpha, optimizer,
            settings.batch_size, self.n_threads, self.matmul_precision,
        )  # fmt: skip
        engine = _TRAINING.take(self, made_for) if incremental else None
        if engine is None:
            engine = self._engine(
                network, dtype, objective=objective, dropout=dropout, alpha=placed.alpha,
                optimizer=optimizer, batch_size=settings.batch_size,
            )  # fmt: skip
        engine.load(placed.samples)
        engine.set_parameters(progress.parameters)
        engine.set_state(state["slots"], state["step"])
        progress.engine_info = engine.info()
        train(
            engine,
            progress,
            settings,
            samples,
            random_state,
            limit,
            validation=self._validation(network, engine, progress, held_out, placed),
            task=task,
            keeper=keeper,
            single_epoch=incremental,
        )
        slots, step = engine.get_state()
        if incremental:  # the next call's loss shows what this step did
            engine.unload()
            _TRAINING.put(self, made_for, engine)
        else:
            if self._stops_early():
                engine.set_parameters(progress.parameters)
            progress.finite_outputs = _has_finite_outputs(
                engine, network, data.X, placed.samples, progress.parameters
            )
        return state | {
            "learning_rate": progress.learning_rate,
            "plateau": progress.plateau,
            "slots": slots,
            "step": step,
        }

    def _train_lbfgs(
        self, network, objective, progress, data: _Data, held_out, placed, limit, task
    ) -> None:
        engine = self._engine(network, np.float64, objective=objective, alpha=placed.alpha)
        engine.load(placed.samples)
        minimise(
            engine,
            progress,
            limit,
            max_iter=self.max_iter,
            max_fun=self.max_fun,
            tol=self.tol,
            validation=self._validation(network, engine, progress, held_out, placed),
            task=task,
        )
        engine.set_parameters(progress.parameters)
        progress.finite_outputs = _has_finite_outputs(
            engine, network, data.X, placed.samples, progress.parameters
        )
        progress.engine_info = engine.info()

    def _settings(self, n_samples: int, schedule: Schedule) -> Settings:
        return Settings(
            max_iter=self.max_iter,
            batch_size=self._batch_size(n_samples),
            shuffle=self.shuffle,
            tol=self.tol,
            n_iter_no_change=self.n_iter_no_change,
            schedule=schedule,
            verbose=bool(self.verbose),
        )

    def _new_optimizer_state(self, parameters: np.ndarray) -> dict:
        """The optimizer's settings, frozen until the next `fit` as in scikit-learn, and slots."""
        schedule = self.learning_rate
        rule, constants = self.solver, [self.beta_1, self.beta_2, self.epsilon]
        if self.solver == "sgd":
            rule = "nesterov" if self.nesterovs_momentum else "sgd"
            constants = [self.momentum, 0.0, 0.0]
        elif self.solver == "rmsprop":
            constants = [self.rho, self.epsilon, 0.0]
        if self.solver != "sgd" and schedule in _SGD_SCHEDULES:
            schedule = "constant"
        return {
            "rule": rule,
            "constants": [float(constant) for constant in constants],
            "weight_decay": float(self.weight_decay),
            "max_grad_norm": self.max_grad_norm,
            "ema_decay": self.ema_decay,
            "schedule": {
                "name": schedule,
                "learning_rate_init": float(self.learning_rate_init),
                "max_iter": self.max_iter,
                "power_t": float(self.power_t),
                "decay_rate": float(self.decay_rate),
                "decay_epochs": self.decay_epochs,
                "patience": self.patience,
                "warmup_epochs": self.warmup_epochs,
            },
            "learning_rate": float(self.learning_rate_init),
            "plateau": (np.inf, 0),
            "dropout_seed": None,
            "slots": self._new_slots(parameters),
            "step": 0,
        }

    def _new_slots(self, parameters: np.ndarray) -> np.ndarray:
        """See `fastmlp.engine.Engine.get_state`; what is trained goes on with ``warm_start``."""
        slots = np.zeros((N_SLOTS, parameters.size), parameters.dtype)
        if self.ema_decay is None:
            return slots
        earlier = getattr(self, "_optimizer_state", None) if self.warm_start else None
        if earlier is not None and len(earlier["slots"]) > N_SLOTS:
            parameters = earlier["slots"][N_SLOTS]
        return np.vstack([slots, parameters])

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
        self.__dict__.update(self._fitted_attributes(network, progress, progress.parameters))
        earlier = self.history_ if progress.n_earlier else {}
        self.history_ = {
            name: earlier.get(name, []) + [line[i] for line in progress.history]
            for i, name in enumerate(HISTORY)
        }
        self.stop_reason_ = progress.stop_reason
        self.engine_info_ = progress.engine_info
        if self.solver not in _STOCHASTIC_SOLVERS:
            for name in (*_STOCHASTIC_ATTRIBUTES, "_optimizer_state"):
                self.__dict__.pop(name, None)

    def _fitted_attributes(self, network: Network, progress: Progress, parameters) -> dict:
        """The attributes of an estimator that stands where ``progress`` does."""
        coefs, intercepts = network.unflatten(parameters)
        attributes = {
            "coefs_": coefs,
            "intercepts_": intercepts,
            "n_iter_": progress.n_iter,
            "t_": progress.n_samples_seen,
            "loss_": progress.loss,
            "n_layers_": len(network.widths),
            "n_outputs_": network.n_outputs,
            "out_activation_": network.out_activation,
        }
        if self.solver in _STOCHASTIC_SOLVERS:
            attributes |= {
                name: getattr(progress, field) for name, field in _STOCHASTIC_ATTRIBUTES.items()
            }
        return attributes

    @property
    def _optimizer(self) -> SimpleNamespace:
        """Read-only view of the optimizer's state, under scikit-learn's private name."""
        state = self.__dict__.get("_optimizer_state")
        if state is None:
            raise AttributeError(f"{type(self).__name__} has no optimizer state yet.")
        return SimpleNamespace(**state)

    def _loss_grad_lbfgs(self, packed, X, y, sample_weight, *_buffers):
        """Loss and gradient in scikit-learn's packing: all ``coefs_``, then all ``intercepts_``."""
        network = self._fitted_network()
        sizes = [array.size for array in (*self.coefs_, *self.intercepts_)]
        parts = np.split(packed, np.cumsum(sizes)[:-1])
        coefs = [part.reshape(coef.shape) for part, coef in zip(parts, self.coefs_, strict=False)]
        multiclass = self.out_activation_ == "softmax"
        objective = self._objective(self._loss(multiclass), network.n_outputs)
        if objective.row.per_row:
            y = np.argmax(y, axis=1)
        options: dict[str, Any] = {"dtype": np.float64, "objective": objective}
        engine = get_engine("cpu", network, alpha=self.alpha, **options)
        engine.load(place("cpu", X, y, sample_weight, **options))
        engine.set_parameters(network.flatten(coefs, parts[len(coefs) :], np.float64))
        loss, gradient = engine.loss_and_gradient()
        coef_grads, intercept_grads = network.unflatten(gradient)
        return loss, np.hstack([g.ravel() for g in (*coef_grads, *intercept_grads)])

    # --- prediction

    def _fitted_network(self) -> Network:
        """The network that ``coefs_``, ``activation`` and ``out_activation_`` describe."""
        widths = widths_of(self.coefs_, self.intercepts_)
        self._check_n_features(widths)
        activations = self._activations(len(widths) - 2)
        return _network_of(widths, activations, self.out_activation_, bool(self.layer_norm))

    def _outputs(self, X) -> np.ndarray:
        """Outputs of shape (n_samples, n_outputs) for unchecked ``X``."""
        outputs = self._outputs_of_few_rows(X)
        if outputs is not None:
            return outputs
        if "coefs_" not in self.__dict__:
            check_is_fitted(self)
        X = _row_access(self._validate(X, reset=False))
        network = self._fitted_network()
        dtype = np.result_type(X.dtype, self.coefs_[0].dtype)
        dtype = np.dtype(np.float32 if dtype == np.float32 else np.float64)
        if self.device == "cpu" and prediction.is_little_work(network, X):
            predictor = prediction.row_predictor(self, self._is_current, lambda: network)
            if predictor is not None and predictor.dtype == dtype:
                return predictor(X)
        return prediction.predict(self, network, X, dtype)

    def _outputs_of_few_rows(self, X) -> np.ndarray | None:
        """A short way for plain arrays of a few rows, for which scikit-learn's checks would pass.

        None means that they might not, or that the short way is none.
        """
        if not self._has_expected_shape(X) or len(X) > prediction.FEW_ROWS:
            return None
        fitted = self.__dict__
        if fitted.get("coefs_") is None or fitted.get("intercepts_") is None:
            return None
        if X.strides[1] != X.itemsize or self.device != "cpu":
            return None
        predictor = prediction.row_predictor(self, self._is_current, self._fitted_network)
        if predictor is None or X.dtype != predictor.dtype or X.shape[1] != predictor.n_features:
            return None
        return predictor(X)

    def _has_expected_shape(self, X) -> bool:
        """Whether ``X`` is a plain array of the features that the model was fitted to."""
        fitted = self.__dict__
        return (
            _is_matrix(X)
            and X.shape[1] == fitted.get("n_features_in_")
            and "feature_names_in_" not in fitted
        )

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

    def _is_current(self, predictor) -> bool:
        """Whether a predictor of rows was made from the present arrays and settings."""
        arrays, coefs, intercepts = predictor.arrays, self.coefs_, self.intercepts_
        if len(arrays) != 2 * len(coefs):
            return False
        network = predictor.network
        if self._activations(len(coefs) - 1) != network.activations:
            return False
        if network.layer_norm != self.layer_norm:
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

    def _sk_visual_block_(self):
        """scikit-learn's hook for diagrams in notebooks."""
        return visual_block(self, self._summary())

    def _summary(self) -> str:
        """The network and how its training went, in one line; empty before `fit`."""
        if not hasattr(self, "coefs_"):
            return ""
        network = self._fitted_network()
        names = [*network.activation_names, self.out_activation_]
        layers = [f" → {n} {name}" for n, name in zip(network.widths[1:], names, strict=True)]
        text = f"{network.widths[0]}{''.join(layers)}, {network.n_parameters:,} parameters"
        n_epochs = len(getattr(self, "history_", {"epoch": ()})["epoch"])
        if not n_epochs:
            return text
        unit = "iterations" if self.solver == "lbfgs" else "epochs"
        reason = f" ({self.stop_reason_})" if hasattr(self, "stop_reason_") else ""
        return f"{text}; loss {self.loss_:.4g} after {n_epochs} {unit}{reason}"

    def _n_outputs(self, y: np.ndarray) -> int:
        return y.shape[1]


def _version() -> str:
    return import_module("fastmlp").__version__


def _default_parameters(kind: type) -> dict[str, Any]:
    """For parameters that came later than a pickle."""
    parameters = signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _check_sorted(classes) -> None:
    """Refuse classes that a search could miss, and end up with a number that is no class's."""
    classes = np.asarray(classes)
    if classes.ndim != 1 or not classes.size or not np.all(classes[:-1] < classes[1:]):
        raise ValueError(f"classes_ must be sorted and without duplicates, got {classes}.")


def _check_slots(state: dict, n_parameters: int) -> None:
    expected = N_SLOTS + (state["ema_decay"] is not None), n_parameters
    if np.shape(state["slots"]) != expected:
        raise ValueError(
            f"The optimizer's state must be of shape {expected} to fit coefs_ and intercepts_, got "
            f"{np.shape(state['slots'])}; fit again instead of partial_fit."
        )


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


@cache
def _as_function(formula, n_arguments: int):
    """A Python function, which is all that Numba compiles, of a ufunc or one of math's."""
    if isinstance(formula, FunctionType) or hasattr(formula, "py_func"):
        return formula
    one, two = (lambda z: formula(z)), (lambda z, y: formula(z, y))
    function = one if n_arguments == 1 else two
    function.__name__ = getattr(formula, "__name__", type(formula).__name__)
    return function


def _user_activation(pair) -> Activation:
    _try_out("activation", pair, 0.0)
    value, derivative = (_as_function(formula, 1) for formula in pair)
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


@lru_cache(maxsize=256)
def _network_of(widths, activations, out_activation: str, layer_norm: bool) -> Network:
    return Network(widths, activations, out_activation, layer_norm)


_CHECKED_PARAMETERS: set[tuple] = set()
_MOST_CHECKED = 4096
_PLAIN_TYPES = (str, int, float, bool, type(None))


@cache
def _parameter_names(kind: Any) -> tuple[str, ...]:
    return tuple(kind._get_param_names())


def _plain_parameters(estimator) -> tuple | None:
    """Class and parameters of an estimator, None unless all are numbers, words, or tuples of them.

    The types belong to it, because 1, 1.0 and True are equal.
    """
    values = [estimator.__dict__.get(name) for name in _parameter_names(estimator.__class__)]
    kinds = []
    for value in values:
        kind = type(value)
        if kind is tuple:
            if not all(type(part) in _PLAIN_TYPES for part in value):
                return None
            kinds += [type(part) for part in value]
        elif kind not in _PLAIN_TYPES:
            return None
        kinds.append(kind)
    return type(estimator), *values, *kinds


def _is_matrix(X) -> bool:
    """Whether ``X`` is a plain array with rows and columns."""
    return type(X) is np.ndarray and X.ndim == 2 and X.size > 0


def _row_access(X):
    """``X`` in a form whose rows an engine can read: CSC becomes CSR."""
    return X.tocsr() if sparse.issparse(X) else X


def _has_finite_outputs(
    engine: Engine, network: Network, X, samples, parameters: np.ndarray
) -> bool:
    """Whether the engine's parameters give finite outputs for ``X``, placed as ``samples``.

    A batch's loss is that before its step, so the last loss does not show what became of them; nor
    does that of an exponential, which is finite where the output is not.
    """
    if not _may_overflow(network, X, parameters):
        return True
    return bool(np.isfinite(engine.predict(samples)).all())


def _may_overflow(network: Network, X, parameters: np.ndarray) -> bool:
    """Whether a bound on what the layers hand on is beyond the parameters' type."""
    values = X.data if sparse.issparse(X) else X
    known = all(activation.code != USER for activation in network.hidden)
    if not (known and isinstance(values, np.ndarray)) or network.out_activation == "exp":
        return True
    largest = np.finfo(parameters.dtype).max
    with np.errstate(over="ignore"):
        # without a copy, for data may be memory-mapped
        bound = np.float64(max(values.max(initial=0), -values.min(initial=0)))
        for coef, intercept in zip(*network.unflatten(parameters), strict=True):
            terms = np.abs(coef).max() * np.float64(len(coef))
            # no activation, and no normalised score, is larger than this
            bound = bound * terms + np.abs(intercept).max() + coef.shape[1]
        return not bound < (np.sqrt(largest) if network.layer_norm else largest)


def _warn_of_overflow(run: Progress, optimizer_state: dict | None) -> None:
    """Say what is not finite in a run whose parameters are; 'diverged' was said already."""
    if run.stop_reason == "diverged":
        return
    bad = [line for line in run.history if not np.isfinite(line[HISTORY.index("loss")])]
    if bad:
        what = f"the loss was {bad[-1][HISTORY.index('loss')]} in epoch {bad[-1][0]}"
    elif not np.isfinite(run.loss) and run.stop_reason != "interrupted":  # in the first epoch
        what = f"the loss is {run.loss}"
    elif optimizer_state is not None and not is_finite(optimizer_state["slots"]):
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


def _some_rows(array, rows: np.ndarray):
    """Some rows of what a user gave as X, y or weights, in its container if that has rows."""
    if array is None or isinstance(array, Number):  # one weight for all samples
        return array
    if sparse.issparse(array) and array.format not in ("csr", "csc"):
        array = array.tocsr()  # COO, DIA and BSR have none
    elif isinstance(array, memoryview) or not hasattr(array, "__getitem__"):
        array = np.asarray(array)
    return safe_indexing(array, rows)


def _as_number(score) -> float:
    """What a user's scorer returned; scikit-learn takes arrays of one element, too."""
    number = score
    with suppress(AttributeError, ValueError, RuntimeError):
        number = score.item()
    if not isinstance(number, Number) or isinstance(number, complex):
        raise ValueError(f"scoring must return one number, got {score!r}.")
    return float(number)  # type: ignore[arg-type]


def _host(array):
    """Targets or weights as scikit-learn's checks can take them."""
    return to_host(array) if on_gpu(array) else array


def _where_it_belongs(result: np.ndarray, X):
    """``result`` on the GPU of ``X`` if scikit-learn's array-API convention says so."""
    numeric = result.dtype.kind in "biuf"
    if not (numeric and on_gpu(X) and get_config()["array_api_dispatch"]):
        return result
    namespace = (
        X.__array_namespace__()
        if hasattr(X, "__array_namespace__")
        else import_module(type(X).__module__.partition(".")[0])
    )
    return namespace.asarray(result, device=X.device)


def _checked_weight(name: str, weight, y: np.ndarray) -> np.ndarray | None:
    """A weight for each sample; scikit-learn does not look at the value of a scalar."""
    if weight is None:
        return None
    checked = check_sample_weight(_host(weight), y)
    if not np.isfinite(checked).all():
        raise ValueError(f"{name} must be finite, got {weight}.")
    return checked


def _columns(y: np.ndarray) -> list[np.ndarray]:
    """Columns of class numbers of encoded ``y``."""
    return [y] if y.ndim == 1 else list(y.T.astype(np.int64))


def _balanced(y: np.ndarray, n_classes: int) -> np.ndarray:
    """Weights of the classes, 1 for a class that does not occur; shape (n_classes,)."""
    seen = np.unique(y)
    weights = np.ones(n_classes)
    weights[seen] = compute_class_weight("balanced", classes=seen, y=y)
    return weights


def _is_list_of_dicts(weights) -> bool:
    return isinstance(weights, list) and all(isinstance(one, dict) for one in weights)


def _is_class_weight(value) -> bool:
    try:
        return isinstance(value, Real) and 0 <= float(value) < np.inf
    except OverflowError:  # an integer of hundreds of digits
        return False


def _check_class_weights(weights) -> None:
    """Refuse what is no weight in a dict or a list of dicts."""
    for one in weights if isinstance(weights, list) else [weights]:
        values = one.values() if isinstance(one, dict) else ()
        if not all(map(_is_class_weight, values)):
            raise ValueError(f"class_weight must consist of finite numbers >= 0, got {one!r}.")


def _weigh(y: np.ndarray, sample_weight, class_weights):
    """Sample weights times the weights of the samples' classes."""
    if class_weights is None:
        return sample_weight
    weight = np.ones(len(y)) if sample_weight is None else sample_weight
    for column, weights in zip(_columns(y), class_weights, strict=True):
        with np.errstate(all="ignore"):
            weight = weight * weights[column]
    if not np.isfinite(weight).all():
        raise ValueError(
            "The product of sample_weight and class_weight is beyond the range of float64; divide "
            "one of them by a constant."
        )
    return weight


def _check_numbers(y, dtype) -> None:
    """Refuse what scikit-learn's checks let pass and a cast would make other numbers of."""
    if sparse.issparse(y):
        raise TypeError(
            "Sparse data was passed for y, but dense data is required. Use '.toarray()' to convert "
            "to a dense numpy array."
        )
    if y.dtype.kind not in "biuf":
        raise TypeError(
            f"y must hold numbers for a regression, got the type {y.dtype}; convert it to float, "
            "dates and times to a number of their unit."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = y.astype(dtype, copy=False)
        if not is_finite(numbers):
            assert_all_finite(numbers, input_name="y")


def _has_weight(weight: np.ndarray | None) -> bool:
    """Whether a mean over samples with these weights is defined."""
    if weight is None:
        return True
    with np.errstate(over="ignore"):
        return bool(weight.any()) and weight.sum(dtype=np.float64) != 0


def _in_range(weight: np.ndarray | None, dtype, rows=None) -> tuple[np.ndarray | None, int]:
    """Weights that ``dtype`` can hold and sum up, and by which power of 2 they were divided.

    Only those of ``rows`` count, if given.  Weights of ordinary size are left alone.
    """
    if weight is None:
        return None, 0
    info = np.finfo(dtype)
    counting = np.abs(weight if rows is None else weight[rows]).max()
    if counting >= np.sqrt(info.tiny) and np.abs(weight).max() <= np.sqrt(info.max):
        return weight, 0
    exponent = int(np.frexp(counting)[1]) - 1
    scaled = np.zeros(len(weight))
    rows = slice(None) if rows is None else rows
    scaled[rows] = np.ldexp(weight[rows].astype(np.float64), -exponent)
    return scaled, exponent


def _accuracy(matches: np.ndarray, sample_weight) -> float:
    return float(np.average(matches, weights=sample_weight))


def _r2(y: np.ndarray, prediction: np.ndarray, sample_weight) -> float:
    """Coefficient of determination, averaged over outputs, as `sklearn.metrics.r2_score`.

    Written out because it runs once per epoch, and the checks in front of scikit-learn's take
    longer than a small network's epoch.
    """
    if len(y) < 2 or not np.isfinite(prediction).all():
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
    value, gradient = (_as_function(formula, 2) for formula in pair)
    per_row = out_activation == "softmax"
    return Loss(USER, value, gradient, out_activation, per_row=per_row, of_probability=of_class)


def _are_plain_labels(y) -> bool:
    """Whether ``y`` holds labels, one per sample, as its type tells at once."""
    return type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "biu"


def _binarizer_of(y) -> LabelBinarizer:
    """A LabelBinarizer fitted to ``y``; scikit-learn's own checks take longer than an epoch."""
    binarizer = LabelBinarizer()
    if not _are_plain_labels(y):
        return binarizer.fit(y)
    classes = np.unique(y)
    if 2 * len(classes) >= len(y):  # it may be a regression, of which scikit-learn warns
        return binarizer.fit(y)
    binarizer.y_type_ = "multiclass" if len(classes) > 2 else "binary"
    binarizer.sparse_input_ = False
    binarizer.classes_ = classes
    return binarizer


class MLPClassifier(ClassifierMixin, _BaseMLP):
    __doc__ = f"""Multilayer perceptron classifier.

    Takes the place of `sklearn.neural_network.MLPClassifier`: same parameters, attributes and
    numbers, trained by compiled kernels.  It minimises the log loss unless ``loss`` says otherwise;
    the output layer is softmax for several classes, logistic for two classes and for multilabel
    targets.

    Parameters
    ----------
    {_PARAMETERS}
    class_weight : dict, 'balanced', list of dict or None, default=None
        Weights of the classes, by which the sample weights are multiplied, those of validation
        data too.  'balanced' is ``n_samples / (n_classes count_of_the_class)`` in the training
        data of `fit`; `partial_fit` takes a dict only.  For multilabel targets a list of one dict
        per label, or 'balanced', and a sample's weight is the product over the labels.
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

    _parameter_constraints: dict = {
        **_BaseMLP._parameter_constraints,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
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
        class_weight=None,
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
        self.class_weight = class_weight
        self.loss = loss
        self.focal_gamma = focal_gamma
        self.label_smoothing = label_smoothing

    def _loss(self, multiclass=False):
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
        return {"constants": constants, "label_smoothing": float(self.label_smoothing)}

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

        Raises
        ------
        ValueError
            If an input or a parameter is invalid.  The estimator is then as it was before the call.

        Examples
        --------
        >>> from fastmlp import MLPClassifier
        >>> model = MLPClassifier(random_state=0)
        >>> for X, y in [([[0.0], [1.0]], ["a", "b"]), ([[2.0], [3.0]], ["c", "a"])]:
        ...     model = model.partial_fit(X, y, classes=["a", "b", "c"])
        >>> model.t_
        4
        """
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight={self.class_weight!r} is not supported by partial_fit, which does "
                "not see all data; use sklearn.utils.class_weight.compute_class_weight on a large "
                "enough sample, and pass its weights as a dict."
            )
        with self._all_or_nothing():
            if check_partial_fit_first_call(self, classes):
                self._label_binarizer = LabelBinarizer()
                labels = _host(y)
                if type_of_target(labels).startswith("multilabel"):
                    self._label_binarizer.fit(labels)
                else:
                    self._label_binarizer.fit(classes)
            return self._fit(X, y, sample_weight, incremental=True)

    def _validate_input(self, X, y, incremental, reset):
        X, y = self._check_data(X, y, reset)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = _binarizer_of(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            self._check_kind(y)
            self._check_classes(np.unique(y) if _are_plain_labels(y) else unique_labels(y))
        loss = self._loss(multiclass=self._label_binarizer.y_type_ == "multiclass")
        return _row_access(X), self._encode(y, X.dtype), loss

    def _check_data(self, X, y, reset):
        X, y = self._validate(X, y, multi_output=True, dtype=(np.float64, np.float32), reset=reset)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _encode(self, y, dtype) -> np.ndarray:
        kind = self._label_binarizer.y_type_
        if kind == "multiclass":
            return np.searchsorted(self.classes_, y)
        if kind == "binary":
            positive = y == self.classes_[-1] if len(self.classes_) == 2 else np.zeros(len(y))
            return positive.astype(dtype)[:, None]
        # any number but 0 means that the sample has the label, as in scikit-learn
        return self._label_binarizer.transform(y).astype(bool).astype(dtype)

    def _validate_held_out(self, X, y):
        X, y = self._check_data(X, y, reset=False)
        if (y.ndim == 2) != self._is_multilabel():
            raise ValueError(
                "y_val must hold class labels, or an indicator matrix, just as y does."
            )
        unknown = np.setdiff1d(unique_labels(y), self.classes_)
        if unknown.size:
            raise ValueError(f"y_val has classes that y does not have: {unknown}.")
        return _row_access(X), self._encode(y, X.dtype)

    def _check_kind(self, y) -> None:
        """Refuse labels after an indicator matrix, and the other way round.

        Labels of three classes or more are another way to write a matrix, one label per sample.
        """
        if y.ndim == 2 and not self._is_multilabel():
            raise ValueError(
                "y must hold class labels, one per sample, as in the first call, and not an "
                "indicator matrix; make a new estimator for multilabel targets."
            )
        if y.ndim == 1 and self._is_multilabel() and len(self.classes_) < 3:
            raise ValueError(
                "y must be an indicator matrix, as in the first call, and not hold class labels; "
                "make a new estimator for them."
            )

    def _for_scorers(self, given, encoded):
        X, y, sample_weight = given
        return X, encoded.astype(int) if self._is_multilabel() else y, sample_weight

    def _is_multilabel(self) -> bool:
        return self._label_binarizer.y_type_.startswith("multilabel")

    def _class_weights(self, y):
        weights = self.class_weight
        if weights is None:
            return None
        columns = _columns(y)
        _check_class_weights(weights)
        if isinstance(weights, str):
            n_classes = 2 if self._is_multilabel() else len(self.classes_)
            return [_balanced(column, n_classes) for column in columns]
        if not self._is_multilabel():
            if isinstance(weights, list):
                raise ValueError(
                    "class_weight may be a list for multilabel targets only; use a dict."
                )
            return [compute_class_weight(weights, classes=self.classes_, y=self.classes_)]
        if not _is_list_of_dicts(weights) or len(weights) != len(columns):
            raise ValueError(
                "class_weight must be 'balanced' or a list of one dict per label for multilabel "
                f"targets, here of {len(columns)} dicts, got {weights!r}."
            )
        labels = np.array([0, 1])
        return [compute_class_weight(weight, classes=labels, y=labels) for weight in weights]

    def _check_classes(self, classes):
        _check_sorted(self.classes_)
        if self.warm_start:
            if set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the "
                    f"previous call to fit. Previously got {self.classes_}, `y` has {classes}"
                )
        elif not set(classes.tolist()) <= set(self.classes_.tolist()):
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

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPClassifier
        >>> model = MLPClassifier(solver="lbfgs", random_state=0)
        >>> model.fit([[0.0], [1.0]], ["no", "yes"]).predict([[0.1], [0.9]]).tolist()
        ['no', 'yes']
        """
        return _where_it_belongs(self._labels(self._outputs(X)), X)

    def _labels(self, outputs: np.ndarray) -> np.ndarray:
        """Labels for outputs of the network."""
        binarizer = self._label_binarizer
        kind, classes = binarizer.y_type_, binarizer.classes_
        if kind == "multiclass":
            return classes[outputs.argmax(axis=1)]
        if kind == "binary" and len(classes) == 2:
            return classes[(outputs.ravel() > 0.5).view(np.int8)]
        return binarizer.inverse_transform(outputs.ravel() if self.n_outputs_ == 1 else outputs)

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

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPClassifier
        >>> model = MLPClassifier(solver="lbfgs", random_state=0)
        >>> model.fit([[0.0], [1.0]], ["no", "yes"]).predict_proba([[1.0]]).round(2).tolist()
        [[0.0, 1.0]]
        """
        return _where_it_belongs(self._probabilities(X), X)

    def predict_log_proba(self, X):
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
        >>> from fastmlp import MLPClassifier
        >>> model = MLPClassifier(solver="lbfgs", random_state=0)
        >>> model.fit([[0.0], [1.0]], ["no", "yes"]).predict_log_proba([[1.0]]).shape
        (1, 2)
        """
        probabilities = self._probabilities(X)
        return _where_it_belongs(np.log(probabilities, out=probabilities), X)

    def _probabilities(self, X) -> np.ndarray:
        outputs = self._outputs(X)
        return np.hstack([1 - outputs, outputs]) if self.n_outputs_ == 1 else outputs

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

    _fewest_scored = 2

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
        with self._all_or_nothing():
            return self._fit(X, y, sample_weight, incremental=True)

    def _validate_input(self, X, y, incremental, reset):
        loss = self._loss()
        return *self._check_data(X, y, reset), loss

    def _loss(self, multiclass=False):
        return self.loss if isinstance(self.loss, str) else _user_loss(self.loss, "identity")

    def _validate_held_out(self, X, y):
        return self._check_data(X, y, reset=False)

    def _check_data(self, X, y, reset):
        X, y = self._validate(
            X, y, multi_output=True, y_numeric=True, dtype=(np.float64, np.float32), reset=reset
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        _check_numbers(y, X.dtype)
        if isinstance(self.loss, str):
            Objective(self.loss, 1).check_range(y)
        return _row_access(X), self._spread(y.reshape(len(y), -1))

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
        return {"constants": constants}

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
        if self._levels() is not None:
            return _where_it_belongs(self._sorted(outputs), X)
        return _where_it_belongs(outputs.ravel() if outputs.shape[1] == 1 else outputs, X)

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
