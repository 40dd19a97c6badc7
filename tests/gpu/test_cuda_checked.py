"""The CUDA kernels in emulators that look closer, and what these must find (see `checked`)."""

from typing import Any

import numpy as np
import pytest
from checked import CachedDevice, CountingDevice, Single, SingleDevice
from problems import CONSTANTS, make_network, make_problem, place_for
from simt import EMULATED_SIZES, Fault
from test_cuda import (
    MANY_ROWS,
    ORIENTATIONS,
    SCHEDULES,
    TILE,
    emulated,
    largest,
    multiply,
    operands,
    path,  # noqa: F401
    plant,
    train,
    train_many_rows,
)

from fastmlp.dropout import Dropout
from fastmlp.engine.cuda import CudaEngine, kernels, launcher, paths, resident, tiles
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.optimizers import Optimizer

# --- what blocks see of each other's writes ----------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocks_see_each_others_writes(path, schedule):  # noqa: F811
    expected = train(emulated(path), "log_loss", "adam")
    got = train(emulated(path, schedule, kind=CachedDevice), "log_loss", "adam")
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocks_see_each_others_writes_of_several_row_tiles(schedule):
    expected = train_many_rows(emulated("resident"), "log_loss", "relu")
    got = train_many_rows(emulated("resident", schedule, kind=CachedDevice), "log_loss", "relu")
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


UNORDERED = {
    "nothing is released": ("add_release(barrier", "add_relaxed(barrier"),
    "nothing is acquired": ("load_acquire(barrier", "load_relaxed(barrier"),
}


@pytest.mark.parametrize("bug", UNORDERED)
def test_a_barrier_that_does_not_order_memory_is_found(bug, monkeypatch):
    """Not where all see the same memory."""
    expected = train(emulated("resident"), "log_loss", "adam")[1]
    mutant = plant(resident, *UNORDERED[bug])
    monkeypatch.setattr(paths, "resident", mutant)
    np.testing.assert_array_equal(train(emulated("resident"), "log_loss", "adam")[1], expected)
    for schedule in SCHEDULES:
        try:
            got = train(emulated("resident", schedule, kind=CachedDevice), "log_loss", "adam")[1]
        except Fault:
            continue
        assert largest(got - expected) > 1e-6


# --- what memory has to do for whole warps -------------------------------------------------------

SIZES = tiles.SIZES["float32"]


class LargeDevice(CountingDevice):
    """With the shared memory of an H100."""

    shared_bytes = 227 * 1024


def counts_of_product(precision, tile, by_rows, product=kernels.product):
    """Of a whole tile by a block as on a GPU."""
    device, (A, B) = LargeDevice(), operands(tile.BM, tile.BN, tile.BK, "float32")
    multiply(device, tile, precision, A, B, by_rows, aligned=True, product=product)
    return device.counts()


def of_multiply(counts):
    """What the loop loads from shared memory."""
    loads = [each for (space, function, _), each in counts.items()
             if space == "shared" and function.startswith("multiply")]  # fmt: skip
    return tuple(map(sum, zip(*loads, strict=True)))


@pytest.mark.parametrize("size", range(4), ids=["large", "medium", "small", "smallest"])
@pytest.mark.parametrize("by_rows", ORIENTATIONS, ids=str)
def test_memory_serves_products_at_once(by_rows, size):
    """Loads of the loop without conflicts; global memory in whole sectors."""
    for precision in ("highest", "high", "medium"):
        tile: Any = SIZES.of(precision)[size]
        counts = counts_of_product(precision, tile, by_rows)
        instructions, turns, least = of_multiply(counts)
        assert turns == least
        if precision == "highest":  # vectors of four terms, or rows or columns
            n_groups = tile.BK // tile.slices // 4
            assert instructions == tile.threads // 32 * n_groups * (tile.TM + tile.TN)
        if precision == "medium":  # of 16 terms: 16 rows, or 16 columns, or all 8, at a time
            n_groups = tile.BK // tile.slices // 16
            loads = tile.WM // 16 + max(1, tile.WN // 16)
            assert instructions == tile.threads // 32 * n_groups * loads
        send = "send_columns" if precision == "medium" and size < 2 else "send"
        for key in (("global", "fetch", 16), ("global", f"{send}/put", 4)):
            assert counts[key].turns == counts[key].least, key
        into = counts["shared", "fetch", 16]
        assert into.turns <= 2 * into.least
        # sums on their way to whoever writes them, once per tile
        passed, read = counts["shared", "product", 4], counts["shared", f"{send}/add_slices", 4]
        most = 2 if send == "send_columns" else 4 if precision == "highest" else 8
        assert passed.turns <= most * passed.least
        assert read.turns == read.least


@pytest.mark.parametrize(("precision", "by_rows"), [("highest", (True, True)),
                         ("high", (True, False)), ("medium", (True, False)),
                         ("medium", (False, False))])  # fmt: skip
