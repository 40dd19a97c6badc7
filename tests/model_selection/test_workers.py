"""Searches on the workers of other joblib backends; those on Dask's are in tests/dask."""

import itertools
import os
import time
import warnings
from collections import Counter

import joblib
import numpy as np
import pytest
from joblib._parallel_backends import LokyBackend
from searches import assert_equal_results, assert_equal_searches
from sklearn import model_selection as theirs
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from test_search import ALPHAS, IN_PIPELINE, NETWORK, Scenario, X, Y, fit, search_parameters

from fastmlp.model_selection import GridSearchCV, HalvingGridSearchCV, backend, folds, workers


class Processes(LokyBackend):
    """A backend that joblib does not come with, whose workers are processes."""


class Here(joblib.parallel.ParallelBackendBase):
    """One that runs everything at once, in slots that it only says that it has."""

    n_slots = 2

    def effective_n_jobs(self, n_jobs):
        return self.n_slots

    def submit(self, func, callback=None):
        result = func()
        callback(result)
        return result

    def retrieve_result(self, out, timeout=None):
        return out


@pytest.fixture(autouse=True)
def _backends():
    joblib.register_parallel_backend("processes", Processes)
    joblib.register_parallel_backend("here", Here)


def fit_on(name, search, *data, **params):
    with joblib.parallel_config(name):
        return fit(search, *data, **params)


@pytest.fixture
def groups(monkeypatch):
    """(fold, candidate) of the runs of each group that was handed out."""
    found, original = [], workers.run_group

    def noted(X, y, group, *rest):
        progress = [call[3] for call in group.calls]
        found.append([(p["split_progress"][0], p["candidate_progress"][0]) for p in progress])
        return original(X, y, group, *rest)

    monkeypatch.setattr(workers, "run_group", noted)
    return found


@pytest.mark.parametrize("seed", range(0, 120, 6))
def test_equal_to_scikit_learns(seed):
    scenario = Scenario(seed)
    reference, search = scenario.searches()
    with joblib.parallel_config("here"):
        counts = scenario.steps == "none"
        data = scenario.X, scenario.y
        assert_equal_searches(search, reference, *data, counts=counts, **scenario.params)


def test_equal_in_processes():
    grid = {**IN_PIPELINE, "standardscaler__with_std": [True, False]}
    search = GridSearchCV(make_pipeline(StandardScaler(), NETWORK), grid, scoring=process_of)
    found = set(fit_on("processes", search.set_params(cv=3)).cv_results_["mean_test_score"])
    assert float(os.getpid()) not in found
    search.set_params(scoring=["accuracy", "neg_log_loss"], refit="accuracy")
    assert_equal_results(
        fit_on("processes", search), fit(theirs.GridSearchCV(**search_parameters(search)))
    )


def process_of(estimator, X, y):
    return float(os.getpid())


def test_groups_share_a_fold_and_shrink(groups):
    fit_on("here", GridSearchCV(NETWORK, {"alpha": np.arange(1, 25) / 10}, cv=3, refit=False))
    assert [len(group) for group in groups] == [24, 24, 12, 6, 4, 2]
    assert all(len({split for split, _ in group}) == 1 for group in groups)
    assert Counter(itertools.chain(*groups)) == Counter(itertools.product(range(3), range(24)))


def test_many_workers_share_the_folds_among_them(groups, monkeypatch):
    monkeypatch.setattr(Here, "n_slots", 12)
    fit_on("here", GridSearchCV(NETWORK, {"alpha": np.arange(1, 25) / 10}, cv=3, refit=False))
    assert 12 <= len(groups) <= 8 * 12
    assert max(map(len, groups)) <= 6


def test_groups_share_preprocessing(groups, count_fits):
    model = make_pipeline(StandardScaler(), PCA(random_state=0), NETWORK)
    grid = {**IN_PIPELINE, "pca__n_components": [2, 3]}
    fit_on("here", GridSearchCV(model, grid, cv=4, refit=False))
    n_whole = len([group for group in groups if len(group) == 4])
    assert n_whole >= 7  # of eight
    assert len(count_fits) == len(groups)


@pytest.fixture
def count_fits(monkeypatch):
    fits, original = [], StandardScaler.fit

    def counted(scaler, *args, **kwargs):
        fits.append(scaler)
        return original(scaler, *args, **kwargs)

    monkeypatch.setattr(StandardScaler, "fit", counted)
    return fits


def test_candidates_come_in_their_order_if_time_is_limited(groups):
    search = GridSearchCV(NETWORK, {"alpha": np.arange(1, 25) / 10}, cv=3, max_time=100.0)
    fit_on("here", search.set_params(refit=False))
    first = [group[0][1] for group in groups]
    assert first == sorted(first)
    assert [group[0][0] for group in groups[:3]] == [0, 1, 2]


