"""A glass box for teaching and debugging: the numbers between the data and the update.

`forward` and `backward` state a network's passes in NumPy, layer by layer in the order of a
textbook, over the scalar formulas of `fastmlp.functions`; the tests hold them against the compiled
kernels and against an oracle.  They are for batches of some thousand samples: formulas are called
for one number at a time.  `check_gradients` asks the compiled kernels themselves, and `step` makes
one update with them.  All of it runs on the CPU, whatever the model's ``device``, and changes
nothing of the model.

Everything takes a fitted model; `initialise` makes one that stands before its first epoch.

Layers count from 0, as in ``coefs_``: ``z[i] = a[i] @ coefs_[i] + intercepts_[i]``.
"""

import copy
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike
from scipy.special import log_expit, log_softmax, logsumexp, softmax
from sklearn.base import clone

from fastmlp._sklearn import check_is_fitted, check_random_state
from fastmlp.engine import Engine, get_engine, place
from fastmlp.estimators import (
    Batch,
    MLPClassifier,
    MLPRegressor,
    fitted_model,
    go_on_from,
    read_batch,
    start,
)
from fastmlp.estimators.data import checked, on_host
from fastmlp.functions import (
    LAYER_NORM_EPSILON,
    LINKS,
    Activation,
    Formula,
    Loss,
    with_our_arguments,
)
from fastmlp.objective import Objective
from fastmlp.optimizers import N_SLOTS

__all__ = ["backward", "check_gradients", "forward", "initialise", "slopes", "step"]

Model = TypeVar("Model", bound=MLPClassifier | MLPRegressor)

_STEPS = (1e-5, 1e-6, 1e-7, 1e-8)
_GOOD = 1e-7
_LEAST_SCALE = 1e-4
# the log losses without their limits, which are flat: focal's exponent is 0 here
_UNLIMITED = {"log_loss": "cross_entropy", "binary_log_loss": "binary_focal"}


class Forward(NamedTuple):
    """What `forward` returns: one array of shape (n_samples, n_units) per layer.

    Attributes
    ----------
    z : list of n_layers_ - 1 arrays
        Scores of the hidden layers and the output layer, ``a[i] @ coefs_[i] + intercepts_[i]``.
    normalised : list of n_layers_ - 1 arrays
        What the activations take: with ``layer_norm`` the scores of hidden layers, normalised;
        else ``z``.
    a : list of n_layers_ arrays
        ``a[0]`` is ``X`` (sparse if that is), ``a[-1]`` are the outputs: class probabilities (of
        the second of two classes, of each label), or predictions (quantiles not yet sorted).
    """

    z: list[np.ndarray]
    normalised: list[np.ndarray]
    a: list[np.ndarray]


class Backward(NamedTuple):
    """What `backward` returns.

    Attributes
    ----------
    loss : float
        What training minimises: ``data_loss + penalty``.
    data_loss : float
        Mean loss of the samples, by their weights.
    penalty : float
        ``alpha / (2 sum of weights) ||W||^2``.
    forward : Forward
        The forward pass.
    deltas : list of n_layers_ - 1 arrays of shape (n_samples, n_units)
        ``d loss / d z``.
    coef_grads : list of arrays of the shapes of ``coefs_``
        ``d loss / d coefs_[i] = a[i].T @ deltas[i] + alpha / (sum of weights) coefs_[i]``.
    intercept_grads : list of arrays of the shapes of ``intercepts_``
        ``d loss / d intercepts_[i]``: the deltas, summed over the samples.
    """

    loss: float
    data_loss: float
    penalty: float
    forward: Forward
    deltas: list[np.ndarray]
    coef_grads: list[np.ndarray]
    intercept_grads: list[np.ndarray]


class Step(NamedTuple):
    """What `step` returns; the lists have the shapes of ``coefs_`` and ``intercepts_``.

    Attributes
    ----------
    loss_before, loss_after : float
        The batch's loss, penalty included.
    learning_rate : float
        The schedule's rate.
    coefs_before, coefs_after, intercepts_before, intercepts_after : list of ndarray
        The parameters.
    coef_grads, intercept_grads : list of ndarray
        The gradient before the update, not scaled down by ``max_grad_norm``.
    coef_updates, intercept_updates : list of ndarray
        What was added to the parameters.
    """

    loss_before: float
    loss_after: float
    learning_rate: float
    coefs_before: list[np.ndarray]
    coefs_after: list[np.ndarray]
    intercepts_before: list[np.ndarray]
    intercepts_after: list[np.ndarray]
    coef_grads: list[np.ndarray]
    intercept_grads: list[np.ndarray]
    coef_updates: list[np.ndarray]
    intercept_updates: list[np.ndarray]


