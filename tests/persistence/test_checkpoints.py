"""Checkpoints: a fit that dies and goes on ends with the bits of one that was left alone."""

import json
import sys

import numpy as np
import pytest
from processes import run_python
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression
from sklearn.exceptions import ConvergenceWarning

from fastmlp import MLPClassifier, MLPRegressor, _safetensors
from fastmlp.engine.cpu import CpuEngine

pytestmark = pytest.mark.filterwarnings("ignore:Stochastic Optimizer:Warning")

X, Y = make_classification(150, 8, n_informative=6, n_classes=3, random_state=0)
KEPT = ("coefs_", "intercepts_", "loss_curve_", "validation_scores_", "best_loss_", "n_iter_",
        "t_", "loss_", "best_validation_score_", "stop_reason_", "restart_scores_")  # fmt: skip
SETTINGS = {
    "adam": {},
    "nadam": {"solver": "nadam"},
    "rmsprop": {"solver": "rmsprop"},
    "lion": {"solver": "lion", "learning_rate": "cosine"},
    "momentum": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1},
    "adaptive": {
        "solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 2,
    },
    "plateau": {"learning_rate": "plateau", "patience": 1, "tol": 0.1, "n_iter_no_change": 5},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 4},
    "converged": {"tol": 1.0, "n_iter_no_change": 3},
    "validation loss": {"early_stopping": True, "scoring": "loss"},
    "dropout": {"dropout": 0.5, "hidden_layer_sizes": (9, 8)},
    "average": {"ema_decay": 0.9, "max_grad_norm": 0.5, "weight_decay": 0.1},
    "layer_norm": {"layer_norm": True, "activation": "gelu"},
    "restarts": {"n_restarts": 3, "n_threads": 1},
    "in order": {"shuffle": False},
    "one_cycle": {"learning_rate": "one_cycle", "warmup_epochs": 2},
}  # fmt: skip


def make(path, **settings):
    parameters = {"hidden_layer_sizes": (7,), "max_iter": 12, "batch_size": 32, "random_state": 3}
    return MLPClassifier(checkpoint=path, checkpoint_every=0, **(parameters | settings))


class Killed(Exception):
    pass


def die_after(monkeypatch, n_epochs):
    """Let the process "die" in the epoch after so many."""
    run_epoch, left = CpuEngine.run_epoch, [n_epochs]

    def run(engine, order, rates):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return run_epoch(engine, order, rates)

    monkeypatch.setattr(CpuEngine, "run_epoch", run)


def fit_in_pieces(monkeypatch, model, data, lengths):
    for n_epochs in lengths:
        with monkeypatch.context() as patch:
            die_after(patch, n_epochs)
            with pytest.raises(Killed):
                clone(model).fit(*data, resume=True)
    return model.fit(*data, resume=True)


def assert_same(model, expected):
    for name in KEPT:
        ours, theirs = getattr(model, name, None), getattr(expected, name, None)
        lists = isinstance(ours, list) and isinstance(theirs, list)
        for a, b in zip(*((ours, theirs) if lists else ([ours], [theirs])), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name, strict=True)
    for name in set(model.history_) - {"seconds"}:
        np.testing.assert_array_equal(model.history_[name], expected.history_[name], name)
    assert all(type(epoch) is int for epoch in model.history_["epoch"])
    ours, theirs = vars(model._optimizer), vars(expected._optimizer)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], name)
    states = [m._random_state.get_state() for m in (model, expected)]
    assert all(map(np.array_equal, *states))


@pytest.mark.parametrize("name", SETTINGS)
def test_going_on_gives_the_same_bits(name, tmp_path, monkeypatch):
    settings = SETTINGS[name]
    expected = make(None, **settings).fit(X, Y)
    model = make(tmp_path / "c", **settings)
    assert_same(fit_in_pieces(monkeypatch, model, (X, Y), (0, 2, 1)), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["dense", "sparse", "weights", "several outputs"])
