"""Shared data, and the list of engines that every rung of the ladder climbs."""

import os
import shutil
from pathlib import Path

os.environ["SCIPY_ARRAY_API"] = "1"  # before SciPy: scikit-learn's array API checks then run

import numpy as np
import pytest
import reference
from simt import EmulatedDevice

import fastmlp
from fastmlp.engine.cuda.tiles import MmaTile, Sizes, Tile
from fastmlp.functions import LOSSES
from fastmlp.network import Network

CONSTANTS = {  # of the optimizers, after the rate
    "sgd": (0.9, 0.0, 0.0),
    "nesterov": (0.9, 0.0, 0.0),
    "adam": (0.9, 0.999, 1e-8),
    "rmsprop": (0.9, 1e-8, 0.0),
    "nadam": (0.9, 0.999, 1e-8),
    "lion": (0.9, 0.99, 0.0),
}
ENGINES = ("cpu", "cuda, emulated")
EMULATED_SIZES = Sizes(
    Tile(8, 16, 4, 2, 4),
    Tile(4, 8, 4, 2, 2),
    MmaTile(32, 16, 16, 16, 8),
    MmaTile(16, 8, 16, 16, 8),
    32,
)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"engines under test: {'; '.join(ENGINES)}")


@pytest.fixture(params=ENGINES)
def device(request, monkeypatch):
    """A name for `fastmlp.engine.get_engine`; behind 'cuda' is the emulator."""
    if request.param == "cpu":
        return "cpu"
    monkeypatch.setattr("fastmlp.engine.cuda.open_device", EmulatedDevice)
    sizes = dict.fromkeys(("float32", "float64"), EMULATED_SIZES)
    monkeypatch.setattr("fastmlp.engine.cuda.SIZES", sizes)
    return "cuda"


@pytest.fixture(scope="session")
def package_copy():
    """A function that copies the package to a folder, without any compiled kernel."""

    def copy(folder):
        ignore = shutil.ignore_patterns("__pycache__", "_prebuilt")
        shutil.copytree(Path(fastmlp.__file__).parent, folder / "fastmlp", ignore=ignore)
        return folder

    return copy


@pytest.fixture
def package(package_copy, tmp_path):
    """A folder with such a copy."""
    return package_copy(tmp_path)


def make_problem(loss, n_samples, n_features, n_outputs, seed=0):
    """X and targets in the form that `fastmlp.engine.Engine.load` takes, float64."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_samples, n_features))
    if LOSSES[loss].per_row:
        return X, rng.integers(0, n_outputs, n_samples)
    if loss.startswith("binary"):
        return X, rng.integers(0, 2, (n_samples, n_outputs)).astype(float)
    if loss == "poisson":
        return X, rng.poisson(2.0, (n_samples, n_outputs)).astype(float)
    if loss == "gamma":
        return X, rng.gamma(2.0, size=(n_samples, n_outputs))
    return X, rng.normal(size=(n_samples, n_outputs))


def make_network(widths, activation, loss):
    """With the loss's constants of `reference`."""
    constant, smoothing = reference.CONSTANT.get(loss), reference.SMOOTHING.get(loss, 0.0)
    constants = () if constant is None else (constant,) * widths[-1]
    return Network(widths, activation, loss, constants, smoothing)
