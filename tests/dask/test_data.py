"""Data that fits on clusters take or refuse, how they judge them, and what comes out."""

import pickle

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

from fastmlp import MLPClassifier
from fastmlp.dask import DaskMLPClassifier, DaskMLPRegressor
from fastmlp.dask.team import Team
from fastmlp.dask.workers import Part, Shard

pytestmark = pytest.mark.filterwarnings("ignore:Stochastic Optimizer")


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
