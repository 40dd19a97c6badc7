"""RobustScaleSmoothClip: scaling by quartiles, with outliers squeezed."""

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin

from fastmlp._sklearn import check_is_fitted, validate_data
from fastmlp.tabular.columns import missing_as_none

_LIMIT = 3.0  # of scaled features


class RobustScaleSmoothClip(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Scale features by their quartiles, and squeeze outliers smoothly into (-3, 3).

    A value ``x`` becomes ``z / sqrt(1 + (z / 3)^2)`` with
    ``z = (x - median) / (q75 - q25)``.  A column whose quartiles coincide is divided by
    ``(max - min) / 2`` instead, and a constant one becomes 0.  NaN are left out of the statistics,
    and stay.  From RealMLP (Holzmüller, Grinsztajn and Steinwart, 2024).

    Attributes
    ----------
    center_ : ndarray of shape (n_features,)
        Medians.
    factor_ : ndarray of shape (n_features,)
        What the distances from the medians are multiplied by.
    n_features_in_ : int
        Features seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if ``X`` had any.

    Examples
    --------
    >>> from fastmlp import RobustScaleSmoothClip
    >>> X = [[0.0], [1.0], [2.0], [3.0], [1e9]]
    >>> RobustScaleSmoothClip().fit_transform(X).round(2).ravel().tolist()
    [-0.95, -0.49, 0.0, 0.49, 3.0]
    """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find medians and quartiles.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Numbers; NaN are allowed.
        y : None
            Ignored.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If ``X`` is sparse, infinite or not numeric.
        """
        X = self._validate(X, reset=True)
        X = np.where(np.isnan(X).all(axis=0), 0.0, X)
        low, q25, median, q75, high = np.nanquantile(X, [0, 0.25, 0.5, 0.75, 1], axis=0)
        width = np.where(q75 > q25, q75 - q25, (high - low) / 2)
        self.center_ = median
        usable = width >= np.finfo(width.dtype).tiny
        self.factor_ = np.divide(1, width, out=np.zeros_like(width), where=usable)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Scale and clip.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            float32 if ``X`` is, else float64.

        Raises
        ------
        ValueError
            As `fit`, or if ``X`` has another number of features.
        """
        check_is_fitted(self)
        X = self._validate(X, reset=False)
        largest = np.sqrt(np.finfo(X.dtype).max)  # a larger one would be squared to infinity
        with np.errstate(over="ignore"):
            z = (X - self.center_.astype(X.dtype)) * self.factor_.astype(X.dtype)
        z = np.clip(z, -largest, largest)
        return z / np.sqrt(1 + (z / _LIMIT) ** 2)

    def _validate(self, X: Any, reset: bool) -> np.ndarray:
        if hasattr(X, "dtypes") and any(getattr(dtype, "kind", "") == "O" for dtype in X.dtypes):
            X = missing_as_none(X)
        return validate_data(
            self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan"
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
