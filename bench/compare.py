"""fastmlp beside scikit-learn, PyTorch, JAX and skorch: one process, same work, interleaved.

    python bench/compare.py [--dtype float32] [--rounds 5] [--only digits tiny] [--readme]

Every library trains the same network on the same rows with Adam, the L2 penalty that scikit-learn
applies, and a new order of the samples per epoch.  fastmlp and scikit-learn go through the public
``fit``, shuffling, checks and all; PyTorch and JAX get a bare loop, JAX with a whole epoch in one
jitted `lax.scan`.  Before anything is timed, all start from the same weights, see the batches in
the same order, and must reach the same loss, so that nobody wins by doing less.

A round runs all libraries in turn, each after a pause in which the threads of the one before stop
spinning (OpenBLAS's do so for 0.1 s, and slow down whoever comes next).  A library's figure is the
best of its rounds (two threads meet good and bad moments on a shared machine), the median is kept
too.  The share is exact work, 2 n (3 sum(fan_in fan_out) - fan_in0 fan_out0) flop per epoch, over
the measured FMA rate of all cores.

Writes bench/results/cpu-<dtype>.json, .csv and .png; ``--readme`` puts the table into README.md.
"""

import argparse
import csv
import json
import os
import time
import warnings
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
from readme import put_into_readme

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RATE, ALPHA, BETAS, EPSILON = 1e-3, 1e-4, (0.9, 0.999), 1e-8
CHECK_EPOCHS = 3
SECONDS_PER_ROUND = 0.6
PAUSE = 0.2


@dataclass(frozen=True)
class Workload:
    """One network and data set; ``classes`` is None for regression."""

    name: str
    n: int
    widths: tuple[int, ...]
    batch: int
    classes: int | None
    activation: str = "relu"

    @property
    def flop(self) -> float:
        w = self.widths
        return 2.0 * self.n * (3 * sum(a * b for a, b in pairwise(w)) - w[0] * w[1])

    @property
    def text(self) -> str:
        return "-".join(str(width) for width in self.widths)

    def data(self, dtype):
        rng = np.random.RandomState(0)
        X = rng.normal(size=(self.n, self.widths[0])).astype(dtype)
        scores = np.tanh(X @ rng.normal(size=(self.widths[0], self.classes or 1)).astype(dtype))
        if self.classes is None:
            return X, scores[:, 0]
        if self.classes == 2:
            return X, (scores[:, 0] > 0).astype(np.int64)
        return X, scores.argmax(axis=1)


# Two classes are one logistic output, in every library.
WORKLOADS = [
    Workload("tiny", 10_000, (20, 32, 32, 1), 32, 2),
    Workload("digits", 1_797, (64, 100, 10), 200, 10),
    Workload("california", 20_000, (8, 64, 64, 1), 256, None),
    Workload("mnist-like", 20_000, (784, 256, 128, 10), 128, 10),
    Workload("wide", 8_192, (512, 1024, 1024, 100), 512, 100),
]
# Shapes that nothing was tuned for.
HELD_OUT = [
    Workload("bank", 10_000, (16, 48, 24, 1), 40, 2),
    Workload("odd", 10_000, (37, 53, 29, 7), 101, 7),
    Workload("letters", 10_000, (16, 100, 26), 200, 26),
    Workload("logit", 10_000, (200, 20), 100, 20),
    Workload("tanh", 10_000, (60, 120, 60, 10), 150, 10, "tanh"),
    Workload("deep", 10_000, (50, 64, 64, 64, 64, 64, 5), 128, 5),
    Workload("big", 8_192, (700, 900, 600, 50), 384, 50),
]


def initial_weights(workload, dtype):
    rng = np.random.RandomState(1)
    layers = []
    for fan_in, fan_out in pairwise(workload.widths):
        bound = np.sqrt(6 / (fan_in + fan_out))
        W = rng.uniform(-bound, bound, (fan_in, fan_out)).astype(dtype)
        layers.append((W, rng.uniform(-bound, bound, fan_out).astype(dtype)))
    return layers


def batches(workload, seed):
    """The sample order of each epoch, endlessly; copies, because JAX reads its argument later."""
    rng = np.random.RandomState(seed)
    order = np.arange(workload.n)
    while True:
        rng.shuffle(order)
        yield order.copy()


