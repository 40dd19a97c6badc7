"""The epoch kernel: one function, run by T threads at once, over packed parameters.

A step has two halves with a barrier after each.  First every thread takes a share of the batch's
rows through the network and back: gather -> forward -> loss -> input gradients, in slabs of rows
that stay in its cache.  Then the weight gradient is shared out by pieces of its *output*
(`Layout.units`); each tile of it goes to a scratch in L1, where the optimizer consumes it at once,
so that gradients never reach memory.  Batches of more than one block of rows, and the first layer
of sparse input, sum their gradient in memory first.

Results have the same bits for every T: which rows share a tile never changes the order of a sum,
losses are kept per row and penalties per unit, and thread 0 adds both up in one order.

Sizes and offsets are run-time integers and formulas are called by address (`loops`), so one
compilation per element type serves every network.  ReLU and its derivative are fused into the
tiles; the other activations are a second pass over a slab, which costs about 1 % of a step.

Floor: 2 n (3 sum(fan_in fan_out) - fan_in0 fan_out0) flop per epoch over the FMA rate.  What keeps
an epoch from it, on one Zen 3 core: wide (84 % of the rate) streams 11 MB of weights from L3 for
every slab and reads and writes 40 MB of parameters and state per step; mnist-like (84 %) is one
third weight gradients of 128 terms; digits and california (60 and 69 %) spend 18 and 11 % outside
products, which reach 80 to 88 % where they are deep and half of it for the last layer; tiny (40 %)
spends a third on loss, optimizer and transposed copy, and pads 20, 33 and 2 to whole vectors.  A
second thread has to fetch what the first has just written: all parameters, and half of the
activations and deltas.

Tried and lost: BLAS (SciPy's, from inside the kernel: calls of microseconds around microseconds of
work, and no fusion); an optimizer pass of its own after the gradient (twice the memory traffic); a
gradient per chunk of rows, summed over the chunks, so that threads meet once less (digits 0.65 to
0.63 ms on two threads, but 7 % slower on one, and the same on california); huge pages (nothing);
blocks of 128 and 192 terms (nothing); slivers where a panel serves few others (mnist-like 3 to 5 %
slower).
"""

from typing import NamedTuple

import numpy as np

from fastmlp._jit import Entry, jit
from fastmlp.engine.cpu.layout import MAX_UNIT_ROWS
from fastmlp.engine.cpu.loops import call
from fastmlp.engine.cpu.stations import stand_by
from fastmlp.engine.cpu.tiles import (
    MAX_ROWS,
    N_VECTORS,
    PLAIN,
    RELU,
    RELU_DERIVATIVE,
    dots,
    softmax,
    tile_address,
    tiles_at,
    transpose,
)
from fastmlp.engine.cpu.vector import (
    VECTOR_BYTES,
    atomic_add,
    atomic_load,
    copy_bytes,
    load,
    pause,
    prefetch_for_writing,
    size_of,
    sleep_thread,
    store,
    yield_thread,
)

# Rows that a thread takes through all layers at once: few, so that they stay in L1 and L2, but in
# training more if each slab has to fetch the parameters from L3.
SLAB, LARGE_SLAB = 8 * MAX_ROWS[-1], 264
# Cutting activations into slivers pays if they serve many panels and would not fit in L1.
CUT_PANELS, CUT_ROWS = 16, 256
SLIVER_ROWS = MAX_UNIT_ROWS + MAX_ROWS[-1]  # no unit's slivers have more columns
_MAX_TERMS = 256  # of a product at a time: the part of a panel that stays in L1
STOP, STEPS, DECISION, ABORT, FIRST_STEP = range(5)
_SPINS = 300  # before a waiting thread offers its processor to others
_YIELDS = 200  # before it goes to sleep


LAYER_FIELDS = (
    "widths",
    "strides",
    "rows",
    "rows_transposed",
    "weights",
    "transposed",
    "activations",
    "slopes",
    "normalised",
    "deltas",
    "relu",
    "activation",
    "derivative",
    "dropout",
    "threshold",
)
(
    WIDTHS,
    STRIDES,
    ROWS,
    ROWS_TRANSPOSED,
    WEIGHTS,
    TRANSPOSED,
    ACTIVATIONS,
    SLOPES,
    NORMALISED,
    DELTAS,
    IS_RELU,
    ACTIVATION_LOOP,
    DERIVATIVE_LOOP,
    DROPOUT_LOOP,
    THRESHOLD,
) = range(len(LAYER_FIELDS))


class Net(NamedTuple):
    """A network's sizes and offsets, the addresses of its loops and tiles, and flags.

    ``layers`` is one table, of shape (15, n_layers + 1), because each array of its own is seven
    more arguments of every call (with sixteen arrays small networks took 17 % longer).  It holds
    widths, strides, rows and places of parameters (see `Layout`); the places in the workspace of
    activations, slopes, scores after layer normalisation, and deltas; and for each hidden layer,
    whether relu is fused into the tiles, the addresses of the loops of activation, derivative and
    dropout, and dropout's threshold.

    The output layer's deltas take the place of its activations, and the slopes (what the derivative
    is made of) are the activations themselves unless the derivative is a function of the score, or
    the layer has dropout.  The address of a loop that is not needed is 0.  ``loss_divisor``
    averages a loss over outputs.  ``slab`` is the number of rows that training takes through all
    layers at once.
    """

    layers: np.ndarray
    dropout_scale: np.ndarray
    dropout_seed: int
    normalise: int
    normalise_derivative: int
    softmax: int
    link: int
    loss: int
    loss_divisor: int
    slab: int
    tiles: int


