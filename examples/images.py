"""Images of two classes with 64 x 64 x 3 = 12288 features: logistic regression and a deep network.

The images are random patches of scikit-learn's two bundled photographs, of a Chinese temple and of
a flower; the task is to say from which photograph a patch comes.  Patches for training are from the
left of the photographs, those for testing from the right, so that none overlaps one of the others.
Each colour of each patch is standardised, so that its mean and its contrast tell nothing; what is
left is texture.

Logistic regression has a weight for each number, enough to learn nearly all of 1200 patches by
heart.  But on new patches it is hardly better than a coin: since patches are cut at random places,
every pixel is about as often bright as dark in both classes, and a weighted sum of pixels says next
to nothing.  What tells textures apart is how pixels belong together, products of pixels rather than
sums.  One such number shows it, the mean squared difference of neighbours ("roughness"): logistic
regression on it alone does far better than on all pixels.  A network with hidden layers is not told
of any such number, and learns from the pixels to do better still.

The picture shows patches as the networks get them, stretched to the screen's colours, and the
accuracies on new patches over the epochs.

Needs ``pip install "fastmlp[examples]"``; writes images.png.  Run it with ``--tiny`` for a
shortened version.
"""

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from fastmlp import MLPClassifier

TINY = "--tiny" in sys.argv
SIZE = 64
N_TRAIN, N_TEST = (60, 100) if TINY else (600, 300)  # for each photograph
EPOCHS = 5 if TINY else 25
BORDER = 400  # between the columns for training and for testing


def cut(photograph, first, last, n, rng):
    """n random patches between two columns, standardised; shape (n, 64, 64, 3)."""
    tops = rng.integers(0, photograph.shape[0] - SIZE + 1, n)
    lefts = rng.integers(first, last - SIZE + 1, n)
    patches = np.stack([
        photograph[top : top + SIZE, left : left + SIZE]
        for top, left in zip(tops, lefts, strict=True)
    ]).astype(np.float32)  # fmt: skip
    mean, deviation = (f(patches, axis=(1, 2), keepdims=True) for f in (np.mean, np.std))
    return (patches - mean) / (deviation + 5)  # 5 of 255, or the noise of even areas would be all


def load(first, last, n, seed):
    """Rows of 12288 features, and which photograph they are from."""
    rng = np.random.default_rng(seed)
    photographs = load_sample_images().images
    patches = np.concatenate([cut(one, first, last, n, rng) for one in photographs])
    return patches.reshape(2 * n, -1), np.repeat([0, 1], n)


def roughness(X):
    """Mean squared difference of neighbours; shape (n_samples, 1)."""
    images = X.reshape(-1, SIZE, SIZE, 3)
    squares = [np.mean(np.diff(images, axis=axis) ** 2, axis=(1, 2, 3)) for axis in (1, 2)]
    return np.log(sum(squares) + 1e-3)[:, None]


def train(hidden_layer_sizes, data, new):
    """A network that notes its accuracy on new patches after each epoch."""
    model = MLPClassifier(
        hidden_layer_sizes,
        learning_rate_init=0.0005,
        batch_size=50,
        max_iter=EPOCHS,
        n_iter_no_change=np.inf,
        random_state=0,
    )
    return model.fit(*data, X_val=new[0], y_val=new[1])


def compare(data, new):
    layers = {"logistic regression": (), "deep network": (128, 64)}
    models = {name: train(sizes, data, new) for name, sizes in layers.items()}
    theirs = LogisticRegression(C=1, max_iter=20 if TINY else 100).fit(*data)
    rough = LogisticRegression().fit(roughness(data[0]), data[1])
    print("accuracy                         on patches learned from    on new ones")
    scores = {name: (model.score(*data), model.score(*new)) for name, model in models.items()}
    scores["scikit-learn's"] = theirs.score(*data), theirs.score(*new)
    scores["of the roughness alone"] = tuple(rough.score(roughness(X), y) for X, y in (data, new))
    for name, (learned, found) in scores.items():
        print(f"{name:<32} {learned:12.3f} {found:22.3f}")
    for name in ("logistic regression", "scikit-learn's"):
        assert abs(scores[name][1] - 0.5) < (0.2 if TINY else 0.1)
    assert scores["deep network"][1] > scores["logistic regression"][1] + (0 if TINY else 0.15)
    roughness_alone = scores["of the roughness alone"][1]
    assert roughness_alone > scores["logistic regression"][1] + 0.1
    assert TINY or scores["deep network"][1] > roughness_alone
    return models, roughness_alone


def show(axes, image, title):
    """An image with its numbers stretched to 0..1."""
    low, high = np.quantile(image, [0.01, 0.99])
    axes.imshow(np.clip((image.reshape(SIZE, SIZE, 3) - low) / (high - low), 0, 1))
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def draw(models, roughness_alone, X, y):
    figure = plt.figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    rng = np.random.default_rng(1)
    for row, name in zip(left.subplots(2, 4), ("temple", "flower"), strict=True):
        members = np.flatnonzero(y == (name == "flower"))
        for axes, i in zip(row, rng.choice(members, 4), strict=True):
            show(axes, X[i], name)
    axes = right.subplots()
    for (name, model), style in zip(models.items(), ("--", "-"), strict=True):
        epochs, scores = model.history_["epoch"], model.history_["validation_score"]
        axes.plot(epochs, scores, style, label=name)
    axes.axhline(roughness_alone, color="black", linestyle=":", label="roughness alone")
    axes.axhline(0.5, color="0.7", linewidth=0.8)
    axes.set(xlabel="epoch", ylabel="accuracy on new patches", ylim=(0.4, 1))
    axes.legend(fontsize=8, loc="center right")
    figure.savefig("images.png", dpi=110)


def main():
    warnings.simplefilter("ignore", ConvergenceWarning)  # all get the same number of epochs
    plt.style.use("tableau-colorblind10")
    data = load(0, BORDER, N_TRAIN, seed=0)
    new = load(BORDER, 640, N_TEST, seed=1)
    print(f"{len(data[0])} patches of {data[0].shape[1]} features to learn from")
    models, roughness_alone = compare(data, new)
    draw(models, roughness_alone, *data)
    print("see images.png")


if __name__ == "__main__":
    main()
