"""The same numbers as scikit-learn, live: every combination of what a user can ask for.

float64, one seed, 20 epochs, relative 1e-7 against the installed scikit-learn.  Also float32 (to
its own rounding), and the scikit-learn behaviours that are documented as bugs and kept.
"""

import warnings
from itertools import product

import numpy as np
import pytest
import sklearn.neural_network as theirs
from models import fit, quietly, unconverged
from scipy import sparse

import fastmlp as ours
from fastmlp._sklearn import squared_error_is_mean
from fastmlp.functions import LOSSES

ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
TASKS = ("binary", "multiclass", "multilabel", "regression", "multioutput", "poisson")
BATCHES = ("auto", 16, 61)
N = 61


def problem(task):
    rng = np.random.RandomState(7)
    X = rng.normal(size=(N, 5))
    z = X @ rng.normal(size=(5, 3)) + 0.3 * rng.normal(size=(N, 3))
    y = {
        "binary": np.array(["no", "yes"])[(z[:, 0] > 0).astype(int)],
        "multiclass": z.argmax(axis=1) * 3 - 1,
        "multilabel": (z > 0).astype(int),
        "regression": z[:, 0],
        "multioutput": z[:, :2],
        "poisson": rng.poisson(np.exp(np.clip(z[:, 0], -2, 2))),
    }[task]
    return X, y


def estimators(task, **params):
    if task in ("binary", "multiclass", "multilabel"):
        return theirs.MLPClassifier(**params), ours.MLPClassifier(**params)
    loss = "poisson" if task == "poisson" else "squared_error"
    return (
        theirs.MLPRegressor(loss=loss, **params),
        ours.MLPRegressor(loss=loss, **params),
    )


def close(actual, expected, tolerance=1e-7):
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=1e-300)
    assert np.abs(actual - expected).max(initial=0) <= tolerance * scale


def assert_same_model(sk, fast, X, tolerance=1e-7):
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_"):
        assert getattr(fast, name) == getattr(sk, name), name
    close(fast.loss_, sk.loss_, tolerance)
    for mine, other in zip(
        (*fast.coefs_, *fast.intercepts_), (*sk.coefs_, *sk.intercepts_), strict=True
    ):
        assert mine.dtype == other.dtype
        close(mine, other, tolerance)
    for name in ("loss_curve_", "validation_scores_", "best_loss_", "best_validation_score_"):
        assert hasattr(fast, name) == hasattr(sk, name), name
        if getattr(sk, name, None) is None:
            assert getattr(fast, name, None) is None, name
        else:
            close(getattr(fast, name), getattr(sk, name), tolerance)
    if hasattr(sk, "predict_proba"):
        close(fast.predict_proba(X), sk.predict_proba(X), tolerance)
        np.testing.assert_array_equal(fast.predict(X), sk.predict(X))
        np.testing.assert_array_equal(fast.classes_, sk.classes_)
    else:
        close(fast.predict(X), sk.predict(X), tolerance)