class Memory(NamedTuple):
    """Addresses: packed parameters and state, the workspace, and small per-row arrays.

    Softmax needs ``sums`` and ``peaks``, one number per row; losses other than `log_loss` need
    ``scores``, ``targets``, ``constants`` and ``values``, one per row and output.
    """

    parameters: int
    transposed: int
    first_slot: int
    second_slot: int
    average: int
    gradient: int
    work: int
    zeros: int
    sums: int
    peaks: int
    scores: int
    targets: int
    constants: int
    values: int
    scales: int
    losses: int
    scratch: int
    slivers: int
    squares: int
    norms: int
    progress: int
    barrier: int


class Update(NamedTuple):
    """What happens once a unit's gradient is complete.

    Parameters
    ----------
    loop : int
        Address of the optimizer's loop, or of the one that only completes the gradient.
    training : bool
        Which of the two it is.
    clipped : int
        Address of the optimizer's loop if it has to wait for the norm of the whole gradient.
    squares, scale : int
        Addresses of the loops that sum squares of a gradient and scale it.
    max_norm : float
    average : int
        Address of the loop that averages parameters over steps, or 0.
    average_rate : float
        One minus the average's decay.
    """

    loop: int
    training: bool
    clipped: int
    squares: int
    scale: int
    max_norm: float
    average: int
    average_rate: float


class Samples(NamedTuple):
    """Addresses of the data; 0 where there is none.

    ``values`` are dense rows ``row_stride`` bytes apart, or the values of a CSR matrix with
    ``columns`` (int32) and ``row_starts`` (int64).  ``order`` (int64) lists the rows to visit.
    """

    sparse: int
    values: int
    row_stride: int
    columns: int
    row_starts: int
    targets: int
    classes: int
    weights: int
    order: int


# --- small helpers ----------------------------------------------------------------------------


@jit
def _lanes(like):
    return VECTOR_BYTES // size_of(like)


@jit
def _padded(n, like):
    """``n`` rounded up to whole vectors."""
    return (n + _lanes(like) - 1) // _lanes(like) * _lanes(like)


@jit
def _panel_width(column, padded, like):
    return min(N_VECTORS * _lanes(like), padded - column)


@jit
def _split(rows, vectors):
    """(number of tiles, rows of a tile, how many of the first have one more)."""
    most = MAX_ROWS[0] if vectors == 1 else MAX_ROWS[1]
    n_tiles = (rows + most - 1) // most
    height = rows // n_tiles
    return n_tiles, height, rows - n_tiles * height


@jit
def _product(tiles, rows, vectors, A, sliver, row_stride, column_stride, B, B_stride, init,
             init_stride, C, C_stride, terms, epilogue, aux, size):  # fmt: skip
    """``C = epilogue(init + A @ B)`` for one panel, ``vectors`` wide; strides in elements.

    Many terms are taken in blocks, between which sums rest in ``C``; that changes no bit of them.
    ``sliver`` is the size of a sliver if ``A`` was cut into such (`_cut`), otherwise 0.
    """
    n_tiles, height, n_higher = _split(rows, vectors)
    n_blocks = (terms + _MAX_TERMS - 1) // _MAX_TERMS
    skip = n_higher * (height + 1)
    hop = sliver if sliver else height * row_stride
    higher_hop = sliver if sliver else hop + row_stride
    for block in range(n_blocks):
        k = block * terms // n_blocks
        n_terms = (block + 1) * terms // n_blocks - k
        A_block, B_block = A + size * k * column_stride, B + size * k * B_stride
        last = epilogue if block == n_blocks - 1 else PLAIN
        if n_higher:
            tiles_at(tiles, height + 1, vectors, n_higher, A_block, higher_hop, row_stride,
                     column_stride, B_block, B_stride, init, init_stride, C, C_stride, n_terms,
                     last, aux)  # fmt: skip
        tiles_at(tiles, height, vectors, n_tiles - n_higher, A_block + size * n_higher * higher_hop,
                 hop, row_stride, column_stride, B_block, B_stride,
                 init + size * skip * init_stride, init_stride, C + size * skip * C_stride,
                 C_stride, n_terms, last, aux + size * skip * C_stride)  # fmt: skip
        init, init_stride = C, C_stride


@jit
def _cut(A, stride, terms, columns, slivers, like):
    """Copy columns of ``A`` into slivers: one for each tile of `_product`, two vectors wide."""
    size = size_of(like)
    n_tiles, height, n_higher = _split(columns, 2)
    for k in range(terms):
        source, target = A + size * k * stride, slivers + size * k * MAX_ROWS[1]
        for t in range(n_tiles):
            n = height + (t < n_higher)
            for j in range(n):
                store(target, j, load(source, j, like))
            source += size * n
            target += size * terms * MAX_ROWS[1]


