"""Dropout, gradient clipping, averaged weights and layer normalisation, on engines and estimators.

The oracle is `reference`.  Engines that refuse these leave them out here: see `DEVICES`.
"""

import importlib

import models
import numpy as np
import pytest
import reference
from engines import assert_close, parameters_for
from models import flat
from problems import CONSTANTS, make_network, make_problem, place_for
from scipy import sparse, stats
from sklearn.base import clone

from fastmlp import MLPClassifier, MLPRegressor, jit_predictor
from fastmlp.dropout import Dropout, random_bits, row_key, threshold
from fastmlp.engine import get_engine
from fastmlp.functions import ACTIVATIONS
from fastmlp.network import Network
from fastmlp.optimizers import OPTIMIZERS, Optimizer

DEVICES = ["cpu"]  # test_cuda compares the other with it
on_devices = pytest.mark.parametrize("device", DEVICES, indirect=True)

# --- dropout


def bits_of(seed, step, layer, row, n_units):
    key = row_key(seed, step, layer, row)
    return np.array([random_bits(key, unit) for unit in range(n_units)])


def test_random_bits_are_uniform():
    """Bytes of the numbers, at either end, for keys as like each other as they get."""
    bits = np.concatenate([bits_of(0, step, 0, row, 64) for step in range(40) for row in range(40)])
    for shift in (0, 8, 16, 24):
        counts = np.bincount((bits >> shift) & 255, minlength=256)
        assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4
    assert bits.min() >= 0
    assert bits.max() < 2**32


@pytest.mark.parametrize("part", ["seed", "step", "layer", "row", "unit"])
def test_neighbours_are_not_correlated(part):
    """Neighbours differ in half of their bits, each bit in half of the cases."""
    rng = np.random.default_rng(0)
    first, second = [], []
    for _ in range(4000):
        place = dict(zip(["seed", "step", "layer", "row", "unit"], rng.integers(0, 300, 5).tolist(),
                         strict=True))  # fmt: skip
        for sample, shift in ((first, 0), (second, 1)):
            moved = place | {part: place[part] + shift}
            unit = moved.pop("unit")
            sample.append(random_bits(row_key(**moved), unit))
    first, second = np.array(first), np.array(second)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(4000)
    flips = [((first ^ second) >> bit & 1).mean() for bit in range(32)]
    assert np.abs(np.array(flips) - 0.5).max() < 4.5 * 0.5 / np.sqrt(4000)


def test_masks_of_the_oracle():
    masks = reference.dropout_masks(7, 3, 50, (2, 6, 4, 1), (0.3, 0.5))
    for layer, (mask, rate) in enumerate(zip(masks, (0.3, 0.5), strict=True)):
        bits = np.array([bits_of(7, 3, layer, row, mask.shape[1]) for row in range(50)])
        np.testing.assert_array_equal(mask == 0, bits < threshold(rate))
        np.testing.assert_allclose(mask[mask != 0], 1 / (1 - rate))
    assert 0 < threshold(1 - 1e-16) < 2**32


