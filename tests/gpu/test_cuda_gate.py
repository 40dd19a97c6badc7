"""Every CUDA kernel compiles for real GPUs, within limits; needs the ``cuda-ci`` extra.

Limits are a little above what was measured when they were set; a kernel that needs more has changed
its nature.
"""

import os
import re
from types import FunctionType

import numpy as np
import pytest
from engines import each_once
from gate import GateDevice, compile_for, count, disassemble, find_tools, loops
from numba import float32
from problems import make_network, make_problem, place_for
from scipy import sparse

from fastmlp.dropout import Dropout
from fastmlp.engine import objects
from fastmlp.engine.cuda import CudaEngine, compiler, kernels, ptx, resident, shipped, tiles
from fastmlp.engine.cuda import engine as target
from fastmlp.engine.cuda.compiler import assemble
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.optimizers import OPTIMIZERS, Optimizer

pytestmark = [
    pytest.mark.gate,
    pytest.mark.skipif(
        None in find_tools().values(),
        reason="the CUDA compile gate needs the cuda-ci extra: pip install -e '.[test,cuda-ci]'",
    ),
]
# Of GPUs, element types, and formulas: all of them once, in two parts, or one of each shape.
CASES = [
    ((9, 0, "a"), "float32", 0), ((9, 0, "a"), "float32", 1), ((9, 0, "a"), "float64", None),
    ((8, 0), "float32", None), ((8, 0), "float64", None),
]  # fmt: skip
# A loss for each head; activations whose output tells the derivative, or not.
SHAPES = [("log_loss", "relu"), ("squared_error", "gelu"), ("focal", "tanh")]
REGISTERS = {  # per thread, float32 and float64
    "product": (176, 168),
    "product, tensor cores": (248, 0),
    "softmax_head": (48, 72),
    "head": (64, 72),
    "probability_head": (72, 80),
    "resident_epoch": (255, 255),
}
OTHERS = (48, 64)
WITH_FLOAT64 = ("resident_epoch", "update", "complete_gradient", "sum_squares", "clipped_update",
                "finish_norm", "finish_step")  # fmt: skip
MAX_SHARED = 48 * 1024  # of what a kernel asks for itself
# Bytes of stack, beside the loops of products: before capability 9.0, and since.
MOST_STACK = {"resident_epoch": (480, 240)}


def use(device, described, dtype, X, y, *, rule="adam", precision="highest", dropout=None,
        sizes=None, **options):  # fmt: skip
    """Launch all kernels that a network of this kind needs."""
    network, objective = described
    constants = (0.9, 0.999, 1e-8)
    engine = CudaEngine(
        network, dtype=dtype, device=device, matmul_precision=precision, batch_size=200,
        optimizer=Optimizer(rule, constants, **options), alpha=0.1, objective=objective,
        dropout=dropout, sizes=sizes,
    )  # fmt: skip
    engine.load(place_for(engine, X, y, np.ones(X.shape[0])))
    engine.run_epoch(np.arange(400), np.full(2, 1e-3))
    engine.loss_and_gradient()
    engine.predict(X)


def reports(capability, dtype, part, monkeypatch):
    """{kernel: resources} over both paths, small and large tiles, formulas, dense and sparse
    input.
    """
    device = GateDevice(capability)
    pairs = SHAPES if part is None else each_once(LOSSES, ACTIVATIONS)[part::2]
    for i, (loss, activation) in enumerate(pairs):
        X, y = make_problem(loss, 400, 300, 3)
        X = X.astype(dtype)
        monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", 2**16)
        sizes = tiles.SIZES[dtype]
        sizes = sizes._replace(rows=sizes.rows[-1 - i % len(sizes.rows) :][:1])
        network = make_network((30, 50, 12, 3), activation, loss)
        use(device, network, dtype, X[:, :30], y, sizes=sizes)
        monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", 0)
        hidden = (260, 12) if i < 3 or activation == "mish" else (12,)  # large tiles, or small
        network = make_network((300, *hidden, 3), activation, loss)
        use(device, network, dtype, X, y)
    use(device, network, dtype, sparse.csr_matrix(X), y)
    for rule in OPTIMIZERS if part == 0 else ():
        use(device, network, dtype, X, y, rule=rule)
    dropped = make_network((300, 12, 3), "relu", "log_loss", layer_norm=True)
    options = {"max_grad_norm": 1.0, "ema_decay": 0.9, "dropout": Dropout((0.5,), 0)}
    use(device, dropped, dtype, *make_problem("log_loss", 400, 300, 3), **options)
    if dtype == "float32" and part != 0:
        for precision in ("high", "medium"):
            use(device, network, dtype, X, y, precision=precision)
        X, y = make_problem("log_loss", 400, 300, 3)
        use(device, dropped, dtype, sparse.csr_matrix(X), y, precision="medium", **options)
        device.n_multiprocessors = 1  # which the largest tiles keep busy
        use(device, network, dtype, X, y, precision="medium")
    return device.reports


