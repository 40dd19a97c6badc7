"""tabular_pipeline: its formulas, the tables it takes, whose parameters win."""

import pickle
from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmlp import MLPClassifier, MLPRegressor, RobustScaleSmoothClip, tabular_pipeline

N = 60
NUMBERS = np.random.default_rng(0).normal(size=N)
COLOURS = np.random.default_rng(1).choice(["blue", "green", "red"], N)
FLAGS = NUMBERS > 0


@parametrize_with_checks([RobustScaleSmoothClip()])
def test_estimator_checks(estimator, check):
    check(estimator)


def by_formula(column):
    """RealMLP's formulas for one column, on Python floats."""
    known = sorted(value for value in column if value == value)

    def quantile(share):
        place = share * (len(known) - 1)
        low = int(place)
        high = min(low + 1, len(known) - 1)
        return known[low] + (place - low) * (known[high] - known[low])

    spread = quantile(0.75) - quantile(0.25)
    if spread == 0:
        spread = (known[-1] - known[0]) / 2
    scaled = [(value - quantile(0.5)) / spread if spread else 0.0 for value in column]
    return [z / (1 + (z / 3) ** 2) ** 0.5 for z in scaled]


@pytest.mark.parametrize(
    "column",
    [[1.0, 2.0, 4.0, 8.0, 1e6], [0.0, 0.0, 0.0, 0.0, 5.0], [7.0, 7.0, 7.0], [3, 1, np.nan, 2]],
    ids=["quartiles", "quartiles coincide", "constant", "missing"],
)  # fmt: skip
def test_scaling_is_the_formula(column):
    expected = by_formula([value for value in column if value == value])
    scaled = RobustScaleSmoothClip().fit_transform(np.array(column)[:, None]).ravel()
    np.testing.assert_array_equal(np.isnan(scaled), np.isnan(column))
    np.testing.assert_allclose(scaled[~np.isnan(scaled)], expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaling_survives_the_largest_numbers(dtype):
    X = np.array([0, 1, 2, 3, np.finfo(dtype).max], dtype)[:, None]
    scaler = RobustScaleSmoothClip().fit(X * dtype(1e-3))
    scaled = scaler.transform(X)
    assert scaled.dtype == dtype
    np.testing.assert_allclose(scaled[-1], 3, rtol=1e-6)


def test_missing_everywhere():
    X = np.c_[np.full(N, np.nan), NUMBERS]
    features = tabular_pipeline(task="classification")["features"]
    np.testing.assert_array_equal(features.fit_transform(X)[:, 0], 0)


def quick(estimator, task="classification"):
    return tabular_pipeline(estimator.set_params(max_iter=3, random_state=0), task=task)


def frames():
    """{name: table of the same numbers (some missing), colours (some missing) and flags}."""
    numbers = np.where(NUMBERS > 1, np.nan, NUMBERS)
    colours = np.where(NUMBERS < -1, None, COLOURS)
    pandas = pd.DataFrame({"number": numbers, "colour": colours, "flag": FLAGS})
    known = [None if np.isnan(x) else x for x in numbers]
    polars = pl.DataFrame({"number": known, "colour": list(colours), "flag": FLAGS})
    return {
        "pandas": pandas,
        "pandas, extension types": pandas.convert_dtypes(),
        "pandas, categories": pandas.astype({"colour": "category"}),
        "polars": polars,
        "polars, categories": polars.with_columns(pl.col("colour").cast(pl.Categorical)),
        "array of objects": pandas.to_numpy(dtype=object),
        "lists": pandas.to_numpy(dtype=object).tolist(),
    }


@pytest.mark.parametrize("name", frames())
def test_any_table_gives_the_same_features(name):
    colours = np.where(NUMBERS < -1, "none", COLOURS)
    columns = [by_formula(np.where(NUMBERS > 1, np.nan, NUMBERS)), by_formula(FLAGS * 1.0)]
    for colour in ("blue", "green", "red", "none"):
        columns.append(by_formula((colours == colour) * 1.0))
    expected = np.nan_to_num(np.array(columns).T)

    model = quick(MLPClassifier()).fit(frames()[name], FLAGS)
    found = model["features"].transform(frames()[name])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert model.predict(frames()[name]).shape == (N,)


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_columns_go_by_name(name):
    table = frames()[name]
    model = quick(MLPClassifier()).fit(table, FLAGS)
    np.testing.assert_array_equal(
        model.predict_proba(table), model.predict_proba(table[["flag", "colour", "number"]])
    )


def as_decimals(frame):
    return frame.map(lambda x: None if np.isnan(x) else Decimal(repr(x)))


def as_strings(frame):
    return frame.map(lambda x: None if np.isnan(x) else repr(x))


DECIMALS = pd.ArrowDtype(pa.decimal128(30, 17))
OPEN = {
    "objects": lambda frame: frame.astype(object),
    "None": lambda frame: frame.astype(object).where(frame.notna(), None),
    "NA": lambda frame: frame.astype(object).where(frame.notna(), pd.NA),
    "Decimal": as_decimals,
    "decimal[pyarrow]": lambda frame: frame.round(15).astype(DECIMALS),
    "strings": as_strings,
    "string[python]": lambda frame: as_strings(frame).astype("string"),
    "after transposing": lambda frame: frame.assign(words="x").T.T.drop(columns="words"),
    "polars, Decimal": lambda frame: pl.DataFrame(as_decimals(frame).to_dict("list"), strict=False),
    "polars, strings": lambda frame: pl.from_pandas(as_strings(frame).astype("string")),
    "polars, objects": lambda frame: pl.DataFrame(
        [pl.Series(name, list(frame[name]), dtype=pl.Object) for name in frame]
    ),
    "array of Decimal": lambda frame: as_decimals(frame).to_numpy(object),
    "array of strings": lambda frame: as_strings(frame).to_numpy(object),
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", OPEN)
def test_numbers_are_numbers_whatever_holds_them(kind, missing):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(300, 4)), columns=list("abcd"))
    y = frame.to_numpy() @ [1, 2, 3, 4]
    if missing:
        frame[frame > 2.5] = np.nan
    features = tabular_pipeline(task="regression")["features"]
    expected = features.fit_transform(frame)
    table = OPEN[kind](frame)
    np.testing.assert_allclose(features.fit_transform(table), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(features.transform(table[:7]), expected[:7], rtol=1e-9, atol=1e-12)
    if kind in ("Decimal", "strings") and not missing:
        network = MLPRegressor(max_iter=50, random_state=0)
        assert tabular_pipeline(network, task="regression").fit(table, y).score(table, y) > 0.95


def test_truth_values_with_missing_ones_are_numbers():
    flags = pd.DataFrame({"flag": pd.Series([True, None, False] * 20, dtype=object)})
    features = tabular_pipeline(task="regression")["features"]
    expected = features.fit_transform(np.array([[1.0], [np.nan], [0.0]] * 20))
    np.testing.assert_array_equal(features.fit_transform(flags), expected)


@pytest.mark.parametrize("codes", [["0150", "0151", "5020"], ["1.5", "", "2.5"], ["1", "x", "2.5"]])
@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_whole_numbers_in_strings_are_categories(frame, codes):
    features = tabular_pipeline(task="regression")["features"]
    assert features.fit_transform(frame({"code": codes * 20})).shape == (60, 3)


NESTED = pd.ArrowDtype(pa.list_(pa.int64()))
REFUSED = {
    "mixed": (pd.DataFrame({"a": [1, "x", 2.0]}), "'a' of X holds numbers and strings; turn it"),
    "mixed array": (np.array([[1], ["x"], [2]], object), "Column 0 of X holds numbers and strings"),
    "mixed categories": (
        pd.DataFrame({"a": [1, "x", 2.0]}).astype("category"), "'a' of X holds numbers and strings"
    ),
    "lists": (pd.DataFrame({"a": [[1], [2], [3]]}), "'a' of X holds several values in one cell"),
    "tuples": (pd.DataFrame({"a": [(1,), (2,), (3,)]}), "'a' of X holds several values in one"),
    "structs": (pd.DataFrame({"a": [{"x": 1}] * 3}), "'a' of X holds several values in one cell"),
    "arrow lists": (pd.DataFrame({"a": pd.array([[1]] * 3, NESTED)}), "'a' of X holds several"),
    "polars lists": (pl.DataFrame({"a": [[1], [2], [3]]}), "'a' of X holds several values in one"),
    "polars structs": (pl.DataFrame({"a": [{"x": 1}] * 3}), "'a' of X holds several values in one"),
    "dates": (pd.DataFrame({"a": [date(2020, 1, 1)] * 3}), "'a' of X holds dates or times"),
    "complex": (pd.DataFrame({"a": [1j, 2j, 3j]}), "'a' of X holds complex numbers"),
    "structured": (np.zeros(3, [("a", "f8"), ("b", "f8")]), "X is a structured array; give"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_column_can_hold_is_refused_by_name(name):
    X, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        tabular_pipeline(task="regression").fit(X, [1.0, 2.0, 3.0])


@pytest.mark.parametrize("X", [pd.Series([1.0, 2.0, 3.0]), np.ones(3), pl.Series([1.0, 2.0, 3.0])])
def test_one_dimension_is_refused_in_scikit_learns_words(X):
    with pytest.raises(ValueError, match="Expected") as theirs:
        StandardScaler().fit(X)
    with pytest.raises(ValueError, match="Expected") as ours:
        tabular_pipeline(task="regression").fit(X, [1.0, 2.0, 3.0])
    assert str(ours.value) == str(theirs.value)


def test_new_and_rare_categories():
    often = [f"often{i}" for i in range(99)]
    table = pd.DataFrame({"name": [*often, *often, "seldom1", "seldom2", "seldom3"]})
    features = tabular_pipeline(task="regression")["features"].fit(table)
    found = features.transform(pd.DataFrame({"name": ["new", "seldom1", "seldom2", "often1"]}))
    assert found.shape == (4, 100)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[3])


@pytest.mark.parametrize(
    "column",
    [pd.Series(pd.date_range("2020", periods=3)), pl.date_range(pl.date(2020, 1, 1),
     pl.date(2020, 1, 3), eager=True)],
)  # fmt: skip
def test_dates_are_refused(column):
    frame = pl.DataFrame if isinstance(column, pl.Series) else pd.DataFrame
    with pytest.raises(ValueError, match="Column 'when' of X holds dates or times"):
        tabular_pipeline(task="regression").fit(frame({"when": column}), [1, 2, 3])


@pytest.mark.parametrize("days", [pd.date_range("2020", periods=3), [date(2020, 1, 1)] * 3])
def test_dates_as_categories_are_categories(days):
    table = pd.DataFrame({"when": pd.Series(days).astype("category")})
    features = tabular_pipeline(task="regression")["features"]
    assert features.fit_transform(table).shape == (3, len(set(days)))


def test_targets_are_standardised():
    X, y = load_diabetes(return_X_y=True)
    near, far = (
        quick(MLPRegressor(), "regression").fit(X, scale * y + shift).predict(X)
        for scale, shift in ((1, 0), (1000, 5000))
    )
    np.testing.assert_allclose(far, 1000 * near + 5000, rtol=1e-6)


def test_counts_are_not_standardised():
    y = np.random.default_rng(0).poisson(2.0, N)
    predicted = quick(MLPRegressor("poisson"), "regression").fit(NUMBERS[:, None], y)
    assert (predicted.predict(NUMBERS[:, None]) > 0).all()


def test_several_quantiles():
    model = quick(MLPRegressor("quantile", quantile=[0.1, 0.9]), "regression")
    low, high = model.fit(NUMBERS[:, None], 1000 + NUMBERS).predict(NUMBERS[:, None]).T
    assert (low <= high).all()
    assert 990 < low.mean() < 1010


def test_presets():
    classifier = tabular_pipeline(task="classification")["network"]
    assert classifier.hidden_layer_sizes == (256, 256, 256)
    assert (classifier.activation, classifier.label_smoothing) == ("selu", 0.1)
    assert (classifier.learning_rate, classifier.learning_rate_init) == ("coslog4", 0.04 / 16)
    regressor = tabular_pipeline(task="regression")["network"].regressor
    assert (regressor.activation, regressor.beta_2) == ("mish", 0.95)
    assert (regressor.learning_rate, regressor.learning_rate_init) == ("coslog4", 0.07 / 16)


def test_the_estimators_parameters_win():
    given = MLPClassifier((20,), learning_rate_init=0.5, loss="focal", alpha=0.1, n_threads=1)
    before = given.get_params()
    network = tabular_pipeline(given, task="classification")["network"]
    assert given.get_params() == before
    assert network.hidden_layer_sizes == (20,)
    assert (network.learning_rate, network.learning_rate_init) == ("coslog4", 0.5)
    assert (network.alpha, network.n_threads, network.label_smoothing) == (0.1, 1, 0.0)
    assert network.activation == "selu"


def test_other_solvers_train_their_own_way():
    network = MLPClassifier((5,), solver="lbfgs", tol=0.01, random_state=0)
    model = tabular_pipeline(network, task="classification")
    assert model["network"].learning_rate == "constant"
    assert model.fit(*load_wine(return_X_y=True)).score(*load_wine(return_X_y=True)) > 0.99


def test_what_it_refuses():
    with pytest.raises(ValueError, match="task must be 'classification' or 'regression', got 'x'"):
        tabular_pipeline(task="x")
    with pytest.raises(TypeError, match="task='regression' needs an estimator of type MLPRegr"):
        tabular_pipeline(MLPClassifier(), task="regression")


@pytest.mark.parametrize(("task", "prefix"), [("classification", "network"),
                                              ("regression", "network__regressor")])  # fmt: skip
def test_grid_search_and_pickle(task, prefix):
    X, y = (load_wine if task == "classification" else load_diabetes)(return_X_y=True)
    estimator = MLPClassifier() if task == "classification" else MLPRegressor()
    grid = {f"{prefix}__learning_rate_init": [1e-5, 1e-2]}
    pipeline = clone(quick(estimator, task)).set_params(**{f"{prefix}__max_iter": 20})
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    assert search.best_params_ == {f"{prefix}__learning_rate_init": 1e-2}
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(X), search.predict(X))


def test_no_word_about_convergence_where_all_epochs_were_asked_for():
    X, y = load_wine(return_X_y=True)
    model = MLPClassifier((3,), max_iter=2, learning_rate="cosine", n_iter_no_change=np.inf)
    model.fit(X, y)  # warnings are errors
    for other in ({"n_iter_no_change": 10}, {"learning_rate": "constant"}):
        with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
            clone(model).set_params(**other).fit(X, y)