@jit
def _wait(memory, n_threads, count):
    """Meet the other threads for the ``count``-th time; False if they will not come.

    Waiting threads spin, then yield, then sleep: Linux may take no notice of a yield until the
    next clock tick, 4 ms later, although the thread that is waited for is on the same processor.
    """
    if n_threads > 1:
        atomic_add(memory.barrier, 1)
        spins = 0
        while atomic_load(memory.barrier) < count * n_threads:
            spins += 1
            if spins < _SPINS:
                pause()
            elif atomic_load(memory.progress + 8 * ABORT):
                return False
            elif spins < _SPINS + _YIELDS:
                yield_thread()
            else:
                sleep_thread(np.uint32(1))
    return True


# --- first half of a step: rows ---------------------------------------------------------------


@jit
def _gather(samples, start, first, rows, A, stride, width, like):
    """Copy dense samples to ``A``, and the constant 1 of the bias behind each."""
    size = size_of(like)
    for i in range(rows):
        sample = load(samples.order, start + first + i, np.int64(0))
        row = A + i * stride * size
        copy_bytes(row, samples.values + sample * samples.row_stride, width * size)
        store(row, width, type(like)(1))


@jit
def _sparse_rows(samples, start, first, rows, W, bias, out, stride, width, like):
    """One panel of the first layer's product for sparse samples."""
    size = size_of(like)
    for i in range(rows):
        sample = load(samples.order, start + first + i, np.int64(0))
        row = out + i * stride * size
        copy_bytes(row, bias, width * size)
        begin = load(samples.row_starts, sample, np.int64(0))
        end = load(samples.row_starts, sample + 1, np.int64(0))
        for p in range(begin, end):
            value = load(samples.values, p, like)
            weights = W + load(samples.columns, p, np.int32(0)) * width * size
            for k in range(width):
                store(row, k, load(row, k, like) + value * load(weights, k, like))


@jit
def _is_narrow(net, layer, like):
    """Whether a layer has so few outputs that most of a panel would be padding."""
    return layer > 0 and not net.softmax and 4 * net.layers[WIDTHS, layer + 1] <= _lanes(like)


@jit
def _narrow_forward(net, memory, layer, rows, A, out, like):
    """`_forward_layer` for a narrow layer, output by output, with the transposed copy."""
    size, lanes = size_of(like), _lanes(like)
    fan_in = net.layers[WIDTHS, layer]
    n_pieces = _padded(fan_in, like) // (N_VECTORS * lanes)
    hop = N_VECTORS * lanes * net.layers[ROWS_TRANSPOSED, layer]
    W = memory.transposed + size * net.layers[TRANSPOSED, layer]
    bias = memory.parameters + size * (net.layers[WEIGHTS, layer] + fan_in * lanes)
    for k in range(net.layers[WIDTHS, layer + 1]):
        tail = 0
        if _padded(fan_in, like) > n_pieces * N_VECTORS * lanes:
            tail = W + size * (n_pieces * hop + k * lanes)
        dots(A, net.layers[STRIDES, layer], rows, W + size * k * N_VECTORS * lanes, hop, n_pieces,
             tail, bias + size * k, out + size * k, net.layers[STRIDES, layer + 1],
             like)  # fmt: skip


@jit
def _normalise(net, layer, rows, out, like):
    """Layer normalisation of one layer's scores, kept for the backward pass if there is one."""
    kept = np.int64(0)
    if net.normalise_derivative:
        kept = out + size_of(like) * (
            net.layers[NORMALISED, layer + 1] - net.layers[ACTIVATIONS, layer + 1]
        )
    arguments = (
        out,
        kept,
        net.layers[STRIDES, layer + 1],
        rows,
        net.layers[WIDTHS, layer + 1],
        like,
    )
    call(net.normalise, arguments)


@jit
def _drop(net, layer, step, row, rows, out, slopes, like):
    """Dropout of one layer's outputs, from row ``row`` of the batch on."""
    stride, width = net.layers[STRIDES, layer + 1], net.layers[WIDTHS, layer + 1]
    call(net.layers[DROPOUT_LOOP, layer], (
        out, slopes, stride, rows, width, net.dropout_seed, step, layer, row,
        net.layers[THRESHOLD, layer], type(like)(net.dropout_scale[layer]),
    ))  # fmt: skip


@jit
def _forward_layer(net, memory, samples, layer, step, begin, start, first, rows, A, out, slopes,
                   like):  # fmt: skip
    """``out = activation(A @ W + b)`` for ``rows`` rows; raw scores for the last layer."""
    size, lanes = size_of(like), _lanes(like)
    fan_in, fan_out = net.layers[WIDTHS, layer], net.layers[WIDTHS, layer + 1]
    stride, out_stride = net.layers[STRIDES, layer], net.layers[STRIDES, layer + 1]
    padded = _padded(fan_out, like)
    hidden = layer < net.layers.shape[1] - 2
    if not hidden and _is_narrow(net, layer, like):
        _narrow_forward(net, memory, layer, rows, A, out, like)
        return
    epilogue = RELU if hidden and net.layers[IS_RELU, layer] else PLAIN
    sparse = layer == 0 and samples.sparse
    for column in range(0, padded, N_VECTORS * lanes):
        width = _panel_width(column, padded, like)
        W = memory.parameters + size * (
            net.layers[WEIGHTS, layer] + column * net.layers[ROWS, layer]
        )
        bias = W + size * fan_in * width
        if sparse:
            _sparse_rows(
                samples, start, first, rows, W, bias, out + size * column, out_stride, width, like
            )
            continue
        C = out + size * column
        _product(net.tiles, rows, width // lanes, A, 0, stride, 1, W, width, bias, 0, C, out_stride,
                 fan_in, epilogue, C, size)  # fmt: skip
    if hidden:
        if net.normalise:
            _normalise(net, layer, rows, out, like)
        if net.layers[ACTIVATION_LOOP, layer] and (sparse or not net.layers[IS_RELU, layer]):
            call(net.layers[ACTIVATION_LOOP, layer], (out, slopes, out_stride, rows, padded, like))
        if net.layers[DROPOUT_LOOP, layer]:
            _drop(net, layer, step, start - begin + first, rows, out, slopes, like)
        for i in range(rows):
            store(out, i * out_stride + fan_out, type(like)(1))


