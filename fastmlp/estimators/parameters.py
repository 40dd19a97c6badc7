"""The estimators' parameters: a row for each, in the order of the signature.

A row says what may be given, what it means, and how others treat it: what a resumed fit may change,
what a file leaves out, what `to_sklearn` need not find an equal for, and which solvers have it.
Constraints, documentation and refusals are made from the rows; the constructors repeat names and
defaults, because scikit-learn reads signatures, and a test compares them.
"""

import os
import textwrap
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from numbers import Integral, Real
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastmlp._sklearn import Interval, Options, StrOptions, validate_parameter_constraints
from fastmlp.engine import DEVICES, MATMUL_PRECISIONS
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.initialisers import INITIALISERS
from fastmlp.optimizers import OPTIMIZERS
from fastmlp.schedules import SCIKIT_LEARN_SCHEDULES, STEP_SCHEDULES

SOLVERS = ("lbfgs", *(name for name in OPTIMIZERS if name != "nesterov"))
"""'nesterov' is one of two forms of 'sgd'."""
REGRESSION_LOSSES = tuple(
    name for name, row in LOSSES.items() if row.out_activation in ("identity", "exp")
)

CLASS_LOSSES = {
    "squared_error" if name == "brier" else name: name
    for name, row in LOSSES.items()
    if row.out_activation == "softmax" and name != "cross_entropy"
}
"""The classifier's losses, and their rows of several classes; for two they are ``binary_...``.

'cross_entropy' is 'log_loss' of smoothed targets.
"""

