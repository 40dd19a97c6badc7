"""The CUDA target without a GPU: kernels in the emulator, and bugs that the emulator must find.

The ladder of `test_engine` climbs this engine too; here is what only a GPU target has.
"""

import inspect
import time
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import cycle, product

import numpy as np
import pytest
import reference
import sklearn
from engines import each_once
from numba import float32, float64
from problems import CONSTANTS, make_network, make_problem, place_for
from scipy import sparse
from simt import EMULATED_SIZES, EmulatedDevice, Fault, from_bf16, to_bf16, to_tf32
from sklearn.exceptions import ConvergenceWarning

from fastmlp import MLPClassifier, MLPEnsembleRegressor, MLPRegressor
from fastmlp.dropout import Dropout
from fastmlp.engine import get_engine
from fastmlp.engine.cpu import CpuEngine
from fastmlp.engine.cuda import (
    CudaEngine,
    kernels,
    launcher,
    paths,
    place,
    resident,
    samples,
    tiles,
    workspace,
)
from fastmlp.engine.cuda import device as devices
from fastmlp.engine.cuda import engine as target
from fastmlp.engine.cuda.device import Launch
from fastmlp.engine.cuda.shipped import Recorder
from fastmlp.functions import ACTIVATIONS, LOSSES, Activation, Loss
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import OPTIMIZERS, Optimizer

SCHEDULES = ["forward", "reverse", "random"]
ORIENTATIONS = [(True, False), (True, True), (False, False)]  # forward, input, weight gradient
TILE = EMULATED_SIZES.plain[0]
rng = np.random.default_rng(0)


def stored(matrix, by_rows, width, fill):
    """As an operand lies in memory: lines of terms or across them, of a multiple of ``width``
    elements, with ``fill`` behind each.
    """
    lines = matrix if by_rows else matrix.T
    padding = -lines.shape[1] % width
    return np.pad(lines, ((0, 0), (0, padding)), constant_values=fill)


