"""The slow oracle: a multilayer perceptron in float64 NumPy, written from the textbook.

It shares no code with the package.  Losses are scikit-learn's (probabilities clipped, then
logged), gradients are the chain rule layer by layer.
"""

from itertools import pairwise

import numpy as np
from scipy.special import expit, log_softmax, softmax, xlogy

EPS = np.finfo(float).eps
SELU, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _gelu_argument(z):
    return np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)


HIDDEN = {
    "identity": (lambda z: z, lambda z: np.ones_like(z)),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "logistic": (expit, lambda z: expit(z) * expit(-z)),
    "step": (lambda z: np.heaviside(z, 0), lambda z: np.ones_like(z)),
    "leaky_relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1, 0.01)),
    "elu": (lambda z: np.where(z > 0, z, np.expm1(-np.abs(z))), lambda z: np.exp(np.minimum(z, 0))),
    "selu": (
        lambda z: SELU * np.where(z > 0, z, SELU_ALPHA * np.expm1(-np.abs(z))),
        lambda z: SELU * np.where(z > 0, 1, SELU_ALPHA * np.exp(-np.abs(z))),
    ),
    "gelu": (
        lambda z: z * expit(2 * _gelu_argument(z)),
        lambda z: expit(2 * _gelu_argument(z))
        + 2 * z * expit(2 * _gelu_argument(z)) * expit(-2 * _gelu_argument(z))
        * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * z**2),
    ),
    "silu": (lambda z: z * expit(z), lambda z: expit(z) + z * expit(z) * expit(-z)),
    "mish": (
        lambda z: z * np.tanh(np.logaddexp(0, z)),
        lambda z: np.tanh(np.logaddexp(0, z))
        + z * (1 - np.tanh(np.logaddexp(0, z)) ** 2) * expit(z),
    ),
    "softplus": (lambda z: np.logaddexp(0, z), expit),
    "hard_sigmoid": (
        lambda z: np.clip(z / 6 + 0.5, 0, 1), lambda z: np.where(np.abs(z) < 3, 1 / 6, 0)
    ),
    "hard_swish": (
        lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
        lambda z: np.where(np.abs(z) < 3, z / 3 + 0.5, np.heaviside(z, 0)),
    ),
}  # fmt: skip
OUTPUT = {
    **dict.fromkeys(
        ("squared_error", "absolute_error", "huber", "quantile", "log_cosh"), lambda z: z
    ),
    **dict.fromkeys(("poisson", "gamma"), np.exp),
    **dict.fromkeys(("binary_log_loss", "binary_brier", "binary_focal"), expit),
    **dict.fromkeys(("log_loss", "cross_entropy", "brier", "focal"), lambda z: softmax(z, axis=1)),
}
CONSTANT = {"huber": 0.8, "quantile": 0.3, "focal": 1.5, "binary_focal": 1.5}
SMOOTHING = {"cross_entropy": 0.1, "brier": 0.2, "binary_brier": 0.2}


def split(flat, widths):
    """[(W, b), ...] from a flat vector."""
    layers, at = [], 0
    for fan_in, fan_out in pairwise(widths):
        W = flat[at : at + fan_in * fan_out].reshape(fan_in, fan_out)
        at += fan_in * fan_out
        layers.append((W, flat[at : at + fan_out]))
        at += fan_out
    return layers


def of_layers(activation, widths):
    """The activation of each hidden layer; one name stands for all."""
    return [activation] * (len(widths) - 2) if isinstance(activation, str) else list(activation)


