"""What tests of engines share: parameters to try, and how near to the oracle is near enough."""

from itertools import cycle, islice

import numpy as np
import pytest

TOLERANCE = {"float64": 1e-12, "float32": 3e-5}


def parameters_for(network, seed=1):
    """Random parameters, of all layers."""
    return np.random.default_rng(seed).normal(scale=0.5, size=network.n_parameters)


def assert_close(actual, expected, dtype):
    """To `TOLERANCE`, relative to the largest number."""
    scale = max(1e-3, np.abs(expected).max())
    assert np.abs(actual - expected).max() <= TOLERANCE[np.dtype(dtype).name] * scale


def each_once(*tables):
    """Rows of tables side by side, so many that each of every table is there."""
    return list(islice(zip(*map(cycle, tables), strict=False), max(map(len, tables))))


class FixedCount:
    """In the tuner's place: always as many threads as allowed."""

    seconds = 0.0

    def __init__(self, limit, **_):
        self.current = limit

    def choose(self):
        return self.current

    def report(self, n_threads, seconds):
        assert n_threads == self.current


class NoBudget:
    """In the thread budget's place: the other fits of this process do not count."""

    def enter(self, fit, limit):
        return limit

    def leave(self, fit):
        pass


@pytest.fixture
def no_thresholds(monkeypatch):
    """Every call is worth sharing, among all threads that are allowed, and nothing is tuned."""
    import fastmlp.engine.cpu.engine as target

    monkeypatch.setattr(target, "Tuner", FixedCount)
    monkeypatch.setattr(target, "THREAD_BUDGET", NoBudget())
    for name in ("_WORTH_SHARING", "_WORTH_THREADS"):
        monkeypatch.setattr(target, name, 0.0)
    monkeypatch.setattr(target, "_SURELY_WORTH_SHARING", np.inf)
    return target
