"""The kernels of the tiled path: one launch per layer and direction, over whole batches.

They are templates, plain functions whose free names (tile sizes, element type, formulas) `Device`
binds before it compiles them; so the emulator of the tests runs the same code, and a formula of
`fastmlp.functions` is inlined where it is used.  All arrays are one-dimensional.

Activations carry a constant 1 in the column after the last.  With it, ``W`` and ``b`` of a layer
are one matrix of fan_in + 1 rows, contiguous in the flat parameter vector, and no product needs a
bias: forward ``[A 1] @ [W; b]``, weight gradient ``[A 1]^T @ D``, input gradient ``D @ W^T``.

Activations, deltas and the weights that products read are as `tiles.Storage` says: of the network's
type, or bfloat16 (as uint16) where products round to it anyway.  Then `copy_weights` makes a copy
of the weights, whose rows are aligned, before a batch's first products; scores of the outputs, sums
of weight gradients, parameters and all arithmetic stay float32.  So half as many bytes move, and
fragments come from shared memory by ldmatrix, ready for the tensor cores.

No kernel is told which step it is in.  ``control`` (int64: steps done, samples, batch size, steps
before) is in device memory and `finish_step` advances it, so that one captured launch sequence
serves every step of every epoch.  A step takes its batch in micro-batches of as many rows
as the workspace holds; ``first`` is where one starts in its batch, and ``most`` its size.

Sums have one order: within a thread, then over threads and splits by number.  Same seed, same GPU,
same bits.
"""

from collections.abc import Callable
from math import exp, log, log1p, sqrt
from typing import Any

from numba import float64, int32, int64

from fastmlp.dropout import random_bits, row_key
from fastmlp.engine.cuda.numba_cuda import cuda
from fastmlp.engine.cuda.ptx import (
    commit_copies,
    from_bf16,
    load_shared,
    load_vector,
    quotient,
    to_bf16,
    to_tf32,
    wait_for_all_copies,
)


def unbound(*args):
    raise TypeError("a template was called without its formula")


# Bound by `Device.kernel`: the element type, tile sizes and formulas of one variant.  `tiles` says
# what those of a product are.
REAL: Any = None  # element type
STORED: Any = None  # type of a product's operands in memory
OPERAND: Any = None  # and in registers
READ: Callable[..., Any] = unbound  # an activation or delta
WRITE: Callable[..., Any] = unbound
THREADS = 0
BM = BN = BK = 0  # rows, columns and terms of a block's tile
SLICES = 1  # groups of threads that share the terms of a tile
STAGES = 2  # tiles of each operand in shared memory
TM = TN = 0  # of a thread's part of a tile (`multiply`)
WM = WN = MT = NT = 0  # of a warp's part of it, and how many mma results that is (`multiply_mma`)
GROUP = 0  # elements in 16 bytes
PART_A = PART_B = 0  # operands that a thread holds
SUMS = LINE = 0  # sums that a thread holds, and how many of them are written at a time
PASS = 0  # sums of the tile that all threads write at a time
PITCH = 0  # of rows of them in shared memory
TERMS = 1  # that are multiplied at a time
A_BY_ROWS = B_BY_ROWS = False  # whether terms follow each other in memory
ROWS_A = COLUMNS_A = PITCH_A = COPIES_A = VECTOR_A = 0  # of an operand's tile in shared memory
ROWS_B = COLUMNS_B = PITCH_B = COPIES_B = VECTOR_B = 0
BLOCK: Callable[..., Any] = unbound  # which tile is whose
COPY_A: Callable[..., Any] = unbound
COPY_B: Callable[..., Any] = unbound
WAIT: Callable[..., Any] = unbound  # until the oldest stage is there
START: Callable[..., Any] = unbound
MULTIPLY: Callable[..., Any] = unbound
POSITION: Callable[..., Any] = unbound
ROW: Callable[..., Any] = unbound
SEND: Callable[..., Any] = unbound  # sums to memory
STORE: Callable[..., Any] = unbound
LOAD: Callable[..., Any] = unbound  # fragments
LOAD_A: Callable[..., Any] = unbound  # a group of matrices
LOAD_B: Callable[..., Any] = unbound
MMA: Callable[..., Any] = unbound
FORMULA: Callable[..., Any] = unbound
GRADIENT: Callable[..., Any] = unbound
LOSS: Callable[..., Any] = unbound
N_NUMBERS = 0  # per step, for the optimizer
UPDATE: Callable[..., Any] = unbound
DECAY: Callable[..., Any] = unbound
AVERAGE: Callable[..., Any] = unbound

