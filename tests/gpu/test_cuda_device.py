"""`Device` without a GPU: every method, on a stand-in for numba-cuda, cuda.core and the driver that
holds it to the real functions' signatures and keeps "device" memory in NumPy arrays.
"""

import ctypes
import importlib
import inspect
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numba import cuda
from numba.cuda.cudadrv import driver
from problems import make_network, make_problem, place_for
from processes import run_command

import fastmlp
from fastmlp.engine.cuda import CudaEngine, compiler, kernels, numba_cuda, samples
from fastmlp.engine.cuda import device as module
from fastmlp.engine.cuda import engine as target
from fastmlp.engine.cuda.device import Device
from fastmlp.optimizers import Optimizer

core = pytest.importorskip("cuda.core", reason="cuda.core comes with numba-cuda")
bindings = pytest.importorskip("cuda.bindings.driver")
pytest.importorskip("cuda.core.utils")
ILLEGAL_ADDRESS = bindings.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS


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


OURS, OTHERS = 70, 71  # contexts


class FakeDriver:
    """cuda.bindings.driver, and what fails elsewhere in CUDA.

    The function ``failing`` fails once, after ``later`` calls, with ``code``; all do after an
    error 700.
    """

    CUfunction_attribute = bindings.CUfunction_attribute
    CUkernel = staticmethod(int)

    def __init__(self):
        self.failing, self.later, self.code, self.allowed = "", 0, bindings.CUresult(1), []
        self.dead, self.asked, self._here = False, 0, threading.local()
        self.waited = []

    def check(self, name):
        """The code of a function's result; it works on our GPU only."""
        assert self._here.context == OURS
        self.asked += 1
        if self.dead:
            return ILLEGAL_ADDRESS
        if name != self.failing:
            return bindings.CUresult(0)
        self.later -= 1
        if self.later >= 0:
            return bindings.CUresult(0)
        self.failing, self.dead = "", self.code == ILLEGAL_ADDRESS
        return self.code

    def require(self, name):
        """What numba-cuda and cuda.core make of such a code."""
        if code := self.check(name):
            raise RuntimeError(f"{code.name}: {name}")

    def _done(self, name):
        assert callable(getattr(bindings, name))
        return (self.check(name),)

    def cuCtxGetCurrent(self):
        return bindings.CUresult(0), getattr(self._here, "context", 0)

    def cuCtxSetCurrent(self, context):
        self._here.context = context
        return (bindings.CUresult(0),)

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
        self.waited.append(stream)
        return self._done("cuStreamSynchronize")

    def cuKernelSetAttribute(self, attribute, value, kernel, device):
        self.allowed.append((attribute.name, value))
        return self._done("cuKernelSetAttribute")


class FakeCuda:
    """numba.cuda; functions take what the real ones take."""

    implementation = "NVIDIA"

    def __init__(self, driver):
        self.driver, self.launches, self.events = driver, [], []
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
            setattr(self, name, self._checked(name, function))

    def _checked(self, name, function):
        def call(*args, **kwargs):
            bound = inspect.signature(inspect.unwrap(getattr(cuda, name))).bind(*args, **kwargs)
            self.driver.require(name)
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
        self.driver.require("current_context")
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
        self.launches = fake.launches

    def Device(self, device_id):
        return self

    def set_current(self):
        self._fake.driver.cuCtxSetCurrent(OURS)

    def create_stream(self):
        self._n += 1
        return SimpleNamespace(handle=self._n)

    def LaunchConfig(self, **options):
        for name in options:
            assert f"{name} :" in core.LaunchConfig.__init__.__doc__
        return SimpleNamespace(**options)

    def launch(self, stream, config, kernel, *values):
        assert {type(value) for value in values} <= {int, bool, float, np.float32, np.float64}
        self._fake.driver.require("launch")
        self.launches.append((stream, config.grid, config.block, len(values), config))

    def create_graph_builder(self):
        for name in ("begin_building", "end_building", "complete"):
            assert hasattr(core.graph.GraphBuilder, name)
        require = self._fake.driver.require

        def launch(stream):
            require("replay")
            self.graphs.append(stream.handle)

        def complete():
            require("complete")
            return SimpleNamespace(launch=launch)

        builder = SimpleNamespace(complete=complete)
        builder.begin_building = builder.end_building = lambda: builder
        self.builder = builder
        return builder


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCuda(FakeDriver())
    fake.core = FakeCore(fake)

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


def test_passes_over_all_samples_become_graphs(fake):
    """Those of evaluations, gradients and predictions, once they are repeated."""
    engine = train(Device())
    samples = engine._samples
    for once in (lambda: engine.evaluate(samples), engine.loss_and_gradient,
                 lambda: engine.predict(samples)):  # fmt: skip
        before = len(fake.core.graphs)
        for _ in range(4):
            once()
        assert len(fake.core.graphs) == before + 3


