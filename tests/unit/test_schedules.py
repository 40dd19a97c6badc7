"""Learning-rate schedules: formulas, PyTorch's, and what reaches the engine."""

from itertools import count

import numpy as np
import pytest
from models import fit

from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.engine.cpu import CpuEngine
from fastmlp.schedules import STEP_SCHEDULES, Schedule, learning_rates, plateau

rng = np.random.RandomState(0)
X = rng.normal(size=(70, 4))
TARGET = X[:, 0] - X[:, 1] ** 2
QUICK = {"hidden_layer_sizes": (5,), "random_state": 0, "max_iter": 6, "batch_size": 20}
STEPS = 4  # per epoch
INIT = 0.03
DECAY = {"decay_rate": 0.3, "decay_epochs": 2}


def schedule(name, **more):
    return Schedule(name, INIT, **{"max_iter": 6} | DECAY | more)


def rates(name, n_epochs=6, **more):
    parts = [learning_rates(schedule(name, **more), 0.5, i * STEPS, STEPS) for i in range(n_epochs)]
    return np.concatenate(parts)


@pytest.fixture
def seen(monkeypatch):
    """Rates of every epoch that any engine runs."""
    seen = []
    original = CpuEngine.run_epoch

    def run_epoch(self, order, learning_rates):
        seen.append(np.array(learning_rates))
        return original(self, order, learning_rates)

    monkeypatch.setattr(CpuEngine, "run_epoch", run_epoch)
    return seen


# --- formulas, step by step

FORMULAS = {
    "exponential": lambda t: INIT * 0.3 ** (t / 2),
    "step": lambda t: INIT * 0.3 ** np.floor(t / 2),
    "cosine": lambda t: INIT * np.cos(np.pi / 12 * min(t, 6)) ** 2,
    "one_cycle": None,
    "coslog4": lambda t: INIT / 2 * (1 - np.cos(2 * np.pi * np.log2(1 + 15 * min(t / 6, 1)))),
}


@pytest.mark.parametrize("name", STEP_SCHEDULES)
def test_formula(name):
    if name == "one_cycle":
        got = rates(name, 10, max_iter=10)
        assert np.argmax(got) == 0.3 * 40 - 1
        np.testing.assert_allclose(got[[0, 11, -1]], [INIT / 25, INIT, INIT / 25 / 1e4])
        assert (np.diff(got[:12]) > 0).all()
        assert (np.diff(got[11:]) < 0).all()
    else:
        expected = [FORMULAS[name](step / STEPS) for step in range(8 * STEPS)]
        np.testing.assert_allclose(rates(name, 8), expected, atol=1e-16)


def test_warm_up_multiplies_any_schedule():
    factors = np.minimum(1, np.arange(1, 25) / 12)
    for name in (*STEP_SCHEDULES, "constant", lambda step, *_: 1 / (1 + step)):
        np.testing.assert_allclose(rates(name, warmup_epochs=3), rates(name) * factors)


def test_rates_stay_at_the_end_when_partial_fit_goes_on():
    assert rates("cosine", 9)[-1] == 0
    np.testing.assert_allclose(rates("one_cycle", 9)[-9:], INIT / 25e4)


# --- PyTorch's


def torch_rates(make, n_steps):
    torch = pytest.importorskip("torch", reason="PyTorch is in the bench extra")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=INIT)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    got = []
    for _ in range(n_steps):
        got.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return got


TORCH = {
    "exponential": lambda lr, opt: lr.ExponentialLR(opt, 0.3 ** (1 / (2 * STEPS))),
    "step": lambda lr, opt: lr.StepLR(opt, 2 * STEPS, 0.3),
    "cosine": lambda lr, opt: lr.CosineAnnealingLR(opt, 6 * STEPS),
    "one_cycle": lambda lr, opt: lr.OneCycleLR(
        opt, INIT, total_steps=6 * STEPS, cycle_momentum=False
    ),
    "coslog4": lambda lr, opt: lr.LambdaLR(
        opt, lambda step: 0.5 - 0.5 * np.cos(2 * np.pi * np.log2(1 + 15 * step / (6 * STEPS)))
    ),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", STEP_SCHEDULES)
def test_same_as_pytorch(name):
    expected = torch_rates(TORCH[name], 6 * STEPS)
    np.testing.assert_allclose(rates(name), expected, rtol=1e-12, atol=1e-17)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["exponential", "cosine"])
def test_warm_up_same_as_pytorch(name):
    def chained(lr, optimizer):
        start = lr.LinearLR(optimizer, start_factor=1 / 12, total_iters=11)
        return lr.ChainedScheduler([start, TORCH[name](lr, optimizer)])

    expected = torch_rates(chained, 6 * STEPS)
    np.testing.assert_allclose(rates(name, warmup_epochs=3), expected, rtol=1e-10, atol=1e-15)