@jit
def _forward(net, memory, samples, step, begin, start, first, rows, place, like):
    """Take samples ``start + first ...`` through all layers; returns where their scores are.

    ``place`` is their first row in the workspace; ``step``, and the ``begin`` of its batch, are for
    dropout only.
    """
    size = size_of(like)
    A = memory.work + size * (net.layers[ACTIVATIONS, 0] + place * net.layers[STRIDES, 0])
    if not samples.sparse:
        _gather(samples, start, first, rows, A, net.layers[STRIDES, 0], net.layers[WIDTHS, 0], like)
    for layer in range(net.layers.shape[1] - 1):
        skip = place * net.layers[STRIDES, layer + 1]
        out = memory.work + size * (net.layers[ACTIVATIONS, layer + 1] + skip)
        slopes = memory.work + size * (net.layers[SLOPES, layer + 1] + skip)
        _forward_layer(net, memory, samples, layer, step, begin, start, first, rows, A, out, slopes,
                       like)  # fmt: skip
        A = out
    return A


@jit
def _softmax_head(net, memory, samples, order, rows, place, z, tiny):
    """`_head` for the loss that is fused with softmax."""
    size = size_of(tiny)
    stride, padded = net.layers[STRIDES, -1], _padded(net.layers[WIDTHS, -1], tiny)
    scales, losses = memory.scales + size * place, memory.losses + size * place
    sums, peaks = memory.sums + size * place, memory.peaks + size * place
    for i in range(rows):
        label = load(samples.classes, load(order, i, np.int64(0)), np.int64(0))
        store(losses, i, load(z, i * stride + label, tiny))
    softmax(z, stride, rows, padded, scales, sums, peaks, tiny)
    for i in range(rows):
        label = load(samples.classes, load(order, i, np.int64(0)), np.int64(0))
        at = i * stride + label
        store(z, at, load(z, at, tiny) - load(scales, i, tiny))
        store(losses, i, load(losses, i, tiny) - load(peaks, i, tiny))
    call(net.loss, (rows, sums, losses, tiny))


@jit
def _elementwise_head(net, memory, samples, order, rows, place, z, tiny):
    """`_head` for all other losses, whose loop runs over all scores in a row."""
    size = size_of(tiny)
    stride, n_outputs = net.layers[STRIDES, -1], net.layers[WIDTHS, -1]
    padded = _padded(n_outputs, tiny)
    skip = size * place * n_outputs
    scores, targets, values = memory.scores + skip, memory.targets + skip, memory.values + skip
    for i in range(rows):
        row, at = z + size * i * stride, i * n_outputs
        target = samples.targets + load(order, i, np.int64(0)) * n_outputs * size
        for k in range(n_outputs):
            store(scores, at + k, load(row, k, tiny))
            store(targets, at + k, load(target, k, tiny))
    call(net.loss, (scores, targets, memory.constants, values, rows, n_outputs, tiny))
    divisor = type(tiny)(net.loss_divisor)
    for i in range(rows):
        row, at = z + size * i * stride, i * n_outputs
        scale = load(memory.scales, place + i, tiny)
        total = type(tiny)(0)
        for k in range(n_outputs):
            total += load(values, at + k, tiny)
            store(row, k, scale * load(scores, at + k, tiny))
        for k in range(n_outputs, padded):
            store(row, k, type(tiny)(0))
        store(memory.losses, place + i, total / divisor)


@jit
def _head(net, memory, samples, start, first, rows, place, z, tiny):
    """Scores ``z`` become scaled deltas, with zeros in the padding; losses are kept per row."""
    order = samples.order + 8 * (start + first)
    if samples.classes:
        _softmax_head(net, memory, samples, order, rows, place, z, tiny)
    else:
        _elementwise_head(net, memory, samples, order, rows, place, z, tiny)


@jit
def _input_gradients(net, memory, rows, place, delta, like):
    """Deltas of the hidden layers, from those of the output layer."""
    size, lanes = size_of(like), _lanes(like)
    for layer in range(net.layers.shape[1] - 2, 0, -1):
        fan_in, fan_out = net.layers[WIDTHS, layer], net.layers[WIDTHS, layer + 1]
        stride, below_stride = net.layers[STRIDES, layer + 1], net.layers[STRIDES, layer]
        slopes = memory.work + size * (net.layers[SLOPES, layer] + place * below_stride)
        below = memory.work + size * (net.layers[DELTAS, layer] + place * below_stride)
        padded = _padded(fan_in, like)
        relu, derivative = net.layers[IS_RELU, layer - 1], net.layers[DERIVATIVE_LOOP, layer - 1]
        epilogue = RELU_DERIVATIVE if relu else PLAIN
        for column in range(0, padded, N_VECTORS * lanes):
            width = _panel_width(column, padded, like)
            W = memory.transposed + size * (
                net.layers[TRANSPOSED, layer] + column * net.layers[ROWS_TRANSPOSED, layer]
            )
            shift = size * column
            _product(net.tiles, rows, width // lanes, delta, 0, stride, 1, W, width, memory.zeros,
                     0, below + shift, below_stride, fan_out, epilogue, slopes + shift,
                     size)  # fmt: skip
        if derivative and not relu:
            call(derivative, (slopes, below, below_stride, rows, padded, like))
        if net.normalise_derivative:
            kept = memory.work + size * (net.layers[NORMALISED, layer] + place * below_stride)
            call(net.normalise_derivative, (kept, below, below_stride, rows, fan_in, like))
        delta = below


