"""Networks and data that engines are tried on."""

import numpy as np
import reference

from fastmlp.engine.cpu import CpuEngine, Samples
from fastmlp.functions import LOSSES
from fastmlp.network import Network
from fastmlp.objective import Objective

ENGINES = ("cpu", "cuda, emulated")
CONSTANTS = {  # of the optimizers, after the rate
    "sgd": (0.9, 0.0, 0.0),
    "nesterov": (0.9, 0.0, 0.0),
    "adam": (0.9, 0.999, 1e-8),
    "rmsprop": (0.9, 1e-8, 0.0),
    "nadam": (0.9, 0.999, 1e-8),
    "lion": (0.9, 0.99, 0.0),
}


def make_problem(loss, n_samples, n_features, n_outputs, seed=0):
    """X and targets in the form that `fastmlp.engine.place` takes, float64."""
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


def make_network(widths, activation, loss, *, layer_norm=False):
    """A network and its objective, with the loss's constants of `reference`."""
    constant, smoothing = reference.CONSTANT.get(loss), reference.SMOOTHING.get(loss, 0.0)
    constants = () if constant is None else (constant,) * widths[-1]
    objective = Objective(loss, widths[-1], constants, smoothing)
    return Network(widths, activation, objective.out_activation, layer_norm), objective


def place_for(engine, X, y=None, weight=None):
    """Samples on an engine's device, of its type and for its objective."""
    options = {"dtype": engine._dtype, "objective": engine._objective}
    if isinstance(engine, CpuEngine):
        return Samples(X, y, weight, **options)
    from fastmlp.engine.cuda import place  # needs numba-cuda

    return place(X, y, weight, device=engine._device, sizes=engine._sizes, **options)
