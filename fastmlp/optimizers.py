"""Optimizers: elementwise update rules and what the host prepares for each step.

A rule takes one parameter, its gradient, its two slots of state and seven numbers, the step's rate
first, and returns the new parameter and slots.  All rules share that signature, so an engine
compiles every row of the table into the same loop and a checkpoint is one array of shape
``(2, n_parameters)`` whatever the optimizer.  What depends on the step number alone (bias
corrections, the momentum's schedule) is worked out on the host in float64, as scikit-learn does.

Decoupled weight decay (Loshchilov and Hutter, 2019) goes with any rule: before the update, and
after the gradient was taken, weights (not biases) lose ``learning_rate weight_decay`` of
themselves.

With the decay rate ``beta`` of a mean comes the new number's share ``1 - beta``: a float32 near 1
does not tell how far from 1 it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy import sqrt

from fastmlp.schedules import Schedule

N_SLOTS = 2
N_CONSTANTS = 3
N_NUMBERS = 8
"""Per step: the rule's seven numbers (the second rate last), then the decay's rate."""
COUNT_LIMIT = 2**53
"""Steps stay below it, so that float64, which their numbers are worked out in, tells them apart."""
_SECOND_RATE, _DECAY = 6, 7
_MOMENTUM_DECAY = 0.004  # PyTorch's default for NAdam


def sgd(w, g, u, unused, rate, momentum, _1, _2, _3, _4, _5):
    """``u <- momentum u - rate g``, ``w <- w + u``."""
    u = momentum * u - rate * g
    return w + u, u, unused


def nesterov(w, g, u, unused, rate, momentum, _1, _2, _3, _4, _5):
    """``u <- momentum u - rate g``, ``w <- w + momentum u - rate g``."""
    u = momentum * u - rate * g
    return w + (momentum * u - rate * g), u, unused


def adam(w, g, m, v, rate, beta_1, share_1, beta_2, share_2, epsilon, _):
    """Adam (Kingma and Ba, 2014), the bias correction folded into ``rate``."""
    m = beta_1 * m + share_1 * g
    v = beta_2 * v + share_2 * (g * g)
    return w - rate * m / (sqrt(v) + epsilon), m, v


def rmsprop(w, g, v, unused, rate, rho, share, epsilon, _1, _2, _3):
    """RMSprop (Tieleman and Hinton, 2012): ``w <- w - rate g / (sqrt(v) + epsilon)``."""
    v = rho * v + share * (g * g)
    return w - rate * g / (sqrt(v) + epsilon), v, unused


def nadam(w, g, m, v, rate, beta_1, share_1, beta_2, share_2, epsilon, momentum_rate):
    """Adam with Nesterov's momentum (Dozat, 2016); ``v`` is kept free of bias by its ``beta_2``."""
    m = beta_1 * m + share_1 * g
    v = beta_2 * v + share_2 * (g * g)
    return w - (rate * g + momentum_rate * m) / (sqrt(v) + epsilon), m, v


def lion(w, g, m, unused, rate, beta_1, share_1, beta_2, share_2, _1, _2):
    """Lion (Chen et al., 2023): a step of ``rate`` against the sign of a mean; NaN stays NaN."""
    one = type(w)(1)
    mean = beta_1 * m + share_1 * g
    sign = one if mean > 0 else (-one if mean < 0 else mean)
    return w - rate * sign, beta_2 * m + share_2 * g, unused


def decay_weight(w, rate):
    """``w - rate w``."""
    return w - rate * w


def keep_weight(w, rate):
    """``w``: no weight decay."""
    return w


def _prepare_adam(numbers: np.ndarray, step: int, constants: tuple[float, float, float]) -> None:
    beta_1, beta_2, _ = constants
    block, start = divmod(step, _CORRECTIONS)
    stop, rates = start + len(numbers), numbers[:, 0]
    if stop <= _CORRECTIONS:
        second, first = _corrections(beta_1, beta_2, block)
        second, first = second[start:stop], first[start:stop]
    else:
        second, first = _corrections_at(beta_1, beta_2, np.arange(step + 1, step + 1 + rates.size))
    np.multiply(rates, second, out=rates)
    np.divide(rates, first, out=rates)


_CORRECTIONS = 1024  # steps whose corrections are worked out together: NumPy's calls cost more


