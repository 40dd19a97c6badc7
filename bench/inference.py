"""Predictions: a million rows, and one, beside PyTorch, JAX and onnxruntime.

    python bench/inference.py [--rounds 5] [--only digits] [--output FILE] [--readme]

Everybody predicts the networks of ``compare.py`` from the same weights, float32, from a NumPy
array to a NumPy array, and must agree.  fastmlp goes through the public ``predict_proba``
(``predict`` for regression) with all its checks, once over all rows; the others get rows in chunks
that suit their caches, PyTorch compiled and JAX jitted for exactly that many.  Interleaved, best of
the rounds, each after a pause in which the threads of the one before go to sleep.  The share is the
network's products over the measured FMA rate of the threads' cores.
"""

import argparse
import json
import time
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
from compare import PAUSE, WORKLOADS, initial_weights
from machine import describe, fma_rate
from readme import put_into_readme

import fastmlp
from fastmlp.onnx import to_onnx

ROWS, MOST_BYTES = 2**20, 2**30  # of samples
CHUNK = 2**13
CALLS = 2000  # of one row


def fitted(workload, n_threads):
    """fastmlp's estimator with the weights that all others get."""
    kind = fastmlp.MLPRegressor if workload.classes is None else fastmlp.MLPClassifier
    X, y = workload.data("float32")
    if workload.classes:
        y = np.arange(len(X)) % workload.classes
    model = kind(
        hidden_layer_sizes=workload.widths[1:-1], activation=workload.activation, max_iter=1,
        n_threads=n_threads, random_state=0,
    ).fit(X[:1000], y[:1000])  # fmt: skip
    for i, (W, b) in enumerate(initial_weights(workload, np.float32)):
        model.coefs_[i], model.intercepts_[i] = W, b
    return model


def in_chunks(predict):
    """Predict rows chunk by chunk, into one array."""

    def run(X):
        if len(X) < CHUNK:
            return predict(X)
        first = predict(X[:CHUNK])
        out = np.empty((len(X), first.shape[1]), first.dtype)
        out[:CHUNK] = first
        for start in range(CHUNK, len(X), CHUNK):
            out[start : start + CHUNK] = predict(X[start : start + CHUNK])
        return out

    return run


def with_pytorch(workload, n_threads):
    import torch

    activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[workload.activation]
    layers = []
    for W, b in initial_weights(workload, np.float32):
        layer = torch.nn.Linear(*W.shape)
        layer.weight.data, layer.bias.data = torch.from_numpy(W.T.copy()), torch.from_numpy(b)
        layers += [layer, activation()]
    last = {None: [], 2: [torch.nn.Sigmoid()]}.get(workload.classes, [torch.nn.Softmax(dim=1)])
    net = torch.compile(torch.nn.Sequential(*layers[:-1], *last), dynamic=False)

    @torch.inference_mode()
    def predict(X):
        return net(torch.from_numpy(X)).numpy()

    def run(X):
        torch.set_num_threads(n_threads)
        return predict(X) if len(X) < CHUNK else whole(X)

    whole = in_chunks(predict)
    return run


def with_jax(workload, n_threads):
    import jax

    parameters = initial_weights(workload, np.float32)
    last = {None: lambda z: z, 2: jax.nn.sigmoid}.get(workload.classes, jax.nn.softmax)

    @jax.jit
    def predict(X):
        a = X
        for W, b in parameters[:-1]:
            a = getattr(jax.nn, workload.activation)(a @ W + b)
        return last(a @ parameters[-1][0] + parameters[-1][1])

    return in_chunks(lambda X: np.asarray(predict(X)))


