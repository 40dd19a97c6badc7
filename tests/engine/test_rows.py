"""The short way for a few rows, and `jit_predictor`: same numbers, same checks, fast."""

import os
import subprocess
import sys
import time
import warnings

import numba
import numpy as np
import pytest
from sklearn.base import is_classifier
from sklearn.exceptions import NotFittedError

import fastmlp
from fastmlp.estimators.prediction import FEW_ROWS

rng = np.random.RandomState(0)
X = rng.normal(size=(60, 5))
TASKS = {
    "binary": (fastmlp.MLPClassifier, X[:, 0] > 0),
    "multiclass": (fastmlp.MLPClassifier, np.argmax(X[:, :3], axis=1)),
    "multilabel": (fastmlp.MLPClassifier, (X[:, :2] > 0).astype(int)),
    "regression": (fastmlp.MLPRegressor, X[:, 0]),
    "multioutput": (fastmlp.MLPRegressor, X[:, :2]),
}


def fitted(task, dtype="float64", **params):
    kind, y = TASKS[task]
    model = kind(**{"max_iter": 5, "random_state": 0, "hidden_layer_sizes": (9, 4)} | params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X.astype(dtype), y)


def outputs(model, data):
    method = "predict_proba" if hasattr(model, "predict_proba") else "predict"
    return getattr(model, method)(data)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("hidden", [(), (3,), (9, 4, 7)], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_few_rows_equal_many_rows(task, hidden, activation, dtype):
    model = fitted(task, dtype, hidden_layer_sizes=hidden, activation=activation)
    data = X.astype(dtype)
    whole = outputs(model, data)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    for n in (1, 3, FEW_ROWS):
        part = outputs(model, data[:n])
        assert part.dtype == whole.dtype
        assert part.shape == whole[:n].shape
        np.testing.assert_allclose(part, whole[:n], rtol=tolerance, atol=tolerance)
        if is_classifier(model):
            np.testing.assert_array_equal(model.predict(data[:n]), model.predict(data)[:n])
    function = fastmlp.jit_predictor(model)
    got = np.array([function(row) for row in data[:4]])
    expected = whole[:4, 1:] if task == "binary" else whole[:4].reshape(4, -1)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_checks_are_kept():
    model = fitted("regression")
    for bad in (np.nan, np.inf, -np.inf):
        row = X[:1].copy()
        row[0, 3] = bad
        with pytest.raises(ValueError, match="Input X contains"):
            model.predict(row)
    with pytest.raises(ValueError, match="X has 4 features"):
        model.predict(X[:1, :4])
    with pytest.raises(ValueError, match="Expected 2D array"):
        model.predict(X[0])
    with pytest.raises(NotFittedError):
        fastmlp.MLPRegressor().predict(X[:1])
    with pytest.raises(NotFittedError):
        fastmlp.jit_predictor(fastmlp.MLPRegressor())


def test_changes_to_the_model_are_seen():
    model = fitted("regression", hidden_layer_sizes=(4,), activation="relu")
    row = X[:1]
    model.predict(row)
    model.intercepts_[-1] += 5
    np.testing.assert_allclose(model.predict(row), model.predict(X)[:1])
    model.coefs_[0] = np.zeros_like(model.coefs_[0])
    np.testing.assert_allclose(model.predict(row), model.predict(X)[:1])
    model.coefs_[0] = np.asfortranarray(rng.normal(size=model.coefs_[0].shape))
    np.testing.assert_allclose(model.predict(row), model.predict(X)[:1])
    model.set_params(activation="tanh")
    np.testing.assert_allclose(model.predict(row), model.predict(X)[:1])
    model.partial_fit(X, X[:, 1])
    np.testing.assert_allclose(model.predict(row), model.predict(X)[:1])
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.set_params(hidden_layer_sizes=(3, 3), max_iter=3).fit(X, X[:, 1])
    np.testing.assert_allclose(model.predict(row), model.predict(X)[:1])


def test_other_layouts_of_a_row():
    model = fitted("regression")
    expected = model.predict(X)[:2]
    for data in (X[:4:2], np.asfortranarray(X[:2]), np.repeat(X, 2, 1)[:2, ::2], X[1::-1][::-1]):
        np.testing.assert_allclose(model.predict(data)[0], expected[0])


def test_jit_predictor_inside_compiled_code_keeps_its_own_weights():
    model = fitted("multiclass")
    predict = fastmlp.jit_predictor(model)
    expected = model.predict_proba(X)[:, 2].sum()

    @numba.njit
    def total(data):
        value = 0.0
        for i in range(len(data)):
            value += predict(data[i])[2]
        return value

    assert total(X) == pytest.approx(expected)
    model.coefs_[0][:] = 0
    del model
    assert total(X) == pytest.approx(expected)
    with pytest.raises(ValueError, match="as many elements as the model has features"):
        predict(X[0, :3])


CACHED = """
import numba, numpy as np, warnings
from numba.core.errors import NumbaWarning
import fastmlp
warnings.simplefilter("ignore")
warnings.simplefilter("error", NumbaWarning)
X = np.random.RandomState(0).normal(size=(50, 3))
predict = fastmlp.jit_predictor(fastmlp.MLPRegressor(max_iter=2).fit(X, X[:, 0]))

@numba.njit(cache=True)
def first(x):
    return predict(x)[0]

try:
    print(first(X[0]))
except NumbaWarning as warning:
    print(warning)
"""


def test_numba_caches_no_code_that_calls_a_predictor(tmp_path):
    """It would find the addresses of another process in its cache."""
    program = tmp_path / "program.py"
    program.write_text(CACHED)
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        out = subprocess.run(
            [sys.executable, str(program)], env=env, capture_output=True, text=True, check=True
        ).stdout
        assert "Cannot cache compiled function" in out


def best_time(function, n, repeats=15):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(n)
        times.append((time.perf_counter() - start) / n)
    return min(times)


def test_latency():
    """64-100-10, one row: 12 us through predict_proba, 1 us inside compiled code.

    The limits are four times that, because other tests run at the same time.
    """
    data = rng.normal(size=(200, 64)).astype(np.float32)
    model = fastmlp.MLPClassifier(max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(data, np.arange(200) % 10)
    row = data[:1]
    predict = fastmlp.jit_predictor(model)

    def public(n):
        for _ in range(n):
            model.predict_proba(row)

    @numba.njit
    def inside(n):
        value = np.float32(0)
        for i in range(n):
            value += predict(data_row)[i % 10]
        return value

    data_row = row[0]
    public(1)
    inside(1)
    assert best_time(public, 300) < 4 * 12e-6
    assert best_time(inside, 3000) < 4 * 1e-6
