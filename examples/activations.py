"""Activation functions and their derivatives.

A hidden unit computes ``a = f(z)`` of its score ``z = x w + b``; without a nonlinear f, layers
would collapse into one linear map.  Backpropagation multiplies by the derivative ``f'(z)`` at every
layer that it passes, so the derivative decides what is left of a gradient further down: a logistic
unit's is at most 1/4, so ten layers leave less than a millionth; a relu's is 1 where the unit is
active and 0 where it is not, and a unit that is never active no longer learns.

The picture shows all activations that fastmlp knows, solid, and their derivatives, dashed.  The
step's true derivative is 0 wherever it exists, and nothing could be learned from it; it counts as 1
instead ("straight-through", Bengio and others, 2013).

The derivatives are compared with finite differences of the functions, and the functions with what a
network of one unit (weights 1, biases 0) predicts.

Needs ``pip install "fastmlp[examples]"``; writes activations.png.  Run it with ``--tiny`` for a
shortened version.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit, ndtr

from fastmlp import MLPRegressor
from fastmlp.functions import ACTIVATIONS

TINY = "--tiny" in sys.argv
Z = np.linspace(-4.05, 4.05, 82 if TINY else 406)  # passes by 0 and +-3, where some have corners
H = 1e-6
KNOWN = {
    "relu": np.maximum(Z, 0),
    "tanh": np.tanh(Z),
    "logistic": expit(Z),
    "softplus": np.logaddexp(0, Z),
    "silu": Z * expit(Z),
    "mish": Z * np.tanh(np.logaddexp(0, Z)),
    "elu": np.where(Z > 0, Z, np.expm1(Z)),
}


def value(name, z):
    """The function at each number of an array: the table holds functions of one number."""
    return np.array([ACTIVATIONS[name].value(number) for number in z])


def derivative(name, z):
    """Its derivative; the table has it as a function of the output where that is enough."""
    row = ACTIVATIONS[name]
    return np.array([row.derivative(x) for x in (z if row.of_score else value(name, z))])


def one_unit(name, z):
    """What a network of one hidden unit, weights 1 and biases 0, makes of z."""
    model = MLPRegressor(hidden_layer_sizes=(1,), activation=name).partial_fit(z[:, None], z)
    model.coefs_ = [np.ones((1, 1)), np.ones((1, 1))]
    model.intercepts_ = [np.zeros(1), np.zeros(1)]
    return model.predict(z[:, None])


def check(name):
    """The function is the network's, and the derivative is the function's."""
    np.testing.assert_allclose(one_unit(name, Z), value(name, Z), atol=1e-12)
    difference = (value(name, Z + H) - value(name, Z - H)) / (2 * H)
    if name == "step":
        assert not difference.any()
        assert (derivative(name, Z) == 1).all()
    else:
        np.testing.assert_allclose(derivative(name, Z), difference, atol=1e-7)
    if name in KNOWN:
        np.testing.assert_allclose(value(name, Z), KNOWN[name], atol=1e-12)


def draw(axes, name):
    axes.plot(Z, value(name, Z), label="$f(z)$")
    axes.plot(Z, derivative(name, Z), "--", label="$f'(z)$")
    axes.set_title(name, fontsize=10)
    axes.set(ylim=(-1.9, 2.4), xticks=[-4, 0, 4], yticks=[-1, 0, 1, 2])
    axes.grid(color="0.9")


def main():
    plt.style.use("tableau-colorblind10")
    rows = len(ACTIVATIONS) // 5 + 1  # one place is the legend's
    figure, grid = plt.subplots(
        rows, 5, figsize=(9.5, 2 * rows), sharex=True, sharey=True, layout="constrained"
    )  # fmt: skip
    print("activation       smallest and largest value    and slope, for z from -4 to 4")
    for name, axes in zip(ACTIVATIONS, grid.flat, strict=False):
        check(name)
        draw(axes, name)
        f, slope = value(name, Z), derivative(name, Z)
        print(f"{name:<13} {f.min():14.3f} {f.max():10.3f} {slope.min():17.3f} {slope.max():8.3f}")
    for axes in grid.flat[len(ACTIVATIONS) :]:
        axes.axis("off")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    grid.flat[-1].legend(handles, labels, loc="center", frameon=False)
    figure.supxlabel("score z")
    figure.savefig("activations.png", dpi=110)

    assert derivative("logistic", np.zeros(1)) == 0.25
    assert np.abs(value("gelu", Z) - Z * ndtr(Z)).max() < 1e-3
    print(f"\nten logistic layers leave at most {0.25**10:.0e} of a gradient")
    print("gelu's tanh form is within 0.001 of z times the normal distribution function")
    print("see activations.png")


if __name__ == "__main__":
    main()
