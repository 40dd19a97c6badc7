"""What becomes of fits and searches that lose workers, wait for too long, or are interrupted."""

import contextlib
import itertools
import os
import signal
import threading
import time

import pytest

pytest.importorskip("distributed")

import dask
import dask.array as da
import joblib
from clusters import LABELS, SMALL, X, assert_same, chunked, make_cluster
from distributed import Client
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from fastmlp import MLPClassifier
from fastmlp.dask import DaskMLPClassifier, team

pytestmark = pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
SECONDS = 20  # that a scheduler hangs


class AtEpoch:
    """A schedule that does something in the client's process when some epochs begin."""

    def __init__(self, act, *epochs):
        self._act, self._epochs = act, list(epochs)

    def __call__(self, step, steps_per_epoch, max_iter):
        if step // steps_per_epoch in self._epochs:
            self._epochs.remove(step // steps_per_epoch)
            self._act()
        return 0.01

    def __reduce__(self):  # what it does does not travel
        return _constant, ()


def _constant():
    return constant


def constant(step, steps_per_epoch, max_iter):
    return 0.01


def kill_one(client):
    os.kill(min(client.run(os.getpid).values()), signal.SIGKILL)


def kill_all(client):
    """At once for the scheduler, too: those that it misses one after the other are two losses."""
    running = client.run(os.getpid)
    for pid in running.values():
        os.kill(pid, signal.SIGKILL)
    while not running.keys().isdisjoint(client.scheduler_info()["workers"]):
        time.sleep(0.05)


@pytest.mark.parametrize("sync_every", [None, "epoch"])
def test_a_lost_worker_costs_time_and_changes_no_bit(processes, sync_every):
    data = chunked(X), chunked(LABELS)
    settings = SMALL | {"sync_every": sync_every, "early_stopping": True, "timeout": 30}
    undisturbed = DaskMLPClassifier(learning_rate=constant, **settings).fit(*data)
    schedule = AtEpoch(lambda: kill_one(processes), 3)
    found = DaskMLPClassifier(learning_rate=schedule, **settings).fit(*data)
    assert not schedule._epochs
    assert_same(found, undisturbed)
    assert found.validation_scores_ == undisturbed.validation_scores_


def test_one_lost_worker_too_many_is_one_clear_error(processes):
    schedule = AtEpoch(lambda: kill_one(processes), 3)
    model = DaskMLPClassifier(learning_rate=schedule, retries=0, timeout=30, **SMALL)
    with pytest.raises(RuntimeError, match="A worker was lost during fit, and no more may be"):
        model.fit(chunked(X), chunked(LABELS))
    assert not hasattr(model, "coefs_")
    assert not processes.futures


def test_as_many_workers_may_be_lost_as_retries_say(processes):
    schedule = AtEpoch(lambda: kill_all(processes), 1, 3)
    model = DaskMLPClassifier(learning_rate=schedule, retries=1, timeout=30, **SMALL)
    with pytest.raises(RuntimeError, match="A worker was lost during fit, and no more may be"):
        model.fit(chunked(X), chunked(LABELS))
    assert not schedule._epochs


def test_data_that_cannot_be_computed_again_are_one_clear_error(processes):
    workers = list(processes.scheduler_info()["workers"])
    blocks = [
        da.from_delayed(dask.delayed(processes.scatter(X[i : i + 250], workers=[worker])),
                        (250, 6), X.dtype)
        for i, worker in zip(range(0, 1000, 250), workers * 2, strict=True)
    ]  # fmt: skip
    schedule = AtEpoch(lambda: kill_one(processes), 3)
    model = DaskMLPClassifier(learning_rate=schedule, timeout=10, **SMALL)
    with pytest.raises(RuntimeError, match="data are no longer on the cluster"):
        model.fit(da.concatenate(blocks), chunked(LABELS))


def test_a_client_that_talks_to_workers_directly(process_cluster):
    with Client(process_cluster, direct_to_workers=True) as client:
        client.wait_for_workers(2, timeout=30)
        model = DaskMLPClassifier(**SMALL).fit(chunked(X), chunked(LABELS))
    with make_cluster(1) as cluster, Client(cluster):
        assert_same(DaskMLPClassifier(**SMALL).fit(chunked(X), chunked(LABELS)), model)


def test_a_cluster_that_is_closed_is_one_clear_error():
    with make_cluster(2) as cluster, Client(cluster):
        schedule = AtEpoch(cluster.close, 2)
        model = DaskMLPClassifier(learning_rate=schedule, timeout=10, **SMALL)
        with pytest.raises(RuntimeError, match="data are no longer on the cluster: it was closed"):
            model.fit(chunked(X), chunked(LABELS))


def slow(block):
    time.sleep(1)
    return block


def test_waiting_has_an_end(client):
    model = DaskMLPClassifier(timeout=0.2, **SMALL)
    with pytest.raises(TimeoutError, match=r"did not answer for timeout=0\.2 seconds"):
        model.fit(chunked(X).map_blocks(slow), chunked(LABELS))
    assert not client.futures


def test_a_scheduler_that_hangs_is_waited_for_no_longer_than_the_others(monkeypatch):
    monkeypatch.setattr(team, "_CLOSING", 0.5)
    release = threading.Event()
    with make_cluster(1) as cluster, Client(cluster) as client:
        schedule = AtEpoch(lambda: client.loop.add_callback(release.wait, SECONDS), 2)
        model = DaskMLPClassifier(learning_rate=schedule, timeout=1.0, **SMALL)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"did not answer for timeout=1\.0 seconds"):
            model.fit(chunked(X), chunked(LABELS))
        assert time.monotonic() - began < SECONDS
        release.set()


