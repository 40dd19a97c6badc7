"""Instructions that Numba has no name for, as intrinsics: the only file with inline PTX.

Every function takes arrays and element offsets, never addresses, so that the emulator under tests/
can stand in for each of them with a Python twin of the same name, which checks bounds and
alignment.  numba-cuda is in maintenance and its successor replaces llvmlite; this file is what a
port would rewrite.

Fragment layouts are those of the PTX ISA, "Matrix fragments for mma": with ``g = lane // 4``
and ``t = lane % 4``, a lane holds of a 16 x 8 result rows g and g + 8, columns 2t and 2t + 1.
"""

from llvmlite import ir

try:
    import _numba_cuda_redirector  # noqa: F401  # `numba.cuda` is numba-cuda's from here on
except ImportError:
    raise ValueError(
        "device='cuda' needs numba-cuda; install it with: pip install \"fastmlp[cuda]\"."
    ) from None
from numba.cuda import types
from numba.cuda.extending import intrinsic

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VOID = ir.VoidType()


def _asm(builder, result, text, constraints, args, *, memory=False):
    """Call inline assembly; with ``memory`` it is neither moved nor dropped."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    if memory:
        constraints = f"{constraints},~{{memory}}" if constraints else "~{memory}"
    return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=memory), args)


def _element_address(context, builder, array_type, array, offset):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.ptrtoint(builder.gep(data, [offset]), _I64)


def _shared_address(context, builder, array_type, array, offset):
    generic = _element_address(context, builder, array_type, array, offset)
    text = "{ .reg .u64 t; cvta.to.shared.u64 t, $1; cvt.u32.u64 $0, t; }"
    return _asm(builder, _I32, text, "=r,l", [generic])


# --- asynchronous copies ----------------------------------------------------------------------


@intrinsic
def copy_async(typingctx, target, i, source, j, valid):
    """Start copying ``source[j]`` (global) to ``target[i]`` (shared), or zero if not ``valid``.

    Elements of 4 or 8 bytes.  The copy is done after `commit_copies` and a wait.
    """
    size = target.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        to = _shared_address(context, builder, signature.args[0], args[0], args[1])
        start = _element_address(context, builder, signature.args[2], args[2], args[3])
        n_bytes = builder.select(args[4], ir.Constant(_I32, size), ir.Constant(_I32, 0))
        text = f"cp.async.ca.shared.global [$0], [$1], {size}, $2;"
        _asm(builder, _VOID, text, "r,l,r", [to, start, n_bytes], memory=True)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.boolean), codegen


def _statement(text):
    """An intrinsic without arguments or result."""

    def typed(typingctx):
        def codegen(context, builder, signature, args):
            _asm(builder, _VOID, text, "", [], memory=True)
            return context.get_dummy_value()

        return types.void(), codegen

    return typed


commit_copies = intrinsic(_statement("cp.async.commit_group;"))
wait_for_all_copies = intrinsic(_statement("cp.async.wait_group 0;"))
wait_for_all_but_one = intrinsic(_statement("cp.async.wait_group 1;"))


# --- tensor cores -----------------------------------------------------------------------------


@intrinsic
def to_tf32(typingctx, x):
    """Round a float32 to TF32 (10 bits of mantissa), as the bits that an mma takes."""

    def codegen(context, builder, signature, args):
        return _asm(builder, _I32, "cvt.rna.tf32.f32 $0, $1;", "=r,f", args)

    return types.uint32(types.float32), codegen


@intrinsic
def to_bf16x2(typingctx, low, high):
    """Round two float32 to bfloat16 and pack them, ``low`` in the low half."""

    def codegen(context, builder, signature, args):
        return _asm(builder, _I32, "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", args)

    return types.uint32(types.float32, types.float32), codegen


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