def engine_for(device, described, X, y, dtype, weight=None, optimizer=None, **options):
    """An engine loaded with data, its parameters, and those in float64."""
    network, objective = described
    optimizer = optimizer or Optimizer("sgd", CONSTANTS["sgd"])
    engine = get_engine(
        device, network, dtype=dtype, objective=objective, optimizer=optimizer, **options
    )
    engine.load(place_for(engine, X.astype(dtype), y, weight))
    flat = parameters_for(network).astype(dtype)
    engine.set_parameters(flat)
    return engine, flat


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, ("relu", "gelu", "identity")], ids=str)
def test_every_gradient_element_with_dropout(device, activation, as_csr, dtype):
    """The masks are those of the step that the engine has come to; evaluating has none."""
    widths, rates = (4, 6, 19, 7, 2), (0.3, 0.0, 0.5)
    network = make_network(widths, activation, "squared_error")
    X, y = make_problem("squared_error", 23, 4, 2)
    X = X.astype(dtype)
    weight = np.random.default_rng(2).uniform(0.5, 2.0, 23).astype(dtype)
    data = sparse.csr_matrix(X) if as_csr else X
    engine, flat = engine_for(device, network, data, y, dtype, weight, alpha=0.3, batch_size=23,
                              dropout=Dropout(rates, 5))  # fmt: skip
    engine.set_state(engine.get_state()[0], 4)
    described = (widths, activation, "squared_error", X, y, 0.3, weight)
    masks = reference.dropout_masks(5, 4, 23, widths, rates)
    expected, expected_gradient = reference.objective(flat, *described, masks=masks)
    value, gradient = engine.loss_and_gradient()
    assert_close(value, expected, dtype)
    assert_close(gradient, expected_gradient, dtype)
    assert_close(engine.predict(data), reference.predict(flat, *described[:4]), dtype)
    plain, _ = reference.objective(flat, *described[:5], 0.0, weight)
    assert_close(engine.evaluate(place_for(engine, data, y.astype(dtype), weight)), plain, dtype)
    engine.run_epoch(np.arange(23), np.full(1, 0.01))
    assert_close(engine.get_parameters(), flat - 0.01 * expected_gradient, dtype)


def micro_batches_of(rows, device, monkeypatch):
    engine = importlib.import_module(f"fastmlp.engine.{device}.engine")
    monkeypatch.setattr(engine, "_MICRO_BATCH_ROWS", rows)


@on_devices
@pytest.mark.parametrize("block", [1024, 8])
@pytest.mark.parametrize("loss", ["log_loss", "binary_log_loss"])
def test_epochs_with_dropout(device, loss, block, monkeypatch):
    """Rows are counted in the batch, whatever the order of the samples and the blocks."""
    micro_batches_of(block, device, monkeypatch)
    widths, rates = (6, 9, 4, 3), (0.25, 0.5)
    network = make_network(widths, "tanh", loss)
    X, y = make_problem(loss, 50, 6, 3)
    optimizer = Optimizer("adam", CONSTANTS["adam"])
    engine, flat = engine_for(device, network, X, y, "float64", optimizer=optimizer, alpha=0.1,
                              batch_size=16, dropout=Dropout(rates, 5))  # fmt: skip
    rule = reference.Adam(flat.size, 0.01, *CONSTANTS["adam"])
    rng = np.random.default_rng(3)
    for epoch in range(3):
        order, expected = rng.permutation(50), 0.0
        accumulated = engine.run_epoch(order, np.full(4, 0.01))
        for i, start in enumerate(range(0, 50, 16)):
            batch = order[start : start + 16]
            masks = reference.dropout_masks(5, 4 * epoch + i, len(batch), widths, rates)
            value, gradient = reference.objective(
                flat, widths, "tanh", loss, X[batch], y[batch], 0.1, masks=masks
            )
            expected += value * len(batch)
            flat = rule.step(flat, gradient)
        np.testing.assert_allclose(accumulated, expected, rtol=1e-10)
    np.testing.assert_allclose(engine.get_parameters(), flat, rtol=1e-9, atol=1e-11)


