"""Formulas against SciPy, scikit-learn and finite differences; the tables are enumerated."""

import numpy as np
import pytest
import reference

from fastmlp.functions import ACTIVATIONS, LINKS, LOSSES

POINTS = [-30.0, -4.3, -1.0, -1e-3, 1e-3, 0.7, 2.0, 25.0]
EPS = np.finfo(float).eps


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # 1 / infinity is the result
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("z", POINTS)
def test_activation_and_its_derivative(name, z):
    row = ACTIVATIONS[name]
    value, derivative = reference.HIDDEN[name]
    z = np.float64(z)
    a = row.value(z)
    slope = row.derivative(z if row.of_score else a)
    np.testing.assert_allclose(a, value(np.array([z]))[0], rtol=2e-14)
    np.testing.assert_allclose(slope, derivative(np.array([z]))[0], rtol=1e-7, atol=1e-15)
    h = 1e-6
    numeric = (row.value(z + h) - row.value(z - h)) / (2 * h)
    if name == "step":
        assert numeric == 0
    else:
        np.testing.assert_allclose(slope, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_keeps_type_and_nan(name, dtype):
    row = ACTIVATIONS[name]
    assert row.value(dtype(0.3)).dtype == dtype
    assert row.derivative(dtype(0.3)).dtype == dtype
    assert np.isnan(row.value(dtype(np.nan)))


SCORE_LOSSES = [name for name, row in LOSSES.items() if not (row.per_row or row.of_probability)]
CLASS_LOSSES = [name for name, row in LOSSES.items() if row.of_probability and row.per_row]


@pytest.mark.parametrize("name", SCORE_LOSSES)
@pytest.mark.parametrize("z", POINTS)
@pytest.mark.parametrize("y", [0.0, 1.0, 3.0])
def test_elementwise_loss_and_its_gradient(name, z, y):
    row = LOSSES[name]
    y = min(y, 1.0) if name == "binary_log_loss" else y
    y = max(y, 0.5) if name == "gamma" else y
    z, y, constant = np.float64(z), np.float64(y), np.float64(reference.CONSTANT.get(name, 0))
    expected = reference.losses(name, np.array([[z]]), np.array([[y]]))[0]
    np.testing.assert_allclose(row.value(z, y, EPS, constant), expected, rtol=1e-12, atol=5e-15)
    h = min(1e-6 * max(1.0, abs(z)), 0.1 * abs(z))
    values = [row.value(z + step, y, EPS, constant) for step in (-h, h)]
    numeric = np.diff(values) / (2 * h)
    np.testing.assert_allclose(row.gradient(z, y, constant), numeric[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("y", [0.0, 0.3, 1.0])
def test_loss_of_a_class_and_its_gradient(name, y):
    row, constant = LOSSES[name], np.float64(reference.CONSTANT.get(name, 0))
    for log_p in np.array([-40.0, -3.0, -0.7, -1e-3, -1e-9]):
        expected = reference.class_losses(name, np.array([[log_p]]), np.array([[y]]))[0]
        got = row.value(np.exp(log_p), log_p, y, constant)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-15)
        if log_p > -1e-6:
            continue  # too near to 0 for a finite difference
        h = 1e-5 * abs(log_p)
        values = [row.value(np.exp(at), at, y, constant) for at in (log_p - h, log_p + h)]
        gradient = row.gradient(np.exp(log_p), log_p, y, constant)
        np.testing.assert_allclose(gradient, np.diff(values)[0] / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["absolute_error", "huber", "quantile", "log_cosh"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_of_residuals_at_zero_and_nan(name, dtype):
    row, one, constant = LOSSES[name], dtype(1), dtype(0.3)
    assert row.value(one, one, dtype(0), constant) == row.gradient(one, one, constant) == 0
    assert np.isnan(row.value(dtype(np.nan), one, dtype(0), constant))
    assert np.isnan(row.gradient(dtype(np.nan), one, constant))
    assert row.value(dtype(3), one, dtype(0), constant).dtype == dtype
    assert row.gradient(dtype(3), one, constant).dtype == dtype


@pytest.mark.parametrize("z", [-1e4, -40.0, 40.0, 1e4])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_binary_log_loss_is_clamped_like_clipped_probabilities(z, y):
    from sklearn.neural_network._base import binary_log_loss

    probability = reference.OUTPUT["binary_log_loss"](np.array([[z]]))
    expected = binary_log_loss(np.array([[y]]), probability)
    got = LOSSES["binary_log_loss"].value(z, y, EPS, 0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_softmax_loss():
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 30.0):
        z = rng.normal(scale=scale, size=7)
        for y in range(7):
            value = LOSSES["log_loss"].value(np.log(np.exp(z).sum()), z[y], EPS)
            expected = reference.losses("log_loss", z[None], np.array([y]))[0]
            np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
    assert np.isnan(LOSSES["log_loss"].value(np.nan, 0.0, EPS))


def test_output_activations_are_known():
    assert {row.out_activation for row in LOSSES.values()} == set(LINKS)
