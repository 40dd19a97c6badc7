"""Validation in the user's hands: X_val, scoring, history_, and why training stopped."""

import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from models import fit, quietly
from scipy import sparse
from sklearn.linear_model import LinearRegression
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    get_scorer,
    log_loss,
    mean_squared_error,
    r2_score,
)
from sklearn.model_selection import cross_val_score, train_test_split

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.estimators import parameters

rng = np.random.RandomState(0)
X = rng.normal(size=(120, 5))
LABELS = np.array(["a", "b", "c"])[np.argmax(X[:, :3] + rng.normal(size=(120, 3)), axis=1)]
BINARY = X[:, 0] + rng.normal(size=120) > 0
MULTILABEL = (X[:, :2] > rng.normal(size=(120, 2))).astype(int)
TARGET = X[:, 0] - X[:, 1] ** 2 + rng.normal(size=120)
X_VAL = rng.normal(size=(40, 5))
LABELS_VAL = np.array(["a", "b", "c"])[np.argmax(X_VAL[:, :3], axis=1)]
TARGET_VAL = X_VAL[:, 0]
WEIGHT_VAL = rng.uniform(0.1, 2, 40)
QUICK = {"hidden_layer_sizes": (6,), "random_state": 0, "learning_rate_init": 0.02, "max_iter": 12}
HISTORY = ["epoch", "loss", "validation_loss", "validation_score", "learning_rate", "seconds"]


def after_each_epoch(make, *args, **kwargs):
    """The models that fits of 1, 2, ... epochs give: an epoch's parameters, seen from outside."""
    return [fit(make().set_params(max_iter=n), *args, **kwargs) for n in range(1, 13)]


# --- the user's own validation data


@pytest.mark.parametrize("weight", [None, WEIGHT_VAL], ids=["", "weights"])
def test_recorded_losses_and_scores_are_scikit_learns(weight):
    def classifier():
        return MLPClassifier(**QUICK)

    held_out = {"X_val": X_VAL, "y_val": LABELS_VAL, "sample_weight_val": weight}
    model = fit(classifier(), X, LABELS, **held_out)
    steps = after_each_epoch(classifier, X, LABELS)
    losses = [log_loss(LABELS_VAL, m.predict_proba(X_VAL), sample_weight=weight) for m in steps]
    scores = [accuracy_score(LABELS_VAL, m.predict(X_VAL), sample_weight=weight) for m in steps]
    np.testing.assert_allclose(model.validation_loss_curve_, losses, rtol=1e-7)
    np.testing.assert_allclose(model.history_["validation_loss"], losses, rtol=1e-7)
    np.testing.assert_allclose(model.history_["validation_score"], scores)
    assert model.validation_scores_ is None
    np.testing.assert_array_equal(model.coefs_[0], steps[-1].coefs_[0])  # it did not train on them


def test_regressor_with_frames_and_alpha():
    """The validation loss has no penalty."""
    names = [f"f{i}" for i in range(5)]
    frame, frame_val = pd.DataFrame(X, columns=names), pd.DataFrame(X_VAL, columns=names)
    make = lambda: MLPRegressor(alpha=10.0, **QUICK)  # noqa: E731
    model = fit(make(), frame, TARGET, X_val=frame_val, y_val=TARGET_VAL)
    steps = after_each_epoch(make, X, TARGET)
    losses = [mean_squared_error(TARGET_VAL, m.predict(X_VAL)) / 2 for m in steps]
    scores = [r2_score(TARGET_VAL, m.predict(X_VAL)) for m in steps]
    np.testing.assert_allclose(model.validation_loss_curve_, losses, rtol=1e-7)
    np.testing.assert_allclose(model.history_["validation_score"], scores, rtol=1e-7)