@pytest.mark.parametrize(("capability", "dtype", "part"), CASES, ids=str)
def test_kernels_stay_within_their_limits(capability, dtype, part, monkeypatch):
    found = reports(capability, dtype, part, monkeypatch)
    assert {key[0] for key in found} >= {
        "gather",
        "gather_sparse",
        "product",
        "update",
        "resident_epoch",
    }
    for key, used in found.items():
        name = f"{key[0]}, tensor cores" if used["HMMA"] else key[0]
        limit = REGISTERS.get(name, OTHERS)[dtype == "float64"]
        assert used["REG"] <= limit, (key, used)
        most = MOST_STACK.get(name, (0, 0))[capability[0] >= 9]
        assert used["STACK"] <= most, (key, used)
        assert used["SPILLED"] == 0, (key, used)
        assert most or used["LOCAL"] == used["STL"] == used["LDL"] == 0, (key, used)
        assert used["SHARED"] <= MAX_SHARED, (key, used)
        if key[0] == "product":
            assert used["LDGSTS"] > 0, (key, used)
        if dtype == "float32" and key[0] not in WITH_FLOAT64:
            assert used["DFMA"] == 0, (key, used)
        if name == "product":
            assert used["FFMA" if dtype == "float32" else "DFMA"] >= 8, (key, used)
        on_tensor_cores = ("MULTIPLY", "multiply_mma") in key
        least = 1 if ("BN", 8) in key else 2  # the smallest tile is as wide as one instruction's
        assert (used["HMMA"] >= least) == on_tensor_cores, (key, used)


# --- the machine code of the loops that matter ------------------------------------------------

ORIENTATIONS = [(True, False), (True, True), (False, False)]
# Instructions per FMA, or per instruction of the tensor cores, in the innermost loop: of the
# largest tile to the smallest.
MOST = {
    "highest": ("FFMA", (1.2, 1.2, 2.2, 2.2)),
    "high": ("HMMA", (8, 11.5, 18, 45)),
    "medium": ("HMMA", (2.8, 5.3, 9.5, 31)),
}


def loop_of_product(precision, size, by_rows, **names):
    """The innermost loop of a product of float32 matrices, on a GPU of capability 9.0."""
    sizes, buffer = tiles.SIZES["float32"], np.zeros(1, np.float32)
    operand = np.zeros(1, tiles.storage_of(buffer.dtype, precision).dtype)
    tile = sizes.of(precision)[size]
    bound = (
        tiles.common_names(buffer.dtype, sizes)
        | tile.names(buffer.dtype, precision, by_rows, (True, True))
        | {"STORE": kernels.put} | names
    )  # fmt: skip
    arguments = (
        np.zeros(3, np.int64), 0, 1, operand, 0, 1, operand, 0, 1, buffer, 0, 1, 1, 1, 1, 1, 1,
        buffer,
    )  # fmt: skip
    cubin = compile_for(kernels.product, bound, arguments, tile.threads, (9, 0, "a"))
    opcode, limits = MOST[precision]
    bodies = [loop.body for loop in loops(disassemble(cubin)[1])]
    loop = max(bodies, key=lambda body: count(body, opcode))
    return loop, sum(loop.values()) / count(loop, opcode), limits[size]