ATTRIBUTES = """\
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


class Parameter(NamedTuple):
    """One row.

    Parameters
    ----------
    default : object
    kind : str
        What may be given, in the documentation's words.
    doc : str
        What it means.
    constraint : list
        What may be given, in scikit-learn's terms.
    instead : str or None
        Only stochastic solvers have it; for others this is what to do instead.
    resumable : bool
        Whether a resumed fit may have another value, because no number depends on it.
    saved : bool
        Whether files hold it.
    portable : bool
        Whether a model means the same without it: it says how to run, not what.
    """

    default: Any
    kind: str
    doc: str
    constraint: list
    instead: str | None = None
    resumable: bool = False
    saved: bool = True
    portable: bool = True


def _at_least(kind: type, least: float) -> list:
    return [Interval(kind, least, None, closed="left")]


def _above_zero() -> list:
    return [Interval(Real, 0, None, closed="neither")]


def _share(closed: str = "left") -> list:
    return [Interval(Real, 0, 1, closed=closed)]


_STOCHASTIC = "use a stochastic solver"

SHARED: dict[str, Parameter] = {
    "hidden_layer_sizes": Parameter(
        (100,),
        "int or array-like of int",
        """\
        Units of each hidden layer.  ``()`` means no hidden layer: linear, logistic or softmax
        regression.""",
        ["array-like", *_at_least(Integral, 1)],
    ),
    "activation": Parameter(
        "relu",
        "str, (callable, callable), or sequence of these",
        """\
        Activation of the hidden layers, or one for each of them.  In scikit-learn: 'identity',
        'logistic', 'tanh', 'relu'.  Besides: 'step' (0 or 1; its gradient counts as 1),
        'leaky_relu' (slope 0.01 below zero), 'elu', 'selu', 'gelu' (in its tanh form), 'silu',
        'mish', 'softplus', 'hard_sigmoid', 'hard_swish', as in PyTorch.  A pair of functions gives
        the value and the derivative at one number ``z``; Numba compiles them anew in each process.
        """,
        [StrOptions(set(ACTIVATIONS)), "array-like"],
    ),
    "solver": Parameter(
        "adam",
        "{'lbfgs', 'sgd', 'adam', 'rmsprop', 'nadam', 'lion'}",
        """\
        'lbfgs' is SciPy's L-BFGS-B on the whole data set, in float64; 'sgd' is stochastic
        gradient descent with momentum; 'adam' is Adam (Kingma and Ba, 2014).  Not in
        scikit-learn: 'rmsprop' (Tieleman and Hinton, 2012); 'nadam' (Dozat, 2016), as PyTorch's
        NAdam; 'lion' (Chen et al., 2023), whose authors advise ``beta_2=0.99`` and a learning rate
        of a third to a tenth of Adam's.""",
        [StrOptions(set(SOLVERS))],
    ),
    "alpha": Parameter(
        0.0001,
        "float",
        """\
        Strength of the L2 penalty ``alpha / (2 sum of weights) ||W||^2`` on the weights, not the
        biases; the sum is over the batch's sample weights, its length without them.""",
        _at_least(Real, 0),
    ),
    "batch_size": Parameter(
        "auto",
        "int or 'auto'",
        """\
        Samples per step of the stochastic solvers; 'auto' is ``min(200, n_samples)``.""",
        [StrOptions({"auto"}), *_at_least(Integral, 1)],
    ),
    "learning_rate": Parameter(
        "constant",
        "str or callable",
        """\
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
        """,
        [StrOptions({*SCIKIT_LEARN_SCHEDULES, *STEP_SCHEDULES, "plateau"}), callable],
    ),
    "learning_rate_init": Parameter(
        0.001, "float", "Initial learning rate of the stochastic solvers.", _above_zero()
    ),
    "power_t": Parameter(
        0.5, "float", "Exponent of the 'invscaling' schedule.", _at_least(Real, 0)
    ),
    "max_iter": Parameter(
        200,
        "int",
        "Most epochs (stochastic solvers) or iterations ('lbfgs') of one call to `fit`.",
        _at_least(Integral, 1),
    ),
    "shuffle": Parameter(
        True, "bool", "Whether to draw a new order of the samples for each epoch.", ["boolean"]
    ),
    "random_state": Parameter(
        None,
        "int, RandomState instance or None",
        """\
        Source of initial weights, validation split and sample order.  The same integer gives the
        same numbers as in scikit-learn.""",
        ["random_state"],
    ),
    "tol": Parameter(
        0.0001,
        "float",
        "Improvement of loss or validation score below which an epoch does not count as better.",
        _at_least(Real, 0),
    ),
    "verbose": Parameter(
        False, "bool", "Print the loss of every epoch.", ["verbose"], resumable=True
    ),
    "warm_start": Parameter(False, "bool", "Start `fit` from the previous solution.", ["boolean"]),
    "momentum": Parameter(0.9, "float", "Momentum of 'sgd', in [0, 1].", _share("both")),
    "nesterovs_momentum": Parameter(
        True, "bool", "Whether that momentum is Nesterov's.", ["boolean"]
    ),
    "early_stopping": Parameter(
        False,
        "bool",
        """\
        Set aside ``validation_fraction`` of the data, stop when its score no longer improves, and
        keep the parameters of the best epoch.  Stochastic solvers only.""",
        ["boolean"],
    ),
    "validation_fraction": Parameter(
        0.1, "float", "Share of the data set aside by ``early_stopping``, in [0, 1).", _share()
    ),
    "beta_1": Parameter(
        0.9,
        "float",
        """\
        Decay rate of Adam's first moments, in [0, 1); for 'lion', of the mean whose sign is the
        step.""",
        _share(),
    ),
    "beta_2": Parameter(
        0.999,
        "float",
        "Decay rate of Adam's second moments, in [0, 1); for 'lion', of its memory.",
        _share(),
    ),
    "epsilon": Parameter(
        1e-8,
        "float",
        "Term for numerical stability of 'adam', 'nadam' and 'rmsprop'.",
        _above_zero(),
    ),
    "n_iter_no_change": Parameter(
        10,
        "int or np.inf",
        """\
        Epochs in a row without improvement that are tolerated.  With ``np.inf`` and a
        ``learning_rate`` over ``max_iter`` epochs ('cosine', 'one_cycle', 'coslog4', a function),
        ending at ``max_iter`` is no reason to warn.""",
        [*_at_least(Integral, 1), Options(Real, {np.inf})],
    ),
    "max_fun": Parameter(
        15000, "int", "Most evaluations of the loss by 'lbfgs'.", _at_least(Integral, 1)
    ),
    "n_threads": Parameter(
        None,
        "int or None",
        """\
        Most threads to use; this and what follows is not in scikit-learn.  None means as many as
        pay, within the limits of the process (affinity, container, joblib).  Any number gives the
        same bits.""",
        [None, *_at_least(Integral, 1)],
        resumable=True,
        portable=False,
    ),
    "device": Parameter(
        "cpu",
        "{'cpu', 'cuda'}",
        """\
        Where to train and predict.  'cuda' is an NVIDIA GPU and needs
        ``pip install "fastmlp[cuda]"``: the one that is current when the process uses it first
        (the first of ``CUDA_VISIBLE_DEVICES``, or as ``torch.cuda.set_device`` has chosen), from
        then on in all threads, whichever is current later.  There, ``X`` may also be an array
        that is on this GPU already (CuPy, PyTorch, JAX, Numba; float32 or float64, contiguous in
        C order).""",
        [StrOptions(set(DEVICES))],
        portable=False,
    ),
    "matmul_precision": Parameter(
        "highest",
        "{'highest', 'high', 'medium'}",
        """\
        Matrix products of float32 numbers on a GPU: in float32, in TF32, or of inputs rounded to
        bfloat16; sums are float32.""",
        [StrOptions(set(MATMUL_PRECISIONS))],
        portable=False,
    ),
    "rho": Parameter(
        0.9,
        "float",
        "Decay rate of the mean of squared gradients of 'rmsprop', in [0, 1).",
        _share(),
    ),
    "weight_decay": Parameter(
        0.0,
        "float",
        """\
        Decoupled weight decay of the stochastic solvers: before each update, weights (not biases)
        lose ``learning_rate * weight_decay`` of themselves.  With 'adam' it makes AdamW (Loshchilov
        and Hutter, 2019; set ``alpha=0`` for theirs).""",
        _at_least(Real, 0),
        instead="use alpha, or a stochastic solver",
    ),
    "scoring": Parameter(
        None,
        "None, 'loss', str or callable",
        """\
        Validation score.  None is accuracy or R^2; 'loss' is minus the validation loss; else the
        name of a scorer of scikit-learn's, or a function ``(estimator, X, y) -> score``, higher is
        better.  It gets validation data in the form that `fit` got them, and the sample weights as
        ``sample_weight`` if there are any.""",
        [None, str, callable],
    ),
    "decay_rate": Parameter(
        0.1,
        "float",
        "Factor of the schedules 'exponential', 'step' and 'plateau', in (0, 1).",
        _share("neither"),
    ),
    "decay_epochs": Parameter(
        30,
        "int",
        "Epochs in which 'exponential' and 'step' multiply the rate by ``decay_rate``.",
        _at_least(Integral, 1),
    ),
    "patience": Parameter(
        5,
        "int",
        """\
        Epochs without improvement that 'plateau' tolerates; fewer than ``n_iter_no_change``, or
        training stops first.""",
        _at_least(Integral, 0),
    ),
    "warmup_epochs": Parameter(
        0,
        "int",
        """\
        Multiply the rates of the first epochs, whatever the schedule, by a factor that grows
        linearly from step to step and reaches 1 at their last step.""",
        _at_least(Integral, 0),
        instead=_STOCHASTIC,
    ),
    "weight_init": Parameter(
        "auto",
        "str or callable",
        """\
        Initial weights.  'auto' is scikit-learn's: uniform, biases too.  With biases of 0:
        'glorot_uniform', 'glorot_normal', 'he_uniform', 'he_normal', 'lecun_normal' (normal
        distributions are not truncated), 'orthogonal', 'zeros', or a function
        ``(fan_in, fan_out, random_state) -> array of shape (fan_in, fan_out)``.""",
        [StrOptions({"auto", *INITIALISERS}), callable],
    ),
    "n_restarts": Parameter(
        1,
        "int",
        """\
        Train from that many random initialisations, at once as far as there are processors (on a
        GPU one after the other), and keep the best by ``restart_scores_``.  All share one
        validation split.""",
        _at_least(Integral, 1),
    ),
    "max_time": Parameter(
        None,
        "float or None",
        """\
        Seconds after which `fit` ends with what it has, once the current epoch is complete.""",
        [None, *_above_zero()],
        resumable=True,
    ),
    "dropout": Parameter(
        0.0,
        "float or sequence of float",
        """\
        Share of the units that every training step sets to 0, in [0, 1), for all hidden layers or
        one for each; the others are multiplied by ``1 / (1 - dropout)`` (Srivastava et al., 2014).
        Predictions and validation have none; the training loss has, as in Keras.  Stochastic
        solvers only.""",
        [*_share(), "array-like"],
        instead=_STOCHASTIC,
    ),
    "max_grad_norm": Parameter(
        None,
        "float or None",
        """\
        A step whose gradient (of all parameters, penalty included) has a larger norm than this is
        made with the gradient scaled down to it, as by PyTorch's clip_grad_norm_.  Stochastic
        solvers only.""",
        [None, *_above_zero()],
        instead=_STOCHASTIC,
    ),
    "ema_decay": Parameter(
        None,
        "float or None",
        """\
        Average the parameters exponentially over the steps: after each of them,
        ``average = ema_decay average + (1 - ema_decay) parameters``, in [0, 1).  The average starts
        from the initial parameters without correction, so ``1 / (1 - ema_decay)`` should be a small
        part of all steps.  It is what ``coefs_``, predictions and validation use; the training loss
        is that of the parameters themselves.  Stochastic solvers only.""",
        [None, *_share()],
        instead=_STOCHASTIC,
    ),
    "layer_norm": Parameter(
        False,
        "bool",
        """\
        Normalise the scores of each hidden layer over its units before the activation,
        ``(z - mean) / sqrt(variance + 1e-5)`` (Ba et al., 2016), in training and prediction alike.
        There is no gain and no offset: the weights and the biases of the layer that follows can do
        their work.""",
        ["boolean"],
    ),
    "checkpoint": Parameter(
        None,
        "str, path-like or None",
        """\
        File to which `fit` writes where it stands, between epochs.  If the process dies, the same
        `fit` with ``resume=True`` goes on from there and ends with the same bits as if nothing had
        happened; it does so after ``max_time``, Ctrl-C and with a larger ``max_iter``, too.  What
        callbacks remember is not in it.  A file is for one fit: do not share it among those of a
        grid search.  Stochastic solvers only.""",
        [None, str, os.PathLike],
        instead=f"{_STOCHASTIC}: SciPy does not give the state of 'lbfgs' away",
        resumable=True,
        saved=False,
        portable=False,
    ),
    "checkpoint_every": Parameter(
        60.0,
        "float",
        """\
        Seconds between two writes; 0 means after every epoch.  The end of training is written in
        any case.""",
        _at_least(Real, 0),
        resumable=True,
        portable=False,
    ),
}