@jit
def _set_scales(samples, memory, start, first, rows, place, scale, like):
    """Each row's share of the batch: scale, times its weight."""
    for i in range(rows):
        weight = type(like)(1)
        if samples.weights:
            weight = load(
                samples.weights, load(samples.order, start + first + i, np.int64(0)), like
            )
        store(memory.scales, place + i, scale * weight)


# --- second half: weights ---------------------------------------------------------------------


@jit
def _transpose_unit(net, memory, layer, column, width, first, end, like):
    """Refresh the transposed copy of rows ``first`` to ``end`` of one panel."""
    size, lanes = size_of(like), _lanes(like)
    fan_in = net.layers[WIDTHS, layer]
    padded = _padded(fan_in, like)
    W = memory.parameters + size * (net.layers[WEIGHTS, layer] + column * net.layers[ROWS, layer])
    target = memory.transposed + size * net.layers[TRANSPOSED, layer]
    for row in range(first, min(end, padded), lanes):
        panel = row // (N_VECTORS * lanes) * (N_VECTORS * lanes)
        panel_width = _panel_width(panel, padded, like)
        for k in range(0, width, lanes):
            at = (
                panel * net.layers[ROWS_TRANSPOSED, layer]
                + (column + k) * panel_width
                + row
                - panel
            )
            transpose(W + size * (row * width + k), width, fan_in - row, target + size * at,
                      panel_width, like)  # fmt: skip


@jit
def _sparse_unit(net, memory, samples, start, rows, column, width, G, fresh, like):
    """Gradient of one panel of the first layer for sparse samples, bias included, into ``G``."""
    size = size_of(like)
    fan_in, stride = net.layers[WIDTHS, 0], net.layers[STRIDES, 1]
    deltas = net.layers[ACTIVATIONS, 1] if net.layers.shape[1] == 2 else net.layers[DELTAS, 1]
    if fresh:
        for k in range((fan_in + 1) * width):
            store(G, k, type(like)(0))
    for i in range(rows):
        sample = load(samples.order, start + i, np.int64(0))
        delta = memory.work + size * (deltas + i * stride + column)
        begin = load(samples.row_starts, sample, np.int64(0))
        end = load(samples.row_starts, sample + 1, np.int64(0))
        for p in range(begin, end):
            value = load(samples.values, p, like)
            row = G + load(samples.columns, p, np.int32(0)) * width * size
            for k in range(width):
                store(row, k, load(row, k, like) + value * load(delta, k, like))
        bias = G + fan_in * width * size
        for k in range(width):
            store(bias, k, load(bias, k, like) + load(delta, k, like))


@jit
def _narrow_unit(net, memory, layer, first, end, rows, D, A, G, fresh, scratch, like):
    """One unit's gradient of a narrow layer into ``G``: its transpose, deltas times activations."""
    size, lanes = size_of(like), _lanes(like)
    n_outputs = net.layers[WIDTHS, layer + 1]
    for k in range(n_outputs):
        for i in range(end - first):
            value = type(like)(0)
            if not fresh:
                value = load(G, i * lanes + k, like)
            store(scratch, k * MAX_UNIT_ROWS + i, value)
    for i in range(0, end - first, N_VECTORS * lanes):
        vectors = 1 if end - first - i <= lanes else N_VECTORS
        C = scratch + size * i
        _product(net.tiles, n_outputs, vectors, D, 0, 1, net.layers[STRIDES, layer + 1],
                 A + size * i, net.layers[STRIDES, layer], C, MAX_UNIT_ROWS, C, MAX_UNIT_ROWS, rows,
                 PLAIN, C, size)  # fmt: skip
    for i in range(end - first):
        for k in range(n_outputs):
            store(G, i * lanes + k, load(scratch, k * MAX_UNIT_ROWS + i, like))
        for k in range(n_outputs, lanes):
            store(G, i * lanes + k, type(like)(0))


@jit
def _update_rows(memory, update, loop, at, g, n, n_bias, penalty, rate, numbers, step, size):
    """Update ``n`` weights and, behind them, ``n_bias`` biases; returns the weights' squares.

    ``loop`` is one of those of ``update``.
    """
    kind = type(rate)
    c0, c1, c2 = kind(numbers[step, 1]), kind(numbers[step, 2]), kind(numbers[step, 3])
    c3, c4, c5 = kind(numbers[step, 4]), kind(numbers[step, 5]), kind(numbers[step, 6])
    decay = kind(numbers[step, 7])
    w, first, second = (
        memory.parameters + size * at, memory.first_slot + size * at, memory.second_slot + size * at
    )  # fmt: skip
    squares = kind(0)
    if n > 0:
        squares = call(loop, (w, g, first, second, n, penalty, decay, c0, c1, c2, c3, c4, c5,
                              rate))  # fmt: skip
    if n_bias > 0:
        skip = size * n
        call(loop, (w + skip, g + skip, first + skip, second + skip, n_bias, kind(0), kind(0), c0,
                    c1, c2, c3, c4, c5, rate))  # fmt: skip
    if update.average and (update.training or loop == update.clipped):
        call(update.average, (memory.average + size * at, w, n + n_bias, kind(update.average_rate)))
    return squares


