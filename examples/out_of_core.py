"""Training from a file that does not fit in memory: `partial_fit` from Parquet.

A Parquet file holds rows in groups, and pyarrow reads it a batch of rows at a time.  The scaler
learns means and variances in a first pass, by its own `partial_fit`; then each epoch is a pass over
the file, and each batch a call of `partial_fit`, which makes as many steps as the batch has
mini-batches.  At no time is there more than one batch in memory.

If the batches are whole mini-batches, the file is read in its own order, and nothing is shuffled,
these are the very steps of `fit` with the whole data in memory, so the weights must be the same.
Usually, the rows of each batch should be shuffled, as they are by default; those of the file should
not be sorted by class, or the network forgets one while it learns the other.

Here the file is small enough to do both, so the two are compared: weights without shuffling,
accuracy with it, and the most memory that they take, NumPy's and Arrow's together.

Needs ``pip install "fastmlp[examples]"``; writes a file to a temporary folder.  Run it with
``--tiny`` for a shortened version.
"""

import sys
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

from fastmlp import MLPClassifier

TINY = "--tiny" in sys.argv
N_BATCHES, BATCH = (10, 2_000) if TINY else (50, 10_000)
N_FEATURES = 20
EPOCHS = 3
SETTINGS = {"hidden_layer_sizes": (64,), "learning_rate_init": 0.005, "batch_size": 100}


def write(path, seed, n_batches):
    """Write batches one by one; y says whether ten of the features lie outside of a sphere."""
    rng = np.random.default_rng(seed)
    writer = None
    for _ in range(n_batches):
        X = rng.normal(size=(BATCH, N_FEATURES)).astype(np.float32)
        y = ((X[:, :10] ** 2).sum(axis=1) > 9.34).astype(np.int8)  # the median of chi^2
        X = X * np.arange(1, N_FEATURES + 1, dtype=np.float32) + 5  # so that scaling matters
        table = pa.table({f"x{i}": X[:, i] for i in range(N_FEATURES)} | {"y": y})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=BATCH)
    writer.close()


def batches(path):
    """Batches of the file as arrays; by default, Arrow would read the whole file ahead."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            *columns, y = (column.to_numpy() for column in batch.columns)
            yield np.column_stack(columns), y


def learn_scaler(path):
    scaler = StandardScaler()
    for X, _ in batches(path):
        scaler.partial_fit(X)
    return scaler


def learn_from_file(path, scaler, **settings):
    model = MLPClassifier(**SETTINGS, **settings)
    for _ in range(EPOCHS):
        for X, y in batches(path):
            model.partial_fit(scaler.transform(X), y, classes=[0, 1])
    return model


def learn_in_memory(path, scaler, **settings):
    X, y = map(np.concatenate, zip(*batches(path), strict=True))
    model = MLPClassifier(max_iter=EPOCHS, n_iter_no_change=np.inf, **SETTINGS, **settings)
    return model.fit(scaler.transform(X), y)


def check_scaler(path, scaler):
    """Means and variances, batch by batch, are those of the whole data."""
    X = np.concatenate([X for X, _ in batches(path)])
    np.testing.assert_allclose(scaler.mean_, X.mean(axis=0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(scaler.var_, X.var(axis=0, dtype=np.float64), rtol=1e-5)


def measured(function, *arguments, **settings):
    """What a function returns, and the most megabytes that NumPy and Python had meanwhile."""
    tracemalloc.start()
    result = function(*arguments, **settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak / 1e6


def accuracy(model, scaler, path):
    return np.mean([model.score(scaler.transform(X), y) for X, y in batches(path)])


def same_steps(path, scaler):
    """Without shuffling, `partial_fit` from the file is `fit` in memory."""
    settings = {"shuffle": False, "random_state": 0}
    from_file = learn_from_file(path, scaler, **settings)
    in_memory = learn_in_memory(path, scaler, **settings)
    difference = np.abs(from_file.coefs_[0] - in_memory.coefs_[0]).max()
    print(f"without shuffling, weights from the file and in memory differ by {difference:.0e}")
    assert difference < 1e-6


def compare(path, new_path, scaler):
    """Accuracy and memory, with shuffling."""
    # a RandomState, not a number, or every call would draw the same order of the rows
    state = np.random.RandomState(0)
    from_file, streamed = measured(learn_from_file, path, scaler, random_state=state)
    streamed += max(pa.total_allocated_bytes() for _ in batches(path)) / 1e6  # Arrow's
    in_memory, at_once = measured(learn_in_memory, path, scaler, random_state=0)
    scores = [accuracy(model, scaler, new_path) for model in (from_file, in_memory)]
    print("with shuffling:    accuracy on new rows    memory at most")
    print(f"  from the file {scores[0]:12.3f} {streamed:19.1f} MB")
    print(f"  in memory     {scores[1]:12.3f} {at_once:19.1f} MB")
    assert abs(scores[0] - scores[1]) < 0.02
    assert min(scores) > 0.8
    assert at_once > (1 if TINY else 5) * streamed


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)  # three epochs are enough to compare
    with tempfile.TemporaryDirectory() as folder:
        path, new_path = Path(folder) / "train.parquet", Path(folder) / "new.parquet"
        write(path, seed=0, n_batches=N_BATCHES)
        write(new_path, seed=1, n_batches=2)
        megabytes = N_BATCHES * BATCH * N_FEATURES * 4 / 1e6
        print(f"{N_BATCHES} batches of {BATCH} rows, {megabytes:.1f} MB as one array")
        scaler = learn_scaler(path)
        check_scaler(path, scaler)
        same_steps(path, scaler)
        compare(path, new_path, scaler)


if __name__ == "__main__":
    main()
