"""The kernels of the tiled path: one launch per layer and direction, over whole batches.

They are templates, plain functions whose free names (tile sizes, element type, formulas) `Device`
binds before it compiles them; so the emulator of the tests runs the same code, and a formula of
`fastmlp.functions` is inlined where it is used.  All arrays are one-dimensional.

Activations carry a constant 1 in the column after the last.  With it, ``W`` and ``b`` of a layer
are one matrix of fan_in + 1 rows, contiguous in the flat parameter vector, and no product needs a
bias: forward ``[A 1] @ [W; b]``, weight gradient ``[A 1]^T @ D``, input gradient ``D @ W^T``.

No kernel is told which step it is in.  ``progress`` (int64: steps done, samples, batch size) is in
device memory and `finish_step` advances it, so that one captured launch sequence serves every step
of every epoch.  A step takes its batch in blocks of rows, as many as the workspace holds; ``first``
is where a block starts in its batch, and ``most`` its size.

Sums have one order: within a thread, then over threads and splits by number.  Same seed, same GPU,
same bits.
"""

from collections.abc import Callable
from math import exp, log
from typing import Any

from numba import cuda, float64, uint32

from fastmlp.engine.cuda.ptx import (
    commit_copies,
    copy_async,
    to_bf16x2,
    to_tf32,
    wait_for_all_but_one,
    wait_for_all_copies,
)


def _unbound(*args):
    raise TypeError("a template was called without its formula")


# Bound by `Device.kernel`: the element type, tile sizes and formulas of one variant.
REAL: Any = None  # element type
BM = BN = BK = 0  # rows, columns and terms of a block's tile
TM = TN = 0  # of a thread's part of it (`product`)
WM = WN = MT = NT = 0  # of a warp's part of it, and how many mma results that is (`product_mma`)
THREADS = 0
PAD = 0  # elements behind each row of a tile in shared memory, against bank conflicts
SHARED_A = SHARED_B = 0  # elements of both operands' tiles, twice
A_BY_ROWS = B_BY_ROWS = False  # whether terms follow each other in memory
TERMS = 8  # of one mma
EPILOGUE: Callable[..., Any] = _unbound
LOAD: Callable[..., Any] = _unbound  # of fragments
MMA: Callable[..., Any] = _unbound
FORMULA: Callable[..., Any] = _unbound
GRADIENT: Callable[..., Any] = _unbound

FULL_WARP = 0xFFFFFFFF


# --- device functions -------------------------------------------------------------------------


def count_rows(progress, first, most):
    """Rows of this block of the current batch."""
    rows = min(progress[2], progress[1] - progress[0] * progress[2]) - first
    return max(0, min(most, rows))


def fetch(target, start, pitch, width, by_rows, source, origin, stride, outer, outer_end, k, k_end):
    """Start copying a tile, ``width`` x BK, into rows of ``pitch`` elements, one per term.

    ``source`` holds element (outer, term) at ``origin + outer stride + term`` if ``by_rows``, else
    at ``origin + term stride + outer``.  What lies beyond the ends becomes zero.
    """
    for e in range(cuda.threadIdx.x, width * BK, THREADS):
        if by_rows:
            i, term = e // BK, e % BK
            at = (outer + i) * stride + k + term
        else:
            i, term = e % width, e // width
            at = (k + term) * stride + outer + i
        valid = outer + i < outer_end and k + term < k_end
        copy_async(target, start + term * pitch + i, source, origin + at if valid else 0, valid)


def fetch_both(As, Bs, stage, A, a0, lda, B, b0, ldb, m, M, n, N, k, k_end):
    """One stage of both operands."""
    fetch(As, stage * BK * (BM + PAD), BM + PAD, BM, A_BY_ROWS, A, a0, lda, m, M, k, k_end)
    fetch(Bs, stage * BK * (BN + PAD), BN + PAD, BN, B_BY_ROWS, B, b0, ldb, n, N, k, k_end)
    commit_copies()


def add_over_block(shared, value):
    """Sum over the threads of a block, for thread 0; in the same order every time."""
    thread = cuda.threadIdx.x
    shared[thread] = value
    cuda.syncthreads()
    half = THREADS // 2
    while half > 0:
        if thread < half:
            shared[thread] += shared[thread + half]
        cuda.syncthreads()
        half //= 2
    return shared[0]


# --- products ---------------------------------------------------------------------------------


