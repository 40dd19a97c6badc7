"""Searches in threads: equal to scikit-learn's, which runs beside ours as the oracle."""

import pickle
import threading
import time
import tracemalloc
import warnings
import weakref
from collections import Counter
from contextvars import ContextVar
from copy import deepcopy

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from models import quietly
from processes import run_python
from scipy import sparse
from searches import assert_equal_results, assert_equal_searches, outcome
from sklearn import model_selection as theirs
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, f_classif, f_regression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, make_scorer
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.model_selection import GridSearchCV, RandomizedSearchCV, backend, folds, threads

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
    return f_regression(X, y if y.ndim == 1 else y[:, 0])


def clone_splitter(options):
    """Each search gets random numbers of its own."""
    return options | {"cv": deepcopy(options["cv"])}


@pytest.mark.parametrize("seed", range(120))
def test_equal_to_scikit_learns(seed):
    scenario = Scenario(seed)
    reference, search = scenario.searches()
    assert backend.is_ours(search)
    assert_equal_searches(
        search, reference, scenario.X, scenario.y, counts=scenario.steps == "none",
        **scenario.params,
    )  # fmt: skip


RNG = np.random.RandomState(0)
X = RNG.randn(90, 6)
Y = (X[:, 0] * X[:, 1] > 0).astype(int)
NETWORK = MLPClassifier((4,), max_iter=3, batch_size=16, random_state=0)
ALPHAS = {"alpha": [0.1, 0.2, 0.3, 0.4]}
IN_PIPELINE = {f"mlpclassifier__{name}": values for name, values in ALPHAS.items()}


@pytest.fixture
def count(monkeypatch):
    """``count(kind, method)``: a list that grows with each call of a class's method."""

    def counted(kind, name):
        method, calls = getattr(kind, name), []

        def call(self, *args, **kwargs):
            calls.append(args)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, call)
        return calls

    return counted


def fit(search, *data, **params):
    return quietly(search.fit, *(data or (X, Y)), **params)


def test_preprocessing_is_fitted_once_per_fold(count):
    fits, transforms = count(StandardScaler, "fit"), count(StandardScaler, "transform")
    grid = {"mlpclassifier__alpha": [0.1 * i for i in range(40)]}
    model = make_pipeline(StandardScaler(), NETWORK)
    fit(GridSearchCV(model, grid, cv=5, refit=False))
    assert (len(fits), len(transforms)) == (5, 10)  # the training part, and the test part
    fit(GridSearchCV(model, {**IN_PIPELINE, "standardscaler__with_std": [True, False]}, cv=5))
    assert len(fits) == 5 + 10 + 1


def test_steps_are_fitted_once_for_what_is_before_them(count):
    scalers, pca = count(StandardScaler, "fit"), count(PCA, "fit_transform")
    model = make_pipeline(StandardScaler(), PCA(random_state=0), NETWORK)
    grid = {**IN_PIPELINE, "pca__n_components": [2, 3], "standardscaler__with_std": [True, False]}
    fit(GridSearchCV(model, grid, cv=3, refit=False))
    assert (len(scalers), len(pca)) == (2 * 3, 4 * 3)


def test_columns_and_targets_are_prepared_once(count):
    scalers, encoders = count(StandardScaler, "fit"), count(OneHotEncoder, "fit_transform")
    frame = pd.DataFrame(X, columns=list("abcdef")).assign(word=np.where(Y, "x", "y"))
    columns = ColumnTransformer(
        [("n", StandardScaler(), ["a", "b"]), ("c", OneHotEncoder(), ["word"])]
    )
    network = MLPRegressor(max_iter=3, random_state=0)
    model = TransformedTargetRegressor(make_pipeline(columns, network), transformer=MinMaxScaler())
    grid = {"regressor__mlpregressor__alpha": [0.1, 0.2, 0.3]}
    search = GridSearchCV(model, grid, cv=4, refit=False)
    fit(search, frame, X[:, 0])
    assert (len(scalers), len(encoders)) == (4, 4)
    assert_equal_results(search, fit(theirs.GridSearchCV(model, grid, cv=4), frame, X[:, 0]))


