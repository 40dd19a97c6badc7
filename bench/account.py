"""Where an epoch's time goes: pieces of the kernel, beside the least that the arithmetic takes.

    python bench/account.py [--dtype float32] [--only digits bank] [--seconds 3] [--output FILE]

One thread trains each network of ``compare.py`` while Linux's ``perf`` notes by the clock where it
is (which needs no counters, and works in virtual machines); what is counted is in which piece.
The floor is the exact work over one core's measured FMA rate; the padded floor counts products as
they are made, in columns of whole vectors.  What products take beyond it is the tiles' start and
end, operands that were not in L1, and the calls.

A processor that others use at the same time takes longer for all of it: what to look at is shares.

One thread of a Xeon with AVX-512, float32, 2026-11-26 (there OpenBLAS reaches 0.75 and MKL 0.82 of
the FMA rate with operands of 512 x 1024 x 1024, and 0.4 to 0.8 with those of small networks):

    network   floor  padded    products  optimizer    loss  activations    copy  the rest
    bank        34%     44%       56.1%      19.3%    5.7%         0.0%    4.6%     14.4%
    odd         43%     53%       65.9%      10.7%    6.8%         0.0%    5.3%     11.3%
    letters     49%     58%       73.2%       5.5%   10.0%         0.0%    2.5%      8.8%
    logit       27%     44%       52.3%      11.1%    7.7%         0.0%   19.5%      9.5%
    tanh        48%     52%       63.7%       6.0%    2.0%        19.1%    3.3%      5.8%
    deep        62%     64%       80.2%       9.0%    1.8%         0.0%    3.1%      6.0%

So products run at 0.78 to 0.84 of the FMA rate, MKL's for large matrices; tiles reach 0.95 with
operands in L1 and 256 terms, but these networks have 16 to 200, and start and end of a tile take
the rest. To be 5 times as fast as JAX on bank (3.3 times), all but 66 % of the time would have to
go; products and the optimizer, which the processor's divider bounds, take 75 %. On odd products at
0.95 would make 3.4 times 3.8 (of 4); on tanh 2.3 becomes 2.5 with products at 0.94, on deep 2.4
with 0.84. On logit, padding from 20 columns to 32 takes a third of the products, and samples from
outside of the caches a fifth of the time.
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
