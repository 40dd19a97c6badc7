"""scikit-learn's callbacks (1.9): what they hear of a fit, and that they may end it."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from models import fit
from processes import run_python
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastmlp import MLPClassifier, MLPRegressor

callback = pytest.importorskip("sklearn.callback", reason="callbacks came with scikit-learn 1.9")

rng = np.random.RandomState(0)
X = pd.DataFrame(rng.normal(size=(80, 4)), columns=list("abcd"))
LABELS = np.where(X["a"] + rng.normal(size=80) > 0, "yes", "no")
WEIGHT = rng.uniform(0.5, 2, 80)
QUICK = {"hidden_layer_sizes": (5,), "random_state": 0, "max_iter": 7, "learning_rate_init": 0.02}


class Listener:
    """Writes down what it hears; asks for an end after some epochs."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.heard = []

    def setup(self, estimator, context):
        self.heard.append("setup")

    def teardown(self, estimator, context):
        self.heard.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.heard.append(("begin", context.task_name, context.task_id))

    def on_fit_task_end(
        self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None
    ):
        self.heard.append(("end", context.task_name, context.task_id))
        self.last = X, y, metadata, fitted_estimator
        if self.stop_after is not None and context.task_name != "fit":
            return context.task_id + 1 >= self.stop_after


@pytest.mark.parametrize(("solver", "name"), [("adam", "epoch"), ("lbfgs", "iteration")])
def test_begins_and_ends_in_order(solver, name):
    listener = Listener(stop_after=3)
    model = MLPClassifier(solver=solver, **QUICK).set_callbacks(listener)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, LABELS)
    inner = [(what, name, i) for i in range(3) for what in ("begin", "end")]
    assert listener.heard == [
        "setup", ("begin", "fit", 0), *inner, ("end", "fit", 0), "teardown"
    ]  # fmt: skip
    assert (model.n_iter_, model.stop_reason_) == (3, "callback")
    same = fit(MLPClassifier(solver=solver, **QUICK | {"max_iter": 3}), X, LABELS)
    np.testing.assert_array_equal(model.coefs_[0], same.coefs_[0])


def test_every_begin_of_lbfgs_has_an_end():
    listener = Listener()
    params = QUICK | {"max_iter": 500, "tol": 1e-2}
    model = MLPClassifier(solver="lbfgs", **params).set_callbacks(listener).fit(X, LABELS)
    assert model.stop_reason_ == "converged"
    begun = [what[1:] for what in listener.heard if what[0] == "begin"]
    assert sorted(begun) == sorted(what[1:] for what in listener.heard if what[0] == "end")


def test_scoring_monitor_sees_the_users_data_and_every_epochs_parameters():
    monitor = callback.ScoringMonitor(scoring="neg_log_loss")
    model = MLPClassifier(**QUICK).set_callbacks(monitor)
    fit(model, X, LABELS, WEIGHT)
    rows = monitor.get_logs().data
    epochs = [row["neg_log_loss"] for row in rows if row["task_name"] == "epoch"]
    plain = fit(MLPClassifier(**QUICK), X, LABELS, WEIGHT, X_val=X, y_val=LABELS,
                sample_weight_val=WEIGHT)  # fmt: skip
    np.testing.assert_allclose(epochs, np.negative(plain.validation_loss_curve_), rtol=1e-7)
    np.testing.assert_array_equal(model.coefs_[0], plain.coefs_[0])


def test_callbacks_get_the_rows_that_are_trained_on():
    listener = Listener()
    model = MLPClassifier(early_stopping=True, validation_fraction=0.25, **QUICK)
    fit(model.set_callbacks(listener), X, LABELS, WEIGHT)
    data, target, metadata, fitted = listener.last
    assert isinstance(data, pd.DataFrame)
    assert len(data) == len(target) == len(metadata["sample_weight"]) == 60
    np.testing.assert_array_equal(LABELS[data.index], target)
    np.testing.assert_array_equal(WEIGHT[data.index], metadata["sample_weight"])
    np.testing.assert_array_equal(fitted.predict(X), model.predict(X))
    assert fitted is not model


@pytest.mark.parametrize("n_threads", [1, 2])
def test_restarts_are_tasks_of_their_own(n_threads):
    listener = Listener()
    model = MLPRegressor(n_restarts=3, n_threads=n_threads, **QUICK).set_callbacks(listener)
    fit(model, X, X["a"])
    assert listener.heard.count("setup") == listener.heard.count("teardown") == 1
    names = [what[1] for what in listener.heard if what[0] == "begin"]
    assert [names.count(name) for name in ("fit", "restart", "epoch")] == [1, 3, 21]
    plain = fit(MLPRegressor(n_restarts=3, **QUICK), X, X["a"])
    np.testing.assert_array_equal(model.restart_scores_, plain.restart_scores_)


def test_teardown_after_a_failure():
    listener = Listener()
    model = MLPRegressor(solver="sgd", **QUICK | {"learning_rate_init": 1e200})
    with pytest.raises(ValueError, match="non-finite"):
        fit(model.set_callbacks(listener), X, X["a"])
    assert listener.heard[-1] == "teardown"
    assert not hasattr(model, "coefs_")
    assert not hasattr(model, "_callback_fit_ctx")


def test_without_callbacks_nothing_is_left_behind():
    model = fit(MLPClassifier(**QUICK), X, LABELS)
    assert not any("callback" in name for name in vars(model))
    model = clone(model.set_callbacks(Listener()))
    assert pickle.loads(pickle.dumps(fit(model, X, LABELS))).n_iter_ == 7


def test_callbacks_are_passed_on_by_meta_estimators():
    """What a progress bar sees: the epochs of each fit, nested."""

    class Passed(Listener):
        max_propagation_depth = None

    listener = Passed()
    grid = {"mlpclassifier__alpha": [0.1, 0.01]}
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(**QUICK))
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=1, error_score="raise")
    fit(search.set_callbacks(listener), X, LABELS)
    epochs = [what for what in listener.heard if what[:2] == ("end", "epoch")]
    assert len(epochs) == 7 * (2 * 2 + 1)
    assert listener.heard.count("setup") == 1


def test_progress_bar(capsys):
    pytest.importorskip("rich", reason="ProgressBar needs rich")
    bar = callback.ProgressBar(max_propagation_depth=None)
    search = GridSearchCV(MLPClassifier(**QUICK), {"alpha": [0.1, 0.01]}, cv=2)
    fit(search.set_callbacks(bar), X, LABELS)
    printed = capsys.readouterr().out
    assert printed.count("MLPClassifier - fit") >= 5
    assert "100%" in printed
    fit(MLPRegressor(n_restarts=3, **QUICK).set_callbacks(bar), X, X["a"])
    assert capsys.readouterr().out.count("MLPRegressor - restart") >= 3


def test_an_older_scikit_learn_has_no_callbacks():
    code = """
import sys, sklearn.neural_network
callback = sys.modules["sklearn.callback"]
sys.modules["sklearn.callback"] = None  # importing it now fails
from fastmlp import MLPClassifier
sys.modules["sklearn.callback"] = callback
model = MLPClassifier(max_iter=300, tol=0.1).fit([[0.0], [1.0]] * 5, [0, 1] * 5)
print(hasattr(model, "set_callbacks"), model.stop_reason_)
"""
    assert run_python(code) == "False converged\n"
