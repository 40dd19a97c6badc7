"""The engine contract, and the way to a target.

An engine owns parameters, optimizer state and workspace of one training run, in whatever layout
its kernels want, and answers a few verbs.  Its unit of work is an epoch: between epochs Python is
in charge.  Engines hold no module-level state, so any number of them may run at once on different
threads.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from fastmlp._interrupts import undisturbed
from fastmlp.network import Network
from fastmlp.optimizers import Optimizer

DEVICES = ("cpu", "cuda")
MATMUL_PRECISIONS = ("highest", "high", "medium")


class Engine(Protocol):
    """What `fastmlp.training` and the estimators ask of a target.

    ``X`` is a C-ordered float array (its rows may be strided; it may be read-only or
    memory-mapped) or a CSR matrix, of shape (n_samples, n_features) and the engine's dtype.
    ``y`` holds class numbers of shape (n_samples,), int64, for losses over whole rows (of classes
    that exclude each other), else targets of shape (n_samples, n_outputs) and the engine's dtype.
    """

    def load(self, X, y: np.ndarray, sample_weight: np.ndarray | None = None) -> None:
        """Place the training data; dense rows are not copied."""

    def unload(self) -> None:
        """Let go of the training data."""

    def place(self, X, rows: np.ndarray | None = None) -> Any:
        """``X``, or some of its rows, in the engine's own form, which `predict` and `evaluate` take
        instead.
        """

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

    def evaluate(self, X, y: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
        """Mean loss of ``X``, ``y`` without penalty."""

    def predict(self, X) -> np.ndarray:
        """Outputs of shape (n_samples, n_outputs), output activation applied."""

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


def get_engine(
    device: str,
    network: Network,
    *,
    dtype,
    alpha: float = 0.0,
    optimizer: Optimizer | None = None,
    batch_size: int = 1,
    n_threads: int | None = None,
    matmul_precision: str = "highest",
) -> Engine:
    """Make an engine for ``device``, importing its target only now.

    Parameters
    ----------
    device : {'cpu', 'cuda'}
    network : Network
    dtype : numpy dtype
        float32 or float64.
    alpha : float
        Strength of the L2 penalty on the weights.
    optimizer : Optimizer, optional
        Needed for `run_epoch`.
    batch_size : int
        Samples per step.
    n_threads : int or None
        Most threads of the CPU to use; None means as many as pay.
    matmul_precision : {'highest', 'high', 'medium'}
        On a GPU: products of float32 in float32, in TF32, or of bfloat16 inputs, as PyTorch and
        JAX name them; sums are float32 in all of them.  float64 is not affected.

    Raises
    ------
    ValueError
        If the device is unknown, or is not there: the message says what to install.
    """
    if device not in DEVICES:
        raise ValueError(f"device={device!r} is not supported; use one of {DEVICES}.")
    options = {
        "dtype": dtype, "alpha": alpha, "optimizer": optimizer, "batch_size": batch_size
    }  # fmt: skip
    if device == "cuda":
        return _target("cuda").CudaEngine(network, matmul_precision=matmul_precision, **options)
    if matmul_precision != "highest":
        raise ValueError(
            f"device='cpu' does not support matmul_precision={matmul_precision!r}; use 'highest', "
            "or device='cuda'."
        )
    return _target("cpu").CpuEngine(network, n_threads=n_threads, **options)


@cache
def _target(name: str):
    """The module of a target; that of CUDA loads Numba, which Ctrl-C must not break off."""
    return undisturbed(import_module, f"fastmlp.engine.{name}")


def describe(device: str) -> dict[str, str]:
    """What was found of a device, for people."""
    if device == "cpu":
        return _target("cpu").describe()
    try:
        return _target("cuda").device.describe()
    except ValueError as error:  # what it needs is not installed
        return {"GPU": str(error)}


def to_host(array) -> np.ndarray:
    """A copy of another library's array on the GPU."""
    from fastmlp.engine.cuda.device import open_device

    device = open_device()
    buffer, shape = device.adopt(array)
    return device.read(buffer).reshape(shape)


def available_threads(n_threads: int | None) -> int:
    """Threads that this process may use: see `fastmlp.engine.cpu.threads.available_threads`."""
    from fastmlp.engine.cpu import threads

    return threads.available_threads(n_threads)


def get_row_predictor(network: Network, coefs, intercepts):
    """A `fastmlp.engine.cpu.rows.RowPredictor`, or None if it cannot read these arrays."""
    from fastmlp.engine.cpu.rows import RowPredictor

    if not RowPredictor.accepts(coefs, intercepts):
        return None
    return RowPredictor(network, coefs, intercepts)


def get_comparison(arrays: list[np.ndarray], copies: list[np.ndarray]) -> Callable[[], bool]:
    """A function that tells whether arrays still hold the numbers of their copies."""
    from fastmlp.engine.cpu.rows import Comparison

    if Comparison.accepts(arrays, copies):
        return Comparison(arrays, copies)
    return lambda: all(map(np.array_equal, arrays, copies))


def warmup() -> None:
    """Compile the kernels of every target that can run here."""
    _target("cpu").warmup()
