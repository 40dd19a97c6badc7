"""Fits on clusters of a few workers: what they compute, and what comes out."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("distributed")

import dask.array as da
import dask.dataframe as dd
import pandas as pd
from clusters import LABELS, SMALL, VALUES, WEIGHT, X, assert_same, chunked, make_cluster
from distributed import Client
from processes import run_python
from sklearn.base import clone
from sklearn.metrics import accuracy_score, log_loss, r2_score

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.dask import DaskMLPClassifier, DaskMLPRegressor
from fastmlp.dask.team import Team
from fastmlp.dask.workers import Job, Part, Shard, merge

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


# --- data ---------------------------------------------------------------------------------------


def test_a_class_of_one_partition_empty_partitions_and_frames(client):
    order = np.argsort(LABELS, kind="stable")
    frame = pd.DataFrame(X[order].astype(np.float32), columns=list("uvwxyz"))
    frame["label"] = LABELS[order]
    frame = dd.from_pandas(frame, npartitions=5, sort=False)
    frame = frame.map_partitions(lambda part: part[part.index >= 400])  # two become empty
    found = DaskMLPClassifier(**SMALL | {"max_iter": 30}).fit(frame[list("uvwxyz")], frame["label"])
    assert found.classes_.tolist() == sorted(set(LABELS[order][400:]))
    assert found.feature_names_in_.tolist() == list("uvwxyz")
    assert found.coefs_[0].dtype == np.float32
    assert found.t_ == 600 * 30


def test_partitions_of_unknown_length(client):
    is_a = LABELS == "a"
    frames = (dd.from_pandas(data, npartitions=4) for data in (pd.DataFrame(X), pd.Series(is_a)))
    data = [frame.to_dask_array() for frame in frames]
    assert np.isnan(data[0].shape[0])
    known = DaskMLPClassifier(**SMALL).fit(chunked(X), chunked(is_a))
    assert_same(DaskMLPClassifier(**SMALL).fit(*data), known)


def test_rows_without_weight_do_not_count(client):
    weight = np.r_[np.zeros(500), WEIGHT[500:]]
    settings = SMALL | {"shuffle": False, "alpha": 0.0, "batch_size": 200}
    found = DaskMLPClassifier(**settings).fit(*map(chunked, (X, LABELS, weight)))
    half = DaskMLPClassifier(**settings | {"batch_size": 100}).fit(
        *(chunked(array[500:]) for array in (X, LABELS, weight))
    )
    assert_same(found, half, 1e-9)


def sometimes_bad(block):
    return np.where(np.arange(len(block))[:, None] == 3, np.nan, block)


BAD_DATA = {
    "not of Dask": (
        X,
        chunked(LABELS),
        TypeError,
        "X must be a Dask array or a Dask frame, got nd",
    ),
    "other partitions": (chunked(X), chunked(LABELS[:900]), ValueError, "the same rows: one of X"),
    "fewer partitions": (chunked(X), chunked(LABELS[:500]), ValueError, "X 4, y 2; rechunk or re"),
    "no rows": (chunked(X)[:0], chunked(LABELS)[:0], ValueError, "X has no rows"),
    "NaN": (chunked(X).map_blocks(sometimes_bad), chunked(LABELS), ValueError, "contains NaN"),
    "indicators": (chunked(X), chunked(VALUES > 0), ValueError, "indicator matrices are not"),
}


@pytest.mark.parametrize("case", BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_are_refused(client, case):
    *data, kind, message = case
    model = DaskMLPClassifier(**SMALL)
    with pytest.raises(kind, match=message):
        model.fit(*data)
    assert not hasattr(model, "classes_")
    assert not client.futures


def read(block):
    return np.load("there is no such file.npy")


def test_errors_of_reading_are_not_taken_for_losses(client):
    data = chunked(X).map_blocks(read, dtype=X.dtype, meta=X[:0])
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        DaskMLPClassifier(**SMALL).fit(data, chunked(LABELS))
    assert not client.futures


def test_bad_validation_data_and_weights_are_refused(client):
    data, model = (chunked(X), chunked(LABELS)), DaskMLPClassifier(**SMALL)
    with pytest.raises(ValueError, match="y_val has classes that y does not have: \\['d'\\]"):
        model.fit(*data, X_val=data[0], y_val=chunked(np.full(1000, "d")))
    with pytest.raises(ValueError, match="X_val and y_val must have the columns of X and y"):
        model.fit(*data, X_val=data[0][:, :2], y_val=data[1])
    with pytest.raises(ValueError, match="belong together: y_val is missing"):
        model.fit(*data, X_val=data[0])
    with pytest.raises(ValueError, match="sum of the sample weights of X must be finite and above"):
        model.fit(*data, chunked(np.zeros(1000)))
    with pytest.raises(ValueError, match=r"validation_fraction=0\.0001 sets 0 of 1000 rows aside"):
        clone(model).set_params(early_stopping=True, validation_fraction=1e-4).fit(*data)


REFUSED = {
    "solver": ("lbfgs", "use a stochastic solver"),
    "device": ("cuda", "set device='cpu'"),
    "warm_start": (True, "to_local"),
    "n_restarts": (2, "another random_state each"),
    "checkpoint": ("file", "save to_local"),
    "scoring": ("f1", "use None or 'loss'"),
    "sync_every": (0, "sync_every"),
    "timeout": (0.0, "timeout"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parameters_that_make_no_sense_are_refused_before_work(name):
    value, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):  # and not for want of a cluster
        DaskMLPClassifier(**{name: value})._fit_on(None, None, None, None, (None, None, None))


def test_what_else_is_refused(client):
    with pytest.raises(ValueError, match="set scoring='loss'"):
        DaskMLPRegressor(loss="quantile", early_stopping=True).fit(chunked(X), chunked(VALUES))
    assert not hasattr(DaskMLPClassifier(), "partial_fit")
    with pytest.raises(AttributeError) as caught:
        _ = DaskMLPClassifier().partial_fit
    assert "use to_local().partial_fit" in str(caught.value.__cause__)


def test_without_a_cluster():
    found = run_python("""
        import dask.array as da
        from fastmlp.dask import DaskMLPClassifier
        try:
            DaskMLPClassifier().fit(da.zeros((4, 1)), da.arange(4))
        except ValueError as error:
            print(error)
    """)
    assert found == "fit needs a cluster: make a distributed.Client first, or pass client.\n"


def test_without_dask():
    found = run_python("""
        import sys
        sys.modules["distributed"] = None
        try:
            import fastmlp.dask
        except ImportError as error:
            print(error)
    """)
    assert found == ('fastmlp.dask needs Dask with its scheduler: pip install "fastmlp[dask]".\n')


# --- validation ---------------------------------------------------------------------------------


def test_validation_data_stay_on_workers_and_score_as_on_one_machine(client):
    settings = SMALL | {"max_iter": 25, "early_stopping": True}
    held = X[:300] + 0.1, LABELS[:300], WEIGHT[:300]
    X_val, y_val, weight = (chunked(array, 77) for array in held)
    model = DaskMLPClassifier(**settings).fit(
        chunked(X), chunked(LABELS), X_val=X_val, y_val=y_val, sample_weight_val=weight
    )
    local = model.to_local()
    score = accuracy_score(held[1], local.predict(held[0]), sample_weight=held[2])
    assert model.best_validation_score_ == pytest.approx(score)
    best = int(np.argmax(model.validation_scores_))
    loss = log_loss(held[1], local.predict_proba(held[0]), sample_weight=held[2])
    assert model.validation_loss_curve_[best] == pytest.approx(loss)
    assert model.restart_scores_.tolist() == [model.best_validation_score_]


def test_r2_over_all_partitions(client):
    settings = SMALL | {"max_iter": 25, "early_stopping": True}
    model = DaskMLPRegressor(**settings).fit(
        chunked(X), chunked(VALUES), X_val=chunked(X + 0.1, 77), y_val=chunked(VALUES, 77)
    )
    expected = r2_score(VALUES, model.to_local().predict(X + 0.1))
    assert model.best_validation_score_ == pytest.approx(expected)


def test_early_stopping_sets_rows_of_every_partition_aside(client):
    settings = {"early_stopping": True, "validation_fraction": 0.2, "scoring": "loss"}
    model = DaskMLPClassifier(
        **SMALL | settings | {"max_iter": 300, "learning_rate_init": 0.05, "n_iter_no_change": 4}
    ).fit(chunked(X, 333), chunked(LABELS, 333))
    assert model.stop_reason_ == "converged"
    assert model.t_ == 800 * model.n_iter_
    assert model.best_validation_score_ == -min(model.validation_loss_curve_)
    assert model.best_validation_score_ > model.validation_scores_[-1]


def test_no_row_that_is_set_aside_is_trained_on(client, monkeypatch):
    jobs = []
    begin = Team.begin
    monkeypatch.setattr(Team, "begin", lambda team, job: [jobs.append(job), begin(team, job)])
    DaskMLPClassifier(early_stopping=True, n_threads=1, **SMALL).fit(
        chunked(X, 333), chunked(LABELS, 333)
    )
    (job,) = jobs
    assert sum(job.n_held) == 100
    parts = [Part(X[i : i + 333], LABELS[i : i + 333]) for i in (0, 333, 666)]
    shard = Shard(job, [0, 1, 2], [], *parts)
    for number, part in enumerate(parts):
        epochs = [shard._trained[number]._rows(epoch, 0, job.n_steps) for epoch in (1, 2, 3)]
        (trained,) = {tuple(sorted(rows)) for rows in epochs}
        held = np.setdiff1d(np.arange(333), trained)
        assert (len(trained), len(held)) == (job.n_rows[number], job.n_held[number])
        np.testing.assert_array_equal(
            shard._scored[number]._y, np.searchsorted(["a", "b", "c"], part.y[held])
        )


def test_a_client_that_is_not_the_current_one(client):
    data = chunked(X), chunked(LABELS)
    expected = DaskMLPClassifier(**SMALL).fit(*data)
    with make_cluster(1) as cluster, Client(cluster, set_as_default=False) as other:
        with make_cluster(2) as beside, Client(beside) as current:
            found = DaskMLPClassifier(**SMALL).fit(*data, client=other)
            assert not current.futures
        assert not other.futures
    assert not client.futures
    assert found.engine_info_["n_workers"] == 1
    assert_same(found, expected)


# --- what comes out -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(client):
    return DaskMLPClassifier(**SMALL).fit(chunked(X), chunked(LABELS))


def test_a_local_model(fitted):
    local = fitted.to_local()
    assert type(local) is MLPClassifier
    again = pickle.loads(pickle.dumps(fitted))
    for other in (local, again, again.to_local()):
        np.testing.assert_array_equal(other.predict_proba(X), fitted.predict_proba(X))
    assert local.partial_fit(X, LABELS).t_ == 7000
    assert fitted.t_ == 6000
    assert clone(fitted).get_params() == fitted.get_params()
    assert repr(DaskMLPClassifier((3,), sync_every=2)) == (
        "DaskMLPClassifier(hidden_layer_sizes=(3,), sync_every=2)"
    )
    assert repr(DaskMLPRegressor("huber", retries=0)) == "DaskMLPRegressor(loss='huber', retries=0)"


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba"])
def test_predictions_are_lazy(client, fitted, method):
    expected = getattr(fitted.to_local(), method)(X)
    lazy = getattr(fitted, method)(da.from_array(X, chunks=((300, 0, 700), 4)))
    assert isinstance(lazy, da.Array)
    assert (lazy.shape, lazy.dtype) == (expected.shape, expected.dtype)
    found = lazy.compute()
    if method == "predict":
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(getattr(fitted, method)(X), expected)


def test_predictions_for_frames_have_their_index(client):
    frame = pd.DataFrame(X, columns=list("uvwxyz"), index=np.arange(1000) * 2)
    lazy = dd.from_pandas(frame, npartitions=3)
    labels = dd.from_pandas(pd.Series(LABELS, index=frame.index), npartitions=3)
    model = DaskMLPClassifier(**SMALL).fit(lazy, labels)
    lazy = lazy.map_partitions(lambda part: part[part.index > 700])  # the first becomes empty
    local, rows = model.to_local(), frame[frame.index > 700]
    predicted = model.predict(lazy).compute()
    assert predicted.index.tolist() == rows.index.tolist()
    assert predicted.tolist() == local.predict(rows).tolist()
    probabilities = model.predict_proba(lazy)
    assert probabilities.columns.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(probabilities.compute(), local.predict_proba(rows))
    values = dd.from_pandas(pd.DataFrame(VALUES, index=frame.index), npartitions=3)
    regressor = DaskMLPRegressor(**SMALL).fit(dd.from_pandas(frame, npartitions=3), values)
    assert regressor.predict(lazy).compute().shape == (len(rows), 2)


def test_local_models_predict_inside_of_dask(client):
    model = MLPClassifier(**SMALL).fit(X, LABELS)
    lazy = chunked(X).map_blocks(model.predict, dtype=LABELS.dtype, drop_axis=1)
    assert lazy.compute().tolist() == model.predict(X).tolist()
    frame = dd.from_pandas(pd.DataFrame(X), npartitions=3)
    lazy = frame.map_partitions(lambda part: pd.Series(model.predict(part.to_numpy())),
                                meta=pd.Series(LABELS[:0]))  # fmt: skip
    assert lazy.compute().tolist() == model.predict(X).tolist()


def test_pickles_are_small():
    settings = SMALL | {"hidden_layer_sizes": (300, 300)}
    model = MLPClassifier(**settings).fit(X, LABELS)
    n_bytes = sum(array.nbytes for array in model.coefs_ + model.intercepts_)
    model.predict(X)  # prepares
    assert len(pickle.dumps(model)) < 3 * n_bytes + 10_000  # with the two slots of Adam
    model.partial_fit(X, LABELS)
    assert len(pickle.dumps(model)) < 3 * n_bytes + 10_000


def test_what_predicts_does_not_take_the_optimizer_along(client, fitted):
    graph = fitted.predict(chunked(X)).__dask_graph__()
    n_bytes = sum(array.nbytes for array in fitted.coefs_ + fitted.intercepts_)
    assert n_bytes < 2000
    assert "_optimizer_state" in fitted.to_local().__dict__
    assert b"_optimizer_state" not in pickle.dumps(dict(graph))
