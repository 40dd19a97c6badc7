"""A table with numbers, strings and holes: `tabular_pipeline` takes it as it is.

Predicts the progress of diabetes from scikit-learn's bundled data, some of which are made to be
missing, and searches for the network's learning rate.  A frame of pandas or polars would do as well
as this array of objects.  Run it with ``--tiny`` for a shortened version.
"""

import sys

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV, train_test_split

from fastmlp import MLPRegressor, tabular_pipeline

EPOCHS = 3 if "--tiny" in sys.argv else 256


def main():
    X, y = load_diabetes(return_X_y=True, scaled=False)
    X = X.astype(object)
    X[:, 1] = np.where(X[:, 1] == 1, "one", "the other")  # sex
    X[np.random.default_rng(0).random(len(X)) < 0.1, 2] = None  # body mass index
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

    model = tabular_pipeline(MLPRegressor(max_iter=EPOCHS, random_state=0), task="regression")
    model.fit(X_train, y_train)
    print(f"R^2 of the preset: {model.score(X_test, y_test):.3f}")

    grid = {"network__regressor__learning_rate_init": [0.001, 0.004]}
    search = GridSearchCV(model, grid, cv=3).fit(X_train, y_train)
    print(f"best of the search: {search.best_params_}, {search.score(X_test, y_test):.3f}")


if __name__ == "__main__":
    main()
