"""Arrays of other libraries on a GPU, recognised without importing any of them."""

from typing import Any, NamedTuple

import numpy as np

_CUDA_KINDS = (2, 13)  # kDLCUDA, kDLCUDAManaged


def on_gpu(X: Any) -> bool:
    """Whether ``X`` is an array in an NVIDIA GPU's memory (CuPy, PyTorch, JAX, Numba)."""
    if getattr(X, "__cuda_array_interface__", None) is not None:
        return True
    device = getattr(X, "__dlpack_device__", None)
    return device is not None and device()[0] in _CUDA_KINDS


class GpuArray(NamedTuple):
    """Such an array, with its shape and element type in NumPy's terms."""

    array: Any
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def wrap(cls, X: Any) -> "GpuArray":
        """
        Raises
        ------
        ValueError
            If the elements are neither float32 nor float64.
        """
        name = str(X.dtype).rpartition(".")[2]  # PyTorch's are called "torch.float32"
        if name not in ("float32", "float64"):
            raise ValueError(
                f"X on the GPU must be of float32 or float64, got {name}; convert it before."
            )
        return cls(X, tuple(X.shape), np.dtype(name))
