"""A user's own activations and losses, as rows like those of `fastmlp.functions`."""

from functools import cache
from types import FunctionType
from typing import Any

import numpy as np

from fastmlp.functions import ACTIVATIONS, Activation, Loss


def activations_of(choice: Any, n_hidden: int) -> str | tuple[str | Activation, ...]:
    """The parameter ``activation`` as `fastmlp.network.Network` takes it.

    Parameters
    ----------
    choice : str, pair of functions, or sequence of these
    n_hidden : int
        Hidden layers.

    Raises
    ------
    ValueError
        If it names no activation, or functions fail at 0, or there is not one for each layer.
    """
    if isinstance(choice, str):
        return choice
    if _is_pair(choice):
        return (_activation(choice),) * max(1, n_hidden)
    if len(choice) != n_hidden:
        raise ValueError(
            f"activation must have one entry for each of the {n_hidden} hidden layers of "
            f"hidden_layer_sizes, got {len(choice)}."
        )
    return tuple(_activation(one) if _is_pair(one) else _known(one) for one in choice)


def loss_of(pair: Any, out_activation: str, *, of_class: bool = False) -> Loss:
    """A loss from the parameter ``loss``, given as a pair of functions.

    Parameters
    ----------
    pair : (callable, callable)
        Value and derivative at a prediction, or with ``of_class`` at a probability, and a target.
    out_activation : str
        What makes a prediction of a score.

    Raises
    ------
    ValueError
        If it is no such pair, or fails at (0.5, 1).
    """
    if not _is_pair(pair):
        raise ValueError(
            f"loss must be a name or a pair of functions (value, derivative), got {pair!r}."
        )
    _try_out("loss", pair, 0.5, 1.0)
    value, gradient = (_as_function(formula, 2) for formula in pair)
    per_row = out_activation == "softmax"
    return Loss(
        value, gradient, out_activation, per_row=per_row, of_probability=of_class, by_user=True
    )


def _is_pair(choice: Any) -> bool:
    is_sequence = isinstance(choice, tuple | list)
    return is_sequence and len(choice) == 2 and all(callable(one) for one in choice)


def _known(activation: Any) -> str:
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must consist of names among {sorted(ACTIVATIONS)} and pairs of functions "
            f"(value, derivative), got {activation!r}."
        )
    return activation


def _activation(pair: Any) -> Activation:
    _try_out("activation", pair, 0.0)
    value, derivative = (_as_function(formula, 1) for formula in pair)
    return Activation(value, derivative, of_score=True, by_user=True)


@cache
def _as_function(formula: Any, n_arguments: int) -> Any:
    """A Python function, which is all that Numba compiles, of a ufunc or one of math's."""
    if isinstance(formula, FunctionType) or hasattr(formula, "py_func"):
        return formula
    one, two = (lambda z: formula(z)), (lambda z, y: formula(z, y))
    function: Any = one if n_arguments == 1 else two
    function.__name__ = getattr(formula, "__name__", type(formula).__name__)
    return function


def _try_out(parameter: str, pair: Any, *arguments: float) -> None:
    """Call a user's functions once, so that the plainest mistakes show at the door."""
    where = ", ".join(map(str, arguments))
    try:
        with np.errstate(all="ignore"):
            finite = np.isfinite([float(function(*arguments)) for function in pair]).all()
    except Exception as error:
        raise ValueError(f"{parameter}: {pair} fails at {where} with {error!r}.") from error
    if not finite:
        raise ValueError(f"{parameter}: both functions of {pair} must be finite at {where}.")
