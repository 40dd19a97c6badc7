"""Activations, losses and optimizers through the estimators: what may be chosen, what not."""

import math

import models
import numba
import numpy as np
import pytest
import reference
from models import flat
from sklearn.base import clone

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.network import Network

rng = np.random.RandomState(0)
X = rng.normal(size=(120, 5))
TARGET = X[:, 0] * X[:, 1]
LABELS = np.array(["a", "b", "c"])[np.argmax(X[:, :3], axis=1)]
QUICK = {"hidden_layer_sizes": (8, 6), "max_iter": 5, "random_state": 0}


def fit(model, y, data=X):
    return models.fit(model, data, y)


# --- activations


@pytest.mark.parametrize("activation", ["softplus", ["gelu", "relu"], ("step", "mish")], ids=str)
def test_activations_of_a_fitted_model(activation):
    model = fit(MLPRegressor(activation=activation, **QUICK), TARGET)
    expected = reference.predict(flat(model), (5, 8, 6, 1), activation, "squared_error", X).ravel()
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(model.predict(X[:3]), expected[:3], rtol=1e-12, atol=1e-13)
    assert fastmlp.jit_predictor(model)(X[0])[0] == pytest.approx(expected[0], rel=1e-12)
    again = fit(clone(model), TARGET)
    np.testing.assert_array_equal(flat(again), flat(model))


def test_each_layer_starts_as_its_activation_wants():
    """scikit-learn's bound has a 2 for logistic units and a 6 for others."""
    model = fit(
        MLPRegressor(
            activation=["relu", "logistic"], hidden_layer_sizes=(50, 40), random_state=0,
            solver="lbfgs", max_iter=1, max_fun=1,
        ),
        TARGET,
    )  # fmt: skip
    random_state = np.random.RandomState(0)
    starts = []
    for fan_in, fan_out, factor in ((5, 50, 6), (50, 40, 2), (40, 1, 2)):
        bound = math.sqrt(factor / (fan_in + fan_out))
        starts.append(random_state.uniform(-bound, bound, (fan_in, fan_out)))
        random_state.uniform(-bound, bound, fan_out)
    for coef, start in zip(model.coefs_, starts, strict=True):
        np.testing.assert_allclose(coef, start, atol=0.5 * np.abs(start).max())
        assert np.abs(coef).max() < 1.2 * np.abs(start).max()


def own_tanh(z):
    return math.tanh(z)


@numba.njit
def own_tanh_derivative(z):
    return 1 - np.tanh(z) ** 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_pair_of_functions(solver, dtype):
    """Of whatever type its results are: a literal makes float64 of float32."""
    scale = 1.0
    pair = (lambda z: scale * own_tanh_compiled(z), own_tanh_derivative)
    models = [
        fit(MLPRegressor(activation=a, solver=solver, **QUICK), TARGET, X.astype(dtype))
        for a in ("tanh", (own_tanh, own_tanh_derivative), [pair, "tanh"])
    ]
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    for model in models[1:]:
        np.testing.assert_allclose(flat(model), flat(models[0]), rtol=tolerance, atol=tolerance)
        prediction = models[0].predict(X[:3].astype(dtype))
        np.testing.assert_allclose(
            model.predict(X[:3].astype(dtype)), prediction, rtol=tolerance, atol=tolerance
        )


own_tanh_compiled = numba.njit(own_tanh)


@pytest.mark.parametrize("pair", [(np.sin, np.cos), (math.sin, math.cos)])
def test_ufuncs_and_functions_of_math_are_formulas_too(pair):
    models = [
        fit(MLPRegressor(activation=a, **QUICK), TARGET)
        for a in (pair, (lambda z: math.sin(z), lambda z: math.cos(z)))
    ]
    np.testing.assert_array_equal(flat(models[0]), flat(models[1]))
    loss = (np.hypot, lambda z, y: z / math.hypot(z, y))
    fit(MLPRegressor(loss=loss, **QUICK), TARGET)


def test_the_derivative_of_a_pair_is_the_one_used():
    """A gradient of zero everywhere leaves the hidden layers alone."""
    model = MLPRegressor(activation=(own_tanh, lambda z: 0 * z), alpha=0, **QUICK)
    start = fit(clone(model).set_params(learning_rate_init=1e-300), TARGET)
    fit(model, TARGET)
    np.testing.assert_array_equal(model.coefs_[0], start.coefs_[0])
    assert (model.coefs_[-1] != start.coefs_[-1]).all()


