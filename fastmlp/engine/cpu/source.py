"""Input rows in the form that the kernels follow."""

import numpy as np
from scipy import sparse


def address(array: np.ndarray | None) -> int:
    """Where an array's elements begin; 0 for None."""
    return 0 if array is None else array.__array_interface__["data"][0]


class Source:
    """Input rows as addresses that a kernel can follow, and the arrays that keep them alive.

    Attributes
    ----------
    fields : tuple of int
        1 for a CSR matrix, else 0; address of the values; bytes from row to row; addresses of the
        columns (int32) and of the rows' starts (int64).
    """

    def __init__(self, X, dtype: np.dtype):
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
            values, columns, row_starts = (address(array) for array in self._keep)
            self.fields = (1, values, 0, columns, row_starts)
        else:
            rows = np.asarray(X, dtype)
            if rows.size and rows.strides[1] != rows.itemsize and rows.shape[1] > 1:
                rows = np.ascontiguousarray(rows)
            self._keep = (rows,)
            self.fields = (0, address(rows), rows.strides[0], 0, 0)
