"""Names of the pieces that kernels are made of.

A piece is a C function that is compiled apart, kept by its name, and called by its address.
`fastmlp.engine.cpu.kernels` holds their sources, `fastmlp.engine.cpu.program` which of them a
network needs.  Formulas of the tables in
`fastmlp.functions` and `fastmlp.optimizers` are ``family/key``; a user's own are compiled in this
process and cached by the checksum of what they are made of.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable
from functools import cache
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp._interrupts import undisturbed
from fastmlp.engine import images, objects
from fastmlp.functions import (
    ACTIVATIONS,
    LINKS,
    LOSSES,
    Activation,
    Loss,
    identity,
    identity_derivative,
    straight_through,
)
from fastmlp.network import Network
from fastmlp.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from fastmlp.engine.cpu.kernels.jit import Piece

_CONSTANT_DERIVATIVES = (identity_derivative, straight_through)
_LINKS_WITH_LOOPS = tuple(
    name for name, formula in LINKS.items() if formula not in (None, identity)
)
_STABLE_MODULES = ("math", "numpy", "builtins")  # whose functions stay what they are

PARAMETERS = ("pack", "unpack", "refresh_transposed", "transpose")
ANY = (
    *("gradient_block", "tiles", "forward", "epoch", "backward", "gradient_narrow"),
    *("forward_narrow", "gradient_sparse", "forward_sparse", "update_clipped", "outputs", "step"),
    *PARAMETERS,
    *("head_softmax", "head_elementwise", "softmax_rows", "dropout", "normalise"),
    *("normalise_derivative", "penalty", "sum_squares", "scale", "average", "few_rows", "one_row"),
    *("derivative/kept", *(f"link/{link}" for link in _LINKS_WITH_LOOPS)),
)
ONLY_INTEGERS = ("settle", "tell", "shuffle", "same")


def keys(names: Iterable[str | None], dtype: str) -> list[objects.Key]:
    """Pieces for an element type; None stands for none."""
    return [
        objects.Key(name, "float64" if name in ONLY_INTEGERS else dtype)
        for name in names
        if name is not None
    ]


def likely(network: Network, dtype: str) -> list[objects.Key]:
    """What most programs will need for a network sooner or later, whatever they begin with."""
    names = ["outputs", "softmax_rows", "few_rows", "one_row", *ONLY_INTEGERS]
    loops = [activation(row) for row in network.hidden if not row.by_user]
    return keys([*names, *loops, link(network.out_activation)], dtype)


def everything() -> list[objects.Key]:
    """Every piece of the library, for both element types, those first that take longest."""
    names = [
        *ANY,
        *(f"loss/{key}" for key in LOSSES),
        *(f"activation_and_derivative/{key}" for key in ACTIVATIONS),
        *(f"update/{key}{decay}" for key in OPTIMIZERS for decay in ("", "-decay")),
        *(f"activation/{key}" for key in ACTIVATIONS if key != "identity"),
        *(
            f"derivative/{key}"
            for key, row in ACTIVATIONS.items()
            if row.derivative not in _CONSTANT_DERIVATIVES and not row.of_score
        ),
    ]
    both = [objects.Key(name, dtype) for name in names for dtype in ("float32", "float64")]
    return both + keys(ONLY_INTEGERS, "float64")


# --- formulas ---------------------------------------------------------------------------------


@cache
def _key_of(value: Callable, out_activation: str | None = None) -> str:
    """The key of the row with this formula, in `ACTIVATIONS` or, of those with this output
    activation, in `LOSSES`.
    """
    table = ACTIVATIONS if out_activation is None else LOSSES
    return next(
        key
        for key, row in table.items()
        if row.value is value and out_activation in (None, getattr(row, "out_activation", None))
    )


def activation(row: Activation, *, keep_derivative: bool = False) -> str | None:
    """The loop of an activation of `ACTIVATIONS`; None for the identity.

    ``keep_derivative`` makes it write the derivative as well.
    """
    key = _key_of(row.value)
    if keep_derivative:
        return f"activation_and_derivative/{key}"
    return None if key == "identity" else f"activation/{key}"


def derivative(row: Activation, *, keep_derivative: bool = False) -> str | None:
    """The loop that multiplies deltas by a derivative; None where that is 1.

    ``keep_derivative`` says that the derivative was worked out with the activation.
    """
    if keep_derivative:
        return "derivative/kept"
    return None if row.derivative in _CONSTANT_DERIVATIVES else f"derivative/{_key_of(row.value)}"


def link(out_activation: str) -> str | None:
    """The loop of an output activation; None for the identity and for softmax."""
    return f"link/{out_activation}" if out_activation in _LINKS_WITH_LOOPS else None


def loss(row: Loss) -> str:
    """The loop of a loss of `LOSSES`."""
    return f"loss/{_key_of(row.value, row.out_activation)}"


def update(optimizer: str | None, *, decays: bool = False) -> str:
    """The loop of an optimizer; without one, that which completes the gradient."""
    return "penalty" if optimizer is None else f"update/{optimizer}{'-decay' * decays}"


# --- formulas of the user's -------------------------------------------------------------------


@cache
def user_activation(row: Activation, dtype: str, *, keep_derivative: bool) -> int:
    """Address of the loop of a user's activation."""

    def make() -> "Piece":
        from fastmlp.engine.cpu.kernels import loops

        return loops.user_activation(row, keep_derivative=keep_derivative)

    what = f"activation {keep_derivative} {row.of_score}"
    return _user_address("activation", what, (row.value, row.derivative), dtype, make)


