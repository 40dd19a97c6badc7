"""Input rows in the form that the kernels follow."""

import ctypes
from typing import Any

import numpy as np
from scipy import sparse


def address(array: np.ndarray | ctypes.Array | None) -> int:
    """Where an array's elements begin, NumPy's or one of ctypes; 0 for None."""
    if array is None:
        return 0
    if isinstance(array, ctypes.Array):
        return ctypes.addressof(array)
    try:  # a third of the time that NumPy's own answer takes
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read-only, empty, or in strides
        return array.__array_interface__["data"][0]


class Source:
    """Input rows as addresses that a kernel can follow, and the arrays that keep them alive.

    Attributes
    ----------
    sparse : bool
        Whether it is a CSR matrix.
    fields : dict
        For a `fastmlp.engine.cpu.blocks.Task`.
    """

    def __init__(self, X: Any, dtype: np.dtype):
        self.n_samples = X.shape[0]
        self.sparse = sparse.issparse(X)
        self._keep: tuple[np.ndarray, ...]
        if self.sparse:
            X.check_format(full_check=True)  # the kernels trust the indices
            self._keep = (
                np.ascontiguousarray(X.data, dtype),
                np.ascontiguousarray(X.indices, np.int32),
                np.ascontiguousarray(X.indptr, np.int64),
            )
            row_stride = 0
        else:
            rows = np.asarray(X, dtype)
            if rows.size and rows.strides[1] != rows.itemsize and rows.shape[1] > 1:
                rows = np.ascontiguousarray(rows)
            self._keep, row_stride = (rows,), rows.strides[0]
        values, columns, row_starts = (*map(address, self._keep), 0, 0)[:3]
        self.fields = {
            "sparse": self.sparse, "values": values, "row_stride": row_stride, "columns": columns,
            "row_starts": row_starts,
        }  # fmt: skip
