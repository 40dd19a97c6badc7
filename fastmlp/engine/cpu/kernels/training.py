"""The epoch kernel: one function, run by T threads at once, over packed parameters.

A step has two halves with a barrier after each.  First every thread takes a share of the batch's
rows through the network and back: gather -> forward -> loss -> input gradients, in row blocks that
stay in its cache.  Then the weight gradient is shared out by blocks of its *output*
(`Layout.gradient_blocks`); each tile of it goes to a scratch in L1, where the optimizer consumes it
at once, so that gradients never reach memory.  Batches of more than one micro-batch (rows that the
workspace holds), and the first layer of sparse input, sum their gradient in memory first.

Where a batch has more activations than the network has parameters, its gradient is the sum of some
parts', each over some of the rows (`Layout.n_parts`).  A thread alone sums each block's parts in
L1.  Several threads take a part each, of rows that are in their own caches, and leave its whole
gradient in memory; after a barrier, each sums the parts of its blocks and updates them.

Results have the same bits for every T: which rows share a tile never changes the order of a sum,
how many parts there are depends on shapes only, losses are kept per row and penalties per gradient
block, and thread 0 adds both up in one order.

Sizes and offsets are run-time integers, and formulas (`loops`) and what only some networks need are
pieces of their own, called by address: one compilation per element type serves every network, and a
fit needs only its pieces.  A task's fields are read where they are used; what an inner loop needs
is taken out of it first, because the compiler can't know that a store leaves the task alone.  ReLU
and its derivative are fused into the tiles; the other activations are a second pass over a row
block, which costs about 1 % of a step.

Floor: 2 n (3 sum(fan_in fan_out) - fan_in0 fan_out0) flop per epoch over the FMA rate.
``bench/account.py`` shows what keeps an epoch from it, by piece of the kernel; on one core of a
Xeon with AVX-512 and two FMAs per cycle, float32: padding of columns to whole vectors (a fifth of
letters and bank, a third of logit), the optimizer where batches are small (20 % of bank and tiny,
bound by the processor's divider), samples that come from outside of the caches (20 % of logit), an
activation's exponentials (16 % of tanh), and tiles that are short of terms. A second thread has to
fetch what the first has just written, 15 GB/s where a step's data are 30 KB: half of the parameters
and of a part's gradient, or of activations and deltas. Parts took two threads from 1.06 to 1.42
times as fast as one on digits, from 1.1 to 1.42 on california, 1.06 to 1.36 on letters, 1.23 to
1.75 where batches have 1024 rows, and cost one thread 0 to 2 %. Asking early, while parts'
gradients are made, for what will be written and the other thread has read took off 1 to 14 %.

Subnormal numbers count as zero while an epoch runs: means of gradients decay to some and stay
there, and each operation on one takes Intel's processors 150 cycles (a deep network that had
converged: 19 % of an epoch).

Tried and lost: BLAS (SciPy's, from inside the kernel: calls of microseconds around microseconds of
work, and no fusion); an optimizer pass of its own after the gradient (twice the memory traffic); a
gradient per row block, summed over them (7 % slower on one thread); more parts than two for batches
of less than 512 rows (6 % slower on two threads); asking early in a step for parameters to be read
(nothing); weighing updates with transposition more when they are shared out (nothing); huge pages
(nothing); blocks of 128 and 192 terms (nothing); micro-panels where they serve few panels
(mnist-like 3 to 5 % slower); quotients from the processor's estimates and Newton's method, or
square roots in float32 (a percent); asking for samples some rows ahead (nothing); rows copied by
vectors instead of memcpy (1 %).
"""

import numpy as np

from fastmlp.engine.cpu.blocks import Layer, Packing, Task
from fastmlp.engine.cpu.kernels.jit import Piece, call, jit, record
from fastmlp.engine.cpu.kernels.standby import stand_by
from fastmlp.engine.cpu.kernels.tiles import (
    PLAIN,
    RELU,
    RELU_DERIVATIVE,
    dots,
    softmax,
    transpose,
)
from fastmlp.engine.cpu.kernels.vector import (
    atomic_add,
    atomic_load,
    copy_bytes,
    flush_subnormals,
    load,
    pause,
    prefetch_for_writing,
    restore,
    size_of,
    sleep_thread,
    store,
    yield_thread,
)
from fastmlp.engine.cpu.layout import (
    ABORT,
    DECISION,
    FIRST_STEP,
    MAX_GRADIENT_ROWS,
    MAX_ROWS,
    MICRO_PANEL_COLUMNS,
    N_VECTORS,
    NOT_FINITE,
    PACK_PANELS,
    PACK_ROWS,
    PART_ROWS,
    ROW_BLOCK,
    STEPS,
    STOP,
    tile_number,
)
from fastmlp.engine.processor import VECTOR_BYTES
from fastmlp.optimizers import N_NUMBERS

REAL = np.float64  # bound to each element type (`jit.Piece`)
_MAX_TERMS = 256  # of a product at a time: the part of a panel that stays in L1
_SPINS = 300  # before a waiting thread offers its processor to others
_YIELDS = 200  # before it goes to sleep
_GRADIENT_BLOCK_FIELDS = 4  # see `Layout.gradient_blocks`

_tile_number = jit(tile_number)
_task, _layer, _packing = record(Task), record(Layer), record(Packing)


# --- small helpers ----------------------------------------------------------------------------


@jit
def _lanes(like):
    return VECTOR_BYTES // size_of(like)


@jit
def _padded(n, like):
    """``n`` rounded up to whole vectors."""
    return (n + _lanes(like) - 1) // _lanes(like) * _lanes(like)


@jit
def _width_at(layer, column):
    """Of the panel of a `Layer` that starts at a column."""
    return min(layer.panel_width, layer.columns - column)


@jit
def _transposed_width_at(layer, row, like):
    """Of the panel of its transposed copy that has this row of the weights, and its first row."""
    most = N_VECTORS * _lanes(like)
    first = row // most * most
    return min(most, _padded(layer.width, like) - first), first


