"""The measurements of `cuda_report`: steps, epochs, inference, products, launches, barriers.

Within a section everybody does the same work in the same process: the same network, rows, order and
Adam, and the same losses before anything is timed.  Rounds are interleaved, and a figure is the
median of its rounds.  Building, compiling and the first steps are timed by themselves.

PyTorch gets what it needs to be at its best: fused Adam, samples on the device, no DataLoader; as
CUDA graphs a whole step is one replay, the choice of its rows included.
"""

import contextlib
import gc
import importlib.metadata
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from types import FunctionType
from typing import Any

import cuda_ladder
import numpy as np
from numba import float32

from fastmlp.engine.cuda import CudaEngine, place, resident
from fastmlp.engine.cuda import engine as target
from fastmlp.engine.cuda.device import Launch
from fastmlp.network import Network
from fastmlp.objective import Objective
from fastmlp.optimizers import Optimizer

torch: Any = None  # until `import_torch`

PRECISIONS = ("highest", "medium", "high")
LOSS_TOLERANCE = {"highest": 1e-4, "high": 1e-3, "medium": 3e-3}
# The greatest width times the rate, so that the losses of wide networks fall, too.
RATE_TIMES_WIDTH, MAX_RATE = 0.1, 1e-3
# PyTorch adds epsilon elsewhere than scikit-learn, so it is made negligible.
ADAM = (0.9, 0.999, 1e-14)
LONG_STEP, LONG_SECONDS = 1e13, 25  # flop of a step, and what to time it takes
MAX_TEXT = 1500  # characters kept of an error


def import_torch() -> None:
    """PyTorch, for the sections that need it; where it is missing, its columns stay empty."""
    global torch
    with contextlib.suppress(ImportError):
        import torch


# --- the device -------------------------------------------------------------------------------


def in_resident(template: Callable) -> FunctionType:
    """A kernel template that sees the names of `fastmlp.engine.cuda.resident`."""
    return FunctionType(template.__code__, vars(resident), template.__name__)


def wait_often(barrier, n_times):
    for n in range(1, n_times + 1):
        grid_barrier(barrier, n)  # noqa: F821


def turn_round(out):
    """Through static shared memory of SHARED elements."""
    memory = cuda.shared.array(SHARED, REAL)  # noqa: F821
    for i in range(cuda.threadIdx.x, SHARED, THREADS):  # noqa: F821
        memory[i] = REAL(i)  # noqa: F821
    cuda.syncthreads()  # noqa: F821
    for i in range(cuda.threadIdx.x, SHARED, THREADS):  # noqa: F821
        out[i] = memory[SHARED - 1 - i]  # noqa: F821


def take_one(a):
    pass


def take_eight(a, b, c, d, e, f, g, h):
    pass


def system(job) -> None:
    """Versions; launches, and larger shared memory; what the compiler made of the kernels."""
    job.keep(versions=versions())  # whatever happens next
    job.keep(multiprocessors=job.device.n_multiprocessors)
    parts = [time_launches, time_graph, try_shared, small_fit]
    for part in parts if job.emulated else [*parts, find_libraries, inspect_kernels]:
        try:
            part(job)
        except Exception:  # the others may work
            job.add("failures", {"part": part.__name__, "text": traceback.format_exc()[-MAX_TEXT:]})


def versions() -> dict[str, str]:
    names = ("numpy", "scipy", "scikit-learn", "numba", "llvmlite", "numba-cuda", "cuda-core",
             "cuda-bindings", "torch")  # fmt: skip
    return {"python": platform.python_version()} | {name: version_of(name) for name in names}


