"""Multilayer perceptrons that train as fast as the hardware allows.

`MLPClassifier` and `MLPRegressor` take the place of scikit-learn's.  Importing this package
compiles nothing; the kernels are compiled at the first fit, or by `warmup`, and cached on disk.
"""

from fastmlp.estimators import MLPClassifier, MLPRegressor

__version__ = "0.1.0.dev0"
__all__ = ["MLPClassifier", "MLPRegressor", "warmup"]


def warmup() -> None:
    """Compile the kernels for float32 and float64, or load them from the disk cache.

    Calling it is optional: without it, the first `fit` in a new environment takes that long more.

    Examples
    --------
    >>> import fastmlp
    >>> fastmlp.warmup()
    """
    from fastmlp import engine

    engine.warmup()
