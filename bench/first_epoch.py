"""How long people wait for the first epoch: from the start of Python, imports and all.

    python bench/first_epoch.py [--rounds 3] [--only digits] [--readme]

Each library trains one epoch of a network of ``compare.py``, float32, in a process of its own, with
whatever it keeps on disk already there (PyTorch's compiler keeps its results, JAX does not).  The
cold start is fastmlp's where nothing is compiled yet, as after an installation without kernels.
Medians of the rounds, libraries in turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from compare import WORKLOADS, contestants
from readme import put_into_readme
from startup import ROOT, copy_package, forget, run

COLUMNS = {
    "fastmlp": "fastmlp", "fastmlp, cold": "fastmlp", "scikit-learn": "scikit-learn",
    "PyTorch": "PyTorch", "PyTorch compiled": "PyTorch compiled", "JAX": "JAX",
}  # fmt: skip


def train_one_epoch(library: str, name: str) -> None:
    """What the child does, and print the time of day."""
    warnings.simplefilter("ignore")
    workload = next(w for w in WORKLOADS if w.name == name)
    contestants(workload, "float32", ())[library]().run(1)
    print(time.time())


def seconds_until(library: str, name: str, package: Path) -> float:
    """From the start of the child until it has trained."""
    env = os.environ | {"PYTHONPATH": str(package), "FASTMLP_CACHE_DIR": str(package / "cache")}
    command = [sys.executable, __file__, "--child", library, name]
    started = time.time()
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) - started


def measure(workloads, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds by workload and column."""
    found: dict[str, dict[str, list[float]]] = {w.name: {c: [] for c in COLUMNS} for w in workloads}
    with tempfile.TemporaryDirectory() as name:
        packages = {kind: copy_package(Path(name) / kind) for kind in ("warm", "cold")}
        run(packages["warm"], "from fastmlp._compile import prebuild; prebuild('native', str)")
        for turn in range(rounds + 1):  # the first fills the caches
            for workload, columns in found.items():
                for column, seconds in columns.items():
                    package = packages["cold" if "cold" in column else "warm"]
                    forget(package)
                    took = seconds_until(COLUMNS[column], workload, package)
                    if turn:
                        seconds.append(took)
    return {
        workload: {column: statistics.median(seconds) for column, seconds in columns.items()}
        for workload, columns in found.items()
    }


def table(found, machine) -> str:
    """Markdown, for people."""
    lines = [
        f"Seconds from the start of Python to the end of the first epoch, float32, on "
        f"{machine['cores']} cores of {machine['cpu']}. Cold is fastmlp without compiled kernels.",
        "",
        "| workload | " + " | ".join(COLUMNS) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for workload, seconds in found.items():
        cells = " | ".join(f"{seconds[column]:.1f}" for column in COLUMNS)
        lines.append(f"| {workload} | {cells} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[w.name for w in WORKLOADS])
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--child", nargs=2, metavar=("LIBRARY", "WORKLOAD"), help="for this script")
    arguments = parser.parse_args()
    if arguments.child:
        train_one_epoch(*arguments.child)
        return
    from machine import describe  # brings Numba

    os.chdir(ROOT)
    workloads = [w for w in WORKLOADS if not arguments.only or w.name in arguments.only]
    text = table(measure(workloads, arguments.rounds), describe())
    print(text)
    if arguments.readme:
        put_into_readme(text, "first epoch")


if __name__ == "__main__":
    main()
