"""Ctrl-C: obeyed at once wherever it comes, and nothing is broken afterwards."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from models import fit
from processes import run_python

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp._interrupts import heard_by, undisturbed
from fastmlp.training.hooks import Limit

RNG = np.random.RandomState(0)
X = RNG.normal(size=(20000, 50))
TARGET = X[:, 0] * X[:, 1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends signals as POSIX does")


class CtrlC:
    """Comes ``delay`` seconds after the block begins; tells how long the block took to end."""

    def __init__(self, delay):
        self._timer = threading.Timer(delay, self._send)

    def _send(self):
        self._sent = time.perf_counter()
        os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self):
        self._timer.start()
        return self

    def __exit__(self, *exception):
        self.seconds = time.perf_counter() - self._sent


def test_what_must_not_be_disturbed_goes_on_while_the_caller_is_interrupted():
    ended = threading.Event()

    def work(seconds):
        time.sleep(seconds)
        ended.set()
        return seconds

    assert undisturbed(work, 0.01) == 0.01
    with pytest.raises(ZeroDivisionError):
        undisturbed(lambda: 1 / 0)
    ended.clear()
    ctrl_c = CtrlC(0.2)
    with pytest.raises(KeyboardInterrupt), ctrl_c:
        undisturbed(work, 1.5)
    assert ctrl_c.seconds < 1.0
    assert not ended.is_set()
    assert ended.wait(5)


class Told:
    """What hears of Ctrl-C, and how often it did."""

    def __init__(self):
        self.n = 0

    def __call__(self):
        self.n += 1


def send_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the handler has run


def test_a_listener_hears_instead_of_an_error():
    told = Told()
    with heard_by(told):
        send_ctrl_c()
        send_ctrl_c()
        assert told.n == 2
    with pytest.raises(KeyboardInterrupt):
        send_ctrl_c()
    assert told.n == 2


def test_a_listener_hears_before_an_error():
    told = Told()
    for n in (1, 2):
        with heard_by(told, raises=True):
            with pytest.raises(KeyboardInterrupt):
                send_ctrl_c()
            assert told.n == n
            with pytest.raises(KeyboardInterrupt):
                send_ctrl_c()
            assert told.n == n
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_users_handler_stays():
    def leave(number, frame):
        raise SystemExit

    told, limit = Told(), Limit()
    signal.signal(signal.SIGINT, leave)
    try:
        with pytest.raises(SystemExit), heard_by(told):
            send_ctrl_c()
        with pytest.raises(SystemExit), limit.beside_threads() as heard:
            send_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is leave
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert not told.n
    assert not heard
    assert limit.interrupted  # whatever it was that ended the block


class Interrupting:
    """What Ctrl-C finds in its destructor."""

    def __del__(self):
        send_ctrl_c()


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_destructor_cannot_swallow_ctrl_c(solver, monkeypatch):
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", lambda event: ignored.append(event.exc_type))

    class Callback:
        max_propagation_depth = None

        def setup(self, estimator, context): ...
        def teardown(self, estimator, context): ...
        def on_fit_task_begin(self, estimator, context): ...

        def on_fit_task_end(self, estimator, context):
            if context.task_name != "fit" and not ignored:
                Interrupting()

    model = MLPRegressor(
        hidden_layer_sizes=(5,), solver=solver, max_iter=50, tol=0.0, n_iter_no_change=100
    )
    with pytest.warns(UserWarning, match=r"Training interrupted by user\."):
        model.set_callbacks(Callback()).fit(X[:99], TARGET[:99])
    assert ignored == [KeyboardInterrupt]
    assert (model.n_iter_, model.stop_reason_) == (1, "interrupted")


def test_there_is_no_ctrl_c_in_other_threads():
    handlers = []

    def work():
        with heard_by(Told()):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


ENDLESS = """
    import gc, os, signal, sys, threading, time, warnings
    import numpy as np
    from fastmlp import MLPClassifier, MLPEnsembleClassifier
    from fastmlp.model_selection import GridSearchCV

    warnings.simplefilter(sys.argv[2])
    X = np.random.RandomState(0).randn(90, 6)
    y = (X[:, 0] > 0).astype(int)
    network = MLPClassifier(
        (4,), max_iter=10**8, tol=0.0, n_iter_no_change=10**9, n_threads=2, random_state=0
    )
    model = {
        "search": GridSearchCV(network, {"alpha": [0.1, 0.2, 0.3]}, cv=2, n_jobs=8),
        "restarts": MLPClassifier(**network.get_params() | {"n_restarts": 4}),
        "ensemble": MLPEnsembleClassifier(network, 4, n_threads=2),
        "plain": network,
    }[sys.argv[1]]
    MLPClassifier((4,), tol=1e9, n_iter_no_change=1).fit(X, y).predict(X)

    def interrupt():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    for delay in np.linspace(0.0, 0.05, 20):
        sent = []
        timer = threading.Timer(delay, interrupt)
        try:
            timer.start()
            model.fit(X, y)
        except (KeyboardInterrupt, UserWarning):
            pass
        seconds = time.perf_counter() - sent[0]
        assert seconds < 10, seconds
        while threading.active_count() > 1:  # not even in the background does a fit go on
            assert time.perf_counter() - sent[0] < 20, threading.enumerate()
            time.sleep(0.01)
            gc.collect()
