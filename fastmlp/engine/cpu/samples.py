"""Samples, targets and weights in the form that the kernels follow."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastmlp.engine.cpu.source import Source, address
from fastmlp.functions import Loss
from fastmlp.objective import Objective

_ORDER = np.arange(4096)  # NumPy takes longer to make a short one than the kernel for a row


def is_fused(loss: Loss) -> bool:
    """Whether the kernel works out this loss while it works out softmax."""
    return loss.per_row and not loss.of_probability


class Samples:
    """See `fastmlp.engine.place`.  Nothing of it changes once it is made.

    Attributes
    ----------
    n_samples, n_features : int
    dtype : numpy dtype
    objective : Objective or None
        That of the targets; None without them.
    sparse : bool
        Whether the samples are a CSR matrix.
    fields : dict
        For a `fastmlp.engine.cpu.blocks.Task`.
    """

    def __init__(
        self, X: Any, y: np.ndarray | None = None, sample_weight: np.ndarray | None = None, *,
        dtype: DTypeLike, objective: Objective | None = None, rows: np.ndarray | None = None,
    ):  # fmt: skip
        if rows is not None:
            X, y, sample_weight = (
                None if array is None else array[rows] for array in (X, y, sample_weight)
            )
        self.n_samples, self.n_features = X.shape
        self.dtype, self.objective = np.dtype(dtype), None if y is None else objective
        self._source = Source(X, self.dtype)
        self.sparse = self._source.sparse
        classes = targets = self._weights = None
        if y is not None:
            assert objective is not None
            if is_fused(objective.row):
                classes = np.ascontiguousarray(y, np.int64)
            else:
                targets = np.ascontiguousarray(objective.soft_targets(y), self.dtype)
        if sample_weight is not None:
            self._weights = np.ascontiguousarray(sample_weight, self.dtype)
        self._keep = classes, targets
        self.fields = self._source.fields | {
            "targets": address(targets), "classes": address(classes),
            "weights": address(self._weights),
        }  # fmt: skip

    @cached_property
    def natural_order(self) -> np.ndarray:
        """All rows, as they come; not to be changed."""
        n = self.n_samples
        return _ORDER[:n] if n <= _ORDER.size else np.arange(n)

    def weight_of(self, rows: np.ndarray) -> float:
        """Sum of the weights of some rows, their number without weights."""
        if self._weights is None:
            return float(rows.size)
        return float(self._weights[rows].sum(dtype=np.float64))

    @cached_property
    def total_weight(self) -> float:
        if self._weights is None:
            return self.n_samples
        return self._weights.sum(dtype=np.float64)
