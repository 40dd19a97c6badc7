"""TabularMLPClassifier and TabularMLPRegressor: what they consist of and what users ask."""

import pickle
import time
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastmlp import (
    MLPClassifier,
    MLPEnsembleClassifier,
    MLPEnsembleRegressor,
    MLPRegressor,
    TabularMLPClassifier,
    TabularMLPRegressor,
)
from fastmlp.tabular import TabularEncoder
from fastmlp.tabular.presets import PRESETS, completed, recipe_for

N = 300
RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.normal(size=N)
COLOURS = RANDOM.choice(["blue", "green", "red"], N)
VALUES = np.where(COLOURS == "red", NUMBERS**2, NUMBERS)
LABELS = np.where(VALUES > 0.3, "high", "low")
TABLE = pd.DataFrame({"number": np.where(NUMBERS > 2, np.nan, NUMBERS), "colour": COLOURS})
SMALL = {"network": MLPClassifier((20,), max_iter=20), "random_state": 0}
SMALL_R = {"network": MLPRegressor(hidden_layer_sizes=(20,), max_iter=20), "random_state": 0}


BY_ROWS = "quartiles, bins and rows set aside go by rows, whatever their weights"


@parametrize_with_checks(
    [TabularMLPClassifier("fast"), TabularMLPRegressor("fast")],
    expected_failed_checks=lambda _: {"check_sample_weight_equivalence_on_dense_data": BY_ROWS},
)
def test_estimator_checks(estimator, check):
    try:
        check(estimator)
    except AssertionError:
        if check.func.__name__ != "check_methods_subset_invariance":
            raise
        pytest.xfail("to 1e-7, but this is float32; see the test of one row and all rows")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_classifier_is_an_encoder_and_an_ensemble(preset):
    model = TabularMLPClassifier(preset, n_members=2, random_state=0, n_bins=7).fit(TABLE, LABELS)
    recipe = recipe_for(preset, 270, True)
    Z = TabularEncoder(n_bins=7, strategy=recipe.strategy, random_state=0).fit_transform(TABLE)
    network = completed(MLPClassifier(), recipe.parameters | {"validation_fraction": 0.1})
    by_hand = MLPEnsembleClassifier(network, 2, random_state=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        by_hand.fit(Z, LABELS)
    np.testing.assert_array_equal(model.predict_proba(TABLE), by_hand.predict_proba(Z))
    np.testing.assert_array_equal(model.predict(TABLE), by_hand.predict(Z))
    np.testing.assert_array_equal(model.classes_, ["high", "low"])
    assert model.score(TABLE, LABELS) > 0.9


def test_a_regressor_is_an_encoder_and_an_ensemble_and_scaled_targets():
    model = TabularMLPRegressor(n_members=2, random_state=0).fit(TABLE, 1000 * VALUES)
    recipe = recipe_for("default", 270, True)
    Z = model.encoder_.transform(TABLE)
    scaler = StandardScaler()
    y = scaler.fit_transform(1000 * VALUES[:, None]).ravel().astype(np.float32)
    by_hand = MLPEnsembleRegressor(
        completed(MLPRegressor(), recipe.parameters | {"validation_fraction": 0.1}),
        2,
        random_state=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        by_hand.fit(Z, y)
    expected = scaler.inverse_transform(by_hand.predict(Z)[:, None]).ravel()
    np.testing.assert_allclose(model.predict(TABLE), expected, rtol=1e-4)
    assert model.score(TABLE, 1000 * VALUES) > 0.9


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_learn(preset):
    X, y = load_wine(return_X_y=True, as_frame=True)
    model = TabularMLPClassifier(preset, random_state=0).fit(X[::2], y[::2])
    assert model.score(X[1::2], y[1::2]) > 0.93
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    model = TabularMLPRegressor(preset, random_state=0).fit(X[::2], y[::2])
    assert model.score(X[1::2], y[1::2]) > 0.3


def test_one_row_and_all_rows_of_any_table_predict_the_same():
    model = TabularMLPClassifier(**SMALL).fit(TABLE, LABELS)
    p = model.predict_proba(TABLE)
    one_by_one = [model.predict_proba(TABLE[i : i + 1])[0] for i in range(0, N, 20)]
    np.testing.assert_allclose(one_by_one, p[::20], rtol=1e-5)
    of_objects = TabularMLPClassifier(**SMALL).fit(TABLE.to_numpy(object), LABELS)
    np.testing.assert_array_equal(of_objects.predict_proba(TABLE.to_numpy(object)), p)
    frame = pl.from_pandas(TABLE.astype({"colour": "string"}))
    np.testing.assert_array_equal(
        TabularMLPClassifier(**SMALL).fit(frame, LABELS).predict_proba(frame), p
    )


def test_new_categories_and_holes():
    model = TabularMLPRegressor(**SMALL_R).fit(TABLE.fillna(0.0), VALUES)
    new = pd.DataFrame({"number": [0.5, np.nan], "colour": ["violet", None]})
    assert np.isfinite(model.predict(new)).all()


def test_validation_data_go_through_the_preprocessing():
    rows, others = slice(0, 200), slice(200, N)
    model = TabularMLPRegressor(**SMALL_R)
    model.fit(TABLE[rows], VALUES[rows], X_val=TABLE[others], y_val=VALUES[others])
    member = model.network_.members_[0]
    Z = model.encoder_.transform(TABLE[others])
    y = (VALUES[others] - VALUES[rows].mean()) / VALUES[rows].std()
    best = np.square(member.predict(Z) - y).mean() / 2
    assert min(member.validation_loss_curve_) == pytest.approx(best, rel=1e-4)
    with pytest.raises(ValueError, match="X_val and y_val belong together"):
        model.fit(TABLE, VALUES, X_val=TABLE)


def test_no_validation():
    model = TabularMLPRegressor(validation_fraction=0, **SMALL_R).fit(TABLE, VALUES)
    member = model.network_.members_[0]
    assert not member.early_stopping
    assert member.n_iter_ == 20
    half = TabularMLPRegressor(validation_fraction=0.5, **SMALL_R).fit(TABLE, VALUES)
    assert half.network_.members_[0].t_ == half.network_.members_[0].n_iter_ * 150


def test_max_time_shortens_the_schedule_and_the_ensemble():
    X = RANDOM.normal(size=(20_000, 20))
    y = X[:, 0] * X[:, 1]
    network = MLPRegressor(max_iter=5000, n_iter_no_change=5000)
    model = TabularMLPRegressor(max_time=2, n_members=50, random_state=0, network=network)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a member that another process left no time for
        model.fit(X, y)
    assert time.perf_counter() - start < 6
    assert model.network_.members_[0].max_iter < 5000
    assert model.network_.n_members < 10
    with pytest.raises(ValueError, match="max_time"):
        TabularMLPRegressor(max_time=0).fit(X, y)


def test_the_networks_parameters_win():
    given = MLPClassifier((9, 8), dropout=0.5, max_iter=3)
    model = TabularMLPClassifier(network=given, n_members=1, random_state=0).fit(TABLE, LABELS)
    member = model.network_.members_[0]
    assert (member.hidden_layer_sizes, member.dropout, member.max_iter) == ((9, 8), 0.5, 3)
    assert not hasattr(given, "coefs_")
    with pytest.raises(TypeError, match="network must be an MLPClassifier of fastmlp or None"):
        TabularMLPClassifier(network=MLPRegressor()).fit(TABLE, LABELS)


def test_class_weights():
    rare = np.where(NUMBERS > 1.2, "yes", "no")
    noise = RANDOM.permutation(rare)
    plain = TabularMLPClassifier(random_state=0).fit(TABLE, noise)
    balanced = TabularMLPClassifier(class_weight="balanced", random_state=0).fit(TABLE, noise)
    assert balanced.network_.members_[0].class_weight == "balanced"
    assert plain.predict_proba(TABLE)[:, 1].mean() < 0.3
    assert balanced.predict_proba(TABLE)[:, 1].mean() > 0.4


def test_temperature_is_the_best_one():
    """Against a grid, on noisy labels that an unregularised network is too sure of."""
    y = np.where(RANDOM.random(N) < 0.3, "other", LABELS)
    network = MLPClassifier((100,), max_iter=300, learning_rate_init=0.01, ema_decay=0.0001)
    options = {"network": network, "validation_fraction": 0, "n_members": 1, "random_state": 0}
    held_out = {"X_val": TABLE[200:], "y_val": y[200:]}
    plain = TabularMLPClassifier(**options).fit(TABLE[:200], y[:200], **held_out)
    model = clone(plain).set_params(calibrate=True).fit(TABLE[:200], y[:200], **held_out)

    def loss(temperature):
        p = plain.predict_proba(TABLE[200:]).astype(float) ** (1 / temperature)
        return log_loss(y[200:], p / p.sum(axis=1, keepdims=True), labels=plain.classes_)

    grid = np.geomspace(0.1, 10, 400)
    best = grid[np.argmin([loss(t) for t in grid])]
    assert model.temperature_ == pytest.approx(best, rel=0.05)
    assert model.temperature_ != pytest.approx(1, rel=0.05)
    found = log_loss(y[200:], model.predict_proba(TABLE[200:]).astype(float), labels=model.classes_)
    assert found == pytest.approx(loss(model.temperature_), rel=1e-4)
    np.testing.assert_array_equal(model.predict(TABLE), plain.predict(TABLE))


def test_calibration_sets_rows_aside():
    model = TabularMLPClassifier(calibrate=True, **SMALL).fit(TABLE, LABELS)
    assert model.temperature_ != 1
    with pytest.raises(ValueError, match="calibrate=True needs rows that are set aside"):
        TabularMLPClassifier(calibrate=True, validation_fraction=0).fit(TABLE, LABELS)


def test_target_transformer():
    y = np.exp(VALUES)
    log = FunctionTransformer(np.log, np.exp)
    model = TabularMLPRegressor(target_transformer=log, **SMALL_R).fit(TABLE, y)
    plain = TabularMLPRegressor(**SMALL_R).fit(TABLE, VALUES)
    np.testing.assert_allclose(model.predict(TABLE), np.exp(plain.predict(TABLE)), rtol=1e-4)
    assert (model.predict(TABLE) > 0).all()


def test_losses_with_targets_of_their_own():
    counts = RANDOM.poisson(2.0, N)
    poisson = TabularMLPRegressor(network=MLPRegressor("poisson", max_iter=10), random_state=0)
    assert (poisson.fit(TABLE, counts).predict(TABLE) > 0).all()
    assert poisson.target_scaler_ is None
    levels = MLPRegressor("quantile", quantile=[0.1, 0.9], max_iter=10)
    model = TabularMLPRegressor(network=levels, random_state=0).fit(TABLE, 1000 + VALUES)
    low, high = model.predict(TABLE).T
    assert (low <= high).all()
    assert 990 < low.mean() < 1010
    assert model.score(TABLE, 1000 + VALUES) > -1


def test_clone_grid_search_and_pickle():
    grid = {"network__hidden_layer_sizes": [(1,), (30,)], "n_bins": [0, 8]}
    model = TabularMLPClassifier(network=MLPClassifier(max_iter=60), n_members=1, random_state=0)
    search = GridSearchCV(clone(model), grid, cv=2).fit(TABLE, LABELS)
    assert search.best_params_["network__hidden_layer_sizes"] == (30,)
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(TABLE), search.predict(TABLE))


def test_describe():
    model = TabularMLPClassifier(n_members=2, **SMALL).fit(TABLE.assign(same=1), LABELS)
    first, second, third, last = model.describe().splitlines()
    assert (
        first
        == f"number: number, {len(model.encoder_.bins_.bin_edges_[0]) - 1} bins, sometimes missing"
    )
    assert second == "colour: category of 3"
    assert third == "same: dropped, because it has one value only"
    assert last.startswith("2 networks of ")


def test_dates_are_refused_with_advice():
    table = TABLE.assign(when=pd.date_range("2020", periods=N))
    with pytest.raises(ValueError, match=r"Column 'when' of X holds dates or times .* weekday"):
        TabularMLPClassifier().fit(table, LABELS)


@pytest.mark.parametrize(
    ("model", "y"),
    [(TabularMLPClassifier(**SMALL), LABELS), (TabularMLPRegressor(**SMALL_R), VALUES)],
)
def test_a_fit_that_fails_leaves_the_model_as_it_was(model, y):
    model.fit(TABLE, y)
    attributes, expected = dict(vars(model)), model.predict(TABLE)
    other = y[::-1] if y is LABELS else 1e3 * y + 7
    with pytest.raises(ValueError, match="feature names"):
        model.fit(TABLE, other, X_val=TABLE[["colour"]], y_val=other)
    assert vars(model) == attributes
    np.testing.assert_array_equal(model.predict(TABLE), expected)


def test_words_are_no_values():
    with pytest.raises(ValueError, match="y must hold a number for each row, for a regression"):
        TabularMLPRegressor(**SMALL_R).fit(TABLE, LABELS)
