"""The rungs of the test ladder that only a real GPU can climb; see `cuda_report`.

The test suite climbs them too, in an emulator that knows nothing of NVIDIA's compiler, of its
fragment layouts, or of what happens when thousands of threads really run at once.  Here the same
oracles judge a device: NumPy for products, `tests/helpers/reference.py` for the rest,
scikit-learn for whole fits.  (The CPU engine would do for the latter two, but takes half a minute
to compile where it never ran.)  Rungs are enumerated from the package's tables; each reports its
error and what it may be, and one that fails stops no other.

No pytest, because a rung wants a figure even when it passes; and none of the emulator's own code,
which needs a package that a GPU's image need not hold.
"""

import contextlib
import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import reference
from numba import float32, float64
from problems import place_for
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

import fastmlp
from fastmlp.engine.cuda import CudaEngine, kernels
from fastmlp.engine.cuda import engine as target
from fastmlp.engine.cuda import tiles as all_tiles
from fastmlp.engine.cuda.device import Launch
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import OPTIMIZERS, Optimizer

REAL = {"float32": float32, "float64": float64}
# For each operand, whether the terms of a sum follow each other in memory: forward, input gradient,
# weight gradient.
ORIENTATIONS = {"A B": (True, False), "A B^T": (True, True), "A^T B": (False, False)}
TILES = ("large", "medium", "small", "smallest")
CONSTANTS = {
    "sgd": (0.9, 0.0, 0.0), "nesterov": (0.9, 0.0, 0.0), "adam": (0.9, 0.999, 1e-8),
    "rmsprop": (0.9, 1e-8, 0.0), "nadam": (0.9, 0.999, 1e-8), "lion": (0.9, 0.99, 0.0),
}  # fmt: skip
GRADIENT_TOLERANCE = {"float64": 1e-12, "float32": 3e-5}
TRAINING_TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
PRODUCT_TOLERANCE = {"float64": 1e-13, "float32": 1e-5}
PRECISION_TOLERANCE = {"highest": 3e-5, "high": 3e-3, "medium": 3e-2}
MOST_TEXT = 1500  # characters kept of a traceback

Outcome = tuple[float, float]  # error, tolerance


def climb(job, rungs: list[tuple[Callable, list[tuple]]]) -> None:
    """Try each rung with each of its arguments; in emulation, only with the first.

    Parameters
    ----------
    job : cuda_report.Job
        Has the device, and keeps what is found under ``"rungs"``.
    rungs : list of (function of the job and a case's values, cases)
    """
    for rung, cases in rungs:
        for case in cases[:1] if job.emulated else cases:
            name = ", ".join([rung.__name__.replace("_", " "), *map(str, case)])
            job.add("rungs", _try(name, rung, job, case))


def _try(name: str, rung: Callable, job, case: tuple) -> dict[str, Any]:
    record: dict[str, Any] = {"name": name}
    if job.time_left() < 0:
        return record | {"status": "not reached"}
    start = time.perf_counter()
    try:
        error, tolerance = map(float, rung(job, *case))
        passed = error <= tolerance  # false for NaN
        record |= {"status": "passed" if passed else "failed", "tolerance": tolerance}
        record["error"] = error if math.isfinite(error) else str(error)
    except Exception:
        record |= {"status": "failed", "text": traceback.format_exc()[-MOST_TEXT:]}
    return record | {"seconds": round(time.perf_counter() - start, 2)}


# --- products ---------------------------------------------------------------------------------


