"""Files of models, pickles, and the way to scikit-learn and back."""

import copy
import json
import pickle
import sys
import tracemalloc

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from models import quietly, require_same
from processes import run_python
from scipy import sparse
from sklearn import neural_network
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import fastmlp
from fastmlp import _safetensors
from fastmlp.estimators.parameters import REGRESSION_LOSSES
from fastmlp.functions import ACTIVATIONS
from fastmlp.initialisers import INITIALISERS
from fastmlp.io import TRUSTED_TYPES, load, save
from fastmlp.optimizers import OPTIMIZERS, Optimizer, OptimizerState
from fastmlp.schedules import STEP_SCHEDULES, Schedule

rng = np.random.RandomState(0)
X = rng.normal(size=(40, 3))
FRAME = pd.DataFrame(X, columns=["height", "width", "ünï"])
BINARY = X[:, 0] > 0
THREE = np.argmax(X, axis=1)
WORDS = np.array(["a", "b", "lo"])
LABELS = (X > 0).astype(int)
NUMBERS = X[:, 0] - X[:, 1]
POSITIVE = np.exp(NUMBERS)
SOLVERS = ("lbfgs", "sgd", *sorted(OPTIMIZERS.keys() - {"sgd", "nesterov"}))
SCHEDULES = ("constant", "invscaling", "adaptive", "plateau", *STEP_SCHEDULES)
SMALL = {"hidden_layer_sizes": (4,), "max_iter": 3, "random_state": 1}


def C(**params):
    return fastmlp.MLPClassifier(**SMALL | params)


def R(**params):
    return fastmlp.MLPRegressor(**SMALL | params)


MODELS = {
    "classifier": (C(), X, THREE),
    **{f"activation={name}": (R(activation=name), X, NUMBERS) for name in ACTIVATIONS},
    **{f"loss={name}": (R(loss=name), X, POSITIVE) for name in REGRESSION_LOSSES},
    **{f"classes, loss={name}": (C(loss=name), X, THREE) for name in ("squared_error", "focal")},
    **{f"solver={name}": (C(solver=name), X, BINARY) for name in SOLVERS},
    **{
        f"schedule={name}": (C(learning_rate=name, warmup_epochs=1, solver="sgd"), X, THREE)
        for name in SCHEDULES
    },
    **{f"weight_init={name}": (R(weight_init=name), X, NUMBERS) for name in INITIALISERS},
    "no hidden layer": (C(hidden_layer_sizes=()), X, THREE),
    "activations": (R(hidden_layer_sizes=[4, 3], activation=("relu", "gelu")), X, NUMBERS),
    "one size": (R(hidden_layer_sizes=4), X, NUMBERS),
    "sizes in an array": (R(hidden_layer_sizes=np.array([4, 3], np.int32)), X, NUMBERS),
    "activations in an array": (R(activation=np.array(["tanh"])), X, NUMBERS),
    "activations as objects": (R(activation=np.array(["tanh"], object)), X, NUMBERS),
    "float32": (C(), X.astype(np.float32), THREE),
    "float32, lbfgs": (R(solver="lbfgs"), X.astype(np.float32), NUMBERS),
    "sparse": (C(), sparse.csr_matrix(X), THREE),
    "names": (C(), FRAME, THREE),
    "dropout": (R(hidden_layer_sizes=(4, 3), dropout=[0.1, 0.2]), X, NUMBERS),
    "average": (R(ema_decay=0.9, warm_start=True), X, NUMBERS),
    "regularised": (R(weight_decay=0.1, max_grad_norm=1.0, layer_norm=True), X, NUMBERS),
    "early stopping": (C(early_stopping=True, n_iter_no_change=3), X, THREE),
    "early stopping by loss": (R(early_stopping=True, scoring="loss"), X, NUMBERS),
    "early stopping by name": (C(early_stopping=True, scoring="f1_macro"), X, THREE),
    "patient": (R(n_iter_no_change=np.inf), X, NUMBERS),
    "restarts": (C(n_restarts=2), X, THREE),
    "quantiles": (R(loss="quantile", quantile=(0.1, 0.5, 0.9)), X, NUMBERS),
    "quantiles in an array": (R(loss="quantile", quantile=np.array([0.9, 0.1])), X, NUMBERS),
    "outputs": (R(), X, X[:, :2]),
    "labels": (C(), X, LABELS),
    "sparse labels": (C(), X, sparse.csr_matrix(LABELS)),
    "one class": (C(), X, np.zeros(40)),
    "strings": (C(class_weight={"a": 1.0, "b": 2.0, "lo": 1}), X, WORDS[THREE]),
    "objects": (C(), X, np.array(["no", "yes"], dtype=object)[BINARY.astype(int)]),
    **{
        f"classes of {dtype}": (C(), X, THREE.astype(dtype))
        for dtype in ("int8", "uint8", "int16", "int64", "uint64", "float32", "float64")
    },
    "booleans": (C(class_weight={False: 1.0, True: 2.0}), X, BINARY),
    "class weights": (C(class_weight={np.int64(0): 1, 1: np.float32(2.0), 2: 3.0}), X, THREE),
    "balanced": (C(class_weight="balanced"), X, THREE),
    "weights of labels": (C(class_weight=[{0: 1, 1: 2}] * 3), X, LABELS),
    "NumPy's numbers": (
        C(
            hidden_layer_sizes=np.int64(5), alpha=np.float32(0.1), tol=np.float32(1e-3),
            max_iter=np.int16(2), shuffle=np.bool_(False), early_stopping=True,
        ), X, THREE,
    ),
    "random state": (R(random_state=np.random.RandomState(3)), X, NUMBERS),
    "any random state": (R(random_state=None), X, NUMBERS),
}  # fmt: skip


