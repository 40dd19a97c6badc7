"""class_weight: the same fit as with the sample weights that it stands for."""

import numpy as np
import pytest
from models import fit
from sklearn.utils.class_weight import compute_sample_weight

from fastmlp import MLPClassifier

rng = np.random.RandomState(0)
X = rng.normal(size=(90, 4))
WEIGHT = rng.uniform(0.5, 2, 90)
TARGETS = {
    "binary": np.where(X[:, 0] > 0.5, "yes", "no"),
    "multiclass": np.digitize(X[:, 0], [-0.3, 1.0]) * 2 - 1,
    "multilabel": (X[:, :2] > [0.8, -0.2]).astype(int),
    "one label always": np.column_stack([X[:, 0] > 0, np.ones(90)]).astype(int),
}
DICTS = {
    "binary": {"yes": 3.0, "no": 0.5},
    "multiclass": {-1: 0.2, 1: 2.0, 3: 5.0},
    "multilabel": [{0: 1.0, 1: 4.0}, {0: 0.5}],
    "one label always": [{1: 4.0}, {0: 0.5, 1: 2.0}],
}
QUICK = {"hidden_layer_sizes": (5,), "max_iter": 8, "random_state": 0}


def by_hand(weights, y):
    """Weights of the samples, sample by sample."""
    if isinstance(weights, str):
        return compute_sample_weight(weights, y)
    if isinstance(weights, dict):
        return np.array([weights.get(label, 1.0) for label in y.tolist()])
    return np.prod([by_hand(w, column) for w, column in zip(weights, y.T, strict=True)], axis=0)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("sample_weight", [None, WEIGHT], ids=["", "weights"])
@pytest.mark.parametrize("kind", ["balanced", "dict"])
@pytest.mark.parametrize("task", TARGETS)
def test_multiplies_sample_weight(task, kind, sample_weight, solver):
    y = TARGETS[task]
    weights = DICTS[task] if kind == "dict" else "balanced"
    expected = by_hand(weights, y) * (1 if sample_weight is None else sample_weight)
    model = fit(MLPClassifier(class_weight=weights, solver=solver, **QUICK), X, y, sample_weight)
    same = fit(MLPClassifier(solver=solver, **QUICK), X, y, expected)
    for mine, other in zip(model.coefs_, same.coefs_, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9)
    assert model.loss_ == pytest.approx(same.loss_)


def test_validation_data_are_weighted_likewise():
    y = TARGETS["multiclass"]
    for weights in ("balanced", DICTS["multiclass"]):
        expected = by_hand(weights, y)
        model = MLPClassifier(class_weight=weights, early_stopping=True, **QUICK)
        same = MLPClassifier(early_stopping=True, **QUICK)
        fit(model, X, y)
        assert model.validation_scores_ == fit(same, X, y, expected).validation_scores_
        fit(model, X, y, X_val=X[:30], y_val=y[:30])
        fit(same, X, y, expected, X_val=X[:30], y_val=y[:30], sample_weight_val=expected[:30])
        np.testing.assert_allclose(model.validation_loss_curve_, same.validation_loss_curve_)


