"""Targets of every kind, as scikit-learn takes or refuses them; and hooks that are none here."""

import inspect
from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from models import quietly
from scipy import sparse
from sklearn import neural_network as sk
from sklearn.metrics import get_scorer

import fastmlp
from fastmlp.estimators import HOOKS

RNG = np.random.RandomState(0)
X = RNG.normal(size=(60, 4))
LABELS = (X[:, 0] > 0).astype(int)
Y2 = np.column_stack([LABELS, X[:, 1] > 0]).astype(int)
Y3 = np.column_stack([Y2, X[:, 2] > 0]).astype(int)
TARGET = X @ [1.0, 2.0, 3.0, 4.0]
WHOLE = np.round(3 * TARGET).astype(int)
DAYS = np.datetime64("2020-01-01") + WHOLE

CLASSES = {
    "binary": LABELS,
    "three classes": np.digitize(X[:, 1], [-0.5, 0.5]),
    "strings": np.array(["no", "yes"])[LABELS],
    "bool": LABELS.astype(bool),
    "column": LABELS[:, None],
    "one class": np.ones(60, int),
    "indicator": Y3,
    "of two": Y2,
    "floats": Y3 * 1.0,
    "0/2": Y3 * 2,
    "0/255 bytes": (Y3 * 255).astype(np.uint8),
    "0/-1": -Y3,
    "0/2.5": Y3 * 2.5,
    "bools": Y3.astype(bool),
    "sparse": sparse.csr_matrix(Y3),
    "sparse 0/2": sparse.csr_array(Y3 * 2),
    "sparse 0/-1": sparse.csc_matrix(-Y3),
    "sparse of two": sparse.csr_matrix(Y2),
    "several outputs": np.column_stack([WHOLE, WHOLE]),
}
FITS = [{}, {"solver": "lbfgs"}, {"early_stopping": True}]


def outcome(module, calls, **parameters):
    """Probabilities, predictions and loss after some calls; None if one of them raises."""
    model = module.MLPClassifier((5,), max_iter=5, random_state=0, **parameters)
    try:
        for method, arguments in calls:
            quietly(getattr(model, method), X, *arguments)
        predictions = model.predict(X)
    except (ValueError, TypeError, IndexError):
        return None
    if sparse.issparse(predictions):
        predictions = predictions.toarray()
    return model.predict_proba(X), predictions, model.loss_


def assert_same_outcome(calls, **parameters):
    expected = outcome(sk, calls, **parameters)
    got = outcome(fastmlp, calls, **parameters)
    assert (got is None) == (expected is None)
    if expected is not None:
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-7, atol=1e-9)
        np.testing.assert_array_equal(got[1], expected[1])
        assert got[2] == pytest.approx(expected[2])


@pytest.mark.parametrize("parameters", FITS)
@pytest.mark.parametrize("kind", CLASSES)
def test_every_kind_of_classes_equals_scikit_learn(kind, parameters):
    assert_same_outcome([("fit", (CLASSES[kind],))], **parameters)


@pytest.mark.parametrize("second", CLASSES)
@pytest.mark.parametrize("first", [kind for kind in CLASSES if kind != "several outputs"])
def test_one_kind_of_classes_after_another_equals_scikit_learn(first, second):
    y, later = CLASSES[first], CLASSES[second]
    assert_same_outcome([("fit", (y,)), ("fit", (later,))], warm_start=True)
    assert_same_outcome([("fit", (y,)), ("partial_fit", (later,))])
    is_matrix = sparse.issparse(y) or (y.ndim == 2 and y.shape[1] > 1)
    classes = np.arange(y.shape[1]) if is_matrix else np.unique(y)
    assert_same_outcome([("partial_fit", (y, None, classes)), ("partial_fit", (later,))])


@pytest.mark.parametrize("options", [{"class_weight": {0: 1, 1: 2}}, {"loss": "squared_error"}])
@pytest.mark.parametrize("matrix", [Y2, sparse.csr_matrix(Y2)])
def test_a_matrix_after_labels_is_refused_in_one_sentence(matrix, options):
    model = fastmlp.MLPClassifier((5,), max_iter=2, random_state=0, **options)
    model.partial_fit(X, LABELS, classes=[0, 1])
    before = model.coefs_[0].copy()
    with pytest.raises(ValueError, match="y must hold class labels"):
        model.partial_fit(X, matrix)
    np.testing.assert_array_equal(model.coefs_[0], before)


@pytest.mark.parametrize("factor", [2, 255, -1])
def test_any_number_but_0_is_a_label_for_class_weights_and_scorers_too(factor):
    weights = [{0: 1, 1: 2}] * 3

    def fitted(Y, **given):
        model = fastmlp.MLPClassifier(
            (5,), max_iter=20, random_state=0, early_stopping=True, scoring="f1_macro",
            class_weight=weights,
        )  # fmt: skip
        return quietly(model.fit, X, Y, **given)

    for given in ({}, {"X_val": X[::2], "y_val": Y3[::2] * factor}):
        plain = fitted(Y3, **({} if not given else given | {"y_val": Y3[::2]}))
        for Y in (Y3 * factor, sparse.csr_matrix(Y3 * factor)):
            other = fitted(Y, **given)
            np.testing.assert_array_equal(other.coefs_[0], plain.coefs_[0])
            assert other.validation_scores_ == plain.validation_scores_
    score = get_scorer("f1_macro")(
        plain, X[::2], Y3[::2], sample_weight=np.prod(1 + Y3[::2], axis=1)
    )
    assert max(plain.validation_scores_) == pytest.approx(score)


REFUSED = r"y must hold numbers|Sparse data was passed for y|must be a string or a real number"


