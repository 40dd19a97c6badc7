"""The three output units: what a network's output means, and why the losses are as they are.

A network's output can be read as the parameter of a distribution of the target y given x, and its
loss as the negative log likelihood of the data under it:

    output unit           distribution of y         -log p(y)
    Gaussian, a = z       normal, mean a, sd s      (y - a)^2 / (2 s^2) + log(s) + log(2 pi) / 2
    Bernoulli, a = l(z)   1 with probability a      -y log a - (1 - y) log(1 - a)
    multinoulli           class k with              -log a_y
      a = softmax(z)        probability a_k

(l is the logistic function.)  For s = 1 the first is half the squared error but for a constant, so
minimising the squared error is maximum likelihood for Gaussian noise, and its minimum is the
conditional mean E[y | x], whatever the noise is like.  The others have the conditional
probabilities as their minimum.

Here the data are drawn from distributions that are known, so what the networks have learned can be
compared with the truth.  The picture shows both, and frequencies in the data: dots are means of
targets over small pieces of x.  What a network cannot do better than the truth is also known: the
negative log likelihood of new data is lowest, on average, for the true parameters.

Needs ``pip install "fastmlp[examples]"``; writes output_units.png.  Run it with ``--tiny`` for a
shortened version.
"""

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit, softmax
from scipy.stats import bernoulli, multinomial, norm
from sklearn.exceptions import ConvergenceWarning

from fastmlp import MLPClassifier, MLPRegressor

TINY = "--tiny" in sys.argv
N = 2_000 if TINY else 10_000
SETTINGS = {
    "hidden_layer_sizes": (10,), "activation": "tanh", "solver": "lbfgs", "alpha": 0,
    "max_iter": 50 if TINY else 200, "random_state": 0,
}  # fmt: skip


def mean(x):
    return np.sin(2 * x)


def probability(x):
    return expit(3 * np.sin(2 * x))


def probabilities(x):
    """Of three classes; shape (len(x), 3)."""
    return softmax(np.column_stack([2 * np.sin(2 * x), x, np.zeros_like(x)]), axis=1)


def draw_data(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, N)
    normal = rng.normal(mean(x), 1)
    binary = rng.binomial(1, probability(x))
    classes = (rng.random(N)[:, None] > probabilities(x).cumsum(axis=1)).sum(axis=1)
    return x, normal, binary, classes


def report(name, loss, likelihoods, error):
    """Compare a network with the truth, on the training data and on new data.

    ``likelihoods`` are the mean negative log likelihoods of the training data for the network, and
    of the new data for the network and for the truth, by SciPy's distributions.
    """
    train, new, truth = likelihoods
    print(f"{name:<11} {loss:9.5f} {train:9.5f}   {new:9.5f} {truth:9.5f} {error:11.3f}")
    np.testing.assert_allclose(loss, train, rtol=1e-7)
    assert abs(new - truth) < (0.03 if TINY else 0.01)
    assert error < (0.15 if TINY else 0.05)


def gaussian(x, y, x_new, y_new):
    """Half the squared error is the likelihood of the normal distribution with deviation 1."""
    model = MLPRegressor(**SETTINGS).fit(x[:, None], y)

    def likelihood(y, a):
        return -norm.logpdf(y, a, 1).mean() - np.log(2 * np.pi) / 2

    a, a_new, truth = model.predict(x[:, None]), model.predict(x_new[:, None]), mean(x_new)
    likelihoods = likelihood(y, a), likelihood(y_new, a_new), likelihood(y_new, truth)
    report("Gaussian", model.loss_, likelihoods, rms(a_new - truth))
    return model.predict


def binary(x, y, x_new, y_new):
    model = MLPClassifier(**SETTINGS).fit(x[:, None], y)

    def predict(X):
        return model.predict_proba(X)[:, 1]

    def likelihood(y, a):
        return -bernoulli.logpmf(y, a).mean()

    a, a_new, truth = predict(x[:, None]), predict(x_new[:, None]), probability(x_new)
    likelihoods = likelihood(y, a), likelihood(y_new, a_new), likelihood(y_new, truth)
    report("Bernoulli", model.loss_, likelihoods, rms(a_new - truth))
    return predict


def multinoulli(x, y, x_new, y_new):
    model = MLPClassifier(**SETTINGS).fit(x[:, None], y)
    predict = model.predict_proba

    def likelihood(y, a):
        return -multinomial.logpmf(np.eye(3)[y], 1, a).mean()

    a, a_new, truth = predict(x[:, None]), predict(x_new[:, None]), probabilities(x_new)
    likelihoods = likelihood(y, a), likelihood(y_new, a_new), likelihood(y_new, truth)
    report("multinoulli", model.loss_, likelihoods, rms(a_new - truth))
    return predict


def rms(error):
    return np.sqrt(np.mean(error**2))


def draw(axes, x, targets, truth, predict):
    """Truth, network, and means of targets (n, n_outputs) over pieces of x."""
    line = np.linspace(-2, 2, 200)
    edges = np.linspace(-2, 2, 26)
    piece = np.digitize(x, edges[1:-1])
    frequencies = np.array([targets[piece == i].mean(axis=0) for i in range(25)])
    learned = predict(line[:, None]).reshape(200, -1)
    for k, true in enumerate(truth(line).reshape(200, -1).T):
        color = f"C{k}"
        axes.plot((edges[1:] + edges[:-1]) / 2, frequencies[:, k], "o", color=color, markersize=3)
        axes.plot(line, true, color=color, linewidth=5, alpha=0.35)
        axes.plot(line, learned[:, k], color=color)


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)  # close to the minimum is enough here
    plt.style.use("tableau-colorblind10")
    (x, y1, y2, y3), (x_new, *new) = draw_data(0), draw_data(1)
    print("                training data           new data, -log p(y)   output's")
    print("                 loss -log p(y)     network     truth   rms error (constants left out)")
    predictors = [
        gaussian(x, y1, x_new, new[0]),
        binary(x, y2, x_new, new[1]),
        multinoulli(x, y3, x_new, new[2]),
    ]
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    targets = (y1[:, None], y2[:, None], np.eye(3)[y3])
    truths = (mean, probability, probabilities)
    for axes, target, truth, predict in zip(panels, targets, truths, predictors, strict=True):
        draw(axes, x, target, truth, predict)
        axes.set(xlabel="x", ylim=(-0.05, 1.05))
    panels[0].set(title="Gaussian", ylabel="mean of y", ylim=(-1.3, 2))
    panels[1].set(title="Bernoulli", ylabel="probability of y = 1")
    panels[2].set(title="multinoulli", ylabel="probabilities of three classes")
    handles = [
        plt.Line2D([], [], color="C0", linewidth=5, alpha=0.35, label="truth"),
        plt.Line2D([], [], color="C0", label="network"),
        plt.Line2D([], [], color="C0", marker="o", linestyle="", markersize=3, label="data"),
    ]
    panels[0].legend(handles=handles, fontsize=8)
    figure.savefig("output_units.png", dpi=110)
    print("see output_units.png")


if __name__ == "__main__":
    main()