def fitted(name):
    model, data, y = MODELS[name]
    return quietly(clone(model).fit, data, y), data, y


def outputs(model, data):
    return getattr(model, "predict_proba", model.predict)(data)


def without_seconds(model):
    attributes = model.__getstate__()
    attributes["history_"] = attributes["history_"] | {"seconds": None}
    return attributes


def there_and_back(model, tmp_path, **options):
    save(model, tmp_path / "model.safetensors", **options)
    return load(tmp_path / "model.safetensors")


def test_where_checkpoints_go_is_not_in_the_file(tmp_path):
    model = fastmlp.MLPRegressor(checkpoint=tmp_path / "c", checkpoint_every=7, max_iter=3)
    again = there_and_back(quietly(model.fit, X, X[:, 0]), tmp_path)
    assert (again.checkpoint, again.checkpoint_every) == (None, 7)


@pytest.mark.parametrize("name", MODELS)
def test_everything_comes_back(name, tmp_path):
    model, data, _ = fitted(name)
    again = there_and_back(model, tmp_path, optimizer_state=True)
    require_same(again.__getstate__(), model.__getstate__())
    require_same(again.get_params(), model.get_params())
    rows = data[:2] if sparse.issparse(data) else np.asarray(data)[:2]
    for samples in (data, FRAME[:2] if data is FRAME else rows):
        np.testing.assert_array_equal(outputs(again, samples), outputs(model, samples))
        prediction, expected = again.predict(samples), model.predict(samples)
        assert type(prediction) is type(expected)
        assert prediction.dtype == expected.dtype
        np.testing.assert_array_equal(
            prediction.toarray() if sparse.issparse(prediction) else prediction,
            expected.toarray() if sparse.issparse(expected) else expected,
        )


def goes_on(name):
    model = MODELS[name][0]
    refused = model.solver == "lbfgs" or model.early_stopping or model.n_restarts > 1
    return not refused and model.random_state is not None and name != "balanced"


@pytest.mark.parametrize("name", [name for name in MODELS if goes_on(name)])
def test_partial_fit_goes_on_where_it_stopped(name, tmp_path):
    model, data, y = fitted(name)
    again = there_and_back(model, tmp_path, optimizer_state=True)
    for _ in range(2):
        quietly(model.partial_fit, data, y)
        quietly(again.partial_fit, data, y)
    require_same(without_seconds(again), without_seconds(model))


@pytest.mark.parametrize("name", ["classifier", "solver=lbfgs", "average", "early stopping"])
def test_a_warm_start_goes_on_where_it_stopped(name, tmp_path):
    model, data, y = fitted(name)
    again = there_and_back(model.set_params(warm_start=True), tmp_path, optimizer_state=True)
    quietly(model.fit, data, y)
    quietly(again.fit, data, y)
    require_same(without_seconds(again), without_seconds(model))


def test_partial_fit_of_classes_by_name_goes_on(tmp_path):
    y = LABELS
    model = quietly(C(solver="nadam").partial_fit, X, y, None, range(5))  # two will never occur
    again = there_and_back(model, tmp_path, optimizer_state=True)
    require_same(again.__getstate__(), model.__getstate__())
    quietly(model.partial_fit, X, y)
    quietly(again.partial_fit, X, y)
    require_same(without_seconds(again), without_seconds(model))


def test_the_optimizer_is_written_on_request_only(tmp_path):
    model, data, y = fitted("classifier")
    again = there_and_back(model, tmp_path)
    expected = model.__getstate__()
    del expected["_optimizer_state"], expected["_random_state"]
    require_same(again.__getstate__(), expected)
    small = (tmp_path / "model.safetensors").stat().st_size
    quietly(again.partial_fit, data, y)
    save(model, tmp_path / "large", optimizer_state=True)
    assert (tmp_path / "large").stat().st_size > 2 * small


def test_other_readers_find_parameters_by_name(tmp_path):
    from safetensors.numpy import load_file

    model, _, _ = fitted("float32")
    save(model, tmp_path / "model")
    arrays = load_file(tmp_path / "model")
    for i, (coef, intercept) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        np.testing.assert_array_equal(arrays[f"coefs_.{i}"], coef)
        np.testing.assert_array_equal(arrays[f"intercepts_.{i}"], intercept)


