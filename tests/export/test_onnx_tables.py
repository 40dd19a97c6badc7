"""ONNX of estimators of tables: from columns to predictions, as the estimator gives them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import FunctionTransformer

from fastmlp import MLPClassifier, MLPRegressor, TabularMLPClassifier, TabularMLPRegressor
from fastmlp.onnx import to_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

N = 300
RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.normal(size=N)
TABLE = pd.DataFrame(
    {
        "number": np.where(NUMBERS > 2, np.nan, NUMBERS),
        "seconds": 1.7e9 + 100 * RANDOM.normal(size=N),
        "colour": RANDOM.choice(["blue", "green", "red"], N),
        "two": np.where(NUMBERS < 0, "no", "yes"),
        "code": RANDOM.choice([10, 20, 40], N),
        "name": [f"n{i % 40}" for i in range(N)],
        "hole": np.where(RANDOM.random(N) < 0.2, None, "there"),
        "same": "same",
    }
)
VALUES = 1e4 + 100 * np.where(TABLE["colour"] == "red", NUMBERS**2, NUMBERS)
OPTIONS = {"max_categories": 20, "categorical_features": ["code"], "random_state": 0}
NETWORK = {"hidden_layer_sizes": (20,), "max_iter": 10}
NEW = pd.concat([
    TABLE,
    pd.DataFrame({"number": [9.0, np.nan], "seconds": [0.0, 1e30], "colour": ["violet", "red"],
                  "two": ["maybe", "no"], "code": [7, 10], "name": ["n1", "new"],
                  "hole": ["new", None], "same": "other"}),
], ignore_index=True)  # fmt: skip


def run(proto, table):
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    kinds = {"tensor(string)": object, "tensor(double)": float, "tensor(int64)": np.int64}
    feed = {
        one.name: table[[one.name]].fillna("" if "string" in one.type else np.nan)
        .to_numpy(kinds[one.type])
        for one in session.get_inputs()
    }  # fmt: skip
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


@pytest.mark.parametrize("options", [{}, {"n_bins": 0}])
def test_regressor(options):
    model = TabularMLPRegressor(network=MLPRegressor(**NETWORK), **OPTIONS, **options)
    model.fit(TABLE, VALUES)
    outputs = run(to_onnx(model), NEW)
    assert list(outputs) == ["variable"]
    np.testing.assert_allclose(outputs["variable"].ravel(), model.predict(NEW), rtol=1e-6)
    assert np.ptp(model.predict(NEW)) > 10


@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("labels", [["low", "high"], ["a", "b", "c"]])
def test_classifier(labels, calibrate):
    y = np.array(labels)[np.digitize(VALUES, [9960, 10060][: len(labels) - 1])]
    network = MLPClassifier(**NETWORK)
    model = TabularMLPClassifier(network=network, calibrate=calibrate, **OPTIONS).fit(TABLE, y)
    assert (model.temperature_ != 1) == calibrate
    outputs = run(to_onnx(model), NEW)
    assert outputs["label"].tolist() == model.predict(NEW).tolist()
    np.testing.assert_allclose(outputs["probabilities"], model.predict_proba(NEW), atol=1e-5)


def test_columns_without_names():
    X = RANDOM.normal(size=(N, 2))
    model = TabularMLPRegressor(network=MLPRegressor(**NETWORK), random_state=0).fit(X, X[:, 0])
    outputs = run(to_onnx(model), pd.DataFrame(X, columns=["column_0", "column_1"]))
    np.testing.assert_allclose(outputs["variable"].ravel(), model.predict(X), rtol=1e-5, atol=1e-6)


def test_what_it_cannot_express():
    log = FunctionTransformer(np.log, np.exp)
    model = TabularMLPRegressor(network=MLPRegressor(**NETWORK), target_transformer=log)
    with pytest.raises(ValueError, match=r"target_transformer=.* has no form in ONNX"):
        to_onnx(model.fit(TABLE, VALUES))
    days = pd.date_range("2020", periods=10).date
    dates = pd.DataFrame({"when": np.resize(days, N)}).astype("category")
    model = TabularMLPRegressor(network=MLPRegressor(**NETWORK))
    with pytest.raises(ValueError, match="'when' has categories that are neither strings nor"):
        to_onnx(model.fit(dates, VALUES))
