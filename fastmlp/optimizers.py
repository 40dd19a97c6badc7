"""Optimizers: elementwise update rules and what the host prepares for each step.

A rule takes one parameter, its gradient, its two slots of state, the step's rate and three
constants, and returns the new parameter and slots.  All rules share that signature, so an engine
compiles every row of the table into the same loop and a checkpoint is one array of shape
``(2, n_parameters)`` whatever the optimizer.  What depends on the step number alone (Adam's bias
correction) is worked out on the host in float64, as scikit-learn does.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import sqrt

N_SLOTS = 2


def sgd(w, g, u, unused, rate, momentum, _1, _2):
    """``u <- momentum u - rate g``, ``w <- w + u``."""
    u = momentum * u - rate * g
    return w + u, u, unused


def nesterov(w, g, u, unused, rate, momentum, _1, _2):
    """``u <- momentum u - rate g``, ``w <- w + momentum u - rate g``."""
    u = momentum * u - rate * g
    return w + (momentum * u - rate * g), u, unused


def adam(w, g, m, v, rate, beta_1, beta_2, epsilon):
    """Adam (Kingma and Ba, 2014), the bias correction folded into ``rate``."""
    one = type(w)(1)
    m = beta_1 * m + (one - beta_1) * g
    v = beta_2 * v + (one - beta_2) * (g * g)
    return w - rate * m / (sqrt(v) + epsilon), m, v


class Rule(NamedTuple):
    """One row of `OPTIMIZERS`: integer code and update rule."""

    code: int
    update: Callable


OPTIMIZERS = {"sgd": Rule(0, sgd), "nesterov": Rule(1, nesterov), "adam": Rule(2, adam)}


class Optimizer(NamedTuple):
    """A rule with its constants.

    Parameters
    ----------
    name : str
        A key of `OPTIMIZERS`.
    constants : tuple of three floats
        The last three arguments of the rule.
    """

    name: str
    constants: tuple[float, float, float]

    def step_rates(self, learning_rates: np.ndarray, step: int) -> np.ndarray:
        """Rates for the rule, from the schedule's rates for steps ``step + 1, step + 2, ...``.

        Parameters
        ----------
        learning_rates : array of shape (n_steps,)
        step : int
            Steps taken so far.

        Returns
        -------
        ndarray of shape (n_steps,), float64
        """
        rates = np.asarray(learning_rates, dtype=np.float64)
        if self.name != "adam":
            return rates
        beta_1, beta_2, _ = self.constants
        t = np.arange(step + 1, step + 1 + rates.size)
        return rates * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