@jit
def _split(rows, vectors):
    """(number of tiles, rows of a tile, how many of the first have one more)."""
    most = MAX_ROWS[0] if vectors == 1 else MAX_ROWS[1]
    n_tiles = (rows + most - 1) // most
    height = rows // n_tiles
    return n_tiles, height, rows - n_tiles * height


@jit
def _product(tiles, rows, vectors, turned, A, micro_panel, A_stride, B, B_stride, init,
             init_stride, C, C_stride, terms, epilogue, aux, size):  # fmt: skip
    """``C = epilogue(init + A @ B)`` for one panel, ``vectors`` wide; strides in elements.

    Many terms are taken in blocks, between which sums rest in ``C``; that changes no bit of them.
    ``turned``: ``A``'s columns lie ``A_stride`` apart and not its rows.  ``micro_panel`` is the
    size of one if ``A`` was packed into such (`_pack_micro_panels`), else 0.
    """
    n_tiles, height, n_higher = _split(rows, vectors)
    n_blocks = (terms + _MAX_TERMS - 1) // _MAX_TERMS
    skip = n_higher * (height + 1)
    row_step, term_step = (1, A_stride) if turned else (A_stride, 1)
    tile = load(tiles, _tile_number(height, vectors, turned), np.int64(0))
    higher_tile = np.int64(0)
    if n_higher:
        higher_tile = load(tiles, _tile_number(height + 1, vectors, turned), np.int64(0))
    hop = micro_panel if micro_panel else height * row_step
    higher_hop = micro_panel if micro_panel else hop + row_step
    for block in range(n_blocks):
        k = block * terms // n_blocks
        n_terms = (block + 1) * terms // n_blocks - k
        A_block, B_block = A + size * k * term_step, B + size * k * B_stride
        last = epilogue if block == n_blocks - 1 else PLAIN
        if n_higher:
            call(higher_tile, (
                n_higher, A_block, higher_hop, A_stride, B_block, B_stride, init, init_stride, C,
                C_stride, n_terms, last, aux,
            ))  # fmt: skip
        call(tile, (
            n_tiles - n_higher, A_block + size * n_higher * higher_hop, hop, A_stride, B_block,
            B_stride, init + size * skip * init_stride, init_stride, C + size * skip * C_stride,
            C_stride, n_terms, last, aux + size * skip * C_stride,
        ))  # fmt: skip
        init, init_stride = C, C_stride


@jit
def _pack_micro_panels(A, stride, terms, columns, micro_panels, like):
    """Copy columns of ``A`` into micro-panels, as BLIS calls them: one for each tile of `_product`
    that is two vectors wide, its columns side by side.
    """
    size = size_of(like)
    n_tiles, height, n_higher = _split(columns, 2)
    for k in range(terms):
        source, target = A + size * k * stride, micro_panels + size * k * MAX_ROWS[1]
        for t in range(n_tiles):
            n = height + (t < n_higher)
            for j in range(n):
                store(target, j, load(source, j, like))
            source += size * n
            target += size * terms * MAX_ROWS[1]


@jit
def _wait_for_all(barrier, control, n_threads, count):
    """The ``count``-th barrier of this call; False if the other threads will not come to it.

    Waiting threads spin, then yield, then sleep: Linux may take no notice of a yield until the
    next clock tick, 4 ms later, although the thread that is waited for is on the same processor.
    """
    if n_threads > 1:
        atomic_add(barrier, 1)
        spins = 0
        while atomic_load(barrier) < count * n_threads:
            spins += 1
            if spins < _SPINS:
                pause()
            elif atomic_load(control + 8 * ABORT):
                return False
            elif spins < _SPINS + _YIELDS:
                yield_thread()
            else:
                sleep_thread(np.uint32(1))
    return True


# --- first half of a step: rows ---------------------------------------------------------------


@jit
def _gather(task, start, first, rows, A, like):
    """Copy dense samples to ``A``, and the constant 1 of the bias behind each."""
    t = _task(task, 0)
    width, stride = _layer(t.layers, 0).width, _layer(t.layers, 0).stride
    values, row_stride, order, size = t.values, t.row_stride, t.order, size_of(like)
    for i in range(rows):
        sample = load(order, start + first + i, np.int64(0))
        row = A + i * stride * size
        copy_bytes(row, values + sample * row_stride, width * size)
        store(row, width, type(like)(1))


def forward_sparse(task, start, first, rows, out):
    """The first layer's scores for sparse samples."""
    like = REAL(0)
    t, size = _task(task, 0), size_of(like)
    samples, starts, columns, values = t.order, t.row_starts, t.columns, t.values
    here, stride = _layer(t.layers, 0), _layer(t.layers, 1).stride
    fan_in = here.width
    column = np.int64(0)
    while column < here.columns:
        width = _width_at(here, column)
        W = t.parameters + size * column * here.rows
        for i in range(rows):
            sample = load(samples, start + first + i, np.int64(0))
            row = out + size * (column + i * stride)
            copy_bytes(row, W + size * fan_in * width, width * size)
            begin, end = load(starts, sample, np.int64(0)), load(starts, sample + 1, np.int64(0))
            for p in range(begin, end):
                value = load(values, p, like)
                weights = W + load(columns, p, np.int32(0)) * width * size
                for k in range(width):
                    store(row, k, load(row, k, like) + value * load(weights, k, like))
        column += width
    return np.int64(0)


def forward_narrow(task, layer, rows, A, out):
    """The scores of a layer with panels of one column, output by output."""
    like = REAL(0)
    t, size = _task(task, 0), size_of(like)
    here, above = _layer(t.layers, layer), _layer(t.layers, layer + 1)
    W = t.parameters + size * here.weights
    for k in range(here.columns):
        dots(A, here.stride, rows, W + size * k * here.rows, here.rows // _lanes(like),
             out + size * k, above.stride, like)  # fmt: skip
    return np.int64(0)


