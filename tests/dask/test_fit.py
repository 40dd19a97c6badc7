"""Fits on clusters of a few workers: what they compute."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("distributed")

import dask.array as da
from clusters import LABELS, SMALL, VALUES, WEIGHT, X, assert_same, chunked, make_cluster
from distributed import Client
from sklearn.base import clone

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.dask import DaskMLPClassifier, DaskMLPRegressor
from fastmlp.dask.workers import Job, merge

pytestmark = pytest.mark.filterwarnings("ignore:Stochastic Optimizer")


# --- sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_sums_have_the_same_bits_whoever_holds_what(n):
    values = np.random.default_rng(n).normal(size=(n, 50)).astype(np.float32)
    leaves = {(0, i): [values[i]] for i in range(n)}
    (expected,) = merge(leaves, n).values()
    np.testing.assert_allclose(expected[0], values.sum(axis=0), rtol=1e-4, atol=1e-4)
    for seed in range(10):
        owner = np.random.default_rng(seed).integers(0, 4, n)
        nodes = {}
        for i in range(4):
            own = {at: sums for at, sums in leaves.items() if owner[at[1]] == i}
            nodes = merge(nodes | merge(own, n), n)
        (found,) = nodes.values()
        np.testing.assert_array_equal(found[0], expected[0])


def test_neighbours_travel_as_one_sum():
    nodes = merge({(0, i): [np.ones(1)] for i in range(4, 8)}, 11)
    assert {at: sums[0][0] for at, sums in nodes.items()} == {(2, 1): 4.0}
    nodes = merge({(0, 0): [], (0, 1): [np.ones(1)], (0, 2): []}, 4)
    assert {at: len(sums) for at, sums in nodes.items()} == {(1, 0): 1, (0, 2): 0}


# --- the mathematics ----------------------------------------------------------------------------


def as_one(array, n_parts=4, share=25):
    """Rows in the order in which steps of 100 take them from four partitions of 250."""
    parts = np.arange(1000).reshape(n_parts, 1000 // share // n_parts, share)
    return array[parts.swapaxes(0, 1).ravel()]


CLASSIFIERS = {
    "adam": {},
    "nesterov": {"solver": "sgd", "momentum": 0.8, "learning_rate": "cosine"},
    "everything of a step": {"weight_decay": 0.1, "max_grad_norm": 0.1, "ema_decay": 0.9,
                             "alpha": 1.0, "label_smoothing": 0.1, "layer_norm": True},
    "balanced": {"class_weight": "balanced", "alpha": 0.1},
    "weights of classes": {"class_weight": {"a": 0.0, "b": 2.0}, "solver": "nadam"},
    "focal": {"loss": "focal", "activation": "tanh"},
}  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_a_classifier_is_that_of_the_same_batches_on_one_machine(client, options, weighted):
    settings = SMALL | {"shuffle": False} | options
    weight = [WEIGHT] if weighted else []
    found = DaskMLPClassifier(**settings).fit(*map(chunked, (X, LABELS, *weight)))
    expected = MLPClassifier(**settings).fit(*map(as_one, (X, LABELS, *weight)))
    assert_same(found, expected, 1e-9)
    assert found.history_["learning_rate"] == expected.history_["learning_rate"]
    assert (found.n_iter_, found.t_) == (expected.n_iter_, expected.t_) == (6, 6000)
    assert 1 <= found.engine_info_["n_workers"] <= 3


REGRESSORS = {
    "squared_error": {},
    "float32": {},
    "poisson": {"loss": "poisson"},
    "huber": {"loss": "huber", "huber_delta": 0.3, "solver": "rmsprop"},
    "quantile": {"loss": "quantile", "quantile": 0.8},
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressor_is_that_of_the_same_batches_on_one_machine(client, name):
    settings = SMALL | {"shuffle": False} | REGRESSORS[name]
    y = np.abs(VALUES) if name == "poisson" else VALUES
    dtype, tolerance = ("float32", 1e-4) if name == "float32" else ("float64", 1e-9)
    found = DaskMLPRegressor(**settings).fit(chunked(X.astype(dtype)), chunked(y))
    expected = MLPRegressor(**settings).fit(as_one(X.astype(dtype)), as_one(y))
    assert_same(found, expected, tolerance)
    assert found.coefs_[0].dtype == dtype


def test_steps_of_uneven_partitions_take_every_row_once(client):
    """One epoch of plain descent on a sum that is linear in the parameters has no order."""
    uneven = (1, 0, 3, 400, 96, 500)
    y = np.column_stack([X[:, 0], -X[:, 3]])
    settings = SMALL | {"max_iter": 1, "batch_size": 1000, "solver": "sgd", "momentum": 0.0}
    found = DaskMLPRegressor(**settings).fit(
        da.from_array(X, chunks=(uneven, 6)), da.from_array(y, chunks=(uneven, 2))
    )
    assert_same(found, MLPRegressor(**settings).fit(X, y), 1e-9)
    found = DaskMLPRegressor(**settings | {"batch_size": 7}).fit(
        da.from_array(X, chunks=(uneven, 6)),
        chunked(y),  # is brought into the same partitions
    )
    assert found.t_ == 1000


@pytest.mark.parametrize("sync_every", [None, 3, "epoch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_whatever_the_number_of_workers(dtype, sync_every):
    options = {"sync_every": sync_every, "early_stopping": True, "dropout": 0.2}
    found = []
    for n_workers in (1, 2, 4):
        with make_cluster(n_workers) as cluster, Client(cluster) as client:
            model = DaskMLPClassifier(**SMALL, **options)
            found.append(model.fit(chunked(X.astype(dtype), 170), chunked(LABELS, 170),
                                   client=client))  # fmt: skip
            assert (found[-1].engine_info_["n_workers"] > 1) == (n_workers > 1)
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    assert found[0].validation_scores_ == found[1].validation_scores_ == found[2].validation_scores_


def test_shuffling_draws_new_orders_that_belong_to_the_seed(client):
    data = chunked(X), chunked(LABELS)
    first, again = (DaskMLPClassifier(**SMALL).fit(*data) for _ in range(2))
    assert_same(first, again)
    other = DaskMLPClassifier(**SMALL | {"shuffle": False}).fit(*data)
    assert np.abs(first.coefs_[0] - other.coefs_[0]).max() > 1e-4


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("sync_every", [1, 3, "epoch"])
def test_one_partition_alone_is_a_fit_on_one_machine(client, sync_every, options):
    settings = SMALL | {"shuffle": False, "alpha": 0.1} | options
    found = DaskMLPClassifier(sync_every=sync_every, **settings).fit(
        chunked(X, 1000), chunked(LABELS, 1000), chunked(WEIGHT, 1000)
    )
    assert_same(found, MLPClassifier(**settings).fit(X, LABELS, WEIGHT), 1e-9)


def test_partitions_that_train_alone_are_averaged_by_their_weights(client):
    settings = SMALL | {"shuffle": False, "alpha": 0.2, "max_iter": 1}
    found = DaskMLPRegressor(sync_every="epoch", **settings).fit(
        *(chunked(array, 500) for array in (X, VALUES, WEIGHT))
    )
    alone = MLPRegressor(**settings | {"alpha": 0.1, "batch_size": 50})
    halves = [clone(alone).fit(X[i], VALUES[i], WEIGHT[i]) for i in (slice(500), slice(500, 1000))]
    shares = WEIGHT.reshape(2, 500).sum(axis=1) / WEIGHT.sum()
    for layer in range(3):
        mean = sum(w * half.coefs_[layer] for w, half in zip(shares, halves, strict=True))
        np.testing.assert_allclose(found.coefs_[layer], mean, rtol=1e-10)


def test_shares_of_small_partitions_are_spread_over_the_steps():
    rows = (5, 0, 3) * 50
    setting = SimpleNamespace(batch_size=50)
    job = Job(
        *[None] * 2, setting, *[None] * 4, n_rows=rows, n_val=0, alone=False, wants_loss=False
    )
    assert job.n_steps == 8
    assert all(40 <= job.rows_of(step) <= 60 for step in range(8))
    assert sum(map(job.rows_of, range(8))) == 400
    for part, n_rows in enumerate(rows):
        begins = [job.first_row(part, step) for step in range(9)]
        assert (begins[0], begins[-1]) == (0, n_rows)
        assert begins == sorted(begins)


def test_averaging_learns(client):
    model = DaskMLPClassifier(sync_every=5, **SMALL | {"max_iter": 40})
    assert model.fit(chunked(X), chunked(LABELS)).to_local().score(X, LABELS) > 0.95
