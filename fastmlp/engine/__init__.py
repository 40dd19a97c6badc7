"""The engine contract, and the way to a target.

An engine owns parameters, optimizer state and workspace of one training run, in whatever layout
its kernels want, and answers a few verbs.  Its unit of work is an epoch: between epochs Python is
in charge.  Engines hold no module-level state, so any number of them may run at once on different
threads.  Samples are placed on a device once, apart from engines, which share them.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from fastmlp._interrupts import undisturbed
from fastmlp.dropout import Dropout
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import Optimizer

DEVICES = ("cpu", "cuda")
MATMUL_PRECISIONS = ("highest", "high", "medium")


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

    def evaluate(self, samples: Any) -> float:
        """Mean loss without penalty.

        After the first call with the same samples, nothing is allocated and nothing copied to the
        device.
        """

    def predict(self, X: Any) -> np.ndarray:
        """Outputs of shape (n_samples, n_outputs), output activation applied.

        ``X`` is what `place` takes, or samples.
        """

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
    objective: Objective | None = None,
    dropout: Dropout | None = None,
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
    objective : Objective, optional
        What to minimise; an engine without predicts only.
    dropout : Dropout, optional
        What training steps drop.
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
    _check_device(device)
    options = {
        "dtype": dtype, "objective": objective, "dropout": dropout, "alpha": alpha,
        "optimizer": optimizer, "batch_size": batch_size,
    }  # fmt: skip
    if device == "cuda":
        return _target("cuda").CudaEngine(network, matmul_precision=matmul_precision, **options)
    if matmul_precision != "highest":
        raise ValueError(
            f"device='cpu' does not support matmul_precision={matmul_precision!r}; use 'highest', "
            "or device='cuda'."
        )
    return _target("cpu").CpuEngine(network, n_threads=n_threads, **options)


def place(
    device: str,
    X,
    y: np.ndarray | None = None,
    sample_weight: np.ndarray | None = None,
    *,
    dtype,
    objective: Objective | None = None,
    rows: np.ndarray | None = None,
) -> Samples:
    """Bring samples to ``device``, or get ready to; dense rows in main memory are not copied.

    Parameters
    ----------
    device : {'cpu', 'cuda'}
    X : ndarray, CSR matrix or GpuArray of shape (n_samples, n_features)
        An ndarray's rows may be strided; it may be read-only or memory-mapped.
    y : ndarray, optional
        Class numbers of shape (n_samples,) for losses over whole rows (of classes that exclude each
        other), else targets of shape (n_samples, n_outputs).
    sample_weight : ndarray of shape (n_samples,), optional
    dtype : numpy dtype
        That of the engines: float32 or float64.
    objective : Objective, optional
        That of the engines; needed with ``y``.
    rows : ndarray of int, optional
        Take these rows of ``X``, ``y`` and ``sample_weight``.

    Raises
    ------
    ValueError
        If the device is unknown or not there, or if a `GpuArray` holds a NaN or an infinity.
    """
    _check_device(device)
    options = {"dtype": dtype, "objective": objective, "rows": rows}
    if device == "cuda":
        return _target("cuda").place(X, y, sample_weight, **options)
    return _target("cpu").Samples(X, y, sample_weight, **options)


def _check_device(device: str) -> None:
    if device not in DEVICES:
        raise ValueError(f"device={device!r} is not supported; use one of {DEVICES}.")


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
