"""Ensembles: members against single fits, bit for bit; averages against NumPy and scikit-learn."""

import copy
import os
import pickle
import signal
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
from models import fit, flat, quietly, require_same
from processes import run_python
from scipy import sparse
from sklearn.base import clone
from sklearn.ensemble import VotingClassifier, VotingRegressor
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import d2_pinball_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastmlp
from fastmlp import (
    MLPClassifier,
    MLPEnsembleClassifier,
    MLPEnsembleRegressor,
    MLPRegressor,
)
from fastmlp.engine import place
from fastmlp.estimators import fitted_model
from fastmlp.estimators.prediction import of_few_rows

rng = np.random.RandomState(0)
X = rng.normal(size=(90, 4))
TARGET = np.sin(3 * X[:, 0]) + X[:, 1] ** 2
THREE = np.array(["a", "b", "c"])[np.digitize(TARGET, [0.3, 1.2])]
TWO = TARGET > 0.5
LABELS = (X[:, :3] > 0).astype(int)
WEIGHT = rng.uniform(0.1, 2, 90)
HELD_OUT = {"X_val": X[:20] + 0.1, "y_val": TARGET[:20]}
QUICK = {"hidden_layer_sizes": (4,), "max_iter": 6, "learning_rate_init": 0.02}
LEVELS = [0.9, 0.1, 0.5]


def C(n_members=3, *, n_threads=None, **params):
    estimator = MLPClassifier(**QUICK | params)
    return MLPEnsembleClassifier(estimator, n_members, random_state=5, n_threads=n_threads)


def R(n_members=3, *, n_threads=None, **params):
    estimator = MLPRegressor(**QUICK | params)
    return MLPEnsembleRegressor(estimator, n_members, random_state=5, n_threads=n_threads)


def seeds(n_members=3):
    return np.random.RandomState(5).randint(2**31 - 1, size=n_members).tolist()


def state(model):
    """What a model has learned and would go on from, but for clocks and threads."""
    found = model.__getstate__()
    found["history_"] = found["history_"] | {"seconds": None}
    return {k: v for k, v in found.items() if k not in ("engine_info_", "n_threads", "scoring")}


def assert_members_are_as_alone(model, *data, **options):
    assert [member.random_state for member in model.members_] == seeds(len(model.members_))
    for member in model.members_:
        alone = quietly(clone(member).fit, *data, **options)
        require_same(state(member), state(alone))


CASES = {
    "adam": (R(), X, TARGET),
    "sgd": (C(solver="sgd"), X, THREE),
    "lbfgs": (R(solver="lbfgs"), X, TARGET),
    "two classes": (C(), X, TWO),
    "labels": (C(), X, LABELS),
    "float32": (C(), X.astype(np.float32), THREE),
    "sparse": (C(), sparse.csr_matrix(X), THREE),
    "names": (C(), pd.DataFrame(X, columns=list("abcd")), THREE),
    "early stopping": (R(early_stopping=True), X, TARGET),
    "early stopping, two classes": (C(early_stopping=True), X, TWO),
    "dropout": (R(dropout=0.2), X, TARGET),
    "quantiles": (R(loss="quantile", quantile=LEVELS), X, TARGET),
    "class weights": (C(class_weight="balanced"), X, THREE),
    "restarts": (R(n_restarts=2), X, TARGET),
    "scorer": (C(early_stopping=True, scoring="f1_macro"), X, THREE),
    "threads": (R(n_threads=2), X, TARGET),
    "one thread": (R(n_threads=1), X, TARGET),
}


@pytest.mark.parametrize("name", CASES)
def test_a_member_is_the_estimator_alone(name):
    model, data, y = CASES[name]
    assert_members_are_as_alone(quietly(clone(model).fit, data, y), data, y)


def test_on_every_device(device):
    model = quietly(R(device=device, max_iter=2, early_stopping=True).fit, X, TARGET)
    assert_members_are_as_alone(model, X, TARGET)
    model.predict(X)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e-40])
def test_with_weights_and_validation_data(early, size):
    """Weights of any size: tiny ones are scaled by the rows of each member's own split."""
    data = X.astype(np.float32), TARGET, WEIGHT * size
    model = quietly(R(early_stopping=early, alpha=0).fit, *data)
    assert_members_are_as_alone(model, *data)
    options = HELD_OUT | {"sample_weight_val": WEIGHT[:20]}
    model = quietly(R(early_stopping=early, alpha=0).fit, *data, **options)
    assert_members_are_as_alone(model, *data, **options)


