"""Models in onnxruntime against themselves; pipelines through skl2onnx."""

import sys

import exported
import numpy as np
import pandas as pd
import pytest
from processes import run_python
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor, RobustScaleSmoothClip, tabular_pipeline
from fastmlp.functions import ACTIVATIONS
from fastmlp.onnx import register, to_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def run(proto, X):
    """Outputs by name, of an array or a data frame."""
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {"X": X}
    if isinstance(X, pd.DataFrame):
        kinds = {"tensor(string)": object, "tensor(float)": np.float32}
        feed = {i.name: X[[i.name]].to_numpy(kinds[i.type]) for i in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


def assert_same(model, proto, X, dtype):
    outputs = run(proto, X)
    expected = model.predict(X)
    if hasattr(model, "predict_proba"):
        assert list(outputs) == ["label", "probabilities"]
        np.testing.assert_array_equal(outputs["label"], expected)
        exported.assert_close(outputs["probabilities"], model.predict_proba(X), dtype)
    else:
        assert list(outputs) == ["variable"]
        exported.assert_close(outputs["variable"], expected.reshape(len(X), -1), dtype)


@pytest.mark.parametrize("dtype", exported.DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
class TestActivations:
    def test_in_a_network(self, activation, dtype):
        model = exported.fit_activation(activation, dtype)
        assert_same(model, to_onnx(model), exported.samples(dtype, 1000), dtype)

    def test_of_large_scores(self, activation, dtype):
        model, X = exported.elementwise(activation, dtype)
        assert_same(model, to_onnx(model), X, dtype)


@pytest.mark.parametrize("dtype", exported.DTYPES)
@pytest.mark.parametrize("head", exported.HEADS)
def test_head(head, dtype):
    model = exported.fit_head(head, dtype)
    assert_same(model, to_onnx(model), exported.samples(dtype, 1000), dtype)


@pytest.mark.parametrize("dtype", exported.DTYPES)
@pytest.mark.parametrize("head", exported.HEADS)
def test_ensemble(head, dtype):
    model = exported.fit_ensemble(head, dtype)
    proto = to_onnx(model)
    assert proto.doc_string.startswith("Average of 3 multilayer perceptrons 6-")
    assert_same(model, proto, exported.samples(dtype, 1000), dtype)


def test_members_of_different_forms_are_refused():
    model = exported.fit_ensemble("one target", "float64")
    model.members_[1] = exported.fit_head("no hidden layer", "float64")
    with pytest.raises(ValueError, match="members_ must all be networks of one form"):
        to_onnx(model)


@pytest.mark.parametrize("kind", exported.LABELS)
def test_labels(kind):
    model = exported.fit_labels(kind)
    X = exported.samples("float32", 200)
    proto = to_onnx(model)
    assert len(set(run(proto, X)["label"].tolist())) == len(exported.LABELS[kind])
    assert_same(model, proto, X, "float32")


@pytest.mark.parametrize("head", ["two classes", "four classes", "labels"])
def test_equal_probabilities_give_the_same_label(head):
    model = exported.without_preference(head)
    assert_same(model, to_onnx(model), exported.samples("float64"), "float64")


def test_who_made_it_and_for_whom(tmp_path):
    model = exported.fit_head("four classes", "float32")
    path = tmp_path / "model.onnx"
    proto = to_onnx(model, path)
    assert onnx.load(path) == proto
    assert (proto.producer_name, proto.producer_version) == ("fastmlp", fastmlp.__version__)
    assert "6-100-4 (relu; output softmax)" in proto.doc_string
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", 17)]
    assert proto.ir_version == 8


class TestRefusals:
    def test_what_onnx_cannot_express(self, monkeypatch):
        X = exported.samples("float64")
        own = (lambda z: z, lambda z: 1.0)
        model = MLPRegressor(hidden_layer_sizes=(3,), activation=own, max_iter=2).fit(X, X[:, 0])
        with pytest.raises(ValueError, match="activation: functions of your own have no form"):
            to_onnx(model)
        dates = np.array(["2020-01-01", "2021-01-01"], "M8[D]")[(X[:, 0] > 0).astype(int)]
        model = MLPClassifier((3,), max_iter=2).fit(X, dates)
        with pytest.raises(ValueError, match="class labels must be strings or whole numbers"):
            to_onnx(model)
        huge = np.array([1, 2**63], np.uint64)[(X[:, 0] > 0).astype(int)]
        with pytest.raises(ValueError, match="class labels must be strings or whole numbers"):
            to_onnx(MLPClassifier((3,), max_iter=2).fit(X, huge))
        monkeypatch.delitem(fastmlp.export.onnx._ACTIVATIONS, "relu")
        with pytest.raises(ValueError, match="activation='relu' has no form in ONNX"):
            to_onnx(exported.fit_head("one target", "float64"))

    def test_what_is_no_model(self):
        with pytest.raises(TypeError, match="model must be a fitted estimator"):
            to_onnx("model")
        with pytest.raises(NotFittedError):
            to_onnx(MLPClassifier())
        model = exported.fit_head("one target", "float64")
        with pytest.raises(ValueError, match="X is needed to convert a Pipeline"):
            to_onnx(make_pipeline(model))
        model.coefs_[0][0, 0] = np.nan
        with pytest.raises(ValueError, match="must be finite"):
            to_onnx(model)

    def test_what_does_not_fit_into_a_file(self, monkeypatch, tmp_path):
        monkeypatch.setattr(fastmlp.export.onnx, "_MAX_BYTES", 1000)
        with pytest.raises(ValueError, match="bytes of parameters, and an ONNX file holds 1000"):
            to_onnx(exported.fit_head("one target", "float64"), tmp_path / "model.onnx")
        assert not list(tmp_path.iterdir())

    def test_missing_packages_are_named(self, monkeypatch):
        model = exported.fit_head("one target", "float64")
        monkeypatch.setitem(sys.modules, "skl2onnx", None)
        with pytest.raises(ImportError, match='pip install "skl2onnx"'):
            to_onnx(make_pipeline(model), X=exported.samples("float64"))
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(ImportError, match=r'pip install "fastmlp\[onnx\]"'):
            to_onnx(model)


class TestPipelines:
    """Through skl2onnx."""

    @pytest.fixture(autouse=True)
    def _needs_skl2onnx(self):
        pytest.importorskip("skl2onnx")

    @pytest.mark.parametrize("dtype", exported.DTYPES)
    @pytest.mark.parametrize("head", [head for head in exported.HEADS if head != "own loss"])
    def test_every_head_after_a_scaler(self, head, dtype):
        X = exported.samples(dtype, 200)
        model = exported.HEADS[head].__class__(**exported.HEADS[head].get_params())
        pipeline = make_pipeline(StandardScaler(), model.set_params(max_iter=3, random_state=0))
        pipeline.fit(X, exported.targets(head, X))
        assert_same(pipeline, to_onnx(pipeline, X=X), X, dtype)

    @pytest.mark.parametrize("dtype", exported.DTYPES)
    @pytest.mark.parametrize("head", ["quantiles", "two classes", "four classes", "labels"])
    def test_ensemble_after_a_scaler(self, head, dtype):
        X = exported.samples(dtype, 200)
        ensemble = clone(exported.fit_ensemble(head, dtype))
        pipeline = make_pipeline(StandardScaler(), ensemble).fit(X, exported.targets(head, X))
        assert_same(pipeline, to_onnx(pipeline, X=X), X, dtype)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_activation_with_layer_norm_in_a_later_opset(self, activation):
        import skl2onnx

        X = exported.samples("float64", 200)
        model = MLPRegressor(
            hidden_layer_sizes=(5,), activation=activation, layer_norm=True, max_iter=3
        )
        pipeline = make_pipeline(StandardScaler(), model).fit(X, X[:, :2])
        register()
        assert_same(pipeline, skl2onnx.to_onnx(pipeline, X[:1], target_opset=18), X, "float64")

    @pytest.mark.parametrize("order", ["fastmlp, skl2onnx", "skl2onnx, fastmlp"])
    def test_both_imported_is_enough(self, order):
        code = f"""
import importlib.util
import sys
import {order.split(", ")[0]}
importlib.util.find_spec("skl2onnx")
assert ("skl2onnx" in sys.modules) == ({order!r}[0] == "s")
import {order.split(", ")[1]}
from skl2onnx._supported_operators import sklearn_operator_name_map as known
for kind in (fastmlp.MLPClassifier, fastmlp.MLPEnsembleRegressor, fastmlp.RobustScaleSmoothClip):
    assert kind in known, kind
assert type(skl2onnx.__loader__).__module__ == "_frozen_importlib_external"
"""
        run_python(code, timeout=120)

    @pytest.mark.parametrize("kind", exported.LABELS)
    def test_labels(self, kind):
        X = exported.samples("float32", 200)
        pipeline = make_pipeline(StandardScaler(), MLPClassifier((4,), max_iter=3))
        pipeline.fit(X, exported.label(kind, X))
        assert_same(pipeline, to_onnx(pipeline, X=X), X, "float32")

    def test_a_data_frame_with_categories(self):
        rng = np.random.default_rng(0)
        X = pd.DataFrame(rng.normal(size=(80, 2)).astype(np.float32), columns=["height", "width"])
        X["city"] = pd.Series(np.array(["Oslo", "Rome"])[rng.integers(0, 2, 80)], dtype=object)
        prepare = make_column_transformer(
            (StandardScaler(), ["height", "width"]),
            (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["city"]),
        )
        y = np.where((X["height"] > 0) & (X["city"] == "Rome"), "yes", "no")
        pipeline = make_pipeline(prepare, MLPClassifier((8,), max_iter=20, random_state=0))
        pipeline.fit(X, y)
        outputs = run(to_onnx(pipeline, X=X), X)
        np.testing.assert_array_equal(outputs["label"], pipeline.predict(X))
        np.testing.assert_allclose(outputs["probabilities"], pipeline.predict_proba(X), atol=1e-6)

    def test_a_search(self):
        X = exported.samples("float32")
        search = GridSearchCV(
            make_pipeline(StandardScaler(), MLPClassifier((4,), max_iter=3)),
            {"mlpclassifier__alpha": [0.0, 1.0]},
            cv=2,
        ).fit(X, X[:, 0] > 0)
        assert_same(search, to_onnx(search, X=X), X, "float32")

    def test_the_preset_for_tables_of_numbers(self):
        X = exported.samples("float32", 200)
        X[0, 0], X[1, 1], X[:, 2] = 1e30, np.nan, 1.0
        model = tabular_pipeline(MLPClassifier(max_iter=2), task="classification")
        model.fit(X, X[:, 3] > 0)
        assert_same(model, to_onnx(model, X=X), X, "float32")

    def test_smooth_clipping(self):
        """In float64 without the preset's imputer, which onnxruntime has for float32 only."""
        X = exported.samples("float64")
        X[0, 0], X[:, 2] = 1e200, 1.0
        model = make_pipeline(RobustScaleSmoothClip(), MLPRegressor(max_iter=2)).fit(X, X[:, 3])
        assert_same(model, to_onnx(model, X=X), X, "float64")

    @pytest.mark.parametrize(
        ("zipmap", "names"),
        [
            (True, ["output_label", "output_probability"]),
            ("columns", ["output_label", "sa", "sb"]),
            (False, ["label", "probabilities"]),
        ],
    )
    def test_zipmap(self, zipmap, names):
        import skl2onnx

        X = exported.samples("float32")
        model = MLPClassifier((4,), max_iter=3).fit(X, np.where(X[:, 0] > 0, "a", "b"))
        register()
        options = {id(model): {"zipmap": zipmap}}
        proto = skl2onnx.to_onnx(model, X[:1], target_opset=18, options=options)
        outputs = run(proto, X)
        assert list(outputs) == names
        last = {True: lambda rows: [row["b"] for row in rows], False: lambda p: p[:, 1]}
        got = last.get(zipmap, lambda p: p)(outputs[names[-1]])
        np.testing.assert_allclose(got, model.predict_proba(X)[:, 1], atol=1e-6)