@lru_cache(maxsize=16)
def _corrections(beta_1: float, beta_2: float, block: int) -> tuple[np.ndarray, np.ndarray]:
    return _corrections_at(beta_1, beta_2, np.arange(1, _CORRECTIONS + 1) + block * _CORRECTIONS)


def _corrections_at(beta_1: float, beta_2: float, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.sqrt(1 - beta_2**t), 1 - beta_1**t


def _prepare_nadam(numbers: np.ndarray, step: int, constants: tuple[float, float, float]) -> None:
    """PyTorch's rates.

    With ``beta_2 (1 - beta_2^(t - 1)) / (1 - beta_2^t)`` for its ``beta_2``, ``v`` is at each step
    what Adam's becomes by the correction of its bias.
    """
    beta_1, beta_2, _ = constants
    t = np.arange(step + 1, step + 1 + len(numbers))
    # the first 100 factors are below 0.51, so later products do not differ from 0 beside 1
    begin = 1 if t[0] < 100 else t[0]
    momenta = beta_1 * (1 - 0.5 * 0.96 ** (np.arange(begin, t[-1] + 2) * _MOMENTUM_DECAY))
    products = np.cumprod(momenta) * (begin == 1)
    rates, now = numbers[:, 0].copy(), slice(-1 - t.size, -1)
    numbers[:, 0] = rates * (1 - momenta[now]) / (1 - products[now])
    numbers[:, _SECOND_RATE] = rates * momenta[-t.size :] / (1 - products[-t.size :])
    numbers[:, 3] = beta_2 * (1 - beta_2 ** (t - 1)) / (1 - beta_2**t)
    numbers[:, 4] = 1 - numbers[:, 3]


class Rule(NamedTuple):
    """One row of `OPTIMIZERS`: update rule, its constants, and what depends on the step.

    ``constants`` are parameters of the estimators.  The first ``n_means`` are decay rates of means,
    and epsilon is the one behind them.  ``prepare(numbers, step, constants)`` changes the numbers
    of the steps after ``step`` steps in place.
    """

    update: Callable[..., Any]
    constants: tuple[str, ...]
    n_means: int = 0
    prepare: Callable[[np.ndarray, int, tuple[float, float, float]], None] | None = None


OPTIMIZERS = {
    "sgd": Rule(sgd, ("momentum",)),
    "nesterov": Rule(nesterov, ("momentum",)),
    "adam": Rule(adam, ("beta_1", "beta_2", "epsilon"), 2, _prepare_adam),
    "rmsprop": Rule(rmsprop, ("rho", "epsilon"), 1),
    "nadam": Rule(nadam, ("beta_1", "beta_2", "epsilon"), 2, _prepare_nadam),
    "lion": Rule(lion, ("beta_1", "beta_2", "epsilon"), 2),
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

    @classmethod
    def of(cls, name: str, constants: Sequence[float], *others: Any) -> "Optimizer":
        """An optimizer from as many constants as its rule has."""
        first, second, third = (*constants, 0.0, 0.0, 0.0)[:N_CONSTANTS]
        return cls(name, (first, second, third), *others)

    @property
    def n_rows(self) -> int:
        """Rows of a state's ``slots``: with an average, the parameters that are trained, too."""
        return N_SLOTS + (self.ema_decay is not None)

    def step_numbers(
        self, learning_rates: np.ndarray, step: int, dtype: Any = np.float64
    ) -> np.ndarray:
        """Numbers for the rule, from the schedule's rates for steps ``step + 1, step + 2, ...``.

        Parameters
        ----------
        learning_rates : array of shape (n_steps,)
        step : int
            Steps taken so far.
        dtype : numpy dtype
            What the rule computes in.

        Returns
        -------
        ndarray of shape (n_steps, N_NUMBERS), float64
        """
        numbers = self.blank_numbers(len(learning_rates), dtype)
        self.fill(numbers, learning_rates, step)
        return numbers

    def blank_numbers(self, n_steps: int, dtype: Any) -> np.ndarray:
        """Numbers of steps but for those that depend on the rate, for `fill`."""
        numbers = np.empty((n_steps, N_NUMBERS))
        numbers[:] = _constant_numbers(self, np.dtype(dtype))
        return numbers

    def fill(self, numbers: np.ndarray, learning_rates: np.ndarray, step: int) -> None:
        """Make ``numbers`` those of the steps after ``step`` steps; see `step_numbers`."""
        numbers[:, 0] = learning_rates
        if self.weight_decay:
            numbers[:, _DECAY] = numbers[:, 0] * self.weight_decay
        prepare = OPTIMIZERS[self.name].prepare
        if prepare is not None:
            prepare(numbers, step, self.constants)

    def _numbers_of_rule(self, dtype: np.finfo) -> list[float]:
        """The constants, with ``1 - beta`` behind each decay rate ``beta`` of a mean."""
        n_means = OPTIMIZERS[self.name].n_means
        numbers: list[float] = []
        for beta in self.constants[:n_means]:
            numbers += [beta, 1 - beta]
        others = list(self.constants[n_means:])
        if n_means:
            # no smaller epsilon than the root of the least mean of squares: a gradient whose square
            # is 0 would make a step of any size, and so would an epsilon that is rounded to 0
            others[0] = max(others[0], float(np.sqrt(np.float64(dtype.smallest_subnormal))))
        return numbers + others


@lru_cache(maxsize=64)
def _constant_numbers(optimizer: Optimizer, dtype: np.dtype) -> np.ndarray:
    """A step's numbers but for those that depend on its rate."""
    row = np.zeros(N_NUMBERS)
    constants = optimizer._numbers_of_rule(np.finfo(dtype))
    row[1 : 1 + len(constants)] = constants
    return row


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """What an optimizer remembers from call to call.

    Its settings are frozen until the next `fit`, as in scikit-learn.

    Parameters
    ----------
    optimizer : Optimizer
    schedule : Schedule
    slots : ndarray of shape (n_slots, n_parameters)
        See `fastmlp.engine.Engine.get_state`.
    step : int
        Steps taken.
    learning_rate : float
        Of a schedule that goes from epoch to epoch.
    plateau : (float, int)
        See `fastmlp.schedules.plateau`.
    dropout_seed : int or None
        What masks are drawn from; None before the first.
    """

    optimizer: Optimizer
    schedule: Schedule
    slots: np.ndarray
    step: int
    learning_rate: float
    plateau: tuple[float, int] = (np.inf, 0)
    dropout_seed: int | None = None

    @classmethod
    def new(
        cls, optimizer: Optimizer, schedule: Schedule, parameters: np.ndarray
    ) -> "OptimizerState":
        """Before the first step; ``parameters`` are what an average starts from."""
        slots = np.zeros((N_SLOTS, parameters.size), parameters.dtype)
        if optimizer.ema_decay is not None:
            slots = np.vstack([slots, parameters])
        return cls(optimizer, schedule, slots, 0, schedule.learning_rate_init)

    @property
    def trained(self) -> np.ndarray | None:
        """The parameters that are trained, if the model's are their average."""
        return self.slots[N_SLOTS] if len(self.slots) > N_SLOTS else None

    def require_size(self, n_parameters: int) -> None:
        """
        Raises
        ------
        ValueError
            If the slots are not those of ``n_parameters`` parameters.
        """
        expected = self.optimizer.n_rows, n_parameters
        if np.shape(self.slots) != expected:
            raise ValueError(
                f"The optimizer's state must be of shape {expected} to fit coefs_ and intercepts_, "
                f"got {np.shape(self.slots)}; fit again instead of partial_fit."
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for pickles and files."""
        optimizer = self.optimizer._asdict()
        return {
            "rule": optimizer.pop("name"),
            "constants": list(optimizer.pop("constants")),
            **optimizer,
            "schedule": self.schedule._asdict(),
            "learning_rate": self.learning_rate,
            "plateau": self.plateau,
            "dropout_seed": self.dropout_seed,
            "slots": self.slots,
            "step": self.step,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "OptimizerState":
        """The inverse of `as_dict`; what an earlier version did not have yet may be missing."""
        rest = dict(data)
        constants = tuple(rest.pop("constants"))
        settings = {name: rest.pop(name) for name in Optimizer._fields[2:] if name in rest}
        optimizer = Optimizer(rest.pop("rule"), constants, **settings)
        return cls(optimizer, Schedule(**rest.pop("schedule")), **rest)
