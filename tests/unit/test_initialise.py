"""weight_init: distributions, shapes, and what a user's function may return."""

import numpy as np
import pytest
from models import fit
from scipy import stats

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.initialisers import INITIALISERS
from fastmlp.network import Network

FAN_IN, FAN_OUT = 120, 80
NETWORK = Network((FAN_IN, FAN_OUT, FAN_IN, 3), "tanh")
DISTRIBUTIONS = {
    "glorot_uniform": stats.uniform(-np.sqrt(6 / 200), 2 * np.sqrt(6 / 200)),
    "glorot_normal": stats.norm(0, np.sqrt(2 / 200)),
    "he_uniform": stats.uniform(-np.sqrt(6 / 120), 2 * np.sqrt(6 / 120)),
    "he_normal": stats.norm(0, np.sqrt(2 / 120)),
    "lecun_normal": stats.norm(0, np.sqrt(1 / 120)),
}
rng = np.random.RandomState(0)
X = rng.normal(size=(60, 4))
TARGET = X[:, 0]
PARAMS = {"hidden_layer_sizes": (6,), "random_state": 0, "max_iter": 2}


def initialise(weight_init, dtype="float64"):
    flat = NETWORK.initialise(np.random.RandomState(1), dtype, weight_init)
    return NETWORK.unflatten(flat)


@pytest.mark.parametrize("name", INITIALISERS)
def test_distribution(name):
    coefs, intercepts = initialise(name)
    assert all((intercept == 0).all() for intercept in intercepts)
    if name == "orthogonal":
        np.testing.assert_allclose(coefs[0].T @ coefs[0], np.eye(FAN_OUT), atol=1e-12)
        np.testing.assert_allclose(coefs[1] @ coefs[1].T, np.eye(FAN_OUT), atol=1e-12)
        one = Network((1, 1), "relu")  # either sign, half of the time
        draws = [one.initialise(np.random.RandomState(i), "f8", name)[0] for i in range(100)]
        assert 30 < np.sum(draws) / 2 + 50 < 70
    elif name == "zeros":
        assert not np.any(coefs[0])
    else:
        weights = coefs[0].ravel()
        assert stats.kstest(weights, DISTRIBUTIONS[name].cdf).pvalue > 0.01
        assert weights.std() == pytest.approx(DISTRIBUTIONS[name].std(), rel=0.03)


def test_auto_is_scikit_learns():
    from sklearn.neural_network import MLPRegressor as Theirs

    flat = NETWORK.initialise(np.random.RandomState(1), "float64", "auto")
    assert (NETWORK.initialise(np.random.RandomState(1), "float64") == flat).all()
    theirs = Theirs(
        hidden_layer_sizes=(FAN_OUT, FAN_IN), activation="tanh", solver="sgd",
        learning_rate_init=1e-300, random_state=1,
    ).partial_fit(np.ones((2, FAN_IN)), np.zeros((2, 3)))  # fmt: skip
    np.testing.assert_array_equal(
        flat, NETWORK.flatten(theirs.coefs_, theirs.intercepts_, "float64")
    )


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("estimator", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("weight_init", [*INITIALISERS, lambda n, m, state: state.rand(n, m)])
def test_every_start_trains(estimator, weight_init, solver):
    y = TARGET > 0 if estimator is MLPClassifier else TARGET
    model = fit(estimator(weight_init=weight_init, solver=solver, **PARAMS), X, y)
    assert np.isfinite(model.loss_)


def test_a_function_gets_the_fans_and_the_random_state():
    """With a rate of almost nothing, the first layer stays what the function returned."""
    calls = []

    def weight_init(fan_in, fan_out, random_state):
        calls.append((fan_in, fan_out))
        return random_state.uniform(size=(fan_in, fan_out)).astype(np.float32).tolist()

    model = MLPRegressor(weight_init=weight_init, learning_rate_init=1e-300, **PARAMS)
    model.partial_fit(X, TARGET)
    assert calls == [(4, 6), (6, 1)]
    expected = np.random.RandomState(0).uniform(size=(4, 6)).astype(np.float32)
    np.testing.assert_array_equal(model.coefs_[0], expected)
    model.partial_fit(X, TARGET)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("weight_init", "message"),
    [
        (lambda n, m, _: np.zeros((m, n)), r"\(fan_in, fan_out\) = \(4, 6\), got.* \(6, 4\)"),
        (lambda n, m, _: np.full((n, m), np.nan), "weight_init must return finite numbers"),
        ("glorot", "'weight_init' parameter of MLPRegressor"),
    ],
)
def test_wrong_initialiser(weight_init, message):
    with pytest.raises(ValueError, match=message):
        MLPRegressor(weight_init=weight_init, **PARAMS).fit(X, TARGET)
