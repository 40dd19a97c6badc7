"""Searching for good parameters: a grid, and a race in which the worse half of it is given up.

A grid search trains a network for every setting on every split of the data.  Its classes are
scikit-learn's, imported from `fastmlp.model_selection`: there the networks are trained side by side
in threads of one process, and what comes before the network is fitted once per split instead of
once per setting.  The results are the same to the bit, which is checked here.

Most settings show early that they will not win.  Successive halving (Jamieson and Talwalkar, 2016)
makes a race of it: all candidates run for a few epochs, the best third goes on for three times as
many, and so forth.  The survivors go on from where they stand, so nothing is trained twice: with n
candidates and a factor of 3, each round costs about two thirds of n times the epochs of the first,
and there are log_3(n) of them, where the full search runs n times all epochs.

The picture shows the scores of the full search over learning rate and width, and the race: a line
for each candidate, which ends where it is given up.

Needs ``pip install "fastmlp[examples]"``; writes search.png.  Run it with ``--tiny`` for a
shortened version.
"""

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn import model_selection
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastmlp import MLPClassifier
from fastmlp.model_selection import GridSearchCV, HalvingGridSearchCV

TINY = "--tiny" in sys.argv
N_SAMPLES = 300 if TINY else 1797
MOST_EPOCHS = 9 if TINY else 27
RATES = [1e-4, 1e-3, 1e-2] if TINY else [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
WIDTHS = [(8,), (32,), (64,)] if TINY else [(8,), (16,), (32,), (64,), (128,)]
NAME = "mlpclassifier__"
GRID = {f"{NAME}learning_rate_init": RATES, f"{NAME}hidden_layer_sizes": WIDTHS}


def model():
    network = MLPClassifier(max_iter=MOST_EPOCHS, n_iter_no_change=MOST_EPOCHS, random_state=0)
    return make_pipeline(StandardScaler(), network)


def trained_epochs(race):
    """All that the race's networks were trained for, on one split."""
    new = np.diff(race.n_resources_, prepend=0)
    return int(np.dot(race.n_candidates_, new))


def lines_of(race):
    """{setting: ([epochs], [score])} of every candidate."""
    lines = {}
    results = race.cv_results_
    columns = (results["params"], results["n_resources"], results["mean_test_score"])
    for params, epochs, score in zip(*columns, strict=True):
        setting = params[f"{NAME}learning_rate_init"], params[f"{NAME}hidden_layer_sizes"]
        x, y = lines.setdefault(setting, ([], []))
        x.append(epochs)
        y.append(score)
    return lines


def draw(full, race):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    scores = full.cv_results_["mean_test_score"].reshape(len(WIDTHS), len(RATES))
    picture = left.imshow(scores, origin="lower", aspect="auto", vmin=0.8)
    left.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
    left.set_yticks(range(len(WIDTHS)), [str(width) for (width,) in WIDTHS])
    left.set(xlabel="learning_rate_init", ylabel="hidden units", title="full search: accuracy")
    figure.colorbar(picture, ax=left)
    for epochs, score in lines_of(race).values():
        survived = len(epochs) > 1
        right.plot(epochs, score, "o-", ms=3, color="C0" if survived else "0.7", zorder=survived)
    right.set_xscale("log", base=race.factor)
    right.set_xticks(race.n_resources_, [str(n) for n in race.n_resources_])
    right.set(xlabel="epochs", ylabel="accuracy", title="halving: survivors go on")
    figure.savefig("search.png", dpi=110)


def main():
    plt.style.use("tableau-colorblind10")
    X, y = load_digits(return_X_y=True)
    X, y = X[:N_SAMPLES], y[:N_SAMPLES]

    full = GridSearchCV(model(), GRID, cv=3).fit(X, y)
    n_settings = len(full.cv_results_["params"])
    print(f"full search: {n_settings} settings for {MOST_EPOCHS} epochs on each of 3 splits")
    print(f"  best accuracy {full.best_score_:.4f} with {full.best_params_}")

    theirs = model_selection.GridSearchCV(model(), GRID, cv=3, refit=False).fit(X, y)
    for name in ("mean_test_score", "std_test_score", "rank_test_score"):
        np.testing.assert_array_equal(full.cv_results_[name], theirs.cv_results_[name])
    print("  the same scores as scikit-learn's class gives, to the bit")

    epochs = {"resource": f"{NAME}max_iter", "max_resources": MOST_EPOCHS}
    race = HalvingGridSearchCV(model(), GRID, cv=3, **epochs).fit(X, y)
    share = trained_epochs(race) / (n_settings * MOST_EPOCHS)
    for i, (n, most) in enumerate(zip(race.n_candidates_, race.n_resources_, strict=True)):
        print(f"  round {i}: {n:3d} candidates up to epoch {most}")
    print(f"halving: {100 * share:.0f} % of the full search's epochs, best accuracy "
          f"{race.best_score_:.4f} with {race.best_params_}")  # fmt: skip

    last = race.cv_results_["params"][-1]
    last = {name: value for name, value in last.items() if not name.endswith("max_iter")}
    same = full.cv_results_["mean_test_score"][full.cv_results_["params"].index(last)]
    if race.n_resources_[-1] == MOST_EPOCHS:
        assert race.cv_results_["mean_test_score"][-1] == same
        print("a survivor's last score is that of a network trained in one go, to the bit")
    assert share < 0.5
    assert race.best_score_ > full.best_score_ - 0.02
    draw(full, race)
    print("see search.png")


if __name__ == "__main__":
    warnings.simplefilter("ignore", ConvergenceWarning)  # that few epochs are few
    main()