def test_going_on_with_all_kinds_of_data(kind, dtype, tmp_path, monkeypatch):
    samples, y = make_regression(90, 6, n_targets=2, random_state=0)
    data = [samples.astype(dtype), y[:, 0]]
    if kind == "sparse":
        data[0] = sparse.csr_array(data[0])
    if kind == "weights":
        data.append(np.linspace(0, 2, len(y)))
    if kind == "several outputs":
        data[1] = y
    parameters = {"hidden_layer_sizes": (5,), "max_iter": 7, "random_state": 1}
    expected = MLPRegressor(**parameters).fit(*data)
    model = MLPRegressor(**parameters, checkpoint=str(tmp_path / "c"), checkpoint_every=0)
    assert_same(fit_in_pieces(monkeypatch, model, data, (3, 1)), expected)


def test_every_engine_goes_on_to_the_same_bits(device, tmp_path):
    settings = {"device": device, "max_iter": 4, "dropout": 0.3, "ema_decay": 0.8}
    expected = make(None, **settings).fit(X[:40], Y[:40])
    for _ in range(3):
        make(tmp_path / "c", **settings, max_time=1e-9).fit(X[:40], Y[:40], resume=True)
    assert_same(make(tmp_path / "c", **settings).fit(X[:40], Y[:40], resume=True), expected)


def test_a_random_state_of_nobody_is_kept(tmp_path, monkeypatch):
    np.random.seed(0)  # noqa: NPY002
    expected = make(None, random_state=None).fit(X, Y)
    np.random.seed(0)  # noqa: NPY002
    model = make(tmp_path / "c", random_state=None, early_stopping=False)
    model = fit_in_pieces(monkeypatch, model, (X, Y), (2,))
    np.testing.assert_array_equal(model.coefs_[0], expected.coefs_[0])


def test_a_finished_fit_is_not_repeated(tmp_path, monkeypatch):
    expected = make(tmp_path / "c").fit(X, Y)
    monkeypatch.setattr(CpuEngine, "run_epoch", lambda *args: pytest.fail("an epoch was run"))
    with pytest.warns(ConvergenceWarning):
        model = make(tmp_path / "c").fit(X, Y, resume=True)
    assert_same(model, expected)


def test_going_on_after_time_ran_out_or_with_a_larger_max_iter(tmp_path):
    expected = make(None, max_iter=20).fit(X, Y)
    model = make(tmp_path / "c", max_time=1e-9).fit(X, Y)
    assert model.stop_reason_ == "max_time"
    assert model.n_iter_ == 1
    make(tmp_path / "c").fit(X, Y, resume=True)
    assert_same(make(tmp_path / "c", max_iter=20).fit(X, Y, resume=True), expected)


def test_without_resume_or_without_a_file_a_fit_begins_at_the_beginning(tmp_path):
    expected = make(None).fit(X, Y)
    assert_same(make(tmp_path / "c").fit(X, Y, resume=True), expected)
    assert_same(make(tmp_path / "c").fit(X, Y), expected)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_warm_start_goes_on_from_the_same_solution(early_stopping, tmp_path, monkeypatch):
    settings = {"warm_start": True, "early_stopping": early_stopping, "n_iter_no_change": 99}
    first = make(None, **settings).fit(X, Y)
    weights = [array.copy() for array in (*first.coefs_, *first.intercepts_)]
    model = make(tmp_path / "c", **settings).fit(X, Y)
    with monkeypatch.context() as patch:
        die_after(patch, 5)
        with pytest.raises(Killed):
            model.fit(X, Y)
    np.testing.assert_array_equal(model.coefs_[0], weights[0])
    model.fit(X, Y, resume=True)
    first.fit(X, Y)
    np.testing.assert_array_equal(model.coefs_[0], first.coefs_[0])
    assert model.history_["epoch"] == list(range(1, 25))


