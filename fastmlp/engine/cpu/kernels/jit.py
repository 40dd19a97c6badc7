"""From Python functions to object code: the only owner of Numba's flags for the CPU.

A kernel is made of pieces, C functions that call each other by address.  Numba translates a piece
and the helpers it calls into LLVM's language; everything else is done here, once for the whole
piece and for a named processor level: all but the piece itself become internal, LLVM optimises
them together and emits an object file.  So the object needs no Numba and no other piece.

Numba itself should then optimise nothing (``NUMBA_OPT=0``, set by `fastmlp.engine.objects`): it
would optimise and emit every helper with all its callees inside, once per level of nesting, which
took more than half of the time.

Flags: no fastmath beyond contraction into FMA, so NaN and infinity keep their meaning and results
stay in one order; NumPy's error model, so division by zero gives infinity.
"""

import types as python_types
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from fastmlp.engine import images
from fastmlp.engine.processor import LEVELS

_FLAGS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}
_HELPER = _FLAGS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

_LIBM = (
    "acos acosh asin asinh atan atan2 atanh cbrt ceil cos cosh erf erfc exp exp2 expm1 floor fma "
    "fmod hypot ldexp lgamma log log10 log1p log2 pow rint sin sinh sqrt tan tanh tgamma trunc"
)
_C_LIBRARY = {  # what a piece may leave to the process: any that runs Python has these
    *("memcpy", "memmove", "memset", "sched_yield", "usleep", "Sleep", "SwitchToThread"),
    *(name + suffix for name in _LIBM.split() for suffix in ("", "f")),
}


def jit(function: Callable, *, reassociate: bool = False) -> Callable:
    """Compile a helper, which becomes part of the pieces that call it.

    ``reassociate`` lets a reduction use vector registers; its order is then the compiler's,
    fixed for one level.
    """
    return numba.njit(**(_HELPER | {"fastmath": _fastmath(reassociate)}))(function)


def _fastmath(reassociate: bool) -> set[str]:
    return {"contract", "reassoc"} if reassociate else {"contract"}


def formula(function: Callable, primitives: dict[str, Callable]) -> Callable:
    """Compile one of `fastmlp.functions` with an engine's elementary functions.

    It is always inlined: a loop around a call would not be vectorised.

    Parameters
    ----------
    function : callable
        A flat scalar function.
    primitives : dict
        Replacements for the names (``exp``, ...) that the function uses.
    """
    bound = python_types.FunctionType(function.__code__, function.__globals__ | primitives)
    return numba.njit(forceinline=True, **_HELPER)(bound)


def user_formula(function: Callable) -> Callable:
    """Compile a function of the user's, jitted already or not, to be inlined."""
    return numba.njit(forceinline=True, **_HELPER)(getattr(function, "py_func", function))


def public(function: Callable) -> Callable:
    """Compile a function for use in compiled code of the user's."""
    return numba.njit(nogil=True, **_FLAGS)(function)


# --- arguments and calls ----------------------------------------------------------------------


def record(structure: type) -> Callable:
    """A function from an address and an index to that record of an array of `Block`s."""
    kind = numba.from_dtype(np.dtype(structure))
    size = np.dtype(structure).itemsize

    @intrinsic
    def at(typingctx, address, index):
        def codegen(context, builder, signature, args):
            skip = builder.mul(args[1], ir.Constant(ir.IntType(64), size))
            return builder.inttoptr(builder.add(args[0], skip), context.get_value_type(kind))

        return kind(types.int64, types.int64), codegen

    return at


@intrinsic
def _call(typingctx, address, arguments, like):
    def codegen(context, builder, signature, args):
        values = [builder.extract_value(args[1], i) for i in range(len(arguments))]
        kind = ir.FunctionType(context.get_value_type(like), [value.type for value in values])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)

    return like(types.int64, arguments, like), codegen


@jit
def call(address, arguments):
    """Call the piece at ``address``, which returns the type of its last argument."""
    return _call(address, arguments, arguments[-1])


# --- pieces -----------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A C function to compile.

    Parameters
    ----------
    function : callable
        A plain function; its free name ``REAL`` stands for the element type.
    signature : str
        One letter for each argument and one for what is returned: ``i`` for int64, ``r`` for the
        element type, ``d`` for a double.
    names : dict
        What other free names of the function stand for.
    reassociate : bool
        See `jit`.
    """

    function: Callable
    signature: str
    names: dict[str, Callable] = {}
    reassociate: bool = False


def translate(piece: Piece, dtype: str, symbol: str):
    """A Numba C function of a piece, for an element type."""
    real = {"float32": types.float32, "float64": types.float64}[dtype]
    *arguments, result = [
        {"i": types.int64, "r": real, "d": types.float64}[letter] for letter in piece.signature
    ]
    names = {"REAL": np.dtype(dtype).type} | piece.names
    function = python_types.FunctionType(
        piece.function.__code__, piece.function.__globals__ | names, symbol
    )
    function.__qualname__ = symbol
    flags = _FLAGS | {"fastmath": _fastmath(piece.reassociate)}
    return numba.cfunc(result(*arguments), **flags)(function)


def emit(compiled, level: str, symbol: str) -> bytes:
    """Object code of what `translate` made.

    Parameters
    ----------
    compiled : CFunc
    level : str
        A key of `fastmlp.engine.processor.LEVELS`.
    symbol : str
        What the function is called in the object.

    Raises
    ------
    fastmlp.engine.images.NotSelfContained
        If it calls something of Numba's, for instance to raise an exception.
    """
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    # Numba forbids that its entry's call of the function is inlined: the entry would go on asking
    # for a status that never comes
    text = compiled.inspect_llvm().replace("= { noinline }", "= { alwaysinline }")
    module = binding.parse_assembly(text)
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != compiled.native_name:
            value.linkage = "internal"
    module.get_function(compiled.native_name).name = symbol
    machine = binding.Target.from_triple(module.triple).create_target_machine(
        cpu=LEVELS[level].cpu, features=LEVELS[level].extra, opt=3, reloc="pic",
        codemodel="default",
    )  # fmt: skip
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    missing: set[str] = set()
    for _ in range(2):  # helpers that were not inlined are known to raise nothing after the first
        builder = binding.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        missing = _undefined(module) - _C_LIBRARY
        if not missing:
            code = machine.emit_object(module)
            return images.link(code, symbol) if images.SUPPORTED else code
    raise images.NotSelfContained(", ".join(sorted(missing)))


def _undefined(module) -> set[str]:
    values = (*module.functions, *module.global_variables)
    names = {value.name for value in values if value.is_declaration}
    return {name for name in names if not name.startswith("llvm.")}
