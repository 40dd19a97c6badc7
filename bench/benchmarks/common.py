"""Data for the suites; every suite compiles in ``setup``, outside the timing."""

import warnings

import numpy as np

warnings.simplefilter("ignore")
WORKLOADS = {
    "tiny": (10_000, (20, 32, 32, 1), 32),
    "digits": (1_797, (64, 100, 10), 200),
    "california": (20_000, (8, 64, 64, 1), 256),
    "mnist-like": (5_000, (784, 256, 128, 10), 128),
    "wide": (2_048, (512, 1024, 1024, 100), 512),
}


def make_data(name, dtype):
    n, widths, _ = WORKLOADS[name]
    rng = np.random.RandomState(0)
    X = rng.normal(size=(n, widths[0])).astype(dtype)
    return X, rng.randint(0, max(widths[-1], 2), n)


def make_estimator(name, epochs, **params):
    from fastmlp import MLPClassifier

    _, widths, batch = WORKLOADS[name]
    settings = {"max_iter": epochs, "random_state": 0, "tol": 0, "n_iter_no_change": 10**9}
    return MLPClassifier(widths[1:-1], batch_size=batch, **settings | params)