def test_steps_that_look_at_other_targets_are_others(count):
    fits = count(SelectKBest, "fit")
    inner = make_pipeline(SelectKBest(f_regression, k=2), MLPRegressor(max_iter=3, random_state=0))
    model = TransformedTargetRegressor(inner, transformer=FunctionTransformer())
    grid = {
        "transformer__func": [None, np.square],
        "regressor__mlpregressor__alpha": [0.1, 0.2],
    }
    y = X[:, 0] + X[:, 1] ** 2 + 0.1 * X[:, 2]
    options = {"cv": 3, "refit": False}
    search = fit(GridSearchCV(model, grid, **options), X, y)
    assert len(fits) == 12  # for the target's transformer is a user's code
    grid = {"transformer": [MinMaxScaler(), PowerTransformer()]} | {
        "regressor__mlpregressor__alpha": [0.1, 0.2]
    }
    fits.clear()
    model.set_params(transformer=None)
    search = fit(GridSearchCV(model, grid, **options), X, y)
    assert len(fits) == 2 * 3
    assert_equal_results(search, fit(theirs.GridSearchCV(model, grid, **options), X, y))


class Own(StandardScaler):
    """A user's transformer."""


@pytest.mark.parametrize(
    "step", [Own(), FunctionTransformer(), QuantileTransformer(n_quantiles=9), "memory"]
)
def test_what_might_differ_is_fitted_for_each_candidate(step, count):
    kind = QuantileTransformer if step == "memory" else type(step)
    fits = count(kind, "fit")
    memory = joblib.Memory(None) if step == "memory" else None
    step = QuantileTransformer(n_quantiles=9, random_state=0) if step == "memory" else step
    fit(GridSearchCV(make_pipeline(step, NETWORK, memory=memory), IN_PIPELINE, cv=3, refit=False))
    assert len(fits) == 3 * 4


def test_weights_of_steps_are_not_shared(count):
    fits = count(StandardScaler, "fit")
    search = GridSearchCV(make_pipeline(StandardScaler(), NETWORK), IN_PIPELINE, cv=3, refit=False)
    fit(search, X, Y, standardscaler__sample_weight=RNG.rand(len(Y)))
    assert len(fits) == 3 * 4


def test_rows_are_taken_once_per_fold(count):
    calls = count(folds.Rows, "take")
    taken = []
    original = folds.safe_indexing

    def take(array, rows):
        taken.append(rows)
        return original(array, rows)

    folds.safe_indexing = take
    try:
        fit(GridSearchCV(NETWORK, ALPHAS, cv=3, refit=False))
    finally:
        folds.safe_indexing = original
    assert len(taken) == 3 * 4  # X and y of both parts
    assert len(calls) == 3 * 4 * 4


def test_shared_data_cannot_be_changed():
    def scorer(estimator, X, y):
        assert not X.flags.writeable
        assert not y.flags.writeable
        return 0.0

    fit(GridSearchCV(NETWORK, ALPHAS, scoring=scorer, error_score="raise"))
    assert X.flags.writeable
    assert Y.flags.writeable


def test_folds_of_large_data_come_one_after_the_other(monkeypatch):
    order = []
    monkeypatch.setattr(threads, "_MOST_BYTES", 1000)
    run = threads.Task.run
    monkeypatch.setattr(
        threads.Task, "run", lambda task, limit: (order.append(task.split), run(task, limit))
    )
    search = GridSearchCV(
        NETWORK, {**ALPHAS, "hidden_layer_sizes": [(3,), (9,)]}, cv=3, refit=False
    )
    fit(search)
    assert order == sorted(order)
    assert_equal_results(search, fit(theirs.GridSearchCV(**search_parameters(search))))


def search_parameters(search):
    parameters = search.get_params(deep=False)
    del parameters["max_time"]
    return parameters


def test_the_longest_come_first(monkeypatch):
    order = []
    monkeypatch.setattr(threads.Task, "run", lambda task, limit: order.append(task.candidate))
    grid = [
        {"hidden_layer_sizes": [(3,), (50,)]},
        {"max_iter": [10]},
        {"hidden_layer_sizes": ["nonsense"]},
    ]
    with pytest.raises(ValueError, match="max_time"):  # for nothing was run
        fit(GridSearchCV(NETWORK, grid, cv=2, n_jobs=1))
    assert order == [1, 1, 2, 2, 0, 0, 3, 3]