class ArrayCheck(NamedTuple):
    """The worst element of one array of parameters.

    Attributes
    ----------
    name : {'coefs_', 'intercepts_'}
    layer : int
    place : tuple of int
        Its indices in the array.
    numeric, analytic : float
        The derivative by differences, and by backpropagation.
    error : float
        See `check_gradients`.
    n_checked, n_elements : int
        Elements looked at, and all.
    """

    name: str
    layer: int
    place: tuple[int, ...]
    numeric: float
    analytic: float
    error: float
    n_checked: int
    n_elements: int


class GradientCheck(NamedTuple):
    """What `check_gradients` returns; printing it gives a table.

    Attributes
    ----------
    arrays : list of ArrayCheck
        The worst element of each array of parameters.
    """

    arrays: list[ArrayCheck]

    @property
    def worst(self) -> ArrayCheck:
        """The worst of all; a NaN is the worst."""
        return self.arrays[int(np.argmax([one.error for one in self.arrays]))]

    def __str__(self) -> str:
        lines = [("array", "checked", "worst at", "numeric", "backpropagated", "error")]
        for one in self.arrays:
            place = ", ".join(map(str, one.place))
            lines.append((
                f"{one.name}[{one.layer}]", f"{one.n_checked} of {one.n_elements}", f"[{place}]",
                f"{one.numeric:.6e}", f"{one.analytic:.6e}", f"{one.error:.1e}",
            ))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


# --- public


def initialise(model: Model, X: Any, y: Any) -> Model:
    """A model as `fit` would start with it, before the first epoch.

    Parameters
    ----------
    model : MLPClassifier or MLPRegressor
        Fitted or not; it is not changed.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input samples.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets.

    Returns
    -------
    model : MLPClassifier or MLPRegressor
        A copy with the initial ``coefs_`` and ``intercepts_`` that ``random_state`` gives; with
        ``n_restarts``, those of the first.  `partial_fit` goes on from there.

    Examples
    --------
    >>> from fastmlp import MLPClassifier, inspect
    >>> X, y = [[0, 0], [0, 1], [1, 0], [1, 1]], ["even", "odd", "odd", "even"]
    >>> start = inspect.initialise(MLPClassifier((3,), random_state=0), X, y)
    >>> start.coefs_[0].round(2).tolist()
    [[0.11, 0.47, 0.23], [0.1, -0.17, 0.32]]
    """
    copy_ = clone(_ours(model))
    start(copy_, on_host(X), y)
    return copy_


def forward(model: MLPClassifier | MLPRegressor, X: Any) -> Forward:
    """Scores and outputs of every layer.

    Parameters
    ----------
    model : MLPClassifier or MLPRegressor
        A fitted model; see `initialise`.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input samples.

    Returns
    -------
    forward : Forward
        ``z``, ``normalised`` and ``a``, lists with an array per layer.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmlp import MLPRegressor, inspect
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> model = MLPRegressor(hidden_layer_sizes=(4,), solver="lbfgs", random_state=0)
    >>> model = model.fit(X, X.ravel() ** 2)
    >>> z, _, a = inspect.forward(model, X)
    >>> [array.shape for array in a]
    [(20, 1), (20, 4), (20, 1)]
    >>> bool(np.allclose(a[1], np.maximum(z[0], 0)))
    True
    >>> bool(np.allclose(a[-1].ravel(), model.predict(X)))
    True
    """
    check_is_fitted(_ours(model))
    X = checked(model, on_host(X), reset=False)
    return _forward(model, X, fitted_model(model).predict.dtype_for(X))


