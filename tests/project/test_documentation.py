"""Public documentation: numpydoc's sections, parameters that exist, an example for everything."""

import inspect
import re
from importlib import import_module

import pytest

import fastmlp

MODULES = ("io", "inspect", "model_selection", "onnx", "plotting")
METHODS = ("fit", "partial_fit", "predict", "predict_proba", "predict_log_proba", "score")


def public():
    """{dotted name: object} of what users call."""
    found = {name: getattr(fastmlp, name) for name in fastmlp.__all__}
    for module in MODULES:
        names = import_module(f"fastmlp.{module}").__all__
        found |= {f"{module}.{name}": getattr(getattr(fastmlp, module), name) for name in names}
    for name in ("MLPClassifier", "MLPRegressor", "MLPEnsembleClassifier", "MLPEnsembleRegressor"):
        estimator = getattr(fastmlp, name)
        found |= {f"{name}.{m}": getattr(estimator, m) for m in METHODS if hasattr(estimator, m)}
    return {
        name: thing
        for name, thing in found.items()
        if callable(thing)
        and not (inspect.isclass(thing) and issubclass(thing, Warning))
        and thing.__module__.startswith("fastmlp")
    }


PUBLIC = public()


def sections(thing):
    """{title: text} of a docstring in numpydoc's form."""
    parts = re.split(r"^(\w[\w ]*)\n-+\n", inspect.getdoc(thing), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", PUBLIC)
def test_there_is_an_example(name):
    assert ">>> " in sections(PUBLIC[name]).get("Examples", "")


@pytest.mark.parametrize("name", PUBLIC)
def test_all_parameters_are_described_and_no_others(name):
    thing = PUBLIC[name]
    described = re.findall(r"^(\w[\w, ]*) :", sections(thing).get("Parameters", ""), re.MULTILINE)
    described = {one for names in described for one in names.split(", ")}
    assert described == set(inspect.signature(thing).parameters) - {"self"}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_comes_back_is_described(name):
    thing = PUBLIC[name]
    if not inspect.isclass(thing) and thing.__annotations__.get("return", 0) is not None:
        assert "Returns" in sections(thing)
