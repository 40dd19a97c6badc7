"""Formulas against SciPy, scikit-learn and finite differences; the tables are enumerated."""

import numpy as np
import pytest
import reference

from fastmlp.functions import ACTIVATIONS, LOSSES, OUT_ACTIVATIONS

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


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if not row.per_row])
@pytest.mark.parametrize("z", POINTS)
@pytest.mark.parametrize("y", [0.0, 1.0, 3.0])
def test_elementwise_loss_and_its_gradient(name, z, y):
    row = LOSSES[name]
    y = min(y, 1.0) if name == "binary_log_loss" else y
    expected = reference.losses(name, np.array([[z]]), np.array([[y]]))[0]
    got = row.value(np.float64(z), np.float64(y), EPS)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)
    gradient = row.gradient(np.float64(z), np.float64(y))
    h = 1e-6 * max(1.0, abs(z))
    numeric = (row.value(z + h, np.float64(y), EPS) - row.value(z - h, np.float64(y), EPS)) / (
        2 * h
    )
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("z", [-1e4, -40.0, 40.0, 1e4])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_binary_log_loss_is_clamped_like_clipped_probabilities(z, y):
    from sklearn.neural_network._base import binary_log_loss

    probability = reference.OUTPUT["binary_log_loss"](np.array([[z]]))
    expected = binary_log_loss(np.array([[y]]), probability)
    got = LOSSES["binary_log_loss"].value(z, y, EPS)
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


def test_codes_are_distinct_and_output_activations_known():
    for table in (ACTIVATIONS, LOSSES):
        codes = [row.code for row in table.values()]
        assert len(set(codes)) == len(codes)
    assert {row.out_activation for row in LOSSES.values()} == set(OUT_ACTIVATIONS)