def slopes(model: MLPClassifier | MLPRegressor, passed: Forward) -> list[np.ndarray]:
    """Derivatives of the hidden layers' activations.

    Parameters
    ----------
    model : MLPClassifier or MLPRegressor
        A fitted model.
    passed : Forward
        Its forward pass.

    Returns
    -------
    slopes : list of n_layers_ - 2 arrays of shape (n_samples, n_units), float64
        ``d a[i + 1] / d normalised[i]``.

    Examples
    --------
    >>> from fastmlp import MLPRegressor, inspect
    >>> X, y = [[-1.0], [2.0]], [0.0, 1.0]
    >>> start = inspect.initialise(MLPRegressor(activation="relu", random_state=0), X, y)
    >>> passed = inspect.forward(start, X)
    >>> bool(((inspect.slopes(start, passed)[0] == 1) == (passed.z[0] > 0)).all())
    True
    """
    hidden = fitted_model(_ours(model)).network.hidden
    return [
        _slope(row, z, a)
        for row, z, a in zip(hidden, passed.normalised[:-1], passed.a[1:-1], strict=True)
    ]


def backward(
    model: MLPClassifier | MLPRegressor, X: Any, y: Any, sample_weight: Any = None
) -> Backward:
    """Backpropagation: the loss of a batch, and its derivatives by scores and parameters.

    The loss is what training minimises if this is the whole batch: with the penalty ``alpha``,
    weights of samples and classes (``class_weight='balanced'`` goes by this batch) and label
    smoothing, but without dropout.

    For scikit-learn's 'squared_error' of several outputs, ``loss`` is a mean over the outputs and
    the derivatives are those of the sum, as in training.

    Parameters
    ----------
    model : MLPClassifier or MLPRegressor
        A fitted model; see `initialise`.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input samples.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets, as `fit` takes them.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    backward : Backward
        ``loss``, the forward pass, ``deltas``, ``coef_grads``, ``intercept_grads``.

    Examples
    --------
    >>> from fastmlp import MLPClassifier, inspect
    >>> X, y = [[0, 0], [0, 1], [1, 0], [1, 1]], ["even", "odd", "odd", "even"]
    >>> start = inspect.initialise(MLPClassifier((3,), random_state=0), X, y)
    >>> result = inspect.backward(start, X, y)
    >>> round(result.loss, 2)
    0.81
    >>> result.deltas[-1].round(2).ravel().tolist()
    [0.18, -0.08, -0.06, 0.19]
    >>> [gradient.shape for gradient in result.coef_grads]
    [(2, 3), (3, 1)]
    """
    return _backward(model, _batch(model, X, y, sample_weight))


def check_gradients(
    model: MLPClassifier | MLPRegressor,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    n_elements: int | None = 50,
    random_state: int | np.random.RandomState | None = 0,
) -> GradientCheck:
    """Compare the compiled gradient with central differences of the compiled loss, in float64.

    It finds a derivative that does not belong to its function, in a pair of the user's above all.
    An error is a difference between both derivatives, relative to the largest derivative of its
    array or to 1e-4 of the loss, below which differences are mostly rounding.  Errors of correct
    gradients are below 1e-5; those of wrong ones are seldom below 1e-3.

    Differences are taken over ``1e-5 max(1, |w|)``, and over smaller steps down to a thousandth of
    it where the result is not as expected: they must not span a kink (of 'relu', of
    'absolute_error').  At the kink itself, say a score of exactly 0 in front of 'relu', there is no
    derivative to compare with, and the derivative of 'step' is none: such errors are no mistakes.
    The log losses count in full here, while training reports at most 36 for a sample.

    Parameters
    ----------
    model : MLPClassifier or MLPRegressor
        A fitted model; see `initialise`.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input samples.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets, as `fit` takes them.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    n_elements : int or None, default=50
        Look at that many elements of each array, drawn at random; None means all.
    random_state : int, RandomState instance or None, default=0
        Draws them.

    Returns
    -------
    check : GradientCheck
        The worst element of each array; ``check.worst.error`` is the largest error.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmlp import MLPRegressor, inspect
    >>> X = np.random.default_rng(0).normal(size=(50, 3))
    >>> wrong = (lambda z: np.arctan(z), lambda z: 1 / (1 + abs(z)))
    >>> model = MLPRegressor(hidden_layer_sizes=(4,), activation=wrong, random_state=0)
    >>> check = inspect.check_gradients(inspect.initialise(model, X, X[:, 0]), X, X[:, 0])
    >>> check.worst.layer, check.worst.error > 0.01
    (0, True)
    >>> print(check)  # doctest: +ELLIPSIS
    array           checked   worst at  numeric        backpropagated  error
    coefs_[0]       12 of 12  ...
    intercepts_[0]  4 of 4    ...
    coefs_[1]       4 of 4    ...
    intercepts_[1]  1 of 1    ...
    """
    batch = _batch(model, X, y, sample_weight)
    fitted = fitted_model(model)
    network, flat = fitted.network, fitted.parameters.astype(np.float64)
    engine = _engine(model, batch, batch.objective)
    engine.set_parameters(flat)
    _, gradient = engine.loss_and_gradient()
    loss = _LossOf(_engine(model, batch, _differentiable(batch.objective)), flat)
    rng = check_random_state(random_state)
    checks = []
    layers = zip(*network.unflatten(np.arange(flat.size)), strict=True)
    for layer, pair in enumerate(layers):
        for name, places in zip(("coefs_", "intercepts_"), pair, strict=True):
            n_checked = min(places.size, n_elements or places.size)
            chosen = rng.choice(places.ravel(), n_checked, replace=False)
            scale = max(np.abs(gradient[places]).max(), _LEAST_SCALE * abs(loss.value)) or 1.0
            at, numeric, error = _worst(loss, gradient, chosen, scale)
            place = np.unravel_index(at - places.flat[0], places.shape)
            checks.append(ArrayCheck(
                name, layer, tuple(map(int, place)), numeric, float(gradient[at]), error,
                n_checked, places.size,
            ))  # fmt: skip
    return GradientCheck(checks)


