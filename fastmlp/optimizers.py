"""Optimizers: elementwise update rules and what the host prepares for each step.

A rule takes one parameter, its gradient, its two slots of state and five numbers, the step's rate
first, and returns the new parameter and slots.  All rules share that signature, so an engine
compiles every row of the table into the same loop and a checkpoint is one array of shape
``(2, n_parameters)`` whatever the optimizer.  What depends on the step number alone (bias
corrections, the momentum's schedule) is worked out on the host in float64, as scikit-learn does.

Decoupled weight decay (Loshchilov and Hutter, 2019) goes with any rule: before the update, and
after the gradient was taken, weights (not biases) lose ``learning_rate weight_decay`` of
themselves.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import sqrt

N_SLOTS = 2
N_NUMBERS = 6
"""Per step: the rule's five numbers (the second rate last), then the decay's rate."""
_SECOND_RATE, _DECAY = 4, 5
_MOMENTUM_DECAY = 0.004  # PyTorch's default for NAdam


def sgd(w, g, u, unused, rate, momentum, _1, _2, _3):
    """``u <- momentum u - rate g``, ``w <- w + u``."""
    u = momentum * u - rate * g
    return w + u, u, unused


def nesterov(w, g, u, unused, rate, momentum, _1, _2, _3):
    """``u <- momentum u - rate g``, ``w <- w + momentum u - rate g``."""
    u = momentum * u - rate * g
    return w + (momentum * u - rate * g), u, unused


def adam(w, g, m, v, rate, beta_1, beta_2, epsilon, _):
    """Adam (Kingma and Ba, 2014), the bias correction folded into ``rate``."""
    one = type(w)(1)
    m = beta_1 * m + (one - beta_1) * g
    v = beta_2 * v + (one - beta_2) * (g * g)
    return w - rate * m / (sqrt(v) + epsilon), m, v


def rmsprop(w, g, v, unused, rate, rho, epsilon, _1, _2):
    """RMSprop (Tieleman and Hinton, 2012): ``w <- w - rate g / (sqrt(v) + epsilon)``."""
    v = rho * v + (type(w)(1) - rho) * (g * g)
    return w - rate * g / (sqrt(v) + epsilon), v, unused


def nadam(w, g, m, v, rate, beta_1, beta_2, epsilon, momentum_rate):
    """Adam with Nesterov's momentum (Dozat, 2016); ``v`` is kept free of bias by its ``beta_2``."""
    one = type(w)(1)
    m = beta_1 * m + (one - beta_1) * g
    v = beta_2 * v + (one - beta_2) * (g * g)
    return w - (rate * g + momentum_rate * m) / (sqrt(v) + epsilon), m, v


def lion(w, g, m, unused, rate, beta_1, beta_2, _1, _2):
    """Lion (Chen et al., 2023): a step of ``rate`` against the sign of a mean; NaN stays NaN."""
    one = type(w)(1)
    mean = beta_1 * m + (one - beta_1) * g
    sign = one if mean > 0 else (-one if mean < 0 else mean)
    return w - rate * sign, beta_2 * m + (one - beta_2) * g, unused


def decay_weight(w, rate):
    """``w - rate w``."""
    return w - rate * w


def keep_weight(w, rate):
    """``w``: no weight decay."""
    return w


def _prepare_adam(numbers: np.ndarray, t: np.ndarray, constants) -> None:
    beta_1, beta_2, _ = constants
    numbers[:, 0] = numbers[:, 0] * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)


def _prepare_nadam(numbers: np.ndarray, t: np.ndarray, constants) -> None:
    """PyTorch's rates.

    With ``beta_2 (1 - beta_2^(t - 1)) / (1 - beta_2^t)`` for its ``beta_2``, ``v`` is at each step
    what Adam's becomes by the correction of its bias.
    """
    beta_1, beta_2, _ = constants
    # the first 100 factors are below 0.51, so later products do not differ from 0 beside 1
    begin = 1 if t[0] < 100 else t[0]
    momenta = beta_1 * (1 - 0.5 * 0.96 ** (np.arange(begin, t[-1] + 2) * _MOMENTUM_DECAY))
    products = np.cumprod(momenta) * (begin == 1)
    rates, now = numbers[:, 0].copy(), slice(-1 - t.size, -1)
    numbers[:, 0] = rates * (1 - momenta[now]) / (1 - products[now])
    numbers[:, _SECOND_RATE] = rates * momenta[-t.size :] / (1 - products[-t.size :])
    numbers[:, 2] = beta_2 * (1 - beta_2 ** (t - 1)) / (1 - beta_2**t)


class Rule(NamedTuple):
    """One row of `OPTIMIZERS`: integer code, update rule, and what depends on the step.

    ``prepare(numbers, t, constants)`` changes the numbers of steps ``t`` in place.
    """

    code: int
    update: Callable
    prepare: Callable | None = None


OPTIMIZERS = {
    "sgd": Rule(0, sgd),
    "nesterov": Rule(1, nesterov),
    "adam": Rule(2, adam, _prepare_adam),
    "rmsprop": Rule(3, rmsprop),
    "nadam": Rule(4, nadam, _prepare_nadam),
    "lion": Rule(5, lion),
}


class Optimizer(NamedTuple):
    """A rule with its constants.

    Parameters
    ----------
    name : str
        A key of `OPTIMIZERS`.
    constants : tuple of three floats
        The rule's numbers after its rate.
    weight_decay : float
        Decoupled weight decay.
    max_grad_norm : float or None
        The gradient of a step, penalty included, is scaled down to this norm if it is larger.
    ema_decay : float or None
        Decay of an exponential moving average of the parameters, which starts from the initial
        ones.
    """

    name: str
    constants: tuple[float, float, float]
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    ema_decay: float | None = None

    def step_numbers(self, learning_rates: np.ndarray, step: int) -> np.ndarray:
        """Numbers for the rule, from the schedule's rates for steps ``step + 1, step + 2, ...``.

        Parameters
        ----------
        learning_rates : array of shape (n_steps,)
        step : int
            Steps taken so far.

        Returns
        -------
        ndarray of shape (n_steps, N_NUMBERS), float64
        """
        numbers = np.zeros((len(learning_rates), N_NUMBERS))
        numbers[:, 0] = learning_rates
        numbers[:, 1:4] = self.constants
        numbers[:, _DECAY] = numbers[:, 0] * self.weight_decay
        prepare = OPTIMIZERS[self.name].prepare
        if prepare is not None:
            prepare(numbers, np.arange(step + 1, step + 1 + len(numbers)), self.constants)
        return numbers
