"""`Device` without a GPU: every method, on a stand-in for numba-cuda, cuda.core and the driver that
holds it to the real functions' signatures and keeps "device" memory in NumPy arrays.
"""

import ctypes
import inspect
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from numba import cuda
from numba.cuda.cudadrv import driver
from problems import make_network, make_problem, place_for

import fastmlp
from fastmlp.engine.cuda import CudaEngine, compiler, kernels, samples
from fastmlp.engine.cuda import device as module
from fastmlp.engine.cuda import engine as target
from fastmlp.engine.cuda.device import Device
from fastmlp.optimizers import Optimizer

core = pytest.importorskip("cuda.core", reason="cuda.core comes with numba-cuda")
bindings = pytest.importorskip("cuda.bindings.driver")
pytest.importorskip("cuda.core.utils")


class Array:
    """A device array; the address of its memory is one on the host."""

    def __init__(self, values):
        self.values, self.dtype, self.size = values, values.dtype, values.size
        self.device_ctypes_pointer = ctypes.c_void_p(values.ctypes.data)

    def copy_to_device(self, ary, stream=0):
        assert ary.shape == self.values.shape
        assert ary.dtype == self.dtype
        assert stream
        self.values[:] = ary

    def __getitem__(self, item):
        return Array(self.values[item])


class FakeDriver:
    """cuda.bindings.driver; ``failing`` names a function that fails."""

    CUfunction_attribute = bindings.CUfunction_attribute
    CUkernel = staticmethod(int)

    def __init__(self):
        self.failing, self.allowed = "", []

    def _done(self, name):
        assert callable(getattr(bindings, name))
        return (int(self.failing == name),)

    def cuMemcpyHtoDAsync(self, target, source, n_bytes, stream):
        ctypes.memmove(target, source, n_bytes)
        return self._done("cuMemcpyHtoDAsync")

    def cuMemcpyDtoHAsync(self, target, source, n_bytes, stream):
        ctypes.memmove(target, source, n_bytes)
        return self._done("cuMemcpyDtoHAsync")

    def cuMemsetD8Async(self, target, value, n_bytes, stream):
        ctypes.memset(target, value, n_bytes)
        return self._done("cuMemsetD8Async")

    def cuStreamSynchronize(self, stream):
        return self._done("cuStreamSynchronize")

    def cuKernelSetAttribute(self, attribute, value, kernel, device):
        self.allowed.append((attribute.name, value))
        return self._done("cuKernelSetAttribute")


class FakeCuda:
    """numba.cuda; functions take what the real ones take."""

    implementation = "NVIDIA"

    def __init__(self):
        self.launches, self.events = [], []
        self.gpu = SimpleNamespace(
            id=0, name=b"Fake GPU", MULTIPROCESSOR_COUNT=4, compute_capability=(9, 0)
        )
        self.free = 2**40
        functions = {
            "device_array": lambda shape, dtype, **_: Array(np.zeros(shape, dtype)),
            "pinned_array": lambda shape, dtype, **_: np.empty(shape, dtype),
            "external_stream": lambda ptr: SimpleNamespace(handle=ptr, synchronize=lambda: None),
            "as_cuda_array": lambda obj, **_: adopted(obj.__cuda_array_interface__),
            "event": self._event,
        }
        for name, function in functions.items():
            setattr(self, name, self._checked(getattr(cuda, name), function))

    @staticmethod
    def _checked(real, function):
        def call(*args, **kwargs):
            bound = inspect.signature(inspect.unwrap(real)).bind(*args, **kwargs)
            return function(**bound.arguments)

        return call

    def _event(self, **_):
        event = SimpleNamespace(
            record=lambda stream: self.events.append(("record", stream.handle)),
            wait=lambda stream: self.events.append(("wait", stream.handle)),
            synchronize=lambda: self.events.append(("synchronize", None)),
        )
        return event

    def is_available(self):
        return True

    def get_current_device(self):
        return self.gpu

    def current_context(self):
        memory = SimpleNamespace(free=self.free, total=2 * self.free)
        return SimpleNamespace(get_memory_info=lambda: memory)


def adopted(interface):
    """A device array of another library's memory."""
    return SimpleNamespace(
        interface=interface, dtype=interface["typestr"], size=interface["shape"][0],
        device_ctypes_pointer=ctypes.c_void_p(interface["data"][0]),
    )  # fmt: skip


