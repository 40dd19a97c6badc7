"""Searches in threads: equal to scikit-learn's, which runs beside ours as the oracle."""

import signal
import threading
import time
import tracemalloc
import warnings
from collections import Counter

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from models import quietly
from processes import run_python
from scipy import sparse
from scipy.stats import loguniform
from searches import assert_equal_results, assert_equal_searches, outcome
from sklearn import model_selection as theirs
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, make_scorer, mean_absolute_error
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    QuantileTransformer,
    StandardScaler,
)

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.model_selection import GridSearchCV, RandomizedSearchCV, folds, threads

CLASS_SCORERS = (
    None, "accuracy", "balanced_accuracy", "f1_macro", "neg_log_loss", "roc_auc_ovr", "failing",
    ["accuracy", "f1_macro", "neg_log_loss"], {"a": "accuracy", "b": "balanced_accuracy"}, "custom",
    "many", "some_fail",
)  # fmt: skip
VALUE_SCORERS = (
    None, "r2", "neg_mean_squared_error", "neg_mean_absolute_error", "custom", "max_error",
    "neg_root_mean_squared_error", ["r2", "neg_mean_absolute_error"], "many", "failing",
)  # fmt: skip


def custom(estimator, X, y):
    return float((np.asarray(estimator.predict(X)) == np.asarray(y)).mean())


def many(estimator, X, y):
    return {"one": estimator.score(X, y), "two": float(len(y))}


def failing(estimator, X, y):
    raise RuntimeError("no score")


def sometimes(estimator, X, y):
    if len(y) % 2:
        raise RuntimeError("odd")
    return 0.5


def scorer_of(name):
    named = {"custom": custom, "many": many, "failing": failing}
    if name == "some_fail":
        return {"good": make_scorer(f1_score, average="micro"), "bad": sometimes}
    return named.get(name, name) if isinstance(name, str) else name


def best_of_all(results):
    """A user's ``refit``."""
    name = next(key for key in results if key.startswith("mean_test"))
    return int(np.argmin(np.nan_to_num(results[name], nan=np.inf)))


