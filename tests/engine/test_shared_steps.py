"""Steps whose gradient is summed up by many: `sum_gradients` of parts, then `apply_gradient`."""

import numpy as np
import pytest
import reference
from engines import assert_close, parameters_for
from problems import CONSTANTS, make_network, make_problem, place_for
from scipy import sparse

from fastmlp.dropout import Dropout
from fastmlp.engine import get_engine
from fastmlp.functions import LOSSES
from fastmlp.optimizers import OPTIMIZERS, Optimizer

OPTIMIZER_OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "clipped": {"max_grad_norm": 0.05},
    "average": {"ema_decay": 0.9},
    "all": {"weight_decay": 0.1, "max_grad_norm": 0.05, "ema_decay": 0.9},
}


def loaded(network, objective, X, y, weight=None, dtype="float64", **options):
    engine = get_engine("cpu", network, dtype=dtype, objective=objective, **options)
    engine.load(place_for(engine, X, y, weight))
    engine.set_parameters(parameters_for(network).astype(dtype))
    return engine


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_losses_weights_and_gradients(loss, weighted, dtype):
    network, objective = make_network((5, 7, 3), "tanh", loss)
    X, y = make_problem(loss, 40, 5, 3)
    X = X.astype(dtype)
    weight = np.random.default_rng(1).uniform(0.5, 2.0, 40) if weighted else None
    engine = loaded(network, objective, X, y, weight, dtype, alpha=0.3)
    for rows in (np.arange(40), np.array([3, 1, 39]), np.array([7])):
        found_loss, total, gradient = engine.sum_gradients(rows, 0)
        own = None if weight is None else weight[rows]
        assert total == pytest.approx(rows.size if own is None else own.sum())
        mean, mean_gradient = reference.objective(
            parameters_for(network).astype(dtype), network.widths, "tanh", loss, X[rows], y[rows],
            0.0, own, np.finfo(dtype).eps,
        )  # fmt: skip
        assert_close(found_loss / total, mean, dtype)
        assert_close(gradient / total, mean_gradient, dtype)


def steps_together(engine, batches, rate):
    """An epoch's loss, each batch being the sum of two parts."""
    losses = 0.0
    for rows in batches:
        parts = [engine.sum_gradients(part, engine.n_steps) for part in (rows[::2], rows[1::2])]
        loss, total, gradient = (a + b for a, b in zip(*parts, strict=True))
        penalty = engine.apply_gradient(gradient, total, rate)
        losses += (loss / total + penalty) * rows.size
    return losses


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("extra", OPTIMIZER_OPTIONS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_steps_are_those_of_an_epoch(rule, extra, dtype):
    network, objective = make_network((6, 9, 4, 3), "relu", "log_loss")
    X, y = make_problem("log_loss", 50, 6, 3)
    weight = np.random.default_rng(2).uniform(0.5, 2.0, 50)
    options = {
        "alpha": 0.1, "batch_size": 17,
        "optimizer": Optimizer(rule, CONSTANTS[rule], **OPTIMIZER_OPTIONS[extra]),
    }  # fmt: skip
    whole = loaded(network, objective, X, y, weight, dtype, **options)
    shared = loaded(network, objective, X, y, weight, dtype, **options)
    tolerance = 1e-10 if dtype == "float64" else 2e-3
    for epoch in range(5):
        order = np.random.default_rng(epoch).permutation(50)
        loss = whole.run_epoch(order, np.full(3, 0.01))
        batches = [order[start : start + 17] for start in range(0, 50, 17)]
        assert steps_together(shared, batches, 0.01) == pytest.approx(loss, rel=tolerance)
    assert shared.n_steps == whole.n_steps == 15
    np.testing.assert_allclose(
        shared.get_parameters(), whole.get_parameters(), rtol=tolerance, atol=tolerance
    )
    np.testing.assert_allclose(
        shared.get_state()[0], whole.get_state()[0], rtol=tolerance, atol=tolerance
    )
    np.testing.assert_allclose(shared.predict(X), whole.predict(X), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("as_csr", [False, True])
def test_more_rows_than_the_workspace_holds(as_csr):
    network, objective = make_network((6, 9, 2), "tanh", "squared_error")
    X, y = make_problem("squared_error", 3000, 6, 2)
    engine = loaded(network, objective, sparse.csr_matrix(X) if as_csr else X, y)
    for rows in (np.arange(3000), np.arange(20), np.arange(2500)[::-1]):
        loss, total, gradient = engine.sum_gradients(np.ascontiguousarray(rows), 0)
        mean, expected = reference.objective(
            parameters_for(network), network.widths, "tanh", "squared_error", X[rows], y[rows], 0.0
        )
        assert_close(loss / total, mean, "float64")
        assert_close(gradient / total, expected, "float64")


def test_dropout_goes_by_the_step_and_nothing_else_changes():
    network, objective = make_network((6, 20, 2), "tanh", "squared_error")
    X, y = make_problem("squared_error", 30, 6, 2)
    engine = loaded(network, objective, X, y, dropout=Dropout((0.5,), 3))
    rows = np.arange(30)
    first, second = (engine.sum_gradients(rows, step)[2] for step in (0, 1))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(engine.sum_gradients(rows, 0)[2], first)
    assert engine.n_steps == 0


def test_no_weight_is_no_step():
    network, objective = make_network((6, 9, 2), "tanh", "squared_error")
    X, y = make_problem("squared_error", 30, 6, 2)
    optimizer = Optimizer("sgd", CONSTANTS["sgd"])
    engine = loaded(network, objective, X, y, np.arange(30) % 2.0, alpha=0.1, optimizer=optimizer)
    before = engine.get_parameters()
    loss, total, gradient = engine.sum_gradients(np.array([0, 2, 4]), 0)
    assert (loss, total, np.abs(gradient).max()) == (0.0, 0.0, 0.0)
    assert engine.sum_gradients(np.empty(0, np.int64), 0)[1] == 0.0
    assert engine.apply_gradient(gradient, total, 0.1) == 0.0
    assert engine.n_steps == 1
    np.testing.assert_array_equal(engine.get_parameters(), before)


def test_what_a_step_needs():
    network, objective = make_network((6, 9, 2), "tanh", "squared_error")
    X, y = make_problem("squared_error", 30, 6, 2)
    engine = loaded(network, objective, X, y)
    with pytest.raises(ValueError, match="made with an optimizer"):
        engine.apply_gradient(np.zeros(network.n_parameters), 1.0, 0.1)


@pytest.mark.parametrize("device", ["cuda, emulated"], indirect=True)
def test_cuda_refuses(device):
    network, objective = make_network((6, 9, 2), "tanh", "squared_error")
    engine = get_engine(device, network, dtype="float64", objective=objective)
    with pytest.raises(NotImplementedError, match="set device='cpu'"):
        engine.sum_gradients(np.arange(2), 0)
    with pytest.raises(NotImplementedError, match="set device='cpu'"):
        engine.apply_gradient(np.zeros(2), 1.0, 0.1)