@jit
def _unit(net, memory, samples, layer, column, first, end, start, rows, is_first, is_last, scratch,
          slivers, is_new, update, penalty, rate, numbers, step, prefetch):  # fmt: skip
    """One unit of the weight gradient for one block of rows and, after the last, its update.

    ``is_new`` says whether the unit has other rows than the unit before.

    Returns the sum of squares of the unit's weights before the update.
    """
    like = rate
    size, lanes = size_of(like), _lanes(like)
    fan_in, stride, delta_stride = (
        net.layers[WIDTHS, layer],
        net.layers[STRIDES, layer],
        net.layers[STRIDES, layer + 1],
    )
    width = _panel_width(column, _padded(net.layers[WIDTHS, layer + 1], like), like)
    panel = net.layers[WEIGHTS, layer] + column * net.layers[ROWS, layer]
    squares = type(like)(0)
    if layer == 0 and samples.sparse:
        G = memory.gradient + size * panel
        _sparse_unit(net, memory, samples, start, rows, column, width, G, is_first, like)
        if is_last:
            squares = _update_rows(memory, update, update.loop, panel, G, fan_in * width, width,
                                   penalty, rate, numbers, step, size)  # fmt: skip
        return squares
    deltas = net.layers[ACTIVATIONS, layer + 1]
    if layer < net.layers.shape[1] - 2:
        deltas = net.layers[DELTAS, layer + 1]
    D = memory.work + size * (deltas + column)
    A = memory.work + size * (net.layers[ACTIVATIONS, layer] + first)
    sliver, column_stride = 0, stride
    n_panels = net.layers[WIDTHS, layer + 1] // (N_VECTORS * lanes)
    if memory.slivers and n_panels >= CUT_PANELS and rows >= CUT_ROWS:
        if is_new:
            _cut(A, stride, rows, end - first, slivers, like)
        if width == N_VECTORS * lanes:
            A, sliver, column_stride = slivers, rows * MAX_ROWS[1], MAX_ROWS[1]
    at = panel + first * width
    G = scratch if is_first and is_last and update.training else memory.gradient + size * at
    if prefetch:
        n_bytes = size * (end - first) * width
        prefetch_for_writing(memory.parameters + size * at, n_bytes)
        prefetch_for_writing(memory.first_slot + size * at, n_bytes)
        prefetch_for_writing(memory.second_slot + size * at, n_bytes)
    if layer == net.layers.shape[1] - 2 and _is_narrow(net, layer, like):
        _narrow_unit(net, memory, layer, first, end, rows, D, A, G, is_first,
                     scratch + size * MAX_UNIT_ROWS * lanes, like)  # fmt: skip
    else:
        init, init_stride = (memory.zeros, 0) if is_first else (G, width)
        _product(net.tiles, end - first, width // lanes, A, sliver, 1, column_stride, D,
                 delta_stride, init, init_stride, G, width, rows, PLAIN, G, size)  # fmt: skip
    if is_last:
        n_weights = (min(end, fan_in) - first) * width
        squares = _update_rows(memory, update, update.loop, at, G, n_weights,
                               (end - first) * width - n_weights, penalty, rate, numbers, step,
                               size)  # fmt: skip
    if is_last and layer > 0 and update.training:
        _transpose_unit(net, memory, layer, column, width, first, end, like)
    return squares


@jit
def _unit_place(net, layer, column, first, end, like):
    """A unit's start in the packed parameters, how many they are, and the width of its panel."""
    width = _panel_width(column, _padded(net.layers[WIDTHS, layer + 1], like), like)
    at = net.layers[WEIGHTS, layer] + column * net.layers[ROWS, layer] + first * width
    return at, (end - first) * width, width


@jit
def _unit_norm(net, memory, update, layer, column, first, end, like):
    """Sum of squares of a unit's gradient."""
    at, n, _ = _unit_place(net, layer, column, first, end, like)
    return call(update.squares, (memory.gradient + size_of(like) * at, n, like))


@jit
def _clipped_update(net, memory, units, begin, stop, update, rate, numbers, step):
    """Update units ``begin`` to ``stop`` with the gradient in memory, scaled to its norm at most.

    The 1e-6 is that of PyTorch's clip_grad_norm_.
    """
    size = size_of(rate)
    total = 0.0
    for u in range(units.shape[0]):
        total += load(memory.norms, u, rate)
    factor = update.max_norm / (np.sqrt(total) + 1e-6)
    for u in range(begin, stop):
        layer, column, first, end = units[u, 0], units[u, 1], units[u, 2], units[u, 3]
        at, n, width = _unit_place(net, layer, column, first, end, rate)
        G = memory.gradient + size * at
        if factor < 1:
            call(update.scale, (G, n, type(rate)(factor)))
        n_weights = (min(end, net.layers[WIDTHS, layer]) - first) * width
        _update_rows(memory, update, update.clipped, at, G, n_weights, n - n_weights, type(rate)(0),
                     rate, numbers, step, size)  # fmt: skip
        if layer > 0:
            _transpose_unit(net, memory, layer, column, width, first, end, rate)


