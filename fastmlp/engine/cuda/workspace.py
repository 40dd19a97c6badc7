"""What an engine keeps on the device: parameters and state, workspace, and what a pass needs."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastmlp.engine.cuda.device import Device, Sequence
from fastmlp.engine.cuda.samples import Chunk
from fastmlp.engine.cuda.tiles import Storage
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import N_NUMBERS, N_SLOTS, Optimizer

# A weight gradient's terms are split so that all multiprocessors have something to do.
_TERMS_PER_SPLIT = 128  # at least
_TILE_ELEMENTS = 64 * 64
_TILES_PER_MULTIPROCESSOR = 2


class MicroBatch(NamedTuple):
    """Rows of a batch that the workspace holds: the first, and how many at most."""

    first: int
    most: int


class Buffers:
    """What an engine allocates once, when it is made.

    Attributes
    ----------
    parameters, average : buffer
        Those that are trained, and their average, which is the same buffer unless ``averages``.
    averages : bool
    average_rate : float
    slots : buffer
        The optimizer's.
    layers, widths : buffer
        Each layer's end in the flat vector, and that of its weights; the network's widths.
    control : buffer
        What kernels know of the step that they are in: see `fastmlp.engine.cuda.kernels`.
    barrier : buffer
    squares : buffer
        Each block's sum of squares of its weights.
    constants : buffer
        The loss's, one per output.
    copy : Copy or None
        Of the parameters, where products do not read these.
    """

    def __init__(
        self, device: Device, network: Network, dtype: np.dtype, storage: Storage,
        objective: Objective | None, optimizer: Optimizer | None, n_blocks: int,
    ):  # fmt: skip
        n = network.n_parameters
        decay = None if optimizer is None else optimizer.ema_decay
        self.parameters = device.zeros(n, dtype)
        self.averages, self.average = decay is not None, self.parameters
        self.average_rate = dtype.type(0.0 if decay is None else 1.0 - decay)
        if self.averages:
            self.average = device.zeros(n, dtype)
        self.slots = device.zeros(N_SLOTS * n, dtype)
        shapes = zip(pairwise(network.widths), pairwise(network.offsets), strict=True)
        ends = [(end, start + fan_in * fan_out) for (fan_in, fan_out), (start, end) in shapes]
        self.layers = device.upload(np.array(ends, np.int64))
        self.widths = device.upload(np.array(network.widths, np.int64))
        self.control = device.zeros(4, np.int64)
        self.barrier = device.zeros(1, np.uint32)
        self.squares = device.zeros(n_blocks, np.float64)
        constants = () if objective is None else objective.constant_per_output
        self.constants = device.upload(np.array(constants, dtype))
        self.copy = None if storage.dtype == dtype else Copy(device, network, storage)


class Copy:
    """A copy of the parameters for products to read, in their storage.

    Attributes
    ----------
    buffer : buffer
    places, strides : list of int
        Where each layer is, and elements between its rows.
    lines : buffer
        See `fastmlp.engine.cuda.kernels.copy_weights`.
    """

    def __init__(self, device: Device, network: Network, storage: Storage):
        self.strides = [storage.stride(width) for width in network.widths[1:]]
        rows = [width + 1 for width in network.widths[:-1]]
        sizes = [n * stride for n, stride in zip(rows, self.strides, strict=True)]
        *self.places, total = np.cumsum([0, *sizes]).tolist()
        # zeros, because products read what is behind a row's end
        self.buffer = device.zeros(total, storage.dtype)
        columns = network.offsets[1:], network.widths[1:], self.places, self.strides
        self.lines = device.upload(np.array(columns, np.int64).T)


class Workspace:
    """Activations and deltas of a micro-batch of ``most`` rows, and the gradient's splits.

    Attributes
    ----------
    strides, places : list of int
        Elements between rows of each layer, and where it is.
    activations, deltas : buffer
        Of all layers, input and outputs among them.
    scores : buffer
        Of the outputs, as far from each other as their deltas.
    kept : buffer
        A hidden layer's scores, placed like its activations, and then what layer normalisation
        makes of them.
    partial : buffer
        The gradient's splits.
    """

    def __init__(
        self, device: Device, network: Network, dtype: np.dtype, storage: Storage, most: int
    ):
        self.most = most
        self.strides = [storage.stride(width + 1) for width in network.widths]
        *self.places, total = np.cumsum([0, *(n * most for n in self.strides)]).tolist()
        # zeros, because products read what is behind a row's end
        self.activations = device.zeros(total, storage.dtype)
        self.deltas = device.zeros(total, storage.dtype)
        self.scores = device.empty(self.strides[-1] * most, dtype)
        self.kept = device.empty(total * network.layer_norm, dtype)
        largest = max((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(network.widths))
        n_tiles = -(-largest // _TILE_ELEMENTS)
        self.n_splits = max(
            1, min(_TILES_PER_MULTIPROCESSOR * device.n_multiprocessors // n_tiles,
                   most // _TERMS_PER_SPLIT)
        )  # fmt: skip
        self.partial = device.empty(self.n_splits * network.n_parameters, dtype)


class Pass:
    """Passes over as many samples in batches of one size: what their launches read and write."""

    def __init__(
        self, device: Device, dtype: np.dtype, n: int, batch_size: int, workspace: Workspace
    ):
        self._device, self._dtype = device, dtype
        self.batch_size, self.workspace = batch_size, workspace
        self._starts = np.arange(0, n, batch_size)
        self._n_rows = np.minimum(n - self._starts, batch_size)
        self._totals = self._n_rows.astype(np.float64)
        self._shares = np.ones(self._starts.size)
        self.order = device.empty(n, np.int64)
        self.scales = device.empty(self._starts.size, dtype)
        self.numbers = device.empty(self._starts.size * N_NUMBERS, np.float64)
        self.shares = device.empty(self._starts.size, np.float64)
        self.losses = device.empty(batch_size, dtype)
        self.results = device.empty(2 * self._starts.size, np.float64)
        self.sequences: dict[tuple[str, int], Sequence] = {}
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
        self._shares = self._n_rows * scales
        self._device.write(self.order, np.asarray(order, np.int64))
        self._device.write(self.scales, scales.astype(self._dtype))
        self._device.write(self.numbers, numbers.reshape(-1))
        self._device.write(self.shares, self._shares)

    def buffers_for_blocks(self, n_partial: int, n_sums: int) -> tuple[Any, Any]:
        """Blocks' gradients, and their sums of losses and of squares of weights."""
        if self._partial is None:
            self._partial = self._device.empty(n_partial, self._dtype)
            self._sums = self._device.empty(n_sums, np.float64)
        return self._partial, self._sums

    def buffer_for_norms(self, n_blocks: int) -> Any:
        """The blocks' sums of squares of the gradient, and its norm."""
        if self._norms is None:
            self._norms = self._device.empty(n_blocks + 1, np.float64)
        return self._norms

    def buffer_for_outputs(self, n: int) -> Any:
        if self._outputs is None:
            self._outputs = self._device.empty(n, self._dtype)
        return self._outputs

    def micro_batches(self, chunk: Chunk) -> Iterator[MicroBatch]:
        """Those that a chunk's part of a batch is taken in."""
        for first in range(chunk.first, chunk.end, self.workspace.most):
            yield MicroBatch(first, self.workspace.most)

    def total_loss(self, alpha: float, *, of_blocks: bool = False) -> float:
        """Sum of (mean loss of a batch, penalty included) x (its length).

        Parameters
        ----------
        alpha : float
        of_blocks : bool
            Whether it was blocks that kept losses and squares, or else steps.
        """
        if of_blocks:
            losses, squares = self._device.read(self._sums).reshape(-1, 2).sum(axis=0)
            return float(losses + 0.5 * alpha * squares)
        losses, squares = self._device.read(self.results).reshape(-1, 2).T
        used = self._totals != 0
        return float((losses + 0.5 * alpha * squares)[used] @ self._shares[used])