def mix(x):
    """The finaliser of MurmurHash3, on uint32."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def dropout_masks(seed, step, n_rows, widths, rates):
    """What dropout multiplies each hidden layer by: arrays (n_rows, width)."""
    golden = np.uint32(2654435769)
    masks = []
    for layer, (width, rate) in enumerate(zip(widths[1:-1], rates, strict=True)):
        key = np.zeros((n_rows, 1), np.uint32)
        for part in (seed % 2**32, step, layer, np.arange(n_rows)[:, None]):
            key = mix(key + np.asarray(part).astype(np.uint32) + golden)
        bits = mix(key + np.arange(width, dtype=np.uint32) * golden)
        masks.append((bits >= rate * 2**32) / (1 - rate))
    return masks


def normalise(z):
    """Each row less its mean, over its standard deviation."""
    return (z - z.mean(axis=1, keepdims=True)) / np.sqrt(z.var(axis=1, keepdims=True) + 1e-5)


def normalise_jacobian(z):
    """d normalised / d z, (n, width, width)."""
    n = z.shape[1]
    centred = z - z.mean(axis=1, keepdims=True)
    variance = (z.var(axis=1) + 1e-5)[:, None, None]
    outer = centred[:, :, None] * centred[:, None, :]
    return (np.eye(n) - 1 / n - outer / (n * variance)) / np.sqrt(variance)


def forward(flat, widths, activation, X, masks=None, layer_norm=False):
    """Lists of z (normalised) and a per layer; the last z are the raw scores."""
    zs, activations = [], [np.asarray(X, float)]
    names = [*of_layers(activation, widths), "identity"]
    masks = [*masks, 1.0] if masks else [1.0] * len(names)
    layers = split(np.asarray(flat, float), widths)
    for (W, b), name, mask in zip(layers, names, masks, strict=True):
        z = activations[-1] @ W + b
        zs.append(normalise(z) if layer_norm and len(zs) < len(layers) - 1 else z)
        activations.append(HIDDEN[name][0](zs[-1]) * mask)
    return zs, activations


REGRESSION = {  # of the residual z - y and the loss's constant
    "absolute_error": (lambda r, _: np.abs(r), lambda r, _: np.sign(r)),
    "huber": (
        lambda r, d: np.where(np.abs(r) <= d, r**2 / 2, d * (np.abs(r) - d / 2)),
        lambda r, d: np.clip(r, -d, d),
    ),
    "quantile": (
        lambda r, q: np.maximum(-q * r, (1 - q) * r),
        lambda r, q: np.where(r < 0, -q, 1 - q) * (r != 0),
    ),
    "log_cosh": (lambda r, _: np.logaddexp(r, -r) - np.log(2), lambda r, _: np.tanh(r)),
}


def smooth(loss, target):
    """One-hot targets (n, n_classes) with a share spread over the classes."""
    share = SMOOTHING.get(loss, 0.0)
    return (1 - share) * target + share / target.shape[1]


def two_classes(loss, z, y):
    """For each output: log-probabilities (n, 2) of both classes, and their targets."""
    log_p = [log_softmax(np.stack([0 * column, column], axis=1), axis=1) for column in z.T]
    return log_p, [smooth(loss, np.stack([1 - column, column], axis=1)) for column in y.T]


def class_losses(loss, log_p, target):
    """Of log-probabilities (n, n_classes), summed over the classes."""
    p = np.exp(log_p)
    if loss == "cross_entropy":
        return -(target * log_p).sum(axis=1)
    if loss == "brier":
        return 0.5 * ((p - target) ** 2).sum(axis=1)
    return -(target * (1 - p) ** CONSTANT[loss] * log_p).sum(axis=1)


def class_gradients(loss, log_p, target):
    """d loss / d scores, by the Jacobian of softmax."""
    p = np.exp(log_p)
    if loss == "cross_entropy":
        by_p = -target / p
    elif loss == "brier":
        by_p = p - target
    else:
        c = CONSTANT[loss]
        by_p = target * (c * (1 - p) ** (c - 1) * log_p - (1 - p) ** c / p)
    jacobian = p[:, :, None] * (np.eye(p.shape[1]) - p[:, None, :])
    return np.einsum("nj,njk->nk", by_p, jacobian)


def losses(loss, z, y, eps=EPS):
    """Loss of each sample from raw scores (n, n_outputs).

    Log losses are clamped as if probabilities had been clipped to [eps, 1 - eps].
    """
    bounds = -np.log1p(-eps), -np.log(eps)
    r, constant = (z - y, CONSTANT.get(loss)) if z.shape == np.shape(y) else (None, None)
    if loss in REGRESSION:
        return REGRESSION[loss][0](r, constant).sum(axis=1)
    if loss == "gamma":
        return (np.log(np.exp(z) / y) + y / np.exp(z) - 1).sum(axis=1)
    if loss in ("cross_entropy", "brier", "focal"):
        return class_losses(loss, log_softmax(z, axis=1), smooth(loss, np.eye(z.shape[1])[y]))
    if loss in ("binary_brier", "binary_focal"):
        p, t = two_classes(loss, z, y)
        return sum(
            class_losses(loss.removeprefix("binary_"), *pair) for pair in zip(p, t, strict=True)
        )
    if loss == "squared_error":
        return 0.5 * ((z - y) ** 2).mean(axis=1)
    if loss == "poisson":
        return (xlogy(y, y / np.exp(z)) - y + np.exp(z)).sum(axis=1)
    if loss == "binary_log_loss":
        return np.clip(np.logaddexp(0, np.where(y, -z, z)), *bounds).sum(axis=1)
    return np.clip(-log_softmax(z, axis=1)[np.arange(len(y)), y], *bounds)


def score_gradient(loss, z, y):
    """d (sum of losses) / d z; scikit-learn's squared error sums over outputs here."""
    if loss in REGRESSION:
        return REGRESSION[loss][1](z - y, CONSTANT.get(loss))
    if loss == "gamma":
        return 1 - y / np.exp(z)
    if loss in ("cross_entropy", "brier", "focal"):
        return class_gradients(loss, log_softmax(z, axis=1), smooth(loss, np.eye(z.shape[1])[y]))
    if loss in ("binary_brier", "binary_focal"):
        pairs = zip(*two_classes(loss, z, y), strict=True)
        columns = [class_gradients(loss.removeprefix("binary_"), *pair)[:, 1] for pair in pairs]
        return np.stack(columns, axis=1)
    target = np.eye(z.shape[1])[y] if loss == "log_loss" else y
    return OUTPUT[loss](z) - target