@cache
def user_loss(row: Loss, dtype: str) -> int:
    """Address of the loop of a user's loss."""

    def make() -> "Piece":
        from fastmlp.engine.cpu.kernels import loops

        return loops.user_loss(row)

    what = f"loss {row.of_probability} {row.per_row}"
    return _user_address("loss", what, (row.value, row.gradient), dtype, make)


_IN_USE: list = []  # code that only Numba can keep


def _user_address(
    parameter: str, what: str, functions: tuple, dtype: str, make: Callable[[], "Piece"]
) -> int:
    checksum = hashlib.sha256(f"{what} {sys.version_info[:2]}".encode())
    try:
        for function in functions:
            _add(function, checksum)
        name = f"user/{checksum.hexdigest()[:32]}"
    except _Unknown:
        name = None
    if name is not None and objects.find(name, dtype):
        return objects.address(name, dtype)
    return undisturbed(_compile_for_user, parameter, name, dtype, make)


def _compile_for_user(
    parameter: str, name: str | None, dtype: str, make: Callable[[], "Piece"]
) -> int:
    from numba.core.errors import NumbaError

    from fastmlp.engine.cpu.kernels import jit

    key = objects.Key(name or "user/unnamed", dtype)
    try:
        compiled = jit.translate(make(), dtype, key.symbol)
    except NumbaError as error:
        raise ValueError(
            f"{parameter}: Numba cannot compile these functions; write them for one number, with "
            f"operators and functions of math or numpy. It says: {error}"
        ) from error
    try:
        if name is not None:
            objects.keep(key, jit.emit(compiled, key.level, key.symbol))
            return objects.address(name, dtype)
    except images.NotSelfContained:
        pass
    _IN_USE.append(compiled)
    return compiled.address


class _Unknown(Exception):
    """Something that a checksum can't be taken of."""


def _add(value: Any, checksum: Any, depth: int = 0) -> None:
    """Take account of everything that a compiled function depends on."""
    if depth > 20:
        raise _Unknown
    if hasattr(value, "py_func"):  # it is jitted already
        checksum.update(repr(value.targetoptions).encode())
        value = value.py_func
    checksum.update(type(value).__name__.encode() + b"\0")
    if isinstance(value, FunctionType):
        code = value.__code__
        parts = [
            code,
            value.__defaults__,
            *(cell.cell_contents for cell in value.__closure__ or ()),
        ]
        parts += [value.__globals__[name] for name in _names(code) if name in value.__globals__]
        for part in parts:
            _add(part, checksum, depth + 1)
    elif isinstance(value, CodeType):
        checksum.update(value.co_code)
        for part in (value.co_consts, _names(value), value.co_varnames, value.co_freevars):
            _add(part, checksum, depth + 1)
    elif isinstance(value, ModuleType):
        if value.__name__ not in _STABLE_MODULES:
            raise _Unknown
        checksum.update(value.__name__.encode())
    elif isinstance(value, (BuiltinFunctionType, np.ufunc)):
        if getattr(value, "__module__", "numpy") not in _STABLE_MODULES:
            raise _Unknown
        checksum.update(value.__name__.encode())
    elif isinstance(value, tuple):
        checksum.update(str(len(value)).encode())
        for part in value:
            _add(part, checksum, depth + 1)
    elif isinstance(value, (int, float, complex, str, bytes, type(None), np.number, np.bool_)):
        checksum.update(repr(value).encode() + b"\0")
    elif isinstance(value, type) and issubclass(value, (int, float, np.number)):
        checksum.update(value.__name__.encode())
    else:
        raise _Unknown


def _names(code: CodeType) -> tuple[str, ...]:
    """Names that a function and those defined inside it look up."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return tuple(dict.fromkeys((*code.co_names, *(name for c in inner for name in _names(c)))))
