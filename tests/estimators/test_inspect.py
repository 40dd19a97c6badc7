"""The glass box against the oracle, the engines, and what the estimators do."""

import math

import numpy as np
import pandas as pd
import pytest
import reference
from models import fit, flat, join
from problems import make_problem
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.inspect import backward, check_gradients, forward, initialise, step
from fastmlp.optimizers import OPTIMIZERS

N, FEATURES = 23, 4
WIDTHS = (FEATURES, 6, 5)
DTYPES = {np.float64: 1e-12, np.float32: 2e-5}
QUICK = {"hidden_layer_sizes": WIDTHS[1:], "random_state": 0}
NAMES = {"brier": "squared_error", "cross_entropy": "log_loss"}
SMOOTH = [loss for loss in reference.SMOOTHING if loss in LOSSES]


def model_for(loss, **params):
    """An estimator that minimises a row of `LOSSES`, with the oracle's constants."""
    if LOSSES[loss].out_activation in ("identity", "exp"):
        constant = {"huber": "huber_delta", "quantile": "quantile"}.get(loss)
        own = {constant: reference.CONSTANT[loss]} if constant else {}
        return MLPRegressor(loss=loss, **QUICK | own | params)
    name = loss.removeprefix("binary_")
    own = {
        "focal_gamma": reference.CONSTANT.get(loss, 2.0),
        "label_smoothing": reference.SMOOTHING.get(loss, 0.0),
    }
    return MLPClassifier(loss=NAMES.get(name, name), **QUICK | own | params)


def problem(loss, **params):
    """A network at its initial weights, data, targets as the oracle takes them."""
    n_outputs = 3 if LOSSES[loss].per_row else 2
    X, y = make_problem(loss, N, FEATURES, n_outputs)
    labels = np.array(["a", "b", "c"])[y] if y.ndim == 1 else y
    labels = labels.astype(int) if loss.startswith("binary") else labels
    return initialise(model_for(loss, **params), X, labels), X, labels, y


def described(model, activation, loss):
    widths = (FEATURES, *(coef.shape[1] for coef in model.coefs_))
    return flat(model), widths, activation, loss


