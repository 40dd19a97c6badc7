"""What a training step takes on a GPU, by the machine code of its kernels, and what it took.

    python bench/cuda_model.py

Needs the ``cuda-ci`` extra and no GPU.  The launches of a step are those that the engine makes for
a device that records them; the instructions of their loops are counted in the code compiled for
compute capability 9.0, as in tests/gpu/test_cuda_gate.py.  A multiprocessor has four schedulers,
each of which issues an instruction per cycle at best, and a warp alone one in several cycles.  So a
product takes as long as the instructions of its stages take to issue; other code as long as that,
or as one warp takes for its own, or as memory does, whichever is longest.  To that come latencies,
and what a report says of the GPU in itself: the time of a launch and, on the resident path, of a
barrier.  A launch that leaves most of the GPU idle, though it need not, makes it fail.

`CALIBRATED` was fitted by `calibrate` to the steps that an H200 took at the first and third of the
report's batches, with the tiles that there were then; the table says how far all others are off.
A report of former code (`GENERATIONS` of cuda_report) tells nothing of a precision whose products
have changed since: its steps are neither fitted to nor compared.

So products in bfloat16, since their operands lie in memory as such, have not been measured, and
issue may not bound them any more.  A stage of theirs takes as long as the slowest of these:

- issue, at the rate that was fitted;
- the tensor cores: mma.sync reaches some 63 % of the dense peak of an H100, as published by Luo et
  al. (arXiv:2402.13499), where the peak is 4 cycles of a scheduler for one of 16 x 8 x 16;
- shared memory, 128 bytes a cycle, and L2, at BYTES_PER_CYCLE: both published, neither fitted.

In TF32 the fitted constant `tensor` stands for all that is not issue.
"""

import json
import statistics
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "bench")]

from cuda_report import GENERATIONS, GPU  # noqa: E402
from gate import compile_for, count, disassemble, loops, resources  # noqa: E402

from fastmlp.engine.cuda import CudaEngine, kernels, place, resident, tiles  # noqa: E402
from fastmlp.engine.cuda.compiler import bind  # noqa: E402
from fastmlp.engine.cuda.device import Launch  # noqa: E402
from fastmlp.engine.cuda.shipped import Recorder  # noqa: E402
from fastmlp.network import Network  # noqa: E402
from fastmlp.objective import Objective  # noqa: E402
from fastmlp.optimizers import Optimizer  # noqa: E402

CAPABILITY = (9, 0, "a")
MULTIPROCESSORS, SCHEDULERS, WARP = 132, 4, 32
REGISTERS, SHARED_BYTES, MOST_THREADS = 65536, 227 * 1024, 2048  # of a multiprocessor
CYCLES_PER_US = 1980.0
BYTES_PER_US = 3.0e6  # of memory
LEAST_SHARE = 0.5  # of the multiprocessors that a launch should keep busy, if it can
MEASURED = ("nvidia-h200", "nvidia-h100-80gb-hbm3")
LATENCY = 270.0  # cycles of a load from L2
BYTES_PER_CYCLE = 64.0  # from L2 to a multiprocessor
SHARED_BYTES_PER_CYCLE = 128.0
BF16_CYCLES = 4 / 0.63  # of a scheduler, for an instruction of the tensor cores
TERMS_PER_SPLIT = 128  # fewer are not worth a sum of splits
SIZES = tiles.SIZES["float32"]
PRECISIONS = ("highest", "high", "medium")
PRODUCT = {
    *tiles.common_names(np.dtype("float32"), SIZES),
    *(name for precision in PRECISIONS
      for name in SIZES.of(precision)[0].names(
          np.dtype("float32"), precision, (True, True), (True, True))),
}  # fmt: skip
SIZES_MEASURED = SIZES._replace(plain=SIZES.plain[:3], tf32=SIZES.tf32[:3])  # none of 16 x 8
WIDE, SMALL = ("4096x4", 16384, "medium"), ("64-100-10", 200, "highest")  # steps with marks