def results_of_threads(network, optimizer, n_threads, as_csr, batch_size):
    X, y = make_problem("log_loss", 300, network[0].widths[0], network[0].n_outputs)
    engine, _ = engine_for(
        "cpu", network, sparse.csr_matrix(X) if as_csr else X, y, "float32",
        optimizer=optimizer, batch_size=batch_size, n_threads=n_threads,
        dropout=Dropout((0.2, 0.5), 5),
    )  # fmt: skip
    steps = -(-300 // batch_size)
    losses = [engine.run_epoch(np.arange(300), np.full(steps, 1e-2)) for _ in range(3)]
    return np.array([*losses, *engine.get_parameters(), *engine.get_state()[0].ravel(),
                     *engine.predict(X.astype("float32")).ravel()])  # fmt: skip


# --- clipped gradients


@on_devices
@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("block", [1024, 8])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_clipped_gradients(device, rule, block, as_csr, monkeypatch):
    """Some steps are clipped, others are not; weight decay is no part of the gradient."""
    micro_batches_of(block, device, monkeypatch)
    widths, max_norm = (6, 9, 4, 2), 1.1
    network = make_network(widths, "tanh", "squared_error")
    X, y = make_problem("squared_error", 50, 6, 2)
    optimizer = Optimizer(rule, CONSTANTS[rule], weight_decay=0.5, max_grad_norm=max_norm)
    data = sparse.csr_matrix(X) if as_csr else X
    engine, flat = engine_for(device, network, data, y, "float64", optimizer=optimizer, alpha=1.0,
                              batch_size=16)  # fmt: skip
    theirs = reference.OPTIMIZERS[rule](flat.size, 0.01, *CONSTANTS[rule])
    weights, norms = reference.is_weight(widths), []
    for _ in range(5):
        accumulated, expected = engine.run_epoch(np.arange(50), np.full(4, 0.01)), 0.0
        for start in range(0, 50, 16):
            batch = slice(start, start + 16)
            value, gradient = reference.objective(
                flat, widths, "tanh", "squared_error", X[batch], y[batch], 1.0
            )
            expected += value * len(X[batch])
            norms.append(np.linalg.norm(gradient))
            clipped = reference.clip(gradient, max_norm)
            flat = theirs.step(flat - 0.01 * 0.5 * flat * weights, clipped)
        np.testing.assert_allclose(accumulated, expected, rtol=1e-10)
    assert min(norms) < max_norm < max(norms)
    np.testing.assert_allclose(engine.get_parameters(), flat, rtol=1e-9, atol=1e-11)
    gradient = engine.loss_and_gradient()[1]
    expected = reference.objective(flat, widths, "tanh", "squared_error", X, y, 1.0)[1]
    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-10)


# --- averaged parameters


