"""CPU kernels: forward, backward and update of one network, and the epoch loop over them.

Shapes and choices are run-time integers, so one compilation per element type serves every
network.  Dispatch over activations, losses and optimizers is built from the tables of
`fastmlp.functions` and `fastmlp.optimizers`: one specialised loop per row, chosen by its code
outside the loop.

A batch is worked through in blocks of rows (`block`), whose activations and deltas live in a
workspace bounded by the block whatever the batch: gather -> forward -> loss -> backward, the
gradient summed over blocks; then one pass adds the penalty's gradient and updates the parameters
(the scale 1 / (sum of weights) is already in the deltas).

Matrix products go to SciPy's BLAS through `np.dot`.
"""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from fastmlp._jit import Entry, jit
from fastmlp.functions import ACTIVATIONS, LOSSES, OUT_ACTIVATIONS, exponential, logistic
from fastmlp.optimizers import OPTIMIZERS

SPARSE, ADDRESS, ROW_STRIDE, INDICES, INDPTR = range(5)
STOP, STEPS = range(2)


class Net(NamedTuple):
    """A network as integers: ``widths`` and ``offsets`` (n_layers,), and codes of the tables."""

    widths: np.ndarray
    offsets: np.ndarray
    activation: int
    out_activation: int
    loss: int


class Samples(NamedTuple):
    """What a kernel reads: see `fastmlp.engine.cpu.Source` for ``data``.

    ``targets`` (n_samples, n_outputs), ``classes`` (n_samples,) and ``weights`` (n_samples,) are
    empty where they are not used.
    """

    data: np.ndarray
    targets: np.ndarray
    classes: np.ndarray
    weights: np.ndarray


class Work(NamedTuple):
    """Workspace for blocks of ``block`` rows.

    ``places`` (2, n_layers + 1) tells where in ``memory`` each layer's activations and deltas
    start, per row of a block; what follows is room for one layer's gradient.  ``progress`` is
    [stop, steps]: a stop set from another thread ends the call at the next block.
    """

    places: np.ndarray
    block: int
    memory: np.ndarray
    progress: np.ndarray


@intrinsic
def _read(typingctx, address, index, like):
    """Element ``index`` of the array of ``like``'s type at ``address``.

    Reading input through its address instead of an array argument keeps one signature for
    writable, read-only, memory-mapped and row-strided input alike.
    """

    def codegen(context, builder, signature, args):
        element = context.get_value_type(like)
        pointer = builder.inttoptr(args[0], element.as_pointer())
        return builder.load(builder.gep(pointer, [args[1]]))

    return like(types.int64, types.int64, like), codegen


# --- dispatch built from the tables ---------------------------------------------------------


def _dispatch(loops):
    """``choose(code, *args)`` that runs the loop of that code; ``loops`` is [(code, loop)]."""
    (first_code, first_loop), *rest = loops
    if not rest:

        @jit
        def only(code, *args):
            return first_loop(*args)

        return only

    otherwise = _dispatch(rest)

    @jit
    def choose(code, *args):
        if code == first_code:
            return first_loop(*args)
        return otherwise(code, *args)

    return choose


def _activation_loop(function):
    value = jit(function)

    @jit
    def loop(z, bias):
        for i in range(z.shape[0]):
            for j in range(z.shape[1]):
                z[i, j] = value(z[i, j] + bias[j])

    return loop


def _derivative_loop(function):
    derivative = jit(function)

    @jit
    def loop(a, delta):
        for i in range(a.shape[0]):
            for j in range(a.shape[1]):
                delta[i, j] *= derivative(a[i, j])

    return loop


