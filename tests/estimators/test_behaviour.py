"""Behaviour under use: Ctrl-C, divergence, threads, processes, pickles, and wrong input."""

import copy
import os
import pickle
import re
import signal
import threading
import time
import warnings

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn.neural_network
from models import fit
from processes import run_python
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.training.hooks import Limit

rng = np.random.RandomState(0)
X = rng.normal(size=(80, 6))
LABELS = np.array(["a", "b", "c"])[np.argmax(X[:, :3], axis=1)]
TARGET = X[:, 0] - X[:, 1] ** 2
QUICK = {"max_iter": 5, "random_state": 0, "hidden_layer_sizes": (8,)}


@pytest.fixture
def classifier():
    return fit(MLPClassifier(**QUICK), X, LABELS)


# --- interruption and divergence

INTERRUPT_CASES = {
    "long epochs": {"hidden_layer_sizes": (300, 300), "max_iter": 1000},
    "full batch": {"hidden_layer_sizes": (80, 80), "batch_size": 30000, "max_iter": 1000},
    "short epochs": {"hidden_layer_sizes": (5,), "max_iter": 10**6, "n_iter_no_change": np.inf},
    "lbfgs": {"hidden_layer_sizes": (30,), "solver": "lbfgs", "max_iter": 10**5, "tol": 1e-300},
    "early stopping": {"hidden_layer_sizes": (300,), "early_stopping": True, "max_iter": 1000,
                       "n_iter_no_change": np.inf},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # swallowed, heard
@pytest.mark.parametrize("case", INTERRUPT_CASES)
def test_ctrl_c_ends_a_fit_within_a_second(case, monkeypatch):
    n = 300 if case == "short epochs" else 30000
    data = np.random.RandomState(0).normal(size=(n, 50))
    y = data[:, 0] * data[:, 1]
    model = MLPRegressor(random_state=0, **{"tol": 0.0, **INTERRUPT_CASES[case]})
    fit(clone(model).set_params(max_iter=1, batch_size="auto"), data[:100], y[:100])  # compiled
    epoch_ends, has_begun, sent = Limit.epoch_ends, threading.Event(), []

    def interrupt():
        has_begun.wait()
        time.sleep(0.5)
        sent.extend([time.perf_counter(), time.process_time()])
        os.kill(os.getpid(), signal.SIGINT)

    def end_epoch(limit, run):
        has_begun.set()  # before, there is nothing to keep, and Ctrl-C is an error
        return epoch_ends(limit, run)

    monkeypatch.setattr(Limit, "epoch_ends", end_epoch)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.warns(UserWarning, match=r"Training interrupted by user\."):
        model.fit(data, y)
    assert time.process_time() - sent[1] < 1.0  # a loaded machine takes longer
    assert time.perf_counter() - sent[0] < 10
    assert np.isfinite(model.predict(data[:5])).all()
    assert model.n_iter_ >= 0


def test_divergence_is_reported_in_its_epoch_and_changes_nothing(classifier):
    before = copy.deepcopy(classifier.__dict__)
    diverging = classifier.set_params(solver="sgd", learning_rate_init=1e200, max_iter=200)
    with pytest.raises(ValueError, match=r"non-finite.*epoch [12]: scale X.*learning_rate_init"):
        fit(diverging, X, LABELS)
    np.testing.assert_array_equal(diverging.coefs_[0], before["coefs_"][0])
    assert diverging.loss_curve_ == before["loss_curve_"]
    fresh = MLPRegressor(solver="sgd", learning_rate_init=1e200)
    with pytest.raises(ValueError, match="non-finite"):
        fresh.fit(X, TARGET)
    assert not hasattr(fresh, "coefs_")
    assert not hasattr(fresh, "n_features_in_")
    with pytest.raises(NotFittedError):
        fresh.predict(X)


def test_divergence_with_early_stopping_keeps_the_best_weights():
    model = MLPRegressor(
        solver="sgd", activation="identity", learning_rate_init=3.0, early_stopping=True,
        random_state=0, max_iter=50,
    )  # fmt: skip
    with pytest.warns(ConvergenceWarning, match=r"Training diverged in epoch \d+"):
        model.fit(10 * X, TARGET)
    assert np.isfinite(model.predict(X)).all()


OVERFLOWS = {
    "targets": (MLPRegressor, X, 1e20 * TARGET, {}, "loss was inf in epoch"),
    "targets, sgd": (MLPRegressor, X, 1e20 * TARGET,
                     {"solver": "sgd", "learning_rate_init": 1e-25}, "loss was inf in epoch"),
    "targets, clipped": (MLPRegressor, X, 1e20 * TARGET, {"max_grad_norm": 1.0}, "loss was inf"),
    "targets, averaged": (MLPRegressor, X, 1e20 * TARGET, {"ema_decay": 0.9}, "loss was inf"),
    "targets, restarts": (MLPRegressor, X, 1e20 * TARGET, {"n_restarts": 3}, "loss was inf"),
    "squares": (MLPClassifier, 1e25 * X, LABELS, {}, "squares of the gradient are infinite"),
    "last step": (MLPRegressor, X, 1e10 * TARGET,
                  {"solver": "sgd", "learning_rate_init": 1e10, "momentum": 0.0, "max_iter": 1},
                  "predictions for the training data are not finite"),
}  # fmt: skip


def overflow_warnings(method, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method(*args, **kwargs)
    return [str(w.message) for w in caught if "Training left the range of" in str(w.message)]


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("case", OVERFLOWS)
def test_numbers_beyond_float32_are_never_returned_unsaid(case, as_csr):
    """The same fit in float64 has no such numbers, and says nothing of them."""
    estimator, data, y, params, message = OVERFLOWS[case]
    make = lambda: estimator(**QUICK | params)  # noqa: E731
    data = sparse.csr_matrix(data) if as_csr else data
    small = data.astype(np.float32), y if y is LABELS else y.astype(np.float32)
    model = make()
    (said,) = overflow_warnings(model.fit, *small)
    assert re.search(f"range of float32: .*{message}.* Scale X .*learning_rate_init", said)
    assert np.isfinite(model.coefs_[0]).all()
    assert overflow_warnings(make().fit, data, y) == []
    if model.n_restarts == 1:
        classes = {"classes": np.unique(y)} if y is LABELS else {}
        model = make()
        said = overflow_warnings(model.partial_fit, *small, **classes)
        assert len(said) == (case != "last step")
        if not said:  # what the step did is said by the next call
            with pytest.raises(ValueError, match="non-finite"):
                model.partial_fit(*small)


def test_a_loss_beyond_float64_is_said_by_lbfgs():
    model = MLPRegressor(solver="lbfgs", **QUICK)
    with np.errstate(all="ignore"):
        (said,) = overflow_warnings(model.fit, X, 1e200 * TARGET)
    assert "range of float64: the loss is" in said
    assert not np.isfinite(model.loss_)


def test_infinite_outputs_of_a_finite_loss_are_said():
    """The gamma deviance of a score is finite where its exponential is not."""
    ones = lambda fan_in, fan_out, _: np.ones((fan_in, fan_out))  # noqa: E731
    params = QUICK | {"weight_init": ones, "tol": 1e9, "learning_rate_init": 1e-9}
    for solver, early in (("lbfgs", False), ("adam", False), ("adam", True)):
        model = MLPRegressor("gamma", solver=solver, early_stopping=early, **params)
        model.set_params(scoring="loss" if early else None)
        (said,) = overflow_warnings(model.fit, 1e4 * np.abs(X), 1 + np.abs(TARGET))
        assert "predictions for the training data are not finite" in said
        assert np.isfinite(model.loss_)


def test_a_deep_network_of_ordinary_numbers_warns_of_nothing():
    """Although the bound on what its layers hand on is beyond float32: outputs are what counts."""
    model = MLPRegressor(hidden_layer_sizes=(40,) * 40, max_iter=2, random_state=0)
    small = X.astype(np.float32), TARGET.astype(np.float32)
    assert overflow_warnings(model.fit, *small) == []
    assert np.isfinite(model.predict(small[0])).all()


# --- many at once, other processes, storage


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_fits_in_threads_equal_fits_alone():
    def job(seed):
        return MLPClassifier(**QUICK | {"random_state": seed}).fit(X, LABELS).coefs_[0]

    alone = [job(seed) for seed in range(8)]
    together = joblib.Parallel(n_jobs=4, backend="threading")(
        joblib.delayed(job)(seed) for seed in range(8)
    )
    np.testing.assert_array_equal(alone, together)


def test_grid_search_in_processes():
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(**QUICK))
    grid = {"mlpclassifier__alpha": [1e-4, 1.0], "mlpclassifier__hidden_layer_sizes": [(), (5,)]}
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        search = fit(GridSearchCV(pipeline, grid, n_jobs=2, cv=2), X, LABELS)
    assert 0.3 < search.best_score_ <= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_fit():
    printed = run_python(
        """
        import os, numpy as np
        from fastmlp import MLPClassifier
        X = np.random.RandomState(0).normal(size=(300, 40)); y = X[:, 0] > 0
        fit = lambda: MLPClassifier(max_iter=5, random_state=0).fit(X, y).loss_
        first = fit()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if fit() == first else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert printed.strip() == "0"


def test_pickle_joblib_clone_and_copy(classifier, tmp_path):
    joblib.dump(classifier, tmp_path / "model.joblib")
    for other in (
        pickle.loads(pickle.dumps(classifier)),
        joblib.load(tmp_path / "model.joblib"),
        joblib.load(tmp_path / "model.joblib", mmap_mode=None),
        copy.deepcopy(classifier),
    ):
        np.testing.assert_array_equal(other.predict_proba(X), classifier.predict_proba(X))
        mine, theirs = clone(classifier), clone(other)
        assert mine.get_params() == theirs.get_params()
        other.partial_fit(X, LABELS)
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(classifier))
    printed = run_python(
        f"""
        import pickle, numpy as np
        model = pickle.load(open({str(path)!r}, "rb"))
        print(repr(model.predict_proba(np.ones((1, 6))).tolist()))
        """
    )
    assert eval(printed) == classifier.predict_proba(np.ones((1, 6))).tolist()


def test_partial_fit_goes_on_after_unpickling():
    once = MLPRegressor(random_state=0)
    for _ in range(3):
        once.partial_fit(X, TARGET)
    again = MLPRegressor(random_state=0)
    for _ in range(3):
        again = pickle.loads(pickle.dumps(again)).partial_fit(X, TARGET)
    np.testing.assert_array_equal(once.coefs_[0], again.coefs_[0])


def test_edited_and_assigned_weights_are_used(classifier):
    classifier.coefs_[-1][:] = 0
    classifier.intercepts_[-1][:] = 0
    np.testing.assert_allclose(classifier.predict_proba(X), 1 / 3)
    classifier.intercepts_ = [*classifier.intercepts_[:-1], np.array([0.0, np.log(2), 0.0])]
    np.testing.assert_allclose(classifier.predict_proba(X)[0], [0.25, 0.5, 0.25])


# --- containers


def test_frames_give_the_same_model_and_names():
    names = [f"f{i}" for i in range(X.shape[1])]
    plain = fit(MLPClassifier(**QUICK), X, LABELS)
    for frame in (pd.DataFrame(X, columns=names), pl.DataFrame(X, schema=names)):
        model = fit(MLPClassifier(**QUICK), frame, LABELS)
        assert model.feature_names_in_.tolist() == names
        np.testing.assert_array_equal(model.coefs_[0], plain.coefs_[0])
        np.testing.assert_array_equal(model.predict(frame), plain.predict(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(pd.DataFrame(X, columns=names[::-1]))


NAMED = pd.DataFrame(X, columns=[f"f{i}" for i in range(X.shape[1])])
FRAMES = {
    "named": NAMED,
    "numbered": pd.DataFrame(X),
    "float32": pd.DataFrame(X.astype(np.float32)),
    "whole numbers beside others": NAMED.assign(a=np.arange(len(X)), b=np.float32(2)),
    "whole numbers": pd.DataFrame((10 * X).astype(int)),
    "flags": (NAMED > 0).assign(a=X[:, 0]),
    "nullable": pd.DataFrame(X).astype("Float64"),
    "sparse": pd.DataFrame(X).astype(pd.SparseDtype(float, 0.0)),
}


@pytest.mark.filterwarnings("ignore:.*hasn't converged yet")
@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_read_as_by_scikit_learn(name):
    frame = FRAMES[name]
    y = pd.Series(np.unique(LABELS, return_inverse=True)[1], index=range(5, 5 + len(X)))
    ours = MLPClassifier(hidden_layer_sizes=(4,), max_iter=2, random_state=0)
    theirs = sklearn.neural_network.MLPClassifier(
        hidden_layer_sizes=(4,), max_iter=2, random_state=0
    )
    names = list("abcdefgh")[: frame.shape[1]]
    forms = frame, np.asarray(frame, float), frame.set_axis(names, axis=1)
    outputs, said = [], []
    for model in (ours, theirs):
        model.fit(frame, y)
        for data in forms:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    outputs.append(model.predict_proba(data))
                except ValueError as error:
                    said.append(str(error))
            said.append([str(warning.message) for warning in caught])
    assert said[: len(said) // 2] == said[len(said) // 2 :]
    for own, other in zip(outputs, outputs[len(outputs) // 2 :], strict=False):
        np.testing.assert_allclose(own, other, atol=1e-5)
    assert ours.n_features_in_ == theirs.n_features_in_
    found = [getattr(model, "feature_names_in_", None) for model in (ours, theirs)]
    np.testing.assert_array_equal(*found)
    with pytest.raises(TypeError, match="all input features have string names"):
        ours.fit(pd.DataFrame(X).rename(columns={0: "a"}), y)


def test_wide_sparse_input_is_not_made_dense():
    """A dense copy of this matrix would take 16 GB."""
    rows, columns = np.random.default_rng(0).integers(0, (20000, 100_000), (20000, 2)).T
    wide = sparse.csr_matrix((np.ones(20000), (rows, columns)), (20000, 100_000))
    y = np.asarray(wide.sum(axis=1)).ravel() > 0
    model = MLPClassifier(hidden_layer_sizes=(2,), max_iter=1, random_state=0, solver="sgd",
                          batch_size=10000)  # fmt: skip
    for data in (wide, wide.tocsc()):
        fit(model, data, y)
        assert model.predict(data[:10]).shape == (10,)


def test_sparse_indices_out_of_range_are_refused():
    broken = sparse.csr_matrix(X)
    broken.indices[5] = 10**6
    for method in (MLPClassifier(**QUICK).fit, fit(MLPClassifier(**QUICK), X, LABELS).partial_fit):
        with pytest.raises(ValueError, match=r"indices|column index"):  # in SciPy's words
            method(broken, LABELS)


def test_memory_mapped_and_foreign_layouts(tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    expected = fit(MLPRegressor(**QUICK), X, TARGET).predict(X)
    for data in (mapped, np.asfortranarray(X), X.tolist(), X[::-1][::-1], X.astype(">f8")):
        np.testing.assert_array_equal(fit(MLPRegressor(**QUICK), data, TARGET).predict(X), expected)


def to_the_minimum(model, y):
    """A fit of a convex problem by L-BFGS, to its end.

    SciPy stops where an iteration improves the loss by less than 2e-9 of it, whatever ``tol``:
    predictions are then off by up to 2e-4, depending on where they started.  Warm starts go on.
    """
    model.set_params(solver="lbfgs", tol=1e-9, random_state=0, warm_start=True)
    for _ in range(25):
        fit(model, X, y)
    return model


def test_no_hidden_layer_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge

    for labels in LABELS, TARGET > 0:
        model = to_the_minimum(MLPClassifier((), alpha=1.0), labels)
        expected = LogisticRegression(C=1.0, tol=1e-8, max_iter=500).fit(X, labels)
        np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-6)
    model = to_the_minimum(MLPRegressor("squared_error", (), alpha=2.0), TARGET)
    np.testing.assert_allclose(model.predict(X), Ridge(2.0).fit(X, TARGET).predict(X), atol=1e-6)
    counts = np.random.RandomState(0).poisson(np.exp(0.3 * X[:, 0]))
    model = to_the_minimum(MLPRegressor("poisson", (), alpha=0.0), counts)
    expected = PoissonRegressor(alpha=0, tol=1e-9).fit(X, counts)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-6)


# --- wrong input: one clear error before any training

BAD_PARAMETERS = [
    ({"hidden_layer_sizes": (10, -1)}, r"hidden_layer_sizes must be > 0, got \[10, -1\]"),
    ({"hidden_layer_sizes": 0}, "hidden_layer_sizes"),
    ({"hidden_layer_sizes": (10.5,)}, "hidden_layer_sizes must contain integers"),
    ({"hidden_layer_sizes": ("10",)}, "hidden_layer_sizes must contain integers"),
    ({"hidden_layer_sizes": "10"}, "hidden_layer_sizes"),
    ({"activation": "gauss"}, "'activation' parameter of MLPClassifier must be a str among"),
    ({"solver": "newton"}, "'solver' parameter of MLPClassifier must be a str among"),
    ({"alpha": -1}, "'alpha' parameter"),
    ({"alpha": "0.1"}, "'alpha' parameter"),
    ({"alpha": np.nan}, "'alpha' parameter"),
    ({"batch_size": 0}, "'batch_size' parameter"),
    ({"batch_size": "all"}, "'batch_size' parameter"),
    ({"learning_rate": "cosinus"}, "'learning_rate' parameter"),
    ({"learning_rate_init": 0.0}, "'learning_rate_init' parameter"),
    ({"max_iter": 0}, "'max_iter' parameter"),
    ({"max_iter": 10.0}, "'max_iter' parameter"),
    ({"momentum": 1.5}, "'momentum' parameter"),
    ({"beta_1": 1.0}, "'beta_1' parameter"),
    ({"validation_fraction": 1.0}, "'validation_fraction' parameter"),
    ({"tol": -1e-4}, "'tol' parameter"),
    ({"n_iter_no_change": 0}, "'n_iter_no_change' parameter"),
    ({"random_state": "seed"}, "'random_state' parameter"),
]


@pytest.mark.parametrize(("params", "message"), BAD_PARAMETERS, ids=str)
def test_bad_parameter(params, message):
    model = MLPClassifier(**params)
    with pytest.raises(ValueError, match=message):
        model.fit(X, LABELS)
    assert not hasattr(model, "coefs_")


def _with(value):
    bad = X.copy()
    bad[3, 2] = value
    return bad


BAD_DATA = [
    (MLPClassifier, _with(np.nan), LABELS, "Input X contains NaN"),
    (MLPClassifier, _with(np.inf), LABELS, "Input X contains infinity"),
    (MLPClassifier, X, LABELS[:-1], "inconsistent numbers of samples"),
    (MLPClassifier, X[0], LABELS, "Expected 2D array"),
    (MLPClassifier, X[:0], LABELS[:0], "Found array with 0 sample"),
    (MLPClassifier, X, TARGET, "Unknown label type"),
    (MLPClassifier, np.full((80, 2), "x"), LABELS, "could not convert string to float"),
    (MLPClassifier, X + 1j, LABELS, "Complex data not supported"),
    (MLPClassifier, X, np.column_stack([LABELS, LABELS]), "multioutput|Multioutput|label type"),
    (MLPRegressor, X, np.where(TARGET > 0, TARGET, np.nan), "Input y contains NaN"),
    (MLPRegressor, X, LABELS, "y must hold numbers for a regression"),
]


@pytest.mark.parametrize(
    ("estimator", "data", "target", "message"), BAD_DATA, ids=[row[3] for row in BAD_DATA]
)
def test_bad_data(estimator, data, target, message):
    model = estimator(**QUICK)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(data, target)
    assert not hasattr(model, "coefs_")


def test_bad_targets_and_weights(classifier):
    with pytest.raises(ValueError, match=r"loss 'poisson': y must be >= 0"):
        MLPRegressor("poisson").fit(X, TARGET)
    with pytest.raises(ValueError, match=r"sample_weight\.shape"):
        MLPClassifier().fit(X, LABELS, np.ones(3))
    with pytest.raises(ValueError, match="set aside for validation have a sample_weight of zero"):
        MLPRegressor(early_stopping=True, random_state=0).fit(X, TARGET, np.arange(80) == 0)
    with pytest.raises(ValueError, match="sample_weight contains NaN"):
        MLPClassifier().fit(X, LABELS, np.full(80, np.nan))
    with pytest.raises(ValueError, match=r"y. has classes not in .self\.classes_"):
        classifier.partial_fit(X, np.where(LABELS == "a", "z", LABELS))
    with pytest.raises(ValueError, match="X has 5 features, but MLPClassifier is expecting 6"):
        classifier.predict(X[:, :5])
    with pytest.raises(ValueError, match="X has 5 features"):
        classifier.partial_fit(X[:, :5], LABELS)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        MLPClassifier().partial_fit(X, LABELS)
    with pytest.raises(NotFittedError):
        MLPClassifier().predict(X)


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("estimator", "y"), [(MLPClassifier, LABELS), (MLPRegressor, TARGET)])
def test_all_weight_on_held_out_rows_is_refused(estimator, y, dtype, as_csr):
    data = sparse.csr_matrix(X.astype(dtype)) if as_csr else X.astype(dtype)
    train, _ = train_test_split(
        np.arange(80), test_size=0.1, random_state=_after_initialisation(estimator, data, y)
    )
    weight = np.ones(80)
    weight[train] = 0
    model = estimator(early_stopping=True, **QUICK)
    with pytest.raises(ValueError, match="left for training have a sample_weight of zero"):
        model.fit(data, y, weight)
    assert not hasattr(model, "coefs_")


def _after_initialisation(estimator, data, y):
    """The random state with which scikit-learn's estimator of the same kind would split."""
    theirs = getattr(sklearn.neural_network, estimator.__name__)
    params = QUICK | {"random_state": np.random.RandomState(0), "shuffle": False}
    return fit(theirs(**params), data, y).random_state


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize(("estimator", "y"), [(MLPClassifier, LABELS), (MLPRegressor, TARGET)])
def test_weights_that_sum_to_zero_are_refused(estimator, y, solver):
    """scikit-learn divides by zero."""
    weight = np.where(np.arange(80) % 2, 1.0, -1.0)
    theirs = getattr(sklearn.neural_network, estimator.__name__)(solver=solver)
    with pytest.raises(ZeroDivisionError):
        theirs.fit(X, y, weight)
    with pytest.raises(ValueError, match="sum to zero"):
        estimator(solver=solver).fit(X, y, weight)
    with pytest.raises(ValueError, match="sample_weight must be finite, got nan"):
        estimator(solver=solver).fit(X, y, np.nan)
    with pytest.raises(ValueError, match="sample_weight_val must be finite, got inf"):
        estimator(solver=solver).fit(X, y, X_val=X, y_val=y, sample_weight_val=np.inf)


def test_changed_architecture_is_refused_by_name(classifier):
    classifier.set_params(hidden_layer_sizes=(9, 9))
    with pytest.raises(ValueError, match=r"hidden_layer_sizes.*fit without warm_start"):
        classifier.partial_fit(X, LABELS)
    classifier.set_params(hidden_layer_sizes=(8,), warm_start=True)
    fit(classifier, X, LABELS)


def test_warm_start_may_switch_early_stopping_and_solver():
    """scikit-learn ends in an AttributeError or TypeError here."""
    for first, second in (({}, {"early_stopping": True}), ({"early_stopping": True}, {}),
                          ({"solver": "lbfgs"}, {}), ({}, {"solver": "lbfgs"})):  # fmt: skip
        model = fit(MLPRegressor(warm_start=True, **QUICK, **first), X, TARGET)
        defaults = {"early_stopping": False, "solver": "adam"}
        fit(model.set_params(**defaults | second), X, TARGET)
        assert np.isfinite(model.loss_)


def test_a_stream_of_many_batches_costs_the_same_all_along():
    """What was recorded before is not copied with every call, nor shared with copies."""
    model = MLPClassifier((3,), random_state=0).partial_fit(
        X[:8], LABELS[:8], classes=np.unique(LABELS)
    )
    curve, epochs = model.loss_curve_, model.history_["epoch"]
    other = copy.copy(model)
    model.partial_fit(X[:8], LABELS[:8])
    assert model.loss_curve_ is curve
    assert model.history_["epoch"] is epochs
    assert epochs == [1, 2]
    assert len(curve) == 2
    assert other.history_["epoch"] == [1]
    assert len(other.loss_curve_) == 1
    model.loss_curve_ *= 500_000
    start = time.perf_counter()
    for _ in range(20):
        model.partial_fit(X[:8], LABELS[:8])
    assert time.perf_counter() - start < 0.4
