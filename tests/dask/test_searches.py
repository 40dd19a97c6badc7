"""Searches on Dask's workers: groups of runs, and what becomes of them when workers die."""

import os
import signal
import threading
import time
import warnings

import joblib
import numpy as np
import pytest
from clusters import LABELS, VALUES, X, make_cluster
from models import quietly
from processes import run_python
from searches import assert_equal_results
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.model_selection import GridSearchCV, HalvingGridSearchCV, workers

NETWORK = MLPClassifier((8,), max_iter=5, random_state=0)
GRID = {"alpha": [1e-3, 1e-1], "learning_rate_init": [0.001, 0.01, 0.1]}
IN_PIPELINE = {f"mlpclassifier__{name}": values for name, values in GRID.items()}


def fit_on_dask(search, *data):
    with joblib.parallel_config(backend="dask"):
        return quietly(search.fit, *data)


SEARCHES = {
    "classifier": (GridSearchCV(NETWORK, GRID, cv=3), LABELS),
    "pipeline": (
        GridSearchCV(
            make_pipeline(StandardScaler(), NETWORK),
            {**IN_PIPELINE, "standardscaler__with_mean": [True, False]},
            scoring=["accuracy", "neg_log_loss"], refit="accuracy", return_train_score=True,
        ),
        LABELS,
    ),
    "regressor": (
        GridSearchCV(MLPRegressor(max_iter=5, random_state=0), GRID, error_score=-1.0),
        VALUES,
    ),
    "halving": (HalvingGridSearchCV(NETWORK, GRID, cv=3, random_state=0), LABELS),
}  # fmt: skip


@pytest.mark.parametrize("name", SEARCHES)
def test_the_bits_are_the_local_ones(name, processes):
    search, y = SEARCHES[name]
    there, here = fit_on_dask(clone(search), X, y), quietly(search.fit, X, y)
    assert_equal_results(there, here)
    np.testing.assert_array_equal(there.predict(X), here.predict(X))


@pytest.fixture
def groups(monkeypatch):
    """How many runs each group has, on workers that are threads."""
    found, original = [], workers.run_group

    def noted(X, y, group, *rest):
        found.append(len(group.calls))
        return original(X, y, group, *rest)

    monkeypatch.setattr(workers, "run_group", noted)
    return found


def test_groups_of_runs_are_handed_out(client, groups):
    there = fit_on_dask(GridSearchCV(NETWORK, GRID, cv=3), X, LABELS)
    assert sum(groups) == 18
    assert 3 <= len(groups) < 18
    assert_equal_results(there, quietly(GridSearchCV(NETWORK, GRID, cv=3).fit, X, LABELS))


@pytest.mark.parametrize("n_killed", [1, 2])
def test_workers_that_die_cost_time_and_no_results(n_killed):
    """With both of them, the data are lost."""
    network = MLPClassifier((8,), max_iter=600, tol=0.0, n_iter_no_change=1000, random_state=0)
    search = GridSearchCV(network, GRID, cv=3)
    here = quietly(search.fit, X, LABELS).cv_results_["mean_test_score"]
    with make_cluster(2, processes=True) as cluster, cluster.get_client() as client:
        client.wait_for_workers(2, timeout=30)
        fit_on_dask(GridSearchCV(NETWORK, GRID, cv=2), X, LABELS)  # kernels are loaded
        pids = list(client.run(os.getpid).values())[:n_killed]
        killer = threading.Thread(target=kill_when_busy, args=(client, pids))
        killer.start()
        there = fit_on_dask(search, X, LABELS)
        killer.join()
    np.testing.assert_array_equal(there.cv_results_["mean_test_score"], here)


def kill_when_busy(client, pids):
    while not any(client.processing().values()):
        time.sleep(0.01)
    time.sleep(0.3)
    assert any(client.processing().values())
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_errors_are_those_of_the_first_candidate(processes):
    grid = [{"alpha": [0.1]}, {"activation": ["bad"]}, {"solver": ["worse"]}]
    search = GridSearchCV(NETWORK, grid, error_score="raise")
    with pytest.raises(ValueError, match="activation"):
        fit_on_dask(search, X, LABELS)
    scores = fit_on_dask(search.set_params(error_score=-1.0), X, LABELS).cv_results_
    assert scores["mean_test_score"][1:].tolist() == [-1.0, -1.0]
    assert scores["mean_test_score"][0] > 0


INTERRUPTED = """
    import os, signal, threading, time, warnings
    import joblib
    import numpy as np
    from distributed import LocalCluster
    from fastmlp import MLPClassifier
    from fastmlp.model_selection import GridSearchCV

    X = np.random.RandomState(0).randn(90, 6)
    y = (X[:, 0] > 0).astype(int)
    network = MLPClassifier((4,), tol=0.0, n_iter_no_change=10**9, random_state=0)
    search = GridSearchCV(network, {"max_iter": [3, 10**8, 4]}, cv=2, refit=False, max_time=1000.0)

    def interrupt(client):
        while not any(client.processing().values()):
            time.sleep(0.01)
        time.sleep(4)
        os.kill(os.getpid(), signal.SIGINT)

    if __name__ == "__main__":
        options = {"n_workers": 2, "threads_per_worker": 2, "processes": False}
        with LocalCluster(dashboard_address=":0", **options) as cluster, cluster.get_client() as c:
            threading.Thread(target=interrupt, args=(c,)).start()
            with warnings.catch_warnings(record=True, action="always") as caught:
                with joblib.parallel_config(backend="dask"):
                    search.fit(X, y)
            print(np.isfinite(search.cv_results_["mean_test_score"]))
            print([str(w.message) for w in caught if "search" in str(w.message)])
            for _ in range(100):
                time.sleep(0.1)
                busy = c.run(lambda dask_worker: len(dask_worker.state.executing))
                threads = [t.name for t in threading.enumerate() if t.name == "fastmlp"]
                if not threads:
                    break
            print(threads)
"""


def test_interrupted_searches_keep_what_is_finished_and_free_the_workers():
    lines = run_python(INTERRUPTED).splitlines()
    assert lines[0] == "[ True False  True]"
    assert lines[1].startswith("['The search was ended by Ctrl-C: of 3 candidates, 1 are not")
    assert lines[2] == "[]"


def test_data_that_are_lost_again_and_again_are_a_clear_error(processes, monkeypatch):
    monkeypatch.setattr(workers, "_MOST_LOSSES", 0)
    with pytest.raises(RuntimeError, match="The data of a search were lost 0 times"):
        fit_on_dask(GridSearchCV(NETWORK, GRID), X, LABELS)


def test_a_search_in_a_task_of_dasks(processes):
    def search():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with joblib.parallel_config(backend="dask"):
                search = GridSearchCV(NETWORK, GRID, cv=2, refit=False).fit(X, LABELS)
        return search.cv_results_["mean_test_score"]

    there = processes.submit(search).result(timeout=50)
    here = quietly(GridSearchCV(NETWORK, GRID, cv=2, refit=False).fit, X, LABELS)
    np.testing.assert_array_equal(there, here.cv_results_["mean_test_score"])
