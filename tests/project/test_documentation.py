"""Public documentation: numpydoc's sections, parameters that exist, an example for everything.

That the examples run is what ``pytest --doctest-modules fastmlp`` sees to.
"""

import ast
import inspect
import re
import textwrap
from importlib import import_module
from importlib.util import find_spec

import pytest

import fastmlp

MODULES = ("dask", "inspect", "io", "model_selection", "onnx", "plotting", "tabular")
ESTIMATORS = ("MLPClassifier", "MLPRegressor", "MLPEnsembleClassifier", "MLPEnsembleRegressor")


def public():
    """{dotted name: object} of what users call."""
    found = {name: getattr(fastmlp, name) for name in fastmlp.__all__}
    for name in MODULES:
        if name == "dask" and not find_spec("distributed"):
            continue
        module = import_module(f"fastmlp.{name}")
        things = {f"{name}.{each}": getattr(module, each) for each in module.__all__}
        found |= {key: thing for key, thing in things.items() if thing not in found.values()}
    return {
        name: thing
        for name, thing in found.items()
        if callable(thing)
        and not (inspect.isclass(thing) and issubclass(thing, Warning))
        and thing.__module__.startswith("fastmlp")
    }


def methods(kind):
    """{name: function} of what a class of ours has for users, its own and inherited from ours."""
    names = {name for base in kind.__mro__ for name in vars(base) if not name.startswith("_")}
    found = {name: getattr(kind, name) for name in sorted(names)}
    return {
        name: method
        for name, method in found.items()
        if callable(method) and inspect.unwrap(method).__module__.startswith("fastmlp")
    }


CALLABLES = public()
CLASSES = {name: thing for name, thing in CALLABLES.items() if inspect.isclass(thing)}
METHODS = {
    f"{name}.{method}": function
    for name, kind in CLASSES.items()
    for method, function in methods(kind).items()
}
PUBLIC = CALLABLES | METHODS
WITH_EXAMPLES = [name for name in PUBLIC if name in CALLABLES or name.startswith(ESTIMATORS)]


def test_the_list_is_complete():
    assert {"to_c", "inspect.step", "onnx.to_onnx", "plotting.WeightsDisplay"} <= CALLABLES.keys()
    assert {"MLPClassifier.predict_proba", "MLPRegressor.partial_fit"} <= METHODS.keys()
    assert "plotting.WeightsDisplay.from_estimator" in METHODS


def sections(thing):
    """{title: text} of a docstring in numpydoc's form."""
    parts = re.split(r"^(\w[\w ]*)\n-+\n", inspect.getdoc(thing), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def described(thing, section):
    """Names that a section describes."""
    lines = re.findall(r"^(?:\*\*)?(\w[\w, ]*) :", sections(thing).get(section, ""), re.MULTILINE)
    return {one for names in lines for one in names.split(", ")}


def code_of(thing):
    """Its syntax tree; for a class that of its constructor."""
    function = inspect.unwrap(thing.__init__ if inspect.isclass(thing) else thing)
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        return ast.Module([], [])
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def own(kind):
    """(name, value) of what the classes of ours define that a class is made of."""
    ours = (base for base in kind.__mro__ if base.__module__.startswith("fastmlp"))
    return [item for base in ours for item in vars(base).items()]


def properties(kind):
    return {key for key, value in own(kind) if isinstance(value, property)}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_there_is_an_example(name):
    example = sections(PUBLIC[name]).get("Examples", "")
    assert ">>> " in example
    assert "+SKIP" not in example


@pytest.mark.parametrize("name", PUBLIC)
def test_all_parameters_are_described_and_no_others(name):
    thing = PUBLIC[name]
    assert described(thing, "Parameters") == set(inspect.signature(thing).parameters) - {"self"}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_comes_back_is_described(name):
    thing = PUBLIC[name]
    if not inspect.isclass(thing) and thing.__annotations__.get("return", 0) is not None:
        assert "Returns" in sections(thing)


@pytest.mark.parametrize("name", PUBLIC)
def test_errors_that_are_raised_here_are_described(name):
    raises = sections(PUBLIC[name]).get("Raises", "")
    for node in ast.walk(code_of(PUBLIC[name])):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            assert ast.unparse(node.exc.func) in raises.split()


@pytest.mark.parametrize("name", CLASSES)
def test_all_attributes_are_described(name):
    """Those that methods set, and properties."""
    kind = CLASSES[name]
    attributes = properties(kind) | {
        node.attr
        for _, method in own(kind)
        if inspect.isfunction(method) and inspect.unwrap(method).__module__.startswith("fastmlp")
        for node in ast.walk(code_of(method))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
    }
    attributes -= set(inspect.signature(kind).parameters)
    assert {key for key in attributes if key[0] != "_"} <= described(kind, "Attributes")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_all_attributes_of_a_fitted_estimator_are_described(name):
    X, y = [[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]
    kind, settings = CLASSES[name], {"early_stopping": True, "n_iter_no_change": 1, "tol": 1e3}
    if "Ensemble" in name:
        model = kind(CLASSES[name.replace("Ensemble", "")](**settings), n_members=2)
    else:
        model = kind(n_restarts=2, **settings)
    model.fit(X, y, X_val=X, y_val=y)
    attributes = set(vars(model)) | properties(kind)
    attributes = {key for key in attributes - model.get_params().keys() if key[0] != "_"}
    assert attributes & {"history_", "members_"}
    assert attributes <= described(kind, "Attributes")
