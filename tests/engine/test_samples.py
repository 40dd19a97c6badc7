"""Samples apart from engines: shared, cut to rows, and evaluated again at no cost."""

import gc
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from problems import ENGINES, make_network, make_problem
from scipy import sparse

from fastmlp import MLPClassifier
from fastmlp.engine import get_engine, place
from fastmlp.objective import Objective
from fastmlp.optimizers import Optimizer

N, BATCH = 30, 12
X, Y = make_problem("log_loss", N, 5, 3)
WEIGHT = np.random.default_rng(2).uniform(0.5, 2.0, N)
FORMS = {"dense": np.asarray, "sparse": sparse.csr_matrix, "streamed": np.asarray}
on_each = pytest.mark.parametrize(
    ("device", "data"),
    [(device, form) for device in ENGINES for form in FORMS
     if (device, form) != ("cpu", "streamed")],
    indirect=True,
)  # fmt: skip


@pytest.fixture
def data(request, device, monkeypatch):
    """Samples of each form, and a device that takes them in this form."""
    if request.param == "streamed":
        monkeypatch.setattr("fastmlp.engine.cuda.samples._FREE_SHARE", 0.0)
        monkeypatch.setattr("fastmlp.engine.cuda.samples._CHUNK_BYTES", BATCH * 40)
    return FORMS[request.param](X)


def make_engine(device, hidden=7, batch_size=BATCH):
    network, objective = make_network((5, hidden, 3), "tanh", "log_loss")
    engine = get_engine(
        device, network, dtype="float64", objective=objective, alpha=0.1 * hidden,
        batch_size=batch_size, optimizer=Optimizer("sgd", (0.9, 0.0, 0.0)),
    )  # fmt: skip
    engine.set_parameters(np.linspace(-1, 1, network.n_parameters))
    return engine


def placed(device, X, y=Y, weight=WEIGHT, **options):
    _, objective = make_network((5, 3), "tanh", "log_loss")
    return place(device, X, y, weight, dtype="float64", objective=objective, **options)


def use(engine, samples):
    """All that an engine makes of samples."""
    engine.load(samples)
    losses = []
    for _ in range(2):
        losses.append(engine.run_epoch(np.arange(N)[::-1].copy(), np.full(-(-N // BATCH), 0.01)))
        losses.append(engine.evaluate(samples))
    loss, gradient = engine.loss_and_gradient()
    outputs = engine.predict(samples).ravel()
    return np.concatenate([losses, [loss], gradient, engine.get_parameters(), outputs])


@on_each
def test_engines_share_samples(device, data):
    """Those of a search, at once in threads, as if each had samples of its own."""
    widths = (7, 4, 7)
    expected = [use(make_engine(device, n), placed(device, data)) for n in widths]
    samples = placed(device, data)
    assert (samples.n_samples, samples.n_features) == X.shape
    engines = [make_engine(device, n) for n in widths]
    with ThreadPoolExecutor(len(widths)) as pool:
        got = list(pool.map(use, engines, [samples] * len(widths)))
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


@on_each
def test_an_epoch_in_one_batch_leaves_the_natural_order_alone(device, data):
    engine, samples = make_engine(device, batch_size=N), placed(device, data)
    engine.load(samples)
    before = engine.evaluate(samples)
    parameters = engine.get_parameters()
    engine.run_epoch(np.arange(N)[::-1].copy(), np.ones(1))
    assert engine.evaluate(samples) != before
    engine.set_parameters(parameters)
    assert engine.evaluate(samples) == before


@on_each
def test_some_rows(device, data):
    rows = np.array([7, 3, 3, 29, 0])
    engine = make_engine(device)
    samples = placed(device, data, rows=rows)
    other = placed(device, data[rows], Y[rows], WEIGHT[rows])
    assert samples.n_samples == len(rows)
    assert engine.evaluate(samples) == engine.evaluate(other)
    np.testing.assert_array_equal(engine.predict(samples), engine.predict(data[rows]))


@on_each
def test_samples_end_with_their_last_reference(device, data):
    """The engines that used them hold on to them only while they are loaded."""
    engine, samples = make_engine(device), placed(device, data)
    use(engine, samples)
    reference = weakref.ref(samples)
    gc.disable()
    try:
        del samples
        assert reference() is not None
        engine.unload()
        assert reference() is None
    finally:
        gc.enable()


def test_evaluating_again_allocates_nothing():
    n = 100_000
    large, y = make_problem("log_loss", n, 5, 3)
    samples = placed("cpu", large, y, np.ones(n))
    engine = make_engine("cpu")
    engine.evaluate(samples)
    tracemalloc.start()
    engine.evaluate(samples)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000


def test_evaluating_again_copies_nothing_to_the_gpu(monkeypatch):
    from simt import EMULATED_SIZES, EmulatedDevice

    calls = []

    def counted(name):
        method = getattr(EmulatedDevice, name)
        return lambda *args: (calls.append(name), method(*args))[1]

    for name in ("empty", "upload", "write", "send", "pinned"):
        monkeypatch.setattr(EmulatedDevice, name, counted(name))
    monkeypatch.setattr("fastmlp.engine.cuda.device.open_device", EmulatedDevice)
    sizes = dict.fromkeys(("float32", "float64"), EMULATED_SIZES)
    monkeypatch.setattr("fastmlp.engine.cuda.tiles.SIZES", sizes)
    engine, samples = make_engine("cuda"), placed("cuda", X)
    first = engine.evaluate(samples)
    assert calls
    calls.clear()
    assert engine.evaluate(samples) == first
    assert not calls


def test_what_does_not_fit_is_refused(device):
    network, objective = make_network((5, 3), "tanh", "log_loss")
    samples = placed(device, X)
    engine = get_engine(device, network, dtype="float64")
    assert engine.predict(samples).shape == (N, 3)
    for use_samples in (engine.load, engine.evaluate):
        with pytest.raises(ValueError, match="made with an objective"):
            use_samples(samples)
    engine = make_engine(device)
    others = (
        place(device, X, dtype="float64", objective=objective),
        place(device, X, Y, dtype="float32", objective=objective),
        place(device, X, Y, dtype="float64", objective=Objective("brier", 3)),
    )
    for other in others:
        with pytest.raises(ValueError, match="no targets, or another dtype or objective"):
            engine.load(other)
    with pytest.raises(ValueError, match="device='tpu' is not supported"):
        place("tpu", X, dtype="float64")


def test_a_fit_with_validation_allocates_nothing_after_its_first_epoch():
    """But for a few numbers per sample of the validation set: neither outputs nor workspace."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20_000, 20)), rng.integers(0, 40, 20_000)
    peaks, before = [], [0]

    def rate(step, steps_per_epoch, max_iter):
        if step % steps_per_epoch == 0:  # an epoch begins
            now, peak = tracemalloc.get_traced_memory()
            peaks.append(peak - before[-1])
            before.append(now)
            tracemalloc.reset_peak()
        return 0.001

    model = MLPClassifier((30,), learning_rate=rate, max_iter=6, batch_size=2000, random_state=0,
                          n_threads=1, n_iter_no_change=np.inf)  # fmt: skip
    tracemalloc.start()
    try:
        model.fit(X, y, X_val=X[:10_000], y_val=y[:10_000])
    finally:
        tracemalloc.stop()
    outputs = 10_000 * 40 * X.itemsize
    assert len(peaks) == 6
    assert max(peaks[:2]) > outputs
    assert max(peaks[2:]) < outputs / 8