FULL_WARP = 0xFFFFFFFF


# --- device functions -------------------------------------------------------------------------


def count_rows(control, first, most):
    """Rows of this micro-batch of the current batch."""
    rows = min(control[2], control[1] - control[0] * control[2]) - first
    return max(0, min(most, rows))


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


def add_over_warp(value):
    """Sum over the lanes of a warp, for all of them."""
    for distance in (16, 8, 4, 2, 1):
        value += cuda.shfl_xor_sync(FULL_WARP, value, distance)
    return value


# What READ and WRITE are, by the type in memory.


def read(array, at):
    return array[at]


def write(array, at, value):
    array[at] = value


def read_bf16(array, at):
    return from_bf16(array[at])


def write_bf16(array, at, value):
    array[at] = to_bf16(value)


# --- products ---------------------------------------------------------------------------------


def begin(by_rows, start, stride, outer, outer_end, k, k_end, row, column):
    """Where a thread's copies of a tile start, and the rows and columns from there to the end.

    Element (outer, term) of an operand is at ``start + outer stride + term`` if ``by_rows``, else
    at ``start + term stride + outer``; the tile has it in the same row and column.
    """
    if by_rows:
        at = start + int64(outer + row) * stride + k + column
        return at, int32(outer_end - outer - row), int32(k_end - k - column)
    at = start + int64(k + row) * stride + outer + column
    return at, int32(k_end - k - row), int32(outer_end - outer - column)


def fetch(memory, to_a, A, a, lda, a_rows, a_columns, to_b, B, b, ldb, b_rows, b_columns):
    """Start copying a thread's part of one stage of both operands.

    Beyond the ends are zeros, but what a vector of 16 bytes holds that begins before the end of its
    row: there, in one operand, are finite numbers.  Returns `begin`'s results for the next stage.
    """
    jump = ROWS_A // COPIES_A
    for i in range(COPIES_A):
        valid = i * jump < a_rows and a_columns > 0
        COPY_A(memory, to_a + i * jump * PITCH_A, A, a + i * jump * lda, valid)
    jump = ROWS_B // COPIES_B
    for i in range(COPIES_B):
        valid = i * jump < b_rows and b_columns > 0
        COPY_B(memory, to_b + i * jump * PITCH_B, B, b + i * jump * ldb, valid)
    a, a_rows, a_columns = advance(A_BY_ROWS, a, lda, a_rows, a_columns)
    b, b_rows, b_columns = advance(B_BY_ROWS, b, ldb, b_rows, b_columns)
    return a, a_rows, a_columns, b, b_rows, b_columns


def advance(by_rows, at, stride, rows, columns):
    """`begin`'s results for the next stage."""
    if by_rows:
        return at + BK, rows, int32(columns - BK)
    return at + BK * stride, int32(rows - BK), columns


def block_of_line():
    """(line of tiles, tile in it) of a block, where those of a line follow each other."""
    return cuda.blockIdx.y, cuda.blockIdx.x


def block_of_column():
    """The same for more than 65535 lines, of which only a grid's first side has room."""
    return cuda.blockIdx.x, cuda.blockIdx.y


