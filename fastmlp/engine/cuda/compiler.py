"""Kernel templates become machine code: the only file that asks numba-cuda to compile.

A kernel is a template (see `kernels`) with names bound to constants and formulas.  All its device
functions share one namespace with it, so that they see the same bindings.  Arrays in global memory
are plain pointers: an index costs no check of its sign, an argument eight bytes.  What was compiled
is kept in the cache of `fastmlp.engine.objects`, seconds for each kernel.
"""

import hashlib
import math
import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from fastmlp.engine import objects

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

    It comes from the user's cache if it is there, and else goes there, unless a formula in it is
    the user's.

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
    from cuda.core import ObjectCode, Program, ProgramOptions

    types, arch = tuple(map(type_of, arguments)), f"sm_{''.join(map(str, capability))}"
    key = None
    if not any(isinstance(value, UserFormula) for value in names.values()):
        key = objects.Key(_digest(template, names, types, threads), "cubin", arch)
        if (found := objects.read_cached(key)) is not None:
            entry, code = found.split(b"\0", 1)
            return ObjectCode.from_cubin(code), entry.decode()
    ptx = _compile_ptx(cuda, template, names, types, threads, capability)
    match = re.search(r"\.entry\s+([\w$]+)", ptx)
    assert match is not None
    compiled = Program(ptx, "ptx", ProgramOptions(arch=arch)).compile("cubin")
    if key is not None:
        objects.write_cached(key, match[1].encode() + b"\0" + bytes(compiled.code))
    return compiled, match[1]


def _compile_ptx(
    cuda: Any, template: Callable, names: dict[str, Any], types: tuple, threads: int,
    capability: tuple,
) -> str:  # fmt: skip
    try:
        inlined = cuda.jit(device=True, forceinline=True)
        ptx, _ = cuda.compile_ptx(
            bind(template, names, inlined), cuda.types.void(*types), cc=capability,
            launch_bounds=threads,
        )  # fmt: skip
    except AttributeError as error:
        if "module 'numpy'" not in str(error):
            raise
        raise ValueError(
            f"device='cuda': this version of numba-cuda does not work with NumPy {np.__version__} "
            f'({error}); install an older one with: pip install "numpy<2.5".'
        ) from error
    return str(ptx)


def _digest(template: Callable, names: dict[str, Any], types: tuple, threads: int) -> str:
    """What tells a kernel from all others: its sources, its compiler, and all that is bound."""
    parts = [_sources(), template.__qualname__, str(threads), *map(str, types)]
    for name, value in sorted(names.items()):
        shown = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        parts.append(f"{name}={getattr(value, '__module__', '')}.{shown or value!r}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@cache
def _sources() -> str:
    """Checksum of what kernels are made of, and by what."""
    folder = Path(__file__).parent
    files = [
        *sorted(folder.glob("*.py")),
        *(folder.parents[1] / f"{name}.py" for name in ("dropout", "functions", "optimizers")),
    ]
    checksum = hashlib.sha256()
    for file in files:
        checksum.update(file.read_bytes())
    for package in ("numba", "numba-cuda", "llvmlite"):
        checksum.update(version(package).encode())
    return checksum.hexdigest()
