"""The nodes of a `TabularEncoder` in ONNX: from columns to the matrix that networks get.

Numbers are taken and scaled in float64, as the encoder does, and the matrix is float32.  Operators
are those that onnxruntime has for these types.
"""

from typing import Any

import numpy as np

from fastmlp.tabular import TabularEncoder

_UNKNOWN = -1


def columns_of(encoder: TabularEncoder) -> dict[int, str]:
    """{position: name of the input} of the columns that are not dropped."""
    names = getattr(encoder, "feature_names_in_", None)
    used = sorted([*encoder.numbers_, *encoder.categories_])
    return {j: f"column_{j}" if names is None else str(names[j]) for j in used}


def kinds_of(encoder: TabularEncoder) -> dict[int, type]:
    """{position: float, str or int}: what the input of a column holds.

    Raises
    ------
    ValueError
        If categories are neither strings nor whole numbers.
    """
    kinds: dict[int, type] = dict.fromkeys(encoder.numbers_, float)
    for j, found in encoder.categories_.items():
        if all(isinstance(value, str) for value in found.codes):
            kinds[j] = str
        elif all(isinstance(value, int | np.integer) for value in found.codes):
            kinds[j] = int
        else:
            raise ValueError(
                f"column {columns_of(encoder)[j]!r} has categories that are neither strings nor "
                "whole numbers, which ONNX cannot express; turn them into strings before fit."
            )
    return kinds


def add_encoder(g: Any, encoder: TabularEncoder) -> str:
    """Add the nodes; returns the name of the matrix (n_samples, n_columns), float32.

    Parameters
    ----------
    g : callable
        A graph in float32: ``g(operator, *inputs, **attributes)`` adds a node.
    encoder : TabularEncoder
        Fitted.
    """
    kinds, names = kinds_of(encoder), columns_of(encoder)
    parts = _numbers(g, encoder, [names[j] for j in encoder.numbers_]) if encoder.numbers_ else []
    parts += [_one_hot(g, found, names[j], kinds[j]) for j, found in encoder.categories_.items()]
    return parts[0] if len(parts) == 1 else g("Concat", *parts, axis=1)


def _numbers(g: Any, encoder: TabularEncoder, inputs: list[str]) -> list[str]:
    """Scaled numbers, bins, and where they are missing."""
    x = inputs[0] if len(inputs) == 1 else g("Concat", *inputs, axis=1)
    missing = g("IsNaN", x)
    parts = [_scaled(g, encoder, g("Where", missing, encoder.scaler_.center_[None], x))]
    edges = encoder.bins_.bin_edges_ if encoder.n_bins else []
    if sum(map(len, edges)):
        lowest = np.array([[one[0] if len(one) else 0.0 for one in edges]])
        parts.append(_bins(g, edges, g("Where", missing, lowest, x)))
    if encoder.holes_:
        holes = g("Gather", g("Cast", missing, to=_FLOAT), np.array(encoder.holes_), axis=1)
        parts.append(holes)
    return parts


_FLOAT = 1  # onnx.TensorProto.FLOAT


def _scaled(g: Any, encoder: TabularEncoder, x: str) -> str:
    largest = np.sqrt(np.finfo(np.float64).max)
    z = g("Mul", g("Sub", x, encoder.scaler_.center_[None]), encoder.scaler_.factor_[None])
    z = g("Clip", z, np.array(-largest), np.array(largest))
    ratio = g("Div", z, np.array(3.0))
    root = g("Sqrt", g("Add", g("Mul", ratio, ratio), np.array(1.0)))
    return g("Cast", g("Div", z, root), to=_FLOAT)


def _bins(g: Any, edges: list[np.ndarray], x: str) -> str:
    feature = np.repeat(np.arange(len(edges)), [max(len(one) - 1, 0) for one in edges])
    left = np.concatenate([one[:-1] for one in edges])[None]
    scale = 1 / np.concatenate([np.diff(one) for one in edges])[None]
    z = g("Mul", g("Sub", g("Gather", x, feature, axis=1), left), scale)
    return g("Cast", g("Clip", z, np.array(0.0), np.array(1.0)), to=_FLOAT)


def _one_hot(g: Any, found: Any, column: str, kind: type) -> str:
    """A column of categories; missing strings are empty ones."""
    codes = dict(found.codes)
    if kind is str and found.missing != _UNKNOWN:
        codes.setdefault("", found.missing)
    keys = {"keys_strings": list(codes)} if kind is str else {"keys_int64s": list(codes)}
    code = g("LabelEncoder", column, domain="ai.onnx.ml", values_int64s=list(codes.values()),
             default_int64=found.rare, **keys)  # fmt: skip
    if found.n_columns > 1:
        return g("Cast", g("Equal", code, np.arange(found.n_columns)[None]), to=_FLOAT)
    is_second = g("Cast", g("Equal", code, np.array([[1]])), to=_FLOAT)
    return g("Sub", is_second, g("Cast", g("Equal", code, np.array([[0]])), to=_FLOAT))
