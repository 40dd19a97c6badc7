"""The kernel of the resident path: many steps, a whole epoch, in one launch.

A small network's step on a GPU is all latency: a dozen launches of two microseconds each around
less than one microsecond of arithmetic.  So one launch stays for the epoch.  Its blocks, no more
than can run at once, each take a share of the batch's rows through the network and back; after a
barrier of the whole grid (0.96 us on an H100), each sums a slice of the gradient over all blocks
and updates that slice of the parameters; then comes a second barrier.  Parameters, state and
gradients travel through L2 and never leave the chip.

Shared memory holds the weights, copied anew in each step, and a row tile: R rows of a block's
activations and deltas.  Weights lie as ``[W; b]`` by rows of `pitch_of` elements, zeros at their
ends.  The row tile lies by columns of P elements, which vectors of four rows are read from; the
column behind each layer's is 1, as in `kernels`.  Pitches are odd multiples of four elements, so
that vectors of neighbouring rows or columns lie in different banks.  What each step reads once is
read before it is needed: at a barrier everything that is cached close by is lost.

Same seed, same GPU, same bits: each sum has one order.
"""

from collections.abc import Callable
from math import exp, log
from typing import Any

from numba import float64, int32, int64

from fastmlp.engine.cuda.kernels import (
    FULL_WARP,
    add_over_block,
    add_over_warp,
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
    wait_for_all_copies,
)

# Bound by `Device.kernel`.
REAL: Any = None  # element type
GROUP = 0  # elements in 16 bytes
THREADS = 0
R = 4  # rows of a row tile, a multiple of 4
P = 4  # elements between its columns
ACTIVATION: Callable[..., Any] = unbound
DERIVATIVE: Callable[..., Any] = unbound
KEEP_DERIVATIVE: Callable[..., Any] = unbound
TAKE_DERIVATIVE: Callable[..., Any] = unbound
HEAD: Callable[..., Any] = unbound
FORMULA: Callable[..., Any] = unbound  # the loss
GRADIENT: Callable[..., Any] = unbound  # of the loss
LOSS: Callable[..., Any] = unbound
N_NUMBERS = 0  # per step, for the optimizer
AVERAGE: Callable[..., Any] = unbound

