"""A search of fastmlp's and scikit-learn's own, side by side: both must come to the same."""

import re
import warnings
from collections import Counter

import numpy as np


def outcome(search, X, y, **params):
    """(what it raised or None, what it warned of) of a search's fit."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        try:
            search.fit(X, y, **params)
            error = None
        except Exception as raised:
            error = type(raised), str(raised)
    # without the addresses of objects
    words = [re.sub(r" at 0x\w+", "", str(w.message)) for w in caught]
    return error, Counter(zip((w.category for w in caught), words, strict=True))


def assert_equal_results(ours, theirs):
    """``cv_results_`` with the same keys in the same order, and the same bits, times excepted."""
    assert list(ours.cv_results_) == list(theirs.cv_results_)
    for name, values in theirs.cv_results_.items():
        if name.endswith("_time"):
            continue
        if name == "params" or values.dtype == object:
            assert repr(ours.cv_results_[name]) == repr(values)
        else:
            np.testing.assert_array_equal(ours.cv_results_[name], values, err_msg=name)
            assert ours.cv_results_[name].dtype == values.dtype


def assert_equal_searches(ours, theirs, X, y, *, counts=True, **params):
    """Errors, warnings, results and the best model are the same.

    With ``counts``, warnings are as many; else preprocessing, which is fitted less often, may warn
    less often.
    """
    expected, found = outcome(theirs, X, y, **params), outcome(ours, X, y, **params)
    assert found[0] == expected[0]
    if expected[0] is not None:  # other fits, which had begun, may have warned of something
        return
    if counts:
        assert found[1] == expected[1]
    else:
        assert set(found[1]) == set(expected[1])
    assert_equal_results(ours, theirs)
    for name in ("best_index_", "best_params_", "best_score_", "n_splits_", "multimetric_"):
        assert hasattr(ours, name) == hasattr(theirs, name)
        np.testing.assert_equal(
            repr(getattr(ours, name, None)), repr(getattr(theirs, name, None)), err_msg=name
        )
    assert repr(ours.scorer_) == repr(theirs.scorer_)
    assert hasattr(ours, "best_estimator_") == hasattr(theirs, "best_estimator_")
    if hasattr(theirs, "best_estimator_"):
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
        assert repr(ours.best_estimator_) == repr(theirs.best_estimator_)
