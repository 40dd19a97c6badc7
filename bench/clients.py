"""Whole programs around a small network, with scikit-learn's MLP and with ours.

One long fit says little about what a user waits for: start-up, short fits, single predictions,
searches and meta-estimators.  Each client runs in a process of its own, alternating between the two
libraries, with everything imported beforehand but the estimators themselves.  What counts is the
processor time from that import to the result; the results must be equal.

    python bench/clients.py [--rounds 3] [--only search ...] [--output FILE]
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from sklearn.ensemble import BaggingRegressor, StackingClassifier
from sklearn.feature_selection import RFE
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    cross_val_score,
    learning_curve,
    train_test_split,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LIBRARIES = {"scikit-learn": "sklearn.neural_network", "fastmlp": "fastmlp"}
TOLERANCE = 1e-6
CLIENTS = {}


def client(function):
    """Enter a function of the two estimator classes, which returns arrays, in the table."""
    CLIENTS[function.__name__] = function
    return function


def network(kind, **parameters):
    return kind(**{"hidden_layer_sizes": (20,), "max_iter": 60, "random_state": 0, **parameters})


def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return train_test_split(StandardScaler().fit_transform(X), y, random_state=0)


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    return train_test_split(StandardScaler().fit_transform(X), y, random_state=0)


@client
def one_fit(Classifier, Regressor):
    """The shortest program: fit and score once."""
    X, X_test, y, _ = cancer()
    return network(Classifier).fit(X, y).predict_proba(X_test)


@client
def digits_at_defaults(Classifier, Regressor):
    X, X_test, y, _ = train_test_split(*load_digits(return_X_y=True), random_state=0)
    return Classifier(random_state=0).fit(X / 16, y).predict_proba(X_test / 16)


@client
def quasi_newton(Classifier, Regressor):
    X, X_test, y, _ = diabetes()
    return network(Regressor, solver="lbfgs", alpha=1.0).fit(X, y).predict(X_test)


@client
def early_stopping(Classifier, Regressor):
    X, X_test, y, _ = diabetes()
    model = network(Regressor, early_stopping=True, max_iter=300).fit(X, y)
    return model.predict(X_test), model.validation_scores_


@client
def stream(Classifier, Regressor):
    """Batches as they arrive, a prediction before each."""
    X, _, y, _ = cancer()
    model = network(Classifier).partial_fit(X[:10], y[:10], classes=[0, 1])
    answers = []
    for i in range(10, len(X), 10):
        answers.append(model.predict_proba(X[i : i + 10]))
        model.partial_fit(X[i : i + 10], y[i : i + 10])
    return np.concatenate(answers)


@client
def one_row_at_a_time(Classifier, Regressor):
    X, X_test, y, _ = cancer()
    model = network(Classifier).fit(X, y)
    return np.concatenate([model.predict_proba(row[None]) for _ in range(10) for row in X_test])


@client
def search(Classifier, Regressor):
    X, _, y, _ = cancer()
    grid = {"mlpclassifier__alpha": [1e-4, 1e-2], "mlpclassifier__hidden_layer_sizes": [(5,), (9,)]}
    model = make_pipeline(StandardScaler(), network(Classifier))
    return GridSearchCV(model, grid, cv=3).fit(X, y).cv_results_["mean_test_score"]


@client
def search_in_processes(Classifier, Regressor):
    X, _, y, _ = cancer()
    grid = {"alpha": [1e-4, 1e-2], "hidden_layer_sizes": [(5,), (9,)]}
    found = GridSearchCV(network(Classifier), grid, cv=3, n_jobs=2).fit(X, y)
    return found.cv_results_["mean_test_score"]


@client
def validation(Classifier, Regressor):
    return cross_val_score(network(Classifier), *load_iris(return_X_y=True), cv=5)


@client
def curve(Classifier, Regressor):
    return learning_curve(network(Classifier), *load_iris(return_X_y=True), cv=3, shuffle=True,
                          random_state=0)[2]  # fmt: skip


@client
def calibration(Classifier, Regressor):
    X, X_test, y, _ = cancer()
    model = CalibratedClassifierCV(network(Classifier), method="sigmoid", cv=3)
    return model.fit(X, y).predict_proba(X_test)


@client
def bagging(Classifier, Regressor):
    X, X_test, y, _ = diabetes()
    model = BaggingRegressor(network(Regressor), n_estimators=8, random_state=0)
    return model.fit(X, y).predict(X_test)


@client
def stacking(Classifier, Regressor):
    X, X_test, y, _ = cancer()
    parts = [("network", network(Classifier)), ("linear", LogisticRegression())]
    return StackingClassifier(parts, cv=3).fit(X, y).predict_proba(X_test)


@client
def one_vs_rest(Classifier, Regressor):
    X, y = load_iris(return_X_y=True)
    return OneVsRestClassifier(network(Classifier)).fit(X, y).predict_proba(X)


@client
def elimination(Classifier, Regressor):
    X, y = load_iris(return_X_y=True)
    model = RFE(
        network(Classifier),
        importance_getter=lambda fitted: np.abs(fitted.coefs_[0]).sum(axis=1),
        n_features_to_select=1,
    )
    return model.fit(X, y).ranking_


@client
def importance(Classifier, Regressor):
    X, X_test, y, y_test = diabetes()
    model = network(Regressor).fit(X, y)
    return permutation_importance(model, X_test, y_test, random_state=0).importances


@client
def dependence(Classifier, Regressor):
    X, _, y, _ = diabetes()
    model = network(Regressor).fit(X, y)
    return [partial_dependence(model, X, [j], kind="individual").individual for j in range(4)]


@client
def seeds(Classifier, Regressor):
    """The same model from many initial weights."""
    X, X_test, y, _ = cancer()
    model = network(Classifier)
    return [clone(model).set_params(random_state=i).fit(X, y).predict(X_test) for i in range(10)]


def run_here(library: str, name: str) -> dict:
    """One client in this process: its result as lists of numbers, and what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    module = import_module(LIBRARIES[library])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CLIENTS[name](module.MLPClassifier, module.MLPRegressor)
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    parts = result if isinstance(result, list | tuple) else [result]
    return seconds | {"result": [np.asarray(part, dtype=float).ravel().tolist() for part in parts]}


