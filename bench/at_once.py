"""Several fits at once in threads of one process, and how much longer each round of them takes.

On C cores n fits cannot take less than n / C times one that uses all cores; more than n times one
means that threads stand in each other's way.  Each library runs as its users would run it, with its
own choice of threads.

    python bench/at_once.py [--rounds 5] [--workload digits]
"""

import argparse
import statistics
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import sklearn.neural_network
from compare import PAUSE, WORKLOADS, Sklearn, Torch

import fastmlp

FITS = (1, 2, 8)
SECONDS = 0.5  # of one fit alone


def seconds_for(libraries, epochs):
    """Wall time of one fit by each, side by side."""
    with ThreadPoolExecutor(len(libraries)) as pool:
        start = time.perf_counter()
        for job in [pool.submit(library.run, epochs) for library in libraries]:
            job.result()
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workload", default="digits")
    arguments = parser.parse_args()
    workload = next(w for w in WORKLOADS if w.name == arguments.workload)
    cores = joblib.cpu_count()
    makers = {
        "fastmlp": lambda: Sklearn(workload, "float32", fastmlp),
        "scikit-learn": lambda: Sklearn(workload, "float32", sklearn.neural_network),
        "PyTorch": lambda: Torch(workload, "float32", cores, False),
    }
    libraries = {name: [make() for _ in range(max(FITS))] for name, make in makers.items()}
    epochs = {}
    for name, copies in libraries.items():
        copies[0].run(1)
        epochs[name] = max(2, int(SECONDS / copies[0].run(2)))
    times = {(name, n): [] for name in libraries for n in FITS}
    for _ in range(arguments.rounds):
        for name, n in times:
            time.sleep(PAUSE)
            times[name, n].append(seconds_for(libraries[name][:n], epochs[name]))
    print(
        f"{workload.name}, {cores} cores: median of {arguments.rounds} rounds, times one fit alone"
    )
    for name in libraries:
        alone = statistics.median(times[name, 1])
        ratios = [statistics.median(times[name, n]) / alone for n in FITS[1:]]
        shown = ", ".join(f"{n} at once {r:.2f}" for n, r in zip(FITS[1:], ratios, strict=True))
        print(f"  {name:14s} alone {1e3 * alone / epochs[name]:8.3f} ms per epoch; {shown}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
