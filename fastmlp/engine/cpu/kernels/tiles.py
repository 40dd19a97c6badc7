"""GEMM register tiles, a transpose and the softmax head, emitted as LLVM vector IR.

A tile computes MR rows x NV vectors of ``C = init + A @ B`` with all accumulators in registers.
``B`` is read in whole vectors, row by row (a packed panel, or deltas); ``A`` one element at a time
through a row and a column stride, so the same tile serves the forward product, the input gradient
(``A`` = deltas) and the weight gradient (``A`` = transposed activations).  ``init`` has a row
stride of its own: 0 broadcasts a bias row, that of ``C`` accumulates.  The last step before the
store is chosen by ``epilogue``: nothing, ReLU, or ReLU's derivative taken from ``aux``.

Rows are split evenly over tiles of at most `MAX_ROWS`, so there are no remainder loops, and one
call computes a whole column of tiles; columns are padded to whole vectors.  Measured on one Zen 5
core (249 GFLOP/s of float32 FMAs): 245 to 260 GFLOP/s for 32 and more terms, 190 for 8; on one
Zen 3 core (101): 95 to 98 for operands in L2.

Accumulators must stay in registers, which LLVM grants only while they are few enough: 12 x 2 leaves
it 8 of AVX-512's 32; 14 x 2 made it reload (173 to 243 GFLOP/s).  On AVX2 6 x 2 leaves 4 of 16; one
vector wide, 12 rows reach 43 GFLOP/s, 8 rows 80, 6 rows 57.

Tried and lost: masks instead of padding (slower for digits' 10 outputs), smaller vectors at the
edge (no gain), 8 x 3 and 6 x 4 tiles (the same rate, wider panels to pad), two pointers to ``A``
so that each FMA broadcasts its own operand (twice the loads), one specialised tile inlined per use
(ten seconds of compilation).  All tiles of an element type are one piece.
"""

import math

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastmlp.engine.cpu.kernels.jit import Piece
from fastmlp.engine.cpu.kernels.vector import I32, I64, VOID, Emitter, llvm_type
from fastmlp.engine.cpu.layout import MAX_ROWS
from fastmlp.engine.processor import lanes

REAL = np.float64  # bound to each element type (`jit.Piece`)
PLAIN, RELU, RELU_DERIVATIVE = range(3)


def _function(module, name, argument_types, element, emit):
    """The module's function ``name``, emitted on first use."""
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(VOID, argument_types), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    emit(Emitter(builder, element, lanes(4 if element == llvm_type(types.float32) else 8)),
         *function.args)  # fmt: skip
    return function


def _call_of(name: str, n: int, emit, like):
    """What an intrinsic is that calls such a function with its first ``n`` arguments, integers."""

    def codegen(context, builder, signature, args):
        element = llvm_type(like)
        full_name = f"{name}_{_suffix(element)}"
        function = _function(builder.module, full_name, [I64] * n, element, emit)
        builder.call(function, args[:n])
        return context.get_dummy_value()

    return types.void(*[types.int64] * n, like), codegen


def _suffix(element) -> str:
    return "f32" if element == llvm_type(types.float32) else "f64"


