"""The CUDA target: `CudaEngine` keeps data, parameters and workspace on a GPU.

Two paths lead through an epoch.  The resident path is one launch (see `resident`), for networks
of at most `_RESIDENT_PARAMETERS` parameters whose activations and deltas for four rows fit in a
block's shared memory, dense samples, and 'highest' precision.  The tiled path takes the rest: per
step, a launch for each layer and direction (see `kernels`), over blocks of at most `_BLOCK_ROWS`
rows.  `CudaEngine.path` says which it is.  The parameters stay in the flat vector's own order.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numba import float32, float64
from scipy import sparse

from fastmlp._arrays import GpuArray
from fastmlp.dropout import Dropout, threshold
from fastmlp.engine.cuda import kernels, resident
from fastmlp.engine.cuda.device import Launch, Sequence, UserFormula, open_device
from fastmlp.engine.cuda.samples import Data, InMemory, Slab, Stream, Streamed, Whole, upload
from fastmlp.engine.cuda.tiles import SIZES, Sizes
from fastmlp.functions import (
    ACTIVATIONS,
    LAYER_NORM_EPSILON,
    LINKS,
    Activation,
    Loss,
    identity,
    with_our_arguments,
)
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import (
    N_NUMBERS,
    N_SLOTS,
    OPTIMIZERS,
    Optimizer,
    decay_weight,
    keep_weight,
)

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
_FREE_SHARE = 0.7  # of free memory that samples may take; beyond that they are streamed
_WHOLE = "all samples in one batch, as they come"
_REAL = {"float32": float32, "float64": float64}


def place(
    X, y=None, sample_weight=None, *, dtype, objective: Objective | None = None,
    rows: np.ndarray | None = None, device=None, sizes: Sizes | None = None,
) -> InMemory | Streamed:  # fmt: skip
    """See `fastmlp.engine.place`; a `GpuArray` must be contiguous in C order.

    Parameters
    ----------
    device, sizes
        See `CudaEngine`.
    """
    device, dtype = open_device() if device is None else device, np.dtype(dtype)
    if rows is not None:
        y, sample_weight = (None if array is None else array[rows] for array in (y, sample_weight))
    if y is not None:
        assert objective is not None
        y = np.asarray(y, np.int64 if objective.row.per_row else dtype)
    if sample_weight is not None:
        sample_weight = np.asarray(sample_weight, dtype)
    options = {"dtype": dtype, "objective": None if y is None else objective}
    if isinstance(X, GpuArray):
        sizes = SIZES[dtype.name] if sizes is None else sizes
        buffer, shape = _adopt(device, sizes, X, dtype, rows)
        return InMemory(device, shape, [buffer], y, sample_weight, **options)
    X = X if rows is None else X[rows]
    too_large = X.shape[0] * X.shape[1] * dtype.itemsize > _FREE_SHARE * device.free_bytes()
    if too_large and not sparse.issparse(X):
        return Streamed(X, y, sample_weight, **options)
    fields = upload(device, dtype, X)
    return InMemory(device, X.shape, fields, y, sample_weight, **options)


def _adopt(device, sizes: Sizes, X: GpuArray, dtype: np.dtype, rows: np.ndarray | None):
    """(buffer, shape) of samples that are on the device already; copied if some rows are wanted, or
    another type.

    Raises
    ------
    ValueError
        If there is a NaN or an infinity among them.
    """
    buffer, (n, n_features) = device.adopt(X.array)
    names = {"REAL": _REAL[dtype.name], "OPERAND": _REAL[dtype.name], "THREADS": sizes.threads}
    if rows is not None or buffer.dtype != dtype:
        order = np.arange(n) if rows is None else np.asarray(rows, np.int64)
        n, given = order.size, buffer
        buffer = device.empty(n * n_features, dtype)
        progress = device.upload(np.array([0, n, n, 0], np.int64))
        blocks = (-(-n * n_features // sizes.threads), 1, 1)
        device.launch(Launch(
            device.kernel(kernels.gather, **names), blocks, sizes.threads,
            (progress, 0, n, device.upload(order), given, n_features, buffer, n_features),
        ))  # fmt: skip
    found, blocks = device.zeros(1, np.int64), (4 * device.n_multiprocessors, 1, 1)
    find = device.kernel(kernels.find_nonfinite, **names)
    device.launch(Launch(find, blocks, sizes.threads, (n * n_features, buffer, found)))
    if device.read(found)[0]:
        raise ValueError("Input X contains NaN or infinity; impute or drop such samples.")
    return buffer, (n, n_features)


class Rows(NamedTuple):
    """A block of rows of a batch: its first, and how many at most."""

    first: int
    most: int


class CudaEngine:
    """See `fastmlp.engine.Engine`.

    Parameters
    ----------
    network, dtype, objective, dropout, alpha, optimizer, batch_size, matmul_precision
        See `fastmlp.engine.get_engine`.
    device : Device, optional
        Where to run; the current GPU by default.
    sizes : Sizes, optional
        Of tiles and blocks.
    """

    def __init__(
        self, network: Network, *, dtype, objective: Objective | None = None,
        dropout: Dropout | None = None, alpha: float = 0.0, optimizer: Optimizer | None = None,
        batch_size: int = 1, matmul_precision: str = "highest", device=None,
        sizes: Sizes | None = None,
    ):  # fmt: skip
        self._device = open_device() if device is None else device
        self._network, self._alpha, self._optimizer = network, alpha, optimizer
        self._objective = objective
        self._dropout = dropout or Dropout((0.0,) * len(network.hidden), 0)
        self._dtype, self._batch_size = np.dtype(dtype), batch_size
        self._sizes = SIZES[self._dtype.name] if sizes is None else sizes
        self._precision = matmul_precision if self._dtype == np.float32 else "highest"
        self._parameters = self._device.zeros(network.n_parameters, self._dtype)
        decay = None if optimizer is None else optimizer.ema_decay
        self._averages, self._average = decay is not None, self._parameters
        self._average_rate = self._dtype.type(0.0 if decay is None else 1.0 - decay)
        if self._averages:
            self._average = self._device.zeros(network.n_parameters, self._dtype)
        self._slots = self._device.zeros(N_SLOTS * network.n_parameters, self._dtype)
        self._steps = 0
        self._stopping = False
        self._progress = self._device.zeros(4, np.int64)
        shapes = zip(pairwise(network.widths), pairwise(network.offsets), strict=True)
        ends = [(end, start + fan_in * fan_out) for (fan_in, fan_out), (start, end) in shapes]
        self._layers = self._device.upload(np.array(ends, np.int64))
        self._squares = self._device.zeros(self._blocks_for(network.n_parameters), np.float64)
        self._transposed = self._device.zeros(network.n_parameters, self._dtype)
        self._transposed_is_stale = True
        self._widths = self._device.upload(np.array(network.widths, np.int64))
        self._barrier = self._device.zeros(1, np.uint32)
        constants = () if objective is None else objective.constant_per_output
        self._constants = self._device.upload(np.array(constants, self._dtype))
        self._samples: InMemory | Streamed | None = None
        self._feeds: WeakKeyDictionary[Any, Whole | Stream] = WeakKeyDictionary()
        self._workspaces: dict[int, _Workspace] = {}
        self._recorded: list[Launch] | None = None

    # --- parameters and state

    def get_parameters(self) -> np.ndarray:
        return self._device.read(self._average)

    def set_parameters(self, flat: np.ndarray) -> None:
        for buffer in (self._parameters, self._average)[: 1 + self._averages]:
            self._device.write(buffer, np.asarray(flat, self._dtype))
        self._transposed_is_stale = True

    def get_state(self) -> tuple[np.ndarray, int]:
        slots = self._device.read(self._slots).reshape(N_SLOTS, -1)
        if self._averages:
            slots = np.vstack([slots, self._device.read(self._parameters)])
        return slots, self._steps

    def set_state(self, slots: np.ndarray, step: int) -> None:
        slots = np.asarray(slots, self._dtype)
        self._device.write(self._slots, slots[:N_SLOTS].reshape(-1))
        if self._averages:
            self._device.write(self._parameters, slots[N_SLOTS])
            self._transposed_is_stale = True
        self._steps = step

    @property
    def n_steps(self) -> int:
        return self._steps

    @property
    def path(self) -> str:
        """How epochs run on the loaded data: 'resident' or 'tiled'."""
        optimizer = self._optimizer
        network = self._network
        if (
            any(self._dropout.rates)
            or network.layer_norm
            or (optimizer and optimizer.max_grad_norm is not None)
        ):
            return "tiled"
        dense = self._samples is None or not self._samples.sparse
        small = self._network.n_parameters <= _RESIDENT_PARAMETERS and self._chunk_rows() >= 4
        small = small and len(set(self._network.hidden)) <= 1
        return "resident" if dense and small and self._precision == "highest" else "tiled"

    def info(self) -> dict[str, Any]:
        return {
            "device": "cuda", "name": self._device.name, "dtype": self._dtype.name,
            "path": self.path, "matmul_precision": self._precision,
            "streamed": self._samples is not None and self._samples.streamed,
        }  # fmt: skip

    # --- the verbs

    def load(self, samples: InMemory | Streamed) -> None:
        self._require_objective(samples)
        if samples is not self._samples:
            self.unload()
        self._samples = samples

    def unload(self) -> None:
        if self._samples is not None:
            self._feeds.pop(self._samples, None)
        self._samples = None

    def stop(self) -> None:
        self._stopping = True

    def run_epoch(self, order: np.ndarray, learning_rates: np.ndarray) -> float:
        if self._optimizer is None:
            raise ValueError("run_epoch needs an engine that was made with an optimizer.")
        assert self._samples is not None
        feed = self._feed(self._samples)
        numbers = self._optimizer.step_numbers(learning_rates, self._steps, self._dtype)
        batch_size = min(self._batch_size, order.size)
        call = self._begin(feed, order, batch_size, numbers)
        resident = self.path == "resident"
        if resident:
            self._refresh_transposed()
            self._device.write(self._barrier, np.zeros(1, np.uint32))
        self._transposed_is_stale = not resident
        self._stopping = False
        try:
            for slab in feed.slabs(order, batch_size, call.workspace.most):
                if self._stopping:
                    raise KeyboardInterrupt
                if not slab.steps:
                    self._step(call, slab, self._optimizer)
                elif resident:
                    self._resident_steps(call, slab, self._optimizer)
                else:
                    self._sequence(call, slab, self._optimizer).run(slab.steps)
        finally:
            self._steps += int(self._device.read(self._progress)[0])
        return call.total_loss(self._alpha)

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        assert self._samples is not None
        feed = self._feed(self._samples)
        call = self._begin_whole(feed)
        for slab in self._whole(feed, call):
            self._step(call, slab, None)
        gradient = self._device.read(call.workspace.partial)[: self._network.n_parameters]
        return call.total_loss(self._alpha) / feed.n_samples, gradient.copy()

    def evaluate(self, samples: InMemory | Streamed) -> float:
        self._require_objective(samples)
        feed = self._feed(samples)
        call = self._begin_whole(feed)
        for slab in self._whole(feed, call):
            for rows in call.blocks(slab):
                self._forward(call, slab.data, rows)
                self._head(call, slab.data, rows)
        self._finish_step(call, 0)
        return call.total_loss(0.0) / feed.n_samples

    def predict(self, X) -> np.ndarray:
        if not isinstance(X, InMemory | Streamed):
            X = place(X, dtype=self._dtype, device=self._device, sizes=self._sizes)
        feed, n_outputs = self._feed(X), self._network.n_outputs
        call = self._begin_whole(feed)
        out, work = call.room_for_outputs(feed.n_samples * n_outputs), call.workspace
        if self._network.out_activation == "softmax":
            link = self._kernel(kernels.softmax_link)
        else:
            link = self._kernel(kernels.link, FORMULA=LINKS[self._network.out_activation])
        for slab in self._whole(feed, call):
            for rows in call.blocks(slab):
                self._forward(call, slab.data, rows)
                self._by_warps(link, rows, work.activations, work.places[-1], work.strides[-1],
                               n_outputs, out)  # fmt: skip
        return self._device.read(out)[: feed.n_samples * n_outputs].reshape(-1, n_outputs)

    # --- inside

    def _require_objective(self, samples: InMemory | Streamed) -> None:
        if self._objective is None:
            raise ValueError("This needs an engine that was made with an objective.")
        if (samples.dtype, samples.objective) != (self._dtype, self._objective):
            raise ValueError("These samples have no targets, or another dtype or objective.")

    def _feed(self, samples: InMemory | Streamed) -> Whole | Stream:
        """This engine's feed from samples, as long as they live."""
        if samples not in self._feeds:
            self._feeds[samples] = samples.feed(self._device)
        return self._feeds[samples]

    def _begin(self, feed: Whole | Stream, order: np.ndarray, batch_size: int, numbers) -> "_Pass":
        """Place what a pass over ``order`` needs; steps are counted from 0."""
        key = order.size, batch_size
        if key not in feed.passes:
            feed.passes[key] = self._make_pass(*key)
        call = feed.passes[key]
        positions = feed.positions(order, batch_size, call.workspace.most)
        call.start(positions, numbers, feed.batch_weights(order))
        self._rewind(*key)
        return call

    def _begin_whole(self, feed: Whole | Stream) -> "_Pass":
        """What a pass over all samples needs as they come, in one batch; it is placed once."""
        n, order = feed.n_samples, feed.natural_order
        if _WHOLE not in feed.passes:
            call = feed.passes[_WHOLE] = self._make_pass(n, n)
            positions = feed.positions(order, n, call.workspace.most)
            call.start(positions, np.zeros((1, N_NUMBERS)), feed.batch_weights(order))
        self._rewind(n, n)
        return feed.passes[_WHOLE]

    @staticmethod
    def _whole(feed: Whole | Stream, call: "_Pass") -> Iterator[Slab]:
        """The slabs of such a pass."""
        return feed.slabs(feed.natural_order, feed.n_samples, call.workspace.most)

    def _make_pass(self, n: int, batch_size: int) -> "_Pass":
        most = self._block_rows(batch_size)
        if most not in self._workspaces:
            self._workspaces[most] = self._make_workspace(most)
        return _Pass(self._device, self._dtype, n, batch_size, self._workspaces[most])

    def _rewind(self, n: int, batch_size: int) -> None:
        self._by_threads(self._kernel(kernels.rewind), 1, n, batch_size, self._steps)

    def _make_workspace(self, most: int) -> "_Workspace":
        work = _Workspace(self._device, self._network, self._dtype, most)
        for place, stride, width in zip(
            work.places, work.strides, self._network.widths, strict=True
        ):
            kernel, blocks = self._kernel(kernels.put_ones), (self._blocks_for(most), 1, 1)
            self._launch(kernel, blocks, self._sizes.threads, most, work.activations,
                         place + width, stride)  # fmt: skip
        return work

    def _block_rows(self, batch_size: int) -> int:
        per_row = sum(self._network.widths) + len(self._network.widths)
        return max(1, min(batch_size, _BLOCK_ROWS, _BLOCK_ELEMENTS // per_row))

    def _chunk_rows(self) -> int:
        """Rows whose activations and deltas fit in shared memory; a multiple of 4."""
        room = _SHARED_BYTES - self._sizes.threads * np.dtype(np.float64).itemsize
        fit = room // (2 * sum(self._network.widths) * self._dtype.itemsize)
        return min(_MOST_CHUNK_ROWS, fit // 4 * 4)

    def _refresh_transposed(self) -> None:
        if self._transposed_is_stale:
            flat = self._device.read(self._parameters)
            transposed = [W.T.ravel() for W in self._network.unflatten(flat)[0]]
            blank = [np.zeros(width, self._dtype) for width in self._network.widths[1:]]
            pieces = [piece for pair in zip(transposed, blank, strict=True) for piece in pair]
            self._device.write(self._transposed, np.concatenate(pieces))
        self._transposed_is_stale = False

    def _resident_steps(self, call: "_Pass", slab: Slab, optimizer: Optimizer) -> None:
        network, kind, n = self._network, self._dtype.type, self._network.n_parameters
        multiprocessors, most = self._device.n_multiprocessors, self._chunk_rows()
        rows = min(most, -(-call.batch_size // (4 * multiprocessors)) * 4)
        n_blocks = min(multiprocessors, -(-call.batch_size // rows))
        columns = 2 * sum(network.widths)
        shared = min(-(-rows * columns // _SHARED_STEP) * _SHARED_STEP, most * columns)
        objective = self._objective
        assert objective is not None
        loss = objective.row
        activation = network.hidden[0] if network.hidden else ACTIVATIONS["identity"]
        kernel = self._kernel(
            resident.resident_epoch, R=rows, SHARED=shared, **self._rule(optimizer),
            ACTIVATION=_formula(activation, activation.value),
            DERIVATIVE=_formula(activation, activation.derivative),
            KEEP_SLOPE=resident.keep_slope if activation.of_score else resident.keep_nothing,
            SLOPE=resident.kept_slope if activation.of_score else resident.slope_of_output,
            HEAD=_head(loss, resident), **_loss(loss),
        )  # fmt: skip
        data = slab.data
        partial, sums = call.room_for_blocks(n_blocks, n)
        self._launch(
            kernel, (n_blocks, 1, 1), self._sizes.threads, self._progress, self._barrier,
            slab.steps, call.order, *data.fields, data.targets, data.weights, data.weighted,
            call.scales, call.numbers, self._parameters, self._transposed, partial, self._slots, n,
            self._layers, self._widths, len(network.widths) - 1, kind(self._alpha),
            kind(objective.divisor),
            np.finfo(kind).eps, self._constants, kind(objective.label_smoothing), self._average,
            self._average_rate, sums, call.results,
        )  # fmt: skip

    def _sequence(self, call: "_Pass", slab: Slab, optimizer: Optimizer) -> Sequence:
        """The launches of one step, the same for every step on this data."""
        if slab.buffer not in call.sequences:
            self._recorded = []
            try:
                whole = slab._replace(steps=0, first=0, end=call.batch_size)
                self._step(call, whole, optimizer)
                call.sequences[slab.buffer] = self._device.sequence(self._recorded)
            finally:
                self._recorded = None
        return call.sequences[slab.buffer]

    def _step(self, call: "_Pass", slab: Slab, optimizer: Optimizer | None) -> None:
        """The slab's part of one step; with the batch's last rows, its end."""
        for rows in call.blocks(slab):
            self._forward(call, slab.data, rows, train=True)
            self._head(call, slab.data, rows)
            self._backward(call, rows)
        if slab.end < call.batch_size:
            return
        self._update(call, optimizer)
        self._finish_step(call, self._blocks_for(self._network.n_parameters))

    def _forward(self, call: "_Pass", data: Data, rows: Rows, *, train: bool = False) -> None:
        """Scores of a block of rows, in the last layer's place; ``train`` prepares `_backward`."""
        work, widths = call.workspace, self._network.widths
        parameters = self._parameters if train else self._average
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
            names = self._activation(layer, work, train) if hidden else {}
            normalised = hidden and self._network.layer_norm
            self._product(
                rows, (0, fan_out, fan_in + 1),
                (work.activations, work.places[layer], work.strides[layer], True),
                (parameters, self._network.offsets[layer], fan_out, False),
                (work.activations, work.places[layer + 1], work.strides[layer + 1]),
                **({} if normalised else names),
            )  # fmt: skip
            if normalised:
                self._normalise(layer, work, rows, **names)
            if train and hidden and self._dropout.rates[layer]:
                self._drop(layer, work, rows)

    def _normalise(self, layer: int, work: "_Workspace", rows: Rows, *, aux=None, **names) -> None:
        """Layer normalisation and activation of a hidden layer's scores."""
        epsilon = self._dtype.type(LAYER_NORM_EPSILON)
        self._by_warps(
            self._kernel(kernels.normalise, **names), rows, work.activations, work.kept,
            work.places[layer + 1], work.strides[layer + 1], self._network.widths[layer + 1],
            epsilon, work.activations if aux is None else aux,
        )  # fmt: skip

    def _drop(self, layer: int, work: "_Workspace", rows: Rows) -> None:
        """Dropout of a hidden layer."""
        rate, width = self._dropout.rates[layer], self._network.widths[layer + 1]
        self._by_threads(
            self._kernel(kernels.drop), rows.most * width, *rows, work.activations, work.deltas,
            work.places[layer + 1], work.strides[layer + 1], width, self._dropout.seed,
            layer, threshold(rate), self._dtype.type(1 / (1 - rate)),
        )  # fmt: skip

    def _activation(self, layer: int, work: "_Workspace", train: bool) -> dict[str, Any]:
        """What ends the product of a hidden layer."""
        row = self._network.hidden[layer]
        if not (train and (row.of_score or self._dropout.rates[layer])):
            return {"FINISH": kernels.activate, "FORMULA": _formula(row, row.value)}
        return {
            "FINISH": kernels.activate_and_keep_slope if row.of_score
            else kernels.activate_and_keep_slope_of_output, "FORMULA": _formula(row, row.value),
            "GRADIENT": _formula(row, row.derivative), "aux": work.deltas,
        }  # fmt: skip

    def _head(self, call: "_Pass", data: Data, rows: Rows) -> None:
        """Scores become gradients; losses are kept."""
        objective, work, kind = self._objective, call.workspace, self._dtype.type
        assert objective is not None
        row = objective.row
        head = self._kernel(_head(row, kernels), **_loss(row))
        self._by_warps(head, rows, call.order, work.activations, work.places[-1], work.strides[-1],
                       self._network.n_outputs, data.targets, data.weights, data.weighted,
                       call.scales, call.losses, kind(objective.divisor), np.finfo(kind).eps,
                       self._constants, kind(objective.label_smoothing))  # fmt: skip

    def _backward(self, call: "_Pass", rows: Rows) -> None:
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
                STORE=accumulate,
            )  # fmt: skip
            if layer > 0:
                self._product(
                    rows, (0, fan_in, fan_out), (deltas, place, stride, True),
                    (self._parameters, offsets[layer], fan_out, True),
                    (work.deltas, work.places[layer], work.strides[layer]),
                    aux=work.activations, **self._slope(layer - 1),
                )  # fmt: skip
                if self._network.layer_norm:
                    self._by_warps(
                        self._kernel(kernels.normalise_delta), rows, work.deltas, work.kept,
                        work.places[layer], work.strides[layer], fan_in,
                    )  # fmt: skip
            deltas = work.deltas

    def _slope(self, layer: int) -> dict[str, Any]:
        """What ends the product that makes the gradient of a hidden layer's outputs."""
        row = self._network.hidden[layer]
        if row.of_score or self._dropout.rates[layer]:
            return {"STORE": kernels.multiply_by}
        return {"FINISH": kernels.apply_derivative, "FORMULA": _formula(row, row.derivative)}

    def _update(self, call: "_Pass", optimizer: Optimizer | None) -> None:
        work, n, kind = call.workspace, self._network.n_parameters, self._dtype.type
        max_norm = None if optimizer is None else optimizer.max_grad_norm
        if optimizer is None or max_norm is not None:
            kernel = self._kernel(kernels.complete_gradient)
        else:
            kernel = self._kernel(kernels.update, **self._rule(optimizer))
        places = self._layers, len(self._network.widths) - 1
        self._by_threads(
            kernel, n, self._parameters, work.partial, work.n_splits, self._slots, n, *places,
            kind(self._alpha), call.scales, call.numbers, self._squares, self._average,
            self._average_rate,
        )  # fmt: skip
        if optimizer is None or max_norm is None:
            return
        n_blocks, norms = self._blocks_for(n), call.room_for_norms(self._blocks_for(n))
        self._by_threads(self._kernel(kernels.sum_squares), n, work.partial, n, norms)
        self._by_threads(self._kernel(kernels.finish_norm), 1, norms, n_blocks)
        self._by_threads(
            self._kernel(kernels.clipped_update, **self._rule(optimizer)), n, self._parameters,
            work.partial, self._slots, n, *places, call.scales, call.numbers, norms, n_blocks,
            float(max_norm), self._average, self._average_rate,
        )  # fmt: skip

    @staticmethod
    def _rule(optimizer: Optimizer) -> dict[str, Any]:
        return {
            "UPDATE": OPTIMIZERS[optimizer.name].update,
            "DECAY": decay_weight if optimizer.weight_decay else keep_weight,
            "N_NUMBERS": N_NUMBERS,
            "AVERAGE": kernels.no_average if optimizer.ema_decay is None else kernels.move_average,
        }

    def _finish_step(self, call: "_Pass", n_squares: int) -> None:
        finish = self._kernel(kernels.finish_step)
        self._by_threads(finish, 1, call.losses, self._squares, n_squares, call.results)

    def _product(self, rows, shape, A, B, C, *, aux=None, n_splits=1, **names) -> None:
        """Launch `kernels.product`; 0 in ``shape`` (M, N, K) stands for the rows."""
        M, N, K = shape
        *A, A_by_rows = A
        *B, B_by_rows = B
        tile, sizes = self._choose_tile(M or rows.most, N)
        kernel = self._kernel(
            kernels.product, A_BY_ROWS=A_by_rows, B_BY_ROWS=B_by_rows,
            **({"STORE": kernels.put, "FINISH": kernels.leave} | names | sizes),
        )  # fmt: skip
        split = -(-(K or rows.most) // (n_splits * tile.BK)) * tile.BK
        blocks = (-(-N // tile.BN), -(-(M or rows.most) // tile.BM), n_splits)
        self._launch(kernel, blocks, tile.threads, self._progress, *rows, *A, *B, *C,
                     self._network.n_parameters, split, M, N, K,
                     C[0] if aux is None else aux)  # fmt: skip

    def _choose_tile(self, rows: int, columns: int):
        """(tile, what its names stand for)."""
        sizes = self._sizes
        if self._precision == "highest":
            large = min(rows, columns) >= sizes.large.BM // 2
            tile = sizes.large if large else sizes.small
            return tile, tile.names()
        large = min(rows, columns) >= sizes.large_mma.BM // 2
        mma = sizes.large_mma if large else sizes.small_mma
        return mma, mma.names(self._precision)

    def _kernel(self, template, **names):
        real = _REAL[self._dtype.name]
        common = {"REAL": real, "OPERAND": real, "THREADS": self._sizes.threads}
        return self._device.kernel(template, **(common | names))

    def _launch(self, kernel, blocks: tuple[int, int, int], threads: int, *args) -> None:
        """Queue a launch, or record it for a sequence."""
        launch = Launch(kernel, blocks, threads, args)
        if self._recorded is None:
            self._device.launch(launch)
        else:
            self._recorded.append(launch)

    def _by_threads(self, kernel, n: int, *args) -> None:
        """Launch a kernel that gives a thread to each of ``n`` things."""
        blocks = (self._blocks_for(n), 1, 1)
        self._launch(kernel, blocks, self._sizes.threads, self._progress, *args)

    def _by_warps(self, kernel, rows: Rows, *args) -> None:
        """Launch a kernel that gives a warp to each row."""
        self._by_threads(kernel, 32 * rows.most, *rows, *args)

    def _blocks_for(self, n: int) -> int:
        return -(-n // self._sizes.threads)


def _formula(row: Activation, function: Callable) -> Callable | UserFormula:
    return UserFormula(function) if row.by_user else function


def _loss(row: Loss) -> dict[str, Any]:
    """What a head's formulas are."""
    value: Any = row.value
    gradient: Any = row.gradient or identity
    if row.by_user:
        value = UserFormula(value, lambda compiled: with_our_arguments(row, compiled, compiled)[0])
        gradient = UserFormula(
            gradient, lambda compiled: with_our_arguments(row, compiled, compiled)[1]
        )
    return {
        "FORMULA": value, "GRADIENT": gradient,
        "LOSS": kernels.logistic_loss if row.of_probability else kernels.plain_loss,
    }  # fmt: skip


def _head(row: Loss, module):
    """The head of either path that works out a loss."""
    if not row.per_row:
        return module.head
    return module.probability_head if row.of_probability else module.softmax_head


class _Workspace:
    """Room for ``most`` rows of activations and deltas, and for the gradient's splits."""

    def __init__(self, device, network: Network, dtype: np.dtype, most: int):
        self.most = most
        self.strides = [-(-(width + 1) // 4) * 4 for width in network.widths]
        self.places = np.cumsum([0, *(stride * most for stride in self.strides)]).tolist()[:-1]
        total = self.places[-1] + self.strides[-1] * most
        self.activations = device.empty(total, dtype)
        self.deltas = device.empty(total, dtype)
        self.kept = device.empty(total * network.layer_norm, dtype)  # normalised scores
        largest = max((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(network.widths))
        n_tiles = -(-largest // _TILE_ELEMENTS)
        self.n_splits = max(
            1, min(_TILES_PER_MULTIPROCESSOR * device.n_multiprocessors // n_tiles,
                   most // _TERMS_PER_SPLIT)
        )  # fmt: skip
        self.partial = device.empty(self.n_splits * network.n_parameters, dtype)


class _Pass:
    """Passes over as many samples in batches of one size: what their launches read and write."""

    def __init__(self, device, dtype: np.dtype, n: int, batch_size: int, workspace: _Workspace):
        self._device, self._dtype = device, dtype
        self.batch_size, self.workspace = batch_size, workspace
        self._starts = np.arange(0, n, batch_size)
        self._n_rows = np.minimum(n - self._starts, batch_size)
        self._totals = self._n_rows.astype(np.float64)
        self.order = device.empty(n, np.int64)
        self.scales = device.empty(self._starts.size, dtype)
        self.numbers = device.empty(self._starts.size * N_NUMBERS, np.float64)
        self.losses = device.empty(batch_size, dtype)
        self.results = device.empty(2 * self._starts.size, np.float64)
        self.sequences: dict[int, Sequence] = {}
        self._partial: Any = None
        self._sums: Any = None
        self._norms: Any = None
        self._outputs: Any = None

    def start(self, order: np.ndarray, numbers: np.ndarray, weights: np.ndarray | None) -> None:
        """Write what the next pass reads; ``weights`` are in the samples' order."""
        if weights is not None:
            self._totals = np.add.reduceat(weights.astype(np.float64), self._starts)
        with np.errstate(divide="ignore"):
            scales = np.where(self._totals == 0, 0, 1 / self._totals)
        self._device.write(self.order, np.asarray(order, np.int64))
        self._device.write(self.scales, scales.astype(self._dtype))
        self._device.write(self.numbers, numbers.reshape(-1))

    def room_for_blocks(self, n_blocks: int, n_parameters: int) -> tuple[Any, Any]:
        """Each block's gradient, and its loss and sum of squares."""
        if self._partial is None:
            self._partial = self._device.empty(n_blocks * n_parameters, self._dtype)
            self._sums = self._device.empty(2 * n_blocks, np.float64)
        return self._partial, self._sums

    def room_for_norms(self, n_blocks: int) -> Any:
        """The blocks' sums of squares of the gradient, and its norm."""
        if self._norms is None:
            self._norms = self._device.empty(n_blocks + 1, np.float64)
        return self._norms

    def room_for_outputs(self, n: int) -> Any:
        if self._outputs is None:
            self._outputs = self._device.empty(n, self._dtype)
        return self._outputs

    def blocks(self, slab: Slab) -> Iterator[Rows]:
        """The blocks of rows that a slab's part of a batch is taken in."""
        for first in range(slab.first, slab.end, self.workspace.most):
            yield Rows(first, self.workspace.most)

    def total_loss(self, alpha: float) -> float:
        """Sum of (mean loss of a batch, penalty included) x (its length)."""
        losses, squares = self._device.read(self.results).reshape(-1, 2).T
        used = self._totals != 0
        means = (losses[used] + 0.5 * alpha * squares[used]) / self._totals[used]
        return float(means @ self._n_rows[used])
