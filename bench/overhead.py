"""What a call costs around the arithmetic: fastmlp and scikit-learn side by side in one process.

    python bench/overhead.py [--rounds 15] [--output FILE]

Digits, 64-100-10.  Calls of both libraries alternate, and what is compared are medians.  The fixed
cost of a fit is what remains of one epoch's time when the difference that a second epoch makes is
taken off; Python's part of an epoch is its time less that of the kernel's call, and bounds how many
threads with a model each one interpreter feeds.

The profile at the end says what bounds short calls: each stage's own time, without that of stages
inside it.  The kernel takes an eighth of a `partial_fit` of 32 rows and a quarter of a prediction
of 30.  What remains is hundreds of calls of Python functions, of at most a few microseconds each,
most of them to look at what the user gave and to keep what a call must not lose.  To be rid of them
would take a second, shorter way for what was prepared before, beside the one that all fits take.
"""

import argparse
import json
import statistics
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import joblib
import machine
import numpy as np
import pandas as pd
from compare import PAUSE, WORKLOADS
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier as Theirs

from fastmlp import MLPClassifier as Ours
from fastmlp import MLPRegressor
from fastmlp.engine.cpu import CpuEngine
from fastmlp.estimators import base, fitting, prediction

ROWS = (1, 4, 8, 9, 30, 100, 600, 1797)