@pytest.mark.parametrize("target", [LABELS, BINARY, MULTILABEL], ids=["multi", "binary", "labels"])
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix, sparse.csc_array])
def test_early_stopping_on_x_val_equals_the_split_that_gave_it(target, container):
    """With the rows that the split sets aside, and no shuffling, both ways are one."""
    params = {"early_stopping": True, "shuffle": False, "validation_fraction": 0.25}
    params |= QUICK | {"max_iter": 40, "n_iter_no_change": 2}
    model = fit(MLPClassifier(**params), container(X), target)
    state = np.random.RandomState(0)
    fit(MLPClassifier(**params | {"random_state": state, "max_iter": 1, "early_stopping": False}),
        container(X), target)  # fmt: skip
    stratify = target if target is BINARY else None
    rows = train_test_split(np.arange(120), random_state=state, test_size=0.25, stratify=stratify)
    train, held_out = rows
    own = fit(MLPClassifier(**params), container(X[train]), target[train],
              X_val=container(X[held_out]), y_val=target[held_out])  # fmt: skip
    assert own.validation_scores_ == model.validation_scores_
    assert own.n_iter_ == model.n_iter_ < 40
    for mine, other in zip(own.coefs_, model.coefs_, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9)


def test_early_stopping_keeps_the_best_epoch():
    make = lambda **more: MLPRegressor(**QUICK, **more)  # noqa: E731
    held_out = {"X_val": X_VAL, "y_val": TARGET_VAL}
    model = fit(make(early_stopping=True, tol=1.0), X, TARGET, **held_out)
    steps = after_each_epoch(make, X, TARGET)
    scores = [m.score(X_VAL, TARGET_VAL) for m in steps]
    best = int(np.argmax(scores[: model.n_iter_]))
    np.testing.assert_array_equal(model.coefs_[0], steps[best].coefs_[0])
    assert model.best_validation_score_ == pytest.approx(scores[best])


def test_lbfgs_records_its_iterations():
    make = lambda: MLPClassifier(solver="lbfgs", **QUICK)  # noqa: E731
    model = fit(make(), X, LABELS, X_val=X_VAL, y_val=LABELS_VAL)
    losses = [
        log_loss(LABELS_VAL, m.predict_proba(X_VAL)) for m in after_each_epoch(make, X, LABELS)
    ]
    np.testing.assert_allclose(model.validation_loss_curve_, losses, rtol=1e-7)
    assert model.history_["epoch"] == list(range(1, model.n_iter_ + 1))
    assert model.history_["loss"][-1] == model.loss_
    np.testing.assert_array_equal(model.coefs_[0], fit(make(), X, LABELS).coefs_[0])


# --- scoring


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("own", [True, False], ids=["X_val", "split"])
def test_scoring_loss_is_minus_the_validation_loss(early, own):
    if not early and not own:
        return
    held_out = {"X_val": X_VAL, "y_val": LABELS_VAL} if own else {}
    model = fit(MLPClassifier(scoring="loss", early_stopping=early, **QUICK), X, LABELS, **held_out)
    losses = model.validation_loss_curve_
    np.testing.assert_array_equal(model.history_["validation_score"], np.negative(losses))
    if early:
        assert model.validation_scores_ == [-loss for loss in losses]
        assert model.best_validation_score_ == -min(losses)
        if own:
            proba = model.predict_proba(X_VAL)
            assert log_loss(LABELS_VAL, proba) == pytest.approx(min(losses))


def f1_of_frames(estimator, data, target):
    assert isinstance(data, pd.DataFrame)
    assert isinstance(target, pd.Series)
    return f1_score(target, estimator.predict(data), average="macro")


@pytest.mark.parametrize("own", [True, False], ids=["X_val", "split"])
@pytest.mark.parametrize("scoring", ["f1_macro", get_scorer("f1_macro"), f1_of_frames])
def test_scorers_get_a_fitted_copy_and_the_users_data(scoring, own):
    names = [f"f{i}" for i in range(5)]
    frame, frame_val = pd.DataFrame(X, columns=names), pd.DataFrame(X_VAL, columns=names)
    held_out = {"X_val": frame_val, "y_val": pd.Series(LABELS_VAL)} if own else {}
    make = lambda: MLPClassifier(scoring=scoring, early_stopping=True, **QUICK)  # noqa: E731
    model = fit(make(), frame, pd.Series(LABELS), **held_out)
    if own:
        plain = lambda: MLPClassifier(**QUICK)  # noqa: E731
        expected = [
            f1_score(LABELS_VAL, m.predict(X_VAL), average="macro")
            for m in after_each_epoch(plain, X, LABELS)
        ]
        np.testing.assert_allclose(model.validation_scores_, expected[: model.n_iter_])
    else:
        same = fit(MLPClassifier(scoring="f1_macro", early_stopping=True, **QUICK), X, LABELS)
        assert model.validation_scores_ == same.validation_scores_
        assert model.validation_loss_curve_ is None
        assert np.isnan(model.history_["validation_loss"]).all()