def step(model: MLPClassifier | MLPRegressor, X: Any, y: Any, sample_weight: Any = None) -> Step:
    """One update by the model's optimizer, on a batch that is all of ``X``.

    It is what `partial_fit` does with ``batch_size=n_samples`` and without dropout; the optimizer
    goes on from its state in the model.  With ``ema_decay`` it updates the parameters that are
    trained, not their average.

    Parameters
    ----------
    model : MLPClassifier or MLPRegressor
        A fitted model with a stochastic solver; see `initialise`.  It is not changed.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input samples.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets, as `fit` takes them.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    step : Step
        Losses and parameters before and after, gradient, update.

    Raises
    ------
    ValueError
        If the solver is 'lbfgs', which has no such steps.

    Examples
    --------
    >>> from fastmlp import MLPRegressor, inspect
    >>> X, y = [[0.0], [1.0]], [1.0, 3.0]
    >>> line = MLPRegressor(hidden_layer_sizes=(), solver="sgd", momentum=0, alpha=0,
    ...                     learning_rate_init=0.1, random_state=0)
    >>> one = inspect.step(inspect.initialise(line, X, y), X, y)
    >>> one.loss_after < one.loss_before
    True
    >>> bool(abs(one.coef_updates[0] + 0.1 * one.coef_grads[0]).max() < 1e-15)
    True
    """
    if _ours(model).solver == "lbfgs":
        raise ValueError(
            "step does not work with solver='lbfgs', which searches along lines over many "
            "evaluations; use backward for the gradient, or a stochastic solver."
        )
    batch = _batch(model, X, y, sample_weight)
    before = _trained(model)
    gradient = _backward(before, batch)
    after = copy.copy(before)
    after.set_params(batch_size=len(batch.y), shuffle=False, dropout=0.0, device="cpu",
                     matmul_precision="highest", early_stopping=False, scoring=None,
                     n_restarts=1, warm_start=False, verbose=False)  # fmt: skip
    if isinstance(after, MLPClassifier):
        after.class_weight = None  # the weights have it
    after.partial_fit(on_host(X), y, sample_weight=batch.weight)
    return Step(
        gradient.loss, _backward(after, batch).loss, after.history_["learning_rate"][-1],
        before.coefs_, after.coefs_, before.intercepts_, after.intercepts_,
        gradient.coef_grads, gradient.intercept_grads,
        _difference(after.coefs_, before.coefs_),
        _difference(after.intercepts_, before.intercepts_),
    )  # fmt: skip


# --- inside


def _ours(model: Model) -> Model:
    if not isinstance(model, MLPClassifier | MLPRegressor):
        raise TypeError(
            "model must be an MLPClassifier or MLPRegressor of fastmlp, got "
            f"{type(model).__name__}; of a pipeline give the last step, and transformed X."
        )
    return model


