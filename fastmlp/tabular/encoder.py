"""TabularEncoder: a table with columns of any kinds as a matrix for a network."""

from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, TransformerMixin

from fastmlp._sklearn import (
    Interval,
    StrOptions,
    check_feature_names_in,
    check_is_fitted,
    fit_context,
    validate_data,
)
from fastmlp.tabular.columns import (
    as_categories,
    as_numbers,
    column_of,
    holds_numbers,
    is_missing,
    names_of,
    require_table,
)
from fastmlp.tabular.piecewise import PiecewiseLinearEncoder
from fastmlp.tabular.scaling import RobustScaleSmoothClip

_UNKNOWN = -1
_SINGLES = 0.9  # of the rows: so many values that occur once tell nothing about new rows


class Categories(NamedTuple):
    """What a column of categories becomes.

    Parameters
    ----------
    codes : dict
        {value: which of the columns}, without those that are rare.
    rare : int
        The column of rare and new values; -1 if there were no rare ones, and new ones are 0 in all.
    missing : int
        The column of missing values; -1 if there were none.
    n_columns : int
        1 for two values, which are then 1 and -1.
    """

    codes: dict[Any, int]
    rare: int
    missing: int
    n_columns: int


class TabularEncoder(TransformerMixin, BaseEstimator):
    """Turn a table with columns of any kinds into a matrix of float32 for a network.

    Numbers and booleans become one column, scaled by `RobustScaleSmoothClip`, then the columns of
    `PiecewiseLinearEncoder`; a missing number is 0 in all of them, and 1 in one more if `fit` saw
    missing ones in the column.  Strings, categories and other objects become a column of 0 and 1
    for each category, missing being one of its own; two categories become one column of -1 and 1.
    Columns of Python objects go by what is in them, and strings are numbers if all of them are and
    not all are whole (postal codes stay categories).

    Parameters
    ----------
    n_bins : int, default=16
        Most bins of a number; 0 leaves them out.
    strategy : {'quantile', 'tree'}, default='quantile'
        Where their edges are, see `PiecewiseLinearEncoder`.
    task : {'auto', 'classification', 'regression'}, default='auto'
        What the tree predicts, see there.
    categorical_features : 'auto' or array-like of str or int, default='auto'
        Names or positions of columns that are categories although they hold numbers.
    max_categories : int, default=100
        Most columns of a column of categories.  Of more categories, the rarest share one column
        with those that `fit` did not see, which else are 0 in all.
    random_state : int, RandomState instance or None, default=None
        Draws the samples on which edges are found, where there are many.

    Attributes
    ----------
    numbers_ : list of int
        Positions of the columns that are numbers.
    categories_ : dict of int to Categories
        Positions of those that are categories, and what becomes of each.
    dropped_ : dict of int to str
        Positions of those that are left out, and why.
    holes_ : list of int
        Which of ``numbers_`` were sometimes missing.
    scaler_ : RobustScaleSmoothClip
        What scales numbers, if there are any.
    bins_ : PiecewiseLinearEncoder
        What makes bins of them, if ``n_bins`` is not 0.
    n_features_in_ : int
        Columns seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    Examples
    --------
    >>> from fastmlp.tabular import TabularEncoder
    >>> X = [["red", 1.0], ["blue", 2.0], ["green", 5.0], ["blue", None]]
    >>> encoder = TabularEncoder(n_bins=0).fit(X)
    >>> for row in encoder.transform(X):
    ...     print(*row.round(1))
    -0.5 0.0 0.0 0.0 1.0
    0.0 0.0 1.0 0.0 0.0
    1.3 0.0 0.0 1.0 0.0
    0.0 1.0 1.0 0.0 0.0
    >>> print(encoder.describe())
    0: category of 3
    1: number, sometimes missing
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_bins": [Interval(Integral, 0, None, closed="left")],
        "strategy": [StrOptions({"quantile", "tree"})],
        "task": [StrOptions({"auto", "classification", "regression"})],
        "categorical_features": [StrOptions({"auto"}), "array-like"],
        "max_categories": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self, *, n_bins: int = 16, strategy: str = "quantile", task: str = "auto",
        categorical_features: Any = "auto", max_categories: int = 100, random_state: Any = None,
    ):  # fmt: skip
        self.n_bins = n_bins
        self.strategy = strategy
        self.task = task
        self.categorical_features = categorical_features
        self.max_categories = max_categories
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find out what columns hold, and learn how to encode them.

        Parameters
        ----------
        X : {frame, array-like} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), default=None
            For ``strategy='tree'``.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If a column holds dates, several values in a cell, complex or infinite numbers, or a
            mixture, or if nothing is left of the table.
        """
        self._fit(X, y)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """`fit` and `transform`, reading the table once.

        Parameters
        ----------
        X : {frame, array-like} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), default=None

        Returns
        -------
        ndarray of shape (n_samples, n_columns), float32
        """
        return self._encode(*self._fit(X, y))

    def transform(self, X: Any) -> np.ndarray:
        """Encode.

        Parameters
        ----------
        X : {frame, array-like} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_columns), float32

        Raises
        ------
        ValueError
            If ``X`` has other columns than in `fit`, or a column of numbers holds something else.
        """
        check_is_fitted(self)
        X = self._table(X, reset=False)
        numbers = np.empty((X.shape[0], len(self.numbers_)))
        for k, j in enumerate(self.numbers_):
            numbers[:, k] = self._as_numbers(X, j)
        return self._encode(numbers, [as_categories(column_of(X, j)) for j in self.categories_])

    def describe(self) -> str:
        """What each column was taken for: a line each.

        Returns
        -------
        str

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        """
        check_is_fitted(self)
        names = getattr(self, "feature_names_in_", range(self.n_features_in_))
        return "\n".join(f"{name}: {self._in_words(j)}" for j, name in enumerate(names))

    def _in_words(self, j: int) -> str:
        if j in self.dropped_:
            return f"dropped, because {self.dropped_[j]}"
        if j in self.categories_:
            found = self.categories_[j]
            words = f"category of {len(found.codes)}"
            words += ", and one for rare and new ones" if found.rare != _UNKNOWN else ""
            return words + (", sometimes missing" if found.missing != _UNKNOWN else "")
        k = self.numbers_.index(j)
        n_bins = max(len(self.bins_.bin_edges_[k]) - 1, 0) if self.n_bins else 0
        words = f"number, {n_bins} bin{'s' * (n_bins > 1)}" if n_bins else "number"
        return words + (", sometimes missing" if k in self.holes_ else "")

    # --- fitting

    @fit_context(prefer_skip_nested_validation=True)
    def _fit(self, X: Any, y: Any) -> tuple[np.ndarray, list[list]]:
        """Learns; returns columns of numbers, and the values of columns of categories."""
        X = self._table(X, reset=True)
        told = self._told_categories(X)
        self.numbers_: list[int] = []
        self.categories_: dict[int, Categories] = {}
        self.dropped_: dict[int, str] = {}
        numbers, categories = [], []
        for j, name in enumerate(names_of(X)):
            column = column_of(X, j)
            if holds_numbers(column, name) and j not in told:
                values = as_numbers(column)
                if _is_constant(values):
                    self.dropped_[j] = "it has one value only"
                else:
                    self.numbers_.append(j)
                    numbers.append(values)
            else:
                objects = as_categories(column)
                if self._learn_categories(j, objects):
                    categories.append(objects)
        if not self.numbers_ and not self.categories_:
            raise ValueError(
                f"X has no column to learn from, with n_samples = {X.shape[0]}:\n{self.describe()}"
            )
        matrix = np.array(numbers).T if numbers else np.empty((X.shape[0], 0))
        self._learn_numbers(matrix, y)
        return matrix, categories

    def _learn_numbers(self, numbers: np.ndarray, y: Any) -> None:
        self.holes_: list[int] = np.flatnonzero(np.isnan(numbers).any(axis=0)).tolist()
        if not self.numbers_:
            return
        self.scaler_ = RobustScaleSmoothClip().fit(numbers)
        if self.n_bins:
            self.bins_ = PiecewiseLinearEncoder(
                self.n_bins, strategy=self.strategy, task=self.task, random_state=self.random_state
            ).fit(numbers, y)

    def _learn_categories(self, j: int, values: list) -> bool:
        """Whether the column is kept."""
        counts = Counter(values)
        missing = [value for value in counts if is_missing(value)]
        n_missing = sum(counts.pop(value) for value in missing)
        if len(counts) + bool(n_missing) < 2:
            self.dropped_[j] = "it has one value only"
            return False
        singles = sum(count == 1 for count in counts.values())
        if singles > max(_SINGLES * len(values), self.max_categories):
            self.dropped_[j] = "nearly every value occurs once"
            return False
        kept = sorted(counts, key=lambda value: (-counts[value], str(value)))
        has_rare = len(kept) + bool(n_missing) > self.max_categories
        kept = sorted(kept[: self.max_categories - 1] if has_rare else kept, key=str)
        n = len(kept)
        rare = n if has_rare else _UNKNOWN
        n += has_rare
        absent = n if n_missing else _UNKNOWN
        n += bool(n_missing)
        codes = {value: code for code, value in enumerate(kept)}
        self.categories_[j] = Categories(codes, rare, absent, 1 if n == len(kept) == 2 else n)
        return True

    def _told_categories(self, X: Any) -> set[int]:
        """Positions in ``categorical_features``."""
        if isinstance(self.categorical_features, str):
            return set()
        names = names_of(X)
        told = set()
        for one in self.categorical_features:
            if one in names:
                told.add(names.index(one))
            elif isinstance(one, Integral) and 0 <= int(one) < len(names):
                told.add(int(one))
            else:
                raise ValueError(
                    f"categorical_features must name columns of X, which has no {one!r}; it has "
                    f"{names}."
                )
        return told

    def _table(self, X: Any, reset: bool) -> Any:
        if issparse(X):
            raise ValueError("X is sparse, and a table must not be; use X.toarray().")
        if not hasattr(X, "shape"):
            X = np.array(X, dtype=object)
        require_table(X)
        validate_data(self, X, reset=reset, skip_check_array=True)
        for what, n in zip(("sample(s)", "feature(s)"), X.shape, strict=True):
            if n == 0:
                raise ValueError(
                    f"X has 0 {what} (shape={X.shape}) while a minimum of 1 is required."
                )
        return X

    # --- encoding

    def _as_numbers(self, X: Any, j: int) -> np.ndarray:
        try:
            return as_numbers(column_of(X, j))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Column {names_of(X)[j]!r} of X held numbers in fit, and now holds something "
                f"else: {error}"
            ) from error

    def _encode(self, numbers: np.ndarray, categories: Sequence[list]) -> np.ndarray:
        n, n_numbers = numbers.shape
        n_bins = sum(map(len, self._edges())) - n_numbers if n_numbers else 0
        widths = [found.n_columns for found in self.categories_.values()]
        out = np.zeros((n, n_numbers + n_bins + len(self.holes_) + sum(widths)), np.float32)
        if n_numbers:
            scaled = self.scaler_.transform(numbers)
            np.copyto(out[:, :n_numbers], scaled, where=~np.isnan(scaled), casting="same_kind")
        at = n_numbers
        if n_bins:
            self.bins_.encode_into(numbers, out[:, at : at + n_bins])
        at += n_bins
        for k in self.holes_:
            out[:, at] = np.isnan(numbers[:, k])
            at += 1
        for found, values in zip(self.categories_.values(), categories, strict=True):
            _one_hot(found, values, out[:, at : at + found.n_columns])
            at += found.n_columns
        return out

    def _edges(self) -> list:
        """Of each number; what has no bins counts as a single edge."""
        if not self.n_bins:
            return [[0.0]] * len(self.numbers_)
        return [edges if len(edges) else [0.0] for edges in self.bins_.bin_edges_]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the matrix's columns.

        Parameters
        ----------
        input_features : array-like of str of shape (n_features,), default=None
            Names of the columns, if `fit` saw none.

        Returns
        -------
        ndarray of shape (n_columns,), dtype object
        """
        check_is_fitted(self)
        names = check_feature_names_in(self, input_features)
        found = [names[j] for j in self.numbers_]
        for j, edges in zip(self.numbers_, self._edges(), strict=True):
            found += [f"{names[j]}_bin{i}" for i in range(len(edges) - 1)]
        found += [f"{names[self.numbers_[k]]}_missing" for k in self.holes_]
        for j, categories in self.categories_.items():
            if categories.n_columns == 1:
                found.append(f"{names[j]}_{list(categories.codes)[1]}")
                continue
            found += [f"{names[j]}_{value}" for value in categories.codes]
            found += [f"{names[j]}_rare"] * (categories.rare != _UNKNOWN)
            found += [f"{names[j]}_missing"] * (categories.missing != _UNKNOWN)
        return np.array(found, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.transformer_tags.preserves_dtype = []
        tags.target_tags.required = self.strategy == "tree" and bool(self.n_bins)
        return tags


def _is_constant(values: np.ndarray) -> bool:
    first = values[0]
    return bool(np.isnan(values).all() if np.isnan(first) else (values == first).all())


def _one_hot(found: Categories, values: list, out: np.ndarray) -> None:
    """1 in the column of each row's category, in ``out``, which is 0."""
    get = found.codes.get
    codes = np.array([get(value, _UNKNOWN) for value in values], np.intp)
    unknown = np.flatnonzero(codes == _UNKNOWN)
    for i in unknown.tolist():
        codes[i] = found.missing if is_missing(values[i]) else found.rare
    rows = np.flatnonzero(codes != _UNKNOWN)
    if found.n_columns == 1:
        out[rows, 0] = 2 * codes[rows] - 1
    else:
        out[rows, codes[rows]] = 1