_CLASSIFIER: dict[str, Parameter] = {
    "class_weight": Parameter(
        None,
        "dict, 'balanced', list of dict or None",
        """\
        Weights of the classes, by which the sample weights are multiplied, those of validation
        data too.  'balanced' is ``n_samples / (n_classes count_of_the_class)`` in the training
        data of `fit`; `partial_fit` takes a dict only.  For multilabel targets a list of one dict
        per label, or 'balanced', and a sample's weight is the product over the labels.""",
        [dict, list, StrOptions({"balanced"}), None],
    ),
    "loss": Parameter(
        "log_loss",
        "{'log_loss', 'squared_error', 'focal'} or (callable, callable)",
        """\
        'squared_error' is half the squared error of the probabilities of all classes (for two
        classes Brier's score), 'focal' the log loss times ``(1 - p)^focal_gamma`` (Lin et al.,
        2017).  A pair of functions of one class's probability ``p`` and its target ``y`` gives a
        value and its derivative with respect to ``p``; a sample's loss is the sum over the classes,
        which for two classes and for each label are ``p`` and ``1 - p``.  Not in scikit-learn.""",
        [StrOptions(set(CLASS_LOSSES)), "array-like"],
    ),
    "focal_gamma": Parameter(
        2.0, "float", "Exponent of ``loss='focal'``; not in scikit-learn.", _at_least(Real, 0)
    ),
    "label_smoothing": Parameter(
        0.0,
        "float",
        """\
        Share of a class's target that is spread evenly over all classes, in [0, 1), while losses
        are computed; not in scikit-learn.""",
        _share(),
    ),
}

