"""Fitted models that every export is compared on: each activation, head and kind of label."""

import numpy as np

from fastmlp import MLPClassifier, MLPEnsembleClassifier, MLPEnsembleRegressor, MLPRegressor

DTYPES = ("float32", "float64")
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
N_FEATURES = 6
EXTREME = [-1e4, -88.0, -30.0, -3.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 3.0, 30.0, 88.0, 1e4]
HEADS = {
    "one target": MLPRegressor(),
    "three targets": MLPRegressor(),
    "no hidden layer": MLPRegressor(hidden_layer_sizes=()),
    "exp": MLPRegressor(loss="poisson"),
    "quantiles": MLPRegressor(loss="quantile", quantile=[0.9, 0.1, 0.5, 0.7], activation="tanh"),
    "own loss": MLPRegressor(loss=(lambda p, y: (p - y) ** 4, lambda p, y: 4 * (p - y) ** 3)),
    "layer_norm": MLPRegressor(layer_norm=True),
    "mix": MLPRegressor(activation=["gelu", "identity", "step"], hidden_layer_sizes=(5, 4, 7)),
    "two classes": MLPClassifier(),
    "four classes": MLPClassifier(),
    "focal": MLPClassifier(loss="focal"),
    "labels": MLPClassifier(),
    "one class": MLPClassifier(),
}
LABELS = {
    "strings": np.array(["c", "a", "été"]),
    "objects": np.array(["Oslo", "Rome, the eternal", ""], dtype=object),
    "integers": np.array([-(2**63), 5, 2**63 - 1]),
    "unsigned": np.array([3, 0, 255], np.uint8),
    "floats": np.array([2.0, -1.0, 7.0]),
    "booleans": np.array([False, True]),
}


def samples(dtype, n=40):
    return np.random.default_rng(0).normal(size=(n, N_FEATURES)).astype(dtype)


def targets(head, X):
    """Targets that suit a head of `HEADS`."""
    if head in ("three targets", "labels"):
        y = X[:, :3] ** 2
        return (y > 0.5).astype(int) if head == "labels" else y
    if head in ("two classes", "four classes", "focal", "one class"):
        bins = {"two classes": [0], "one class": []}.get(head, [-1, 0, 1])
        return np.digitize(X[:, 0], bins)
    return X[:, 0] ** 2


def fit_head(head, dtype):
    model, X = HEADS[head], samples(dtype)
    return _fit(model, X, targets(head, X))


def fit_ensemble(head, dtype):
    """Three networks with a head of `HEADS`."""
    model, X = HEADS[head], samples(dtype)
    kind = MLPEnsembleRegressor if isinstance(model, MLPRegressor) else MLPEnsembleClassifier
    estimator = model.__class__(**model.get_params()).set_params(max_iter=3)
    return kind(estimator, 3, random_state=0).fit(X, targets(head, X))


def fit_activation(activation, dtype):
    X = samples(dtype)
    return _fit(MLPRegressor(hidden_layer_sizes=(7, 5), activation=activation), X, X[:, :2])


def label(kind, X):
    """Labels of `LABELS` for samples."""
    labels = LABELS[kind]
    return labels[np.digitize(X[:, 0], [-0.5, 0.5][: len(labels) - 1])]


def fit_labels(kind):
    X = samples("float32")
    return _fit(MLPClassifier((4,)), X, label(kind, X))


def elementwise(activation, dtype):
    """A network whose outputs are the activation of its inputs."""
    X = np.tile(np.array(EXTREME, dtype)[:, None], N_FEATURES)
    model = MLPRegressor(hidden_layer_sizes=(N_FEATURES,), activation=activation)
    model = _fit(model, X, np.tanh(X))
    model.coefs_ = [np.eye(N_FEATURES, dtype=dtype)] * 2
    model.intercepts_ = [np.zeros(N_FEATURES, dtype)] * 2
    return model, X


def without_preference(head, dtype="float64"):
    """All outputs equal, so that thresholds and ties show."""
    model = fit_head(head, dtype)
    for array in (*model.coefs_, *model.intercepts_):
        array[:] = 0
    return model


def _fit(model, X, y):
    return model.__class__(**model.get_params()).set_params(max_iter=3, random_state=0).fit(X, y)


def assert_close(got, expected, dtype):
    """To `TOLERANCE`, relative to numbers above 1."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == dtype
    error = np.abs(got - expected) / np.maximum(1, np.abs(expected))
    assert error.max() <= TOLERANCE[dtype]