def test_the_resident_path_launches_once_per_epoch(fake):
    train(Device())
    cooperative = [launch for launch in fake.launches if launch[-1].is_cooperative]
    assert len(cooperative) == 2
    assert {launch[-1].shmem_size for launch in cooperative} != {0}
    assert set(fake.driver.allowed) == {
        ("CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES", 100_000 - 1000)
    }
    assert not fake.core.graphs


FUNCTIONS = [
    *(name for name in vars(FakeDriver) if name.startswith("cu") and "Ctx" not in name),
    "device_array", "launch",
]  # fmt: skip


@pytest.mark.parametrize("later", [0, 3])
@pytest.mark.parametrize("failing", FUNCTIONS)
def test_an_error_of_the_driver_is_told(fake, failing, later):
    """The first or a later one, in one sentence; then the same device works."""
    device = Device()
    fake.driver.failing, fake.driver.later = failing, later
    told = r"device='cuda': .*: CUDA_ERROR_INVALID_VALUE.*; try again, or use device='cpu'\.$"
    if failing == "cuKernelSetAttribute" and later:
        fake.driver.later = 0  # it is called once
    with pytest.raises(RuntimeError, match=told):
        train(device)
    train(device)


METHODS = {
    "launch": lambda device, launch, graph, buffer: device.launch(launch),
    "capture": lambda device, launch, graph, buffer: device.capture([launch]),
    "replay": lambda device, launch, graph, buffer: device.replay(graph),
    "read": lambda device, launch, graph, buffer: device.read(buffer),
    "write": lambda device, launch, graph, buffer: device.write(buffer, np.ones(2)),
    "zeros": lambda device, launch, graph, buffer: device.zeros(2, np.float32),
    "upload": lambda device, launch, graph, buffer: device.upload(np.ones(2)),
    "synchronize": lambda device, launch, graph, buffer: device.synchronize(),
    "free_bytes": lambda device, launch, graph, buffer: device.free_bytes(),
    "pinned": lambda device, launch, graph, buffer: device.pinned((2,), np.float32),
    "mark": lambda device, launch, graph, buffer: device.mark(),
    "send": lambda device, launch, graph, buffer: device.wait(
        device.send(buffer, np.ones(2, np.float32), device.mark())
    ),
}  # fmt: skip


def prepare(device):
    """What methods work with."""
    buffer = device.zeros(2, np.float32)
    launch = module.Launch(module.Kernel(print, {}), (1, 1, 1), 32, (buffer,))
    return device, launch, device.capture([launch]), buffer


@pytest.mark.parametrize("failing", FUNCTIONS)
@pytest.mark.parametrize("parameters", [0, 2**17], ids=["tiled", "resident"])
def test_a_gpu_that_does_not_work_any_more_is_not_asked_again(
    fake, monkeypatch, failing, parameters
):
    """Error 700 is told once and for all, in every thread, also while an epoch cleans up."""
    monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", parameters)
    device = Device()
    prepared = prepare(device)
    fake.driver.failing, fake.driver.code = failing, ILLEGAL_ADDRESS
    told = r"^device='cuda': [\w .]*: CUDA_ERROR_ILLEGAL_ADDRESS[: \w]*; restart the process, for"
    with pytest.raises(RuntimeError, match=told) as first:
        train(device)
    asked = fake.driver.asked
    for method in METHODS.values():
        with pytest.raises(RuntimeError) as again:
            method(*prepared)
        assert str(again.value) == str(first.value)
    heard = in_thread(device.synchronize)
    assert str(heard) == str(first.value)
    monkeypatch.setattr(module, "_open", lambda: device)
    assert module.describe() == {"GPU": str(first.value)}
    assert fake.driver.asked == asked


def in_thread(function, *args):
    """What a thread that ran it has raised."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).exception()


@pytest.mark.parametrize("name", METHODS)
def test_the_device_is_current_in_every_thread(fake, name):
    """Also if it has none, or another library has chosen another one, which it finds again."""
    prepared = prepare(Device())
    assert in_thread(METHODS[name], *prepared) is None

    def after_another():
        fake.driver.cuCtxSetCurrent(OTHERS)
        METHODS[name](*prepared)
        assert fake.driver.cuCtxGetCurrent()[1] == OTHERS

    assert in_thread(after_another) is None
    fake.driver.failing = "launch"

    def after_an_error():
        fake.driver.cuCtxSetCurrent(OTHERS)
        with pytest.raises(RuntimeError, match="could not be launched"):
            METHODS["launch"](*prepared)
        assert fake.driver.cuCtxGetCurrent()[1] == OTHERS

    assert in_thread(after_an_error) is None


def test_threads_open_one_device(fake, monkeypatch):
    """Though all come at the same time."""
    make = FakeCore.create_stream

    def slow(self):
        time.sleep(0.02)
        return make(self)

    monkeypatch.setattr(FakeCore, "create_stream", slow)
    module._open.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: module.open_device(), range(4)))
    module._open.cache_clear()
    assert len(set(map(id, found))) == 1


@pytest.mark.parametrize("code", [1, 2])
def test_without_a_graph_steps_are_launched_one_by_one(fake, monkeypatch, code):
    monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", 0)
    train(Device())
    n_captured = sum(launch[0] is fake.core.builder for launch in fake.launches)
    n_launches = len(fake.launches)
    fake.driver.failing, fake.driver.code = "complete", bindings.CUresult(code)
    fake.core.graphs.clear()
    with pytest.warns(UserWarning, match=r"slower than they could be: .* graph could not be made"):
        train(Device())
    assert not fake.core.graphs
    assert len(fake.launches) == 2 * n_launches + 9 * n_captured
    fake.driver.failing, fake.driver.code = "complete", ILLEGAL_ADDRESS
    with pytest.raises(RuntimeError, match="restart the process"):
        train(Device())


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


class Foreign:
    """Another library's array."""

    def __init__(self, **more):
        self.__cuda_array_interface__ = more


