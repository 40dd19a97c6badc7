"""A GPU as the engine needs it: memory, kernels made from templates, launches.

Only this file talks to the driver, through numba-cuda for memory and streams, and without it where
time counts: a launch of 8 arrays by numba-cuda takes a host of an H100 100 microseconds, by
cuda.core a few.  The emulator of the tests has the same methods.
"""

import os
import threading
import time
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from fastmlp.engine.cuda.compiler import compile_kernel

_MIN_CAPABILITY = (8, 0)
SECONDS_AT_ONCE = 0.25  # of work that is queued
_ADVICE = 'install it with: pip install "fastmlp[cuda]"'


class Buffer:
    """Memory on the GPU.

    Attributes
    ----------
    array : numba-cuda's device array
    dtype : numpy dtype
    size : int
    pointer : int
    """

    __slots__ = ("array", "dtype", "kind", "pointer", "size")

    def __init__(self, array: Any):
        self.array, self.dtype, self.size = array, np.dtype(array.dtype), int(array.size)
        self.pointer = int(array.device_ctypes_pointer.value or 0)
        self.kind = f"{self.dtype.char} pointer"


class Kernel:
    """A template with names bound, and what it was compiled to, by the kinds of its arguments."""

    def __init__(self, template: Callable, names: dict[str, Any]):
        self.template, self.names = template, names
        self.compiled: dict[tuple, Any] = {}


class Launch(NamedTuple):
    """A kernel with its grid and arguments, and the bytes of shared memory that it does not ask for
    itself; all blocks of a cooperative one run at once.
    """

    kernel: Any
    blocks: tuple[int, int, int]
    threads: int
    args: tuple
    cooperative: bool = False
    shared_bytes: int = 0


