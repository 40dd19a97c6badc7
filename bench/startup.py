"""What a user waits for before anything happens, each in a process of its own.

    python bench/startup.py [--rounds 3] [--no-install] [--output FILE]

Packages and caches are private copies: one as a wheel brings it, one without compiled kernels.  The
first fit is timed after scikit-learn and fastmlp were imported.  ``--no-install`` leaves out the
README's first command, which needs to reach a package index.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST_CALLS = """
import time, warnings
warnings.simplefilter("ignore")
import numpy as np, sklearn.neural_network, fastmlp

def took(call):
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    print(time.perf_counter() - wall, time.process_time() - cpu)
    return result

X = np.random.RandomState(0).normal(size=(1000, 64))
y = np.arange(1000) % 10
model = fastmlp.MLPClassifier((100,), max_iter=1)
took(lambda: model.fit(X, y))
took(lambda: model.predict(X))
took(lambda: model.predict(X[:1]))
"""
SEARCH = """
import warnings
warnings.simplefilter("ignore")
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from fastmlp import MLPClassifier
import time

X, y = load_digits(return_X_y=True)
pipeline = make_pipeline(StandardScaler(), MLPClassifier(max_iter=100, random_state=0))
grid = {"mlpclassifier__hidden_layer_sizes": [(50,), (50, 50)],
        "mlpclassifier__alpha": [1e-4, 1e-2]}
start = time.perf_counter()
GridSearchCV(pipeline, grid, cv=3, n_jobs=2).fit(X, y)
print(time.perf_counter() - start)
"""


def run(package: Path, program: str) -> list[float]:
    """The numbers that a program prints, with this package and the cache beside it."""
    env = os.environ | {"PYTHONPATH": str(package), "FASTMLP_CACHE_DIR": str(package / "cache")}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=env, cwd=package, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def copy_package(folder: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__", "_prebuilt")
    shutil.copytree(ROOT / "fastmlp", folder / "fastmlp", ignore=ignore)
    return folder


def forget(package: Path) -> None:
    shutil.rmtree(package / "cache", ignore_errors=True)


def compiled_sizes(package: Path) -> dict[str, int]:
    """Bytes of object code for each level and element type."""
    program = "from fastmlp._compile import prebuild; prebuild('all', str)"
    run(package, program)
    sizes: dict[str, int] = {}
    for path in (package / "fastmlp" / "_prebuilt").rglob("*.o"):
        kind = f"{path.parent.name} {re.split('[-.]', path.name)[-2]}"
        sizes[kind] = sizes.get(kind, 0) + path.stat().st_size
    return dict(sorted(sizes.items()))


def install(folder: Path) -> float:
    """Seconds of the README's first command in a new environment, installation included."""
    checkout = folder / "checkout"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(checkout)], check=True)
    command = re.search(r"```sh\n(.*quickstart\.py.*)\n```", (ROOT / "README.md").read_text())
    assert command is not None
    venv = folder / "venv"
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    env = os.environ | {
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FASTMLP_CACHE_DIR": str(folder / "new cache"),
    }
    env.pop("PYTHONPATH", None)
    start = time.perf_counter()
    subprocess.run(command[1], shell=True, cwd=checkout, env=env, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(checkout)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-install", action="store_true")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    import machine

    figures: dict[str, list[float]] = {}

    def note(what: str, seconds: float) -> None:
        figures.setdefault(what, []).append(seconds)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full, bare = copy_package(folder / "full"), copy_package(folder / "bare")
        run(full, "from fastmlp._compile import prebuild; prebuild('native', str)")
        for _ in range(arguments.rounds):
            for package, kernels in ((full, "from the package"), (bare, "compiled")):
                forget(package)
                calls = ("first fit", "first predict", "first row")
                seconds = run(package, FIRST_CALLS)
                for call, wall, cpu in zip(calls, seconds[::2], seconds[1::2], strict=True):
                    note(f"{call}, kernels {kernels}", wall)
                    note(f"{call}, kernels {kernels}, processor time", cpu)
            forget(bare)
            start = time.perf_counter()
            run(bare, "import fastmlp; fastmlp.warmup()")
            note("warmup, everything compiled", time.perf_counter() - start)
            note("grid search of 12 fits on 2 processes", run(full, SEARCH)[0])
            if not arguments.no_install:
                note("README's first command in a new environment", install(folder))
        report = {
            "machine": machine.describe(),
            "seconds": {what: statistics.median(values) for what, values in figures.items()},
            "bytes of object code": compiled_sizes(full),
        }
    for what, seconds in report["seconds"].items():
        print(f"{what}: {seconds:.3f} s")
    for what, size in report["bytes of object code"].items():
        print(f"{what}: {size} bytes")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
