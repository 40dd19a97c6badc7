"""Kernel templates become machine code: the only file that asks numba-cuda to compile.

A kernel is a template (see `kernels`) with names bound to constants and formulas.  All its device
functions share one namespace with it, so that they see the same bindings.  Arrays in global memory
are plain pointers: an index costs no check of its sign, an argument eight bytes.
"""

import math
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

PRIMITIVES = {
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "tanh": math.tanh,
    "sqrt": math.sqrt,
}


class UserFormula(NamedTuple):
    """A function of the user's: it sees its own module's names, not the template's.

    ``adapt`` makes of it, compiled, a function of the arguments that the template gives.
    """

    function: Callable
    adapt: Callable | None = None

    def compile(self, compile_function: Callable) -> Callable:
        compiled = compile_function(getattr(self.function, "py_func", self.function))
        return compiled if self.adapt is None else compile_function(self.adapt(compiled))


def bind(
    template: Callable,
    names: dict[str, Any],
    compile_function: Callable,
    stand_ins: dict[str, Any] | None = None,
) -> FunctionType:
    """A copy of ``template`` in a namespace of its own, with every function there compiled.

    Parameters
    ----------
    template : callable
        A kernel of `fastmlp.engine.cuda.kernels`.
    names : dict
        What its free names stand for; functions among them (formulas) are compiled too.
    compile_function : callable
        Makes a device function of a plain one.
    stand_ins : dict, optional
        Put in place of intrinsics, as they are.
    """
    namespace = template.__globals__ | PRIMITIVES | names
    for name, value in list(namespace.items()):
        if isinstance(value, UserFormula):
            namespace[name] = value.compile(compile_function)
        elif isinstance(value, FunctionType) and value is not template:
            namespace[name] = compile_function(FunctionType(value.__code__, namespace, name))
    namespace |= stand_ins or {}
    return FunctionType(template.__code__, namespace, template.__name__)


def type_of(argument: Any) -> Any:
    """Numba's type of a kernel's argument: a buffer, or a number of NumPy or Python."""
    from numba.cuda import types
    from numba.np.numpy_support import from_dtype

    if isinstance(argument, bool):
        return types.boolean
    if isinstance(argument, int):
        return types.int64
    if isinstance(argument, float):
        return types.float64
    kind = from_dtype(np.dtype(argument.dtype))
    return kind if isinstance(argument, np.generic) else types.CPointer(kind)


def compile_kernel(
    cuda: Any, template: Callable, names: dict[str, Any], arguments: tuple, threads: int,
    capability: tuple,
) -> tuple[Any, str]:  # fmt: skip
    """A kernel for the types of ``arguments``: (cuda.core's object code, name in it).

    Parameters
    ----------
    cuda : module
        `numba.cuda`.
    template, names
        See `bind`.
    arguments : tuple
        Of a launch.
    threads : int
        Of a block; there are registers for no more.
    capability : tuple
        The GPU's compute capability, with ``"a"`` for what only this architecture can do.
    """
    from cuda.core import Program, ProgramOptions

    inlined = cuda.jit(device=True, forceinline=True)
    signature = cuda.types.void(*map(type_of, arguments))
    code, _ = cuda.compile_ptx(
        bind(template, names, inlined), signature, cc=capability, launch_bounds=threads
    )
    entry = re.search(r"\.entry\s+([\w$]+)", code)
    assert entry is not None
    arch = f"sm_{''.join(map(str, capability))}"
    return Program(code, "ptx", ProgramOptions(arch=arch)).compile("cubin"), entry[1]
