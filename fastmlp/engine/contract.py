"""What an engine is: the contract between training and the targets, and what each device can do.

An engine owns parameters, optimizer state and workspace of one training run, in whatever layout
its kernels want, and answers a few verbs.  What it is asked to do at a time is an epoch: between
epochs Python is in charge.  Engines hold no module-level state, so any number of them may run at
once on different threads.  Samples are placed on a device once, apart from engines, which share
them.

Nothing here imports a target.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

MATMUL_PRECISIONS = ("highest", "high", "medium")


class Capabilities(NamedTuple):
    """What the engine of a device can do.

    Attributes
    ----------
    matmul_precisions : tuple of str
        Those of `MATMUL_PRECISIONS` that it has.
    arrays_on_device : bool
        Whether samples may be another library's arrays on the device.
    trains_side_by_side : bool
        Whether several trainings are faster at once than one after the other, which takes the
        memory of one.
    """

    matmul_precisions: tuple[str, ...]
    arrays_on_device: bool
    trains_side_by_side: bool


_CAPABILITIES = {
    "cpu": Capabilities(
        matmul_precisions=("highest",), arrays_on_device=False, trains_side_by_side=True
    ),
    "cuda": Capabilities(
        matmul_precisions=MATMUL_PRECISIONS, arrays_on_device=True, trains_side_by_side=False
    ),
}
DEVICES = tuple(_CAPABILITIES)


def capabilities(device: str) -> Capabilities:
    """What the engine of ``device``, one of `DEVICES`, can do."""
    return _CAPABILITIES[device]


def check_device(device: str, matmul_precision: str = "highest") -> None:
    """Refuse what no engine is there for; whether the device itself is there is not looked at.

    Raises
    ------
    ValueError
        If the device is unknown, or does not support this precision.
    """
    if device not in DEVICES:
        raise ValueError(f"device={device!r} is not supported; use one of {DEVICES}.")
    precisions = capabilities(device).matmul_precisions
    if matmul_precision in precisions:
        return
    others = [name for name in DEVICES if matmul_precision in capabilities(name).matmul_precisions]
    raise ValueError(
        f"device={device!r} does not support matmul_precision={matmul_precision!r}; use "
        f"{', '.join(map(repr, precisions))}{''.join(f', or device={name!r}' for name in others)}."
    )


class Samples(Protocol):
    """Samples on a device, with targets and weights if `place` was given them.

    They are in the form of the device's engines, any number of which may use them at once, on any
    threads.
    """

    @property
    def n_samples(self) -> int: ...

    @property
    def n_features(self) -> int: ...


class Engine(Protocol):
    """What `fastmlp.training` and the estimators ask of a target.

    Samples are those that `place` made for the engine's device, type and objective.
    """

    def load(self, samples: Any) -> None:
        """Take samples to train on."""

    def unload(self) -> None:
        """Let go of them."""

    def run_epoch(self, order: np.ndarray, learning_rates: np.ndarray) -> float:
        """One pass over the samples in ``order``, one learning rate per step.

        Returns the sum over batches of (mean loss of the batch, penalty included) x (its
        length), each mean taken before the batch's update.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C; the parameters are those of the last complete step.
        """

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        """Loss over all loaded samples, penalty included, and its gradient (flat)."""

    def sum_gradients(self, order: np.ndarray, step: int) -> tuple[float, float, np.ndarray]:
        """Sums over some of the loaded samples, for a step that others have a share in.

        They are of the weighted losses without penalty, of the weights, and of the losses'
        gradients (flat).  Dropout's masks are those of the step after ``step`` steps.
        """

    def apply_gradient(
        self, gradient: np.ndarray, total_weight: float, learning_rate: float
    ) -> float:
        """One step with the sums of `sum_gradients`, added up over everybody's samples.

        Returns the penalty before the step, divided by the total weight as in a batch's loss.  A
        batch whose weights sum to zero is counted and passed over, as by `run_epoch`.
        """

    def evaluate(self, samples: Any) -> float:
        """Mean loss without penalty.

        After the first call with the same samples, nothing is allocated and nothing copied to the
        device.
        """

    def predict(self, X: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Outputs of shape (n_samples, n_outputs), output activation applied.

        ``X`` is what `place` takes, or samples; ``out`` where to put the outputs.
        """

    def predict_if_finite(self, X: np.ndarray) -> np.ndarray | None:
        """`predict` for floats that nobody has looked at; None if one of them is not finite."""

    def info(self) -> dict[str, Any]:
        """Where and how the engine runs, for people."""

    def get_parameters(self) -> np.ndarray:
        """A copy of the flat parameter vector, which `predict` and `evaluate` go by.

        With `Optimizer.ema_decay` that is the average, and the parameters that are trained belong
        to the state.
        """

    def set_parameters(self, flat: np.ndarray) -> None:
        """Replace the parameters, those that are trained and their average."""

    def get_state(self) -> tuple[np.ndarray, int]:
        """A copy of the optimizer's slots, (2, n_parameters), and the steps taken.

        With `Optimizer.ema_decay` the slots have a third row, the parameters that are trained.
        """

    def set_state(self, slots: np.ndarray, step: int) -> None:
        """Replace the optimizer's state."""

    @property
    def n_steps(self) -> int:
        """The steps taken; known at once, whatever is not compiled yet."""

    def stop(self) -> None:
        """From another thread: end the call that runs now with a KeyboardInterrupt."""