class FakeCore:
    """The one device of cuda.core."""

    device_id = 0
    properties = SimpleNamespace(max_shared_memory_per_block_optin=100_000)

    def __init__(self, fake):
        self._fake, self.graphs, self._n = fake, [], 0
        self.launches, self.threads = fake.launches, set()

    def Device(self, device_id):
        return self

    def set_current(self):
        self.threads.add(threading.get_ident())

    def create_stream(self):
        self._n += 1
        return SimpleNamespace(handle=self._n)

    def LaunchConfig(self, **options):
        for name in options:
            assert f"{name} :" in core.LaunchConfig.__init__.__doc__
        return SimpleNamespace(**options)

    def launch(self, stream, config, kernel, *values):
        assert {type(value) for value in values} <= {int, bool, float, np.float32, np.float64}
        self.launches.append((stream, config.grid, config.block, len(values), config))

    def create_graph_builder(self):
        for name in ("begin_building", "end_building", "complete"):
            assert hasattr(core.graph.GraphBuilder, name)
        graph = SimpleNamespace(launch=lambda stream: self.graphs.append(stream.handle))
        builder = SimpleNamespace(complete=lambda: graph)
        builder.begin_building = builder.end_building = lambda: builder
        self.builder = builder
        return builder


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCuda()
    fake.core, fake.driver = FakeCore(fake), FakeDriver()

    def compile_kernel(cuda, template, names, arguments, threads, capability):
        kernel = SimpleNamespace(
            handle=7, attributes=SimpleNamespace(shared_size_bytes=1000), name=template.__name__
        )
        return SimpleNamespace(get_kernel=lambda name: kernel), "name"

    monkeypatch.setattr(module, "compile_kernel", compile_kernel)
    monkeypatch.setattr("cuda.bindings.driver", fake.driver)
    monkeypatch.setattr(module, "_import_numba_cuda", lambda: fake)
    monkeypatch.setattr("cuda.core", fake.core, raising=False)
    return fake


def train(device, **sizes):
    network, objective = make_network((5, 7, 3), "tanh", "log_loss")
    X, y = make_problem("log_loss", 60, 5, 3)
    engine = CudaEngine(
        network, dtype="float64", objective=objective, device=device, batch_size=12,
        optimizer=Optimizer("adam", (0.9, 0.999, 1e-8)), **sizes,
    )  # fmt: skip
    engine.load(place_for(engine, X, y, np.ones(60)))
    for _ in range(2):
        engine.run_epoch(np.arange(60), np.full(5, 0.1))
    engine.predict(X)
    return engine


def test_steps_of_the_tiled_path_become_a_graph(fake, monkeypatch):
    monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", 0)
    device = Device()
    engine = train(device)
    assert engine.info()["name"] == "Fake GPU"
    builder = fake.core.builder
    captured = [launch[1:4] for launch in fake.launches if launch[0] is builder]
    eager = [launch[1:4] for launch in fake.launches if launch[0] is device._streams[0]]
    assert len(captured) > 5
    assert any(eager[i : i + len(captured)] == captured for i in range(len(eager)))
    assert fake.core.graphs == [1] * 9  # ten steps, the first one launch by launch


def test_the_resident_path_launches_once_per_epoch(fake):
    train(Device())
    cooperative = [launch for launch in fake.launches if launch[-1].is_cooperative]
    assert len(cooperative) == 2
    assert {launch[-1].shmem_size for launch in cooperative} != {0}
    assert set(fake.driver.allowed) == {
        ("CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES", 100_000 - 1000)
    }
    assert not fake.core.graphs


@pytest.mark.parametrize("failing", [name for name in vars(FakeDriver) if name.startswith("cu")])
def test_an_error_of_the_driver_is_told(fake, failing):
    fake.driver.failing = failing
    with pytest.raises(RuntimeError, match=r"device='cuda': .*: 1; restart the process"):
        train(Device())


@pytest.mark.parametrize("name", ["launch", "replay", "read", "write", "zeros", "synchronize"])
def test_the_device_is_current_in_every_thread(fake, name):
    device = Device()
    buffer = device.zeros(2, np.float32)
    launch = module.Launch(module.Kernel(print, {}), (1, 1, 1), 32, (buffer,))
    graph = device.capture([launch])
    arguments = {
        "launch": (launch,), "replay": (graph,), "read": (buffer,), "zeros": (2, np.float32),
        "write": (buffer, np.ones(2)), "synchronize": (),
    }[name]  # fmt: skip
    thread = threading.Thread(target=getattr(device, name), args=arguments)
    thread.start()
    thread.join()
    assert thread.ident in fake.core.threads


def test_memory(fake):
    device = Device()
    for dtype in (np.float32, np.float64, np.int64):
        values = np.arange(5).astype(dtype)
        buffer = device.upload(values.reshape(1, 5))
        assert (buffer.size, buffer.dtype) == (5, dtype)
        device.write(buffer, 2 * values[::-1])
        np.testing.assert_array_equal(device.read(buffer), 2 * values[::-1])
        np.testing.assert_array_equal(device.read(device.zeros(3, dtype)), np.zeros(3))
    assert device.upload(np.zeros(0)).size == 1


def test_copies_have_a_stream_of_their_own(fake, monkeypatch):
    """Compute waits for each copy; a copy into used memory waits for compute, the host for it."""
    monkeypatch.setattr(samples, "_CHUNK_BYTES", 12 * 40)
    fake.free = 0
    engine = train(Device())
    assert engine.info()["streamed"]
    compute, copies = 1, 2
    assert fake.events[:2] == [("record", copies), ("wait", compute)]
    assert ("record", compute) in fake.events
    assert ("wait", copies) in fake.events
    assert ("synchronize", None) in fake.events