@jit
def _normalise(task, layer, rows, out, like):
    """Layer normalisation of one layer's scores, kept for the backward pass if there is one."""
    t, above = _task(task, 0), _layer(_task(task, 0).layers, layer + 1)
    kept = np.int64(0)
    if t.normalise_derivative:
        kept = out + size_of(like) * (above.normalised - above.activations)
    call(t.normalise, (out, kept, above.stride, rows, above.width, like))


@jit
def _drop(task, layer, step, row, rows, out, derivatives, like):
    """Dropout of one layer's outputs, from row ``row`` of the batch on."""
    t = _task(task, 0)
    here, above = _layer(t.layers, layer), _layer(t.layers, layer + 1)
    call(here.dropout, (
        out, derivatives, above.stride, rows, above.width, t.dropout_seed, step, layer, row,
        here.threshold, type(like)(here.dropout_scale),
    ))  # fmt: skip


@jit
def _forward_layer(task, layer, step, begin, start, first, rows, A, out, derivatives, like):
    """``out = activation(A @ W + b)`` for ``rows`` rows; raw scores for the last layer."""
    t, size = _task(task, 0), size_of(like)
    here, above = _layer(t.layers, layer), _layer(t.layers, layer + 1)
    fan_in, fan_out, out_stride = here.width, above.width, above.stride
    hidden = layer < t.n_layers - 1
    sparse = layer == 0 and t.sparse
    if sparse:
        call(t.forward_sparse, (task, start, first, rows, out))
    elif here.panel_width == 1:
        call(t.forward_narrow, (task, layer, rows, A, out))
    else:
        epilogue = RELU if hidden and here.relu else PLAIN
        column = np.int64(0)
        while column < here.columns:
            width = _width_at(here, column)
            W = t.parameters + size * (here.weights + column * here.rows)
            C = out + size * column
            _product(t.tiles, rows, width // _lanes(like), 0, A, 0, here.stride, W, width,
                     W + size * fan_in * width, 0, C, out_stride, fan_in, epilogue, C,
                     size)  # fmt: skip
            column += width
    if hidden:
        if t.normalise:
            _normalise(task, layer, rows, out, like)
        if here.activation and (sparse or not here.relu):
            call(here.activation, (out, derivatives, out_stride, rows, here.columns, like))
        if here.dropout:
            _drop(task, layer, step, start - begin + first, rows, out, derivatives, like)
        for i in range(rows):
            store(out, i * out_stride + fan_out, type(like)(1))


def forward(task, step, begin, start, first, rows, place):
    """Take samples ``start + first ...`` through all layers; returns where their scores are.

    ``place`` is their first row in the workspace; ``step``, and the ``begin`` of its batch, are for
    dropout only.
    """
    like = REAL(0)
    t, size = _task(task, 0), size_of(like)
    A = t.work + size * (_layer(t.layers, 0).activations + place * _layer(t.layers, 0).stride)
    if not t.sparse:
        _gather(task, start, first, rows, A, like)
    for layer in range(t.n_layers):
        above = _layer(t.layers, layer + 1)
        skip = place * above.stride
        out = t.work + size * (above.activations + skip)
        derivatives = t.work + size * (above.kept_derivatives + skip)
        _forward_layer(task, layer, step, begin, start, first, rows, A, out, derivatives, like)
        A = out
    return A


def head_softmax(task, order, rows, place, z):
    """Scores ``z`` become scaled deltas, with zeros in the padding; losses are kept per row.

    For the loss that is fused with softmax.
    """
    tiny = REAL(np.finfo(REAL).eps)
    t, size = _task(task, 0), size_of(tiny)
    outputs, classes = _layer(t.layers, t.n_layers), t.classes
    stride, padded = outputs.stride, _padded(outputs.width, tiny)
    scales, losses = t.scales + size * place, t.losses + size * place
    sums, peaks = t.sums + size * place, t.peaks + size * place
    for i in range(rows):
        label = load(classes, load(order, i, np.int64(0)), np.int64(0))
        store(losses, i, load(z, i * stride + label, tiny))
    call(t.softmax_rows, (z, stride, rows, padded, scales, sums, peaks))
    for i in range(rows):
        label = load(classes, load(order, i, np.int64(0)), np.int64(0))
        at = i * stride + label
        store(z, at, load(z, at, tiny) - load(scales, i, tiny))
        store(losses, i, load(losses, i, tiny) - load(peaks, i, tiny))
    call(t.loss, (rows, sums, losses, tiny))
    return np.int64(0)


def head_elementwise(task, order, rows, place, z):
    """`head_softmax` for all other losses, whose loop runs over all scores in a row."""
    tiny = REAL(np.finfo(REAL).eps)
    t, size = _task(task, 0), size_of(tiny)
    outputs, samples = _layer(t.layers, t.n_layers), t.targets
    stride, n_outputs = outputs.stride, outputs.width
    columns = _layer(t.layers, t.n_layers - 1).columns
    skip = size * place * n_outputs
    scores, true, values = t.scores + skip, t.true + skip, t.per_output + skip
    scales, losses = t.scales + size * place, t.losses + size * place
    for i in range(rows):
        row, at = z + size * i * stride, i * n_outputs
        target = samples + load(order, i, np.int64(0)) * n_outputs * size
        for k in range(n_outputs):
            store(scores, at + k, load(row, k, tiny))
            store(true, at + k, load(target, k, tiny))
    call(t.loss, (scores, true, t.constants, values, rows, n_outputs, tiny))
    divisor = REAL(t.loss_divisor)
    for i in range(rows):
        row, at = z + size * i * stride, i * n_outputs
        scale = load(scales, i, tiny)
        total = REAL(0)
        for k in range(n_outputs):
            total += load(values, at + k, tiny)
            store(row, k, scale * load(scores, at + k, tiny))
        for k in range(n_outputs, columns):
            store(row, k, REAL(0))
        store(losses, i, total / divisor)
    return np.int64(0)