def test_assigned_parameters_are_saved(tmp_path):
    model, _, _ = fitted("classifier")
    model.coefs_ = [np.asfortranarray(2 * coef) for coef in model.coefs_]
    again = there_and_back(model, tmp_path)
    np.testing.assert_array_equal(again.coefs_[0], model.coefs_[0])
    model.coefs_ = [coef[:, :2] if coef.shape[1] == 4 else coef[:2] for coef in model.coefs_]
    model.intercepts_[0] = model.intercepts_[0][:2]  # pruned
    again = there_and_back(model, tmp_path)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def double(z):
    return 2 * z


def two(z):
    return 2.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation", (double, two)), ("activation", [(double, two)]), ("loss", (double, two)),
        ("learning_rate", double), ("scoring", double), ("weight_init", double),
        ("random_state", np.random.RandomState(np.random.PCG64(0))),
        ("hidden_layer_sizes", range(4)), ("max_iter", 2**64), ("dropout", np.zeros((1, 1))),
        ("activation", np.array([None], object)),
    ],
)  # fmt: skip
def test_parameters_that_are_no_data_are_refused(name, value, tmp_path):
    model, _, _ = fitted("activation=relu")
    model.set_params(**{name: value})
    with pytest.raises(ValueError, match=f"^{name}.*cannot be saved.*use"):
        save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"coefs_": [np.zeros((3, 4)), np.zeros((3, 1))]},
            "fan_in being fan_out of the layer before",
        ),
        ({"intercepts_": [np.zeros(4, np.float32), np.zeros(1)]}, "all be of float32, or all of"),
        ({"coefs_": [np.full((3, 4), np.nan), np.zeros((4, 1))]}, "must be finite"),
        ({"n_features_in_": 4}, "n_features_in_"),
        ({"n_outputs_": 2}, "n_outputs_"),
        ({"t_": -1}, "t_ cannot be -1"),
        ({"loss_": "low"}, "loss_ cannot be 'low'"),
        ({"stop_reason_": 3}, "stop_reason_ cannot be 3"),
        ({"out_activation_": "logistic"}, "out_activation_"),
        ({"history_": {"epoch": [1]}}, "history_"),
        ({"classes_": np.arange(3)}, "a regressor has no classes"),
    ],
    ids=str,
)
def test_a_model_that_could_not_be_loaded_is_not_saved(change, message, tmp_path):
    model, _, _ = fitted("activation=relu")
    vars(model).update(change)
    with pytest.raises(ValueError, match=message):
        save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


class Subclass(fastmlp.MLPRegressor):
    pass


def test_only_fitted_models_of_ours_are_saved(tmp_path):
    for other in (Subclass().partial_fit(X, NUMBERS), neural_network.MLPRegressor(), None, "x"):
        with pytest.raises(TypeError, match="must be an MLPClassifier or MLPRegressor"):
            save(other, tmp_path / "model")
    with pytest.raises(NotFittedError):
        save(fastmlp.MLPRegressor(), tmp_path / "model")


def test_what_is_not_ours_is_left_out(tmp_path):
    model, _, _ = fitted("classifier")
    model.note, model._skl_callbacks = "mine", [print]
    again = there_and_back(model, tmp_path)
    assert not hasattr(again, "note")
    assert not hasattr(again, "_skl_callbacks")


def rewrite(path, **changes):
    """Change a file's metadata, with a correct checksum."""
    arrays, metadata = _safetensors.read(path)
    _safetensors.write(path, arrays, metadata | changes)


