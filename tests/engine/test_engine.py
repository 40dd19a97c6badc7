"""The ladder on every engine: outputs, every gradient element, ten losses of training.

The oracle is `reference`; nothing here goes through the estimators.
"""

import importlib
import itertools
import platform

import numpy as np
import pytest
import reference
from engines import assert_close, each_once, parameters_for
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import CONSTANTS, ENGINES, make_network, make_problem, place_for
from scipy import sparse

from fastmlp.engine import get_engine, place
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import OPTIMIZERS, Optimizer

ALL_SHAPES = [(5,), (5, 1), (3, 8), (17, 37, 53), (4, 6, 5, 3)]
EMULATED_SHAPES = [(5, 1), (4, 6, 5, 3)]  # the emulator takes seconds for larger ones
LADDER = [
    (engine, shape)
    for engine in ENGINES
    for shape in (ALL_SHAPES if engine == "cpu" else EMULATED_SHAPES)
]
# Every loss and every activation; those of scikit-learn in all combinations.
PAIRS = [
    *itertools.product(list(LOSSES)[:4], list(ACTIVATIONS)[:4]),
    *each_once(list(LOSSES)[4:], list(ACTIVATIONS)[4:]),
]


def network_for(shape, activation, loss):
    return make_network((*shape, 3 if LOSSES[loss].per_row else 2), activation, loss)


