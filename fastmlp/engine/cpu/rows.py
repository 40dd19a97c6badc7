"""Prediction of a few rows, straight from `coefs_` and `intercepts_`.

One row of a small network is a microsecond of arithmetic.  Packing parameters for the tiles, or any
Python around the call, would cost many times that, so these kernels read the user's arrays where
they lie: each layer is ``fan_in`` scaled additions of a row of ``W``.  `jit_function` is the same
code for use inside the user's own compiled functions.

Measured on one Zen 5 core, 64-100-10 in float32: 0.5 us inside compiled code, 6 us through
`predict_proba`.
"""

import numpy as np

from fastmlp._jit import Entry, jit
from fastmlp.engine.cpu import loops
from fastmlp.engine.cpu.loops import call
from fastmlp.engine.cpu.source import Source
from fastmlp.engine.cpu.vector import PRIMITIVES, copy_bytes, load, size_of, store
from fastmlp.network import Network

_exp = PRIMITIVES["exp"]


@jit
def _softmax(z, n, like):
    peak = load(z, 0, like)
    for k in range(1, n):
        value = load(z, k, like)
        if value > peak or value != value:
            peak = value
    total = type(like)(0)
    for k in range(n):
        value = _exp(load(z, k, like) - peak)
        store(z, k, value)
        total += value
    for k in range(n):
        store(z, k, load(z, k, like) / total)


@jit
def _add_rows(z, W, x, n, like):
    """``z += x[:4] @ W[:4]``: four terms for each trip of ``z`` through memory."""
    row = size_of(like) * n
    x0, x1, x2, x3 = load(x, 0, like), load(x, 1, like), load(x, 2, like), load(x, 3, like)
    for k in range(n):
        total = load(z, k, like) + x0 * load(W, k, like)
        total += x1 * load(W + row, k, like)
        total += x2 * load(W + 2 * row, k, like)
        store(z, k, total + x3 * load(W + 3 * row, k, like))


@jit
def _add_scaled_row(z, W, value, n, like):
    """``z += value W`` for one row of weights."""
    for k in range(n):
        store(z, k, load(z, k, like) + value * load(W, k, like))


@jit
def _dense_product(z, W, x, fan_in, fan_out, like):
    """``z += x @ W``."""
    size = size_of(like)
    in_fours = fan_in // 4 * 4
    for j in range(0, in_fours, 4):
        _add_rows(z, W + size * j * fan_out, x + size * j, fan_out, like)
    for j in range(in_fours, fan_in):
        _add_scaled_row(z, W + size * j * fan_out, load(x, j, like), fan_out, like)


@jit
def _one_row(arrays, widths, activations, normalise, link, softmax, x, columns, n_stored, work, out,
             like):  # fmt: skip
    """Outputs of the sample at address ``x`` to ``out``; ``work`` has room for two layers.

    Unless ``columns`` is 0, ``x`` holds the ``n_stored`` values of a row of a CSR matrix.
    """
    size = size_of(like)
    n_layers = widths.size - 1
    widest = np.int64(0)
    for layer in range(1, widths.size):
        widest = max(widest, widths[layer])
    source = x
    for layer in range(n_layers):
        fan_in, fan_out = widths[layer], widths[layer + 1]
        W, b = arrays[2 * layer], arrays[2 * layer + 1]
        last = layer == n_layers - 1
        z = out if last else work + size * widest * (layer % 2)
        copy_bytes(z, b, size * fan_out)
        if columns and layer == 0:
            for p in range(n_stored):
                row = W + size * fan_out * load(columns, p, np.int32(0))
                _add_scaled_row(z, row, load(x, p, like), fan_out, like)
        else:
            _dense_product(z, W, source, fan_in, fan_out, like)
        if not last and normalise:
            call(normalise, (z, np.int64(0), np.int64(0), np.int64(1), fan_out, like))
        if not last and activations[layer]:
            call(activations[layer], (z, z, np.int64(0), np.int64(1), fan_out, like))
        source = z
    if softmax:
        _softmax(out, widths[n_layers], like)
    elif link:
        call(link, (out, out, np.int64(0), np.int64(1), widths[n_layers], like))


