"""The machine under the benchmarks: its name and its measured FMA rate.

The rate is the floor's denominator.  It is measured with as many independent accumulators as hide
the latency, on all cores at once, by a loop that touches no memory.
"""

import platform
import threading
import time
from pathlib import Path

import joblib
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastmlp.engine.cpu.kernels.vector import I64, Emitter, llvm_type
from fastmlp.engine.processor import VECTOR_BYTES, lanes

ACCUMULATORS = 12


@intrinsic
def _fma_loop(typingctx, n, like):
    """``n`` rounds of independent FMAs; returns something that depends on all of them."""

    def codegen(context, builder, signature, args):
        e = Emitter(builder, llvm_type(like), lanes(4 if like == types.float32 else 8))
        entry = builder.block
        factor = e.splat(builder.fadd(args[1], ir.Constant(e.element, 0.999)))
        loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(I64)
        sums = [builder.phi(e.type) for _ in range(ACCUMULATORS)]
        updated = [e.fma(value, factor, factor) for value in sums]
        following = builder.add(k, ir.Constant(I64, 1))
        k.add_incoming(ir.Constant(I64, 0), entry)
        k.add_incoming(following, loop)
        for i, (value, new) in enumerate(zip(sums, updated, strict=True)):
            value.add_incoming(e.constant(i), entry)
            value.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", following, args[0]), loop, end)
        builder.position_at_end(end)
        total = updated[0]
        for value in updated[1:]:
            total = builder.fadd(total, value)
        return e.reduce(total, builder.fadd)

    return like(types.int64, like), codegen


@numba.njit(nogil=True)
def _burn(n, like):
    return _fma_loop(n, like)


def fma_rate(dtype: str, n_threads: int, seconds: float = 0.3) -> float:
    """Best of several measurements, in flop per second."""
    like, size = np.dtype(dtype).type(0), np.dtype(dtype).itemsize
    _burn(10, like)
    n = 20_000_000
    flop = 2 * n * ACCUMULATORS * lanes(size) * n_threads
    best, end = 0.0, time.perf_counter() + seconds * 5
    while time.perf_counter() < end:
        threads = [threading.Thread(target=_burn, args=(n, like)) for _ in range(n_threads)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, flop / (time.perf_counter() - start))
    return best


def describe() -> dict:
    """Processor, cores, vector width and the versions that matter."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model,
        "cores": joblib.cpu_count(),
        "vector_bits": 8 * VECTOR_BYTES,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    print(describe())
    for dtype in ("float32", "float64"):
        for n_threads in (1, joblib.cpu_count()):
            print(dtype, n_threads, f"{fma_rate(dtype, n_threads) / 1e9:.0f} GFLOP/s")
