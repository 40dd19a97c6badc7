"""Signature, table and documentation of the parameters say the same."""

import inspect
import re

import numpy as np
import pytest
from models import quietly

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.estimators.parameters import CLASSIFIER, REGRESSOR, SOLVERS

TABLES = {MLPClassifier: CLASSIFIER, MLPRegressor: REGRESSOR}
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)


@pytest.mark.parametrize("kind", TABLES)
def test_signature(kind):
    found = {
        name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()
    }
    assert found == {name: row.default for name, row in TABLES[kind].items()}
    assert list(found) == list(TABLES[kind])
    assert kind().get_params() == found
    assert set(kind._parameter_constraints) == set(found)


@pytest.mark.parametrize("kind", TABLES)
def test_documentation(kind):
    text = inspect.getdoc(kind)
    section = text.partition("Parameters\n----------\n")[2].partition("\nAttributes\n")[0]
    entries = dict(re.findall(r"^(\w+) : .*, default=(.*)$", section, re.MULTILINE))
    assert entries == {name: repr(row.default) for name, row in TABLES[kind].items()}
    assert list(entries) == list(TABLES[kind])
    assert "\n    " in section
    for name, row in TABLES[kind].items():
        assert row.doc.strip().endswith("."), name


@pytest.mark.parametrize("kind", TABLES)
def test_documented_attributes_are_there(kind):
    text = inspect.getdoc(kind).partition("Attributes\n----------\n")[2].partition("\nSee Also")[0]
    names = [name for line in re.findall(r"^([\w, ]+) : ", text, re.MULTILINE)
             for name in line.split(", ")]  # fmt: skip
    model = quietly(kind(max_iter=2, early_stopping=True).fit, X, Y)
    assert len(names) > 15
    assert [name for name in names if not hasattr(model, name)] == ["feature_names_in_"]
    public = {name for name in vars(model) if name.endswith("_") and name[0] != "_"}
    assert public <= set(names)


OTHERS = {
    "weight_decay": 0.1,
    "warmup_epochs": 2,
    "dropout": 0.5,
    "max_grad_norm": 1.0,
    "ema_decay": 0.9,
    "checkpoint": "file",
}


def test_what_only_stochastic_solvers_have_is_refused_by_name():
    rows = {name for name, row in CLASSIFIER.items() if row.instead is not None}
    assert rows == set(OTHERS)
    assert "lbfgs" in SOLVERS
    for name, value in OTHERS.items():
        model = MLPClassifier(solver="lbfgs", **{name: value})
        with pytest.raises(ValueError, match=f"^{name} does not work with solver='lbfgs'; use "):
            model.fit(X, Y)
        assert not hasattr(model, "classes_")
