"""The disk cache: used across processes, never stale, never needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastmlp

PROGRAM = """
import sys, numpy as np
from fastmlp.engine import get_engine
from fastmlp.network import Network
engine = get_engine("cpu", Network((1, 1), "relu", "poisson"), dtype="float64")
engine.set_parameters(np.array([1.0, -1.0]))
print(engine.predict(np.array([[1.0]]))[0, 0])
from fastmlp.engine.cpu.kernels import KERNELS
dispatcher = KERNELS["float64"].run_rows._dispatcher
print(sum(dispatcher.stats.cache_hits.values()))
"""

E = "1.0"  # exp(0), exactly


def run(folder, program=PROGRAM, **env):
    command = [sys.executable, "-c", program]
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"} | env
    result = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.fixture
def package(tmp_path):
    """A private copy of the package, without any cache."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(fastmlp.__file__).parent, tmp_path / "fastmlp", ignore=ignore)
    return tmp_path


def cache_files(package):
    return sorted(package.rglob("*.nb[ic]"))


def test_cache_is_used_and_never_stale(package):
    assert run(package) == [E, "0"]
    assert run(package) == [E, "1"]
    functions = package / "fastmlp" / "functions.py"
    functions.write_text(functions.read_text().replace(
        '    """``exp(z)``: the output activation of Poisson regression."""\n    return exp(z)',
        '    """Edited."""\n    return 2 * exp(z)',
    ))  # fmt: skip
    value, hits = run(package)
    assert float(value) == pytest.approx(2 * float(E))
    assert hits == "0"


def test_a_damaged_cache_costs_a_compilation(package):
    expected = run(package)[0]
    for damage in (b"", b"rubbish", None):
        for path in cache_files(package):
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2] if damage is None else damage)
        assert run(package)[0] == expected


def test_nothing_writable(package, tmp_path):
    """No place for a cache: Numba would refuse to decorate."""
    blocker = tmp_path / "a-file"
    blocker.write_text("")
    program = f"""
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError("read-only"))
{PROGRAM}"""
    assert run(package, program)[0] == E
    assert not cache_files(package)


def test_a_full_disk(package):
    """Writing the compiled code fails after compilation."""
    program = f"""
import numba.core.caching as caching
def full(self, *args):
    raise OSError(28, "No space left on device")
caching.IndexDataCacheFile.save = full
{PROGRAM}"""
    assert run(package, program)[0] == E


def test_warmup_leaves_nothing_to_compile(package):
    program = """
import fastmlp, numpy as np, time, numba
fastmlp.warmup()
seen = []
from numba.core import event
class Listener(event.Listener):
    def on_start(self, event): seen.append(event.kind)
    def on_end(self, event): pass
with event.install_listener("numba:compile", Listener()):
    for dtype in (np.float32, np.float64):
        X = np.random.RandomState(0).normal(size=(30, 3)).astype(dtype)
        for solver in ("adam", "sgd", "lbfgs"):
            model = fastmlp.MLPClassifier((5,), "tanh", solver=solver, early_stopping=True)
            model.set_params(max_iter=2).fit(X, X[:, 0] > 0, np.ones(30)).predict_proba(X)
            fastmlp.MLPRegressor(solver=solver, max_iter=2).fit(X, X[:, :2]).predict(X)
print(len(seen))
"""
    assert run(package, f"import warnings; warnings.simplefilter('ignore')\n{program}") == ["0"]
