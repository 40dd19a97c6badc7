"""The CPU engine: hands flat arrays to compiled kernels, and lets Ctrl-C through.

A compiled call cannot see Ctrl-C: Python delivers it when the call returns.  Calls that take
longer than a blink therefore run on a helper thread (the GIL is released) while the calling
thread waits, ready to set the stop flag that the kernels poll once per block of rows.  Short calls
run where they are.  What is short is estimated from the arithmetic, not measured, so the choice
never depends on the machine's load.
"""

import threading
from concurrent.futures import Future

import numpy as np
from scipy import sparse

from fastmlp.engine.cpu.kernels import KERNELS, SPARSE, STEPS, STOP, Net, Samples, Work
from fastmlp.functions import ACTIVATIONS, LOSSES, OUT_ACTIVATIONS
from fastmlp.network import Network
from fastmlp.optimizers import N_SLOTS, OPTIMIZERS, Optimizer

_SHORT_CALL = 1e8  # operations; about 0.1 s where the kernels are slowest
_BLOCK_ELEMENTS = 2**22  # workspace of one block: 32 MB in float64
_BLOCK_ROWS = 4096


class Source:
    """Input rows as integers that a kernel can follow, and the arrays they point into.

    ``fields`` is [is sparse, address of values, bytes per row, address of column indices
    (int32), address of row starts (int64)].
    """

    def __init__(self, X, dtype: np.dtype):
        if sparse.issparse(X):
            self._keep: tuple[np.ndarray, ...] = (
                np.ascontiguousarray(X.data, dtype),
                np.ascontiguousarray(X.indices, np.int32),
                np.ascontiguousarray(X.indptr, np.int64),
            )
            values, indices, indptr = (_address(array) for array in self._keep)
            self.fields = np.array([1, values, 0, indices, indptr])
        else:
            rows = np.asarray(X, dtype)
            if rows.size and (rows.strides[1] != rows.itemsize or rows.strides[0] < 0):
                rows = np.ascontiguousarray(rows)
            self._keep = (rows,)
            self.fields = np.array([0, _address(rows), rows.strides[0], 0, 0])
        self.n_samples = X.shape[0]


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


