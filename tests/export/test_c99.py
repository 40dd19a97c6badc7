"""C code, compiled by gcc with all warnings as errors, against the models themselves."""

import ctypes
import shutil

import exported
import numpy as np
import pandas as pd
import pytest
from processes import run_command
from sklearn.exceptions import NotFittedError

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor, to_c
from fastmlp.functions import ACTIVATIONS

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wdouble-promotion", "-Werror", "-pedantic")


def gcc(folder, *arguments):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    run_command("gcc", "-std=c99", *WARNINGS, "-O2", *arguments, "-lm", cwd=folder)


class Compiled:
    """The functions of a model's code, over NumPy arrays."""

    def __init__(self, model, folder, **options):
        to_c(model, folder / "model.c", **options)
        gcc(folder, "-shared", "-fPIC", "model.c", "-o", "model.so")
        self.library = ctypes.CDLL(folder / "model.so")
        self.dtype = getattr(model, "members_", [model])[0].coefs_[0].dtype
        self.model = model

    def rows(self, function, X, n_columns, dtype):
        """What a function writes for each row."""
        X = np.ascontiguousarray(X, self.dtype)
        out = np.full((len(X), n_columns), 77, dtype)
        for x, row in zip(X, out, strict=True):
            getattr(self.library, function)(*map(ctypes.c_void_p, (x.ctypes.data, row.ctypes.data)))
        return out

    def places(self, X):
        """What ``int predict(x)`` returns for each row."""
        return [self.library.predict(ctypes.c_void_p(x.ctypes.data)) for x in X]

    def assert_same(self, X):
        model, dtype = self.model, self.dtype
        expected = model.predict(X)
        if not hasattr(model, "predict_proba"):
            expected = expected.reshape(len(X), -1)
            exported.assert_close(
                self.rows("predict", X, expected.shape[1], dtype), expected, dtype.name
            )
            return
        probabilities = model.predict_proba(X)
        got = self.rows("predict_proba", X, probabilities.shape[1], dtype)
        exported.assert_close(got, probabilities, dtype.name)
        if expected.ndim == 2:
            labels = self.rows("predict", X, expected.shape[1], np.int32)
            np.testing.assert_array_equal(labels, expected)
        else:
            np.testing.assert_array_equal(model.classes_[self.places(X)], expected)


@pytest.mark.parametrize("dtype", exported.DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation, dtype, tmp_path):
    model, X = exported.elementwise(activation, dtype)
    Compiled(model, tmp_path).assert_same(np.vstack([X, exported.samples(dtype, 1000)]))


@pytest.mark.parametrize("dtype", exported.DTYPES)
@pytest.mark.parametrize("head", exported.HEADS)
def test_head(head, dtype, tmp_path):
    compiled = Compiled(exported.fit_head(head, dtype), tmp_path)
    compiled.assert_same(exported.samples(dtype, 1000))


@pytest.mark.parametrize("dtype", exported.DTYPES)
@pytest.mark.parametrize("head", exported.HEADS)
def test_ensemble(head, dtype, tmp_path):
    compiled = Compiled(exported.fit_ensemble(head, dtype), tmp_path)
    compiled.assert_same(exported.samples(dtype, 1000))


def test_ensemble_of_one_is_a_network(tmp_path):
    model = exported.fit_ensemble("one target", "float64")
    del model.members_[1:]
    assert to_c(model) == to_c(model.members_[0])


@pytest.mark.parametrize("head", ["two classes", "four classes", "labels"])
def test_equal_probabilities_give_the_same_label(head, tmp_path):
    Compiled(exported.without_preference(head), tmp_path).assert_same(exported.samples("float64"))


@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
@pytest.mark.parametrize("head", ["two classes", "four classes", "labels"])
def test_probabilities_of_large_scores(head, size, tmp_path):
    model = exported.fit_head(head, "float32")
    Compiled(model, tmp_path).assert_same(exported.samples("float32") * np.float32(size))


@pytest.mark.parametrize("kind", exported.LABELS)
def test_labels(kind, tmp_path):
    model = exported.fit_labels(kind)
    compiled = Compiled(model, tmp_path)
    classes, n = model.classes_.tolist(), len(model.classes_)
    text = isinstance(classes[0], str)
    got = ((ctypes.c_char_p if text else ctypes.c_longlong) * n).in_dll(compiled.library, "classes")
    assert [label.decode() if text else label for label in got] == classes
    compiled.assert_same(exported.samples("float32", 200))


NASTY = ['"', "*/", "//", "\\", "??/", "a\nb", "%s", "\x017", "é😀", "", "'", "#include", "{p}"]


def test_text_of_any_kind_is_kept(tmp_path):
    names = sorted(NASTY)
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(50, len(names))), columns=names)
    y = np.array(names)[np.arange(50) % len(names)]
    model = MLPClassifier((3,), max_iter=2).fit(X, y)
    library = Compiled(model, tmp_path).library
    for array in ("classes", "feature_names"):
        texts = (ctypes.c_char_p * len(names)).in_dll(library, array)
        assert [text.decode() for text in texts] == names
    model.feature_names_in_[0] = "a\0b"
    with pytest.raises(ValueError, match=r"has a NUL in it"):
        to_c(model)