MOST_LAYERS = 16
MOST_WIDTHS, MOST_ENDS = MOST_LAYERS + 1, 2 * MOST_LAYERS
MOST_SLICES = 32  # lanes of a warp
LEAST_TERMS = 4  # per slice


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
    for i in range(cuda.threadIdx.x // 32, R if rows > 0 else 0, THREADS // 32):
        sample = order[first + i] if i < rows else 0
        for k in range(lane, n_features, 32):
            copy_element_async(memory, a + k * P + i, X, sample * n_features + k, i < rows)
        if lane == 0:
            picked[i] = sample
    commit_copies()


def load_four(part, memory, at):
    """Four elements that follow each other."""
    for i in range(0, 4, GROUP):
        load_vector(part, i, memory, at + i)


def keep_derivative(memory, at, score):
    """For an activation whose output does not tell the derivative."""
    memory[at] = DERIVATIVE(score)


def keep_nothing(memory, at, score):
    """For the others."""


def kept_derivative(memory, output, kept):
    """The derivative that `keep_derivative` left."""
    return memory[kept]


def derivative_of_output(memory, output, kept):
    """The derivative that the output tells."""
    return DERIVATIVE(memory[output])


def count_slices(n_sums, n_terms):
    """Neighbouring lanes that share the terms of a sum, where there are fewer sums than threads; a
    power of two.
    """
    slices = 1
    while (
        2 * slices * n_sums <= THREADS
        and slices < MOST_SLICES
        and 2 * slices * LEAST_TERMS <= n_terms
    ):
        slices *= 2
    return int32(slices)


def add_over_slices(value, slices):
    """Sum over neighbouring lanes, for all of them."""
    distance = slices // 2
    while distance > 0:
        value += cuda.shfl_xor_sync(FULL_WARP, value, distance)
        distance //= 2
    return value


def whole_warps(n):
    """Threads of the warps that hold ``n`` threads."""
    return int32((n + 31) // 32 * 32)


def forward(memory, a, w, out, derivatives, fan_in, fan_out, hidden):
    """Columns from ``out`` on = activation of (columns from ``a`` on) @ [W; b].

    Four rows of an output to a thread, or to some lanes that share the terms.
    """
    slices, pitch = count_slices(R // 4 * fan_out, fan_in + 1), int32(pitch_of(fan_out))
    n = int32(R // 4 * fan_out * slices)
    x = cuda.local.array(4, REAL)
    for e in range(cuda.threadIdx.x, whole_warps(n), THREADS):
        which = quotient(int32(min(e, n - 1)), slices)
        i = quotient(which, fan_out)
        j, i = int32(which - i * fan_out), int32(4 * i)
        s0 = s1 = s2 = s3 = REAL(0)
        first = int32(e & (slices - 1))
        at_w, at_a = int32(w + first * pitch + j), int32(a + first * P + i)
        for _ in range(first, fan_in + 1, slices):
            weight = load_shared(memory, at_w)
            load_four(x, memory, at_a)
            s0 += x[0] * weight
            s1 += x[1] * weight
            s2 += x[2] * weight
            s3 += x[3] * weight
            at_w, at_a = int32(at_w + slices * pitch), int32(at_a + slices * P)
        s0, s1 = add_over_slices(s0, slices), add_over_slices(s1, slices)
        s2, s3 = add_over_slices(s2, slices), add_over_slices(s3, slices)
        if e < n and first == 0:
            z = int32(out + j * P + i)
            if hidden:
                d = int32(derivatives + j * P + i)
                KEEP_DERIVATIVE(memory, d, s0)
                KEEP_DERIVATIVE(memory, d + 1, s1)
                KEEP_DERIVATIVE(memory, d + 2, s2)
                KEEP_DERIVATIVE(memory, d + 3, s3)
                s0, s1, s2, s3 = ACTIVATION(s0), ACTIVATION(s1), ACTIVATION(s2), ACTIVATION(s3)
            memory[z], memory[z + 1], memory[z + 2], memory[z + 3] = s0, s1, s2, s3


def gradient(memory, a, delta, partial, at, fan_in, fan_out, fresh):
    """The row tile's share of a layer's gradient; four parameters of a column to a thread."""
    d, x = cuda.local.array(4, REAL), cuda.local.array(4, REAL)
    sums = cuda.local.array(4, REAL)
    for e in range(cuda.threadIdx.x, (fan_in + 4) // 4 * fan_out, THREADS):
        k = quotient(int32(e), fan_out)
        j, k = int32(e - k * fan_out), int32(4 * k)
        at_d, at_x = int32(delta + j * P), int32(a + k * P)
        for q in range(4):
            sums[q] = 0
        for i in range(0, R, 4):
            load_four(d, memory, at_d + i)
            for q in range(4):
                load_four(x, memory, at_x + q * P + i)
                sums[q] += x[0] * d[0] + x[1] * d[1] + x[2] * d[2] + x[3] * d[3]
        i = at + int32(k * fan_out + j)
        for q in range(4):
            if k + q <= fan_in:
                if fresh:
                    partial[i + q * fan_out] = sums[q]
                else:
                    partial[i + q * fan_out] += sums[q]


def input_gradient(memory, a, delta, below, w, fan_in, fan_out):
    """Columns from ``below`` on = (columns from ``delta`` on) @ W^T, times the derivative at the
    columns from ``a`` on; shared among threads as in `forward`.
    """
    slices, pitch = count_slices(R // 4 * fan_in, fan_out), int32(pitch_of(fan_out))
    n = int32(R // 4 * fan_in * slices)
    d, v = cuda.local.array(4, REAL), cuda.local.array(4, REAL)
    for e in range(cuda.threadIdx.x, whole_warps(n), THREADS):
        which = quotient(int32(min(e, n - 1)), slices)
        i = quotient(which, fan_in)
        k, i = int32(which - i * fan_in), int32(4 * i)
        s0 = s1 = s2 = s3 = REAL(0)
        first = int32(4 * (e & (slices - 1)))
        at_w, at_d = int32(w + k * pitch + first), int32(delta + first * P + i)
        for _ in range(first, fan_out, 4 * slices):
            load_four(v, memory, at_w)
            for c in range(4):
                load_four(d, memory, at_d + c * P)
                s0 += d[0] * v[c]
                s1 += d[1] * v[c]
                s2 += d[2] * v[c]
                s3 += d[3] * v[c]
            at_w, at_d = int32(at_w + 4 * slices), int32(at_d + 4 * slices * P)
        s0, s1 = add_over_slices(s0, slices), add_over_slices(s1, slices)
        s2, s3 = add_over_slices(s2, slices), add_over_slices(s3, slices)
        if e < n and first == 0:
            x, z = int32(a + k * P + i), int32(below + k * P + i)
            memory[z] = s0 * TAKE_DERIVATIVE(memory, x, z)
            memory[z + 1] = s1 * TAKE_DERIVATIVE(memory, x + 1, z + 1)
            memory[z + 2] = s2 * TAKE_DERIVATIVE(memory, x + 2, z + 2)
            memory[z + 3] = s3 * TAKE_DERIVATIVE(memory, x + 3, z + 3)


def head(memory, z, delta, i, n_outputs, targets, sample, scale, divisor, tiny, constants,
         smoothing):  # fmt: skip
    """One row's scaled gradient; returns its loss, for lane 0 of the row's warp."""
    lane = cuda.threadIdx.x % 32
    total = REAL(0)
    for k in range(lane, n_outputs, 32):
        score, y = memory[z + k * P + i], targets[sample * n_outputs + k]
        y -= smoothing * (y - REAL(0.5))
        value, slope = LOSS(score, y, tiny, constants[k])
        total += value
        memory[delta + k * P + i] = scale * slope
    total = add_over_warp(total)
    return total / divisor


def softmax_sums(memory, z, i, n_outputs):
    """(greatest score, sum of exp(score - greatest)) of one row, for every lane of its warp."""
    lane = cuda.threadIdx.x % 32
    peak = memory[z + i]
    for k in range(lane, n_outputs, 32):
        score = memory[z + k * P + i]
        peak = score if not score <= peak else peak
    for distance in (16, 8, 4, 2, 1):
        other = cuda.shfl_xor_sync(FULL_WARP, peak, distance)
        peak = other if not other <= peak else peak
    total = REAL(0)
    for k in range(lane, n_outputs, 32):
        total += exp(memory[z + k * P + i] - peak)
    total = add_over_warp(total)
    return peak, total


def softmax_head(memory, z, delta, i, n_outputs, targets, sample, scale, divisor, tiny, constants,
                 smoothing):  # fmt: skip
    """`head` for the log loss of softmax; ``targets`` are class numbers."""
    lane, label = cuda.threadIdx.x % 32, targets[sample]
    peak, total = softmax_sums(memory, z, i, n_outputs)
    for k in range(lane, n_outputs, 32):
        share = exp(memory[z + k * P + i] - peak) / total
        memory[delta + k * P + i] = scale * (share - REAL(1) if k == label else share)
    return FORMULA(log(total), memory[z + label * P + i] - peak, tiny)


def probability_head(memory, z, delta, i, n_outputs, targets, sample, scale, divisor, tiny,
                     constants, smoothing):  # fmt: skip
    """`softmax_head` for other losses of the probabilities of all classes."""
    lane, label = cuda.threadIdx.x % 32, targets[sample]
    peak, total = softmax_sums(memory, z, i, n_outputs)
    peak += log(total)
    loss, pull = REAL(0), REAL(0)
    for k in range(lane, n_outputs, 32):
        y = class_target(k, label, n_outputs, smoothing)
        log_p = memory[z + k * P + i] - peak
        slope = GRADIENT(exp(log_p), log_p, y, constants[k])
        loss += FORMULA(exp(log_p), log_p, y, constants[k])
        pull += slope
        memory[delta + k * P + i] = slope
    loss = add_over_warp(loss)
    pull = add_over_warp(pull)
    for k in range(lane, n_outputs, 32):
        share, d = exp(memory[z + k * P + i] - peak), delta + k * P + i
        memory[d] = scale * (memory[d] - share * pull)
    return loss


# --- the kernel -------------------------------------------------------------------------------


def lay_out(memory, activations, sizes, ends, widths, layers, n_layers):
    """Shared memory before the first step; returns how far deltas lie behind activations.

    Zeros but for the ones behind each layer; the network's widths and its layers' ends.
    """
    thread = cuda.threadIdx.x
    if thread <= n_layers:
        sizes[thread] = widths[thread]
    if thread < 2 * n_layers:
        ends[thread] = layers[thread]
    n_columns = int32(n_layers + 1)
    for layer in range(n_layers + 1):
        n_columns = int32(n_columns + widths[layer])
    deltas = int32(n_columns * P)  # in the same order
    for e in range(thread, activations + 2 * deltas + 4 * P, THREADS):
        memory[e] = REAL(0)
    cuda.syncthreads()
    n_columns = int32(0)
    for layer in range(n_layers + 1):
        n_columns = int32(n_columns + sizes[layer] + 1)
        if thread < R:
            memory[activations + (n_columns - 1) * P + thread] = REAL(1)
    return deltas


def forward_all(memory, a, deltas, sizes, n_layers):
    """All layers' activations from those at ``a``; returns where the last ones lie, and where the
    weights end.
    """
    w = int32(0)
    for layer in range(n_layers):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        out = int32(a + (fan_in + 1) * P)
        forward(memory, a, w, out, int32(deltas + out), fan_in, fan_out,
                layer < n_layers - 1)  # fmt: skip
        cuda.syncthreads()
        a, w = out, int32(w + (fan_in + 1) * pitch_of(fan_out))
    return a, w


def backward_all(memory, a, deltas, w, partial, n, sizes, n_layers, fresh):
    """All layers' gradients, to the block's part of ``partial``, from what `forward_all` has
    returned; ``fresh`` ones replace what is there.
    """
    block, at = cuda.blockIdx.x, int32(n)
    for layer in range(n_layers - 1, -1, -1):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        delta = int32(deltas + a)
        a = int32(a - (fan_in + 1) * P)
        at = int32(at - (fan_in + 1) * fan_out)
        w = int32(w - (fan_in + 1) * pitch_of(fan_out))
        gradient(memory, a, delta, partial, int64(block) * n + at, fan_in, fan_out, fresh)
        if layer > 0:
            input_gradient(memory, a, delta, int32(deltas + a), w, fan_in, fan_out)
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
    picked = cuda.shared.array(R, int64)
    step_numbers = cuda.shared.array(N_NUMBERS, REAL)
    thread, block, n_blocks = cuda.threadIdx.x, cuda.blockIdx.x, cuda.gridDim.x
    n, n_layers, n_working = int32(n), int32(n_layers), int32(n_working)
    activations = int32(n_weights_shared)
    deltas = lay_out(memory, activations, sizes, ends, widths, layers, n_layers)
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
            a, w = forward_all(memory, activations, deltas, sizes, n_layers)
            for e in range(thread, R * n_outputs, THREADS):
                if e % R >= rows:
                    memory[deltas + a + e // R * P + e % R] = REAL(0)
            for i in range(thread // 32, rows, THREADS // 32):
                sample = picked[i]
                weight = weights[sample] if n_weights else REAL(1)
                value = HEAD(memory, a, int32(deltas + a), i, n_outputs, targets, sample,
                             scale * weight, divisor, tiny, constants, smoothing)  # fmt: skip
                if thread % 32 == 0:
                    loss += share * (weight * value)
            cuda.syncthreads()
            backward_all(memory, a, deltas, w, partial, n, sizes, n_layers, first == begin)
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
    begin = quotient(int32(block * n_rows), n_working)
    return begin, quotient(int32((block + 1) * n_rows), n_working)


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