def multiply(device, tile, precision, A, B, by_rows, splits=1, aligned=False,
             product=kernels.product):  # fmt: skip
    """``A @ B`` by a kernel, each operand stored by lines of terms or across them."""
    (M, K), N = A.shape, B.shape[1]
    width = tiles.storage_of(A.dtype, precision).group if aligned else 1
    stored_A, stored_B = stored(A, by_rows[0], width, 7), stored(B.T, by_rows[1], width, 0)
    out = device.upload(np.full(splits * M * N, np.nan, A.dtype))
    real = float32 if A.dtype == np.float32 else float64
    names = tile.names(A.dtype, precision, by_rows, (aligned, aligned))
    shared_bytes = tiles.shared_bytes(names, A.dtype)
    kernel = device.kernel(
        product, STORE=kernels.put, **({"REAL": real, "OPERAND": real} | names)
    )  # fmt: skip
    if precision == "medium":
        stored_A, stored_B = as_bf16(stored_A), as_bf16(stored_B)
    split = -(-K // (splits * names["BK"])) * names["BK"]
    arguments = (
        device.upload(np.array([0, M, M])), 0, M,
        device.upload(stored_A), 0, stored_A.shape[1], device.upload(stored_B), 0,
        stored_B.shape[1], out, 0, N, M * N, split, 0, N, K, out,
    )  # fmt: skip
    blocks = (-(-N // names["BN"]), -(-M // names["BM"]), splits)
    device.launch(Launch(kernel, blocks, names["THREADS"], arguments, shared_bytes=shared_bytes))
    return device.read(out).reshape(splits, M, N).sum(axis=0)


def as_bf16(values):
    """As bits in memory."""
    return np.array([to_bf16(x) for x in values.ravel()], np.uint16).reshape(values.shape)


def operands(M, N, K, dtype):
    return rng.normal(size=(M, K)).astype(dtype), rng.normal(size=(K, N)).astype(dtype)


@pytest.mark.parametrize("late_copies", [True, False], ids=["late", "at once"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("by_rows", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products(dtype, by_rows, schedule, late_copies):
    device = EmulatedDevice(schedule, late_copies)
    variants = product((1, 3), EMULATED_SIZES.plain, (False, True))
    shapes = [(1, 1, 1), (9, 17, 5), (16, 32, 8), (7, 3, 13)]
    for (M, N, K), (splits, tile, aligned) in zip(cycle(shapes), variants, strict=False):
        # what is behind an aligned line of terms is zero in one operand at least
        K += -K % 4 * (aligned and all(by_rows))
        A, B = operands(M, N, K, dtype)
        C = multiply(device, tile, "highest", A, B, by_rows, splits, aligned)
        np.testing.assert_allclose(C, A @ B, atol=1e-5 if dtype == "float32" else 1e-13)


def rounded(values, precision):
    """What a tensor core sees of ``values``."""
    if precision == "medium":
        seen = [from_bf16(x) for x in as_bf16(values).ravel().tolist()]
        return np.array(seen).reshape(values.shape)
    bits = [to_tf32(x) for x in values.ravel()]
    return np.array(bits, np.uint32).view(np.float32).reshape(values.shape).astype(float)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("by_rows", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_on_tensor_cores(precision, by_rows, schedule):
    device = EmulatedDevice(schedule)
    A, B = operands(41, 21, 40, "float32")
    for tile, aligned in zip(EMULATED_SIZES.of(precision), (False, True), strict=True):
        aligned |= precision == "medium"  # there all operands are
        C = multiply(device, tile, precision, A, B, by_rows, 2, aligned)
        np.testing.assert_allclose(C, rounded(A, precision) @ rounded(B, precision), atol=1e-5)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("by_rows", ORIENTATIONS, ids=str)
def test_products_by_the_smallest_tiles_of_a_gpu(precision, by_rows):
    sizes = tiles.SIZES["float32"]
    A, B = operands(19, 11, 136, "float32")
    for aligned in (True,) if precision == "medium" else (False, True):
        tile = sizes.of(precision)[-1]
        C = multiply(EmulatedDevice("random"), tile, precision, A, B, by_rows, 2, aligned)
        seen = [each if precision == "highest" else rounded(each, precision) for each in (A, B)]
        np.testing.assert_allclose(C, seen[0] @ seen[1], atol=1e-4)


def test_no_grid_is_too_large():
    """Of a network of so many features; only a grid's first side may be longer than 65535."""
    device, objective = Recorder(), Objective("squared_error", 1)
    widths = (128 * 65535 + 1, 1)
    engine = CudaEngine(
        Network(widths, "relu"), dtype="float32", objective=objective, batch_size=2, device=device,
        optimizer=Optimizer("sgd", (0.9, 1.0, 0.0)),
    )  # fmt: skip
    engine.load(place_for(engine, np.zeros((2, widths[0]), np.float32), np.zeros((2, 1))))
    engine.run_epoch(np.arange(2), np.ones(1))
    sides = np.array([launch.blocks for launch in device.launches])
    assert sides[:, 0].max() > 65535
    assert sides[:, 1:].max() <= 65535


def test_lines_of_tiles_on_the_first_side_of_a_grid(monkeypatch):
    """As where there are more than a grid's second side has room for."""
    network, objective = make_network((40, 9, 3), "relu", "log_loss")
    X, y = make_problem("log_loss", 20, 40, 3)
    gradients = []
    for most in (65535, 1):
        monkeypatch.setattr(launcher, "_MOST_LINES", most)
        engine = CudaEngine(network, dtype="float64", objective=objective, device=EmulatedDevice(),
                            sizes=EMULATED_SIZES)  # fmt: skip
        engine.load(place_for(engine, X, y))
        engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
        gradients.append(engine.loss_and_gradient()[1])
    np.testing.assert_array_equal(*gradients)


def test_places_do_not_share_free_memory():
    """Two that come at the same time, of which only one fits."""
    X = np.zeros((100, 50))

    class Shared(Recorder):
        free = X.nbytes * 2

        def free_bytes(self):
            found = self.free
            time.sleep(0.05)
            return found

        def upload(self, array):
            self.free -= array.nbytes
            return super().upload(array)

    device = Shared()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: place(X, dtype=X.dtype, device=device), range(2)))
    assert sorted(each.streamed for each in found) == [False, True]


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
    assert to_bf16(1.0) == 0x3F80


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_engine_with_less_precise_products(precision):
    network, objective = make_network((6, 9, 3), "relu", "log_loss")
    X, y = make_problem("log_loss", 20, 6, 3)
    flat = rng.normal(size=network.n_parameters).astype("float32")
    engine = CudaEngine(
        network, dtype="float32", objective=objective, matmul_precision=precision,
        device=EmulatedDevice(), sizes=EMULATED_SIZES,
    )  # fmt: skip
    engine.load(place_for(engine, X.astype("float32"), y))
    engine.set_parameters(flat)
    _, gradient = engine.loss_and_gradient()
    _, expected = reference.objective(
        flat.astype(float), network.widths, "relu", "log_loss", X, y, 0.0
    )
    error = np.abs(gradient - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < {"high": 1e-2, "medium": 5e-2}[precision]


BFLOAT16 = {
    "tanh, squared_error": {"activations": "tanh", "loss": "squared_error"},
    "gelu and relu, focal": {"activations": ("gelu", "relu"), "loss": "focal"},
    "sparse samples": {"as_csr": True},
    "dropout": {"activations": ("relu", "silu"), "dropout": Dropout((0.4, 0.2), 5)},
    "layer_norm": {"layer_norm": True},
    "layer_norm and dropout": {"layer_norm": True, "dropout": Dropout((0.2, 0.3), 5)},
    "clipped, averaged": {"max_grad_norm": 0.5, "ema_decay": 0.5},
}


@pytest.mark.parametrize("case", BFLOAT16)
def test_training_in_bfloat16(case, monkeypatch):
    """Beside the CPU in float64: losses, steps, and outputs, which go by the weights as they are.

    Two steps of two micro-batches, at a rate that outputs of former weights would show.
    """
    monkeypatch.setattr(target, "_MICRO_BATCH_ROWS", 8)
    options = {"activations": "relu", "loss": "log_loss"} | BFLOAT16[case]
    loss, as_csr = options["loss"], options.pop("as_csr", False)
    network, objective = make_network(
        (5, 7, 18, 3), options["activations"], loss, layer_norm=options.pop("layer_norm", False)
    )
    X, y = make_problem(loss, 24, 5, 3)
    flat = np.random.default_rng(2).normal(scale=0.5, size=network.n_parameters)
    rule = {name: options.get(name) for name in ("max_grad_norm", "ema_decay")}
    results = []
    for dtype, make_engine in (("float32", emulated("tiled")), ("float64", CpuEngine)):
        engine = make_engine(
            network, dtype=dtype, objective=objective, dropout=options.get("dropout"), alpha=0.01,
            batch_size=12, optimizer=Optimizer("sgd", (0.9, 0.0, 0.0), 0.0, **rule),
            **({"matmul_precision": "medium"} if dtype == "float32" else {}),
        )  # fmt: skip
        typed = X.astype(dtype)
        targets = y if LOSSES[loss].per_row else y.astype(dtype)
        placed = place_for(engine, sparse.csr_matrix(typed) if as_csr else typed, targets)
        engine.load(placed)
        engine.set_parameters(flat)
        results.append([
            engine.predict(typed).ravel(), engine.loss_and_gradient()[1],
            [engine.run_epoch(np.arange(24), np.full(2, 0.2))], engine.get_parameters() - flat,
            engine.predict(typed).ravel(), [engine.evaluate(placed)],
        ])  # fmt: skip
    for mine, other in zip(*results, strict=True):
        error = np.linalg.norm(np.subtract(mine, other)) / np.linalg.norm(other)
        assert 1e-6 < error < 0.02


def train(make_engine, loss, rule, dtype="float64"):
    """Losses of two epochs, the parameters and the state after them."""
    network, objective = make_network((5, 7, 6, 3 if LOSSES[loss].per_row else 2), "tanh", loss)
    X, y = make_problem(loss, 30, 5, network.n_outputs)
    engine = make_engine(
        network, dtype=dtype, objective=objective, alpha=0.1, batch_size=12,
        optimizer=Optimizer(rule, CONSTANTS[rule]),
    )  # fmt: skip
    weight = np.random.default_rng(2).uniform(0.5, 2.0, 30)
    weight[:12] = 0  # a batch that carries no information
    engine.load(place_for(engine, X.astype(dtype), y, weight.astype(dtype)))
    engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
    losses = [engine.run_epoch(np.arange(30), np.full(3, 0.01)) for _ in range(2)]
    slots, steps = engine.get_state()
    return np.array(losses), engine.get_parameters(), slots, steps


@pytest.mark.parametrize("path", ["resident", "tiled"], indirect=True)
def test_formulas_of_the_user(path):
    """As on the CPU, closures and NumPy's functions included."""

    def losses(make_engine, activation, loss):
        network, objective = make_network((5, 7, 2), activation, loss)
        X, y = make_problem("binary_log_loss", 20, 5, 2)
        engine = make_engine(network, dtype="float64", objective=objective, batch_size=10,
                             optimizer=Optimizer("sgd", (0.9, 0.0, 0.0)))  # fmt: skip
        engine.load(place_for(engine, X, y))
        engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
        return [engine.run_epoch(np.arange(20), np.full(2, 0.01)) for _ in range(2)]

    two = 2.0
    pair = Activation(lambda z: np.sin(two * z), lambda z: two * np.cos(two * z), of_score=True,
                      by_user=True)  # fmt: skip
    cubic = Loss(lambda z, y: abs(z - y) ** 3 / 3, lambda z, y: (z - y) * abs(z - y),
                 "identity", by_user=True)  # fmt: skip
    brier = Loss(lambda p, y: (p - y) ** 2, lambda p, y: two * (p - y), "logistic",
                 of_probability=True, by_user=True)  # fmt: skip
    for loss in (cubic, brier):
        got, expected = (losses(make, (pair,), loss) for make in (emulated(path), CpuEngine))
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def emulated(path, *device_options, kind=EmulatedDevice):
    def make(network, sizes=EMULATED_SIZES, **options):
        device = kind(*device_options)
        engine = CudaEngine(network, device=device, sizes=sizes, **options)
        assert engine.path == path
        return engine

    return make


@pytest.fixture(params=["resident", "tiled"])
def path(request, monkeypatch):
    if request.param == "tiled":
        monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", 0)
    return request.param


@pytest.mark.parametrize(
    ("loss", "rule"),
    [*((loss, "nadam") for loss in LOSSES), *(("log_loss", rule) for rule in OPTIMIZERS)],
)
def test_both_paths_train_as_the_cpu_does(path, loss, rule):
    got, expected = train(emulated(path), loss, rule), train(CpuEngine, loss, rule)
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12)


MANY_ROWS = EMULATED_SIZES._replace(rows=EMULATED_SIZES.rows[-1:])


def train_many_rows(make_engine, loss, activation, hidden=(9, 6)):
    """A step of several row tiles for each block and one of few rows: loss and parameters."""
    n_outputs = 3 if LOSSES[loss].per_row else 2
    network, objective = make_network((5, *hidden, n_outputs), activation, loss)
    X, y = make_problem(loss, 170, 5, n_outputs)
    options = {"sizes": MANY_ROWS} if make_engine is not CpuEngine else {}
    engine = make_engine(
        network, dtype="float64", objective=objective, alpha=0.1, batch_size=150,
        optimizer=Optimizer("adam", CONSTANTS["adam"]), **options,
    )  # fmt: skip
    engine.load(place_for(engine, X, y, np.random.default_rng(2).uniform(0.5, 2.0, 170)))
    engine.set_parameters(np.random.default_rng(3).normal(scale=0.3, size=network.n_parameters))
    loss_of_epoch = engine.run_epoch(np.random.default_rng(4).permutation(170), np.full(2, 0.01))
    return loss_of_epoch, engine.get_parameters()


@pytest.mark.parametrize(
    ("loss", "activation", "schedule"), each_once(LOSSES, ACTIVATIONS, SCHEDULES)
)
def test_large_row_tiles_train_as_the_cpu_does(loss, activation, schedule):
    got = train_many_rows(emulated("resident", schedule), loss, activation)
    expected = train_many_rows(CpuEngine, loss, activation)
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("hidden", [(), (1,), (40,), (33, 2, 34)], ids=str)
def test_large_row_tiles_of_networks_of_other_widths(hidden):
    """Fewer parts of products than threads, as many, and more."""
    got = train_many_rows(emulated("resident"), "log_loss", "relu", hidden)
    expected = train_many_rows(CpuEngine, "log_loss", "relu", hidden)
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12)


def test_an_epoch_can_be_stopped_between_launches(path, monkeypatch):
    """After some steps, which are kept."""
    monkeypatch.setattr(paths, "_STEPS_AT_ONCE", 2)
    monkeypatch.setattr(devices.Sequence, "__init__", with_two_at_once(devices.Sequence.__init__))
    network, objective = make_network((5, 7, 3), "tanh", "log_loss")
    X, y = make_problem("log_loss", 30, 5, 3)
    engine = emulated(path)(network, dtype="float64", objective=objective, batch_size=3,
                            optimizer=Optimizer("sgd", (0.0, 0.0, 0.0)))  # fmt: skip
    engine.load(place_for(engine, X, y))
    engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
    synchronize = EmulatedDevice.synchronize

    def stop(device):
        synchronize(device)
        engine.stop()

    monkeypatch.setattr(EmulatedDevice, "synchronize", stop)
    with pytest.raises(KeyboardInterrupt):
        engine.run_epoch(np.arange(30), np.full(10, 0.01))
    assert 2 <= engine.n_steps < 10


def with_two_at_once(init):
    def changed(sequence, *args):
        init(sequence, *args)
        sequence._n_at_once = 2

    return changed


@pytest.mark.parametrize("as_csr", [False, True])
@pytest.mark.parametrize("micro_batch", [1024, 8])
@pytest.mark.parametrize("activations", [("relu", "tanh"), ("gelu", "relu")], ids=str)
def test_dropout_and_clipped_gradients(activations, micro_batch, as_csr, monkeypatch):
    """The CPU's masks, over batches of several micro-batches and several epochs."""
    monkeypatch.setattr(target, "_MICRO_BATCH_ROWS", micro_batch)
    network, objective = make_network((5, 7, 6, 3), activations, "log_loss")
    X, y = make_problem("log_loss", 30, 5, 3)
    results = []
    for make_engine in (emulated("tiled"), CpuEngine):
        engine = make_engine(
            network, dtype="float64", objective=objective, dropout=Dropout((0.4, 0.2), 5),
            alpha=0.1, batch_size=12,
            optimizer=Optimizer("adam", CONSTANTS["adam"], 0.1, max_grad_norm=0.2),
        )  # fmt: skip
        engine.load(place_for(engine, sparse.csr_matrix(X) if as_csr else X, y))
        engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
        losses = [engine.run_epoch(np.arange(30), np.full(3, 0.01)) for _ in range(2)]
        results.append(np.concatenate([losses, engine.get_parameters(), engine.predict(X).ravel()]))
    np.testing.assert_allclose(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("path", "clipped"),
    [("resident", False), ("tiled", False), ("tiled", True)],
    indirect=["path"],
)
@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_averaged_parameters(path, loss, clipped):
    """What the outputs go by, and what is trained; another engine goes on from both."""
    network, objective = make_network((5, 7, 3), "tanh", loss)
    X, y = make_problem(loss, 30, 5, 3)
    max_norm = 0.1 if clipped else None
    optimizer = Optimizer("adam", CONSTANTS["adam"], max_grad_norm=max_norm, ema_decay=0.8)
    options = {"dtype": "float64", "objective": objective, "batch_size": 12, "alpha": 0.1,
               "optimizer": optimizer}  # fmt: skip
    results = []
    for make_engine in (emulated(path), CpuEngine):
        engine = make_engine(network, **options)
        engine.load(place_for(engine, X, y))
        engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
        losses = [engine.run_epoch(np.arange(30), np.full(3, 0.01))]
        other = make_engine(network, **options)
        placed = place_for(other, X, y)
        other.load(placed)
        other.set_parameters(engine.get_parameters())
        other.set_state(*engine.get_state())
        losses += [other.run_epoch(np.arange(30), np.full(3, 0.01)), other.evaluate(placed)]
        state, steps = other.get_state()
        results.append(np.concatenate([losses, other.get_parameters(), state.ravel(), [steps],
                                       other.predict(X).ravel()]))  # fmt: skip
    np.testing.assert_allclose(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dropout", [None, Dropout((0.3, 0.5), 0)], ids=str)
@pytest.mark.parametrize("micro_batch", [1024, 8])
@pytest.mark.parametrize("activations", [("relu", "tanh"), ("gelu", "identity")], ids=str)
def test_layer_normalisation(activations, micro_batch, dropout, monkeypatch):
    monkeypatch.setattr(target, "_MICRO_BATCH_ROWS", micro_batch)
    network, objective = make_network((5, 7, 40, 3), activations, "log_loss", layer_norm=True)
    X, y = make_problem("log_loss", 30, 5, 3)
    results = []
    for make_engine in (emulated("tiled"), CpuEngine):
        engine = make_engine(
            network, dtype="float64", objective=objective, dropout=dropout, alpha=0.1,
            batch_size=12, optimizer=Optimizer("sgd", CONSTANTS["sgd"]),
        )  # fmt: skip
        placed = place_for(engine, X, y)
        engine.load(placed)
        engine.set_parameters(np.sin(np.arange(network.n_parameters)))
        losses = [engine.run_epoch(np.arange(30), np.full(3, 0.01)), engine.evaluate(placed)]
        gradient = engine.loss_and_gradient()[1]
        results.append(np.concatenate([losses, gradient, engine.predict(X).ravel()]))
    np.testing.assert_allclose(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_has_the_same_bits_in_every_order_of_threads(path, schedule):
    expected = train(emulated(path), "log_loss", "adam")
    got = train(emulated(path, schedule, False), "log_loss", "adam")
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("loss", ["log_loss", "squared_error"])
def test_passes_over_all_samples_go_by_the_parameters_of_now(loss):
    """Though their launches are those of the first time."""
    network, objective = make_network((5, 7, 3 if LOSSES[loss].per_row else 2), "tanh", loss)
    X, y = make_problem(loss, 30, 5, network.n_outputs)
    results = []
    for make_engine in (emulated("resident"), CpuEngine):
        engine = make_engine(network, dtype="float64", objective=objective, alpha=0.1,
                             batch_size=12)  # fmt: skip
        samples, found = place_for(engine, X, y), []
        engine.load(samples)
        for scale in (1, 0.5, -0.3, 0.1):
            engine.set_parameters(np.linspace(-scale, scale, network.n_parameters))
            loss_of_all, gradient = engine.loss_and_gradient()
            outputs = engine.predict(samples)
            found.append([engine.evaluate(samples), loss_of_all, *gradient, *outputs.ravel()])
        results.append(found)
    np.testing.assert_allclose(*results, rtol=1e-9, atol=1e-12)


def test_paths_take_turns(monkeypatch):
    """Whichever path ran before, an epoch starts from the current parameters."""

    def alternate(engine):
        engine.load(place_for(engine, X, y))
        engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
        for limit in (2**17, 0, 2**17, 0, 2**17, 2**17):
            monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", limit)
            engine.run_epoch(np.arange(20), np.full(2, 0.01))
        return engine.get_parameters()

    network, objective = make_network((4, 6, 2), "relu", "squared_error")
    X, y = make_problem("squared_error", 20, 4, 2)
    options = {"dtype": "float64", "objective": objective, "batch_size": 10,
               "optimizer": Optimizer("sgd", (0.9, 0, 0))}  # fmt: skip
    got = alternate(emulated("resident")(network, **options))
    np.testing.assert_allclose(got, alternate(CpuEngine(network, **options)), rtol=1e-10)


def test_gradients_in_splits_and_micro_batches(monkeypatch):
    monkeypatch.setattr(workspace, "_TERMS_PER_SPLIT", 4)
    monkeypatch.setattr(target, "_MICRO_BATCH_ROWS", 17)
    network, objective = make_network((5, 7, 2), "tanh", "squared_error")
    X, y = make_problem("squared_error", 40, 5, 2)
    flat = np.linspace(-1, 1, network.n_parameters)
    engine = CudaEngine(
        network, dtype="float64", objective=objective, alpha=0.1, device=EmulatedDevice(),
        sizes=EMULATED_SIZES,
    )  # fmt: skip
    engine.load(place_for(engine, X, y))
    engine.set_parameters(flat)
    loss, gradient = engine.loss_and_gradient()
    assert engine._workspaces.get(14, None).n_splits == 3  # three parts, of as many rows
    expected, expected_gradient = reference.objective(
        flat, network.widths, "tanh", "squared_error", X, y, 0.1
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-13)


class CountingDevice(EmulatedDevice):
    """Knows how much of its memory is in use, and has no more than ``limit`` elements, if any, and
    that for ``allocations`` allocations.
    """

    def __init__(self):
        super().__init__()
        self._all = []
        self.limit = self.allocations = np.inf
        self.most = self.n_allocations = 0

    def _noted(self, buffer):
        self._all = [one for one in self._all if one() is not None] + [weakref.ref(buffer)]
        self.most, self.n_allocations = max(self.most, self.used()), self.n_allocations + 1
        if self.most > self.limit or self.n_allocations > self.allocations:
            raise MemoryError("no room")
        return buffer

    def empty(self, n, dtype):
        return self._noted(super().empty(n, dtype))

    def upload(self, array):
        return self._noted(super().upload(array))

    def used(self):
        self.synchronize()  # what is queued holds its arguments
        return sum(len(one()) for one in self._all if one() is not None)


def test_many_sizes_do_not_take_more_and_more_memory(monkeypatch):
    """Of what is predicted, and of what an epoch goes over."""
    monkeypatch.setattr(target, "_RESIDENT_PARAMETERS", 0)
    network, objective = make_network((2, 3, 1), "relu", "squared_error")
    X, y = make_problem("squared_error", 40, 2, 1)
    device = CountingDevice()
    engine = CudaEngine(
        network, dtype="float64", objective=objective, device=device, batch_size=4,
        optimizer=Optimizer("sgd", (0.0, 0.0, 0.0)), sizes=EMULATED_SIZES,
    )  # fmt: skip
    engine.load(place_for(engine, X, y))

    def predict(n):
        engine.predict(X[:n])

    def go_over(n):
        engine.run_epoch(np.arange(n), np.full(-(-n // 4), 0.1))

    for work in (predict, go_over):
        work(40)
        work(39)
        most = device.used()
        for n in range(38, 20, -1):
            work(n)
            assert device.used() <= most


@pytest.fixture
def counting(monkeypatch):
    device = CountingDevice()
    monkeypatch.setattr("fastmlp.engine.cuda.device.open_device", lambda: device)
    sizes = dict.fromkeys(("float32", "float64"), EMULATED_SIZES)
    monkeypatch.setattr("fastmlp.engine.cuda.tiles.SIZES", sizes)
    return device


@pytest.mark.parametrize(
    ("kind", "early_stopping"), [("restarts", False), ("restarts", True), ("ensemble", False)]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_restarts_need_the_memory_of_one(counting, kind, early_stopping):
    """Where there is room for one training, there is for several, and they are the same."""
    X, y = make_problem("squared_error", 20, 3, 1)
    options = {"hidden_layer_sizes": (4,), "max_iter": 2, "batch_size": 8, "n_threads": 3,
               "random_state": 0, "early_stopping": early_stopping}  # fmt: skip
    MLPRegressor(**options, device="cuda").fit(X, y[:, 0])
    counting.limit = counting.most
    models = [MLPRegressor(**options, n_restarts=3 if kind == "restarts" else 1, device=device)
              for device in ("cuda", "cpu")]  # fmt: skip
    if kind == "ensemble":
        models = [MLPEnsembleRegressor(model, n_members=3, random_state=0) for model in models]
    got, expected = (model.fit(X, y[:, 0]) for model in models)
    counting.limit = np.inf
    np.testing.assert_allclose(got.predict(X), expected.predict(X), rtol=1e-9)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_without_memory_an_estimator_stays_as_it_was(counting):
    """Whether it is for samples, parameters, workspace or predictions that there is no room."""
    X, y = make_problem("squared_error", 20, 3, 1)
    model = MLPRegressor(hidden_layer_sizes=(4,), max_iter=1, random_state=0, early_stopping=True,
                         device="cuda").fit(X, y[:, 0])  # fmt: skip
    n_of_fit, before, expected = counting.n_allocations, dict(vars(model)), model.predict(X)
    n_of_predict = counting.n_allocations - n_of_fit
    for work, n in ((model.fit, n_of_fit), (model.predict, n_of_predict)):
        for allocation in range(n):
            counting.n_allocations, counting.allocations = 0, allocation
            with pytest.raises(MemoryError):
                work(X) if work == model.predict else work(X, y[:, 0])
            assert vars(model).keys() == before.keys()
            assert all(vars(model)[name] is before[name] for name in before)
        counting.allocations = np.inf
        np.testing.assert_array_equal(model.predict(X), expected)
    np.testing.assert_array_equal(model.fit(X, y[:, 0]).predict(X), expected)


# --- samples that do not fit, or are there already --------------------------------------------


def stream(make_engine, monkeypatch, chunk_bytes, micro_batch):
    """What training, loss, gradient and outputs are; batches of 12, 5 features of float64."""
    monkeypatch.setattr(samples, "_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(target, "_MICRO_BATCH_ROWS", micro_batch)
    network, objective = make_network((5, 7, 3), "tanh", "log_loss")
    X, y = make_problem("log_loss", 40, 5, 3)
    weight = np.random.default_rng(2).uniform(0.5, 2.0, 40)
    options = {"batch_size": 12, "optimizer": Optimizer("sgd", (0.9, 0, 0)), "alpha": 0.1}
    engine = make_engine(network, dtype="float64", objective=objective, **options)
    placed = place_for(engine, X, y, weight)
    engine.load(placed)
    engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
    order = np.random.default_rng(3).permutation(40)[:38]
    losses = [engine.run_epoch(order, np.full(4, 0.1)) for _ in range(2)]
    loss, gradient = engine.loss_and_gradient()
    losses.append(engine.run_epoch(order, np.full(4, 0.1)))  # after chunks of another size
    results = (engine.get_parameters(), gradient, engine.predict(X).ravel())
    return np.concatenate([losses, [loss, engine.evaluate(placed)], *results])


def engine_without_memory(schedule="forward", late_copies=True):
    def make(network, **options):
        device = EmulatedDevice(schedule, late_copies, free_bytes=0)
        return CudaEngine(network, device=device, sizes=EMULATED_SIZES, **options)

    return make


CHUNKS = {  # bytes of a chunk, rows of a micro-batch
    "a batch": (12 * 40, 12),
    "two batches": (24 * 40, 12),
    "a batch and some": (20 * 40, 4),
    "part of a batch": (4 * 40, 4),
    "less than a micro-batch": (1, 8),
    "everything": (2**20, 64),
}


@pytest.mark.parametrize("late_copies", [True, False], ids=["late", "at once"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_streamed_samples(path, chunk, late_copies, monkeypatch):
    got = stream(engine_without_memory("forward", late_copies), monkeypatch, *CHUNKS[chunk])
    expected = stream(CpuEngine, monkeypatch, *CHUNKS[chunk])
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_streaming_is_told():
    network, objective = make_network((2, 1), "relu", "squared_error")
    engine = engine_without_memory()(network, dtype="float64", objective=objective)
    engine.load(place_for(engine, np.zeros((3, 2)), np.zeros((3, 1))))
    assert engine.info()["streamed"]


class GpuArrayDouble:
    """Samples in the emulated GPU's memory, as another library would hold them."""

    def __init__(self, array, dtype=None):
        self.memory = EmulatedDevice().upload(array)
        self.shape, self.dtype = array.shape, dtype or array.dtype
        self.__cuda_array_interface__ = {"version": 3}


@pytest.fixture
def emulated_gpu(monkeypatch):
    monkeypatch.setattr("fastmlp.engine.cuda.device.open_device", EmulatedDevice)
    sizes = dict.fromkeys(("float32", "float64"), EMULATED_SIZES)
    monkeypatch.setattr("fastmlp.engine.cuda.tiles.SIZES", sizes)


CASES = {
    "adam": {},
    "sgd, early stopping": {"solver": "sgd", "early_stopping": True, "validation_fraction": 0.2},
    "lbfgs": {"solver": "lbfgs"},
}


@pytest.mark.usefixtures("emulated_gpu")
@pytest.mark.parametrize("on_device", [False, True], ids=["host arrays", "arrays on the GPU"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimators_on_either_device_agree(case, on_device):
    X, y = make_problem("log_loss", 40, 4, 3)
    options = {"hidden_layer_sizes": (5,), "batch_size": 8, "max_iter": 3, "random_state": 0}
    expected = MLPClassifier(**options, **CASES[case]).fit(X, y)
    model = MLPClassifier(**options, **CASES[case], device="cuda")
    give = GpuArrayDouble if on_device else np.asarray
    model.fit(give(X), give(y))
    np.testing.assert_allclose(model.loss_, expected.loss_, rtol=1e-9)
    np.testing.assert_allclose(
        model.predict_proba(give(X)), expected.predict_proba(X), rtol=1e-7, atol=1e-12
    )
    assert model.engine_info_["device"] == "cuda"
    assert expected.engine_info_["device"] == "cpu"
    if CASES[case].get("early_stopping"):
        np.testing.assert_allclose(model.validation_scores_, expected.validation_scores_)


@pytest.mark.usefixtures("emulated_gpu")
def test_partial_fit_and_weights_on_the_gpu():
    X, y = make_problem("squared_error", 20, 3, 2)
    weight = np.linspace(0.5, 2, 20)
    models = [MLPRegressor(hidden_layer_sizes=(4,), random_state=0, device=device)
              for device in ("cpu", "cuda")]  # fmt: skip
    for _ in range(2):
        models[0].partial_fit(X, y, weight)
        models[1].partial_fit(GpuArrayDouble(X), GpuArrayDouble(y), GpuArrayDouble(weight))
    np.testing.assert_allclose(models[1].predict(X), models[0].predict(X), rtol=1e-9)


@pytest.mark.usefixtures("emulated_gpu")
def test_samples_of_another_type_than_the_engine():
    X, y = make_problem("squared_error", 20, 3, 1)
    X = X.astype(np.float32)
    models = [MLPRegressor(hidden_layer_sizes=(4,), random_state=0, solver="lbfgs", max_iter=3,
                           device=device) for device in ("cpu", "cuda")]  # fmt: skip
    with pytest.warns(ConvergenceWarning):
        models[0].fit(X, y[:, 0])
    with pytest.warns(ConvergenceWarning):
        models[1].fit(GpuArrayDouble(X), y[:, 0])
    np.testing.assert_allclose(models[1].predict(GpuArrayDouble(X)), models[0].predict(X))


@pytest.mark.usefixtures("emulated_gpu")
def test_what_is_refused():
    X, y = make_problem("squared_error", 20, 3, 1)
    with pytest.raises(ValueError, match=r"X is on a GPU.*device='cuda'"):
        MLPRegressor().fit(GpuArrayDouble(X), y[:, 0])
    model = MLPRegressor(hidden_layer_sizes=(4,), max_iter=1, device="cuda")
    with pytest.raises(ValueError, match=r"float32 or float64, got int64; convert"):
        model.fit(GpuArrayDouble(X, "int64"), y[:, 0])
    with pytest.raises(ValueError, match="Expected 2D array"):
        model.fit(GpuArrayDouble(X[0]), y[:3, 0])
    for bad in (np.nan, np.inf, -np.inf):
        wrong = X.copy()
        wrong[19, 2] = bad
        with pytest.raises(ValueError, match="Input X contains NaN or infinity"):
            model.fit(GpuArrayDouble(wrong), y[:, 0])
    with pytest.raises(ValueError, match=r"device='cpu' does not support matmul_precision='high'"):
        MLPRegressor(matmul_precision="high").fit(X, y[:, 0])


@pytest.mark.usefixtures("emulated_gpu")
def test_results_come_back_where_the_array_api_wants_them():
    """As scikit-learn does: only with its ``array_api_dispatch``, else as NumPy arrays."""
    X, y = make_problem("log_loss", 20, 3, 3)
    model = MLPClassifier((4,), batch_size=10, device="cuda").partial_fit(X, y, classes=[0, 1, 2])
    given = GpuArrayDouble(X)
    placed = []

    class Namespace:
        @staticmethod
        def asarray(array, device):
            placed.append((array, device))
            return "on the device"

    given.__array_namespace__ = lambda: Namespace
    given.device = "gpu 0"
    assert type(model.predict_proba(given)) is np.ndarray
    with sklearn.config_context(array_api_dispatch=True):
        for method in (model.predict_proba, model.predict, model.predict_log_proba):
            assert method(given) == "on the device"
            expected = getattr(model, method.__name__)(X)
            np.testing.assert_allclose(placed[-1][0], expected, rtol=1e-12)
            assert placed[-1][1] == "gpu 0"


# --- planted bugs -----------------------------------------------------------------------------

BUGS = {
    "no wait for the copies": ("        WAIT()\n", "        pass\n"),
    "no barrier after the copies": (
        "        WAIT()\n        cuda.syncthreads()\n",
        "        WAIT()\n",
    ),
    "sums written where another still reads": (
        "    wait_for_all_copies()\n    cuda.syncthreads()\n",
        "    wait_for_all_copies()\n",
    ),
    "sums read before they are written": (
        "            sums[j] = sums[j + LINE]\n        cuda.syncthreads()\n",
        "            sums[j] = sums[j + LINE]\n",
    ),
    "sums written before the former are read": (
        "N - n0, aux)\n        cuda.syncthreads()\n",
        "N - n0, aux)\n",
    ),
    "one slice": ("for other in range(1, SLICES)", "for other in range(1, 1)"),
    "uninitialised sums": ("        sums[e] = 0\n", "        pass\n"),
    "edge of the rows": ("i * jump < b_rows and", "i * jump <= b_rows and"),
    "edge of the columns": ("and a_columns > 0", "and a_columns >= 0"),
    "edge of the result": ("if row < M and column < N:", "if row <= M and column < N:"),
    "last row of bfloat16": ("min(M - row, 16)", "min(M - row + 1, 16)"),
    "last column of bfloat16": ("    if column < N:\n", "    if column <= N:\n"),
    "wrong stage": ("at < (STAGES - 1) * size", "at < (STAGES - 2) * size"),
    "wrong fragment of A": (
        "to_tf32(load_shared(memory, at + 8 * outer))",
        "to_tf32(load_shared(memory, at + 4 * outer))",
    ),
    "halves of a fragment of B": (
        "at = at_b + 8 * j * outer + 4 * half * term",
        "at = at_b + 8 * j * outer + 4 * (1 - half) * term",
    ),
    "matrices of A in another order": ("m + second, term + pair", "m + pair, term + second"),
    "matrices of B in another order": ("n + pair, term + second", "n + second, term + pair"),
    "wrong rows of the result": (
        "+ lane // 4 + 8 * (j % 4 // 2)",
        "+ lane // 4 + 8 * (j % 2)",
    ),
    "race in the reduction": (
        "            shared[thread] += shared[thread + half]\n        cuda.syncthreads()",
        "            shared[thread] += shared[thread + half]",
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
    "no wait for the weights": (
        "            wait_for_all_copies()\n",
        "            pass\n",
    ),
    "no barrier after the copies": (
        "            wait_for_all_copies()\n            cuda.syncthreads()\n",
        "            wait_for_all_copies()\n",
    ),
    "no barrier between layers": (
        "shifts[3 * layer])  # fmt: skip\n        cuda.syncthreads()\n",
        "shifts[3 * layer])  # fmt: skip\n",
    ),
    "what is behind the weights": (
        "        memory[e] = REAL(0)\n    cuda.syncthreads()\n",
        "        pass\n    cuda.syncthreads()\n",
    ),
    "rows fetched while others still read": (
        "at = int32(at + (fan_in + 1) * fan_out)\n        cuda.syncthreads()\n",
        "at = int32(at + (fan_in + 1) * fan_out)\n",
    ),
    "slices that do not add up": ("distance = 16\n", "distance = 8\n"),
    "sums read before they are written": (
        "float64(0)  # fmt: skip\n            cuda.syncthreads()\n",
        "float64(0)  # fmt: skip\n",
    ),
    "edge of the parameters": ("int32(p * n_lines) <= lines", "int32(p * n_lines) < lines"),
    "deltas of missing rows": ("if i >= rows:", "if i > rows:"),
    "deltas in the place of activations that others still read": (
        "reciprocals[layer])  # fmt: skip\n            cuda.syncthreads()\n",
        "reciprocals[layer])  # fmt: skip\n",
    ),
    "a lane's columns": ("q & (step - 1) == part", "q & (step - 1) == 0"),
    "a lane's terms": ("n - part + (1 << shift) - 1)", "n - part)"),
}


def plant(module, right, wrong):
    """A copy of a module with ``wrong`` in place of ``right``."""
    source = inspect.getsource(module)
    assert right in source
    mutant = types.ModuleType("mutant")
    exec(compile(source.replace(right, wrong), "mutant", "exec"), vars(mutant))
    return mutant


def errors(module, monkeypatch):
    """The errors of all kernels, on every kind of device."""
    for user in (target, launcher, paths, samples, tiles):
        monkeypatch.setattr(user, "kernels", module)
    A, B = operands(33, 17, 45, "float32")
    for schedule in SCHEDULES:
        for late_copies in (True, False):
            device = EmulatedDevice(schedule, late_copies)
            for by_rows in ORIENTATIONS:
                C = multiply(device, TILE, "highest", A, B, by_rows, product=module.product)
                yield largest(C - A @ B)
            yield error_of_softmax_and_reduction(device)
            for precision in ("high", "medium"):
                tile, aligned = EMULATED_SIZES.of(precision)[0], precision == "medium"
                C = multiply(device, tile, precision, A, B, (True, False), aligned=aligned,
                             product=module.product)  # fmt: skip
                yield largest(C - rounded(A, precision) @ rounded(B, precision))


def largest(errors):
    return np.nan_to_num(np.abs(errors), nan=np.inf).max()


def error_of_softmax_and_reduction(device):
    network, objective = make_network((3, 40), "relu", "log_loss")
    X, y = make_problem("log_loss", 12, 3, 40)
    flat = np.linspace(-1, 1, network.n_parameters)
    sizes = EMULATED_SIZES._replace(threads=64)
    engine = CudaEngine(
        network, dtype="float64", objective=objective, alpha=0.5, device=device, sizes=sizes
    )
    engine.load(place_for(engine, X, y))
    engine.set_parameters(flat)
    loss, gradient = engine.loss_and_gradient()
    expected, expected_gradient = reference.objective(
        flat, network.widths, "relu", "log_loss", X, y, 0.5
    )
    return largest([loss - expected, *(gradient - expected_gradient)])


def test_no_bug_is_found_where_none_was_planted(monkeypatch):
    assert max(errors(plant(kernels, "", ""), monkeypatch)) < 1e-4


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug, monkeypatch):
    try:
        found = any(error > 1e-3 for error in errors(plant(kernels, *BUGS[bug]), monkeypatch))
    except Fault:
        found = True
    assert found


def few_rows(schedule):
    return train(emulated("resident", schedule), "log_loss", "sgd")[1]


def many_rows(schedule):
    return train_many_rows(emulated("resident", schedule), "log_loss", "tanh")[1]


@cache
def parameters_without_bugs(train_some):
    return train_some("forward")


@pytest.mark.parametrize("bug", RESIDENT_BUGS)
def test_planted_bugs_of_the_resident_path_are_found(bug, monkeypatch):
    expected = {each: parameters_without_bugs(each) for each in (few_rows, many_rows)}

    def is_found(schedule, train_some):
        try:
            return largest(train_some(schedule) - expected[train_some]) > 1e-6
        except Fault:
            return True

    monkeypatch.setattr(paths, "resident", plant(resident, *RESIDENT_BUGS[bug]))
    assert any(is_found(*case) for case in product(SCHEDULES, expected))


STREAM_BUGS = {
    "host memory filled again too early": (
        "            self._device.wait(self._copies[slot])\n",
        "            pass\n",
    ),
    "device memory filled again too early": (
        "            self._marks[number % 2] = self._device.mark()\n",
        "            pass\n",
    ),
    "one buffer": ("self._fill((number + 1) % 2,", "self._fill(number % 2,"),
}


@pytest.mark.parametrize("bug", STREAM_BUGS)
def test_planted_bugs_of_streaming_are_found(bug, monkeypatch):
    expected = stream(CpuEngine, monkeypatch, *CHUNKS["a batch"])
    mutant = plant(samples, *STREAM_BUGS[bug])
    monkeypatch.setattr(mutant, "_CHUNK_BYTES", CHUNKS["a batch"][0])
    for user in (samples, target):
        monkeypatch.setattr(user, "Streamed", mutant.Streamed)
    found = False
    for late_copies in (True, False):
        make = engine_without_memory("forward", late_copies)
        try:
            found |= largest(stream(make, monkeypatch, *CHUNKS["a batch"]) - expected) > 1e-6
        except Fault:
            found = True
    assert found


# --- the door ---------------------------------------------------------------------------------


def test_a_machine_without_a_gpu_is_told_so():
    from numba import cuda

    if cuda.is_available():
        pytest.skip("this machine has a GPU")
    devices._open.cache_clear()
    with pytest.raises(ValueError, match=r"device='cuda' found no NVIDIA GPU.*device='cpu'"):
        get_engine("cuda", Network((1, 1), "relu"), dtype="float64")