def run(library: str, name: str) -> dict:
    """One client in a new process."""
    command = [sys.executable, __file__, "--run", library, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed with {library}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def difference(one: list, other: list) -> float:
    """Greatest difference of two results, relative where they are above 1."""
    pairs = [(np.array(a), np.array(b)) for a, b in zip(one, other, strict=True)]
    return max(float(np.max(np.abs(a - b) / np.maximum(1, np.abs(a)), initial=0)) for a, b in pairs)


def measure(name: str, rounds: int) -> dict:
    """Medians of a client's seconds by both libraries, in turns."""
    runs = {library: [] for library in LIBRARIES}
    for _ in range(rounds):
        for library in LIBRARIES:
            runs[library].append(run(library, name))
    theirs, ours = (runs[library][-1]["result"] for library in LIBRARIES)
    off = difference(theirs, ours)
    if off > TOLERANCE:
        raise SystemExit(f"{name}: results differ by {off:.1e}")
    seconds = {
        f"{library} {kind}": statistics.median(one[kind] for one in runs[library])
        for library in LIBRARIES
        for kind in ("cpu", "wall")
    }
    return {"client": name, "difference": off} | seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run_here(*arguments.run)))
        return
    import machine

    run("fastmlp", arguments.only[0])  # kernels are compiled once per machine
    rows = []
    for name in arguments.only:
        row = measure(name, arguments.rounds)
        rows.append(row | {"ratio": row["scikit-learn cpu"] / row["fastmlp cpu"]})
        print(
            f"{name:20s} processor time: scikit-learn {row['scikit-learn cpu']:6.2f} s, fastmlp "
            f"{row['fastmlp cpu']:6.2f} s, ratio {rows[-1]['ratio']:.2f}",
            flush=True,
        )
    mean = math.exp(statistics.mean(math.log(row["ratio"]) for row in rows))
    print(f"geometric mean of scikit-learn's processor time over fastmlp's: {mean:.2f}")
    if arguments.output:
        versions = {name: version(name) for name in ("scikit-learn", "numpy", "numba")}
        report = {"machine": machine.describe() | versions, "geometric_mean": mean, "clients": rows}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
