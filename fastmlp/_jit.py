"""The only owner of CPU Numba flags, of the disk cache and of its stamp.

Numba's cache index looks at one file: the one that holds the cached function.  After an edit or
an upgrade of a helper in *another* file it would go on running the old machine code (numba issue
1833).  So only entry points are cached, helpers are compiled into them, and an entry point's name,
which names its cache files, carries a checksum of every source file that can end up in a kernel.
The name also carries the element type: with one signature per index file, two processes that
compile different types at the same time cannot swap each other's code (numba issue 4807).

A cache that cannot be written or read (read-only installation, full disk, damaged file) costs a
compilation, never a fit.

Flags: no fastmath beyond contraction into FMA, so NaN and infinity keep their meaning and results
stay in one order; NumPy's error model, so division by zero gives infinity; the GIL is released.
"""

import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from fastmlp._interrupts import undisturbed

_FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def _stamp() -> int:
    package = Path(__file__).parent
    sources = [
        package / "_jit.py",
        package / "functions.py",
        package / "optimizers.py",
        *sorted((package / "engine").rglob("*.py")),
    ]
    checksum = 0
    for source in sources:
        checksum = zlib.crc32(source.read_bytes(), checksum)
    return checksum


STAMP = _stamp()


def jit(function: Callable, *, reassociate: bool = False) -> Callable:
    """Compile a helper; its machine code is part of the entry points that call it.

    ``reassociate`` lets a reduction use vector registers; its order is then the compiler's,
    fixed for one machine.
    """
    return numba.njit(**(_FLAGS | {"fastmath": _fastmath(reassociate)}))(function)


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
    bound = types.FunctionType(function.__code__, function.__globals__ | primitives)
    return numba.njit(forceinline=True, **_FLAGS)(bound)


def user_formula(function: Callable) -> Callable:
    """Compile a function of the user's, jitted already or not, to be inlined."""
    return numba.njit(forceinline=True, **_FLAGS)(getattr(function, "py_func", function))


def address(
    template: Callable,
    signature,
    label: str,
    names: dict[str, Callable],
    *,
    reassociate: bool = False,
    cached: bool = True,
) -> int:
    """Compile ``template`` into a C function and return its address.

    Parameters
    ----------
    template : callable
        A plain function.
    signature : Numba signature
        Its types.
    label : str
        Distinguishes the cache files of this variant.
    names : dict
        What the template's free names stand for.
    reassociate : bool
        See `jit`.
    cached : bool
        Whether to keep it on disk; not for what the stamp does not cover.
    """
    function = types.FunctionType(template.__code__, template.__globals__ | names)
    function.__qualname__ = f"{template.__name__}-{label}-{STAMP:08x}"
    flags = {"error_model": "numpy", "fastmath": _fastmath(reassociate)}
    try:
        compiled = undisturbed(numba.cfunc(signature, cache=cached, **flags), function)
    except Exception:  # the cache is damaged, or there is no place for it
        compiled = undisturbed(numba.cfunc(signature, **flags), function)
    _KEPT.append(compiled)
    return compiled.address


_KEPT: list = []  # the machine code lives as long as these objects


class Entry:
    """A kernel that Python calls: compiled on its first call, once, and cached on disk.

    Parameters
    ----------
    function : callable
        The kernel.  It must not close over other functions, or it would never hit the cache.
    label : str
        Distinguishes the cache files of this variant, for instance by element type.
    """

    def __init__(self, function: Callable, label: str):
        self._function = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__
        )
        self._function.__qualname__ = f"{function.__name__}-{label}-{STAMP:08x}"
        self._ready = False
        try:
            self._dispatcher = numba.njit(cache=True, **_FLAGS)(self._function)
        except RuntimeError:  # no place to write a cache to
            self._dispatcher = numba.njit(**_FLAGS)(self._function)

    def prepare(self, *args) -> None:
        """Compile for these arguments, or load the code from the cache."""
        if self._ready:
            return
        signature = tuple(numba.typeof(arg) for arg in args)
        try:
            undisturbed(self._dispatcher.compile, signature)
        except Exception:  # the cache is damaged, or could not be written
            self._dispatcher = numba.njit(**_FLAGS)(self._function)
            undisturbed(self._dispatcher.compile, signature)
        self._ready = True

    @property
    def cache_path(self) -> str | None:
        """The folder of the disk cache, None if there is no place for one."""
        return self._dispatcher.stats.cache_path

    def __call__(self, *args):
        if not self._ready:
            self.prepare(*args)
        return self._dispatcher(*args)