def test_large_preprocessed_data_are_dropped_when_nobody_needs_them(monkeypatch, count):
    monkeypatch.setattr(threads, "_MOST_BYTES", 1000)
    fits, alive, most = count(StandardScaler, "fit"), weakref.WeakSet(), []
    monkeypatch.setattr(folds.Memory, "__init__", noted(folds.Memory.__init__, alive, most))
    model = make_pipeline(StandardScaler(), MinMaxScaler(), NETWORK)
    grid = {**IN_PIPELINE, "minmaxscaler__feature_range": [(0, i) for i in range(1, 9)]}
    search = GridSearchCV(model, grid, cv=2, n_jobs=1, refit=False)
    fit(search)
    assert len(fits) == 2 * 8
    assert len(most) == 2 * 8
    assert max(most) == 1
    assert_equal_results(search, fit(theirs.GridSearchCV(**search_parameters(search))))


def noted(init, alive, most):
    """A constructor that notes down how many objects there are."""

    def __init__(self, *args):
        init(self, *args)
        alive.add(self)
        most.append(len(alive))

    return __init__


@pytest.mark.parametrize("n_jobs", [1, 2, 5, -1])
def test_results_do_not_depend_on_the_number_of_threads(n_jobs):
    search = fit(GridSearchCV(NETWORK, ALPHAS, n_jobs=n_jobs))
    assert_equal_results(search, fit(GridSearchCV(NETWORK, ALPHAS)))


def test_as_many_models_at_once_as_there_are_jobs(monkeypatch):
    running, most, names = set(), [], set()
    lock, original = threading.Lock(), MLPClassifier.fit

    def observed(self, *args, **kwargs):
        me = threading.current_thread()
        with lock:
            running.add(me)
            most.append(len(running))
            names.add(fastmlp.engine.available_threads(None))
        time.sleep(0.02)
        try:
            return original(self, *args, **kwargs)
        finally:
            running.discard(me)

    monkeypatch.setattr(MLPClassifier, "fit", observed)
    fit(GridSearchCV(NETWORK, ALPHAS, n_jobs=3, refit=False))
    assert max(most) == 3
    assert names == {1}


@pytest.mark.parametrize("error_score", [np.nan, "raise"])
def test_the_first_error_is_raised(error_score):
    """In the order of candidates, whichever comes first in time."""
    grid = [{"max_iter": [1]}, {"activation": ["bad"]}, {"max_iter": [500], "solver": ["worse"]}]
    ours = GridSearchCV(NETWORK, grid, error_score=error_score)
    assert_equal_searches(ours, theirs.GridSearchCV(**search_parameters(ours)), X, Y)


def test_other_parameters_fail_as_in_scikit_learn():
    for options in ({"n_jobs": 0}, {"cv": 1}, {"error_score": "bad"}, {"refit": 3.5}, {"cv": 99}):
        ours = GridSearchCV(NETWORK, ALPHAS, **options)
        assert outcome(ours, X, Y)[0] is not None
        assert_equal_searches(ours, theirs.GridSearchCV(**search_parameters(ours)), X, Y)
    for estimator in (None, "x", make_pipeline(StandardScaler()), Pipeline([])):
        ours = GridSearchCV(estimator, {})
        assert_equal_searches(ours, theirs.GridSearchCV(**search_parameters(ours)), X, Y)


class OwnMLP(MLPClassifier):
    """A user's."""


@pytest.mark.parametrize("case", ["model", "own", "array api", "cuda"])
def test_what_is_not_for_threads_is_scikit_learns(case, monkeypatch):
    started = []
    monkeypatch.setattr(backend.Backend, "__init__", lambda *args: started.append(args))
    estimators = {"model": LogisticRegression(), "own": OwnMLP(max_iter=2, random_state=0)}
    search = GridSearchCV(estimators.get(case, NETWORK), {"verbose": [0]}, cv=2)
    if case == "array api":
        with sklearn.config_context(array_api_dispatch=True):
            fit(search)
    elif case == "cuda":
        assert not backend.is_ours(clone(search).set_params(estimator__device="cuda"))
        return
    else:
        fit(search)
    assert not started
    assert search.best_score_ > 0


def test_a_scikit_learn_that_is_not_known(monkeypatch):
    """Tasks that are none of `_fit_and_score` are run as they come."""
    monkeypatch.setattr(backend, "search_task", lambda batch: None)
    search = fit(GridSearchCV(NETWORK, ALPHAS))
    monkeypatch.undo()
    assert_equal_results(search, fit(GridSearchCV(NETWORK, ALPHAS)))