def test_arrays_of_other_libraries(fake, monkeypatch):
    view = SimpleNamespace(
        ptr=1234, shape=(3, 2), strides=(2, 1), dtype=np.dtype("float32"), device_id=0
    )  # fmt: skip
    options = {}

    class View:
        @staticmethod
        def from_any_interface(obj, stream_ptr=None):
            options.update(obj=obj, stream_ptr=stream_ptr)
            return view

    monkeypatch.setattr(core.utils, "StridedMemoryView", View)
    device = Device()
    flat, shape = device.adopt("samples")
    assert shape == (3, 2)
    assert options == {"obj": "samples", "stream_ptr": 1}
    interface = flat.array.interface
    assert interface["shape"] == (6,)
    assert interface["typestr"] == "<f4"
    assert interface["data"][0] == 1234
    view.strides = (1, 3)
    with pytest.raises(ValueError, match="contiguous in C order"):
        device.adopt("samples")
    view.device_id = 1
    with pytest.raises(ValueError, match="X is on GPU 1, but device='cuda' uses GPU 0; copy"):
        device.adopt("samples")


def test_what_does_not_fit_is_a_memory_error(fake):
    device = Device()

    def fail(*_, **__):
        raise RuntimeError("[CUresult.CUDA_ERROR_OUT_OF_MEMORY] Call to cuMemAlloc failed")

    fake.device_array = fail
    with pytest.raises(MemoryError, match=r"'cuda': 2\.00 GiB more .* use a smaller batch_size"):
        device.upload(np.broadcast_to(np.float32(0), 2**29))


def test_a_forked_process_cannot_use_the_device(fake, monkeypatch):
    module._open.cache_clear()
    assert module.open_device() is module.open_device()
    monkeypatch.setattr(module.os, "getpid", lambda: -1)
    with pytest.raises(ValueError, match=r"'cuda' cannot be used .* forked .*'spawn'"):
        module.open_device()
    module._open.cache_clear()


@pytest.mark.parametrize(("seconds", "most"), [(0.0, 10**4), (1.0, 100)])
def test_not_too_much_is_queued_at_once(monkeypatch, seconds, most):
    """Graphs that take so many seconds each."""
    clock, queued, waits = [0.0], [0], []

    def synchronize():
        clock[0] += queued[0] * seconds
        waits.append(queued[0])
        queued[0] = 0

    def replay(graph):
        queued[0] += 1

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0] + 1e-9 * len(waits))
    device = SimpleNamespace(
        launch=print, capture=list, replay=replay, synchronize=synchronize
    )  # fmt: skip
    module.Sequence(device, []).run(10_001, lambda: None)
    assert sum(waits) + queued[0] == 10_000
    assert max(waits[1:]) <= most
    assert seconds or len(waits) < 20


def test_description(fake, monkeypatch):
    monkeypatch.setattr(driver.Driver, "get_version", lambda self: (13, 0))
    description = Device().describe()
    assert description["GPU"] == "Fake GPU"
    assert description["compute capability"] == "9.0"
    assert description["CUDA driver"] == "13.0"


# --- the door ---------------------------------------------------------------------------------


def test_numba_cuda_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "_numba_cuda_redirector", None)
    with pytest.raises(
        ValueError, match=r'needs numba-cuda; install it with: pip install "fastmlp'
    ):
        module._import_numba_cuda()


def test_a_numpy_that_numba_cuda_does_not_know(monkeypatch):
    monkeypatch.setenv("FASTMLP_CACHE_DIR", os.devnull)
    monkeypatch.setattr(cuda, "compile_ptx", lambda *_, **__: np.no_longer_there)
    with pytest.raises(ValueError, match=r"numba-cuda does not work with NumPy.*\"numpy<2\.5\""):
        compiler.compile_kernel(cuda, kernels.rewind, {"THREADS": 32}, (1, 2), 32, (8, 0))


def test_numbas_own_target_came_first(monkeypatch):
    monkeypatch.setattr(cuda, "implementation", "Built-in")
    with pytest.raises(ValueError, match="numba's own CUDA target was imported first"):
        module._import_numba_cuda()


def test_the_driver_does_not_work(monkeypatch):
    def fail():
        raise RuntimeError("driver too old")

    monkeypatch.setattr(cuda, "is_available", fail)
    with pytest.raises(ValueError, match="no working CUDA driver: driver too old"):
        module._import_numba_cuda()


def test_an_old_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    gpu = SimpleNamespace(compute_capability=(7, 5))
    monkeypatch.setattr(cuda, "get_current_device", lambda: gpu)
    with pytest.raises(ValueError, match=r"8\.0 or newer, this one has 7\.5; use device='cpu'"):
        module._import_numba_cuda()


def test_a_report_says_why_there_is_no_gpu(capsys):
    if cuda.is_available():
        pytest.skip("this machine has a GPU")
    module._open.cache_clear()
    fastmlp.show_versions()
    out = capsys.readouterr().out
    assert "found no NVIDIA GPU" in out
    assert f"fastmlp: {fastmlp.__version__}" in out
