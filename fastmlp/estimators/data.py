"""Data as users give them and as engines take them, and the checks in between."""

import sys
from contextlib import suppress
from importlib import import_module
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from fastmlp._arrays import GpuArray, on_gpu
from fastmlp._sklearn import get_config, safe_indexing, validate_data
from fastmlp.engine import capabilities, to_host
from fastmlp.training.run import is_finite


class DataSet(NamedTuple):
    """A data set in the form that an engine takes, and as the user gave it.

    Parameters
    ----------
    X : array, CSR matrix or GpuArray
        Checked.
    y : ndarray
        Encoded; see `fastmlp.estimators.targets`.
    sample_weight : ndarray or None
        Times the weights of the classes.
    given : tuple
        X, y and weights of the user's, ``y`` in the form that `predict` answers in.
    rows : ndarray or None
        Which rows of all of these; None for all.
    """

    X: Any
    y: np.ndarray
    sample_weight: np.ndarray | None
    given: tuple
    rows: np.ndarray | None = None

    def part(self, rows: np.ndarray) -> "DataSet":
        """Some rows, without a copy of anything."""
        return self._replace(rows=rows)

    def of_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Encoded targets and weights of the rows."""
        if self.rows is None:
            return self.y, self.sample_weight
        weight = None if self.sample_weight is None else self.sample_weight[self.rows]
        return self.y[self.rows], weight

    def as_given(self) -> tuple:
        """X, y and weights for scorers and callbacks, which expect the user's containers."""
        if self.rows is None:
            return self.given
        return tuple(_some_rows(array, self.rows) for array in self.given)


def checked(estimator: Any, X: Any, *y: Any, reset: bool, **options: Any) -> Any:
    """scikit-learn's checks of ``X``, or of ``X`` and ``y``.

    For samples on a GPU a stand-in of their shape is checked, and they are wrapped; the engine
    looks for NaN and infinity itself.

    Parameters
    ----------
    estimator : estimator
        Its ``n_features_in_`` and ``feature_names_in_`` are set, or compared with.
    reset : bool
        Whether to set them.
    options : dict
        For `sklearn.utils.validation.validate_data`.

    Returns
    -------
    X : array, CSR matrix or GpuArray
    y : ndarray, if it was given
    """
    targets = [on_host(array) for array in y]
    array, numbers = _as_array(estimator, X, reset), [_column(target) for target in targets]
    if _is_plain(estimator, array, numbers, reset):
        if _is_frame(X):
            _check_names(estimator, X, reset)
        elif reset:
            estimator.__dict__.pop("feature_names_in_", None)
            estimator.n_features_in_ = X.shape[1]
        return (array, *numbers) if targets else array
    if not on_gpu(X):
        options |= {"accept_sparse": ["csr", "csc"], "reset": reset}
        found = validate_data(estimator, X, *targets, **options)
        if not targets and found.dtype == object:  # scikit-learn lets a list with None pass
            found = validate_data(estimator, X, **options | {"dtype": np.float64})
        return (_by_rows(found[0]), *found[1:]) if targets else _by_rows(found)
    if not capabilities(estimator.device).arrays_on_device:
        raise ValueError(
            "X is on a GPU, but device='cpu'; use device='cuda', or copy X to the host."
        )
    wrapped = GpuArray.wrap(X)
    stand_in = np.broadcast_to(np.zeros((), wrapped.dtype), wrapped.shape)
    found = validate_data(
        estimator, stand_in, *targets, ensure_all_finite=False, reset=reset, **options
    )
    return (wrapped, *found[1:]) if targets else wrapped


def has_expected_shape(estimator: Any, X: Any) -> bool:
    """Whether ``X`` is a plain array of the features that the model was fitted to."""
    fitted = estimator.__dict__
    return (
        _is_matrix(X)
        and X.shape[1] == fitted.get("n_features_in_")
        and "feature_names_in_" not in fitted
    )


def _as_array(estimator: Any, X: Any, reset: bool) -> Any:
    """What scikit-learn's checks would make of ``X``, where that can be told at a glance.

    That is an array itself, a frame's numbers, or those of a list to predict for; None for others.
    """
    if _is_frame(X):
        return X.to_numpy() if all(map(_is_of_numbers, set(X.dtypes.tolist()))) else None
    if reset:
        return X
    if "feature_names_in_" in estimator.__dict__:
        return None
    with suppress(ValueError):  # rows of several lengths
        return np.asarray(X) if type(X) is list else X
    return None


def _is_of_numbers(dtype: Any) -> bool:
    """Whether a column's type is one of NumPy's that makes an array of numbers."""
    return isinstance(dtype, np.dtype) and dtype.kind in "iuf"


def _column(y: Any) -> Any:
    """Targets, those of a pandas series as an array."""
    pandas = sys.modules.get("pandas")
    return y.to_numpy() if pandas is not None and type(y) is pandas.Series else y


def _is_frame(X: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and type(X) is pandas.DataFrame


def _check_names(estimator: Any, X: Any, reset: bool) -> None:
    """scikit-learn's look at a frame's columns, which takes longer than that at a few rows."""
    names = estimator.__dict__.get("feature_names_in_")
    if reset or names is None or X.columns.tolist() != names.tolist():
        validate_data(estimator, X, reset=reset, skip_check_array=True)


def on_host(array: Any) -> Any:
    """Targets or weights as scikit-learn's checks can take them."""
    return to_host(array) if on_gpu(array) else array


def where_it_belongs(result: np.ndarray, X: Any) -> Any:
    """``result`` on the GPU of ``X`` if scikit-learn's array-API convention says so."""
    if type(X) is np.ndarray or result.dtype.kind not in "biuf" or not on_gpu(X):
        return result
    if not get_config()["array_api_dispatch"]:
        return result
    return _namespace(X).asarray(result, device=X.device)


def _namespace(X: Any) -> Any:
    if hasattr(X, "__array_namespace__"):
        return X.__array_namespace__()
    return import_module(type(X).__module__.partition(".")[0])


def _is_plain(estimator: Any, X: Any, targets: list, reset: bool) -> bool:
    """Whether scikit-learn's checks would pass and change nothing, seen at a glance.

    They take longer than a small network's epoch; what this does not know is left to them.
    """
    if not _is_matrix(X):
        return False
    if not reset and X.shape[1] != estimator.__dict__.get("n_features_in_"):
        return False
    if X.dtype not in (np.float32, np.float64):  # in the machine's byte order
        return False
    for y in targets:
        plain = type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "biuf"
        if not plain or len(y) != len(X) or not y.dtype.isnative:
            return False
        if y.dtype.kind == "f" and not is_finite(y):
            return False
    return is_finite(X)


def _is_matrix(X: Any) -> bool:
    """Whether ``X`` is a plain array with rows and columns."""
    return type(X) is np.ndarray and X.ndim == 2 and X.size > 0


def _by_rows(X: Any) -> Any:
    """``X`` in a form whose rows an engine can read: CSC becomes CSR."""
    return X.tocsr() if sparse.issparse(X) else X


def _some_rows(array: Any, rows: np.ndarray) -> Any:
    """Some rows of what a user gave as X, y or weights, in its container if that has rows."""
    if array is None or isinstance(array, Number):  # one weight for all samples
        return array
    if sparse.issparse(array) and array.format not in ("csr", "csc"):
        array = array.tocsr()  # COO, DIA and BSR have none
    elif isinstance(array, memoryview) or not hasattr(array, "__getitem__"):
        array = np.asarray(array)
    return safe_indexing(array, rows)
