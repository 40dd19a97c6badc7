"""The CUDA target: `CudaEngine` keeps data, parameters and workspace on a GPU.

Two paths lead through an epoch.  The resident path is one launch (see `resident`), for networks
of at most `_RESIDENT_PARAMETERS` parameters whose activations and deltas for four rows fit in a
block's shared memory, dense samples, and 'highest' precision.  The tiled path takes the rest: per
step, a launch for each layer and direction (see `kernels`), over blocks of at most `_BLOCK_ROWS`
rows.  `CudaEngine.path` says which it is.  The parameters stay in the flat vector's own order.
"""

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numba import float32, float64
from scipy import sparse

from fastmlp.engine.cuda import kernels, ptx, resident
from fastmlp.engine.cuda.device import open_device
from fastmlp.functions import ACTIVATIONS, LOSSES, exponential, identity, logistic
from fastmlp.network import Network
from fastmlp.optimizers import N_SLOTS, OPTIMIZERS, Optimizer

# What this target can do so far; the rest is refused by name.
SUPPORTED = {
    "activation": ("identity", "relu", "tanh", "logistic"),
    "loss": ("squared_error", "binary_log_loss", "poisson", "log_loss"),
    "rule": ("sgd", "nesterov", "adam"),
}
_BLOCK_ROWS = 2**14
_BLOCK_ELEMENTS = 2**28
# A weight gradient's terms are split so that all multiprocessors have something to do.
_TERMS_PER_SPLIT = 128  # at least
_TILE_ELEMENTS = 32 * 32
_TILES_PER_MULTIPROCESSOR = 2
_RESIDENT_PARAMETERS = 2**17
_SHARED_BYTES = 48 * 1024
_SHARED_STEP = 1024  # elements: few sizes of shared memory, so few compilations
_MOST_CHUNK_ROWS = 16
_REAL = {"float32": float32, "float64": float64}
_LINKS = {"identity": identity, "logistic": logistic, "exp": exponential}