class Constants(NamedTuple):
    """What is not counted but fitted, in cycles.

    Parameters
    ----------
    alone : float
        From one instruction of a warp to its next.
    crowd : float
        Of a scheduler that has many warps, from one instruction to the next.
    tensor : float
        Of an instruction of the tensor cores in TF32, beyond that.
    phase : float
        What a layer on the resident path takes beside its instructions, in either direction.
    """

    alone: float
    crowd: float
    tensor: float
    phase: float


CALIBRATED = Constants(alone=7.61, crowd=1.68, tensor=8.43, phase=2580.0)


class Machine(NamedTuple):
    """What a report says of a GPU in itself: microseconds of a launch in a sequence, and of a
    barrier of the grid.
    """

    launch: float
    barrier: float


class StandIn(Recorder):
    """In the place of an H100 or H200: keeps launches instead of running them."""

    n_multiprocessors = MULTIPROCESSORS


@cache
def launches_of_step(
    widths: tuple[int, ...], batch: int, precision: str, sizes: tiles.Sizes = SIZES
) -> list[Launch]:
    """What one training step launches: softmax, Adam, relu, as in the report."""
    device, objective = StandIn(), Objective("log_loss", widths[-1])
    engine = CudaEngine(
        Network(widths, "relu"), dtype="float32", objective=objective, batch_size=batch,
        matmul_precision=precision, optimizer=Optimizer("adam", (0.9, 0.999, 1e-8)), device=device,
        sizes=sizes,
    )  # fmt: skip
    X, y = np.zeros((2, widths[0]), np.float32), np.array([0, widths[-1] - 1])
    engine.load(place(X, y, dtype="float32", objective=objective, device=device))
    device.launches.clear()
    engine.run_epoch(np.zeros(batch, np.int64), np.full(1, 1e-3))
    names = [launch.kernel[0].__name__ for launch in device.launches]
    return device.launches[names.index("rewind") + 1 :]


# --- what is counted --------------------------------------------------------------------------


class Code(NamedTuple):
    """A kernel's registers, its instructions, and its innermost loops'."""

    registers: int
    n: int
    loops: list[Counter]

    def loop(self, opcode: str, *kinds: str) -> Counter:
        """The innermost loop with most of these, among those whose loads and stores from shared
        and to global memory are of exactly these kinds, if any are named.
        """
        memory = {"LDS", "LDS.128", "STG.E"}
        fitting = [body for body in self.loops if not kinds or set(kinds) == memory & set(body)]
        return max(fitting, key=lambda body: count(body, opcode))


_codes: dict[tuple, Code] = {}


def code_of(launch: Launch) -> Code:
    """Compiled once; of a product, without what becomes of its sums."""
    template, names = launch.kernel
    args = launch.args
    if template is kernels.product:
        names = {name: value for name, value in names.items() if name in PRODUCT}
        names["STORE"], sums = kernels.put, np.zeros(1, np.float32)
        args = (*args[:9], sums, *args[10:17], sums)
    key = (template, *((name, str(value)) for name, value in sorted(names.items())))
    if key not in _codes:
        cubin = compile_for(template, names, args, launch.threads, CAPABILITY)
        usage, text = disassemble(cubin)
        n = sum(";" in line and "@!PT" not in line for line in text.splitlines())
        _codes[key] = Code(resources(usage, text)["REG"], n, loops(text))
    return _codes[key]


class Share(NamedTuple):
    """What of a launch the busiest multiprocessor gets: blocks at a time, how often, and the warps
    of each.
    """

    blocks: float
    rounds: int
    warps: float


