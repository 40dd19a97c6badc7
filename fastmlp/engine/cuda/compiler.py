"""Kernel templates become machine code: the only file that asks numba-cuda to compile.

A kernel is a template (see `kernels`) with names bound to constants and formulas.  All its device
functions share one namespace with it, so that they see the same bindings.  Arrays in global memory
are plain pointers: an index costs no check of its sign, an argument eight bytes.  What was compiled
is kept in the cache of `fastmlp.engine.objects`, seconds for each kernel; a wheel may have some
compiled already (see `shipped`).  So machine code is looked up by what it was made of, whichever
version of numba-cuda made it, and what is found needs no compiler, only the driver.

A GPU runs code for its own major version whose minor version is not higher than its own.  `TARGETS`
is what code is compiled for therefore: a GPU of capability 8.0, 8.6 or 8.9 gets that for 8.0, one
of 10.3 that for 10.0.  Code for 9.0 may use what no other processor has, hence its letter.  A GPU
of another major version that is newer than `PTX_TARGET` can run PTX for that, of which the driver
makes machine code; a wheel has it for GPUs that are to come.

numba-cuda is in maintenance.  With its successor numba-cuda-mlir the import in `numba_cuda` changes
and the intrinsics of `ptx` have to be written anew, without llvmlite; kernels stay as they are, and
so do launches, which are cuda.core's.
"""

import hashlib
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from fastmlp.engine import objects

TARGETS = {8: (8, 0), 9: (9, 0, "a"), 10: (10, 0), 12: (12, 0)}
"""The compute capability that code is compiled for, by a GPU's major version."""
PTX_TARGET = (10, 0)
"""That which PTX is for, and not a newer one, which would leave out GPUs of 11.0."""

PRIMITIVES = {
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "tanh": math.tanh,
    "sqrt": math.sqrt,
}


def target_of(major: int, minor: int) -> tuple:
    """For which compute capability code for a GPU of this one is compiled."""
    return TARGETS.get(major, (major, minor))


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
    from numba.np.numpy_support import from_dtype

    from fastmlp.engine.cuda.numba_cuda import types

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
    target: tuple,
) -> tuple[Any, str]:  # fmt: skip
    """A kernel for the types of ``arguments``: (cuda.core's object code, name in it).

    It comes from the package or the user's cache if it is there, and else goes there, unless a
    formula in it is the user's.

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
    target : tuple
        The compute capability to compile for, with ``"a"`` for what only this one has.

    Raises
    ------
    ValueError
        If it has to be compiled, and what that takes is not there.
    """
    from cuda.core import ObjectCode

    if any(isinstance(value, UserFormula) for value in names.values()):
        entry, code = assemble(cuda, template, names, arguments, threads, target)
        return ObjectCode.from_cubin(code), entry
    key = key_of(template, names, arguments, threads, target)
    found, _ = objects.find_code(key)
    if found is None and target not in TARGETS.values() and target > PTX_TARGET:
        key = key_of(template, names, arguments, threads, PTX_TARGET, "ptx")
        in_wheel = objects.read(objects.PREBUILT, key)
        if in_wheel is not None:
            entry, code = unpack(in_wheel)
            return ObjectCode.from_ptx(code), entry
    if found is None:
        found = pack(*assemble(cuda, template, names, arguments, threads, target))
        objects.write_cached(key, found)
    entry, code = unpack(found)
    return ObjectCode.from_cubin(code), entry


def key_of(
    template: Callable, names: dict[str, Any], arguments: tuple, threads: int, target: tuple,
    form: str = "cubin",
) -> objects.Key:  # fmt: skip
    """Under what name a kernel is in the store: a checksum of its sources and all that is bound."""
    parts = [_sources(), template.__qualname__, str(threads), *map(str, map(type_of, arguments))]
    for name, value in sorted(names.items()):
        shown = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        parts.append(f"{name}={getattr(value, '__module__', '')}.{shown or value!r}")
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return objects.Key(digest, form, name_of(target, form))


def name_of(target: tuple, form: str = "cubin") -> str:
    """NVIDIA's name of a compute capability that is compiled for, to machine code or to PTX."""
    return f"{'compute' if form == 'ptx' else 'sm'}_{''.join(map(str, target))}"


def pack(entry: str, code: bytes) -> bytes:
    """What the store keeps of a kernel."""
    return entry.encode() + b"\0" + code


def unpack(content: bytes) -> tuple[str, bytes]:
    """Of `pack`, what it was given."""
    entry, code = content.split(b"\0", 1)
    return entry.decode(), code


def assemble(
    cuda: Any, template: Callable, names: dict[str, Any], arguments: tuple, threads: int,
    target: tuple, form: str = "cubin",
) -> tuple[str, bytes]:  # fmt: skip
    """(name in the code, machine code or PTX) of a kernel; see `compile_kernel`."""
    from cuda.core import Program, ProgramOptions
    from cuda.pathfinder import DynamicLibNotFoundError

    try:
        ptx = _compile_ptx(cuda, template, names, arguments, threads, target)
        code = ptx.encode()
        if form == "cubin":
            program = Program(ptx, "ptx", ProgramOptions(arch=name_of(target)))
            code = bytes(program.compile("cubin").code)
    except DynamicLibNotFoundError as error:
        raise ValueError(
            f"device='cuda': the kernel {template.__name__} has not come compiled for "
            f"{name_of(target)}, and NVIDIA's compiler is missing ({str(error).splitlines()[0]}); "
            'install it with: pip install "fastmlp[cuda]".'
        ) from error
    match = re.search(r"\.entry\s+([\w$]+)", ptx)
    assert match is not None
    return match[1], code


def _compile_ptx(
    cuda: Any, template: Callable, names: dict[str, Any], arguments: tuple, threads: int,
    target: tuple,
) -> str:  # fmt: skip
    try:
        inlined = cuda.jit(device=True, forceinline=True)
        ptx, _ = cuda.compile_ptx(
            bind(template, names, inlined), cuda.types.void(*map(type_of, arguments)), cc=target,
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


@cache
def _sources() -> str:
    """Checksum of what kernels are made of."""
    folder = Path(__file__).parent
    files = [
        *(folder / f"{name}.py" for name in ("compiler", "kernels", "ptx", "resident", "tiles")),
        *(folder.parents[1] / f"{name}.py" for name in ("dropout", "functions", "optimizers")),
    ]
    checksum = hashlib.sha256()
    for file in files:
        checksum.update(file.read_bytes())
    return checksum.hexdigest()
