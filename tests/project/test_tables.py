"""A row in a table is all that a formula takes: a copy of the package has made-up ones.

They are written behind the tables of the copy, whose kernels are compiled as any others are.  Each
program below trains with a made-up row and with the same formula by another way that the library
has, and passes the model to everything that reads models.
"""

import textwrap
from pathlib import Path

import pytest
from processes import run_python

ROWS = {
    "functions.py": """
        def softsign(z):
            return z / (type(z)(1) + (z if z > 0 else -z))

        def softsign_derivative(z):
            size = type(z)(1) + (z if z > 0 else -z)
            return type(z)(1) / (size * size)

        def quartic(z, y, tiny, _):
            return type(z)(0.25) * (z - y) * (z - y) * (z - y) * (z - y)

        def quartic_gradient(z, y, _):
            return (z - y) * (z - y) * (z - y)

        def cubic(p, log_p, y, _):
            size = p - y if p > y else y - p
            return size * size * size

        def cubic_gradient(p, log_p, y, _):
            size = p - y if p > y else y - p
            return p * type(p)(3) * (p - y) * size

        ACTIVATIONS["made_up"] = Activation(softsign, softsign_derivative, of_score=True)
        LOSSES["made_up"] = Loss(quartic, quartic_gradient, "identity")
        LOSSES["made_up_class"] = Loss(
            cubic, cubic_gradient, "softmax", per_row=True, of_probability=True
        )
        LOSSES["binary_made_up_class"] = Loss(
            cubic, cubic_gradient, "logistic", of_probability=True
        )
    """,
    "optimizers.py": """
        def descend(w, g, unused, neither, rate, _1, _2, _3, _4, _5, _6):
            return w - rate * g, unused, neither

        OPTIMIZERS["made_up"] = Rule(descend, ())
    """,
    "initialisers.py": """
        def made_up(fan_in, fan_out, random_state):
            return random_state.uniform(-0.1, 0.1, (fan_in, fan_out))

        INITIALISERS["made_up"] = made_up
    """,
}
PROGRAM = """
import pickle, sys
import numpy as np
import fastmlp
from fastmlp import MLPClassifier, MLPRegressor, inspect, onnx
from fastmlp.engine import get_engine, place
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import Optimizer

X = np.random.RandomState(0).normal(size=(60, 3))
y, labels = X[:, 0] * X[:, 1], np.argmax(X, axis=1)
SMALL = {"hidden_layer_sizes": (6, 4), "max_iter": 5, "random_state": 0}

def refusal(export, model):
    try:
        export(model)
    except ValueError as error:
        return str(error)

def same(model, other):
    for mine, theirs in zip(model.coefs_, other.coefs_, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-9)

def passes_everywhere(model, target, parameter=None):
    "Files, pickles, other languages (that may refuse ``parameter``) and inspection."
    predicted = model.predict(X)
    fastmlp.io.save(model, sys.argv[1], optimizer_state=True)
    for other in (fastmlp.io.load(sys.argv[1]), pickle.loads(pickle.dumps(model))):
        assert other.get_params() == model.get_params()
        np.testing.assert_array_equal(other.predict(X), predicted)
        if model.solver != "lbfgs":
            again = pickle.loads(pickle.dumps(model))
            same(other.partial_fit(X, target), again.partial_fit(X, target))
    for export, language in ((onnx.to_onnx, "ONNX"), (fastmlp.to_c, "C")):
        said = refusal(export, model)
        assert said is None or f"{parameter}='made_up' has no form in {language}" in said, said
        assert (said is None) == (parameter is None)
    outputs = inspect.forward(model, X).a[-1]
    found = predicted[:, None]
    if hasattr(model, "classes_"):
        found = model.predict_proba(X)[:, -outputs.shape[1] :]
    np.testing.assert_allclose(outputs, found, rtol=1e-6, atol=1e-9)
    assert inspect.check_gradients(model, X, target).worst.error < 1e-4
    for row in range(3):
        np.testing.assert_allclose(model.predict(X[row : row + 1]), predicted[row])
"""
ACTIVATION = """
    pair = (lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2)
    for solver in ("adam", "lbfgs"):
        for chosen, own in (("made_up", pair), (["made_up", "tanh"], [pair, "tanh"])):
            model = MLPRegressor(activation=chosen, solver=solver, **SMALL).fit(X, y)
            same(model, MLPRegressor(activation=own, solver=solver, **SMALL).fit(X, y))
            passes_everywhere(model, y, "activation")
"""
REGRESSION = """
    own = (lambda z, y: 0.25 * (z - y) ** 4, lambda z, y: (z - y) ** 3)
    for solver in ("adam", "lbfgs"):
        model = MLPRegressor("made_up", solver=solver, **SMALL).fit(X, y)
        same(model, MLPRegressor(own, solver=solver, **SMALL).fit(X, y))
        passes_everywhere(model, y)
"""
CLASSIFICATION = """
    own = (lambda p, y: abs(p - y) ** 3, lambda p, y: 3 * (p - y) * abs(p - y))
    for target in (labels, labels > 0):
        model = MLPClassifier(loss="made_up_class", **SMALL).fit(X, target)
        same(model, MLPClassifier(loss=own, **SMALL).fit(X, target))
        passes_everywhere(model, target)
"""
SOLVER = """
    model = MLPRegressor(solver="made_up", weight_decay=0.1, **SMALL).fit(X, y)
    same(model, MLPRegressor(solver="sgd", momentum=0.0, weight_decay=0.1, **SMALL).fit(X, y))
    passes_everywhere(model, y)
"""
INITIALISER = """
    model = MLPRegressor(weight_init="made_up", **SMALL).fit(X, y)
    own = lambda n, m, random_state: random_state.uniform(-0.1, 0.1, (n, m))
    same(model, MLPRegressor(weight_init=own, **SMALL).fit(X, y))
    passes_everywhere(model, y)
"""
ENGINE = """
    def trained(loss, rule, momentum=0.0):
        objective = Objective(loss, 3)
        network = Network((3, 5, 3), "made_up", objective.out_activation)
        optimizer = Optimizer(rule, (momentum, 0.0, 0.0), weight_decay=0.1)
        options = {"dtype": X.dtype, "objective": objective}
        engine = get_engine("cpu", network, optimizer=optimizer, batch_size=20, **options)
        engine.load(place("cpu", X, labels if objective.row.per_row else X, **options))
        parameters = np.random.RandomState(1).normal(size=network.n_parameters)
        engine.set_parameters(parameters)
        _, gradient = engine.loss_and_gradient()
        for i in range(0, network.n_parameters, 7):
            values = []
            for change in (-1e-6, 1e-6):
                engine.set_parameters(parameters + change * (np.arange(gradient.size) == i))
                values.append(engine.loss_and_gradient()[0])
            np.testing.assert_allclose(gradient[i], np.diff(values)[0] / 2e-6, rtol=1e-5, atol=1e-7)
        engine.set_parameters(parameters)
        engine.run_epoch(np.arange(60), np.full(3, 0.01))
        return engine.get_parameters()

    for loss in ("made_up", "made_up_class", "binary_made_up_class"):
        np.testing.assert_allclose(trained(loss, "made_up"), trained(loss, "sgd"), rtol=1e-12)
"""


@pytest.fixture(scope="module")
def package_with_rows(package_copy, tmp_path_factory):
    """A folder with a copy of the package that has the made-up rows."""
    folder = package_copy(tmp_path_factory.mktemp("rows"))
    for name, rows in ROWS.items():
        path = folder / "fastmlp" / name
        path.write_text(path.read_text() + "\n" + textwrap.dedent(rows))
    return folder


def run(program, package: Path, file: Path):
    """One of the programs, on a copy of the package; its kernels go where all do, and stay."""
    run_python(PROGRAM + textwrap.dedent(program), file, PYTHONPATH=str(package))


def test_every_engine_trains_with_rows(package_with_rows, tmp_path):
    run(ENGINE, package_with_rows, tmp_path / "model")


CASES = {
    "activation": ACTIVATION,
    "loss of a regressor": REGRESSION,
    "loss of a classifier": CLASSIFICATION,
    "solver": SOLVER,
    "initialiser": INITIALISER,
}


@pytest.mark.parametrize("program", CASES.values(), ids=CASES)
def test_a_row_is_all_that_an_estimator_needs(program, package_with_rows, tmp_path):
    run(program, package_with_rows, tmp_path / "model")
