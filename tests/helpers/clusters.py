"""Data, settings and clusters for tests of `fastmlp.dask`."""

import dask.array as da
import numpy as np
from distributed import LocalCluster

SMALL = {"hidden_layer_sizes": (8, 5), "max_iter": 6, "random_state": 0, "batch_size": 100,
         "learning_rate_init": 0.01, "n_iter_no_change": np.inf}  # fmt: skip
RNG = np.random.default_rng(0)
X = RNG.normal(size=(1000, 6))
LABELS = np.array(["a", "b", "c"])[np.argmax(X[:, :3], axis=1)]
VALUES = np.stack([X[:, 0] * X[:, 1], np.abs(X[:, 2])], axis=1)
WEIGHT = RNG.uniform(0.5, 2.0, 1000)


def make_cluster(n_workers, *, processes=False):
    return LocalCluster(
        n_workers=n_workers, threads_per_worker=1, processes=processes, dashboard_address=":0"
    )


def chunked(array, chunks=250):
    return da.from_array(array, chunks=(chunks, *array.shape[1:]))


def assert_same(model, other, tolerance=0.0):
    for mine, theirs in zip(model.coefs_ + model.intercepts_, other.coefs_ + other.intercepts_,
                            strict=True):  # fmt: skip
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(model.loss_curve_, other.loss_curve_, rtol=tolerance)
