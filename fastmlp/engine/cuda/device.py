"""A GPU as the engine needs it: memory, kernels made from templates, launches.

Only this file asks numba-cuda to compile or to launch; the emulator of the tests has the same
methods.  A kernel is a template (see `kernels`) with names bound to constants and formulas.  All
its device functions share one namespace with it, so that they see the same bindings.
"""

import math
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np

PRIMITIVES = {
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "tanh": math.tanh,
    "sqrt": math.sqrt,
}
_MIN_CAPABILITY = (8, 0)
_ADVICE = 'install it with: pip install "fastmlp[cuda]"'


def bind(
    template: Callable,
    names: dict[str, Any],
    compile_function: Callable,
    stand_ins: dict[str, Any] | None = None,
) -> FunctionType:
    """A copy of ``template`` in a namespace of its own, with every function there compiled.

    Parameters
    ----------
    template : callable
        A kernel of `fastmlp.engine.cuda.kernels`.
    names : dict
        What its free names stand for; functions among them (formulas) are compiled too.
    compile_function : callable
        Makes a device function of a plain one.
    stand_ins : dict, optional
        Put in place of intrinsics, as they are.
    """
    namespace = template.__globals__ | PRIMITIVES | names
    for name, value in list(namespace.items()):
        if isinstance(value, FunctionType) and value is not template:
            namespace[name] = compile_function(FunctionType(value.__code__, namespace, name))
    namespace |= stand_ins or {}
    return FunctionType(template.__code__, namespace, template.__name__)


class Device:
    """The current NVIDIA GPU.

    Raises
    ------
    ValueError
        If there is none that can be used; the message says what to install.
    """

    def __init__(self):
        self._cuda = _import_numba_cuda()
        gpu = self._cuda.get_current_device()
        self.n_multiprocessors: int = gpu.MULTIPROCESSOR_COUNT
        self._kernels: dict[Any, Any] = {}

    def zeros(self, n: int, dtype) -> Any:
        """A new buffer."""
        return self.upload(np.zeros(n, dtype))

    def upload(self, array: np.ndarray) -> Any:
        """A new buffer with a flat copy of ``array``; of one element at least."""
        flat = np.ascontiguousarray(array).reshape(-1)
        return self._cuda.to_device(flat if flat.size else np.zeros(1, flat.dtype))

    def write(self, buffer: Any, array: np.ndarray) -> None:
        """Replace what a buffer holds."""
        buffer.copy_to_device(np.ascontiguousarray(array))

    def read(self, buffer: Any) -> np.ndarray:
        """A copy on the host; waits for all launches before it."""
        return buffer.copy_to_host()

    def kernel(self, template: Callable, **names: Any) -> Any:
        """Compile a template, or find it again."""
        key = (template, *sorted(names.items(), key=lambda item: item[0]))
        if key not in self._kernels:
            inlined = self._cuda.jit(device=True, forceinline=True)
            self._kernels[key] = self._cuda.jit(bind(template, names, inlined))
        return self._kernels[key]

    def launch(self, kernel: Any, blocks: tuple[int, int, int], threads: int, *args: Any) -> None:
        """Queue one launch."""
        kernel[blocks, threads](*args)


def _import_numba_cuda():
    try:
        import _numba_cuda_redirector  # noqa: F401  # `numba.cuda` is numba-cuda's from here on
    except ImportError:
        raise ValueError(f"device='cuda' needs numba-cuda; {_ADVICE}.") from None
    from numba import cuda

    if getattr(cuda, "implementation", "Built-in") != "NVIDIA":
        raise ValueError(
            "device='cuda' needs numba-cuda, but numba's own CUDA target was imported first; "
            f"{_ADVICE}, and import fastmlp before numba.cuda."
        )
    try:
        available = cuda.is_available()
    except Exception as error:
        raise ValueError(f"device='cuda' found no working CUDA driver: {error}") from error
    if not available:
        raise ValueError(
            "device='cuda' found no NVIDIA GPU with a driver for CUDA 13 (580 or newer); use "
            "device='cpu', or look at what `nvidia-smi` says."
        )
    capability = cuda.get_current_device().compute_capability
    if tuple(capability) < _MIN_CAPABILITY:
        raise ValueError(
            f"device='cuda' needs a GPU of compute capability 8.0 or newer, this one has "
            f"{capability[0]}.{capability[1]}; use device='cpu'."
        )
    return cuda


@cache
def open_device() -> Device:
    """The process's one `Device`: what it has compiled serves every engine."""
    return Device()
