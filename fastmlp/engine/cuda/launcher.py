"""Launches: kernels with their grids and the names that are bound in them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastmlp.engine.cuda import kernels
from fastmlp.engine.cuda.device import Device, Launch
from fastmlp.engine.cuda.tiles import (
    MmaTile,
    Sizes,
    Tile,
    common_names,
    shared_bytes,
    storage_of,
)
from fastmlp.engine.cuda.workspace import MicroBatch

_BUSY_SHARE = 0.75
_MOST_LINES = 65535  # blocks on any but the first side of a grid

Operand = tuple[Any, int, int, bool]
"""Of a product: buffer, place in it, elements between rows, and whether terms follow each other."""


class Launcher:
    """Queues the launches of one engine, or records them for a sequence.

    ``control`` tells kernels which step they are in.

    Attributes
    ----------
    storage : Storage
        Of activations, deltas and the weights that products read.
    """

    def __init__(
        self, device: Device, dtype: np.dtype, sizes: Sizes, precision: str, n_parameters: int,
        control: Any,
    ):  # fmt: skip
        self._device, self._sizes, self._precision = device, sizes, precision
        self._n_parameters, self._control, self._dtype = n_parameters, control, dtype
        self.storage, self._names = storage_of(dtype, precision), common_names(dtype, sizes)
        self._recorded: list[Launch] | None = None

    @contextmanager
    def recording(self) -> Iterator[list[Launch]]:
        """A list of what is launched meanwhile, which is not queued."""
        recorded: list[Launch] = []
        self._recorded = recorded
        try:
            yield recorded
        finally:
            self._recorded = None

    def product(
        self, rows: MicroBatch, shape: tuple[int, int, int], A: Operand, B: Operand,
        C: tuple[Any, int, int], *, aux: Any = None, n_splits: int = 1, **names: Any,
    ) -> None:  # fmt: skip
        """Launch `kernels.product`; 0 in ``shape`` (M, N, K) stands for the rows."""
        M, N, K = shape
        tile = self._choose_tile(M or rows.most, N, n_splits)
        aligned = self._aligned(A), self._aligned(B)
        sizes = tile.names(self._dtype, self._precision, (A[-1], B[-1]), aligned)
        columns, lines = -(-N // tile.BN), -(-(M or rows.most) // tile.BM)
        blocks = columns, lines, n_splits
        if lines > _MOST_LINES:
            blocks, sizes["BLOCK"] = (lines, columns, n_splits), kernels.block_of_column
        kernel = self.kernel(kernels.product, **({"STORE": kernels.put} | names | sizes))
        split = -(-(K or rows.most) // (n_splits * tile.BK)) * tile.BK
        self.launch(kernel, blocks, tile.threads, self._control, *rows, *A[:-1], *B[:-1], *C,
                    self._n_parameters, split, M, N, K, C[0] if aux is None else aux,
                    shared_bytes=shared_bytes(sizes, self._dtype))  # fmt: skip

    def _aligned(self, operand: Operand) -> bool:
        """Whether its rows start at multiples of 16 bytes."""
        _, start, stride, _ = operand
        return start % self.storage.group == 0 and stride % self.storage.group == 0

    def _choose_tile(self, rows: int, columns: int, n_splits: int) -> Tile | MmaTile:
        """The largest that keeps most multiprocessors busy; the smallest if none does."""
        sizes = self._sizes.of(self._precision)
        for tile in sizes:
            n_blocks = -(-rows // tile.BM) * -(-columns // tile.BN) * n_splits
            if n_blocks >= _BUSY_SHARE * self._device.n_multiprocessors:
                return tile
        return sizes[-1]

    def kernel(self, template: Callable, **names: Any) -> Any:
        """A template with these names bound, and those that most kernels use."""
        return self._device.kernel(template, **(self._names | names))

    def kernel_of_rows(self, template: Callable, **names: Any) -> Any:
        """The same of one that reads or writes activations or deltas."""
        return self.kernel(template, **self.storage.names(), **names)

    def launch(
        self, kernel: Any, blocks: tuple[int, int, int], threads: int, *args: Any,
        cooperative: bool = False, shared_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Queue a launch, or record it for a sequence."""
        launch = Launch(kernel, blocks, threads, args, cooperative, shared_bytes)
        if self._recorded is None:
            self._device.launch(launch)
        else:
            self._recorded.append(launch)

    def by_threads(self, kernel: Any, n: int, *args: Any) -> None:
        """Launch a kernel that gives a thread to each of ``n`` things."""
        blocks = (self.blocks_for(n), 1, 1)
        self.launch(kernel, blocks, self._sizes.threads, self._control, *args)

    def by_warps(self, kernel: Any, rows: MicroBatch, *args: Any) -> None:
        """Launch a kernel that gives a warp to each row."""
        self.by_threads(kernel, 32 * rows.most, *rows, *args)

    def blocks_for(self, n: int) -> int:
        """Blocks that hold ``n`` threads."""
        return -(-n // self._sizes.threads)
