"""Fits beside neighbours that keep a processor busy, over the same fits alone.

A neighbour is another library's thread that still spins after its work (OpenBLAS's do so for 0.1 s)
or another program that never pauses.  Whoever has one of C processors taken away cannot do better
than with C - 1 threads; so the time of one thread alone stands beside.

    python bench/neighbours.py [--rounds 7]
"""

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager

import numpy as np
from compare import PAUSE, WORKLOADS, Sklearn

import fastmlp

SECONDS = (0.1, 0.5)  # of a fit alone


@contextmanager
def nobody():
    yield


@contextmanager
def spinning_blas():
    A = np.ones((1200, 1200), np.float32)
    A @ A
    yield


@contextmanager
def busy_program():
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(PAUSE)
    yield
    process.kill()
    process.wait()


NEIGHBOURS = {"nobody": nobody, "BLAS": spinning_blas, "a busy program": busy_program}


class OneThread(Sklearn):
    def _estimator(self, epochs):
        return super()._estimator(epochs).set_params(n_threads=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for workload in WORKLOADS[:4]:
        one, as_many_as_pay = (
            kind(workload, "float32", fastmlp) for kind in (OneThread, Sklearn)
        )  # fmt: skip
        per_epoch = as_many_as_pay.run(20)
        for seconds in SECONDS:
            epochs = max(2, int(seconds / per_epoch))
            times = {(name, who): [] for name in NEIGHBOURS for who in (one, as_many_as_pay)}
            for _ in range(arguments.rounds):
                for (name, library), found in times.items():
                    time.sleep(PAUSE)
                    with NEIGHBOURS[name]():
                        found.append(epochs * library.run(epochs))
            alone = statistics.median(times["nobody", as_many_as_pay])
            print(
                f"{workload.name:12} {epochs:4} epochs, {1e3 * alone:.0f} ms alone; over that: "
                + ", ".join(
                    f"{statistics.median(found) / alone:.2f} "
                    f"({'1 thread' if who is one else 'own choice'} beside {name})"
                    for (name, who), found in times.items()
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
