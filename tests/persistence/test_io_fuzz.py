"""Mutated files of models and checkpoints: each ends in a ValueError, or in a model that works.

A file that was damaged has a wrong checksum.  A hostile one has a right one, so the second half of
the mutations is signed: names, values, types, shapes and places are changed, dropped, swapped and
made up.  What still loads must predict and go on training, or refuse to by a ValueError.

More mutations than a test has time for: ``python tests/persistence/test_io_fuzz.py 500000 1``.
"""

import copy
import hashlib
import json
import os
import random
import re
import sys
import tempfile
import warnings
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

import fastmlp
from fastmlp import _safetensors
from fastmlp.io import load, save
from fastmlp.training.run import DivergedError

rng = np.random.RandomState(0)
X = rng.normal(size=(20, 3))
WORDS = np.array(["a", "b", "c"])[np.argmax(X, axis=1)]
SMALL = {"hidden_layer_sizes": (2,), "max_iter": 2, "random_state": 0}
C, R = fastmlp.MLPClassifier, fastmlp.MLPRegressor
MODELS = [
    (C(**SMALL, class_weight={"a": 2.0}), X, WORDS),
    (C(**SMALL, solver="nadam", learning_rate="plateau"), X.astype(np.float32), X[:, 0] > 0),
    (C(**SMALL, solver="lbfgs"), X, (X > 0).astype(int)),
    (C(**SMALL, early_stopping=True, activation=["gelu"]), X, WORDS),
    (
        R(**SMALL, loss="quantile", quantile=np.array([0.1, 0.9]), dropout=[0.2], ema_decay=0.5),
        X, X[:, 0],
    ),
    (
        R(**SMALL, loss="poisson", solver="sgd", learning_rate="one_cycle", alpha=np.float32(0.1)),
        X, np.exp(X[:, 0]),
    ),
    (fastmlp.MLPEnsembleClassifier(C(**SMALL), 2, random_state=0), X, WORDS),
    (fastmlp.MLPEnsembleRegressor(R(**SMALL, solver="sgd"), 3, n_threads=1), X, X[:, 0]),
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, 2, 3, -1, 255, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**64, 10**400, 0.0,
    -0.0, 0.5, 1.0, 1 - 1e-16, -1.5, 1e-320, 1e300, float("nan"), float("inf"), float("-inf"), "",
    "a", "relu", "softmax", "logistic", "exp", "cuda", "lion", "nesterov", "cosine", "quantile",
    "binary", "multiclass", "multilabel-indicator", "/dev/zero", [], {}, [[]], [0], [1, 2],
    [0.5] * 40, {"tuple": []}, {"tuple": [4, 4]}, {"dict": []}, {"dict": [[[], 1]]},
    {"array": ["int64", [1]]}, {"array": ["float32", [1e300]]}, {"array": ["object", ["x"]]},
    {"array": ["str", ["b", "a"]]}, {"array": ["V10", [1]]}, {"int8": 300}, {"float32": 1e300},
    {"bool": []}, {"float64": "1"}, {"path": "/"}, {"path": "\0"}, {"os": "system"},
    {"random_state": [[0] * 624, 0, 0, 0.0]}, {"random_state": [[1] * 624, 700, 0, 0.0]},
    {"random_state": [[1] * 624, 3, 1, float("nan")]}, {"random_state": [[1], 0, 0, 0.0]},
    {"random_state": [[2**40] * 624, 0, 0, 0.0]}, {"random_state": [[1] * 624, 0, 2**63, 0.0]},
    "RAW", "RAW", "RAW",
]  # fmt: skip
# in the place of a "RAW": what json.dumps does not write
RAW = [
    "[" * 40 + "]" * 40, "[" * 900 + "]" * 900, "[" * 100_000 + "]" * 100_000, "[" * 100_000,
    '{"tuple": [' * 40 + "]}" * 40, '{"tuple": [' * 20_000 + "]}" * 20_000,
    '{"dict": [[' * 450 + "]]}" * 450, "1e999", "-1e999", "9" * 5000, "1" + "0" * 400,
    str(2**64), str(-(2**63) - 1), '{"float64": 1e999}', '{"tuple": [], "tuple": [4]}', "NaN",
    '{"int64": NaN}', '{"float32": Infinity}', '{"array": ["float32", [1e39]]}',
]  # fmt: skip


def quietly(method, *arguments):
    silence = redirect_stdout(StringIO())  # of verbose models
    with warnings.catch_warnings(), np.errstate(all="ignore"), silence:
        warnings.simplefilter("ignore")
        return method(*arguments)


def originals(folder: Path) -> list[bytes]:
    files = []
    for model, data, y in MODELS:
        quietly(model.fit, data, y)
        save(model, folder / "original", optimizer_state=True)
        files.append((folder / "original").read_bytes())
    return files