def test_other_parallel_work_is_not_ours():
    backends = []

    def note(X):
        backends.append(type(joblib.parallel.get_active_backend()[0]))
        return X

    model = make_pipeline(FunctionTransformer(note), NETWORK)
    fit(GridSearchCV(model, IN_PIPELINE, cv=2, scoring=lambda model, X, y: 0.0))
    assert len(backends) == 2 * 4 + 1  # the fits of the search, and the last one
    assert backend.Backend not in backends


def test_a_search_in_a_search():
    inner = GridSearchCV(NETWORK, {"alpha": [0.1, 1.0]}, cv=2)
    reference = theirs.GridSearchCV(NETWORK, {"alpha": [0.1, 1.0]}, cv=2)
    scores = [quietly(theirs.cross_val_score, s, X, Y, cv=3) for s in (inner, reference)]
    np.testing.assert_array_equal(*scores)
    with joblib.parallel_config("threading"):
        parallel = quietly(theirs.cross_val_score, inner, X, Y, cv=3, n_jobs=2)
    np.testing.assert_array_equal(parallel, scores[0])


def test_it_can_be_cloned_pickled_and_set():
    search = clone(GridSearchCV(NETWORK, ALPHAS, max_time=100.0))
    assert search.max_time == 100.0
    fit(search)
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.predict(X), search.predict(X))
    with pytest.raises(ValueError, match="max_time"):
        search.set_params(max_time=-1.0).fit(X, Y)


def test_scorers_may_pickle_and_clone_pipelines():
    def scorer(estimator, X, y):
        assert pickle.loads(pickle.dumps(clone(estimator))).memory is None
        return estimator.score(X, y)

    search = GridSearchCV(make_pipeline(StandardScaler(), NETWORK), IN_PIPELINE, scoring=scorer)
    fit(search.set_params(error_score="raise"))
    assert search.best_estimator_.memory is None


def test_metadata_is_routed():
    weight = RNG.rand(len(Y))
    with sklearn.config_context(enable_metadata_routing=True):
        network = clone(NETWORK).set_fit_request(sample_weight=True)
        model = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), network)
        scorer = make_scorer(f1_score).set_score_request(sample_weight=True)
        ours = GridSearchCV(model, IN_PIPELINE, scoring=scorer, cv=theirs.GroupKFold(3))
        params = {"sample_weight": weight, "groups": np.arange(len(Y)) % 7}
        reference = theirs.GridSearchCV(**search_parameters(ours))
        assert_equal_searches(ours, reference, X, Y, counts=False, **params)


def test_configuration_reaches_the_threads():
    frame = pd.DataFrame(X, columns=list("abcdef"))

    def scorer(estimator, X, y):
        return float(isinstance(estimator[:-1].transform(X), pd.DataFrame))

    with sklearn.config_context(transform_output="pandas"):
        search = GridSearchCV(make_pipeline(StandardScaler(), NETWORK), IN_PIPELINE, scoring=scorer)
        assert fit(search, frame, Y).best_score_ == 1.0


def test_context_variables_reach_the_threads():
    NAME.set("the caller's")
    fit(GridSearchCV(NETWORK, ALPHAS, error_score="raise", scoring=named))


NAME: ContextVar[str] = ContextVar("NAME")


def named(estimator, X, y):
    return float(NAME.get() == "the caller's")


def test_warning_filters_are_as_before():
    before = list(warnings.filters)
    fit(GridSearchCV(NETWORK, ALPHAS))
    assert warnings.filters == before


class Recorder:
    """A callback of scikit-learn's that notes down tasks, those of the models, too."""

    max_propagation_depth = None

    def __init__(self):
        self.begun, self.ended = [], []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        self.begun.append(context.task_name)

    def on_fit_task_end(self, estimator, context):
        self.ended.append(context.task_name)


@pytest.mark.parametrize("in_pipeline", [False, True])
def test_callbacks_hear_the_same(in_pipeline):
    model = make_pipeline(StandardScaler(), NETWORK) if in_pipeline else NETWORK
    grid = IN_PIPELINE if in_pipeline else ALPHAS
    heard = []
    for kind in (theirs.GridSearchCV, GridSearchCV):
        recorder = Recorder()
        fit(kind(model, grid, cv=3).set_callbacks(recorder))
        assert Counter(recorder.begun) == Counter(recorder.ended)
        heard.append(Counter(recorder.begun))
    spared = {"fit": 3 * 4 - 3} if in_pipeline else {}  # fits of a scaler, which did not happen
    assert heard[0] - heard[1] == Counter(spared)
    assert not heard[1] - heard[0]