"""


@pytest.mark.parametrize("kind", ["search", "restarts", "ensemble", "plain"])
def test_ctrl_c_ends_every_fit_at_any_moment(kind):
    run_python(ENDLESS, kind, "ignore", timeout=200)


def test_warnings_that_are_errors_do_not_keep_members_running():
    run_python(ENDLESS, "ensemble", "error", timeout=200)


def test_all_restarts_end_within_a_second():
    model = MLPRegressor(
        hidden_layer_sizes=(200, 200), n_restarts=5, max_iter=10**5, tol=0, random_state=0,
        n_iter_no_change=10**5,
    )  # fmt: skip
    fit(MLPRegressor(hidden_layer_sizes=(9,), max_iter=1), X[:99], TARGET[:99])  # compiled
    ctrl_c = CtrlC(1.5)
    with pytest.warns(UserWarning, match=r"Training interrupted by user\.") as caught, ctrl_c:
        model.fit(X, TARGET)
    assert ctrl_c.seconds < 1.0
    assert len(caught) == 1
    assert np.isfinite(model.predict(X[:5])).all()
    assert model.stop_reason_ == "interrupted"


def test_a_loop_of_partial_fit_can_be_left():
    model = MLPClassifier((200,), random_state=0)
    classes = [False, True]
    model.partial_fit(X, TARGET > 0, classes=classes)

    def loop():
        while True:
            model.partial_fit(X, TARGET > 0)

    ctrl_c = CtrlC(0.5)
    with pytest.raises(KeyboardInterrupt), ctrl_c:
        loop()
    assert ctrl_c.seconds < 1.0
    before = [coef.copy() for coef in model.coefs_]
    steps = model.t_
    assert steps % len(X) == 0  # a call that is interrupted leaves the model as it was
    model.partial_fit(X, TARGET > 0)
    assert model.t_ == steps + len(X)
    assert not np.array_equal(model.coefs_[0], before[0])


PROGRAM = """
    import os, signal, sys, threading, time, warnings
    warnings.simplefilter("ignore")
    import numpy as np
    import fastmlp

    X = np.random.RandomState(0).normal(size=(300, 5))
    fit = lambda: fastmlp.MLPRegressor(max_iter=3, random_state=0).fit(X, X[:, 0])
    if sys.argv[1] != "never":
        timer = threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGINT))
        start = time.perf_counter()
        try:
            timer.start()
            if fit().stop_reason_ != "interrupted":
                time.sleep(60)
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            print("late by", time.perf_counter() - start - float(sys.argv[1]), flush=True)
        if sys.argv[2] == "leave":
            sys.exit(3)
    print("loss", fit().loss_)
"""


def run_program(delay, then, **env):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(delay), then]
    start = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | env
    )
    words = done.stdout.split()
    late = float(words[2]) if "late" in words else None
    loss = float(words[-1]) if "loss" in words else None
    return done, late, loss, time.perf_counter() - start


def test_ctrl_c_during_the_first_call_breaks_nothing():
    """At moments all over the start of an engine."""
    _, _, expected, _ = run_program("never", "")
    for delay in (0.005, 0.02, 0.05, 0.1, 0.2):
        done, late, loss, _ = run_program(delay, "go on")
        assert done.returncode == 0, done.stderr
        assert late < 1.0
        assert loss == expected


def test_ctrl_c_during_compilation_is_obeyed_at_once(package):
    env = {"PYTHONPATH": str(package), "FASTMLP_CACHE_DIR": str(package / "cache")}
    done, late, _, seconds = run_program(0.5, "leave", **env)
    assert late < 1.0
    assert done.returncode == 3, done.stderr
    assert "Error" not in done.stderr
    assert seconds < 20
    assert not list((package / "cache").rglob("*.o"))  # it was early enough
    _, _, expected, _ = run_program("never", "")
    _, _, loss, _ = run_program("never", "", **env)
    assert loss == expected
