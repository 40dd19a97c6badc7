"""Instructions that Numba has no name for, as intrinsics: the only file with inline PTX.

Every function takes arrays, or pointers to global memory, and element offsets, never addresses, so
that the emulator under tests/ can stand in for each of them with a Python twin of the same name,
which checks bounds and alignment.  numba-cuda is in maintenance and its successor replaces
llvmlite; this file is what a port would rewrite.

Fragment layouts are those of the PTX ISA, "Matrix fragments for mma": with ``g = lane // 4``
and ``t = lane % 4``, a lane holds of a 16 x 8 result rows g and g + 8, columns 2t and 2t + 1.
"""

from llvmlite import ir

from fastmlp.engine.cuda.numba_cuda import intrinsic, types

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VOID = ir.VoidType()


def _asm(builder, result, text, constraints, args, *, memory=False):
    """Call inline assembly; with ``memory`` it is neither moved nor dropped."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    if memory:
        constraints = f"{constraints},~{{memory}}" if constraints else "~{memory}"
    return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=memory), args)


def _element(context, builder, array_type, array, offset):
    """Pointer to an element of an array, or behind a pointer."""
    if not isinstance(array_type, types.CPointer):
        array = context.make_array(array_type)(context, builder, array).data
    return builder.gep(array, [offset])


def _element_address(context, builder, array_type, array, offset):
    return builder.ptrtoint(_element(context, builder, array_type, array, offset), _I64)


def _shared_address(context, builder, array_type, array, offset):
    element = _element(context, builder, array_type, array, offset)
    kind = context.get_value_type(array_type.dtype)
    in_shared = builder.addrspacecast(element, ir.PointerType(kind, addrspace=3))
    return builder.ptrtoint(in_shared, _I32)


@intrinsic
def quotient(typingctx, a, b):
    """``a // b`` of two int32, which are not negative: a quarter of what int64 takes."""

    def codegen(context, builder, signature, args):
        return builder.udiv(*args)

    return types.int32(types.int32, types.int32), codegen


# --- asynchronous copies ----------------------------------------------------------------------


def _copy(name, n_bytes):
    """An intrinsic that starts copying ``source[j]`` (global) and what follows, ``n_bytes`` or an
    element, to ``target[i]`` (shared), or zeros if not ``valid``.

    The copy is done after `commit_copies` and a wait.
    """

    def typed(typingctx, target, i, source, j, valid):
        size = n_bytes or target.dtype.bitwidth // 8
        where = "cg" if size == 16 else "ca"

        def codegen(context, builder, signature, args):
            to = _shared_address(context, builder, signature.args[0], args[0], args[1])
            start = _element_address(context, builder, signature.args[2], args[2], args[3])
            n_read = builder.select(args[4], ir.Constant(_I32, size), ir.Constant(_I32, 0))
            text = f"cp.async.{where}.shared.global [$0], [$1], {size}, $2;"
            _asm(builder, _VOID, text, "r,l,r", [to, start, n_read], memory=True)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64, types.boolean), codegen

    typed.__name__ = name
    return typed


copy_element_async = intrinsic(_copy("copy_element_async", 0))
copy_vector_async = intrinsic(_copy("copy_vector_async", 16))


# --- shared memory ----------------------------------------------------------------------------


@intrinsic
def load_shared(typingctx, source, i):
    """``source[i]`` (shared), which is not counted from the end if ``i`` is negative."""

    def codegen(context, builder, signature, args):
        return builder.load(_element(context, builder, signature.args[0], args[0], args[1]))

    return source.dtype(source, types.int64), codegen


@intrinsic
def load_vector(typingctx, target, i, source, j):
    """Copy 16 bytes from ``source[j]`` (shared, aligned to them) to ``target[i]`` (local)."""
    n = 128 // source.dtype.bitwidth

    def codegen(context, builder, signature, args):
        kind = context.get_value_type(source.dtype)
        start = _element(context, builder, signature.args[2], args[2], args[3])
        values = builder.load(builder.bitcast(start, ir.VectorType(kind, n).as_pointer()), align=16)
        to = _element(context, builder, signature.args[0], args[0], args[1])
        for k in range(n):
            value = builder.extract_element(values, ir.Constant(_I32, k))
            builder.store(value, builder.gep(to, [ir.Constant(_I64, k)]))
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64), codegen


@intrinsic
def store_vector(typingctx, target, i, source, j):
    """Copy 16 bytes from ``source[j]`` (local) to ``target[i]`` (shared, aligned to them)."""
    n = 128 // target.dtype.bitwidth

    def codegen(context, builder, signature, args):
        kind = ir.VectorType(context.get_value_type(target.dtype), n)
        start = _element(context, builder, signature.args[2], args[2], args[3])
        values = ir.Constant(kind, ir.Undefined)
        for k in range(n):
            value = builder.load(builder.gep(start, [ir.Constant(_I64, k)]))
            values = builder.insert_element(values, value, ir.Constant(_I32, k))
        to = _element(context, builder, signature.args[0], args[0], args[1])
        builder.store(values, builder.bitcast(to, kind.as_pointer()), align=16)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64), codegen