def test_rows_that_begin_in_the_same_bank_are_found(precision, by_rows, monkeypatch):
    written = tiles._operand

    def without_pad(name, by_rows, outer, tile, pad, *others):
        return written(name, by_rows, outer, tile, 0, *others)

    monkeypatch.setattr(tiles, "_operand", without_pad)
    tile = SIZES.of(precision)[0]
    _, turns, least = of_multiply(counts_of_product(precision, tile, by_rows))
    assert turns >= 2 * least


def test_stores_across_rows_are_found(monkeypatch):
    mutant = plant(
        kernels, "ROW(i, e // BN), e % BN", "ROW(i, e % (PASS // BN)), e // (PASS // BN)"
    )
    monkeypatch.setattr(tiles, "kernels", mutant)
    counts = counts_of_product("highest", SIZES.plain[1], (True, False), mutant.product)
    put = counts["global", "send/put", 4]
    assert put.turns >= 2 * put.least


MISALIGNED = {
    "an odd element": ("highest", "memory, at + term * pitch", "memory, 1 + at + term * pitch"),
    "a matrix": ("medium", "at_a + 16 * i", "at_a + 4 + 16 * i"),
    "an array": ("highest", "STORED, alignment=16", "STORED"),
}


@pytest.mark.parametrize("bug", MISALIGNED)
def test_misaligned_vectors_are_found(bug, monkeypatch):
    precision, *change = MISALIGNED[bug]
    mutant = plant(kernels, *change)
    monkeypatch.setattr(tiles, "kernels", mutant)
    with pytest.raises(Fault, match=r"aligned|asynchronous copy of 4 elements"):
        counts_of_product(precision, SIZES.of(precision)[1], (False, False), mutant.product)


def counts_of_resident_step(batch):
    """Of one step, rows shared by two blocks."""
    device = LargeDevice()
    network, objective = make_network((32, 64, 64, 8), "relu", "log_loss")
    X, y = make_problem("log_loss", batch, 32, 8)
    engine = CudaEngine(
        network, dtype="float32", objective=objective, batch_size=batch, device=device,
        sizes=EMULATED_SIZES._replace(rows=SIZES.rows),
        optimizer=Optimizer("sgd", (0.9, 0.0, 0.0)),
    )  # fmt: skip
    engine.load(place_for(engine, X.astype("float32"), y))
    assert engine.path == "resident"
    device.accesses.clear()
    engine.run_epoch(np.arange(batch), np.full(1, 0.1))
    return device.counts()


# What a step loads and stores most, and the most turns for each that is needed, in row tiles of 4,
# of 16, and of 128 rows.
HOT = {
    ("shared", "forward_all/forward/load_rows/load_four", 16): (1, 1.08, 1.08),
    ("shared", "forward_all/forward/store_four", 16): (2, 2, 1.06),
    ("shared", "backward_all/gradient/load_four", 16): (1, 1, 1.08),
    ("shared", "backward_all/input_gradient/load_rows/load_four", 16): (1, 1, 1),
    ("shared", "backward_all/input_gradient/load_four", 16): (1.77, 1.1, 1),
    ("global", "backward_all/gradient", 4): (1, 1, 1.22),
    ("global", "fetch_weights", 16): (1, 1, 1),
    ("shared", "fetch_weights", 16): (1, 1, 1),
    ("global", "fetch_rows", 4): (1, 1, 1),
    ("global", "sum_partial", 4): (1.15, 1.15, 1.15),
}


def too_many_turns(counts, which):
    return {key: counts[key] for key, most in HOT.items()
            if counts[key].turns > most[which] * counts[key].least}  # fmt: skip


@pytest.mark.parametrize(("batch", "which"), [(8, 0), (32, 1), (256, 2)])
def test_memory_serves_the_resident_path_at_once(batch, which):
    assert not too_many_turns(counts_of_resident_step(batch), which)


def test_columns_that_begin_in_the_same_bank_are_found(monkeypatch):
    monkeypatch.setattr(tiles.RowTile, "pitch", property(lambda tile: tile.rows))
    found = too_many_turns(counts_of_resident_step(32), 1)
    assert ("shared", "backward_all/gradient/load_four", 16) in found


def test_lanes_that_share_a_part_side_by_side_are_found(monkeypatch):
    """Of terms that follow each other, whose columns lie in the same banks."""
    mutant = plant(
        resident,
        "(lane & (1 << width) - 1))\n"
        "    return int32(min(which, n_parts - 1)), int32(lane >> width),",
        "(lane >> shift))\n"
        "    return int32(min(which, n_parts - 1)), int32(lane & (1 << shift) - 1),",
    )
    monkeypatch.setattr(paths, "resident", mutant)
    found = too_many_turns(counts_of_resident_step(256), 2)
    assert ("shared", "forward_all/forward/load_rows/load_four", 16) in found


