"""Predictions of fitted models, from whatever was prepared for the calls before.

A user may assign or edit ``coefs_`` and ``intercepts_`` at any time, so the parameters that an
engine has packed are compared with them before every use: that reads them once, as predicting a few
rows would.  Where the arithmetic is less than that, rows are predicted straight from the user's
arrays (`fastmlp.engine.cpu.rows`).

Tried and lost: packing on every call (digits, 64-100-10: 1.1 ms for any number of rows; 262144
features, 50 units, one sparse row: 366 ms).
"""

from collections.abc import Callable
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from scipy import sparse

from fastmlp.engine import Engine, get_comparison, get_engine, get_row_predictor
from fastmlp.engine.idle import IdleEngines
from fastmlp.network import Network

FEW_ROWS = 8  # whose arithmetic costs about as much as comparing all parameters
_FEW_PRODUCTS = 250_000  # that cost about as much as Python's part of a call of the engine


class _Packed:
    """An engine with the parameters of one model."""

    def __init__(self, network: Network, engine: Engine, dtype: np.dtype):
        self._network, self._engine, self._dtype = network, engine, dtype
        self._arrays: list[np.ndarray] = []
        self._is_same: Callable[[], bool] = bool  # False

    def predict(self, coefs, intercepts, X) -> np.ndarray:
        """Outputs for ``X`` by these parameters, which may be others than before."""
        given = [*coefs, *intercepts]
        same_arrays = len(given) == len(self._arrays) and all(map(is_, given, self._arrays))
        if not (same_arrays and self._is_same()):
            flat = self._network.flatten(coefs, intercepts, self._dtype)
            self._engine.set_parameters(flat)
            own_coefs, own_intercepts = self._network.unflatten(flat)
            self._arrays = given
            self._is_same = get_comparison(given, [*own_coefs, *own_intercepts])
        return self._engine.predict(X)


_PACKED = IdleEngines()
_ROWS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def row_predictor(model, is_current, network_of):
    """What predicts rows from a model's own arrays, None if it cannot read them.

    Parameters
    ----------
    model : estimator
        Fitted.
    is_current : callable
        Whether a predictor made earlier is for the model's present arrays and settings.
    network_of : callable
        Makes the model's `Network`.
    """
    predictor = _ROWS.get(model)
    if predictor is None or not is_current(predictor):
        predictor = get_row_predictor(network_of(), model.coefs_, model.intercepts_)
        if predictor is not None:
            _ROWS[model] = predictor
    return predictor


def is_little_work(network: Network, X) -> bool:
    """Whether predicting ``X`` from the user's arrays costs less than looking at all of them."""
    n_first = network.widths[0] * network.widths[1]
    n_products = X.nnz * network.widths[1] if sparse.issparse(X) else X.shape[0] * n_first
    n_products += X.shape[0] * (network.n_parameters - n_first)
    return n_products <= max(FEW_ROWS * network.n_parameters, _FEW_PRODUCTS)


def predict(model, network: Network, X, dtype: np.dtype) -> np.ndarray:
    """Outputs of a fitted model, by an engine on its device.

    Parameters
    ----------
    model : estimator
        Fitted.
    network : Network
        Its network.
    X : array, CSR matrix or GpuArray of shape (n_samples, n_features)
        Checked.
    dtype : numpy dtype
        In which to compute.

    Returns
    -------
    ndarray of shape (n_samples, n_outputs)
    """
    options = {name: getattr(model, name) for name in ("n_threads", "matmul_precision")}
    settings = model.device, network, dtype, *options.values()
    packed = _PACKED.take(model, settings)
    if packed is None:
        engine = get_engine(model.device, network, dtype=dtype, **options)
        packed = _Packed(network, engine, dtype)
    outputs = packed.predict(model.coefs_, model.intercepts_, X)
    _PACKED.put(model, settings, packed)
    return outputs