@pytest.mark.parametrize("size", range(4), ids=["large", "medium", "small", "smallest"])
@pytest.mark.parametrize("precision", MOST)
def test_products_spend_their_instructions_on_arithmetic(precision, size):
    for by_rows in ORIENTATIONS:
        loop, ratio, most = loop_of_product(precision, size, by_rows)
        assert ratio <= most, (by_rows, loop)
        assert count(loop, "CALL") == 0, (by_rows, loop)
        assert count(loop, "LDG") == 0, (by_rows, loop)
        copies = count(loop, "LDGSTS")
        assert copies == loop["LDGSTS.E.BYPASS.128"] + loop["LDGSTS.E.BYPASS.128.ZFILL"], loop
        if precision == "highest":
            assert loop["LDS.128"] == count(loop, "LDS") > 0, (by_rows, loop)
        if precision == "medium":  # 16 rows at a time, and 16 columns, or all 8
            tile = tiles.SIZES["float32"].bf16[size]
            n_rows, n_columns = tile.WM // 16, max(1, tile.WN // 16)
            per_load = n_rows * tile.WN // 8 / (n_rows + n_columns)
            assert count(loop, "HMMA") == count(loop, "LDSM") * per_load, (by_rows, loop)
            assert count(loop, "LDS") == 0, (by_rows, loop)


# Instructions per FMA in the loops of products, by the rows of row tiles, of which others have the
# same loops.  Where parts are of one column, one loop reads single weights.
MOST_OF_ROWS = {
    ("float32", 16): 3.1, ("float32", 64): 1.7, ("float32", 128): 1.5,
    ("float64", 16): 3.4, ("float64", 64): 1.8,
}  # fmt: skip


def loops_of_rows(dtype, rows, **names):
    """Those of a row tile's products, on a GPU of capability 9.0, and instructions per FMA."""
    tile = next(each for each in tiles.SIZES[dtype].rows if each.rows == rows)
    device, sizes = shipped.Recorder(), tiles.SIZES[dtype]._replace(rows=(tile,))
    device.n_multiprocessors = GateDevice.n_multiprocessors
    X, y = make_problem("log_loss", 400, 30, 3)
    described = make_network((30, 50, 3), "relu", "log_loss")
    use(device, described, dtype, X.astype(dtype), y, sizes=sizes)
    launch = next(each for each in device.launches
                  if each.kernel[0].__name__ == "resident_epoch")  # fmt: skip
    template, bound = launch.kernel
    cubin = compile_for(template, bound | names, launch.args, launch.threads, (9, 0, "a"))
    opcode = "FFMA" if dtype == "float32" else "DFMA"
    bodies = [loop.body for loop in loops(disassemble(cubin)[1])]
    mine = [body for body in bodies if count(body, opcode) >= 16 and body["LDS.128"]
            and not count(body, "STS")]  # fmt: skip
    return [(body, sum(body.values()) / count(body, opcode)) for body in mine]


@pytest.mark.parametrize(("dtype", "rows"), MOST_OF_ROWS)
def test_row_tiles_spend_their_instructions_on_arithmetic(dtype, rows):
    found = loops_of_rows(dtype, rows)
    assert len(found) == 3
    for body, ratio in found:
        assert ratio <= MOST_OF_ROWS[dtype, rows], body
        assert sum(count(body, opcode) for opcode in ("CALL", "LDG", "LDL", "STL")) == 0, body
    n_with_single_weights = sum(body["LDS.128"] < count(body, "LDS") for body, _ in found)
    assert n_with_single_weights == (rows < 32)


def test_sums_stay_in_registers_on_newer_gpus():
    """Whose compiler makes one loop of two, with an index that is worked out, where it can.

    Not of the largest tile, whose operands it still puts into local memory.
    """
    launches = {}
    for each in shipped.shipped():
        names = each.kernel[1]
        small = names.get("MULTIPLY") is kernels.multiply and names["BM"] < 128
        if small or names.get("R") == 64:
            sizes = (names.get("BM"), names.get("BN"), names.get("R"))
            launches[names["REAL"], sizes] = each
    assert len(launches) == 7
    for (real, sizes), each in launches.items():
        cubin = compile_for(*each.kernel, each.args, each.threads, (10, 0))
        opcode = "FFMA" if real is float32 else "DFMA"
        bodies = [loop.body for loop in loops(disassemble(cubin)[1]) if count(loop.body, opcode)]
        assert max(count(body, opcode) for body in bodies) >= 16, sizes
        assert not any(count(body, "LDL") + count(body, "STL") for body in bodies), sizes


