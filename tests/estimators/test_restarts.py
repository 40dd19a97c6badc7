"""n_restarts: the same fits as by hand, the best kept, independent of threads and timing."""

import os
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
from models import fit
from sklearn.model_selection import train_test_split

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.engine import place
from fastmlp.training.hooks import Limit
from fastmlp.training.restarts import side_by_side

rng = np.random.RandomState(0)
X = rng.normal(size=(90, 4))
TARGET = np.sin(3 * X[:, 0]) + X[:, 1] ** 2
X_VAL, TARGET_VAL = X[:20] + 0.1, TARGET[:20]
QUICK = {"hidden_layer_sizes": (4,), "max_iter": 15, "learning_rate_init": 0.02}


def by_hand(n_restarts, **params):
    """One fit per seed, the seeds drawn from the random state of the whole."""
    state = np.random.RandomState(5)
    seeds = state.randint(np.iinfo(np.int32).max, size=n_restarts)
    return state, [MLPRegressor(random_state=seed, **QUICK | params) for seed in seeds]


@pytest.mark.parametrize("n_threads", [None, 1, 3])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_best_by_training_loss(solver, n_threads):
    model = MLPRegressor(n_restarts=5, random_state=5, n_threads=n_threads, solver=solver, **QUICK)
    fit(model, X, TARGET)
    models = [fit(single, X, TARGET) for single in by_hand(5, solver=solver)[1]]
    np.testing.assert_array_equal(model.restart_scores_, [-single.loss_ for single in models])
    best = min(models, key=lambda single: single.loss_)
    np.testing.assert_array_equal(model.coefs_[0], best.coefs_[0])
    assert model.loss_ == best.loss_ == model.history_["loss"][-1]
    assert model.n_iter_ == best.n_iter_
    if solver != "lbfgs":
        following = [single.partial_fit(X, TARGET).coefs_[0] for single in (
            model.set_params(n_restarts=1, random_state=0), best.set_params(random_state=0)
        )]  # fmt: skip
        np.testing.assert_array_equal(*following)  # the optimizer is that run's, too


@pytest.mark.parametrize("early", [True, False])
def test_best_by_validation_score(early):
    held_out = {"X_val": X_VAL, "y_val": TARGET_VAL}
    model = MLPRegressor(n_restarts=6, random_state=5, early_stopping=early, **QUICK)
    fit(model, X, TARGET, **held_out)
    models = [fit(single, X, TARGET, **held_out) for single in by_hand(6, early_stopping=early)[1]]
    scores = [single.score(X_VAL, TARGET_VAL) for single in models]
    np.testing.assert_allclose(model.restart_scores_, scores)
    assert model.score(X_VAL, TARGET_VAL) == pytest.approx(max(scores))


def test_restarts_share_one_split():
    model = MLPRegressor(n_restarts=4, random_state=5, early_stopping=True, **QUICK)
    fit(model, X, TARGET)
    state, models = by_hand(4, early_stopping=True)
    train, held_out = train_test_split(np.arange(90), random_state=state, test_size=0.1)
    held = {"X_val": X[held_out], "y_val": TARGET[held_out]}
    scores = [fit(m, X[train], TARGET[train], **held).best_validation_score_ for m in models]
    np.testing.assert_allclose(model.restart_scores_, scores)


def test_one_restart_is_a_plain_fit():
    model = fit(MLPRegressor(random_state=0, **QUICK), X, TARGET)
    assert model.restart_scores_.tolist() == [-model.loss_]


def test_a_restart_that_diverges_loses():
    """Half of the starts are far too large; the others train."""
    starts = iter(range(100))

    def weight_init(fan_in, fan_out, random_state):
        scale = 1e200 if next(starts) // 2 % 2 else 0.1
        return scale * random_state.normal(size=(fan_in, fan_out))

    params = QUICK | {"solver": "sgd", "activation": "identity", "n_restarts": 4}
    with np.errstate(all="ignore"):
        model = fit(MLPRegressor(weight_init=weight_init, random_state=0, **params), X, TARGET)
        assert np.isnan(model.restart_scores_).tolist() == [False, True, False, True]
        assert model.loss_ == -np.nanmax(model.restart_scores_)
        with pytest.raises(ValueError, match="non-finite parameter weights"):
            MLPRegressor(weight_init=lambda n, m, _: np.full((n, m), 1e200), **params).fit(
                X, TARGET
            )


def test_max_time_leaves_restarts_out():
    model = MLPRegressor(n_restarts=50, max_time=1e-9, n_threads=1, random_state=0, **QUICK)
    model.fit(X, TARGET)
    assert model.stop_reason_ == "max_time"
    assert np.isfinite(model.restart_scores_).tolist() == [True] + [False] * 49


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # swallowed, heard
@pytest.mark.parametrize("n_threads", [1, 2])
def test_ctrl_c_ends_all_restarts(n_threads):
    model = MLPRegressor(
        n_restarts=4, random_state=0, n_iter_no_change=np.inf, n_threads=n_threads,
        **QUICK | {"max_iter": 10**7},
    )  # fmt: skip
    fit(MLPRegressor(**QUICK), X, TARGET)  # compiled
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    started = time.perf_counter()
    with pytest.warns(UserWarning, match=r"Training interrupted by user\."):
        model.fit(X, TARGET)
    assert time.perf_counter() - started < 1.5
    assert model.stop_reason_ == "interrupted"
    assert np.isfinite(model.restart_scores_).sum() == n_threads


def test_an_environment_that_allows_one_thread_means_one_after_the_other(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    running, most = set(), []

    def job(name):
        running.add(name)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(name)

    side_by_side([partial(job, i) for i in range(3)], Limit(), None)
    assert most == [1, 1, 1]


def test_side_by_side_means_at_once():
    barrier = threading.Barrier(3, timeout=20)
    assert sorted(side_by_side([barrier.wait] * 3, Limit(), 3)) == [0, 1, 2]


def test_wrong_use():
    with pytest.raises(ValueError, match="partial_fit does not support n_restarts=2"):
        MLPRegressor(n_restarts=2).partial_fit(X, TARGET)
    with pytest.raises(ValueError, match="warm_start=True does not support n_restarts=2"):
        MLPClassifier(n_restarts=2, warm_start=True).fit(X, TARGET > 0)
    with pytest.raises(ValueError, match="'n_restarts' parameter"):
        MLPClassifier(n_restarts=0).fit(X, TARGET > 0)
    with pytest.raises(ValueError, match="'max_time' parameter"):
        MLPClassifier(max_time=0).fit(X, TARGET > 0)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_samples_are_placed_once(device, solver, monkeypatch):
    """However many restarts there are, and with them the samples set aside to validate with."""
    placed = []

    def counted(*arguments, **options):
        placed.append(options["rows"])
        return place(*arguments, **options)

    monkeypatch.setattr("fastmlp.estimators.fitting.place", counted)
    sizes = QUICK | {"max_iter": 2, "solver": solver, "device": device}
    fit(MLPRegressor(n_restarts=4, random_state=5, **sizes), X, TARGET)
    assert placed == [None]
    fit(MLPRegressor(n_restarts=4, random_state=5, **sizes), X, TARGET, X_val=X_VAL,
        y_val=TARGET_VAL)  # fmt: skip
    assert placed == [None, None, None]
