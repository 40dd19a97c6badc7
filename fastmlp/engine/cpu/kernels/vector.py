"""LLVM IR by hand: vectors, elementary functions, memory and atomics, as Numba intrinsics.

The GEMM tiles need vector registers that Numba's types do not offer, so they are written with
llvmlite (`tiles`), over the `Emitter` of this file.  An emitter works on vectors or on scalars
alike.  Its elementary functions are free of branches and calls: used on scalars inside an ordinary
loop of a kernel, LLVM's vectoriser widens them, so the formulas of `fastmlp.functions` run at
vector speed without a second statement of them.

exp, log, log1p and tanh are range reduction and polynomial (the reductions are Cody and Waite's,
the polynomials Taylor's or Cephes'); measured against mpmath they stay within 2 ulp in float32
and 4 in float64, gradual underflow, infinities and NaN included (`tests/test_vector.py`).

Tried and lost: LLVM's own exp and tanh are scalar calls into libm, five to ten times slower;
Numba's SVML is an extra package.  `llvm.rint` becomes a call on plain x86-64, so rounding to an
integer adds and subtracts 1.5 x 2^(mantissa bits) instead, which also leaves the integer in the low
bits.  `llvm.fmuladd` fuses where the machine can and multiplies and adds where `llvm.fma` would
call libm.

Addresses travel as int64: they cost no reference counts, keep one signature for every kind of
array, and are cached with the code.
"""

import math
import sys
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastmlp.engine.cpu.layout import LINE

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()
VOID = ir.VoidType()


def llvm_type(numba_type) -> ir.Type:
    """float32 or float64 in LLVM's terms."""
    return {types.float32: F32, types.float64: F64}[numba_type]