def test_members_differ_and_do_not_depend_on_how_many_there_are():
    few, many = fit(R(2), X, TARGET), fit(R(5), X, TARGET)
    assert len({member.loss_ for member in many.members_}) == 5
    for one, other in zip(few.members_, many.members_, strict=False):
        np.testing.assert_array_equal(flat(one), flat(other))
    assert many.loss_ == pytest.approx(np.mean([member.loss_ for member in many.members_]))
    again = fit(clone(many), X, TARGET)
    np.testing.assert_array_equal(again.predict(X), many.predict(X))


def test_samples_are_placed_once(device, monkeypatch):
    """But for the rows that each member sets aside."""
    placed = []

    def counted(*arguments, **options):
        placed.append(options["rows"])
        return place(*arguments, **options)

    monkeypatch.setattr("fastmlp.estimators.fitting.place", counted)
    small = {"max_iter": 2, "device": device}
    fit(R(**small), X, TARGET)
    assert placed == [None]
    fit(R(**small), X, TARGET, **HELD_OUT)
    assert placed == [None] * 3
    fit(R(**small, early_stopping=True), X, TARGET)
    splits = placed[3:]
    assert [rows is None for rows in splits] == [True, False, False, False]
    assert len({tuple(sorted(rows)) for rows in splits[1:]}) == 3


# --- prediction

