"""The CUDA engine: data, parameters and workspace on a GPU.

Two paths lead through an epoch (see `paths`).  The resident path, one launch, is for networks that
fit in a block's shared memory beside some rows of activations, dense samples, and 'highest'
precision.  The tiled path takes the rest, in micro-batches of at
most `_MICRO_BATCH_ROWS` rows, and fewer where their activations would take more than
`_MICRO_BATCH_BYTES`; in 'medium' precision these are stored as bfloat16.  `CudaEngine.path` says
which path it is.  The parameters stay in the flat vector's own order, as float32 or float64.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import DTypeLike

from fastmlp.dropout import Dropout
from fastmlp.engine.cuda import device as devices
from fastmlp.engine.cuda import kernels, tiles
from fastmlp.engine.cuda.device import Device
from fastmlp.engine.cuda.launcher import Launcher
from fastmlp.engine.cuda.paths import ResidentPath, TiledPath
from fastmlp.engine.cuda.samples import (
    Chunk,
    InMemory,
    Recent,
    Stream,
    Streamed,
    Whole,
    place,
)
from fastmlp.engine.cuda.tiles import Sizes
from fastmlp.engine.cuda.workspace import Buffers, Pass, Workspace
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import N_NUMBERS, N_SLOTS, Optimizer

_MICRO_BATCH_ROWS = 2**14
_MICRO_BATCH_BYTES = 2**30  # of activations, and as many of deltas
_RESIDENT_PARAMETERS = 2**16  # more do not fit
_WHOLE = "all samples in one batch, as they come"


class CudaEngine:
    """See `fastmlp.engine.contract.Engine`.

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
        self, network: Network, *, dtype: DTypeLike, objective: Objective | None = None,
        dropout: Dropout | None = None, alpha: float = 0.0, optimizer: Optimizer | None = None,
        batch_size: int = 1, matmul_precision: str = "highest", device: Device | None = None,
        sizes: Sizes | None = None,
    ):  # fmt: skip
        self._device = devices.open_device() if device is None else device
        self._network, self._optimizer, self._objective = network, optimizer, objective
        self._dtype, self._batch_size = np.dtype(dtype), batch_size
        self._sizes = tiles.SIZES[self._dtype.name] if sizes is None else sizes
        self._precision = matmul_precision if self._dtype == np.float32 else "highest"
        self._alpha = alpha
        self._steps = 0
        self._stopping = False
        n, threads = network.n_parameters, self._sizes.threads
        storage = tiles.storage_of(self._dtype, self._precision)
        self._buffers = Buffers(
            self._device, network, self._dtype, storage, objective, optimizer,
            n_blocks=-(-n // threads),
        )  # fmt: skip
        self._launcher = Launcher(
            self._device, self._dtype, self._sizes, self._precision, n, self._buffers.control
        )
        dropout = dropout or Dropout((0.0,) * len(network.hidden), 0)
        known = (
            self._device, self._launcher, self._buffers, network, self._dtype, self._sizes,
            objective, dropout, alpha,
        )  # fmt: skip
        self._tiled, self._resident = TiledPath(*known), ResidentPath(*known)
        self._samples: InMemory | Streamed | None = None
        self._feeds: WeakKeyDictionary[Any, Whole | Stream] = WeakKeyDictionary()
        self._workspaces = Recent()

    # --- parameters and state

    def get_parameters(self) -> np.ndarray:
        return self._device.read(self._buffers.average)

    def set_parameters(self, flat: np.ndarray) -> None:
        buffers = self._buffers
        for buffer in (buffers.parameters, buffers.average)[: 1 + buffers.averages]:
            self._device.write(buffer, np.asarray(flat, self._dtype))

    def get_state(self) -> tuple[np.ndarray, int]:
        slots = self._device.read(self._buffers.slots).reshape(N_SLOTS, -1)
        if self._buffers.averages:
            slots = np.vstack([slots, self._device.read(self._buffers.parameters)])
        return slots, self._steps

    def set_state(self, slots: np.ndarray, step: int) -> None:
        slots = np.asarray(slots, self._dtype)
        self._device.write(self._buffers.slots, slots[:N_SLOTS].reshape(-1))
        if self._buffers.averages:
            self._device.write(self._buffers.parameters, slots[N_SLOTS])
        self._steps = step

    @property
    def n_steps(self) -> int:
        return self._steps

    @property
    def path(self) -> str:
        """How epochs run on the loaded data: 'resident' or 'tiled'."""
        dense = self._samples is None or not self._samples.sparse
        small = self._network.n_parameters <= _RESIDENT_PARAMETERS
        if dense and small and self._precision == "highest":
            takes = self._resident.takes(self._optimizer, self._batch_size)
            return "resident" if takes else "tiled"
        return "tiled"

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

    def _go_on(self) -> None:
        """End an epoch that `stop` has told to."""
        if self._stopping:
            raise KeyboardInterrupt

    def run_epoch(self, order: np.ndarray, learning_rates: np.ndarray) -> float:
        if self._optimizer is None:
            raise ValueError("run_epoch needs an engine that was made with an optimizer.")
        assert self._samples is not None
        feed = self._feed(self._samples)
        numbers = self._optimizer.step_numbers(learning_rates, self._steps, self._dtype)
        batch_size = min(self._batch_size, order.size)
        call = self._begin(feed, order, batch_size, numbers)
        is_resident = self.path == "resident" and feed.holds_batches(
            batch_size, call.workspace.most
        )
        if is_resident:
            self._resident.begin(call)
        self._stopping = False
        try:
            for chunk in feed.chunks(order, batch_size, call.workspace.most):
                self._go_on()
                if is_resident:
                    self._resident.run(call, chunk, self._optimizer, self._go_on)
                elif chunk.steps:
                    self._tiled.run(call, chunk, self._optimizer, self._go_on)
                else:
                    self._tiled.step(call, chunk, self._optimizer)
        finally:
            self._steps += int(self._device.read(self._buffers.control)[0])
        return call.total_loss(self._alpha, of_blocks=is_resident)

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        assert self._samples is not None
        feed = self._feed(self._samples)
        call = self._begin_whole(feed)
        for chunk in self._whole(feed, call):
            self._tiled.once("step", call, chunk, partial(self._tiled.step, call, chunk, None))
        gradient = self._device.read(call.workspace.partial, self._network.n_parameters)
        return call.total_loss(self._alpha) / feed.n_samples, gradient

    def sum_gradients(self, order: np.ndarray, step: int) -> tuple[float, float, np.ndarray]:
        raise NotImplementedError("Shared steps need the engine of the CPU: set device='cpu'.")

    def apply_gradient(
        self, gradient: np.ndarray, total_weight: float, learning_rate: float
    ) -> float:
        raise NotImplementedError("Shared steps need the engine of the CPU: set device='cpu'.")

    def evaluate(self, samples: InMemory | Streamed) -> float:
        self._require_objective(samples)
        feed = self._feed(samples)
        call = self._begin_whole(feed)
        for chunk in self._whole(feed, call):
            self._tiled.once("evaluate", call, chunk, partial(self._tiled.evaluate, call, chunk))
        return call.total_loss(0.0) / feed.n_samples

    def predict(self, X: Any, out: np.ndarray | None = None) -> np.ndarray:
        if not isinstance(X, InMemory | Streamed):
            X = place(X, dtype=self._dtype, device=self._device, sizes=self._sizes)
        feed, n_outputs = self._feed(X), self._network.n_outputs
        call = self._begin_whole(feed)
        outputs = call.buffer_for_outputs(feed.n_samples * n_outputs)
        for chunk in self._whole(feed, call):
            queue = partial(self._tiled.predict, call, chunk, outputs)
            self._tiled.once("predict", call, chunk, queue)
        found = self._device.read(outputs, feed.n_samples * n_outputs).reshape(-1, n_outputs)
        if out is None:
            return found
        out[:] = found
        return out

    def predict_if_finite(self, X: np.ndarray) -> np.ndarray | None:
        return self.predict(X) if np.isfinite(X).all() else None

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

    def _begin(
        self, feed: Whole | Stream, order: np.ndarray, batch_size: int, numbers: np.ndarray
    ) -> Pass:
        """Place what a pass over ``order`` needs; steps are counted from 0."""
        key = order.size, batch_size
        call: Pass = feed.passes.get(key, lambda: self._make_pass(*key))
        positions = feed.positions(order, batch_size, call.workspace.most)
        call.start(positions, numbers, feed.batch_weights(order))
        self._rewind(*key)
        return call

    def _begin_whole(self, feed: Whole | Stream) -> Pass:
        """What a pass over all samples needs as they come, in one batch; it is placed once."""
        n, order = feed.n_samples, feed.natural_order

        def make() -> Pass:
            call = self._make_pass(n, n)
            positions = feed.positions(order, n, call.workspace.most)
            call.start(positions, np.zeros((1, N_NUMBERS)), feed.batch_weights(order))
            return call

        call: Pass = feed.passes.get(_WHOLE, make)
        self._rewind(n, n)
        return call

    @staticmethod
    def _whole(feed: Whole | Stream, call: Pass) -> Iterator[Chunk]:
        """The chunks of such a pass."""
        return feed.chunks(feed.natural_order, feed.n_samples, call.workspace.most)

    def _make_pass(self, n: int, batch_size: int) -> Pass:
        most = self._micro_batch(batch_size)
        work = self._workspaces.get(most, lambda: self._make_workspace(most))
        return Pass(self._device, self._dtype, n, batch_size, work)

    def _rewind(self, n: int, batch_size: int) -> None:
        rewind = self._launcher.kernel(kernels.rewind)
        self._launcher.by_threads(rewind, 1, n, batch_size, self._steps)

    def _make_workspace(self, most: int) -> Workspace:
        storage = self._launcher.storage
        work = Workspace(self._device, self._network, self._dtype, storage, most)
        kernel = self._launcher.kernel_of_rows(kernels.put_ones)
        blocks = (self._launcher.blocks_for(most), 1, 1)
        for start, stride, width in zip(
            work.places, work.strides, self._network.widths, strict=True
        ):
            self._launcher.launch(kernel, blocks, self._sizes.threads, most, work.activations,
                                  start + width, stride)  # fmt: skip
        return work

    def _micro_batch(self, batch_size: int) -> int:
        """Rows that the workspace of such batches holds: as many of a batch's in each part."""
        per_row = sum(self._network.widths) + len(self._network.widths)
        per_row *= self._launcher.storage.dtype.itemsize
        most = max(1, min(_MICRO_BATCH_ROWS, _MICRO_BATCH_BYTES // per_row))
        return -(-batch_size // -(-batch_size // most))
