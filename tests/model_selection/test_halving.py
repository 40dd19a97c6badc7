"""Halving: equal to scikit-learn's class, and over epochs nothing is trained twice."""

import time

import numpy as np
import pytest
from models import quietly
from scipy.stats import loguniform
from searches import assert_equal_results, assert_equal_searches, outcome
from sklearn import model_selection as theirs
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_classification, make_regression
from sklearn.decomposition import PCA
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.engine.cpu import CpuEngine
from fastmlp.model_selection import HalvingGridSearchCV, HalvingRandomSearchCV
from fastmlp.training.epochs import StoppingRule

X, Y = make_classification(90, 6, n_informative=4, n_classes=3, random_state=0)
RNG = np.random.RandomState(0)
NETWORK = MLPClassifier((5,), batch_size=16, random_state=3)
GRID = {"alpha": [1e-4, 1e-2, 1.0], "learning_rate_init": [1e-3, 0.01, 0.1]}
EPOCHS = {"resource": "max_iter", "max_resources": 9, "cv": 3}
SETTINGS = {
    "adam": {},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 2},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling"},
    "plateau": {"learning_rate": "plateau", "patience": 1},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 2},
    "converged": {"tol": 1.0, "n_iter_no_change": 2},
    "dropout": {"dropout": 0.5},
    "average": {"ema_decay": 0.9},
    "restarts": {"n_restarts": 2},
    "lbfgs": {"solver": "lbfgs"},
    "two solvers": {"solver": "sgd", "momentum": 0.5},
}


@pytest.fixture
def epochs(monkeypatch):
    """The number of epochs that were run."""
    run_epoch, count = CpuEngine.run_epoch, []

    def run(engine, order, rates):
        count.append(1)
        return run_epoch(engine, order, rates)

    monkeypatch.setattr(CpuEngine, "run_epoch", run)
    return count


@pytest.mark.parametrize("name", SETTINGS)
def test_over_epochs_equal_to_fits_of_that_many(name):
    network = MLPClassifier((5,), batch_size=16, random_state=3, **SETTINGS[name])
    grid = {"alpha": [1e-4, 1.0], "activation": ["relu", "tanh"]}
    if name == "two solvers":
        grid["solver"] = ["adam", "sgd", "lbfgs"]
    reference = theirs.HalvingGridSearchCV(network, grid, **EPOCHS)
    search = HalvingGridSearchCV(network, grid, **EPOCHS)
    assert_equal_searches(search, reference, X, Y)
    assert search.n_resources_ == reference.n_resources_


def test_nothing_is_trained_twice(epochs):
    search = quietly(HalvingGridSearchCV(NETWORK, GRID, refit=False, **EPOCHS).fit, X, Y)
    assert search.n_candidates_ == [9, 3, 1]
    assert search.n_resources_ == [1, 3, 9]
    assert len(epochs) == 3 * (9 * 1 + 3 * 2 + 1 * 6)


def test_converged_candidates_are_left_alone(epochs):
    network = MLPClassifier((5,), tol=10.0, n_iter_no_change=1, random_state=3)
    options = EPOCHS | {"min_resources": 5, "max_resources": 45, "refit": False}
    search = quietly(HalvingGridSearchCV(network, GRID, **options).fit, X, Y)
    assert search.n_candidates_ == [9, 3, 1]
    assert len(epochs) == 3 * 9 * 3  # the first epoch, and two that are no better by 10


@pytest.mark.parametrize("make", ["pipeline", "target", "nested"])
def test_inside_of_pipelines(make, epochs):
    X, y = make_regression(80, 5, noise=1, random_state=0)
    network = MLPRegressor(hidden_layer_sizes=(4,), batch_size=16, random_state=1)
    prefix = "mlpregressor__"
    model = make_pipeline(StandardScaler(), network)
    if make == "target":
        model = TransformedTargetRegressor(model, transformer=StandardScaler())
        prefix = f"regressor__{prefix}"
    if make == "nested":
        model, prefix = make_pipeline(StandardScaler(), model), f"pipeline__{prefix}"
    grid = {f"{prefix}alpha": [0.1, 1.0, 2.0]}
    options = {"resource": f"{prefix}max_iter", "max_resources": 6, "cv": 2, "refit": False}
    search = HalvingGridSearchCV(model, grid, **options)
    quietly(search.fit, X, y)
    assert len(epochs) == 2 * (3 * 2 + 1 * 4)
    reference = quietly(theirs.HalvingGridSearchCV(model, grid, **options).fit, X, y)
    assert_equal_results(search, reference)