BAD_ACTIVATIONS = [
    (["relu"], r"activation must have one entry for each of the 2 hidden layers.* got 1"),
    (["relu", "gauss"], r"activation must consist of names among .* got 'gauss'"),
    (["relu", 3], r"activation must consist of names among .* got 3"),
    (3, "'activation' parameter"),
    ((math.log, math.exp), "activation: .* fails at 0"),
    ((abs, lambda z: np.float64(1) / z), "activation: both functions of .* must be finite at 0.0"),
    (
        (own_tanh, lambda z: __import__("math").exp(z)),
        "activation: Numba cannot compile these functions",
    ),
]


@pytest.mark.parametrize(("activation", "message"), BAD_ACTIVATIONS)
def test_bad_activation(activation, message):
    model = MLPRegressor(activation=activation, **QUICK)
    with pytest.raises(ValueError, match=message):
        model.fit(X, TARGET)
    assert not hasattr(model, "coefs_")


# --- optimizers


@pytest.mark.parametrize("solver", ["adam", "rmsprop", "nadam", "lion"])
def test_parameters_of_a_solver_reach_its_rule(solver):
    params = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-5, "rho": 0.7, "weight_decay": 0.2}
    model = MLPRegressor(
        solver=solver, activation="tanh", batch_size=40, shuffle=False, learning_rate_init=0.01,
        **params, **QUICK,
    )  # fmt: skip
    constants = (0.7, 1e-5, 0.0) if solver == "rmsprop" else (0.8, 0.95, 1e-5)
    widths = (5, 8, 6, 1)
    w = Network(widths, "tanh").initialise(np.random.RandomState(0), float)
    optimizer = reference.OPTIMIZERS[solver](w.size, 0.01, *constants)
    for _ in range(5):
        for start in range(0, 120, 40):
            rows = slice(start, start + 40)
            _, gradient = reference.objective(
                w, widths, "tanh", "squared_error", X[rows], TARGET[rows, None], 1e-4
            )
            w = optimizer.step(w - 0.01 * 0.2 * w * reference.is_weight(widths), gradient)
    np.testing.assert_allclose(flat(fit(model, TARGET)), w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", ["sgd", "rmsprop", "nadam", "lion"])
def test_partial_fit_goes_on_where_it_was(solver):
    """As one fit over the same epochs, without shuffling."""
    options = {"solver": solver, "shuffle": False, "weight_decay": 0.1, "batch_size": 50}
    whole = fit(MLPRegressor(**options, **QUICK), TARGET)
    parts = MLPRegressor(**options, **QUICK)
    for _ in range(5):
        parts.partial_fit(X, TARGET)
    np.testing.assert_array_equal(flat(parts), flat(whole))


def test_full_batch_gradient_descent():
    model = MLPRegressor(
        solver="sgd", momentum=0.0, batch_size=120, activation="tanh", learning_rate_init=0.1,
        **QUICK,
    )  # fmt: skip
    widths = (5, 8, 6, 1)
    w = Network(widths, "tanh").initialise(np.random.RandomState(0), float)
    for _ in range(5):
        described = (widths, "tanh", "squared_error", X, TARGET[:, None], 1e-4)
        w = w - 0.1 * reference.objective(w, *described)[1]
    np.testing.assert_allclose(flat(fit(model, TARGET)), w, rtol=1e-9, atol=1e-12)


BAD_OPTIMIZERS = [
    ({"weight_decay": 0.1, "solver": "lbfgs"}, "weight_decay does not work with solver='lbfgs'"),
    ({"weight_decay": -1}, "'weight_decay' parameter"),
    ({"rho": 1.0}, "'rho' parameter"),
    ({"solver": "sophia"}, "'solver' parameter"),
]


@pytest.mark.parametrize(("params", "message"), BAD_OPTIMIZERS, ids=str)
def test_bad_optimizer(params, message):
    with pytest.raises(ValueError, match=message):
        MLPRegressor(**params).fit(X, TARGET)


# --- losses

COUNTS = np.random.RandomState(1).poisson(2.0, 120)
REGRESSION = {
    "absolute_error": ({}, TARGET),
    "huber": ({"huber_delta": reference.CONSTANT["huber"]}, TARGET),
    "quantile": ({"quantile": reference.CONSTANT["quantile"]}, TARGET),
    "log_cosh": ({}, TARGET),
    "gamma": ({}, np.exp(TARGET)),
}


def gradient_descent(model, widths, loss, y):
    """Three full batches from the model's own start."""
    w = Network(widths, "tanh").initialise(np.random.RandomState(0), float)
    losses = []
    for _ in range(model.max_iter):
        value, gradient = reference.objective(w, widths, "tanh", loss, X, y, 1e-4)
        losses.append(value)
        w = w - 0.1 * gradient
    return w, losses


def full_batch(kind, **params):
    return kind(
        solver="sgd", momentum=0.0, batch_size=120, activation="tanh", learning_rate_init=0.1,
        **QUICK | params,
    )  # fmt: skip


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("loss", REGRESSION)
def test_regression_loss(loss, outputs):
    params, y = REGRESSION[loss]
    y = np.stack([y] * outputs, axis=1) if outputs > 1 else y
    model = fit(full_batch(MLPRegressor, loss=loss, **params), y)
    w, losses = gradient_descent(model, (5, 8, 6, outputs), loss, y.reshape(120, -1))
    np.testing.assert_allclose(model.loss_curve_, losses, rtol=1e-9)
    np.testing.assert_allclose(flat(model), w, rtol=1e-9, atol=1e-12)
    expected = reference.predict(w, (5, 8, 6, outputs), "tanh", loss, X)
    np.testing.assert_allclose(model.predict(X).reshape(120, -1), expected, rtol=1e-8)


MULTICLASS = np.argmax(X[:, :3], axis=1)
MULTILABEL = (X[:, :2] > 0).astype(int)
CLASSES = {
    "multiclass": (MULTICLASS, (5, 8, 6, 3), ""),
    "binary": (X[:, 0] > 0, (5, 8, 6, 1), "binary_"),
    "multilabel": (MULTILABEL, (5, 8, 6, 2), "binary_"),
}


@pytest.mark.parametrize("loss", ["focal", "squared_error"])
@pytest.mark.parametrize("task", CLASSES)
def test_classification_loss(loss, task):
    y, widths, prefix = CLASSES[task]
    name = prefix + {"squared_error": "brier"}.get(loss, loss)
    model = full_batch(MLPClassifier, loss=loss, focal_gamma=1.5,
                       label_smoothing=reference.SMOOTHING.get(name, 0.0))  # fmt: skip
    fit(model, y)
    encoded = y if task == "multiclass" else y.reshape(120, -1).astype(float)
    w, losses = gradient_descent(model, widths, name, encoded)
    np.testing.assert_allclose(model.loss_curve_, losses, rtol=1e-9)
    np.testing.assert_allclose(flat(model), w, rtol=1e-9, atol=1e-12)
    probabilities = model.predict_proba(X)[:, -widths[-1] :]
    expected = reference.predict(w, widths, "tanh", name, X)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-8)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_label_smoothing_of_the_log_loss(task):
    """Targets of 0.05 and 0.95; early stopping and predictions go by the labels themselves."""
    y, widths, _ = CLASSES[task]
    model = fit(full_batch(MLPClassifier, label_smoothing=0.1), y)
    soft = 0.9 * y.reshape(120, -1) + 0.05
    w = Network(widths, "tanh").initialise(np.random.RandomState(0), float)
    for epoch in range(5):
        zs, _ = reference.forward(w, widths, "tanh", X)
        value = (np.logaddexp(0, zs[-1]) - soft * zs[-1]).sum() / 120
        penalty = 0.5e-4 * sum((W**2).sum() for W, _ in reference.split(w, widths)) / 120
        assert model.loss_curve_[epoch] == pytest.approx(value + penalty, rel=1e-10)
        objective = (widths, "tanh", "binary_log_loss", X, soft, 1e-4)
        w = w - 0.1 * reference.objective(w, *objective)[1]
    np.testing.assert_allclose(flat(model), w, rtol=1e-9, atol=1e-12)
    model = fit(MLPClassifier(label_smoothing=0.1, early_stopping=True, **QUICK), y)
    assert 0 <= model.best_validation_score_ <= 1


