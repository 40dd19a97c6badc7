"""Prediction of a few rows from arrays as users hold them; see `fastmlp.engine.cpu.rows`."""

import ctypes

import numpy as np

from fastmlp.engine.cpu.blocks import Pairs, Rows
from fastmlp.engine.cpu.kernels.jit import Piece, call, jit, public, record
from fastmlp.engine.cpu.kernels.vector import PRIMITIVES, copy_bytes, load, size_of, store

REAL = np.float64  # bound to each element type (`jit.Piece`)
_rows, _pairs = record(Rows), record(Pairs)
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


def one_row(task, x, columns, n_stored, work, out):
    """Outputs of the sample at address ``x`` to ``out``; ``work`` has room for two layers.

    Unless ``columns`` is 0, ``x`` holds the ``n_stored`` values of a row of a CSR matrix.
    """
    like = REAL(0)
    t, size, none = _rows(task, 0), size_of(like), np.int64(0)
    widths, arrays, n_layers = t.widths, t.arrays, t.n_layers
    widest = none
    for layer in range(1, n_layers + 1):
        widest = max(widest, load(widths, layer, none))
    source = x
    for layer in range(n_layers):
        fan_in, fan_out = load(widths, layer, none), load(widths, layer + 1, none)
        W, b = load(arrays, 2 * layer, none), load(arrays, 2 * layer + 1, none)
        last = layer == n_layers - 1
        z = out if last else work + size * widest * (layer % 2)
        copy_bytes(z, b, size * fan_out)
        if columns and layer == 0:
            for p in range(n_stored):
                row = W + size * fan_out * load(columns, p, np.int32(0))
                _add_scaled_row(z, row, load(x, p, like), fan_out, like)
        else:
            _dense_product(z, W, source, fan_in, fan_out, like)
        if not last and t.normalise:
            call(t.normalise, (z, none, none, np.int64(1), fan_out, like))
        if not last and load(t.activations, layer, none):
            activation = load(t.activations, layer, none)
            call(activation, (z, z, none, np.int64(1), fan_out, like))
        source = z
    n_outputs = load(widths, n_layers, none)
    if t.softmax:
        _softmax(out, n_outputs, like)
    elif t.link:
        call(t.link, (out, out, none, np.int64(1), n_outputs, like))
    return none


def few_rows(thread, task):
    """Outputs of the rows; 0 if an input is not finite, else 1."""
    like = REAL(0)
    t, size, none = _rows(task, 0), size_of(like), np.int64(0)
    n_features, n_outputs = load(t.widths, 0, none), load(t.widths, t.n_layers, none)
    columns, starts, stride, values = t.columns, t.row_starts, t.row_stride, t.values
    for i in range(t.n_rows):
        row, n, where = values + i * stride, n_features, none
        if t.sparse:
            first = load(starts, i, none)
            n = load(starts, i + 1, none) - first
            row, where = values + size * first, columns + 4 * first
        check = REAL(0)
        for j in range(n):
            check += load(row, j, like) * REAL(0)
        if check != 0:  # infinity x 0 and NaN x 0 are NaN, which differs from 0
            return 0.0
        call(t.one_row, (task, row, where, n, t.work, t.out + i * size * n_outputs))
    return 1.0


def same(thread, pairs):
    """Whether arrays hold the bits of their copies; 1 if they do."""
    p, none = _pairs(pairs, 0), np.int64(0)
    for i in range(p.n):
        array, other = load(p.arrays, i, none), load(p.copies, i, none)
        differences = np.int32(0)
        for j in range(load(p.sizes, i, none)):
            differences |= load(array, j, np.int32(0)) ^ load(other, j, np.int32(0))
        if differences != 0:
            return 0.0
    return 1.0


PIECES = {
    "same": Piece(same, "iid"),
    "few_rows": Piece(few_rows, "iid"),
    "one_row": Piece(one_row, "iiiiiii"),
}


_ONE_ROW = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 6)


def compiled_predictor(task: int, address: int, n_features: int, n_outputs: int, n_work: int,
                       dtype):  # fmt: skip
    """A compiled function from one sample to its outputs, for use in compiled code.

    Numba does not cache code that calls a function of ctypes, so none outlives these addresses.

    Parameters
    ----------
    task, address : int
        Addresses of a block of `Rows`, which must stay, and of the piece ``one_row``.
    n_features, n_outputs, n_work : int
    dtype : numpy dtype
    """
    outputs_of = _ONE_ROW(address)
    x_at = n_outputs + n_work
    n_buffer = x_at + n_features

    def predict(x):
        if x.size != n_features:
            raise ValueError("x must have as many elements as the model has features")
        buffer = np.empty(n_buffer, dtype)  # outputs, then workspace, then x in our type
        for j in range(n_features):
            buffer[x_at + j] = x[j]
        out, size = buffer.ctypes.data, buffer.itemsize
        outputs_of(task, out + x_at * size, 0, n_features, out + n_outputs * size, out)
        return buffer[:n_outputs]

    return public(predict)
