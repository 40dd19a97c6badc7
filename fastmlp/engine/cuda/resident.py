"""The kernel of the resident path: many steps, a whole epoch, in one launch.

A small network's step on a GPU is all latency: a dozen launches of two microseconds each around
less than one microsecond of arithmetic.  So one launch stays for the epoch.  Its blocks, no more
than can run at once, each take a share of the batch's rows through the network and back; after a
barrier of the whole grid, each sum a slice of the gradient over all blocks and update that slice of
the parameters; then comes a second barrier.  Parameters and state are read and written through L2
and never leave the chip.

Shared memory holds a row tile, R rows of a block's activations and deltas, ``[column][row]``: a
thread reads four rows at once and uses each weight four times.  Beside the parameters lies a
transposed copy of each layer's weights for the input gradient, so that neighbouring threads always
read neighbouring weights.

Same seed, same GPU, same bits: each sum has one order.

Nothing here has run on a GPU.  On paper a step costs its two barriers, 1 to 2 microseconds each.
"""

from collections.abc import Callable
from math import exp, log
from typing import Any

from numba import cuda, float64

from fastmlp.engine.cuda.kernels import (
    FULL_WARP,
    add_over_block,
    add_over_warp,
    apply_rule,
    class_target,
    is_weight,
    unbound,
)
from fastmlp.engine.cuda.ptx import add_release, load_acquire

# Bound by `Device.kernel`.
REAL: Any = None  # element type
THREADS = 0
SHARED = 0  # elements of shared memory
R = 4  # rows of a row tile, a multiple of 4
ACTIVATION: Callable[..., Any] = unbound
DERIVATIVE: Callable[..., Any] = unbound
KEEP_DERIVATIVE: Callable[..., Any] = unbound
TAKE_DERIVATIVE: Callable[..., Any] = unbound
HEAD: Callable[..., Any] = unbound
FORMULA: Callable[..., Any] = unbound  # the loss
GRADIENT: Callable[..., Any] = unbound  # of the loss
LOSS: Callable[..., Any] = unbound
AVERAGE: Callable[..., Any] = unbound


# --- device functions -------------------------------------------------------------------------


