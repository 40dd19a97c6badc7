"""Elementwise loops: each formula of the library is a piece of its own.

So only what a network uses is compiled, a new row in a table costs the others nothing, and a
formula of the user's takes the same way.  The call is paid once per row block or tile of a few
thousand numbers.

The loops are templates: plain functions that use the names ``FORMULA``, ``GRADIENT`` and ``DECAY``,
which a `Piece` binds to formulas compiled with this engine's elementary functions.

Tried and lost: one function with a branch per formula (half of the kernel's compile time went into
formulas that were not used, and each table row made it worse).
"""

from collections.abc import Callable
from typing import Any

from numpy import sqrt as _sqrt

from fastmlp.dropout import random_bits, row_key
from fastmlp.engine.cpu.kernels import jit as _jit
from fastmlp.engine.cpu.kernels.jit import Piece
from fastmlp.engine.cpu.kernels.vector import PRIMITIVES, load, size_of, square_root, store
from fastmlp.functions import (
    ACTIVATIONS,
    LAYER_NORM_EPSILON,
    LINKS,
    LOSSES,
    Activation,
    Loss,
    identity,
    with_our_arguments,
)
from fastmlp.optimizers import OPTIMIZERS, decay_weight, keep_weight

# --- templates --------------------------------------------------------------------------------


def _unbound(*args):
    raise TypeError("a template was called without its formula")


FORMULA: Callable[..., Any] = _unbound
GRADIENT: Callable[..., Any] = _unbound
DECAY: Callable[..., Any] = _unbound
_exp, _log, _log1p = (PRIMITIVES[name] for name in ("exp", "log", "log1p"))
_row_key, _random_bits = (_jit.formula(function, {}) for function in (row_key, random_bits))


def _activation_loop(z, derivatives, stride, rows, columns, like):
    """Apply an activation to ``rows`` x ``columns`` in place."""
    for i in range(rows):
        row = z + i * stride * size_of(like)
        for j in range(columns):
            store(row, j, type(like)(FORMULA(load(row, j, like))))
    return like


def _value_and_derivative_loop(z, derivatives, stride, rows, columns, like):
    """Apply an activation in place; its derivative at the scores goes to ``derivatives``."""
    for i in range(rows):
        shift = i * stride * size_of(like)
        for j in range(columns):
            score = load(z + shift, j, like)
            store(z + shift, j, type(like)(FORMULA(score)))
            store(derivatives + shift, j, type(like)(GRADIENT(score)))
    return like


def _value_and_output_derivative_loop(z, derivatives, stride, rows, columns, like):
    """`_value_and_derivative_loop` for a derivative that is a function of the output."""
    for i in range(rows):
        shift = i * stride * size_of(like)
        for j in range(columns):
            output = type(like)(FORMULA(load(z + shift, j, like)))
            store(z + shift, j, output)
            store(derivatives + shift, j, type(like)(GRADIENT(output)))
    return like


def _dropout_loop(a, derivatives, stride, rows, columns, seed, step, layer, first, threshold,
                  scale):  # fmt: skip
    """Multiply outputs and kept derivatives by 0 or ``scale``; ``first`` is the first row's number
    in the batch.
    """
    for i in range(rows):
        shift = i * stride * size_of(scale)
        key = _row_key(seed, step, layer, first + i)
        for j in range(columns):
            mask = type(scale)(0) if _random_bits(key, j) < threshold else scale
            store(a + shift, j, load(a + shift, j, scale) * mask)
            store(derivatives + shift, j, load(derivatives + shift, j, scale) * mask)
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


# --- pieces -----------------------------------------------------------------------------------


def _bound(template, signature: str, *formulas, names=("FORMULA", "GRADIENT"), reassociate=False):
    primitives = PRIMITIVES | {"sqrt": square_root}
    compiled = [_jit.formula(formula, primitives) for formula in formulas]
    return Piece(template, signature, dict(zip(names, compiled, strict=False)), reassociate)


def _activation(key: str) -> Piece:
    return _bound(_activation_loop, _ACTIVATION, ACTIVATIONS[key].value)


def _activation_and_derivative(key: str) -> Piece:
    row = ACTIVATIONS[key]
    template = _value_and_derivative_loop if row.of_score else _value_and_output_derivative_loop
    return _bound(template, _ACTIVATION, row.value, row.derivative)


def _derivative(key: str) -> Piece:
    """``kept`` stands for a derivative that was worked out with the activation."""
    formula = identity if key == "kept" else ACTIVATIONS[key].derivative
    return _bound(_derivative_loop, _ACTIVATION, formula)


def _link(key: str) -> Piece:
    return _bound(_activation_loop, _ACTIVATION, LINKS[key])


def _loss(key: str) -> Piece:
    row = LOSSES[key]
    if row.per_row and not row.of_probability:
        return _bound(_row_loss_loop, "iiirr", row.value)
    return _bound(_loss_template(row), _LOSS, row.value, row.gradient)


def _loss_template(row: Loss) -> Callable:
    if not row.of_probability:
        return _loss_loop
    return _softmax_loss_loop if row.per_row else _logistic_loss_loop


def _update(key: str) -> Piece:
    name, _, decays = key.partition("-")
    decay = decay_weight if decays else keep_weight
    return _bound(
        _update_loop, _UPDATE, OPTIMIZERS[name].update, decay, names=("FORMULA", "DECAY"),
        reassociate=True,
    )  # fmt: skip


_ACTIVATION, _LOSS, _UPDATE = "iiiiirr", "iiiiiirr", "iiiii" + "r" * 10
FAMILIES: dict[str, Callable[[str], Piece]] = {
    "activation": _activation,
    "activation_and_derivative": _activation_and_derivative,
    "derivative": _derivative,
    "link": _link,
    "loss": _loss,
    "update": _update,
}
"""Pieces by the first part of their names; the second is a key of a table."""
PIECES = {
    "dropout": Piece(_dropout_loop, "i" * 10 + "rr"),
    "normalise": Piece(_normalise_loop, _ACTIVATION, reassociate=True),
    "normalise_derivative": Piece(_normalise_derivative_loop, _ACTIVATION, reassociate=True),
    "penalty": Piece(_penalty_loop, _UPDATE, reassociate=True),
    "sum_squares": Piece(_squares_loop, "iirr", reassociate=True),
    "scale": Piece(_scale_loop, "iirr"),
    "average": Piece(_average_loop, "iiirr"),
}


def user_activation(row: Activation, *, keep_derivative: bool) -> Piece:
    """The loop of an activation of the user's; `fastmlp.engine.cpu.pieces.activation`."""
    formulas = [row.value, row.derivative] if keep_derivative else [row.value]
    template = _activation_loop
    if keep_derivative:
        template = _value_and_derivative_loop if row.of_score else _value_and_output_derivative_loop
    return _user_piece(template, _ACTIVATION, *formulas)


def user_loss(row: Loss) -> Piece:
    """The loop of a loss of the user's: functions of two numbers, with the arguments of our own."""
    assert row.gradient is not None
    value, gradient = _jit.user_formula(row.value), _jit.user_formula(row.gradient)
    return _user_piece(_loss_template(row), _LOSS, *with_our_arguments(row, value, gradient))


def _user_piece(template, signature: str, *formulas) -> Piece:
    names = dict(zip(("FORMULA", "GRADIENT"), map(_jit.user_formula, formulas), strict=False))
    return Piece(template, signature, names)