def _loss_loop(row):
    """Loop over a block: raw scores ``z`` become ``scale * weight * d loss / d z``.

    Returns the weighted sum of losses.
    """
    value = jit(row.value)
    gradient = jit(row.gradient or row.value)
    mean_over_outputs = row.mean_over_outputs

    @jit
    def row_loop(z, samples, order, start, scale, tiny):
        total = 0.0
        for i in range(z.shape[0]):
            sample = order[start + i]
            weight = samples.weights[sample] if samples.weights.size else type(tiny)(1)
            total += weight * value(z[i], samples.classes[sample], tiny)
            for k in range(z.shape[1]):
                z[i, k] *= weight * scale
        return total

    @jit
    def element_loop(z, samples, order, start, scale, tiny):
        total = 0.0
        for i in range(z.shape[0]):
            sample = order[start + i]
            weight = samples.weights[sample] if samples.weights.size else type(tiny)(1)
            for k in range(z.shape[1]):
                y = samples.targets[sample, k]
                total += weight * value(z[i, k], y, tiny)
                z[i, k] = weight * scale * gradient(z[i, k], y)
        return total / z.shape[1] if mean_over_outputs else total

    return row_loop if row.per_row else element_loop


def _update_loop(function):
    update = jit(function)

    @jit
    def loop(w, g, s0, s1, penalty, rate, c0, c1, c2):
        for i in range(w.size):
            w[i], s0[i], s1[i] = update(w[i], g[i] + penalty * w[i], s0[i], s1[i], rate, c0, c1, c2)

    return loop


@jit
def _softmax_loop(z, bias):
    for i in range(z.shape[0]):
        peak = z[i, 0] + bias[0]
        for k in range(z.shape[1]):
            z[i, k] += bias[k]
            if z[i, k] > peak or z[i, k] != z[i, k]:
                peak = z[i, k]
        total = z.dtype.type(0)
        for k in range(z.shape[1]):
            z[i, k] = np.exp(z[i, k] - peak)
            total += z[i, k]
        for k in range(z.shape[1]):
            z[i, k] /= total


_add_bias = _activation_loop(ACTIVATIONS["identity"].value)
_activate = _dispatch([(row.code, _activation_loop(row.value)) for row in ACTIVATIONS.values()])
_chain = _dispatch([(row.code, _derivative_loop(row.derivative)) for row in ACTIVATIONS.values()])
_loss = _dispatch([(row.code, _loss_loop(row)) for row in LOSSES.values()])
_update = _dispatch([(row.code, _update_loop(row.update)) for row in OPTIMIZERS.values()])
_out_activate = _dispatch(
    [
        (OUT_ACTIVATIONS["identity"], _add_bias),
        (OUT_ACTIVATIONS["logistic"], _activation_loop(logistic)),
        (OUT_ACTIVATIONS["softmax"], _softmax_loop),
        (OUT_ACTIVATIONS["exp"], _activation_loop(exponential)),
    ]
)


# --- pieces of one step ---------------------------------------------------------------------


@jit
def _weights(flat, layer, net):
    """Views ``W`` (fan_in, fan_out) and ``b`` (fan_out,) of one layer."""
    fan_in, fan_out = net.widths[layer], net.widths[layer + 1]
    start = net.offsets[layer]
    split = start + fan_in * fan_out
    return flat[start:split].reshape(fan_in, fan_out), flat[split : split + fan_out]


@jit
def _units(work, half, layer, n, net):
    """View (n, widths[layer]) of a layer's activations (half 0) or deltas (half 1)."""
    start = work.places[half, layer] * work.block
    return work.memory[start : start + n * net.widths[layer]].reshape(n, net.widths[layer])


@jit
def _gather(data, order, start, rows):
    """Copy dense samples ``order[start:start + n]`` into ``rows`` (n, n_features)."""
    like = rows.dtype.type(0)
    for i in range(rows.shape[0]):
        address = data[ADDRESS] + data[ROW_STRIDE] * order[start + i]
        for j in range(rows.shape[1]):
            rows[i, j] = _read(address, j, like)


@jit
def _sparse_product(data, order, start, W, out):
    """``out = X[order[start:start + n]] @ W`` for CSR ``X``."""
    like, one = W.dtype.type(0), np.int64(0)
    for i in range(out.shape[0]):
        row = order[start + i]
        out[i] = 0
        for p in range(_read(data[INDPTR], row, one), _read(data[INDPTR], row + 1, one)):
            value = _read(data[ADDRESS], p, like)
            column = _read(data[INDICES], p, np.int32(0))
            for k in range(out.shape[1]):
                out[i, k] += value * W[column, k]


