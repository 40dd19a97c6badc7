"""The kernel of the resident path: many steps, a whole epoch, in one launch.

A small network's step on a GPU is all latency: a dozen launches of two microseconds each around
less than one microsecond of arithmetic.  So one launch stays for the epoch.  Its blocks, no more
than can run at once, each take a share of the batch's rows through the network and back; after a
barrier of the whole grid (0.96 us on an H100), each sums a slice of the gradient over all blocks
and updates that slice of the parameters; then comes a second barrier.  Parameters, state and
gradients travel through L2 and never leave the chip.

Shared memory holds the weights, copied anew in each step, and a row tile: R rows of a block's
activations.  Weights lie as ``[W; b]`` by rows of `pitch_of` elements, zeros at their ends.  The
row tile lies by columns of P elements, which vectors of four rows are read from; the column behind
each layer's is 1, as in `kernels`.  Derivatives lie behind all activations, and on the way back
deltas take their place; in tiles of many rows, for which memory is short, deltas take that of
activations, if these tell the derivative.  Pitches are odd multiples of four elements, so that
vectors of neighbouring rows or columns lie in different banks.  What each step reads once is read
before it is needed: at a barrier everything that is cached close by is lost.

A thread has TM x TN sums of a product at a time, its part.  Tiles of few rows have few sums to give
to many threads, and what counts is how long one takes: 4 x 1.  Large batches come in tiles of many
rows, one after the other, and what counts is how many sums each load from shared memory serves:
4 x 4, or 8 x 4.  (8 x 8 needs so many registers that there are threads for half as many warps, too
few to hide what is beside the loops.)  So activations of large batches never leave the chip, which
on the tiled path they do.  bench/cuda_model.py has what either path takes.

Same seed, same GPU, same bits: each sum has one order.
"""

from collections.abc import Callable
from math import exp, log
from typing import Any

from numba import float64, int32, int64

from fastmlp.engine.cuda.kernels import (
    FULL_WARP,
    add_over_block,
    apply_rule,
    class_target,
    is_weight,
    unbound,
)
from fastmlp.engine.cuda.numba_cuda import cuda
from fastmlp.engine.cuda.ptx import (
    add_release,
    commit_copies,
    copy_element_async,
    copy_vector_async,
    load_acquire,
    load_shared,
    load_vector,
    quotient,
    store_vector,
    wait_for_all_copies,
)

# Bound by `Device.kernel`.
REAL: Any = None  # element type
GROUP = 0  # elements in 16 bytes
THREADS = 0
R = 4  # rows of a row tile, a multiple of TM
P = 4  # elements between its columns
TM, TN = 4, 1  # of a thread's part of a product, multiples of 4; TN can be 1
VN = 1  # columns in a vector of weights
SUMS, PART_N = 4, 4  # TM x TN, and four terms of TN
MARGIN = 4  # columns behind the last one that are read
LANES = 32  # that share the outputs of a row
IN_PLACE = True  # whether deltas take the place of activations
OF_SCORE = False  # whether an activation's derivative is worked out from the score
ACTIVATION: Callable[..., Any] = unbound
DERIVATIVE: Callable[..., Any] = unbound
HEAD: Callable[..., Any] = unbound
FORMULA: Callable[..., Any] = unbound  # the loss
GRADIENT: Callable[..., Any] = unbound  # of the loss
LOSS: Callable[..., Any] = unbound
N_NUMBERS = 0  # per step, for the optimizer
AVERAGE: Callable[..., Any] = unbound

MOST_LAYERS = 16
MOST_WIDTHS, MOST_ENDS, MOST_SHIFTS = MOST_LAYERS + 1, 2 * MOST_LAYERS, 3 * MOST_LAYERS
MOST_SHIFT = 5  # of a warp's lanes
LEAST_TERMS = 4  # of a lane


