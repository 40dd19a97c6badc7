"""Multilayer perceptrons that train as fast as the hardware allows.

`MLPClassifier` and `MLPRegressor` take the place of scikit-learn's.  Importing this package
compiles nothing; the kernels come compiled, and `warmup` compiles what is missing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastmlp._version import __version__
from fastmlp.estimators import InconsistentVersionWarning, MLPClassifier, MLPRegressor
from fastmlp.export import skl2onnx as _skl2onnx

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from fastmlp.ensemble import MLPEnsembleClassifier, MLPEnsembleRegressor
    from fastmlp.export.c99 import to_c
    from fastmlp.io import from_sklearn, to_sklearn
    from fastmlp.tabular import (
        PiecewiseLinearEncoder,
        RobustScaleSmoothClip,
        TabularMLPClassifier,
        TabularMLPRegressor,
        tabular_pipeline,
    )

__all__ = [
    "InconsistentVersionWarning",
    "MLPClassifier",
    "MLPEnsembleClassifier",
    "MLPEnsembleRegressor",
    "MLPRegressor",
    "PiecewiseLinearEncoder",
    "RobustScaleSmoothClip",
    "TabularMLPClassifier",
    "TabularMLPRegressor",
    "__version__",
    "from_sklearn",
    "jit_predictor",
    "show_versions",
    "tabular_pipeline",
    "to_c",
    "to_sklearn",
    "warmup",
]


# imported when asked for: they need other packages, or more of scikit-learn than the estimators
_MODULES = ("inspect", "io", "model_selection", "onnx", "plotting")
_FROM = {
    "MLPEnsembleClassifier": "ensemble",
    "MLPEnsembleRegressor": "ensemble",
    "PiecewiseLinearEncoder": "tabular",
    "RobustScaleSmoothClip": "tabular",
    "TabularMLPClassifier": "tabular",
    "TabularMLPRegressor": "tabular",
    "from_sklearn": "io",
    "tabular_pipeline": "tabular",
    "to_c": "export.c99",
    "to_sklearn": "io",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"fastmlp.{name}")
    if name in _FROM:
        return getattr(import_module(f"fastmlp.{_FROM[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_FROM})


def show_versions() -> None:
    """Print the versions of all libraries involved, and what was found of processor and GPU.

    Examples
    --------
    >>> import fastmlp
    >>> fastmlp.show_versions()  # doctest: +ELLIPSIS
    <BLANKLINE>
    System:
        python: 3...
    """
    from fastmlp import _versions

    for section, entries in _versions.describe().items():
        print(f"\n{section}:")
        for name, value in entries.items():
            print(f"    {name}: {value}")


def warmup() -> None:
    """Compile the kernels that are not there compiled for this processor, and keep them.

    Calling it is optional: without it, a fit compiles what it needs.

    Examples
    --------
    >>> import fastmlp
    >>> fastmlp.warmup()
    """
    from fastmlp import engine

    engine.warmup()


def jit_predictor(model: MLPClassifier | MLPRegressor) -> "Callable[[np.ndarray], np.ndarray]":
    """Turn a fitted model into a function for use inside ``@numba.njit`` code.

    Parameters
    ----------
    model : MLPClassifier or MLPRegressor
        A fitted estimator.  Its parameters are copied; later changes do not matter.

    Returns
    -------
    function
        Takes one sample, a one-dimensional array of n_features numbers, and returns a new
        one-dimensional array in the model's element type: the targets of a regressor (several
        quantiles as the network gives them, not sorted), the
        outputs of a classifier's last layer (class probabilities; for two classes the
        probability of the second, for multilabel targets one probability per label).  It checks
        the sample's length and nothing else.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model was not fitted.
    ValueError
        If the model's arrays are not contiguous float32 or float64.

    Examples
    --------
    >>> import numba, numpy as np, fastmlp
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> model = fastmlp.MLPRegressor(solver="lbfgs", random_state=0).fit(X, X[:, 0] ** 2)
    >>> predict = fastmlp.jit_predictor(model)
    >>> @numba.njit
    ... def area(n):
    ...     total = 0.0
    ...     for i in range(n):
    ...         total += predict(np.array([(i + 0.5) / n]))[0] / n
    ...     return total
    >>> bool(abs(area(100) - 1 / 3) < 0.01)
    True
    """
    from fastmlp.estimators import fitted_model

    return fitted_model(model).row_predictor().compiled()


_skl2onnx.register_when_imported()
