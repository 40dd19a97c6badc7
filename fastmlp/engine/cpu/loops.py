"""Elementwise loops: each formula of the library compiled into a C function of its own.

The kernels call activations, losses and update rules through addresses.  So only what a network
uses is compiled, a new row in a table costs the others nothing, and a formula of the user's takes
the same way.  The call is paid once per slab or tile of a few thousand numbers.

The loops are templates: plain functions that use the names ``FORMULA``, ``GRADIENT`` and ``DECAY``,
which `fastmlp._jit.address` binds to formulas compiled with this engine's elementary functions.

Tried and lost: one function with a branch per formula (half of the kernel's compile time went into
formulas that were not used, and each table row made it worse).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import NumbaError
from numba.extending import intrinsic
from numpy import sqrt as _sqrt

from fastmlp import _jit
from fastmlp.engine.cpu.vector import PRIMITIVES, load, size_of, store
from fastmlp.functions import (
    ACTIVATIONS,
    LAYER_NORM_EPSILON,
    LOSSES,
    USER,
    Activation,
    Loss,
    exponential,
    identity,
    identity_derivative,
    logistic,
    random_bits,
    row_key,
    straight_through,
)
from fastmlp.optimizers import OPTIMIZERS, decay_weight, keep_weight

_CONSTANT_DERIVATIVES = (identity_derivative, straight_through)
_LINKS = {"logistic": logistic, "exp": exponential}


@intrinsic
def _call(typingctx, address, arguments, like):
    """Call the C function at ``address``; it takes the arguments and returns ``like``'s type."""

    def codegen(context, builder, signature, args):
        values = [builder.extract_value(args[1], i) for i in range(len(arguments))]
        kind = ir.FunctionType(context.get_value_type(like), [value.type for value in values])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)

    return like(types.int64, arguments, like), codegen


@_jit.jit
def call(address, arguments):
    """Call one of the loops below; the last argument tells the element type."""
    return _call(address, arguments, arguments[-1])


# --- templates --------------------------------------------------------------------------------


def _unbound(*args):
    raise TypeError("a template was called without its formula")


FORMULA: Callable[..., Any] = _unbound
GRADIENT: Callable[..., Any] = _unbound
DECAY: Callable[..., Any] = _unbound
_exp, _log, _log1p = (PRIMITIVES[name] for name in ("exp", "log", "log1p"))
_row_key, _random_bits = (_jit.formula(function, {}) for function in (row_key, random_bits))


def _activation_loop(z, slopes, stride, rows, columns, like):
    """Apply an activation to ``rows`` x ``columns`` in place."""
    for i in range(rows):
        row = z + i * stride * size_of(like)
        for j in range(columns):
            store(row, j, type(like)(FORMULA(load(row, j, like))))
    return like


def _slope_loop(z, slopes, stride, rows, columns, like):
    """Apply an activation in place; its derivative at the scores goes to ``slopes``."""
    for i in range(rows):
        shift = i * stride * size_of(like)
        for j in range(columns):
            score = load(z + shift, j, like)
            store(z + shift, j, type(like)(FORMULA(score)))
            store(slopes + shift, j, type(like)(GRADIENT(score)))
    return like


def _output_slope_loop(z, slopes, stride, rows, columns, like):
    """`_slope_loop` for a derivative that is a function of the output."""
    for i in range(rows):
        shift = i * stride * size_of(like)
        for j in range(columns):
            output = type(like)(FORMULA(load(z + shift, j, like)))
            store(z + shift, j, output)
            store(slopes + shift, j, type(like)(GRADIENT(output)))
    return like


def _dropout_loop(a, slopes, stride, rows, columns, seed, step, layer, first, threshold, scale):
    """Multiply outputs and slopes by 0 or ``scale``; ``first`` is the first row in the batch."""
    for i in range(rows):
        shift = i * stride * size_of(scale)
        key = _row_key(seed, step, layer, first + i)
        for j in range(columns):
            mask = type(scale)(0) if _random_bits(key, j) < threshold else scale
            store(a + shift, j, load(a + shift, j, scale) * mask)
            store(slopes + shift, j, load(slopes + shift, j, scale) * mask)
    return scale