class Device:
    """The current NVIDIA GPU.

    Everything is queued on one stream, but for `send`, which has one of its own, so that copies
    run beside kernels.

    Attributes
    ----------
    name : str
    n_multiprocessors : int
    shared_bytes : int
        Shared memory that a block can have, if it asks for it.

    Raises
    ------
    ValueError
        If there is none that can be used; the message says what to install.
    """

    def __init__(self) -> None:
        self._cuda = cuda = _import_numba_cuda()
        from cuda import core
        from cuda.bindings import driver

        gpu = cuda.get_current_device()
        name = gpu.name
        self.name: str = name.decode() if isinstance(name, bytes) else name
        self.n_multiprocessors: int = gpu.MULTIPROCESSOR_COUNT
        major, minor = gpu.compute_capability[:2]
        self._capability = (major, minor, "a") if major >= 9 else (major, minor)
        self._api, self._driver = core, driver
        self._core = core.Device(gpu.id)
        self._core.set_current()
        self.shared_bytes: int = self._core.properties.max_shared_memory_per_block_optin
        # numba's own streams would wait for those of other libraries in the process
        self._streams = [self._core.create_stream() for _ in range(2)]
        self._stream, self._copies = (cuda.external_stream(int(s.handle)) for s in self._streams)
        self._handle, self._here = int(self._streams[0].handle), threading.local()
        self._kernels: dict[Any, Kernel] = {}
        self._configurations: dict[tuple, Any] = {}

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

    def _enter(self) -> None:
        """Make the GPU this thread's, which a call of the driver needs."""
        if not hasattr(self._here, "entered"):
            self._core.set_current()
            self._here.entered = True

    @property
    def _queue(self) -> int:
        """The stream of launches, for a call of the driver."""
        self._enter()
        return self._handle

    # --- memory

    def free_bytes(self) -> int:
        """Memory that is free."""
        return int(self._cuda.current_context().get_memory_info().free)

    def empty(self, n: int, dtype: DTypeLike) -> Buffer:
        """A new buffer; what it holds is undefined.

        Raises
        ------
        MemoryError
        """
        try:
            return Buffer(self._cuda.device_array(max(n, 1), dtype, stream=self._stream))
        except Exception as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            raise MemoryError(
                f"device='cuda': {n * np.dtype(dtype).itemsize / 2**30:.2f} GiB more do not fit on "
                "the GPU; use a smaller batch_size, a smaller network, float32 or device='cpu'."
            ) from error

    def zeros(self, n: int, dtype: DTypeLike) -> Buffer:
        """A new buffer of zeros."""
        buffer = self.empty(n, dtype)
        size = buffer.size * buffer.dtype.itemsize
        self._check(
            self._driver.cuMemsetD8Async(buffer.pointer, 0, size, self._queue),
            f"{size} bytes could not be set to zero",
        )
        return buffer

    def upload(self, array: np.ndarray) -> Buffer:
        """A new buffer with a flat copy of ``array``; of one element at least."""
        flat = np.ascontiguousarray(array).reshape(-1)
        buffer = self.empty(flat.size, flat.dtype)
        if flat.size:
            self.write(buffer, flat)
        return buffer

    def adopt(self, array: Any) -> tuple[Buffer, tuple[int, ...]]:
        """(buffer, shape) of another library's array on this GPU, not copied.

        Raises
        ------
        ValueError
            If the array is on another GPU, or not contiguous in C order.
        """
        from cuda.core.utils import StridedMemoryView

        stream = int(self._streams[0].handle)
        view = StridedMemoryView.from_any_interface(array, stream_ptr=stream)
        if view.device_id != self._core.device_id:
            raise ValueError(
                f"X is on GPU {view.device_id}, but device='cuda' uses GPU "
                f"{self._core.device_id}; copy X there."
            )
        shape, size = tuple(view.shape), int(np.prod(view.shape))
        steps = np.cumprod((1, *shape[:0:-1]))[::-1].tolist()
        if view.strides is not None and size and list(view.strides) != steps:
            raise ValueError("X on the GPU must be contiguous in C order; make a copy that is.")
        interface = {
            "shape": (size,), "typestr": np.dtype(view.dtype).str, "data": (view.ptr, False),
            "version": 3,
        }  # fmt: skip
        flat = SimpleNamespace(__cuda_array_interface__=interface, keep=(array, view))
        return Buffer(self._cuda.as_cuda_array(flat, sync=False)), shape

    def write(self, buffer: Any, array: np.ndarray) -> None:
        """Replace what a buffer holds."""
        flat = np.ascontiguousarray(array, buffer.dtype)
        assert flat.size == buffer.size
        self._check(
            self._driver.cuMemcpyHtoDAsync(
                buffer.pointer, flat.ctypes.data, flat.nbytes, self._queue
            ),
            f"{flat.nbytes} bytes could not be sent to the GPU",
        )

    def read(self, buffer: Buffer, n: int | None = None) -> np.ndarray:
        """A copy of the first ``n`` elements, or all; waits for all launches before it."""
        found = np.empty(buffer.size if n is None else n, buffer.dtype)
        what = f"{found.nbytes} bytes could not be read from the GPU"
        self._check(
            self._driver.cuMemcpyDtoHAsync(
                found.ctypes.data, buffer.pointer, found.nbytes, self._queue
            ),
            what,
        )
        self.synchronize()
        return found

    def synchronize(self) -> None:
        """Wait for all launches."""
        self._check(self._driver.cuStreamSynchronize(self._queue), "a kernel failed")

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
        buffer.array[: array.size].copy_to_device(array.reshape(-1), stream=self._copies)
        event = self._cuda.event(timing=False)
        event.record(self._copies)
        event.wait(self._stream)
        return event

    def wait(self, event: Any) -> None:
        """Wait until a copy of `send` is done."""
        event.synchronize()

    # --- kernels

    def kernel(self, template: Callable, **names: Any) -> Kernel:
        """A template, to be compiled for its first launch; or the same as before."""
        key = (template, *sorted(names.items(), key=lambda item: item[0]))
        if key not in self._kernels:
            self._kernels[key] = Kernel(template, names)
        return self._kernels[key]

    def launch(self, launch: Launch) -> None:
        """Queue one launch."""
        self._enter()
        self._launch_on(self._streams[0], launch)

    def sequence(self, launches: list[Launch]) -> "Sequence":
        """Launches that are queued together, again and again."""
        return Sequence(self, launches)

    def capture(self, launches: list[Launch]) -> Any:
        """A CUDA graph of launches that have all run before."""
        self._enter()
        builder = self._core.create_graph_builder().begin_building()
        for launch in launches:
            self._launch_on(builder, launch)
        return builder.end_building().complete()

    def replay(self, graph: Any) -> None:
        """Queue a graph."""
        self._enter()
        graph.launch(self._streams[0])

    def _launch_on(self, stream: Any, launch: Launch) -> None:
        kinds = tuple([each.kind if type(each) is Buffer else type(each) for each in launch.args])
        compiled = launch.kernel.compiled.get(kinds)
        if compiled is None:
            compiled = launch.kernel.compiled[kinds] = self._compile(launch)
        values = [each.pointer if type(each) is Buffer else each for each in launch.args]
        self._api.launch(stream, self._configuration(*launch[1:3], *launch[4:]), compiled, *values)

    def _compile(self, launch: Launch) -> Any:
        """Its kernel, for the types of its arguments."""
        kernel = launch.kernel
        code, name = compile_kernel(
            self._cuda, kernel.template, kernel.names, launch.args, launch.threads,
            self._capability,
        )  # fmt: skip
        compiled = code.get_kernel(name)
        if launch.shared_bytes:  # of which the next launch may want more
            self._allow_shared(compiled, self.shared_bytes - compiled.attributes.shared_size_bytes)
        return compiled

    def _configuration(
        self, blocks: tuple[int, int, int], threads: int, cooperative: bool, shared_bytes: int
    ) -> Any:
        """What cuda.core wants to know of a launch."""
        key = blocks, threads, cooperative, shared_bytes
        if key not in self._configurations:
            self._configurations[key] = self._api.LaunchConfig(
                grid=blocks, block=threads, shmem_size=shared_bytes, is_cooperative=cooperative
            )
        return self._configurations[key]

    def _allow_shared(self, kernel: Any, n_bytes: int) -> None:
        """Let a kernel be launched with so much shared memory, which may be more than 48 KB."""
        driver = self._driver
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._check(
            driver.cuKernelSetAttribute(
                attribute, n_bytes, driver.CUkernel(int(kernel.handle)), self._core.device_id
            ),
            f"a block of threads could not have {n_bytes} bytes of shared memory",
        )

    def _check(self, result: tuple, what: str) -> None:
        """Of a call of the driver."""
        if result[0]:
            raise RuntimeError(
                f"device='cuda': {what}: {result[0]!r}; restart the process, for after most errors "
                "of a GPU nothing works there any more."
            )


