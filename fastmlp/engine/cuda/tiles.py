"""Sizes of tiles and blocks: what the names in `kernels` that stand for them are bound to."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numba import float32, float64, uint32

from fastmlp.engine.cuda import kernels, ptx


class Tile(NamedTuple):
    """Sizes of a product by FMAs: a block's tile of BM x BN x BK, and a thread's part, TM x TN."""

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
        return self._asdict() | _shared(self) | {
            "THREADS": self.threads, "PART_A": self.TM, "PART_B": self.TN,
            "SUMS": self.TM * self.TN, "LINE": self.TN, "TERMS": 1,
            "MULTIPLY": kernels.multiply, "PLACE": kernels.place,
        }  # fmt: skip


class MmaTile(NamedTuple):
    """Sizes of a product on tensor cores: a block's tile, and a warp's part of it, WM x WN.

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
        mt, nt = self.WM // 16, self.WN // 8
        return padded | _shared(SimpleNamespace(**padded)) | {
            "THREADS": self.threads, "MT": mt, "NT": nt, "PART_A": 4 * mt, "PART_B": 2 * nt,
            "SUMS": 4 * mt * nt, "LINE": 4 * nt, "OPERAND": uint32, "TERMS": 8 if high else 16,
            "MULTIPLY": kernels.multiply_mma, "PLACE": kernels.place_mma,
            "LOAD": kernels.load_tf32 if high else kernels.load_bf16,
            "MMA": ptx.mma_tf32 if high else ptx.mma_bf16,
        }  # fmt: skip


def _shared(tile: Tile | SimpleNamespace) -> dict[str, int]:
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

_REAL = {"float32": float32, "float64": float64}


def common_names(dtype: np.dtype, sizes: Sizes) -> dict[str, Any]:
    """What names stand for that most kernels use."""
    real = _REAL[dtype.name]
    return {"REAL": real, "OPERAND": real, "THREADS": sizes.threads}
