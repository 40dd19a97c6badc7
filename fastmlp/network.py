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

from fastmlp.functions import ACTIVATIONS, LOSSES, Activation, Loss


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
    loss : str or Loss
        A key of `fastmlp.functions.LOSSES`, or a row like its own; it implies the output
        activation.
    loss_constants : tuple of float
        The loss's constant for each output, if it has one.
    label_smoothing : float
        Share of a class's target that is spread over all classes, for losses of classes.
    """

    widths: tuple[int, ...]
    activations: str | tuple[str | Activation, ...]
    loss: str | Loss
    loss_constants: tuple[float, ...] = ()
    label_smoothing: float = 0.0

    @cached_property
    def hidden(self) -> tuple[Activation, ...]:
        """The activation of each hidden layer."""
        return self._rows[: len(self.widths) - 2]

    @property
    def _rows(self) -> tuple[Activation, ...]:
        """`hidden`, or without hidden layers the activation that would be theirs."""
        chosen = self.activations
        if isinstance(chosen, str):
            chosen = (chosen,) * max(1, len(self.widths) - 2)
        return tuple(ACTIVATIONS[one] if isinstance(one, str) else one for one in chosen)

    @cached_property
    def loss_row(self) -> Loss:
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def n_outputs(self) -> int:
        return self.widths[-1]

    @property
    def out_activation(self) -> str:
        return self.loss_row.out_activation

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each layer in the flat vector, and its end: shape (n_layers,)."""
        sizes = [(fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.widths)]
        return (0, *np.cumsum(sizes).tolist())

    @property
    def n_parameters(self) -> int:
        return self.offsets[-1]

    def initialise(self, random_state: np.random.RandomState, dtype) -> np.ndarray:
        """Flat vector of Glorot-uniform weights and biases, drawn in scikit-learn's order.

        The output layer goes by the activation of the layer before it, as in scikit-learn.
        """
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
