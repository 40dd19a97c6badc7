"""PiecewiseLinearEncoder: numbers as positions within bins."""

from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from fastmlp._sklearn import (
    Interval,
    StrOptions,
    check_feature_names_in,
    check_is_fitted,
    check_random_state,
    fit_context,
    type_of_target,
    validate_data,
)

_ROWS_AT_ONCE = 2048  # whose columns stay in the processor's cache


class PiecewiseLinearEncoder(TransformerMixin, BaseEstimator):
    """Numbers as positions within bins, from which a network learns steep functions soon.

    A feature is cut into bins with edges ``b_0 < b_1 < ... < b_T`` and becomes ``T`` columns

        ``e_t = min(1, max(0, (x - b_(t-1)) / (b_t - b_(t-1))))``,

    which are 1 for the bins below the one that ``x`` is in, ``x``'s position within that one, and 0
    for those above.  A layer behind it is a piecewise linear function of the feature.  From
    Gorishniy, Rubachev and Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning"
    (2022), whose first and last bin go on linearly beyond the edges, where here values are clipped.

    Parameters
    ----------
    n_bins : int, default=16
        Most bins of a feature.  It has fewer if edges coincide.
    strategy : {'quantile', 'tree'}, default='quantile'
        Edges at quantiles, with the same share of the samples in each bin; or at the thresholds of
        a decision tree that predicts the target from this feature alone, with at most ``n_bins``
        leaves.
    task : {'auto', 'classification', 'regression'}, default='auto'
        What the tree predicts; 'auto' goes by ``y``, whose whole numbers count as classes.
    subsample : int or None, default=20000
        Edges are found on that many samples, drawn at random, where there are more; None uses all.
    random_state : int, RandomState instance or None, default=None
        Source of the draw.

    Attributes
    ----------
    bin_edges_ : list of ndarray of shape (n_bins_of_the_feature + 1,)
        Edges of each feature.  A feature that is constant or missing everywhere has none, and no
        columns.
    n_features_in_ : int
        Features seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    See Also
    --------
    sklearn.preprocessing.SplineTransformer : Smooth functions of a feature.
    sklearn.preprocessing.KBinsDiscretizer : Which bin, without the position.

    Examples
    --------
    >>> from fastmlp import PiecewiseLinearEncoder
    >>> X = [[0.0], [1.0], [2.0], [6.0]]
    >>> encoder = PiecewiseLinearEncoder(n_bins=2).fit(X)
    >>> encoder.bin_edges_[0].tolist()
    [0.0, 1.5, 6.0]
    >>> encoder.transform([[0.75], [1.5], [100.0]]).tolist()
    [[0.5, 0.0], [1.0, 0.0], [1.0, 1.0]]
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_bins": [Interval(Integral, 1, None, closed="left")],
        "strategy": [StrOptions({"quantile", "tree"})],
        "task": [StrOptions({"auto", "classification", "regression"})],
        "subsample": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self, n_bins: int = 16, *, strategy: str = "quantile", task: str = "auto",
        subsample: int | None = 20_000, random_state: Any = None,
    ):  # fmt: skip
        self.n_bins = n_bins
        self.strategy = strategy
        self.task = task
        self.subsample = subsample
        self.random_state = random_state

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the edges.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Numbers; NaN are allowed, and left out.
        y : array-like of shape (n_samples,), default=None
            Class labels or values, for ``strategy='tree'``.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If ``X`` is sparse, infinite or not numeric, or if ``strategy='tree'`` has no ``y``.
        """
        if self.strategy == "quantile":
            X = self._validate(X, reset=True)
        elif y is None:
            raise ValueError(
                "strategy='tree' requires y to be passed, but the target y is None; give it, or "
                "set strategy='quantile'."
            )
        else:
            X, y = validate_data(self, X, y, reset=True, dtype=[np.float64, np.float32],
                                 ensure_all_finite="allow-nan", y_numeric=False)  # fmt: skip
        if self.subsample is not None and len(X) > self.subsample:
            random = check_random_state(self.random_state)
            rows = random.choice(len(X), self.subsample, replace=False)
            X, y = X[rows], None if self.strategy == "quantile" else y[rows]
        find = self._quantiles if self.strategy == "quantile" else self._thresholds(y)
        self.bin_edges_ = [find(X[:, j], ~np.isnan(X[:, j])) for j in range(X.shape[1])]
        return self

    def _quantiles(self, x: np.ndarray, known: np.ndarray) -> np.ndarray:
        if not known.any():
            return np.empty(0)
        return _edges(np.quantile(x[known], np.linspace(0, 1, self.n_bins + 1)))

    def _thresholds(self, y: np.ndarray) -> "_Thresholds":
        is_regression = self.task == "regression" or (
            self.task == "auto" and type_of_target(y).startswith("continuous")
        )
        return _Thresholds(self.n_bins, y, is_regression)

    def transform(self, X: Any) -> np.ndarray:
        """Encode.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_columns)
            float32 if ``X`` is, else float64, in [0, 1]; a feature's columns are side by side.
            NaN become 0 in all columns of their feature, as the smallest value does.

        Raises
        ------
        ValueError
            As `fit`, or if ``X`` has another number of features.
        """
        check_is_fitted(self)
        X = self._validate(X, reset=False)
        out = np.empty((len(X), sum(self._widths())), X.dtype)
        self.encode_into(X, out)
        return out

    def encode_into(self, X: np.ndarray, out: np.ndarray) -> None:
        """`transform` of a checked array, into one that is there.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            float32 or float64.
        out : ndarray of shape (n_samples, n_columns)
            float32 or float64.
        """
        feature = np.repeat(np.arange(len(self.bin_edges_)), self._widths())
        if not feature.size:
            return
        left = np.concatenate([edges[:-1] for edges in self.bin_edges_]).astype(X.dtype)
        width = np.concatenate([np.diff(edges) for edges in self.bin_edges_])
        scale = (1 / width).astype(X.dtype)
        for start in range(0, len(X), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            z = X[rows].take(feature, axis=1)
            z -= left
            z *= scale
            np.fmin(np.fmax(z, 0, out=z), 1, out=out[rows])  # NaN become 0

    def _widths(self) -> list[int]:
        """Columns of each feature."""
        return [max(len(edges) - 1, 0) for edges in self.bin_edges_]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns: a feature's name and the number of the bin.

        Parameters
        ----------
        input_features : array-like of str of shape (n_features,), default=None
            Names of the features, if `fit` saw none.

        Returns
        -------
        ndarray of shape (n_columns,), dtype object
        """
        check_is_fitted(self)
        names = check_feature_names_in(self, input_features)
        columns = zip(names, self._widths(), strict=True)
        return np.array([f"{name}_{i}" for name, n in columns for i in range(n)], dtype=object)

    def _validate(self, X: Any, reset: bool) -> np.ndarray:
        return validate_data(
            self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan"
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.required = self.strategy == "tree"
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _edges(values: np.ndarray) -> np.ndarray:
    """Those that differ, as float64, and none if there is one only."""
    distinct = np.unique(values.astype(np.float64))
    usable = np.diff(distinct, prepend=-np.inf) >= np.finfo(values.dtype).tiny
    distinct = distinct[usable]
    return distinct if len(distinct) > 1 else np.empty(0)


class _Thresholds:
    """Edges at a tree's thresholds.

    Parameters
    ----------
    n_bins : int
        Most leaves.
    y : ndarray of shape (n_samples,)
    is_regression : bool
    """

    def __init__(self, n_bins: int, y: np.ndarray, is_regression: bool):
        kind = DecisionTreeRegressor if is_regression else DecisionTreeClassifier
        least = max(1, len(y) // (4 * n_bins))  # a quarter of a bin of equal ones
        self._tree = kind(max_leaf_nodes=max(n_bins, 2), min_samples_leaf=least, random_state=0)
        self._y, self._n_bins = y, n_bins

    def __call__(self, x: np.ndarray, known: np.ndarray) -> np.ndarray:
        if not known.any():
            return np.empty(0)
        x = x[known]
        ends = [x.min(), x.max()]
        if self._n_bins == 1 or ends[0] == ends[1]:
            return _edges(np.array(ends))
        tree = self._tree.fit(x[:, None], self._y[known]).tree_
        inner = tree.threshold[tree.children_left >= 0]
        inner = inner[(inner > ends[0]) & (inner < ends[1])]
        return _edges(np.array([ends[0], *inner, ends[1]]))