def assert_close(actual, expected, tolerance=1e-12):
    scale = max(1e-3, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


# --- forward


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_score_and_output(activation, layer_norm):
    model, X, _, _ = problem("poisson", activation=activation, layer_norm=layer_norm)
    z, normalised, a = forward(model, X)
    flat_, widths, _, _ = described(model, activation, "poisson")
    zs, outputs = reference.forward(flat_, widths, activation, X, layer_norm=layer_norm)
    for i, W in enumerate(model.coefs_):
        assert_close(z[i], a[i] @ W + model.intercepts_[i])
        assert_close(normalised[i], zs[i])
        assert_close(a[i], outputs[i])
    assert_close(a[-1], model.predict(X))
    assert len(a) == len(z) + 1 == model.n_layers_


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_last_output_is_the_prediction(loss, dtype):
    model, X, labels, _ = problem(loss)
    X = X.astype(dtype)
    model = fit(model.set_params(max_iter=3), X, labels)
    outputs = forward(model, X).a[-1]
    assert outputs.dtype == dtype
    predict = getattr(model, "predict_proba", model.predict)
    assert_close(outputs, predict(X), DTYPES[dtype])


def test_two_classes_have_one_output():
    X, _ = make_problem("squared_error", N, FEATURES, 1)
    model = initialise(MLPClassifier(**QUICK), X, X[:, 0] > 0)
    assert_close(forward(model, X).a[-1].ravel(), model.predict_proba(X)[:, 1])


def test_containers():
    """Of X; and the names of columns are checked as in predict."""
    model, X, labels, _ = problem("log_loss")
    expected = forward(model, X).a[-1]
    assert_close(forward(model, X.tolist()).a[-1], expected)
    for of in (sparse.csr_matrix, sparse.csr_array, sparse.csc_array):
        assert_close(forward(model, of(X)).a[-1], expected)
        assert sparse.issparse(forward(model, of(X)).a[0])
        assert_close(backward(model, of(X), labels).coef_grads[0],
                     backward(model, X, labels).coef_grads[0])  # fmt: skip
    frame = pd.DataFrame(X, columns=list("abcd"))
    named = initialise(model, frame, labels)
    assert_close(forward(named, frame).a[-1], expected)
    with pytest.raises(ValueError, match="feature names"):
        forward(named, frame[list("bacd")])


def test_edited_coefs_count():
    model, X, labels, _ = problem("log_loss")
    model.coefs_[0] = np.zeros_like(model.coefs_[0])
    assert_close(forward(model, X).z[0], np.tile(model.intercepts_[0], (N, 1)))
    assert_close(backward(model, X, labels).forward.a[-1], model.predict_proba(X))


# --- backward

CASES = [
    *((loss, "tanh", False) for loss in LOSSES),
    *(("log_loss", activation, norm) for activation in ACTIVATIONS for norm in (False, True)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("loss", "activation", "layer_norm"), CASES)
def test_loss_and_every_gradient_element(loss, activation, layer_norm, dtype):
    model, X, labels, y = problem(
        loss, activation=activation, layer_norm=layer_norm, alpha=0.3, dropout=0.5
    )
    if dtype == np.float32:
        model = initialise(model, X.astype(dtype), labels)
    weight = np.random.default_rng(2).uniform(0.5, 2.0, N)
    result = backward(model, X.astype(dtype), labels, weight)
    value, gradient = reference.objective(
        *described(model, activation, loss), X.astype(dtype), y, 0.3, weight,
        np.finfo(dtype).eps, layer_norm=layer_norm,
    )  # fmt: skip
    assert result.coef_grads[0].dtype == result.deltas[-1].dtype == dtype
    assert_close(join(result.coef_grads, result.intercept_grads), gradient, DTYPES[dtype])
    assert result.loss == pytest.approx(value, rel=DTYPES[dtype])
    assert result.loss == result.data_loss + result.penalty
    squares = sum((W.astype(float) ** 2).sum() for W in model.coefs_)
    assert result.penalty == pytest.approx(0.15 * squares / weight.sum(), rel=DTYPES[dtype])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_deltas_are_derivatives_by_scores(layer_norm):
    """A shift of one score of one sample is a shift of an intercept for that sample."""
    model, X, labels, _ = problem("log_loss", activation="silu", layer_norm=layer_norm, alpha=0.0)
    result = backward(model, X, labels)
    for i, delta in enumerate(result.deltas):
        assert delta.shape == result.forward.z[i].shape
        shifted = clone_fitted(model)
        shifted.intercepts_[i][2] += 1e-5
        above = backward(shifted, X[7:8], labels[7:8]).loss
        shifted.intercepts_[i][2] -= 2e-5
        below = backward(shifted, X[7:8], labels[7:8]).loss
        assert (above - below) / 2e-5 / N == pytest.approx(delta[7, 2], rel=1e-6, abs=1e-9)


def clone_fitted(model):
    copied = clone(model)
    copied.__dict__.update(vars(model))
    copied.coefs_ = [W.copy() for W in model.coefs_]
    copied.intercepts_ = [b.copy() for b in model.intercepts_]
    return copied


MULTILABEL = np.array([[0, 1, 1], [1, 1, 0]] * 12)[:N]
TASKS = {
    "classes": (MLPClassifier, {"class_weight": {"a": 1.0, "b": 3.0, "c": 0.5}}, None),
    "balanced": (MLPClassifier, {"class_weight": "balanced", "label_smoothing": 0.1}, None),
    "labels": (MLPClassifier, {"class_weight": "balanced"}, MULTILABEL),
    "quantiles": (MLPRegressor, {"loss": "quantile", "quantile": [0.2, 0.9, 0.5]}, None),
    "own loss": (
        MLPRegressor, {"loss": (lambda p, y: (p - y) ** 4, lambda p, y: 4 * (p - y) ** 3)}, None,
    ),
    "own loss of classes": (
        MLPClassifier, {"loss": (lambda p, y: (p - y) ** 4, lambda p, y: 4 * (p - y) ** 3)}, None,
    ),
    "own loss of labels": (
        MLPClassifier, {"loss": (lambda p, y: (p - y) ** 4, lambda p, y: 4 * (p - y) ** 3)},
        MULTILABEL,
    ),
    "own activation": (
        MLPRegressor,
        {"activation": [(lambda z: math.sin(z), lambda z: math.cos(z)), "gelu"]}, None,
    ),
    "no hidden layer": (MLPRegressor, {"hidden_layer_sizes": ()}, None),
    "several outputs": (MLPRegressor, {}, MULTILABEL * 1.5),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_gradient_is_that_of_training(task):
    """Gradient descent makes a step of it, from the loss it says."""
    kind, params, y = TASKS[task]
    X, labels = make_problem("log_loss", N, FEATURES, 3)
    if y is None:
        y = np.array(["a", "b", "c"])[labels] if kind is MLPClassifier else X[:, 0] * X[:, 1]
    weight = np.random.default_rng(2).uniform(0.5, 2.0, N)
    model = kind(**QUICK | params | {"alpha": 0.3})
    start = initialise(model, X, y)
    result = backward(start, X, y, weight)
    trained = clone(model).set_params(
        solver="sgd", momentum=0.0, learning_rate_init=0.5, batch_size=N, max_iter=1
    )
    fit(trained, X, y, sample_weight=weight)
    assert result.loss == pytest.approx(trained.loss_, rel=1e-12)
    change = flat(trained) - flat(start)
    assert_close(-0.5 * join(result.coef_grads, result.intercept_grads), change)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_fitted_model_and_a_batch_without_all_classes(solver):
    X, labels = make_problem("log_loss", N, FEATURES, 3)
    model = fit(MLPClassifier(solver=solver, warm_start=True, max_iter=5, **QUICK), X, labels)
    before = {name: repr(value) for name, value in vars(model).items()}
    few = labels < 2
    result = backward(model, X[few], labels[few])
    expected, _ = reference.objective(
        *described(model, "relu", "log_loss"), X[few], labels[few], 1e-4
    )
    assert result.loss == pytest.approx(expected, rel=1e-12)
    check_gradients(model, X[few], labels[few], n_elements=1)
    assert {name: repr(value) for name, value in vars(model).items()} == before
    with pytest.raises(ValueError, match="classes not in"):
        backward(model, X, labels + 1)


# --- check_gradients


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_every_loss_are_right(loss, layer_norm):
    model, X, labels, _ = problem(loss, activation="gelu", layer_norm=layer_norm, alpha=0.3)
    check = check_gradients(model, X, labels, np.random.default_rng(2).uniform(0.5, 2.0, N))
    assert check.worst.error < 1e-6
    assert [(one.layer, one.name) for one in check.arrays] == [
        (layer, name) for layer in range(3) for name in ("coefs_", "intercepts_")
    ]


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "step"])
def test_gradients_of_every_activation_are_right(activation):
    """Kinks too: among these samples some scores are near 0."""
    X, y = make_problem("absolute_error", 500, FEATURES, 2)
    model = initialise(MLPRegressor("absolute_error", activation=activation, **QUICK), X, y)
    assert check_gradients(model, X, y).worst.error < 1e-6


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error"])
def test_differences_do_not_span_kinks(loss):
    """A score in front of relu, and for one loss a residual, that are closer than a step to 0."""
    X, y = make_problem(loss, N, FEATURES, 1)
    model = initialise(MLPRegressor(loss, **QUICK), X, y.ravel())
    model.intercepts_[0][2] -= forward(model, X).z[0][5, 2] - 3e-6
    model.intercepts_[2] += y[7] - forward(model, X).a[-1][7] + 3e-6
    assert check_gradients(model, X, y.ravel()).worst.error < 1e-6


@pytest.mark.parametrize("loss", ["log_loss", "binary_log_loss"])
def test_log_losses_count_in_full(loss):
    """Some of these are more than 36."""
    model, X, labels, _ = problem(loss)
    assert backward(model, 1000 * X, labels).loss > 20
    assert check_gradients(model, 1000 * X, labels).worst.error < 1e-5


def test_the_derivative_of_step_is_none():
    model, X, labels, _ = problem("log_loss", activation="step")
    check = check_gradients(model, X, labels)
    assert check.arrays[0].error > 0.1
    assert max(one.error for one in check.arrays[-2:]) < 1e-6


def test_a_wrong_derivative_is_found():
    """In the second layer: what comes before it is wrong, what comes after it is right."""
    wrong = (lambda z: math.tanh(z), lambda z: 1 - 1.01 * math.tanh(z) ** 2)
    model, X, labels, y = problem("log_loss", activation=["relu", wrong], alpha=0.0)
    check = check_gradients(model, X, labels)
    errors = [one.error for one in check.arrays]
    assert min(errors[:4]) > 1e-4
    assert max(errors[4:]) < 1e-6
    at = check.arrays[0]
    start = described(model, ["relu", "tanh"], "log_loss")
    _, gradient = reference.objective(*start, X, y)
    assert at.numeric == pytest.approx(gradient[: 4 * 6].reshape(4, 6)[at.place], rel=1e-6)
    result = backward(model, X, labels)
    assert at.analytic == pytest.approx(result.coef_grads[0][at.place], rel=1e-9)
    assert (at.n_checked, at.n_elements) == (24, 24)
    lines = str(check).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["coefs_[0]", "intercepts_[0]"]
    assert f"{at.numeric:.6e}" in lines[1]


def test_some_elements_of_large_arrays():
    model, X, labels, _ = problem("log_loss", hidden_layer_sizes=(20, 10))
    for n_elements, expected in ((7, [7, 7, 7, 7, 7, 3]), (None, [80, 20, 200, 10, 30, 3])):
        check = check_gradients(model, X, labels, n_elements=n_elements)
        assert [one.n_checked for one in check.arrays] == expected
    places = {
        seed: [one.place for one in check_gradients(
            model, X, labels, n_elements=1, random_state=seed
        ).arrays]
        for seed in (0, 1)
    }  # fmt: skip
    assert places[0] != places[1]


def test_a_dead_network_is_no_error():
    model, X, labels, _ = problem("log_loss", weight_init="zeros", activation="tanh")
    assert check_gradients(model, X, labels).worst.error < 1e-6


def test_derivatives_that_are_not_finite_are_errors():
    model, X, labels, _ = problem("log_loss", activation=(lambda z: z, lambda z: np.sqrt(z)))
    assert math.isnan(check_gradients(model, X, labels).worst.error)


# --- step


def params_of(solver):
    if solver in ("sgd", "nesterov"):
        return {"solver": "sgd", "nesterovs_momentum": solver == "nesterov"}
    return {"solver": solver}


@pytest.mark.parametrize("more", [
    {},
    {"early_stopping": True, "validation_fraction": 0.2, "scoring": "loss"},
    {"weight_decay": 0.1, "max_grad_norm": 0.01, "learning_rate": "exponential"},
    {"dropout": 0.5},
    {"class_weight": "balanced", "n_restarts": 2},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("solver", OPTIMIZERS)
def test_a_step_is_partial_fit(solver, more):
    model, X, labels, y = problem("log_loss", **params_of(solver), **more, max_iter=2)
    model = fit(model, X, labels)
    before = flat(model)
    one = step(model, X, labels)
    np.testing.assert_array_equal(flat(model), before)
    np.testing.assert_array_equal(join(one.coefs_before, one.intercepts_before), before)
    assert one.loss_before == pytest.approx(backward(model, X, labels).loss, rel=1e-12)
    weight = N / 3 / np.bincount(y)[y] if "class_weight" in more else None
    model.set_params(
        batch_size=N, dropout=0.0, early_stopping=False, scoring=None, class_weight=None,
        n_restarts=1,
    )  # fmt: skip
    model.partial_fit(X, labels, weight)
    after = flat(model)
    np.testing.assert_allclose(join(one.coefs_after, one.intercepts_after), after, atol=1e-10)
    np.testing.assert_array_equal(
        join(one.coef_updates, one.intercept_updates),
        join(one.coefs_after, one.intercepts_after) - before,
    )
    assert one.learning_rate == model.history_["learning_rate"][-1]
    assert one.loss_after == pytest.approx(backward(model, X, labels, weight).loss, rel=1e-9)


def test_a_step_of_plain_gradient_descent():
    model, X, labels, _ = problem("log_loss", solver="sgd", momentum=0.0, learning_rate_init=0.1)
    one = step(model, X, labels)
    gradient = join(one.coef_grads, one.intercept_grads)
    assert_close(join(one.coef_updates, one.intercept_updates), -0.1 * gradient)
    result = backward(model, X, labels)
    np.testing.assert_array_equal(gradient, join(result.coef_grads, result.intercept_grads))
    assert one.loss_after < one.loss_before == result.loss


def test_a_step_of_the_trained_parameters():
    """With `ema_decay`, `coefs_` are an average."""
    params = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1, "max_iter": 3}
    model, X, labels, _ = problem("log_loss", batch_size=N, **params)
    averaged = fit(clone(model).set_params(ema_decay=0.9), X, labels)
    model = fit(model, X, labels)
    one, expected = step(averaged, X, labels), step(model, X, labels)
    for name, value in expected._asdict().items():
        got = getattr(one, name)
        for a, b in zip(got, value, strict=True) if isinstance(value, list) else [(got, value)]:
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=name)
    assert abs(averaged.coefs_[0] - one.coefs_before[0]).max() > 1e-3
    step(initialise(averaged, X, labels), X, labels)


# --- initialise, refusals


@pytest.mark.parametrize("params", [
    {}, {"early_stopping": True}, {"weight_init": "he_normal"},
    {"n_restarts": 2, "activation": "logistic"},
], ids=str)  # fmt: skip
def test_initialise_is_the_start_of_fit(params):
    model, X, labels, _ = problem("log_loss", **params)
    trained = clone(model).set_params(learning_rate=lambda *_: 0.0, max_iter=1)
    if "n_restarts" in params:
        seed = np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=2)[0]
        trained.set_params(n_restarts=1, random_state=seed)
    trained = fit(trained, X, labels)
    np.testing.assert_array_equal(flat(model),
                                  flat(trained))  # fmt: skip
    assert (model.n_iter_, model.t_) == (0, 0)


