"""GEMM register tiles, a transpose and the softmax head, emitted as LLVM vector IR.

A tile computes MR rows x NV vectors of ``C = init + A @ B`` with all accumulators in registers.
``B`` is read in whole vectors, row by row (a packed panel, or deltas); ``A`` one element at a time,
its rows ``A_stride`` apart (the forward product; the input gradient, where ``A`` is deltas) or, if
the tile is turned, its columns (the weight gradient: ``A`` is activations, transposed).  ``init``
has a row stride of its own: 0 broadcasts a bias row, that of ``C`` accumulates.  The last step
before the store is chosen by ``epilogue``: nothing, ReLU, or ReLU's derivative taken from ``aux``.

Rows are split evenly over tiles of at most `MAX_ROWS`, so there are no remainder loops, and one
call computes a whole column of tiles; columns are padded to whole vectors.  Kernels call a tile by
its address, which they take from a table.

Beside the FMAs a loop holds what it has to: a load per row and vector, and additions to four or
fewer registers and a prefetch per four terms. On Intel's processors every other addition takes a
turn of the ports that multiply vectors. Measured in 32 KB on one core of a Xeon with AVX-512 (239
GFLOP/s of float32 FMAs): 230 GFLOP/s for 256 terms and 225 for the weight gradient of 200 rows; 189
and 173 with one pointer per row. Of whole epochs tiles reach 80 to 90 % (``bench/account.py``).

Where parameters and deltas do not fit in L2, the first tile of a column would wait for each row of
``B``, and processors see no further ahead than a page.  So each turn of four terms asks for one
cache line of the ``B`` that comes after this one: a panel's next terms, or in turned tiles the next
panel of deltas; eight tiles ask for all of it.  That took 4 to 6 % off wide networks in float32 and
8 to 10 % in float64, and costs small ones up to 1 %.  Forward tiles of 1024 terms went from 0.8 of
the FMA rate to 0.9, turned ones from 0.84 to 0.91.

Accumulators must stay in registers, which LLVM grants only while they are few enough: 12 x 2 leaves
it 8 of AVX-512's 32; 14 x 2 made it reload (173 to 243 GFLOP/s).  On AVX2 6 x 2 leaves 4 of 16; one
vector wide, 12 rows reach 43 GFLOP/s, 8 rows 80, 6 rows 57.

Tried and lost: masks instead of padding (slower for digits' 10 outputs), smaller vectors at the
edge (no gain), 8 x 3 and 6 x 4 tiles (the same rate, wider panels to pad), 24 rows of one vector
(the same), two pointers to ``A`` so that each FMA broadcasts its own operand (twice the loads), one
specialised tile inlined per use (ten seconds of compilation), a function that jumps to the tile (a
second call with as many arguments: 10 % of a small network's products).  All tiles of an element
type are one piece.
"""

import math
from itertools import product

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastmlp.engine.cpu.kernels.jit import Piece
from fastmlp.engine.cpu.kernels.vector import I32, I64, VOID, Emitter, llvm_type, prefetch
from fastmlp.engine.cpu.layout import LINE, MAX_ROWS, tile_number
from fastmlp.engine.processor import lanes

REAL = np.float64  # bound to each element type (`jit.Piece`)
PLAIN, RELU, RELU_DERIVATIVE = range(3)


def _function(module, name, argument_types, element, emit, result=VOID):
    """The module's function ``name``, emitted on first use."""
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(result, argument_types), name)
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


def _opaque(b, value):
    """The same number, of which LLVM does not know how it came about.

    Else it makes each row's address from the one before, by additions that take turns of the ports
    on which Intel's processors multiply vectors.
    """
    kind = ir.FunctionType(value.type, [value.type])
    return b.call(ir.InlineAsm(kind, "", "=r,0"), [value])


_NEIGHBOURS = 3  # rows that are addressed from one register: at 0, 1 and 2 strides from it
_UNROLLED = 4  # terms of a turn of the loop