def _batch(model: MLPClassifier | MLPRegressor, X: Any, y: Any, sample_weight: Any) -> Batch:
    """The batch as training would see it."""
    check_is_fitted(_ours(model))
    return read_batch(model, on_host(X), y, sample_weight)


def _trained(model: Model) -> Model:
    """A copy of the model whose ``coefs_`` are trained: not averages, if it has such."""
    state = fitted_model(model).optimizer_state
    if state is None:
        model = copy.copy(model)
        model.ema_decay = None
        return model
    if state.trained is None:
        return copy.copy(model)
    optimizer = state.optimizer._replace(ema_decay=None)
    plain = replace(state, optimizer=optimizer, slots=state.slots[:N_SLOTS])
    return go_on_from(model, state.trained, plain)


def _difference(after: list[np.ndarray], before: list[np.ndarray]) -> list[np.ndarray]:
    return [a - b for a, b in zip(after, before, strict=True)]


def _apply(formula: Formula, *arguments: Any) -> np.ndarray:
    """A formula for each element, in float64."""
    with np.errstate(all="ignore"):
        return np.vectorize(formula, otypes=[np.float64])(*arguments)


def _forward(model: MLPClassifier | MLPRegressor, X: Any, dtype: DTypeLike) -> Forward:
    network = fitted_model(model).network
    z, normalised, a = [], [], [X.astype(dtype, copy=False)]
    rows: list[Activation | None] = [*network.hidden, None]
    for coef, intercept, row in zip(model.coefs_, model.intercepts_, rows, strict=True):
        z.append((a[-1] @ coef + intercept).astype(dtype, copy=False))
        is_normalised = network.layer_norm and row is not None
        normalised.append(_normalise(z[-1]) if is_normalised else z[-1])
        if row is not None:
            output = _apply(row.value, normalised[-1])
        else:
            link = LINKS[network.out_activation]
            output = softmax(z[-1], axis=1) if link is None else _apply(link, z[-1])
        a.append(output.astype(dtype, copy=False))
    return Forward(z, normalised, a)


def _deviation(z: np.ndarray) -> np.ndarray:
    return np.sqrt(z.var(axis=1, keepdims=True) + z.dtype.type(LAYER_NORM_EPSILON))


def _normalise(z: np.ndarray) -> np.ndarray:
    return (z - z.mean(axis=1, keepdims=True)) / _deviation(z)