class Emitter:
    """Emits operations on vectors of ``n`` elements of one float type, scalars for ``n`` = 1."""

    def __init__(self, builder: ir.IRBuilder, element: ir.Type, n: int = 1):
        self.builder = builder
        self.element = element
        self.n = n
        self.size = 4 if element == F32 else 8
        self.bits = I32 if element == F32 else I64
        self.type = element if n == 1 else ir.VectorType(element, n)
        self.int_type = self.bits if n == 1 else ir.VectorType(self.bits, n)
        self.mantissa, self.bias = (23, 127) if element == F32 else (52, 1023)

    # --- constants, memory, arithmetic

    def constant(self, value: float) -> ir.Constant:
        return ir.Constant(self.type, float(value) if self.n == 1 else [float(value)] * self.n)

    def int_constant(self, value: int) -> ir.Constant:
        return ir.Constant(self.int_type, value if self.n == 1 else [value] * self.n)

    def load(self, pointer, offset=None):
        value = self.builder.load(self._at(pointer, offset))
        value.align = self.size
        return value

    def store(self, value, pointer, offset=None) -> None:
        self.builder.store(value, self._at(pointer, offset)).align = self.size

    def _at(self, pointer, offset):
        if offset is not None:
            pointer = self.builder.gep(pointer, [offset])
        return self.builder.bitcast(pointer, self.type.as_pointer())

    def splat(self, scalar):
        if self.n == 1:
            return scalar
        undefined = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.n), [0] * self.n)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def _llvm(self, name, *args):
        letter = "f32" if self.element == F32 else "f64"
        suffix = letter if self.n == 1 else f"v{self.n}{letter}"
        kind = ir.FunctionType(self.type, [arg.type for arg in args])
        function = cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.{name}.{suffix}"
        )
        return self.builder.call(function, args)

    def fma(self, a, b, c):
        return self._llvm("fmuladd", a, b, c)

    def abs(self, x):
        return self._llvm("fabs", x)

    def less(self, a, b):
        return self.builder.fcmp_ordered("<", a, b)

    def floor_at(self, x, low):
        """``max(x, low)`` that lets NaN through."""
        return self.builder.select(self.less(x, low), low, x)

    def clamp(self, x, low: float, high: float):
        x = self.floor_at(x, self.constant(low))
        high = self.constant(high)
        return self.builder.select(self.less(high, x), high, x)

    def polynomial(self, x, coefficients):
        """Horner's scheme, highest power first."""
        value = self.constant(coefficients[0])
        for coefficient in coefficients[1:]:
            value = self.fma(value, x, self.constant(coefficient))
        return value

    def reduce(self, vector, operation):
        """Fold a vector by halves, in a fixed order."""
        n = self.n
        while n > 1:
            n //= 2
            undefined = ir.Constant(vector.type, ir.Undefined)
            low, high = (
                self.builder.shuffle_vector(
                    vector, undefined, ir.Constant(ir.VectorType(I32, n), list(indices))
                )
                for indices in (range(n), range(n, 2 * n))
            )
            vector = operation(low, high)
        return self.builder.extract_element(vector, ir.Constant(I32, 0))

    # --- elementary functions

    def sqrt(self, x):
        """Of what is not negative, within 1 ulp; of a subnormal number, something close to 0.

        In float64 the processor's own takes twice as long as a division, and in the same unit,
        which is what bounds optimizers.  So there it is ``x / sqrt(x)``, from a first guess of two
        digits (Lomont, "Fast inverse square root", 2003) and Newton's method.
        """
        if self.element == F32:
            return self._llvm("sqrt", x)
        b = self.builder
        halved = b.lshr(b.bitcast(x, self.int_type), self.int_constant(1))
        inverse = b.bitcast(b.sub(self.int_constant(0x5FE6EB50C7B537A9), halved), self.type)
        minus_half = b.fmul(x, self.constant(-0.5))
        for _ in range(3):
            factor = self.fma(b.fmul(minus_half, inverse), inverse, self.constant(1.5))
            inverse = b.fmul(inverse, factor)
        root = b.fmul(x, inverse)
        error = self.fma(b.fneg(root), root, x)
        root = self.fma(b.fmul(error, self.constant(0.5)), inverse, root)
        return b.select(b.fcmp_ordered("<", x, self.constant(math.inf)), root, x)

    def exp(self, x):
        b = self.builder
        narrow = self.element == F32
        lowest, highest = (-104.0, 89.0) if narrow else (-746.0, 710.0)
        x = self.clamp(x, lowest, highest)
        shift = self.constant(1.5 * 2**self.mantissa)
        shifted = self.fma(x, self.constant(1 / math.log(2)), shift)
        n = b.fsub(shifted, shift)
        if narrow:
            high, low = 0.693359375, -2.12194440e-4
            tail = [1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
                    4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1]  # fmt: skip
        else:
            high, low = 6.93145751953125e-1, 1.42860682030941723212e-6
            tail = [1 / math.factorial(k) for k in range(13, 1, -1)]
        r = self.fma(n, self.constant(-high), x)
        r = self.fma(n, self.constant(-low), r)
        y = b.fadd(self.fma(self.polynomial(r, tail), b.fmul(r, r), r), self.constant(1))
        # 2^n in two factors, so that results below the smallest normal number round only once
        power = b.sub(b.bitcast(shifted, self.int_type), b.bitcast(shift, self.int_type))
        half = b.ashr(power, self.int_constant(1))
        # a product that vanishes takes Intel's processors 150 cycles, unless a factor is 0
        vanishes = b.fcmp_ordered("==", x, self.constant(lowest))
        last = b.select(vanishes, self.constant(0), self._power_of_two(b.sub(power, half)))
        return b.fmul(b.fmul(y, self._power_of_two(half)), last)

    def _power_of_two(self, n):
        b = self.builder
        biased = b.add(n, self.int_constant(self.bias))
        return b.bitcast(b.shl(biased, self.int_constant(self.mantissa)), self.type)

    def _log_of_mantissa(self, x):
        """(e, f, s, R) with x = 2^e (1 + f) and log(1 + f) = f - s (f - R), for normal x > 0."""
        b = self.builder
        bits = b.bitcast(x, self.int_type)
        # subtracting the bits of sqrt(1/2) makes the exponent round so that 1 + f is around 1
        root_bits = 0x3F3504F3 if self.element == F32 else 0x3FE6A09E667F3BCD
        above = b.sub(bits, self.int_constant(root_bits))
        e = b.ashr(above, self.int_constant(self.mantissa))
        m = b.bitcast(b.sub(bits, b.shl(e, self.int_constant(self.mantissa))), self.type)
        f = b.fsub(m, self.constant(1))
        s = b.fdiv(f, b.fadd(f, self.constant(2)))
        square = b.fmul(s, s)
        terms = 6 if self.element == F32 else 11
        series = self.polynomial(square, [2 / (2 * k + 1) for k in range(terms, 0, -1)])
        return b.sitofp(e, self.type), f, s, b.fmul(square, series)

    def _log_sum(self, parts, extra):
        """``e log 2 + log(1 + f) + extra``, small terms first; see `_log_of_mantissa`."""
        b = self.builder
        e, f, s, R = parts
        if self.element == F32:
            high, low = 0.693359375, -2.12194440e-4
        else:
            high, low = 6.93147180369123816490e-1, 1.90821492927058770002e-10
        small = self.fma(e, self.constant(low), extra)
        small = b.fsub(small, b.fmul(s, b.fsub(f, R)))
        return self.fma(e, self.constant(high), b.fadd(f, small))

    def log(self, x):
        b = self.builder
        smallest = 2.0 ** (1 - self.bias)
        tiny = self.less(x, self.constant(smallest))
        scale = 2.0 ** (self.mantissa + 2)
        scaled = b.select(tiny, b.fmul(x, self.constant(scale)), x)
        e, f, s, R = self._log_of_mantissa(scaled)
        shift = b.select(tiny, self.constant(self.mantissa + 2), self.constant(0))
        value = self._log_sum((b.fsub(e, shift), f, s, R), self.constant(0))
        return self._log_limits(x, value)

    def log1p(self, x):
        b = self.builder
        one = self.constant(1)
        w = b.fadd(one, x)
        lost = b.fdiv(b.fsub(x, b.fsub(w, one)), w)
        value = self._log_sum(self._log_of_mantissa(w), lost)
        small = self.less(self.abs(x), self.constant(2.0 ** -(self.mantissa + 2)))
        return b.select(small, x, self._log_limits(w, value))

    def _log_limits(self, x, value):
        """log at 0, infinity, NaN and below 0."""
        b = self.builder
        infinity = self.constant(math.inf)
        value = b.select(b.fcmp_ordered("==", x, self.constant(0)), self.constant(-math.inf), value)
        value = b.select(b.fcmp_ordered("==", x, infinity), infinity, value)
        valid = b.fcmp_ordered(">=", x, self.constant(0))
        return b.select(valid, value, self.constant(math.nan))

    def tanh(self, x):
        b = self.builder
        size = self.abs(x)
        power = self.exp(b.fadd(size, size))
        big = b.fsub(self.constant(1), b.fdiv(self.constant(2), b.fadd(power, self.constant(1))))
        square = b.fmul(x, x)
        if self.element == F32:
            ratio = self.polynomial(
                square, [-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2,
                         1.33314422036e-1, -3.33332819422e-1]
            )  # fmt: skip
        else:
            P = self.polynomial(square, [-9.64399179425052238628e-1, -9.92877231001918586564e1,
                                         -1.61468768441708447952e3])  # fmt: skip
            Q = self.polynomial(square, [1.0, 1.12811678491632931402e2, 2.23548839060100448583e3,
                                         4.84406305325125486048e3])  # fmt: skip
            ratio = b.fdiv(P, Q)
        small = self.fma(b.fmul(ratio, square), x, x)
        return b.select(
            self.less(size, self.constant(0.625)), small, self._llvm("copysign", big, x)
        )


