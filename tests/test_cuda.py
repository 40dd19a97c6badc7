"""The CUDA target without a GPU: kernels in the emulator, and bugs that the emulator must find.

The ladder of `test_engine` climbs this engine too; here is what only a GPU target has.
"""

import inspect
import types

import numpy as np
import pytest
import reference
from conftest import CONSTANTS, EMULATED_SIZES, make_network, make_problem
from numba import float32, float64
from simt import EmulatedDevice, Fault, to_bf16x2, to_tf32

from fastmlp.engine import cuda as target
from fastmlp.engine import get_engine
from fastmlp.engine.cpu import CpuEngine
from fastmlp.engine.cuda import SUPPORTED, CudaEngine, MmaTile, Tile, kernels, resident
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.network import Network
from fastmlp.optimizers import OPTIMIZERS, Optimizer

SCHEDULES = ["forward", "reverse", "random"]
ORIENTATIONS = [(True, False), (True, True), (False, False)]  # forward, input, weight gradient
TILE = Tile(8, 16, 4, 2, 4)
MMA_TILE = MmaTile(32, 16, 16, 16, 8)
rng = np.random.default_rng(0)


def multiply(device, template, names, A, B, by_rows, splits=1):
    """``A @ B`` by a kernel, each operand stored by lines of terms or across them."""
    (M, K), N = A.shape, B.shape[1]
    stored_A, stored_B = A if by_rows[0] else A.T, B.T if by_rows[1] else B
    out = device.upload(np.full(splits * M * N, np.nan, A.dtype))
    kernel = device.kernel(
        template, REAL=float32 if A.dtype == np.float32 else float64, A_BY_ROWS=by_rows[0],
        B_BY_ROWS=by_rows[1], EPILOGUE=vars(kernels)["put"], **names,
    )  # fmt: skip
    split = -(-K // (splits * names["BK"])) * names["BK"]
    device.launch(
        kernel, (-(-N // names["BN"]), -(-M // names["BM"]), splits), names["THREADS"],
        device.upload(np.array([0, M, M])), 0, M,
        device.upload(stored_A), 0, stored_A.shape[1], device.upload(stored_B), 0,
        stored_B.shape[1], out, 0, N, M * N, split, 0, N, K, out,
    )  # fmt: skip
    return device.read(out).reshape(splits, M, N).sum(axis=0)


def operands(M, N, K, dtype):
    return rng.normal(size=(M, K)).astype(dtype), rng.normal(size=(K, N)).astype(dtype)


@pytest.mark.parametrize("late_copies", [True, False], ids=["late", "at once"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("by_rows", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products(dtype, by_rows, schedule, late_copies):
    device = EmulatedDevice(schedule, late_copies)
    for M, N, K in ((1, 1, 1), (9, 17, 5), (16, 32, 8), (7, 3, 13)):
        A, B = operands(M, N, K, dtype)
        for splits in (1, 3):
            C = multiply(device, kernels.product, TILE.names(), A, B, by_rows, splits)
            np.testing.assert_allclose(C, A @ B, atol=1e-5 if dtype == "float32" else 1e-13)


def rounded(values, precision):
    """What a tensor core sees of ``values``."""
    if precision == "high":
        bits = [to_tf32(x) for x in values.ravel()]
    else:
        bits = [to_bf16x2(x, 0) << 16 for x in values.ravel()]
    return np.array(bits, np.uint32).view(np.float32).reshape(values.shape).astype(float)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("by_rows", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_on_tensor_cores(precision, by_rows, schedule):
    device = EmulatedDevice(schedule)
    A, B = operands(41, 21, 37, "float32")
    names = MMA_TILE.names(precision)
    C = multiply(device, kernels.product_mma, names, A, B, by_rows, splits=2)
    np.testing.assert_allclose(C, rounded(A, precision) @ rounded(B, precision), atol=1e-5)


def test_rounding_for_tensor_cores():
    """Against NumPy's own arithmetic on the bits that are left."""
    for x in np.float32([1, -1.5, 1 + 2**-11, 3.14159274, 1e-30, 65504.1, np.inf]):
        for precision, bits in (("high", 10), ("medium", 7)):
            got = rounded(np.array([x]), precision)[0]
            if np.isinf(x):
                assert got == x
                continue
            unit = 2.0 ** (np.floor(np.log2(abs(float(x)))) - bits)
            assert got / unit == int(got / unit)
            assert abs(got - float(x)) <= unit / 2
    assert to_bf16x2(1.0, 0.0) == 0x3F80
    assert to_bf16x2(0.0, 1.0) == 0x3F800000


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_engine_with_less_precise_products(precision):
    network = Network((6, 9, 3), "relu", "log_loss")
    X, y = make_problem("log_loss", 20, 6, 3)
    flat = rng.normal(size=network.n_parameters).astype("float32")
    engine = CudaEngine(
        network, dtype="float32", device=EmulatedDevice(), sizes=EMULATED_SIZES,
        matmul_precision=precision,
    )  # fmt: skip
    engine.load(X.astype("float32"), y)
    engine.set_parameters(flat)
    _, gradient = engine.loss_and_gradient()
    _, expected = reference.objective(
        flat.astype(float), network.widths, "relu", "log_loss", X, y, 0.0
    )
    error = np.abs(gradient - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < {"high": 1e-2, "medium": 5e-2}[precision]


def train(make_engine, loss, rule, dtype="float64"):
    """Losses of two epochs, the parameters and the state after them."""
    network = Network((5, 7, 6, 3 if loss == "log_loss" else 2), "tanh", loss)
    X, y = make_problem(loss, 30, 5, network.n_outputs)
    engine = make_engine(
        network, dtype=dtype, alpha=0.1, batch_size=12, optimizer=Optimizer(rule, CONSTANTS[rule])
    )
    weight = np.random.default_rng(2).uniform(0.5, 2.0, 30)
    weight[12:24] = 0  # a batch that carries no information
    engine.load(X.astype(dtype), y, weight.astype(dtype))
    engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
    losses = [engine.run_epoch(np.arange(30), np.full(3, 0.01)) for _ in range(2)]
    slots, steps = engine.get_state()
    return np.array(losses), engine.get_parameters(), slots, steps


def emulated(path, *device_options):
    def make(network, **options):
        device = EmulatedDevice(*device_options)
        engine = CudaEngine(network, device=device, sizes=EMULATED_SIZES, **options)
        assert engine.path == path
        return engine

    return make


@pytest.fixture(params=["resident", "tiled"])
def path(request, monkeypatch):
    if request.param == "tiled":
        monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", 0)
    return request.param


@pytest.mark.parametrize("rule", SUPPORTED["rule"])
@pytest.mark.parametrize("loss", SUPPORTED["loss"])
def test_both_paths_train_as_the_cpu_does(path, loss, rule):
    got, expected = train(emulated(path), loss, rule), train(CpuEngine, loss, rule)
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_has_the_same_bits_in_every_order_of_threads(path, schedule):
    expected = train(emulated(path), "log_loss", "adam")
    got = train(emulated(path, schedule, False), "log_loss", "adam")
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_paths_take_turns(monkeypatch):
    """Whichever path ran before, an epoch starts from the current parameters."""

    def alternate(engine):
        engine.load(X, y)
        engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
        for limit in (2**17, 0, 2**17, 2**17):
            monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", limit)
            engine.run_epoch(np.arange(20), np.full(2, 0.01))
        return engine.get_parameters()

    network = Network((4, 6, 2), "relu", "squared_error")
    X, y = make_problem("squared_error", 20, 4, 2)
    options = {"dtype": "float64", "batch_size": 10, "optimizer": Optimizer("sgd", (0.9, 0, 0))}
    got = alternate(emulated("resident")(network, **options))
    np.testing.assert_allclose(got, alternate(CpuEngine(network, **options)), rtol=1e-10)


def test_gradients_in_splits_and_blocks(monkeypatch):
    monkeypatch.setattr(target, "_TERMS_PER_SPLIT", 4)
    monkeypatch.setattr(target, "_BLOCK_ROWS", 17)
    network = Network((5, 7, 2), "tanh", "squared_error")
    X, y = make_problem("squared_error", 40, 5, 2)
    flat = np.linspace(-1, 1, network.n_parameters)
    engine = CudaEngine(
        network, dtype="float64", device=EmulatedDevice(), sizes=EMULATED_SIZES, alpha=0.1
    )
    engine.load(X, y)
    engine.set_parameters(flat)
    loss, gradient = engine.loss_and_gradient()
    assert engine._workspaces[17].n_splits == 4
    expected, expected_gradient = reference.objective(
        flat, network.widths, "tanh", "squared_error", X, y, 0.1
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-13)


# --- planted bugs -----------------------------------------------------------------------------

BUGS = {
    "no wait for the last copies": (
        "            wait_for_all_copies()\n",
        "            pass\n",
    ),
    "no barrier after the copies": (
        "        cuda.syncthreads()\n        for term in range(BK):",
        "        for term in range(BK):",
    ),
    "no barrier before the next copies": (
        "                    sums[i, j] += a[i] * b[j]\n        cuda.syncthreads()",
        "                    sums[i, j] += a[i] * b[j]",
    ),
    "uninitialised sums": ("            sums[i, j] = 0\n", "            pass\n"),
    "edge of the tile": (
        "valid = outer + i < outer_end and k + term < k_end",
        "valid = outer + i <= outer_end and k + term < k_end",
    ),
    "edge of the terms": (
        "valid = outer + i < outer_end and k + term < k_end",
        "valid = outer + i < outer_end",
    ),
    "edge of the result": (
        "if m0 + m + i < M and n0 + n + j < N:",
        "if m0 + m + i <= M and n0 + n + j < N:",
    ),
    "wrong fragment of A": (
        "a[i, 2 * half] = to_tf32(As[below])",
        "a[i, 2 * half] = to_tf32(As[below + 1])",
    ),
    "halves of a fragment of B": (
        "b[j, half] = to_bf16x2(Bs[column], Bs[column + BN + PAD])",
        "b[j, half] = to_bf16x2(Bs[column + BN + PAD], Bs[column])",
    ),
    "wrong rows of the result": (
        "row, column = m0 + m + 16 * i + g + 8 * (c // 2)",
        "row, column = m0 + m + 16 * i + g + 8 * (c % 2)",
    ),
    "race in the reduction": (
        "            shared[thread] += shared[thread + half]\n        cuda.syncthreads()",
        "            shared[thread] += shared[thread + half]",
    ),
    "score read after it was replaced": (
        "        score = Z[z0 + i * ldz + label] - peak\n        cuda.syncwarp()\n",
        "        score = Z[z0 + i * ldz + label] - peak\n",
    ),
}


RESIDENT_BUGS = {
    "blocks do not wait for each other": (
        "while load_acquire(barrier, 0) < n_times * cuda.gridDim.x:",
        "while load_acquire(barrier, 0) < 0:",
    ),
    "threads do not wait for the block's first": (
        "            pass\n    cuda.syncthreads()\n",
        "            pass\n",
    ),
    "no barrier after the gather": (
        "X, widths[0])\n            cuda.syncthreads()\n",
        "X, widths[0])\n",
    ),
    "no barrier between layers": (
        "                at = layers[2 * layer]\n                cuda.syncthreads()\n",
        "                at = layers[2 * layer]\n",
    ),
    "stale transposed copy": ("                if heavy:\n", "                if False:\n"),
    "deltas of missing rows": ("if e % R >= rows:", "if e % R > rows:"),
}


def plant(module, right, wrong):
    """A copy of a module with ``wrong`` in place of ``right``."""
    source = inspect.getsource(module)
    assert right in source
    mutant = types.ModuleType("mutant")
    exec(compile(source.replace(right, wrong), "mutant", "exec"), vars(mutant))
    return mutant


def errors(module):
    """The errors of all kernels, on every kind of device."""
    A, B = operands(33, 17, 21, "float32")
    for schedule in SCHEDULES:
        for late_copies in (True, False):
            device = EmulatedDevice(schedule, late_copies)
            for by_rows in ORIENTATIONS:
                yield largest(multiply(device, module.product, TILE.names(), A, B, by_rows) - A @ B)
            yield error_of_softmax_and_reduction(device)
            for precision, load in (("high", module.load_tf32), ("medium", module.load_bf16)):
                names = MMA_TILE.names(precision) | {"LOAD": load}
                C = multiply(device, module.product_mma, names, A, B, (True, False))
                yield largest(C - rounded(A, precision) @ rounded(B, precision))


def largest(errors):
    return np.nan_to_num(np.abs(errors), nan=np.inf).max()


def error_of_softmax_and_reduction(device):
    network = Network((3, 40), "relu", "log_loss")
    X, y = make_problem("log_loss", 12, 3, 40)
    flat = np.linspace(-1, 1, network.n_parameters)
    sizes = EMULATED_SIZES._replace(threads=64)
    engine = CudaEngine(network, dtype="float64", device=device, sizes=sizes, alpha=0.5)
    engine.load(X, y)
    engine.set_parameters(flat)
    loss, gradient = engine.loss_and_gradient()
    expected, expected_gradient = reference.objective(
        flat, network.widths, "relu", "log_loss", X, y, 0.5
    )
    return largest([loss - expected, *(gradient - expected_gradient)])


def test_no_bug_is_found_where_none_was_planted():
    assert max(errors(kernels)) < 1e-4


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug, monkeypatch):
    mutant = plant(kernels, *BUGS[bug])
    monkeypatch.setattr(target, "kernels", mutant)
    try:
        found = any(error > 1e-3 for error in errors(mutant))
    except Fault:
        found = True
    assert found


@pytest.mark.parametrize("bug", RESIDENT_BUGS)
def test_planted_bugs_of_the_resident_path_are_found(bug, monkeypatch):
    mutant = plant(resident, *RESIDENT_BUGS[bug])
    expected = train(emulated("resident"), "log_loss", "sgd")[1]
    monkeypatch.setattr(target, "resident", mutant)
    found = False
    for schedule in SCHEDULES:
        try:
            got = train(emulated("resident", schedule), "log_loss", "sgd")[1]
            found |= largest(got - expected) > 1e-6
        except Fault:
            found = True
    assert found


# --- the door ---------------------------------------------------------------------------------


def test_a_machine_without_a_gpu_is_told_so():
    from numba import cuda

    if cuda.is_available():
        pytest.skip("this machine has a GPU")
    target.open_device.cache_clear()
    with pytest.raises(ValueError, match=r"device='cuda' found no NVIDIA GPU.*device='cpu'"):
        get_engine("cuda", Network((1, 1), "relu", "squared_error"), dtype="float64")


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS.keys() - SUPPORTED["activation"]))
def test_what_is_not_supported_is_refused_by_name(activation):
    network = Network((3, 4, 2), activation, "squared_error")
    with pytest.raises(
        ValueError, match=f"device='cuda' does not support activation='{activation}"
    ):
        CudaEngine(network, dtype="float64", device=EmulatedDevice())


def test_optimizers_that_are_not_supported_are_refused_by_name():
    network = Network((3, 4, 2), "relu", "squared_error")
    for rule in OPTIMIZERS.keys() - SUPPORTED["rule"]:
        with pytest.raises(ValueError, match=f"device='cuda' does not support solver='{rule}'"):
            CudaEngine(network, dtype="float64", device=EmulatedDevice(),
                       optimizer=Optimizer(rule, CONSTANTS[rule]))  # fmt: skip
    with pytest.raises(ValueError, match="device='cuda' does not support weight_decay"):
        CudaEngine(network, dtype="float64", device=EmulatedDevice(),
                   optimizer=Optimizer("adam", CONSTANTS["adam"], 0.1))  # fmt: skip


def test_losses_that_are_not_supported_are_refused_by_name():
    for loss in LOSSES.keys() - SUPPORTED["loss"]:
        network = make_network((3, 4, 2), "relu", loss)
        with pytest.raises(ValueError, match="device='cuda' does not support loss="):
            CudaEngine(network, dtype="float64", device=EmulatedDevice())
    network = Network((3, 4, 2), "relu", "binary_log_loss", label_smoothing=0.1)
    with pytest.raises(ValueError, match="device='cuda' does not support label_smoothing"):
        CudaEngine(network, dtype="float64", device=EmulatedDevice())
