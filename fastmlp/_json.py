"""Parameters and attributes in JSON, and back with the same values and types.

Numbers, strings, None and lists stand for themselves, and everything else is an object with one
member, whose name says what it is: ``{"tuple": [1, 2]}``, ``{"float32": 0.5}``.  Nothing can be
written that is not in this file, and nothing else comes out of it, whoever wrote it.
"""

from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np

_NUMBERS = {
    name: np.dtype(name).type
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64",
    )
}  # fmt: skip
_ELEMENTS = {"b": bool, "i": int, "u": int, "f": float}
_INTEGERS = range(-(2**63), 2**64)
_WORDS = 624  # of the Mersenne Twister's state


def encode(value, name: str):
    """``value`` as JSON can hold it.

    Parameters
    ----------
    value : object
    name : str
        The parameter that it belongs to.

    Raises
    ------
    ValueError
        If it is not plain data.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, np.generic) and value.dtype.name in _NUMBERS:
        return {value.dtype.name: value.item()}
    if type(value) is float or (type(value) is int and value in _INTEGERS):
        return value
    if type(value) is list:
        return [encode(entry, name) for entry in value]
    if type(value) is tuple:
        return {"tuple": [encode(entry, name) for entry in value]}
    if type(value) is dict:
        return {"dict": [[encode(part, name) for part in item] for item in value.items()]}
    if isinstance(value, PurePath):
        return {"path": str(value)}
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return _encode_array(value, name)
    if isinstance(value, np.random.RandomState):
        state = value.get_state(legacy=False)
        if state["bit_generator"] == "MT19937":
            words, position = state["state"]["key"].tolist(), state["state"]["pos"]
            return {"random_state": [words, position, state["has_gauss"], state["gauss"]]}
    raise ValueError(
        f"{name}={value!r} cannot be saved, because it is not plain data (numbers, strings, lists, "
        "NumPy arrays); use pickle or joblib, or set another value by set_params."
    )


def _encode_array(array: np.ndarray, name: str) -> dict[str, list]:
    values, dtype = array.tolist(), array.dtype.name
    if array.dtype.kind == "U":
        dtype = "str"
    elif dtype not in _NUMBERS and not all(isinstance(value, str) for value in values):
        raise ValueError(
            f"{name} is an array of {dtype}, which cannot be saved; use numbers or strings, or "
            "pickle or joblib."
        )
    return {"array": [dtype, values]}


def decode(value):
    """What `encode` made ``value`` of.

    Raises
    ------
    Exception
        Of whatever kind, if it is made up.
    """
    if isinstance(value, list):
        return [decode(entry) for entry in value]
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        return _decode_number(kind, content) if kind in _NUMBERS else _DECODERS[kind](content)
    if type(value) is int and value not in _INTEGERS:
        raise ValueError("an integer is out of range")
    return value


def _decode_number(kind: str, content):
    if type(content) not in _ELEMENTS.values():
        raise ValueError(f"{content!r} is no number")
    return _NUMBERS[kind](content)


def _decode_array(content) -> np.ndarray:
    name, values = content
    dtype = np.dtype(_NUMBERS.get(name) or {"str": str, "object": object}[name])
    element = _ELEMENTS.get(dtype.kind, str)
    if type(values) is not list or not all(type(value) is element for value in values):
        raise ValueError(f"the elements of an array must all be of {name}")
    return np.array(values, dtype)


def _decode_random_state(content) -> np.random.RandomState:
    words, position, has_gauss, gauss = content
    words = np.array(words, np.uint32)
    possible = words.shape == (_WORDS,) and (words[1:].any() or words[0] >> 31)
    if not (possible and type(position) is int and 0 <= position <= _WORDS):
        raise ValueError("random numbers cannot be in this state")
    random_state = np.random.RandomState(0)
    random_state.set_state(("MT19937", words, position, int(bool(has_gauss)), float(gauss)))
    return random_state


_DECODERS: dict[str, Callable] = {
    "tuple": lambda content: tuple(decode(content)),
    "dict": lambda content: {decode(key): decode(value) for key, value in content},
    "path": Path,
    "array": _decode_array,
    "random_state": _decode_random_state,
}