def share_of(launch: Launch, registers: int) -> Share:
    fits = min(
        REGISTERS // (registers * launch.threads),
        SHARED_BYTES // (launch.shared_bytes + 1024),
        MOST_THREADS // launch.threads,
    )
    blocks = -(-prod(launch.blocks) // MULTIPROCESSORS)
    rounds = -(-blocks // fits)
    return Share(blocks / rounds, rounds, launch.threads / WARP)


# --- what it costs ------------------------------------------------------------------------------


def crowded(instructions: float, share: Share, it: Constants) -> float:
    """Cycles of so many instructions of each warp that a multiprocessor has at a time."""
    return instructions * share.blocks * share.warps / SCHEDULERS * it.crowd


def cycles_of(instructions: float, share: Share, it: Constants) -> float:
    """The same of instructions that wait for each other."""
    return max(crowded(instructions, share, it), instructions * it.alone)


def product_us(launch: Launch, rows: int, it: Constants) -> float:
    """Of a product: (its stages, and what comes before and after them) x rounds."""
    code, names, args = code_of(launch), launch.kernel[1], launch.args
    M, N, K = args[14] or rows, args[15], args[16] or rows
    opcode, n_per_stage = "FFMA", names["BM"] * names["BN"] * names["BK"] // launch.threads
    if "MT" in names:
        opcode = "HMMA"
        n_per_stage = names["MT"] * names["NT"] * names["BK"] // names["SLICES"] // names["TERMS"]
    loop, share = code.loop(opcode), share_of(launch, code.registers)
    store = max(code.loops, key=lambda body: count(body, "STG"))
    per_stage = sum(loop.values()) / count(loop, opcode) * n_per_stage
    n_stages = -(-min(K, args[13]) // names["BK"])
    if names["TERMS"] == 8:
        per_stage += n_per_stage * it.tensor
    stage = crowded(per_stage, share, it)
    if names["TERMS"] == 16:
        stage = max(stage, bf16_cycles(names, loop, n_per_stage, share))
    n_stores = names["BM"] * min(names["BN"], -(-N // WARP) * WARP) / launch.threads
    others = code.n - sum(loop.values()) - sum(store.values())
    ends = others + n_stores * sum(store.values()) / count(store, "STG")
    cycles = share.rounds * (n_stages * stage + cycles_of(ends, share, it) + 2 * LATENCY)
    size_a, size_b, size_c = (args[at].dtype.itemsize for at in (3, 6, 9))
    moved = size_a * M * K + size_b * K * N + size_c * M * N * launch.blocks[2]
    return max(cycles / CYCLES_PER_US, moved / BYTES_PER_US)


def bf16_cycles(names: dict, loop: Counter, n_per_stage: float, share: Share) -> float:
    """Of a stage of a product in bfloat16: the slowest of tensor cores, shared memory and L2."""
    warps = share.blocks * share.warps
    vectors = sum(n for name, n in loop.items() if name.startswith(("LDSM.16.M", "LDGSTS")))
    in_shared = vectors / count(loop, "HMMA") * n_per_stage * 16 * WARP * warps
    copied = 2 * (names["BM"] + names["BN"]) * names["BK"] * share.blocks
    return max(
        n_per_stage * warps / SCHEDULERS * BF16_CYCLES, in_shared / SHARED_BYTES_PER_CYCLE,
        copied / BYTES_PER_CYCLE,
    )  # fmt: skip


def rows_us(launch: Launch, moved: float, it: Constants) -> float:
    """Of a kernel that gives a thread or a warp to everything: all of its code, once."""
    code = code_of(launch)
    share = share_of(launch, code.registers)
    cycles = share.rounds * (cycles_of(code.n, share, it) + 3 * LATENCY)
    return max(cycles / CYCLES_PER_US, moved / BYTES_PER_US)


def finish_us(launch: Launch, rows: int, it: Constants) -> float:
    """Of the one block that sums losses and squares, some loads at a time."""
    code = code_of(launch)
    loads = max(count(body, "LDG") for body in code.loops)
    trips = sum(-(-n // (launch.threads * loads)) for n in (rows, launch.args[3]))
    return (code.n * it.alone + trips * LATENCY) / CYCLES_PER_US


def tile_cycles(launch: Launch, widths: tuple[int, ...], it: Constants) -> tuple[float, float]:
    """Of a row tile that goes through all layers and back, on the resident path: those in which
    instructions issue, and the latencies between layers.
    """
    code, names, threads = code_of(launch), launch.kernel[1], launch.threads
    quads = names["R"] // 4
    forward, input_gradient = code.loop("FFMA", "LDS", "LDS.128"), code.loop("FFMA", "LDS.128")
    gradient = sum(code.loop("FFMA", "LDS.128", "STG.E").values())
    count_slices = bind(resident.count_slices, {"THREADS": threads}, lambda function: function)
    n_warps = threads // WARP
    cycles, waits = 0.0, -(-names["R"] // n_warps) * 2 * LATENCY  # the head
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        parts = [(forward, quads * fan_out, fan_in + 1)]
        if layer > 0:
            parts.append((input_gradient, quads * fan_in, fan_out))
        for loop, n_sums, n_terms in parts:
            slices = int(count_slices(n_sums, n_terms))
            terms = -(-n_sums * slices // threads) * -(-n_terms // slices)
            instructions = sum(loop.values()) / count(loop, "FFMA") * 4 * terms
            share = Share(1, 1, min(n_warps, n_sums * slices / WARP))
            cycles += cycles_of(instructions, share, it)
            waits += it.phase
        trips = -(-((fan_in + 4) // 4 * fan_out) // threads)
        cycles += cycles_of(trips * gradient, Share(1, 1, n_warps), it)
        waits += it.phase
    return cycles, waits


def resident_parts(
    launch: Launch, widths: tuple[int, ...], batch: int, machine: Machine, it: Constants
) -> dict[str, float]:
    """Of a step of the resident path, in microseconds."""
    n, n_working, threads = launch.args[15], launch.args[13], launch.threads
    tiles = -(-batch // (n_working * launch.kernel[1]["R"]))
    n_slice = -(-n // MULTIPROCESSORS)
    lanes = min(-(-n_slice // WARP) * WARP, threads)
    loads = -(-n_working // (4 * (threads // lanes)))
    update = -(-n_slice // lanes) * (loads + 3) * LATENCY
    fetched = LATENCY + 4 * n / BYTES_PER_CYCLE
    issued, waits = tile_cycles(launch, widths, it)
    cycles = {
        "weights fetched": fetched, "products": tiles * issued,
        "between layers": tiles * (2 * LATENCY + waits), "update": update,
    }  # fmt: skip
    parts = {name: n / CYCLES_PER_US for name, n in cycles.items()}
    return parts | {"barriers": 2 * machine.barrier}


def step_us(
    widths: tuple[int, ...], batch: int, precision: str, machine: Machine, it: Constants,
    sizes: tiles.Sizes = SIZES,
) -> float:  # fmt: skip
    """Of a training step."""
    launches = launches_of_step(widths, batch, precision, sizes)
    if launches[0].kernel[0] is resident.resident_epoch:
        return sum(resident_parts(launches[0], widths, batch, machine, it).values())
    total = len(launches) * machine.launch
    for launch in launches:
        template, args = launch.kernel[0], launch.args
        if template is kernels.product:
            total += product_us(launch, min(batch, args[2]), it)
        elif template is kernels.finish_step:
            total += finish_us(launch, batch, it)
        elif template is kernels.update:
            total += rows_us(launch, 4 * args[5] * (args[3] + 6), it)
        elif template is kernels.copy_weights:
            total += rows_us(launch, 6 * args[2], it)
        else:  # reads and writes a sample's features, or outputs
            n_columns = args[5 if template is kernels.gather else 6]
            total += rows_us(launch, 8 * min(batch, args[2]) * n_columns, it)
    return total


# --- beside what was measured -------------------------------------------------------------------


class Cell(NamedTuple):
    """A training step that a GPU took, with products of some generation."""

    gpu: str
    machine: Machine
    network: str
    batch: int
    precision: str
    us: float
    generation: int

    @property
    def is_comparable(self) -> bool:
        return self.generation == GENERATIONS[self.precision]

    @property
    def is_for_calibration(self) -> bool:
        first_or_third = self.batch in (GPU.batches[0], GPU.batches[2])
        return self.is_comparable and self.gpu == MEASURED[0] and first_or_third

    @property
    def is_unseen(self) -> bool:
        return self.is_comparable and not self.is_for_calibration

    def model(self, it: Constants) -> float:
        widths = GPU.networks[self.network]
        return step_us(widths, self.batch, self.precision, self.machine, it, SIZES_MEASURED)


def measured() -> list[Cell]:
    """All steps in the reports."""
    found = []
    for gpu in MEASURED:
        report = json.loads((ROOT / "bench" / "results" / f"{gpu}.json").read_text())
        sections, generations = report["sections"], report.get("generations", {})
        of_graph = sections["system"]["results"]["launches"][-1]
        machine = Machine(of_graph["done_us"], sections["barrier"]["results"]["barrier_us"])
        for name, section in sections.items():
            if name.startswith("network"):
                found += [
                    Cell(gpu, machine, cell["network"], cell["batch"], cell["precision"],
                         cell["step_us"]["fastmlp"], generations.get(cell["precision"], 1))
                    for cell in section["results"].get("cells", []) if "step_us" in cell
                ]  # fmt: skip
    return found


def error(cell: Cell) -> float:
    """The factor between model and measurement, at least 1."""
    ratio = cell.model(CALIBRATED) / cell.us
    return max(ratio, 1 / ratio)


def calibrate(cells: list[Cell]) -> Constants:
    """The constants with the least sum of squares of the logarithms of model / measured."""
    from scipy.optimize import least_squares

    def residuals(logs):
        it = Constants(*np.exp(logs))
        return [np.log(cell.model(it) / cell.us) for cell in cells if cell.is_for_calibration]

    found = least_squares(residuals, np.log(CALIBRATED), loss="soft_l1", f_scale=0.2)
    return Constants(*(float(f"{x:.3g}") for x in np.exp(found.x)))


# --- launches that are too small ----------------------------------------------------------------


def is_too_small(launch: Launch, rows: int, smallest: tiles.Tile | tiles.MmaTile) -> bool:
    """Whether a product leaves more than half of the multiprocessors idle, though the smallest
    tile, or more splits of its terms, would have made more blocks.
    """
    args = launch.args
    M, N, K = args[14] or rows, args[15], args[16] or rows
    most = -(-M // smallest.BM) * -(-N // smallest.BN) * max(1, K // TERMS_PER_SPLIT)
    return prod(launch.blocks) < LEAST_SHARE * MULTIPROCESSORS and most > prod(launch.blocks)


def too_small(precision: str) -> list[tuple[str, int, tuple[int, int, int]]]:
    """(network, batch, blocks) of the report's launches that are."""
    smallest = SIZES.of(precision)[-1]
    found = {
        (name, batch, launch.blocks)
        for name, widths in GPU.networks.items()
        for batch in GPU.batches
        for launch in launches_of_step(widths, batch, precision)
        if launch.kernel[0] is kernels.product
        and is_too_small(launch, min(batch, launch.args[2]), smallest)
    }
    return sorted(found)


def main() -> None:
    cells = sorted(measured(), key=lambda cell: cell[2:])
    print("| network | batch | products | GPU | measured, us | model, us | model / measured |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for cell in cells:
        us = cell.model(CALIBRATED)
        mark = ", calibration" if cell.is_for_calibration else ""
        mark += "" if cell.is_comparable else ", former products"
        print(f"| {cell.network} | {cell.batch} | {cell.precision} | {cell.gpu}{mark} "
              f"| {cell.us:.4g} | {us:.4g} | {us / cell.us:.2f} |")  # fmt: skip
    others = [cell for cell in cells if cell.is_unseen]
    print(f"\nOf {len(others)} steps that the model has not seen, half are less than a factor of "
          f"{statistics.median(map(error, others)):.2f} off, all less than "
          f"{max(map(error, others)):.2f}; calibrated anew: {calibrate(cells)}.")  # fmt: skip
    machine = cells[0].machine
    name, batch, precision = WIDE
    us = step_us(GPU.networks[name], batch, precision, machine, CALIBRATED)
    print(f"\nNot measured: {name} at {batch}, {precision}: {us:.4g} us.")
    name, batch, precision = SMALL
    launch, widths = launches_of_step(GPU.networks[name], batch, precision)[0], GPU.networks[name]
    parts = resident_parts(launch, widths, batch, machine, CALIBRATED)
    print(f"{name} at {batch}, {precision}: {sum(parts.values()):.3g} us, of which",
          ", ".join(f"{part} {us:.2g}" for part, us in parts.items()) + ".")  # fmt: skip
    found = {precision: too_small(precision) for precision in PRECISIONS}
    for precision, launches in found.items():
        for name, batch, blocks in launches:
            print(f"too small: {name}, batch {batch}, {precision}: {blocks} blocks")
    raise SystemExit(any(found.values()))


if __name__ == "__main__":
    main()