def test_rows_of_weights_that_begin_in_the_same_bank_are_found(monkeypatch):
    mutant = plant(resident, "4 * ((fan_out + 3) // 4 | 1)", "4 * ((fan_out + 3) // 4)")
    monkeypatch.setattr(paths, "resident", mutant)
    found = too_many_turns(counts_of_resident_step(8), 0)
    assert ("shared", "backward_all/input_gradient/load_four", 16) in found


# --- arithmetic in float32 -----------------------------------------------------------------------


def in_float32(A, B):
    """``A @ B`` by a tile's slices of its terms, every operation rounded by NumPy."""
    sums = np.zeros((TILE.slices, A.shape[0], B.shape[1]), np.float32)
    for k in range(A.shape[1]):
        sums[k % TILE.BK // (TILE.BK // TILE.slices)] += A[:, k, None] * B[k]
    return sums.sum(axis=0, dtype=np.float32)


@pytest.mark.parametrize("by_rows", ORIENTATIONS, ids=str)
def test_products_round_every_operation(by_rows):
    A, B = operands(33, 17, 45, "float32")
    C = multiply(SingleDevice(), TILE, "highest", A, B, by_rows)
    np.testing.assert_array_equal(C, in_float32(A, B))


def test_sums_in_float64_are_found():
    """By their bits."""
    mutant = plant(kernels, "sums = cuda.local.array(SUMS, REAL)",
                   "sums = cuda.local.array(SUMS, float64)")  # fmt: skip
    A, B = operands(33, 17, 45, "float32")
    C = multiply(SingleDevice(), TILE, "highest", A, B, (True, False), product=mutant.product)
    assert (in_float32(A, B) != C).any()
    np.testing.assert_allclose(C, A @ B, atol=1e-5)


def promoted(path, loss, activation="tanh", rule="adam", **options):  # noqa: F811
    """The functions that work in float64 on what is float32, over training and prediction."""
    layer_norm, dropout = "dropout" in options, options.pop("dropout", None)
    n_outputs = 3 if LOSSES[loss].per_row else 2
    network, objective = make_network((3, 4, n_outputs), activation, loss, layer_norm=layer_norm)
    X, y = make_problem(loss, 8, 3, n_outputs)
    X = X.astype("float32")
    precision, sizes = options.pop("precision", "highest"), options.pop("sizes", EMULATED_SIZES)
    engine = emulated(path, kind=SingleDevice)(
        network, sizes, dtype="float32", objective=objective, alpha=0.1, batch_size=6,
        dropout=dropout, optimizer=Optimizer(rule, CONSTANTS[rule], **options),
        matmul_precision=precision,
    )  # fmt: skip
    engine.load(place_for(engine, X, y, np.ones(8, np.float32)))
    engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
    engine.run_epoch(np.arange(8), np.full(2, 0.01))
    engine.predict(X)
    return Single.promoted


# where losses are summed, in float64
SUMS = {"resident": {"resident_epoch"}, "tiled": {"finish_step"}}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_worked_out_in_float32(path, loss):  # noqa: F811
    assert promoted(path, loss) == SUMS[path]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_worked_out_in_float32(path, activation):  # noqa: F811
    assert promoted(path, "log_loss", activation) == SUMS[path]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_large_row_tiles_are_worked_out_in_float32(activation):
    found = promoted("resident", "log_loss", activation, sizes=MANY_ROWS)
    assert found == SUMS["resident"]


@pytest.mark.parametrize("rule", CONSTANTS)
def test_updates_are_worked_out_in_float32(path, rule):  # noqa: F811
    assert promoted(path, "log_loss", rule=rule) == SUMS[path]


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_layers_between_are_worked_out_in_float32(precision):
    options = {"dropout": Dropout((0.5,), 0), "max_grad_norm": 0.1, "ema_decay": 0.9}
    found = promoted("tiled", "log_loss", precision=precision, **options)
    assert found == SUMS["tiled"]


PROMOTED = {
    "a sum": (
        resident,
        "forward",
        ("sums = cuda.local.array(SUMS, REAL)", "sums = cuda.local.array(SUMS, float64)"),
    ),
    "a literal": (kernels, "head", ("(y - REAL(0.5))", "(y - 0.5)")),
    "an integer": (kernels, "class_target", ("/ REAL(n_outputs)", "/ n_outputs")),
}


@pytest.mark.parametrize("bug", PROMOTED)
def test_arithmetic_in_float64_is_found(bug, monkeypatch):
    module, function, change = PROMOTED[bug]
    mutant = plant(module, *change)
    name = module.__name__.rsplit(".")[-1]
    if module is kernels:
        monkeypatch.setattr("fastmlp.engine.cuda.engine._RESIDENT_PARAMETERS", 0)
        monkeypatch.setattr(launcher, name, mutant)
    monkeypatch.setattr(paths, name, mutant)
    loss = "focal" if function == "class_target" else "squared_error"
    assert function in promoted("tiled" if module is kernels else "resident", loss)
