"""Sizes of tiles and blocks, and types: what the names in `kernels` for them are bound to."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import float32, float64, uint16, uint32

from fastmlp.engine.cuda import kernels, ptx

_WAITS = {
    2: ptx.wait_for_all_copies,
    3: ptx.wait_for_all_but_one,
    4: ptx.wait_for_all_but_two,
    8: ptx.wait_for_all_but_six,
}
_MATRICES = {  # how many, and whether terms follow each other in memory
    (2, True): ptx.load_2_matrices, (4, True): ptx.load_4_matrices,
    (2, False): ptx.load_2_transposed, (4, False): ptx.load_4_transposed,
}  # fmt: skip
_REAL = {"float32": float32, "float64": float64}


class Storage(NamedTuple):
    """How activations, deltas and the weights that products read lie in memory.

    Parameters
    ----------
    dtype : numpy dtype
        That of the network, or uint16 for the bits of bfloat16.
    read, write : callable
        Device functions, from and to the network's type.
    """

    dtype: np.dtype
    read: Callable
    write: Callable

    @property
    def group(self) -> int:
        """Elements in 16 bytes."""
        return 16 // self.dtype.itemsize

    def stride(self, width: int) -> int:
        """Of rows of so many elements, so that each begins at a multiple of 16 bytes."""
        return -(-width // self.group) * self.group

    def names(self) -> dict[str, Any]:
        """What names stand for in kernels that read or write activations and deltas."""
        return {"READ": self.read, "WRITE": self.write}


def storage_of(dtype: np.dtype, precision: str) -> Storage:
    """Of a network of this type whose products have this precision."""
    if precision == "medium":
        return Storage(np.dtype(np.uint16), kernels.read_bf16, kernels.write_bf16)
    return Storage(dtype, kernels.read, kernels.write)


def _operand(name: str, by_rows: bool, outer: int, tile: Any, pad: int, vector: int, threads: int
             ) -> dict[str, Any]:  # fmt: skip
    """An operand's tile in shared memory: rows as in global memory, with ``pad`` elements behind
    each, copied ``vector`` elements at a time.
    """
    rows, columns = (outer, tile.BK) if by_rows else (tile.BK, outer)
    copies = rows * columns // (vector * threads)
    assert copies * vector * threads == rows * columns
    assert columns % vector == 0
    return {
        f"ROWS_{name}": rows, f"COLUMNS_{name}": columns, f"PITCH_{name}": columns + pad,
        f"COPIES_{name}": copies, f"VECTOR_{name}": vector, f"{name}_BY_ROWS": by_rows,
        f"COPY_{name}": ptx.copy_element_async if vector == 1 else ptx.copy_vector_async,
    }  # fmt: skip


def _product_names(
    tile: Any, dtype: np.dtype, precision: str, by_rows: tuple[bool, bool],
    aligned: tuple[bool, bool], pad: Callable[[bool, int], int],
) -> dict[str, Any]:  # fmt: skip
    """What both kinds of tiles have in common; ``pad`` tells for an operand by rows or not, of so
    many rows and columns, the elements behind each row.
    """
    storage, outer = storage_of(dtype, precision), (tile.BM, tile.BN)
    group = storage.group
    names: dict[str, Any] = {
        "BM": tile.BM, "BN": tile.BN, "BK": tile.BK, "SLICES": tile.slices, "STAGES": tile.stages,
        "THREADS": tile.threads, "GROUP": group, "WAIT": _WAITS[tile.stages],
        "BLOCK": kernels.block_of_line,
        "STORED": uint16 if storage.dtype == np.uint16 else _REAL[dtype.name],
    } | storage.names()  # fmt: skip
    for name, each, n, is_aligned in zip("AB", by_rows, outer, aligned, strict=True):
        vector = group if is_aligned else 1
        names |= _operand(name, each, n, tile, pad(each, n), vector, tile.threads)
    return names


def shared_bytes(names: dict[str, Any], dtype: np.dtype) -> int:
    """Shared memory of a product: for all stages, and later for sums, which are ``dtype``."""
    stage = sum(names[f"ROWS_{name}"] * names[f"PITCH_{name}"] for name in "AB")
    stage *= names["STORED"].bitwidth // 8
    return max(names["STAGES"] * stage, names["SLICES"] * names["PASS"] * dtype.itemsize)


class Tile(NamedTuple):
    """Sizes of a product by FMAs: a block's tile of BM x BN x BK, and a thread's part, TM x TN."""

    BM: int
    BN: int
    BK: int
    TM: int
    TN: int
    slices: int = 1
    stages: int = 4

    @property
    def threads(self) -> int:
        return (self.BM // self.TM) * (self.BN // self.TN) * self.slices

    def names(
        self, dtype: np.dtype, precision: str, by_rows: tuple[bool, bool],
        aligned: tuple[bool, bool],
    ) -> dict[str, Any]:  # fmt: skip
        """What the kernel's names stand for.

        Parameters
        ----------
        dtype : numpy dtype
        precision : {'highest', 'high', 'medium'}
        by_rows : (bool, bool)
            Of either operand: whether terms follow each other in memory.
        aligned : (bool, bool)
            Whether each of its rows starts at a multiple of 16 bytes.
        """
        group = 16 // dtype.itemsize
        # a quarter of a warp reads 16 bytes of eight rows: from all banks
        names = _product_names(
            self, dtype, precision, by_rows, aligned, lambda in_rows, _: group if in_rows else 0
        )
        passed = self.BM // self.TM * self.BN
        return names | {
            "TM": self.TM, "TN": self.TN, "PART_A": self.TM * group, "PART_B": self.TN * group,
            "SUMS": self.TM * self.TN, "LINE": self.TN, "PASS": passed, "TERMS": group,
            "START": kernels.start, "MULTIPLY": kernels.multiply, "POSITION": kernels.position,
            "ROW": kernels.row_of_tile, "SEND": kernels.send,
        }  # fmt: skip


class MmaTile(NamedTuple):
    """Sizes of a product on tensor cores: a block's tile, and a warp's part of it, WM x WN."""

    BM: int
    BN: int
    BK: int
    WM: int
    WN: int
    slices: int = 1
    stages: int = 4

    @property
    def threads(self) -> int:
        return 32 * (self.BM // self.WM) * (self.BN // self.WN) * self.slices

    def names(
        self, dtype: np.dtype, precision: str, by_rows: tuple[bool, bool],
        aligned: tuple[bool, bool],
    ) -> dict[str, Any]:  # fmt: skip
        """See `Tile.names`; in 'medium' precision all rows are aligned."""
        high = precision == "high"
        mt, nt = self.WM // 16, self.WN // 8
        assert high or (all(aligned) and (nt == 1 or nt % 2 == 0))

        def pad(in_rows: bool, outer: int) -> int:
            # a warp's fragments, or eight rows of a matrix, lie in different banks
            if outer == 8 and not in_rows:
                return 0
            return 4 if high and in_rows else 8

        names = _product_names(self, dtype, precision, by_rows, aligned, pad)
        by_columns = not high and self.threads <= 4 * self.BN  # else a thread has few sums
        pitch = self.BN + 8 if by_columns else self.BN
        return names | {
            "SEND": kernels.send_columns if by_columns else kernels.send, "PITCH": pitch,
            "PASS": self.BM // self.WM * 16 * pitch,
            "WM": self.WM, "WN": self.WN, "MT": mt, "NT": nt, "PART_A": 4 * mt, "PART_B": 2 * nt,
            "SUMS": 4 * mt * nt, "LINE": 4 * nt, "OPERAND": uint32,
            "MULTIPLY": kernels.multiply_mma,
            "POSITION": kernels.position_mma, "ROW": kernels.row_of_tile_mma,
        } | (_tf32_names() if high else _bf16_names(by_rows, nt))  # fmt: skip


def _tf32_names() -> dict[str, Any]:
    return {
        "TERMS": 8, "START": kernels.start_tf32, "LOAD": kernels.load_tf32, "MMA": ptx.mma_tf32
    }  # fmt: skip


def _bf16_names(by_rows: tuple[bool, bool], nt: int) -> dict[str, Any]:
    return {
        "TERMS": 16, "START": kernels.start_bf16, "LOAD": kernels.load_bf16, "MMA": ptx.mma_bf16,
        "LOAD_A": _MATRICES[4, by_rows[0]], "LOAD_B": _MATRICES[min(2 * nt, 4), by_rows[1]],
    }  # fmt: skip


class RowTile(NamedTuple):
    """Sizes on the resident path: rows of a row tile, a thread's part of a product, TM x TN, and
    threads of a block, a power of two, and whole warps.
    """

    rows: int
    TM: int
    TN: int
    threads: int

    @property
    def large(self) -> bool:
        """Whether it is for batches of many rows for each multiprocessor."""
        return self.rows >= 32

    @property
    def pitch(self) -> int:
        """Elements of a column: columns side by side begin in different banks."""
        return self.rows if self.rows % 8 else self.rows + 4

    def in_place(self, of_score: bool) -> bool:
        """Whether deltas take the place of activations."""
        return self.large and not of_score

    @property
    def margin(self) -> int:
        """Columns behind the last one that are read."""
        return max(4, self.TM, self.TN)

    def names(self, dtype: np.dtype, of_score: bool) -> dict[str, Any]:
        """What the kernel's names stand for.

        Parameters
        ----------
        dtype : numpy dtype
        of_score : bool
            Whether the activation's derivative is worked out from the score.
        """
        lanes = 32
        while lanes * self.rows > self.threads and lanes > 1:
            lanes //= 2
        assert self.rows % self.TM == self.rows * lanes % 32 == 0
        assert self.rows <= self.threads
        return {
            "R": self.rows, "P": self.pitch, "TM": self.TM, "TN": self.TN, "VN": min(self.TN, 4),
            "SUMS": self.TM * self.TN, "PART_N": 4 * self.TN, "MARGIN": self.margin,
            "LANES": lanes, "IN_PLACE": self.in_place(of_score), "OF_SCORE": of_score,
            "THREADS": self.threads, "GROUP": 16 // dtype.itemsize,
        }  # fmt: skip


class Sizes(NamedTuple):
    """Tiles by FMAs and on tensor cores, in TF32 and in bfloat16, the largest first, those of rows
    on the resident path, the smallest first, and the threads per block of all other kernels: a
    power of two, and whole warps.
    """

    plain: tuple[Tile, ...]
    tf32: tuple[MmaTile, ...]
    bf16: tuple[MmaTile, ...]
    rows: tuple[RowTile, ...]
    threads: int

    def of(self, precision: str) -> tuple[Tile | MmaTile, ...]:
        """The tiles of products of this precision."""
        tiles: dict[str, tuple[Tile | MmaTile, ...]] = {
            "highest": self.plain, "high": self.tf32, "medium": self.bf16,
        }  # fmt: skip
        return tiles[precision]


# Small tiles have their threads share the terms, so that few rows and columns make many short
# products.  In bfloat16 shared memory could not keep up with the tensor cores if a warp's part of
# large tiles were less than 64 x 64.  All stages fit into the 99 KB that every GPU of compute
# capability 8.0 or newer has.
SIZES = {
    "float32": Sizes(
        plain=(
            Tile(128, 128, 16, 8, 8, stages=3),
            Tile(64, 64, 16, 8, 4, slices=2),
            Tile(16, 16, 32, 4, 4, slices=8, stages=8),
            Tile(16, 8, 64, 4, 4, slices=16),
        ),
        tf32=(
            MmaTile(128, 128, 16, 64, 32),
            MmaTile(64, 64, 32, 32, 32, slices=2),
            MmaTile(32, 32, 64, 16, 32, slices=4),
            MmaTile(16, 8, 64, 16, 8, slices=4),
        ),
        bf16=(
            MmaTile(128, 128, 32, 64, 64),
            MmaTile(64, 64, 64, 32, 32, slices=2),
            MmaTile(32, 32, 128, 16, 32, slices=4),
            MmaTile(16, 8, 128, 16, 8, slices=4),
        ),
        rows=(
            *(RowTile(rows, 4, 1, threads=512) for rows in (4, 8, 16)),
            RowTile(32, 4, 4, threads=512),
            RowTile(64, 4, 4, threads=512),
            RowTile(128, 8, 4, threads=512),
        ),
        threads=256,
    ),
    "float64": Sizes(
        plain=(Tile(64, 64, 8, 4, 4), Tile(16, 16, 32, 4, 4, slices=8, stages=8)),
        tf32=(),
        bf16=(),
        rows=(
            *(RowTile(rows, 4, 1, threads=256) for rows in (4, 8, 16)),
            RowTile(32, 4, 4, threads=256),
            RowTile(64, 4, 4, threads=256),
        ),
        threads=256,
    ),
}  # fmt: skip


def common_names(dtype: np.dtype, sizes: Sizes) -> dict[str, Any]:
    """What names stand for that most kernels use."""
    real = _REAL[dtype.name]
    return {"REAL": real, "OPERAND": real, "THREADS": sizes.threads}
