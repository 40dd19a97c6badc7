"""Predictions and partial_fit from what was prepared for earlier calls: never anything stale."""

import concurrent.futures
import copy
import os
import pickle
import warnings
import weakref

import numpy as np
import pandas as pd
import pytest
from models import fit, quietly
from scipy import sparse
from sklearn import config_context
from sklearn import neural_network as sk
from sklearn.base import clone

import fastmlp
from fastmlp.estimators import fitted_model, prediction

RNG = np.random.RandomState(0)
X = RNG.normal(size=(300, 12))
Y = np.argmax(X[:, :4], axis=1)
ROWS = [1, 8, 9, 40, 300]  # from the user's arrays, and by an engine


@pytest.fixture(autouse=True)
def many_rows_go_to_an_engine(monkeypatch):
    """As with large networks: all but `prediction.FEW_ROWS` rows."""
    monkeypatch.setattr(prediction, "_FEW_PRODUCTS", 0)


def pair(dtype=np.float64, **parameters):
    """The same fitted network as ours and as scikit-learn's, which keeps nothing between calls."""
    models = [
        module.MLPClassifier((20, 7), max_iter=3, random_state=0, **parameters)
        for module in (fastmlp, sk)
    ]
    for model in models:
        fit(model, X.astype(dtype), Y)
    models[1].coefs_ = [coef.copy() for coef in models[0].coefs_]
    models[1].intercepts_ = [intercept.copy() for intercept in models[0].intercepts_]
    return models


def assert_same_predictions(ours, theirs, dtype=np.float64):
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    for n in ROWS:
        for form in (np.asarray, sparse.csr_matrix, sparse.csc_matrix, np.asfortranarray, list):
            data = form(X[:n].astype(dtype))
            np.testing.assert_allclose(
                ours.predict_proba(data), theirs.predict_proba(data), tolerance, tolerance
            )


def edit_weights(model):
    model.coefs_[0][3] *= 1.5


def edit_bias(model):
    model.intercepts_[-1][0] += 0.25


def replace_layer(model):
    model.coefs_[1] = model.coefs_[1] * 0.5


def assign_list(model):
    model.coefs_ = [0.9 * coef for coef in model.coefs_]


def assign_tuple(model):
    model.intercepts_ = tuple(intercept - 0.1 for intercept in model.intercepts_)


def smaller_network(model):
    model.coefs_ = [model.coefs_[0][:, :5], model.coefs_[1][:5], model.coefs_[2]]
    model.intercepts_ = [model.intercepts_[0][:5], *model.intercepts_[1:]]


def other_activation(model):
    model.activation = "tanh"


def other_order(model):
    model.coefs_[0] = np.asfortranarray(model.coefs_[0]) * 1.1


def other_type(model):
    model.coefs_ = [coef.astype(np.float64) for coef in model.coefs_]


def train_on(model):
    model.partial_fit(X[:50].astype(model.coefs_[0].dtype), Y[:50])