class _Operands:
    """Where a tile reads ``A`` and ``B``: registers that a loop moves on, and their strides.

    Parameters
    ----------
    turned : bool
        Whether the columns of ``A`` lie ``A_stride`` apart instead of its rows.
    """

    def __init__(self, e, rows, vectors, turned, A_stride, B_stride):
        self._e, self._rows, self._vectors, self._turned = e, rows, vectors, turned
        most = max(_UNROLLED, _NEIGHBOURS)
        self._A_strides, self._B_strides = (
            [e.builder.mul(stride, _index(i)) for i in range(most + 1)]
            for stride in (A_stride, B_stride)
        )

    def start(self, A, B):
        """The registers before the first term."""
        if self._turned:
            return [A, B]
        b, stride = self._e.builder, self._A_strides[_NEIGHBOURS]
        first = [A]
        for _ in range(_NEIGHBOURS, self._rows, _NEIGHBOURS):
            first.append(b.add(first[-1], stride))
        return [*first, B]

    def following(self, registers, n):
        """The registers ``n`` terms later."""
        b = self._e.builder
        A_step = self._A_strides[n] if self._turned else _index(n * self._e.size)
        steps = [A_step] * (len(registers) - 1) + [self._B_strides[n]]
        return [_opaque(b, b.add(one, step)) for one, step in zip(registers, steps, strict=True)]

    def add_term(self, registers, k, sums):
        """The sums with the ``k``-th term from here on."""
        e, b = self._e, self._e.builder
        B = b.add(registers[-1], self._B_strides[k])
        B_values = [e.load(self._pointer(B, j * e.n, e.type)) for j in range(self._vectors)]
        updated = []
        for i in range(self._rows):
            if self._turned:
                address = self._pointer(b.add(registers[0], self._A_strides[k]), i, e.element)
            else:
                near = b.add(registers[i // _NEIGHBOURS], self._A_strides[i % _NEIGHBOURS])
                address = self._pointer(near, k, e.element)
            value = e.splat(b.load(address))
            updated.append([e.fma(value, B_values[j], sums[i][j]) for j in range(self._vectors)])
        return updated

    def _pointer(self, address, elements, kind):
        b = self._e.builder
        return b.inttoptr(b.add(address, _index(elements * self._e.size)), kind.as_pointer())


def _emit_terms(e, operands, registers, count, unrolled, sums, ahead=None):
    """A loop of ``count`` turns of ``unrolled`` terms; the registers and sums behind it.

    A turn asks for the cache line that is so many bytes ``ahead`` in ``B``.
    """
    b = e.builder
    before, loop, end = b.block, b.append_basic_block("terms"), b.append_basic_block("end")
    b.cbranch(b.icmp_signed("<", _index(0), count), loop, end)
    b.position_at_end(loop)
    left = b.phi(I64)
    moving = [b.phi(I64) for _ in registers]
    states = [[b.phi(e.type) for _ in row] for row in sums]
    updated = states
    for k in range(unrolled):
        updated = operands.add_term(moving, k, updated)
    if ahead is not None:
        prefetch(b, b.add(moving[-1], ahead), for_writing=False)
    moved = operands.following(moving, unrolled)
    fewer = b.sub(left, _index(1))
    b.cbranch(b.icmp_signed("<", _index(0), fewer), loop, end)
    pairs = [(left, count, fewer), *zip(moving, registers, moved, strict=True)]
    for state_row, row, updated_row in zip(states, sums, updated, strict=True):
        pairs += zip(state_row, row, updated_row, strict=True)
    for phi, start, later in pairs:
        phi.add_incoming(start, before)
        phi.add_incoming(later, loop)
    b.position_at_end(end)

    def behind(start, later):
        phi = b.phi(start.type)
        phi.add_incoming(start, before)
        phi.add_incoming(later, loop)
        return phi

    registers = [behind(*pair) for pair in zip(registers, moved, strict=True)]
    return registers, [
        [behind(*pair) for pair in zip(row, updated_row, strict=True)]
        for row, updated_row in zip(sums, updated, strict=True)
    ]


def _emit_tile(rows: int, vectors: int, turned: bool):
    """``count`` tiles of ``rows`` x ``vectors``, one below the other."""

    def emit(e, count, A, A_hop, A_stride, B, B_stride, init, init_stride, C, C_stride, terms,
             epilogue, aux):  # fmt: skip
        b, n = e.builder, e.n
        A_hop, A_stride, B_stride = (b.mul(x, _index(e.size)) for x in (A_hop, A_stride, B_stride))
        init, C, aux = (b.inttoptr(address, e.element.as_pointer()) for address in (init, C, aux))
        operands = _Operands(e, rows, vectors, turned, A_stride, B_stride)
        # From tile to tile another of a turn's rows is asked for, and after four the next line.
        to_next_B = _index(vectors * n * e.size) if turned else b.mul(terms, B_stride)
        ahead_step = b.add(B_stride, _index(LINE // _UNROLLED))
        n_turns = b.sdiv(terms, _index(_UNROLLED))
        n_rest = b.sub(terms, b.mul(n_turns, _index(_UNROLLED)))
        before, tile_start = b.block, b.append_basic_block("tile")
        following_tile, done = b.append_basic_block("following"), b.append_basic_block("done")
        b.cbranch(b.icmp_signed("<", _index(0), count), tile_start, done)
        b.position_at_end(tile_start)
        t, ahead = b.phi(I64), b.phi(I64)
        above = b.mul(t, _index(rows))
        A, init = b.add(A, b.mul(t, A_hop)), b.gep(init, [b.mul(above, init_stride)])
        C, aux = (b.gep(p, [b.mul(above, C_stride)]) for p in (C, aux))
        init_rows = [b.gep(init, [b.mul(init_stride, _index(i))]) for i in range(rows)]
        sums = [[e.load(row, _index(j * n)) for j in range(vectors)] for row in init_rows]
        registers = operands.start(A, B)
        registers, sums = _emit_terms(e, operands, registers, n_turns, _UNROLLED, sums, ahead)
        _, results = _emit_terms(e, operands, registers, n_rest, 1, sums)
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
        ahead.add_incoming(to_next_B, before)
        ahead.add_incoming(b.add(ahead, ahead_step), following_tile)
        t.add_incoming(_index(0), before)
        t.add_incoming(next_t, following_tile)
        b.cbranch(b.icmp_signed("<", next_t, count), tile_start, done)
        b.position_at_end(done)
        b.ret(_index(0))

    return emit


@intrinsic
def _write_addresses(typingctx, table, like):
    """Write the address of each tile to its place in a table."""

    def codegen(context, builder, signature, args):
        element = llvm_type(like)
        table = builder.inttoptr(args[0], I64.as_pointer())
        for vectors, most in enumerate(MAX_ROWS, 1):
            for rows, turned in product(range(1, most + 1), (False, True)):
                emit = _emit_tile(rows, vectors, turned)
                name = f"tile_{rows}_{vectors}_{int(turned)}"
                tile = _function(builder.module, name, [I64] * 13, element, emit, I64)
                place = _index(tile_number(rows, vectors, turned))
                builder.store(builder.ptrtoint(tile, I64), builder.gep(table, [place]))
        return ir.Constant(I64, 0)

    return types.int64(table, like), codegen


def tiles(thread, table):
    """Write to a table, at `fastmlp.engine.cpu.layout.tile_number`, the addresses of functions.

    Such a ``tile(count, A, A_hop, A_stride, B, B_stride, init, init_stride, C, C_stride, terms,
    epilogue, aux)`` computes ``C = epilogue(init + A @ B)`` for ``count`` tiles, one below the
    other; all strides in elements.  ``A_hop`` leads from a tile's part of ``A`` to the next's.
    ``A_stride`` lies between rows of ``A``, whose columns are neighbours; if the tile is turned,
    the other way round.
    """
    _write_addresses(table, REAL(0))
    return 0.0


def _transposed(e, rows):
    """As many vectors as one has elements, with rows and columns exchanged."""
    b, n = e.builder, e.n
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
    return rows


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
    rows = _transposed(e, rows)
    for i, row in enumerate(rows):
        e.store(row, target, b.mul(target_stride, _index(i)))
    b.ret_void()


@intrinsic
def transpose(typingctx, source, source_stride, valid_rows, target, target_stride, like):
    """Transpose one square of as many rows and columns as a vector has elements."""
    return _call_of("transpose", 5, _emit_transpose, like)


def _emit_dots(e, A, A_stride, rows, B, vectors, out, out_stride):
    """``out[i] = A[i] . B``, both of so many whole vectors."""
    b, n = e.builder, e.n
    A, B, out = (b.inttoptr(p, e.element.as_pointer()) for p in (A, B, out))
    sums = [cgutils.alloca_once(b, e.type) for _ in range(2)]
    even = b.and_(vectors, _index(-2))

    def add(state, row, k):
        at = b.mul(k, _index(n))
        b.store(e.fma(e.load(row, at), e.load(B, at), b.load(state)), state)

    with cgutils.for_range(b, rows, intp=I64) as loop:
        row = b.gep(A, [b.mul(loop.index, A_stride)])
        for state in sums:
            b.store(e.constant(0), state)
        with cgutils.for_range_slice(b, _index(0), even, _index(2), intp=I64) as (k, _):
            add(sums[0], row, k)
            add(sums[1], row, b.add(k, _index(1)))
        with b.if_then(b.icmp_signed("<", even, vectors)):
            add(sums[0], row, even)
        total = e.reduce(b.fadd(*(b.load(state) for state in sums)), b.fadd)
        b.store(total, b.gep(out, [b.mul(loop.index, out_stride)]))
    b.ret_void()


@intrinsic
def dots(typingctx, A, A_stride, rows, B, vectors, out, out_stride, like):
    """``out[i] = A[i] . B``, of so many whole vectors."""
    return _call_of("dots", 7, _emit_dots, like)


def _emit_softmax(e, z, stride, rows, columns, scales, sums, peaks):
    """Each row of ``z`` becomes scale x softmax(z); its peak and sum of exponentials are kept.

    As many rows at a time as a vector has elements: maxima and sums of several rows are found
    together once those of their lanes are transposed, in the order in which `Emitter.reduce` would
    fold them; a row of ten classes would otherwise spend three quarters of its time on that.
    """
    b, n = e.builder, e.n
    z, scales, sums, peaks = (
        b.inttoptr(p, e.element.as_pointer()) for p in (z, scales, sums, peaks)
    )
    by_lane = cgutils.alloca_once(b, e.element, n * n)
    peak, scale, total, factor = (cgutils.alloca_once(b, e.element, n) for _ in range(4))
    state, step = cgutils.alloca_once(b, e.type), _index(n)

    def maximum(x, y):
        return b.select(b.fcmp_unordered(">", x, y), x, y)

    def of_rows(operation):
        lanes_of_rows = [e.load(by_lane, _index(i * n)) for i in range(n)]
        return _folded(_transposed(e, lanes_of_rows), operation)

    def copy(source, i, target, k):
        b.store(b.load(b.gep(source, [i])), b.gep(target, [k]))

    with cgutils.for_range_slice(b, _index(0), rows, step, intp=I64) as (first, _):
        left = b.sub(rows, first)
        n_rows = b.select(b.icmp_signed("<", left, step), left, step)
        z_rows = b.gep(z, [b.mul(first, stride)])

        def each_row(z_rows=z_rows, n_rows=n_rows):
            with cgutils.for_range(b, n_rows, intp=I64) as loop:
                yield loop.index, b.gep(z_rows, [b.mul(loop.index, stride)])

        def each_vector(start):
            with cgutils.for_range_slice(b, start, columns, step, intp=I64) as (k, _):
                yield k

        for i, row in each_row():
            b.store(e.load(row), state)
            for k in each_vector(step):
                b.store(maximum(b.load(state), e.load(row, k)), state)
            e.store(b.load(state), by_lane, b.mul(i, step))
        e.store(of_rows(maximum), peak)
        for i, row in each_row():
            at = b.add(first, i)
            copy(peak, i, peaks, at)
            copy(scales, at, scale, i)
            highest = e.splat(b.load(b.gep(peak, [i])))
            b.store(e.constant(0), state)
            for k in each_vector(_index(0)):
                power = e.exp(b.fsub(e.load(row, k), highest))
                e.store(power, row, k)
                b.store(b.fadd(b.load(state), power), state)
            e.store(b.load(state), by_lane, b.mul(i, step))
        totals = of_rows(b.fadd)
        e.store(totals, total)
        e.store(b.fdiv(e.load(scale), totals), factor)
        for i, row in each_row():
            copy(total, i, sums, b.add(first, i))
            own = e.splat(b.load(b.gep(factor, [i])))
            for k in each_vector(_index(0)):
                e.store(b.fmul(e.load(row, k), own), row, k)
    b.ret_void()


def _folded(values, operation):
    """Vectors folded as `Emitter.reduce` does with the elements of one."""
    while len(values) > 1:
        half = len(values) // 2
        values = [operation(*pair) for pair in zip(values[:half], values[half:], strict=True)]
    return values[0]


@intrinsic
def softmax(typingctx, z, stride, rows, columns, scales, sums, peaks, like):
    """Softmax of ``rows`` rows of ``columns`` (whole vectors), in place, each row times a scale.

    ``sums`` and ``peaks`` receive each row's sum of ``exp(z - peak)`` and its peak.
    """
    return _call_of("softmax", 7, _emit_softmax, like)


PIECES = {"tiles": Piece(tiles, "iid")}