def damage(file: bytes, chance: random.Random) -> bytes:
    """A few flipped, lost, added or moved bytes."""
    data = bytearray(file)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(data) + 1)
        n = chance.choice((1, 1, 8, 64, 1000))
        change = chance.randrange(6)
        if change <= 1 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif change == 2:
            del data[at:]
        elif change == 3:
            del data[at : at + n]
        elif change == 4:
            data[at:at] = chance.randbytes(n)
        else:
            data[at:at] = data[:n]
    return bytes(data)


def places(tree) -> list[tuple]:
    """(container, key) of everything in a tree of JSON, the long lists' middles left out."""
    found = []
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree[:6])
    for key, value in entries:
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


def change_json(tree, chance: random.Random) -> None:
    """Change a tree at a random place."""
    everywhere = places(tree)
    if not everywhere:
        return
    container, key = chance.choice(everywhere)
    other, other_key = chance.choice(everywhere)
    value = container[key]
    change = chance.randrange(9)
    if change == 0:
        del container[key]
    elif change == 1 and isinstance(container, dict):
        container[chance.choice((f"{key}_", "", str(other_key)))] = container.pop(key)
    elif change == 2:
        container[key] = copy.deepcopy(other[other_key])
    elif change == 3 and isinstance(value, list):
        container[key] = chance.choice((value * 2, value[:-1], value[::-1], [value]))
    elif change == 4 and type(value) in (int, float):
        container[key] = chance.choice(
            (-value, value + 1, value - 1, value * 1000, float(value), str(value), value**9)
            if abs(value) < 1e30
            else (0, -value)
        )
    elif change == 5 and isinstance(container, list):
        container.insert(key, copy.deepcopy(other[other_key]))
    else:
        container[key] = copy.deepcopy(chance.choice(VALUES))


def change_arrays(arrays: dict, chance: random.Random) -> None:
    """Change, drop, rename or swap arrays."""
    name, other = chance.choice(list(arrays)), chance.choice(list(arrays))
    array, change = arrays[name], chance.randrange(9)
    if change == 0:
        del arrays[name]
    elif change == 1:
        arrays[chance.choice((f"{name}0", "coefs_.2", "intercepts_.1", ""))] = arrays.pop(name)
    elif change == 2:
        arrays[name], arrays[other] = arrays[other], arrays[name]
    elif change == 3:
        dtype = chance.choice(("float64", "float32", "int64", "int32", "uint8"))
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(dtype)
    elif change == 4:
        arrays[name] = array.T if chance.random() < 0.5 else array.reshape(-1)
    elif change == 5:
        arrays[name] = array[:-1] if array.ndim else array[None]
    elif change == 6:
        arrays[name] = np.concatenate([array, array]) if array.ndim else array[None]
    elif change == 7 and array.ndim > 1:
        arrays[name] = np.hstack([array, array]) if chance.random() < 0.5 else array[:, :-1]
    else:
        value = chance.choice((np.nan, np.inf, -1, 1e38, 1e300, 0))
        with np.errstate(all="ignore"):
            arrays[name] = np.full(array.shape, value, float).astype(array.dtype)


def sign(head: bytes, data: bytes) -> bytes:
    """With a length and a checksum in front, or where they ought to be."""
    file = len(head).to_bytes(8, "little") + head
    at = file.find(b'"sha256": "') + 11
    file = file[:at] + b"0" * 64 + file[at + 64 :]
    checksum = hashlib.sha256(file + data).hexdigest().encode()
    return file[:at] + checksum + file[at + 64 :] + data


def as_text(tree, chance: random.Random) -> str:
    return re.sub('"RAW"', lambda _: chance.choice(RAW), json.dumps(tree))


def make_up(file: bytes, path: Path, chance: random.Random) -> None:
    """Write a changed file with a right checksum."""
    n_head = 8 + int.from_bytes(file[:8], "little")
    if chance.random() < 0.25:  # types, shapes and places
        header = json.loads(file[8:n_head])
        metadata = {"__metadata__": header.pop("__metadata__")}
        for _ in range(chance.choice((1, 1, 2, 4))):
            change_json(header, chance)
        head = as_text(metadata | header, chance).encode()
        path.write_bytes(sign(head, chance.choice((file[n_head:], file[n_head:-8]))))
        return
    path.write_bytes(file)
    arrays, metadata = _safetensors.read(path)
    name = "model" if "model" in metadata else "fit"
    content = json.loads(metadata[name])
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        if chance.random() < 0.25 and arrays:
            change_arrays(arrays, chance)
        else:
            change_json(content, chance)
    _safetensors.write(path, arrays, metadata | {name: as_text(content, chance)})


