"""Engines: the way to a target, imported only when it is asked for.

`contract` says what an engine is; `cpu` and `cuda` are the targets.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from fastmlp._interrupts import undisturbed
from fastmlp.dropout import Dropout
from fastmlp.engine.contract import (
    DEVICES,
    MATMUL_PRECISIONS,
    Capabilities,
    Engine,
    Samples,
    capabilities,
    check_device,
)
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import Optimizer

if TYPE_CHECKING:
    from fastmlp.engine.cpu.rows import RowPredictor

__all__ = [
    "DEVICES",
    "MATMUL_PRECISIONS",
    "Capabilities",
    "Engine",
    "Samples",
    "available_threads",
    "capabilities",
    "check_device",
    "describe",
    "get_comparison",
    "get_engine",
    "get_row_predictor",
    "place",
    "to_host",
    "warmup",
]


def get_engine(
    device: str,
    network: Network,
    *,
    dtype: DTypeLike,
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
        If the device is unknown, does not support the precision, or is not there: the message says
        what to install.
    """
    check_device(device, matmul_precision)
    options = {
        "dtype": dtype, "objective": objective, "dropout": dropout, "alpha": alpha,
        "optimizer": optimizer, "batch_size": batch_size,
    }  # fmt: skip
    if device == "cuda":
        return _target("cuda").CudaEngine(network, matmul_precision=matmul_precision, **options)
    return _target("cpu").CpuEngine(network, n_threads=n_threads, **options)


def place(
    device: str,
    X: Any,
    y: np.ndarray | None = None,
    sample_weight: np.ndarray | None = None,
    *,
    dtype: DTypeLike,
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
    check_device(device)
    options = {"dtype": dtype, "objective": objective, "rows": rows}
    if device == "cuda":
        return _target("cuda").place(X, y, sample_weight, **options)
    return _target("cpu").Samples(X, y, sample_weight, **options)


@cache
def _target(name: str) -> ModuleType:
    """The module of a target; that of CUDA loads Numba, which Ctrl-C must not break off."""
    return undisturbed(import_module, f"fastmlp.engine.{name}")


def describe(device: str) -> dict[str, str]:
    """What was found of a device, for people."""
    if device == "cpu":
        return _target("cpu").describe()
    try:
        return _target("cuda").describe()
    except ValueError as error:  # what it needs is not installed
        return {"GPU": str(error)}


def to_host(array: Any) -> np.ndarray:
    """A copy of another library's array on the GPU."""
    from fastmlp.engine.cuda.device import open_device

    device = open_device()
    buffer, shape = device.adopt(array)
    return device.read(buffer).reshape(shape)


def available_threads(n_threads: int | None) -> int:
    """Threads that this process may use: see `fastmlp.engine.cpu.threads.available_threads`."""
    from fastmlp.engine.cpu import threads

    return threads.available_threads(n_threads)


def get_row_predictor(
    network: Network, coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray]
) -> "RowPredictor | None":
    """A `fastmlp.engine.cpu.rows.RowPredictor`, or None if it cannot read these arrays."""
    from fastmlp.engine.cpu.rows import RowPredictor

    if not RowPredictor.accepts(coefs, intercepts):
        return None
    return RowPredictor(network, coefs, intercepts)


def predict_rows(predictors: "Sequence[RowPredictor]", X: np.ndarray) -> np.ndarray | None:
    """See `fastmlp.engine.cpu.rows.RowPredictor.each`."""
    from fastmlp.engine.cpu.rows import RowPredictor

    return RowPredictor.each(predictors, X)


def get_comparison(arrays: list[np.ndarray], copies: list[np.ndarray]) -> Callable[[], bool]:
    """A function that tells whether arrays still hold the numbers of their copies."""
    from fastmlp.engine.cpu.rows import Comparison

    if Comparison.accepts(arrays, copies):
        return Comparison(arrays, copies)
    return lambda: all(map(np.array_equal, arrays, copies))


def warmup() -> None:
    """Compile the kernels of every target that can run here."""
    _target("cpu").warmup()