# --- entry points -----------------------------------------------------------------------------


@jit
def _total_weight(samples, start, stop, like):
    """Sum of the samples' weights, their number without weights."""
    if not samples.weights:
        return float(stop - start)
    total = 0.0
    for i in range(start, stop):
        total += load(samples.weights, load(samples.order, i, np.int64(0)), like)
    return total


@jit
def _sum_losses(samples, losses, start, rows, like):
    """Weighted sum of the rows' losses."""
    total = 0.0
    for i in range(rows):
        loss = load(losses, i, like)
        if samples.weights:
            loss *= load(samples.weights, load(samples.order, start + i, np.int64(0)), like)
        total += loss
    return total


@jit
def _epoch(thread, n_threads, net, memory, samples, n_samples, batch_size, block, numbers, alpha,
           update, units, bounds, prefetch, like):  # fmt: skip
    """See `run_epoch`."""
    size = size_of(like)
    kind = type(like)
    tiny = kind(np.finfo(kind).eps)
    scratch = memory.scratch + thread * size * MAX_UNIT_ROWS * N_VECTORS * _lanes(like)
    slivers = memory.slivers + thread * size * SLIVER_ROWS * block
    accumulated = 0.0
    count = 0
    first_step = load(memory.progress, FIRST_STEP, np.int64(0))
    for step in range(numbers.shape[0]):
        begin = step * batch_size
        stop = min(begin + batch_size, n_samples)
        total_weight = _total_weight(samples, begin, stop, like)
        if total_weight != 0.0:
            scale = kind(1 / total_weight)
            loss = 0.0
            for start in range(begin, stop, block):
                n = min(block, stop - start)
                share = thread * n // n_threads
                n_share = (thread + 1) * n // n_threads - share
                n_slabs = (n_share + net.slab - 1) // net.slab
                for slab in range(n_slabs):
                    first = share + slab * n_share // n_slabs
                    rows = share + (slab + 1) * n_share // n_slabs - first
                    _set_scales(samples, memory, start, first, rows, first, scale, like)
                    z = _forward(net, memory, samples, first_step + step, begin, start, first, rows,
                                 first, like)  # fmt: skip
                    _head(net, memory, samples, start, first, rows, first, z, tiny)
                    _input_gradients(net, memory, rows, first, z, like)
                count += 1
                if not _wait(memory, n_threads, count):
                    return accumulated
                if thread == 0:
                    loss += _sum_losses(samples, memory.losses, start, n, like)
                    stopping = load(memory.progress, STOP, np.int64(0))
                    store(memory.progress, DECISION, stopping)
                is_first, is_last = start == begin, start + block >= stop
                layer, first = -1, -1
                for u in range(bounds[thread], bounds[thread + 1]):
                    is_new = units[u, 0] != layer or units[u, 2] != first
                    layer, first = units[u, 0], units[u, 2]
                    squares = _unit(
                        net, memory, samples, layer, units[u, 1], first, units[u, 3], start, n,
                        is_first, is_last, scratch, slivers, is_new, update,
                        kind(alpha / total_weight), kind(numbers[step, 0]), numbers, step,
                        prefetch,
                    )  # fmt: skip
                    store(memory.squares, u, squares)
                    if update.clipped and is_last:
                        norm = _unit_norm(net, memory, update, layer, units[u, 1], first,
                                          units[u, 3], like)  # fmt: skip
                        store(memory.norms, u, norm)
                count += 1
                if not _wait(memory, n_threads, count):
                    return accumulated
                if load(memory.progress, DECISION, np.int64(0)) and not is_last:
                    return accumulated
            if update.clipped:
                _clipped_update(net, memory, units, bounds[thread], bounds[thread + 1], update,
                                kind(numbers[step, 0]), numbers, step)  # fmt: skip
                count += 1
                if not _wait(memory, n_threads, count):
                    return accumulated
            if thread == 0:
                squared = 0.0
                for u in range(units.shape[0]):
                    squared += load(memory.squares, u, like)
                accumulated += (loss + 0.5 * alpha * squared) / total_weight * (stop - begin)
        else:
            count += 1
            if not _wait(memory, n_threads, count):
                return accumulated
        if thread == 0:
            store(memory.progress, STEPS, load(memory.progress, STEPS, np.int64(0)) + 1)
        if load(memory.progress, DECISION, np.int64(0)):
            return accumulated
    return accumulated