def _normalise_loop(z, kept, stride, rows, columns, like):
    """Rows less their mean, times 1 / standard deviation; a copy, and this factor, to ``kept``."""
    n = type(like)(columns)
    for i in range(rows):
        shift = i * stride * size_of(like)
        total, squares = type(like)(0), type(like)(0)
        for j in range(columns):
            total += load(z + shift, j, like)
        mean = total / n
        for j in range(columns):
            distance = load(z + shift, j, like) - mean
            squares += distance * distance
        factor = type(like)(1) / _sqrt(squares / n + type(like)(LAYER_NORM_EPSILON))
        for j in range(columns):
            store(z + shift, j, (load(z + shift, j, like) - mean) * factor)
        if kept:
            for j in range(columns):
                store(kept + shift, j, load(z + shift, j, like))
            store(kept + shift, columns, factor)
    return like


def _normalise_derivative_loop(kept, delta, stride, rows, columns, like):
    """From deltas of normalised scores to deltas of scores: both lose what rows share."""
    n = type(like)(columns)
    for i in range(rows):
        shift = i * stride * size_of(like)
        total, moment = type(like)(0), type(like)(0)
        for j in range(columns):
            total += load(delta + shift, j, like)
            moment += load(delta + shift, j, like) * load(kept + shift, j, like)
        mean, slope = total / n, moment / n
        factor = load(kept + shift, columns, like)
        for j in range(columns):
            rest = load(delta + shift, j, like) - mean - slope * load(kept + shift, j, like)
            store(delta + shift, j, factor * rest)
    return like


def _derivative_loop(a, delta, stride, rows, columns, like):
    """Multiply ``delta`` by the derivative at the outputs ``a``."""
    for i in range(rows):
        shift = i * stride * size_of(like)
        for j in range(columns):
            slope = FORMULA(load(a + shift, j, like))
            store(delta + shift, j, load(delta + shift, j, like) * slope)
    return like


def _loss_loop(scores, targets, constants, values, rows, columns, tiny):
    """Losses go to ``values``; scores become gradients."""
    for i in range(rows * columns):
        score, y = load(scores, i, tiny), load(targets, i, tiny)
        constant = load(constants, i, tiny)
        store(values, i, type(tiny)(FORMULA(score, y, tiny, constant)))
        store(scores, i, type(tiny)(GRADIENT(score, y, constant)))
    return tiny


def _logistic_loss_loop(scores, targets, constants, values, rows, columns, tiny):
    """`_loss_loop` for losses of probabilities: of a class, and of its complement."""
    zero, one = type(tiny)(0), type(tiny)(1)
    for i in range(rows * columns):
        z, y, constant = load(scores, i, tiny), load(targets, i, tiny), load(constants, i, tiny)
        small = _exp(z if z < 0 else -z)
        excess = _log1p(small)
        log_p, log_q = (z if z < 0 else zero) - excess, (zero if z < 0 else -z) - excess
        p, q = (small if z < 0 else one) / (one + small), (one if z < 0 else small) / (one + small)
        value = FORMULA(p, log_p, y, constant) + FORMULA(q, log_q, one - y, constant)
        gradient = q * GRADIENT(p, log_p, y, constant) - p * GRADIENT(q, log_q, one - y, constant)
        store(values, i, type(tiny)(value))
        store(scores, i, type(tiny)(gradient))
    return tiny


def _softmax_loss_loop(scores, targets, constants, values, rows, columns, tiny):
    """`_loss_loop` for losses of probabilities that sum to 1 in a row; overwrites the targets."""
    for i in range(rows):
        at = i * columns
        peak = load(scores, at, tiny)
        for k in range(at + 1, at + columns):
            score = load(scores, k, tiny)
            if score > peak or score != score:
                peak = score
        total, pull = type(tiny)(0), type(tiny)(0)
        for k in range(at, at + columns):
            total += _exp(load(scores, k, tiny) - peak)
        normaliser = _log(total)
        for k in range(at, at + columns):
            log_p = load(scores, k, tiny) - peak - normaliser
            p, y, constant = _exp(log_p), load(targets, k, tiny), load(constants, k, tiny)
            gradient = type(tiny)(GRADIENT(p, log_p, y, constant))
            pull += gradient
            store(values, k, type(tiny)(FORMULA(p, log_p, y, constant)))
            store(targets, k, gradient)
            store(scores, k, p)
        for k in range(at, at + columns):
            store(scores, k, load(targets, k, tiny) - load(scores, k, tiny) * pull)
    return tiny


