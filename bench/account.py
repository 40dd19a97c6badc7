"""Where an epoch's time goes: pieces of the kernel, beside the least that the arithmetic takes.

    python bench/account.py [--dtype float32] [--only digits bank] [--seconds 3] [--output FILE]

One thread trains each network of ``compare.py`` while Linux's ``perf`` notes by the clock where it
is (which needs no counters, and works in virtual machines); what is counted is in which piece.
The floor is the exact work over one core's measured FMA rate; the padded floor counts products as
they are made, in columns of whole vectors.  What products take beyond it is the tiles' start and
end, operands that were not in L1, and the calls.

A processor that others use at the same time takes longer for all of it: what to look at is shares.

One thread of a Xeon with AVX-512, 2026-11-26; of float32 first, then of float64:

    network   floor  padded    products  optimizer    loss  activations    copy    the rest
    bank        38%     50%       56.4%      19.5%    5.6%         0.0%    4.4%       14.1%
    odd         49%     61%       66.1%      11.3%    6.5%         0.0%    5.5%       10.6%
    letters     57%     67%       74.1%       5.5%    9.8%         0.0%    2.5%        8.1%
    logit       31%     50%       52.2%      10.1%    7.3%         0.0%   21.5%        8.9%
    tanh        57%     62%       66.1%       7.5%    2.3%        16.2%    2.7%        5.3%
    deep        71%     73%       80.2%       9.5%    1.9%         0.0%    2.5%        5.9%
    wide        78%     78%       84.6%       4.9%    0.1%         0.0%    5.1%        5.3%

    bank        45%     49%       60.3%      20.3%    4.4%         0.0%    4.4%       10.5%
    odd         53%     58%       69.9%      10.8%    4.9%         0.0%    5.8%        8.5%
    letters     57%     65%       75.0%       5.6%   10.1%         0.0%    2.5%        6.6%
    logit       36%     44%       53.7%      10.9%    7.3%         0.0%   21.0%        7.2%
    tanh        53%     55%       62.5%       7.3%    2.2%        20.2%    3.2%        4.5%
    deep        68%     69%       80.5%       9.9%    1.5%         0.0%    2.8%        5.3%
    wide        71%     71%       84.6%       6.0%    0.1%         0.0%    5.5%        3.8%

So products run at 0.81 to 0.96 of the FMA rate (OpenBLAS reaches 0.75 there and MKL 0.82 with
operands of 512 x 1024 x 1024, and 0.4 to 0.8 with those of small networks).  To be 5 times as fast
as JAX on bank (3.3 times), all but 66 % of the time would have to go; with products at the FMA rate
they and the optimizer would still take 70 %.  With products at that rate odd would be 3.5 times as
fast (now 3.3, wanted 4), and deep on one thread 2.4 times (2.3, wanted 2.5).  On logit, padding
from 20 columns to 32 takes a third of the products, and samples from outside of the caches a fifth
of the time.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import machine
import numpy as np
from compare import HELD_OUT, RATE, WORKLOADS

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.engine import images, objects, processor

SAMPLES_PER_SECOND = 4000
KINDS = {
    "products": ("tiles", "dots", "forward_narrow", "gradient_narrow"),
    "optimizer": ("update", "penalty"),
    "loss": ("head", "loss", "softmax"),
    "activations": ("activation", "derivative", "normalise", "dropout"),
    "copy": ("libc", "transpose"),
}
"""Pieces by how their names begin; gathering samples is the C library's memcpy."""