def backward(task, rows, place, delta):
    """Deltas of the hidden layers, from those of the output layer at ``delta``."""
    like = REAL(0)
    t, size, lanes = _task(task, 0), size_of(like), _lanes(like)
    for layer in range(t.n_layers - 1, 0, -1):
        here, below = _layer(t.layers, layer), _layer(t.layers, layer - 1)
        fan_in, stride = here.width, here.stride
        derivatives = t.work + size * (here.kept_derivatives + place * stride)
        deltas = t.work + size * (here.deltas + place * stride)
        padded = _padded(fan_in, like)
        epilogue = RELU_DERIVATIVE if below.relu else PLAIN
        above = _layer(t.layers, layer + 1)
        for column in range(0, padded, N_VECTORS * lanes):
            width, _ = _transposed_width_at(here, column, like)
            if _has_copy(layer, here):
                at = here.transposed + column * here.rows_transposed
                W, W_stride = t.transposed + size * at, width
            else:
                W, W_stride = t.parameters + size * (here.weights + column), here.rows
            shift = size * column
            _product(t.tiles, rows, width // lanes, 0, delta, 0, above.stride, W, W_stride, t.zeros,
                     0, deltas + shift, stride, above.width, epilogue, derivatives + shift,
                     size)  # fmt: skip
        if here.panel_width == 1 and fan_in < padded:
            for i in range(rows):  # where a row of weights has the bias
                store(deltas, i * stride + fan_in, REAL(0))
        if below.derivative and not below.relu:
            call(below.derivative, (derivatives, deltas, stride, rows, padded, like))
        if t.normalise_derivative:
            kept = t.work + size * (here.normalised + place * stride)
            call(t.normalise_derivative, (kept, deltas, stride, rows, fan_in, like))
        delta = deltas
    return np.int64(0)


@jit
def _set_scales(task, start, first, rows, place, scale, like):
    """Each row's share of the batch: scale, times its weight."""
    t = _task(task, 0)
    weights, order, scales = t.weights, t.order, t.scales
    for i in range(rows):
        weight = type(like)(1)
        if weights:
            weight = load(weights, load(order, start + first + i, np.int64(0)), like)
        store(scales, place + i, scale * weight)


# --- second half: weights ---------------------------------------------------------------------


def transpose_block(task, layer, column, width, first, end):
    """Refresh the transposed copy of rows ``first`` to ``end`` of one panel."""
    like = REAL(0)
    t, size, lanes = _task(task, 0), size_of(like), _lanes(like)
    here = _layer(t.layers, layer)
    fan_in, rows = here.width, here.rows_transposed
    padded = _padded(fan_in, like)
    W = t.parameters + size * (here.weights + column * here.rows)
    target = t.transposed + size * here.transposed
    for row in range(first, min(end, padded), lanes):
        panel_width, panel = _transposed_width_at(here, row, like)
        for k in range(0, width, lanes):
            at = panel * rows + (column + k) * panel_width + row - panel
            transpose(W + size * (row * width + k), width, fan_in - row, target + size * at,
                      panel_width, like)  # fmt: skip
    return np.int64(0)


@jit
def _has_copy(layer, here):
    """Whether the input gradient takes a layer's weights from the transposed copy."""
    return layer > 0 and here.panel_width > 1


@jit
def _refresh(task, layer, column, width, first, end):
    """`transpose_block`, if there is a copy."""
    t = _task(task, 0)
    if _has_copy(layer, _layer(t.layers, layer)):
        call(t.transpose, (task, layer, column, width, first, end))


def gradient_sparse(task, start, rows, column, width, G, fresh):
    """Gradient of one panel of the first layer for sparse samples, bias included, into ``G``."""
    like = REAL(0)
    t, size = _task(task, 0), size_of(like)
    samples, starts, columns, values = t.order, t.row_starts, t.columns, t.values
    fan_in, stride = _layer(t.layers, 0).width, _layer(t.layers, 1).stride
    deltas = t.work + size * column
    if t.n_layers == 1:
        deltas += size * _layer(t.layers, 1).activations
    else:
        deltas += size * _layer(t.layers, 1).deltas
    if fresh:
        for k in range((fan_in + 1) * width):
            store(G, k, REAL(0))
    for i in range(rows):
        sample = load(samples, start + i, np.int64(0))
        delta = deltas + size * i * stride
        begin, end = load(starts, sample, np.int64(0)), load(starts, sample + 1, np.int64(0))
        for p in range(begin, end):
            value = load(values, p, like)
            row = G + load(columns, p, np.int32(0)) * width * size
            for k in range(width):
                store(row, k, load(row, k, like) + value * load(delta, k, like))
        bias = G + fan_in * width * size
        for k in range(width):
            store(bias, k, load(bias, k, like) + load(delta, k, like))
    return np.int64(0)


def gradient_narrow(task, layer, n, rows, D, A, G, fresh):
    """``n`` numbers of the gradient of a panel of one column: activations times its deltas."""
    like = REAL(0)
    t, size, lanes = _task(task, 0), size_of(like), _lanes(like)
    here, above = _layer(t.layers, layer), _layer(t.layers, layer + 1)
    for i in range(0, n, N_VECTORS * lanes):
        vectors = 1 if n - i <= lanes else N_VECTORS
        C = G + size * i
        init = t.zeros if fresh else C
        _product(t.tiles, 1, vectors, 1, D, 0, above.stride, A + size * i, here.stride, init, 0, C,
                 0, rows, PLAIN, C, size)  # fmt: skip
    return np.int64(0)


@jit
def _number(task, step, which, like):
    """One of the optimizer's numbers for this step."""
    return type(like)(load(_task(task, 0).numbers, step * N_NUMBERS + which, 0.0))