def product(control, first, most, A, a0, lda, B, b0, ldb, C, c0, ldc, c_split, split, M, N, K,
            aux):  # fmt: skip
    """``C[m, n]`` = what STORE makes of the sum over k of ``A[m, k] B[k, n]``.

    M or K is 0 for the rows of the current micro-batch.  Block z of the grid takes ``split`` terms
    and writes ``z c_split`` behind ``c0``.  Grid: as BLOCK reads it, and splits.

    Shared memory holds STAGES stages of both operands' tiles, which arrive while earlier ones are
    multiplied; at the end it holds sums, on their way from the threads that have them to those that
    write them, row by row.
    """
    rows = count_rows(control, first, most)
    M, K = M if M else rows, K if K else rows
    line, column = BLOCK()
    m0, n0 = int64(line) * BM, int64(column) * BN
    if m0 >= M:
        return
    k_begin = cuda.blockIdx.z * split
    k_end = min(K, k_begin + split)
    n_stages = int32(max(0, (k_end - k_begin + BK - 1) // BK))
    thread = int32(cuda.threadIdx.x)
    memory = cuda.shared.array(0, STORED, alignment=16)
    passed = cuda.shared.array(0, REAL, alignment=16)  # in the same place
    a, b = cuda.local.array(PART_A, OPERAND), cuda.local.array(PART_B, OPERAND)
    sums = cuda.local.array(SUMS, REAL)
    for e in range(SUMS):
        sums[e] = 0
    row, column = thread // (COLUMNS_A // VECTOR_A), thread % (COLUMNS_A // VECTOR_A) * VECTOR_A
    to_a = int32(row * PITCH_A + column)
    a_at, a_rows, a_columns = begin(A_BY_ROWS, a0, lda, m0, M, k_begin, k_end, row, column)
    row, column = thread // (COLUMNS_B // VECTOR_B), thread % (COLUMNS_B // VECTOR_B) * VECTOR_B
    to_b = int32(ROWS_A * PITCH_A + row * PITCH_B + column)
    b_at, b_rows, b_columns = begin(B_BY_ROWS, b0, ldb, n0, N, k_begin, k_end, row, column)
    from_a, from_b = START()
    from_a, from_b = int32(from_a), int32(ROWS_A * PITCH_A + from_b)
    into = int32(0)
    for stage in range(STAGES - 1):
        if stage < n_stages:
            a_at, a_rows, a_columns, b_at, b_rows, b_columns = fetch(
                memory, to_a + into, A, a_at, lda, a_rows, a_columns, to_b + into, B, b_at, ldb,
                b_rows, b_columns,
            )  # fmt: skip
        commit_copies()
        into = int32(into + ROWS_A * PITCH_A + ROWS_B * PITCH_B)
    here, n_ahead = int32(0), int32(n_stages - (STAGES - 1))
    for stage in range(n_stages):
        WAIT()
        cuda.syncthreads()
        if stage < n_ahead:
            a_at, a_rows, a_columns, b_at, b_rows, b_columns = fetch(
                memory, to_a + into, A, a_at, lda, a_rows, a_columns, to_b + into, B, b_at, ldb,
                b_rows, b_columns,
            )  # fmt: skip
        commit_copies()
        for term in range(0, BK // SLICES, TERMS):
            MULTIPLY(memory, here + from_a + term * (1 if A_BY_ROWS else PITCH_A),
                     here + from_b + term * (1 if B_BY_ROWS else PITCH_B), a, b, sums)  # fmt: skip
        into, here = next_stage(into), next_stage(here)
    wait_for_all_copies()
    cuda.syncthreads()
    c0 += cuda.blockIdx.z * c_split + m0 * ldc + n0
    slice_of_thread = thread // (THREADS // SLICES)
    for i in range(SUMS // LINE):
        for j in range(LINE):
            passed[slice_of_thread * PASS + POSITION(j)] = sums[j]
        for j in range(SUMS - LINE):  # registers have no index that is worked out
            sums[j] = sums[j + LINE]
        cuda.syncthreads()
        SEND(i, passed, C, c0, ldc, M - m0, N - n0, aux)
        cuda.syncthreads()


def add_slices(passed, e):
    """Sum e of those that are written at a time."""
    total = load_shared(passed, e)
    for other in range(1, SLICES):
        total += load_shared(passed, other * PASS + e)
    return total


def send(i, passed, C, c0, ldc, M, N, aux):
    """Write what all threads have passed, of a tile that begins at ``c0``."""
    for e in range(int32(cuda.threadIdx.x), PASS, THREADS):
        row, column = ROW(i, e // BN), e % BN
        if row < M and column < N:
            STORE(add_slices(passed, e), C, c0 + row * ldc + column, aux)


def send_columns(i, passed, C, c0, ldc, M, N, aux):
    """`send` for `multiply_mma`, where a thread keeps to its column: fewer places to work out."""
    thread = int32(cuda.threadIdx.x)
    first, column = thread // BN, thread % BN
    e = first * PITCH + column
    if column < N:
        for warp in range(BM // WM):
            row = warp * WM + 16 * i + first
            at = c0 + row * ldc + column
            for k in range(0, int32(min(M - row, 16)), THREADS // BN):
                STORE(add_slices(passed, (16 * warp + k) * PITCH + e), C, at, aux)
                at += THREADS // BN * ldc


def next_stage(at):
    """Where the stage after that at ``at`` is in shared memory."""
    size = ROWS_A * PITCH_A + ROWS_B * PITCH_B
    return int32(at + size if at < (STAGES - 1) * size else 0)


# By FMAs.  A slice of the block is (BM / TM) x (BN / TN) threads.  A thread's rows, and its
# columns, are every so many if terms follow each other in shared memory, else every so many groups.


def start():
    """Where a thread's first row and column are in either tile."""
    thread = cuda.threadIdx.x % (THREADS // SLICES)
    term = cuda.threadIdx.x // (THREADS // SLICES) * (BK // SLICES)
    m, n = thread // (BN // TN), thread % (BN // TN)
    from_a = m * PITCH_A + term if A_BY_ROWS else term * PITCH_A + m * GROUP
    from_b = n * PITCH_B + term if B_BY_ROWS else term * PITCH_B + n * GROUP
    return from_a, from_b


def load(memory, at, by_rows, pitch, n_threads, n, part):
    """GROUP terms of ``n`` rows or columns, ``part[i GROUP + term]``."""
    if by_rows:
        for i in range(n):
            load_vector(part, i * GROUP, memory, at + i * n_threads * pitch)
    else:
        line = cuda.local.array(GROUP, REAL)
        for i in range(0, n, GROUP):
            for term in range(GROUP):
                load_vector(line, 0, memory, at + term * pitch + i * n_threads)
                for e in range(GROUP):
                    part[(i + e) * GROUP + term] = line[e]


def multiply(memory, at_a, at_b, a, b, sums):
    """GROUP terms of a thread's TM x TN sums."""
    load(memory, at_a, A_BY_ROWS, PITCH_A, BM // TM, TM, a)
    load(memory, at_b, B_BY_ROWS, PITCH_B, BN // TN, TN, b)
    for term in range(GROUP):
        for j in range(TN):
            for i in range(TM):
                sums[i * TN + j] += a[i * GROUP + term] * b[j * GROUP + term]


def position(j):
    """Where a thread's sum j of a row goes among those of the tile that are written at a time."""
    thread = cuda.threadIdx.x % (THREADS // SLICES)
    m, n = thread // (BN // TN), thread % (BN // TN)
    if B_BY_ROWS:
        return m * BN + n + j * (BN // TN)
    return m * BN + j // GROUP * (BN // TN) * GROUP + n * GROUP + j % GROUP


def row_of_tile(i, m):
    """The tile's row of the sums that threads m have in their row i."""
    if A_BY_ROWS:
        return m + i * (BM // TM)
    return i // GROUP * (BM // TM) * GROUP + m * GROUP + i % GROUP


# On tensor cores.  A slice of the block is (BM / WM) x (BN / WN) warps.


def part_of_warp():
    """Where a warp's part of a block's tile begins: row, column and term."""
    warp = cuda.threadIdx.x // 32
    term = warp // (THREADS // SLICES // 32) * (BK // SLICES)
    warp %= THREADS // SLICES // 32
    return warp // (BN // WN) * WM, warp % (BN // WN) * WN, term


def place_in(by_rows, pitch, outer, term):
    """Of a row or column and a term, in an operand's tile in shared memory."""
    return outer * pitch + term if by_rows else term * pitch + outer


def start_tf32():
    """`start` for `load_tf32`: where the fragments of a lane start."""
    m, n, term = part_of_warp()
    lane = cuda.threadIdx.x % 32
    term += lane % 4
    from_a = place_in(A_BY_ROWS, PITCH_A, m + lane // 4, term)
    from_b = place_in(B_BY_ROWS, PITCH_B, n + lane // 4, term)
    return from_a, from_b


def start_bf16():
    """`start` for `load_bf16`: the rows of matrices in shared memory that a lane names.

    Of four that are loaded together, A's first two are of 8 rows and 8 more, B's of 8 terms and 8
    more; the other two are of the next terms or columns.
    """
    m, n, term = part_of_warp()
    lane = cuda.threadIdx.x % 32
    row, second, pair = lane % 8, lane // 8 % 2 * 8, lane // 16 * 8
    from_a = place_in(A_BY_ROWS, PITCH_A, m + second, term + pair) + row * PITCH_A
    from_b = place_in(B_BY_ROWS, PITCH_B, n + pair, term + second) + row * PITCH_B
    return from_a, from_b


def multiply_mma(memory, at_a, at_b, a, b, sums):
    """TERMS terms of a warp's WM x WN sums."""
    LOAD(memory, at_a, at_b, a, b)
    for i in range(MT):
        for j in range(NT):
            e = 4 * (i * NT + j)
            s0, s1, s2, s3 = MMA(
                a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3], b[2 * j], b[2 * j + 1],
                sums[e], sums[e + 1], sums[e + 2], sums[e + 3],
            )  # fmt: skip
            sums[e], sums[e + 1], sums[e + 2], sums[e + 3] = s0, s1, s2, s3


def load_tf32(memory, at_a, at_b, a, b):
    """A lane's fragments of 8 terms: 16 rows and 8 columns at a time, one term in a register."""
    outer, term = (PITCH_A, 1) if A_BY_ROWS else (1, PITCH_A)
    for i in range(MT):
        for half in range(2):
            at = at_a + 16 * i * outer + 4 * half * term
            a[4 * i + 2 * half] = to_tf32(load_shared(memory, at))
            a[4 * i + 2 * half + 1] = to_tf32(load_shared(memory, at + 8 * outer))
    outer, term = (PITCH_B, 1) if B_BY_ROWS else (1, PITCH_B)
    for j in range(NT):
        for half in range(2):
            at = at_b + 8 * j * outer + 4 * half * term
            b[2 * j + half] = to_tf32(load_shared(memory, at))


def load_bf16(memory, at_a, at_b, a, b):
    """The same of 16 terms, two in a register; of 16 columns at a time if there are as many."""
    for i in range(MT):
        LOAD_A(a, 4 * i, memory, at_a + 16 * i * (PITCH_A if A_BY_ROWS else 1))
    for j in range(0, NT, 2):
        LOAD_B(b, 2 * j, memory, at_b + 8 * j * (PITCH_B if B_BY_ROWS else 1))


def position_mma(j):
    """`position` for the sums of `multiply_mma`, 16 rows of every warp at a time."""
    warp, lane = cuda.threadIdx.x // 32 % (THREADS // SLICES // 32), cuda.threadIdx.x % 32
    row = warp // (BN // WN) * 16 + lane // 4 + 8 * (j % 4 // 2)
    return row * PITCH + warp % (BN // WN) * WN + 8 * (j // 4) + 2 * (lane % 4) + j % 2


def row_of_tile_mma(i, m):
    """`row_of_tile` for them."""
    return m // 16 * WM + 16 * i + m % 16


# --- what becomes of a product ------------------------------------------------------------------

# `put` and `add` write REAL, the others activations and deltas.


def put(value, C, at, aux):
    """The sum as it is."""
    C[at] = value


def add(value, C, at, aux):
    """Added to what is there: the gradient of a further micro-batch."""
    C[at] += value


def multiply_by(value, C, at, aux):
    """The gradient of a hidden layer's scores where its derivative is kept in the same place."""
    WRITE(C, at, READ(C, at) * value)


def activate(value, C, at, aux):
    """A hidden layer's output."""
    WRITE(C, at, FORMULA(value))


def activate_and_keep_derivative(value, C, at, aux):
    """`activate`, for training where the output does not tell the derivative: it goes to ``aux``,
    which is placed like ``C``.
    """
    WRITE(aux, at, GRADIENT(value))
    WRITE(C, at, FORMULA(value))


def activate_and_keep_derivative_of_output(value, C, at, aux):
    """The same for an activation whose output tells the derivative."""
    output = FORMULA(value)
    WRITE(C, at, output)
    WRITE(aux, at, GRADIENT(output))


def apply_derivative(value, C, at, aux):
    """The gradient of a hidden layer's scores; ``aux`` holds its outputs, placed like ``C``."""
    WRITE(C, at, value * FORMULA(READ(aux, at)))


# --- rows -------------------------------------------------------------------------------------


def put_ones(n_rows, A, a0, lda):
    """Set the first column, from ``a0`` on; one thread per row."""
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < n_rows:
        WRITE(A, a0 + i * lda, REAL(1))


def find_nonfinite(n, X, found):
    """Set ``found[0]`` if X holds a NaN or an infinity; each thread looks at every so many."""
    for e in range(cuda.blockIdx.x * THREADS + cuda.threadIdx.x, n, cuda.gridDim.x * THREADS):
        if X[e] - X[e] != 0:
            found[0] = 1


def gather(control, first, most, order, X, n_features, A, lda):
    """Copy the micro-batch's samples side by side; one warp per row."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(control, first, most):
        sample = order[control[0] * control[2] + first + i]
        for feature in range(lane, n_features, 32):
            WRITE(A, i * lda + feature, X[sample * n_features + feature])


def gather_sparse(control, first, most, order, values, columns, starts, n_features, A, lda):
    """The same for CSR samples, made dense."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(control, first, most):
        sample = order[control[0] * control[2] + first + i]
        for feature in range(lane, n_features, 32):
            WRITE(A, i * lda + feature, REAL(0))
        cuda.syncwarp()
        if lane == 0:
            for p in range(starts[sample], starts[sample + 1]):
                at = i * lda + columns[p]
                WRITE(A, at, READ(A, at) + values[p])


def normalise(control, first, most, A, kept, a0, lda, width, epsilon, aux):
    """Layer normalisation of scores, then STORE; one warp per row.

    ``kept``, placed like ``A``, has the scores; then the normalised ones and, behind them, the
    factor.
    """
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(control, first, most):
        at = a0 + i * lda
        total, squares = REAL(0), REAL(0)
        for k in range(lane, width, 32):
            total += kept[at + k]
        mean = add_over_warp(total) / REAL(width)
        for k in range(lane, width, 32):
            squares += (kept[at + k] - mean) * (kept[at + k] - mean)
        factor = REAL(1) / sqrt(add_over_warp(squares) / REAL(width) + epsilon)
        for k in range(lane, width, 32):
            score = (kept[at + k] - mean) * factor
            kept[at + k] = score
            STORE(score, A, at + k, aux)
        if lane == 0:
            kept[at + width] = factor


def normalise_delta(control, first, most, D, kept, a0, lda, width):
    """From gradients of normalised scores to gradients of scores; one warp per row."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(control, first, most):
        at = a0 + i * lda
        total, moment = REAL(0), REAL(0)
        for k in range(lane, width, 32):
            total += READ(D, at + k)
            moment += READ(D, at + k) * kept[at + k]
        mean = add_over_warp(total) / REAL(width)
        slope = add_over_warp(moment) / REAL(width)
        for k in range(lane, width, 32):
            delta = READ(D, at + k) - mean - slope * kept[at + k]
            WRITE(D, at + k, kept[at + width] * delta)


def drop(control, first, most, A, derivatives, a0, lda, width, seed, layer, threshold, scale):
    """Dropout of a hidden layer's outputs and kept derivatives; one thread per element."""
    e = int32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
    i = quotient(e, int32(width))
    neuron = e - i * width
    at = a0 + i * lda + neuron
    if i < count_rows(control, first, most):
        key = row_key(seed, control[3] + control[0], layer, first + i)
        mask = REAL(0) if random_bits(key, neuron) < threshold else scale
        WRITE(A, at, READ(A, at) * mask)
        WRITE(derivatives, at, READ(derivatives, at) * mask)


def plain_loss(z, y, tiny, constant):
    """(loss, its derivative) of one score."""
    return FORMULA(z, y, tiny, constant), GRADIENT(z, y, constant)


def logistic_loss(z, y, tiny, constant):
    """`plain_loss` for losses of the probabilities of a class and of its complement."""
    small = exp(z if z < 0 else -z)
    excess = log1p(small)
    log_p, log_q = (z if z < 0 else REAL(0)) - excess, (REAL(0) if z < 0 else -z) - excess
    p = (small if z < 0 else REAL(1)) / (REAL(1) + small)
    q = (REAL(1) if z < 0 else small) / (REAL(1) + small)
    value = FORMULA(p, log_p, y, constant) + FORMULA(q, log_q, REAL(1) - y, constant)
    slope = q * GRADIENT(p, log_p, y, constant) - p * GRADIENT(q, log_q, REAL(1) - y, constant)
    return value, slope


def head(control, first, most, order, Z, lda, n_outputs, D, d0, targets, weights, n_weights, scales,
         losses, divisor, tiny, constants, smoothing):  # fmt: skip
    """Of scores, scaled gradients, and each row's weighted loss; one warp per row."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(control, first, most):
        sample = order[control[0] * control[2] + first + i]
        weight = weights[sample] if n_weights else REAL(1)
        scale = scales[control[0]] * weight
        total = REAL(0)
        for k in range(lane, n_outputs, 32):
            z, y = Z[i * lda + k], targets[sample * n_outputs + k]
            y -= smoothing * (y - REAL(0.5))
            value, slope = LOSS(z, y, tiny, constants[k])
            total += value
            WRITE(D, d0 + i * lda + k, scale * slope)
        total = add_over_warp(total)
        if lane == 0:
            losses[first + i] = weight * total / divisor


def softmax_head(control, first, most, order, Z, lda, n_outputs, D, d0, targets, weights, n_weights,
                 scales, losses, divisor, tiny, constants, smoothing):  # fmt: skip
    """`head` for the log loss of softmax; ``targets`` are class numbers."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(control, first, most):
        sample = order[control[0] * control[2] + first + i]
        weight = weights[sample] if n_weights else REAL(1)
        scale = scales[control[0]] * weight
        label = targets[sample]
        peak, total = softmax_sums(Z, i * lda, n_outputs, lane)
        for k in range(lane, n_outputs, 32):
            share = exp(Z[i * lda + k] - peak) / total
            slope = share - REAL(1) if k == label else share
            WRITE(D, d0 + i * lda + k, scale * slope)
        if lane == 0:
            losses[first + i] = weight * FORMULA(log(total), Z[i * lda + label] - peak, tiny)


def class_target(k, label, n_outputs, smoothing):
    """Target of class k for a sample of class ``label``."""
    spread = smoothing / REAL(n_outputs)
    return REAL(1) - smoothing + spread if k == label else spread


def probability_head(control, first, most, order, Z, lda, n_outputs, D, d0, targets, weights,
                     n_weights, scales, losses, divisor, tiny, constants,
                     smoothing):  # fmt: skip
    """`softmax_head` for other losses of the probabilities of all classes."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(control, first, most):
        sample = order[control[0] * control[2] + first + i]
        weight = weights[sample] if n_weights else REAL(1)
        scale = scales[control[0]] * weight
        label, at = targets[sample], i * lda
        peak, total = softmax_sums(Z, at, n_outputs, lane)
        peak += log(total)
        loss, pull = REAL(0), REAL(0)
        for k in range(lane, n_outputs, 32):
            y = class_target(k, label, n_outputs, smoothing)
            log_p = Z[at + k] - peak
            loss += FORMULA(exp(log_p), log_p, y, constants[k])
            pull += GRADIENT(exp(log_p), log_p, y, constants[k])
        loss = add_over_warp(loss)
        pull = add_over_warp(pull)
        for k in range(lane, n_outputs, 32):
            y = class_target(k, label, n_outputs, smoothing)
            log_p = Z[at + k] - peak
            slope = GRADIENT(exp(log_p), log_p, y, constants[k]) - exp(log_p) * pull
            WRITE(D, d0 + at + k, scale * slope)
        if lane == 0:
            losses[first + i] = weight * loss


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
    total = add_over_warp(total)
    return peak, total


def link(control, first, most, Z, lda, n_outputs, out):
    """Outputs of an elementwise output activation; one warp per row."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(control, first, most):
        for k in range(lane, n_outputs, 32):
            out[(first + i) * n_outputs + k] = FORMULA(Z[i * lda + k])


def softmax_link(control, first, most, Z, lda, n_outputs, out):
    """`link` for softmax."""
    i, lane = (cuda.blockIdx.x * THREADS + cuda.threadIdx.x) // 32, cuda.threadIdx.x % 32
    if i < count_rows(control, first, most):
        peak, total = softmax_sums(Z, i * lda, n_outputs, lane)
        for k in range(lane, n_outputs, 32):
            out[(first + i) * n_outputs + k] = exp(Z[i * lda + k] - peak) / total


# --- parameters -------------------------------------------------------------------------------


def copy_weights(control, parameters, n, lines, copy):
    """Weights and biases as products read them; one thread per parameter.

    ``lines`` tells of each layer: its end in the flat vector, the length of its rows there, and
    where ``copy`` has the layer and how far from each other it has rows.
    """
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < n:
        start, at = int64(0), 0
        while i >= lines[at]:
            start = lines[at]
            at += 4
        row = quotient(int32(i - start), int32(lines[at + 1]))
        column = i - start - row * lines[at + 1]
        WRITE(copy, lines[at + 2] + row * lines[at + 3] + column, parameters[i])


def is_weight(i, layers, n_layers):
    """Whether parameter i is a weight; ``layers`` lists each layer's end, and its weights'."""
    for layer in range(n_layers):
        if i < layers[2 * layer]:
            return i < layers[2 * layer + 1]
    return False


def apply_rule(w, g, first, second, heavy, numbers, step):
    """Parameter and slots after a step; ``numbers`` has N_NUMBERS for each."""
    at = step * N_NUMBERS
    if heavy:
        w = DECAY(w, REAL(numbers[at + 7]))
    return UPDATE(
        w, g, first, second, REAL(numbers[at]), REAL(numbers[at + 1]), REAL(numbers[at + 2]),
        REAL(numbers[at + 3]), REAL(numbers[at + 4]), REAL(numbers[at + 5]), REAL(numbers[at + 6]),
    )  # fmt: skip


def no_average(average, i, w, rate):
    """For an optimizer that does not average the parameters."""


def move_average(average, i, w, rate):
    """Move the average of a parameter towards it."""
    average[i] += rate * (w - average[i])


def update(control, parameters, partial, n_splits, slots, n, layers, n_layers, alpha, scales,
           numbers, squares, average, average_rate):  # fmt: skip
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
        scale = scales[control[0]]
        heavy = is_weight(i, layers, n_layers)
        if heavy:
            g += alpha * scale * w
            square = float64(w) * float64(w)
        if scale != 0:
            parameters[i], slots[i], slots[n + i] = apply_rule(
                w, g, slots[i], slots[n + i], heavy, numbers, control[0]
            )
            AVERAGE(average, i, parameters[i], average_rate)
    total = add_over_block(shared, square)
    if cuda.threadIdx.x == 0:
        squares[cuda.blockIdx.x] = total


def complete_gradient(control, parameters, partial, n_splits, slots, n, layers, n_layers, alpha,
                      scales, numbers, squares, average, average_rate):  # fmt: skip
    """In `update`'s place: leave the parameters, and the gradient in the first split."""
    shared = cuda.shared.array(THREADS, float64)
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    square = float64(0)
    if i < n:
        w, g = parameters[i], REAL(0)
        for split in range(n_splits):
            g += partial[split * n + i]
        if is_weight(i, layers, n_layers):
            g += alpha * scales[control[0]] * w
            square = float64(w) * float64(w)
        partial[i] = g
    total = add_over_block(shared, square)
    if cuda.threadIdx.x == 0:
        squares[cuda.blockIdx.x] = total


def sum_squares(control, gradient, n, norms):
    """Each block's sum of squares of the gradient."""
    shared = cuda.shared.array(THREADS, float64)
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    g = float64(gradient[i]) if i < n else float64(0)
    total = add_over_block(shared, g * g)
    if cuda.threadIdx.x == 0:
        norms[cuda.blockIdx.x] = total


def finish_norm(control, norms, n_blocks):
    """The gradient's norm, behind the blocks' sums; one block."""
    shared = cuda.shared.array(THREADS, float64)
    total = float64(0)
    for i in range(cuda.threadIdx.x, n_blocks, THREADS):
        total += norms[i]
    total = add_over_block(shared, total)
    if cuda.threadIdx.x == 0:
        norms[n_blocks] = sqrt(total)


def clipped_update(control, parameters, gradient, slots, n, layers, n_layers, scales, numbers,
                   norms, n_blocks, max_norm, average, average_rate):  # fmt: skip
    """`update` with the gradient scaled to ``max_norm`` at most, as PyTorch's clip_grad_norm_."""
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i < n and scales[control[0]] != 0:
        factor = max_norm / (norms[n_blocks] + 1e-6)
        g = gradient[i] * REAL(factor) if factor < 1 else gradient[i]
        parameters[i], slots[i], slots[n + i] = apply_rule(
            parameters[i], g, slots[i], slots[n + i], is_weight(i, layers, n_layers), numbers,
            control[0],
        )  # fmt: skip
        AVERAGE(average, i, parameters[i], average_rate)


def rewind(control, n, batch_size, steps):
    """Stand before a pass over ``n`` samples, after so many steps; one block."""
    if cuda.threadIdx.x == 0:
        control[0] = 0
        control[1] = n
        control[2] = batch_size
        control[3] = steps


def finish_step(control, losses, squares, n_squares, results):
    """Sum losses and squares into ``results[2 step]`` and go on to the next step; one block."""
    shared = cuda.shared.array(THREADS, float64)
    rows = count_rows(control, 0, control[2])
    loss, square = float64(0), float64(0)
    for i in range(cuda.threadIdx.x, rows, THREADS):
        loss += losses[i]
    for i in range(cuda.threadIdx.x, n_squares, THREADS):
        square += squares[i]
    loss = add_over_block(shared, loss)
    cuda.syncthreads()
    square = add_over_block(shared, square)
    if cuda.threadIdx.x == 0:
        results[2 * control[0]] = loss
        results[2 * control[0] + 1] = square
        control[0] += 1