def _row_loss_loop(rows, sums, scores, tiny):
    """``scores`` (of the sample's class, less the peak) become losses, given sums of exp."""
    for i in range(rows):
        store(scores, i, FORMULA(_log(load(sums, i, tiny)), load(scores, i, tiny), tiny))
    return tiny


def _update_loop(w, g, first, second, n, penalty, decay, c0, c1, c2, c3, c4, c5, rate):
    """Update ``n`` parameters; returns their sum of squares before the update."""
    squares = type(rate)(0)
    for i in range(n):
        before = load(w, i, rate)
        squares += before * before
        after, s0, s1 = FORMULA(
            DECAY(before, decay),
            load(g, i, rate) + penalty * before,
            load(first, i, rate),
            load(second, i, rate),
            rate,
            c0,
            c1,
            c2,
            c3,
            c4,
            c5,
        )
        store(w, i, after)
        store(first, i, s0)
        store(second, i, s1)
    return squares


def _penalty_loop(w, g, first, second, n, penalty, decay, c0, c1, c2, c3, c4, c5, rate):
    """In an update's place: leave the parameters, complete the gradient."""
    squares = type(rate)(0)
    for i in range(n):
        before = load(w, i, rate)
        squares += before * before
        store(g, i, load(g, i, rate) + penalty * before)
    return squares


def _squares_loop(g, n, like):
    """Sum of ``n`` squares."""
    total = type(like)(0)
    for i in range(n):
        total += load(g, i, like) * load(g, i, like)
    return total


def _scale_loop(g, n, factor):
    """Multiply ``n`` numbers by ``factor``."""
    for i in range(n):
        store(g, i, load(g, i, factor) * factor)
    return factor


def _average_loop(average, w, n, rate):
    """Move ``n`` numbers by a share of ``rate`` towards the parameters."""
    for i in range(n):
        before = load(average, i, rate)
        store(average, i, before + rate * (load(w, i, rate) - before))
    return rate


# --- addresses --------------------------------------------------------------------------------


def _address(
    template,
    integers,
    floats,
    dtype,
    label,
    *formulas,
    names=("FORMULA", "GRADIENT"),
    reassociate=False,
) -> int:
    kind = {"float32": types.float32, "float64": types.float64}[dtype]
    signature = kind(*[types.int64] * integers, *[kind] * floats)
    compiled = [_jit.formula(formula, PRIMITIVES) for formula in formulas]
    bound = dict(zip(names, compiled, strict=False))
    return _jit.address(template, signature, f"{label}-{dtype}", bound, reassociate=reassociate)


def _user_address(template, integers, floats, dtype, parameter, *formulas) -> int:
    """`_address` for a user's formulas, which the disk cache would not know from each other."""
    kind = {"float32": types.float32, "float64": types.float64}[dtype]
    signature = kind(*[types.int64] * integers, *[kind] * floats)
    names = dict(zip(("FORMULA", "GRADIENT"), map(_jit.user_formula, formulas), strict=False))
    try:
        return _jit.address(template, signature, "user", names, cached=False)
    except NumbaError as error:
        raise ValueError(
            f"{parameter}: Numba cannot compile these functions; write them for one number, with "
            f"operators and functions of math or numpy. It says: {error}"
        ) from error


@cache
def activation(row: Activation, dtype: str, *, slopes: bool = False) -> int:
    """Address of an activation's loop; 0 for the identity.

    ``slopes`` makes it write the derivative as well.
    """
    formulas = [row.value]
    template = _activation_loop
    if slopes:
        formulas = [row.value, row.derivative]
        template = _slope_loop if row.of_score else _output_slope_loop
    elif row == ACTIVATIONS["identity"]:
        return 0
    if row.code == USER:
        return _user_address(template, 5, 1, dtype, "activation", *formulas)
    return _address(template, 5, 1, dtype, row.value.__name__, *formulas)