def test_progress_bar(capsys):
    fit(GridSearchCV(NETWORK, ALPHAS, cv=3).set_callbacks(ProgressBar()))
    assert "100%" in capsys.readouterr().out
    search = GridSearchCV(make_pipeline(StandardScaler(), NETWORK), IN_PIPELINE, cv=3)
    fit(search.set_callbacks(ProgressBar(max_propagation_depth=None)))
    assert "100%" in capsys.readouterr().out


def test_fits_are_cut_short_when_time_is_over():
    network = MLPClassifier((4,), tol=0.0, n_iter_no_change=10**9, random_state=0)
    grid = [{"max_iter": [2, 3]}, {"max_iter": [10**7, 10**8]}]
    started = time.perf_counter()
    search = GridSearchCV(network, grid, cv=2, max_time=2.0)
    error, warned = outcome(search, X, Y)
    assert error is None
    assert time.perf_counter() - started < 30
    assert np.isfinite(search.cv_results_["mean_test_score"]).tolist() == [True, True, False, False]
    assert search.best_index_ < 2
    assert any("ended by max_time=2.0: of 4 candidates, 2 are not" in text for _, text in warned)
    with pytest.raises(ValueError, match=r"^max_time=0.2 seconds were over before a candidate"):
        fit(search.set_params(param_grid=grid[1], max_time=0.2))


def test_several_scores_when_time_is_over():
    network = MLPClassifier((4,), tol=0.0, n_iter_no_change=10**9, random_state=0)
    grid = {"max_iter": [2, 10**8]}
    for scoring in (["accuracy", "f1"], many):
        options = {"refit": False, "max_time": 2.0, "return_train_score": True}
        search = fit(GridSearchCV(network, grid, cv=2, scoring=scoring, **options))
        for name in ("accuracy", "f1") if scoring is not many else ("one", "two"):
            for part in ("train", "test"):
                scores = search.cv_results_[f"mean_{part}_{name}"]
                assert np.isfinite(scores).tolist() == [True, False]


INTERRUPTED = """
    import os, signal, threading, time, warnings
    import numpy as np
    from fastmlp import MLPClassifier
    from fastmlp.model_selection import GridSearchCV

    warnings.simplefilter("ignore")
    X = np.random.RandomState(0).randn(90, 6)
    y = (X[:, 0] > 0).astype(int)
    network = MLPClassifier((4,), tol=0.0, n_iter_no_change=10**9, random_state=0)
    network.fit(X, y)
    scored, sent = [], []

    def score(estimator, X, y):
        scored.append(estimator)
        return estimator.score(X, y)

    def interrupt(n):
        while len(scored) < n:
            time.sleep(0.1)
        time.sleep(1)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    for grid, n in ({"max_iter": [3, 10**8, 4]}, 4), ({"max_iter": [10**8, 10**9]}, 0):
        scored.clear()
        threading.Thread(target=interrupt, args=(n,)).start()
        search = GridSearchCV(network, grid, scoring=score, cv=2, n_jobs=8)
        try:
            with warnings.catch_warnings(record=True, action="always") as caught:
                search.fit(X, y)
            print(np.isfinite(search.cv_results_["mean_test_score"]), search.best_params_)
            print([str(w.message) for w in caught if "search" in str(w.message)])
        except KeyboardInterrupt:
            print("interrupted", hasattr(search, "cv_results_"))
        is_late = time.perf_counter() - sent[-1] > 10
        print(is_late, "by user" in str([w.message for w in caught]))
"""


def test_interrupted_searches_keep_what_is_finished():
    lines = run_python(INTERRUPTED).splitlines()
    assert lines[0] == "[ True False  True] {'max_iter': 3}"
    assert lines[1].startswith("['The search was ended by Ctrl-C: of 3 candidates, 1 are not")
    assert lines[2:] == ["False False", "interrupted False", "False False"]


def test_memory_is_that_of_one_fold():
    """Beside the data there is one fold of them, train and test part, and little more."""
    n, d = 20_000, 200
    large = np.zeros((n, d))
    large[:, 0] = y = np.arange(n) % 2
    network = MLPClassifier((2,), max_iter=1, random_state=0)
    search = GridSearchCV(network, ALPHAS, cv=4, refit=False, n_jobs=2)
    fit(search, large[:100], y[:100])
    tracemalloc.start()
    try:
        fit(search, large, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / large.nbytes < 1.5
