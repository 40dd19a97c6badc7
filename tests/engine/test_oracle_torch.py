"""PyTorch as an oracle, from the `bench` extra: losses, gradients and optimizers in float64."""

import itertools

import numpy as np
import pytest
import reference
from problems import make_network, make_problem, place_for

from fastmlp.dropout import Dropout
from fastmlp.engine import get_engine
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.initialisers import INITIALISERS
from fastmlp.optimizers import OPTIMIZERS, Optimizer

torch = pytest.importorskip("torch", reason="PyTorch is in the bench extra")
pytestmark = pytest.mark.oracle

HIDDEN = {
    "identity": torch.nn.Identity,
    "relu": torch.nn.ReLU,
    "tanh": torch.nn.Tanh,
    "logistic": torch.nn.Sigmoid,
    "step": lambda: StraightThrough(),
    "leaky_relu": torch.nn.LeakyReLU,
    "elu": torch.nn.ELU,
    "selu": torch.nn.SELU,
    "gelu": lambda: torch.nn.GELU(approximate="tanh"),
    "silu": torch.nn.SiLU,
    "mish": torch.nn.Mish,
    "softplus": torch.nn.Softplus,
    "hard_sigmoid": lambda: HardSigmoid(),
    "hard_swish": torch.nn.Hardswish,
}


class HardSigmoid(torch.nn.Module):
    """PyTorch's own has the float32 nearest to 1/6 in float64, too."""

    def forward(self, z):
        return torch.nn.functional.relu6(z + 3) / 6


class StraightThrough(torch.nn.Module):
    def forward(self, z):
        return z + (torch.heaviside(z, torch.zeros_like(z)) - z).detach()


def torch_loss(name, z, y):
    """Mean over samples, in scikit-learn's convention (its squared error's gradient sums)."""
    if name == "log_loss":
        return torch.nn.functional.cross_entropy(z, y)
    if name == "binary_log_loss":
        criterion = torch.nn.functional.binary_cross_entropy_with_logits
        return criterion(z, y, reduction="sum") / len(z)
    if name == "poisson":
        return (torch.special.xlogy(y, y) - y - y * z + torch.exp(z)).sum() / len(z)
    if loss_of_class(name) is not None:
        return loss_of_class(name)(z, y) / len(z)
    return OF_RESIDUAL[name](z, y).sum() / len(z)


FUSED = ("log_loss", "binary_log_loss", "poisson")
OF_RESIDUAL = {
    "squared_error": lambda z, y: 0.5 * (z - y) ** 2,
    "absolute_error": lambda z, y: (z - y).abs(),
    "huber": lambda z, y: torch.nn.functional.huber_loss(z, y, reduction="none", delta=0.8),
    "quantile": lambda z, y: torch.maximum(0.3 * (y - z), 0.7 * (z - y)),
    "gamma": lambda z, y: torch.log(torch.exp(z) / y) + y / torch.exp(z) - 1,
    "log_cosh": lambda z, y: torch.log(torch.cosh(z - y)),
}


def smooth_cross_entropy(z, y):
    return torch.nn.functional.cross_entropy(z, y, reduction="sum", label_smoothing=0.1)


def brier(z, y):
    classes = torch.nn.functional.one_hot(y, z.shape[1]).to(z.dtype)
    target = 0.8 * classes + 0.2 / z.shape[1]
    return 0.5 * ((z.softmax(dim=1) - target) ** 2).sum()


def focal(z, y):
    losses = torch.nn.functional.cross_entropy(z, y, reduction="none")
    return ((1 - torch.exp(-losses)) ** 1.5 * losses).sum()


def binary_brier(z, y):
    return ((torch.sigmoid(z) - (0.8 * y + 0.1)) ** 2).sum()


def binary_focal(z, y):
    """The code of torchvision's sigmoid_focal_loss without its alpha."""
    losses = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
    p = torch.sigmoid(z)
    return ((1 - (p * y + (1 - p) * (1 - y))) ** 1.5 * losses).sum()


def loss_of_class(name):
    return {
        "cross_entropy": smooth_cross_entropy,
        "brier": brier,
        "focal": focal,
        "binary_brier": binary_brier,
        "binary_focal": binary_focal,
    }.get(name)


def torch_model(network, activation, flat):
    modules = []
    coefs, intercepts = network.unflatten(flat)
    for i, (coef, intercept) in enumerate(zip(coefs, intercepts, strict=True)):
        linear = torch.nn.Linear(*coef.shape, dtype=torch.float64)
        linear.weight.data = torch.tensor(coef.T.copy())
        linear.bias.data = torch.tensor(intercept.copy())
        modules += [linear] if i == len(coefs) - 1 else [linear, HIDDEN[activation]()]
    return torch.nn.Sequential(*modules)


def torch_flat(model):
    return np.concatenate(
        [
            np.concatenate([m.weight.detach().numpy().T.ravel(), m.bias.detach().numpy()])
            for m in model
            if isinstance(m, torch.nn.Linear)
        ]
    )