def grid_barrier(barrier, n_times):
    """Wait until all blocks have come here for the ``n_times``-th time."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        add_release(barrier, 0, 1)
        while load_acquire(barrier, 0) < n_times * cuda.gridDim.x:
            pass
    cuda.syncthreads()


def gather_rows(memory, order, first, rows, X, n_features):
    """Samples of a row tile; missing rows are zero."""
    for e in range(cuda.threadIdx.x, R * n_features, THREADS):
        i, k = e // n_features, e % n_features
        memory[k * R + i] = X[order[first + i] * n_features + k] if i < rows else REAL(0)


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


def forward(memory, a, out, derivatives, parameters, at, fan_in, fan_out, hidden):
    """Columns ``out`` = activation of (columns ``a``) @ W + b; one thread per output, four rows."""
    for e in range(cuda.threadIdx.x, R // 4 * fan_out, THREADS):
        i, j = e // fan_out * 4, e % fan_out
        s0 = s1 = s2 = s3 = parameters[at + fan_in * fan_out + j]
        for k in range(fan_in):
            w, x = parameters[at + k * fan_out + j], (a + k) * R + i
            s0 += memory[x] * w
            s1 += memory[x + 1] * w
            s2 += memory[x + 2] * w
            s3 += memory[x + 3] * w
        z = (out + j) * R + i
        if hidden:
            d = (derivatives + j) * R + i
            KEEP_DERIVATIVE(memory, d, s0)
            KEEP_DERIVATIVE(memory, d + 1, s1)
            KEEP_DERIVATIVE(memory, d + 2, s2)
            KEEP_DERIVATIVE(memory, d + 3, s3)
            s0, s1, s2, s3 = ACTIVATION(s0), ACTIVATION(s1), ACTIVATION(s2), ACTIVATION(s3)
        memory[z], memory[z + 1], memory[z + 2], memory[z + 3] = s0, s1, s2, s3


def gradient(memory, a, delta, partial, at, fan_in, fan_out, fresh):
    """The row tile's share of a layer's gradient; one thread per parameter."""
    for e in range(cuda.threadIdx.x, (fan_in + 1) * fan_out, THREADS):
        k, j = e // fan_out, e % fan_out
        total = REAL(0)
        for i in range(R):
            x = memory[(a + k) * R + i] if k < fan_in else REAL(1)
            total += x * memory[(delta + j) * R + i]
        partial[at + e] = total if fresh else partial[at + e] + total


def input_gradient(memory, a, delta, below, transposed, at, fan_in, fan_out):
    """Columns ``below`` = (columns ``delta``) @ W^T, times the derivative at columns ``a``."""
    for e in range(cuda.threadIdx.x, R // 4 * fan_in, THREADS):
        i, k = e // fan_in * 4, e % fan_in
        s0 = s1 = s2 = s3 = REAL(0)
        for j in range(fan_out):
            w, d = transposed[at + j * fan_in + k], (delta + j) * R + i
            s0 += memory[d] * w
            s1 += memory[d + 1] * w
            s2 += memory[d + 2] * w
            s3 += memory[d + 3] * w
        x, z = (a + k) * R + i, (below + k) * R + i
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
        score, y = memory[(z + k) * R + i], targets[sample * n_outputs + k]
        y -= smoothing * (y - REAL(0.5))
        value, slope = LOSS(score, y, tiny, constants[k])
        total += value
        memory[(delta + k) * R + i] = scale * slope
    total = add_over_warp(total)
    return total / divisor


def softmax_sums(memory, z, i, n_outputs):
    """(greatest score, sum of exp(score - greatest)) of one row, for every lane of its warp."""
    lane = cuda.threadIdx.x % 32
    peak = memory[z * R + i]
    for k in range(lane, n_outputs, 32):
        score = memory[(z + k) * R + i]
        peak = score if not score <= peak else peak
    for distance in (16, 8, 4, 2, 1):
        other = cuda.shfl_xor_sync(FULL_WARP, peak, distance)
        peak = other if not other <= peak else peak
    total = REAL(0)
    for k in range(lane, n_outputs, 32):
        total += exp(memory[(z + k) * R + i] - peak)
    total = add_over_warp(total)
    return peak, total


def softmax_head(memory, z, delta, i, n_outputs, targets, sample, scale, divisor, tiny, constants,
                 smoothing):  # fmt: skip
    """`head` for the log loss of softmax; ``targets`` are class numbers."""
    lane, label = cuda.threadIdx.x % 32, targets[sample]
    peak, total = softmax_sums(memory, z, i, n_outputs)
    for k in range(lane, n_outputs, 32):
        share = exp(memory[(z + k) * R + i] - peak) / total
        memory[(delta + k) * R + i] = scale * (share - REAL(1) if k == label else share)
    return FORMULA(log(total), memory[(z + label) * R + i] - peak, tiny)


def probability_head(memory, z, delta, i, n_outputs, targets, sample, scale, divisor, tiny,
                     constants, smoothing):  # fmt: skip
    """`softmax_head` for other losses of the probabilities of all classes."""
    lane, label = cuda.threadIdx.x % 32, targets[sample]
    peak, total = softmax_sums(memory, z, i, n_outputs)
    peak += log(total)
    loss, pull = REAL(0), REAL(0)
    for k in range(lane, n_outputs, 32):
        y = class_target(k, label, n_outputs, smoothing)
        log_p = memory[(z + k) * R + i] - peak
        slope = GRADIENT(exp(log_p), log_p, y, constants[k])
        loss += FORMULA(exp(log_p), log_p, y, constants[k])
        pull += slope
        memory[(delta + k) * R + i] = slope
    loss = add_over_warp(loss)
    pull = add_over_warp(pull)
    for k in range(lane, n_outputs, 32):
        share, d = exp(memory[(z + k) * R + i] - peak), (delta + k) * R + i
        memory[d] = scale * (memory[d] - share * pull)
    return loss


def place_transposed(i, layers, widths, n_layers):
    """Where parameter i, a weight, is in the transposed copy."""
    start = 0
    for layer in range(n_layers):
        if i < layers[2 * layer]:
            fan_in, fan_out = widths[layer], widths[layer + 1]
            return start + (i - start) % fan_out * fan_in + (i - start) // fan_out
        start = layers[2 * layer]
    return 0


# --- the kernel -------------------------------------------------------------------------------


def resident_epoch(control, barrier, n_steps, order, X, targets, weights, n_weights, scales,
                   numbers, parameters, transposed, partial, slots, n, layers, widths, n_layers,
                   alpha, divisor, tiny, constants, smoothing, average, average_rate, sums,
                   results):  # fmt: skip
    """``n_steps`` steps from step ``control[0]`` on; a cooperative grid of blocks.

    ``partial`` (blocks x n) holds each block's gradient, ``sums`` (blocks x 2) its loss and sum of
    squares, ``results`` (steps x 2) both, summed over blocks.  Delta columns follow the activation
    columns in shared memory, in the same order.
    """
    memory = cuda.shared.array(SHARED, REAL)
    shared = cuda.shared.array(THREADS, float64)
    thread, block, n_blocks = cuda.threadIdx.x, cuda.blockIdx.x, cuda.gridDim.x
    n_columns = 0
    for layer in range(n_layers + 1):
        n_columns += widths[layer]
    first_step = control[0]
    for step in range(first_step, first_step + n_steps):
        start = step * control[2]
        n_rows = min(control[2], control[1] - start)
        begin, end = block * n_rows // n_blocks, (block + 1) * n_rows // n_blocks
        loss, square = float64(0), float64(0)
        for i in range(thread, n if begin == end else 0, THREADS):
            partial[block * n + i] = REAL(0)
        for first in range(begin, end, R):
            rows = min(R, end - first)
            gather_rows(memory, order, start + first, rows, X, widths[0])
            cuda.syncthreads()
            a, at = 0, 0
            for layer in range(n_layers):
                fan_in, fan_out = widths[layer], widths[layer + 1]
                forward(memory, a, a + fan_in, n_columns + a + fan_in, parameters, at, fan_in,
                        fan_out, layer < n_layers - 1)  # fmt: skip
                a += fan_in
                at = layers[2 * layer]
                cuda.syncthreads()
            delta, n_outputs = n_columns + a, widths[n_layers]
            for e in range(thread, R * n_outputs, THREADS):
                if e % R >= rows:
                    memory[delta * R + e] = REAL(0)
            for i in range(thread // 32, rows, THREADS // 32):
                sample = order[start + first + i]
                weight = weights[sample] if n_weights else REAL(1)
                value = HEAD(memory, a, delta, i, n_outputs, targets, sample,
                             scales[step] * weight, divisor, tiny, constants,
                             smoothing)  # fmt: skip
                if thread % 32 == 0:
                    loss += weight * value
            cuda.syncthreads()
            for layer in range(n_layers - 1, -1, -1):
                fan_in, fan_out = widths[layer], widths[layer + 1]
                a -= fan_in
                at = layers[2 * layer] - (fan_in + 1) * fan_out
                gradient(memory, a, n_columns + a + fan_in, partial, block * n + at, fan_in,
                         fan_out, first == begin)  # fmt: skip
                if layer > 0:
                    input_gradient(memory, a, n_columns + a + fan_in, n_columns + a, transposed,
                                   at, fan_in, fan_out)  # fmt: skip
                cuda.syncthreads()
        grid_barrier(barrier, 2 * step + 1)
        for i in range(block * THREADS + thread, n, n_blocks * THREADS):
            w, g = parameters[i], REAL(0)
            for other in range(n_blocks):
                g += partial[other * n + i]
            heavy = is_weight(i, layers, n_layers)
            if heavy:
                g += alpha * scales[step] * w
                square += float64(w) * float64(w)
            if scales[step] != 0:
                w, slots[i], slots[n + i] = apply_rule(
                    w, g, slots[i], slots[n + i], heavy, numbers, step
                )
                parameters[i] = w
                AVERAGE(average, i, w, average_rate)
                if heavy:
                    transposed[place_transposed(i, layers, widths, n_layers)] = w
        loss = add_over_block(shared, loss)
        cuda.syncthreads()
        square = add_over_block(shared, square)
        if thread == 0:
            sums[2 * block], sums[2 * block + 1] = loss, square
        grid_barrier(barrier, 2 * step + 2)
        if block == 0 and thread < 2:
            total = float64(0)
            for other in range(n_blocks):
                total += sums[2 * other + thread]
            results[2 * step + thread] = total
    if block == 0 and thread == 0:
        control[0] = first_step + n_steps
