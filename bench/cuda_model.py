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
A report of former code (`GENERATIONS` of cuda_report) tells nothing of a path or a precision whose
kernels have changed since: its steps are neither fitted to nor compared.

So products in bfloat16, since their operands lie in memory as such, have not been measured, and
issue may not bound them any more.  A stage of theirs takes as long as the slowest of these:

- issue, at the rate that was fitted;
- the tensor cores: mma.sync reaches some 63 % of the dense peak of an H100, as published by Luo et
  al. (arXiv:2402.13499), where the peak is 4 cycles of a scheduler for one of 16 x 8 x 16;
- shared memory, 128 bytes a cycle, and L2, at BYTES_PER_CYCLE: both published, neither fitted.

In TF32 the fitted constant `tensor` stands for all that is not issue.

Nor has the resident path been measured since its products were written anew.  What of a part of a
product is beside its loop is counted as if no branch were ever skipped, and takes as long as
instructions that wait for each other do; large parts' loops take as long as a tile's stages do, by
the same crowd of warps, or as shared memory does.  `phase` is as it was fitted to the former code.
So it bounds what the smallest step with a mark can reach: five products one after the other, each
with two barriers of a block and what its threads find out beforehand, 1.3 us of each.
"""

import json
import re
import statistics
import sys
from collections import Counter
from functools import cache
from itertools import pairwise, product
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
SIZES_MEASURED = SIZES._replace(  # none of 16 x 8, and row tiles of at most 16 rows
    plain=SIZES.plain[:3], tf32=SIZES.tf32[:3], rows=SIZES.rows[:3]
)
# Steps with marks: 14000, 60 and 10 us.
WIDE, MIDDLE = ("4096x4", 16384, "medium"), ("784-256-128-10", 128, "highest")
SMALL = ("64-100-10", 200, "highest")
NARROW = ("64-100-10", "32-64x4-8")


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
    """A kernel's registers, its instructions, its innermost loops', and those of what is around
    each of these.
    """

    registers: int
    n: int
    loops: list[Counter]
    around: list[Counter]

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
        here = re.split(r"WARPSYNC\.COLLECTIVE", text)[0]  # not what warps do that have parted
        n = sum(";" in line and "@!PT" not in line for line in here.splitlines())
        found = loops(text)
        bodies, around = [each.body for each in found], [each.around for each in found]
        _codes[key] = Code(resources(usage, text)["REG"], n, bodies, around)
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


class Part(NamedTuple):
    """What of a row tile's product a thread has at a time.

    Parameters
    ----------
    per_term : float
        Instructions for each of its sums and terms.
    beside : float
        And beside these, but for sums over lanes.
    turns : float
        Of shared memory for a warp, for each of its threads' sums and terms.
    """

    per_term: float
    beside: float
    turns: float


def parts_of(code: Code, n_sums: int) -> tuple[Part, Part]:
    """Of weight gradients, which are written to memory; and of the other two products, the worse,
    because nothing tells which loop is whose.
    """
    found = [
        (body, around) for body, around in zip(code.loops, code.around, strict=True)
        if body["LDS.128"] and not body["STS.128"] and count(body, "FFMA")
    ]  # fmt: skip
    applied = max(sum(body.values()) / body["STS.128"] for body in code.loops if body["STS.128"])
    parts = []
    for is_gradient in (True, False):
        mine = [each for each in found if (count(each[1], "STG") > 0) == is_gradient]
        parts.append(Part(
            max(sum(body.values()) / body["FFMA"] for body, _ in mine),
            max(sum(around.values()) for _, around in mine)
            + (0 if is_gradient else applied * n_sums / 4),
            max((4 * body["LDS.128"] + body["LDS"]) / body["FFMA"] for body, _ in mine),
        ))  # fmt: skip
    return parts[0], parts[1]


def head_instructions(code: Code) -> float:
    """Of softmax, for each output of a row."""
    bodies = [body for body in code.loops if body["MUFU.EX2"] and not body["LDS.128"]]
    return sum(sum(body.values()) / body["MUFU.EX2"] for body in bodies)


def tile_cycles(launch: Launch, widths: tuple[int, ...], it: Constants) -> tuple[float, float]:
    """Of a row tile that goes through all layers and back, on the resident path: those in which
    instructions issue, and the latencies between layers.

    A thread's sums, if they are many, do not wait for each other; if they are few, what is beside
    one part's terms is in `Constants.phase`.
    """
    code, names, threads = code_of(launch), launch.kernel[1], launch.threads
    n_sums = names["SUMS"]
    (of_gradient, other), many = parts_of(code, n_sums), n_sums >= 16
    find_shift = bind(resident.find_shift, {"THREADS": threads}, lambda function: function)
    head = -(-widths[-1] // names["LANES"]) * head_instructions(code)
    cycles, waits = head * it.alone, 2 * LATENCY
    by_rows = names["R"] // names["TM"]
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        of_inputs, of_outputs = (-(-width // names["TN"]) for width in (fan_in, fan_out))
        by_lines = (fan_in + names["TM"]) // names["TM"]
        products = [  # parts, how many, their terms as they are shared, and how many are together
            (other, by_rows * of_outputs, fan_in + 1, 1),
            (of_gradient, by_lines * of_outputs, names["R"] // 4, 4),
            (other, by_rows * of_inputs, fan_out, 1),
        ]
        for part, n_parts, n_terms, together in products[: 2 + (layer > 0)]:
            shift = find_shift(n_parts, n_terms)
            trips = -(-(n_parts << shift) // threads)
            terms = trips * -(-n_terms >> shift) * together * n_sums
            warps = min(threads, n_parts << shift) / WARP
            share = Share(1, 1, max(SCHEDULERS, np.ceil(warps)) if many else warps)
            issue = (crowded if many else cycles_of)(terms * part.per_term, share, it)
            cycles += max(issue, terms * part.turns * warps)
            beside = part.beside + 2 * n_sums * shift
            cycles += cycles_of((trips - (not many)) * beside, share, it)
            # weight gradients, if they come together, wait once
            waits += it.phase * (part is other or names["IN_PLACE"] or layer == 0)
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
    """A training step that a GPU took, with ``code`` (see `GENERATIONS`) of some generation."""

    gpu: str
    machine: Machine
    network: str
    batch: int
    precision: str
    us: float
    code: str
    generation: int

    @property
    def is_comparable(self) -> bool:
        return self.generation == GENERATIONS[self.code]

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
                for cell in section["results"].get("cells", []):
                    if "step_us" in cell:
                        code = "resident" if cell["path"] == "resident" else cell["precision"]
                        found.append(
                            Cell(gpu, machine, cell["network"], cell["batch"], cell["precision"],
                                 cell["step_us"]["fastmlp"], code, generations.get(code, 1))
                        )  # fmt: skip
    return found


def error(cell: Cell) -> float:
    """The factor between model and measurement, at least 1."""
    ratio = cell.model(CALIBRATED) / cell.us
    return max(ratio, 1 / ratio)


def calibrate(cells: list[Cell]) -> Constants:
    """The constants with the least sum of squares of the logarithms of model / measured."""
    from scipy.optimize import least_squares

    seen = [cell for cell in cells if cell.is_for_calibration]
    on_resident_path = any(cell.code == "resident" for cell in seen)
    n = len(CALIBRATED) if on_resident_path else CALIBRATED.index(CALIBRATED.phase)

    def constants(logs):
        return Constants(*np.exp(logs), *CALIBRATED[n:])

    def residuals(logs):
        return [np.log(cell.model(constants(logs)) / cell.us) for cell in seen]

    found = least_squares(residuals, np.log(CALIBRATED[:n]), loss="soft_l1", f_scale=0.2)
    return Constants(*(float(f"{x:.3g}") for x in constants(found.x)))


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
        mark += "" if cell.is_comparable else ", former code"
        print(f"| {cell.network} | {cell.batch} | {cell.precision} | {cell.gpu}{mark} "
              f"| {cell.us:.4g} | {us:.4g} | {us / cell.us:.2f} |")  # fmt: skip
    others = [cell for cell in cells if cell.is_unseen]
    print(f"\nOf {len(others)} steps that the model has not seen, half are less than a factor of "
          f"{statistics.median(map(error, others)):.2f} off, all less than "
          f"{max(map(error, others)):.2f}; calibrated anew: {calibrate(cells)}.")  # fmt: skip
    machine = cells[0].machine
    print("\nNot measured since (us):")
    for name, batch, precision in (WIDE, MIDDLE, SMALL):
        us = step_us(GPU.networks[name], batch, precision, machine, CALIBRATED)
        print(f"{name} at {batch}, {precision}: {us:.4g}")
    name, batch, _ = SMALL
    launch, widths = launches_of_step(GPU.networks[name], batch, "highest")[0], GPU.networks[name]
    parts = resident_parts(launch, widths, batch, machine, CALIBRATED)
    print("of the last:", ", ".join(f"{part} {us:.2g}" for part, us in parts.items()))
    print("\n| network | batch | rows of a row tile | resident, us | tiled, us |")
    print("| --- | --- | --- | --- | --- |")
    for name, batch in product(NARROW, GPU.batches):
        launch, widths = (
            launches_of_step(GPU.networks[name], batch, "highest")[0],
            GPU.networks[name],
        )
        ours, theirs = (
            step_us(widths, batch, "highest", machine, CALIBRATED, sizes)
            for sizes in (SIZES, SIZES._replace(rows=()))
        )
        print(f"| {name} | {batch} | {launch.kernel[1]['R']} | {ours:.4g} | {theirs:.4g} |")
    found = {precision: too_small(precision) for precision in PRECISIONS}
    for precision, launches in found.items():
        for name, batch, blocks in launches:
            print(f"too small: {name}, batch {batch}, {precision}: {blocks} blocks")
    raise SystemExit(any(found.values()))


if __name__ == "__main__":
    main()