class CpuEngine:
    """See `fastmlp.engine.Engine`."""

    def __init__(
        self,
        network: Network,
        *,
        dtype,
        alpha: float = 0.0,
        optimizer: Optimizer | None = None,
        batch_size: int = 1,
    ):
        self._network = network
        self._dtype = np.dtype(dtype)
        self._kernels = KERNELS[self._dtype.name]
        self._alpha = float(alpha)
        self._optimizer = optimizer
        self._batch_size = int(batch_size)
        self._net = Net(
            np.array(network.widths, np.int64),
            np.array(network.offsets, np.int64),
            ACTIVATIONS[network.activation].code,
            OUT_ACTIVATIONS[network.out_activation],
            LOSSES[network.loss].code,
        )
        self._parameters = np.zeros(network.n_parameters, self._dtype)
        self._slots = np.zeros((N_SLOTS, network.n_parameters if optimizer else 0), self._dtype)
        self._progress = np.zeros(2, np.int64)
        self._memory = np.empty(0, self._dtype)

    # --- parameters and state

    def get_parameters(self) -> np.ndarray:
        return self._parameters.copy()

    def set_parameters(self, flat: np.ndarray) -> None:
        self._parameters[:] = flat

    def get_state(self) -> tuple[np.ndarray, int]:
        return self._slots.copy(), int(self._progress[STEPS])

    def set_state(self, slots: np.ndarray, step: int) -> None:
        self._slots[:] = slots
        self._progress[STEPS] = step

    # --- data and verbs

    def load(self, X, y: np.ndarray, sample_weight: np.ndarray | None = None) -> None:
        self._source = Source(X, self._dtype)
        self._samples = self._with_targets(self._source, y, sample_weight)
        self._gradient = np.empty_like(self._parameters)

    def run_epoch(self, order: np.ndarray, learning_rates: np.ndarray) -> float:
        if self._optimizer is None:
            raise ValueError("run_epoch needs an engine that was made with an optimizer.")
        batch = min(self._batch_size, order.size)
        return self._call(
            self._kernels.run_epoch,
            3 * order.size,
            self._parameters,
            self._gradient,
            self._slots,
            self._net,
            self._samples,
            order,
            batch,
            self._optimizer.step_rates(learning_rates, int(self._progress[STEPS])),
            self._alpha,
            OPTIMIZERS[self._optimizer.name].code,
            np.array(self._optimizer.constants, np.float64),
            self._workspace(batch, self._source, with_deltas=True),
        )

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        order = np.arange(self._source.n_samples)
        loss = self._call(
            self._kernels.loss_and_gradient,
            3 * order.size,
            self._parameters,
            self._gradient,
            self._net,
            self._samples,
            order,
            self._alpha,
            self._workspace(order.size, self._source, with_deltas=True),
        )
        return loss, self._gradient.copy()

    def evaluate(self, X, y: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
        source = Source(X, self._dtype)
        order = np.arange(source.n_samples)
        return self._call(
            self._kernels.evaluate,
            order.size,
            self._parameters,
            self._net,
            self._with_targets(source, y, sample_weight),
            order,
            self._workspace(order.size, source, with_deltas=False),
        )

    def predict(self, X) -> np.ndarray:
        source = Source(X, self._dtype)
        order = np.arange(source.n_samples)
        out = np.empty((order.size, self._network.n_outputs), self._dtype)
        self._call(
            self._kernels.predict,
            order.size,
            self._parameters,
            self._net,
            source.fields,
            order,
            self._workspace(order.size, source, with_deltas=False),
            out,
        )
        return out

    # --- inside

    def _with_targets(self, source: Source, y, sample_weight) -> Samples:
        """Data, targets and weights in the kernels' types."""
        targets = np.empty((0, self._network.n_outputs), self._dtype)
        classes = np.empty(0, np.int64)
        weights = np.empty(0, self._dtype)
        if LOSSES[self._network.loss].per_row:
            classes = np.require(y, np.int64, ["C", "W"])
        else:
            targets = np.require(y, self._dtype, ["C", "W"])
        if sample_weight is not None:
            weights = np.require(sample_weight, self._dtype, ["C", "W"])
        return Samples(source.fields, targets, classes, weights)

    def _workspace(self, n_rows: int, source: Source, with_deltas: bool) -> Work:
        """Workspace for batches of ``n_rows``.

        Rows of sparse input are never expanded, so the input layer takes no room then.
        """
        widths = self._net.widths.copy()
        widths[0] *= not source.fields[SPARSE]
        ends = np.cumsum([*widths, *(widths[1:] * with_deltas)])
        places = np.zeros((2, widths.size + 1), np.int64)
        places[0, 1:] = ends[: widths.size]
        places[1, 1] = ends[widths.size - 1]
        places[1, 2:] = ends[widths.size :]
        block = max(1, min(n_rows, _BLOCK_ROWS, max(32, _BLOCK_ELEMENTS // int(widths.max()))))
        size = block * int(ends[-1])
        if with_deltas and n_rows > block:
            size += int((self._net.widths[:-1] * self._net.widths[1:]).max())
        if self._memory.size < size:
            self._memory = np.empty(size, self._dtype)
        return Work(places, block, self._memory, self._progress)

    def _call(self, kernel, n_rows: int, *args):
        """Run a kernel that pushes ``n_rows`` through the network, open to Ctrl-C."""
        self._progress[STOP] = 0
        per_row = 2 * self._network.n_parameters + 50 * sum(self._network.widths)
        short = n_rows * per_row < _SHORT_CALL
        if short or threading.current_thread() is not threading.main_thread():
            return kernel(*args)
        kernel.prepare(*args)
        outcome: Future = Future()
        helper = threading.Thread(target=_run_into, args=(outcome, kernel, args), daemon=True)
        try:
            helper.start()
            while helper.is_alive():
                helper.join(0.1)
        except KeyboardInterrupt:
            self._progress[STOP] = 1
            while helper.is_alive():
                helper.join()
            raise
        return outcome.result()


def _run_into(outcome: Future, kernel, args) -> None:
    try:
        outcome.set_result(kernel(*args))
    except BaseException as error:
        outcome.set_exception(error)


def warmup() -> None:
    """Compile every kernel, or load it from the disk cache, by running it once."""
    X, y = np.zeros((2, 1)), np.zeros((2, 1))
    network = Network((1, 1), "relu", "squared_error")
    optimizer = Optimizer("adam", (0.9, 0.999, 1e-8))
    for dtype in KERNELS:
        engine = CpuEngine(network, dtype=dtype, optimizer=optimizer, batch_size=2)
        engine.load(X, y)
        engine.run_epoch(np.arange(2), np.zeros(1))
        engine.loss_and_gradient()
        engine.evaluate(X, y)
        engine.predict(X)