def test_time_that_is_over():
    network = clone(NETWORK).set_params(tol=0.0, n_iter_no_change=10**9)
    grid = [{"max_iter": [2, 3]}, {"max_iter": [10**8]}]
    search = GridSearchCV(network, grid, cv=2, max_time=5.0, refit=False)
    fit_on("processes", GridSearchCV(NETWORK, ALPHAS))  # the workers are up
    started = time.perf_counter()
    with (
        pytest.warns(UserWarning, match="test scores are non-finite"),
        pytest.warns(UserWarning, match=r"ended by max_time=5.0: of 3 candidates, 1 are not"),
        joblib.parallel_config("processes"),
    ):
        search.fit(X, Y)
    assert time.perf_counter() - started < 30
    assert np.isfinite(search.cv_results_["mean_test_score"]).tolist() == [True, True, False]


def test_groups_of_one_process_share_their_folds():
    search = workers._Folds("a search")
    fold = folds.Fold(X, Y, [1, 2], [3])
    assert search.setdefault(0, fold) is fold
    assert search.setdefault(0, folds.Fold(X, Y, [1, 2], [3])) is fold
    other = folds.Fold(X, Y, [1], [3])
    assert workers._Folds("another").setdefault(0, other) is other
    del fold, other
    assert not {("a search", 0), ("another", 0)} & set(workers._FOLDS)


@pytest.mark.parametrize("error_score", [np.nan, "raise"])
def test_failing_candidates(error_score):
    grid = [{"max_iter": [1]}, {"activation": ["bad"]}, {"max_iter": [500], "solver": ["worse"]}]
    ours = GridSearchCV(NETWORK, grid, error_score=error_score)
    reference = theirs.GridSearchCV(**search_parameters(ours))
    with joblib.parallel_config("here"):
        assert_equal_searches(ours, reference, X, Y)


def test_code_of_the_users_is_fitted_for_each_candidate():
    fits = []
    model = make_pipeline(FunctionTransformer(lambda X: (fits.append(1), X)[1]), NETWORK)
    fit_on("here", GridSearchCV(model, IN_PIPELINE, cv=3, refit=False))
    assert len(fits) == 2 * 3 * 4


@pytest.mark.parametrize("name", ["here", "processes"])
def test_survivors_go_on_wherever_they_are(name):
    options = {"resource": "max_iter", "max_resources": 9, "cv": 2, "refit": False}
    search = HalvingGridSearchCV(NETWORK, ALPHAS, scoring=seconds_at_first, **options)
    found = fit_on(name, search).cv_results_
    alphas = [params["alpha"] for params in found["params"]]
    assert found["n_resources"].tolist() == [3] * 4 + [9] * 2
    for alpha, score in zip(alphas[4:], found["mean_test_score"][4:], strict=True):
        assert score == found["mean_test_score"][alphas.index(alpha)]
    search = fit_on(name, HalvingGridSearchCV(NETWORK, ALPHAS, **options))
    assert_equal_results(search, fit(theirs.HalvingGridSearchCV(NETWORK, ALPHAS, **options)))
    with pytest.raises(ValueError, match="cosine"):
        fit_on(name, clone(search).set_params(estimator__learning_rate="cosine"))


def seconds_at_first(estimator, X, y):
    """Time that no second training takes again, to the bit."""
    return sum(estimator.history_["seconds"][:3])


def test_interrupted(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "run_group", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_on("here", GridSearchCV(NETWORK, ALPHAS))


def test_warning_filters_reach_workers():
    search = GridSearchCV(NETWORK, ALPHAS, cv=2, refit=False, error_score="raise")
    with warnings.catch_warnings(), joblib.parallel_config("processes"):
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="Maximum iterations"):
            search.fit(X, Y)


def test_one_fit_has_one_thread():
    def scorer(estimator, X, y):
        return float(estimator.engine_info_["max_threads"])

    search = fit_on("here", GridSearchCV(NETWORK, ALPHAS, scoring=scorer, refit=False))
    assert set(search.cv_results_["mean_test_score"]) == {1.0}


def runs(config):
    with joblib.parallel_config(**config):
        return type(backend.Backend(NETWORK, 2, None, None)._runs)


def test_processes_must_be_chosen():
    for config in ({}, {"n_jobs": 2}, {"backend": "threading"}, {"backend": "sequential"}):
        assert runs(config) is backend.Threads
    for name in ("loky", "multiprocessing", "processes"):
        assert runs({"backend": name}) is backend.Workers
