"""Threads: the same bits for every number, limits, memory, and many fits at once."""

import concurrent.futures
import gc
import os
import subprocess
import sys
import time
import tracemalloc
import weakref

import numpy as np
import pytest
import reference
from engines import FixedCount, assert_close, each_once
from problems import CONSTANTS, make_network, make_problem, place_for
from processes import run_python
from scipy import sparse

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.dropout import Dropout
from fastmlp.engine.cpu import CpuEngine, threads
from fastmlp.engine.cpu.layout import Layout
from fastmlp.engine.cpu.tuner import Tuner, run_trial
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.optimizers import N_NUMBERS, OPTIMIZERS, Optimizer


class SlowOnTrial:
    """In the tuner's place: always another number on trial, in epochs that seemed to be shorter."""

    def __init__(self, limit, **_):
        self.current, self.seconds, self.lost, self.reports = 1, 0.0, 0.0, []

    def choose(self):
        return 2 if self.seconds else 1

    def report(self, n_threads, seconds):
        self.reports.append((n_threads, seconds))
        self.seconds = 1e-9


def train(network, objective, X, y, dtype, n_threads, batch_size, rule, weight=None):
    engine = CpuEngine(
        network, dtype=dtype, objective=objective, alpha=0.1,
        optimizer=Optimizer(rule, CONSTANTS[rule]), batch_size=batch_size, n_threads=n_threads,
    )  # fmt: skip
    engine.load(place_for(engine, X, y, weight))
    engine.set_parameters(np.random.default_rng(1).normal(size=network.n_parameters) * 0.3)
    n_samples = X.shape[0]
    rates = np.full(-(-n_samples // batch_size), 1e-3)
    losses = [engine.run_epoch(np.arange(n_samples), rates) for _ in range(3)]
    losses += [engine.loss_and_gradient()[0], engine.evaluate(place_for(engine, X, y, weight))]
    return losses, engine.get_parameters(), engine.loss_and_gradient()[1], engine.predict(X)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("loss", "rule"), each_once(LOSSES, OPTIMIZERS))
@pytest.mark.parametrize("widths", [(7,), (5, 9), (37, 53, 7), (20, 130, 40, 5)], ids=str)
def test_same_bits_for_every_number_of_threads(no_thresholds, widths, loss, rule, dtype):
    activation = sorted(ACTIVATIONS)[len(widths) % len(ACTIVATIONS)]
    n_outputs = 3 if LOSSES[loss].per_row else 2
    network, objective = make_network((*widths, n_outputs), activation, loss)
    X, y = make_problem(loss, 150, widths[0], n_outputs)
    X = X.astype(dtype)
    y = y if LOSSES[loss].per_row else y.astype(dtype)
    weight = np.random.default_rng(2).uniform(0.5, 2, 150).astype(dtype)
    for batch_size in (1, 40, 150):
        for data in (X, sparse.csr_matrix(X)):
            expected = train(network, objective, data, y, dtype, 1, batch_size, rule, weight)
            for n_threads in (2, 3, 5):
                got = train(network, objective, data, y, dtype, n_threads, batch_size, rule, weight)
                for mine, other in zip(got, expected, strict=True):
                    np.testing.assert_array_equal(mine, other)


def test_helpers_between_epochs(no_thresholds, monkeypatch):
    """Whatever happens between epochs, and however long it takes, bits are those of one thread."""
    network, objective = make_network((12, 24, 3), "relu", "log_loss")
    X, y = make_problem("log_loss", 300, 12, 3)
    sent = []
    put = threads._Helper.send
    monkeypatch.setattr(
        threads._Helper, "send", lambda helper, *task: (sent.append(1), put(helper, *task))
    )

    def make_engine(n_threads):
        engine = CpuEngine(
            network, dtype="float64", objective=objective, batch_size=50,
            optimizer=Optimizer("adam", (0.9, 0.999, 1e-8)), n_threads=n_threads,
        )  # fmt: skip
        engine.load(place_for(engine, X, y))
        engine.set_parameters(np.random.default_rng(1).normal(size=network.n_parameters) * 0.3)
        return engine

    engines = [make_engine(n_threads) for n_threads in (1, 3)]
    rng = np.random.default_rng(3)
    order, rates = np.arange(300), np.full(6, 1e-3)
    actions = [
        lambda engine: engine.predict(X),
        lambda engine: engine.evaluate(place_for(engine, X, y)),
        lambda engine: engine.loss_and_gradient()[1],
        lambda engine: engine.run_epoch(order[::-1].copy(), 2 * rates),
        lambda engine: engine.load(place_for(engine, X, y)),
        lambda engine: None,
    ]
    for action in rng.integers(0, len(actions), 200):
        pause = rng.choice([0, 0, 1e-4, 1e-3])
        for _ in range(3):
            rng.shuffle(order)
            mine, other = (engine.run_epoch(order, rates) for engine in engines)
            assert mine == other
            time.sleep(pause)
        mine, other = (actions[action](engine) for engine in engines)
        np.testing.assert_array_equal(mine, other)
        np.testing.assert_array_equal(*(engine.get_parameters() for engine in engines))
    sent.clear()
    for _ in range(200):
        engines[1].run_epoch(order, rates)
    assert len(sent) < 2 * 200  # or no helper was ever found standing by


@pytest.fixture
def busy_processors():
    """Two other processes that never pause, so that threads lose their processors at any time."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for process in spinning:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("rule", "max_grad_norm"), [*((rule, None) for rule in OPTIMIZERS), ("adam", 0.1)]
)
def test_batches_of_no_weight_keep_nobody_waiting(
    no_thresholds, busy_processors, monkeypatch, rule, max_grad_norm
):
    """Wherever they are, in epochs the order of which changes in place."""
    monkeypatch.setattr(threads, "_LONGEST_WAIT", 30.0)
    network, objective = make_network((5, 9, 1), "relu", "squared_error")
    rng = np.random.default_rng(0)
    # 20 rows in steps of 3, the last of 2: every second of them has no weight more often than not
    X, y, weight = rng.normal(size=(20, 5)), rng.normal(size=(20, 1)), rng.integers(0, 4, 20) // 3
    order, rates = np.arange(20), np.full(7, 1e-4)
    engines = []
    for n_threads in (1, 2):
        engine = CpuEngine(
            network, dtype="float64", objective=objective, batch_size=3, n_threads=n_threads,
            optimizer=Optimizer(rule, CONSTANTS[rule], 0, max_grad_norm),
        )  # fmt: skip
        engine.load(place_for(engine, X, y, weight.astype(float)))
        engine.set_parameters(np.random.default_rng(1).normal(size=network.n_parameters) * 0.3)
        engines.append(engine)
    for _ in range(100):
        rng.shuffle(order)
        mine, other = (engine.run_epoch(order, rates) for engine in engines)
        assert mine == other
    np.testing.assert_array_equal(*(engine.get_parameters() for engine in engines))


def test_a_helper_does_not_read_the_next_order(no_thresholds, busy_processors, monkeypatch):
    """The batch passed over is so long that a helper is still at it when the next epoch begins."""
    monkeypatch.setattr(threads, "_LONGEST_WAIT", 10.0)
    n = 200_000
    network, objective = make_network((1, 1), "relu", "squared_error")
    engine = CpuEngine(
        network, dtype="float64", objective=objective, batch_size=n // 2, n_threads=2,
        optimizer=Optimizer("sgd", CONSTANTS["sgd"]),
    )  # fmt: skip
    weight = np.repeat([1.0, 0.0], n // 2)
    engine.load(place_for(engine, np.ones((n, 1)), np.ones((n, 1)), weight))
    order, rates = np.arange(n), np.full(2, 1e-3)
    for _ in range(30):
        engine.run_epoch(order, rates)
        order[:] = order[::-1].copy()


def test_a_wait_without_end_is_reported(no_thresholds, monkeypatch):
    """A helper that never comes to its standby flag, and one that never answers."""
    monkeypatch.setattr(threads, "_LONGEST_WAIT", 0.5)
    network, objective = make_network((5, 9, 1), "relu", "squared_error")
    engine = CpuEngine(
        network, dtype="float64", objective=objective, batch_size=10, n_threads=2,
        optimizer=Optimizer("sgd", CONSTANTS["sgd"]),
    )  # fmt: skip
    engine.load(place_for(engine, np.ones((20, 5)), np.ones((20, 1))))
    order, rates = np.arange(20), np.full(2, 1e-3)
    expected = engine.run_epoch(order, rates)
    monkeypatch.setattr(threads.Standby, "settle", lambda standby, limit: False)
    with pytest.raises(RuntimeError, match=r"did not end within 0 s \(flags \[.*n_threads=1"):
        engine.run_epoch(order, rates)
    team = threads.Team()

    def call(thread):
        time.sleep(2.0 * thread)
        return 0.0

    aborted = []
    with pytest.raises(RuntimeError, match=r"\(all at step 7\)"):
        team.run(
            call, 2, supervised=False, standby=None, stop=lambda: None,
            abort=lambda: aborted.append(1), describe=lambda: "all at step 7",
        )  # fmt: skip
    assert aborted
    assert np.isfinite(expected)


def test_micro_batches_and_threads_together(no_thresholds, monkeypatch):
    monkeypatch.setattr(no_thresholds, "_MICRO_BATCH_ROWS", 64)
    network, objective = make_network((9, 20, 3), "tanh", "log_loss")
    X, y = make_problem("log_loss", 500, 9, 3)
    expected = train(network, objective, X, y, "float64", 1, 300, "adam")
    for n_threads in (2, 4):
        got = train(network, objective, X, y, "float64", n_threads, 300, "adam")
        for mine, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("widths", "batch_size", "n_parts"),
    [((9, 20, 3), 63, 1), ((9, 20, 3), 64, 2), ((90, 300, 3), 64, 1), ((9, 20, 3), 512, 4),
     ((5, 520, 2), 600, 4), ((9, 1), 130, 2)],
    ids=str,
)  # fmt: skip
def test_gradient_in_parts(no_thresholds, monkeypatch, widths, batch_size, n_parts, dtype):
    """However many parts, and batches and micro-batches that fill some of them only."""
    n_outputs = widths[-1]
    loss = "log_loss" if n_outputs > 1 else "squared_error"
    network, objective = make_network(widths, "tanh", loss)
    layout = Layout(network, dtype)
    assert layout.n_parts(batch_size, sparse=False) == n_parts
    assert layout.n_parts(batch_size, sparse=True) == 1
    n_samples = 2 * batch_size + 5
    X, y = make_problem(loss, n_samples, widths[0], n_outputs)
    X, y = X.astype(dtype), y if n_outputs > 1 else y.astype(dtype)
    for micro_batch in (1024, batch_size // 2 + 3):
        monkeypatch.setattr(no_thresholds, "_MICRO_BATCH_ROWS", micro_batch)
        expected = train(network, objective, X, y, dtype, 1, batch_size, "adam")
        _, gradient = reference.objective(
            expected[1], widths, "tanh", loss, X, y, 0.1, None, np.finfo(dtype).eps
        )
        assert_close(expected[2], gradient, dtype)
        for n_threads in (2, 3, 4, 8):
            got = train(network, objective, X, y, dtype, n_threads, batch_size, "adam")
            for mine, other in zip(got, expected, strict=True):
                np.testing.assert_array_equal(mine, other)


def test_estimators_give_the_same_bits():
    rng = np.random.RandomState(0)
    X, y = rng.normal(size=(3000, 30)), rng.normal(size=3000)
    models = [
        MLPRegressor(max_iter=12, random_state=0, n_threads=n, tol=0, n_iter_no_change=100)
        for n in (1, 2, None)
    ]
    with pytest.warns(UserWarning, match="Maximum iterations"):
        fitted = [model.fit(X, y) for model in models]
    for model in fitted[1:]:
        np.testing.assert_array_equal(model.coefs_[0], fitted[0].coefs_[0])
        assert model.loss_curve_ == fitted[0].loss_curve_


def test_limits(monkeypatch):
    assert threads.available_threads(3) == 3
    monkeypatch.setattr(threads, "n_processors", lambda: 8)
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    assert threads.available_threads(None) == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.available_threads(None) == 2
    with pytest.raises(ValueError, match="'n_threads' parameter"):
        MLPClassifier(n_threads=0).fit([[0.0], [1.0]], [0, 1])


def test_joblib_threads_get_one_each():
    import joblib

    inside = joblib.Parallel(n_jobs=2, backend="threading")(
        joblib.delayed(threads.available_threads)(None) for _ in range(2)
    )
    assert inside == [1, 1]


def test_tuner_finds_the_fastest_and_notices_changes():
    seconds = {1: 4.0, 2: 3.0, 4: 2.0, 6: 5.0}
    tuner = Tuner(6, first=1)
    chosen = []
    for epoch in range(400):
        if epoch == 200:
            seconds = {1: 1.0, 2: 3.0, 4: 2.0, 6: 5.0}
        n_threads = tuner.choose()
        chosen.append(n_threads)
        tuner.report(n_threads, seconds[n_threads])
    assert set(chosen[:10]) == {1, 2, 4, 6}
    assert chosen[150:200].count(4) >= 45
    assert chosen[350:].count(1) >= 45


def test_tuner_tries_others_as_soon_as_epochs_take_longer():
    tuner = Tuner(2, first=1)
    for _ in range(300):
        n_threads = tuner.choose()
        tuner.report(n_threads, {1: 2.0, 2: 1.0}[n_threads])
    assert (tuner.current, tuner.choose()) == (2, 2)
    tuner.report(2, 3.0)
    assert tuner.choose() == 1


def test_trials_take_a_small_share_of_the_time():
    """Beside a neighbour that never pauses, two threads wait as long as ten epochs take."""
    tuner = Tuner(2, first=1)
    seconds = {1: 0.0, 2: 0.0}

    def run(n_threads, first, stop, loss):
        took = 0.1 * (stop - first) if n_threads == 1 else 10.0
        seconds[n_threads] += took
        return loss, took

    for _ in range(1000):
        if tuner.choose() == 2:
            run_trial(tuner, 2, 2, 10, run)
        else:
            tuner.report(1, run(1, 0, 10, 0.0)[1])
    assert 0 < seconds[2] < 0.15 * seconds[1]


@pytest.mark.parametrize("grace", [0.0, 1e9])
def test_an_epoch_on_trial_ends_with_the_usual_number(no_thresholds, monkeypatch, grace):
    """Whatever takes which of its steps, the bits are those of an epoch in one piece."""
    network, objective = make_network((7, 9, 3), "tanh", "log_loss")
    X, y = make_problem("log_loss", 110, 7, 3)
    results = []
    monkeypatch.setattr("fastmlp.engine.cpu.tuner._GRACE", grace)
    for tuner in (FixedCount, SlowOnTrial):
        monkeypatch.setattr(no_thresholds, "Tuner", tuner)
        engine = CpuEngine(
            network, dtype="float64", objective=objective, alpha=0.1, batch_size=10, n_threads=2,
            dropout=Dropout((0.2,), 1), optimizer=Optimizer("adam", (0.9, 0.999, 1e-8)),
        )  # fmt: skip
        engine.load(place_for(engine, X, y))
        engine.set_parameters(network.initialise(np.random.RandomState(0), np.dtype(float)))
        losses = [engine.run_epoch(np.arange(110), np.full(11, 1e-2)) for _ in range(4)]
        results.append((losses, engine.get_parameters().tobytes(), engine.n_steps))
        if tuner is SlowOnTrial:
            assert [n for n, _ in engine._tuner.reports] == [1, 2, 2, 2]
    assert results[0] == results[1]


def test_an_engine_ends_with_its_last_reference(no_thresholds):
    """Not when garbage is collected at some time: it holds threads and memory."""
    network, objective = make_network((7, 9, 3), "relu", "log_loss")
    X, y = make_problem("log_loss", 110, 7, 3)
    engine = CpuEngine(
        network, dtype="float64", objective=objective, batch_size=10, n_threads=2,
        optimizer=Optimizer("adam", (0.9, 0.999, 1e-8)),
    )  # fmt: skip
    engine.load(place_for(engine, X, y))
    engine.set_parameters(network.initialise(np.random.RandomState(0), np.dtype(float)))
    engine.run_epoch(np.arange(110), np.full(11, 1e-2))
    engine.evaluate(place_for(engine, X, y))
    engine.predict(X)
    engine._team.settle(str, str)
    engine._team._recall()
    reference = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        end = time.monotonic() + 10  # until the helper has let go of its last task
        while reference() is not None and time.monotonic() < end:
            time.sleep(0.01)
        assert reference() is None
    finally:
        gc.enable()


def test_an_epoch_allocates_nothing():
    """Neither Python objects that grow with the batches, nor array memory."""
    network, objective = make_network((20, 50, 3), "relu", "log_loss")
    X, y = make_problem("log_loss", 20000, 20, 3)
    engine = CpuEngine(
        network, dtype="float64", objective=objective, batch_size=10, n_threads=1,
        optimizer=Optimizer("adam", (0.9, 0.999, 1e-8)),
    )  # fmt: skip
    engine.load(place_for(engine, X, y))
    order, rates = np.arange(20000), np.full(2000, 1e-3)
    engine.run_epoch(order, rates)
    tracemalloc.start()
    engine.run_epoch(order, rates)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # the optimizer's numbers for each step, and call overhead
    assert peak < (N_NUMBERS + 4) * rates.nbytes + 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space with Linux's rlimit")
def test_memory_mapped_data_is_not_copied(tmp_path):
    """A 1 GB file trains in a process that could not hold a second copy of it.

    Private memory is limited to 700 MB over what the imports take; mapping a file does not count.
    """
    path = tmp_path / "X.npy"
    data = np.lib.format.open_memmap(path, "w+", np.float32, (1_000_000, 250))
    for start in range(0, len(data), 100_000):
        data[start : start + 100_000] = np.arange(250) % 7
    del data
    run_python(
        """
        import resource, sys, numpy as np
        import fastmlp
        X = np.load(sys.argv[1], mmap_mode="r")
        y = np.arange(len(X)) % 2
        fastmlp.MLPClassifier((4,), max_iter=1).fit(np.ones((9, 3), np.float32), np.arange(9) % 2)
        used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + 700 * 2**20, used + 700 * 2**20))
        try:
            np.ones(X.shape, np.float32)
            raise SystemExit("the limit does not bite")
        except MemoryError:
            pass
        model = fastmlp.MLPClassifier((4,), max_iter=1, batch_size=5000).fit(X, y)
        assert model.predict(X).shape == y.shape
        """,
        path,
    )


def test_processors_are_shared_out_among_fits():
    class Fit:
        pass

    budget, one, other, third = threads.ThreadBudget(), Fit(), Fit(), Fit()
    assert budget.enter(one, 4) == 4
    assert budget.enter(other, 4) == 2
    assert budget.enter(third, 2) == 1
    budget.leave(one)
    budget.leave(other)
    del third  # wherever it was
    assert budget.enter(other, 4) == 2  # one may only be between two epochs
    time.sleep(2 * threads._LINGERING)
    assert budget.enter(other, 4) == 4


def test_many_fits_at_once_share_the_processors():
    """Spinning threads that never gave way would take many times the fair share."""
    rng = np.random.RandomState(0)
    X, y = rng.normal(size=(4000, 40)), rng.normal(size=4000)

    def job():
        model = MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=15, random_state=0, tol=0)
        model.set_params(n_iter_no_change=100).fit(X, y)

    def clock(n_jobs):
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(n_jobs) as pool:
            for future in [pool.submit(job) for _ in range(n_jobs)]:
                future.result()
        return time.perf_counter() - start

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job()
        alone = min(clock(1) for _ in range(3))
        # the fair share, and as much again for a noisy machine
        assert min(clock(2) for _ in range(3)) < 2 * 2.3 * alone
        assert min(clock(8) for _ in range(2)) < 2 * 9 * alone * max(1, 2 / os.cpu_count())