def test_checkpoint_every_spaces_the_writes(tmp_path, monkeypatch):
    writes = []
    monkeypatch.setattr(_safetensors, "write", lambda *args: writes.append(args))
    make(tmp_path / "c").set_params(checkpoint_every=1000).fit(X, Y)
    assert len(writes) == 1  # the end
    make(tmp_path / "c").fit(X, Y)
    assert len(writes) == 1 + 12


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alpha": 0.5}, "alpha"),
        ({"random_state": 4}, "random_state"),
        ({"activation": (np.sin, np.cos)}, "activation"),
        ({"learning_rate": "cosine"}, "learning_rate, max_iter"),
        ({"hidden_layer_sizes": (8,)}, "hidden_layer_sizes, initial weights"),
    ],
)
def test_other_parameters_are_refused_by_name(change, named, tmp_path):
    make(tmp_path / "c").fit(X, Y)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(ValueError, match=f"checkpoint=.*other values of .*{named}; give another"):
        make(tmp_path / "c", **change).fit(X, Y, resume=True)
    assert (tmp_path / "c").read_bytes() == before


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ((X * 2, Y), "X"),
        ((X[:-1], Y[:-1]), "X, y"),
        ((X, Y[::-1]), "y"),
        ((X, Y, np.linspace(0, 1, len(Y))), "sample_weight"),
    ],
)
def test_other_data_are_refused_by_name(data, named, tmp_path):
    make(tmp_path / "c").fit(X, Y)
    with pytest.raises(ValueError, match=f"other values of {named}; give"):
        make(tmp_path / "c").fit(*data, resume=True)


@pytest.mark.parametrize("dtype", [">f8", "longdouble", ">i4", "uint8", "float16"])
@pytest.mark.parametrize("what", ["y", "X", "sample_weight", "X_val", "y_val"])
@pytest.mark.parametrize("kind", [MLPRegressor, MLPClassifier])
def test_the_same_numbers_in_another_type_are_the_same(kind, what, dtype, tmp_path):
    whole = np.random.default_rng(0).integers(0, 4, (40, 3)).astype(float)
    y = whole.sum(axis=1) % 3
    data = {"X": whole, "y": y, "sample_weight": y + 1, "X_val": whole[:9], "y_val": y[:9]}
    parameters = {"hidden_layer_sizes": (3,), "random_state": 0, "checkpoint": tmp_path / "c"}
    kind(**parameters, max_iter=2).fit(**data)
    resumed = kind(**parameters, max_iter=4)
    resumed.fit(**data | {what: data[what].astype(dtype)}, resume=True)
    expected = kind(**parameters, max_iter=4).fit(**data)
    assert resumed.loss_curve_ == expected.loss_curve_


@pytest.mark.parametrize("dtype", ["int64", ">f8", "float32"])
def test_the_same_numbers_in_another_type_beside_float32_samples(dtype, tmp_path):
    samples, y = X.astype(np.float32), Y.astype(np.float64)
    for form in (samples, sparse.csr_array(samples)):
        parameters = {"hidden_layer_sizes": (3,), "random_state": 0, "checkpoint": tmp_path / "c"}
        MLPRegressor(**parameters, max_iter=2).fit(form, y)
        MLPRegressor(**parameters, max_iter=4).fit(form, y.astype(dtype), resume=True)
    wide = sparse.csr_array(samples)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    MLPRegressor(**parameters, max_iter=5).fit(wide, y, resume=True)


def test_what_does_not_change_the_numbers_may_change(tmp_path, monkeypatch):
    expected = make(None).fit(X, Y)
    die_after(monkeypatch, 4)
    with pytest.raises(Killed):
        make(tmp_path / "c").fit(X, Y)
    monkeypatch.undo()
    model = make(tmp_path / "c", n_threads=2, max_time=100).set_params(checkpoint_every=5)
    assert_same(model.fit(X, Y, resume=True), expected)


