"""Activations and losses: every formula of the library, stated once.

Each function is flat scalar Python over a few NumPy primitives, so that it can be read, called
on numbers in tests, and compiled as it stands by every engine.  An activation is a pair
``value(z)``, ``derivative(a)``: the derivative is written in terms of the *output*
``a = value(z)``, which is what backpropagation still has at hand.  Where the output does not tell
the derivative, it is a function of ``z`` (`Activation.of_score`), and engines keep it from the
forward pass.

A loss comes in one of three forms, none of which logs or divides by a probability that may have
underflowed.  Most are written in terms of the raw score ``z``, fused with the output activation:
``value(z, y, tiny, constant)`` and ``gradient(z, y, constant) = d value / d z``.  The loss of a
class (`Loss.of_probability`) is ``value(p, log_p, y, constant)``, summed over the classes, and
``gradient = d value / d log_p``; engines make ``d / d z_k = g_k - p_k sum(g)`` of it, for softmax
and, with the two classes ``p`` and ``1 - p``, for the logistic function.  `log_loss`, the third
form, is the common case with everything fused.  ``constant`` is a number per output that a
parameter sets (`huber`'s delta), so that nothing is compiled anew when it changes.

``tiny`` is the machine epsilon of the scores.  scikit-learn clips probabilities to
``[tiny, 1 - tiny]`` before taking their logarithm; clamping the fused loss to the image of that
interval reports the same number without the clipping.

The tables at the end list them.  Engines build their kernels from the tables, and the tests
enumerate them: adding a row adds its kernels and its tests.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numpy import exp, log, log1p, tanh

Formula = Callable[..., Any]


def identity(z):
    """``z``."""
    return z


def identity_derivative(a):
    """``1``."""
    return type(a)(1)


def relu(z):
    """``max(z, 0)``; a NaN stays a NaN."""
    return type(z)(0) if z < 0 else z


def relu_derivative(a):
    """``1`` where the unit is active, ``0`` where its output is zero."""
    return type(a)(0) if a == 0 else type(a)(1)


def hyperbolic_tangent(z):
    """``tanh(z)``."""
    return tanh(z)


def tanh_derivative(a):
    """``1 - a^2``."""
    return type(a)(1) - a * a


def logistic(z):
    """``1 / (1 + exp(-z))``."""
    return type(z)(1) / (type(z)(1) + exp(-z))


def logistic_derivative(a):
    """``a (1 - a)``."""
    return a * (type(a)(1) - a)


def step(z):
    """``1`` where ``z > 0``, else ``0``; a NaN stays a NaN."""
    return type(z)(1) if z > 0 else (type(z)(0) if z <= 0 else z)


def straight_through(a):
    """``1``: the gradient passes `step` as if it were not there (Bengio et al., 2013)."""
    return type(a)(1)


def leaky_relu(z):
    """``z`` where positive, else ``0.01 z``."""
    return type(z)(0.01) * z if z < 0 else z


def leaky_relu_derivative(a):
    """``1`` where the output is positive, else ``0.01``."""
    return type(a)(1) if a > 0 else type(a)(0.01)


def elu(z):
    """``z`` where positive, else ``exp(z) - 1`` (Clevert et al., 2016)."""
    t = tanh(type(z)(0.5) * z)  # exp(z) - 1 = 2 t / (1 - t) without cancellation
    return z if z > 0 else type(z)(2) * t / (type(z)(1) - t)


def elu_derivative(a):
    """``1`` where the output is positive, else ``a + 1``."""
    return type(a)(1) if a > 0 else a + type(a)(1)


def selu(z):
    """``1.0507 z`` where positive, else ``1.7581 (exp(z) - 1)`` (Klambauer et al., 2017)."""
    t = tanh(type(z)(0.5) * z)
    below = type(z)(2 * 1.7580993408473766) * t / (type(z)(1) - t)
    return type(z)(1.0507009873554805) * z if z > 0 else below


def selu_derivative(a):
    """``1.0507`` where the output is positive, else ``a + 1.7581``."""
    return type(a)(1.0507009873554805) if a > 0 else a + type(a)(1.7580993408473766)


def gelu(z):
    """``z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3)))`` (Hendrycks and Gimpel, 2016)."""
    u = type(z)(2 * 0.7978845608028654) * (z + type(z)(0.044715) * z * z * z)
    return z / (type(z)(1) + exp(-u))


def gelu_derivative(z):
    """``s + z s (1 - s) du / dz`` with ``gelu = z s`` and ``s = logistic(u)``."""
    u = type(z)(2 * 0.7978845608028654) * (z + type(z)(0.044715) * z * z * z)
    s = type(z)(1) / (type(z)(1) + exp(-u))
    slope = type(z)(2 * 0.7978845608028654) * (type(z)(1) + type(z)(3 * 0.044715) * z * z)
    return s + z * s * (type(z)(1) - s) * slope


def silu(z):
    """``z logistic(z)``, also called swish."""
    return z / (type(z)(1) + exp(-z))


def silu_derivative(z):
    """``s (1 + z (1 - s))`` with ``s = logistic(z)``."""
    s = type(z)(1) / (type(z)(1) + exp(-z))
    return s * (type(z)(1) + z * (type(z)(1) - s))


def mish(z):
    """``z tanh(softplus(z))`` (Misra, 2019), as a ratio of polynomials in ``q = exp(-|z|)``."""
    q = exp(z if z < 0 else -z)
    above = q * (q + type(z)(2)) if z < 0 else type(z)(1) + type(z)(2) * q
    return z * above / (above + (type(z)(2) if z < 0 else type(z)(2) * q * q))


def mish_derivative(z):
    """``t + z (1 - t^2) logistic(z)`` with ``t = tanh(softplus(z))``."""
    q = exp(z if z < 0 else -z)
    above = q * (q + type(z)(2)) if z < 0 else type(z)(1) + type(z)(2) * q
    t = above / (above + (type(z)(2) if z < 0 else type(z)(2) * q * q))
    return t + z * (type(z)(1) - t * t) * (q if z < 0 else type(z)(1)) / (type(z)(1) + q)


def softplus(z):
    """``log(1 + exp(z))``."""
    return (z if z > 0 else type(z)(0)) + log1p(exp(z if z < 0 else -z))


def softplus_derivative(a):
    """``1 - exp(-a)``."""
    t = tanh(type(a)(0.5) * a)
    return type(a)(2) * t / (type(a)(1) + t)


def hard_sigmoid(z):
    """``z / 6 + 1 / 2``, clipped to ``[0, 1]``."""
    a = z / type(z)(6) + type(z)(0.5)
    a = type(z)(0) if a < 0 else a
    return type(z)(1) if a > 1 else a


def hard_sigmoid_derivative(a):
    """``1 / 6`` where the output is not clipped."""
    return type(a)(1 / 6) if a > 0 and a < 1 else type(a)(0)


def hard_swish(z):
    """``z hard_sigmoid(z)`` (Howard et al., 2019)."""
    a = z / type(z)(6) + type(z)(0.5)
    a = type(z)(0) if a < 0 else a
    return z * (type(z)(1) if a > 1 else a)


def hard_swish_derivative(z):
    """``z / 3 + 1 / 2`` between -3 and 3, ``0`` below, ``1`` above."""
    inside = z / type(z)(3) + type(z)(0.5)
    return type(z)(0) if z < -3 else (type(z)(1) if z > 3 else inside)


def exponential(z):
    """``exp(z)``: the output activation of Poisson regression."""
    return exp(z)


def squared_error(z, y, tiny, _):
    """Half squared error ``(z - y)^2 / 2``."""
    return type(z)(0.5) * (z - y) * (z - y)


def squared_error_gradient(z, y, _):
    """``z - y``."""
    return z - y


def binary_log_loss(z, y, tiny, _):
    """``-y log p - (1 - y) log(1 - p)`` with ``p = logistic(z)``, as ``softplus(z) - y z``."""
    loss = (z if z > 0 else type(z)(0)) + log1p(exp(z if z < 0 else -z)) - y * z
    floor = -log1p(-tiny)
    cap = -log(tiny)
    loss = floor if loss < floor else loss
    return cap if loss > cap else loss


def binary_log_loss_gradient(z, y, _):
    """``logistic(z) - y``."""
    return type(z)(1) / (type(z)(1) + exp(-z)) - y


def poisson(z, y, tiny, _):
    """Half Poisson deviance ``y log(y / mu) - y + mu`` with ``mu = exp(z)``."""
    constant = y * log(y) - y if y > 0 else type(y)(0)
    return constant - y * z + exp(z)


def poisson_gradient(z, y, _):
    """``exp(z) - y``."""
    return exp(z) - y


def absolute_error(z, y, tiny, _):
    """``|z - y|``."""
    return z - y if z > y else y - z


def absolute_error_gradient(z, y, _):
    """The sign of ``z - y``."""
    return type(z)(1) if z > y else (type(z)(-1) if z < y else z - y)


def huber(z, y, tiny, delta):
    """Half squared error up to a distance of ``delta``, straight on from there."""
    size = z - y if z > y else y - z
    return type(z)(0.5) * size * size if size <= delta else delta * (size - type(z)(0.5) * delta)


def huber_gradient(z, y, delta):
    """``z - y``, clipped to ``[-delta, delta]``."""
    return delta if z - y > delta else (-delta if z - y < -delta else z - y)


def quantile(z, y, tiny, level):
    """Pinball loss: ``level (y - z)`` below the target, ``(1 - level) (z - y)`` above it."""
    return level * (y - z) if y > z else (type(z)(1) - level) * (z - y)


def quantile_gradient(z, y, level):
    """``-level`` below the target, ``1 - level`` above it."""
    return -level if y > z else (type(z)(1) - level if z > y else z - y)


def gamma(z, y, tiny, _):
    """Half gamma deviance ``log(mu / y) + y / mu - 1`` with ``mu = exp(z)``."""
    return z - log(y) + y * exp(-z) - type(z)(1)


def gamma_gradient(z, y, _):
    """``1 - y exp(-z)``."""
    return type(z)(1) - y * exp(-z)


def log_cosh(z, y, tiny, _):
    """``log(cosh(z - y))``."""
    size = z - y if z > y else y - z
    t = tanh(size)
    if size < 1:  # without cancellation
        return type(z)(-0.5) * log1p(-t * t)
    return size + log1p(exp(type(z)(-2) * size)) - type(z)(0.6931471805599453)


def log_cosh_gradient(z, y, _):
    """``tanh(z - y)``."""
    return tanh(z - y)


def cross_entropy(p, log_p, y, _):
    """``-y log p``: `log_loss` for targets between 0 and 1."""
    return -y * log_p


def cross_entropy_gradient(p, log_p, y, _):
    """``-y``."""
    return -y


def brier(p, log_p, y, _):
    """Half squared error of a probability."""
    return type(p)(0.5) * (p - y) * (p - y)


def brier_gradient(p, log_p, y, _):
    """``p (p - y)``."""
    return p * (p - y)


def focal(p, log_p, y, gamma):
    """``-y (1 - p)^gamma log p`` (Lin et al., 2017)."""
    t = tanh(type(p)(-0.5) * log_p)
    other = type(p)(2) * t / (type(p)(1) + t)  # 1 - p without cancellation
    other = other if other > 1e-30 else type(p)(1e-30)
    return -y * exp(gamma * log(other)) * log_p


def focal_gradient(p, log_p, y, gamma):
    """``-y (1 - p)^gamma (1 - gamma p log p / (1 - p))``."""
    t = tanh(type(p)(-0.5) * log_p)
    other = type(p)(2) * t / (type(p)(1) + t)
    other = other if other > 1e-30 else type(p)(1e-30)
    return -y * exp(gamma * log(other)) * (type(p)(1) - gamma * p * log_p / other)


def log_loss(normaliser, score, tiny):
    """``-log p_y`` with ``p = softmax(z)``, from ``log sum exp(z)`` and ``z_y``.

    The gradient of the scores is ``p - onehot(y)``; engines compute ``p`` on the way to the
    normaliser.
    """
    loss = normaliser - score
    floor = -log1p(-tiny)
    cap = -log(tiny)
    loss = floor if loss < floor else loss
    return cap if loss > cap else loss


LAYER_NORM_EPSILON = 1e-5  # PyTorch's


class Activation(NamedTuple):
    """One row of `ACTIVATIONS`.

    ``init_factor`` is scikit-learn's: weights start uniform in ``+-sqrt(init_factor / (fan_in +
    fan_out))`` (Glorot and Bengio, 2010).  ``of_score`` says that the derivative is a function of
    the score instead of the output; ``by_user`` that a user wrote it, and it is in no table.
    """

    value: Formula
    derivative: Formula
    init_factor: float = 6.0
    of_score: bool = False
    by_user: bool = False


class Loss(NamedTuple):
    """One row of `LOSSES`.

    ``out_activation`` is the output activation that the loss is fused with.  ``per_row`` losses
    (softmax) see a whole row of scores and a class number, the others one score and one target.
    ``of_probability`` losses are written in terms of a class's probability (see above).
    ``mean_over_outputs`` reports the mean over outputs while the gradient sums over them, as
    scikit-learn does for the squared error (its issue 8349).  Targets must be at least ``least``,
    or larger than ``above``, if these are given; ``constant`` is the parameter that sets the
    constant.  ``by_user`` says that a user wrote the formulas: see `with_our_arguments`.
    """

    value: Formula
    gradient: Formula | None
    out_activation: str
    per_row: bool = False
    mean_over_outputs: bool = False
    of_probability: bool = False
    least: float | None = None
    above: float | None = None
    constant: str | None = None
    by_user: bool = False


def with_our_arguments(row: Loss, value: Formula, gradient: Formula) -> tuple[Formula, Formula]:
    """Value and gradient with the arguments of our own losses.

    A user's functions are of a prediction and its target, or of a probability ``p`` and its target,
    and then the second is ``d value / d p``.

    Parameters
    ----------
    row : Loss
        With ``by_user``.
    value, gradient : callable
        The row's own, as they are or compiled.
    """
    if row.of_probability:
        return (
            lambda p, log_p, y, constant: value(p, y),
            lambda p, log_p, y, constant: p * gradient(p, y),
        )
    return lambda z, y, tiny, constant: value(z, y), lambda z, y, constant: gradient(z, y)


ACTIVATIONS = {
    "identity": Activation(identity, identity_derivative),
    "relu": Activation(relu, relu_derivative),
    "tanh": Activation(hyperbolic_tangent, tanh_derivative),
    "logistic": Activation(logistic, logistic_derivative, 2.0),
    "step": Activation(step, straight_through),
    "leaky_relu": Activation(leaky_relu, leaky_relu_derivative),
    "elu": Activation(elu, elu_derivative),
    "selu": Activation(selu, selu_derivative),
    "gelu": Activation(gelu, gelu_derivative, of_score=True),
    "silu": Activation(silu, silu_derivative, of_score=True),
    "mish": Activation(mish, mish_derivative, of_score=True),
    "softplus": Activation(softplus, softplus_derivative),
    "hard_sigmoid": Activation(hard_sigmoid, hard_sigmoid_derivative),
    "hard_swish": Activation(hard_swish, hard_swish_derivative, of_score=True),
}

LINKS: dict[str, Formula | None] = {
    "identity": identity,
    "logistic": logistic,
    "exp": exponential,
    "softmax": None,  # of a whole row
}
"""Output activations."""

LOSSES = {
    "squared_error": Loss(
        squared_error, squared_error_gradient, "identity", mean_over_outputs=True
    ),
    "binary_log_loss": Loss(binary_log_loss, binary_log_loss_gradient, "logistic"),
    "poisson": Loss(poisson, poisson_gradient, "exp", least=0),
    "log_loss": Loss(log_loss, None, "softmax", per_row=True),
    "absolute_error": Loss(absolute_error, absolute_error_gradient, "identity"),
    "huber": Loss(huber, huber_gradient, "identity", constant="huber_delta"),
    "quantile": Loss(quantile, quantile_gradient, "identity", constant="quantile"),
    "gamma": Loss(gamma, gamma_gradient, "exp", above=0),
    "log_cosh": Loss(log_cosh, log_cosh_gradient, "identity"),
    "cross_entropy": Loss(
        cross_entropy, cross_entropy_gradient, "softmax", per_row=True, of_probability=True
    ),
    "brier": Loss(brier, brier_gradient, "softmax", per_row=True, of_probability=True),
    "binary_brier": Loss(brier, brier_gradient, "logistic", of_probability=True),
    "focal": Loss(
        focal, focal_gradient, "softmax", per_row=True, of_probability=True, constant="focal_gamma"
    ),
    "binary_focal": Loss(
        focal, focal_gradient, "logistic", of_probability=True, constant="focal_gamma"
    ),
}
