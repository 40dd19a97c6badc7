"""Samples for the kernels: on the device for good, or brought there chunk by chunk.

Engines share samples, and each has a feed of its own from them.  The feeds of both kinds answer the
same few questions of the engine, which never asks which one it has: the data of each chunk in
turn, and where in its chunk each sample is.
"""

import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike
from scipy import sparse

from fastmlp._arrays import GpuArray
from fastmlp.engine.cuda import device as devices
from fastmlp.engine.cuda import kernels, tiles
from fastmlp.engine.cuda.device import Device, Launch
from fastmlp.engine.cuda.tiles import Sizes, common_names, storage_of
from fastmlp.objective import Objective

_FREE_SHARE = 0.7  # of free memory that samples may take; beyond that they are streamed
_CHUNK_BYTES = 2**27
_MOST_KEPT = 2  # passes or workspaces of other sizes
_placing = threading.Lock()  # free memory is what others have left, not what they are about to take


class Recent:
    """The last few things that were made, each by its key; the others' memory is free again."""

    def __init__(self) -> None:
        self._kept: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``key`` stands for, made if it is not there."""
        if key not in self._kept:
            while len(self._kept) >= _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = make()
        self._kept[key] = found = self._kept.pop(key)
        return found

    def values(self) -> list[Any]:
        return list(self._kept.values())


class Data(NamedTuple):
    """Samples on the device; ``fields`` is what the gather kernels want of them."""

    fields: list[Any]
    targets: Any
    weights: Any
    weighted: bool
    sparse: bool


class Chunk(NamedTuple):
    """Samples that are on the device together: those of ``steps`` whole batches, or, with 0
    steps, the rows from ``first`` to ``end`` of a batch, to the size of a whole one with the last.
    """

    data: Data
    buffer: int
    steps: int
    first: int
    end: int


def upload(device: Device, dtype: np.dtype, X: Any) -> list[Any]:
    if not sparse.issparse(X):
        return [device.upload(np.asarray(X, dtype))]
    X.check_format(full_check=True)  # the kernels trust the indices
    arrays = (
        X.data.astype(dtype, copy=False),
        X.indices.astype(np.int32, copy=False),
        X.indptr.astype(np.int64, copy=False),
    )
    return [device.upload(array) for array in arrays]


class _Samples:
    """See `fastmlp.engine.place`.  Nothing of it changes once it is made.

    Attributes
    ----------
    n_samples, n_features : int
    dtype : numpy dtype
    objective : Objective or None
        That of the targets; None without them.
    """

    sparse = streamed = False

    def __init__(self, shape: tuple[int, int], dtype: np.dtype, objective: Objective | None):
        self.n_samples, self.n_features = shape
        self.dtype, self.objective = dtype, objective


class InMemory(_Samples):
    """Samples that are on the device for good; ``fields`` are those of `Data`."""

    def __init__(
        self, device: Device, shape: tuple[int, int], fields: list[Any], y: np.ndarray | None,
        sample_weight: np.ndarray | None, *, dtype: np.dtype, objective: Objective | None,
    ):  # fmt: skip
        super().__init__(shape, dtype, objective)
        self.sparse = len(fields) > 1
        nothing = device.zeros(1, dtype)
        self._data = Data(fields, nothing, nothing, False, self.sparse)
        self._weights = sample_weight
        if y is not None:
            self._data = self._data._replace(targets=device.upload(y))
        if sample_weight is not None:
            weights = device.upload(sample_weight)
            self._data = self._data._replace(weights=weights, weighted=True)

    def feed(self, device: Device) -> "Whole":
        """For one engine."""
        return Whole(self.n_samples, self._weights, self._data)


class Streamed(_Samples):
    """Samples that stay in the host's memory; each engine brings them to the device for itself."""

    streamed = True

    def __init__(
        self, X: np.ndarray, y: np.ndarray | None, sample_weight: np.ndarray | None, *,
        dtype: np.dtype, objective: Objective | None,
    ):  # fmt: skip
        super().__init__(X.shape, dtype, objective)
        self._arrays = X, y, sample_weight

    def feed(self, device: Device) -> "Stream":
        """For one engine."""
        return Stream(device, self.dtype, *self._arrays)