def test_label_smoothing_of_several_classes():
    model = fit(full_batch(MLPClassifier, label_smoothing=0.1), LABELS)
    w, losses = gradient_descent(model, (5, 8, 6, 3), "cross_entropy", MULTICLASS)
    np.testing.assert_allclose(model.loss_curve_, losses, rtol=1e-9)
    np.testing.assert_allclose(flat(model), w, rtol=1e-9, atol=1e-12)


def test_focal_loss_without_gamma_is_the_log_loss():
    for y, _, _ in CLASSES.values():
        focal, log = (
            fit(full_batch(MLPClassifier, loss=loss, focal_gamma=0.0), y)
            for loss in ("focal", "log_loss")
        )
        np.testing.assert_allclose(flat(focal), flat(log), rtol=1e-10, atol=1e-13)


OWN = {
    "squared_error": (lambda z, y: 0.5 * (z - y) ** 2, lambda z, y: z - y),
    "brier": (lambda p, y: 0.5 * (p - y) ** 2, lambda p, y: p - y),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_pair_of_functions_as_loss(dtype):
    data, tolerance = X.astype(dtype), 1e-3 if dtype == np.float32 else 1e-10
    pairs = [(MLPRegressor, TARGET, OWN["squared_error"])]
    pairs += [(MLPClassifier, y, OWN["brier"]) for y, _, _ in CLASSES.values()]
    for kind, y, own in pairs:
        mine, known = (fit(full_batch(kind, loss=loss), y, data) for loss in (own, "squared_error"))
        np.testing.assert_allclose(flat(mine), flat(known), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(mine.loss_curve_, known.loss_curve_, rtol=tolerance)


def test_several_quantiles():
    from sklearn.metrics import d2_pinball_score

    noise = np.random.RandomState(0).normal(size=(2000, 1))
    data = np.random.RandomState(1).uniform(-1, 1, (2000, 1))
    y = (data + noise).ravel()
    levels = [0.1, 0.9, 0.5]
    model = MLPRegressor("quantile", (16,), quantile=levels, random_state=0, max_iter=60,
                         learning_rate_init=0.01, early_stopping=True)  # fmt: skip
    fit(model, y, data)
    prediction = model.predict(data)
    assert prediction.shape == (2000, 3)
    assert model.n_outputs_ == 3
    assert (np.diff(prediction[:, [0, 2, 1]], axis=1) >= 0).all()
    np.testing.assert_allclose((y[:, None] < prediction).mean(axis=0), levels, atol=0.05)
    np.testing.assert_array_equal(model.predict(data[:2]).shape, (2, 3))
    scores = [d2_pinball_score(y, prediction[:, k], alpha=q) for k, q in enumerate(levels)]
    assert model.score(data, y) == pytest.approx(np.mean(scores), rel=1e-12)
    assert 0 < model.best_validation_score_ < 1


def test_one_quantile_is_scored_by_its_pinball_loss():
    from sklearn.metrics import d2_pinball_score

    model = fit(MLPRegressor("quantile", quantile=0.8, **QUICK), TARGET)
    weight = np.random.RandomState(0).uniform(size=120)
    expected = d2_pinball_score(TARGET, model.predict(X), alpha=0.8, sample_weight=weight)
    assert model.score(X, TARGET, weight) == pytest.approx(expected)


BAD_LOSSES = [
    (MLPRegressor, {"loss": "hinge"}, TARGET, "'loss' parameter"),
    (MLPRegressor, {"loss": ["huber"]}, TARGET, "loss must be a name or a pair of functions"),
    (MLPRegressor, {"loss": (abs, abs)}, TARGET, "loss: .* fails at 0.5, 1.0"),
    (MLPRegressor, {"huber_delta": 0.0}, TARGET, "'huber_delta' parameter"),
    (MLPRegressor, {"quantile": 1.0}, TARGET, "'quantile' parameter"),
    (MLPRegressor, {"loss": "quantile", "quantile": [0.5, 1.0]}, TARGET, "quantile must consist"),
    (MLPRegressor, {"loss": "quantile", "quantile": []}, TARGET, "quantile must consist"),
    (MLPRegressor, {"loss": "quantile", "quantile": [0.5]}, X[:, :2], "needs a one-dimensional y"),
    (MLPRegressor, {"loss": "gamma"}, COUNTS, "valid range of the loss 'gamma': y must be > 0"),
    (MLPClassifier, {"loss": "hinge"}, LABELS, "'loss' parameter"),
    (MLPClassifier, {"focal_gamma": -1.0}, LABELS, "'focal_gamma' parameter"),
    (MLPClassifier, {"label_smoothing": 1.0}, LABELS, "'label_smoothing' parameter"),
    (
        MLPClassifier,
        {"label_smoothing": 0.1, "loss": "focal"},
        LABELS,
        "label_smoothing does not work with loss='focal'",
    ),
]


@pytest.mark.parametrize(("kind", "params", "y", "message"), BAD_LOSSES, ids=lambda p: str(p)[:40])
def test_bad_loss(kind, params, y, message):
    model = kind(**params)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)
    assert not hasattr(model, "coefs_")