@jit
def _update_rows(task, loop, at, g, n, n_bias, step, penalty):
    """Update ``n`` weights and, behind them, ``n_bias`` biases; returns the weights' squares.

    ``loop`` is one of the task's.
    """
    t, size, none = _task(task, 0), size_of(penalty), type(penalty)(0)
    rate, decay = _number(task, step, 0, penalty), _number(task, step, 7, penalty)
    c0, c1 = _number(task, step, 1, penalty), _number(task, step, 2, penalty)
    c2, c3 = _number(task, step, 3, penalty), _number(task, step, 4, penalty)
    c4, c5 = _number(task, step, 5, penalty), _number(task, step, 6, penalty)
    w, first, second = (
        t.parameters + size * at, t.first_slot + size * at, t.second_slot + size * at
    )  # fmt: skip
    squares = none
    if n > 0:
        squares = call(loop, (w, g, first, second, n, penalty, decay, c0, c1, c2, c3, c4, c5,
                              rate))  # fmt: skip
    if n_bias > 0:
        skip = size * n
        call(loop, (w + skip, g + skip, first + skip, second + skip, n_bias, none, none, c0, c1,
                    c2, c3, c4, c5, rate))  # fmt: skip
    if t.averager and (t.training or loop == t.clipped):
        share = type(penalty)(t.average_rate)
        call(t.averager, (t.average + size * at, w, n + n_bias, share))
    return squares


@jit
def _add(total, first, second, n, like):
    """``total = first + second``, of ``n`` numbers each."""
    for i in range(n):
        store(total, i, load(first, i, like) + load(second, i, like))


@jit
def _product_of_rows(task, layer, column, width, first, end, start, place, rows, fresh, G,
                     micro_panels, micro_panel, like):  # fmt: skip
    """One block's gradient of ``rows`` rows, into ``G`` or, unless ``fresh``, added to it.

    Their place in the workspace is ``place``, and in the order of samples ``start + place``.  With
    ``micro_panel``, the size of one, their activations are at ``micro_panels``.
    """
    t, size, lanes = _task(task, 0), size_of(like), _lanes(like)
    here, above = _layer(t.layers, layer), _layer(t.layers, layer + 1)
    if layer == 0 and t.sparse:
        call(t.gradient_sparse, (task, start + place, rows, column, width, G, fresh))
        return
    deltas = above.activations if layer == t.n_layers - 1 else above.deltas
    D = t.work + size * (deltas + place * above.stride + column)
    A, A_stride = t.work + size * (here.activations + place * here.stride + first), here.stride
    if width == 1:
        call(t.gradient_narrow, (task, layer, end - first, rows, D, A, G, fresh))
        return
    if micro_panel:
        A, A_stride = micro_panels, MAX_ROWS[1]
    init, init_stride = (t.zeros, 0) if fresh else (G, width)
    _product(t.tiles, end - first, width // lanes, 1, A, micro_panel, A_stride, D, above.stride,
             init, init_stride, G, width, rows, PLAIN, G, size)  # fmt: skip


def gradient_block(task, layer, column, first, end, start, place, rows, n_parts, is_first, is_last,
                   G, scratch, micro_panels, is_new, step, penalty):  # fmt: skip
    """One block of the weight gradient for one micro-batch and, after the last, its update.

    ``rows`` rows, whose place in the workspace is ``place``, are taken in ``n_parts`` parts, whose
    gradients are summed in ``G``; none if ``G`` is complete.  ``is_new`` says whether the block has
    other rows than the one before.

    Returns the sum of squares of the block's weights before the update.
    """
    like = REAL(0)
    t, size, lanes = _task(task, 0), size_of(like), _lanes(like)
    here, above = _layer(t.layers, layer), _layer(t.layers, layer + 1)
    width = _width_at(here, column)
    at = here.weights + column * here.rows + first * width
    n = (end - first) * width
    if t.prefetch and is_last:
        n_bytes = size * n
        prefetch_for_writing(t.parameters + size * at, n_bytes)
        prefetch_for_writing(t.first_slot + size * at, n_bytes)
        prefetch_for_writing(t.second_slot + size * at, n_bytes)
    micro_panel = 0
    n_panels = above.width // (N_VECTORS * lanes)
    if t.micro_panels and n_panels >= PACK_PANELS and rows >= PACK_ROWS and n_parts:
        if is_new:
            A = t.work + size * (here.activations + place * here.stride + first)
            _pack_micro_panels(A, here.stride, rows, end - first, micro_panels, like)
        if width == N_VECTORS * lanes:
            micro_panel = rows * MAX_ROWS[1]
    spare = scratch + size * MAX_GRADIENT_ROWS * N_VECTORS * lanes
    for part in range(n_parts):
        begin = part * rows // n_parts
        n_rows = (part + 1) * rows // n_parts - begin
        target, fresh = G, is_first
        if part > 0 or (n_parts > 1 and not is_first):
            target, fresh = spare, np.int64(1)
        _product_of_rows(
            task, layer, column, width, first, end, start, place + begin, n_rows, fresh, target,
            micro_panels + size * begin * MAX_ROWS[1], micro_panel, like,
        )  # fmt: skip
        if target == spare:
            _add(G, G, spare, n, like)
    if not is_last:
        return REAL(0)
    n_weights = (min(end, here.width) - first) * width
    squares = _update_rows(task, t.loop, at, G, n_weights, n - n_weights, step, penalty)
    if t.training:
        _refresh(task, layer, column, width, first, end)
    return squares


@jit
def _gradient_block_at(task, b, like):
    """(layer, column, first row, end) of gradient block ``b``; see `Layout.gradient_blocks`."""
    block = _task(task, 0).gradient_blocks + 8 * _GRADIENT_BLOCK_FIELDS * b
    none = np.int64(0)
    return load(block, 0, none), load(block, 1, none), load(block, 2, none), load(block, 3, none)


@jit
def _gradient_block_place(task, b, like):
    """Where a block's parameters start, how many they are, and the width of their panel."""
    layer, column, first, end = _gradient_block_at(task, b, like)
    layers = _task(task, 0).layers
    here = _layer(layers, layer)
    width = _width_at(here, column)
    at = here.weights + column * here.rows + first * width
    return at, (end - first) * width, width


