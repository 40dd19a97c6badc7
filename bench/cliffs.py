"""Looks for cliffs: shapes whose time per unit of work is far above that of their neighbours.

    python bench/cliffs.py [--quick]

Sweeps the width of two hidden layers from 1 to 300 and the batch from 1 to 4096, and times an
epoch of each.  A smooth engine's time grows with the (padded) work; a point that takes much more
than both its neighbours in the sweep is a cliff.  Prints the worst ratio to the neighbours for each
sweep, and where it occurs; then the rate at other odd shapes.
"""

import argparse
import time
from itertools import pairwise

import numpy as np

from fastmlp.engine import get_engine, place
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import Optimizer


def epoch_seconds(widths, batch, activation="relu", loss="log_loss", n=4096, dtype="float32"):
    """Best time of an epoch, on one thread."""
    rng = np.random.RandomState(0)
    X = rng.normal(size=(n, widths[0])).astype(dtype)
    y = rng.randint(0, widths[-1], n)
    if loss != "log_loss":
        y = rng.normal(size=(n, widths[-1])).astype(dtype)
    objective = Objective(loss, widths[-1])
    network = Network(widths, activation, objective.out_activation)
    engine = get_engine(
        "cpu", network, dtype=dtype, objective=objective, alpha=1e-4, batch_size=batch,
        n_threads=1, optimizer=Optimizer("adam", (0.9, 0.999, 1e-8)),
    )  # fmt: skip
    engine.load(place("cpu", X, y, dtype=dtype, objective=objective))
    engine.set_parameters(network.initialise(np.random.RandomState(0), dtype))
    order, rates = np.arange(n), np.full(-(-n // batch), 1e-3)
    engine.run_epoch(order, rates)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        engine.run_epoch(order, rates)
        times.append(time.perf_counter() - start)
    return min(times)


def worst(points, seconds):
    """(ratio, point): the largest time over the larger of its two neighbours' times."""
    ratios = [
        (seconds[i] / max(seconds[i - 1], seconds[i + 1]), points[i])
        for i in range(1, len(points) - 1)
    ]
    return max(ratios)


SHAPES = {
    "odd widths 37-53-7": ((37, 53, 7), 200, "relu", "log_loss"),
    "even widths 32-64-8": ((32, 64, 8), 200, "relu", "log_loss"),
    "batch 1": ((37, 53, 7), 1, "relu", "log_loss"),
    "batch = n": ((37, 53, 7), 4096, "relu", "log_loss"),
    "one output": ((37, 53, 1), 200, "relu", "squared_error"),
    "1000 outputs": ((37, 53, 1000), 200, "relu", "log_loss"),
    "depth 8": ((37, *[53] * 8, 7), 200, "relu", "log_loss"),
    "logistic": ((37, 53, 53, 7), 200, "logistic", "log_loss"),
    "tanh": ((37, 53, 53, 7), 200, "tanh", "log_loss"),
    "relu": ((37, 53, 53, 7), 200, "relu", "log_loss"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every eighth width, fewer batches")
    quick = parser.parse_args().quick
    widths = list(range(1, 301, 8 if quick else 1))
    seconds = [epoch_seconds((20, width, width, 5), 128) for width in widths]
    ratio, width = worst(widths, seconds)
    print(f"widths 1..300, batch 128: worst {ratio:.2f} times its neighbours, at width {width}")
    exponents = np.linspace(0, 12, 13 if quick else 49).tolist()
    batches = sorted({round(2**exponent) for exponent in exponents})
    for width in (16, 64, 200):
        seconds = [epoch_seconds((20, width, width, 5), batch) for batch in batches]
        ratio, batch = worst(batches, seconds)
        print(f"batches 1..4096, width {width}: worst {ratio:.2f}, at batch {batch}")
    print(f"\n{'shape':<22} {'us per sample':>14} {'GFLOP/s':>9}")
    for name, (shape, batch, activation, loss) in SHAPES.items():
        taken = epoch_seconds(shape, batch, activation, loss)
        products = sum(a * b for a, b in pairwise(shape))
        flop = 2 * 4096 * (3 * products - shape[0] * shape[1])
        print(f"{name:<22} {1e6 * taken / 4096:14.3f} {flop / taken / 1e9:9.1f}")


if __name__ == "__main__":
    main()