STOCHASTIC = [
    (solver, batch, early, how)
    for solver, batch, early, how in product(
        ("sgd", "adam"), BATCHES, (False, True), ("fit", "warm_start", "partial_fit")
    )
    if not (early and how == "partial_fit")  # refused by both
]
LBFGS = [("lbfgs", "auto", False, how) for how in ("fit", "warm_start")]


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize(("solver", "batch", "early", "how"), STOCHASTIC + LBFGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("task", TASKS)
def test_trajectory(task, activation, solver, batch, early, how, weighted):
    X, y = problem(task)
    weight = np.random.RandomState(1).uniform(0.2, 3, N) if weighted else None
    models = estimators(
        task,
        hidden_layer_sizes=(7, 4),
        activation=activation,
        solver=solver,
        batch_size=batch,
        early_stopping=early,
        validation_fraction=0.2,
        warm_start=how == "warm_start",
        learning_rate_init=0.01,
        max_iter=10 if how == "warm_start" else 20,
        random_state=3,
        alpha=0.01,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Got `batch_size`")
        for model in models:
            if how == "partial_fit":
                labels = np.unique(y) if task in ("binary", "multiclass") else None
                extra = {} if labels is None else {"classes": labels}
                if task == "multilabel":
                    extra = {"classes": np.arange(3)}
                for start in (0, 10, 0, 20, 5):
                    rows = slice(start, start + 40)
                    model.partial_fit(
                        X[rows], y[rows], None if weight is None else weight[rows], **extra
                    )
            else:
                fit(model, X, y, weight)
            if how == "warm_start":
                fit(model, X, y, weight)
    assert_same_model(*models, X)


@pytest.mark.parametrize("size", [1e-46, 1e60, 1e-300, 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("how", ["sgd", "adam", "lbfgs", "early_stopping", "partial_fit"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "multioutput"])
def test_weights_of_any_size(task, how, dtype, size):
    """A factor of all weights is one of alpha: scikit-learn fits the same with ordinary ones."""
    X, y = problem(task)
    weight = np.random.RandomState(1).uniform(0.2, 3, N)
    sk, fast = estimators(
        task,
        hidden_layer_sizes=(7,),
        solver=how if how in ("sgd", "lbfgs") else "adam",
        early_stopping=how == "early_stopping",
        validation_fraction=0.2,
        learning_rate_init=0.01,
        batch_size=20,
        max_iter=15,
        random_state=3,
        alpha=0.01,
    )
    fast.set_params(alpha=0.01 * size)
    for model, weights in ((sk, weight), (fast, weight * size)):
        extra = {"classes": np.unique(y)} if how == "partial_fit" and task != "multioutput" else {}
        train = model.partial_fit if how == "partial_fit" else model.fit
        unconverged(train, X.astype(dtype), y, weights, **extra)
    if how == "lbfgs" and dtype == np.float32:  # which scikit-learn's takes its steps in
        for mine, other in zip(fast.coefs_, sk.coefs_, strict=True):
            np.testing.assert_allclose(mine, other, rtol=0.01, atol=0.01)
    else:
        assert_same_model(sk, fast, X, 1e-7 if dtype == np.float64 else 2e-5)


@pytest.mark.parametrize("schedule", ["constant", "invscaling", "adaptive"])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_settings(schedule, momentum, nesterov):
    X, y = problem("multiclass")
    models = estimators(
        "multiclass",
        hidden_layer_sizes=6,
        solver="sgd",
        learning_rate=schedule,
        momentum=momentum,
        nesterovs_momentum=nesterov,
        power_t=0.3,
        learning_rate_init=0.05,
        tol=1e-3,
        n_iter_no_change=1,
        max_iter=60,
        random_state=0,
    )
    for model in models:
        fit(model, X, y)
    assert_same_model(*models, X)
    assert models[1]._optimizer.learning_rate == models[0]._optimizer.learning_rate


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("seed", [0, np.random.RandomState(5)], ids=["int", "instance"])
def test_random_state_is_consumed_in_the_same_order(shuffle, seed):
    import copy

    X, y = problem("binary")
    models = estimators("binary", shuffle=shuffle, early_stopping=True, max_iter=8, batch_size=10)
    after = []
    for model in models:
        state = copy.deepcopy(seed)
        fit(model.set_params(random_state=state), X, y)
        after.append(model._random_state.randint(1 << 30))
    assert after[0] == after[1]
    assert_same_model(*models, X)


@pytest.mark.parametrize("format", ["csr", "csc"])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("container", ["matrix", "array"])
def test_sparse_input(format, solver, container):
    X, y = problem("multiclass")
    X = np.where(np.abs(X) < 0.7, 0, X)
    X = getattr(sparse, f"{format}_{container}")(X)
    models = estimators("multiclass", solver=solver, max_iter=20, random_state=0, batch_size=20)
    for model in models:
        fit(model, X, y)
    assert_same_model(*models, X)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_float32_agrees_to_its_own_rounding(task, solver):
    X, y = problem(task)
    models = estimators(task, solver=solver, max_iter=10, random_state=0, hidden_layer_sizes=(9,))
    for model in models:
        fit(model, X.astype(np.float32), y)
    assert_same_model(*models, X.astype(np.float32), tolerance=2e-5)
    assert models[1].coefs_[0].dtype == np.float32


def test_lbfgs_on_float32_trains_in_float64():
    X, y = problem("regression")
    models = estimators("regression", solver="lbfgs", max_iter=5, random_state=0)
    for model in models:
        fit(model, X.astype(np.float32), y)
    assert_same_model(*models, X.astype(np.float32), tolerance=1e-3)  # theirs runs in float32
    assert models[1].coefs_[0].dtype == np.float64


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_prediction_dtype(task):
    X, y = problem(task)
    for train_type, predict_type in product((np.float32, np.float64, int), repeat=2):
        models = estimators(task, max_iter=3, random_state=0)
        for model in models:
            fit(model, X.astype(train_type), y)
        method = "predict_proba" if task == "multiclass" else "predict"
        sk, fast = (getattr(model, method)(X.astype(predict_type)) for model in models)
        assert fast.dtype == sk.dtype, (train_type, predict_type)
        close(fast, sk, 1e-4)


def test_kept_bug_unimproved_warm_start_returns_last_weights():
    """After a first early-stopped fit scikit-learn's best weights alias the current ones."""
    X, y = problem("binary")
    models = estimators(
        "binary", early_stopping=True, warm_start=True, max_iter=30, random_state=0,
        learning_rate_init=0.05, validation_fraction=0.3,
    )  # fmt: skip
    for model in models:
        fit(model, X, y)
        scores = len(model.validation_scores_)
        best = model.best_validation_score_
        fit(model, X, y)
        assert max(model.validation_scores_[scores:]) <= best  # the case in question
    assert_same_model(*models, X)


def test_kept_bug_regressor_offers_partial_fit_for_lbfgs():
    X, y = problem("regression")
    models = estimators("regression", solver="lbfgs", max_iter=5, random_state=0)
    for model in models:
        unconverged(model.partial_fit, X, y)
        unconverged(model.partial_fit, X, y)
    assert_same_model(*models, X)


def test_kept_bug_optimizer_settings_are_frozen_by_the_first_partial_fit():
    X, y = problem("regression")
    models = estimators("regression", solver="sgd", random_state=0)
    for model in models:
        model.partial_fit(X, y)
        model.set_params(learning_rate_init=0.5).partial_fit(X, y)
    assert_same_model(*models, X)


@pytest.mark.parametrize("params", [{}, {"early_stopping": True}, {"solver": "sgd",
                         "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 2}],
                         ids=str)  # fmt: skip
def test_verbose_prints_the_same(params, capsys):
    X, y = problem("multiclass")
    printed = []
    for model in estimators("multiclass", verbose=True, random_state=0, max_iter=60, **params):
        fit(model, X, y)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "Iteration 1, loss" in printed[1]


def test_validation_scores_are_scikit_learns_metrics():
    from sklearn.metrics import r2_score

    from fastmlp.estimators.targets import _r2

    rng = np.random.RandomState(0)
    for shape in ((20, 1), (20, 3)):
        y, p, w = rng.normal(size=shape), rng.normal(size=shape), rng.uniform(size=20)
        for weight in (None, w):
            assert _r2(y, p, weight) == pytest.approx(r2_score(y, p, sample_weight=weight))
        constant = np.ones(shape)
        for prediction in (p, constant):
            assert _r2(constant, prediction, None) == r2_score(constant, prediction)
    assert np.isnan(_r2(y, np.full_like(y, np.inf), None))


@pytest.mark.parametrize(
    ("version", "is_mean"),
    [("1.9.0", True), ("1.9.1", True), ("1.10.dev0", False), ("1.10.0", False), ("2.0", False)],
)
def test_which_scikit_learn_averages_the_squared_error(version, is_mean):
    assert squared_error_is_mean(version) == is_mean
    assert LOSSES["squared_error"].mean_over_outputs == squared_error_is_mean()


@pytest.mark.parametrize("is_mean", [True, False])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_squared_error_of_several_outputs_follows_scikit_learn(solver, is_mean, monkeypatch):
    """scikit-learn itself with either reduction, as before 1.10 and since."""
    from sklearn.neural_network._multilayer_perceptron import LOSS_FUNCTIONS

    def half_squared_error(y, z, sample_weight=None):
        outputs = np.average((y - z) ** 2, weights=sample_weight, axis=0)
        return 0.5 * (outputs.mean() if is_mean else outputs.sum())

    monkeypatch.setitem(LOSS_FUNCTIONS, "squared_error", half_squared_error)
    row = LOSSES["squared_error"]._replace(mean_over_outputs=is_mean)
    monkeypatch.setitem(LOSSES, "squared_error", row)
    rng = np.random.RandomState(0)
    X = rng.normal(size=(60, 4))
    y = X @ rng.normal(size=(4, 3))
    settings = {"hidden_layer_sizes": (5,), "solver": solver, "max_iter": 8, "random_state": 0}
    models = [kind(**settings) for kind in (ours.MLPRegressor, theirs.MLPRegressor)]
    for model in models:
        quietly(model.fit, X, y)
    model, expected = models
    np.testing.assert_allclose(model.loss_, expected.loss_, rtol=1e-7)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-6, atol=1e-7)