def padded_flop(workload, lanes: int) -> float:
    """`Workload.flop` with columns of whole vectors, and the row of the bias."""
    flop = 0.0
    for i, (fan_in, fan_out) in enumerate(pairwise(workload.widths)):
        columns = -(-fan_out // lanes) * lanes
        below = -(-fan_in // lanes) * lanes * (i > 0)
        flop += 2.0 * workload.n * ((2 * fan_in + 1) * columns + below * fan_out)
    return flop


def trained(workload, dtype: str):
    """An endless fit: a function that trains some epochs, and returns the least seconds of one."""
    X, y = workload.data(dtype)
    kind = MLPRegressor if workload.classes is None else MLPClassifier
    model = kind(
        hidden_layer_sizes=workload.widths[1:-1], batch_size=workload.batch, n_threads=1, tol=0,
        activation=workload.activation, learning_rate_init=RATE / 100, random_state=0,
        n_iter_no_change=10**9, warm_start=True,
    )  # fmt: skip

    def run(epochs: int) -> float:
        model.set_params(max_iter=epochs).fit(X, y)
        return min(model.history_["seconds"][-epochs:])

    return run


def samples_of(work: Callable[[], object], seconds: float) -> list[int]:
    """Addresses at which ``work()``, repeated for so long, was found."""
    perf = shutil.which("perf")
    if perf is None:
        raise SystemExit("account.py needs perf, of Linux's tools; install it first.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "perf.data"
        command = [perf, "record", "-q", "-e", "cpu-clock:u", "-F", str(SAMPLES_PER_SECOND), "-o",
                   str(file), "-p", str(os.getpid())]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as recorder:
            time.sleep(0.5)  # until it listens
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                work()
            recorder.send_signal(signal.SIGINT)
        lines = subprocess.run([perf, "script", "-i", str(file), "-F", "ip"], capture_output=True,
                               text=True, check=True).stdout  # fmt: skip
    return [int(line, 16) for line in lines.split()]


def places() -> list[tuple[int, int, str]]:
    """(first address, end, name) of everything that is mapped to be executed, in order."""
    names = {address: key.name for key, address in objects.addresses().items()}
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights, *_, name = line.split()
        if "x" in rights and "/" in name:
            start, end = (int(part, 16) for part in where.split("-"))
            found.append((start, end, Path(name).name))
    for image in images.LOADED:
        own = [name for address, name in names.items() if address in image]
        found += [(image.start, image.stop, name) for name in own]
    return sorted(found)


def shares(addresses: list[int]) -> dict[str, float]:
    """Share of each piece."""
    known = places()
    starts = [start for start, _, _ in known]
    counts: Counter[str] = Counter()
    for address in addresses:
        i = bisect_right(starts, address) - 1
        inside = i >= 0 and address < known[i][1]
        counts[known[i][2] if inside else "elsewhere"] += 1
    return {name: n / len(addresses) for name, n in counts.most_common()}


def by_kind(pieces: dict[str, float]) -> dict[str, float]:
    total = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for piece, share in pieces.items():
        kinds = [kind for kind, begins in KINDS.items() if piece.startswith(begins)]
        total[kinds[0] if kinds else "the rest"] += share
    return total


def account(workload, dtype: str, rate: float, seconds: float) -> dict:
    run = trained(workload, dtype)
    epochs = max(1, int(seconds / 4 / run(3)))
    least = min(run(epochs) for _ in range(4))  # perf slows it down by a tenth
    pieces = shares(samples_of(lambda: run(epochs), seconds))
    lanes = processor.lanes(np.dtype(dtype).itemsize)
    return {
        "network": workload.text, "batch": workload.batch, "seconds": least,
        "floor": workload.flop / rate, "padded floor": padded_flop(workload, lanes) / rate,
        "kinds": by_kind(pieces), "pieces": pieces,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each network")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    rate = machine.fma_rate(arguments.dtype, 1)
    report = {"machine": machine.describe(), "rate": rate, "networks": {}}
    print(f"{'network':12} {'us':>8} {'floor':>6} {'padded':>7}", *(f"{k:>11}" for k in KINDS),
          "   the rest")  # fmt: skip
    for workload in (*WORKLOADS, *HELD_OUT):
        if arguments.only and workload.name not in arguments.only:
            continue
        found = account(workload, arguments.dtype, rate, arguments.seconds)
        report["networks"][workload.name] = found
        least = found["seconds"]
        print(f"{workload.name:12} {1e6 * least:8.0f} {found['floor'] / least:6.0%} "
              f"{found['padded floor'] / least:7.0%}",
              *(f"{share:11.1%}" for share in found["kinds"].values()), flush=True)  # fmt: skip
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
