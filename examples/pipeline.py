"""A network in scikit-learn's pipelines: columns of several kinds, a grid search, frames.

scikit-learn's `Pipeline` joins preprocessing and network into one estimator, and `GridSearchCV`
tries settings of any part of it by cross-validation.  Since the pipeline is fitted as a whole on
each training fold, the scaler never sees the rows that it is judged by.

The data are scikit-learn's bundled diabetes records as a pandas frame.  A `ColumnTransformer`
standardises the numbers and makes columns of the category, `TransformedTargetRegressor`
standardises the target, and the search runs on two processes.  It ends in a frame of results.

scikit-learn's own MLPRegressor in the same search gets the same scores, so the change of one import
changes no result.  The winner's score is also computed once more by hand, fold by fold.  A linear
model stands beside it, for with few and noisy data one should know what a simple model does.

Needs ``pip install "fastmlp[examples]"``.  Run it with ``--tiny`` for a shortened version.
"""

import sys
import warnings

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, train_test_split
from sklearn.neural_network import MLPRegressor as SklearnMLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fastmlp import MLPRegressor

TINY = "--tiny" in sys.argv
EPOCHS = 10 if TINY else 100
NETWORK = "regressor__mlpregressor__"
GRID = {
    NETWORK + "hidden_layer_sizes": [(20,), (50, 50)],
    NETWORK + "alpha": [0.01, 1.0, 10.0],
}
FOLDS = KFold(2 if TINY else 5, shuffle=True, random_state=0)


def load():
    """The frame, its sex as the category that it is, and the target."""
    X, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    return X.assign(sex=X["sex"].map({1.0: "one", 2.0: "the other"})), y


def pipeline(regressor):
    columns = ColumnTransformer(
        [("category", OneHotEncoder(sparse_output=False, drop="if_binary"), ["sex"])],
        remainder=StandardScaler(),
        verbose_feature_names_out=False,
    )
    columns.set_output(transform="pandas")  # so that the network sees names, too
    return TransformedTargetRegressor(
        make_pipeline(columns, regressor), transformer=StandardScaler()
    )  # fmt: skip


def search(estimator, X, y):
    """A fitted grid search."""
    model = pipeline(estimator(max_iter=EPOCHS, random_state=0))
    return GridSearchCV(model, GRID, cv=FOLDS, n_jobs=2).fit(X, y)


def results(found):
    """One line for each setting, the best first."""
    frame = pd.DataFrame(found.cv_results_)
    names = {f"param_{NETWORK}{name}": name for name in ("hidden_layer_sizes", "alpha")}
    columns = [*names, "mean_test_score", "std_test_score"]
    return frame.sort_values("rank_test_score")[columns].rename(columns=names)


def by_hand(X, y, model):
    """The cross-validated score without `GridSearchCV` and without the pipeline's classes."""
    scores = []
    for train, test in FOLDS.split(X):
        numbers = X.drop(columns="sex")
        mean, deviation = numbers.iloc[train].mean(), numbers.iloc[train].std(ddof=0)
        features = ((numbers - mean) / deviation).to_numpy()
        features = np.column_stack([X["sex"] == "the other", features])
        shift, scale = y.iloc[train].mean(), y.iloc[train].std(ddof=0)
        model.fit(features[train], (y.iloc[train] - shift) / scale)
        prediction = shift + scale * model.predict(features[test])
        scores.append(r2_score(y.iloc[test], prediction))
    return np.mean(scores)


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)  # the epochs are part of the settings
    X, y = load()
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    found = search(MLPRegressor, X_train, y_train)
    print(f"{len(found.cv_results_['params'])} settings, {FOLDS.n_splits} folds")
    print(results(found).to_string(index=False, float_format="%.3f"))

    theirs = search(SklearnMLPRegressor, X_train, y_train)
    score = "mean_test_score"
    difference = np.abs(found.cv_results_[score] - theirs.cv_results_[score]).max()
    print(f"\nscikit-learn's network in its place: scores differ by {difference:.0e}")
    assert difference < 1e-6

    best = found.best_estimator_.regressor[-1]
    once_more = by_hand(X_train, y_train, best)
    print(f"best score {found.best_score_:.3f}, by hand {once_more:.3f}")
    assert abs(found.best_score_ - once_more) < 1e-9

    network = found.best_estimator_.regressor_[-1]
    print(f"the network's features: {', '.join(network.feature_names_in_)}")
    linear = pipeline(RidgeCV(np.logspace(-2, 3, 11)))
    folds = cross_val_score(linear, X_train, y_train, cv=FOLDS)
    print(f"ridge regression: {folds.mean():.3f} in cross-validation")
    print(f"R^2 on rows kept apart: network {found.score(X_test, y_test):.3f}, "
          f"ridge {linear.fit(X_train, y_train).score(X_test, y_test):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
