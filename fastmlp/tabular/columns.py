"""Columns of any table: what kind each is of, and its values as numbers or as objects.

Tables are pandas or polars frames, or arrays of two dimensions.  Neither frame library is imported:
a column has its own methods.
"""

from collections.abc import Iterable
from datetime import date, time, timedelta
from decimal import Decimal
from numbers import Number, Real
from typing import Any, NoReturn

import numpy as np
from sklearn.utils import check_array

_KINDS: dict[type, str] = {str: "strings", bytes: "bytes"}
_NESTED = (list, tuple, dict, set, np.ndarray)
_TEMPORAL = (date, time, timedelta, np.datetime64, np.timedelta64)


def missing_as_none(X: Any) -> Any:
    """scikit-learn does not know pandas' NA."""
    return X.astype(object).where(X.notna(), None) if hasattr(X, "notna") else X


def require_table(X: Any) -> None:
    """Refuse what is no table of two dimensions.

    Raises
    ------
    ValueError
        In scikit-learn's words where it has some.
    """
    if getattr(getattr(X, "dtype", None), "names", None):
        raise ValueError(
            "X is a structured array; give a frame, such as pandas.DataFrame(X), or an array of "
            "two dimensions."
        )
    if len(X.shape) != 2:
        check_array(X, dtype=None, ensure_all_finite=False)  # which raises, in its own words


def names_of(X: Any) -> list:
    """Names of a frame's columns, or positions."""
    return list(X.columns) if hasattr(X, "dtypes") else list(range(X.shape[1]))


def column_of(X: Any, j: int) -> Any:
    """A column, by its position."""
    return X.iloc[:, j] if hasattr(X, "iloc") else X[:, j]


def holds_numbers(column: Any, name: Any) -> bool:
    """Whether a column is numeric, by its values where its type is open.

    Raises
    ------
    ValueError
        If it is neither numeric nor of categories.
    """
    dtype = column.dtype
    if hasattr(dtype, "is_numeric"):
        return _is_numeric_in_polars(column, name)
    if hasattr(dtype, "categories"):
        _refuse_mixture(dtype.categories, name)
        return False
    if dtype.kind in ("m", "M"):
        _refuse_dates(dtype, name)
    if dtype.kind == "c":
        raise ValueError(
            f"Complex data not supported: column {name!r} of X holds complex numbers; give their "
            "parts as columns of their own."
        )
    return dtype.kind in "biuf" or _are_numbers(column, name)


def as_numbers(column: Any) -> np.ndarray:
    """A column as float64, NaN where a value is missing.

    Raises
    ------
    ValueError
        If a value is no number.
    """
    dtype = column.dtype
    if hasattr(dtype, "is_numeric"):
        if dtype.is_numeric() or str(dtype) == "Boolean":
            return np.asarray(column.cast(float).to_numpy(), np.float64)
    elif dtype.kind in "biuf":
        if hasattr(column, "isna"):
            return np.asarray(column.to_numpy(np.float64, na_value=np.nan))
        return np.asarray(column, np.float64)
    return np.array([np.nan if is_missing(value) else float(value) for value in _values(column)])


def as_categories(column: Any) -> list:
    """A column's values as Python objects; what is missing is None, NaN, or pandas' NA or NaT."""
    return _values(column)


def is_missing(value: Any) -> bool:
    """None, NaN, pandas' NA and NaT."""
    if isinstance(value, Real | Decimal):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _values(column: Any) -> list:
    return column.to_list() if hasattr(column, "to_list") else column.tolist()


def _is_numeric_in_polars(column: Any, name: Any) -> bool:
    dtype = column.dtype
    if dtype.is_temporal():
        _refuse_dates(dtype, name)
    if dtype.is_nested():
        _refuse_nested(dtype, name)
    if str(dtype) in ("Object", "String"):
        return _are_numbers(column, name)
    return dtype.is_numeric() or str(dtype) == "Boolean"


def _are_numbers(column: Any, name: Any) -> bool:
    """Whether all values that are there are numbers, or strings of which some are fractions.

    Strings of whole numbers are categories, because postal codes and the like are such.
    """
    values = _values(column)
    kinds = set(map(type, values))
    if any(issubclass(kind, _NESTED) for kind in kinds):
        _refuse_mixture(values, name)
    distinct = {value for value in set(values) if not is_missing(value)}
    if all(isinstance(value, Real | Decimal) for value in distinct):
        return True
    if all(isinstance(value, str) for value in distinct):
        return all(map(_is_number_as_text, distinct)) and not all(map(_is_whole, distinct))
    for value in distinct:
        if isinstance(value, _TEMPORAL):
            _refuse_dates(type(value).__name__, name)
    _refuse_mixture(distinct, name)
    return False


def _is_number_as_text(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _is_whole(value: str) -> bool:
    return value.strip().lstrip("+-").isdigit()


def _refuse_mixture(values: Iterable[Any], name: Any) -> None:
    """Refuse what are no categories, or not of one kind."""
    kinds = set()
    for value in values:
        if isinstance(value, _NESTED):
            _refuse_nested(type(value).__name__, name)
        kinds.add("numbers" if isinstance(value, Number) else _KINDS.get(type(value), "objects"))
    if len(kinds) > 1:
        raise ValueError(
            f"Column {name!r} of X holds {' and '.join(sorted(kinds))}; turn it into numbers, or "
            "into strings."
        )


def _refuse_dates(dtype: Any, name: Any) -> NoReturn:
    raise ValueError(
        f"Column {name!r} of X holds dates or times ({dtype}); turn them into numbers, such as "
        "days since the first of them, or into categories, such as the weekday."
    )


def _refuse_nested(dtype: Any, name: Any) -> NoReturn:
    raise ValueError(
        f"Column {name!r} of X holds several values in one cell ({dtype}); spread them over "
        "columns of their own."
    )
