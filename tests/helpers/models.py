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