def test_partial_fit_takes_a_dict_also_for_batches_without_some_class():
    y = TARGETS["multiclass"]
    few = y != 3
    model = MLPClassifier(class_weight={-1: 0.2, 3: 5.0}, random_state=0)
    same = MLPClassifier(random_state=0)
    for rows in (slice(None), few):
        model.partial_fit(X[rows], y[rows], classes=[-1, 1, 3])
        weight = np.where(y == -1, 0.2, np.where(y == 3, 5.0, 1.0))
        same.partial_fit(X[rows], y[rows], weight[rows], classes=[-1, 1, 3])
    np.testing.assert_allclose(model.coefs_[0], same.coefs_[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("task", "weights", "message"),
    [
        ("binary", [{"no": 1}], "class_weight may be a list for multilabel targets only"),
        ("multilabel", {0: 1.0}, "class_weight must be 'balanced' or a list of one dict per label"),
        ("multilabel", [{0: 1.0}], "here of 2 dicts"),
        ("binary", {"maybe": 2.0}, "class_weight"),
        ("binary", "even", "'class_weight' parameter of MLPClassifier"),
        ("multilabel", ["balanced", {}], "class_weight must be 'balanced' or a list of one dict"),
        *[
            (task, weights, r"class_weight must consist of finite numbers >= 0, got \{")
            for value in (np.nan, np.inf, -1.0, 10**400, None, "2")
            for task, weights in (
                ("binary", {"no": value}), ("multiclass", {3: np.float32(2), 1: value}),
                ("multilabel", [{0: 1}, {1: value}]),
            )
        ],
    ],
)  # fmt: skip
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_wrong_class_weight(task, weights, message, solver):
    model = MLPClassifier(class_weight=weights, solver=solver)
    with pytest.raises(ValueError, match=message):
        model.fit(X, TARGETS[task])
    assert not hasattr(model, "classes_")
    if solver == "adam" and task != "multilabel":
        with pytest.raises(ValueError, match=message):
            model.partial_fit(X, TARGETS[task], classes=np.unique(TARGETS[task]))


NO_WEIGHT = {
    "binary": [({"yes": 0, "no": 0}, None), ({"yes": 0}, TARGETS["binary"] == "yes")],
    "multiclass": [({-1: 0, 1: 0, 3: 0}, None), ({3: 0.0, -1: 0.0}, TARGETS["multiclass"] != 1)],
    "multilabel": [([{0: 0, 1: 0}, {}], None), ([{0: 0}, {}], 1 - TARGETS["multilabel"][:, 0])],
    "one label always": [([{}, {1: 0}], None)],
}


@pytest.mark.parametrize("params", [{}, {"solver": "lbfgs"}, {"early_stopping": True}], ids=str)
@pytest.mark.parametrize("task", TARGETS)
def test_weights_that_are_all_zero_are_refused(task, params):
    for class_weight, sample_weight in NO_WEIGHT[task]:
        model = MLPClassifier(class_weight=class_weight, **QUICK | params)
        with pytest.raises(ValueError, match=r"sample_weight times class_weight\) sum to zero"):
            model.fit(X, TARGETS[task], sample_weight)
        assert not hasattr(model, "coefs_")
        with pytest.raises(ValueError, match=r"X_val, y_val.*class_weight|sum to zero"):
            model.fit(X, TARGETS[task], X_val=X, y_val=TARGETS[task],
                      sample_weight_val=sample_weight)  # fmt: skip


def test_partial_fit_refuses_a_batch_without_weight():
    y = TARGETS["multiclass"]
    model = MLPClassifier(class_weight={3: 0.0}, random_state=0).partial_fit(
        X, y, classes=[-1, 1, 3]
    )
    before = model.coefs_[0].copy()
    with pytest.raises(ValueError, match="sum to zero"):
        model.partial_fit(X[y == 3], y[y == 3])
    np.testing.assert_array_equal(model.coefs_[0], before)


def test_a_product_beyond_float64_is_refused():
    y = TARGETS["binary"]
    model = MLPClassifier(class_weight={"yes": 1e200}, **QUICK)
    with pytest.raises(ValueError, match="product of sample_weight and class_weight is beyond"):
        model.fit(X, y, np.full(len(y), 1e200))


def test_partial_fit_refuses_balanced():
    with pytest.raises(ValueError, match="class_weight='balanced' is not supported by partial_fit"):
        MLPClassifier(class_weight="balanced").partial_fit(X, TARGETS["binary"], classes=["no"])


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("size", [1e-46, 1e60])
@pytest.mark.parametrize("task", DICTS)
def test_class_weights_beyond_float32(task, size, solver):
    """Likewise their product with ordinary sample weights, here of float32 as the data."""
    y, data, weights = TARGETS[task], X.astype(np.float32), DICTS[task]
    params = QUICK | {"solver": solver, "early_stopping": solver == "adam"}
    small = {
        label: (weights if isinstance(weights, dict) else weights[0]).get(label, 1.0) * size
        for label in (np.unique(y) if y.ndim == 1 else (0, 1))
    }
    scaled = small if isinstance(weights, dict) else [small, *weights[1:]]
    model = MLPClassifier(class_weight=scaled, alpha=0.01 * size, **params)
    same = MLPClassifier(class_weight=weights, alpha=0.01, **params)
    weight = WEIGHT.astype(np.float32)
    fit(model, data, y, weight)
    fit(same, data, y, weight)
    for mine, other in zip(model.coefs_, same.coefs_, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5)
    assert model.loss_ == pytest.approx(same.loss_, rel=1e-4)


def test_weights_too_small_for_alpha_are_refused():
    y, data = TARGETS["binary"], X.astype(np.float32)
    model = MLPClassifier(random_state=0)
    with pytest.raises(ValueError, match=r"alpha=0\.0001.*too large for float32.*sample_weight"):
        model.fit(data, y, 1e-46 * WEIGHT)
    assert not hasattr(model, "coefs_")
    fit(model.set_params(alpha=0), data, y, 1e-46 * WEIGHT)
    assert model.score(data, y) > 0.8


def test_weights_of_validation_data_have_a_size_of_their_own():
    y, data = TARGETS["binary"], X.astype(np.float32)
    held_out = {"X_val": data[:30], "y_val": y[:30]}
    model, same = MLPClassifier(**QUICK), MLPClassifier(**QUICK)
    fit(model, data, y, WEIGHT, sample_weight_val=1e60 * WEIGHT[:30], **held_out)
    fit(same, data, y, WEIGHT, sample_weight_val=WEIGHT[:30], **held_out)
    for name in ("validation_score", "validation_loss"):
        np.testing.assert_allclose(model.history_[name], same.history_[name], rtol=1e-5)


def test_weights_of_rows_set_aside_do_not_drown_those_of_training():
    y, data, seen = TARGETS["binary"], X.astype(np.float32), []

    def scoring(model, some, target, sample_weight):
        seen.append(some)
        return model.score(some, target, sample_weight)

    params = QUICK | {"early_stopping": True, "scoring": scoring}
    same = fit(MLPClassifier(**params), data, y, WEIGHT)
    aside = (data[:, None] == seen[0]).all(axis=2).any(axis=1)
    weight = np.where(aside, 1e60, 1) * WEIGHT
    model = fit(MLPClassifier(**params), data, y, weight)
    np.testing.assert_allclose(model.coefs_[0], same.coefs_[0], rtol=1e-4)
    np.testing.assert_allclose(model.validation_scores_, same.validation_scores_, rtol=1e-5)
