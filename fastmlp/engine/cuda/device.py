"""A GPU as the engine needs it: memory, kernels made from templates, launches.

Only this file asks numba-cuda to compile or to launch; the emulator of the tests has the same
methods.  A kernel is a template (see `kernels`) with names bound to constants and formulas.  All
its device functions share one namespace with it, so that they see the same bindings.
"""

import math
import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

PRIMITIVES = {
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "tanh": math.tanh,
    "sqrt": math.sqrt,
}
_MIN_CAPABILITY = (8, 0)
_ADVICE = 'install it with: pip install "fastmlp[cuda]"'


class UserFormula(NamedTuple):
    """A function of the user's: it sees its own module's names, not the template's.

    ``adapt`` makes of it, compiled, a function of the arguments that the template gives.
    """

    function: Callable
    adapt: Callable | None = None

    def compile(self, compile_function: Callable) -> Callable:
        compiled = compile_function(getattr(self.function, "py_func", self.function))
        return compiled if self.adapt is None else compile_function(self.adapt(compiled))


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
        if isinstance(value, UserFormula):
            namespace[name] = value.compile(compile_function)
        elif isinstance(value, FunctionType) and value is not template:
            namespace[name] = compile_function(FunctionType(value.__code__, namespace, name))
    namespace |= stand_ins or {}
    return FunctionType(template.__code__, namespace, template.__name__)


class Launch(NamedTuple):
    """A kernel with its grid and arguments."""

    kernel: Any
    blocks: tuple[int, int, int]
    threads: int
    args: tuple