_REGRESSOR_LOSS: dict[str, Parameter] = {
    "loss": Parameter(
        "squared_error",
        "str or (callable, callable)",
        """\
        'squared_error' is half the squared error, 'poisson' half the Poisson deviance of counts
        ``y >= 0`` with the exponential as output activation.  Not in scikit-learn:
        'absolute_error'; 'huber' (half the squared error up to a distance of ``huber_delta``,
        straight on from there); 'quantile'; 'gamma', half the gamma deviance of ``y > 0``, with the
        exponential; 'log_cosh'.  A pair of functions of a prediction and its target gives a value
        and its derivative with respect to the prediction.  A sample's loss is the sum over the
        outputs, but for scikit-learn's 'squared_error' (the README says how).""",
        [StrOptions(set(REGRESSION_LOSSES)), "array-like"],
    ),
}

_REGRESSOR: dict[str, Parameter] = {
    "huber_delta": Parameter(
        1.0, "float", "Where 'huber' becomes straight; not in scikit-learn.", _above_zero()
    ),
    "quantile": Parameter(
        0.5,
        "float or array-like of float",
        """\
        Level of ``loss='quantile'``, in (0, 1).  With several, the network has an output for each,
        ``y`` is one-dimensional, and `predict` returns an array of shape (n_samples, n_levels)
        whose columns never cross, because each row is sorted by level.  Not in scikit-learn.""",
        [*_share("neither"), "array-like"],
    ),
}