def version_of(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def time_launches(job) -> None:
    """Microseconds per launch: on the host until it is queued, and until it is done."""
    device, n = job.device, job.plan.n_launches
    array = device.zeros(32, np.float32)
    for template, n_arrays in ((take_one, 1), (take_eight, 8)):
        launch = empty_launch(device, template, array, n_arrays)
        queue_and_wait(device, array, lambda x=launch: device.launch(x), 3)
        queued, done = queue_and_wait(device, array, lambda x=launch: device.launch(x), n)
        job.add("launches", {"arrays": n_arrays, "host_us": queued, "done_us": done})


def empty_launch(device, template: Callable, array, n_arrays: int) -> Launch:
    kernel = device.kernel(in_resident(template), REAL=float32)
    return Launch(kernel, (1, 1, 1), 32, (array,) * n_arrays)


def time_graph(job) -> None:
    """`time_launches` for a graph, divided among its launches."""
    device, n_nodes = job.device, job.plan.graph_nodes
    array = device.zeros(32, np.float32)
    launch = empty_launch(device, take_eight, array, 8)
    device.launch(launch)
    graph = device.capture([launch] * n_nodes)
    queue_and_wait(device, array, lambda: device.replay(graph), 3)
    n = max(1, job.plan.n_launches // n_nodes)
    queued, done = queue_and_wait(device, array, lambda: device.replay(graph), n)
    job.add("launches", {"graph_of": n_nodes, "host_us": queued / n_nodes,
                         "done_us": done / n_nodes})  # fmt: skip


def queue_and_wait(device, array, queue: Callable, n: int) -> tuple[float, float]:
    """Microseconds per call of ``queue`` until the last returned, and until all was done."""
    device.read(array)
    start = time.perf_counter()
    for _ in range(n):
        queue()
    queued = time.perf_counter() - start
    device.read(array)
    return 1e6 * queued / n, 1e6 * (time.perf_counter() - start) / n


def find_libraries(job) -> None:
    """Which files compile and link kernels."""
    from cuda import pathfinder

    names = ("nvvm", "nvrtc", "nvJitLink")
    job.keep(libraries={name: pathfinder.load_nvidia_dynamic_lib(name).abs_path for name in names})


def small_fit(job) -> None:
    """A few steps of either path, and in bfloat16."""
    work = Work("small", (6, 9, 3), 8, job.plan)
    former = target._RESIDENT_PARAMETERS
    for limit, precision in ((former, "highest"), (0, "highest"), (0, "medium")):
        target._RESIDENT_PARAMETERS = limit
        ours = Ours(job, work, precision)
        job.add("fits", {"path": ours.engine.path, "precision": precision,
                         "loss": ours.run(work.order(2))})  # fmt: skip
    target._RESIDENT_PARAMETERS = former


def inspect_kernels(job) -> None:
    """Registers and local memory of what `small_fit` compiled."""
    for kernel in job.device._kernels.values():
        for compiled in kernel.compiled.values():
            found = compiled.attributes
            job.add("kernels", {
                "name": kernel.template.__name__, "registers": found.num_regs,
                "local_bytes": found.local_size_bytes,
                "shared_bytes": found.shared_size_bytes,
            })  # fmt: skip


def try_shared(job) -> None:
    """Whether kernels with more static shared memory than 48 KB launch, and are right."""
    for n in job.plan.shared:
        kernel = job.device.kernel(in_resident(turn_round), REAL=float32, SHARED=n, THREADS=32)
        out = job.device.zeros(n, np.float32)
        record: dict[str, Any] = {"bytes": 4 * n}
        try:
            job.device.launch(Launch(kernel, (1, 1, 1), 32, (out,)))
            record["works"] = np.array_equal(job.device.read(out), np.arange(n)[::-1])
        except Exception as error:
            record |= {"works": False, "text": f"{type(error).__name__}: {error}"[:MAX_TEXT]}
        job.add("shared", record)


def barrier(job) -> None:
    """Microseconds per barrier of one block per multiprocessor, as the resident path has it."""
    device, n, times = job.device, job.plan.n_barriers, {}
    kernel = device.kernel(in_resident(wait_often), REAL=float32)
    threads = 32 if job.emulated else 256
    for n_times in (2, n, 2 * n):
        counter = device.zeros(1, np.uint32)
        launch = Launch(kernel, (device.n_multiprocessors, 1, 1), threads, (counter, n_times))
        times[n_times] = queue_and_wait(device, counter, lambda x=launch: device.launch(x), 1)[1]
        if device.read(counter)[0] != n_times * device.n_multiprocessors:
            raise RuntimeError("not all blocks came to all barriers")
    job.keep(barrier_us=(times[2 * n] - times[n]) / n)


# --- the roofline -----------------------------------------------------------------------------


def roofline(job) -> None:
    """Copy bandwidth; the rates of PyTorch's matmul and of our kernels, same sizes, interleaved."""
    import_torch()
    if torch is not None:
        job.keep(bandwidth=copy_bandwidth(job))
    M = job.plan.matmul
    N = K = M // 4
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal(shape, np.float32) for shape in ((M, K), (K, N)))
    for precision in PRECISIONS:
        theirs = {} if torch is None else {"PyTorch": torch_matmul(job, precision, A, B)}
        for name in cuda_ladder.ORIENTATIONS:
            record: dict[str, Any] = {"precision": precision, "product": name, "shape": [M, N, K]}
            try:
                ours = {"fastmlp": our_matmul(job, precision, name, A, B)}
            except Exception as error:
                ours, record["text"] = {}, f"{type(error).__name__}: {error}"[:MAX_TEXT]
            times = medians(ours | theirs, job.plan.rounds)
            record["tflops"] = {rival: 2e-6 * M * N * K / us for rival, us in times.items()}
            job.add("matmul", record)


def our_matmul(job, precision: str, orientation: str, A, B) -> Callable[[], float]:
    product = cuda_ladder.Product(job.device, "float32", precision, 0, orientation, True)
    launch = product.place(A, B)

    def run():
        return queue_and_wait(
            job.device, launch.args[0], lambda: job.device.launch(launch), job.plan.n_matmuls
        )[1]

    run()
    return run


def medians(rivals: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median of what each returns, in turn, after one call that does not count."""
    for run in rivals.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            times[name].append(run())
    return {name: statistics.median(values) for name, values in times.items()}


def copy_bandwidth(job) -> float:
    """GB/s, bytes read and written."""
    where = "cpu" if job.emulated else "cuda"
    source = torch.ones(job.plan.copy_bytes // 4, device=where)
    copy = torch.empty_like(source)
    us = medians(
        {"copy": timed(where, lambda: copy.copy_(source), job.plan.n_matmuls)}, job.plan.rounds
    )["copy"]
    return 2e-3 * job.plan.copy_bytes / us


def timed(where: str, work: Callable, n: int) -> Callable[[], float]:
    """A function that returns the microseconds of one ``work``."""

    def run():
        synchronise(where)
        start = time.perf_counter()
        for _ in range(n):
            work()
        synchronise(where)
        return 1e6 * (time.perf_counter() - start) / n

    return run


def synchronise(where: str) -> None:
    if where == "cuda":
        torch.cuda.synchronize()


def torch_matmul(job, precision: str, A, B) -> Callable[[], float]:
    where = "cpu" if job.emulated else "cuda"
    torch.set_float32_matmul_precision("high" if precision == "high" else "highest")
    kind = torch.bfloat16 if precision == "medium" else torch.float32
    A, B = torch.from_numpy(A).to(where, kind), torch.from_numpy(B).to(where, kind)
    return timed(where, lambda: A @ B, job.plan.n_matmuls)


# --- networks ---------------------------------------------------------------------------------


class Work:
    """What everybody does: a network, its first parameters, samples and batches."""

    def __init__(self, name: str, widths: tuple[int, ...], batch: int, plan):
        self.name, self.widths, self.batch, self.plan = name, widths, batch, plan
        self.network = Network(widths, "relu", "softmax")
        self.flat = self.network.initialise(np.random.RandomState(0), np.float32)
        self.n_rows = max(batch, plan.min_rows)
        self.rate = min(MAX_RATE, RATE_TIMES_WIDTH / max(widths))
        self._rng = np.random.default_rng(0)

    @cached_property
    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """X and class numbers; of a large set, the same rows over and over."""
        n = min(self.n_rows, 2**14)
        X = np.random.default_rng(1).standard_normal((n, self.widths[0]), np.float32)
        X = np.resize(X, (self.n_rows, self.widths[0]))
        return X, X[:, : self.widths[-1]].argmax(axis=1)

    @property
    def flop(self) -> float:
        """Of one training step."""
        w = self.widths
        return 2.0 * self.batch * (3 * sum(a * b for a, b in pairwise(w)) - w[0] * w[1])

    @property
    def check_steps(self) -> int:
        return 1 if self.flop > LONG_STEP else self.plan.check_steps

    @property
    def max_steps(self) -> int:
        return max(self.check_steps, min(1024, self.plan.max_samples // self.batch))

    def order(self, n_steps: int) -> np.ndarray:
        """Samples of so many batches."""
        return self._rng.permutation(n_steps * self.batch) % self.n_rows


class Ours:
    """`CudaEngine`; an epoch is a call."""

    def __init__(self, job, work: Work, precision: str):
        self.work, self._device = work, job.device
        objective = Objective("log_loss", work.widths[-1])
        self.engine = CudaEngine(
            work.network, dtype="float32", objective=objective, batch_size=work.batch,
            matmul_precision=precision, optimizer=Optimizer("adam", ADAM), device=job.device,
        )  # fmt: skip
        X, y = work.samples
        self.engine.load(place(X, y, dtype="float32", objective=objective, device=job.device))
        self.reset()

    @cached_property
    def _placed(self):
        X = self.work.samples[0][: self.work.batch]
        return place(X, dtype="float32", device=self._device)

    def reset(self) -> None:
        slots, _ = self.engine.get_state()
        self.engine.set_parameters(self.work.flat)
        self.engine.set_state(np.zeros_like(slots), 0)

    def run(self, order: np.ndarray) -> float:
        """Mean loss."""
        rates = np.full(order.size // self.work.batch, self.work.rate)
        return self.engine.run_epoch(order, rates) / order.size

    def epoch(self, n: int) -> None:
        """One pass over ``n`` samples, whose order is drawn here."""
        self.run(self.work.order(n // self.work.batch))

    def predict(self) -> np.ndarray:
        """Outputs of a batch, on the host."""
        return self.engine.predict(self._placed)

    def copy_out(self) -> Callable:
        """What part of `predict` is copying to the host."""
        out = self._device.zeros(self.work.batch * self.work.widths[-1], np.float32)
        return lambda: self._device.read(out)


class Torch:
    """PyTorch: fused Adam, samples on the device, no DataLoader."""

    def __init__(self, job, work: Work, precision: str):
        if torch is None:
            raise NotImplementedError("PyTorch is not installed")
        self.work, self.emulated = work, job.emulated
        self.where = "cpu" if job.emulated else "cuda"
        self.medium = precision == "medium"
        torch.set_float32_matmul_precision("high" if precision == "high" else "highest")
        self.X, self.y = (torch.from_numpy(array).to(self.where) for array in work.samples)
        modules = []
        for a, b in pairwise(work.widths):
            modules += [torch.nn.Linear(a, b, device=self.where), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*modules[:-1])
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), work.rate, ADAM[:2], ADAM[2], fused=True,
            capturable=not job.emulated,
        )  # fmt: skip
        self.total = torch.zeros((), device=self.where)
        self.prepare()
        self.reset()

    def prepare(self) -> None:
        """For those who do more than this class."""

    def objective(self, X, y):
        with torch.autocast(self.where, torch.bfloat16, enabled=self.medium, cache_enabled=False):
            return torch.nn.functional.cross_entropy(self.net(X), y)

    def step(self, rows) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective(self.X[rows], self.y[rows])
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach()

    def reset(self) -> None:
        linears = [module for module in self.net if isinstance(module, torch.nn.Linear)]
        with torch.no_grad():
            coefs, intercepts = self.work.network.unflatten(self.work.flat)
            for linear, W, b in zip(linears, coefs, intercepts, strict=True):
                linear.weight.copy_(torch.from_numpy(W.T.copy()))
                linear.bias.copy_(torch.from_numpy(b.copy()))
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()

    def run(self, order) -> float:
        if isinstance(order, np.ndarray):
            order = torch.from_numpy(order).to(self.where)
        batches = order.view(-1, self.work.batch)
        self.total.zero_()
        self.steps(batches)
        return float(self.total) / len(batches)

    def steps(self, batches) -> None:
        for rows in batches:
            self.step(rows)

    def epoch(self, n: int) -> None:
        n = n // self.work.batch * self.work.batch
        self.run(torch.randperm(n, device=self.where) % self.work.n_rows)

    def predict(self) -> np.ndarray:
        mixed = torch.autocast(self.where, torch.bfloat16, enabled=self.medium)
        with torch.inference_mode(), mixed:
            scores = self.net(self.X[: self.work.batch])
            return torch.softmax(scores.float(), dim=1).cpu().numpy()

    def copy_out(self) -> Callable:
        out = torch.zeros(self.work.batch, self.work.widths[-1], device=self.where)
        return lambda: out.cpu().numpy()


class Graphs(Torch):
    """A whole step, the choice of its rows included, in one CUDA graph."""

    def prepare(self) -> None:
        shape = (self.work.max_steps, self.work.batch)
        self.batches = torch.zeros(shape, dtype=torch.int64, device=self.where)
        self.at = torch.zeros(1, dtype=torch.int64, device=self.where)
        self.replay = self.next_step if self.emulated else self.capture()

    def capture(self) -> Callable:
        """As PyTorch's notes on CUDA graphs have it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.at.zero_()
                self.next_step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.next_step()
        return graph.replay

    def next_step(self) -> None:
        self.step(self.batches.index_select(0, self.at).view(-1))
        self.at += 1

    def steps(self, batches) -> None:
        for start in range(0, len(batches), self.work.max_steps):
            some = batches[start : start + self.work.max_steps]
            self.batches[: len(some)] = some
            self.at.zero_()
            for _ in range(len(some)):
                self.replay()


class Compiled(Torch):
    """`torch.compile` at its most thorough, which has CUDA graphs of its own."""

    def prepare(self) -> None:
        if not self.emulated:
            options = {"mode": "max-autotune", "dynamic": False}
            self.objective = torch.compile(self.objective, **options)  # type: ignore

    def step(self, rows) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        super().step(rows)


def time_network(job, name: str, turn: float) -> None:
    """All batches and precisions of a network; the very long steps last."""
    import_torch()
    rivals = {"fastmlp": Ours, "PyTorch": Torch, "CUDA graphs": Graphs}
    works = {batch: Work(name, job.plan.networks[name], batch, job.plan)
             for batch in job.plan.batches}  # fmt: skip
    start = time.perf_counter()
    for precision in PRECISIONS:
        for batch in job.plan.batches[:2]:  # larger ones run the same kernels
            warm_up(job, works[batch], precision)
    job.keep(compile_s=round(time.perf_counter() - start, 1))
    job.take_turn(turn)
    cells = [(precision, batch) for precision in PRECISIONS for batch in job.plan.batches]
    for precision, batch in sorted(cells, key=lambda cell: works[cell[1]].flop > LONG_STEP):
        job.add("cells", measure(job, works[batch], precision, rivals, thorough=True))
        works[batch].__dict__.pop("samples", None)  # gigabytes of some


def warm_up(job, work: "Work", precision: str) -> None:
    """Compile; what goes wrong here goes wrong, and is recorded, in `measure`."""
    with contextlib.suppress(Exception):
        ours = Ours(job, work, precision)
        ours.run(work.order(1))
        ours.predict()


def compiled(job) -> None:
    """Training steps beside `torch.compile`, which takes long before it starts."""
    import_torch()
    for precision in PRECISIONS:
        for batch in job.plan.compiled_batches:
            for name in job.plan.compiled:
                work = Work(name, job.plan.networks[name], batch, job.plan)
                rivals = {"fastmlp": Ours, "torch.compile": Compiled}
                job.add("cells", measure(job, work, precision, rivals, thorough=False))


def measure(job, work: Work, precision: str, makers: dict, thorough: bool) -> dict[str, Any]:
    """One cell: what each takes per step, and what else is asked for, if the losses agree."""
    cell: dict[str, Any] = {"network": work.name, "batch": work.batch, "precision": precision,
                            "flop": work.flop}  # fmt: skip
    if job.time_left() < (LONG_SECONDS if work.flop > LONG_STEP else 0):
        return cell | {"text": "not reached"}
    orders = [work.order(work.check_steps) for _ in range(2)]
    rivals, losses, errors, seconds = {}, {}, {}, {}
    for name, make in makers.items():
        start = time.perf_counter()
        try:
            rivals[name] = make(job, work, precision)
            losses[name] = [rivals[name].run(order) for order in orders]
        except Exception as error:
            rivals.pop(name, None)
            errors[name] = f"{type(error).__name__}: {error}"[:MAX_TEXT]
        seconds[name] = round(time.perf_counter() - start, 2)
    for name in [name for name in rivals if not agree(losses, name, precision)]:
        del rivals[name]
        errors[name] = f"losses {losses[name]} are not fastmlp's: not the same work"
    cell |= {"losses": losses, "errors": errors, "prepare_s": seconds}
    if "fastmlp" in rivals:
        cell["path"] = rivals["fastmlp"].engine.path
        cell |= time_rivals(work, rivals, thorough)
    rivals.clear()
    gc.collect()
    if torch is not None and not job.emulated:
        torch.cuda.empty_cache()
    return cell


def agree(losses: dict[str, list[float]], name: str, precision: str) -> bool:
    reference = losses.get("fastmlp", losses[name])
    return bool(np.allclose(losses[name], reference, rtol=LOSS_TOLERANCE[precision], atol=0))


def time_rivals(work: Work, rivals: dict, thorough: bool) -> dict[str, Any]:
    """Microseconds per step; with ``thorough``, those of an epoch and of inference, too."""
    rounds = work.plan.rounds
    counts = {name: steps_per_round(work, rival) for name, rival in rivals.items()}
    if work.flop > LONG_STEP:
        return {"step_us": {name: 1e6 * seconds / n for name, (n, seconds) in counts.items()}}
    orders = {name: work.order(n) for name, (n, _) in counts.items()}
    runs = {name: clocked(lambda r=rival, o=orders[name]: r.run(o), counts[name][0])
            for name, rival in rivals.items()}  # fmt: skip
    results = {"step_us": medians(runs, rounds)}
    if not thorough:
        return results
    n = max(work.plan.epoch_rows, work.batch)
    epochs = {name: clocked(lambda r=rival: r.epoch(n)) for name, rival in rivals.items()}
    predict = {name: clocked(rival.predict) for name, rival in rivals.items()}
    copies = {name: clocked(rival.copy_out()) for name, rival in rivals.items()}
    return results | {
        "epoch_samples": n, "epoch_us": medians(epochs, min(3, rounds)),
        "predict_us": medians(predict, rounds), "copy_out_us": medians(copies, rounds),
    }  # fmt: skip


def clocked(work: Callable, n: int = 1) -> Callable[[], float]:
    """A function that returns microseconds / n of ``work``, which waits for the device."""

    def run():
        start = time.perf_counter()
        work()
        return 1e6 * (time.perf_counter() - start) / n

    return run


def steps_per_round(work: Work, rival) -> tuple[int, float]:
    """(steps that fill a round, seconds that they take)."""
    n = work.check_steps
    while True:
        order = work.order(n)
        start = time.perf_counter()
        rival.run(order)
        seconds = time.perf_counter() - start
        if seconds >= work.plan.round_seconds / 2 or n >= work.max_steps:
            return n, seconds
        n = min(work.max_steps, max(2 * n, int(n * work.plan.round_seconds / seconds)))