def interrupt():
    raise KeyboardInterrupt


def test_ctrl_c_keeps_what_was_trained_and_lets_go_of_the_cluster(client):
    model = DaskMLPClassifier(learning_rate=AtEpoch(interrupt, 3), **SMALL)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(chunked(X), chunked(LABELS))
    assert (model.stop_reason_, model.n_iter_) == ("interrupted", 3)
    assert not client.futures
    model = DaskMLPClassifier(learning_rate=AtEpoch(interrupt, 0), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.fit(chunked(X), chunked(LABELS))
    assert not client.futures


def test_max_time(client):
    model = DaskMLPClassifier(max_time=0.3, **SMALL | {"max_iter": 10_000})
    assert model.fit(chunked(X), chunked(LABELS)).stop_reason_ == "max_time"


# --- scikit-learn's searches --------------------------------------------------------------------


class Deadly:
    """A score that kills its process in the middle of a grid, once: who takes the file away."""

    def __init__(self, file):
        self._file = file

    def __call__(self, model, X, y):
        if model.alpha == 1.0:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._file)
                os.kill(os.getpid(), signal.SIGKILL)
        return model.score(X, y)


def search(cv=3, scoring=None):
    grid = {"alpha": [1e-4, 1.0], "learning_rate_init": [0.001, 0.01, 0.1]}
    return GridSearchCV(MLPClassifier(**SMALL), grid, cv=cv, scoring=scoring)


def assert_same_search(found, expected):
    for name, column in expected.cv_results_.items():
        if "time" not in name:
            assert list(found.cv_results_[name]) == list(column), name
    assert_same(found.best_estimator_, expected.best_estimator_)


def test_a_grid_search_on_workers_has_the_local_bits(processes):
    expected = search().fit(X, LABELS)
    with joblib.parallel_config(backend="dask"):
        assert_same_search(search().fit(X, LABELS), expected)


def test_a_grid_search_bears_the_loss_of_a_worker(processes, tmp_path):
    folds, file = list(StratifiedKFold(3).split(X, LABELS)), tmp_path / "to kill"
    expected = search(folds).fit(X, LABELS)
    file.touch()
    # joblib gives whatever is large to one worker, unless it is told to give it to all, and Dask
    # takes what several have from all but one of them, unless it is told not to
    processes.amm.stop()
    with joblib.parallel_config(backend="dask", scatter=[X, LABELS, *itertools.chain(*folds)]):
        found = search(folds, Deadly(file)).fit(X, LABELS)
    processes.amm.start()
    assert not file.exists()
    assert_same_search(found, expected)