def test_parameters_are_exact():
    """Read back by Python's own parser of hexadecimal numbers."""
    for dtype in exported.DTYPES:
        model = exported.fit_head("one target", dtype)
        limits = np.finfo(dtype)
        model.intercepts_[0][:6] = 0.0, -0.0, limits.max, limits.tiny, limits.smallest_subnormal, 1
        code = to_c(model).split("b0[100] = {")[1].split("}")[0]
        numbers = [float.fromhex(one.strip().rstrip("f")) for one in code.split(",")[:-1]]
        np.testing.assert_array_equal(np.array(numbers, dtype), model.intercepts_[0])
        assert np.signbit(numbers[1])


MAIN = """
#include <stdio.h>
#include "a.c"
int b_predict(const float *x);
void b_predict_proba(const float *x, float *p);
extern const char *const b_classes[];
int main(void)
{
    const float x[A_N_FEATURES] = {1, 2, 3, 4, 5, 6};
    float y[A_N_OUTPUTS], p[2];
    a_predict(x, y);
    b_predict_proba(x, p);
    printf("%.9g %s %.9g", (double)y[0], b_classes[b_predict(x)], (double)p[1]);
    return 0;
}
"""


def test_two_models_in_one_program(tmp_path):
    X = exported.samples("float32")
    a = exported.fit_head("one target", "float32")
    b = MLPClassifier((4,), max_iter=3).fit(X, np.where(X[:, 0] > 0, "yes", "no"))
    to_c(a, tmp_path / "a.c", prefix="a_")
    to_c(b, tmp_path / "b.c", prefix="b_")
    (tmp_path / "main.c").write_text(MAIN)
    gcc(tmp_path, "main.c", "b.c", "-o", "main")
    printed = run_command(tmp_path / "main")
    x = np.array([[1, 2, 3, 4, 5, 6]], np.float32)
    value, label, probability = printed.split()
    assert float(value) == pytest.approx(a.predict(x)[0], rel=1e-6)
    assert label == b.predict(x)[0]
    assert float(probability) == pytest.approx(b.predict_proba(x)[0, 1], abs=1e-6)


def test_no_state_and_no_other_library(tmp_path):
    """What the object file asks of others is in math.h, and all data are read-only."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    to_c(exported.fit_head("four classes", "float32"), tmp_path / "model.c")
    gcc(tmp_path, "-c", "model.c")
    symbols = run_command("nm", "model.o", cwd=tmp_path).splitlines()
    kinds = {line.split()[-1].lstrip("_"): line.split()[-2] for line in symbols}
    assert {name for name, kind in kinds.items() if kind == "U"} - {"stack_chk_fail"} == {"expf"}
    assert not set("BbCDd") & set(kinds.values())
    assert {name for name, kind in kinds.items() if kind in "TR"} == {
        "predict", "predict_proba", "classes"
    }  # fmt: skip


class TestRefusals:
    def test_what_c_cannot_express(self, monkeypatch):
        X = exported.samples("float64")
        own = (lambda z: z, lambda z: 1.0)
        model = MLPRegressor(hidden_layer_sizes=(3,), activation=own, max_iter=2).fit(X, X[:, 0])
        with pytest.raises(ValueError, match="activation: functions of your own have no form in C"):
            to_c(model)
        dates = np.array(["2020-01-01", "2021-01-01"], "M8[D]")[(X[:, 0] > 0).astype(int)]
        with pytest.raises(ValueError, match="class labels must be strings or whole numbers"):
            to_c(MLPClassifier((3,), max_iter=2).fit(X, dates))
        monkeypatch.delitem(fastmlp.export.c99._ACTIVATIONS, "relu")
        with pytest.raises(ValueError, match="activation='relu' has no form in C"):
            to_c(exported.fit_head("one target", "float64"))

    def test_what_is_no_fitted_model(self):
        with pytest.raises(TypeError, match="model must be a fitted"):
            to_c("model")
        with pytest.raises(NotFittedError):
            to_c(MLPClassifier())

    def test_a_table(self, tmp_path):
        """Refused, and the way that is named works."""
        X = np.column_stack([np.linspace(0, 1, 60), np.tile([1.0, 2.0, np.nan], 20)])
        model = fastmlp.TabularMLPRegressor("fast", random_state=0).fit(X, X[:, 0])
        with pytest.raises(TypeError, match=r"give model\.network_, .*target_scaler_.*to to_onnx"):
            to_c(model)
        Compiled(model.network_, tmp_path).assert_same(model.encoder_.transform(X))

    @pytest.mark.parametrize("prefix", ["2", "a-", "a b", "é", "a;", "a\n"])
    def test_prefixes_that_cannot_begin_a_name(self, prefix):
        with pytest.raises(ValueError, match="prefix must consist of letters, digits and _"):
            to_c(exported.fit_head("one target", "float64"), prefix=prefix)
