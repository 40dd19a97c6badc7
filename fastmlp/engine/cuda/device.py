"""A GPU as the engine needs it: memory, kernels made from templates, launches.

Only this file talks to the driver, through numba-cuda for memory and streams, and without it where
time counts: a launch of 8 arrays by numba-cuda takes a host of an H100 100 microseconds, by
cuda.core a few.  The emulator of the tests has the same methods.
"""

import os
import threading
import time
import warnings
from collections.abc import Callable
from functools import cache, lru_cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from fastmlp.engine.cuda.compiler import compile_kernel, target_of

_MIN_CAPABILITY = (8, 0)
SECONDS_AT_ONCE = 0.25  # of work that is queued
_DEFAULT_STREAM = 1  # CU_STREAM_LEGACY
_opening = threading.Lock()


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


class _DriverError(Exception):
    """A call of the driver that did not succeed."""


def _ask(function: Callable, *args: Any) -> None:
    """Call a function of the driver."""
    if code := function(*args)[0]:
        raise _DriverError(code.name)


class _Turn:
    """While the driver is asked for something: the GPU is this thread's current one, whatever was
    before and is again afterwards, and an error of the driver is told as one of Python's.
    """

    __slots__ = ("_before", "_device", "_what")

    def __init__(self, device: "Device", what: str):
        self._device, self._what = device, what

    def __enter__(self) -> None:
        self._before = self._device.enter()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        told = None
        if isinstance(error, _DriverError) or (error is not None and "CUDA_ERROR" in str(error)):
            told = self._device.tell(error, self._what)
        self._device.leave(self._before)
        if told is not None:
            raise told from error