CLASSIFIER = SHARED | _CLASSIFIER
REGRESSOR = _REGRESSOR_LOSS | SHARED | _REGRESSOR


def constraints(table: Mapping[str, Parameter]) -> dict[str, list]:
    """scikit-learn's ``_parameter_constraints``."""
    return {name: row.constraint for name, row in table.items()}


def documentation(table: Mapping[str, Parameter]) -> str:
    """The section "Parameters" of a class's docstring, indented as its other sections."""
    entries = [
        f"{name} : {row.kind}, default={row.default!r}\n"
        + textwrap.indent(textwrap.dedent(row.doc).strip(), " " * 4)
        for name, row in table.items()
    ]
    return textwrap.indent("\n".join(entries), " " * 4).lstrip()


# --- what follows from parameters alone

Result = TypeVar("Result")
_PLAIN_TYPES = frozenset({str, int, float, bool, type(None), np.float64, np.int64})
_MOST_KEPT = 4096
_VALID_ONES: set[tuple] = set()


@cache
def _values_of(kind: Any) -> Callable[[dict[str, Any]], tuple]:
    return itemgetter(*kind._get_param_names())


def _plain_parameters(estimator: Any) -> tuple | None:
    """Class and parameters of an estimator, None unless all are numbers, words, or tuples of them.

    The types belong to it, because 1, 1.0 and True are equal.
    """
    kind: Any = type(estimator)
    try:
        values = _values_of(kind)(vars(estimator))
    except KeyError:  # a subclass keeps one elsewhere
        return None
    types = tuple(map(type, values))
    if not _PLAIN_TYPES.issuperset(types):
        for value in values:
            if type(value) is tuple and _PLAIN_TYPES.issuperset(map(type, value)):
                types += tuple(map(type, value))
            elif type(value) not in _PLAIN_TYPES:
                return None
    return kind, values, types


def check_each(estimator: Any) -> None:
    """scikit-learn's check of the parameters, of each number and word once.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor

    Raises
    ------
    ValueError
        If a parameter is of a wrong type or out of its range.
    """
    kind, plain, unknown = type(estimator), [], {}
    for name, value in estimator.get_params(deep=False).items():
        if type(value) in _PLAIN_TYPES:
            key = kind, name, type(value), value
            if key in _VALID_ONES:
                continue
            plain.append(key)
        unknown[name] = value
    constraints = estimator._parameter_constraints
    validate_parameter_constraints(constraints, unknown, caller_name=kind.__name__)
    if len(_VALID_ONES) > _MOST_KEPT:
        _VALID_ONES.clear()
    _VALID_ONES.update(plain)


class ByParameters:
    """What was worked out from the parameters of estimators, kept for each set of plain ones.

    What is neither a number nor a word nor a tuple of them can become another without our knowing.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple, Any] = {}

    def get(self, estimator: Any, work_out: Callable[[], Result], *further: Hashable) -> Result:
        """The result of ``work_out``, which depends on the parameters and what is given further."""
        parameters = _plain_parameters(estimator)
        if parameters is None:
            return work_out()
        key = parameters, further
        if key not in self._kept:
            result = work_out()
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[key] = result
            return result
        return self._kept[key]