def seconds(call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def medians(calls: dict, rounds: int, repeats: int = 1) -> dict[str, float]:
    """Median seconds of each call, all of them in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, repeats))
    return {name: statistics.median(values) for name, values in times.items()}


def side_by_side(ours, theirs, rounds: int, repeats: int = 1) -> dict[str, float]:
    found = medians({"fastmlp": ours, "scikit-learn": theirs}, rounds, repeats)
    return found | {"ratio": found["fastmlp"] / found["scikit-learn"]}


def predictions(X, y, rounds: int) -> dict:
    figures = {}
    for dtype in ("float32", "float64"):
        data = X.astype(dtype)
        ours, theirs = (kind(max_iter=5, random_state=0).fit(data, y) for kind in (Ours, Theirs))
        for n in ROWS:
            rows = data[:n]
            for method in ("predict", "predict_proba"):
                call = getattr(ours, method), getattr(theirs, method)
                figures[f"{method}, {n} rows, {dtype}"] = side_by_side(
                    *(lambda one=one, rows=rows: one(rows) for one in call), rounds, repeats=20
                )
    rows = X[:100]
    forms = {
        "frame": pd.DataFrame(rows),
        "list": rows.tolist(),
        "non-contiguous array": np.asfortranarray(rows),
    }
    for form, data in forms.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figures[f"predict, 100 rows, {form}"] = side_by_side(
                lambda data=data: ours.predict(data),
                lambda data=data: theirs.predict(data),
                rounds,
                repeats=5,
            )
    return figures


def at_once(X, y, rounds: int) -> dict:
    """The same 64 predictions one after the other, and from four threads at once."""
    model = Ours(max_iter=5, random_state=0).fit(X, y)
    expected = model.predict_proba(X[:600])

    def work(_):
        assert np.array_equal(model.predict_proba(X[:600]), expected)

    with ThreadPoolExecutor(4) as pool:
        found = medians(
            {
                "one after the other": lambda: [work(i) for i in range(64)],
                "four threads": lambda: list(pool.map(work, range(64))),
            },
            rounds,
        )
    return found | {"ratio": found["four threads"] / found["one after the other"]}


def fixed_cost(X, y, rounds: int) -> dict[str, float]:
    """Of each library by itself: threads of the other's BLAS would still spin in ours' epochs."""

    def fit(kind, n_epochs):
        return lambda: kind(max_iter=n_epochs, random_state=0).fit(X, y)

    costs = {}
    for library, kind in (("fastmlp", Ours), ("scikit-learn", Theirs)):
        time.sleep(PAUSE)
        found = medians({str(n): fit(kind, n) for n in (1, 2)}, rounds)
        costs[library] = 2 * found["1"] - found["2"]
    return costs


def incremental(X, y, rounds: int) -> dict:
    ours, theirs = (
        kind(random_state=0).partial_fit(X[:32], y[:32], classes=np.unique(y))
        for kind in (Ours, Theirs)
    )
    return side_by_side(
        lambda: ours.partial_fit(X[:32], y[:32]),
        lambda: theirs.partial_fit(X[:32], y[:32]),
        rounds,
        repeats=20,
    )


STAGES = {
    "partial_fit": {
        "plan": (base, "make_plan"),
        "check and encode": (base.BaseMLP, "_read_all"),
        "network, state, order": (base.BaseMLP, "_begin"),
        "place samples": (fitting, "place"),
        "load the engine": (fitting, "load"),
        "training loop": (fitting, "train"),
        "set up the call": (CpuEngine, "run_epoch"),
        "kernel": (CpuEngine, "_run"),
        "parameters back": (CpuEngine, "get_parameters"),
        "state back": (fitting, "unload"),
        "attributes": (base.BaseMLP, "_end"),
    },
    "predict_proba": {
        "check": (base, "checked"),
        "look for edits": (prediction.Predictor, "__call__"),
        "set up the call": (CpuEngine, "predict"),
        "kernel": (CpuEngine, "_run"),
    },
}
"""Functions of the stages of two calls, by what they do."""


def profile(call, stages: dict, repeats: int = 2000) -> dict[str, float]:
    """Seconds that each stage takes itself; ``rest`` is what lies outside of them all."""
    own = dict.fromkeys(stages, 0.0)
    inside = [0.0]  # seconds of stages within those that are running

    def timed(name, function):
        def run(*args, **kwargs):
            inside.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                own[name] += took - inside.pop()
                inside[-1] += took

        return run

    with ExitStack() as stack:
        for name, (owner, attribute) in stages.items():
            function = timed(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, function))
        call()
        own = dict.fromkeys(stages, 0.0)
        whole = seconds(call, repeats)
    found = {name: total / repeats for name, total in own.items()}
    return found | {"rest": whole - sum(found.values())}


def profiles(X, y) -> dict[str, dict[str, float]]:
    model = Ours(random_state=0).partial_fit(X[:32], y[:32], classes=np.unique(y))
    calls = {
        "partial_fit": lambda: model.partial_fit(X[:32], y[:32]),
        "predict_proba": lambda: model.predict_proba(X[:30]),
    }
    return {name: profile(call, STAGES[name]) for name, call in calls.items()}


def shares_of_an_epoch(X, targets, sizes, rounds: int, n_epochs: int) -> dict[str, float]:
    """Seconds of an epoch on one thread, and of it those that are Python's and not the kernel's."""
    spent = []
    run = CpuEngine._run

    def timed(self, *args):
        start = time.perf_counter()
        result = run(self, *args)
        spent.append(time.perf_counter() - start)
        return result

    whole, python = [], []
    CpuEngine._run = timed
    try:
        for _ in range(rounds):
            spent.clear()
            model = MLPRegressor(
                hidden_layer_sizes=sizes, max_iter=n_epochs, tol=0, n_iter_no_change=n_epochs + 1,
                n_threads=1, random_state=0,
            ).fit(X, targets)  # fmt: skip
            seconds = sum(model.history_["seconds"])
            whole.append(seconds / n_epochs)
            python.append((seconds - sum(spent)) / n_epochs)
    finally:
        CpuEngine._run = run
    return {"epoch": statistics.median(whole), "python": statistics.median(python)}


def interpreter_lock(X, rounds: int) -> dict[str, dict[str, float]]:
    """How many threads one interpreter keeps busy: Python's part of an epoch takes its lock.

    It is a bound, for one model per thread, from shares measured on one.
    """
    tiny = np.random.RandomState(0).normal(size=(100, 5))
    cases = {"100 rows, 5-100-1": (tiny, (100,), 2000), "digits, 64-100-1": (X, (100,), 200)}
    figures = {}
    for name, (data, sizes, n_epochs) in cases.items():
        found = shares_of_an_epoch(data, data[:, 0], sizes, rounds, n_epochs)
        figures[name] = found | {"threads": found["epoch"] / found["python"]}
    return figures


def chosen_threads(rounds: int, epochs: int) -> dict[str, dict[str, float]]:
    """Seconds of a fit with the number of threads that fastmlp finds, and with fixed ones."""
    figures = {}
    for workload in WORKLOADS:
        X, y = workload.data("float32")
        kind = MLPRegressor if workload.classes is None else Ours
        n_epochs = max(5, min(epochs, int(6e11 * epochs / 200 / workload.flop)))

        def fit(n_threads, kind=kind, X=X, y=y, workload=workload, n_epochs=n_epochs):
            kind(
                hidden_layer_sizes=workload.widths[1:-1], batch_size=workload.batch, tol=0,
                max_iter=n_epochs, n_iter_no_change=n_epochs + 1, random_state=0,
                n_threads=n_threads,
            ).fit(X, y)  # fmt: skip

        counts = [None, *range(1, joblib.cpu_count() + 1)]
        found = medians({str(n): lambda n=n, fit=fit: fit(n) for n in counts}, rounds)
        best = min(found[str(n)] for n in counts[1:])
        figures[workload.name] = found | {"epochs": n_epochs, "ratio": found["None"] / best}
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=200, help="of the fits on several threads")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    X, y = load_digits(return_X_y=True)
    rounds = arguments.rounds
    report = {
        "machine": machine.describe(),
        "predictions": predictions(X, y, rounds),
        "predictions of 600 rows, four threads at once": at_once(X, y, rounds),
        "fixed cost of fit": fixed_cost(X, y, 2 * rounds),
        "partial_fit of 32 rows": incremental(X, y, rounds),
        "interpreter lock": interpreter_lock(X, rounds),
        "profiles": profiles(X, y),
        "threads": chosen_threads(max(3, rounds // 5), arguments.epochs),
    }
    for what, figures in report["predictions"].items():
        print(f"{what}: {1e6 * figures['fastmlp']:.0f} us, over theirs {figures['ratio']:.2f}")
    figures = report["predictions of 600 rows, four threads at once"]
    print(f"four threads at once over one after the other: {figures['ratio']:.2f}")
    for library, cost in report["fixed cost of fit"].items():
        print(f"fixed cost of fit, {library}: {1e3 * cost:.2f} ms")
    figures = report["partial_fit of 32 rows"]
    print(
        f"partial_fit of 32 rows: {1e6 * figures['fastmlp']:.0f} us, ratio {figures['ratio']:.2f}"
    )
    for name, figures in report["interpreter lock"].items():
        print(
            f"python per epoch of {1e6 * figures['epoch']:.0f} us, {name}: "
            f"{1e6 * figures['python']:.1f} us, which keeps {figures['threads']:.0f} threads busy"
        )
    for name, figures in report["profiles"].items():
        stages = ", ".join(f"{stage} {1e6 * took:.1f}" for stage, took in figures.items())
        print(f"{name} in us: {stages}")
    for name, figures in report["threads"].items():
        print(f"n_threads=None over the best fixed number, {name}: {figures['ratio']:.2f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