@on_devices
@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("block", [1024, 8])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("loss", ["squared_error", "log_loss"])
def test_averaged_parameters(device, loss, max_norm, block, as_csr, monkeypatch):
    """Trained parameters and average go different ways, from the same start."""
    micro_batches_of(block, device, monkeypatch)
    widths = (6, 9, 4, 3 if loss == "log_loss" else 1)
    network = make_network(widths, "tanh", loss)
    X, y = make_problem(loss, 50, 6, widths[-1])
    optimizer = Optimizer("adam", CONSTANTS["adam"], 0.0, max_norm, ema_decay=0.8)
    options = {"optimizer": optimizer, "alpha": 0.1, "batch_size": 16}
    data = sparse.csr_matrix(X) if as_csr else X
    engine, flat = engine_for(device, network, data, y, "float64", **options)
    rule, average = reference.Adam(flat.size, 0.01, *CONSTANTS["adam"]), flat
    described = (widths, "tanh", loss)
    for epoch in range(3):
        engine.run_epoch(np.arange(50), np.full(4, 0.01))
        for start in range(0, 50, 16):
            batch = slice(start, start + 16)
            gradient = reference.objective(flat, *described, X[batch], y[batch], 0.1)[1]
            if max_norm:
                gradient = reference.clip(gradient, max_norm)
            flat = rule.step(flat, gradient)
            average = 0.8 * average + 0.2 * flat
        np.testing.assert_allclose(engine.get_parameters(), average, rtol=1e-9, atol=1e-11)
        slots, step = engine.get_state()
        np.testing.assert_allclose(slots[2], flat, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(
            engine.predict(data), reference.predict(average, *described, X), rtol=1e-9
        )
        value = reference.objective(average, *described, X, y)[0]
        np.testing.assert_allclose(engine.evaluate(place_for(engine, data, y)), value, rtol=1e-9)
        if epoch == 1:  # another engine goes on from both
            parameters = engine.get_parameters()
            engine, _ = engine_for(device, network, data, y, "float64", **options)
            engine.set_parameters(parameters)
            engine.set_state(slots, step)


# --- layer normalisation


@on_devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("rates", [None, (0.3, 0.0, 0.5)], ids=str)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, ("relu", "gelu", "identity")], ids=str)
def test_every_gradient_element_with_layer_norm(device, activation, rates, as_csr, dtype):
    """Widths are whole vectors, or not; with dropout, too."""
    widths = (4, 16, 19, 7, 3)
    network = make_network(widths, activation, "log_loss", layer_norm=True)
    X, y = make_problem("log_loss", 23, 4, 3)
    X = X.astype(dtype)
    weight = np.random.default_rng(2).uniform(0.5, 2.0, 23).astype(dtype)
    data = sparse.csr_matrix(X) if as_csr else X
    engine, flat = engine_for(device, network, data, y, dtype, weight, alpha=0.3, batch_size=23,
                              dropout=rates and Dropout(rates, 5))  # fmt: skip
    described, eps = (widths, activation, "log_loss", X), np.finfo(dtype).eps
    masks = reference.dropout_masks(5, 0, 23, widths, rates) if rates else None
    expected, expected_gradient = reference.objective(
        flat, *described, y, 0.3, weight, eps, masks, layer_norm=True
    )
    value, gradient = engine.loss_and_gradient()
    assert_close(value, expected, dtype)
    assert_close(gradient, expected_gradient, dtype)
    outputs = reference.predict(flat, *described, layer_norm=True)
    assert_close(engine.predict(data), outputs, dtype)
    plain, _ = reference.objective(flat, *described, y, 0.0, weight, eps, layer_norm=True)
    assert_close(engine.evaluate(place_for(engine, data, y, weight)), plain, dtype)
    engine.run_epoch(np.arange(23), np.full(1, 0.01))
    assert_close(engine.get_parameters(), flat - 0.01 * expected_gradient, dtype)


@on_devices
@pytest.mark.parametrize("rows", [8, 100, 1024])
def test_layer_norm_in_blocks(device, rows, monkeypatch):
    micro_batches_of(rows, device, monkeypatch)
    widths = (6, 130, 40, 2)
    network = make_network(widths, "relu", "squared_error", layer_norm=True)
    X, y = make_problem("squared_error", 700, 6, 2)
    for data in (X, sparse.csr_matrix(X)):
        engine, flat = engine_for(device, network, data, y, "float64", batch_size=700)
        described = (widths, "relu", "squared_error", X)
        expected = reference.objective(flat, *described, y, layer_norm=True)
        value, gradient = engine.loss_and_gradient()
        np.testing.assert_allclose(value, expected[0], rtol=1e-11)
        np.testing.assert_allclose(gradient, expected[1], rtol=1e-8, atol=1e-11)
        outputs = reference.predict(flat, *described, layer_norm=True)
        np.testing.assert_allclose(engine.predict(data), outputs, rtol=1e-9, atol=1e-10)


# --- all of them


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("batch_size", [70, 300])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_same_bits_for_any_number_of_threads(no_thresholds, layer_norm, batch_size, as_csr):
    network = make_network((20, 130, 40, 5), "relu", "log_loss", layer_norm=layer_norm)
    optimizer = Optimizer("adam", CONSTANTS["adam"], max_grad_norm=0.1, ema_decay=0.9)
    expected = results_of_threads(network, optimizer, 1, as_csr, batch_size)
    for n_threads in (2, 3):
        got = results_of_threads(network, optimizer, n_threads, as_csr, batch_size)
        np.testing.assert_array_equal(got, expected)


# --- estimators