def test_training_goes_on_from_the_start():
    model, X, labels, _ = problem("log_loss")
    trained = clone(model)
    model.partial_fit(X, labels)
    trained.partial_fit(X, labels, classes=np.unique(labels))
    np.testing.assert_allclose(flat(model),
                               flat(trained), rtol=1e-10)  # fmt: skip


def test_initialise_leaves_the_model_and_its_random_state():
    _, X, labels, _ = problem("log_loss")
    model = MLPClassifier(random_state=np.random.RandomState(3))
    starts = [initialise(model, X, labels).coefs_[0] for _ in range(2)]
    np.testing.assert_array_equal(*starts)
    assert not hasattr(model, "coefs_")


def test_refusals():
    X, y = make_problem("squared_error", N, FEATURES, 1)
    y = y.ravel()
    calls = {
        "forward": lambda model: forward(model, X),
        "backward": lambda model: backward(model, X, y),
        "check_gradients": lambda model: check_gradients(model, X, y),
        "step": lambda model: step(model, X, y),
    }
    for call in calls.values():
        with pytest.raises(NotFittedError):
            call(MLPRegressor())
        with pytest.raises(TypeError, match="of a pipeline give the last step"):
            call(make_pipeline(StandardScaler(), MLPRegressor()))
    model = initialise(MLPRegressor(solver="lbfgs", **QUICK), X, y)
    with pytest.raises(ValueError, match="step does not work with solver='lbfgs'"):
        step(model, X, y)
    with pytest.raises(ValueError, match="layer_norm needs hidden layers"):
        initialise(MLPRegressor(hidden_layer_sizes=(), layer_norm=True), X, y)
    with pytest.raises(ValueError, match="NaN"):
        forward(model, X * np.nan)


def test_models_for_the_gpu_are_inspected_on_the_processor(device, monkeypatch):
    """The emulator would do, but nothing asks for it."""
    model, X, labels, _ = problem("log_loss")
    expected = join(*step(model, X, labels)[4:8:2])
    model.set_params(device="cuda")
    monkeypatch.setattr("fastmlp.engine.cuda.device.open_device", None)
    forward(model, X)
    check_gradients(model, X, labels, n_elements=1)
    np.testing.assert_array_equal(join(*step(model, X, labels)[4:8:2]), expected)


def test_the_module_is_there_when_asked_for():
    assert fastmlp.inspect.forward is forward
