"""Samples for the kernels: on the device for good, or brought there slab by slab.

Both kinds answer the same few questions of the engine, which never asks which one it has: the data
of each slab in turn, and where in its slab each sample is.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

_SLAB_BYTES = 2**27


class Data(NamedTuple):
    """Samples on the device; ``fields`` is what the gather kernels want of them."""

    fields: list[Any]
    targets: Any
    weights: Any
    weighted: bool
    sparse: bool


class Slab(NamedTuple):
    """Samples that are on the device together: those of ``steps`` whole batches, or, with 0
    steps, the rows from ``first`` to ``end`` of a batch, to the size of a whole one with the last.
    """

    data: Data
    buffer: int
    steps: int
    first: int
    end: int


def upload(device, dtype: np.dtype, X) -> list[Any]:
    if not sparse.issparse(X):
        return [device.upload(np.asarray(X, dtype))]
    X.check_format(full_check=True)  # the kernels trust the indices
    arrays = (
        X.data.astype(dtype, copy=False),
        X.indices.astype(np.int32, copy=False),
        X.indptr.astype(np.int64, copy=False),
    )
    return [device.upload(array) for array in arrays]


class InMemory:
    """Samples that are on the device for good."""

    def __init__(self, device, dtype: np.dtype, n_samples: int, fields: list[Any]):
        self._device, self._dtype = device, dtype
        self.n_samples, self.sparse = n_samples, len(fields) > 1
        nothing = device.zeros(1, dtype)
        self._data = Data(fields, nothing, nothing, False, self.sparse)
        self._weights: np.ndarray | None = None
        self.passes: dict[tuple[int, int], Any] = {}

    def with_targets(self, y, sample_weight) -> "InMemory":
        """The same samples with these targets and weights."""
        new = InMemory(self._device, self._dtype, self.n_samples, self._data.fields)
        if y is not None:
            new._data = new._data._replace(targets=self._device.upload(y))
        if sample_weight is not None:
            new._weights = np.asarray(sample_weight, self._dtype)
            weights = self._device.upload(new._weights)
            new._data = new._data._replace(weights=weights, weighted=True)
        return new

    def positions(self, order: np.ndarray, batch_size: int, most: int) -> np.ndarray:
        """Where the kernels find the samples of ``order``."""
        return order

    def batch_weights(self, order: np.ndarray) -> np.ndarray | None:
        return None if self._weights is None else self._weights[order]

    def slabs(self, order: np.ndarray, batch_size: int, most: int) -> Iterator[Slab]:
        yield Slab(self._data, 0, -(-order.size // batch_size), 0, batch_size)


class Streamed:
    """Samples that are brought to the device in pieces: while one is worked on, the next comes.

    A piece, at most `_SLAB_BYTES` unless a block of rows is larger, is as many whole batches as it
    holds, or a part of one batch.
    """

    sparse = False

    def __init__(self, device, dtype: np.dtype, X: np.ndarray, y, sample_weight):
        self._device, self._dtype, self._X = device, dtype, X
        self.n_samples = X.shape[0]
        self._y, self._weights = y, sample_weight
        self._arrays = [array for array in (X, y, sample_weight) if array is not None]
        self._types = [dtype if array.dtype.kind == "f" else array.dtype for array in self._arrays]
        self._room = 0
        self._hosts: list[list[np.ndarray]] = []
        self._buffers: list[list[Any]] = []
        self._copies: list[Any] = [None, None]
        self._marks: list[Any] = [None, None]
        self.passes: dict[tuple[int, int], Any] = {}

    def with_targets(self, y, sample_weight) -> "Streamed":
        """The same samples with these targets and weights."""
        return Streamed(self._device, self._dtype, self._X, y, sample_weight)

    def batch_weights(self, order: np.ndarray) -> np.ndarray | None:
        return None if self._weights is None else self._weights[order]

    def _slab_rows(self, batch_size: int, most: int) -> int:
        row_bytes = max(1, self._X.shape[1]) * self._dtype.itemsize
        rows = max(1, _SLAB_BYTES // row_bytes)
        unit = batch_size if rows >= batch_size else most
        return max(rows // unit, 1) * unit

    def positions(self, order: np.ndarray, batch_size: int, most: int) -> np.ndarray:
        """Where in its slab each sample of ``order`` is."""
        rows, i = self._slab_rows(batch_size, most), np.arange(order.size)
        return (i % batch_size if rows < batch_size else i) % rows

    def slabs(self, order: np.ndarray, batch_size: int, most: int) -> Iterator[Slab]:
        rows = self._slab_rows(batch_size, most)
        self._reserve(rows)
        pieces = list(self._pieces(order.size, batch_size, rows))
        for number, (start, end, *place) in enumerate(pieces):
            if number == 0:
                self._fill(0, order[start:end])
            yield Slab(self._data(number % 2), number % 2, *place)
            self._marks[number % 2] = self._device.mark()
            if number + 1 < len(pieces):
                start, end, *_ = pieces[number + 1]
                self._fill((number + 1) % 2, order[start:end])

    def _pieces(
        self, n: int, batch_size: int, rows: int
    ) -> Iterator[tuple[int, int, int, int, int]]:
        """(start, end, steps, first, end in the batch) of each slab; see `Slab`."""
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
        """Two slabs on either side."""
        if rows <= self._room:
            return
        self._room = rows
        self.passes.clear()  # the launches that they repeat hold the smaller buffers
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