class Tile(NamedTuple):
    """Sizes of `kernels.product`: a block's tile of BM x BN x BK, and a thread's part of it."""

    BM: int
    BN: int
    BK: int
    TM: int
    TN: int
    PAD: int = 4

    @property
    def threads(self) -> int:
        return (self.BM // self.TM) * (self.BN // self.TN)

    def names(self) -> dict[str, Any]:
        """What the kernel's names stand for."""
        return self._asdict() | _shared(self) | {"THREADS": self.threads}


class MmaTile(NamedTuple):
    """Sizes of `kernels.product_mma`: a block's tile, and a warp's part of it, WM x WN.

    The padding keeps a warp's reads of a fragment in 32 different banks.
    """

    BM: int
    BN: int
    BK: int
    WM: int
    WN: int

    @property
    def threads(self) -> int:
        return 32 * (self.BM // self.WM) * (self.BN // self.WN)

    def names(self, precision: str) -> dict[str, Any]:
        """What the kernel's names stand for, with 'high' or 'medium' precision."""
        high = precision == "high"
        padded = self._asdict() | {"PAD": 8 if high else 4}
        return padded | _shared(SimpleNamespace(**padded)) | {
            "THREADS": self.threads, "MT": self.WM // 16, "NT": self.WN // 8,
            "TERMS": 8 if high else 16,
            "LOAD": kernels.load_tf32 if high else kernels.load_bf16,
            "MMA": ptx.mma_tf32 if high else ptx.mma_bf16,
        }  # fmt: skip


def _shared(tile) -> dict[str, int]:
    """Elements of shared memory for two stages of both operands."""
    return {
        "SHARED_A": 2 * tile.BK * (tile.BM + tile.PAD),
        "SHARED_B": 2 * tile.BK * (tile.BN + tile.PAD),
    }


class Sizes(NamedTuple):
    """Tiles for large products, tiles for those with few rows or columns, and the threads per block
    of all other kernels: a power of two, and whole warps.
    """

    large: Tile
    small: Tile
    large_mma: MmaTile
    small_mma: MmaTile
    threads: int


_FLOAT32 = Sizes(
    large=Tile(128, 128, 8, 8, 8),
    small=Tile(32, 32, 16, 2, 4),
    large_mma=MmaTile(128, 128, 16, 64, 32),
    small_mma=MmaTile(32, 32, 16, 16, 16),
    threads=256,
)
# With 8 x 8 sums of a float64 thread, some activations spill.
SIZES = {"float32": _FLOAT32, "float64": _FLOAT32._replace(large=Tile(64, 64, 8, 4, 4))}


class Rows(NamedTuple):
    """A block of rows of a batch: its first, and how many at most."""

    first: int
    most: int


class CudaEngine:
    """See `fastmlp.engine.Engine`.

    Parameters
    ----------
    network, dtype, alpha, optimizer, batch_size
        See `fastmlp.engine.get_engine`.
    device : Device, optional
        Where to run; the current GPU by default.
    sizes : Sizes, optional
        Of tiles and blocks.
    matmul_precision : {'highest', 'high', 'medium'}
        Products of float32 in float32, in TF32, or of bfloat16 inputs, as PyTorch and JAX name
        them; sums are float32 in all of them.  float64 is not affected.
    """

    def __init__(
        self, network: Network, *, dtype, alpha: float = 0.0, optimizer: Optimizer | None = None,
        batch_size: int = 1, device=None, sizes: Sizes | None = None,
        matmul_precision: str = "highest",
    ):  # fmt: skip
        _require_support(network, optimizer)
        self._device = open_device() if device is None else device
        self._network, self._alpha, self._optimizer = network, alpha, optimizer
        self._dtype, self._batch_size = np.dtype(dtype), batch_size
        self._sizes = SIZES[self._dtype.name] if sizes is None else sizes
        self._precision = matmul_precision if self._dtype == np.float32 else "highest"
        self._parameters = self._device.zeros(network.n_parameters, self._dtype)
        self._slots = self._device.zeros(N_SLOTS * network.n_parameters, self._dtype)
        self._steps = 0
        self._progress = self._device.zeros(3, np.int64)
        shapes = zip(pairwise(network.widths), pairwise(network.offsets), strict=True)
        ends = [(end, start + fan_in * fan_out) for (fan_in, fan_out), (start, end) in shapes]
        self._layers = self._device.upload(np.array(ends, np.int64))
        self._squares = self._device.zeros(self._blocks_for(network.n_parameters), np.float64)
        self._transposed = self._device.zeros(network.n_parameters, self._dtype)
        self._transposed_is_stale = True
        self._widths = self._device.upload(np.array(network.widths, np.int64))
        self._barrier = self._device.zeros(1, np.uint32)
        self._data: _Data | None = None
        self._workspaces: dict[int, _Workspace] = {}

    # --- parameters and state

    def get_parameters(self) -> np.ndarray:
        return self._device.read(self._parameters)

    def set_parameters(self, flat: np.ndarray) -> None:
        self._device.write(self._parameters, np.asarray(flat, self._dtype))
        self._transposed_is_stale = True

    def get_state(self) -> tuple[np.ndarray, int]:
        return self._device.read(self._slots).reshape(N_SLOTS, -1), self._steps

    def set_state(self, slots: np.ndarray, step: int) -> None:
        self._device.write(self._slots, np.asarray(slots, self._dtype).reshape(-1))
        self._steps = step

    @property
    def path(self) -> str:
        """How epochs run on the loaded data: 'resident' or 'tiled'."""
        dense = self._data is None or not self._data.sparse
        small = self._network.n_parameters <= _RESIDENT_PARAMETERS and self._chunk_rows() >= 4
        small = small and len(set(self._network.hidden)) <= 1
        return "resident" if dense and small and self._precision == "highest" else "tiled"

    # --- the verbs

    def load(self, X, y: np.ndarray, sample_weight: np.ndarray | None = None) -> None:
        self._data = _Data(self._device, self._dtype, X, y, sample_weight)

    def run_epoch(self, order: np.ndarray, learning_rates: np.ndarray) -> float:
        if self._optimizer is None:
            raise ValueError("run_epoch needs an engine that was made with an optimizer.")
        assert self._data is not None
        rates = self._optimizer.step_numbers(learning_rates, self._steps)[:, 0].copy()
        batch_size = min(self._batch_size, order.size)
        call = self._begin(self._data, np.asarray(order, np.int64), batch_size, rates)
        try:
            if self.path == "resident":
                self._resident_epoch(call, self._optimizer, batch_size, rates.size)
            else:
                for _ in range(rates.size):
                    self._step(call, self._optimizer)
        finally:
            self._steps += int(self._device.read(self._progress)[0])
        return call.total_loss(self._device.read(call.results), self._alpha)

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        assert self._data is not None
        n = self._data.n_samples
        call = self._begin(self._data, np.arange(n), n, np.zeros(1))
        self._step(call, None)
        loss = call.total_loss(self._device.read(call.results), self._alpha) / n
        gradient = self._device.read(call.workspace.partial)[: self._network.n_parameters]
        return loss, gradient.copy()

    def evaluate(self, X, y: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
        data = _Data(self._device, self._dtype, X, y, sample_weight)
        n = data.n_samples
        call = self._begin(data, np.arange(n), n, np.zeros(1))
        for rows in call.blocks():
            self._forward(call, rows)
            self._head(call, rows)
        self._finish_step(call, 0)
        return call.total_loss(self._device.read(call.results), 0.0) / n

    def predict(self, X) -> np.ndarray:
        data = _Data(self._device, self._dtype, X, None, None)
        n, n_outputs = data.n_samples, self._network.n_outputs
        call = self._begin(data, np.arange(n), n, np.zeros(1))
        out = self._device.zeros(n * n_outputs, self._dtype)
        work = call.workspace
        if self._network.out_activation == "softmax":
            link = self._kernel(kernels.softmax_link)
        else:
            link = self._kernel(kernels.link, FORMULA=_LINKS[self._network.out_activation])
        for rows in call.blocks():
            self._forward(call, rows)
            self._by_warps(link, rows, work.activations, work.places[-1], work.strides[-1],
                           n_outputs, out)  # fmt: skip
        return self._device.read(out)[: n * n_outputs].reshape(n, n_outputs)

    # --- inside

    def _begin(self, data: "_Data", order: np.ndarray, batch_size: int, rates) -> "_Call":
        """Place what a pass over ``order`` needs; steps are counted from 0."""
        most = self._block_rows(batch_size)
        if most not in self._workspaces:
            workspace = _Workspace(self._device, self._network, self._dtype, most)
            self._workspaces[most] = workspace
        progress = np.array([0, order.size, batch_size], np.int64)
        self._device.write(self._progress, progress)
        return _Call(
            self._device, self._dtype, data, self._workspaces[most], order, batch_size, rates
        )

    def _block_rows(self, batch_size: int) -> int:
        per_row = sum(self._network.widths) + len(self._network.widths)
        return max(1, min(batch_size, _BLOCK_ROWS, _BLOCK_ELEMENTS // per_row))

    def _chunk_rows(self) -> int:
        """Rows whose activations and deltas fit in shared memory; a multiple of 4."""
        room = _SHARED_BYTES - self._sizes.threads * np.dtype(np.float64).itemsize
        fit = room // (2 * sum(self._network.widths) * self._dtype.itemsize)
        return min(_MOST_CHUNK_ROWS, fit // 4 * 4)

    def _resident_epoch(self, call: "_Call", optimizer: Optimizer, batch_size: int, n_steps: int):
        network, kind, n = self._network, self._dtype.type, self._network.n_parameters
        multiprocessors, most = self._device.n_multiprocessors, self._chunk_rows()
        rows = min(most, -(-batch_size // (4 * multiprocessors)) * 4)
        n_blocks = min(multiprocessors, -(-batch_size // rows))
        columns = 2 * sum(network.widths)
        shared = min(-(-rows * columns // _SHARED_STEP) * _SHARED_STEP, most * columns)
        loss = network.loss_row
        activation = network.hidden[0] if network.hidden else ACTIVATIONS["identity"]
        kernel = self._kernel(
            resident.resident_epoch, R=rows, SHARED=shared, ACTIVATION=activation.value,
            DERIVATIVE=activation.derivative, UPDATE=OPTIMIZERS[optimizer.name].update,
            HEAD=resident.softmax_head if loss.per_row else resident.head, FORMULA=loss.value,
            GRADIENT=loss.gradient or identity,
        )  # fmt: skip
        if self._transposed_is_stale:
            flat = self.get_parameters()
            transposed = [W.T.ravel() for W in network.unflatten(flat)[0]]
            blank = [np.zeros(width, self._dtype) for width in network.widths[1:]]
            pieces = [piece for pair in zip(transposed, blank, strict=True) for piece in pair]
            self._device.write(self._transposed, np.concatenate(pieces))
        self._transposed_is_stale = False
        self._device.write(self._barrier, np.zeros(1, np.uint32))
        data = call.data
        self._device.launch(
            kernel, (n_blocks, 1, 1), self._sizes.threads, self._progress, self._barrier, n_steps,
            call.order, *data.fields, data.targets, data.weights, data.weighted, call.scales,
            call.rates, self._parameters, self._transposed,
            self._device.zeros(n_blocks * n, self._dtype), self._slots, n, self._layers,
            self._widths, len(network.widths) - 1, kind(self._alpha),
            *map(kind, optimizer.constants),
            kind(network.n_outputs if loss.mean_over_outputs else 1),
            np.finfo(kind).eps, self._device.zeros(2 * n_blocks, np.float64), call.results,
        )  # fmt: skip

    def _step(self, call: "_Call", optimizer: Optimizer | None) -> None:
        for rows in call.blocks():
            self._forward(call, rows)
            self._head(call, rows)
            self._backward(call, rows)
        self._update(call, optimizer)
        self._transposed_is_stale = True
        self._finish_step(call, self._blocks_for(self._network.n_parameters))

    def _forward(self, call: "_Call", rows: Rows) -> None:
        """Scores of a block of rows, in the last layer's place."""
        data, work, widths = call.data, call.workspace, self._network.widths
        if data.sparse:
            gather = self._kernel(kernels.gather_sparse)
            self._by_warps(gather, rows, call.order, *data.fields, widths[0], work.activations,
                           work.strides[0])  # fmt: skip
        else:
            gather = self._kernel(kernels.gather)
            elements = rows.most * widths[0]
            self._by_threads(gather, elements, *rows, call.order, *data.fields, widths[0],
                             work.activations, work.strides[0])  # fmt: skip
        for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
            hidden = layer < len(widths) - 2
            names = {}
            if hidden:
                value = self._network.hidden[layer].value
                names = {"EPILOGUE": kernels.activate, "FORMULA": value}
            self._product(
                rows, (0, fan_out, fan_in + 1),
                (work.activations, work.places[layer], work.strides[layer], True),
                (self._parameters, self._network.offsets[layer], fan_out, False),
                (work.activations, work.places[layer + 1], work.strides[layer + 1]), **names,
            )  # fmt: skip

    def _head(self, call: "_Call", rows: Rows) -> None:
        """Scores become gradients; losses are kept."""
        row, data, work = self._network.loss_row, call.data, call.workspace
        names = {"FORMULA": row.value} | ({} if row.per_row else {"GRADIENT": row.gradient})
        head = self._kernel(kernels.softmax_head if row.per_row else kernels.head, **names)
        divisor = self._network.n_outputs if row.mean_over_outputs else 1
        kind = self._dtype.type
        self._by_warps(head, rows, call.order, work.activations, work.places[-1], work.strides[-1],
                       self._network.n_outputs, data.targets, data.weights, data.weighted,
                       call.scales, call.losses, kind(divisor),
                       np.finfo(kind).eps)  # fmt: skip

    def _backward(self, call: "_Call", rows: Rows) -> None:
        """Gradients of all layers, into the workspace's splits."""
        work, widths, offsets = call.workspace, self._network.widths, self._network.offsets
        deltas = work.activations
        accumulate = kernels.put if rows.first == 0 else kernels.add
        for layer in range(len(widths) - 2, -1, -1):
            fan_in, fan_out = widths[layer], widths[layer + 1]
            place, stride = work.places[layer + 1], work.strides[layer + 1]
            self._product(
                rows, (fan_in + 1, fan_out, 0),
                (work.activations, work.places[layer], work.strides[layer], False),
                (deltas, place, stride, False),
                (work.partial, offsets[layer], fan_out), n_splits=work.n_splits,
                EPILOGUE=accumulate,
            )  # fmt: skip
            if layer > 0:
                self._product(
                    rows, (0, fan_in, fan_out), (deltas, place, stride, True),
                    (self._parameters, offsets[layer], fan_out, True),
                    (work.deltas, work.places[layer], work.strides[layer]),
                    aux=work.activations, EPILOGUE=kernels.apply_derivative,
                    FORMULA=self._network.hidden[layer - 1].derivative,
                )  # fmt: skip
            deltas = work.deltas

    def _update(self, call: "_Call", optimizer: Optimizer | None) -> None:
        work, n, kind = call.workspace, self._network.n_parameters, self._dtype.type
        if optimizer is None:
            kernel, constants = self._kernel(kernels.complete_gradient), (0.0, 0.0, 0.0)
        else:
            rule = OPTIMIZERS[optimizer.name].update
            kernel, constants = self._kernel(kernels.update, FORMULA=rule), optimizer.constants
        self._by_threads(
            kernel, n, self._parameters, work.partial, work.n_splits, self._slots, n, self._layers,
            len(self._network.widths) - 1, kind(self._alpha), call.scales, call.rates,
            *map(kind, constants), self._squares,
        )  # fmt: skip

    def _finish_step(self, call: "_Call", n_squares: int) -> None:
        finish = self._kernel(kernels.finish_step)
        self._by_threads(finish, 1, call.losses, self._squares, n_squares, call.results)

    def _product(self, rows, shape, A, B, C, *, aux=None, n_splits=1, **names) -> None:
        """Launch `kernels.product`; 0 in ``shape`` (M, N, K) stands for the rows."""
        M, N, K = shape
        *A, A_by_rows = A
        *B, B_by_rows = B
        template, tile, sizes = self._choose_product(M or rows.most, N)
        kernel = self._kernel(
            template, **{"EPILOGUE": kernels.put} | names | sizes, A_BY_ROWS=A_by_rows,
            B_BY_ROWS=B_by_rows,
        )  # fmt: skip
        split = -(-(K or rows.most) // (n_splits * tile.BK)) * tile.BK
        blocks = (-(-N // tile.BN), -(-(M or rows.most) // tile.BM), n_splits)
        self._device.launch(kernel, blocks, tile.threads, self._progress, *rows, *A, *B, *C,
                     self._network.n_parameters, split, M, N, K,
                     C[0] if aux is None else aux)  # fmt: skip

    def _choose_product(self, rows: int, columns: int):
        """(template, tile, what the template's sizes stand for)."""
        sizes = self._sizes
        if self._precision == "highest":
            large = min(rows, columns) >= sizes.large.BM // 2
            tile = sizes.large if large else sizes.small
            return kernels.product, tile, tile.names()
        large = min(rows, columns) >= sizes.large_mma.BM // 2
        mma = sizes.large_mma if large else sizes.small_mma
        return kernels.product_mma, mma, mma.names(self._precision)

    def _kernel(self, template, **names):
        names = {"REAL": _REAL[self._dtype.name], "THREADS": self._sizes.threads} | names
        return self._device.kernel(template, **names)

    def _by_threads(self, kernel, n: int, *args) -> None:
        """Launch a kernel that gives a thread to each of ``n`` things."""
        blocks = (self._blocks_for(n), 1, 1)
        self._device.launch(kernel, blocks, self._sizes.threads, self._progress, *args)

    def _by_warps(self, kernel, rows: Rows, *args) -> None:
        """Launch a kernel that gives a warp to each row."""
        self._by_threads(kernel, 32 * rows.most, *rows, *args)

    def _blocks_for(self, n: int) -> int:
        return -(-n // self._sizes.threads)


def _require_support(network: Network, optimizer: Optimizer | None) -> None:
    if network.loss_row not in [LOSSES[name] for name in SUPPORTED["loss"]]:
        raise ValueError(
            f"device='cuda' does not support loss={network.loss_row.value.__name__!r}; use "
            f"device='cpu', or one of {SUPPORTED['loss']}."
        )
    if network.label_smoothing:
        raise ValueError("device='cuda' does not support label_smoothing; use device='cpu'.")
    if optimizer is not None and optimizer.name not in SUPPORTED["rule"]:
        raise ValueError(
            f"device='cuda' does not support solver={optimizer.name!r}; use device='cpu', or "
            "solver='adam' or 'sgd'."
        )
    if optimizer is not None and optimizer.weight_decay:
        raise ValueError("device='cuda' does not support weight_decay; use device='cpu', or alpha.")
    for row in network.hidden:
        if row not in [ACTIVATIONS[name] for name in SUPPORTED["activation"]]:
            raise ValueError(
                f"device='cuda' does not support activation={row.value.__name__!r}; use "
                f"device='cpu', or one of {SUPPORTED['activation']}."
            )


class _Data:
    """Samples on the device; ``fields`` is what the gather kernels want of them."""

    def __init__(self, device, dtype: np.dtype, X, y, sample_weight):
        self.n_samples, self.sparse = X.shape[0], sparse.issparse(X)
        if self.sparse:
            arrays = [
                X.data.astype(dtype, copy=False),
                X.indices.astype(np.int32, copy=False),
                X.indptr.astype(np.int64, copy=False),
            ]
        else:
            arrays = [np.asarray(X, dtype)]
        self.fields = [device.upload(array) for array in arrays]
        targets = np.zeros(1, dtype) if y is None else y
        self.targets = device.upload(np.asarray(targets))
        self.host_weights = sample_weight
        self.weighted = sample_weight is not None
        weights = np.zeros(1) if sample_weight is None else sample_weight
        self.weights = device.upload(np.asarray(weights, dtype))


class _Workspace:
    """Room for ``most`` rows of activations and deltas, and for the gradient's splits."""

    def __init__(self, device, network: Network, dtype: np.dtype, most: int):
        self.most = most
        self.strides = [-(-(width + 1) // 4) * 4 for width in network.widths]
        self.places = np.cumsum([0, *(stride * most for stride in self.strides)]).tolist()[:-1]
        total = self.places[-1] + self.strides[-1] * most
        activations = np.zeros(total, dtype)
        for place, stride, width in zip(self.places, self.strides, network.widths, strict=True):
            activations[place + width : place + stride * most : stride] = 1
        self.activations = device.upload(activations)
        self.deltas = device.zeros(total, dtype)
        largest = max((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(network.widths))
        n_tiles = -(-largest // _TILE_ELEMENTS)
        self.n_splits = max(
            1, min(_TILES_PER_MULTIPROCESSOR * device.n_multiprocessors // n_tiles,
                   most // _TERMS_PER_SPLIT)
        )  # fmt: skip
        self.partial = device.zeros(self.n_splits * network.n_parameters, dtype)


class _Call:
    """One pass over an order of samples: what its launches read and write."""

    def __init__(self, device, dtype: np.dtype, data: _Data, workspace: _Workspace,
                 order: np.ndarray, batch_size: int, rates: np.ndarray):  # fmt: skip
        self.data, self.workspace = data, workspace
        self._batch_size = batch_size
        starts = np.arange(0, order.size, batch_size)
        self._n_rows = np.minimum(order.size - starts, batch_size)
        self._totals = self._n_rows.astype(np.float64)
        if data.weighted:
            self._totals = np.add.reduceat(data.host_weights[order].astype(np.float64), starts)
        with np.errstate(divide="ignore"):
            scales = np.where(self._totals == 0, 0, 1 / self._totals)
        self.order = device.upload(order)
        self.scales = device.upload(scales.astype(dtype))
        self.rates = device.upload(rates)
        self.losses = device.zeros(batch_size, dtype)
        self.results = device.zeros(2 * len(starts), np.float64)

    def blocks(self) -> Iterator[Rows]:
        """The blocks of rows that a batch is taken in."""
        for first in range(0, self._batch_size, self.workspace.most):
            yield Rows(first, self.workspace.most)

    def total_loss(self, results: np.ndarray, alpha: float) -> float:
        """Sum of (mean loss of a batch, penalty included) x (its length)."""
        losses, squares = results.reshape(-1, 2).T
        used = self._totals != 0
        means = (losses[used] + 0.5 * alpha * squares[used]) / self._totals[used]
        return float(means @ self._n_rows[used])