@jit
def _claim_block(task, b, like):
    """Ask early for what `gradient_block` will write of a block and other threads have read."""
    layer, column, first, end = _gradient_block_at(task, b, like)
    at, n, width = _gradient_block_place(task, b, like)
    t, size, lanes = _task(task, 0), size_of(like), _lanes(like)
    prefetch_for_writing(t.parameters + size * at, size * n)
    here = _layer(t.layers, layer)
    if not _has_copy(layer, here):
        return
    for row in range(first, min(end, _padded(here.width, like)), lanes):
        panel_width, panel = _transposed_width_at(here, row, like)
        begin = panel * here.rows_transposed + column * panel_width + row - panel
        target = t.transposed + size * (here.transposed + begin)
        for k in range(width):
            prefetch_for_writing(target + size * k * panel_width, np.int64(1))


def update_clipped(task, begin, stop, step):
    """Update blocks ``begin`` to ``stop`` with the gradient in memory, clipped by its norm.

    The 1e-6 is that of PyTorch's clip_grad_norm_.
    """
    like = REAL(0)
    t, size = _task(task, 0), size_of(like)
    norms, total = t.norms, 0.0
    for b in range(t.n_gradient_blocks):
        total += load(norms, b, like)
    factor = t.max_norm / (np.sqrt(total) + 1e-6)
    for b in range(begin, stop):
        layer, column, first, end = _gradient_block_at(task, b, like)
        at, n, width = _gradient_block_place(task, b, like)
        G = t.gradient + size * at
        if factor < 1:
            call(t.scale, (G, n, REAL(factor)))
        n_weights = (min(end, _layer(t.layers, layer).width) - first) * width
        _update_rows(task, t.clipped, at, G, n_weights, n - n_weights, step, like)
        _refresh(task, layer, column, width, first, end)
    return np.int64(0)


# --- what Python calls ------------------------------------------------------------------------


@jit
def _total_weight(weights, order, start, stop, like):
    """Sum of the samples' weights, their number without weights."""
    if not weights:
        return float(stop - start)
    total = 0.0
    for i in range(start, stop):
        total += load(weights, load(order, i, np.int64(0)), like)
    return total


@jit
def _sum_losses(weights, order, losses, start, rows, like):
    """Weighted sum of the rows' losses."""
    total = 0.0
    for i in range(rows):
        loss = load(losses, i, like)
        if weights:
            loss *= load(weights, load(order, start + i, np.int64(0)), like)
        total += loss
    return total


@jit
def _row_block_at(block, n_blocks, n):
    """Where one of the row blocks of ``n`` rows starts: behind whole tiles."""
    return n if block == n_blocks else block * n // n_blocks // MAX_ROWS[1] * MAX_ROWS[1]


@jit
def _forward_backward(thread, task, step, begin, start, n, scale, like):
    """This thread's share of ``n`` rows from ``start`` on: forward, loss, deltas."""
    t = _task(task, 0)
    share = thread * n // t.n_threads
    n_share = (thread + 1) * n // t.n_threads - share
    n_blocks = (n_share + ROW_BLOCK - 1) // ROW_BLOCK
    for block in range(n_blocks):
        first = share + _row_block_at(block, n_blocks, n_share)
        rows = share + _row_block_at(block + 1, n_blocks, n_share) - first
        _set_scales(task, start, first, rows, first, scale, like)
        z = call(t.forward, (task, step, begin, start, first, rows, first))
        call(t.head, (task, t.order + 8 * (start + first), rows, first, z))
        call(t.backward, (task, rows, first, z))


@jit
def _n_parts(task, n):
    """In how many parts the gradient of ``n`` rows is summed; see `Layout.n_parts`."""
    t = _task(task, 0)
    return t.n_parts if n >= t.n_parts * PART_ROWS else np.int64(1)


@jit
def _own_scratch(thread, task, like):
    """A thread's room for two blocks of the gradient, and for micro-panels."""
    t, size = _task(task, 0), size_of(like)
    return (
        t.scratch + thread * size * 2 * MAX_GRADIENT_ROWS * N_VECTORS * _lanes(like),
        t.micro_panels + thread * size * MICRO_PANEL_COLUMNS * t.micro_batch,
    )


@jit
def _gradients_of_parts(thread, task, start, n, n_parts, like):
    """This thread's share of the blocks of each part's gradient, which stay in ``parts``."""
    t, size, none, one = _task(task, 0), size_of(like), np.int64(0), np.int64(1)
    scratch, micro_panels = _own_scratch(thread, task, like)
    n_blocks, before = t.n_gradient_blocks, (np.int64(-1), np.int64(-1), np.int64(-1))
    for b in range(load(t.bounds, thread, none), load(t.bounds, thread + 1, none)):
        _claim_block(task, b, like)
    begin = load(t.part_bounds, thread, none)
    stop = load(t.part_bounds, thread + 1, none)
    for item in range(begin, stop):
        part, b = item // n_blocks, item % n_blocks
        layer, column, first, end = _gradient_block_at(task, b, like)
        at, _, _ = _gradient_block_place(task, b, like)
        place = part * n // n_parts
        rows = (part + 1) * n // n_parts - place
        is_new, before = before != (part, layer, first), (part, layer, first)
        call(t.gradient_block, (
            task, layer, column, first, end, start, place, rows, one, one, none,
            t.parts + size * (part * t.n_packed + at), scratch, micro_panels,
            np.int64(is_new), none, like,
        ))  # fmt: skip