def test_accuracy_and_r2_by_name_are_the_default():
    for estimator, name, y in (
        (MLPClassifier, "accuracy", MULTILABEL), (MLPClassifier, "accuracy", BINARY),
        (MLPRegressor, "r2", TARGET),
    ):  # fmt: skip
        weight = np.linspace(0.1, 2, 120)
        default = fit(estimator(early_stopping=True, **QUICK), X, y, weight)
        named = fit(estimator(early_stopping=True, scoring=name, **QUICK), X, y, weight)
        np.testing.assert_allclose(named.validation_scores_, default.validation_scores_, rtol=1e-9)


def never_defined(value):
    return lambda estimator, data, target, sample_weight=None: value


ONE_CLASS = {"X_val": X_VAL[TARGET_VAL > 0], "y_val": np.ones((TARGET_VAL > 0).sum(), bool)}
UNDEFINED = [
    (MLPClassifier, BINARY, "roc_auc", ONE_CLASS, {}),
    (MLPRegressor, TARGET, "r2", {"X_val": X_VAL[:1], "y_val": TARGET_VAL[:1]}, {}),
    (MLPRegressor, TARGET, never_defined(np.nan), {}, {"n_restarts": 3}),
    (MLPRegressor, TARGET, never_defined(-np.inf), {}, {"n_restarts": 3}),
    (MLPClassifier, LABELS, never_defined(np.nan), {}, {"learning_rate": "plateau", "patience": 1}),
    (MLPClassifier, LABELS, never_defined(-np.inf), {}, {"learning_rate": "plateau"}),
    (MLPClassifier, MULTILABEL, never_defined(np.nan), {}, {"ema_decay": 0.9}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize(("estimator", "y", "scoring", "held_out", "params"), UNDEFINED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_score_that_is_never_defined_leaves_the_last_epoch(
    estimator, y, scoring, held_out, params, dtype
):
    params = QUICK | params
    model = estimator(early_stopping=True, scoring=scoring, **params)
    with pytest.warns(UserWarning, match=r"score \(scoring=.*parameters of the last one"):
        fit(model, X.astype(dtype), y, **held_out)
    if held_out:
        plain = fit(estimator(**params), X.astype(dtype), y)
        np.testing.assert_array_equal(model.coefs_[0], plain.coefs_[0])
    assert model.stop_reason_ == "max_iter"
    assert model.loss_curve_[-1] < 0.97 * model.loss_curve_[0]
    assert set(model.history_["learning_rate"]) == {0.02}


def test_a_score_that_is_never_defined_is_warned_of_once():
    model = MLPRegressor(
        early_stopping=True, scoring=never_defined(np.nan), n_restarts=3, **QUICK
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, TARGET)
        model.set_params(warm_start=True, n_restarts=1).fit(X, TARGET)
    assert sum("validation score" in str(warning.message) for warning in caught) == 2


def test_a_score_that_becomes_defined_counts():
    scores = iter([np.nan, -np.inf, 0.3, np.nan, 0.2] + 10 * [0.1])
    scoring = lambda *_, **__: next(scores)  # noqa: E731
    model = fit(MLPRegressor(early_stopping=True, scoring=scoring, **QUICK), X, TARGET,
                X_val=X_VAL, y_val=TARGET_VAL)  # fmt: skip
    third = after_each_epoch(lambda: MLPRegressor(**QUICK), X, TARGET)[2]
    np.testing.assert_array_equal(model.coefs_[0], third.coefs_[0])
    assert model.best_validation_score_ == 0.3


@pytest.mark.parametrize("loss", ["squared_error", "quantile"])
def test_one_row_has_no_regression_score(loss):
    held_out = {"X_val": X_VAL[:1], "y_val": TARGET_VAL[:1]}
    early = MLPRegressor(loss, early_stopping=True, **QUICK)
    with pytest.raises(ValueError, match=r"X_val, y_val.*takes 2 samples.*scoring='loss'"):
        early.fit(X, TARGET, **held_out)
    assert not hasattr(early, "coefs_")
    fit(early.set_params(scoring="loss"), X, TARGET, **held_out)
    fit(MLPClassifier(early_stopping=True, **QUICK), X, LABELS, X_val=X_VAL[:1], y_val=["a"])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_the_recorded_r2_of_one_row_is_scikit_learns():
    model = fit(MLPRegressor(**QUICK), X, TARGET, X_val=X_VAL[:1], y_val=TARGET_VAL[:1])
    expected = r2_score(TARGET_VAL[:1], model.predict(X_VAL[:1]))
    np.testing.assert_array_equal(model.history_["validation_score"], [expected] * 12)


class Bare:
    """All that `numpy.asarray` needs, and a length."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self._array, dtype)

    def __len__(self):
        return len(self._array)


FORMS_OF_X = [
    *[getattr(sparse, f"{kind}_{what}") for kind in ("bsr", "coo", "dia", "dok", "lil", "csc")
      for what in ("array", "matrix")],
    memoryview, pl.DataFrame, np.ndarray.tolist,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
@pytest.mark.parametrize("as_form", FORMS_OF_X)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("estimator", "y", "scoring"),
    [(MLPClassifier, LABELS, "accuracy"), (MLPRegressor, TARGET, "r2")],
)
def test_scorers_take_every_form_of_x_that_fit_takes(estimator, y, scoring, dtype, as_form):
    data = X.round().astype(dtype)
    make = lambda scoring: estimator(early_stopping=True, scoring=scoring, **QUICK)  # noqa: E731
    named = fit(make(scoring), as_form(data), y)
    default = fit(make(None), as_form(data), y)
    np.testing.assert_allclose(named.validation_scores_, default.validation_scores_, rtol=1e-5)


def test_scorers_take_sparse_indicator_matrices():
    for as_form in (sparse.coo_array, sparse.bsr_array, sparse.dia_array, sparse.csc_array):
        named = MLPClassifier(early_stopping=True, scoring="accuracy", **QUICK)
        fit(named, X, as_form(MULTILABEL))
        default = fit(MLPClassifier(early_stopping=True, **QUICK), X, as_form(MULTILABEL))
        assert named.validation_scores_ == default.validation_scores_


WEIGHTS_OF_ALL = [2, 2.0, np.float32(2), np.float64(2), np.int64(2), True]
FORMS_OF_WEIGHTS = [list, tuple, memoryview, pd.Series, pl.Series, Bare]


@pytest.mark.parametrize("estimator", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize(
    "weight", WEIGHTS_OF_ALL + [form(np.linspace(0.1, 2, 120)) for form in FORMS_OF_WEIGHTS]
)
def test_scorers_take_every_form_of_weights_that_fit_takes(estimator, weight):
    y, scoring = (BINARY, "accuracy") if estimator is MLPClassifier else (TARGET, "r2")
    named = fit(estimator(early_stopping=True, scoring=scoring, **QUICK), X, y, weight)
    default = fit(estimator(early_stopping=True, **QUICK), X, y, weight)
    np.testing.assert_allclose(named.validation_scores_, default.validation_scores_, rtol=1e-9)


@pytest.mark.parametrize(
    "form", [np.array, lambda score: np.array([score]), np.float32, np.float64, float, int, Decimal]
)
def test_scores_of_every_form_that_scikit_learn_takes(form):
    scoring = lambda *_: form(0.5)  # noqa: E731
    data = X[:, :2]
    expected = cross_val_score(LinearRegression(), data, TARGET, scoring=scoring).astype(float)
    model = MLPRegressor(early_stopping=True, scoring=scoring, n_iter_no_change=2, **QUICK)
    fit(model, data, TARGET)
    assert model.validation_scores_ == [expected[0]] * 4
    assert all(type(score) is float for score in model.validation_scores_)


# --- history_


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_history_is_a_table(solver):
    model = fit(MLPRegressor(solver=solver, **QUICK), X, TARGET)
    table = pd.DataFrame(model.history_)
    assert table.columns.tolist() == HISTORY
    assert len(table) == model.n_iter_
    assert table["validation_loss"].isna().all()
    assert (table["seconds"] > 0).all()
    if solver != "lbfgs":
        assert table["loss"].tolist() == model.loss_curve_
        assert (table["learning_rate"] == 0.02).all()


def test_history_goes_on_with_warm_start_and_partial_fit():
    model = fit(MLPRegressor(warm_start=True, **QUICK), X, TARGET)
    first = model.history_
    fit(model, X, TARGET, X_val=X_VAL, y_val=TARGET_VAL)
    model.partial_fit(X, TARGET)
    assert len(first["epoch"]) == 12
    assert model.history_["epoch"] == list(range(1, 26))
    assert model.history_["loss"] == model.loss_curve_
    has_loss = ~np.isnan(model.history_["validation_loss"])
    assert has_loss.tolist() == [False] * 12 + [True] * 12 + [False]
    assert model.validation_loss_curve_ is None


def test_defaults_make_no_further_pass_over_validation_data(monkeypatch):
    from fastmlp.engine.cpu import CpuEngine

    calls = []
    original = CpuEngine.predict

    def counted(self, *arguments):
        calls.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(CpuEngine, "predict", counted)
    monkeypatch.setattr(CpuEngine, "evaluate", None)
    model = fit(MLPClassifier(early_stopping=True, **QUICK), X, LABELS)
    assert len(calls) == model.n_iter_


# --- why training stopped


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_stop_reason(solver):
    model = fit(MLPRegressor(solver=solver, **QUICK | {"max_iter": 2}), X, TARGET)
    assert model.stop_reason_ == "max_iter"
    fit(model.set_params(max_iter=4000, tol=0.1), X, TARGET)
    assert model.stop_reason_ == "converged"
    long = {"max_iter": 10**7, "tol": 0.0, "max_fun": 10**8}
    if solver == "adam":
        assert MLPRegressor().partial_fit(X, TARGET).stop_reason_ == "max_iter"
        long["n_iter_no_change"] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_params(max_time=1e-9, **long).fit(X, TARGET)
    assert (model.stop_reason_, model.n_iter_) == ("max_time", 1)
    assert len(model.history_["loss"]) == 1
    assert np.isfinite(model.score(X, TARGET))


def test_max_time_ends_a_long_fit():
    data = np.random.RandomState(0).normal(size=(500, 20))
    model = MLPRegressor(max_iter=10**7, n_iter_no_change=np.inf, max_time=0.3, random_state=0)
    model.fit(data, data[:, 0])
    seconds = model.history_["seconds"]
    assert sum(seconds) - seconds[-1] < 0.3 < sum(seconds) + 0.2
    assert model.stop_reason_ == "max_time"


# --- wrong use

CLASSIFIER_ERRORS = [
    ({"X_val": X_VAL}, "y_val is missing"),
    ({"y_val": LABELS_VAL}, "X_val is missing"),
    ({"sample_weight_val": WEIGHT_VAL}, "sample_weight_val needs X_val"),
    ({"X_val": X_VAL[:, :4], "y_val": LABELS_VAL}, "X_val, y_val.*X has 4 features"),
    ({"X_val": X_VAL[:30], "y_val": LABELS_VAL}, "X_val, y_val.*inconsistent numbers of samples"),
    ({"X_val": X_VAL, "y_val": ["z"] * 40}, r"y_val has classes that y does not have: \['z'\]"),
    ({"X_val": X_VAL, "y_val": MULTILABEL[:40]}, "y_val must hold class labels"),
    ({"X_val": X_VAL, "y_val": LABELS_VAL, "sample_weight_val": np.zeros(40)},
     "X_val, y_val.*zero"),
    ({"X_val": X_VAL * np.nan, "y_val": LABELS_VAL}, "X_val, y_val.*Input X contains NaN"),
    ({"X_val": X_VAL, "y_val": LABELS_VAL, "sample_weight_val": [1.0]},
     r"X_val, y_val.*sample_weight\.shape"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("held_out", "message"), CLASSIFIER_ERRORS, ids=[r[1] for r in CLASSIFIER_ERRORS]
)
def test_wrong_validation_set(held_out, message):
    model = MLPClassifier(**QUICK)
    with pytest.raises(ValueError, match=message):
        model.fit(X, LABELS, **held_out)
    assert not hasattr(model, "n_features_in_")


def test_wrong_validation_names_and_outputs():
    names = [f"f{i}" for i in range(5)]
    frame, other = pd.DataFrame(X, columns=names), pd.DataFrame(X_VAL, columns=names[::-1])
    with pytest.raises(ValueError, match=r"X_val, y_val.*feature names should match"):
        MLPRegressor().fit(frame, TARGET, X_val=other, y_val=TARGET_VAL)
    with pytest.raises(ValueError, match="y_val must have as many outputs as y"):
        MLPRegressor().fit(X, TARGET, X_val=X_VAL, y_val=X_VAL)
    with pytest.raises(ValueError, match=r"y_val must hold class labels, or an indicator matrix"):
        MLPClassifier().fit(X, MULTILABEL, X_val=X_VAL, y_val=X_VAL[:, 0] > 0)
    with pytest.raises(ValueError, match=r"X_val, y_val.*y must be >= 0"):
        MLPRegressor("poisson").fit(X, TARGET**2, X_val=X_VAL, y_val=TARGET_VAL)


def test_wrong_scoring():
    with pytest.raises(ValueError, match=r"scoring='f1' needs validation data"):
        MLPClassifier(scoring="f1").fit(X, BINARY)
    with pytest.raises(ValueError, match=r"scoring='r2' needs validation data"):
        MLPRegressor(scoring="r2", solver="lbfgs", early_stopping=True).fit(X, TARGET)
    with pytest.raises(ValueError, match="'f9'"):
        MLPClassifier(scoring="f9", early_stopping=True).fit(X, BINARY)
    for wrong in ("good", np.ones(2), 1j, None):
        with pytest.raises(ValueError, match="scoring must return one number"):
            MLPClassifier(scoring=lambda *_, w=wrong: w, early_stopping=True).fit(X, BINARY)
    with pytest.raises(ValueError, match="scoring"):
        MLPClassifier(scoring=accuracy_score, early_stopping=True).fit(X, BINARY)


def test_each_parameter_is_checked_once(monkeypatch):
    """Candidates of a search differ in one of them, which often is a number of NumPy's."""
    checked, check = [], parameters.validate_parameter_constraints

    def noted(constraints, values, caller_name):
        checked.append(sorted(values))
        check(constraints, values, caller_name)

    monkeypatch.setattr(parameters, "validate_parameter_constraints", noted)
    model = MLPClassifier((3,), max_iter=1, power_t=0.123)
    for alpha in (0.0625, np.float64(0.03125), 0.0625, np.float64(0.03125), 0.015625):
        quietly(model.set_params(alpha=alpha).fit, [[0.0], [1.0]], [0, 1])
    assert "power_t" in checked[0]
    assert all("power_t" not in names for names in checked[1:])
    assert ["alpha" in names for names in checked] == [True] * 3  # a set that is known is not even
    for alpha in (-0.0625, np.float64(-0.03125), "0.0625"):
        for _ in range(2):
            with pytest.raises(ValueError, match="'alpha' parameter of MLPClassifier must be"):
                model.set_params(alpha=alpha).fit([[0.0], [1.0]], [0, 1])


def test_score_is_scikit_learns():
    """Of plain labels it is worked out here; all else is left to scikit-learn."""
    rng = np.random.RandomState(0)
    X = rng.randn(60, 3)
    weight = rng.rand(60)
    for y in (
        rng.randint(3, size=60), rng.randint(2, size=60), rng.rand(60) > 0.5,
        np.array(["a", "b", "c"])[rng.randint(3, size=60)], rng.randint(3, size=60).astype(float),
        rng.randint(2, size=(60, 3)), rng.randint(3, size=60).astype(np.int8),
    ):  # fmt: skip
        model = MLPClassifier((4,), solver="lbfgs", max_iter=5, random_state=0)
        quietly(model.fit, X, y)
        for truth in (y, y.tolist(), y[::-1]):
            for given in ({}, {"sample_weight": weight}):
                expected = accuracy_score(truth, model.predict(X), **given)
                assert model.score(X, truth, **given) == expected
                assert type(model.score(X, truth, **given)) is float
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.score(X, y[:10])
