"""Searches: fastmlp's classes and scikit-learn's, over networks of either.

The searches of a round run one after the other in this process, with worker processes that are up
already; figures are medians over rounds, ratios are of times in the same round.

    python bench/search.py [--rounds 5] [--output FILE]

What bounds them, on the two cores of the machine of `bench/results/search.json`.  The 24 settings
on digits take 112 GFLOP in matrix products: 0.69 s at the rate of large matrices.  Our kernels,
with small matrices and all that is between them, take 1.35 s, the whole search 1.64 s, and
scikit-learn's search over its networks 6.7 s.  So nobody trains them over 9.7 times as fast as
that, nor we over 5.0 times.  scikit-learn's search over our networks takes 1.77 s and has the same
kernels to run; nothing is 1.4 times as fast.

Python's part holds the interpreter's lock, which bounds threads on many cores.  It is 18 % of these
fits, so that no more than 6 threads are busy at once, be it on 16 or on 64 cores; and 86 % of fits
of two epochs of 5 units, for which threads are slower than one (they take the lock from each
other).  Processes have a lock each, and get groups of fits: ``joblib.parallel_config("loky")``, or
Dask's workers.  Several epochs in one call would save no more than half of Python's part, and would
take the stopping rule, schedules and hooks into kernels.

Restarts train with one thread each.  Over fits that use both cores one after the other they are the
less faster, the more two threads gain.

What says "if products were all" compares wall time with seconds of a processor, and holds on a
machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import time
import tracemalloc
import warnings
from pathlib import Path
from unittest import mock

import joblib
import machine
import numpy as np
import pandas as pd
import sklearn
from distributed import LocalCluster
from sklearn import model_selection, neural_network
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

import fastmlp
from fastmlp.engine.cpu import CpuEngine
from fastmlp.model_selection import GridSearchCV, HalvingGridSearchCV

CORES = machine.describe()["cores"]
EPOCHS, FOLDS = 50, 3
GRID = {
    "hidden_layer_sizes": [(50,), (100,), (50, 50)],
    "activation": ["relu", "tanh"],
    "alpha": [1e-4, 1e-2],
    "learning_rate_init": [1e-3, 3e-3],
}
MANY = {
    "hidden_layer_sizes": [(50,), (100,), (50, 50)],
    "alpha": [1e-5, 1e-3, 1e-1],
    "learning_rate_init": [1e-3, 3e-3, 1e-2],
    "batch_size": [50, 100, 200],
    "beta_1": [0.8, 0.9, 0.95],
}  # 243 settings
MANY_UNITS = {
    "hidden_layer_sizes": [(20,), (40,), (60,), (80,), (100,)],
    "activation": ["relu", "tanh"],
    "alpha": np.logspace(-5, -1, 5),
}  # 50 settings
SEEDS = {"random_state": range(100)}
MOST_EPOCHS = (81, 243)  # of each of them in a full search


def digits():
    X, y = load_digits(return_X_y=True)
    return X / 16, y


def seconds(search, X, y):
    """Wall time of a search."""
    start = time.perf_counter()
    search.fit(X, y)
    return time.perf_counter() - start


def against_scikit_learn(rounds):
    """24 settings, by ours and by scikit-learn's with its own workers."""
    X, y = digits()
    options = {"cv": FOLDS, "refit": False}
    model = fastmlp.MLPClassifier(max_iter=EPOCHS, random_state=0)
    rival = neural_network.MLPClassifier(max_iter=EPOCHS, random_state=0)
    searches = {
        "fastmlp": GridSearchCV(model, GRID, **options),
        "scikit-learn's search, fastmlp's networks": model_selection.GridSearchCV(
            model, GRID, n_jobs=CORES, **options
        ),
        "scikit-learn's search and networks": model_selection.GridSearchCV(
            rival, GRID, n_jobs=CORES, **options
        ),
    }
    model_selection.cross_val_score(model, X, y, n_jobs=CORES)  # workers are up
    times = {name: [] for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            times[name].append(seconds(search, X, y))
    ours = times["fastmlp"]
    n_settings = len(ParameterGrid(GRID))
    report = {"settings": n_settings, "folds": FOLDS, "epochs": EPOCHS}
    report["seconds"] = {name: statistics.median(values) for name, values in times.items()}
    report["times as fast"] = {
        name: statistics.median(b / a for a, b in zip(ours, values, strict=True))
        for name, values in times.items()
        if values is not ours
    }
    least = least_seconds(GRID, X)
    report["times as fast, if products were all and as fast as large ones"] = {
        name: value / least for name, value in report["seconds"].items() if name != "fastmlp"
    }
    return report


def least_seconds(grid, X):
    """Of a search on all cores, if it came to nothing but matrix products at NumPy's best speed."""
    flop = 0.0
    for settings in ParameterGrid(grid):
        sizes = np.array([X.shape[1], *settings["hidden_layer_sizes"], 10])
        products = sizes[:-1] * sizes[1:]
        # forward, gradients of weights, and of what comes in, but for the samples
        flop += 2.0 * (3 * products.sum() - products[0])
    flop *= EPOCHS * len(X) * (FOLDS - 1)
    square = np.ones((2000, 2000), X.dtype)
    speeds = []
    with threadpool_limits(1):
        for _ in range(5):
            start = time.thread_time()
            square @ square
            speeds.append(2.0 * len(square) ** 3 / (time.thread_time() - start))
    return flop / max(speeds) / CORES


def interpreter(rounds):
    """How much of a search holds the interpreter's lock, and what that and the kernels forbid.

    Seconds of a processor, on one thread: those in kernels, which hold no lock, and all others,
    which are counted as if they all held it.  Threads can be no faster than the lock lets them, and
    no search that trains the same networks to the same bits is faster than the kernels.
    """
    X, y = digits()
    cases = {
        "digits, 24 settings, 50 epochs": ({"max_iter": EPOCHS}, GRID),
        "10 units, 20 epochs": ({"hidden_layer_sizes": (10,), "max_iter": 20}, SEEDS),
        "5 units, 2 epochs": ({"hidden_layer_sizes": (5,), "max_iter": 2}, SEEDS),
    }
    spent, run = [], CpuEngine._run

    def timed(engine, *args):
        start = time.thread_time()
        result = run(engine, *args)
        spent.append(time.thread_time() - start)
        return result

    report = {}
    for name, (settings, grid) in cases.items():
        model = fastmlp.MLPClassifier(random_state=0, n_threads=1, **settings)
        search = GridSearchCV(model, grid, cv=FOLDS, refit=False, n_jobs=1)
        search.fit(X, y)
        found = []
        for _ in range(rounds):
            spent.clear()
            with mock.patch.object(CpuEngine, "_run", timed):
                start = time.process_time()
                search.fit(X, y)
                found.append((sum(spent), time.process_time() - start))
        kernels, all_of_it = min(found, key=lambda pair: pair[1])
        n_fits, share = len(ParameterGrid(grid)) * FOLDS, 1 - kernels / all_of_it
        report[name] = {
            "ms per fit": {
                "kernels": 1e3 * kernels / n_fits, "Python": 1e3 * (all_of_it - kernels) / n_fits,
            },
            "share that holds the lock": share,
            "most threads that are busy at once": {str(n): min(n, 1 / share) for n in (2, 16, 64)},
            "seconds of the kernels on all cores": kernels / CORES,
        }  # fmt: skip
    return report


def in_float32(rounds):
    """50 of 1000 settings of 20 to 100 units, in float32; seconds of 1000 are 20 times theirs."""
    X, y = digits()
    X = X.astype(np.float32)
    options = {"cv": FOLDS, "refit": False}
    ours = GridSearchCV(
        fastmlp.MLPClassifier(max_iter=EPOCHS, random_state=0), MANY_UNITS, **options
    )
    rival = neural_network.MLPClassifier(max_iter=EPOCHS, random_state=0)
    theirs = model_selection.GridSearchCV(rival, MANY_UNITS, n_jobs=CORES, **options)
    pairs = [(seconds(ours, X, y), seconds(theirs, X, y)) for _ in range(rounds)]
    rival_seconds = statistics.median(b for _, b in pairs)
    return {
        "seconds of 1000, extrapolated": {
            "fastmlp": 20 * statistics.median(a for a, _ in pairs),
            "scikit-learn": 20 * rival_seconds,
        },
        "times as fast": statistics.median(b / a for a, b in pairs),
        "times as fast, if products were all and as fast as large ones": (
            rival_seconds / least_seconds(MANY_UNITS, X)
        ),
    }


def restarts(rounds):
    """Eight restarts, over eight fits one after the other, of one thread and of their choice."""
    X, y = digits()
    settings = {"max_iter": EPOCHS, "n_iter_no_change": EPOCHS}
    at_once = fastmlp.MLPClassifier(n_restarts=8, random_state=0, **settings)
    times = {"restarts": [], "one thread": [], "as many threads as pay": []}
    for number in range(rounds + 1):
        start = time.perf_counter()
        at_once.fit(X, y)
        found = [time.perf_counter() - start]
        for n_threads in (1, None):
            start = time.perf_counter()
            for seed in range(8):
                fastmlp.MLPClassifier(random_state=seed, n_threads=n_threads, **settings).fit(X, y)
            found.append(time.perf_counter() - start)
        if number:
            for values, value in zip(times.values(), found, strict=True):
                values.append(value)
    ours = times.pop("restarts")
    return {
        f"8 restarts, times as fast as 8 fits, {name}": statistics.median(
            b / a for a, b in zip(ours, values, strict=True)
        )
        for name, values in times.items()
    }


def small_fits(rounds):
    """What a search costs besides: 100 settings of a tiny network for two epochs."""
    X, y = digits()
    model = fastmlp.MLPClassifier((5,), max_iter=2, random_state=0)
    ours = GridSearchCV(model, SEEDS, cv=FOLDS, refit=False)
    theirs = model_selection.GridSearchCV(model, SEEDS, cv=FOLDS, refit=False, n_jobs=CORES)
    times = {"threads": [], "processes": [], "scikit-learn's search": []}
    for number in range(rounds + 1):
        found = [seconds(ours, X, y), None, seconds(theirs, X, y)]
        with joblib.parallel_config("loky"):
            found[1] = seconds(ours, X, y)
        if number:  # the first is for workers to start and to load kernels
            for values, value in zip(times.values(), found, strict=True):
                values.append(value)
    theirs = times.pop("scikit-learn's search")
    return {
        name: {
            "ms per fit": 10 * statistics.median(values) / FOLDS,
            "times as fast": statistics.median(b / a for a, b in zip(values, theirs, strict=True)),
        }
        for name, values in times.items()
    }


def halving(most_epochs):
    """243 settings over epochs, and the full search over them, once."""
    X, y = digits()
    model = fastmlp.MLPClassifier(n_iter_no_change=most_epochs, random_state=0)
    options = {"cv": FOLDS, "refit": False, "return_train_score": False}
    epochs = {"resource": "max_iter", "max_resources": most_epochs}
    half = HalvingGridSearchCV(model, MANY, **epochs, **options)
    full = GridSearchCV(model.set_params(max_iter=most_epochs), MANY, **options)
    times = {"halving": seconds(half, X, y), "full": seconds(full, X, y)}
    best = full.cv_results_["std_test_score"][full.best_index_] / np.sqrt(FOLDS)
    return {
        "settings": len(ParameterGrid(MANY)),
        "seconds": times,
        "times as fast": times["full"] / times["halving"],
        "best score": {"halving": float(half.best_score_), "full": float(full.best_score_)},
        "standard error of the best score": float(best),
    }


def preprocessing(rounds):
    """Scaling and one-hot encoding before 40 settings of the network."""
    rng = np.random.default_rng(0)
    n = 5000
    frame = pd.DataFrame(rng.normal(size=(n, 10)), columns=list("abcdefghij"))
    for name in ("town", "trade", "make"):
        frame[name] = rng.choice([f"{name} {i}" for i in range(30)], n)
    y = (frame["a"] * frame["b"] > 0).to_numpy()
    fits, fit = [], StandardScaler.fit

    def counted(scaler, *args, **kwargs):
        fits.append(scaler)
        return fit(scaler, *args, **kwargs)

    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), list("abcdefghij")),
            ("words", OneHotEncoder(), ["town", "trade", "make"]),
        ]
    )
    network = fastmlp.MLPClassifier((16,), max_iter=5, random_state=0)
    grid = {"mlpclassifier__alpha": np.logspace(-6, 0, 40)}
    model = make_pipeline(columns, network)
    ours = GridSearchCV(model, grid, refit=False)
    theirs = model_selection.GridSearchCV(model, grid, refit=False)
    pairs, counts = [], {}
    for _ in range(rounds):
        pair = []
        for name, search in {"fastmlp": ours, "scikit-learn": theirs}.items():
            fits.clear()
            with mock.patch.object(StandardScaler, "fit", counted):
                pair.append(seconds(search, frame, y))
            counts[name] = len(fits)
        pairs.append(pair)
    return {
        "fits of the scaler": counts,
        "times as fast as scikit-learn's search of one job": statistics.median(
            b / a for a, b in pairs
        ),
    }