class Device:
    """The NVIDIA GPU that is current when it is made.

    Everything is queued on one stream, but for `send`, which has one of its own, so that copies
    run beside kernels.

    Every method may raise a MemoryError if the GPU's memory does not suffice, and a RuntimeError if
    the driver fails.  Most errors of kernels leave nothing that works in this process: then the
    driver is not asked for anything again, and every method raises the same RuntimeError.

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

        self._failure, self._process = "", os.getpid()
        gpu = cuda.get_current_device()
        name = gpu.name
        self.name: str = name.decode() if isinstance(name, bytes) else name
        self.n_multiprocessors: int = gpu.MULTIPROCESSOR_COUNT
        self._capability = tuple(gpu.compute_capability[:2])
        self._api, self._driver = core, driver
        self._core = core.Device(gpu.id)
        self._core.set_current()
        self._context = driver.cuCtxGetCurrent()[1]
        self.shared_bytes: int = self._core.properties.max_shared_memory_per_block_optin
        # numba's own streams would wait for those of other libraries in the process
        self._streams = [self._core.create_stream() for _ in range(2)]
        self._stream, self._copies = (cuda.external_stream(int(s.handle)) for s in self._streams)
        self._handle = int(self._streams[0].handle)
        self._kernels: dict[Any, Kernel] = {}
        self._configuration = lru_cache(1024)(self._make_configuration)

    def describe(self) -> dict[str, str]:
        """What it is, for people."""
        from numba.cuda.cudadrv.driver import driver

        with _Turn(self, "the GPU could not be described"):
            memory = self._cuda.current_context().get_memory_info()
            return {
                "GPU": self.name,
                "compute capability": ".".join(map(str, self._capability)),
                "multiprocessors": str(self.n_multiprocessors),
                "memory": f"{memory.total / 2**30:.1f} GiB, {memory.free / 2**30:.1f} free",
                "CUDA driver": ".".join(map(str, driver.get_version())),
            }

    # --- turns

    def enter(self) -> Any:
        """Make the GPU this thread's current one; returns what was, if it was another one.

        Raises
        ------
        RuntimeError
            If it has failed before.
        ValueError
            If this process was forked off since the device was opened.
        """
        if self._failure:
            raise RuntimeError(self._failure) from None
        if self._process != os.getpid():
            raise ValueError(
                "device='cuda' cannot be used in a process that was forked off after its parent "
                "had used it; start processes with the method 'spawn' or 'forkserver'."
            )
        before = self._driver.cuCtxGetCurrent()[1]
        if int(before) == int(self._context):
            return None
        self._driver.cuCtxSetCurrent(self._context)
        return before if int(before) else None

    def leave(self, before: Any) -> None:
        """Make what `enter` has found the thread's current GPU again."""
        if before is not None:
            self._driver.cuCtxSetCurrent(before)

    def tell(self, error: BaseException, what: str) -> MemoryError | RuntimeError:
        """What to raise for an error of the driver; finds out whether the GPU still works."""
        if "OUT_OF_MEMORY" in str(error):
            return MemoryError(
                f"device='cuda': {what} (out of memory); use a smaller batch_size, a smaller "
                "network, fewer samples at once, float32 or device='cpu'."
            )
        told = f"device='cuda': {what}: {error}"
        if not self._driver.cuStreamSynchronize(self._handle)[0]:
            return RuntimeError(f"{told}; try again, or use device='cpu'.")
        self._failure = f"{told}; restart the process, for the GPU does not work in it any more."
        return RuntimeError(self._failure)

    def _call(self, what: str, function: Callable, *args: Any) -> None:
        """A call of the driver; ``what`` says that it did not succeed."""
        with _Turn(self, what):
            _ask(function, *args)

    # --- memory

    def free_bytes(self) -> int:
        """Memory that is free."""
        with _Turn(self, "the GPU's free memory is not known"):
            return int(self._cuda.current_context().get_memory_info().free)

    def empty(self, n: int, dtype: DTypeLike) -> Buffer:
        """A new buffer; what it holds is undefined."""
        size = n * np.dtype(dtype).itemsize
        with _Turn(self, f"{size / 2**30:.2f} GiB more do not fit on the GPU"):
            return Buffer(self._cuda.device_array(max(n, 1), dtype, stream=self._stream))

    def zeros(self, n: int, dtype: DTypeLike) -> Buffer:
        """A new buffer of zeros."""
        buffer = self.empty(n, dtype)
        size = buffer.size * buffer.dtype.itemsize
        self._call(
            f"{size} bytes could not be set to zero",
            self._driver.cuMemsetD8Async, buffer.pointer, 0, size, self._handle,
        )  # fmt: skip
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

        What its library has queued comes before what is queued here from now on: on the stream that
        DLPack or the CUDA Array Interface agree on, or on the default stream if the latter names
        none, as numba-cuda does for that one.

        Raises
        ------
        ValueError
            If the array is on another GPU, not contiguous in C order, or cannot be read.
        """
        from cuda.core.utils import StridedMemoryView

        interface = getattr(array, "__cuda_array_interface__", None) or {}
        if not hasattr(array, "__dlpack__") and interface.get("stream") is None:
            self._call(
                "an array on the GPU could not be waited for",
                self._driver.cuStreamSynchronize, _DEFAULT_STREAM,
            )  # fmt: skip
        with _Turn(self, "an array on the GPU could not be read"):
            try:
                view = StridedMemoryView.from_any_interface(array, stream_ptr=self._handle)
            except BufferError as error:
                raise ValueError(
                    f"X on the GPU cannot be read ({error}); make it an array of CuPy or PyTorch."
                ) from error
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
        with _Turn(self, "an array on the GPU could not be read"):
            return Buffer(self._cuda.as_cuda_array(flat, sync=False)), shape

    def write(self, buffer: Any, array: np.ndarray) -> None:
        """Replace what a buffer holds."""
        flat = np.ascontiguousarray(array, buffer.dtype)
        assert flat.size == buffer.size
        self._call(
            f"{flat.nbytes} bytes could not be sent to the GPU",
            self._driver.cuMemcpyHtoDAsync, buffer.pointer, flat.ctypes.data, flat.nbytes,
            self._handle,
        )  # fmt: skip

    def read(self, buffer: Buffer, n: int | None = None) -> np.ndarray:
        """A copy of the first ``n`` elements, or all; waits for all launches before it."""
        found = np.empty(buffer.size if n is None else n, buffer.dtype)
        self._call(
            f"{found.nbytes} bytes could not be read from the GPU",
            self._driver.cuMemcpyDtoHAsync, found.ctypes.data, buffer.pointer, found.nbytes,
            self._handle,
        )  # fmt: skip
        self.synchronize()
        return found

    def synchronize(self) -> None:
        """Wait for all launches."""
        self._call("a kernel failed", self._driver.cuStreamSynchronize, self._handle)

    # --- copies beside kernels

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Host memory that `send` can read while the host does something else."""
        with _Turn(self, "there is not so much memory that the GPU can read by itself"):
            return self._cuda.pinned_array(shape, dtype)

    def mark(self) -> Any:
        """The present end of the queue of launches, for `send`."""
        with _Turn(self, "an event could not be queued"):
            event = self._cuda.event(timing=False)
            event.record(self._stream)
            return event

    def send(self, buffer: Any, array: np.ndarray, after: Any) -> Any:
        """Copy pinned memory to the start of a buffer, beside launches later than ``after``.

        Launches from now on wait for it.  ``array`` must stay as it is until the result, an event,
        was waited for with `wait`.
        """
        with _Turn(self, f"{array.nbytes} bytes could not be sent to the GPU"):
            if after is not None:
                after.wait(self._copies)
            buffer.array[: array.size].copy_to_device(array.reshape(-1), stream=self._copies)
            event = self._cuda.event(timing=False)
            event.record(self._copies)
            event.wait(self._stream)
            return event

    def wait(self, event: Any) -> None:
        """Wait until a copy of `send` is done."""
        with _Turn(self, "samples could not be sent to the GPU"):
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
        with _Turn(self, "a kernel could not be launched"):
            self._launch_on(self._streams[0], launch)

    def sequence(self, launches: list[Launch]) -> "Sequence":
        """Launches that are queued together, again and again."""
        return Sequence(self, launches)

    def capture(self, launches: list[Launch]) -> Any:
        """A CUDA graph of launches that have all run before."""
        with _Turn(self, "a CUDA graph could not be made"):
            builder = self._core.create_graph_builder().begin_building()
            for launch in launches:
                self._launch_on(builder, launch)
            return builder.end_building().complete()

    def replay(self, graph: Any) -> None:
        """Queue a graph."""
        with _Turn(self, "a CUDA graph could not be launched"):
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
            target_of(*self._capability),
        )  # fmt: skip
        compiled = code.get_kernel(name)
        if launch.shared_bytes:  # of which the next launch may want more
            self._allow_shared(compiled, self.shared_bytes - compiled.attributes.shared_size_bytes)
        return compiled

    def _make_configuration(
        self, blocks: tuple[int, int, int], threads: int, cooperative: bool, shared_bytes: int
    ) -> Any:
        """What cuda.core wants to know of a launch."""
        return self._api.LaunchConfig(
            grid=blocks, block=threads, shmem_size=shared_bytes, is_cooperative=cooperative
        )

    def _allow_shared(self, kernel: Any, n_bytes: int) -> None:
        """Let a kernel be launched with so much shared memory, which may be more than 48 KB."""
        driver = self._driver
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        handle = driver.CUkernel(int(kernel.handle))
        _ask(driver.cuKernelSetAttribute, attribute, n_bytes, handle, self._core.device_id)