@jit
def _weight_gradient(thread, task, step, start, n, n_parts, is_shared, is_first, is_last, penalty):
    """This thread's blocks of the weight gradient, for ``n`` rows from ``start`` on.

    ``is_shared`` says that the gradients of all parts lie in memory, to be summed.
    """
    t, size, none = _task(task, 0), size_of(penalty), np.int64(0)
    scratch, micro_panels = _own_scratch(thread, task, penalty)
    layer, first = np.int64(-1), np.int64(-1)
    begin, stop = load(t.bounds, thread, none), load(t.bounds, thread + 1, none)
    keeps = not (is_first and is_last and t.training)
    for b in range(begin, stop):
        own_layer, column, own_first, end = _gradient_block_at(task, b, penalty)
        at, n_elements, _ = _gradient_block_place(task, b, penalty)
        is_new = own_layer != layer or own_first != first
        layer, first = own_layer, own_first
        G = t.gradient + size * at if keeps or (t.sparse and layer == 0) else scratch
        n_products = n_parts
        if is_shared:
            n_products, total, n_summed = none, G, none
            if is_first:
                total, n_summed = t.parts + size * at, np.int64(1)
            for part in range(n_summed, n_parts):
                more = t.parts + size * (part * t.n_packed + at)
                _add(G, total, more, n_elements, penalty)
                total = G
        squares = call(t.gradient_block, (
            task, layer, column, first, end, start, none, n, n_products, np.int64(is_first),
            np.int64(is_last), G, scratch, micro_panels, np.int64(is_new), step, penalty,
        ))  # fmt: skip
        store(t.squares, b, squares)
        if t.clipped and is_last:
            norm = call(t.sum_squares, (t.gradient + size * at, n_elements, penalty))
            store(t.norms, b, norm)