CHANGES = [
    edit_weights, edit_bias, replace_layer, assign_list, assign_tuple, smaller_network,
    other_activation, other_order, other_type, train_on,
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_of_a_model_is_seen_by_the_next_prediction(change, dtype):
    ours, theirs = pair(dtype)
    assert_same_predictions(ours, theirs, dtype)
    before = ours.predict_proba(X[:40].astype(dtype))
    for model in (ours, theirs):
        change(model)
    assert change is other_type or not np.allclose(
        ours.predict_proba(X[:40].astype(dtype)), before, rtol=1e-4
    )
    assert_same_predictions(ours, theirs, dtype)


def test_frames_and_rows_of_frames():
    names = [f"x{i}" for i in range(12)]
    frame = pd.DataFrame(X, columns=names)
    models = [
        kind((20, 7), max_iter=3, random_state=0, solver="lbfgs")
        for kind in (fastmlp.MLPClassifier, sk.MLPClassifier)
    ]
    for model in models:
        fit(model, frame, Y)
    for n in ROWS:
        got, expected = (model.predict_proba(frame[:n]) for model in models)
        np.testing.assert_allclose(got, expected, atol=1e-8)
    for model in models:
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            model.predict(X[:1])
        with pytest.raises(ValueError, match="feature names should match"):
            model.predict(frame[names[::-1]])


@pytest.mark.parametrize("n_rows", [1, 100])
def test_threads_that_share_a_model_get_their_own_answers(n_rows):
    ours, _ = pair()
    parts = [X[i : i + n_rows] for i in range(200)]
    expected = [ours.predict_proba(part) for part in parts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, right in zip(pool.map(ours.predict_proba, parts), expected, strict=True):
                np.testing.assert_array_equal(got, right)


def test_small_products_need_no_engine(monkeypatch):
    monkeypatch.undo()
    ours, theirs = pair()
    n = 1 + prediction._FEW_PRODUCTS // sum(coef.size + len(coef[0]) for coef in ours.coefs_)
    many = np.resize(X, (n, X.shape[1]))
    np.testing.assert_allclose(ours.predict_proba(many[:-1]), theirs.predict_proba(many[:-1]))
    assert not fitted_model(ours).predict._idle
    np.testing.assert_allclose(ours.predict_proba(many), theirs.predict_proba(many))
    assert fitted_model(ours).predict._idle


def test_copies_and_pickles_have_nothing_of_it():
    ours, theirs = pair()
    attributes, size = set(vars(ours)), len(pickle.dumps(ours))
    assert_same_predictions(ours, theirs)
    assert set(vars(ours)) == attributes
    assert len(pickle.dumps(ours)) == size
    for other in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        other.coefs_ = [2 * coef for coef in other.coefs_]
        assert not np.allclose(other.predict_proba(X), theirs.predict_proba(X))
        assert not np.allclose(other.predict_proba(X[:2]), theirs.predict_proba(X[:2]))
    assert_same_predictions(ours, theirs)
    assert not hasattr(clone(ours), "coefs_")


def test_a_dead_model_takes_what_was_kept_along():
    ours, theirs = pair()
    ours.partial_fit(X, Y)
    assert_same_predictions(ours, theirs.partial_fit(X, Y))
    model = fitted_model(ours)
    kept = [weakref.ref(engine) for engine in (model.spare[1], model.predict._idle[X.dtype][0])]
    assert all(engine() for engine in kept)
    del ours, model
    assert not any(engine() for engine in kept)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_predicts_and_trains():
    """Threads of the parent's engines are not in the child, which would wait for them."""
    ours, _ = pair()
    data, labels = np.tile(X, (40, 1)), np.tile(Y, 40)
    ours.partial_fit(data, labels)
    expected = ours.predict_proba(data)
    child = os.fork()
    if not child:  # pragma: no cover
        same = np.array_equal(ours.predict_proba(data), expected)
        ours.partial_fit(data, labels)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nothing_is_prepared_twice(monkeypatch):
    """A network of many features answers one sparse row without a look at all its weights."""
    wide = sparse.random(40, 5000, 0.01, "csr", random_state=np.random.default_rng(0))
    model = fit(fastmlp.MLPClassifier((50,), max_iter=1, random_state=0), wide, Y[:40])
    expected = model.predict_proba(wide.toarray())
    flatten, calls = fastmlp.network.Network.flatten, []

    def counted(network, *arguments):
        calls.append(1)
        return flatten(network, *arguments)

    monkeypatch.setattr(fastmlp.network.Network, "flatten", counted)
    monkeypatch.setattr(prediction, "get_engine", None)
    for i in range(5):
        got = model.predict_proba(wide[i])
        np.testing.assert_allclose(got, expected[i : i + 1], rtol=1e-10)
    for _ in range(3):
        model.predict_proba(wide.toarray())
    assert not calls


@pytest.mark.parametrize("solver", ["adam", "sgd", "rmsprop"])
def test_partial_fit_goes_on_from_whatever_is_there(solver):
    """Batches of other sizes, other settings, edited weights: as with an engine made anew."""

    def run(fresh):
        model = fastmlp.MLPClassifier((20, 7), random_state=0, solver=solver, batch_size=32)
        results = []
        for i, n in enumerate([64, 64, 10, 200, 200, 33, 64]):
            if fresh:
                vars(model).pop("_model", None)
            if i == 3:
                model.coefs_[0][2] = 0.5
            if i == 4:
                model.set_params(alpha=0.1, learning_rate_init=0.01)
            if i == 5:
                model.coefs_ = [0.9 * coef for coef in model.coefs_]
            weight = None if i % 2 else RNG_WEIGHTS[:n]
            quietly(model.partial_fit, X[:n], Y[:n], weight, classes=[0, 1, 2, 3])
            results.append((model.loss_, model.coefs_[0].copy(), model.predict_proba(X[:20])))
        return results

    for kept, new in zip(run(False), run(True), strict=True):
        assert kept[0] == new[0]
        np.testing.assert_array_equal(kept[1], new[1])
        np.testing.assert_array_equal(kept[2], new[2])


RNG_WEIGHTS = np.random.RandomState(1).uniform(0.5, 2, 300)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_no_row_that_is_not_finite_gets_through(monkeypatch, wrong, dtype, n_threads):
    """Engines look at rows as they come to them, as one of many and of few."""
    monkeypatch.setattr("fastmlp.engine.cpu.engine._WORTH_THREADS", 0.0)
    ours, theirs = pair(dtype)
    ours.set_params(n_threads=n_threads)
    before = ours.predict_proba(X.astype(dtype))
    for n_rows in (3, 20, 300):
        for row, column in ((0, 0), (n_rows - 1, 11), (n_rows // 2, 5)):
            data = X[:n_rows].astype(dtype)
            data[row, column] = wrong
            (found, _), (expected, _) = (
                what_happens(model.predict_proba, data) for model in (ours, theirs)
            )
            assert found == expected
            assert "Input X contains" in found
    few = X[:3].astype(dtype)
    few[1, 5] = wrong
    with config_context(assume_finite=True):
        for most in (10**9, 0):  # from the user's arrays, and by an engine
            monkeypatch.setattr(prediction, "_FEW_PRODUCTS", most)
            found = ours.predict_proba(few)
            assert found.shape == (3, 4)
            np.testing.assert_allclose(found[[0, 2]], before[[0, 2]], rtol=1e-5)
    huge = X.astype(dtype)
    huge[:, 3] = np.finfo(dtype).max * np.where(np.arange(300) % 2, 0.9, -0.9)
    assert np.isfinite(ours.predict_proba(huge)).all()
    np.testing.assert_array_equal(ours.predict_proba(X.astype(dtype)), before)


FRAMES = {
    "float64": lambda frame: frame,
    "float32": lambda frame: frame.astype(np.float32),
    "integers": lambda frame: (10 * frame).astype(int),
    "floats of both sizes": lambda frame: frame.astype({"a": np.float32}),
    "integers beside floats": lambda frame: frame.assign(a=(10 * frame["a"]).astype(int)),
    "booleans beside floats": lambda frame: frame.assign(a=frame["a"] > 0),
    "numbers as objects": lambda frame: frame.astype(object),
    "nullable": lambda frame: frame.astype("Float64"),
    "missing": lambda frame: frame.assign(a=np.nan),
    "infinite": lambda frame: frame.assign(a=np.inf),
    "another order": lambda frame: frame[["b", "a", "c"]],
    "other names": lambda frame: frame.rename(columns={"a": "z"}),
    "a column less": lambda frame: frame[["a", "b"]],
    "an array": lambda frame: frame.to_numpy(),
    "a list": lambda frame: frame.to_numpy().tolist(),
}
LISTS = {
    "floats": lambda rows: rows,
    "integers": lambda rows: [[int(10 * number) for number in row] for row in rows],
    "a row too short": lambda rows: [*rows, [1.0]],
    "missing": lambda rows: [*rows, [None, 1.0, 2.0]],
    "not a number": lambda rows: [*rows, [np.nan, 1.0, 2.0]],
    "text": lambda rows: [*rows, ["1.5", "2", "3"]],
    "words": lambda rows: [*rows, ["a", "b", "c"]],
    "one row": lambda rows: rows[0],
    "no row": lambda rows: [],
    "too wide": lambda rows: [[*row, 1.0] for row in rows],
}


def what_happens(predict, data):
    """Result, or error and warnings in words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome = predict(data)
        except (TypeError, ValueError) as error:
            outcome = f"{type(error).__name__}: {error}"
    return outcome, sorted(str(warning.message) for warning in caught)


@pytest.mark.parametrize("n_rows", [3, 60])
@pytest.mark.parametrize(
    ("named", "change"),
    [(True, change) for change in FRAMES.values()] + [(False, change) for change in LISTS.values()],
    ids=[*(f"frame, {name}" for name in FRAMES), *(f"list, {name}" for name in LISTS)],
)
def test_frames_and_lists_end_as_in_scikit_learn(named, change, n_rows):
    frame = pd.DataFrame(X[:, :3], columns=["a", "b", "c"])
    train = frame if named else frame.to_numpy()
    models = [
        quietly(module.MLPClassifier((5,), max_iter=3, random_state=0).fit, train, Y)
        for module in (fastmlp, sk)
    ]
    data = change(frame[:n_rows] if named else frame.to_numpy()[:n_rows].tolist())
    (ours, our_warnings), (theirs, their_warnings) = (
        what_happens(model.predict_proba, data) for model in models
    )
    assert our_warnings == their_warnings
    if isinstance(theirs, str) and theirs.startswith("TypeError: unsupported operand"):
        assert "Input X contains NaN" in ours  # what scikit-learn did not notice
    elif isinstance(theirs, str):
        assert ours == theirs
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