def _normalise_backward(z: np.ndarray, normalised: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """``d loss / d z`` from the derivative by normalised scores."""
    shared = delta.mean(axis=1, keepdims=True)
    along = (delta * normalised).mean(axis=1, keepdims=True)
    return (delta - shared - along * normalised) / _deviation(z)


def _slope(row: Activation, z: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Derivative of an activation, from what it took and what it returned."""
    return _apply(row.derivative, z if row.of_score else a)


def _backward(model: MLPClassifier | MLPRegressor, batch: Batch) -> Backward:
    X, y, weight, objective = batch
    fitted, total = fitted_model(model), batch.total_weight
    network, dtype = fitted.network, fitted.dtype
    z, normalised, a = passed = _forward(model, X, dtype)
    share = (1.0 if weight is None else weight[:, None]) / total
    values, gradient = _loss(objective, z[-1], y)
    data_loss = float((values[:, None] * share).sum())
    delta = (gradient * share).astype(dtype, copy=False)
    alpha = model.alpha / total
    deltas: list[np.ndarray] = []
    coef_grads: list[np.ndarray] = []
    intercept_grads: list[np.ndarray] = []
    for i in reversed(range(len(z))):
        deltas.insert(0, delta)
        coef_grads.insert(0, a[i].T @ delta + dtype.type(alpha) * model.coefs_[i])
        intercept_grads.insert(0, delta.sum(axis=0))
        if i > 0:
            slope = _slope(network.hidden[i - 1], normalised[i - 1], a[i])
            delta = (delta @ model.coefs_[i].T) * slope.astype(dtype)
            if network.layer_norm:
                delta = _normalise_backward(z[i - 1], normalised[i - 1], delta)
    penalty = 0.5 * alpha * sum(float((coef * coef).sum()) for coef in model.coefs_)
    loss = data_loss + penalty
    return Backward(loss, data_loss, penalty, passed, deltas, coef_grads, intercept_grads)


def _loss(objective: Objective, z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the samples, (n_samples,), and their derivatives by the last scores."""
    row, tiny = objective.row, np.finfo(z.dtype).eps
    constants = np.array(objective.constant_per_output)
    target = objective.soft_targets(y)
    if row.of_probability:
        return _loss_of_classes(row, z, target, constants)
    if row.per_row:
        values = _apply(row.value, logsumexp(z, axis=1), z[np.arange(len(y)), y], tiny)
        return values, softmax(z, axis=1) - target
    value, gradient = _formulas(row)
    values = _apply(value, z, target, tiny, constants)
    summed = values.mean(axis=1) if row.mean_over_outputs else values.sum(axis=1)
    return summed, _apply(gradient, z, target, constants)


def _formulas(row: Loss) -> tuple[Formula, Formula]:
    """Value and gradient with the arguments of our own losses."""
    assert row.gradient is not None
    if row.by_user:
        return with_our_arguments(row, row.value, row.gradient)
    return row.value, row.gradient


def _loss_of_classes(
    row: Loss, z: np.ndarray, target: np.ndarray, constants: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`_loss` in terms of probabilities; a logistic output has two classes, on the last axis."""
    if row.per_row:
        log_p = log_softmax(z, axis=1)
    else:
        log_p = np.stack([log_expit(-z), log_expit(z)], axis=-1)
        target, constants = np.stack([1 - target, target], axis=-1), constants[:, None]
    p = np.exp(log_p)
    value, gradient = _formulas(row)
    values = _apply(value, p, log_p, target, constants)
    by_log_p = _apply(gradient, p, log_p, target, constants)
    by_z = by_log_p - p * by_log_p.sum(axis=-1, keepdims=True)
    return values.reshape(len(z), -1).sum(axis=1), by_z if row.per_row else by_z[..., 1]


def _differentiable(objective: Objective) -> Objective:
    """The objective with a loss that its gradient belongs to: see `check_gradients`."""
    name = _UNLIMITED.get(objective.loss) if isinstance(objective.loss, str) else None
    if name is not None:
        return replace(objective, loss=name, constants=())
    return replace(objective, loss=objective.row._replace(mean_over_outputs=False))


def _engine(model: MLPClassifier | MLPRegressor, batch: Batch, objective: Objective) -> Engine:
    """A float64 engine with the batch."""
    network = fitted_model(model).network
    options: dict[str, Any] = {"dtype": np.float64, "objective": objective}
    engine = get_engine("cpu", network, alpha=model.alpha, n_threads=model.n_threads, **options)
    engine.load(place("cpu", batch.X, batch.y, batch.weight, **options))
    return engine


class _LossOf:
    """An engine's loss as a function of one parameter."""

    def __init__(self, engine: Engine, flat: np.ndarray):
        self._engine = engine
        self._flat = flat
        self.value = self(0, 0.0)

    def __call__(self, at: int, shift: float) -> float:
        shifted = self._flat.copy()
        shifted[at] += shift
        self._engine.set_parameters(shifted)
        return self._engine.loss_and_gradient()[0]

    def derivative(self, at: int, expected: float, scale: float) -> float:
        """Central difference, with smaller steps as long as it is not as expected."""
        best = np.inf
        for relative in _STEPS:
            h = relative * max(1.0, abs(self._flat[at]))
            quotient = (self(at, h) - self(at, -h)) / (2 * h)
            if abs(quotient - expected) < abs(best - expected) or best == np.inf:
                best = quotient
            rounding = 4 * np.finfo(float).eps * abs(self.value) / h
            if abs(best - expected) <= _GOOD * scale + rounding:
                break
        return best


def _worst(
    loss: _LossOf, gradient: np.ndarray, chosen: np.ndarray, scale: float
) -> tuple[int, float, float]:
    """Of the chosen elements: place in the flat vector, difference quotient, error."""
    numeric = np.array([loss.derivative(at, gradient[at], scale) for at in chosen])
    errors = np.abs(numeric - gradient[chosen]) / max(scale, np.abs(numeric).max())
    worst = int(np.argmax(errors))
    return int(chosen[worst]), float(numeric[worst]), float(errors[worst])