@jit
def _sparse_gradient(data, order, start, delta, gradient):
    """``gradient += X[order[start:start + n]].T @ delta`` for CSR ``X``."""
    like, one = delta.dtype.type(0), np.int64(0)
    for i in range(delta.shape[0]):
        row = order[start + i]
        for p in range(_read(data[INDPTR], row, one), _read(data[INDPTR], row + 1, one)):
            value = _read(data[ADDRESS], p, like)
            column = _read(data[INDICES], p, np.int32(0))
            for k in range(delta.shape[1]):
                gradient[column, k] += value * delta[i, k]


@jit
def _forward(params, net, data, order, start, n, work):
    """Activations of ``n`` samples, up to the output layer's scores without their bias."""
    last = net.widths.size - 2
    if not data[SPARSE]:
        _gather(data, order, start, _units(work, 0, 0, n, net))
    for layer in range(last + 1):
        W, bias = _weights(params, layer, net)
        out = _units(work, 0, layer + 1, n, net)
        if layer == 0 and data[SPARSE]:
            _sparse_product(data, order, start, W, out)
        else:
            np.dot(_units(work, 0, layer, n, net), W, out)
        if layer < last:
            _activate(net.activation, out, bias)
    return _units(work, 0, last + 1, n, net)


@jit
def _scores(params, net, data, order, start, n, work):
    """Raw scores (n, n_outputs) of ``n`` samples."""
    z = _forward(params, net, data, order, start, n, work)
    _, bias = _weights(params, net.widths.size - 2, net)
    _add_bias(z, bias)
    return z


@jit
def _backward(params, grads, net, data, order, start, n, work, first):
    """Gradient of ``n`` samples from the deltas in the output layer's place.

    It replaces ``grads`` for the first block of a batch and is added for the others.
    """
    last = net.widths.size - 2
    delta = _units(work, 0, last + 1, n, net)
    for layer in range(last, -1, -1):
        W, _ = _weights(params, layer, net)
        dW, db = _weights(grads, layer, net)
        if first:
            db[:] = 0
        for i in range(n):
            for k in range(delta.shape[1]):
                db[k] += delta[i, k]
        if layer == 0 and data[SPARSE]:
            if first:
                dW[:] = 0
            _sparse_gradient(data, order, start, delta, dW)
            continue
        a = _units(work, 0, layer, n, net)
        if first:
            np.dot(a.T, delta, dW)
        else:
            room = work.places[1, last + 2] * work.block
            partial = work.memory[room : room + dW.size].reshape(dW.shape)
            np.dot(a.T, delta, partial)
            dW += partial
        if layer > 0:
            below = _units(work, 1, layer, n, net)
            np.dot(delta, W.T, below)
            _chain(net.activation, a, below)
            delta = below


@jit
def _weight_sum(weights, order, start, stop):
    """Sum of the samples' weights, their number without weights."""
    if weights.size == 0:
        return float(stop - start)
    total = 0.0
    for i in range(start, stop):
        total += weights[order[i]]
    return total


@jit
def _batch_gradient(params, grads, net, samples, order, start, stop, total_weight, work):
    """Gradient of the mean data loss of one batch into ``grads``; returns the summed loss."""
    tiny = np.finfo(params.dtype).eps
    scale = params.dtype.type(1 / total_weight)
    loss = 0.0
    for lo in range(start, stop, work.block):
        if work.progress[STOP]:
            break
        n = min(work.block, stop - lo)
        z = _scores(params, net, samples.data, order, lo, n, work)
        loss += _loss(net.loss, z, samples, order, lo, scale, tiny)
        _backward(params, grads, net, samples.data, order, lo, n, work, lo == start)
    return loss


def _sum_of_squares(w):
    squares = w.dtype.type(0)
    for i in range(w.size):
        squares += w[i] * w[i]
    return squares


_sum_of_squares = jit(_sum_of_squares, reassociate=True)