def test_a_newer_format_is_refused_with_the_version_that_wrote_it(tmp_path):
    path = tmp_path / "model"
    save(fitted("classifier")[0], path)
    rewrite(path, format="fastmlp model 2", fastmlp="9.1")
    with pytest.raises(ValueError, match=r"model' was written by fastmlp 9\.1 .*upgrade fastmlp"):
        load(path)
    rewrite(path, format="something else")
    with pytest.raises(ValueError, match="holds no model"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


def test_a_parameter_of_a_later_version_is_refused_and_a_lacking_one_is_the_default(tmp_path):
    path = tmp_path / "model"
    model, data, _ = fitted("classifier")
    save(model, path)
    content = json.loads(_safetensors.read(path)[1]["model"])
    parameters = content["parameters"]
    content["parameters"] = {k: v for k, v in parameters.items() if k != "focal_gamma"}
    rewrite(path, model=json.dumps(content))
    np.testing.assert_array_equal(load(path).predict(data), model.predict(data))
    content["parameters"] = parameters | {"telepathy": True}
    rewrite(path, model=json.dumps(content))
    with pytest.raises(ValueError, match=r"no valid model.*telepathy"):
        load(path)


BEYOND = {
    "nested deeply": '"hidden_layer_sizes": ' + "[" * 100 + "]" * 100,
    "a tuple nested deeply": '"class_weight": {"dict": [[' + '{"tuple": [' * 150 + "]}" * 150
    + ", 1.0]]}",
    "more than float64": '"n_iter_no_change": 1e999',
    "a name twice": '"random_state": 1, "random_state": 2',
    "an endless weight": '"class_weight": {"dict": [[0, Infinity]]}',
    "a weight that is none": '"class_weight": {"dict": [[0, NaN]]}',
}  # fmt: skip


@pytest.mark.parametrize("text", BEYOND.values(), ids=BEYOND)
def test_json_without_bounds_is_refused(text, tmp_path):
    path = tmp_path / "model"
    save(fitted("classifier")[0], path)
    content = json.loads(_safetensors.read(path)[1]["model"])
    name = text[1 : text.index('":')]
    content["parameters"].pop(name)
    changed = json.dumps(content).replace('"parameters": {', '"parameters": {' + text + ", ")
    rewrite(path, model=changed)
    with pytest.raises(ValueError, match=r"model' is no valid model: .*\.$"):
        load(path)


def test_numbers_that_are_not_finite_are_kept_where_they_belong(tmp_path):
    path = tmp_path / "model"
    model = C(n_iter_no_change=np.inf, solver="sgd", learning_rate="plateau")
    quietly(model.fit, X, THREE)
    model.loss_, model.best_loss_ = np.nan, np.inf
    save(model, path, optimizer_state=True)
    again = load(path)
    assert again.n_iter_no_change == again.best_loss_ == np.inf
    assert np.isnan(again.loss_)
    assert again._optimizer.plateau == model._optimizer.plateau


def test_the_deepest_model_that_loads_shows_itself(tmp_path):
    path = tmp_path / "model"
    key = 0
    for _ in range(13):
        key = (key,)
    model = quietly(C().fit, X, THREE).set_params(class_weight={key: 1.0})
    save(model, path)
    assert load(path).class_weight == model.class_weight
    assert repr(load(path)) == repr(model)
    assert str(key) in load(path)._repr_html_()
    model.set_params(class_weight={(key,): 1.0})
    with pytest.raises(ValueError, match="nested more than 32 deep"):
        save(model, path)


def test_outputs_that_are_not_there_take_no_memory(tmp_path):
    path = tmp_path / "model"
    save(fitted("labels")[0], path)
    content = json.loads(_safetensors.read(path)[1]["model"])
    content["attributes"]["n_outputs_"] = 10**9
    rewrite(path, model=json.dumps(content))
    tracemalloc.start()
    with pytest.raises(ValueError, match="n_outputs_ must be those of coefs_"):
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


def test_one_output_is_not_several_labels(tmp_path):
    path = tmp_path / "model"
    save(fitted("solver=adam")[0], path)
    content = json.loads(_safetensors.read(path)[1]["model"])
    rewrite(path, model=json.dumps(content | {"labels": ["multilabel-indicator", False]}))
    with pytest.raises(ValueError, match="do not fit 1 outputs"):
        load(path)


def among(key, **values):
    return lambda content, arrays: content[key].update(values)


def in_schedule(name, value):
    def change(content, arrays):
        for entry in dict(content["optimizer"]["dict"])["schedule"]["dict"]:
            entry[1] = value if entry[0] == name else entry[1]

    return change


def in_optimizer(name, value):
    def change(content, arrays):
        for entry in content["optimizer"]["dict"]:
            entry[1] = value if entry[0] == name else entry[1]

    return change


def of_array(name, function):
    return lambda content, arrays: arrays.update({name: function(arrays[name])})


def random_state(words, *rest):
    state = {"random_state": [words, *rest]}
    return {
        "parameters": among("parameters", random_state=state),
        "state": lambda content, arrays: content.update(random_state=state),
    }


def integers(*values):
    return {"array": ["int64", list(values)]}


HOSTILE = {
    "classes out of order": among("attributes", classes_=integers(2, 0, 1)),
    "classes twice": among("attributes", classes_=integers(0, 1, 1)),
    "too few classes": among("attributes", classes_=integers(0, 1)),
    "classes in a list": among("attributes", classes_=[0, 1, 2]),
    "names too few": among("attributes", feature_names_in_={"array": ["object", ["a"]]}),
    "names of numbers": among("attributes", feature_names_in_=integers(1, 2, 3)),
    "a path to write to": among("parameters", checkpoint="somewhere"),
    "outputs": among("attributes", n_outputs_=4),
    "layers": among("attributes", n_layers_=2),
    "features": among("attributes", n_features_in_=4),
    "output activation": among("attributes", out_activation_="logistic"),
    "unknown output activation": among("attributes", out_activation_="argmax"),
    "samples": among("attributes", t_=-1),
    "samples as float": among("attributes", t_=1.5),
    "iterations": among("attributes", n_iter_=True),
    "loss": among("attributes", loss_="low"),
    "best loss": among("attributes", best_loss_=[]),
    "another attribute": among("attributes", coefs_=[]),
    "a method": among("attributes", predict="x"),
    "kind of labels": lambda content, arrays: content.update(labels=["binary", False]),
    "sparse labels": lambda content, arrays: content.update(labels=["multiclass", 1]),
    "no labels": lambda content, arrays: content.pop("labels"),
    "class": lambda content, arrays: content.update({"class": "MLPRegressor"}),
    "unknown class": lambda content, arrays: content.update({"class": "os.system"}),
    "more content": lambda content, arrays: content.update(code="x"),
    "activation": among("parameters", activation="argmax"),
    "activations": among("parameters", activation=["relu", "relu"]),
    "alpha": among("parameters", alpha=-1.0),
    "weights of classes": among("parameters", class_weight={"dict": [[0, "much"]]}),
    "weights of labels": among("parameters", class_weight=[1.0]),
    "large integer": among("parameters", max_iter=2**64),
    "large number": among("parameters", alpha={"float32": 1e300}),
    "steps": in_optimizer("step", 2**60),
    "steps before the first": in_optimizer("step", -1),
    "rule": in_optimizer("rule", "magic"),
    "constants": in_optimizer("constants", [0.9, 0.999]),
    "infinite constants": in_optimizer("constants", [0.9, 0.999, float("inf")]),
    "rate": in_optimizer("learning_rate", -1.0),
    "seed": in_optimizer("dropout_seed", 2**31),
    "plateau": in_optimizer("plateau", {"tuple": [1.0, -1]}),
    "average": in_optimizer("ema_decay", 1.5),
    "average without slots": in_optimizer("ema_decay", 0.5),
    "norm": in_optimizer("max_grad_norm", 0.0),
    "decay": in_optimizer("weight_decay", "x"),
    "schedule": in_schedule("name", "magic"),
    "epochs of decay": in_schedule("decay_epochs", 0),
    "epochs": in_schedule("max_iter", 0.5),
    "fewer slots": of_array("optimizer.slots", lambda slots: slots[:1]),
    "smaller slots": of_array("optimizer.slots", lambda slots: slots[:, :-1]),
    "slots of integers": of_array("optimizer.slots", lambda slots: slots.astype(np.int64)),
    "fewer weights": of_array("coefs_.1", lambda coef: coef[:-1]),
    "fewer biases": of_array("intercepts_.0", lambda intercept: intercept[:-1]),
    "no units": of_array("coefs_.1", lambda coef: coef[:, :0]),
    "integers as weights": of_array("coefs_.1", lambda coef: coef.astype(np.int32)),
    "types of weights": of_array("coefs_.1", lambda coef: coef.astype(np.float32)),
    "infinite weights": of_array("coefs_.1", lambda coef: coef * np.inf),
    "flat weights": of_array("coefs_.1", np.ravel),
    "curve of integers": of_array("loss_curve_", lambda curve: curve.astype(np.int64)),
    "curves": of_array("loss_curve_", lambda curve: curve[None]),
    "shorter history": of_array("history_.loss", lambda curve: curve[1:]),
    "no epochs": lambda content, arrays: arrays.pop("history_.epoch"),
    "no layer": lambda content, arrays: arrays.pop("coefs_.0"),
    "one more layer": lambda content, arrays: arrays.update({"coefs_.2": np.zeros((3, 3))}),
    "one more array": lambda content, arrays: arrays.update(extra=np.zeros(3)),
    **{
        f"{where}: {what}": change
        for what, state in {
            "position": random_state([1] * 624, 625, 0, 0.0),
            "position before the first": random_state([1] * 624, -1, 0, 0.0),
            "words": random_state([1] * 623, 0, 0, 0.0),
            "words of 64 bits": random_state([2**32] * 624, 0, 0, 0.0),
            "words of 0, which it never leaves": random_state([0] * 624, 0, 0, 0.0),
        }.items()
        for where, change in state.items()
    },
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_made_up_file_with_a_right_checksum_is_refused(change, tmp_path):
    path = tmp_path / "model"
    save(fitted("classifier")[0], path, optimizer_state=True)
    arrays, metadata = _safetensors.read(path)
    content = json.loads(metadata["model"])
    before = copy.deepcopy((arrays, content))
    load(path)
    with np.errstate(invalid="ignore"):
        quietly(change, content, arrays)
    assert repr(before) != repr((arrays, content))
    _safetensors.write(path, arrays, metadata | {"model": json.dumps(content)})
    with pytest.raises(ValueError, match=r"model' is no valid model: .*\.$"):
        load(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_leaves_a_file_that_loads(tmp_path):
    """One process forks others that save again and again, and kills them."""
    model, data, _ = fitted("float32")
    save(model, tmp_path / "model")
    code = """if True:
        import os, random, signal, sys, time, fastmlp
        model = fastmlp.io.load(sys.argv[1])
        for _ in range(15):
            before = os.stat(sys.argv[1]).st_mtime_ns
            child = os.fork()
            while child == 0:
                fastmlp.io.save(model, sys.argv[1])
            while os.stat(sys.argv[1]).st_mtime_ns == before:
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            fastmlp.io.load(sys.argv[1])
            print("loaded", flush=True)
    """
    assert run_python(code, tmp_path / "model", timeout=60).count("loaded") == 15
    np.testing.assert_array_equal(load(tmp_path / "model").predict(data), model.predict(data))


# --- pickles


def unpickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("name", ["classifier", "solver=lbfgs", "average", "strings", "labels"])
def test_pickles_come_back_without_a_word(name, tmp_path):
    model, data, _ = fitted(name)
    joblib.dump(model, tmp_path / "model")
    for again in (unpickled(model), joblib.load(tmp_path / "model"), copy.deepcopy(model)):
        require_same(again.__getstate__(), model.__getstate__())
        np.testing.assert_array_equal(again.predict(data), model.predict(data))
    assert unpickled(clone(model)).get_params() == clone(model).get_params()


def test_a_copy_shares_everything_and_checks_nothing(monkeypatch):
    model, _, _ = fitted("classifier")
    monkeypatch.setattr(fastmlp.MLPClassifier, "_check_arrays", lambda self: 1 / 0)
    again = copy.copy(model)
    shared = {name: value for name, value in vars(model).items() if name != "_model"}
    assert vars(again) == shared
    assert again.coefs_ is model.coefs_
    assert vars(again) is not vars(model)


def test_a_pickle_of_another_version_warns_and_gets_new_parameters(monkeypatch):
    model, data, _ = fitted("classifier")
    del model.focal_gamma
    monkeypatch.setattr("fastmlp.estimators.base.__version__", "0.0.7")
    pickled = pickle.dumps(model)
    monkeypatch.undo()
    with pytest.warns(fastmlp.InconsistentVersionWarning, match=r"by fastmlp 0\.0\.7 and is now"):
        again = pickle.loads(pickled)
    assert again.focal_gamma == 2.0
    np.testing.assert_array_equal(again.predict(data), model.predict(data))
    assert not hasattr(again, "_fastmlp_version")


def test_a_pickle_without_later_parts_of_the_state_goes_on():
    model, data, y = fitted("classifier")
    state = model.__getstate__()
    for name in ("weight_decay", "max_grad_norm", "ema_decay", "plateau", "dropout_seed"):
        del state["_optimizer_state"][name]
    again = copy.copy(model)
    again.__setstate__(state)
    quietly(model.partial_fit, data, y)
    quietly(again.partial_fit, data, y)
    require_same(without_seconds(again), without_seconds(model))


STATE = OptimizerState.new(
    Optimizer.of("adam", [0.9, 0.999, 1e-8]), Schedule("constant", 0.001, 200), np.zeros(30)
)
WRONG = {
    "weights": {"coefs_": [np.zeros((3, 4)), np.zeros((5, 3))]},
    "biases": {"intercepts_": [np.zeros(4), np.zeros(2)]},
    "layers": {"intercepts_": [np.zeros(4)]},
    "dimensions": {"coefs_": [np.zeros((3, 4, 1)), np.zeros((4, 3))]},
    "empty": {"coefs_": []},
    "features": {"n_features_in_": 4},
    "classes": {"classes_": np.array([2, 0, 1])},
    "slots": {"_optimizer_state": STATE},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_arrays_that_kernels_cannot_index_are_not_unpickled(change):
    model, _, _ = fitted("classifier")
    vars(model).update(change)
    with pytest.raises(ValueError, match=r"must be|must have"):
        unpickled(model)


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("before", [False, True], ids=["at once", "after a prediction"])
def test_arrays_that_kernels_cannot_index_are_refused_when_used(change, before):
    model, data, y = fitted("classifier")
    if before:
        model.predict(data[:1])
    n_features = change.get("n_features_in_", 3)
    data = np.hstack([data, data])[:, :n_features]
    vars(model).update(change)
    messages = r"must be|must have|is expecting"
    if "classes_" not in change and "_optimizer_state" not in change:
        for rows in (data[:1], data):
            with pytest.raises(ValueError, match=messages):
                model.predict(rows)
        with pytest.raises(ValueError, match=messages):
            fastmlp.jit_predictor(model)
    with pytest.raises(ValueError, match=messages):
        model.partial_fit(data, y)


def test_a_changed_number_of_features_does_not_reach_the_short_way():
    model, data, _ = fitted("classifier")
    model.predict(data[:1])
    model.n_features_in_ = 2
    with pytest.raises(ValueError, match="n_features_in_"):
        model.predict(data[:1, :2])


def test_arrays_in_another_byte_order_are_read_right():
    model, data, _ = fitted("classifier")
    expected = model.predict_proba(data[:2])
    for name in ("coefs_", "intercepts_"):
        setattr(model, name, [array.astype(">f8") for array in getattr(model, name)])
    np.testing.assert_allclose(model.predict_proba(data[:2]), expected)


@pytest.mark.parametrize(
    "name", ["classifier", "labels", "dropout", *(f"solver={s}" for s in SOLVERS)]
)
def test_skops_needs_to_trust_one_name(name):
    model, data, y = fitted(name)
    dumped = skops.io.dumps(model)
    (untrusted,) = skops.io.get_untrusted_types(data=dumped)
    assert untrusted in TRUSTED_TYPES
    assert untrusted.endswith(type(model).__name__)
    again = skops.io.loads(dumped, trusted=TRUSTED_TYPES)
    np.testing.assert_array_equal(outputs(again, data), outputs(model, data))
    if model.solver != "lbfgs":
        quietly(model.partial_fit, data, y)
        quietly(again.partial_fit, data, y)
        np.testing.assert_array_equal(outputs(again, data), outputs(model, data))


# --- scikit-learn

THEIRS = {
    "binary": ("MLPClassifier", BINARY, {}),
    "multiclass": ("MLPClassifier", np.array(["a", "b", "c"])[THREE], {}),
    "labels": ("MLPClassifier", LABELS, {}),
    "one class": ("MLPClassifier", np.zeros(40), {}),
    "regression": ("MLPRegressor", NUMBERS, {}),
    "outputs": ("MLPRegressor", X[:, :2], {}),
    "poisson": ("MLPRegressor", POSITIVE, {"loss": "poisson"}),
}
OPTIMIZED = {
    "adam": {},
    "adam's numbers": {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-6, "learning_rate_init": 0.01},
    "sgd": {"solver": "sgd", "nesterovs_momentum": False},
    "nesterov": {"solver": "sgd", "momentum": 0.7},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.3},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 1.0, "n_iter_no_change": 1},
    "lbfgs": {"solver": "lbfgs"},
    "deep": {"hidden_layer_sizes": (5, 4), "activation": "tanh"},
    "linear": {"hidden_layer_sizes": ()},
    "logistic": {"activation": "logistic", "alpha": 0.1, "batch_size": 7, "shuffle": False},
}


PAIRS = [("multiclass", name) for name in OPTIMIZED]
PAIRS += [(task, name) for task in THEIRS if task != "multiclass" for name in ("adam", "nesterov")]


def require_close(a, b, data=X):
    np.testing.assert_allclose(outputs(a, data), outputs(b, data), rtol=1e-7, atol=1e-7)
    np.testing.assert_array_equal(a.predict(data) if hasattr(a, "classes_") else 0,
                                  b.predict(data) if hasattr(b, "classes_") else 0)  # fmt: skip


def require_to_go_on_together(one, other, y):
    """Three more epochs on both sides, then a warm start."""
    require_close(one, other)
    if one.solver != "lbfgs":
        for _ in range(3):
            quietly(one.partial_fit, X, y)
            quietly(other.partial_fit, X, y)
        require_close(one, other)
        for name in ("loss_curve_", "best_loss_", "t_", "_no_improvement_count"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-7)
    quietly(one.set_params(warm_start=True).fit, X, y)
    quietly(other.set_params(warm_start=True).fit, X, y)
    np.testing.assert_allclose(outputs(one, X), outputs(other, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("task", "optimizer"), PAIRS)
def test_from_scikit_learn_goes_on_as_scikit_learn(task, optimizer):
    kind, y, params = THEIRS[task]
    theirs = getattr(neural_network, kind)(**SMALL | params | OPTIMIZED[optimizer])
    quietly(theirs.fit, X, y)
    ours = fastmlp.from_sklearn(theirs)
    assert type(ours) is getattr(fastmlp, kind)
    for name, value in theirs.get_params().items():
        assert getattr(ours, name) == value
    require_to_go_on_together(theirs, ours, y)


@pytest.mark.parametrize(("task", "optimizer"), PAIRS)
def test_to_scikit_learn_goes_on_as_ours(task, optimizer):
    kind, y, params = THEIRS[task]
    ours = getattr(fastmlp, kind)(**SMALL | params | OPTIMIZED[optimizer])
    quietly(ours.fit, X, y)
    theirs = fastmlp.to_sklearn(ours)
    assert type(theirs) is getattr(neural_network, kind)
    before = [coef.copy() for coef in ours.coefs_]
    for name, value in theirs.get_params().items():
        assert getattr(ours, name) == value
    for coef, same in zip(ours.coefs_, before, strict=True):
        np.testing.assert_array_equal(coef, same)
    require_to_go_on_together(ours, theirs, y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_there_and_back_through_scikit_learn(dtype, early_stopping):
    model = C(early_stopping=early_stopping)
    quietly(model.fit, X.astype(dtype), THREE)
    theirs = fastmlp.to_sklearn(model)
    assert theirs.coefs_[0].dtype == dtype
    again = fastmlp.from_sklearn(theirs)
    lost = {"stop_reason_", "engine_info_", "restart_scores_", "validation_loss_curve_", "history_"}
    state = again.__getstate__()
    require_same(state, {k: v for k, v in model.__getstate__().items() if k not in lost} | {
        "history_": again.history_
    })  # fmt: skip
    for name in ("epoch", "loss", "validation_score"):
        np.testing.assert_array_equal(again.history_[name], model.history_[name])
    assert again.coefs_[0].base is not None
    pickle.loads(pickle.dumps(theirs))
    clone(theirs)
    assert repr(theirs) == repr(model)


def test_scikit_learn_keeps_the_best_of_a_start_that_brings_nothing():
    ours = quietly(C(early_stopping=True).fit, X, THREE)
    theirs = fastmlp.to_sklearn(ours)
    theirs.set_params(warm_start=True, learning_rate_init=1e-12, random_state=1)
    theirs.best_validation_score_ = 1.0
    quietly(theirs.fit, X, THREE)
    np.testing.assert_array_equal(theirs.coefs_[0], ours.coefs_[0])


def test_names_of_features_go_both_ways():
    ours = quietly(C().fit, FRAME, THREE)
    theirs = fastmlp.to_sklearn(ours)
    np.testing.assert_array_equal(theirs.feature_names_in_, FRAME.columns)
    np.testing.assert_array_equal(theirs.predict(FRAME), ours.predict(FRAME))
    again = fastmlp.from_sklearn(theirs)
    np.testing.assert_array_equal(again.feature_names_in_, FRAME.columns)


def test_one_activation_in_a_list_is_scikit_learns(tmp_path):
    model = quietly(R(hidden_layer_sizes=(4, 3), activation=["tanh", "tanh"]).fit, X, NUMBERS)
    assert fastmlp.to_sklearn(model).activation == "tanh"
    require_close(fastmlp.to_sklearn(model), model)


PREDICT_OTHERWISE = {
    "activation='gelu'": (R(activation="gelu"), NUMBERS),
    r"activation=\['relu', 'tanh'\]": (
        R(activation=["relu", "tanh"], hidden_layer_sizes=(2, 2)), NUMBERS
    ),
    "layer_norm=True": (R(layer_norm=True), NUMBERS),
    r"quantile=\(0.1, 0.9\)": (R(loss="quantile", quantile=(0.1, 0.9)), NUMBERS),
}  # fmt: skip
TRAIN_OTHERWISE = {
    "solver='lion'": (R(solver="lion"), NUMBERS),
    "learning_rate='cosine'": (R(learning_rate="cosine"), NUMBERS),
    "loss='huber'": (R(loss="huber"), NUMBERS),
    "loss='gamma'": (R(loss="gamma"), POSITIVE),
    "loss='focal'": (C(loss="focal"), THREE),
    "dropout=0.5": (R(dropout=0.5), NUMBERS),
    r"dropout=array\(\[0.5\]\)": (R(dropout=np.array([0.5])), NUMBERS),
    "weight_decay=0.1": (R(weight_decay=0.1), NUMBERS),
    "ema_decay=0.5, max_grad_norm=1.0": (R(max_grad_norm=1.0, ema_decay=0.5), NUMBERS),
    "class_weight={0: 2}": (C(class_weight={0: 2}), THREE),
    "warmup_epochs=2": (R(warmup_epochs=2), NUMBERS),
}


@pytest.mark.parametrize("words", PREDICT_OTHERWISE)
def test_what_scikit_learn_cannot_predict_is_refused_by_name(words):
    model, y = PREDICT_OTHERWISE[words]
    quietly(model.fit, X, y)
    for predict_only in (False, True):
        with pytest.raises(ValueError, match=f"scikit-learn has no {words}.*cannot predict"):
            fastmlp.to_sklearn(model, predict_only=predict_only)


@pytest.mark.parametrize("words", TRAIN_OTHERWISE)
def test_what_scikit_learn_cannot_train_is_refused_by_name(words):
    model, y = TRAIN_OTHERWISE[words]
    quietly(model.fit, X, y)
    with pytest.raises(ValueError, match=f"scikit-learn has no {words};.*predict_only=True"):
        fastmlp.to_sklearn(model)
    theirs = fastmlp.to_sklearn(model, predict_only=True)
    require_close(theirs, model)
    assert not hasattr(theirs, "_optimizer")
    quietly(theirs.partial_fit, X, y)


@pytest.mark.parametrize(
    "params",
    [
        {"solver": "lion"}, {"learning_rate": "cosine"}, {"dropout": 0.5}, {"weight_decay": 0.1},
        {"max_grad_norm": 1.0}, {"ema_decay": 0.5}, {"ema_decay": 0.0}, {"warmup_epochs": 2},
    ],
    ids=str,
)  # fmt: skip
def test_an_optimizer_outlives_its_parameters(params):
    """`partial_fit` goes on with the optimizer of the first call, whatever the parameters say."""
    model = quietly(R(**params).fit, X, NUMBERS)
    model.set_params(**R().get_params())
    with pytest.raises(ValueError, match=r"was trained with.*predict_only=True"):
        fastmlp.to_sklearn(model)


def test_where_it_runs_is_nothing_to_refuse():
    model = quietly(R(n_threads=1).fit, X, NUMBERS)
    require_close(fastmlp.to_sklearn(model), model)


class TheirSubclass(neural_network.MLPRegressor):
    pass


def test_only_models_of_scikit_learn_are_taken_over():
    for other in (quietly(TheirSubclass().fit, X, NUMBERS), fastmlp.MLPRegressor(), None):
        with pytest.raises(TypeError, match=r"must be an .* of sklearn\.neural_network"):
            fastmlp.from_sklearn(other)
    with pytest.raises(NotFittedError):
        fastmlp.from_sklearn(neural_network.MLPRegressor())
    with pytest.raises(NotFittedError):
        fastmlp.to_sklearn(fastmlp.MLPRegressor())
    with pytest.raises(TypeError, match="of fastmlp"):
        fastmlp.to_sklearn(neural_network.MLPRegressor())


def test_nothing_is_shared_with_the_original():
    random_state = np.random.RandomState(0)
    ours = quietly(R(random_state=random_state).fit, X, NUMBERS)
    theirs = fastmlp.to_sklearn(ours)
    assert theirs.random_state is not random_state
    expected = ours.predict(X)
    for array in (*theirs.coefs_, *theirs._optimizer.ms):
        array[:] = 0
    np.testing.assert_array_equal(ours.predict(X), expected)
    assert ours._optimizer.slots.any()
    again = fastmlp.from_sklearn(theirs)
    theirs.coefs_[0][:] = 1
    assert not again.coefs_[0].any()