class Product:
    """One variant of the kernels that multiply, by itself.

    Parameters
    ----------
    device : Device
    dtype : {'float32', 'float64'}
    precision : {'highest', 'high', 'medium'}
    size : int
        Which of the engine's tiles.
    orientation : str
        A key of `ORIENTATIONS`.
    aligned : bool
        Whether lines start at multiples of 16 bytes; zeros are behind them then.
    """

    def __init__(
        self, device, dtype: str, precision: str, size: int, orientation: str, aligned: bool
    ):
        sizes, kind = all_tiles.SIZES[dtype], np.dtype(dtype)
        tiles: tuple[Any, ...] = sizes.of(precision)
        self._tile = tiles[min(size, len(tiles) - 1)]
        self._device, self._by_rows = device, ORIENTATIONS[orientation]
        self._names = self._tile.names(kind, precision, self._by_rows, (aligned, aligned))
        self._precision = precision
        self._width = all_tiles.storage_of(kind, precision).group if aligned else 1
        self._kernel = device.kernel(
            kernels.product, STORE=kernels.put,
            **({"REAL": REAL[dtype], "OPERAND": REAL[dtype]} | self._names),
        )  # fmt: skip

    def place(self, A: np.ndarray, B: np.ndarray, n_splits: int = 1) -> Launch:
        """The launch for ``A`` (M, K) @ ``B`` (K, N)."""
        (M, K), N, upload = A.shape, B.shape[1], self._device.upload
        names = self._names
        stored_A, stored_B = (
            np.pad(lines, ((0, 0), (0, -lines.shape[1] % self._width)))
            for lines in (A if self._by_rows[0] else A.T, B.T if self._by_rows[1] else B)
        )
        self._shape = (n_splits, M, N)
        self._out = upload(np.full(self._shape, np.nan, A.dtype))
        if self._precision == "medium":
            stored_A, stored_B = as_bf16(stored_A), as_bf16(stored_B)
        split = -(-K // (n_splits * names["BK"])) * names["BK"]
        return Launch(
            self._kernel, (-(-N // names["BN"]), -(-M // names["BM"]), n_splits), names["THREADS"],
            (upload(np.array([0, M, M])), 0, M, upload(stored_A), 0, stored_A.shape[1],
             upload(stored_B), 0, stored_B.shape[1], self._out, 0, N, M * N, split, 0, N, K,
             self._out),
            shared_bytes=all_tiles.shared_bytes(names, A.dtype),
        )  # fmt: skip

    def result(self) -> np.ndarray:
        """What the last launch wrote, splits summed; waits for it."""
        return self._device.read(self._out).reshape(self._shape).sum(axis=0)


def rounded(values: np.ndarray, precision: str) -> np.ndarray:
    """What an mma instruction sees of float32 ``values``, in float64."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    if precision == "high":  # 10 bits of mantissa, ties away from zero
        bits = (bits + 0x1000) & 0xFFFFE000
    elif precision == "medium":  # 7 bits, ties to even
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(float)


def as_bf16(values: np.ndarray) -> np.ndarray:
    """float32 ``values`` as they are stored for products of bfloat16: bits, in uint16."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def product(job, dtype: str, precision: str, size: str, orientation: str, copies: str) -> Outcome:
    """Odd sizes, with and without splits; large ones for large tiles."""
    shapes = [(1, 1, 1), (19, 21, 17)]
    if not job.emulated:
        shapes += [(131, 257, 77), (1025, 515, 1283)] if size == "large" else [(131, 65, 517)]
    rng = np.random.default_rng(0)
    variant = Product(
        job.device, dtype, precision, TILES.index(size), orientation, copies == "vectors"
    )
    worst = 0.0
    for M, N, K in shapes:
        A, B = rng.normal(size=(M, K)).astype(dtype), rng.normal(size=(K, N)).astype(dtype)
        exact = [A, B] if dtype == "float64" else [rounded(A, precision), rounded(B, precision)]
        for n_splits in (1, 3):
            job.device.launch(variant.place(A, B, n_splits))
            worst = max(worst, distance(variant.result(), exact[0] @ exact[1]))
    return worst, PRODUCT_TOLERANCE[dtype]


def distance(actual, expected) -> float:
    """Norm of the difference over the norm of what is expected; infinite for NaN."""
    expected = np.asarray(expected, float)
    error = np.linalg.norm(np.asarray(actual, float) - expected)
    return float(np.nan_to_num(error / (np.linalg.norm(expected) or 1), nan=np.inf))


def products(job) -> None:
    """The products of all variants."""
    variants = [(size, orientation, copies) for copies in ("elements", "vectors")
                for size in TILES for orientation in ORIENTATIONS]  # fmt: skip
    mma = [("float32", precision, *each) for precision in ("medium", "high") for each in variants
           if precision == "high" or each[-1] == "vectors"]  # fmt: skip
    plain = [(dtype, "highest", *each) for dtype in REAL for each in variants]
    climb(job, [(product, plain[:1]), (product, mma[:1]), (product, plain[1:]), (product, mma[1:])])


# --- engines ----------------------------------------------------------------------------------


@contextlib.contextmanager
def replaced(**values) -> Iterator[None]:
    """The CUDA engine's module with other values for some of its constants."""
    former = {name: getattr(target, name) for name in values}
    vars(target).update(values)
    try:
        yield
    finally:
        vars(target).update(former)


@contextlib.contextmanager
def only(path: str) -> Iterator[None]:
    """Engines of any size take the tiled path, or those that can the resident one."""
    limits = {} if path == "resident" else {"_RESIDENT_PARAMETERS": 0}
    with replaced(**limits):
        yield


def problem(loss: str, n_samples: int, n_features: int, n_outputs: int, dtype: str):
    """X, y and weights in the form that an engine loads; a batch of weights is zero."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_samples, n_features)).astype(dtype)
    weight = rng.uniform(0.5, 2.0, n_samples).astype(dtype)
    if LOSSES[loss].per_row:
        return X, rng.integers(0, n_outputs, n_samples), weight
    draw = {
        "logistic": lambda shape: rng.integers(0, 2, shape),
        "exp": lambda shape: 1 + rng.poisson(2.0, shape),
    }.get(LOSSES[loss].out_activation, lambda shape: rng.normal(size=shape))
    return X, draw((n_samples, n_outputs)).astype(dtype), weight


def network_for(loss: str, activation: str = "tanh", hidden: tuple[int, ...] = (6, 9, 4)):
    n_outputs = 3 if LOSSES[loss].per_row else 2
    constant = reference.CONSTANT.get(loss)
    constants = () if constant is None else (constant,) * n_outputs
    smoothing = reference.SMOOTHING.get(loss, 0.0)
    objective = Objective(loss, n_outputs, constants, smoothing)
    return Network((*hidden, n_outputs), activation, objective.out_activation), objective


def parameters_for(network: Network, scale: float = 0.5) -> np.ndarray:
    return np.random.default_rng(1).normal(scale=scale, size=network.n_parameters)


def loaded(network, objective, X, y, weight=None, flat=None, **options):
    """An engine with samples and parameters."""
    engine = CudaEngine(network, dtype=X.dtype, objective=objective, **options)
    engine.load(place_for(engine, X, y, weight))
    engine.set_parameters(parameters_for(network) if flat is None else flat)
    return engine


def expected_gradient(network, objective, flat, X, y, alpha=0.0, weight=None):
    """(loss, gradient) by the oracle, from parameters as they are stored."""
    return reference.objective(
        np.asarray(flat, X.dtype).astype(float), network.widths, network.activations,
        objective.loss, np.asarray(X, float), y, alpha, weight, np.finfo(X.dtype).eps,
    )  # fmt: skip


def gradient(job, path: str, dtype: str, loss: str, activation: str) -> Outcome:
    """Every element, from one step of gradient descent at rate 1, and the loss."""
    network, objective = network_for(loss, activation, (7, 11, 5))
    X, y, weight = problem(loss, 61, 7, network.n_outputs, dtype)
    options = {"alpha": 0.3, "batch_size": 61, "optimizer": Optimizer("sgd", (0.0, 0.0, 0.0))}
    with only(path):
        engine = loaded(network, objective, X, y, weight, device=job.device, **options)
        if engine.path != path:
            raise AssertionError(f"path is {engine.path!r}")
        before = engine.get_parameters()
        total = engine.run_epoch(np.arange(61), np.ones(1))
        steps = before.astype(float) - engine.get_parameters()
    value, expected = expected_gradient(network, objective, before, X, y, 0.3, weight)
    error = max(abs(total / 61 / value - 1), np.abs(steps - expected).max() / abs(expected).max())
    return error, GRADIENT_TOLERANCE[dtype]


def outputs(job, dtype: str, loss: str) -> Outcome:
    """`predict`, `evaluate` and `loss_and_gradient`."""
    network, objective = network_for(loss)
    X, y, weight = problem(loss, 61, 6, network.n_outputs, dtype)
    engine = loaded(network, objective, X, y, weight, device=job.device, alpha=0.3)
    flat = engine.get_parameters()
    value, expected = expected_gradient(network, objective, flat, X, y, 0.3, weight)
    plain, _ = expected_gradient(network, objective, flat, X, y, 0.0, weight)
    predicted = reference.predict(flat, network.widths, network.activations, loss, X)
    found, gradient = engine.loss_and_gradient()
    pairs = [(found, value), (gradient, expected), (engine.predict(X), predicted),
             (engine.evaluate(place_for(engine, X, y, weight)), plain)]  # fmt: skip
    return max(distance(*pair) for pair in pairs), GRADIENT_TOLERANCE[dtype]


def oracle_for(rule: str, n: int):
    """An optimizer of the oracle, at rate 0.01."""
    return reference.OPTIMIZERS[rule](n, 0.01, *CONSTANTS[rule])


def expected_training(
    network, objective, flat, X, y, weight, rule: str, orders, alpha: float, batch: int
):
    """(losses of the epochs, parameters after them) by the oracle, in float64."""
    optimizer, losses = oracle_for(rule, flat.size), []
    for order in orders:
        losses.append(0.0)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            if not weight[rows].any():  # passed over, but counted
                optimizer.t = getattr(optimizer, "t", 0) + 1
                continue
            value, slope = expected_gradient(
                network, objective, flat, X[rows].astype(float), y[rows], alpha, weight[rows]
            )
            losses[-1] += value * len(rows)
            flat = optimizer.step(flat, slope)
    return np.array(losses), flat


def training(job, path: str, dtype: str, loss: str, rule: str) -> Outcome:
    """Ten epochs (float32: twelve steps): losses and parameters."""
    n_epochs = 1 if job.emulated else 10 if dtype == "float64" else 3
    network, objective = network_for(loss)
    X, y, weight = problem(loss, 50, 6, network.n_outputs, dtype)
    if rule != "nadam":  # whose oracle keeps a product over steps
        weight[16:32] = 0  # at first a batch that carries no information
    rng = np.random.default_rng(3)
    orders = [np.arange(50), *(rng.permutation(50) for _ in range(n_epochs - 1))]
    options = {"alpha": 0.1, "batch_size": 16, "optimizer": Optimizer(rule, CONSTANTS[rule])}
    with only(path):
        engine = loaded(network, objective, X, y, weight, device=job.device, **options)
        flat = engine.get_parameters().astype(float)
        losses = [engine.run_epoch(order, np.full(4, 0.01)) for order in orders]
    expected = expected_training(network, objective, flat, X, y, weight, rule, orders, 0.1, 16)
    error = max(distance(losses, expected[0]), distance(engine.get_parameters(), expected[1]))
    return error, TRAINING_TOLERANCE[dtype]


def row_tiles(job, dtype: str, rows: int) -> Outcome:
    """A step of several row tiles for each block, and one of few rows: losses and parameters."""
    n, batch, widths = (90, 80, (5, 9, 6)) if job.emulated else (20000, 18000, (21, 40, 33))
    network, objective = network_for("log_loss", "tanh", widths)
    X, y, weight = problem("log_loss", n, widths[0], 3, dtype)
    sizes = all_tiles.SIZES[dtype]
    sizes = sizes._replace(rows=tuple(tile for tile in sizes.rows if tile.rows == rows))
    optimizer = Optimizer("sgd", CONSTANTS["sgd"])
    engine = loaded(network, objective, X, y, weight, device=job.device, batch_size=batch,
                    alpha=0.1, optimizer=optimizer, sizes=sizes)  # fmt: skip
    flat, orders = engine.get_parameters().astype(float), [np.arange(n)] * 2
    losses = [engine.run_epoch(order, np.full(2, 0.01)) for order in orders]
    assert engine.path == "resident"
    expected = expected_training(network, objective, flat, X, y, weight, "sgd", orders, 0.1, batch)
    error = max(distance(losses, expected[0]), distance(engine.get_parameters(), expected[1]))
    return error, TRAINING_TOLERANCE[dtype]


def same_bits_twice(job, path: str, batch: int = 2048) -> Outcome:
    """Elements that differ between two fits with the same seed; batches over all blocks."""
    n_samples, batch = (64, 32) if job.emulated else (4 * batch, batch)
    network, objective = network_for("log_loss", hidden=(7, 9))
    X, y, _ = problem("log_loss", n_samples, 7, 3, "float32")
    optimizer = Optimizer("adam", CONSTANTS["adam"])
    results = []
    for _ in range(2):
        with only(path):
            engine = loaded(network, objective, X, y, device=job.device, batch_size=batch,
                            optimizer=optimizer)  # fmt: skip
            engine.run_epoch(np.arange(n_samples), np.full(n_samples // batch, 0.01))
            results.append(engine.get_parameters())
    return np.count_nonzero(results[0] != results[1]), 0


def paths_in_turn(job) -> Outcome:
    """Whichever path ran before, an epoch starts from the current parameters."""
    network, objective = network_for("squared_error")
    order = np.arange(50)
    X, y, weight = problem("squared_error", 50, 6, 2, "float64")
    engine = loaded(network, objective, X, y, weight, device=job.device, batch_size=16,
                    optimizer=Optimizer("sgd", CONSTANTS["sgd"]))  # fmt: skip
    flat, paths = engine.get_parameters(), ("resident", "tiled", "resident", "resident")
    for path in paths:
        with only(path):
            engine.run_epoch(order, np.full(4, 0.01))
    expected = expected_training(
        network, objective, flat, X, y, weight, "sgd", [order] * len(paths), 0.0, 16
    )
    return distance(engine.get_parameters(), expected[1]), TRAINING_TOLERANCE["float64"]


def large_gradient(job, dtype: str, precision: str) -> Outcome:
    """Large tiles, several micro-batches and splits of sums."""
    n, widths, rows = (40, (5, 7), 17) if job.emulated else (1500, (300, 270, 150), 640)
    network, objective = network_for("log_loss", "relu", widths)
    X, y, weight = problem("log_loss", n, widths[0], 3, dtype)
    flat = parameters_for(network, 0.1)
    with replaced(_MICRO_BATCH_ROWS=rows):
        engine = loaded(network, objective, X, y, weight, flat, device=job.device, alpha=0.3,
                        matmul_precision=precision)  # fmt: skip
        _, gradient = engine.loss_and_gradient()
    _, expected = expected_gradient(network, objective, flat, X, y, 0.3, weight)
    tolerance = 1e-11 if dtype == "float64" else PRECISION_TOLERANCE[precision]
    return distance(gradient, expected), tolerance


def sparse_samples(job, dtype: str) -> Outcome:
    """CSR and dense samples give the same training and outputs."""
    network, objective = network_for("log_loss", "relu", (30, 7))
    X, y, weight = problem("log_loss", 60, 30, 3, dtype)
    X[np.abs(X) < 1] = 0
    results = []
    for data in (sparse.csr_matrix(X), X):
        with only("tiled"):
            engine = loaded(network, objective, data, y, weight, device=job.device, batch_size=20,
                            optimizer=Optimizer("sgd", CONSTANTS["sgd"]))  # fmt: skip
            engine.run_epoch(np.arange(60), np.full(3, 0.01))
            results.append([engine.get_parameters(), engine.predict(data)])
    pairs = zip(*results, strict=True)
    return max(distance(*pair) for pair in pairs), GRADIENT_TOLERANCE[dtype]


def _each_once(rows, columns) -> list[tuple]:
    """Pairs that together name each row and each column once."""
    n = max(len(rows), len(columns))
    return list(islice(zip(cycle(rows), cycle(columns), strict=False), n))


def paths(job, path: str, *dtypes: str) -> None:
    """Gradients and training by one path, the most telling rungs first."""
    gradients = [
        (path, dtype, *pair) for dtype in dtypes for pair in _each_once(LOSSES, ACTIVATIONS)
    ]
    runs = [
        (path, dtype, *pair) for dtype in dtypes[::-1] for pair in _each_once(LOSSES, OPTIMIZERS)
    ]
    climb(job, [(gradient, gradients[:4]), (training, runs[:4]),
                *(_resident_rungs(dtypes) if path == "resident" else _tiled_rungs()),
                (training, runs[4:]), (gradient, gradients[4:])])  # fmt: skip


def _resident_rungs(dtypes: tuple[str, ...]) -> list[tuple[Callable, list[tuple]]]:
    large = [(dtype, tile.rows) for dtype in dtypes for tile in all_tiles.SIZES[dtype].rows
             if tile.large]  # fmt: skip
    if "float64" in dtypes:
        return [(row_tiles, large), (paths_in_turn, [()])]
    return [(row_tiles, large), (same_bits_twice, [("resident",), ("resident", 2**16)])]


def _tiled_rungs() -> list[tuple[Callable, list[tuple]]]:
    precisions = [("float32", "medium"), ("float32", "high"), ("float64", "highest")]
    return [
        (same_bits_twice, [("tiled",)]),
        (large_gradient, [("float32", "highest"), *precisions]),
        (outputs, [(dtype, loss) for dtype in REAL for loss in LOSSES]),
        (sparse_samples, [("float32",), ("float64",)]),
    ]


# --- estimators -------------------------------------------------------------------------------


def digits(job, dtype: str, precision: str) -> Outcome:
    """The estimator on 'cuda' against scikit-learn's: loss curves, in float64 labels, too."""
    n, hidden, epochs = (40, (5,), 2) if job.emulated else (1797, (100, 40), 10)
    X, y = load_digits(return_X_y=True)
    X, y = (X[:n] / 16).astype(dtype), y[:n]
    settings = {"max_iter": epochs, "random_state": 0, "tol": 0, "n_iter_no_change": epochs + 1}
    ours = fastmlp.MLPClassifier(hidden, device="cuda", matmul_precision=precision, **settings)
    theirs = MLPClassifier(hidden, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = [model.fit(X, y).predict(X) for model in (ours, theirs)]
    error = distance(ours.loss_curve_, theirs.loss_curve_)
    if dtype == "float64":
        return error + np.count_nonzero(labels[0] != labels[1]), 1e-7
    return error, {"highest": 1e-3, "high": 1e-2, "medium": 3e-2}[precision]


def estimators(job) -> None:
    """Whole fits on 'cuda'."""
    assert job.device is not None  # opened before an estimator does, for the emulator's sake
    precisions = ("highest", "high", "medium")
    climb(job, [(digits, [("float64", "highest"), *(("float32", each) for each in precisions)])])