class Sequence:
    """Launches that are queued together: one by one the first time, which compiles and loads the
    kernels, as a CUDA graph from then on.

    No more is queued than takes a part of a second, so that Ctrl-C does not wait for long.
    """

    def __init__(self, device: Device, launches: list[Launch]):
        self._device, self._launches = device, launches
        self._graph: Any = None
        self._is_fresh, self._n_at_once = True, 16

    def run(self, n_times: int, go_on: Callable[[], None]) -> None:
        """Queue it ``n_times``; ``go_on`` is called from time to time, and may raise an error."""
        if self._is_fresh and n_times:
            for launch in self._launches:
                self._device.launch(launch)
            self._is_fresh = False
            n_times -= 1
        if self._graph is None and n_times:
            self._graph = self._device.capture(self._launches)
        while n_times:
            n, start = min(n_times, self._n_at_once), time.perf_counter()
            for _ in range(n):
                self._device.replay(self._graph)
            n_times -= n
            if n_times:
                self._device.synchronize()
                go_on()
                faster = SECONDS_AT_ONCE / (time.perf_counter() - start)
                self._n_at_once = max(1, int(n * min(4.0, faster)))


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


def open_device() -> Device:
    """The process's one `Device`: what it has compiled serves every engine.

    Raises
    ------
    ValueError
        If there is none, or it was opened before this process was forked off.
    """
    device, process = _open()
    if process != os.getpid():
        raise ValueError(
            "device='cuda' cannot be used in a process that was forked off after its parent had "
            "used it; start processes with the method 'spawn' or 'forkserver'."
        )
    return device


@cache
def _open() -> tuple[Device, int]:
    """The device, and the process that opened it."""
    return Device(), os.getpid()


def describe() -> dict[str, str]:
    """The GPU, or why there is none."""
    try:
        return open_device().describe()
    except ValueError as error:
        return {"GPU": str(error)}
