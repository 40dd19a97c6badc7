"""Files, pickles and checkpoints of an earlier version are read, and training goes on from them."""

import json
import pickle
import shutil

import numpy as np
import pytest
import written

from fastmlp import InconsistentVersionWarning
from fastmlp.io import load

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
EXPECTED = json.loads((written.DATA / "expected.json").read_text())


def from_file(name):
    return load(written.DATA / f"{name}.safetensors")


def from_pickle(name):
    return pickle.loads((written.DATA / f"{name}.pickle").read_bytes())


@pytest.mark.filterwarnings("ignore", category=InconsistentVersionWarning)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning")
@pytest.mark.parametrize("read", [from_file, from_pickle])
@pytest.mark.parametrize("name", list(written.TARGETS))
def test_models(read, name):
    model = read(name)
    np.testing.assert_allclose(written.outputs(model), EXPECTED[name], rtol=1e-9, atol=1e-12)
    if model.solver == "lbfgs":
        return
    model.early_stopping = False
    model.partial_fit(written.X, written.TARGETS[name])
    more = EXPECTED[f"{name}, one epoch more"]
    np.testing.assert_allclose(written.outputs(model), more, rtol=1e-9, atol=1e-12)
    assert not np.array_equal(EXPECTED[name], more)


def test_checkpoint(tmp_path):
    shutil.copy(written.DATA / "fit.checkpoint", tmp_path)
    model = written.resumable(tmp_path, max_iter=9)
    model.fit(written.X, written.WORDS, resume=True)
    assert model.n_iter_ == 9
    np.testing.assert_allclose(written.outputs(model), EXPECTED["resumed"], rtol=1e-9, atol=1e-12)