def test_labels_after_a_matrix_of_two_columns_are_refused():
    """scikit-learn takes them, trains on something else, and cannot predict any more."""
    model = fastmlp.MLPClassifier((5,), max_iter=2, random_state=0)
    model.partial_fit(X, Y2, classes=[0, 1])
    with pytest.raises(ValueError, match="y must be an indicator matrix, as in the first call"):
        model.partial_fit(X, LABELS)


NO_NUMBERS = {
    "dates": DAYS,
    "dates with NaT": np.where(np.arange(60) == 3, np.datetime64("NaT"), DAYS),
    "a frame's dates": pd.Series(DAYS),
    "times": DAYS - np.datetime64("2020-01-01"),
    "a frame's times": pd.Series(DAYS) - pd.Timestamp("2020-01-01"),
    "two columns of dates": np.column_stack([DAYS, DAYS]),
    "objects": np.array([date(2020, 1, 1)] * 60, dtype=object),
    "strings of numbers": WHOLE.astype(str),
    "bytes of numbers": WHOLE.astype("S"),
    "words": np.array(["no", "yes"])[LABELS],
    "records": np.zeros(60, dtype=[("a", float)]),
    "sparse": sparse.csr_matrix(np.column_stack([TARGET, TARGET])),
    "sparse column": sparse.csr_matrix(TARGET[:, None]),
}


@pytest.mark.parametrize("options", FITS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_not_a_number_is_no_target_of_a_regression(kind, dtype, options):
    y = NO_NUMBERS[kind]
    data = X.astype(dtype)
    with pytest.raises((TypeError, np.linalg.LinAlgError)):
        sk.MLPRegressor(hidden_layer_sizes=(5,), max_iter=2, **options).fit(data, y)
    ours = fastmlp.MLPRegressor(hidden_layer_sizes=(5,), max_iter=2, **options)
    with pytest.raises(TypeError, match=REFUSED):
        ours.fit(data, y)
    assert not hasattr(ours, "coefs_")
    if not options:
        with pytest.raises(TypeError, match=REFUSED):
            ours.partial_fit(data, y)


@pytest.mark.parametrize(
    "y",
    [
        WHOLE,
        TARGET > 0,
        TARGET.astype(np.float16),
        TARGET.astype(">f8"),
        TARGET.astype(object),
        WHOLE.astype(str).astype(object),
        np.array([Decimal(repr(float(value))) for value in TARGET], dtype=object),
        pd.Series(TARGET).astype("Float64"),
        pd.Series(WHOLE).astype("category"),
        pd.Series(TARGET).astype("float64[pyarrow]"),
        np.abs(WHOLE).astype(np.uint8),
    ],
)
@pytest.mark.parametrize("options", FITS)
def test_every_kind_of_number_is_a_target_as_in_scikit_learn(y, options):
    predictions = []
    for module in (sk, fastmlp):
        model = module.MLPRegressor(hidden_layer_sizes=(5,), max_iter=5, random_state=0, **options)
        quietly(model.fit, X, y)
        predictions.append(model.predict(X))
    np.testing.assert_allclose(*predictions, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("options", FITS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("wrong", "words"), [(None, "NaN"), (float("inf"), "infinity"), (Decimal("NaN"), "NaN")]
)
def test_an_object_target_that_is_no_finite_number_is_refused(wrong, words, dtype, options):
    y = TARGET.astype(object)
    y[3] = wrong
    data = X.astype(dtype)
    with pytest.raises(ValueError, match=f"Input (y )?contains {words}"):
        fastmlp.MLPRegressor(hidden_layer_sizes=(5,), **options).fit(data, y)
    if not options:
        model = fastmlp.MLPRegressor(hidden_layer_sizes=(5,))
        with pytest.raises(
            ValueError, match=f"X_val, y_val is invalid. Input (y )?contains {words}"
        ):
            model.fit(data, TARGET, X_val=data, y_val=y)


def test_a_target_beyond_float32_is_refused_where_float32_is_trained():
    data = X.astype(np.float32)
    with pytest.raises(ValueError, match=r"y contains infinity or a value too large.*float32"):
        fastmlp.MLPRegressor(hidden_layer_sizes=(5,)).fit(data, TARGET * 1e40)


def private_hooks_of_scikit_learn():
    base = next(kind for kind in sk.MLPClassifier.__mro__ if kind.__name__.startswith("BaseMulti"))
    return {
        name
        for kind in (base, sk.MLPClassifier, sk.MLPRegressor)
        for name, value in vars(kind).items()
        if name.startswith("_") and not name.startswith("__") and inspect.isfunction(value)
    }


def test_the_list_of_hooks_is_scikit_learns():
    assert set(HOOKS) == private_hooks_of_scikit_learn()


@pytest.mark.parametrize("name", sorted(HOOKS))
@pytest.mark.parametrize("kind", [fastmlp.MLPClassifier, fastmlp.MLPRegressor])
def test_a_subclass_that_overrides_a_hook_of_scikit_learns_is_refused(kind, name):
    with pytest.raises(TypeError, match=f"Mine overrides {name}, .* instead"):
        type("Mine", (kind,), {name: lambda self, *arguments: None})
    mixin = type("Mine", (), {name: lambda self, *arguments: None})
    with pytest.raises(TypeError, match=f"Mine overrides {name}, .* instead"):
        type("Mixed", (mixin, kind), {})


def test_a_subclass_may_override_what_is_public():
    class Shifted(fastmlp.MLPRegressor):
        def predict(self, X):
            return super().predict(X) + 1

        def _own_help(self):
            return 1

    class Again(Shifted):
        pass

    model = Again(hidden_layer_sizes=(5,), max_iter=3, random_state=0, solver="lbfgs")
    quietly(model.fit, X, TARGET)
    np.testing.assert_array_equal(model.predict(X), fastmlp.MLPRegressor.predict(model, X) + 1)