class Feed:
    """How one engine gets at samples, and what its passes over them have prepared.

    It keeps no reference to the samples themselves, with which engines let go of it.
    """

    def __init__(self, n_samples: int, weights: np.ndarray | None):
        self.n_samples, self._weights = n_samples, weights
        self.passes = Recent()

    @cached_property
    def natural_order(self) -> np.ndarray:
        """All samples, as they come."""
        return np.arange(self.n_samples)

    def batch_weights(self, order: np.ndarray) -> np.ndarray | None:
        return None if self._weights is None else self._weights[order]


class Whole(Feed):
    """Of samples that are on the device."""

    def __init__(self, n_samples: int, weights: np.ndarray | None, data: Data):
        super().__init__(n_samples, weights)
        self._data = data

    def holds_batches(self, batch_size: int, most: int) -> bool:
        """Whether chunks are made of whole batches."""
        return True

    def positions(self, order: np.ndarray, batch_size: int, most: int) -> np.ndarray:
        """Where the kernels find the samples of ``order``."""
        return order

    def chunks(self, order: np.ndarray, batch_size: int, most: int) -> Iterator[Chunk]:
        yield Chunk(self._data, 0, -(-order.size // batch_size), 0, batch_size)


class Stream(Feed):
    """Of samples that are brought to the device in chunks: while one is worked on, the next comes.

    A chunk, at most `_CHUNK_BYTES` unless a micro-batch is larger, is as many whole batches as it
    holds, or a part of one batch.
    """

    def __init__(
        self, device: Device, dtype: np.dtype, X: np.ndarray, y: np.ndarray | None,
        sample_weight: np.ndarray | None,
    ):  # fmt: skip
        super().__init__(X.shape[0], sample_weight)
        self._device, self._dtype, self._X, self._y = device, dtype, X, y
        self._arrays = [array for array in (X, y, sample_weight) if array is not None]
        self._types = [dtype if array.dtype.kind == "f" else array.dtype for array in self._arrays]
        self._capacity = 0
        self._hosts: list[list[np.ndarray]] = []
        self._buffers: list[list[Any]] = []
        self._copies: list[Any] = [None, None]
        self._marks: list[Any] = [None, None]

    def _chunk_rows(self, batch_size: int, most: int) -> int:
        row_bytes = max(1, self._X.shape[1]) * self._dtype.itemsize
        rows = max(1, _CHUNK_BYTES // row_bytes)
        whole = batch_size if rows >= batch_size else most
        return max(rows // whole, 1) * whole

    def holds_batches(self, batch_size: int, most: int) -> bool:
        """Whether chunks are made of whole batches."""
        return self._chunk_rows(batch_size, most) >= batch_size

    def positions(self, order: np.ndarray, batch_size: int, most: int) -> np.ndarray:
        """Where in its chunk each sample of ``order`` is."""
        rows, i = self._chunk_rows(batch_size, most), np.arange(order.size)
        return (i % batch_size if rows < batch_size else i) % rows

    def chunks(self, order: np.ndarray, batch_size: int, most: int) -> Iterator[Chunk]:
        rows = self._chunk_rows(batch_size, most)
        self._reserve(rows)
        parts = list(self._cut(order.size, batch_size, rows))
        for number, (start, end, *place) in enumerate(parts):
            if number == 0:
                self._fill(0, order[start:end])
            yield Chunk(self._data(number % 2), number % 2, *place)
            self._marks[number % 2] = self._device.mark()
            if number + 1 < len(parts):
                start, end, *_ = parts[number + 1]
                self._fill((number + 1) % 2, order[start:end])

    def _cut(self, n: int, batch_size: int, rows: int) -> Iterator[tuple[int, int, int, int, int]]:
        """(start, end, steps, first, end in the batch) of each chunk; see `Chunk`."""
        if rows >= batch_size:
            for start in range(0, n, rows):
                end = min(n, start + rows)
                yield start, end, -(-(end - start) // batch_size), 0, batch_size
            return
        for batch in range(0, n, batch_size):
            batch_end = min(n, batch + batch_size)
            for start in range(batch, batch_end, rows):
                end = min(start + rows, batch_end)
                yield start, end, 0, start - batch, batch_size if end == batch_end else end - batch

    def _reserve(self, rows: int) -> None:
        """Two chunks on either side."""
        if rows <= self._capacity:
            return
        self._capacity = rows
        for each in self.passes.values():
            each.sequences.clear()  # their launches hold the smaller buffers
        shapes = [(rows, *array.shape[1:]) for array in self._arrays]
        layout = list(zip(shapes, self._types, strict=True))
        self._hosts = [[self._device.pinned(*each) for each in layout] for _ in range(2)]
        self._buffers = [
            [self._device.empty(int(np.prod(shape)), kind) for shape, kind in layout]
            for _ in range(2)
        ]

    def _data(self, slot: int) -> Data:
        rest = self._buffers[slot][1:]
        nothing = self._buffers[slot][0]
        targets = rest.pop(0) if self._y is not None else nothing
        weights = rest.pop(0) if self._weights is not None else nothing
        return Data([self._buffers[slot][0]], targets, weights, self._weights is not None, False)

    def _fill(self, slot: int, rows: np.ndarray) -> None:
        """Gather samples and have them sent."""
        if self._copies[slot] is not None:
            self._device.wait(self._copies[slot])
        for host, buffer, array in zip(
            self._hosts[slot], self._buffers[slot], self._arrays, strict=True
        ):
            host[: rows.size] = array[rows]
            self._copies[slot] = self._device.send(buffer, host[: rows.size], self._marks[slot])


# --- the way there ------------------------------------------------------------------------------


def place(
    X: Any, y: np.ndarray | None = None, sample_weight: np.ndarray | None = None, *,
    dtype: DTypeLike, objective: Objective | None = None, rows: np.ndarray | None = None,
    device: Device | None = None, sizes: Sizes | None = None,
) -> InMemory | Streamed:  # fmt: skip
    """See `fastmlp.engine.place`; a `GpuArray` must be contiguous in C order.

    Parameters
    ----------
    device, sizes
        See `fastmlp.engine.cuda.engine.CudaEngine`.
    """
    device, dtype = devices.open_device() if device is None else device, np.dtype(dtype)
    if rows is not None:
        y, sample_weight = (None if array is None else array[rows] for array in (y, sample_weight))
    if y is not None:
        assert objective is not None
        y = np.asarray(y, np.int64 if objective.row.per_row else dtype)
    if sample_weight is not None:
        sample_weight = np.asarray(sample_weight, dtype)
    options: dict[str, Any] = {"dtype": dtype, "objective": None if y is None else objective}
    if isinstance(X, GpuArray):
        sizes = tiles.SIZES[dtype.name] if sizes is None else sizes
        buffer, shape = _adopt(device, sizes, X, dtype, rows)
        return InMemory(device, shape, [buffer], y, sample_weight, **options)
    X = X if rows is None else X[rows]
    with _placing:
        too_large = X.shape[0] * X.shape[1] * dtype.itemsize > _FREE_SHARE * device.free_bytes()
        if too_large and not sparse.issparse(X):
            return Streamed(X, y, sample_weight, **options)
        fields = upload(device, dtype, X)
    return InMemory(device, X.shape, fields, y, sample_weight, **options)


def _adopt(
    device: Device, sizes: Sizes, X: GpuArray, dtype: np.dtype, rows: np.ndarray | None
) -> tuple[Any, tuple[int, int]]:
    """(buffer, shape) of samples that are on the device already; copied if some rows are wanted, or
    another type.

    Raises
    ------
    ValueError
        If there is a NaN or an infinity among them.
    """
    buffer, (n, n_features) = device.adopt(X.array)
    names = common_names(dtype, sizes)
    if rows is not None or buffer.dtype != dtype:
        order = np.arange(n) if rows is None else np.asarray(rows, np.int64)
        n, given = order.size, buffer
        buffer = device.empty(n * n_features, dtype)
        control = device.upload(np.array([0, n, n, 0], np.int64))
        blocks = (-(-32 * n // sizes.threads), 1, 1)
        gather = device.kernel(kernels.gather, **names, **storage_of(dtype, "highest").names())
        device.launch(Launch(
            gather, blocks, sizes.threads,
            (control, 0, n, device.upload(order), given, n_features, buffer, n_features),
        ))  # fmt: skip
    found, blocks = device.zeros(1, np.int64), (4 * device.n_multiprocessors, 1, 1)
    find = device.kernel(kernels.find_nonfinite, **names)
    device.launch(Launch(find, blocks, sizes.threads, (n * n_features, buffer, found)))
    if device.read(found)[0]:
        raise ValueError("Input X contains NaN or infinity; impute or drop such samples.")
    return buffer, (n, n_features)
