"""PiecewiseLinearEncoder: the paper's formula, its edges, what it takes."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmlp import PiecewiseLinearEncoder

X = np.random.default_rng(0).normal(size=(300, 3)) ** 3


@parametrize_with_checks([PiecewiseLinearEncoder(), PiecewiseLinearEncoder(strategy="tree")])
def test_estimator_checks(estimator, check):
    check(estimator)


def by_formula(x, edges):
    """One number by the paper's three cases, clipped at the ends."""
    n = len(edges) - 1
    encoded = []
    for t in range(1, n + 1):
        if x < edges[t - 1]:
            encoded.append(0.0)
        elif x >= edges[t]:
            encoded.append(1.0)
        else:
            encoded.append((x - edges[t - 1]) / (edges[t] - edges[t - 1]))
    return encoded


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_bins", [1, 5, 40])
def test_encoding_is_the_formula(n_bins, dtype):
    encoder = PiecewiseLinearEncoder(n_bins).fit(X)
    new = (2 * X).astype(dtype)
    found = encoder.transform(new)
    assert found.dtype == dtype
    expected = []
    for row in new:
        encoded = map(by_formula, row.tolist(), encoder.bin_edges_)
        expected.append([e for of_feature in encoded for e in of_feature])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 if dtype == np.float32 else 1e-12)


def test_quantile_edges_have_equal_shares():
    edges = PiecewiseLinearEncoder(6).fit(X).bin_edges_
    for j, of_feature in enumerate(edges):
        counts = np.histogram(X[:, j], of_feature)[0]
        assert counts.tolist() == [50] * 6


def test_equal_values_make_fewer_bins():
    numbers = np.c_[np.repeat([1.0, 2.0, 3.0], 100), np.ones(300), np.full(300, np.nan)]
    encoder = PiecewiseLinearEncoder().fit(numbers)
    assert [edges.tolist() for edges in encoder.bin_edges_] == [[1.0, 2.0, 3.0], [], []]
    expected = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
    np.testing.assert_array_equal(encoder.transform(numbers)[::100], expected)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_tree_edges_are_where_the_target_jumps(task):
    x = np.random.default_rng(0).uniform(0, 10, 2000)
    y = np.searchsorted([1.0, 2.0, 7.0], x)
    y = np.array(["a", "b", "c", "d"])[y] if task == "classification" else 0.5 + y
    edges = PiecewiseLinearEncoder(4, strategy="tree").fit(x[:, None], y).bin_edges_[0]
    np.testing.assert_allclose(edges[1:-1], [1, 2, 7], atol=0.05)


def test_whole_numbers_are_values_if_told():
    x = np.linspace(0, 1, 1000)
    y = np.round(1e4 * (x > 0.3)).astype(int) + np.arange(1000) % 7
    encoder = PiecewiseLinearEncoder(2, strategy="tree", task="regression")
    assert abs(encoder.fit(x[:, None], y).bin_edges_[0][1] - 0.3) < 0.002


def test_missing_values_are_left_out_and_become_zero():
    holes = X.copy()
    holes[::3] = np.nan
    for strategy in ("quantile", "tree"):
        encoder = PiecewiseLinearEncoder(5, strategy=strategy).fit(holes, X[:, 0])
        known = PiecewiseLinearEncoder(5, strategy=strategy)
        keep = ~np.isnan(holes[:, 0])
        if strategy == "quantile":
            known.fit(X[keep], X[keep, 0])
            for found, expected in zip(encoder.bin_edges_, known.bin_edges_, strict=True):
                np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(encoder.transform(holes)[::3], 0)


def test_a_linear_model_of_it_is_piecewise_linear():
    x = np.linspace(-1, 1, 400)[:, None]
    y = np.abs(x[:, 0])
    model = make_pipeline(PiecewiseLinearEncoder(4), LinearRegression()).fit(x, y)
    assert model.score(x, y) > 0.9999
    assert LinearRegression().fit(x, y).score(x, y) < 0.01


def test_subsample_is_drawn_by_random_state():
    first, second = (
        PiecewiseLinearEncoder(subsample=100, random_state=seed).fit(X) for seed in (0, 0)
    )
    assert all(map(np.array_equal, first.bin_edges_, second.bin_edges_))
    other = PiecewiseLinearEncoder(subsample=100, random_state=1).fit(X)
    assert not np.array_equal(first.bin_edges_[0], other.bin_edges_[0])


def test_names():
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    encoder = PiecewiseLinearEncoder(2).set_output(transform="pandas")
    assert list(encoder.fit_transform(frame)) == ["a_0", "a_1", "b_0", "b_1", "c_0", "c_1"]


def test_a_tree_needs_a_target():
    with pytest.raises(ValueError, match="strategy='tree' requires y"):
        PiecewiseLinearEncoder(strategy="tree").fit(X)