FORMS = {
    "one row": X[:1], "few rows": X[:8], "all rows": X, "sparse": sparse.csr_matrix(X),
    "list": X[:3].tolist(), "float32": X.astype(np.float32), "columns": np.asfortranarray(X),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("y", [TWO, THREE, LABELS, np.zeros(90)], ids=["2", "3", "labels", "1"])
def test_probabilities_are_averaged(y, form):
    model, data = fit(C(), X, y), FORMS[form]
    each = np.array([member.predict_proba(data) for member in model.members_])
    mean, std = model.predict_proba(data, return_std=True)
    np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, each.std(axis=0), rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(model.predict_proba(data), mean)
    np.testing.assert_array_equal(model.predict_log_proba(data), np.log(mean))
    predicted = model.predict(data)
    assert predicted.dtype == model.members_[0].predict(data).dtype
    if y.ndim == 2:
        np.testing.assert_array_equal(predicted, mean > 0.5)
    elif len(model.classes_) == 1:
        np.testing.assert_array_equal(predicted, np.zeros(len(mean)))
    else:
        np.testing.assert_array_equal(predicted, model.classes_[mean.argmax(axis=1)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("y", [TARGET, X[:, :2]], ids=["one", "two"])
def test_predictions_are_averaged(y, form):
    model, data = fit(R(), X, y), FORMS[form]
    each = np.array([member.predict(data) for member in model.members_])
    mean, std = model.predict(data, return_std=True)
    np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(std, each.std(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(model.predict(data), mean)


def test_float32_stays_float32():
    small = X.astype(np.float32)
    mean, std = fit(R(), small, TARGET).predict(small, return_std=True)
    assert mean.dtype == std.dtype == np.float32
    assert fit(C(), small, THREE).predict_proba(small).dtype == np.float32


def test_quantiles_are_averaged_by_level_and_do_not_cross():
    model = fit(R(loss="quantile", quantile=LEVELS), X, TARGET)
    each = np.array([member.predict(X) for member in model.members_])
    predicted = model.predict(X)
    np.testing.assert_allclose(predicted, each.mean(axis=0), rtol=1e-12, atol=1e-12)
    ordered = predicted[:, np.argsort(LEVELS)]
    assert (np.diff(ordered, axis=1) >= 0).all()
    scores = [d2_pinball_score(TARGET, predicted[:, i], alpha=q) for i, q in enumerate(LEVELS)]
    assert model.score(X, TARGET) == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("y", [TWO, THREE], ids=["2", "3"])
def test_it_votes_as_scikit_learns(y):
    """A VotingClassifier that fits the same members alone, by itself."""
    model = fit(C(), X, y, WEIGHT)
    members = [(str(i), clone(member)) for i, member in enumerate(model.members_)]
    voting = fit(VotingClassifier(members, voting="soft"), X, y, sample_weight=WEIGHT)
    np.testing.assert_allclose(model.predict_proba(X), voting.predict_proba(X), rtol=1e-12)
    np.testing.assert_array_equal(model.predict(X), voting.predict(X))
    assert model.score(X, y, WEIGHT) == voting.score(X, y, WEIGHT)


def test_it_averages_as_scikit_learns():
    model = fit(R(), X, TARGET)
    members = [(str(i), clone(member)) for i, member in enumerate(model.members_)]
    voting = fit(VotingRegressor(members), X, TARGET)
    np.testing.assert_allclose(model.predict(X), voting.predict(X), rtol=1e-12, atol=1e-12)
    assert model.score(X, TARGET) == pytest.approx(voting.score(X, TARGET))


def test_edited_parameters_count():
    model = fit(R(), X, TARGET)
    before = model.predict(X[:2])
    model.members_[1].intercepts_[-1] += 3
    np.testing.assert_allclose(model.predict(X[:2]), before + 1)
    del model.members_[1:]
    np.testing.assert_array_equal(model.predict(X), model.members_[0].predict(X))


def test_members_of_other_widths_and_types_are_averaged_too():
    model = fit(R(), X, TARGET)
    wide = MLPRegressor(**QUICK | {"hidden_layer_sizes": (300, 7)}, random_state=0)
    for dtype in (np.float64, np.float32):
        model.members_[1] = fit(clone(wide), X.astype(dtype), TARGET)
        for data in (X[:1], X[:8], X, X[:3].astype(np.float32)):
            each = [member.predict(data) for member in model.members_]
            np.testing.assert_allclose(model.predict(data), np.mean(each, axis=0), rtol=1e-6)
        predictors = [fitted_model(member).predict for member in model.members_]
        assert of_few_rows(predictors, X[:1]) is None  # their scratch is of one size


def test_few_rows_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="infinity"):
        fit(R(), X, TARGET).predict(np.full((1, 4), np.inf))


def test_wrong_samples_are_refused():
    model = fit(R(), pd.DataFrame(X, columns=list("abcd")), TARGET)
    assert model.feature_names_in_.tolist() == list("abcd")
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(pd.DataFrame(X, columns=list("abce")))
    with pytest.raises(ValueError, match="X has 3 features"):
        fit(R(), X, TARGET).predict(X[:, :3])
    with pytest.raises(ValueError, match="NaN"):
        fit(R(), X, TARGET).predict(X * np.nan)
    for unfitted in (R(), C()):
        with pytest.raises(NotFittedError):
            unfitted.predict(X)
        assert not hasattr(unfitted, "n_features_in_")


# --- partial_fit


def test_partial_fit_of_members_is_that_of_estimators_alone():
    model = C(dropout=0.1)
    alone = [MLPClassifier(random_state=s, **QUICK, dropout=0.1) for s in seeds()]
    for rows in (slice(0, 30), slice(30, 60), slice(60, 90)):
        model.partial_fit(X[rows], THREE[rows], WEIGHT[rows], classes=["a", "b", "c"])
        for single in alone:
            single.partial_fit(X[rows], THREE[rows], WEIGHT[rows], classes=["a", "b", "c"])
    for member, single in zip(model.members_, alone, strict=True):
        require_same(state(member), state(single))


def test_partial_fit_goes_on_from_a_fit():
    model = fit(R(), X, TARGET)
    alone = [copy.copy(member).partial_fit(X, TARGET) for member in model.members_]
    assert model.partial_fit(X, TARGET) is model
    for member, single in zip(model.members_, alone, strict=True):
        require_same(state(member), state(single))


def test_partial_fit_changes_all_members_or_none():
    with pytest.raises(ValueError, match="classes must be passed"):
        C().partial_fit(X, THREE)
    model = C()
    with pytest.raises(ValueError, match="classes not in"):
        model.partial_fit(X, THREE, classes=["a", "b"])
    assert not hasattr(model, "members_")
    model = R(learning_rate_init=0.1, solver="sgd", activation="identity").partial_fit(X, TARGET)
    model.members_[2].coefs_[0][:] = 1e200
    before = [state(member) for member in model.members_]
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="non-finite parameter"):
        model.partial_fit(X, TARGET)
    require_same([state(member) for member in model.members_], before)


def test_partial_fit_needs_members_with_the_same_parameters():
    model = R().partial_fit(X, TARGET)
    model.members_[1].n_restarts = 2**53
    with pytest.raises(ValueError, match="n_restarts=1 and n_restarts=9007199254740992; set it"):
        model.partial_fit(X, TARGET)
    model = pickle.loads(pickle.dumps(R(weight_init="zeros", dropout=[0.1])))
    for member in model.partial_fit(X, TARGET).members_:
        member.alpha = 0.5
    model = pickle.loads(pickle.dumps(model))
    assert model.partial_fit(X, TARGET).members_[2].t_ == 180


def test_partial_fit_is_there_for_stochastic_solvers():
    assert hasattr(MLPEnsembleRegressor(), "partial_fit")
    assert not hasattr(R(solver="lbfgs"), "partial_fit")


# --- members that are left out


def told_by_fit(model):
    """What `fit` warns of, but for convergence."""
    with np.errstate(all="ignore"), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, TARGET)
    return [str(one.message) for one in said]


def far_too_large(bad):
    """Initial weights that make the n-th members diverge; two layers each."""
    calls = iter(range(1000))

    def weight_init(fan_in, fan_out, random_state):
        scale = 1e200 if next(calls) // 2 in bad else 0.1
        return scale * random_state.normal(size=(fan_in, fan_out))

    return weight_init


def diverging(*bad):
    return R(4, solver="sgd", activation="identity", weight_init=far_too_large(bad))


def test_a_member_that_diverges_is_left_out():
    model = diverging(0, 2)
    (message,) = told_by_fit(model)
    assert message.startswith("2 of 4 members are left out of the ensemble: Solver produced non-fi")
    assert message.endswith("lower learning_rate_init.")
    assert [member.random_state for member in model.members_] == seeds(4)[1::2]
    assert np.isfinite(model.predict(X)).all()


def test_if_all_diverge_the_ensemble_is_as_it_was():
    model = fit(R(), X, TARGET)
    before = vars(model).copy()
    model.estimator = diverging(*range(9)).estimator
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="non-finite parameter"):
        model.fit(X, TARGET)
    assert model.members_ is before["members_"]
    with pytest.raises(ValueError, match="NaN"):
        model.fit(X * np.nan, TARGET)
    assert model.members_ is before["members_"]


def test_max_time_holds_for_all_members():
    model = R(50, max_time=1e-9, n_threads=1)
    assert told_by_fit(model) == [
        "49 of 50 members are left out of the ensemble: There was no time left for it: raise "
        "max_time."
    ]
    assert [member.stop_reason_ for member in model.members_] == ["max_time"]


def interrupting(n):
    """A scorer at whose n-th call the user loses patience."""
    calls = iter(range(1, 1000))

    def scorer(estimator, X, y):
        if next(calls) == n:
            raise KeyboardInterrupt
        return 0.5

    return scorer


def stopped(n_left_out):
    return [
        "Training interrupted by user.",
        f"{n_left_out} of 4 members are left out of the ensemble: Ctrl-C ended their training.",
    ]


def test_ctrl_c_keeps_complete_members():
    model = R(4, early_stopping=True, scoring=interrupting(15), n_threads=1)
    assert told_by_fit(model) == stopped(2)
    assert [member.n_iter_ for member in model.members_] == [6, 6]


def test_ctrl_c_keeps_what_there_is():
    model = R(4, early_stopping=True, scoring=interrupting(3), n_threads=1)
    assert told_by_fit(model) == stopped(3)
    assert [member.stop_reason_ for member in model.members_] == ["interrupted"]
    np.testing.assert_array_equal(model.predict(X), model.members_[0].predict(X))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # swallowed, heard
@pytest.mark.parametrize("n_threads", [1, 2])
def test_ctrl_c_ends_all_members(n_threads):
    model = R(4, n_iter_no_change=np.inf, n_threads=n_threads, max_iter=10**7)
    fit(R(), X, TARGET)  # compiled
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    assert told_by_fit(model) == stopped(4 - n_threads)
    assert [member.stop_reason_ for member in model.members_] == ["interrupted"] * n_threads


# --- scikit-learn's ways


def test_search_reaches_the_estimators_parameters():
    model = make_pipeline(StandardScaler(), C(2))
    prefix = "mlpensembleclassifier__"
    grid = {f"{prefix}estimator__alpha": [1e-4, 1.0], f"{prefix}n_members": [1, 2]}
    search = fit(GridSearchCV(model, grid, cv=2), X, THREE)
    best = search.best_estimator_[-1]
    assert best.members_[0].alpha == search.best_params_[f"{prefix}estimator__alpha"]
    assert len(best.members_) == search.best_params_[f"{prefix}n_members"]
    assert C().set_params(estimator__alpha=7.0).get_params()["estimator__alpha"] == 7


def test_defaults_are_five_default_estimators():
    model = MLPEnsembleRegressor(random_state=0)
    assert model.estimator is None
    fit(model, X[:20], TARGET[:20])
    assert [member.hidden_layer_sizes for member in model.members_] == [(100,)] * 5
    assert repr(model) == "MLPEnsembleRegressor(random_state=0)"


def test_the_estimator_is_not_changed():
    model = C()
    before = model.estimator.get_params()
    fit(model, X, THREE)
    assert model.estimator.get_params() == before
    assert not hasattr(model.estimator, "coefs_")
    assert not hasattr(clone(model), "members_")


def test_n_threads_is_the_members_limit():
    model = fit(R(n_threads=1), X, TARGET)
    assert {member.n_threads for member in model.members_} == {1}
    model = MLPEnsembleRegressor(MLPRegressor(**QUICK, n_threads=2), 2)
    assert {member.n_threads for member in fit(model, X, TARGET).members_} == {2}


def test_a_copy_goes_its_own_way():
    model = fit(R(), X, TARGET)
    before, other = model.predict(X), copy.copy(model)
    other.partial_fit(X, TARGET)
    np.testing.assert_array_equal(model.predict(X), before)
    assert len(model.members_[0].loss_curve_) == 6
    assert len(other.members_[0].loss_curve_) == 7
    assert not hasattr(copy.copy(R()), "members_")


def test_pickles_are_read_by_other_processes(tmp_path):
    model = fit(C(), X, THREE)
    model.predict(X)  # with engines, which are not in the pickle
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((model, X)))
    code = """
        import pickle, sys
        model, X = pickle.load(open(sys.argv[1], "rb"))
        pickle.dump((model.predict_proba(X), model.predict(X)), open(sys.argv[1], "wb"))
    """
    run_python(code, path)
    probabilities, labels = pickle.loads(path.read_bytes())
    np.testing.assert_array_equal(probabilities, model.predict_proba(X))
    np.testing.assert_array_equal(labels, model.predict(X))