class Sequence:
    """Launches that are queued together: one by one the first time, which compiles and loads the
    kernels, as a CUDA graph from then on; one by one for good if there can be no graph.

    No more is queued than takes a part of a second, so that Ctrl-C does not wait for long.
    """

    def __init__(self, device: Device, launches: list[Launch]):
        self._device, self._launches = device, launches
        self._queue_once: Callable[[], None] | None = None
        self._is_fresh, self._n_at_once = True, 16

    def run(self, n_times: int, go_on: Callable[[], None]) -> None:
        """Queue it ``n_times``; ``go_on`` is called from time to time, and may raise an error."""
        if self._is_fresh and n_times:
            _launch_all(self._device, self._launches)
            self._is_fresh = False
            n_times -= 1
        if self._queue_once is None and n_times:
            self._queue_once = self._capture()
        while n_times:
            assert self._queue_once is not None
            n, start = min(n_times, self._n_at_once), time.perf_counter()
            for _ in range(n):
                self._queue_once()
            n_times -= n
            if n_times:
                self._device.synchronize()
                go_on()
                faster = SECONDS_AT_ONCE / (time.perf_counter() - start)
                self._n_at_once = max(1, int(n * min(4.0, faster)))

    def _capture(self) -> Callable[[], None]:
        """What queues all launches once."""
        try:
            graph = self._device.capture(self._launches)
        except (MemoryError, RuntimeError) as error:
            self._device.synchronize()  # an error if it does not work any more
            warnings.warn(f"Steps on the GPU are slower than they could be: {error}")
            return partial(_launch_all, self._device, self._launches)
        return partial(self._device.replay, graph)


def _launch_all(device: Device, launches: list[Launch]) -> None:
    for launch in launches:
        device.launch(launch)


def _import_numba_cuda() -> Any:
    """`numba.cuda`, if there is a GPU that it can use."""
    from numba.cuda.cudadrv.driver import driver
    from numba.cuda.cudadrv.error import CudaSupportError

    from fastmlp.engine.cuda.numba_cuda import cuda

    try:
        available = driver.is_available  # cuda.is_available() asks for a compiler too
    except CudaSupportError:
        available = False
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

    It stays the GPU that was current in the thread that came first: engines and samples of all
    threads, each of which has a current GPU of its own, must be on the same one.

    Raises
    ------
    RuntimeError, ValueError
        If there is none, or `Device.enter` refuses it.
    """
    with _opening:
        device = _open()
    device.leave(device.enter())
    return device


@cache
def _open() -> Device:
    return Device()


def describe() -> dict[str, str]:
    """The GPU, or why there is none."""
    try:
        return open_device().describe()
    except (RuntimeError, ValueError) as error:
        return {"GPU": str(error)}