class Scenario:
    """A search that is drawn by a seed."""

    def __init__(self, seed):
        self.rng = np.random.RandomState(seed)
        self.is_classifier = self.draw([True, False])
        n = self.rng.randint(50, 70)
        X = self.rng.randn(n, 4)
        y = X[:, 0] * X[:, 1] + 0.1 * self.rng.randn(n)
        self.groups = self.rng.randint(6, size=n)
        if self.is_classifier:
            y = np.digitize(y, self.draw([[0], [-0.4, 0.4]]))
            y = self.draw([y, y, np.array(["no", "a bit", "yes"])[y], y.astype(object)])
        elif self.rng.rand() < 0.3:
            y = np.column_stack([y, y**2])
        self.X, self.y = self.container(X), y
        self.params = {}
        self.estimator, prefix = self.model()
        self.grid = {f"{prefix}{name}": values for name, values in self.network_grid().items()}
        self.grid |= self.steps_grid()
        self.options = self.draw_options()

    def draw(self, choices):
        return choices[self.rng.randint(len(choices))]

    def container(self, X):
        kind = self.draw(["array", "array", "frame", "sparse", "float32", "list", "fortran"])
        return {
            "array": lambda: X,
            "frame": lambda: pd.DataFrame(X, columns=list("abcd")),
            "sparse": lambda: sparse.coo_array(X * (np.abs(X) > 0.5)),
            "float32": lambda: X.astype(np.float32),
            "list": X.tolist,
            "fortran": lambda: np.asfortranarray(X),
        }[kind]()

    def model(self):
        kind = MLPClassifier if self.is_classifier else MLPRegressor
        network = kind(
            hidden_layer_sizes=(5,), max_iter=4, random_state=self.rng.randint(100), batch_size=16
        )
        self.steps = self.draw(["none", "scaler", "two", "nested", "target", "own", "union"])
        if self.steps == "target" and self.is_classifier:
            self.steps = "memory"
        scaler = StandardScaler(with_mean=False)
        if self.steps == "none":
            if self.rng.rand() < 0.5:
                self.params["sample_weight"] = self.rng.rand(len(self.y))
            return network, ""
        if self.steps == "target":
            inner = Pipeline([("scale", scaler), ("mlp", network)])
            return TransformedTargetRegressor(inner, transformer=MinMaxScaler()), "regressor__mlp__"
        if self.steps == "nested":
            inner = Pipeline([("scale", scaler), ("nothing", "passthrough")])
            outer = Pipeline([("mlp", network)])
            return Pipeline([("before", inner), ("after", outer)]), "after__mlp__"
        if self.steps == "union":
            union = FeatureUnion([("scale", scaler), ("max", StandardScaler(with_mean=False))])
            return Pipeline([("scale", union), ("mlp", network)]), "mlp__"
        steps = [("scale", scaler), ("mlp", network)]
        if self.steps == "two":
            steps.insert(1, ("select", SelectKBest(k=3, score_func=self.score_func())))
        if self.steps == "own":
            steps.insert(0, ("own", FunctionTransformer(abs)))
        memory = joblib.Memory(None) if self.steps == "memory" else None
        return Pipeline(steps, memory=memory), "mlp__"

    def score_func(self):
        from sklearn.feature_selection import f_classif, f_regression

        return f_classif if self.is_classifier else first_f

    def network_grid(self):
        grid = {
            "hidden_layer_sizes": [(3,), (6, 4)],
            "alpha": [1e-4, 0.1],
            "learning_rate_init": [0.01, 0.1],
            "solver": ["adam", "sgd", "lbfgs"],
            "early_stopping": [False, True],
            "batch_size": [8, 1000],
            "activation": ["relu", "nonsense"],
            "tol": [1.0, -1.0],
        }
        names = self.rng.choice(list(grid), 2, replace=False)
        return {name: grid[name] for name in names}

    def steps_grid(self):
        if self.steps == "scaler" and self.rng.rand() < 0.7:
            return {"scale__with_std": [True, False], "scale": [StandardScaler(with_mean=False)]}
        if self.steps == "two":
            return {"select__k": [2, 3, 99]}
        return {}

    def draw_options(self):
        options = {
            "scoring": scorer_of(self.draw(CLASS_SCORERS if self.is_classifier else VALUE_SCORERS)),
            "error_score": self.draw([np.nan, np.nan, -1.0, "raise"]),
            "return_train_score": self.draw([True, False]),
            "refit": self.draw([True, True, False, best_of_all]),
        }
        splitters = {
            "int": 3,
            "k": theirs.KFold(3, shuffle=True, random_state=1),
            "group": theirs.GroupKFold(3),
            "shuffle": theirs.ShuffleSplit(2, random_state=0),
            "random": theirs.ShuffleSplit(2, random_state=np.random.RandomState(5)),
            "iterable": [(list(range(30)), list(range(30, 45))), (np.arange(45), np.arange(9))],
            "masks": [(np.arange(len(self.y)) > 20, np.arange(len(self.y)) <= 20)],
        }
        name = self.draw(list(splitters))
        options["cv"] = splitters[name]
        if name == "group":
            self.params["groups"] = self.groups
        is_several = isinstance(options["scoring"], list | dict) or options["scoring"] is many
        if is_several and options["refit"] is True:
            options["refit"] = self.draw([False, "accuracy", "r2", "a", "one"])
        return options

    def searches(self):
        """scikit-learn's and ours."""
        if self.rng.rand() < 0.3:
            options = self.options | {"n_iter": 3, "random_state": 2}
            kinds, space = (theirs.RandomizedSearchCV, RandomizedSearchCV), self.grid
        else:
            options, kinds, space = self.options, (theirs.GridSearchCV, GridSearchCV), self.grid
        return [kind(clone(self.estimator), space, **clone_splitter(options)) for kind in kinds]


def first_f(X, y):
    """A score of features for several targets."""
    from sklearn.feature_selection import f_regression

    return f_regression(X, y if y.ndim == 1 else y[:, 0])


def clone_splitter(options):
    """Each search gets random numbers of its own."""
    from copy import deepcopy

    return options | {"cv": deepcopy(options["cv"])}


@pytest.mark.parametrize("seed", range(120))
def test_equal_to_scikit_learns(seed):
    scenario = Scenario(seed)
    reference, search = scenario.searches()
    assert threads.runs_in_threads(search)
    assert_equal_searches(
        search, reference, scenario.X, scenario.y, counts=scenario.steps == "none",
        **scenario.params,
    )  # fmt: skip