def require_to_work(model) -> None:
    """Predict few rows and many, and go on training, unless that is refused; show itself."""
    assert repr(model)
    network = getattr(model, "members_", [model])[0]
    data = np.zeros((20, model.n_features_in_))
    data[::2] = 1
    for rows in (data.astype(network.coefs_[0].dtype)[:2], data):
        try:
            quietly(model.predict, rows)
        except ValueError:
            assert network.device == "cuda"
    if not hasattr(model, "partial_fit"):
        return
    outputs = model.n_outputs_
    quantiles = isinstance(network.loss, str) and network.loss == "quantile"
    y = np.ones(20) if outputs == 1 or quantiles else np.ones((20, outputs))
    if hasattr(model, "classes_"):
        multilabel = network._label_binarizer.y_type_.startswith("multilabel")
        y = (np.arange(20 * outputs).reshape(20, -1) % 2) if multilabel else (
            model.classes_[np.arange(20) % model.classes_.size]
        )  # fmt: skip
    with suppress(ValueError):
        quietly(model.partial_fit, data, y)


def fuzz_damaged(files, path: Path, n: int, seed: int) -> None:
    chance = random.Random(seed)
    for i in range(n):
        file = files[i % len(files)]
        data = damage(file, chance)
        path.write_bytes(data)
        try:
            load(path)
        except ValueError:
            continue
        assert data == file, (seed, i)


def fuzz_hostile(files, path: Path, n: int, seed: int) -> int:
    """The number of files that loaded."""
    n_loaded = 0
    for i in range(n):
        chance = random.Random(f"{seed}, {i}")
        make_up(files[i % len(files)], path, chance)
        try:
            model = load(path)
        except ValueError:
            continue
        except Exception as error:
            raise AssertionError((seed, i)) from error
        n_loaded += 1
        try:
            require_to_work(model)
        except Exception as error:
            raise AssertionError((seed, i, model)) from error
    return n_loaded


def fits(path: Path) -> list:
    """Models whose checkpoints are mutated, the data, and whole files."""
    small = {"hidden_layer_sizes": (2,), "max_iter": 4, "random_state": 0, "batch_size": 8}
    models = [
        C(**small, early_stopping=True, learning_rate="plateau", dropout=0.2),
        R(**small, solver="sgd", learning_rate="invscaling", ema_decay=0.5, n_restarts=2),
        R(**small, learning_rate="exponential", solver="nadam"),
    ]
    whole = []
    for model in models:
        y = X[:, 0] if isinstance(model, R) else WORDS
        model.set_params(checkpoint=path, checkpoint_every=0, n_threads=1)
        quietly(copy.deepcopy(model).set_params(max_iter=2).fit, X, y)
        whole.append((model, y, path.read_bytes()))
    return whole


def fuzz_checkpoints(path: Path, n: int, seed: int) -> int:
    """The number of files from which a fit went on."""
    whole, n_resumed = fits(path), 0
    for i in range(n):
        chance = random.Random(f"{seed}, {i}")
        model, y, file = whole[i % len(whole)]
        make_up(file, path, chance)
        try:
            quietly(partial(copy.deepcopy(model).fit, resume=True), X, y)
        except DivergedError:  # parameters may be anything
            continue
        except ValueError as error:
            assert f"checkpoint={os.fspath(path)!r}" in str(error), (seed, i, error)  # noqa: PT017
            continue
        except Exception as error:
            raise AssertionError((seed, i)) from error
        n_resumed += 1
    return n_resumed


@contextmanager
def fast_folder():
    """A folder in memory if there is one, because opening 20000 files on a disk takes long."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as folder:
        yield Path(folder)


@pytest.fixture
def folder(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with fast_folder() as folder:
        yield folder


def test_damaged_files_end_in_a_value_error(folder):
    fuzz_damaged(originals(folder), folder / "file", 16000, 0)


def test_made_up_files_end_in_a_value_error_or_a_working_model(folder):
    n_loaded = fuzz_hostile(originals(folder), folder / "file", 4500, 0)
    assert 200 < n_loaded < 3000  # otherwise the mutations are too wild, or too tame


def test_made_up_checkpoints_end_in_a_value_error_that_names_the_file(folder):
    n_resumed = fuzz_checkpoints(folder / "file", 1500, 0)
    assert 30 < n_resumed < 500


if __name__ == "__main__":
    n, seed = int(sys.argv[1]), int(sys.argv[2])
    os.fsync = lambda descriptor: None
    with fast_folder() as folder:
        files = originals(folder)
        fuzz_damaged(files, folder / "file", n // 2, seed)
        print(fuzz_hostile(files, folder / "file", n - n // 2, seed), "loaded")
        print(fuzz_checkpoints(folder / "file", n // 10, seed), "resumed")