rng = np.random.RandomState(0)
X = rng.normal(size=(120, 5))
TARGET = X[:, 0] * X[:, 1]
LABELS = np.array(["a", "b", "c"])[np.argmax(X[:, :3], axis=1)]
WIDTHS = (5, 8, 6, 1)
QUICK = {"hidden_layer_sizes": (8, 6), "activation": "tanh", "max_iter": 5, "random_state": 0,
         "learning_rate_init": 0.01}  # fmt: skip


EACH = [{"dropout": 0.4}, {"max_grad_norm": 0.1}, {"ema_decay": 0.8}, {"layer_norm": True}]


def fit(model, y, data=X):
    return models.fit(model, data, y)


def start_of(random_state):
    return Network(WIDTHS, "tanh").initialise(random_state, float)


@pytest.mark.parametrize(
    ("dropout", "rates"), [(0.3, (0.3, 0.3)), ([0, 0.5], (0, 0.5)), (np.array([0.5, 0]), (0.5, 0))]
)
def test_fit_with_dropout(dropout, rates):
    """The seed is the first number that is drawn after the initial weights."""
    model = fit(MLPRegressor(dropout=dropout, batch_size=40, shuffle=False, **QUICK), TARGET)
    random_state = np.random.RandomState(0)
    w = start_of(random_state)
    seed = random_state.randint(2**31 - 1)
    optimizer = reference.Adam(w.size, 0.01, *CONSTANTS["adam"])
    for epoch in range(5):
        total = 0.0
        for i in range(3):
            batch = slice(40 * i, 40 * i + 40)
            masks = reference.dropout_masks(seed, 3 * epoch + i, 40, WIDTHS, rates)
            loss, gradient = reference.objective(
                w, WIDTHS, "tanh", "squared_error", X[batch], TARGET[batch, None], 1e-4, masks=masks
            )
            total += loss / 3
            w = optimizer.step(w, gradient)
        assert model.loss_curve_[epoch] == pytest.approx(total, rel=1e-10)
    np.testing.assert_allclose(flat(model), w, rtol=1e-8, atol=1e-10)
    expected = reference.predict(w, WIDTHS, "tanh", "squared_error", X).ravel()
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(model.predict(X[:3]), expected[:3], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("params", EACH, ids=str)
def test_fits_repeat_and_partial_fit_goes_on(params):
    """As one fit over the same epochs, without shuffling."""
    options = QUICK | params | {"shuffle": False, "batch_size": 50}
    whole = fit(MLPRegressor(**options), TARGET)
    assert (flat(whole) != flat(fit(MLPRegressor(**QUICK), TARGET))).any()
    np.testing.assert_array_equal(flat(fit(clone(whole), TARGET)), flat(whole))
    parts = MLPRegressor(**options)
    for _ in range(5):
        parts.partial_fit(X, TARGET)
    np.testing.assert_array_equal(flat(parts), flat(whole))
    np.testing.assert_array_equal(parts.loss_curve_, whole.loss_curve_)


@pytest.mark.parametrize("params", EACH, ids=str)
def test_validation_judges_what_predict_uses(params):
    model = MLPClassifier(**QUICK | params | {"n_restarts": 2})
    models.fit(model, X, LABELS, X_val=X[:50], y_val=LABELS[:50])
    assert model.history_["validation_score"][-1] == model.score(X[:50], LABELS[:50])
    model = fit(MLPClassifier(early_stopping=True, **QUICK | params), LABELS)
    assert model.best_validation_score_ == max(model.validation_scores_)


def test_fit_with_clipped_gradients():
    model = MLPRegressor(solver="sgd", batch_size=120, max_grad_norm=0.05, **QUICK)
    fit(model, TARGET)
    w = start_of(np.random.RandomState(0))
    optimizer = reference.Nesterov(w.size, 0.01, 0.9)
    for _ in range(5):
        gradient = reference.objective(
            w, WIDTHS, "tanh", "squared_error", X, TARGET[:, None], 1e-4
        )[1]  # fmt: skip
        assert np.linalg.norm(gradient) > 0.05
        w = optimizer.step(w, reference.clip(gradient, 0.05))
    np.testing.assert_allclose(flat(model), w, rtol=1e-9, atol=1e-11)


def test_fit_with_averaged_parameters():
    """`warm_start` goes on from the average and from what was trained, with a fresh optimizer."""
    model = MLPRegressor(ema_decay=0.7, batch_size=120, warm_start=True, **QUICK)
    w = average = start_of(np.random.RandomState(0))
    for _ in range(2):
        fit(model, TARGET)
        optimizer = reference.Adam(w.size, 0.01, *CONSTANTS["adam"])
        for epoch in range(5):
            value, gradient = reference.objective(
                w, WIDTHS, "tanh", "squared_error", X, TARGET[:, None], 1e-4
            )
            assert model.loss_curve_[epoch - 5] == pytest.approx(value, rel=1e-9)
            w = optimizer.step(w, gradient)
            average = 0.7 * average + 0.3 * w
        np.testing.assert_allclose(flat(model), average, rtol=1e-8, atol=1e-10)
        expected = reference.predict(average, WIDTHS, "tanh", "squared_error", X).ravel()
        np.testing.assert_allclose(model.predict(X), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_with_layer_norm(dtype, solver):
    """Many rows, few rows and compiled code; what is fitted goes by the current parameter."""
    data, tolerance = X.astype(dtype), 1e-4 if dtype == np.float32 else 1e-10
    model = fit(MLPRegressor(**QUICK | {"layer_norm": True, "solver": solver}), TARGET, data)
    described = (flat(model), WIDTHS, "tanh", "squared_error", data)
    expected = reference.predict(*described, layer_norm=True).ravel()
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(model.predict(data), expected, **close)
    np.testing.assert_allclose(model.predict(data[:3]), expected[:3], **close)
    compiled = jit_predictor(model)
    for row in range(3):
        assert compiled(data[row])[0] == pytest.approx(expected[row], rel=1e-3, abs=tolerance)
    model.layer_norm = False
    plain = reference.predict(*described).ravel()
    np.testing.assert_allclose(model.predict(data[:3]), plain[:3], **close)
    assert np.abs(plain - expected).max() > 0.01


BAD = [
    ({"layer_norm": 2.5}, "'layer_norm' parameter"),
    ({"layer_norm": True, "hidden_layer_sizes": (5, 1)}, "layer_norm needs hidden layers of at le"),
    ({"layer_norm": True, "hidden_layer_sizes": ()}, "layer_norm needs hidden layers of at least"),
    ({"ema_decay": 1.0}, "'ema_decay' parameter"),
    ({"ema_decay": 0.9, "solver": "lbfgs"}, "ema_decay does not work with solver='lbfgs'"),
    ({"max_grad_norm": 0.0}, "'max_grad_norm' parameter"),
    ({"max_grad_norm": 1.0, "solver": "lbfgs"}, "max_grad_norm does not work with solver='lbfgs'"),
    ({"dropout": 1.0}, "'dropout' parameter"),
    ({"dropout": [0.1]}, "dropout must have one entry for each of the 2 hidden layers .* got 1"),
    ({"dropout": [0.1, 1.0]}, r"dropout must consist of numbers in \[0, 1\), got"),
    ({"dropout": ["a", 0.1]}, r"dropout must consist of numbers in \[0, 1\), got"),
    ({"dropout": 0.1, "solver": "lbfgs"}, "dropout does not work with solver='lbfgs'; use a stoc"),
    ({"dropout": 0.1, "hidden_layer_sizes": ()}, "dropout needs a hidden layer"),
]


@pytest.mark.parametrize(("params", "message"), BAD, ids=str)
def test_bad_parameters(params, message):
    model = MLPRegressor(**QUICK | params)
    with pytest.raises(ValueError, match=message):
        model.fit(X, TARGET)
    assert not hasattr(model, "coefs_")