@jit
def _epoch(thread, task, like):
    """See `epoch`."""
    t, kind = _task(task, 0), type(like)
    n_threads, control, barrier = t.n_threads, t.control, t.barrier
    accumulated = t.loss_before
    count = 0
    first_step = load(control, FIRST_STEP, np.int64(0)) - t.first_step
    for step in range(t.first_step, t.stop_step):
        begin = step * t.batch_size
        stop = min(begin + t.batch_size, t.n_samples)
        total_weight = _total_weight(t.weights, t.order, begin, stop, like)
        if total_weight != 0.0:
            loss = 0.0
            for part in range((stop - begin + t.micro_batch - 1) // t.micro_batch):
                start = begin + part * t.micro_batch
                n = min(t.micro_batch, stop - start)
                scale = kind(1 / total_weight)
                _forward_backward(thread, task, first_step + step, begin, start, n, scale, like)
                n_parts = _n_parts(task, n)
                is_shared = n_threads > 1 and n_parts > 1
                if is_shared:
                    if n_parts % n_threads:  # it needs rows of other threads
                        count += 1
                        if not _wait_for_all(barrier, control, n_threads, count):
                            return accumulated
                    _gradients_of_parts(thread, task, start, n, n_parts, like)
                count += 1
                if not _wait_for_all(barrier, control, n_threads, count):
                    return accumulated
                if thread == 0:
                    loss += _sum_losses(t.weights, t.order, t.losses, start, n, like)
                    store(control, DECISION, load(control, STOP, np.int64(0)))
                is_last = start + t.micro_batch >= stop
                penalty = kind(t.alpha / total_weight)
                _weight_gradient(thread, task, step, start, n, n_parts, is_shared, start == begin,
                                 is_last, penalty)  # fmt: skip
                count += 1
                if not _wait_for_all(barrier, control, n_threads, count):
                    return accumulated
                if load(control, DECISION, np.int64(0)) and not is_last:
                    return accumulated
            if t.clipped:
                first, end = (
                    load(t.bounds, thread, np.int64(0)), load(t.bounds, thread + 1, np.int64(0))
                )  # fmt: skip
                call(t.update_clipped, (task, first, end, step))
                count += 1
                if not _wait_for_all(barrier, control, n_threads, count):
                    return accumulated
            if thread == 0:
                squared = 0.0
                for b in range(t.n_gradient_blocks):
                    squared += load(t.squares, b, like)
                accumulated += (loss + 0.5 * t.alpha * squared) / total_weight * (stop - begin)
        else:
            count += 1
            if not _wait_for_all(barrier, control, n_threads, count):
                return accumulated
        if thread == 0:
            store(control, STEPS, load(control, STEPS, np.int64(0)) + 1)
        if load(control, DECISION, np.int64(0)):
            return accumulated
    return accumulated


def epoch(thread, task):
    """One pass over the samples in steps of a batch, as thread ``thread``.

    A batch whose weights sum to zero carries no information and is passed over.  A helper with a
    standby flag waits there for the word to go over the data once more, whose order and numbers
    the caller has changed in place.  So there is a barrier after the last batch, whatever it
    weighs: a thread that still summed up its weights would read the next epoch's order.

    Returns
    -------
    float
        Thread 0: the sum of (mean loss of a batch, penalty included) x (its length).
    """
    before = flush_subnormals()
    while True:
        loss = _epoch(thread, task, REAL(0))
        if thread == 0 or not stand_by(_task(task, 0).standby, thread):
            restore(before)
            return loss


def step(thread, task):
    """One step of the optimizer with the gradient that is in memory, clipped by its norm."""
    t, none = _task(task, 0), np.int64(0)
    call(t.update_clipped, (task, none, t.n_gradient_blocks, none))
    return 0.0


@jit
def _are_finite(values, n, like):
    """Whether all numbers are: an exponent of ones only, plus one, has a bit more."""
    if size_of(like) == 4:
        found = np.int32(0)
        for i in range(n):
            found = np.int32(found | (((load(values, i, np.int32(0)) >> 23) & 0xFF) + 1))
        return found < 0x100
    wide = np.int64(0)
    for i in range(n):
        wide |= ((load(values, i, np.int64(0)) >> 52) & 0x7FF) + 1
    return wide < 0x800


def outputs(thread, task):
    """Forward pass over all samples in row blocks, dealt out to the threads in turn.

    Each thread has a row block's workspace of its own.  Outputs (n_samples, n_outputs) go to
    ``out``, or if that is 0, each block's weighted sum of losses to ``row_block_losses``.  If the
    task ``checks``, the first dense sample found that is not finite ends it.
    """
    like = REAL(0)
    t, size = _task(task, 0), size_of(like)
    stride, n_outputs = _layer(t.layers, t.n_layers).stride, _layer(t.layers, t.n_layers).width
    place = thread * ROW_BLOCK
    scales, losses = t.scales + size * place, t.losses + size * place
    n_blocks = (t.n_samples + ROW_BLOCK - 1) // ROW_BLOCK
    for turn in range((n_blocks - thread + t.n_threads - 1) // t.n_threads):
        if load(t.control, STOP, np.int64(0)):
            return 0.0
        block = thread + turn * t.n_threads
        start = block * ROW_BLOCK
        rows = min(ROW_BLOCK, t.n_samples - start)
        z = call(t.forward, (task, np.int64(0), start, start, np.int64(0), rows, place))
        first = _layer(t.layers, 0)
        A = t.work + size * (first.activations + place * first.stride)
        if t.checks and not _are_finite(A, rows * first.stride, like):
            store(t.control, NOT_FINITE, np.int64(1))
        if load(t.control, NOT_FINITE, np.int64(0)):
            return 0.0
        for i in range(rows):
            store(scales, i, REAL(1))
        if not t.out:
            call(t.head, (task, t.order + 8 * start, rows, place, z))
            loss = _sum_losses(t.weights, t.order, losses, start, rows, like)
            store(t.row_block_losses, block, loss)
            continue
        if t.softmax:
            call(t.softmax_rows, (z, stride, rows, _padded(n_outputs, like), scales,
                                  t.sums + size * place, t.peaks + size * place))  # fmt: skip
        elif t.link:
            call(t.link, (z, z, stride, rows, n_outputs, like))
        out = t.out + size * start * n_outputs
        for i in range(rows):
            copy_bytes(out + size * i * n_outputs, z + size * i * stride, size * n_outputs)
    return 0.0


def refresh_transposed(thread, task):
    """Rebuild the transposed copy after the parameters were set."""
    like = REAL(0)
    t = _task(task, 0)
    for b in range(t.n_gradient_blocks):
        layer, column, first, end = _gradient_block_at(task, b, like)
        width = _width_at(_layer(t.layers, layer), column)
        _refresh(task, layer, column, width, first, end)
    return 0.0


def pack(thread, packing):
    """Flat vector -> packed parameters or state, the output's padded biases as given."""
    like = REAL(0)
    p, size, none = _packing(packing, 0), size_of(like), np.int64(0)
    flat, n_layers = p.flat, p.n_layers
    for layer in range(n_layers):
        fan_in, fan_out = load(p.widths, layer, none), load(p.widths, layer + 1, none)
        rows, weights = load(p.rows, layer, none), load(p.weights, layer, none)
        columns, most = load(p.columns, layer, none), load(p.panel_widths, layer, none)
        filling = REAL(p.padding_bias if layer == n_layers - 1 else 0.0)
        column = np.int64(0)
        while column < columns:
            width = min(most, columns - column)
            used = min(width, fan_out - column)
            panel = p.packed + size * (weights + column * rows)
            for i in range(fan_in + 1):
                row = panel + size * i * width
                copy_bytes(row, flat + size * (i * fan_out + column), size * used)
                for k in range(used, width):
                    store(row, k, filling if i == fan_in else REAL(0))
            for k in range((fan_in + 1) * width, rows * width):
                store(panel, k, REAL(0))
            column += width
        flat += size * (fan_in + 1) * fan_out
    return 0.0


def unpack(thread, packing):
    """Packed parameters, gradient or state -> the flat vector."""
    like = REAL(0)
    p, size, none = _packing(packing, 0), size_of(like), np.int64(0)
    flat = p.flat
    for layer in range(p.n_layers):
        fan_in, fan_out = load(p.widths, layer, none), load(p.widths, layer + 1, none)
        rows, weights = load(p.rows, layer, none), load(p.weights, layer, none)
        columns, most = load(p.columns, layer, none), load(p.panel_widths, layer, none)
        column = np.int64(0)
        while column < columns:
            width = min(most, columns - column)
            used = min(width, fan_out - column)
            panel = p.packed + size * (weights + column * rows)
            for i in range(fan_in + 1):
                copy_bytes(flat + size * (i * fan_out + column), panel + size * i * width,
                           size * used)  # fmt: skip
            column += width
        flat += size * (fan_in + 1) * fan_out
    return 0.0


def softmax_rows(z, stride, rows, columns, scales, sums, peaks):
    """See `fastmlp.engine.cpu.kernels.tiles.softmax`."""
    softmax(z, stride, rows, columns, scales, sums, peaks, REAL(0))
    return np.int64(0)


PIECES = {
    "epoch": Piece(epoch, "iid"),
    "step": Piece(step, "iid"),
    "outputs": Piece(outputs, "iid"),
    "refresh_transposed": Piece(refresh_transposed, "iid"),
    "pack": Piece(pack, "iid"),
    "unpack": Piece(unpack, "iid"),
    "forward": Piece(forward, "iiiiiiii"),
    "forward_sparse": Piece(forward_sparse, "iiiiii"),
    "forward_narrow": Piece(forward_narrow, "iiiiii"),
    "head_softmax": Piece(head_softmax, "iiiiii"),
    "head_elementwise": Piece(head_elementwise, "iiiiii"),
    "softmax_rows": Piece(softmax_rows, "iiiiiiii"),
    "backward": Piece(backward, "iiiii"),
    "transpose": Piece(transpose_block, "iiiiiii"),
    "gradient_block": Piece(gradient_block, "iiiiiiiiiiiiiiiirr"),
    "gradient_sparse": Piece(gradient_sparse, "iiiiiiii"),
    "gradient_narrow": Piece(gradient_narrow, "iiiiiiiii"),
    "update_clipped": Piece(update_clipped, "iiiii"),
}