def test_notebooks_show_it():
    for model in (C(), fit(C(), X, THREE), MLPEnsembleClassifier()):
        assert "MLPEnsembleClassifier" in model._repr_html_()


# --- refusals


class Subclass(MLPRegressor):
    pass


def test_what_makes_no_members_is_refused():
    for other in (MLPClassifier(), Subclass(), make_pipeline(MLPRegressor())):
        with pytest.raises(TypeError, match="estimator must be an MLPRegressor of fastmlp"):
            MLPEnsembleRegressor(other).fit(X, TARGET)
    with pytest.raises(ValueError, match="'estimator' parameter"):
        MLPEnsembleRegressor("mlp").fit(X, TARGET)
    with pytest.raises(ValueError, match="'n_members' parameter"):
        R(0).fit(X, TARGET)
    with pytest.raises(ValueError, match="'n_threads' parameter"):
        R(n_threads=0).fit(X, TARGET)
    with pytest.raises(ValueError, match="set estimator__warm_start=False"):
        R(warm_start=True).fit(X, TARGET)
    with pytest.raises(ValueError, match="set estimator__checkpoint=None"):
        R(checkpoint="file").fit(X, TARGET)
    with pytest.raises(ValueError, match="'alpha' parameter of MLPRegressor"):
        R(alpha=-1).fit(X, TARGET)
    with pytest.raises(ValueError, match="'alpha' parameter of MLPRegressor"):
        R(alpha=-1).partial_fit(X, TARGET)
    with pytest.raises(ValueError, match="y_val is missing"):
        R().fit(X, TARGET, X_val=X)


def test_callbacks_are_refused():
    callbacks = pytest.importorskip("sklearn.callback")
    estimator = MLPRegressor(**QUICK).set_callbacks(callbacks.ProgressBar())
    with pytest.raises(ValueError, match="An ensemble calls no callbacks"):
        MLPEnsembleRegressor(estimator).fit(X, TARGET)


def test_what_takes_one_network_says_so():
    model = fit(R(), X, TARGET)
    with pytest.raises(TypeError, match="of an ensemble, take one of members_"):
        fastmlp.jit_predictor(model)
    with pytest.raises(TypeError, match="MLPClassifier or MLPRegressor of fastmlp, got MLPEns"):
        fastmlp.inspect.forward(model, X)