def objective(
    flat, widths, activation, loss, X, y, alpha=0.0, weight=None, eps=EPS, masks=None,
    layer_norm=False,
):  # fmt: skip
    """(mean loss with penalty, flat gradient)."""
    flat = np.asarray(flat, float)
    weight = np.ones(len(X)) if weight is None else np.asarray(weight, float)
    total = weight.sum()
    layers = split(flat, widths)
    zs, activations = forward(flat, widths, activation, X, masks, layer_norm)
    value = weight @ losses(loss, zs[-1], y, eps) / total
    value += 0.5 * alpha / total * sum((W**2).sum() for W, _ in layers)
    delta = score_gradient(loss, zs[-1], y) * weight[:, None] / total
    parts = []
    for layer in range(len(layers) - 1, -1, -1):
        W, _ = layers[layer]
        dW = activations[layer].T @ delta + alpha / total * W
        parts.insert(0, np.concatenate([dW.ravel(), delta.sum(axis=0)]))
        if layer:
            name = of_layers(activation, widths)[layer - 1]
            mask = masks[layer - 1] if masks else 1.0
            delta = (delta @ W.T) * mask * HIDDEN[name][1](zs[layer - 1])
            if layer_norm:
                W, b = layers[layer - 1]
                jacobian = normalise_jacobian(activations[layer - 1] @ W + b)
                delta = np.einsum("nj,njk->nk", delta, jacobian)
    return value, np.concatenate(parts)


def predict(flat, widths, activation, loss, X, layer_norm=False):
    """Outputs (n, n_outputs)."""
    zs, _ = forward(flat, widths, activation, X, layer_norm=layer_norm)
    return OUTPUT[loss](zs[-1])


def clip(gradient, max_norm):
    """As PyTorch's clip_grad_norm_."""
    return gradient * min(1.0, max_norm / (np.sqrt((gradient**2).sum()) + 1e-6))


class Adam:
    """Adam with scikit-learn's placement of epsilon."""

    def __init__(self, size, rate, beta_1, beta_2, epsilon):
        self.m = self.v = np.zeros(size)
        self.t, self.rate, self.betas, self.epsilon = 0, rate, (beta_1, beta_2), epsilon

    def step(self, w, g):
        self.t += 1
        b1, b2 = self.betas
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        rate = self.rate * np.sqrt(1 - b2**self.t) / (1 - b1**self.t)
        return w - rate * self.m / (np.sqrt(self.v) + self.epsilon)


class NAdam(Adam):
    """NAdam as in PyTorch's documentation, momentum_decay 0.004."""

    product = 1.0

    def step(self, w, g):
        self.t += 1
        b1, b2 = self.betas
        now, following = (b1 * (1 - 0.5 * 0.96 ** (t * 0.004)) for t in (self.t, self.t + 1))
        self.product *= now
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        m = following * self.m / (1 - self.product * following)
        m = m + (1 - now) * g / (1 - self.product)
        return w - self.rate * m / (np.sqrt(self.v / (1 - b2**self.t)) + self.epsilon)


class RMSprop:
    """RMSprop with Keras's name for its constant."""

    def __init__(self, size, rate, rho, epsilon, _):
        self.v = np.zeros(size)
        self.rate, self.rho, self.epsilon = rate, rho, epsilon

    def step(self, w, g):
        self.v = self.rho * self.v + (1 - self.rho) * g**2
        return w - self.rate * g / (np.sqrt(self.v) + self.epsilon)


class Lion:
    """Algorithm 2 of Chen et al. (2023)."""

    def __init__(self, size, rate, beta_1, beta_2, _):
        self.m = np.zeros(size)
        self.rate, self.betas = rate, (beta_1, beta_2)

    def step(self, w, g):
        b1, b2 = self.betas
        update = np.sign(b1 * self.m + (1 - b1) * g)
        self.m = b2 * self.m + (1 - b2) * g
        return w - self.rate * update


class SGD:
    """Gradient descent with momentum."""

    nesterov = False

    def __init__(self, size, rate, momentum, *_):
        self.u = np.zeros(size)
        self.rate, self.momentum = rate, momentum

    def step(self, w, g):
        self.u = self.momentum * self.u - self.rate * g
        return w + (self.momentum * self.u - self.rate * g if self.nesterov else self.u)


class Nesterov(SGD):
    """Gradient descent with Nesterov's momentum."""

    nesterov = True


OPTIMIZERS = {
    "sgd": SGD,
    "nesterov": Nesterov,
    "adam": Adam,
    "rmsprop": RMSprop,
    "nadam": NAdam,
    "lion": Lion,
}


def is_weight(widths):
    """Which elements of the flat vector are weights."""
    layers = split(np.arange(sum((a + 1) * b for a, b in pairwise(widths))), widths)
    return np.concatenate([np.arange(W.size + b.size) < W.size for W, b in layers])