def test_impossible_combinations_are_refused(tmp_path):
    with pytest.raises(ValueError, match="resume=True needs a file: set checkpoint"):
        make(None).fit(X, Y, resume=True)
    with pytest.raises(ValueError, match="checkpoint does not work with solver='lbfgs'"):
        make(tmp_path / "c", solver="lbfgs").fit(X, Y)
    with pytest.raises(ValueError, match="partial_fit does not support checkpoint"):
        make(tmp_path / "c").partial_fit(X, Y, classes=[0, 1, 2])
    for path in (tmp_path, tmp_path / "no folder" / "c"):
        with pytest.raises(ValueError, match=r"checkpoint='.*' cannot be written; give the path"):
            make(path).fit(X, Y)
    generator = np.random.RandomState(np.random.PCG64(0))
    with pytest.raises(ValueError, match="checkpoint needs random numbers of RandomState's own"):
        make(tmp_path / "c", random_state=generator).fit(X, Y)
    assert not (tmp_path / "c").exists()


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "c"
    make(path).fit(X, Y)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:1000] + b"?" + whole[1001:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint=.* cannot be read .*; give another path"):
            make(path).fit(X, Y, resume=True)
        assert path.read_bytes() == damaged


def test_a_made_up_file_is_refused(tmp_path):
    """Correct checksums, wrong contents: nothing of it may reach a kernel."""
    path = tmp_path / "c"
    make(path, early_stopping=True).fit(X, Y)
    arrays, metadata = _safetensors.read(path)
    fit = json.loads(metadata["fit"])

    def refuse(arrays=arrays, fit=fit, version=metadata["format"]):
        _safetensors.write(path, arrays, {"format": version, "fit": json.dumps(fit)})
        with pytest.raises(ValueError, match=r"checkpoint=.*; give another path"):
            make(path, early_stopping=True).fit(X, Y, resume=True)

    refuse(version="fastmlp checkpoint 99")
    for name, array in arrays.items():
        refuse({other: arrays[other] for other in arrays if other != name} | {"x": array})
        refuse(arrays | {name: array[:-1]})
        refuse(arrays | {name: np.zeros(array.shape, np.uint8)})
    order = arrays["0.order"].copy()
    order[3] = 10**9
    refuse(arrays | {"0.order": order})
    order[3] = order[4]
    refuse(arrays | {"0.order": order})
    for name in fit["runs"][0].keys() - {"best_loss"}:  # which early stopping does not look at
        for value in (None, [], "x", {}):
            changed = json.loads(metadata["fit"])
            changed["runs"][0][name] = value
            if (name, value) != ("stop_reason", None):
                refuse(fit=changed)
    for name in fit:
        for value in ([], None, 3):
            refuse(fit=fit | {name: value})


def test_a_full_disk_costs_the_checkpoint_and_not_the_fit(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    expected = make(None).fit(X, Y)
    monkeypatch.setattr(_safetensors, "replace", full)
    with pytest.warns(UserWarning, match="could not be written, training goes on: .*No space"):
        model = make(tmp_path / "c").set_params(checkpoint_every=1000).fit(X, Y)
    assert_same(model, expected)


KILLED = """
import os, random, signal, sys, time, warnings
import numpy as np
from sklearn.datasets import make_classification
from fastmlp import MLPClassifier, _safetensors

path, n_kills = sys.argv[1], 20
X, y = make_classification(2000, 20, random_state=0)
model = MLPClassifier((20,), max_iter=400, n_iter_no_change=400, early_stopping=True, dropout=0.2,
                      ema_decay=0.9, random_state=0)
warnings.simplefilter("ignore")
expected = model.set_params(n_threads=1).fit(X, y)
began = time.perf_counter()
model.fit(X, y)
alone = time.perf_counter() - began
weights = b"".join(W.tobytes() for W in expected.coefs_)

moments, kills, epochs = random.Random(int(sys.argv[2])), 0, []
while True:
    child = os.fork()
    if child == 0:
        again = MLPClassifier(**model.get_params())
        again.set_params(checkpoint=path, checkpoint_every=0, n_threads=None)
        again.fit(X, y, resume=True)
        same = b"".join(W.tobytes() for W in again.coefs_) == weights
        os._exit(0 if same and again.loss_curve_ == expected.loss_curve_ else 1)
    if kills < n_kills:
        time.sleep(moments.uniform(0, 2 * alone / n_kills) + 0.01)
        os.kill(child, signal.SIGKILL)
        kills += 1
    _, status = os.waitpid(child, 0)
    if os.path.exists(path):
        _safetensors.read(path)
    if not os.WIFSIGNALED(status):
        print(kills, os.waitstatus_to_exitcode(status))
        break
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL and no fork")
def test_twenty_kills_at_random_moments(tmp_path):
    assert run_python(KILLED, tmp_path / "c", 0).split() == ["20", "0"]
