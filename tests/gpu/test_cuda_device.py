"""`Device` without a GPU: every method, on a stand-in for numba-cuda that holds it to the real
functions' signatures and keeps "device" memory in NumPy arrays.
"""

import inspect
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from numba import cuda
from numba.cuda.cudadrv import driver
from problems import make_network, make_problem, place_for

import fastmlp
from fastmlp.engine.cuda import CudaEngine, samples
from fastmlp.engine.cuda import device as module
from fastmlp.engine.cuda import engine as target
from fastmlp.engine.cuda.device import Device
from fastmlp.optimizers import Optimizer

core = pytest.importorskip("cuda.core", reason="cuda.core comes with numba-cuda")
pytest.importorskip("cuda.core.utils")


class Array:
    """A device array."""

    def __init__(self, values):
        self.values, self.dtype = values, values.dtype

    def copy_to_device(self, ary, stream=0):
        assert ary.shape == self.values.shape
        assert ary.dtype == self.dtype
        assert stream
        self.values[:] = ary

    def copy_to_host(self, ary=None, stream=0):
        assert stream
        return self.values.copy()

    def __getitem__(self, item):
        return Array(self.values[item])


class Kernel:
    """A compiled kernel: keeps note of its launches."""

    def __init__(self, log):
        self._log = log

    def __getitem__(self, configuration):
        blocks, threads, stream = configuration
        warnings.warn("Grid size 1 will likely result in GPU under-utilization", stacklevel=2)
        return lambda *args: self._log.append((stream, blocks, threads, len(args)))


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
            "to_device": lambda obj, **_: Array(np.array(obj)),
            "device_array": lambda shape, dtype, **_: Array(np.zeros(shape, dtype)),
            "pinned_array": lambda shape, dtype, **_: np.empty(shape, dtype),
            "external_stream": lambda ptr: SimpleNamespace(handle=ptr, synchronize=lambda: None),
            "as_cuda_array": lambda obj, **_: obj,
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

    def jit(self, function=None, **options):
        if options:
            inspect.signature(cuda.jit).bind(**options)
            return lambda plain: plain
        return Kernel(self.launches)


class FakeCore:
    """The one device of cuda.core."""

    def __init__(self, fake):
        self._fake, self.graphs, self._n = fake, [], 0

    def Device(self, device_id):
        return self

    def set_current(self):
        pass

    def create_stream(self):
        self._n += 1
        return SimpleNamespace(handle=self._n)

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
    fake.core = FakeCore(fake)
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
    captured = [launch[1:] for launch in fake.launches if launch[0] is builder]
    eager = [launch[1:] for launch in fake.launches if launch[0] is device._stream]
    assert len(captured) > 5
    assert any(eager[i : i + len(captured)] == captured for i in range(len(eager)))
    assert fake.core.graphs == [1] * 9  # ten steps, the first one launch by launch


def test_the_resident_path_launches_once_per_epoch(fake):
    train(Device())
    with_many_arguments = [launch for launch in fake.launches if launch[3] > 21]
    assert len(with_many_arguments) == 2
    assert not fake.core.graphs


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
    view = SimpleNamespace(ptr=1234, shape=(3, 2), strides=(2, 1), dtype=np.dtype("float32"))
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
    interface = flat.__cuda_array_interface__
    assert interface["shape"] == (6,)
    assert interface["typestr"] == "<f4"
    assert interface["data"][0] == 1234
    view.strides = (1, 3)
    with pytest.raises(ValueError, match="contiguous in C order"):
        device.adopt("samples")


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
    module.open_device.cache_clear()
    fastmlp.show_versions()
    out = capsys.readouterr().out
    assert "found no NVIDIA GPU" in out
    assert f"fastmlp: {fastmlp.__version__}" in out
