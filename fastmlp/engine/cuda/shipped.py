"""Kernels that come compiled: which they are, and how the build of a wheel makes them.

They are those that the estimators ask for with their default parameters, and whatever the width of
the network, the size of the batch, the GPU and `matmul_precision`: rectifiers, Adam, and each of
the default losses.  An engine is led through all that it does with a device that keeps launches
instead of running them; so this list is never behind the engine.  No GPU is needed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import sparse

from fastmlp._arrays import GpuArray
from fastmlp.engine import objects
from fastmlp.engine.cuda import compiler, tiles
from fastmlp.engine.cuda.device import Launch, Sequence
from fastmlp.engine.cuda.engine import CudaEngine
from fastmlp.engine.cuda.numba_cuda import cuda
from fastmlp.engine.cuda.samples import place
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import Optimizer

_LOSSES = ("log_loss", "binary_log_loss", "squared_error")  # the defaults
_PRECISIONS = {"float32": ("highest", "high", "medium"), "float64": ("highest",)}
_BATCHES = (96, 2**14 + 1)  # of the tiled path: more rows than its workspace holds, or not
# Each row of weights begins at a multiple of 16 bytes, or most do not.
_WIDTHS = ((12, 8, 8, 4), (12, 7, 7, 5))


class Recorder:
    """In a `Device`'s place: keeps launches, and computes nothing.

    Attributes
    ----------
    launches : list of Launch
        In order; their kernels are pairs (template, names).
    """

    name = "recorder"
    n_multiprocessors = 1
    shared_bytes = 227 * 1024

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def upload(self, array: np.ndarray) -> np.ndarray:
        flat = np.ascontiguousarray(array).reshape(-1)
        return flat.copy() if flat.size else np.zeros(1, flat.dtype)

    def empty(self, n: int, dtype: Any) -> np.ndarray:
        return np.zeros(max(n, 1), dtype)

    zeros = empty

    def adopt(self, array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        return array.reshape(-1), array.shape

    def free_bytes(self) -> int:
        return 2**40

    def write(self, buffer: np.ndarray, array: np.ndarray) -> None:
        assert buffer.shape == array.shape

    def read(self, buffer: np.ndarray, n: int | None = None) -> np.ndarray:
        return buffer[:n].copy()

    def synchronize(self) -> None:
        pass

    def kernel(self, template: Any, **names: Any) -> tuple[Any, dict[str, Any]]:
        return template, names

    def sequence(self, launches: list[Launch]) -> Sequence:
        device: Any = self
        return Sequence(device, launches)

    def capture(self, launches: list[Launch]) -> list[Launch]:
        return launches

    def replay(self, graph: Any) -> None:
        pass

    def launch(self, launch: Launch) -> None:
        self.launches.append(launch)


def shipped() -> list[Launch]:
    """One launch of each kernel."""
    device = Recorder()
    for dtype, precisions in _PRECISIONS.items():
        sizes = tiles.SIZES[dtype]
        for loss, tile in product(_LOSSES, sizes.rows):
            _use(device, _WIDTHS[0], dtype, loss, tile.rows, sizes)
        tiled = sizes._replace(rows=())
        for loss, batch, precision in product(_LOSSES, _BATCHES, precisions):
            _use(device, _WIDTHS[0], dtype, loss, batch, tiled, precision)
        for precision in precisions:
            for size, widths, batch in product(_each(tiled, precision), _WIDTHS, _BATCHES):
                _use(device, widths, dtype, "log_loss", batch, size, precision)
    return list({_key(launch, ()): launch for launch in device.launches}.values())


def _each(sizes: tiles.Sizes, precision: str) -> list[tiles.Sizes]:
    """With one tile, which is chosen therefore."""
    fields = {"highest": "plain", "high": "tf32", "medium": "bf16"}
    each: list[Any] = [{fields[precision]: (tile,)} for tile in sizes.of(precision)]
    return [sizes._replace(**one) for one in each]


def _use(
    device: Any, widths: tuple[int, ...], dtype: str, loss: str, batch: int, sizes: tiles.Sizes,
    precision: str = "highest",
) -> None:  # fmt: skip
    """All that an engine does."""
    objective = Objective(loss, widths[-1])
    network = Network(widths, "relu", objective.out_activation)
    engine = CudaEngine(
        network, dtype=dtype, objective=objective, batch_size=batch, device=device, sizes=sizes,
        matmul_precision=precision, optimizer=Optimizer("adam", (0.9, 0.999, 1e-8)),
    )  # fmt: skip
    X = np.zeros((batch, widths[0]), dtype)
    y = np.zeros(batch if objective.row.per_row else (batch, widths[-1]), np.int64)
    for given in (X, sparse.csr_matrix(X), GpuArray(X, X.shape, X.dtype)):
        options: dict[str, Any] = {"dtype": dtype, "device": device, "sizes": sizes}
        samples = place(given, y, objective=objective, **options)
        engine.load(samples)
        engine.run_epoch(np.arange(batch), np.full(1, 1e-3))
        engine.loss_and_gradient()
        engine.evaluate(samples)
        engine.predict(place(given, **options))


def _key(launch: Launch, target: tuple, form: str = "cubin") -> objects.Key:
    template, names = launch.kernel
    return compiler.key_of(template, names, launch.args, launch.threads, target, form)


# --- the build of a wheel -----------------------------------------------------------------------


@contextmanager
def assume_target(target: tuple) -> Iterator[None]:
    """Let device functions be compiled without a driver."""
    from numba.cuda import dispatcher

    found = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=target[:2])
    try:
        yield
    finally:
        dispatcher.get_current_device = found


def build(target: tuple, launches: list[Launch], form: str = "cubin") -> None:
    """Compile kernels into the package, as far as they are not there, and remove others.

    Parameters
    ----------
    target : tuple
        See `compiler.TARGETS`.
    launches : list of Launch
    form : {'cubin', 'ptx'}

    Raises
    ------
    ValueError
        If NVIDIA's compiler is missing.
    """
    wanted = {_key(launch, target, form): launch for launch in launches}
    paths = {objects.PREBUILT / key.path for key in wanted}
    for path in (objects.PREBUILT / compiler.name_of(target, form)).glob("*.o"):
        if path not in paths:
            path.unlink()
    with assume_target(target):
        for key, launch in wanted.items():
            if objects.read(objects.PREBUILT, key) is None:
                (template, names), n = launch.kernel, launch.threads
                code = compiler.assemble(cuda, template, names, launch.args, n, target, form)
                objects.write(objects.PREBUILT, key, compiler.pack(*code))


def main() -> None:
    """Build for the major version that is the last argument, or PTX for those to come."""
    which = sys.argv[-1]
    if which == "ptx":
        build(compiler.PTX_TARGET, shipped(), "ptx")
    else:
        build(compiler.TARGETS[int(which)], shipped())
