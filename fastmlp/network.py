"""Network: the immutable description of one multilayer perceptron.

Everything an engine needs to know about the architecture is integers: layer widths, one
activation code per hidden layer, a loss code, and the place of each layer in the flat parameter
vector.  That vector is the only form in which parameters cross an interface: layer by layer
``W`` of shape (fan_in, fan_out) in row-major order, then ``b`` of shape (fan_out,).
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from fastmlp.functions import ACTIVATIONS, LOSSES


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron without its parameters.

    Parameters
    ----------
    widths : tuple of int
        Units per layer, from the features to the outputs.
    activation : str
        Activation of every hidden layer, a key of `fastmlp.functions.ACTIVATIONS`.
    loss : str
        A key of `fastmlp.functions.LOSSES`; it implies the output activation.
    """

    widths: tuple[int, ...]
    activation: str
    loss: str

    @property
    def n_outputs(self) -> int:
        return self.widths[-1]

    @property
    def out_activation(self) -> str:
        return LOSSES[self.loss].out_activation

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each layer in the flat vector, and its end: shape (n_layers,)."""
        sizes = [(fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.widths)]
        return (0, *np.cumsum(sizes).tolist())

    @property
    def n_parameters(self) -> int:
        return self.offsets[-1]

    def initialise(self, random_state: np.random.RandomState, dtype) -> np.ndarray:
        """Flat vector of Glorot-uniform weights and biases, drawn in scikit-learn's order."""
        factor = ACTIVATIONS[self.activation].init_factor
        flat = np.empty(self.n_parameters, dtype)
        for (coef, intercept), (fan_in, fan_out) in zip(
            self._layers(flat), pairwise(self.widths), strict=True
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

    def flatten(self, coefs, intercepts, dtype) -> np.ndarray:
        """A new flat vector from ``coefs`` and ``intercepts``.

        Raises
        ------
        ValueError
            If a shape is not the network's.
        """
        flat = np.empty(self.n_parameters, dtype)
        layers = self._layers(flat)
        expected = [(coef.shape, intercept.shape) for coef, intercept in layers]
        got = [(np.shape(W), np.shape(b)) for W, b in zip(coefs, intercepts, strict=False)]
        if got != expected or len(coefs) != len(intercepts):
            raise ValueError(
                "coefs_ and intercepts_ must have the shapes that hidden_layer_sizes and the data "
                f"imply, {expected}, got {got}; fit without warm_start to change the architecture."
            )
        for (coef, intercept), new_coef, new_intercept in zip(
            layers, coefs, intercepts, strict=True
        ):
            coef[:] = new_coef
            intercept[:] = new_intercept
        return flat