@jit
def _apply(params, grads, slots, net, optimizer, penalty, rate, constants):
    """Update every layer, weights with the penalty and biases without.

    Returns the sum of squared weights before the update.
    """
    kind = params.dtype.type
    c0, c1, c2 = kind(constants[0]), kind(constants[1]), kind(constants[2])
    m, v = slots[0], slots[1]
    squares = 0.0
    for layer in range(net.widths.size - 1):
        start, end = net.offsets[layer], net.offsets[layer + 1]
        split = end - net.widths[layer + 1]
        if penalty != 0:
            squares += _sum_of_squares(params[start:split])
        for lo, hi, decay in ((start, split, penalty), (split, end, 0.0)):
            _update(
                optimizer, params[lo:hi], grads[lo:hi], m[lo:hi], v[lo:hi], kind(decay),
                kind(rate), c0, c1, c2,
            )  # fmt: skip
    return squares


# --- entry points ---------------------------------------------------------------------------


def run_epoch(
    params, grads, slots, net, samples, order, batch_size, rates, alpha, optimizer, constants, work
):
    """One pass over ``order`` in steps of ``batch_size``, counted in ``work.progress``.

    Returns the sum of batch loss x batch length.  A batch whose weights sum to zero carries no
    information and is passed over.
    """
    accumulated = 0.0
    for step in range(rates.size):
        start = step * batch_size
        stop = min(start + batch_size, order.size)
        total_weight = _weight_sum(samples.weights, order, start, stop)
        if total_weight != 0.0:
            loss = _batch_gradient(
                params, grads, net, samples, order, start, stop, total_weight, work
            )
            if work.progress[STOP]:
                break
            squares = _apply(
                params, grads, slots, net, optimizer, alpha / total_weight, rates[step], constants
            )
            accumulated += (loss + 0.5 * alpha * squares) / total_weight * (stop - start)
        work.progress[STEPS] += 1
    return accumulated


def loss_and_gradient(params, grads, net, samples, order, alpha, work):
    """Loss over ``order`` as one batch, penalty included; the gradient goes to ``grads``."""
    total_weight = _weight_sum(samples.weights, order, 0, order.size)
    loss = _batch_gradient(params, grads, net, samples, order, 0, order.size, total_weight, work)
    squares = 0.0
    penalty = params.dtype.type(alpha / total_weight)
    for layer in range(net.widths.size - 1):
        split = net.offsets[layer + 1] - net.widths[layer + 1]
        squares += _sum_of_squares(params[net.offsets[layer] : split])
        for i in range(net.offsets[layer], split):
            grads[i] += penalty * params[i]
    return (loss + 0.5 * alpha * squares) / total_weight


def evaluate(params, net, samples, order, work):
    """Mean loss over ``order`` without penalty."""
    tiny = np.finfo(params.dtype).eps
    one = params.dtype.type(1)
    loss = 0.0
    for lo in range(0, order.size, work.block):
        if work.progress[STOP]:
            break
        n = min(work.block, order.size - lo)
        z = _scores(params, net, samples.data, order, lo, n, work)
        loss += _loss(net.loss, z, samples, order, lo, one, tiny)
    return loss / _weight_sum(samples.weights, order, 0, order.size)


def predict(params, net, data, order, work, out):
    """Outputs of the samples ``order`` into ``out`` (n_samples, n_outputs)."""
    last = net.widths.size - 2
    for lo in range(0, order.size, work.block):
        if work.progress[STOP]:
            break
        n = min(work.block, order.size - lo)
        z = _forward(params, net, data, order, lo, n, work)
        _, bias = _weights(params, last, net)
        _out_activate(net.out_activation, z, bias)
        out[lo : lo + n] = z


class Kernels:
    """The entry points for one element type, ``'float32'`` or ``'float64'``."""

    def __init__(self, dtype: str):
        self.run_epoch = Entry(run_epoch, dtype)
        self.loss_and_gradient = Entry(loss_and_gradient, dtype)
        self.evaluate = Entry(evaluate, dtype)
        self.predict = Entry(predict, dtype)


KERNELS = {dtype: Kernels(dtype) for dtype in ("float32", "float64")}
