"""Parameters and attributes in JSON, and back with the same values and types.

Numbers, strings, None and lists stand for themselves, and everything else is an object with one
member, whose name says what it is: ``{"tuple": [1, 2]}``, ``{"float32": 0.5}``.  Nothing can be
written that is not in this file, and nothing else comes out of it, whoever wrote it.

`read` is the one reader of JSON: what it returns has bounds, so that nothing behind it overflows.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, NoReturn

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
_MAX_DEPTH = 32  # a model with its optimizer needs 9
_MAX_DIGITS = 20  # of an integer, with its sign
_STRINGS_AND_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def read(text: str | bytes, *, finite: bool = False) -> Any:
    """JSON from a file that anybody may have written.

    Parameters
    ----------
    text : str or bytes
    finite : bool, default=False
        Whether NaN and infinity, for which Python's JSON has words, are refused.

    Raises
    ------
    ValueError
        If it is no JSON, is nested deeply, has a name twice in an object, or a number that neither
        64 bits nor float64 can hold.
    """
    if isinstance(text, bytes):
        text = text.decode()
    _check_depth(text)
    return json.loads(
        text,
        object_pairs_hook=_without_duplicates,
        parse_int=_integer,
        parse_float=_float,
        parse_constant=_refuse_constant if finite else None,
    )


def _check_depth(text: str) -> None:
    """Before it is parsed, because Python's parser calls itself."""
    depth = 0
    for match in _STRINGS_AND_BRACKETS.finditer(text):
        first = text[match.start()]
        if first in "[{":
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        elif first in "]}":
            depth -= 1


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; readers do not agree on what a name means that occurs twice."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice in an object")
    return table


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS or int(digits) not in _INTEGERS:
        raise ValueError("an integer is out of range")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is out of range")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is in a place where only finite numbers belong")


def encode(value: Any, name: str) -> Any:
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


def _encode_array(array: np.ndarray, name: str) -> dict[str, list[Any]]:
    values, dtype = array.tolist(), array.dtype.name
    if array.dtype.kind == "U":
        dtype = "str"
    elif dtype not in _NUMBERS and not all(isinstance(value, str) for value in values):
        raise ValueError(
            f"{name} is an array of {dtype}, which cannot be saved; use numbers or strings, or "
            "pickle or joblib."
        )
    return {"array": [dtype, values]}


def decode(value: Any) -> Any:
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
    return value


def _decode_number(kind: str, content: Any) -> np.generic:
    dtype = np.dtype(kind)
    if type(content) is not _ELEMENTS[dtype.kind] or not _fits(content, dtype):
        raise ValueError(f"{content!r} is no {kind}")
    return _NUMBERS[kind](content)


def _fits(value: Any, dtype: np.dtype) -> bool:
    """Whether a type of NumPy's can hold a bool, int or float, if it is of the same kind."""
    if dtype.kind in "iu":
        return np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    if dtype.kind == "f":
        return not math.isfinite(value) or abs(value) <= np.finfo(dtype).max
    return True


def _decode_array(content: Any) -> np.ndarray:
    name, values = content
    dtype = np.dtype(_NUMBERS.get(name) or {"str": str, "object": object}[name])
    element = _ELEMENTS.get(dtype.kind, str)
    if type(values) is not list or not all(type(value) is element for value in values):
        raise ValueError(f"the elements of an array must all be of {name}")
    # of integers the extremes tell; floats may be NaN
    doubtful = [min(values), max(values)] if values and dtype.kind in "iu" else values
    if not all(_fits(value, dtype) for value in doubtful):
        raise ValueError(f"the elements of an array must all be of {name}")
    return np.array(values, dtype)


def _decode_random_state(content: Any) -> np.random.RandomState:
    words, position, has_gauss, gauss = content
    words = _decode_array(["uint32", words])
    possible = words.size == _WORDS and (words[1:].any() or words[0] >> 31)
    if not (
        possible
        and (type(position) is int and 0 <= position <= _WORDS)
        and (type(has_gauss) is int and has_gauss in (0, 1))
        and (type(gauss) is float and math.isfinite(gauss))
    ):
        raise ValueError("random numbers cannot be in this state")
    random_state = np.random.RandomState(0)
    random_state.set_state(("MT19937", words, position, has_gauss, gauss))
    return random_state


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda content: tuple(decode(content)),
    "dict": lambda content: {decode(key): decode(value) for key, value in content},
    "path": Path,
    "array": _decode_array,
    "random_state": _decode_random_state,
}