def _index(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _emit_tile(rows: int, vectors: int):
    """``count`` tiles of ``rows`` x ``vectors``, one below the other."""

    def emit(e, count, A, A_hop, row_stride, column_stride, B, B_stride, init, init_stride, C,
             C_stride, terms, epilogue, aux):  # fmt: skip
        b, n = e.builder, e.n
        A, B, init, C, aux = (
            b.inttoptr(address, e.element.as_pointer()) for address in (A, B, init, C, aux)
        )
        before, tile_start = b.block, b.append_basic_block("tile")
        following_tile, done = b.append_basic_block("following"), b.append_basic_block("done")
        b.cbranch(b.icmp_signed("<", _index(0), count), tile_start, done)
        b.position_at_end(tile_start)
        t = b.phi(I64)
        above = b.mul(t, _index(rows))
        A, init = b.gep(A, [b.mul(t, A_hop)]), b.gep(init, [b.mul(above, init_stride)])
        C, aux = (b.gep(p, [b.mul(above, C_stride)]) for p in (C, aux))
        A_rows = [b.gep(A, [b.mul(row_stride, _index(i))]) for i in range(rows)]
        init_rows = [b.gep(init, [b.mul(init_stride, _index(i))]) for i in range(rows)]
        start = [[e.load(row, _index(j * n)) for j in range(vectors)] for row in init_rows]

        entry, loop, end = b.block, b.append_basic_block("terms"), b.append_basic_block("end")
        b.cbranch(b.icmp_signed("<", _index(0), terms), loop, end)
        b.position_at_end(loop)
        k = b.phi(I64)
        sums = [[b.phi(e.type) for _ in range(vectors)] for _ in range(rows)]
        B_row = b.gep(B, [b.mul(k, B_stride)])
        B_values = [e.load(B_row, _index(j * n)) for j in range(vectors)]
        column = b.mul(k, column_stride)
        A_values = [e.splat(b.load(b.gep(row, [column]))) for row in A_rows]
        updated = [
            [e.fma(A_values[i], B_values[j], sums[i][j]) for j in range(vectors)]
            for i in range(rows)
        ]
        following = b.add(k, _index(1))
        k.add_incoming(_index(0), entry)
        k.add_incoming(following, loop)
        for i in range(rows):
            for j in range(vectors):
                sums[i][j].add_incoming(start[i][j], entry)
                sums[i][j].add_incoming(updated[i][j], loop)
        b.cbranch(b.icmp_signed("<", following, terms), loop, end)

        b.position_at_end(end)
        results = [[b.phi(e.type) for _ in range(vectors)] for _ in range(rows)]
        for i in range(rows):
            for j in range(vectors):
                results[i][j].add_incoming(start[i][j], entry)
                results[i][j].add_incoming(updated[i][j], loop)
        blocks = [b.append_basic_block(f"epilogue{m}") for m in range(3)]
        switch = b.switch(epilogue, blocks[PLAIN])
        switch.add_case(_index(RELU), blocks[RELU])
        switch.add_case(_index(RELU_DERIVATIVE), blocks[RELU_DERIVATIVE])
        zero = e.constant(0)
        for mode, block in enumerate(blocks):
            b.position_at_end(block)
            for i in range(rows):
                offset = b.mul(C_stride, _index(i))
                C_row, aux_row = b.gep(C, [offset]), b.gep(aux, [offset])
                for j in range(vectors):
                    value = results[i][j]
                    if mode == RELU:
                        value = e.floor_at(value, zero)
                    elif mode == RELU_DERIVATIVE:
                        dead = b.fcmp_ordered("==", e.load(aux_row, _index(j * n)), zero)
                        value = b.select(dead, zero, value)
                    e.store(value, C_row, _index(j * n))
            b.branch(following_tile)
        b.position_at_end(following_tile)
        next_t = b.add(t, _index(1))
        t.add_incoming(_index(0), before)
        t.add_incoming(next_t, following_tile)
        b.cbranch(b.icmp_signed("<", next_t, count), tile_start, done)
        b.position_at_end(done)
        b.ret_void()

    return emit


def _case(rows, vectors):
    return vectors * (max(MAX_ROWS) + 1) + rows


def _emit_choice(element):
    """One function that jumps to the tiles for (rows, vectors)."""

    def emit(e, rows, vectors, *rest):
        b = e.builder
        default = b.append_basic_block("default")
        row_of = b.mul(vectors, _index(_case(0, 1)))
        switch = b.switch(b.add(row_of, rows), default)
        b.position_at_end(default)
        b.ret_void()
        for v, most in enumerate(MAX_ROWS, 1):
            for r in range(1, most + 1):
                name = f"tile_{_suffix(element)}_{r}_{v}"
                tile = _function(b.module, name, [I64] * 14, element, _emit_tile(r, v))
                block = b.append_basic_block(name)
                switch.add_case(_index(_case(r, v)), block)
                b.position_at_end(block)
                b.call(tile, rest)
                b.ret_void()

    return emit


@intrinsic
def _tile(typingctx, arguments, like):
    """Jump to the tiles for the first two arguments, rows and vectors."""

    def codegen(context, builder, signature, args):
        element = llvm_type(like)
        choice = _function(builder.module, "choice", [I64] * 16, element, _emit_choice(element))
        builder.call(choice, [builder.extract_value(args[0], i) for i in range(16)])
        return ir.Constant(I64, 0)

    return types.int64(arguments, like), codegen


def tiles(rows, vectors, count, A, A_hop, row_stride, column_stride, B, B_stride, init, init_stride,
          C, C_stride, terms, epilogue, aux):  # fmt: skip
    """``C = epilogue(init + A @ B)`` for ``count`` tiles of ``rows`` x ``vectors``, one below the
    other; all strides in elements.  ``A_hop`` leads from a tile's part of ``A`` to the next's.
    """
    return _tile(
        (rows, vectors, count, A, A_hop, row_stride, column_stride, B, B_stride, init, init_stride,
         C, C_stride, terms, epilogue, aux), REAL(0)
    )  # fmt: skip


def _emit_transpose(e, source, source_stride, valid_rows, target, target_stride):
    """n x n elements; source rows from ``valid_rows`` on count as zero."""
    b, n = e.builder, e.n
    source, target = (b.inttoptr(p, e.element.as_pointer()) for p in (source, target))
    zero = e.constant(0)
    rows = []
    for i in range(n):
        valid = b.icmp_signed("<", _index(i), valid_rows)
        with b.if_else(valid) as (then, otherwise):
            with then:
                value, then_block = e.load(source, b.mul(source_stride, _index(i))), b.block
            with otherwise:
                other_block = b.block
        row = b.phi(e.type)
        row.add_incoming(value, then_block)
        row.add_incoming(zero, other_block)
        rows.append(row)
    halves = [
        ir.Constant(ir.VectorType(I32, n), [x for i in half for x in (i, n + i)])
        for half in (range(n // 2), range(n // 2, n))
    ]
    for _ in range(int(math.log2(n))):
        rows = [
            b.shuffle_vector(rows[i], rows[i + n // 2], half)
            for i in range(n // 2)
            for half in halves
        ]
    for i, row in enumerate(rows):
        e.store(row, target, b.mul(target_stride, _index(i)))
    b.ret_void()


@intrinsic
def transpose(typingctx, source, source_stride, valid_rows, target, target_stride, like):
    """Transpose one square of as many rows and columns as a vector has elements."""
    return _call_of("transpose", 5, _emit_transpose, like)


def _emit_dots(e, A, A_stride, rows, B, B_hop, panels, tail, bias, out, out_stride):
    """``out[i] = bias + A[i] . B``, in panels of two vectors; ``tail``, of one, may be 0."""
    b, n = e.builder, e.n
    has_tail = b.icmp_signed("!=", tail, _index(0))
    A, B, tail, out = (b.inttoptr(p, e.element.as_pointer()) for p in (A, B, tail, out))
    bias = b.load(b.inttoptr(bias, e.element.as_pointer()))
    sums = [cgutils.alloca_once(b, e.type) for _ in range(2)]

    def add(state, row, column, weights, offset):
        weight = e.load(weights, offset)
        b.store(e.fma(e.load(row, column), weight, b.load(state)), state)

    with cgutils.for_range(b, rows, intp=I64) as loop:
        row = b.gep(A, [b.mul(loop.index, A_stride)])
        for state in sums:
            b.store(e.constant(0), state)
        with cgutils.for_range(b, panels, intp=I64) as panel:
            column, at = b.mul(panel.index, _index(2 * n)), b.mul(panel.index, B_hop)
            for j, state in enumerate(sums):
                add(state, row, b.add(column, _index(j * n)), B, b.add(at, _index(j * n)))
        with b.if_then(has_tail):
            add(sums[0], row, b.mul(panels, _index(2 * n)), tail, _index(0))
        total = e.reduce(b.fadd(*(b.load(state) for state in sums)), b.fadd)
        b.store(b.fadd(total, bias), b.gep(out, [b.mul(loop.index, out_stride)]))
    b.ret_void()


@intrinsic
def dots(typingctx, A, A_stride, rows, B, B_hop, panels, tail, bias, out, out_stride, like):
    """``out[i] = bias + A[i] . B``, for an output of so few that a tile would be mostly padding.

    ``B`` lies in ``panels`` of two vectors, ``B_hop`` elements apart, and if ``tail`` is not 0, a
    last one of one vector there.
    """
    return _call_of("dots", 10, _emit_dots, like)


def _emit_softmax(e, z, stride, rows, columns, scales, sums, peaks):
    """Each row of ``z`` becomes scale x softmax(z); its peak and sum of exponentials are kept."""
    b, n = e.builder, e.n
    z, scales, sums, peaks = (
        b.inttoptr(p, e.element.as_pointer()) for p in (z, scales, sums, peaks)
    )

    def maximum(x, y):
        return b.select(b.fcmp_unordered(">", x, y), x, y)

    step = _index(n)
    state = cgutils.alloca_once(b, e.type)
    with cgutils.for_range(b, rows, intp=I64) as loop:
        row = b.gep(z, [b.mul(loop.index, stride)])
        b.store(e.load(row), state)
        with cgutils.for_range_slice(b, step, columns, step, intp=I64) as (k, _):
            b.store(maximum(b.load(state), e.load(row, k)), state)
        peak = e.reduce(b.load(state), maximum)
        peaks_vector = e.splat(peak)
        b.store(e.constant(0), state)
        with cgutils.for_range_slice(b, _index(0), columns, step, intp=I64) as (k, _):
            power = e.exp(b.fsub(e.load(row, k), peaks_vector))
            e.store(power, row, k)
            b.store(b.fadd(b.load(state), power), state)
        total = e.reduce(b.load(state), b.fadd)
        factor = e.splat(b.fdiv(b.load(b.gep(scales, [loop.index])), total))
        with cgutils.for_range_slice(b, _index(0), columns, step, intp=I64) as (k, _):
            e.store(b.fmul(e.load(row, k), factor), row, k)
        b.store(total, b.gep(sums, [loop.index]))
        b.store(peak, b.gep(peaks, [loop.index]))
    b.ret_void()


@intrinsic
def softmax(typingctx, z, stride, rows, columns, scales, sums, peaks, like):
    """Softmax of ``rows`` rows of ``columns`` (whole vectors), in place, each row times a scale.

    ``sums`` and ``peaks`` receive each row's sum of ``exp(z - peak)`` and its peak.
    """
    return _call_of("softmax", 7, _emit_softmax, like)


PIECES = {"tiles": Piece(tiles, "i" * 17)}
