"""TabularEncoder: its columns by their definition, what it takes, drops and refuses."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmlp import PiecewiseLinearEncoder, RobustScaleSmoothClip
from fastmlp.tabular import TabularEncoder

N = 60
NUMBERS = np.random.default_rng(0).normal(size=N)
COLOURS = np.random.default_rng(1).choice(["blue", "green", "red"], N)
FLAGS = NUMBERS > 0


@parametrize_with_checks(
    [TabularEncoder(), TabularEncoder(strategy="tree", n_bins=3)],
)
def test_estimator_checks(estimator, check):
    check(estimator)


def frame():
    return pd.DataFrame(
        {
            "number": np.where(NUMBERS > 1, np.nan, NUMBERS),
            "colour": np.where(NUMBERS < -1, None, COLOURS),
            "flag": FLAGS,
            "two": np.where(COLOURS == "red", "red", "not"),
        }
    )


def by_definition():
    """The matrix of `frame`, piece by piece."""
    numbers = np.c_[np.where(NUMBERS > 1, np.nan, NUMBERS), FLAGS]
    scaled = np.nan_to_num(RobustScaleSmoothClip().fit_transform(numbers))
    bins = PiecewiseLinearEncoder(5).fit_transform(numbers)
    holes = np.isnan(numbers[:, :1])
    colours = np.where(NUMBERS < -1, "none", COLOURS)
    one_hot = [colours == colour for colour in ("blue", "green", "red", "none")]
    return np.c_[scaled, bins, holes, np.array(one_hot).T, np.where(COLOURS == "red", 1, -1)]


def as_polars(table):
    return pl.DataFrame({
        name: [None if value is None or value != value else value for value in table[name]]
        for name in table
    })  # fmt: skip


TABLES = {
    "pandas": lambda table: table,
    "extension types": lambda table: table.convert_dtypes(),
    "categories": lambda table: table.astype({"colour": "category", "two": "category"}),
    "objects": lambda table: table.astype(object),
    "polars": as_polars,
    "polars, categories": lambda table: as_polars(table).with_columns(
        pl.col("colour", "two").cast(pl.Categorical)
    ),
    "array": lambda table: table.to_numpy(object),
    "lists": lambda table: table.to_numpy(object).tolist(),
}


@pytest.mark.parametrize("kind", TABLES)
def test_any_table_gives_the_same_matrix(kind):
    table = TABLES[kind](frame())
    encoder = TabularEncoder(n_bins=5)
    found = encoder.fit_transform(table)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_definition(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(encoder.transform(table), found)
    again = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(again.transform(table), found)
    assert len(encoder.get_feature_names_out()) == found.shape[1]


def test_names_and_words():
    encoder = TabularEncoder(n_bins=2).fit(
        frame().assign(one=1.0, name=[f"n{i}" for i in range(N)])
    )
    assert encoder.get_feature_names_out().tolist() == [
        "number", "flag", "number_bin0", "number_bin1", "flag_bin0", "number_missing",
        "colour_blue", "colour_green", "colour_red", "colour_missing", "two_red",
        *[f"name_n{i}" for i in sorted(range(N), key=str)],
    ]  # fmt: skip
    assert encoder.describe().splitlines() == [
        "number: number, 2 bins, sometimes missing",
        "colour: category of 3, sometimes missing",
        "flag: number, 1 bin",
        "two: category of 2",
        "one: dropped, because it has one value only",
        "name: category of 60",
    ]


def test_identifiers_and_constants_are_dropped():
    n = 300
    table = pd.DataFrame({"x": np.arange(n) / 7, "id": [f"row {i}" for i in range(n)],
                          "same": "a", "none": None, "nan": np.nan})  # fmt: skip
    encoder = TabularEncoder(n_bins=0).fit(table)
    assert encoder.dropped_ == {
        1: "nearly every value occurs once", 2: "it has one value only",
        3: "it has one value only", 4: "it has one value only",
    }  # fmt: skip
    assert encoder.transform(table).shape == (n, 1)
    with pytest.raises(ValueError, match="X has no column to learn from"):
        TabularEncoder().fit(table[["same", "none"]])


def test_new_rare_and_missing_values():
    often = [f"often{i}" for i in range(9)] * 2
    table = pd.DataFrame({"name": [*often, "seldom1", "seldom2"], "x": np.arange(20.0)})
    encoder = TabularEncoder(max_categories=10, n_bins=0).fit(table)
    new = pd.DataFrame({"name": ["new", "seldom2", "often3", None], "x": [np.nan, 1.0, 2.0, 3.0]})
    found = encoder.transform(new)
    assert found.shape == (4, 11)
    np.testing.assert_array_equal(found[0, 1:], found[1, 1:])
    assert found[0].sum() == 1  # the rare one's column; the number's median is 0
    assert found[2, 1:].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert found[3, 1:].tolist() == [0] * 10  # none was missing in `fit`
    few = TabularEncoder(n_bins=0).fit(pd.DataFrame({"name": ["a", "b", "c"] * 5}))
    assert few.transform(pd.DataFrame({"name": ["d", None]})).tolist() == [[0, 0, 0]] * 2


def test_numbers_told_to_be_categories():
    codes = np.tile([10, 20, 40], 10)
    by_name = TabularEncoder(categorical_features=["code"], n_bins=0)
    found = by_name.fit_transform(pd.DataFrame({"code": codes}))
    np.testing.assert_array_equal(found, np.equal.outer(codes, [10, 20, 40]))
    by_position = TabularEncoder(categorical_features=[0], n_bins=0)
    np.testing.assert_array_equal(by_position.fit_transform(codes[:, None]), found)
    with pytest.raises(ValueError, match="categorical_features must name columns of X"):
        TabularEncoder(categorical_features=["x"]).fit(codes[:, None])


def test_dates_are_refused_with_advice():
    table = pd.DataFrame({"when": pd.date_range("2020", periods=3)})
    with pytest.raises(ValueError, match=r"'when' of X holds dates or times .* days since"):
        TabularEncoder().fit(table)


def test_what_is_no_number_any_more_is_refused():
    encoder = TabularEncoder().fit(pd.DataFrame({"x": [1.0, 2.0, 3.0]}))
    with pytest.raises(ValueError, match="Column 'x' of X held numbers in fit"):
        encoder.transform(pd.DataFrame({"x": ["a", "b"]}))


def test_large_numbers_keep_their_differences():
    seconds = 1.7e9 + np.arange(100.0)
    found = TabularEncoder().fit_transform(seconds[:, None])
    assert len(np.unique(found[:, 0])) == 100
