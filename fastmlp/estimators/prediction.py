"""Predictions of one model, from whatever was prepared for the calls before.

A user may edit ``coefs_`` and ``intercepts_`` in place at any time, so the parameters that an
engine has packed are compared with them before every use: that reads them once, as predicting a few
rows would.  Where the arithmetic is less than that, rows are predicted straight from the user's
arrays (`fastmlp.engine.cpu.rows`).

An engine serves one thread at a time: a call takes one out of those that wait, and threads that use
one model at once have one each.  A forked process begins without any, because an engine's threads
are not in it.

Tried and lost: packing on every call (digits, 64-100-10: 1.1 ms for any number of rows; 262144
features, 50 units, one sparse row: 366 ms).
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from fastmlp.engine import Engine, get_comparison, get_engine, get_row_predictor, predict_rows
from fastmlp.network import Network

FEW_ROWS = 8  # whose arithmetic costs about as much as comparing all parameters
_FEW_PRODUCTS = 80_000  # that cost about as much as Python's part of a call of the engine


class _Packed:
    """An engine with copies of a model's parameters."""

    def __init__(
        self, engine: Engine, network: Network, coefs: Sequence[np.ndarray],
        intercepts: Sequence[np.ndarray], dtype: np.dtype,
    ):  # fmt: skip
        self._engine, self._network, self._dtype = engine, network, dtype
        self._coefs, self._intercepts = coefs, intercepts
        self._flat = np.empty(0, dtype)
        self._is_same: Callable[[], bool] = bool  # False

    def predict(self, X: Any, *, checked: bool) -> np.ndarray | None:
        """Outputs; None if ``X``, unless it was checked, is not finite."""
        if not self._is_same():
            self._flat = self._network.flatten(self._coefs, self._intercepts, self._dtype)
            self._engine.set_parameters(self._flat)
            copies = self._network.unflatten(self._flat)
            self._is_same = get_comparison(
                [*self._coefs, *self._intercepts], [*copies[0], *copies[1]]
            )
        return self._engine.predict(X) if checked else self._engine.predict_if_finite(X)


def of_few_rows(predictors: "Sequence[Predictor]", X: np.ndarray) -> np.ndarray | None:
    """`Predictor.of_few_rows` of several models of one form, (n_models, n_rows, n_outputs)."""
    widths = predictors[0].widths
    if not all(one.widths == widths and one._reads(X) for one in predictors):
        return None
    return predict_rows([one.rows for one in predictors], X)


class Predictor:
    """Predicts with a model's arrays, edits in place included.

    Parameters
    ----------
    network : Network
    coefs, intercepts : sequence of ndarray
        The model's own.
    execution : dict
        Where and how to run; see `fastmlp.estimators.plan.execution`.
    """

    def __init__(
        self, network: Network, coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray],
        execution: dict[str, Any],
    ):  # fmt: skip
        self._network, self._coefs, self._intercepts = network, coefs, intercepts
        self._execution = execution
        self._on_cpu = execution["device"] == "cpu"
        self._idle: dict[np.dtype, list[_Packed]] = {}
        self._process = os.getpid()

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each layer, the features first."""
        return self._network.widths

    @cached_property
    def rows(self) -> Any:
        """What predicts rows from the model's own arrays; None if it cannot read them."""
        if not self._on_cpu:
            return None
        return get_row_predictor(self._network, self._coefs, self._intercepts)

    def dtype_for(self, X: Any) -> np.dtype:
        """The type to compute in: float32 if samples and parameters fit into it, else float64."""
        dtype = np.result_type(X.dtype, self._coefs[0].dtype)
        return np.dtype(np.float32 if dtype == np.float32 else np.float64)

    def of_few_rows(self, X: np.ndarray) -> np.ndarray | None:
        """Outputs for a plain array of a few rows; None if this takes more, or a look at ``X``.

        ``X`` has the model's features, but may not be finite.
        """
        return self.rows(X) if self._reads(X) else None

    def of_unchecked(self, X: np.ndarray) -> np.ndarray | None:
        """`of_few_rows` for any number of rows."""
        if len(X) > FEW_ROWS and X.dtype in (np.float32, np.float64):
            return self._outputs(X, checked=False)
        return self.of_few_rows(X)

    def _reads(self, X: np.ndarray) -> bool:
        """Whether `rows` can read a plain array as it is."""
        rows = self.rows
        return rows is not None and X.dtype == rows.dtype and X.strides[1] == X.itemsize

    def __call__(self, X: Any) -> np.ndarray:
        """Outputs.

        Parameters
        ----------
        X : array, CSR matrix or GpuArray of shape (n_samples, n_features)
            Checked.

        Returns
        -------
        ndarray of shape (n_samples, n_outputs)
        """
        outputs = self._outputs(X, checked=True)
        assert outputs is not None
        return outputs

    def _outputs(self, X: Any, *, checked: bool) -> np.ndarray | None:
        """See `of_unchecked`."""
        dtype = self.dtype_for(X)
        if self._is_little_work(X):
            rows = self.rows
            if rows is not None and rows.dtype == dtype:
                outputs = rows(X)
                if outputs is not None or not checked:
                    return outputs
        packed = self._take(dtype)
        outputs = packed.predict(X, checked=checked)
        self._idle.setdefault(dtype, []).append(packed)
        return outputs

    def _is_little_work(self, X: Any) -> bool:
        """Whether predicting from the user's arrays costs less than looking at all of them."""
        network = self._network
        n_first = network.widths[0] * network.widths[1]
        n_products = X.nnz * network.widths[1] if sparse.issparse(X) else X.shape[0] * n_first
        n_products += X.shape[0] * (network.n_parameters - n_first)
        return n_products <= max(FEW_ROWS * network.n_parameters, _FEW_PRODUCTS)

    def _take(self, dtype: np.dtype) -> _Packed:
        """An engine that nobody uses."""
        if self._process != os.getpid():
            self._idle, self._process = {}, os.getpid()
        try:
            return self._idle[dtype].pop()
        except LookupError:  # there is none, or another thread was faster
            engine = get_engine(network=self._network, dtype=dtype, **self._execution)
            return _Packed(engine, self._network, self._coefs, self._intercepts, dtype)