class Exchanged(Foreign):
    def __dlpack__(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("array", "waits"),
    [(Foreign(stream=None), True), (Foreign(), True), (Foreign(stream=5), False),
     (Exchanged(), False)],
)  # fmt: skip
def test_arrays_that_name_no_stream_are_waited_for(fake, monkeypatch, array, waits):
    """What is queued on the default stream; the others' streams are up to cuda.core."""
    made, default = [], 1

    class View(SimpleNamespace):
        @staticmethod
        def from_any_interface(obj, stream_ptr=None):
            made.append(list(fake.driver.waited))
            return SimpleNamespace(ptr=8, shape=(2,), strides=None, dtype=np.dtype("f4"),
                                   device_id=0)  # fmt: skip

    monkeypatch.setattr(core.utils, "StridedMemoryView", View)
    Device().adopt(array)
    assert made == [[default] if waits else []]


def test_arrays_of_an_old_interface_are_refused(fake):
    """By cuda.core itself."""
    array = Foreign(shape=(2, 3), typestr="<f4", data=(4096, False), version=2)
    with pytest.raises(ValueError, match=r"X on the GPU cannot be read \(only CUDA Array .* CuPy"):
        Device().adopt(array)


@pytest.mark.parametrize("later", range(0, 30, 4))
def test_what_does_not_fit_is_a_memory_error(fake, later):
    """Wherever it is asked for; the device can be used afterwards."""
    device = Device()
    fake.driver.failing, fake.driver.later = "device_array", later
    fake.driver.code = bindings.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(MemoryError, match=r"'cuda': 0\.00 GiB more .* use a smaller batch_size"):
        train(device)
    train(device)


def test_a_forked_process_cannot_use_the_device(fake, monkeypatch):
    module._open.cache_clear()
    assert module.open_device() is module.open_device()
    prepared = prepare(module.open_device())
    monkeypatch.setattr(module.os, "getpid", lambda: -1)
    with pytest.raises(ValueError, match=r"'cuda' cannot be used .* forked .*'spawn'"):
        module.open_device()
    for method in METHODS.values():  # of what the parent has made
        with pytest.raises(ValueError, match=r"'cuda' cannot be used .* forked .*'spawn'"):
            method(*prepared)
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
        importlib.reload(numba_cuda)


def test_a_numpy_that_numba_cuda_does_not_know(monkeypatch):
    monkeypatch.setenv("FASTMLP_CACHE_DIR", os.devnull)
    monkeypatch.setattr(cuda, "compile_ptx", lambda *_, **__: np.no_longer_there)
    with pytest.raises(ValueError, match=r"numba-cuda does not work with NumPy.*\"numpy<2\.5\""):
        compiler.compile_kernel(cuda, kernels.rewind, {"THREADS": 32}, (1, 2), 32, (8, 0))


def test_numbas_own_target_came_first(monkeypatch):
    monkeypatch.setattr(cuda, "implementation", "Built-in")
    with pytest.raises(ValueError, match="numba's own CUDA target was imported first"):
        importlib.reload(numba_cuda)


def is_available(monkeypatch, answer):
    """What the driver says of itself; no compiler is asked for."""
    monkeypatch.setattr(driver.Driver, "is_available", property(lambda self: answer()))
    monkeypatch.setattr(cuda, "is_available", lambda: pytest.fail("it asks for NVVM"))


@pytest.mark.parametrize("module", ["kernels", "resident", "ptx", "tiles"])
def test_where_python_does_not_look_for_numba_cuda(module):
    """As in a folder of ``pip install --target``, whichever module comes first."""
    folders = [path for path in sys.path if path.endswith("site-packages")]
    code = (
        f"import fastmlp.engine.cuda.{module}; from numba import cuda; print(cuda.implementation)"
    )
    path = os.pathsep.join([str(Path(fastmlp.__file__).parents[1]), *folders])
    assert run_command(sys.executable, "-S", "-P", "-c", code, PYTHONPATH=path) == "NVIDIA\n"


def test_the_driver_does_not_work(monkeypatch):
    def fail():
        raise RuntimeError("driver too old")

    is_available(monkeypatch, fail)
    with pytest.raises(ValueError, match="no working CUDA driver: driver too old"):
        module._import_numba_cuda()


def test_an_old_gpu(monkeypatch):
    is_available(monkeypatch, lambda: True)
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
