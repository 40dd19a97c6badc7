"""Network: the immutable description of one multilayer perceptron.

It is the architecture only: layer widths, activations, and the place of each layer in the flat
parameter vector.  That vector is the only form in which parameters cross an interface: layer by
layer ``W`` of shape (fan_in, fan_out) in row-major order, then ``b`` of shape (fan_out,).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike

from fastmlp.functions import ACTIVATIONS, Activation
from fastmlp.initialisers import INITIALISERS, Initialiser


def widths_of(coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Units per layer, from arrays of weights and biases.

    Raises
    ------
    ValueError
        If the layers do not follow each other: kernels would read outside of the arrays.
    """
    shapes = [np.shape(coef) for coef in coefs]
    if shapes and all(len(shape) == 2 for shape in shapes):
        widths = (shapes[0][0], *(shape[1] for shape in shapes))
        biases = [np.shape(intercept) for intercept in intercepts]
        follow = shapes == list(pairwise(widths)) and biases == [(width,) for width in widths[1:]]
        if follow and min(widths) > 0:
            return widths
    raise ValueError(
        "coefs_ and intercepts_ must be arrays of shapes (fan_in, fan_out) and (fan_out,) for each "
        f"layer, fan_in being fan_out of the layer before, got {shapes} and "
        f"{[np.shape(intercept) for intercept in intercepts]}."
    )


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron without its parameters.

    Parameters
    ----------
    widths : tuple of int
        Units per layer, from the features to the outputs.
    activations : str or tuple of str or Activation
        Activation of every hidden layer, or one per hidden layer: keys of
        `fastmlp.functions.ACTIVATIONS`, or rows like its own.
    out_activation : str
        A key of `fastmlp.functions.LINKS`.
    layer_norm : bool
        Whether each hidden layer's scores are normalised over its units.
    """

    widths: tuple[int, ...]
    activations: str | tuple[str | Activation, ...]
    out_activation: str = "identity"
    layer_norm: bool = False

    @cached_property
    def hidden(self) -> tuple[Activation, ...]:
        """The activation of each hidden layer."""
        return self._rows[: len(self.widths) - 2]

    @property
    def activation_names(self) -> list[str]:
        """For people: of a user's own, the name of the function."""
        chosen = self.activations
        names = (
            [chosen] * len(self.hidden) if isinstance(chosen, str) else chosen[: len(self.hidden)]
        )
        return [one if isinstance(one, str) else one.value.__name__ for one in names]

    @property
    def _rows(self) -> tuple[Activation, ...]:
        """`hidden`, or without hidden layers the activation that would be theirs."""
        chosen = self.activations
        if isinstance(chosen, str):
            chosen = (chosen,) * max(1, len(self.widths) - 2)
        return tuple(ACTIVATIONS[one] if isinstance(one, str) else one for one in chosen)

    @property
    def n_outputs(self) -> int:
        return self.widths[-1]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each layer in the flat vector, and its end: shape (n_layers,)."""
        sizes = [(fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.widths)]
        return (0, *np.cumsum(sizes).tolist())

    @property
    def n_parameters(self) -> int:
        return self.offsets[-1]

    def initialise(
        self,
        random_state: np.random.RandomState,
        dtype: DTypeLike,
        weight_init: str | Initialiser = "auto",
    ) -> np.ndarray:
        """Flat vector of initial parameters.

        Parameters
        ----------
        random_state : RandomState
        dtype : numpy dtype
        weight_init : str or callable
            'auto' draws Glorot-uniform weights and biases in scikit-learn's order.  With a key of
            `fastmlp.initialisers.INITIALISERS`, or a user's function of the same kind, biases are
            0.

        Raises
        ------
        ValueError
            If a user's function returns an array of a wrong shape, or one that is not finite.
        """
        if weight_init == "auto":
            return self._initialise_as_scikit_learn(random_state, dtype)
        initialise = weight_init if callable(weight_init) else INITIALISERS[weight_init]
        flat = np.zeros(self.n_parameters, dtype)
        for coef, _ in self._layers(flat):
            fan_in, fan_out = coef.shape
            weights = np.asarray(initialise(fan_in, fan_out, random_state), np.float64)
            if weights.shape != coef.shape or not np.isfinite(weights).all():
                raise ValueError(
                    f"weight_init must return finite numbers of shape (fan_in, fan_out) = "
                    f"{coef.shape}, got an array of shape {weights.shape}."
                )
            coef[:] = weights
        return flat

    def _initialise_as_scikit_learn(
        self, random_state: np.random.RandomState, dtype: DTypeLike
    ) -> np.ndarray:
        """The output layer goes by the activation of the layer before it."""
        rows = self._rows or (ACTIVATIONS["identity"],)
        factors = [row.init_factor for row in (*self.hidden, rows[-1])]
        flat = np.empty(self.n_parameters, dtype)
        for (coef, intercept), (fan_in, fan_out), factor in zip(
            self._layers(flat), pairwise(self.widths), factors, strict=True
        ):
            bound = np.sqrt(factor / (fan_in + fan_out))
            coef[:] = random_state.uniform(-bound, bound, (fan_in, fan_out))
            intercept[:] = random_state.uniform(-bound, bound, fan_out)
        return flat

    def _layers(self, flat: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        layers = []
        for start, end, (fan_in, fan_out) in zip(
            self.offsets, self.offsets[1:], pairwise(self.widths), strict=False
        ):
            split = start + fan_in * fan_out
            layers.append((flat[start:split].reshape(fan_in, fan_out), flat[split:end]))
        return layers

    def unflatten(self, flat: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Views ``coefs``, ``intercepts`` into a flat vector, as in scikit-learn's attributes."""
        layers = self._layers(flat)
        return [coef for coef, _ in layers], [intercept for _, intercept in layers]

    def flatten(
        self, coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray], dtype: DTypeLike
    ) -> np.ndarray:
        """A new flat vector from ``coefs`` and ``intercepts``.

        Raises
        ------
        ValueError
            If a shape is not the network's.
        """
        expected = [((fan_in, fan_out), (fan_out,)) for fan_in, fan_out in pairwise(self.widths)]
        got = [(np.shape(W), np.shape(b)) for W, b in zip(coefs, intercepts, strict=False)]
        if got != expected or len(coefs) != len(intercepts):
            raise ValueError(
                "coefs_ and intercepts_ must have the shapes that hidden_layer_sizes and the data "
                f"imply, {expected}, got {got}; fit without warm_start to change the architecture."
            )
        flat = np.empty(self.n_parameters, dtype)
        for (coef, intercept), new_coef, new_intercept in zip(
            self._layers(flat), coefs, intercepts, strict=True
        ):
            coef[:] = new_coef
            intercept[:] = new_intercept
        return flat