def pitch_of(fan_out: int) -> int:
    """Elements between rows of weights in shared memory."""
    return 4 * ((fan_out + 3) // 4 | 1)


# --- device functions -------------------------------------------------------------------------


def grid_barrier(barrier, n_times):
    """Wait until all blocks have come here for the ``n_times``-th time."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        add_release(barrier, 0, 1)
        while load_acquire(barrier, 0) < n_times * cuda.gridDim.x:
            pass
    cuda.syncthreads()


def fetch_weights(memory, parameters, widths, n_layers):
    """Start copying all weights; a warp per row."""
    lane, n_warps = cuda.threadIdx.x % 32, THREADS // 32
    source, target = int32(0), int32(0)
    for layer in range(n_layers):
        fan_in, fan_out = widths[layer], widths[layer + 1]
        pitch = int32(pitch_of(fan_out))
        aligned = (fan_out | source) % 4 == 0
        for k in range(cuda.threadIdx.x // 32, fan_in + 1, n_warps):
            to, at = int32(target + k * pitch), int32(source + k * fan_out)
            if aligned:
                for j in range(GROUP * lane, fan_out, GROUP * 32):
                    copy_vector_async(memory, to + j, parameters, at + j, True)
            else:
                for j in range(lane, fan_out, 32):
                    copy_element_async(memory, to + j, parameters, at + j, True)
        source = int32(source + (fan_in + 1) * fan_out)
        target = int32(target + (fan_in + 1) * pitch)
    commit_copies()


def fetch_rows(memory, a, picked, order, first, rows, X, n_features):
    """Start copying samples of a row tile, whose numbers go to ``picked``; missing rows are zero.
    A warp per row.  Without any row nothing is copied, because nobody would wait for it.
    """
    lane = cuda.threadIdx.x % 32
    n_each = (R + THREADS // 32 - 1) // (THREADS // 32)
    begin = cuda.threadIdx.x // 32 * n_each
    mine = order[first + begin + lane] if lane < n_each and begin + lane < rows else int64(0)
    for i in range(begin, min(R, begin + n_each) if rows > 0 else begin):
        sample = cuda.shfl_sync(FULL_WARP, mine, i - begin)
        for k in range(lane, n_features, 32):
            copy_element_async(memory, a + k * P + i, X, sample * n_features + k, i < rows)
        if lane == 0:
            picked[i] = sample
    commit_copies()


def load_four(part, k, memory, at):
    """Four elements that follow each other."""
    for i in range(0, 4, GROUP):
        load_vector(part, k + i, memory, at + i)


def store_four(memory, at, part, k):
    """The same, back."""
    for i in range(0, 4, GROUP):
        store_vector(memory, at + i, part, k + i)


def load_rows(part, memory, at):
    """A thread's TM rows of a column: vectors, each the R / TM threads' side by side."""
    for i in range(0, TM, 4):
        load_four(part, i, memory, at + i * (R // TM))


def load_columns(part, memory, at, n_groups):
    """A thread's TN columns of a row of weights: vectors, each the ``n_groups`` threads' side by
    side.
    """
    if VN == 1:
        part[0] = load_shared(memory, at)
    else:
        for j in range(0, TN, VN):
            load_four(part, j, memory, at + j * n_groups)


def find_shift(n_parts, n_terms):
    """Of how many lanes of a warp share the terms of their sums, where there are fewer parts of a
    product than threads: the binary logarithm.
    """
    shift = 0
    while (
        n_parts << shift + 1 <= THREADS
        and shift < MOST_SHIFT
        and LEAST_TERMS << shift + 1 <= n_terms
    ):
        shift += 1
    return shift


def count_terms(n, part, shift):
    """Of ``n`` terms, groups of them, or columns, those that one of ``1 << shift`` lanes takes."""
    return int32(max(0, n - part + (1 << shift) - 1) >> shift)


def part_of(e, n_parts, shift):
    """Which part of a product is a thread's, which of its terms, and whether it has one: lanes side
    by side have parts side by side, so that they read vectors side by side.
    """
    lane, width = int32(e & 31), 5 - shift
    which = int32((e >> 5 << width) + (lane & (1 << width) - 1))
    return int32(min(which, n_parts - 1)), int32(lane >> width), which < n_parts


def rows_of(e, n_parts, shift):
    """`part_of` for products whose parts are rows of the row tile and a group of columns: the group
    and the first row, in the part's place.
    """
    which, part, is_mine = part_of(e, n_parts, shift)
    group = quotient(which, int32(R // TM))
    return group, int32(4 * (which - group * (R // TM))), part, is_mine


def add_over_lanes(sums, shift):
    """Sums over the lanes that share a part, for all of them."""
    distance = 16
    for _ in range(shift):
        for q in range(SUMS):
            sums[q] += cuda.shfl_xor_sync(FULL_WARP, sums[q], distance)
        distance >>= 1


def whole_warps(n):
    """Threads of the warps that hold ``n`` threads."""
    return int32((n + 31) // 32 * 32)


def clear(sums):
    """Zeros, before a part's first term."""
    for q in range(SUMS):
        sums[q] = 0


def forward(memory, a, w, out, derivatives, fan_in, fan_out, hidden, shift):
    """Columns from ``out`` on = activation of (columns from ``a`` on) @ [W; b].

    TM rows of TN outputs to a thread, or to some lanes that share the terms.
    """
    n_groups, pitch = int32((fan_out + TN - 1) // TN), int32(pitch_of(fan_out))
    n_parts, step = int32(R // TM * n_groups), int32(1 << shift)
    x, v = cuda.local.array(TM, REAL), cuda.local.array(TN, REAL)
    sums = cuda.local.array(SUMS, REAL)
    for e in range(cuda.threadIdx.x, whole_warps(n_parts << shift), THREADS):
        group, i, part, is_mine = rows_of(e, n_parts, shift)
        clear(sums)
        at_w, at_a = int32(w + part * pitch + group * VN), int32(a + part * P + i)
        for _ in range(count_terms(fan_in + 1, part, shift)):
            load_rows(x, memory, at_a)
            load_columns(v, memory, at_w, n_groups)
            for q in range(TN):
                for p in range(TM):
                    sums[q * TM + p] += x[p] * v[q]
            at_w, at_a = int32(at_w + step * pitch), int32(at_a + step * P)
        add_over_lanes(sums, shift)
        for q in range(TN):
            j = int32((group + q // VN * n_groups) * VN + q % VN)
            if is_mine and j < fan_out and q & (step - 1) == part:
                for p in range(0, TM, 4):
                    at = int32(out + j * P + i + p * (R // TM))
                    store_four(memory, at, sums, q * TM + p)
        for q in range(TN if hidden else 0):
            j = int32((group + q // VN * n_groups) * VN + q % VN)
            if is_mine and j < fan_out and q & (step - 1) == part:
                activate(memory, int32(j * P + i), out, derivatives)


def activate(memory, at, out, derivatives):
    """A thread's rows of a column of scores become outputs."""
    y, d = cuda.local.array(4, REAL), cuda.local.array(4, REAL)
    for p in range(0, TM * (R // TM), 4 * (R // TM)):
        load_four(y, 0, memory, out + at + p)
        for c in range(4):
            score = y[c]
            y[c] = ACTIVATION(score)
            if not IN_PLACE:
                d[c] = DERIVATIVE(score if OF_SCORE else y[c])
        store_four(memory, out + at + p, y, 0)
        if not IN_PLACE:
            store_four(memory, derivatives + at + p, d, 0)


def gradient(memory, a, delta, partial, at, fan_in, fan_out, fresh, shift, reciprocal):
    """The row tile's share of a layer's gradient; TM x TN parameters to a thread, or to some lanes
    that share the rows.
    """
    n_lines, n_groups = int32((fan_in + TM) // TM), int32((fan_out + TN - 1) // TN)
    n_parts, step = int32(n_lines * n_groups), int32(1 << shift)
    x, d = cuda.local.array(4, REAL), cuda.local.array(PART_N, REAL)
    sums = cuda.local.array(SUMS, REAL)
    for e in range(cuda.threadIdx.x, whole_warps(n_parts << shift), THREADS):
        which, part, is_mine = part_of(e, n_parts, shift)
        line = int32(which * reciprocal >> 32)
        group = int32(which - line * n_groups)
        clear(sums)
        at_x, at_d = int32(a + line * P + 4 * part), int32(delta + group * P + 4 * part)
        for _ in range(count_terms(R // 4, part, shift)):
            for q in range(TN):
                load_four(d, 4 * q, memory, at_d + q * n_groups * P)
            for p in range(TM):
                load_four(x, 0, memory, at_x + p * n_lines * P)
                for c in range(4):
                    for q in range(TN):
                        sums[p * TN + q] += x[c] * d[4 * q + c]
            at_x, at_d = int32(at_x + 4 * step), int32(at_d + 4 * step)
        add_over_lanes(sums, shift)
        lines = int32(fan_in - line if is_mine else -1)  # from the thread's first to the last
        columns = int32(fan_out - group)
        if not fresh:  # all that is there at once, because it comes from afar
            i = at + line * fan_out + group
            for p in range(TM):
                if int32(p * n_lines) <= lines and p & (step - 1) == part:
                    for q in range(TN):
                        if int32(q * n_groups) < columns:
                            sums[p * TN + q] += partial[i + q * int64(n_groups)]
                i += n_lines * int64(fan_out)
        i = at + line * fan_out + group
        for p in range(TM):
            if int32(p * n_lines) <= lines and p & (step - 1) == part:
                for q in range(TN):
                    if int32(q * n_groups) < columns:
                        partial[i + q * int64(n_groups)] = sums[p * TN + q]
            i += n_lines * int64(fan_out)


def input_gradient(memory, delta, below, w, fan_in, fan_out, shift):
    """Columns from ``below`` on, which outputs or derivatives are in = (columns from ``delta`` on)
    @ W^T, times the derivative; shared among threads as in `forward`.
    """
    n_groups, pitch = int32((fan_in + TN - 1) // TN), int32(pitch_of(fan_out))
    n_parts, step = int32(R // TM * n_groups), int32(1 << shift)
    x, v, y = cuda.local.array(TM, REAL), cuda.local.array(PART_N, REAL), cuda.local.array(4, REAL)
    sums = cuda.local.array(SUMS, REAL)
    for e in range(cuda.threadIdx.x, whole_warps(n_parts << shift), THREADS):
        group, i, part, is_mine = rows_of(e, n_parts, shift)
        clear(sums)
        at_w, at_d = int32(w + group * pitch + 4 * part), int32(delta + 4 * part * P + i)
        for _ in range(count_terms((fan_out + 3) // 4, part, shift)):
            for q in range(TN):
                load_four(v, 4 * q, memory, at_w + q * n_groups * pitch)
            for c in range(4):
                load_rows(x, memory, at_d + c * P)
                for p in range(TM):
                    for q in range(TN):
                        sums[q * TM + p] += x[p] * v[4 * q + c]
            at_w, at_d = int32(at_w + 4 * step), int32(at_d + 4 * step * P)
        add_over_lanes(sums, shift)
        for q in range(TN if IN_PLACE else 0):
            k = int32(group + q * n_groups)
            if is_mine and k < fan_in and q & (step - 1) == part:
                derive(memory, int32(below + k * P + i))
        for q in range(TN):
            k = int32(group + q * n_groups)
            if is_mine and k < fan_in and q & (step - 1) == part:
                for p in range(0, TM, 4):
                    at = int32(below + k * P + i + p * (R // TM))
                    load_four(y, 0, memory, at)
                    for c in range(4):
                        y[c] *= sums[q * TM + p + c]
                    store_four(memory, at, y, 0)


def derive(memory, at):
    """A thread's rows of a column of outputs become derivatives."""
    y = cuda.local.array(4, REAL)
    for p in range(0, TM * (R // TM), 4 * (R // TM)):
        load_four(y, 0, memory, at + p)
        for c in range(4):
            y[c] = DERIVATIVE(y[c])
        store_four(memory, at + p, y, 0)


def add_over_row(value):
    """Sum over the lanes of a row, for all of them."""
    distance = LANES // 2
    while distance > 0:
        value += cuda.shfl_xor_sync(FULL_WARP, value, distance)
        distance //= 2
    return value


def head(memory, z, delta, i, n_outputs, targets, sample, scale, divisor, tiny, constants,
         smoothing):  # fmt: skip
    """One row's scaled gradient, which may take the scores' place; returns its loss."""
    total = REAL(0)
    for k in range(cuda.threadIdx.x % LANES, n_outputs, LANES):
        score, y = memory[z + k * P + i], targets[sample * n_outputs + k]
        y -= smoothing * (y - REAL(0.5))
        value, slope = LOSS(score, y, tiny, constants[k])
        total += value
        memory[delta + k * P + i] = scale * slope
    return add_over_row(total) / divisor


def softmax_sums(memory, z, i, n_outputs):
    """(greatest score, sum of exp(score - greatest)) of one row."""
    lane = cuda.threadIdx.x % LANES
    peak = memory[z + i]
    for k in range(lane, n_outputs, LANES):
        score = memory[z + k * P + i]
        peak = score if not score <= peak else peak
    distance = LANES // 2
    while distance > 0:
        other = cuda.shfl_xor_sync(FULL_WARP, peak, distance)
        peak = other if not other <= peak else peak
        distance //= 2
    total = REAL(0)
    for k in range(lane, n_outputs, LANES):
        total += exp(memory[z + k * P + i] - peak)
    return peak, add_over_row(total)


def softmax_head(memory, z, delta, i, n_outputs, targets, sample, scale, divisor, tiny, constants,
                 smoothing):  # fmt: skip
    """`head` for the log loss of softmax; ``targets`` are class numbers."""
    label = targets[sample]
    of_label = memory[z + label * P + i]
    peak, total = softmax_sums(memory, z, i, n_outputs)
    for k in range(cuda.threadIdx.x % LANES, n_outputs, LANES):
        share = exp(memory[z + k * P + i] - peak) / total
        memory[delta + k * P + i] = scale * (share - REAL(1) if k == label else share)
    return FORMULA(log(total), of_label - peak, tiny)


def probability_head(memory, z, delta, i, n_outputs, targets, sample, scale, divisor, tiny,
                     constants, smoothing):  # fmt: skip
    """`softmax_head` for other losses of the probabilities of all classes."""
    lane, label = cuda.threadIdx.x % LANES, targets[sample]
    peak, total = softmax_sums(memory, z, i, n_outputs)
    peak += log(total)
    loss, pull = REAL(0), REAL(0)
    for k in range(lane, n_outputs, LANES):
        y = class_target(k, label, n_outputs, smoothing)
        log_p = memory[z + k * P + i] - peak
        loss += FORMULA(exp(log_p), log_p, y, constants[k])
        pull += GRADIENT(exp(log_p), log_p, y, constants[k])
    loss, pull = add_over_row(loss), add_over_row(pull)
    for k in range(lane, n_outputs, LANES):
        y = class_target(k, label, n_outputs, smoothing)
        log_p = memory[z + k * P + i] - peak
        slope = GRADIENT(exp(log_p), log_p, y, constants[k]) - exp(log_p) * pull
        memory[delta + k * P + i] = scale * slope
    return loss


# --- the kernel -------------------------------------------------------------------------------


def plan(shifts, reciprocals, layer, fan_in, fan_out):
    """How a layer's three products are shared among threads, and what divides by the second's
    parts of a line: ``which * reciprocal >> 32``, exact up to 65535.
    """
    of_inputs, of_outputs = (fan_in + TN - 1) // TN, (fan_out + TN - 1) // TN
    shifts[3 * layer] = find_shift(R // TM * of_outputs, fan_in + 1)
    shifts[3 * layer + 1] = find_shift((fan_in + TM) // TM * of_outputs, R // 4)
    shifts[3 * layer + 2] = find_shift(R // TM * of_inputs, fan_out)
    reciprocals[layer] = int64(2**32) // of_outputs + 1


def lay_out(memory, activations, sizes, ends, shifts, reciprocals, widths, layers, n_layers):
    """Shared memory before the first step; returns how far deltas lie behind activations.

    Zeros but for the ones behind each layer; the network's widths, its layers' ends, and plans.
    """
    thread = cuda.threadIdx.x
    if thread < n_layers:
        plan(shifts, reciprocals, thread, widths[thread], widths[thread + 1])
    if thread <= n_layers:
        sizes[thread] = widths[thread]
    if thread < 2 * n_layers:
        ends[thread] = layers[thread]
    n_columns = int32(n_layers + 1)
    for layer in range(n_layers + 1):
        n_columns = int32(n_columns + widths[layer])
    deltas = int32(0 if IN_PLACE else n_columns * P)  # in the same order
    for e in range(thread, activations + (n_columns + MARGIN) * P + deltas, THREADS):
        memory[e] = REAL(0)
    cuda.syncthreads()
    n_columns = int32(0)
    for layer in range(n_layers + 1):
        n_columns = int32(n_columns + sizes[layer] + 1)
        for i in range(thread, R, THREADS):
            memory[activations + (n_columns - 1) * P + i] = REAL(1)
    return deltas


def forward_all(memory, a, deltas, sizes, shifts, n_layers):
    """All layers' activations from those at ``a``; returns where the last ones lie, and where the
    weights end.
    """
    w = int32(0)
    for layer in range(n_layers):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        out = int32(a + (fan_in + 1) * P)
        forward(memory, a, w, out, int32(deltas + out), fan_in, fan_out, layer < n_layers - 1,
                shifts[3 * layer])  # fmt: skip
        cuda.syncthreads()
        a, w = out, int32(w + (fan_in + 1) * pitch_of(fan_out))
    return a, w


def backward_all(memory, a, deltas, w, partial, n, sizes, shifts, reciprocals, n_layers, fresh):
    """All layers' gradients, to the block's part of ``partial``, from what `forward_all` has
    returned; ``fresh`` ones replace what is there.

    Weight gradients come last, all together, unless deltas take the place of what they are made of.
    """
    first, at = int64(cuda.blockIdx.x) * n, int32(n)
    for layer in range(n_layers - 1, -1, -1):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        delta = int32(deltas + a)
        a = int32(a - (fan_in + 1) * P)
        at = int32(at - (fan_in + 1) * fan_out)
        w = int32(w - (fan_in + 1) * pitch_of(fan_out))
        if IN_PLACE:
            gradient(memory, a, delta, partial, first + at, fan_in, fan_out, fresh,
                     shifts[3 * layer + 1], reciprocals[layer])  # fmt: skip
            cuda.syncthreads()
        if layer > 0:
            input_gradient(memory, delta, int32(deltas + a), w, fan_in, fan_out,
                           shifts[3 * layer + 2])  # fmt: skip
            cuda.syncthreads()
    if not IN_PLACE:
        for layer in range(n_layers):
            fan_in, fan_out = sizes[layer], sizes[layer + 1]
            below, a = a, int32(a + (fan_in + 1) * P)
            gradient(memory, below, int32(deltas + a), partial, first + at, fan_in, fan_out, fresh,
                     shifts[3 * layer + 1], reciprocals[layer])  # fmt: skip
            at = int32(at + (fan_in + 1) * fan_out)
        cuda.syncthreads()


def resident_epoch(control, barrier, n_steps, order, X, targets, weights, n_weights, scales,
                   numbers, shares, parameters, partial, n_working, slots, n, layers, widths,
                   n_layers, n_weights_shared, alpha, divisor, tiny, constants, smoothing, average,
                   average_rate, sums):  # fmt: skip
    """``n_steps`` steps from step ``control[0]`` on; a cooperative grid of blocks.

    The first ``n_working`` blocks take rows, and ``partial`` (n_working x n) holds the gradient of
    each; all update parameters.  To ``sums`` (blocks x 2) go each block's losses and squares of
    weights, those of a step times its ``shares``.
    """
    memory = cuda.shared.array(0, REAL, alignment=16)
    block_sums = cuda.shared.array(THREADS, float64)
    sizes = cuda.shared.array(MOST_WIDTHS, int32)
    ends = cuda.shared.array(MOST_ENDS, int32)
    shifts = cuda.shared.array(MOST_SHIFTS, int32)
    reciprocals = cuda.shared.array(MOST_LAYERS, int64)
    picked = cuda.shared.array(R, int64)
    step_numbers = cuda.shared.array(N_NUMBERS, REAL)
    thread, block, n_blocks = cuda.threadIdx.x, cuda.blockIdx.x, cuda.gridDim.x
    n, n_layers, n_working = int32(n), int32(n_layers), int32(n_working)
    activations = int32(n_weights_shared)
    deltas = lay_out(
        memory, activations, sizes, ends, shifts, reciprocals, widths, layers, n_layers
    )
    n_outputs, n_features = sizes[n_layers], sizes[0]
    # which of the slice of parameters this thread looks after, and at whose part of them
    n_slice = int32((n + n_blocks - 1) // n_blocks)
    slice_begin = int32(min(n, block * n_slice))
    slice_end = int32(min(n, slice_begin + n_slice))
    n_lanes = int32(min(whole_warps(n_slice), THREADS))
    n_teams = quotient(int32(THREADS), n_lanes)
    team = quotient(int32(thread), n_lanes)
    lane = int32(thread - team * n_lanes)
    loss, penalty = float64(0), float64(0)
    n_samples, batch_size = control[1], control[2]
    first_step = int32(control[0])
    last_step = int32(first_step + n_steps - 1)
    begin, end = share_of_batch(first_step, n_samples, batch_size, block, n_working)
    fetch_rows(memory, activations, picked, order, first_step * batch_size + begin,
               min(R, end - begin), X, n_features)  # fmt: skip
    for step in range(first_step, last_step + 1):
        start = step * batch_size
        begin, end = share_of_batch(step, n_samples, batch_size, block, n_working)
        if begin < end:
            fetch_weights(memory, parameters, sizes, n_layers)
        scale, share = scales[step], shares[step]
        if thread < N_NUMBERS:
            step_numbers[thread] = REAL(numbers[step * N_NUMBERS + thread])
        for i in range(thread, n if begin == end and block < n_working else 0, THREADS):
            partial[int64(block) * n + i] = REAL(0)
        for first in range(begin, end, R):
            rows = int32(min(R, end - first))
            wait_for_all_copies()
            cuda.syncthreads()
            a, w = forward_all(memory, activations, deltas, sizes, shifts, n_layers)
            for i in range(thread // LANES, R, THREADS // LANES):
                sample = picked[i]
                weight = weights[sample] if n_weights else REAL(1)
                value = HEAD(memory, a, int32(deltas + a), i, n_outputs, targets, sample,
                             scale * weight, divisor, tiny, constants, smoothing)  # fmt: skip
                if i >= rows:
                    for k in range(thread % LANES, n_outputs, LANES):
                        memory[deltas + a + k * P + i] = REAL(0)
                elif thread % LANES == 0:
                    loss += share * (weight * value)
            cuda.syncthreads()
            backward_all(memory, a, deltas, w, partial, n, sizes, shifts, reciprocals, n_layers,
                         first == begin)  # fmt: skip
            if first + R < end:
                fetch_rows(memory, activations, picked, order, start + first + R,
                           min(R, end - first - R), X, n_features)  # fmt: skip
        if step < last_step:
            begin, end = share_of_batch(step + 1, n_samples, batch_size, block, n_working)
            fetch_rows(memory, activations, picked, order, start + batch_size + begin,
                       min(R, end - begin), X, n_features)  # fmt: skip
        grid_barrier(barrier, 2 * step + 1)
        for chunk in range(slice_begin, slice_end, n_lanes):
            i = int32(chunk + lane)
            is_mine = team < n_teams and i < slice_end
            block_sums[thread] = sum_partial(partial, n, i, team, n_teams, n_working) if is_mine \
                else float64(0)  # fmt: skip
            cuda.syncthreads()
            if is_mine and team == 0:
                p, g = parameters[i], REAL(0)
                for other in range(n_teams):
                    g += REAL(block_sums[other * n_lanes + lane])
                heavy = is_weight(i, ends, n_layers)
                if heavy:
                    g += alpha * scale * p
                    penalty += share * (float64(p) * float64(p))
                if scale != 0:
                    p, slots[i], slots[n + i] = apply_rule(
                        p, g, slots[i], slots[n + i], heavy, step_numbers, 0
                    )
                    parameters[i] = p
                    AVERAGE(average, i, p, average_rate)
            cuda.syncthreads()
        grid_barrier(barrier, 2 * step + 2)
    loss = add_over_block(block_sums, loss)
    cuda.syncthreads()
    penalty = add_over_block(block_sums, penalty)
    if thread == 0:
        sums[2 * block] += loss
        sums[2 * block + 1] += penalty
    if block == 0 and thread == 0:
        control[0] = last_step + 1


def share_of_batch(step, n_samples, batch_size, block, n_working):
    """The first of a block's rows of a step's batch, and the first after them."""
    if block >= n_working:
        return int32(0), int32(0)
    n_rows = int32(min(batch_size, n_samples - step * batch_size))
    n_each = quotient(n_rows, n_working)
    n_larger = n_rows - n_each * n_working
    begin = int32(block * n_each + min(block, n_larger))
    return begin, int32(begin + n_each + (1 if block < n_larger else 0))


def sum_partial(partial, n, i, team, n_teams, n_working):
    """Parameter i's gradient, over every so many working blocks; four sums, which do not wait for
    each other's reads.
    """
    s0 = s1 = s2 = s3 = REAL(0)
    at, step = int64(team) * n + i, int64(n_teams) * n
    for other in range(team, n_working, 4 * n_teams):
        s0 += partial[at]
        if other + n_teams < n_working:
            s1 += partial[at + step]
        if other + 2 * n_teams < n_working:
            s2 += partial[at + 2 * step]
        if other + 3 * n_teams < n_working:
            s3 += partial[at + 3 * step]
        at += 4 * step
    return (s0 + s1) + (s2 + s3)
