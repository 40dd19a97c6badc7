"""scikit-learn's own word: its estimator checks, and its own test file for the MLP."""

import os
import re
import sys
from pathlib import Path

import pytest
from processes import run_command
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastmlp
from fastmlp import MLPClassifier, MLPEnsembleClassifier, MLPEnsembleRegressor, MLPRegressor

ESTIMATORS = [
    MLPClassifier(), MLPRegressor(),
    MLPEnsembleClassifier(n_members=2), MLPEnsembleRegressor(n_members=2),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(ESTIMATORS)
def test_estimator_checks(estimator, check):
    check(estimator)


def pytest_configure(config):
    """As a plugin of the run below: put our estimators in scikit-learn's place."""
    import sklearn.neural_network

    sklearn.neural_network.MLPClassifier = MLPClassifier
    sklearn.neural_network.MLPRegressor = MLPRegressor


def test_scikit_learns_own_test_file(tmp_path):
    command = [
        sys.executable, "-m", "pytest", "-q", "-rs", "-p", Path(__file__).stem,
        "-p", "no:cacheprovider", "--pyargs", "sklearn.neural_network.tests.test_mlp",
    ]  # fmt: skip
    here = Path(__file__).parent
    folders = (here, here.parent / "helpers", Path(fastmlp.__file__).parents[1])
    path = os.pathsep.join(map(str, folders))
    last = run_command(*command, cwd=tmp_path, PYTHONPATH=path).strip().splitlines()[-1]
    counts = dict(reversed(pair) for pair in re.findall(r"(\d+) (passed|failed|skipped)", last))
    assert set(counts) == {"passed"}, last
    assert int(counts["passed"]) >= 59
