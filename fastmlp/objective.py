"""Objective: what training minimises, but for the penalty on the weights."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastmlp.functions import LOSSES, Loss


@dataclass(frozen=True)
class Objective:
    """A loss with its constants, for a number of outputs.

    Parameters
    ----------
    loss : str or Loss
        A key of `fastmlp.functions.LOSSES`, or a row like its own.
    n_outputs : int
    constants : tuple of float
        The loss's constant for each output, if it has one.
    label_smoothing : float
        Share of a class's target that is spread over all classes, for losses of classes.
    """

    loss: str | Loss
    n_outputs: int
    constants: tuple[float, ...] = ()
    label_smoothing: float = 0.0

    @cached_property
    def row(self) -> Loss:
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def out_activation(self) -> str:
        """The output activation that the loss implies."""
        return self.row.out_activation

    @property
    def divisor(self) -> int:
        """By what the sum over the outputs is divided where the loss is reported."""
        return self.n_outputs if self.row.mean_over_outputs else 1

    @property
    def constant_per_output(self) -> tuple[float, ...]:
        """``constants``, zeros for a loss without."""
        return self.constants or (0.0,) * self.n_outputs

    def soft_targets(self, y: np.ndarray) -> np.ndarray:
        """Targets of shape (n_samples, n_outputs), those of classes smoothed.

        ``y`` are class numbers for losses over whole rows, else has that shape already.
        """
        kept = 1.0 - self.label_smoothing
        if self.row.per_row:
            spread = np.full((len(y), self.n_outputs), self.label_smoothing / self.n_outputs)
            spread[np.arange(len(y)), y] += kept
            return spread
        return kept * y + self.label_smoothing / 2 if self.label_smoothing else y

    def check_range(self, y: np.ndarray) -> None:
        """Refuse targets that the loss is not defined for.

        Raises
        ------
        ValueError
            If there are any.
        """
        least, above = self.row.least, self.row.above
        if least is not None and np.any(y < least):
            condition = f">= {least}"
        elif above is not None and np.any(y <= above):
            condition = f"> {above}"
        else:
            return
        name = self.loss if isinstance(self.loss, str) else self.loss.value.__name__
        raise ValueError(
            f"Some value(s) of y are out of the valid range of the loss '{name}': y must be "
            f"{condition}."
        )
