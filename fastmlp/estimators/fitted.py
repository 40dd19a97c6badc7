"""FittedModel: a trained network, what its outputs stand for, and its predictor.

It is made of an estimator's attributes, so that whoever writes a model down, draws it or looks into
it needs to know no estimator.  A user may assign to these attributes and parameters at any time: an
estimator keeps the `FittedModel` of the last call as long as it is made of the same objects.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from operator import is_
from typing import Any

import numpy as np

from fastmlp.engine import Engine, get_row_predictor
from fastmlp.estimators.prediction import Predictor
from fastmlp.estimators.targets import Labels, Values
from fastmlp.network import Network, widths_of
from fastmlp.optimizers import OptimizerState
from fastmlp.training.start import Setting


class FittedModel:
    """A trained network.

    Parameters
    ----------
    network : Network
    coefs, intercepts : sequence of ndarray
        The estimator's own.
    targets : Labels or Values
        What the outputs stand for.
    optimizer_state : OptimizerState or None
    execution : dict
        Where and how to predict; see `fastmlp.estimators.plan.execution`.
    made_of : tuple
        What else of the estimator it depends on.
    flat : ndarray or None
        The vector that ``coefs`` and ``intercepts`` are views of, if it is known.
    """

    def __init__(
        self, network: Network, coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray],
        targets: Labels | Values, optimizer_state: OptimizerState | None,
        execution: dict[str, Any], made_of: tuple = (), flat: np.ndarray | None = None,
    ):  # fmt: skip
        self.network, self.targets, self.optimizer_state = network, targets, optimizer_state
        self.coefs, self.intercepts = list(coefs), list(intercepts)
        self._execution, self._made_of, self._flat = execution, made_of, flat
        self._spare: tuple | None = None

    def is_made_of(self, coefs: Any, intercepts: Any, made_of: tuple) -> bool:
        """Whether these are the objects that it was made of."""
        return (
            len(coefs) == len(self.coefs) == len(intercepts)
            and all(map(is_, coefs, self.coefs))
            and all(map(is_, intercepts, self.intercepts))
            and made_of == self._made_of
        )

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64: what the parameters are."""
        return np.result_type(self.coefs[0], np.float32)

    @property
    def parameters(self) -> np.ndarray:
        """All of them, flat and not to be changed: what the arrays are views of, or a copy."""
        if self._flat is not None:
            return self._flat
        return self.network.flatten(self.coefs, self.intercepts, self.dtype)

    @cached_property
    def predict(self) -> Predictor:
        """Makes outputs (n_samples, n_outputs) of checked ``X``."""
        return Predictor(self.network, self.coefs, self.intercepts, self._execution)

    def row_predictor(self) -> Any:
        """A new predictor of a few rows from the model's own arrays.

        Raises
        ------
        ValueError
            If it cannot read them.
        """
        predictor = get_row_predictor(self.network, self.coefs, self.intercepts)
        if predictor is None:
            raise ValueError(
                "coefs_ and intercepts_ must be C-contiguous arrays of one type, float32 or "
                "float64; fit the model again."
            )
        return predictor

    @property
    def spare(self) -> tuple[Setting, Engine] | None:
        """An engine for the next `partial_fit`, and what it was made for.

        A forked process has none, because an engine's threads are not in it.
        """
        if self._spare is None or self._spare[0] != os.getpid():
            return None
        return self._spare[1]

    @spare.setter
    def spare(self, spare: tuple[Setting, Engine] | None) -> None:
        self._spare = os.getpid(), spare

    @property
    def summary(self) -> str:
        """The network in one line."""
        network = self.network
        names = [*network.activation_names, network.out_activation]
        layers = [f" → {n} {name}" for n, name in zip(network.widths[1:], names, strict=True)]
        return f"{network.widths[0]}{''.join(layers)}, {network.n_parameters:,} parameters"


def require_layers(coefs: Any, intercepts: Any, n_features: int | None) -> tuple[int, ...]:
    """Units per layer, after a look at whether kernels can index with them.

    Parameters
    ----------
    coefs, intercepts : sequence of arrays
    n_features : int or None
        What ``n_features_in_`` says, if it is known.

    Raises
    ------
    ValueError
        If the layers do not follow each other, or do not begin with the features.
    """
    widths = widths_of(coefs, intercepts)
    if n_features is not None and widths[0] != n_features:
        raise ValueError(
            f"coefs_[0] must have a row for each of the {n_features} features that "
            f"n_features_in_ says, got {widths[0]}."
        )
    return widths


def n_parameters_of(widths: Sequence[int]) -> int:
    """Parameters of all layers."""
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))