def torch_optimizer(rule, parameters, epsilon=1e-14):
    if rule == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=0.01, alpha=0.9, eps=epsilon)
    if rule == "nadam":
        return torch.optim.NAdam(parameters, lr=0.01, betas=(0.9, 0.999), eps=epsilon)
    if rule == "adam":
        return torch.optim.Adam(parameters, lr=0.01, betas=(0.9, 0.999), eps=epsilon)
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=rule == "nesterov")


CONSTANTS = {
    "sgd": (0.9, 0.0, 0.0),
    "nesterov": (0.9, 0.0, 0.0),
    "adam": (0.9, 0.999, 1e-14),
    "rmsprop": (0.9, 1e-14, 0.0),
    "nadam": (0.9, 0.999, 1e-14),
}


PAIRS = [
    *itertools.product(list(LOSSES)[:4], ACTIVATIONS),
    *itertools.product(list(LOSSES)[4:], ["tanh"]),
]
CASES = [
    *(("cpu", *pair, rule) for pair in PAIRS for rule in CONSTANTS),
    *zip(
        itertools.repeat("cuda, emulated"),
        LOSSES,
        ACTIVATIONS,
        itertools.cycle(CONSTANTS),
        strict=False,
    ),
]


@pytest.mark.parametrize(
    ("device", "loss", "activation", "rule"), CASES, indirect=["device"], ids=str
)
def test_twenty_steps(device, loss, activation, rule):
    """Epsilon sits elsewhere in PyTorch's Adam, so it is made negligible in both.

    Adam's step is g / |g| at first, which magnifies the rounding of small gradients.
    """
    assert set(ACTIVATIONS) == set(HIDDEN)
    network, objective = make_network((6, 8, 3), activation, loss)
    X, y = make_problem(loss, 60, 6, 3)
    flat = np.random.default_rng(1).normal(scale=0.5, size=network.n_parameters)
    model = torch_model(network, activation, flat)
    theirs = torch_optimizer(rule, model.parameters())
    engine = get_engine(
        device, network, dtype="float64", objective=objective, batch_size=15,
        optimizer=Optimizer(rule, CONSTANTS[rule]),
    )  # fmt: skip
    engine.load(place_for(engine, X, y))
    engine.set_parameters(flat)
    for _ in range(5):
        engine.run_epoch(np.arange(60), np.full(4, 0.01))
        for start in range(0, 60, 15):
            theirs.zero_grad()
            rows = slice(start, start + 15)
            torch_loss(loss, model(torch.tensor(X[rows])), torch.tensor(y[rows])).backward()
            theirs.step()
    expected = torch_flat(model)
    assert set(LOSSES) == {*OF_RESIDUAL, *FUSED} | {n for n in LOSSES if loss_of_class(n)}
    tolerance = 1e-11 if rule in ("sgd", "nesterov") else 1e-7
    np.testing.assert_allclose(engine.get_parameters(), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def default_float64():
    """PyTorch's NAdam keeps a product of momenta in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


RATES = 0.01 * 0.95 ** np.arange(20)


def our_steps(optimizer, w, gradients, rates=RATES):
    """Twenty steps of a rule, by the scalar formula, of one weight."""
    update, u, v = OPTIMIZERS[optimizer.name].update, np.float64(0), np.float64(0)
    numbers = optimizer.step_numbers(rates, 0)
    halves = [optimizer.step_numbers(rates[i : i + 10], i) for i in (0, 10)]
    np.testing.assert_array_equal(numbers, np.concatenate(halves))
    for row, g in zip(numbers, gradients, strict=True):
        w, u, v = update(w - row[7] * w, g, u, v, *row[:7])
    return w


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("rule", CONSTANTS)
def test_rule_on_given_gradients(rule, scale, weight_decay, default_float64):
    """The same gradients for both; RMSprop and NAdam with an epsilon that matters.

    PyTorch's momentum is of gradients, ours and scikit-learn's of steps, which is the same if the
    rate is.
    """
    rates = np.full(20, 0.01) if rule in ("sgd", "nesterov") else RATES
    epsilon = (1e-14 if rule == "adam" else 1e-3) * scale
    constants = tuple(epsilon if c == 1e-14 else c for c in CONSTANTS[rule])
    gradients = scale * np.random.default_rng(0).normal(size=(20, 6))
    start = np.random.default_rng(1).normal(size=6)
    parameter = torch.nn.Parameter(torch.tensor(start))
    theirs = torch_optimizer(rule, [parameter], epsilon)
    for rate, g in zip(rates, gradients, strict=True):
        theirs.param_groups[0]["lr"] = rate
        with torch.no_grad():
            parameter -= rate * weight_decay * parameter
        parameter.grad = torch.tensor(g)
        theirs.step()
    optimizer = Optimizer(rule, constants, weight_decay)
    got = [our_steps(optimizer, w, g, rates) for w, g in zip(start, gradients.T, strict=True)]
    np.testing.assert_allclose(got, parameter.detach().numpy(), rtol=1e-10)


def test_adamw():
    gradients = np.random.default_rng(0).normal(size=20)
    parameter = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    theirs = torch.optim.AdamW([parameter], lr=0.01, eps=1e-14, weight_decay=0.3)
    for rate, g in zip(RATES, gradients, strict=True):
        theirs.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(g)
        theirs.step()
    optimizer = Optimizer("adam", (0.9, 0.999, 1e-14), 0.3)
    got = our_steps(optimizer, np.float64(0.7), gradients)
    np.testing.assert_allclose(got, parameter.item(), rtol=1e-10)


class Mask(torch.nn.Module):
    """Dropout whose draw the test sets."""

    def forward(self, a):
        return a * self.mask


def regular_model(network, flat):
    """One `Mask` behind each hidden layer, and normalisation before its activation."""
    modules, masks = [], []
    for module in torch_model(network, "gelu", flat):
        is_hidden = not isinstance(module, torch.nn.Linear)
        if is_hidden and network.layer_norm:
            width = modules[-1].out_features
            modules.append(torch.nn.LayerNorm(width, elementwise_affine=False))
        modules.append(module)
        if is_hidden:
            masks.append(Mask())
            modules.append(masks[-1])
    return torch.nn.Sequential(*modules), masks


REGULAR = {
    "dropout": ((0.3, 0.5), False, {}),
    "max_grad_norm": ((0.0, 0.0), False, {"max_grad_norm": 0.3}),
    "ema_decay": ((0.0, 0.0), False, {"ema_decay": 0.9}),
    "layer_norm": ((0.0, 0.0), True, {}),
    "all": ((0.3, 0.5), True, {"max_grad_norm": 0.3, "ema_decay": 0.9}),
}


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
@pytest.mark.parametrize("name", REGULAR)
def test_twenty_steps_of_a_regularised_network(device, name):
    rates, layer_norm, of_optimizer = REGULAR[name]
    network, objective = make_network((6, 8, 7, 3), "gelu", "log_loss", layer_norm=layer_norm)
    X, y = make_problem("log_loss", 60, 6, 3)
    flat = np.random.default_rng(1).normal(scale=0.5, size=network.n_parameters)
    model, masks = regular_model(network, flat)
    theirs = torch_optimizer("nesterov", model.parameters())
    average_of = torch.optim.swa_utils.get_ema_multi_avg_fn(of_optimizer.get("ema_decay", 0.0))
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average_of)
    averaged.update_parameters(model)  # the first call copies
    optimizer = Optimizer("nesterov", CONSTANTS["nesterov"], **of_optimizer)
    engine = get_engine(
        device, network, dtype="float64", objective=objective, dropout=Dropout(rates, 11),
        optimizer=optimizer, batch_size=15,
    )  # fmt: skip
    engine.load(place_for(engine, X, y))
    engine.set_parameters(flat)
    for step in range(20):
        rows = slice(step % 4 * 15, step % 4 * 15 + 15)
        drawn = reference.dropout_masks(11, step, 15, network.widths, rates)
        for module, mask in zip(masks, drawn, strict=True):
            module.mask = torch.tensor(mask)
        theirs.zero_grad()
        torch_loss("log_loss", model(torch.tensor(X[rows])), torch.tensor(y[rows])).backward()
        if optimizer.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.max_grad_norm)
        theirs.step()
        averaged.update_parameters(model)
    for _ in range(5):
        engine.run_epoch(np.arange(60), np.full(4, 0.01))
    expected = torch_flat(averaged.module)
    np.testing.assert_allclose(engine.get_parameters(), expected, rtol=1e-10, atol=1e-11)


INITIALISERS_OF_TORCH = {
    "glorot_uniform": lambda W: torch.nn.init.xavier_uniform_(W),
    "glorot_normal": lambda W: torch.nn.init.xavier_normal_(W),
    "he_uniform": lambda W: torch.nn.init.kaiming_uniform_(W, nonlinearity="relu"),
    "he_normal": lambda W: torch.nn.init.kaiming_normal_(W, nonlinearity="relu"),
    "lecun_normal": lambda W: torch.nn.init.kaiming_normal_(W, nonlinearity="linear"),
    "orthogonal": lambda W: torch.nn.init.orthogonal_(W),
    "zeros": lambda W: torch.nn.init.zeros_(W),
}


@pytest.mark.parametrize("shape", [(300, 700), (700, 300)], ids=str)
@pytest.mark.parametrize("name", INITIALISERS)
def test_statistics_of_initial_weights(name, shape):
    """Same mean, deviation, tails, and angles between columns, within what chance allows."""

    def statistics(W):
        quantiles = np.quantile(W, [0.0, 0.01, 0.25, 0.75, 0.99, 1.0])
        gram = W.T @ W if shape[0] >= shape[1] else W @ W.T
        return np.array([W.mean(), W.std(), *quantiles[1:-1], np.diag(gram).mean(), gram.std()])

    torch.manual_seed(0)
    theirs = torch.empty(shape[1], shape[0], dtype=torch.float64)
    INITIALISERS_OF_TORCH[name](theirs)
    mine = INITIALISERS[name](*shape, np.random.RandomState(0))
    expected = statistics(theirs.numpy().T)
    np.testing.assert_allclose(statistics(mine), expected, rtol=0.02, atol=0.01 * expected[1])
