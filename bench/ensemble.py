"""What an ensemble costs beside its members: fits side by side against one after the other, and
predictions by one call against a call for each member.

    python bench/ensemble.py [--rounds 7] [--members 5]
"""

import argparse
import statistics
import time
import warnings

import joblib
import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import VotingClassifier

from fastmlp import MLPClassifier, MLPEnsembleClassifier

ROWS = (1, 100, 1797)


def seconds_of(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(title, candidates, rounds):
    """Median times of interleaved rounds, in milliseconds, and as multiples of the first."""
    times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            times[name].append(seconds_of(function))
    medians = {name: statistics.median(some) for name, some in times.items()}
    first = next(iter(medians.values()))
    print(title)
    for name, median in medians.items():
        print(f"  {name:34s} {1e3 * median:9.3f} ms {median / first:6.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--members", type=int, default=5)
    arguments = parser.parse_args()
    n = arguments.members
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    network = MLPClassifier(max_iter=30)
    model = MLPEnsembleClassifier(network, n, random_state=0).fit(X, y)
    members = [clone(member) for member in model.members_]
    voting = VotingClassifier([(str(i), one) for i, one in enumerate(members)], voting="soft")
    compare(
        f"fit, digits, 64-100-10, 30 epochs, {joblib.cpu_count()} cores",
        {
            "one network": lambda: members[0].fit(X, y),
            f"{n}, one after the other": lambda: [member.fit(X, y) for member in members],
            f"{n} by VotingClassifier": lambda: voting.fit(X, y),
            f"{n} by MLPEnsembleClassifier": lambda: model.fit(X, y),
        },
        arguments.rounds,
    )
    for n_rows in ROWS:
        rows = X[:n_rows]
        compare(
            f"predict_proba, {n_rows} rows",
            {
                "one network": lambda rows=rows: members[0].predict_proba(rows),
                f"{n} calls and a mean": lambda rows=rows: np.mean(
                    [member.predict_proba(rows) for member in members], axis=0
                ),
                f"{n} by VotingClassifier": lambda rows=rows: voting.predict_proba(rows),
                f"{n} by MLPEnsembleClassifier": lambda rows=rows: model.predict_proba(rows),
            },
            50 * arguments.rounds,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