def on_dask(rounds):
    """24 settings by our search in threads of this process and on Dask's worker processes, and by
    scikit-learn's on those."""
    X, y = digits()
    model = fastmlp.MLPClassifier(max_iter=EPOCHS, random_state=0)
    options = {"cv": FOLDS, "refit": False}
    local = GridSearchCV(model, GRID, **options)
    theirs = model_selection.GridSearchCV(model, GRID, **options)
    cluster = LocalCluster(
        n_workers=CORES, threads_per_worker=1, dashboard_address=None, memory_limit=0
    )
    times = {"local": [], "Dask": [], "scikit-learn's search on Dask": []}
    with cluster, cluster.get_client():
        for number in range(rounds + 1):
            found = {"local": seconds(local, X, y)}
            with joblib.parallel_config(backend="dask"):
                found["Dask"] = seconds(local, X, y)
                found["scikit-learn's search on Dask"] = seconds(theirs, X, y)
            if number:  # the first is for workers to start and to load kernels
                for name, value in found.items():
                    times[name].append(value)
    return {
        "worker processes": CORES,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "of local speed (mark: 0.85)": statistics.median(
            a / b for a, b in zip(times["local"], times["Dask"], strict=True)
        ),
    }


def memory():
    """Peak of what is allocated during a search, over the size of its data."""
    n, d = 50_000, 200
    X = np.random.default_rng(0).normal(size=(n, d))
    y = (X[:, 0] > 0).astype(int)
    network = fastmlp.MLPClassifier((4,), max_iter=1, random_state=0)
    grid = {"alpha": [0.1, 0.2, 0.3, 0.4]}
    peaks = {}
    for name, kind in {
        "fastmlp": GridSearchCV,
        "scikit-learn": model_selection.GridSearchCV,
    }.items():
        search = kind(network, grid, cv=4, refit=False)
        search.fit(X[:1000], y[:1000])
        tracemalloc.start()
        search.fit(X, y)
        peaks[name] = tracemalloc.get_traced_memory()[1] / X.nbytes
        tracemalloc.stop()
    return {"peak over the size of the data, beside them": peaks}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-halving", action="store_true", help="minutes less")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    report = {
        "machine": machine.describe() | {"scikit-learn": sklearn.__version__},
        "load before": os.getloadavg(),
        "digits": against_scikit_learn(arguments.rounds),
        "interpreter's lock": interpreter(arguments.rounds),
        "1000 settings of 20 to 100 units, float32": in_float32(max(1, arguments.rounds // 2)),
        "restarts": restarts(arguments.rounds),
        "small fits": small_fits(arguments.rounds),
        "preprocessing": preprocessing(arguments.rounds),
        "Dask": on_dask(arguments.rounds),
        "memory": memory(),
    }
    if not arguments.no_halving:
        report["halving"] = {f"up to {n} epochs": halving(n) for n in MOST_EPOCHS}
    report["load after"] = os.getloadavg()
    print(json.dumps(report, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the workers
    main()