def loaded_engine(device, network, objective, X, y, dtype, weight=None, **options):
    engine = get_engine(device, network, dtype=dtype, objective=objective, **options)
    engine.load(place_for(engine, X.astype(dtype), y, weight))
    return engine


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("loss", "activation"), PAIRS)
@pytest.mark.parametrize(("device", "shape"), LADDER, indirect=["device"], ids=str)
def test_outputs_loss_and_every_gradient_element(device, shape, activation, loss, dtype):
    network, objective = network_for(shape, activation, loss)
    X, y = make_problem(loss, 23, network.widths[0], network.n_outputs)
    weight = np.random.default_rng(2).uniform(0.5, 2.0, len(X))
    flat = parameters_for(network).astype(dtype)
    engine = loaded_engine(device, network, objective, X, y, dtype, weight, alpha=0.3)
    engine.set_parameters(flat)
    described = (network.widths, activation, loss)
    X = X.astype(dtype)
    assert_close(engine.predict(X), reference.predict(flat, *described, X), dtype)
    value, gradient = engine.loss_and_gradient()
    expected, expected_gradient = reference.objective(
        flat, *described, X, y, 0.3, weight, np.finfo(dtype).eps
    )
    assert_close(value, expected, dtype)
    assert_close(gradient, expected_gradient, dtype)
    plain, _ = reference.objective(flat, *described, X, y, 0.0, weight, np.finfo(dtype).eps)
    assert_close(engine.evaluate(place_for(engine, X, y, weight)), plain, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("device", list(ENGINES), indirect=True)
def test_predictions_of_what_may_not_be_finite(device, dtype):
    network, objective = network_for((9, 7, 2), "relu", "squared_error")
    X, y = make_problem("squared_error", 230, 9, 2)
    engine = loaded_engine(device, network, objective, X, y, dtype)
    X = X.astype(dtype)
    expected = engine.predict(X)
    for value in (np.nan, np.inf, -np.inf, np.finfo(dtype).max):
        wrong = X.copy()
        wrong[200, 8] = value
        assert (engine.predict_if_finite(wrong) is None) == (not np.isfinite(value))
        np.testing.assert_array_equal(engine.predict_if_finite(X), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["squared_error", "log_loss"])
@pytest.mark.parametrize(
    "shape", [(300, 115), (9, 310, 270), (300, 2), (1500,), (4, 4100)], ids=str
)
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_gradients_of_larger_networks_and_batches(device, shape, loss, dtype):
    """Sizes at which kernels take other ways: many panels, long sums, full tiles."""
    network, objective = network_for(shape, "relu", loss)
    X, y = make_problem(loss, 600, network.widths[0], network.n_outputs)
    flat = (0.1 * parameters_for(network)).astype(dtype)
    engine = loaded_engine(device, network, objective, X, y, dtype, alpha=0.3)
    engine.set_parameters(flat)
    value, gradient = engine.loss_and_gradient()
    expected, expected_gradient = reference.objective(
        flat.astype(np.float64), network.widths, "relu", loss, X.astype(dtype), y, 0.3
    )
    assert_close(value, expected, dtype)
    assert_close(gradient, expected_gradient, dtype)


MIXED = [
    ("relu", "tanh", "logistic"),
    ("relu", "gelu", "relu"),
    ("mish", "relu", "tanh"),
    ("identity", "step", "hard_swish"),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", MIXED, ids=str)
@pytest.mark.parametrize("as_csr", [False, True])
def test_an_activation_for_each_layer(device, activation, as_csr, dtype):
    network, objective = make_network((4, 6, 5, 7, 2), activation, "squared_error")
    X, y = make_problem("squared_error", 23, 4, 2)
    X = X.astype(dtype)
    flat = parameters_for(network).astype(dtype)
    engine = get_engine(device, network, dtype=dtype, objective=objective, alpha=0.3, batch_size=23,
                        optimizer=Optimizer("sgd", CONSTANTS["sgd"]))  # fmt: skip
    engine.load(place_for(engine, sparse.csr_matrix(X) if as_csr else X, y))
    engine.set_parameters(flat)
    value, gradient = engine.loss_and_gradient()
    described = (network.widths, activation, "squared_error", X)
    expected, expected_gradient = reference.objective(flat, *described, y, 0.3)
    assert_close(value, expected, dtype)
    assert_close(gradient, expected_gradient, dtype)
    assert_close(engine.predict(X), reference.predict(flat, *described), dtype)
    engine.run_epoch(np.arange(23), np.full(1, 0.01))
    assert_close(engine.get_parameters(), flat - 0.01 * expected_gradient, dtype)


TRAININGS = [
    *itertools.product(["cpu"], LOSSES, OPTIMIZERS, [False, True]),
    # each once, because the emulator is slow; `test_cuda` has more of them
    *each_once(["cuda, emulated"], LOSSES, OPTIMIZERS, [True, True, False]),
]


@pytest.mark.parametrize(
    ("device", "loss", "rule", "weighted"), TRAININGS, indirect=["device"], ids=str
)
def test_ten_epochs_of_training(device, loss, rule, weighted):
    # at the 1 behind a layer's outputs, the bias's, the derivative is 0 of tanh, and 1 of the other
    activation = "identity" if weighted else "tanh"
    network, objective = network_for((6, 9, 4), activation, loss)
    X, y = make_problem(loss, 50, 6, network.n_outputs)
    weight = np.random.default_rng(2).uniform(0.5, 2.0, len(X)) if weighted else None
    flat = parameters_for(network)
    engine = loaded_engine(
        device, network, objective, X, y, "float64", weight,
        alpha=0.1, optimizer=Optimizer(rule, CONSTANTS[rule]), batch_size=16,
    )  # fmt: skip
    engine.set_parameters(flat)
    optimizer = reference.OPTIMIZERS[rule](flat.size, 0.01, *CONSTANTS[rule])
    rng = np.random.default_rng(3)
    for _ in range(10):
        order = rng.permutation(len(X))
        accumulated = engine.run_epoch(order, np.full(4, 0.01))
        expected = 0.0
        for start in range(0, len(X), 16):
            batch = order[start : start + 16]
            value, gradient = reference.objective(
                flat, network.widths, activation, loss, X[batch], y[batch], 0.1,
                None if weight is None else weight[batch],
            )  # fmt: skip
            expected += value * len(batch)
            flat = optimizer.step(flat, gradient)
        np.testing.assert_allclose(accumulated, expected, rtol=1e-10)
    np.testing.assert_allclose(engine.get_parameters(), flat, rtol=1e-9, atol=1e-11)


NEAR_ONE = 1 - 1e-8  # in float32 it is 1
EXTREME = [
    ("adam", (NEAR_ONE, 0.999, 1e-8)),
    ("adam", (0.9, NEAR_ONE, 1e-8)),
    ("adam", (0.9, 0.999, 1e-46)),
    ("nadam", (0.9, NEAR_ONE, 1e-8)),
    ("nadam", (0.9, 0.999, 1e-46)),
    ("rmsprop", (NEAR_ONE, 1e-8, 0.0)),
    ("rmsprop", (0.9, 1e-46, 0.0)),
    ("lion", (0.9, NEAR_ONE, 0.0)),
]


@pytest.mark.parametrize(("rule", "constants"), EXTREME)
def test_constants_that_float32_cannot_tell_from_one_or_zero(device, rule, constants):
    """No gradient reaches the last unit, so that its means are 0 and are divided by epsilon."""
    network, objective = network_for((6, 9, 4), "relu", "squared_error")
    X, y = make_problem("squared_error", 40, 6, 2)
    flat = parameters_for(network)
    (_, b1), *_ = reference.split(np.arange(flat.size), network.widths)
    flat[b1[-1]] = -100.0
    start = flat = flat.astype(np.float32).astype(float)
    engine = loaded_engine(
        device, network, objective, X, y, "float32",
        optimizer=Optimizer(rule, constants), batch_size=20,
    )  # fmt: skip
    engine.set_parameters(flat)
    optimizer = reference.OPTIMIZERS[rule](flat.size, 1e-5, *constants)
    for _ in range(5):
        engine.run_epoch(np.arange(40), np.full(2, 1e-5))
        for batch in (slice(20), slice(20, 40)):
            _, gradient = reference.objective(
                flat, network.widths, "relu", "squared_error", X[batch], y[batch]
            )
            flat = optimizer.step(flat, gradient)
    moved = flat - start
    tolerance = 0.01 * np.abs(moved).max()
    np.testing.assert_allclose(engine.get_parameters() - start, moved, rtol=0, atol=tolerance)


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_decoupled_weight_decay(device, rule, as_csr):
    """Of weights only, with the schedule's rate, beside the penalty of alpha."""
    network, objective = network_for((6, 9, 4), "tanh", "squared_error")
    X, y = make_problem("squared_error", 50, 6, 2)
    flat = parameters_for(network)
    engine = get_engine(
        device, network, dtype="float64", objective=objective, alpha=0.1, batch_size=25,
        optimizer=Optimizer(rule, CONSTANTS[rule], weight_decay=0.5),
    )  # fmt: skip
    engine.load(place_for(engine, sparse.csr_matrix(X) if as_csr else X, y))
    engine.set_parameters(flat)
    optimizer = reference.OPTIMIZERS[rule](flat.size, 0.0, *CONSTANTS[rule])
    weights = reference.is_weight(network.widths)
    for rates in ([0.01, 0.02], [0.03, 0.01], [0.01, 0.01]):
        accumulated, expected = engine.run_epoch(np.arange(50), np.array(rates)), 0.0
        for start, rate in zip((0, 25), rates, strict=True):
            batch = slice(start, start + 25)
            value, gradient = reference.objective(
                flat, network.widths, "tanh", "squared_error", X[batch], y[batch], 0.1
            )
            expected += 25 * value
            optimizer.rate = rate
            flat = optimizer.step(flat - rate * 0.5 * flat * weights, gradient)
        np.testing.assert_allclose(accumulated, expected, rtol=1e-10)
    np.testing.assert_allclose(engine.get_parameters(), flat, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_state_can_be_moved_to_another_engine(device, rule):
    network, objective = network_for((4, 5), "relu", "squared_error")
    X, y = make_problem("squared_error", 20, 4, 2)
    options = {"optimizer": Optimizer(rule, CONSTANTS[rule]), "batch_size": 6}
    order, rates = np.arange(20), np.full(4, 0.01)
    whole = loaded_engine(device, network, objective, X, y, "float64", **options)
    whole.set_parameters(parameters_for(network))
    first = loaded_engine(device, network, objective, X, y, "float64", **options)
    first.set_parameters(parameters_for(network))
    for _ in range(2):
        whole.run_epoch(order, rates)
    first.run_epoch(order, rates)
    second = loaded_engine(device, network, objective, X, y, "float64", **options)
    second.set_parameters(first.get_parameters())
    second.set_state(*first.get_state())
    second.run_epoch(order, rates)
    np.testing.assert_array_equal(second.get_parameters(), whole.get_parameters())
    assert second.get_state()[1] == whole.get_state()[1] == 8


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    ("shape", "loss"), [((30, 7), "log_loss"), ((30,), "squared_error")], ids=str
)
def test_sparse_equals_dense(device, dtype, density, shape, loss):
    network, objective = network_for(shape, "relu", loss)
    X = sparse.random(40, 30, density, "csr", random_state=np.random.default_rng(0), dtype=dtype)
    _, y = make_problem(loss, 40, 30, network.n_outputs)
    results = []
    for data in (X, X.toarray()):
        engine = get_engine(
            device, network, dtype=dtype, objective=objective, alpha=0.1,
            optimizer=Optimizer("adam", CONSTANTS["adam"]), batch_size=15,
        )  # fmt: skip
        engine.load(place_for(engine, data, y))
        engine.set_parameters(parameters_for(network))
        losses = [engine.run_epoch(np.arange(40), np.full(3, 0.01)) for _ in range(3)]
        results.append((losses, engine.get_parameters(), engine.predict(data)))
    for sparse_result, dense_result in zip(*results, strict=True):
        assert_close(np.array(sparse_result), np.array(dense_result), dtype)


def test_large_batches_are_worked_through_in_micro_batches(device, monkeypatch):
    """Their boundaries change nothing but rounding, for dense and sparse input."""
    target = importlib.import_module(f"fastmlp.engine.{device}.engine")
    n_samples, sizes = (100, (1, 7, 33, 100)) if device == "cpu" else (20, (7, 20))
    network, objective = network_for((6, 9), "tanh", "log_loss")
    X, y = make_problem("log_loss", n_samples, 6, 3)
    flat = parameters_for(network)
    expected, expected_gradient = reference.objective(
        flat, network.widths, "tanh", "log_loss", X, y, 0.2
    )
    for rows in sizes:
        monkeypatch.setattr(target, "_MICRO_BATCH_ROWS", rows)
        for data in (X, sparse.csr_matrix(X)):
            engine = get_engine(device, network, dtype="float64", objective=objective, alpha=0.2)
            engine.load(place_for(engine, data, y))
            engine.set_parameters(flat)
            value, gradient = engine.loss_and_gradient()
            np.testing.assert_allclose(value, expected, rtol=1e-12)
            np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-13)
            np.testing.assert_allclose(
                engine.predict(data),
                reference.predict(flat, network.widths, "tanh", "log_loss", X),
                rtol=1e-12,
            )


def _layouts(X):
    """The same numbers in the memory layouts that users bring."""
    readonly = X.copy()
    readonly.flags.writeable = False
    wide = np.full((X.shape[0], 2 * X.shape[1]), np.nan)
    wide[:, : X.shape[1]] = X
    return {
        "C": X,
        "F": np.asfortranarray(X),
        "readonly": readonly,
        "row-strided": wide[:, : X.shape[1]],
        "every second row": np.repeat(X, 2, axis=0)[::2],
        "every second column": np.repeat(X, 2, axis=1)[:, ::2],
        "reversed": X[::-1][::-1],
        "reversed rows": np.ascontiguousarray(X[::-1])[::-1],
    }


@settings(deadline=None, max_examples=40)
@given(
    n_samples=st.integers(1, 40),
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    batch_size=st.integers(1, 50),
    dtype=st.sampled_from(["float32", "float64"]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    loss=st.sampled_from(sorted(LOSSES)),
)
def test_any_shape_and_memory_layout(n_samples, widths, batch_size, dtype, activation, loss):
    network, objective = network_for(tuple(widths), activation, loss)
    X, y = make_problem(loss, n_samples, widths[0], network.n_outputs)
    flat = parameters_for(network)
    expected = None
    for name, data in _layouts(X).items():
        engine = get_engine(
            "cpu", network, dtype=dtype, objective=objective, alpha=0.1,
            optimizer=Optimizer("sgd", CONSTANTS["sgd"]), batch_size=batch_size,
        )  # fmt: skip
        engine.load(place_for(engine, data.astype(dtype, copy=False), y))
        engine.set_parameters(flat)
        steps = -(-n_samples // min(batch_size, n_samples))
        loss = engine.run_epoch(np.arange(n_samples), np.full(steps, 1e-4))
        result = np.array([loss, *engine.get_parameters(), *engine.predict(data).ravel()])
        expected = result if expected is None else expected
        np.testing.assert_array_equal(result, expected, err_msg=name)


def test_a_batch_without_weight_is_passed_over(device):
    network, objective = network_for((4, 5), "relu", "squared_error")
    X, y = make_problem("squared_error", 20, 4, 2)
    weight = np.ones(20)
    weight[:10] = 0
    engine = loaded_engine(
        device, network, objective, X, y, "float64", weight,
        alpha=0.1, optimizer=Optimizer("sgd", CONSTANTS["sgd"]), batch_size=10,
    )  # fmt: skip
    flat = parameters_for(network)
    engine.set_parameters(flat)
    accumulated = engine.run_epoch(np.arange(20), np.full(2, 0.01))
    value, gradient = reference.objective(
        flat, network.widths, "relu", "squared_error", X[10:], y[10:], 0.1
    )
    np.testing.assert_allclose(accumulated, 10 * value)
    np.testing.assert_allclose(engine.get_parameters(), flat - 0.01 * gradient, rtol=1e-10)


def test_unknown_device_is_refused():
    network, _ = network_for((4,), "relu", "log_loss")
    with pytest.raises(ValueError, match=r"device='tpu' is not supported; use one of"):
        get_engine("tpu", network, dtype="float64")


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors have no such mode"
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_takes_subnormal_numbers_for_zero_and_leaves_none_the_wiser(dtype):
    """Each would take some processors 150 cycles, and a mean that decays to one keeps it."""
    network = Network((2, 3, 1), "identity", "identity")
    objective, tiny = Objective("squared_error", 1, (), 0.0), np.finfo(dtype).tiny
    optimizer = Optimizer.of("adam", (0.9, 0.999, 1e-8), 0.0, None, None)
    engine = get_engine("cpu", network, dtype=dtype, objective=objective, optimizer=optimizer)
    nothing = np.zeros((4, 2), dtype), np.zeros((4, 1), dtype)
    engine.load(place("cpu", *nothing, None, dtype=dtype, objective=objective))
    engine.set_parameters(np.zeros(network.n_parameters, dtype))
    engine.set_state(np.full((2, network.n_parameters), tiny / 8, dtype), 0)
    engine.run_epoch(np.arange(4), np.full(4, 1e-3))
    assert not engine.get_state()[0].any()
    assert np.array([tiny], dtype)[0] / dtype(8) > 0
