"""Estimators of tests: trained without a word about convergence, and taken apart."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning


def unconverged(function, *args, **kwargs):
    """What a function returns that trains for a few epochs: only of other things may it warn."""
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        return function(*args, **kwargs)


def quietly(function, *args, **kwargs):
    """What a function returns, whatever it warns of."""
    with warnings.catch_warnings(action="ignore"):
        return function(*args, **kwargs)


def fit(model, *args, **kwargs):
    """``model.fit``, `unconverged`."""
    return unconverged(model.fit, *args, **kwargs)


def join(coefs, intercepts):
    """All parameters in one vector, layer by layer."""
    pairs = zip(coefs, intercepts, strict=True)
    return np.concatenate([np.append(W.ravel(), b) for W, b in pairs])


def flat(model):
    """`join` of a model's parameters."""
    return join(model.coefs_, model.intercepts_)


def require_same(a, b, where="model"):
    """Equal in value and type, down to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            require_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            require_same(one, other, f"{where}[{i}]")
    elif isinstance(a, np.random.RandomState):
        require_same(a.get_state(), b.get_state(), where)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, where
        np.testing.assert_array_equal(a, b, err_msg=where)
    elif hasattr(a, "__dict__") and not callable(a):
        require_same(vars(a), vars(b), f"{where}.{type(a).__name__}")
    else:
        np.testing.assert_equal(a, b, err_msg=where)
