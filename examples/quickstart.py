"""Quickstart: change one import, keep everything else.

Trains on scikit-learn's bundled digits (1797 images of 8 x 8 pixels) through a pipeline with
standardised features, compares with scikit-learn's own MLPClassifier, and runs a small grid
search.  Run it with ``--tiny`` for a shortened version.
"""

import sys
import time
import warnings

from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier as SklearnMLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastmlp import MLPClassifier

TINY = "--tiny" in sys.argv
EPOCHS = 3 if TINY else 100


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

    print(f"digits, {EPOCHS} epochs       time     accuracy    loss")
    times, losses = [], []
    for name, estimator in (("scikit-learn", SklearnMLPClassifier), ("fastmlp", MLPClassifier)):
        model = make_pipeline(StandardScaler(), estimator(max_iter=EPOCHS, random_state=0))
        _, seconds = timed(lambda model=model: model.fit(X_train, y_train))
        losses.append(model[-1].loss_)
        times.append(seconds)
        accuracy = model.score(X_test, y_test)
        print(f"{name:<20} {seconds:8.3f} s   {accuracy:.4f}     {losses[-1]:.10f}")
    print(f"\n{times[0] / times[1]:.1f} times as fast, the same numbers.\n")
    assert abs(losses[1] / losses[0] - 1) < 1e-6

    pipeline = make_pipeline(StandardScaler(), MLPClassifier(max_iter=EPOCHS, random_state=0))
    grid = {
        "mlpclassifier__hidden_layer_sizes": [(50,), (50, 50)],
        "mlpclassifier__alpha": [1e-4, 1e-2],
    }
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2)
    _, seconds = timed(lambda: search.fit(X_train, y_train))
    print(f"grid search over {len(search.cv_results_['params'])} settings in {seconds:.1f} s")
    print(f"best: {search.best_params_}")
    print(f"test accuracy: {search.score(X_test, y_test):.4f}")


if __name__ == "__main__":
    main()