def run_epoch(thread, n_threads, net, memory, samples, n_samples, batch_size, block, numbers, alpha,
              update, units, bounds, prefetch, stations, like):  # fmt: skip
    """One pass over ``n_samples`` rows in steps of ``batch_size``, as thread ``thread``.

    A batch whose weights sum to zero carries no information and is passed over.  A helper that has
    a station there waits for the word to go over the data once more, whose order and numbers
    the caller has changed in place.  So all threads meet after the last batch, whatever it weighs:
    one that still summed up its weights would read the next epoch's order.

    Parameters
    ----------
    thread, n_threads : int
        This thread's number, and how many run this function at once.
    net, memory, samples
        See the classes; ``memory.progress`` is [stop, steps, decision, abort, steps before
        this call].
    block : int
        Rows that the workspace has room for.
    numbers : array of shape (n_steps, N_NUMBERS), float64
        See `fastmlp.optimizers.Optimizer.step_numbers`.
    update : Update
    units, bounds : arrays
        See `Layout.units` and `Layout.bounds`.
    stations : int
        Address of the threads' stations, or 0.
    like : float
        A number of the element type.

    Returns
    -------
    float
        Thread 0: the sum of (mean loss of a batch, penalty included) x (its length).
    """
    while True:
        loss = _epoch(thread, n_threads, net, memory, samples, n_samples, batch_size, block,
                      numbers, alpha, update, units, bounds, prefetch, like)  # fmt: skip
        if thread == 0 or not stand_by(stations, thread):
            return loss


def run_rows(thread, n_threads, net, memory, samples, n_samples, out, losses, like):
    """Forward pass over ``n_samples`` rows in slabs, slab by slab to the threads in turn.

    Each thread has a slab's workspace of its own.  Outputs (n_samples, n_outputs) go to ``out``,
    or if that is 0, each slab's weighted sum of losses to ``losses``.
    """
    size = size_of(like)
    kind = type(like)
    tiny = kind(np.finfo(kind).eps)
    stride, n_outputs = net.layers[STRIDES, -1], net.layers[WIDTHS, -1]
    padded = _padded(n_outputs, like)
    place = thread * SLAB
    own_losses = memory.losses + size * place
    for slab in range(thread, (n_samples + SLAB - 1) // SLAB, n_threads):
        if load(memory.progress, STOP, np.int64(0)):
            return
        start = slab * SLAB
        rows = min(SLAB, n_samples - start)
        z = _forward(net, memory, samples, 0, start, start, 0, rows, place, like)
        for i in range(rows):
            store(memory.scales, place + i, kind(1))
        if not out:
            _head(net, memory, samples, start, 0, rows, place, z, tiny)
            store(losses, slab, _sum_losses(samples, own_losses, start, rows, like))
            continue
        if net.softmax:
            softmax(z, stride, rows, padded, memory.scales + size * place,
                    memory.sums + size * place, memory.peaks + size * place, like)  # fmt: skip
        elif net.link:
            call(net.link, (z, z, stride, rows, n_outputs, like))
        for i in range(rows):
            copy_bytes(out + size * (start + i) * n_outputs, z + size * i * stride,
                       size * n_outputs)  # fmt: skip


def refresh_transposed(net, memory, units, like):
    """Rebuild the transposed copy after the parameters were set."""
    for u in range(units.shape[0]):
        layer, column = units[u, 0], units[u, 1]
        if layer > 0:
            width = _panel_width(column, _padded(net.layers[WIDTHS, layer + 1], like), like)
            _transpose_unit(net, memory, layer, column, width, units[u, 2], units[u, 3], like)


def pack(flat, packed, widths, rows, weights, padding_bias, like):
    """Flat vector at ``flat`` -> packed parameters or state, the output's padded biases as given.

    ``widths``, ``rows`` and ``weights`` are those of `Layout`.
    """
    size = size_of(like)
    n_layers = widths.size - 1
    for layer in range(n_layers):
        fan_in, fan_out = widths[layer], widths[layer + 1]
        padded = _padded(fan_out, like)
        filling = type(like)(padding_bias if layer == n_layers - 1 else 0.0)
        for column in range(0, padded, N_VECTORS * _lanes(like)):
            width = _panel_width(column, padded, like)
            used = min(width, fan_out - column)
            panel = packed + size * (weights[layer] + column * rows[layer])
            for i in range(fan_in + 1):
                row = panel + size * i * width
                copy_bytes(row, flat + size * (i * fan_out + column), size * used)
                for k in range(used, width):
                    store(row, k, filling if i == fan_in else type(like)(0))
            for k in range((fan_in + 1) * width, rows[layer] * width):
                store(panel, k, type(like)(0))
        flat += size * (fan_in + 1) * fan_out


def unpack(packed, flat, widths, rows, weights, like):
    """Packed parameters, gradient or state -> the flat vector at ``flat``."""
    size = size_of(like)
    for layer in range(widths.size - 1):
        fan_in, fan_out = widths[layer], widths[layer + 1]
        padded = _padded(fan_out, like)
        for column in range(0, padded, N_VECTORS * _lanes(like)):
            width = _panel_width(column, padded, like)
            used = min(width, fan_out - column)
            panel = packed + size * (weights[layer] + column * rows[layer])
            for i in range(fan_in + 1):
                copy_bytes(flat + size * (i * fan_out + column), panel + size * i * width,
                           size * used)  # fmt: skip
        flat += size * (fan_in + 1) * fan_out


def tiles(like):
    """Address of the tiles of one element type."""
    return tile_address(like)


class Kernels:
    """The entry points for one element type, ``'float32'`` or ``'float64'``."""

    def __init__(self, dtype: str):
        self.run_epoch = Entry(run_epoch, dtype)
        self.run_rows = Entry(run_rows, dtype)
        self.refresh_transposed = Entry(refresh_transposed, dtype)
        self.pack = Entry(pack, dtype)
        self.unpack = Entry(unpack, dtype)
        self.tiles = Entry(tiles, dtype)


KERNELS = {dtype: Kernels(dtype) for dtype in ("float32", "float64")}