class Sklearn:
    """scikit-learn's estimator, or one in its place, through ``fit``."""

    def __init__(self, workload, dtype, module):
        self.workload, self.module = workload, module
        self.X, self.y = workload.data(dtype)

    def _estimator(self, epochs):
        kind = "MLPRegressor" if self.workload.classes is None else "MLPClassifier"
        return getattr(self.module, kind)(
            hidden_layer_sizes=self.workload.widths[1:-1], batch_size=self.workload.batch,
            activation=self.workload.activation, max_iter=epochs, random_state=0, alpha=ALPHA,
            tol=0, n_iter_no_change=10**9,
        )  # fmt: skip

    def check(self):
        layers = initial_weights(self.workload, self.X.dtype)
        model = self._estimator(1)
        model.partial_fit(self.X[:10], self.y[:10], **self._classes())
        model.coefs_ = [W.copy() for W, _ in layers]
        model.intercepts_ = [b.copy() for _, b in layers]
        for name in ("_optimizer", "_optimizer_state"):
            model.__dict__.pop(name, None)
        model.set_params(shuffle=False)
        order = batches(self.workload, 0)
        for _ in range(CHECK_EPOCHS):
            rows = next(order)
            model.partial_fit(self.X[rows], self.y[rows])
        return model.loss_

    def _classes(self):
        n = self.workload.classes
        return {} if n is None else {"classes": np.arange(n)}

    def run(self, epochs):
        model = self._estimator(epochs)
        start = time.perf_counter()
        model.fit(self.X, self.y)
        return (time.perf_counter() - start) / epochs


class Torch:
    """A bare PyTorch loop: tensors in memory, fused Adam, no DataLoader."""

    def __init__(self, workload, dtype, threads, compiled):
        import torch
        import torch._dynamo

        self.torch, self.workload, self.threads = torch, workload, threads
        torch._dynamo.config.recompile_limit = 64  # shapes x numbers of threads
        torch.set_num_threads(threads)
        X, y = workload.data(dtype)
        self.X = torch.from_numpy(X)
        if workload.classes is None or workload.classes == 2:
            y = y.astype(dtype)[:, None]
        self.y = torch.from_numpy(y)
        activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[workload.activation]
        modules = []
        for W, b in initial_weights(workload, dtype):
            linear = torch.nn.Linear(*W.shape, dtype=self.X.dtype)
            linear.weight.data = torch.from_numpy(W.T.copy())
            linear.bias.data = torch.from_numpy(b.copy())
            modules += [linear, activation()]
        self.net = torch.nn.Sequential(*modules[:-1])
        weights = [m.weight for m in modules if isinstance(m, torch.nn.Linear)]
        biases = [m.bias for m in modules if isinstance(m, torch.nn.Linear)]
        groups = [
            {"params": weights, "weight_decay": ALPHA / workload.batch},
            {"params": biases, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.Adam(groups, RATE, BETAS, EPSILON, fused=True)
        functional = torch.nn.functional
        loss = {
            None: lambda z, y: 0.5 * functional.mse_loss(z, y),
            2: functional.binary_cross_entropy_with_logits,
        }.get(workload.classes, functional.cross_entropy)

        def objective(X, y):
            return loss(self.net(X), y)

        self.objective = torch.compile(objective) if compiled else objective
        self.order = batches(workload, 0)

    def _epoch(self):
        torch, batch = self.torch, self.workload.batch
        order = torch.from_numpy(next(self.order))
        total = 0.0
        for start in range(0, self.workload.n, batch):
            rows = order[start : start + batch]
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.objective(self.X[rows], self.y[rows])
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(rows)
        return float(total) / self.workload.n

    def check(self):
        return [self._epoch() for _ in range(CHECK_EPOCHS)][-1]

    def run(self, epochs):
        self.torch.set_num_threads(self.threads)
        start = time.perf_counter()
        for _ in range(epochs):
            self._epoch()
        return (time.perf_counter() - start) / epochs


class Jax:
    """A whole epoch in one jitted scan; the last, shorter batch is a step of its own."""

    def __init__(self, workload, dtype):
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", dtype == "float64")
        self.jax, self.workload = jax, workload
        X, y = workload.data(dtype)
        if workload.classes is None or workload.classes == 2:
            y = y.astype(dtype)[:, None]
        self.X, self.y = jnp.asarray(X), jnp.asarray(y)
        params = [(jnp.asarray(W), jnp.asarray(b)) for W, b in initial_weights(workload, dtype)]
        zeros = jax.tree.map(jnp.zeros_like, params)
        self.state = (params, zeros, zeros, jnp.zeros((), X.dtype))
        self.order = batches(workload, 0)
        batch = workload.batch

        def loss(params, X, y):
            a = X
            for W, b in params[:-1]:
                a = getattr(jax.nn, workload.activation)(a @ W + b)
            z = a @ params[-1][0] + params[-1][1]
            if workload.classes is None:
                return 0.5 * jnp.mean((z - y) ** 2)
            if workload.classes == 2:
                return jnp.mean(jnp.logaddexp(0, z) - y * z)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1))

        def step(state, rows):
            params, m, v, t = state
            value, g = jax.value_and_grad(loss)(params, X_all[rows], y_all[rows])
            g = [(dW + ALPHA / batch * W, db) for (dW, db), (W, _) in zip(g, params, strict=True)]
            t = t + 1
            m = jax.tree.map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * g, m, g)
            v = jax.tree.map(lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * g * g, v, g)
            rate = RATE * jnp.sqrt(1 - BETAS[1] ** t) / (1 - BETAS[0] ** t)
            params = jax.tree.map(
                lambda p, m, v: p - rate * m / (jnp.sqrt(v) + EPSILON), params, m, v
            )
            return (params, m, v, t), value * rows.size

        X_all, y_all = self.X, self.y
        whole = workload.n // batch * batch

        @jax.jit
        def epoch(state, order):
            state, values = jax.lax.scan(step, state, order[:whole].reshape(-1, batch))
            total = values.sum()
            if whole < workload.n:
                state, value = step(state, order[whole:])
                total += value
            return state, total / workload.n

        self.epoch = epoch

    def _epoch(self):
        self.state, loss = self.epoch(self.state, next(self.order))
        return loss

    def check(self):
        return float([self._epoch() for _ in range(CHECK_EPOCHS)][-1])

    def run(self, epochs):
        start = time.perf_counter()
        for _ in range(epochs):
            self._epoch()
        self.jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / epochs