@pytest.mark.oracle
@pytest.mark.parametrize("patience", [0, 1, 4])
def test_plateau_same_as_pytorch(patience):
    torch = pytest.importorskip("torch", reason="PyTorch is in the bench extra")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.3, patience=patience, threshold=0.05, threshold_mode="abs", eps=0
    )
    ours = schedule("plateau", patience=patience)
    rate, state = 1.0, (np.inf, 0)
    losses = np.exp(-np.arange(40) / 8) + 0.1 * np.random.RandomState(0).normal(size=40)
    for loss in losses.tolist():
        theirs.step(loss)
        rate, state = plateau(ours, rate, state, loss, 0.05)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert rate < 1


# --- in a fit


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("name", STEP_SCHEDULES)
def test_fit_runs_the_schedule(name, solver, seen):
    model = MLPRegressor(
        solver=solver, learning_rate=name, learning_rate_init=INIT, **DECAY, **QUICK
    )
    fit(model, X, TARGET)
    np.testing.assert_allclose(np.concatenate(seen), rates(name))
    np.testing.assert_allclose(model.history_["learning_rate"], rates(name)[STEPS - 1 :: STEPS])


def test_a_function_is_called_for_every_step(seen):
    calls = []

    def rate(step, steps_per_epoch, max_iter):
        calls.append((step, steps_per_epoch, max_iter))
        return 0.1 / (1 + step)

    fit(MLPRegressor(learning_rate=rate, **QUICK), X, TARGET)
    assert calls == [(step, STEPS, 6) for step in range(24)]
    np.testing.assert_allclose(np.concatenate(seen), 0.1 / np.arange(1, 25))


def test_partial_fit_goes_on_and_a_new_fit_starts_again(seen):
    model = MLPRegressor(learning_rate="exponential", learning_rate_init=INIT, **DECAY, **QUICK)
    for _ in range(6):
        model.partial_fit(X, TARGET)
    np.testing.assert_allclose(np.concatenate(seen), rates("exponential"))
    seen.clear()
    fit(model.set_params(warm_start=True), X, TARGET)
    np.testing.assert_allclose(np.concatenate(seen), rates("exponential"))


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("how", ["fit", "partial_fit"])
def test_plateau_follows_the_loss_or_the_score(how, early, seen):
    if early and how == "partial_fit":
        return
    model = MLPRegressor(
        learning_rate="plateau", patience=1, decay_rate=0.5, tol=0.02, learning_rate_init=0.05,
        n_iter_no_change=8, early_stopping=early, **QUICK | {"max_iter": 60},
    )  # fmt: skip
    if how == "fit":
        fit(model, X, TARGET)
    else:
        for _ in range(60):
            model.partial_fit(X, TARGET)
    losses = np.negative(model.validation_scores_) if early else model.loss_curve_
    expected, rate, best, bad = [], 0.05, np.inf, 0
    for loss in losses:
        expected.append(rate)
        bad = 0 if loss < best - 0.02 else bad + 1
        best = loss if bad == 0 else best
        if bad > 1:
            rate, bad = rate / 2, 0
    assert expected[-1] < 0.05
    np.testing.assert_allclose(model.history_["learning_rate"], expected)


def test_adam_ignores_scikit_learns_schedules_but_warms_up(seen):
    fit(MLPRegressor(learning_rate="invscaling", warmup_epochs=2, **QUICK), X, TARGET)
    expected = 0.001 * np.minimum(1, np.arange(1, 25) / 8)
    np.testing.assert_allclose(np.concatenate(seen), expected)


# --- wrong use


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_a_function_must_return_rates(value):
    numbers = count()
    with pytest.raises(ValueError, match=r"learning_rate must return .* >= 0, got .* for step 3"):
        MLPRegressor(learning_rate=lambda *_: value if next(numbers) == 3 else 0.1, **QUICK).fit(
            X, TARGET
        )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"learning_rate": "cosine", "solver": "lbfgs"}, "learning_rate='cosine' does not work"),
        (
            {"warmup_epochs": 2, "solver": "lbfgs"},
            "warmup_epochs does not work with solver='lbfgs'",
        ),
        ({"learning_rate": "linear"}, "'learning_rate' parameter of MLPClassifier"),
        ({"decay_rate": 1.5}, "'decay_rate' parameter"),
        ({"decay_epochs": 0}, "'decay_epochs' parameter"),
        ({"patience": -1}, "'patience' parameter"),
        ({"warmup_epochs": 0.5}, "'warmup_epochs' parameter"),
    ],
)
def test_wrong_parameters(params, message):
    with pytest.raises(ValueError, match=message):
        MLPClassifier(**params).fit(X, TARGET > 0)