class Device:
    """The current NVIDIA GPU.

    Everything is queued on one stream, but for `send`, which has one of its own, so that copies
    run beside kernels.

    Raises
    ------
    ValueError
        If there is none that can be used; the message says what to install.
    """

    def __init__(self) -> None:
        self._cuda = cuda = _import_numba_cuda()
        from cuda import core

        gpu = cuda.get_current_device()
        name = gpu.name
        self.name: str = name.decode() if isinstance(name, bytes) else name
        self.n_multiprocessors: int = gpu.MULTIPROCESSOR_COUNT
        self._core = core.Device(gpu.id)
        self._core.set_current()
        # numba's own streams would wait for those of other libraries in the process
        self._streams = [self._core.create_stream() for _ in range(2)]
        self._stream, self._copies = (cuda.external_stream(int(s.handle)) for s in self._streams)
        self._kernels: dict[Any, Any] = {}

    def describe(self) -> dict[str, str]:
        """What it is, for people."""
        from numba.cuda.cudadrv.driver import driver

        major, minor = self._cuda.get_current_device().compute_capability[:2]
        memory = self._cuda.current_context().get_memory_info()
        return {
            "GPU": self.name,
            "compute capability": f"{major}.{minor}",
            "multiprocessors": str(self.n_multiprocessors),
            "memory": f"{memory.total / 2**30:.1f} GiB, {memory.free / 2**30:.1f} free",
            "CUDA driver": ".".join(map(str, driver.get_version())),
        }

    # --- memory

    def free_bytes(self) -> int:
        """Memory that is free."""
        return int(self._cuda.current_context().get_memory_info().free)

    def empty(self, n: int, dtype: DTypeLike) -> Any:
        """A new buffer; what it holds is undefined."""
        return self._cuda.device_array(max(n, 1), dtype, stream=self._stream)

    def zeros(self, n: int, dtype: DTypeLike) -> Any:
        """A new buffer of zeros."""
        return self.upload(np.zeros(n, dtype))

    def upload(self, array: np.ndarray) -> Any:
        """A new buffer with a flat copy of ``array``; of one element at least."""
        flat = np.ascontiguousarray(array).reshape(-1)
        buffer = flat if flat.size else np.zeros(1, flat.dtype)
        return self._cuda.to_device(buffer, stream=self._stream)

    def adopt(self, array: Any) -> tuple[Any, tuple[int, ...]]:
        """(buffer, shape) of another library's array on this GPU, not copied.

        Raises
        ------
        ValueError
            If the array is not contiguous in C order.
        """
        from cuda.core.utils import StridedMemoryView

        stream = int(self._streams[0].handle)
        view = StridedMemoryView.from_any_interface(array, stream_ptr=stream)
        shape, size = tuple(view.shape), int(np.prod(view.shape))
        steps = np.cumprod((1, *shape[:0:-1]))[::-1].tolist()
        if view.strides is not None and size and list(view.strides) != steps:
            raise ValueError("X on the GPU must be contiguous in C order; make a copy that is.")
        interface = {
            "shape": (size,), "typestr": np.dtype(view.dtype).str, "data": (view.ptr, False),
            "version": 3,
        }  # fmt: skip
        flat = SimpleNamespace(__cuda_array_interface__=interface, keep=(array, view))
        return self._cuda.as_cuda_array(flat, sync=False), shape

    def write(self, buffer: Any, array: np.ndarray) -> None:
        """Replace what a buffer holds."""
        buffer.copy_to_device(np.ascontiguousarray(array), stream=self._stream)

    def read(self, buffer: Any) -> np.ndarray:
        """A copy on the host; waits for all launches before it."""
        result = buffer.copy_to_host(stream=self._stream)
        self._stream.synchronize()
        return result

    # --- copies beside kernels

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Host memory that `send` can read while the host does something else."""
        return self._cuda.pinned_array(shape, dtype)

    def mark(self) -> Any:
        """The present end of the queue of launches, for `send`."""
        event = self._cuda.event(timing=False)
        event.record(self._stream)
        return event

    def send(self, buffer: Any, array: np.ndarray, after: Any) -> Any:
        """Copy pinned memory to the start of a buffer, beside launches later than ``after``.

        Launches from now on wait for it.  ``array`` must stay as it is until the result, an event,
        was waited for with `wait`.
        """
        if after is not None:
            after.wait(self._copies)
        buffer[: array.size].copy_to_device(array.reshape(-1), stream=self._copies)
        event = self._cuda.event(timing=False)
        event.record(self._copies)
        event.wait(self._stream)
        return event

    def wait(self, event: Any) -> None:
        """Wait until a copy of `send` is done."""
        event.synchronize()

    # --- kernels

    def kernel(self, template: Callable, **names: Any) -> Any:
        """Compile a template, or find it again."""
        key = (template, *sorted(names.items(), key=lambda item: item[0]))
        if key not in self._kernels:
            inlined = self._cuda.jit(device=True, forceinline=True)
            self._kernels[key] = self._cuda.jit(bind(template, names, inlined))
        return self._kernels[key]

    def launch(self, launch: Launch) -> None:
        """Queue one launch."""
        self._launch_on(self._stream, launch)

    def sequence(self, launches: list[Launch]) -> "Sequence":
        """Launches that are queued together, again and again."""
        return Sequence(self, launches)

    def capture(self, launches: list[Launch]) -> Any:
        """A CUDA graph of launches that have all run before."""
        builder = self._core.create_graph_builder().begin_building()
        for launch in launches:
            self._launch_on(builder, launch)
        return builder.end_building().complete()

    def replay(self, graph: Any) -> None:
        """Queue a graph."""
        graph.launch(self._streams[0])

    def _launch_on(self, stream: Any, launch: Launch) -> None:
        with warnings.catch_warnings():
            # a small network has few blocks, and the user cannot change that
            warnings.simplefilter("ignore")
            configured = launch.kernel[launch.blocks, launch.threads, stream]
        configured(*launch.args)


class Sequence:
    """Launches that are queued together: one by one the first time, which compiles and loads the
    kernels, as a CUDA graph from then on.
    """

    def __init__(self, device: Device, launches: list[Launch]):
        self._device, self._launches = device, launches
        self._graph: Any = None
        self._is_fresh = True

    def run(self, n_times: int) -> None:
        """Queue it ``n_times``."""
        if self._is_fresh and n_times:
            for launch in self._launches:
                self._device.launch(launch)
            self._is_fresh = False
            n_times -= 1
        if self._graph is None and n_times:
            self._graph = self._device.capture(self._launches)
        for _ in range(n_times):
            self._device.replay(self._graph)


def _import_numba_cuda() -> Any:
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


def describe() -> dict[str, str]:
    """The GPU, or why there is none."""
    try:
        return open_device().describe()
    except ValueError as error:
        return {"GPU": str(error)}