def load_one_by_one(target, i, source, j):
    for k in range(GROUP):  # noqa: F821
        target[i + k] = source[j + k]


def load_with_a_sign(source, i):
    return source[i]


def load_fragments_one_by_one(target, i, source, j):
    for m in range(4):
        target[i + m] = source[j + 8 * m] | source[j + 8 * m + 1] << 16


@pytest.mark.parametrize(
    ("precision", "names"),
    [
        ("highest", {"load_vector": load_one_by_one}),
        ("high", {"load_shared": load_with_a_sign}),
        ("medium", dict.fromkeys(("LOAD_A", "LOAD_B"), load_fragments_one_by_one)),
    ],
)
def test_slower_loads_are_found(precision, names):
    _, ratio, most = loop_of_product(precision, 0, (False, False), **names)
    assert ratio > most


def test_slower_loads_of_row_tiles_are_found():
    found = loops_of_rows("float32", 128, load_vector=load_one_by_one)
    assert all(ratio > MOST_OF_ROWS["float32", 128] for _, ratio in found)


def code_of_barrier(**names):
    """Machine code of a kernel that comes to a barrier of the grid."""

    def wait(barrier):
        grid_barrier(barrier, 1)  # noqa: F821

    module = vars(resident) | names
    cubin = compile_for(
        FunctionType(wait.__code__, module, "wait"), {}, (np.zeros(1, np.uint32),), 256, (9, 0, "a")
    )
    return disassemble(cubin)[1]


# All writes are done before a block counts itself in, and nothing that is cached close by is read
# once all have.
BARRIER = r"MEMBAR[\s\S]*REDG?\.E\.ADD\.STRONG\.GPU[\s\S]*LDG\.E\.STRONG\.GPU[\s\S]*CCTL\.IVALL"


def test_the_barrier_of_the_grid_orders_memory():
    assert re.search(BARRIER, code_of_barrier())


def test_a_barrier_that_does_not_order_memory_is_found(monkeypatch):
    """A relaxed reduction in the instruction, whose twin in the emulator still releases."""
    written = ptx._asm

    def relaxed(builder, result, text, *args, **options):
        return written(builder, result, text.replace("release", "relaxed"), *args, **options)

    monkeypatch.setattr(ptx, "_asm", relaxed)
    monkeypatch.setenv("FASTMLP_CACHE_DIR", os.devnull)
    assert not re.search(BARRIER, code_of_barrier())


# --- kernels that come compiled -----------------------------------------------------------------


def test_a_build_leaves_kernels_that_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "PREBUILT", tmp_path)
    monkeypatch.setenv("FASTMLP_CACHE_DIR", os.devnull)
    launches = [each for each in shipped.shipped() if each.kernel[0] is kernels.put_ones]
    stranger = tmp_path / "sm_80" / "stranger-cubin.o"
    stranger.parent.mkdir()
    stranger.touch()
    told = []
    monkeypatch.setattr(compiler, "assemble", lambda *args: told.append(args) or assemble(*args))
    for _ in range(2):
        shipped.build((8, 0), launches)
        assert len(told) == len(launches) == 3
    assert not stranger.exists()
    for each in launches:
        cubin = compile_for(*each.kernel, each.args, each.threads, (8, 0))
        assert ".target\tsm_80\n" in disassemble(cubin)[1]
    assert len(told) == 3
    shipped.build(compiler.PTX_TARGET, launches, "ptx")
    for path in (tmp_path / "compute_100").glob("*.o"):
        entry, code = compiler.unpack(path.read_bytes()[objects._DIGEST :])
        assert b".target sm_100" in code
        assert b".entry " + entry.encode() in code
    assert len(told) == 6