def test_drawn_candidates(epochs):
    space = {"alpha": loguniform(1e-4, 1), "activation": ["relu", "tanh"]}
    options = EPOCHS | {"n_candidates": 9, "random_state": 4, "refit": False}
    reference = theirs.HalvingRandomSearchCV(NETWORK, space, **options)
    assert_equal_searches(HalvingRandomSearchCV(NETWORK, space, **options), reference, X, Y)


def test_candidates_that_are_drawn_twice(epochs):
    values = [1e-4, 30.0]
    grid = [{"alpha": values}, {"alpha": values}, {"alpha": values[:1]}]
    options = EPOCHS | {"refit": False, "n_jobs": 1}
    search = quietly(HalvingGridSearchCV(NETWORK, grid, **options).fit, X, Y)
    new = np.diff(search.n_resources_, prepend=0)
    assert len(epochs) == 3 * np.dot(search.n_candidates_, new)  # each is trained
    reference = quietly(theirs.HalvingGridSearchCV(NETWORK, grid, **options).fit, X, Y)
    assert_equal_results(search, reference)


def test_other_data_than_before_begin_anew(epochs):
    """What a random step makes of the data differs from iteration to iteration."""
    model = make_pipeline(PCA(3, svd_solver="randomized"), NETWORK)
    grid = {"mlpclassifier__alpha": [0.1, 0.2, 0.3]}
    options = {"resource": "mlpclassifier__max_iter", "max_resources": 6, "cv": 2, "refit": False}
    search = HalvingGridSearchCV(model, grid, error_score="raise", **options)
    quietly(search.fit, RNG.randn(90, 60), Y)
    assert len(epochs) == 2 * (3 * 2 + 1 * 6)


def test_over_samples():
    options = {"cv": 3, "random_state": 0, "min_resources": 20}
    reference = theirs.HalvingGridSearchCV(NETWORK.set_params(max_iter=3), GRID, **options)
    search = HalvingGridSearchCV(NETWORK, GRID, **options)
    assert_equal_searches(search, reference, X, Y)


def test_without_a_seed_survivors_go_on(epochs):
    """Their losses go on from those of the iteration before."""
    network = MLPClassifier((5,), batch_size=16)
    quietly(HalvingGridSearchCV(network, GRID, refit=False, **EPOCHS).fit, X, Y)
    assert len(epochs) == 3 * (9 * 1 + 3 * 2 + 1 * 6)


@pytest.mark.parametrize("rate", ["cosine", "one_cycle", "coslog4", lambda *a: 0.01])
def test_schedules_over_all_epochs_are_refused(rate, epochs):
    grid = {"learning_rate": ["constant", rate]}
    with pytest.raises(ValueError, match=r"^learning_rate=.* over max_iter epochs.*n_samples"):
        HalvingGridSearchCV(NETWORK, grid, error_score=0.0, **EPOCHS).fit(X, Y)
    assert not epochs
    search = HalvingGridSearchCV(NETWORK, grid, cv=2, min_resources=20, refit=False)
    assert len(quietly(search.fit, X, Y).cv_results_["params"]) == 2


def test_a_users_checkpoint_stays_the_users(tmp_path):
    network = MLPClassifier((5,), random_state=0, checkpoint=tmp_path / "mine")
    search = HalvingGridSearchCV(network, {"alpha": [0.1, 1.0, 2.0]}, n_jobs=1, **EPOCHS)
    quietly(search.fit, X, Y)
    assert (tmp_path / "mine").exists()
    assert search.best_estimator_.checkpoint == tmp_path / "mine"


def test_the_best_model_has_no_checkpoint():
    search = quietly(HalvingGridSearchCV(NETWORK, GRID, **EPOCHS).fit, X, Y)
    assert search.best_estimator_.checkpoint is None
    assert "checkpoint" not in search.best_params_


def test_time_is_over(monkeypatch):
    """The best one is then of the last iteration that came to an end."""
    rule = StoppingRule.epoch_ends

    def end(self, run):
        if run.n_iter > 3:
            time.sleep(0.3)
        return rule(self, run)

    monkeypatch.setattr(StoppingRule, "epoch_ends", end)
    search = HalvingGridSearchCV(NETWORK, GRID, refit=False, max_time=1.0, **EPOCHS)
    error, warned = outcome(search, X, Y)
    assert error is None
    assert any("ended by max_time=1.0" in message for _, message in warned)
    results = search.cv_results_
    assert np.isnan(results["mean_test_score"][-1])
    assert results["iter"][-1] == 2
    assert results["iter"][search.best_index_] == 1
    assert search.best_score_ == results["mean_test_score"][9:12].max()