@cache
def derivative(row: Activation, dtype: str, *, slopes: bool = False) -> int:
    """Address of the loop that multiplies deltas by a derivative; 0 where that is 1.

    ``slopes`` says that the derivative was worked out with the activation.
    """
    formula = identity if slopes else row.derivative
    if formula in _CONSTANT_DERIVATIVES:
        return 0
    return _address(_derivative_loop, 5, 1, dtype, formula.__name__, formula)


@cache
def dropout(dtype: str) -> int:
    """Address of the loop that draws masks."""
    return _address(_dropout_loop, 10, 1, dtype, "dropout")


@cache
def normalise(dtype: str) -> int:
    """Address of the loop of layer normalisation."""
    return _address(_normalise_loop, 5, 1, dtype, "normalise", reassociate=True)


@cache
def normalise_derivative(dtype: str) -> int:
    """Address of the loop that takes deltas back through it."""
    template = _normalise_derivative_loop
    return _address(template, 5, 1, dtype, "normalise-derivative", reassociate=True)


@cache
def link(out_activation: str, dtype: str) -> int:
    """Address of an output activation's loop; 0 for the identity and for softmax."""
    if out_activation not in _LINKS:
        return 0
    return _address(_activation_loop, 5, 1, dtype, out_activation, _LINKS[out_activation])


@cache
def loss(row: Loss, dtype: str) -> int:
    """Address of a loss's loop."""
    label = row.value.__name__
    if row.per_row and not row.of_probability:
        return _address(_row_loss_loop, 3, 1, dtype, label, row.value)
    template = _loss_loop
    if row.of_probability:
        template = _softmax_loss_loop if row.per_row else _logistic_loss_loop
    if row.code == USER:
        return _user_address(template, 6, 1, dtype, "loss", *_user_loss(row))
    return _address(template, 6, 1, dtype, label, row.value, row.gradient)


def _user_loss(row: Loss) -> tuple[Callable, Callable]:
    """A user's functions of two numbers, with the arguments of our own."""
    assert row.gradient is not None
    value, gradient = _jit.user_formula(row.value), _jit.user_formula(row.gradient)
    if row.of_probability:
        return (
            lambda p, log_p, y, constant: value(p, y),
            lambda p, log_p, y, constant: p * gradient(p, y),
        )
    return lambda z, y, tiny, constant: value(z, y), lambda z, y, constant: gradient(z, y)


@cache
def update(optimizer: str | None, dtype: str, *, decays: bool = False) -> int:
    """Address of an optimizer's loop; without one, of that which completes the gradient."""
    if optimizer is None:
        return _address(_penalty_loop, 5, 9, dtype, "penalty", reassociate=True)
    label, decay = (f"{optimizer}-decay", decay_weight) if decays else (optimizer, keep_weight)
    return _address(
        _update_loop, 5, 9, dtype, label, OPTIMIZERS[optimizer].update, decay,
        names=("FORMULA", "DECAY"), reassociate=True,
    )  # fmt: skip


@cache
def squares(dtype: str) -> int:
    """Address of the loop that sums squares."""
    return _address(_squares_loop, 2, 1, dtype, "squares", reassociate=True)


@cache
def scale(dtype: str) -> int:
    """Address of the loop that scales a gradient."""
    return _address(_scale_loop, 2, 1, dtype, "scale")


@cache
def average(dtype: str) -> int:
    """Address of the loop that averages parameters over steps."""
    return _address(_average_loop, 3, 1, dtype, "average")


def compile_all(dtype: str) -> None:
    """Compile every row of every table, or load it from the disk cache."""
    for activation_row in ACTIVATIONS.values():
        activation(activation_row, dtype)
        activation(activation_row, dtype, slopes=True)
        derivative(activation_row, dtype)
        derivative(activation_row, dtype, slopes=True)
    dropout(dtype)
    normalise(dtype)
    normalise_derivative(dtype)
    for row in LOSSES.values():
        loss(row, dtype)
        link(row.out_activation, dtype)
    for optimizer in (None, *OPTIMIZERS):
        update(optimizer, dtype)
    squares(dtype)
    scale(dtype)
    average(dtype)
