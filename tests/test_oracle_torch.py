"""PyTorch as an oracle, from the `bench` extra: losses, gradients and optimizers in float64."""

import numpy as np
import pytest
from conftest import make_problem

from fastmlp.engine import get_engine
from fastmlp.functions import ACTIVATIONS, LOSSES
from fastmlp.network import Network
from fastmlp.optimizers import Optimizer

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
    "hard_sigmoid": torch.nn.Hardsigmoid,
    "hard_swish": torch.nn.Hardswish,
}


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
    return 0.5 * ((z - y) ** 2).sum() / len(z)


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


@pytest.mark.parametrize("rule", ["sgd", "nesterov", "adam"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_twenty_steps(device, loss, activation, rule):
    """Epsilon sits elsewhere in PyTorch's Adam, so it is made negligible in both.

    Without it Adam's step is g / |g| at first, which magnifies the rounding of small gradients.
    """
    assert set(ACTIVATIONS) == set(HIDDEN)
    network = Network((6, 8, 3), activation, loss)
    X, y = make_problem(loss, 60, 6, 3)
    flat = np.random.default_rng(1).normal(scale=0.5, size=network.n_parameters)
    model = torch_model(network, activation, flat)
    if rule == "adam":
        constants = (0.9, 0.999, 1e-14)
        theirs = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.999), eps=1e-14)
    else:
        constants = (0.9, 0.0, 0.0)
        theirs = torch.optim.SGD(
            model.parameters(), lr=0.01, momentum=0.9, nesterov=rule == "nesterov"
        )
    engine = get_engine(
        device, network, dtype="float64", optimizer=Optimizer(rule, constants), batch_size=15
    )
    engine.load(X, y)
    engine.set_parameters(flat)
    for _ in range(5):
        engine.run_epoch(np.arange(60), np.full(4, 0.01))
        for start in range(0, 60, 15):
            theirs.zero_grad()
            rows = slice(start, start + 15)
            torch_loss(loss, model(torch.tensor(X[rows])), torch.tensor(y[rows])).backward()
            theirs.step()
    expected = torch_flat(model)
    tolerance = 1e-7 if rule == "adam" else 1e-11
    np.testing.assert_allclose(engine.get_parameters(), expected, rtol=tolerance, atol=tolerance)