def few_rows(arrays, widths, activations, normalise, link, softmax, X, stride, columns, row_starts,
             n_rows, work, out, like):  # fmt: skip
    """Outputs of ``n_rows`` rows; False if an input is not finite.

    The rows are ``stride`` bytes apart at address ``X``; or ``X`` holds the values of a CSR matrix
    with ``columns`` (int32) and ``row_starts`` (int64), which are 0 for dense rows.
    """
    size = size_of(like)
    for i in range(n_rows):
        row, n = X + i * stride, widths[0]
        first = np.int64(0)
        if columns:
            first = load(row_starts, i, np.int64(0))
            n = load(row_starts, i + 1, np.int64(0)) - first
            row = X + size * first
        check = type(like)(0)
        for j in range(n):
            check += load(row, j, like) * type(like)(0)
        if check != 0:  # infinity x 0 and NaN x 0 are NaN, which differs from 0
            return False
        where = columns + 4 * first if columns else columns
        _one_row(arrays, widths, activations, normalise, link, softmax, row, where, n, work,
                 out + i * size * widths[-1], like)  # fmt: skip
    return True


_FEW_ROWS = {dtype: Entry(few_rows, dtype) for dtype in ("float32", "float64")}


class RowPredictor:
    """Predicts a few rows from the arrays it was made with, edits in place included.

    Parameters
    ----------
    network : Network
    coefs, intercepts : list of ndarray
        C-contiguous, of one float type.
    """

    def __init__(self, network: Network, coefs, intercepts):
        self.arrays = [array for pair in zip(coefs, intercepts, strict=True) for array in pair]
        self.dtype = self.arrays[0].dtype
        name = self.dtype.name
        self.network = network
        self._like = self.dtype.type(0)
        self._kernel = _FEW_ROWS[name]
        self._widths = np.array(network.widths, np.int64)
        self.arguments = (
            np.array([array.ctypes.data for array in self.arrays], np.int64),
            self._widths,
            np.array([loops.activation(row, name) for row in network.hidden], np.int64),
            loops.normalise(name) if network.layer_norm else 0,
            loops.link(network.out_activation, name),
            network.out_activation == "softmax",
        )
        self.n_features = network.widths[0]
        self._n_work = 2 * max(network.widths[1:])

    @staticmethod
    def accepts(coefs, intercepts) -> bool:
        """Whether the kernels can read these arrays as they are."""
        dtypes = {array.dtype for array in (*coefs, *intercepts)}
        return dtypes in ({np.dtype(np.float32)}, {np.dtype(np.float64)}) and all(
            array.flags.c_contiguous and array.flags.aligned for array in (*coefs, *intercepts)
        )

    def __call__(self, X) -> np.ndarray | None:
        """Outputs (n_rows, n_outputs), or None if ``X`` is not finite.

        ``X`` must have this predictor's type, and contiguous rows or the form of CSR.
        """
        n_rows = X.shape[0]
        out = np.empty((n_rows, self.network.n_outputs), self.dtype)
        work = np.empty(self._n_work, self.dtype)
        source = Source(X, self.dtype)
        _, values, stride, columns, row_starts = source.fields
        finite = self._kernel(
            *self.arguments,
            values,
            stride,
            columns,
            row_starts,
            n_rows,
            work.__array_interface__["data"][0],
            out.__array_interface__["data"][0],
            self._like,
        )
        return out if finite else None

    def compiled(self):
        """A compiled function from one sample to its outputs, over a copy of the parameters."""
        parameters = [np.array(array) for array in self.arrays]
        addresses = np.array([array.ctypes.data for array in parameters], np.int64)
        widths, dtype = self._widths, self.dtype
        activations = self.arguments[2]
        normalise, link, softmax = map(int, self.arguments[3:])
        n_features, n_outputs = self.network.widths[0], self.network.n_outputs
        x_at = n_outputs + self._n_work
        n_buffer = x_at + n_features

        def predict(x):
            if x.size != n_features:
                raise ValueError("x must have as many elements as the model has features")
            buffer = np.empty(n_buffer, dtype)  # outputs, then workspace, then x in our type
            for j in range(n_features):
                buffer[x_at + j] = x[j]
            out, size = np.int64(buffer.ctypes.data), buffer.itemsize
            _one_row(addresses, widths, activations, normalise, link, softmax, out + x_at * size,
                     np.int64(0), n_features, out + n_outputs * size, out,
                     buffer.dtype.type(0))  # fmt: skip
            return buffer[:n_outputs]

        predict.__dict__["parameters"] = parameters  # the machine code knows their addresses
        return jit(predict)