def with_onnxruntime(workload, n_threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    model = to_onnx(fitted(workload, 1)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    name, output = session.get_inputs()[0].name, session.get_outputs()[-1].name

    def predict(X):
        found = session.run([output], {name: X})[0]
        return found if workload.classes != 2 else found[:, 1:]

    return in_chunks(predict)


def with_fastmlp(workload, n_threads):
    model = fitted(workload, n_threads)
    if workload.classes is None:
        return lambda X: model.predict(X).reshape(len(X), -1)
    return lambda X: (
        model.predict_proba(X)[:, 1:] if workload.classes == 2 else model.predict_proba(X)
    )


LIBRARIES = {
    "fastmlp": with_fastmlp, "PyTorch compiled": with_pytorch, "JAX": with_jax,
    "onnxruntime": with_onnxruntime,
}  # fmt: skip


def best_seconds(libraries, X, rounds, calls=1):
    """{library: least seconds of a call}, interleaved."""
    best = dict.fromkeys(libraries, np.inf)
    for _ in range(rounds):
        for name, predict in libraries.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            for _ in range(calls):
                predict(X)
            best[name] = min(best[name], (time.perf_counter() - start) / calls)
    return best


def measure(workload, n_threads, rounds, n_cores):
    """Seconds of all rows, and of one row, by each library."""
    n = min(ROWS, MOST_BYTES // (4 * workload.widths[0]) // CHUNK * CHUNK)
    X = np.random.default_rng(0).standard_normal((n, workload.widths[0]), dtype=np.float32)
    libraries = {
        name: make(workload, n_threads)
        for name, make in LIBRARIES.items()
        if name != "JAX" or n_threads == n_cores  # it takes what there is
    }
    for rows in (X[:CHUNK], X[:1]):
        expected = libraries["fastmlp"](rows)
        for predict in libraries.values():
            np.testing.assert_allclose(predict(rows), expected, rtol=2e-3, atol=2e-5)
    return n, best_seconds(libraries, X, rounds), best_seconds(libraries, X[:1], rounds, CALLS)


def table(report):
    """Markdown, for people."""
    machine, others = report["machine"], [name for name in LIBRARIES if name != "fastmlp"]
    lines = [
        f"Predictions, float32, on {machine['cores']} cores of {machine['cpu']}. The others' "
        "columns are how many times longer they take; one row is in microseconds a call.",
        "",
        f"| workload | threads | rows | fastmlp | of FMA rate | {' | '.join(others)} | one row: "
        "fastmlp | onnxruntime |",
        "|---" * (7 + len(others)) + "|",
    ]
    for row in report["rows"]:
        seconds, one = row["seconds"], row["seconds of one row"]
        ours = seconds["fastmlp"]
        cells = [f"{seconds[name] / ours:.1f}" if name in seconds else "-" for name in others]
        cells += [f"{1e6 * one[name]:.0f}" for name in ("fastmlp", "onnxruntime")]
        lines.append(
            f"| {row['workload']} | {row['threads']} | {row['rows']} | {1e3 * ours:.0f} ms | "
            f"{row['share of FMA rate']:.0%} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[w.name for w in WORKLOADS])
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    machine = describe()
    report = {"machine": machine, "rows": []}
    for n_threads in sorted({1, machine["cores"]}):
        rate = fma_rate("float32", n_threads)
        for workload in WORKLOADS:
            if arguments.only and workload.name not in arguments.only:
                continue
            n, many, one = measure(workload, n_threads, arguments.rounds, machine["cores"])
            flop = 2.0 * n * sum(a * b for a, b in pairwise(workload.widths))
            rival = min(seconds for name, seconds in many.items() if name != "fastmlp")
            report["rows"].append({
                "workload": workload.name, "widths": workload.text, "threads": n_threads, "rows": n,
                "seconds": many, "seconds of one row": one,
                "share of FMA rate": flop / many["fastmlp"] / rate,
                "best of the others / fastmlp": rival / many["fastmlp"],
                "onnxruntime / fastmlp, one row": one["onnxruntime"] / one["fastmlp"],
            })  # fmt: skip
            row = report["rows"][-1]
            print(
                f"{workload.name:12} {n_threads} thread(s), {n} rows: "
                f"{1e3 * many['fastmlp']:.1f} ms, {row['share of FMA rate']:.0%} of the FMA rate, "
                + ", ".join(f"{name} {t / many['fastmlp']:.2f}" for name, t in many.items())
                + "; one row: "
                + ", ".join(f"{name} {1e6 * t:.1f} us" for name, t in one.items()),
                flush=True,
            )
    print(f"\n{table(report)}")
    if arguments.readme:
        put_into_readme(table(report), "inference")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