class Skorch:
    """skorch around the same PyTorch module."""

    def __init__(self, workload, dtype, threads):
        import skorch
        import torch

        self.torch, self.threads = torch, threads
        inner = Torch(workload, dtype, threads, False)
        self.X, y = workload.data(dtype)
        if workload.classes is None or workload.classes == 2:
            y = y.astype(dtype)[:, None]
        self.y = y
        kind = skorch.NeuralNetRegressor
        if workload.classes and workload.classes > 2:
            kind = skorch.NeuralNetClassifier
        criterion = {None: torch.nn.MSELoss, 2: torch.nn.BCEWithLogitsLoss}.get(
            workload.classes, torch.nn.CrossEntropyLoss
        )
        self.model = kind(
            inner.net, criterion=criterion, optimizer=torch.optim.Adam, lr=RATE, train_split=None,
            batch_size=workload.batch, verbose=0, iterator_train__shuffle=True,
            warm_start=True, max_epochs=1,
        )  # fmt: skip
        self.model.initialize()

    def check(self):
        return None  # its batches are drawn by its own loader

    def run(self, epochs):
        self.torch.set_num_threads(self.threads)
        self.model.max_epochs = epochs
        start = time.perf_counter()
        self.model.fit(self.X, self.y)
        return (time.perf_counter() - start) / epochs


