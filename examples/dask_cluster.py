"""Training on data that no machine holds: a cluster of Dask's workers.

Chunks of the data are made on the workers and stay there.  `DaskMLPClassifier` trains one network
on all of them: each step sums up gradients of the workers' rows, and early stopping goes by
validation data that are spread over the workers as well.  The result is that of the same batches on
one machine, and `to_local` gives it back as an ordinary `MLPClassifier`.

With ``sync_every="epoch"`` every chunk trains by itself for an epoch before the parameters are
averaged: there is next to nothing to wait for, so slow networks don't matter, but it takes more
epochs to learn as much.

Predictions for chunks are lazy: they are made where the chunks are, when somebody asks for them.  A
local model predicts inside of ``map_blocks`` just as well.

Last, a grid search on the same workers: `fastmlp.model_selection` hands them groups of fits that
share a split of the data and what preprocessing made of it.  The scores are those of a search on
one machine, to the bit, which is checked here; a worker that dies costs time and no results.

Here the cluster is two processes of this machine.  For a real one, pass its address to ``Client``.
Needs ``pip install "fastmlp[dask]"``.  Run it with ``--tiny`` for a shortened version.
"""

import sys
import time
import warnings

import dask.array as da
import joblib
import numpy as np
from distributed import Client, LocalCluster
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastmlp import MLPClassifier
from fastmlp.dask import DaskMLPClassifier
from fastmlp.model_selection import GridSearchCV

TINY = "--tiny" in sys.argv
CHUNKS, ROWS = (4, 1_000) if TINY else (16, 25_000)
N_FEATURES = 20
SETTINGS = {
    "hidden_layer_sizes": (64,),
    "batch_size": 400 if TINY else 4_000,
    "learning_rate_init": 0.01,
    "early_stopping": True,
    "n_iter_no_change": 5,
    "max_iter": 30 if TINY else 60,
    "random_state": 0,
}


def make_rows(block, block_info=None, seed=0):
    """A chunk: normal numbers, drawn on whatever worker needs it."""
    number = block_info[0]["chunk-location"][0]
    rows = np.random.default_rng([seed, number]).normal(size=(len(block), N_FEATURES))
    return rows.astype(np.float32)


def make_data(n_chunks, seed):
    """X, and whether ten of the features lie outside of a sphere."""
    shape, chunks = (n_chunks * ROWS, N_FEATURES), (ROWS, N_FEATURES)
    blank = da.zeros(shape, chunks=chunks, dtype=np.float32)
    X = blank.map_blocks(make_rows, seed=seed, dtype=np.float32)
    return X, (X[:, :10] ** 2).sum(axis=1) > 9.34  # the median of chi^2


def fit(data, validation, **settings):
    began = time.perf_counter()
    model = DaskMLPClassifier(**SETTINGS, **settings)
    model.fit(*data, X_val=validation[0], y_val=validation[1])
    seconds = time.perf_counter() - began
    print(
        f"sync_every={model.sync_every!r}: {model.n_iter_} epochs, {seconds:.1f} s, validation "
        f"accuracy {model.best_validation_score_:.3f} ({model.stop_reason_})"
    )
    return model


def predict_lazily(model, X, y):
    """Accuracy on chunks that are never in one place."""
    labels = model.predict(X)
    print(f"lazy predictions: {labels}")
    accuracy = float((labels == y).mean().compute())
    local = model.to_local()
    by_hand = X.map_blocks(local.predict, dtype=bool, drop_axis=1)
    print(f"accuracy on new chunks: {accuracy:.3f}")
    assert bool((by_hand == labels).all().compute())
    return accuracy


def search(X, y):
    """A grid search on the workers."""
    model = make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=10, random_state=0))
    settings = {
        "mlpclassifier__learning_rate_init": [0.001, 0.01],
        "mlpclassifier__alpha": [1e-4, 1e-2],
    }
    grid = GridSearchCV(model, settings, cv=3)
    with joblib.parallel_config(backend="dask"):
        there = grid.fit(X, y).cv_results_["mean_test_score"]
    print(f"grid search: {grid.best_params_}, accuracy {grid.best_score_:.3f}")
    np.testing.assert_array_equal(there, grid.fit(X, y).cv_results_["mean_test_score"])


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.filterwarnings("ignore", "Port 8787 is already in use")
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        data = client.persist(make_data(CHUNKS, seed=0))
        validation = client.persist(make_data(CHUNKS // 4, seed=1))
        new = make_data(CHUNKS // 4, seed=2)
        model = fit(data, validation)
        apart = fit(data, validation, sync_every="epoch")
        assert predict_lazily(model, *new) > (0.7 if TINY else 0.9)
        assert apart.best_validation_score_ > 0.55
        search(*client.gather(client.compute([array[:2_000] for array in data])))


if __name__ == "__main__":
    main()
