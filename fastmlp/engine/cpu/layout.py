"""Where everything lies while the CPU engine works: the packed parameters and the workspace.

During a fit, parameters, gradient and optimizer state lie in the order in which the tiles read
them.  A layer is cut into panels of `PANEL` output columns (the last one narrower, a whole number
of vectors); a panel holds its fan_in rows and, as one more row, the bias, each row contiguous.  So
the forward product streams a panel without packing, and a weight-gradient tile is one contiguous
run of parameters, which the optimizer can update while it is in L1.  Beside it lies a transposed
copy in the same form, for the input gradient.

Most of a panel would be padding where a network has an output or two, and the optimizer would take
longer over it than over the other layers (8-100-1 has 909 weights of the hidden layer, and 1,616
numbers in such a panel).  There, panels are one column wide, which makes them rows of the
transposed weights; no copy is needed.

Activations carry a constant 1 in the column after the last, so that the bias and its gradient are
ordinary rows.  Padded columns have zero weights and stay zero; under softmax their bias is -1e30,
which exp turns into exactly 0.  Rows are an odd number of cache lines apart: a power of two would
put them all into the same few sets of the cache.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike

from fastmlp.engine.processor import LEVEL, VECTOR_BYTES, lanes
from fastmlp.network import Network

N_VECTORS = 2  # of a panel's width
# Rows of tiles one and two vectors wide: as many sums as leave registers for operands.  Arm has 32
# registers of 16 bytes, and cores with four units need 16 sums.
ARM_ROWS = (8, 8)
MAX_ROWS = (12, 12) if VECTOR_BYTES == 64 else (8, 6) if LEVEL.startswith("x86") else ARM_ROWS

LINE = 64  # bytes of a line of the cache
_GRADIENT_ROWS, _SMALL_GRADIENT_ROWS = 144, 48  # whole tiles, and whole vectors
_SMALLEST_GRADIENT_ROWS = 4
MAX_GRADIENT_ROWS = 160  # at least _GRADIENT_ROWS + _SMALLEST_GRADIENT_ROWS, and whole vectors

# Rows that a thread takes through all layers at once: few, so that they stay in L1 and L2, though
# each row block has to fetch the parameters; whole tiles.
ROW_BLOCK = 96
# Batches from which on gradients are summed in two and four parts (`Layout.n_parts`), and the rows
# that the last, shorter batch has for each part at least.
_TWO_PARTS, _FOUR_PARTS, PART_ROWS = 64, 512, 16
# Packing activations into micro-panels pays if they serve many panels and would not fit in L1.
PACK_PANELS, PACK_ROWS = 16, 256
MICRO_PANEL_COLUMNS = MAX_GRADIENT_ROWS + MAX_ROWS[-1]  # no gradient block's have more
# A task's control words, which Python and all threads share: asked to stop, steps done, whether to
# stop after this step (thread 0 decides for all), give up waiting, steps before the call, and
# whether a sample was found that is not finite.
_PAGE = 4096  # bytes
STOP, STEPS, DECISION, ABORT, FIRST_STEP, NOT_FINITE = range(6)
AHEAD = 256  # indices that a shuffle draws before elements are swapped


N_TILES = 2 * N_VECTORS * (max(MAX_ROWS) + 1)


def tile_number(rows: int, vectors: int, turned: int) -> int:
    """Which entry of a table of `N_TILES` belongs to a tile; see `kernels.tiles`."""
    return (2 * (vectors - 1) + turned) * (max(MAX_ROWS) + 1) + rows


def aligned(size: int, dtype: DTypeLike) -> np.ndarray:
    """Zeros that start on a cache line (where Linux allocates pages, on a page)."""
    itemsize = np.dtype(dtype).itemsize
    raw = np.zeros(size + _PAGE // itemsize, dtype)
    skip = -raw.__array_interface__["data"][0] % _PAGE // itemsize
    return raw[skip : skip + size]


class Layout:
    """Sizes and offsets, in elements, for one network and element type.

    Attributes
    ----------
    vector, panel, page : int
        Elements of a vector, columns of a panel, elements of a page of memory.
    is_narrow : bool
        Whether the last layer has panels of one column.
    widths, strides : ndarray of shape (n_layers,)
        Neurons, and distance between rows of activations.
    columns, panel_widths : ndarray of shape (n_layers - 1,)
        Columns of each layer's weights, padding included, and of its panels.
    rows, rows_transposed : ndarray of shape (n_layers - 1,)
        Rows per panel of each layer and of its transpose, padding included.
    weights, transposed : ndarray of shape (n_layers,)
        Start of each layer in the packed parameters and in the transposed copy.
    """

    def __init__(self, network: Network, dtype: DTypeLike):
        self.dtype = np.dtype(dtype)
        self.vector = lanes(self.dtype.itemsize)
        self.panel = N_VECTORS * self.vector
        self.page = _PAGE // self.dtype.itemsize
        self.network = network
        widths = network.widths
        self.widths = np.array(widths, np.int64)
        self.strides = np.array([self._stride(width) for width in widths], np.int64)
        self.rows = np.array([self.pad(fan_in + 1) for fan_in in widths[:-1]], np.int64)
        self.rows_transposed = np.array([self.pad(fan_out) for fan_out in widths[1:]], np.int64)
        self.columns = self.rows_transposed.copy()
        self.panel_widths = np.full(self.columns.size, self.panel, np.int64)
        self.is_narrow = (
            network.out_activation != "softmax" and 4 * network.n_outputs <= self.vector
        )
        if self.is_narrow:
            self.columns[-1], self.panel_widths[-1] = network.n_outputs, 1
        sizes_transposed = [
            0 if layer == 0 or self.panel_widths[layer] == 1 else rows * self.pad(widths[layer])
            for layer, rows in enumerate(self.rows_transposed)
        ]
        self.weights = np.cumsum([0, *(self.rows * self.columns)])
        self.transposed = np.cumsum([0, *sizes_transposed])
        self._gradient_blocks: dict[bool, np.ndarray] = {}
        self._bounds: dict[tuple[bool, int, int], np.ndarray] = {}

    def pad(self, n: int) -> int:
        """``n`` rounded up to whole vectors."""
        return -(-int(n) // self.vector) * self.vector

    def _stride(self, width: int) -> int:
        line = LINE // self.dtype.itemsize
        lines = max(-(-(width + 1) // line), -(-self.pad(width) // line))
        return (lines | 1) * line

    def gradient_blocks(self, sparse: bool) -> np.ndarray:
        """The weight gradient in blocks for threads to share: [layer, column, first row, end].

        The cut depends on the shapes only, never on the number of threads, because sums are kept
        per block.  With sparse input a block of the first layer is a whole panel.  Blocks of narrow
        panels have more rows, to be as large as the others.
        """
        if sparse not in self._gradient_blocks:
            self._gradient_blocks[sparse] = self._cut(sparse)
        return self._gradient_blocks[sparse]

    def _cut(self, sparse: bool) -> np.ndarray:
        shapes = list(pairwise(self.network.widths))
        n_large = sum(
            -(-(fan_in + 1) // _GRADIENT_ROWS) * -(-fan_out // self.panel)
            for fan_in, fan_out in shapes
        )
        step = _GRADIENT_ROWS if n_large >= 16 else _SMALL_GRADIENT_ROWS
        blocks = []
        for layer, (fan_in, _) in enumerate(shapes):
            width = int(self.panel_widths[layer])
            most = step * self.panel // width
            starts = [0] if sparse and layer == 0 else list(range(0, fan_in + 1, most))
            if len(starts) > 1 and fan_in + 1 - starts[-1] <= _SMALLEST_GRADIENT_ROWS:
                starts.pop()
            blocks += [
                [layer, column, first, end]
                for first, end in pairwise([*starts, fan_in + 1])
                for column in range(0, int(self.columns[layer]), width)
            ]
        return np.array(blocks, np.int64)

    def n_parts(self, batch_size: int, *, sparse: bool) -> int:
        """In how many parts, each of some of its rows, a batch's weight gradient is summed.

        A thread that has parts for itself needs nobody else's activations and deltas; only sums go
        from core to core.  That pays where there are more of those than parameters; the gradient of
        sparse samples is summed in memory as it is.  The number depends on shapes alone, so that
        results are the same for any number of threads.
        """
        others = batch_size * int(self.strides.sum() + self.strides[1:-1].sum())
        n_packed = int(self.weights[-1])
        if sparse or batch_size < _TWO_PARTS or others < 2 * n_packed:
            return 1
        return 2 if batch_size < _FOUR_PARTS or others < 4 * n_packed else 4

    def bounds(self, sparse: bool, n_threads: int, n_parts: int = 1) -> np.ndarray:
        """Which gradient blocks each thread takes, by arithmetic: shape (n_threads + 1,).

        With more than one of ``n_parts``, which blocks of the parts, one part after the other.
        """
        key = sparse, n_threads, n_parts
        if key not in self._bounds:
            blocks = np.tile(self.gradient_blocks(sparse), (n_parts, 1))
            self._bounds[key] = self._share_out(blocks, n_threads)
        return self._bounds[key]

    def _share_out(self, blocks: np.ndarray, n_threads: int) -> np.ndarray:
        if n_threads == 1:
            return np.array([0, len(blocks)], np.int64)
        layers = blocks[:, 0]
        columns = np.minimum(self.panel_widths[layers], self.columns[layers] - blocks[:, 1])
        cost = np.cumsum((blocks[:, 3] - blocks[:, 2]) * columns)
        shares = cost[-1] * np.arange(1, n_threads) / n_threads
        middles = cost - np.diff(cost, prepend=0) / 2
        return np.array([0, *np.searchsorted(middles, shares), len(blocks)], np.int64)