# --- intrinsics on scalars: what the formulas of fastmlp.functions are compiled with ----------


def _elementary(name: str):
    @intrinsic
    def function(typingctx, x):
        if x not in (types.float32, types.float64):
            return None

        def codegen(context, builder, signature, args):
            return getattr(Emitter(builder, llvm_type(x)), name)(args[0])

        return x(x), codegen

    return function


PRIMITIVES = {name: _elementary(name) for name in ("exp", "log", "log1p", "tanh")}
square_root = _elementary("sqrt")


# --- memory by address ------------------------------------------------------------------------


@intrinsic
def load(typingctx, address, index, like):
    """Element ``index`` of the array of ``like``'s type at ``address``."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], context.get_value_type(like).as_pointer())
        return builder.load(builder.gep(pointer, [args[1]]))

    return like(types.int64, types.int64, like), codegen


@intrinsic
def store(typingctx, address, index, value):
    """Set element ``index`` of the array of ``value``'s type at ``address``."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], context.get_value_type(value).as_pointer())
        builder.store(args[2], builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, value), codegen


@intrinsic
def copy_bytes(typingctx, target, source, n):
    """memcpy."""

    def codegen(context, builder, signature, args):
        target, source = (builder.inttoptr(arg, I8.as_pointer()) for arg in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def prefetch(builder, address, *, for_writing: bool) -> None:
    """Ask for the cache line at an address, into L1 to be written, or into L2 to be read."""
    kind = ir.FunctionType(VOID, [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    hints = [ir.Constant(I32, hint) for hint in ((1, 3, 1) if for_writing else (0, 2, 1))]
    builder.call(function, [builder.inttoptr(address, I8.as_pointer()), *hints])


@intrinsic
def prefetch_for_writing(typingctx, address, n):
    """Ask for the ``n`` bytes at ``address`` to be brought near, ready to be written."""

    def codegen(context, builder, signature, args):
        zero, line = ir.Constant(I64, 0), ir.Constant(I64, LINE)
        with cgutils.for_range_slice(builder, zero, args[1], line, intp=I64) as (offset, _):
            prefetch(builder, builder.add(args[0], offset), for_writing=True)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


# --- the processor's state --------------------------------------------------------------------

_FLUSHED = 0x8040  # bits of x86's MXCSR: subnormal results and operands count as 0


@intrinsic
def flush_subnormals(typingctx):
    """Have this thread take subnormal numbers for 0, and return what `restore` wants back.

    Each operation that meets one takes Intel's processors some 150 cycles.  Does nothing on others
    than x86.
    """

    def codegen(context, builder, signature, args):
        if "x86_64" not in builder.module.triple:
            return ir.Constant(I32, 0)
        state = cgutils.alloca_once(builder, I32)
        _with_state(builder, "stmxcsr", state)
        before = builder.load(state)
        builder.store(builder.or_(before, ir.Constant(I32, _FLUSHED)), state)
        _with_state(builder, "ldmxcsr", state)
        return before

    return types.int32(), codegen


@intrinsic
def restore(typingctx, before):
    """Undo `flush_subnormals`."""

    def codegen(context, builder, signature, args):
        if "x86_64" in builder.module.triple:
            _with_state(builder, "ldmxcsr", cgutils.alloca_once_value(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.int32), codegen


def _with_state(builder, name, state):
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(VOID, [I8.as_pointer()]), f"llvm.x86.sse.{name}"
    )
    builder.call(function, [builder.bitcast(state, I8.as_pointer())])


# --- threads ----------------------------------------------------------------------------------


@intrinsic
def atomic_add(typingctx, address, value):
    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def compare_and_swap(typingctx, address, expected, new):
    """Store ``new`` if ``expected`` is there, in one step; whether it was."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        result = builder.cmpxchg(pointer, args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the processor that this is a waiting loop."""

    def codegen(context, builder, signature, args):
        if "x86_64" in builder.module.triple:
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(VOID, []), "llvm.x86.sse2.pause"
            )
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


# The C library's: give the processor away, and sleep for so many microseconds (Windows: ms).
_YIELD, _SLEEP = (
    ("SwitchToThread", "Sleep") if sys.platform == "win32" else ("sched_yield", "usleep")
)
yield_thread: Any = types.ExternalFunction(_YIELD, types.int32())
sleep_thread: Any = types.ExternalFunction(_SLEEP, types.int32(types.uint32))


@intrinsic
def size_of(typingctx, like):
    """Bytes of an element of ``like``'s type."""

    def codegen(context, builder, signature, args):
        return ir.Constant(I64, 4 if llvm_type(like) == F32 else 8)

    return types.int64(like), codegen