def _matrices(name, n, form):
    """An intrinsic that loads ``n`` matrices of 8 x 8 elements of 16 bits, whose rows lie in shared
    memory, aligned to 16 bytes: lane ``8 m + r`` says where row r of matrix m is, ``source[j]``.

    Register ``target[i + m]`` (uint32) of a lane gets of matrix m, or of its transpose, two
    elements that follow each other, as a fragment has them: row g, columns 2t and 2t + 1.
    """

    def typed(typingctx, target, i, source, j):
        def codegen(context, builder, signature, args):
            start = _shared_address(context, builder, signature.args[2], args[2], args[3])
            registers = ",".join(f"${m}" for m in range(n))
            text = f"ldmatrix.sync.aligned.m8n8.x{n}{form}.shared.b16 {{{registers}}}, [${n}];"
            constraints = ",".join(["=r"] * n + ["r"])
            kind = ir.LiteralStructType([_I32] * n)
            values = _asm(builder, kind, text, constraints, [start], memory=True)
            to = _element(context, builder, signature.args[0], args[0], args[1])
            for m in range(n):
                value = builder.extract_value(values, m)
                builder.store(value, builder.gep(to, [ir.Constant(_I64, m)]))
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64), codegen

    typed.__name__ = name
    return typed


load_2_matrices = intrinsic(_matrices("load_2_matrices", 2, ""))
load_4_matrices = intrinsic(_matrices("load_4_matrices", 4, ""))
load_2_transposed = intrinsic(_matrices("load_2_transposed", 2, ".trans"))
load_4_transposed = intrinsic(_matrices("load_4_transposed", 4, ".trans"))


# --- groups of asynchronous copies --------------------------------------------------------------


def _statement(name, text):
    """An intrinsic without arguments or result."""

    def typed(typingctx):
        def codegen(context, builder, signature, args):
            _asm(builder, _VOID, text, "", [], memory=True)
            return context.get_dummy_value()

        return types.void(), codegen

    typed.__name__ = name
    return typed


commit_copies = intrinsic(_statement("commit_copies", "cp.async.commit_group;"))
wait_for_all_copies = intrinsic(_statement("wait_for_all_copies", "cp.async.wait_group 0;"))
wait_for_all_but_one = intrinsic(_statement("wait_for_all_but_one", "cp.async.wait_group 1;"))
wait_for_all_but_two = intrinsic(_statement("wait_for_all_but_two", "cp.async.wait_group 2;"))
wait_for_all_but_six = intrinsic(_statement("wait_for_all_but_six", "cp.async.wait_group 6;"))


# --- tensor cores -----------------------------------------------------------------------------


@intrinsic
def to_tf32(typingctx, x):
    """Round a float32 to TF32 (10 bits of mantissa), as the bits that an mma takes."""

    def codegen(context, builder, signature, args):
        return _asm(builder, _I32, "cvt.rna.tf32.f32 $0, $1;", "=r,f", args)

    return types.uint32(types.float32), codegen


@intrinsic
def to_bf16(typingctx, x):
    """Round a float32 to bfloat16 (7 bits of mantissa), as the bits that are stored."""

    def codegen(context, builder, signature, args):
        return _asm(builder, _I16, "cvt.rn.bf16.f32 $0, $1;", "=h,f", args)

    return types.uint16(types.float32), codegen


@intrinsic
def from_bf16(typingctx, bits):
    """The float32 that a bfloat16 stands for."""

    def codegen(context, builder, signature, args):
        high = builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(high, _F32)

    return types.float32(types.uint16), codegen


def _mma(builder, name, args):
    """``D = A B + C``: four registers of A, two of B, four floats of C and D."""
    text = f"mma.sync.aligned.{name} {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, "
    text += "{$10,$11,$12,$13};"
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
    return _asm(builder, ir.LiteralStructType([_F32] * 4), text, constraints, args)


_FRAGMENTS = types.UniTuple(types.float32, 4)(*[types.uint32] * 6, *[types.float32] * 4)


def _mma_codegen(name):
    def codegen(context, builder, signature, args):
        result = _mma(builder, name, args)
        values = [builder.extract_value(result, i) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, values)

    return _FRAGMENTS, codegen


@intrinsic
def mma_tf32(typingctx, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    """16 x 8 += 16 x 8 @ 8 x 8 in TF32, accumulated in float32."""
    return _mma_codegen("m16n8k8.row.col.f32.tf32.tf32.f32")


@intrinsic
def mma_bf16(typingctx, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    """16 x 8 += 16 x 16 @ 16 x 8 in bfloat16, accumulated in float32."""
    return _mma_codegen("m16n8k16.row.col.f32.bf16.bf16.f32")


# --- between blocks ---------------------------------------------------------------------------


@intrinsic
def add_release(typingctx, array, i, value):
    """Add to ``array[i]`` (uint32, global), after all that this thread has written or seen."""

    def codegen(context, builder, signature, args):
        at = _element_address(context, builder, signature.args[0], args[0], args[1])
        text = "red.release.gpu.global.add.u32 [$0], $1;"
        _asm(builder, _VOID, text, "l,r", [at, args[2]], memory=True)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint32), codegen


@intrinsic
def load_acquire(typingctx, array, i):
    """``array[i]`` (uint32, global), before all that this thread reads from here on."""

    def codegen(context, builder, signature, args):
        at = _element_address(context, builder, signature.args[0], args[0], args[1])
        text = "ld.acquire.gpu.global.u32 $0, [$1];"
        return _asm(builder, _I32, text, "=r,l", [at], memory=True)

    return types.uint32(array, types.int64), codegen
