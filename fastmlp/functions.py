"""Activations and losses: every formula of the library, stated once.

Each function is flat scalar Python over a few NumPy primitives, so that it can be read, called
on numbers in tests, and compiled as it stands by every engine.  An activation is a pair
``value(z)``, ``derivative(a)``: the derivative is written in terms of the *output*
``a = value(z)``, which is what backpropagation still has at hand.  A loss is written in terms of
the raw score ``z`` (fused with its output activation), so no probability is ever formed, logged
and divided again: ``value(z, y, tiny)`` and ``gradient(z, y) = d value / d z``.

``tiny`` is the machine epsilon of the scores.  scikit-learn clips probabilities to
``[tiny, 1 - tiny]`` before taking their logarithm; clamping the fused loss to the image of that
interval reports the same number without the clipping.

The tables at the end list them, with an integer code for engines that dispatch by number.  Engines
build their kernels from the tables, and the tests enumerate them: adding a row adds its kernels
and its tests.
"""

from collections.abc import Callable
from typing import NamedTuple

from numpy import exp, log, log1p, tanh


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


def exponential(z):
    """``exp(z)``: the output activation of Poisson regression."""
    return exp(z)


def squared_error(z, y, tiny):
    """Half squared error ``(z - y)^2 / 2``."""
    return type(z)(0.5) * (z - y) * (z - y)


def squared_error_gradient(z, y):
    """``z - y``."""
    return z - y


def binary_log_loss(z, y, tiny):
    """``-y log p - (1 - y) log(1 - p)`` with ``p = logistic(z)``, as ``softplus(z) - y z``."""
    loss = (z if z > 0 else type(z)(0)) + log1p(exp(z if z < 0 else -z)) - y * z
    floor = -log1p(-tiny)
    cap = -log(tiny)
    loss = floor if loss < floor else loss
    return cap if loss > cap else loss


def binary_log_loss_gradient(z, y):
    """``logistic(z) - y``."""
    return type(z)(1) / (type(z)(1) + exp(-z)) - y


def poisson(z, y, tiny):
    """Half Poisson deviance ``y log(y / mu) - y + mu`` with ``mu = exp(z)``."""
    constant = y * log(y) - y if y > 0 else type(y)(0)
    return constant - y * z + exp(z)


def poisson_gradient(z, y):
    """``exp(z) - y``."""
    return exp(z) - y


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


class Activation(NamedTuple):
    """One row of `ACTIVATIONS`.

    ``init_factor`` is scikit-learn's: weights start uniform in ``+-sqrt(init_factor / (fan_in +
    fan_out))`` (Glorot and Bengio, 2010).
    """

    code: int
    value: Callable
    derivative: Callable
    init_factor: float


class Loss(NamedTuple):
    """One row of `LOSSES`.

    ``out_activation`` is the output activation that the loss is fused with.  ``per_row`` losses
    (softmax) see a whole row of scores and a class number, the others one score and one target.
    ``mean_over_outputs`` reports the mean over outputs while the gradient sums over them, as
    scikit-learn does for the squared error (its issue 8349).
    """

    code: int
    value: Callable
    gradient: Callable | None
    out_activation: str
    per_row: bool = False
    mean_over_outputs: bool = False


ACTIVATIONS = {
    "identity": Activation(0, identity, identity_derivative, 6.0),
    "relu": Activation(1, relu, relu_derivative, 6.0),
    "tanh": Activation(2, hyperbolic_tangent, tanh_derivative, 6.0),
    "logistic": Activation(3, logistic, logistic_derivative, 2.0),
}

OUT_ACTIVATIONS = {"identity": 0, "logistic": 1, "softmax": 2, "exp": 3}

LOSSES = {
    "squared_error": Loss(
        0, squared_error, squared_error_gradient, "identity", mean_over_outputs=True
    ),
    "binary_log_loss": Loss(1, binary_log_loss, binary_log_loss_gradient, "logistic"),
    "poisson": Loss(2, poisson, poisson_gradient, "exp"),
    "log_loss": Loss(3, log_loss, None, "softmax", per_row=True),
}