def contestants(workload, dtype, skip):
    """{name: function that sets the library up}; PyTorch with one and with all threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    makers = {
        "fastmlp": lambda: Sklearn(workload, dtype, import_module("fastmlp")),
        "JAX": lambda: Jax(workload, dtype),
        "PyTorch": lambda: Torch(workload, dtype, cores, False),
        "PyTorch (1 thread)": lambda: Torch(workload, dtype, 1, False),
        "PyTorch compiled": lambda: Torch(workload, dtype, cores, True),
        "PyTorch compiled (1 thread)": lambda: Torch(workload, dtype, 1, True),
        "skorch": lambda: Skorch(workload, dtype, 1),
        "scikit-learn": lambda: Sklearn(workload, dtype, import_module("sklearn.neural_network")),
    }
    return {name: make for name, make in makers.items() if name not in skip}


def measure(workload, dtype, rounds, skip):
    """{library: list of seconds per epoch}, after all reached the same loss."""
    libraries, losses = {}, {}
    for name, make in contestants(workload, dtype, skip).items():
        try:
            library = make()
            losses[name] = library.check()
            library.run(1)
        except Exception as error:
            print(f"  {name} left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
            continue
        libraries[name] = library
    reference = losses["fastmlp"]
    for name, loss in losses.items():
        # PyTorch and JAX report the loss without the penalty, and decay the last batch otherwise
        if loss is not None and abs(loss / reference - 1) > 0.02:
            raise SystemExit(f"{name} reached {loss}, fastmlp {reference}: not the same work")
    epochs = {
        name: int(np.clip(SECONDS_PER_ROUND / library.run(1), 4, 500))
        for name, library in libraries.items()
    }
    times = {name: [] for name in libraries}
    for _ in range(rounds):
        for name, library in libraries.items():
            time.sleep(PAUSE)
            times[name].append(library.run(epochs[name]))
    return times, losses


FAMILIES = {
    "scikit-learn": ("scikit-learn",),
    "PyTorch": ("PyTorch", "PyTorch (1 thread)"),
    "PyTorch compiled": ("PyTorch compiled", "PyTorch compiled (1 thread)"),
    "JAX": ("JAX",),
    "skorch": ("skorch",),
}


def summarise(workload, times, rate):
    best = {name: min(values) for name, values in times.items()}
    ours = best["fastmlp"]
    row = {
        "workload": workload.name,
        "n": workload.n,
        "widths": workload.text,
        "batch": workload.batch,
        "fastmlp_ms": 1e3 * ours,
        "fastmlp_median_ms": 1e3 * float(np.median(times["fastmlp"])),
        "share": workload.flop / ours / rate,
    }
    for family, members in FAMILIES.items():
        present = [best[name] for name in members if name in best]
        row[f"{family} / fastmlp"] = min(present) / ours if present else None
    return row


def table(rows, machine, dtype):
    """Markdown, for people."""
    families = [name for name in FAMILIES if any(row[f"{name} / fastmlp"] for row in rows)]
    lines = [
        f"Time per epoch, {dtype}, on {machine['cores']} cores of {machine['cpu']} "
        f"({machine['vector_bits']}-bit vectors, {machine['fma_gflops']:.0f} GFLOP/s measured). "
        "The last columns are how many times longer the others take.",
        "",
        "| workload | rows | network | batch | fastmlp | of FMA rate | "
        + " | ".join(families)
        + " |",
        "|---" * (6 + len(families)) + "|",
    ]
    for row in rows:
        ratios = [row[f"{family} / fastmlp"] for family in families]
        cells = ["-" if ratio is None else f"{ratio:.1f}" for ratio in ratios]
        lines.append(
            f"| {row['workload']} | {row['n']} | {row['widths']} | {row['batch']} | "
            f"{row['fastmlp_ms']:.2f} ms | {100 * row['share']:.0f} % | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def write(rows, times, machine, dtype):
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"cpu-{dtype}"
    stem.with_suffix(".json").write_text(
        json.dumps({"machine": machine, "rows": rows, "seconds_per_epoch": times}, indent=1) + "\n"
    )
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, dtype, machine, stem.with_suffix(".png"))


def plot(rows, dtype, machine, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(0.9 * len(rows) + 2, 4.2), layout="constrained")
    width = 0.8 / len(FAMILIES)
    for i, family in enumerate(FAMILIES):
        ratios = [row[f"{family} / fastmlp"] or np.nan for row in rows]
        at = np.arange(len(rows)) + (i - (len(FAMILIES) - 1) / 2) * width
        bars = axes.bar(at, ratios, width, label=family)
        axes.bar_label(bars, fmt="%.1f", fontsize=6, padding=2, rotation=90)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel("time per epoch / fastmlp's")
    axes.set_xticks(range(len(rows)), [row["workload"] for row in rows])
    axes.set_title(f"{dtype}, {machine['cores']} cores of {machine['cpu']}", fontsize=10)
    axes.margins(y=0.25)
    axes.legend(fontsize=8, ncols=len(FAMILIES), loc="upper right")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    every = WORKLOADS + HELD_OUT
    parser.add_argument("--only", nargs="+", choices=[w.name for w in every])
    parser.add_argument("--skip", nargs="+", default=[], help="libraries to leave out")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    from machine import describe, fma_rate  # brings Numba, which nobody's start should wait for

    machine = describe()
    rate = fma_rate(arguments.dtype, machine["cores"])
    machine["fma_gflops"] = rate / 1e9
    rows, all_times = [], {}
    for workload in every:
        if arguments.only and workload.name not in arguments.only:
            continue
        print(f"{workload.name}: {workload.text}, {workload.n} rows, batch {workload.batch}")
        times, losses = measure(workload, arguments.dtype, arguments.rounds, arguments.skip)
        for name, values in sorted(times.items(), key=lambda item: min(item[1])):
            loss = f"loss {losses[name]:.6f}" if losses[name] is not None else ""
            print(
                f"  {name:<28} best {1e3 * min(values):9.3f} ms  "
                f"median {1e3 * np.median(values):9.3f} ms  {loss}"
            )
        rows.append(summarise(workload, times, rate))
        all_times[workload.name] = times
    text = table(rows, machine, arguments.dtype)
    print(f"\n{text}")
    if not arguments.only:
        write(rows, all_times, machine, arguments.dtype)
    if arguments.readme:
        put_into_readme(text, f"compare {arguments.dtype}")


if __name__ == "__main__":
    main()