def product(progress, first, most, A, a0, lda, B, b0, ldb, C, c0, ldc, c_split, split, M, N, K,
            aux):  # fmt: skip
    """``C[m, n] = EPILOGUE(sum over k of A[m, k] B[k, n], C, aux)``, by FMAs.

    M or K is 0 for the rows of the current block.  Block z of the grid takes ``split`` terms and
    writes ``z c_split`` behind ``c0``.  Grid: (N / BN, M / BM, splits); block: (BM / TM) (BN / TN).
    """
    rows = count_rows(progress, first, most)
    M = M if M else rows
    K = K if K else rows
    m0, n0 = cuda.blockIdx.y * BM, cuda.blockIdx.x * BN
    if m0 >= M:
        return
    k_begin = cuda.blockIdx.z * split
    k_end = min(K, k_begin + split)
    n_stages = max(0, (k_end - k_begin + BK - 1) // BK)
    As = cuda.shared.array(SHARED_A, REAL)
    Bs = cuda.shared.array(SHARED_B, REAL)
    sums = cuda.local.array((TM, TN), REAL)
    a, b = cuda.local.array(TM, REAL), cuda.local.array(TN, REAL)
    for i in range(TM):
        for j in range(TN):
            sums[i, j] = 0
    m = cuda.threadIdx.x // (BN // TN) * TM
    n = cuda.threadIdx.x % (BN // TN) * TN
    if n_stages > 0:
        fetch_both(As, Bs, 0, A, a0, lda, B, b0, ldb, m0, M, n0, N, k_begin, k_end)
    for stage in range(n_stages):
        if stage + 1 < n_stages:
            fetch_both(As, Bs, (stage + 1) % 2, A, a0, lda, B, b0, ldb, m0, M, n0, N,
                       k_begin + (stage + 1) * BK, k_end)  # fmt: skip
            wait_for_all_but_one()
        else:
            wait_for_all_copies()
        cuda.syncthreads()
        for term in range(BK):
            at = (stage % 2) * BK + term
            for i in range(TM):
                a[i] = As[at * (BM + PAD) + m + i]
            for j in range(TN):
                b[j] = Bs[at * (BN + PAD) + n + j]
            for i in range(TM):
                for j in range(TN):
                    sums[i, j] += a[i] * b[j]
        cuda.syncthreads()
    c0 += cuda.blockIdx.z * c_split
    for i in range(TM):
        for j in range(TN):
            if m0 + m + i < M and n0 + n + j < N:
                EPILOGUE(sums[i, j], C, c0, (m0 + m + i) * ldc + n0 + n + j, aux)


def load_tf32(As, Bs, at, m, n, g, t, a, b):
    """Fragments of 8 terms for one warp: all of its rows and columns."""
    for i in range(MT):
        row = at * (BM + PAD) + m + 16 * i + g
        for half in range(2):
            below = row + (t + 4 * half) * (BM + PAD)
            a[i, 2 * half] = to_tf32(As[below])
            a[i, 2 * half + 1] = to_tf32(As[below + 8])
    for j in range(NT):
        for half in range(2):
            b[j, half] = to_tf32(Bs[(at + t + 4 * half) * (BN + PAD) + n + 8 * j + g])


def load_bf16(As, Bs, at, m, n, g, t, a, b):
    """Fragments of 16 terms for one warp, two terms to a register."""
    for i in range(MT):
        for half in range(2):
            row = (at + 2 * t + 8 * half) * (BM + PAD) + m + 16 * i + g
            below = row + BM + PAD
            a[i, 2 * half] = to_bf16x2(As[row], As[below])
            a[i, 2 * half + 1] = to_bf16x2(As[row + 8], As[below + 8])
    for j in range(NT):
        for half in range(2):
            column = (at + 2 * t + 8 * half) * (BN + PAD) + n + 8 * j + g
            b[j, half] = to_bf16x2(Bs[column], Bs[column + BN + PAD])


def product_mma(progress, first, most, A, a0, lda, B, b0, ldb, C, c0, ldc, c_split, split, M, N,
                 K, aux):  # fmt: skip
    """`product` on tensor cores, by warps.  Block: 32 (BM / WM) (BN / WN)."""
    rows = count_rows(progress, first, most)
    M = M if M else rows
    K = K if K else rows
    m0, n0 = cuda.blockIdx.y * BM, cuda.blockIdx.x * BN
    if m0 >= M:
        return
    k_begin = cuda.blockIdx.z * split
    k_end = min(K, k_begin + split)
    n_stages = max(0, (k_end - k_begin + BK - 1) // BK)
    As = cuda.shared.array(SHARED_A, REAL)
    Bs = cuda.shared.array(SHARED_B, REAL)
    sums = cuda.local.array((MT, NT, 4), REAL)
    a, b = cuda.local.array((MT, 4), uint32), cuda.local.array((NT, 2), uint32)
    for i in range(MT):
        for j in range(NT):
            for c in range(4):
                sums[i, j, c] = 0
    warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
    g, t = lane // 4, lane % 4
    m, n = warp // (BN // WN) * WM, warp % (BN // WN) * WN
    if n_stages > 0:
        fetch_both(As, Bs, 0, A, a0, lda, B, b0, ldb, m0, M, n0, N, k_begin, k_end)
    for stage in range(n_stages):
        if stage + 1 < n_stages:
            fetch_both(As, Bs, (stage + 1) % 2, A, a0, lda, B, b0, ldb, m0, M, n0, N,
                       k_begin + (stage + 1) * BK, k_end)  # fmt: skip
            wait_for_all_but_one()
        else:
            wait_for_all_copies()
        cuda.syncthreads()
        for term in range(0, BK, TERMS):
            at = (stage % 2) * BK + term
            LOAD(As, Bs, at, m, n, g, t, a, b)
            for i in range(MT):
                for j in range(NT):
                    s0, s1, s2, s3 = MMA(
                        a[i, 0], a[i, 1], a[i, 2], a[i, 3], b[j, 0], b[j, 1],
                        sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3],
                    )  # fmt: skip
                    sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3] = s0, s1, s2, s3
        cuda.syncthreads()
    c0 += cuda.blockIdx.z * c_split
    for i in range(MT):
        for j in range(NT):
            for c in range(4):
                row, column = m0 + m + 16 * i + g + 8 * (c // 2), n0 + n + 8 * j + 2 * t + c % 2
                if row < M and column < N:
                    EPILOGUE(sums[i, j, c], C, c0, row * ldc + column, aux)


# --- epilogues --------------------------------------------------------------------------------


def put(value, C, c0, at, aux):
    """The sum as it is."""
    C[c0 + at] = value


def add(value, C, c0, at, aux):
    """Added to what is there: the gradient of a further block of rows."""
    C[c0 + at] += value


def activate(value, C, c0, at, aux):
    """A hidden layer's output."""
    C[c0 + at] = FORMULA(value)


def apply_derivative(value, C, c0, at, aux):
    """The gradient of a hidden layer's scores; ``aux`` holds its outputs, placed like ``C``."""
    C[c0 + at] = value * FORMULA(aux[c0 + at])


# --- rows -------------------------------------------------------------------------------------


def gather(progress, first, most, order, X, n_features, A, lda):
    """Copy the block's samples side by side; one thread per element."""
    e = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    i, feature = e // n_features, e % n_features
    if i < count_rows(progress, first, most):
        sample = order[progress[0] * progress[2] + first + i]
        A[i * lda + feature] = X[sample * n_features + feature]


def gather_sparse(progress, first, most, order, values, columns, starts, n_features, A, lda):
    """The same for CSR samples, made dense; one warp per row."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(progress, first, most):
        sample = order[progress[0] * progress[2] + first + i]
        for feature in range(lane, n_features, 32):
            A[i * lda + feature] = 0
        cuda.syncwarp()
        if lane == 0:
            for p in range(starts[sample], starts[sample + 1]):
                A[i * lda + columns[p]] += values[p]


def head(progress, first, most, order, Z, z0, ldz, n_outputs, targets, weights, n_weights, scales,
         losses, divisor, tiny):  # fmt: skip
    """Scores become scaled gradients, and each row's weighted loss is kept; one warp per row."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(progress, first, most):
        sample = order[progress[0] * progress[2] + first + i]
        weight = weights[sample] if n_weights else REAL(1)
        scale = scales[progress[0]] * weight
        total = REAL(0)
        for k in range(lane, n_outputs, 32):
            z, y = Z[z0 + i * ldz + k], targets[sample * n_outputs + k]
            total += FORMULA(z, y, tiny, REAL(0))
            Z[z0 + i * ldz + k] = scale * GRADIENT(z, y, REAL(0))
        for distance in (16, 8, 4, 2, 1):
            total += cuda.shfl_xor_sync(FULL_WARP, total, distance)
        if lane == 0:
            losses[first + i] = weight * total / divisor


def softmax_head(progress, first, most, order, Z, z0, ldz, n_outputs, targets, weights, n_weights,
                 scales, losses, divisor, tiny):  # fmt: skip
    """`head` for losses over whole rows; ``targets`` are class numbers."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(progress, first, most):
        sample = order[progress[0] * progress[2] + first + i]
        weight = weights[sample] if n_weights else REAL(1)
        scale = scales[progress[0]] * weight
        label = targets[sample]
        peak, total = softmax_sums(Z, z0 + i * ldz, n_outputs, lane)
        score = Z[z0 + i * ldz + label] - peak
        cuda.syncwarp()
        for k in range(lane, n_outputs, 32):
            share = exp(Z[z0 + i * ldz + k] - peak) / total
            Z[z0 + i * ldz + k] = scale * (share - REAL(1) if k == label else share)
        if lane == 0:
            losses[first + i] = weight * FORMULA(log(total), score, tiny)


def softmax_sums(Z, at, n_outputs, lane):
    """(greatest score, sum of exp(score - greatest)) of one row, for every lane of its warp."""
    peak = Z[at]
    for k in range(lane, n_outputs, 32):
        peak = Z[at + k] if not Z[at + k] <= peak else peak
    for distance in (16, 8, 4, 2, 1):
        other = cuda.shfl_xor_sync(FULL_WARP, peak, distance)
        peak = other if not other <= peak else peak
    total = REAL(0)
    for k in range(lane, n_outputs, 32):
        total += exp(Z[at + k] - peak)
    for distance in (16, 8, 4, 2, 1):
        total += cuda.shfl_xor_sync(FULL_WARP, total, distance)
    return peak, total


def link(progress, first, most, Z, z0, ldz, n_outputs, out):
    """Outputs of an elementwise output activation; one warp per row."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(progress, first, most):
        for k in range(lane, n_outputs, 32):
            out[(first + i) * n_outputs + k] = FORMULA(Z[z0 + i * ldz + k])


def softmax_link(progress, first, most, Z, z0, ldz, n_outputs, out):
    """`link` for softmax."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(progress, first, most):
        peak, total = softmax_sums(Z, z0 + i * ldz, n_outputs, lane)
        for k in range(lane, n_outputs, 32):
            out[(first + i) * n_outputs + k] = exp(Z[z0 + i * ldz + k] - peak) / total


# --- parameters -------------------------------------------------------------------------------


def is_weight(i, layers, n_layers):
    """Whether parameter i is a weight; ``layers`` lists each layer's end, and its weights'."""
    for layer in range(n_layers):
        if i < layers[2 * layer]:
            return i < layers[2 * layer + 1]
    return False


def update(progress, parameters, partial, n_splits, slots, n, layers, n_layers, alpha, scales,
           rates, c0, c1, c2, squares):  # fmt: skip
    """Sum the gradient's splits, add the penalty and update; one thread per parameter.

    Each block keeps the sum of squares of its weights before the update.  A batch whose weights sum
    to zero (scale 0) changes nothing.
    """
    shared = cuda.shared.array(THREADS, float64)
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    square = float64(0)
    if i < n:
        w, g = parameters[i], REAL(0)
        for split in range(n_splits):
            g += partial[split * n + i]
        scale = scales[progress[0]]
        if is_weight(i, layers, n_layers):
            g += alpha * scale * w
            square = float64(w) * float64(w)
        if scale != 0:
            rate = REAL(rates[progress[0]])
            parameters[i], slots[i], slots[n + i] = FORMULA(
                w, g, slots[i], slots[n + i], rate, c0, c1, c2, REAL(0)
            )
    total = add_over_block(shared, square)
    if cuda.threadIdx.x == 0:
        squares[cuda.blockIdx.x] = total


def complete_gradient(progress, parameters, partial, n_splits, slots, n, layers, n_layers, alpha,
                      scales, rates, c0, c1, c2, squares):  # fmt: skip
    """In `update`'s place: leave the parameters, and the gradient in the first split."""
    shared = cuda.shared.array(THREADS, float64)
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    square = float64(0)
    if i < n:
        w, g = parameters[i], REAL(0)
        for split in range(n_splits):
            g += partial[split * n + i]
        if is_weight(i, layers, n_layers):
            g += alpha * scales[progress[0]] * w
            square = float64(w) * float64(w)
        partial[i] = g
    total = add_over_block(shared, square)
    if cuda.threadIdx.x == 0:
        squares[cuda.blockIdx.x] = total


def finish_step(progress, losses, squares, n_squares, results):
    """Sum losses and squares into ``results[2 step]`` and go on to the next step; one block."""
    shared = cuda.shared.array(THREADS, float64)
    rows = count_rows(progress, 0, progress[2])
    loss, square = float64(0), float64(0)
    for i in range(cuda.threadIdx.x, rows, THREADS):
        loss += losses[i]
    for i in range(cuda.threadIdx.x, n_squares, THREADS):
        square += squares[i]
    loss = add_over_block(shared, loss)
    cuda.syncthreads()
    square = add_over_block(shared, square)
    if cuda.threadIdx.x == 0:
        results[2 * progress[0]] = loss
        results[2 * progress[0] + 1] = square
        progress[0] += 1
