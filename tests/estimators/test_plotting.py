"""What displays draw, as data of their artists; and the estimators' boxes in notebooks."""

import sys
import tracemalloc
from html.parser import HTMLParser

import matplotlib
import models
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.inspection import DecisionBoundaryDisplay
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from fastmlp import MLPClassifier, MLPRegressor, plotting
from fastmlp.functions import ACTIVATIONS
from fastmlp.inspect import initialise
from fastmlp.plotting import ActivationsDisplay, LossCurveDisplay, WeightsDisplay

rng = np.random.default_rng(0)
X = rng.normal(size=(150, 12))
LABELS = np.array(["a", "b", "c"])[np.argmax(X[:, :3], axis=1)]
QUICK = {"hidden_layer_sizes": (10, 8), "random_state": 0, "max_iter": 6}


def fit(model, *data, **options):
    return models.fit(model, *(data or (X, LABELS)), **options)


def classifier(**params):
    return fit(MLPClassifier(**QUICK | params))


@pytest.fixture(autouse=True)
def figures():
    """Every figure renders without a warning, and is closed."""
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# --- loss curves


def test_training_loss():
    model = classifier()
    display = LossCurveDisplay.from_estimator(model)
    (line,) = display.ax_.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), np.c_[range(1, 7), model.loss_curve_])
    assert display.lines_ == {"loss": line}
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("Epoch", "Loss")
    assert display.ax_.get_yscale() == "linear"
    assert display.score_ax_ is display.learning_rate_ax_ is display.best_epoch is None
    assert display.figure_ is display.ax_.figure


def test_early_stopping():
    model = classifier(early_stopping=True, learning_rate="cosine")
    display = LossCurveDisplay.from_estimator(model, log_scale=True)
    score, best = display.lines_["validation_score"], display.lines_["best_epoch"]
    np.testing.assert_array_equal(score.get_ydata(), model.validation_scores_)
    assert display.best_epoch == 1 + np.argmax(model.validation_scores_)
    np.testing.assert_array_equal(
        best.get_xydata(), [[display.best_epoch, model.best_validation_score_]]
    )
    assert score.axes is best.axes is display.score_ax_ is not display.ax_
    rate = display.lines_["learning_rate"]
    np.testing.assert_array_equal(rate.get_ydata(), model.history_["learning_rate"])
    assert rate.axes is display.learning_rate_ax_
    assert display.learning_rate_ax_.get_xlabel() == "Epoch"
    assert (display.ax_.get_xlabel(), display.ax_.get_yscale()) == ("", "log")
    best_text = f"best epoch {display.best_epoch}"
    assert texts(display.ax_) == ["training loss", "validation score", best_text]
    assert len({to_hex(line.get_color()) for line in display.lines_.values()}) == 3


def test_validation_loss():
    """A score that is minus the loss is not drawn once more."""
    model = classifier(early_stopping=True, scoring="loss")
    display = LossCurveDisplay.from_estimator(model)
    assert set(display.lines_) == {"loss", "validation_loss", "best_epoch"}
    curve = model.validation_loss_curve_
    np.testing.assert_array_equal(display.lines_["validation_loss"].get_ydata(), curve)
    assert display.best_epoch == 1 + np.argmin(curve)
    assert display.score_ax_ is None


def test_validation_that_began_after_a_warm_start():
    model = classifier(warm_start=True)
    fit(model.set_params(early_stopping=True, scoring="loss"))
    display = LossCurveDisplay.from_estimator(model)
    assert set(display.lines_) == {"loss", "validation_loss", "best_epoch"}


def test_learning_rate_on_request():
    model = classifier()
    assert LossCurveDisplay.from_estimator(model, learning_rate=True).learning_rate_ax_ is not None
    model = classifier(learning_rate="exponential")
    display = LossCurveDisplay.from_estimator(model, learning_rate=False)
    assert display.learning_rate_ax_ is None
    ax = plt.figure().add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(ValueError, match="needs axes made by"):
        LossCurveDisplay.from_estimator(model, ax=ax)


@pytest.mark.parametrize("solver", ["lbfgs", "sgd", "adam"])
def test_every_solver_and_validation_data(solver):
    model = fit(MLPClassifier(solver=solver, **QUICK), X, LABELS, X_val=X[:50], y_val=LABELS[:50])
    display = LossCurveDisplay.from_estimator(model)
    assert {"loss", "validation_loss", "validation_score"} <= set(display.lines_)
    assert display.learning_rate_ax_ is None
    unit = "Iteration" if solver == "lbfgs" else "Epoch"
    assert display.ax_.get_xlabel() == unit


def test_partial_fit():
    model = MLPClassifier(**QUICK)
    for n in (1, 2):
        model.partial_fit(X, LABELS, classes=list("abc"))
        line = LossCurveDisplay.from_estimator(model).lines_["loss"]
        np.testing.assert_array_equal(line.get_xydata(), np.c_[range(1, n + 1), model.loss_curve_])
        assert (line.get_marker() == ".") == (n == 1)


def test_several_models_on_the_same_axes():
    models = [
        classifier(early_stopping=True, learning_rate="cosine"),
        classifier(),
        classifier(early_stopping=True, random_state=1),
    ]
    ax = plt.subplots()[1]
    displays = [
        LossCurveDisplay.from_estimator(model, name=f"model {i}", ax=ax)
        for i, model in enumerate(models)
    ]
    assert displays[0].score_ax_ is displays[2].score_ax_
    assert len(ax.figure.axes) == 3
    colours = [{to_hex(line.get_color()) for line in d.lines_.values()} for d in displays]
    assert [len(colour) for colour in colours] == [1, 1, 1]
    assert len(set.union(*colours)) == 3
    labels = texts(ax)
    assert labels == sorted(labels, key=lambda text: text.split(":")[0])
    assert len(labels) == 7
    assert displays[0].learning_rate_ax_.get_xlabel() == "Epoch"
    assert ax.get_xlabel() == ""


def test_two_axes_that_share_x_are_two():
    axes = plt.subplots(1, 2, sharex=True)[1]
    model = classifier(early_stopping=True, learning_rate="cosine")
    displays = [LossCurveDisplay.from_estimator(model, ax=ax) for ax in axes]
    assert displays[0].score_ax_ is not displays[1].score_ax_
    assert displays[0].learning_rate_ax_ is not displays[1].learning_rate_ax_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_inside_other_estimators():
    network = MLPRegressor(**QUICK)
    y = X[:, 0]
    outer = [
        make_pipeline(StandardScaler(), network),
        TransformedTargetRegressor(make_pipeline(StandardScaler(), network)),
        GridSearchCV(network, {"alpha": [0.1]}, cv=2),
    ]
    for estimator in outer:
        display = LossCurveDisplay.from_estimator(estimator.fit(X, y))
        assert len(display.lines_["loss"].get_xdata()) == 6
    named = fit(outer[0], pd.DataFrame(X, columns=list("abcdefghijkl")), y)
    WeightsDisplay.from_estimator(named)
    display = ActivationsDisplay.from_estimator(
        named, pd.DataFrame(X, columns=list("abcdefghijkl"))
    )
    scaled = StandardScaler().fit_transform(X)
    z = scaled @ named[-1].coefs_[0] + named[-1].intercepts_[0]
    np.testing.assert_allclose(display.scores[0], z)


# --- weights


def test_heat_map():
    names = [f"feature {i}" for i in range(12)]
    model = fit(MLPClassifier(**QUICK), pd.DataFrame(X, columns=names), LABELS)
    display = WeightsDisplay.from_estimator(model)
    assert display.weights is model.coefs_[0]
    np.testing.assert_array_equal(display.image_.get_array(), model.coefs_[0])
    low, high = display.image_.get_clim()
    assert -low == high == np.abs(model.coefs_[0]).max()
    assert [text.get_text() for text in display.ax_.get_yticklabels()] == names
    assert display.ax_.get_xlabel() == "Unit of hidden layer 1"
    assert display.colorbar_.mappable is display.image_
    last = WeightsDisplay.from_estimator(model, layer=-1)
    assert [text.get_text() for text in last.ax_.get_xticklabels()] == ["a", "b", "c"]
    assert (last.ax_.get_xlabel(), last.ax_.get_ylabel()) == ("Class", "Unit of hidden layer 2")
    with pytest.raises(ValueError, match="layer must be an index into coefs_, of 3, got 3"):
        WeightsDisplay.from_estimator(model, layer=3)


def test_images_of_the_units_with_the_largest_weights():
    model = classifier()
    display = WeightsDisplay.from_estimator(model, image_shape=(3, 4), n_images=5)
    sizes = np.linalg.norm(model.coefs_[0], axis=0)
    np.testing.assert_array_equal(display.units_, np.argsort(-sizes)[:5])
    mosaic = display.image_.get_array()
    shown = [model.coefs_[0][:, unit].reshape(3, 4) for unit in display.units_]
    assert mosaic.shape == (3 + 1 + 3 + 1 + 3, 4 + 1 + 4)
    for i, image in enumerate(shown):
        top, left = i // 2 * 4, i % 2 * 5
        np.testing.assert_array_equal(mosaic[top : top + 3, left : left + 4], image)
    assert np.ma.getmaskarray(np.ma.masked_invalid(mosaic)).sum() == mosaic.size - 5 * 12
    assert display.ax_.get_title() == "5 of 10 units of hidden layer 1, largest weights first"


def test_images_in_colour():
    model = classifier()
    display = WeightsDisplay.from_estimator(model, image_shape=(2, 2, 3))
    mosaic = display.image_.get_array()
    assert mosaic.shape[2] == 3
    assert mosaic.min() >= 0
    assert mosaic.max() <= 1
    first = mosaic[:2, :2].reshape(-1) - 0.5
    weights = model.coefs_[0][:, display.units_[0]]
    assert (np.sign(first) == np.sign(weights)).all()
    assert display.colorbar_ is None


@pytest.mark.parametrize("shape", [[3, 4], np.array([3, 4]), [2, 2, 3]])
def test_images_of_any_sequence_of_sizes(shape):
    model = classifier()
    image = WeightsDisplay.from_estimator(model, image_shape=shape).image_.get_array()
    expected = WeightsDisplay.from_estimator(model, image_shape=tuple(shape)).image_.get_array()
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    "shape", [(3, 5), (12,), 12, (6, 2, 1), (1, 1, 3, 4), (3.0, 4.0), (-3, -4), "34"]
)
def test_wrong_image_shapes(shape):
    with pytest.raises(ValueError, match=r"image_shape must be .* a product of 12, the inputs of"):
        WeightsDisplay.from_estimator(classifier(), image_shape=shape)


def test_dead_weights():
    model = initialise(MLPClassifier(weight_init="zeros", **QUICK), X, LABELS)
    WeightsDisplay.from_estimator(model)
    WeightsDisplay.from_estimator(model, image_shape=(3, 4))
    ActivationsDisplay.from_estimator(model, X)


# --- activations


def test_distribution_of_scores():
    model = classifier(activation=["relu", "tanh"])
    display = ActivationsDisplay.from_estimator(model, X)
    z = X @ model.coefs_[0] + model.intercepts_[0]
    np.testing.assert_allclose(display.scores[0], z)
    outline = display.distributions_[0].get_data()
    counts = np.histogram(z, outline.edges)[0]
    np.testing.assert_allclose(0 - outline.values, 0.8 * counts / counts.max())
    names = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert names == ["hidden layer 1\nrelu", "hidden layer 2\ntanh"]
    assert [text.get_text() for text in display.ax_.texts] == [
        f"{round(dead * n)} of {n} units dead\n{saturated:.0%} saturated"
        for dead, saturated, n in zip(
            display.dead_shares, display.saturations, (10, 8), strict=True
        )
    ]


def test_dead_units_and_saturation():
    model = classifier(activation=["relu", "logistic"])
    model.intercepts_[0][:4] = -100.0
    model.intercepts_[1][:2] = 50.0
    display = ActivationsDisplay.from_estimator(model, X)
    z = X @ model.coefs_[0] + model.intercepts_[0]
    assert display.dead_shares[0] == (z <= 0).all(axis=0).mean() >= 0.4
    assert display.saturations[0] == (z <= 0).mean()
    a = 1 / (1 + np.exp(-(np.maximum(z, 0) @ model.coefs_[1] + model.intercepts_[1])))
    assert display.dead_shares[1] == ((a * (1 - a)) < 0.01).all(axis=0).mean() == 0.25
    assert display.saturations[1] == ((a * (1 - a)) < 0.01).mean()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_new_networks_are_alive(activation):
    """In float32 too, where a slope of 0.01 is a little less than that."""
    model = MLPClassifier(activation=activation, **QUICK)
    model = initialise(model, X.astype(np.float32), LABELS)
    display = ActivationsDisplay.from_estimator(model, X.astype(np.float32))
    plt.close()
    assert max(display.dead_shares) <= 0.25
    assert max(display.saturations) < 0.7


def test_many_samples_are_thinned_out():
    model = classifier()
    display = ActivationsDisplay.from_estimator(model, X, max_samples=20)
    assert display.scores[0].shape == (20, 10)
    z = X @ model.coefs_[0] + model.intercepts_[0]
    np.testing.assert_allclose(display.scores[0][[0, -1]], z[[0, -1]])
    ActivationsDisplay.from_estimator(model, X.tolist(), max_samples=20)
    ActivationsDisplay.from_estimator(model, pd.DataFrame(X), max_samples=20)


# --- all of them


def test_refusals():
    linear = fit(MLPRegressor(hidden_layer_sizes=(), max_iter=2), X, X[:, 0])
    with pytest.raises(ValueError, match="needs a network with a hidden layer"):
        ActivationsDisplay.from_estimator(linear, X)
    with pytest.raises(ValueError, match="needs the history of a training: call fit first"):
        LossCurveDisplay.from_estimator(initialise(MLPClassifier(), X, LABELS))
    for draw in (LossCurveDisplay.from_estimator, WeightsDisplay.from_estimator,
                 lambda model: ActivationsDisplay.from_estimator(model, X)):  # fmt: skip
        with pytest.raises(NotFittedError):
            draw(MLPClassifier())
        with pytest.raises(TypeError, match="got LogisticRegression"):
            draw(LogisticRegression())


def test_axes_of_the_caller():
    axes = plt.subplots(1, 3)[1]
    model = classifier()
    displays = [
        LossCurveDisplay.from_estimator(model, ax=axes[0]),
        WeightsDisplay.from_estimator(model, ax=axes[1]),
        ActivationsDisplay.from_estimator(model, X, ax=axes[2]),
    ]
    assert [display.ax_ for display in displays] == list(axes)
    assert plt.get_fignums() == [axes[0].figure.number]


def test_without_matplotlib(monkeypatch):
    """It is not imported with the module, and missed in words."""
    names = [getattr(v, "__module__", getattr(v, "__name__", "")) for v in vars(plotting).values()]
    assert not any(str(name).startswith("matplotlib") for name in names)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'plot needs Matplotlib: pip install "fastmlp\[plot\]"'):
        WeightsDisplay.from_estimator(classifier())


@pytest.mark.parametrize("method", ["predict_proba", "predict"])
def test_decision_boundary_display(method):
    """scikit-learn's."""
    model = fit(MLPClassifier(**QUICK), X[:, :2], X[:, 0] > X[:, 1])
    display = DecisionBoundaryDisplay.from_estimator(
        model, X[:, :2], response_method=method, grid_resolution=20
    )
    assert display.response.shape == (20, 20)
    regressor = fit(MLPRegressor(**QUICK), X[:, :2], X[:, 0])
    display = DecisionBoundaryDisplay.from_estimator(regressor, X[:, :2], grid_resolution=20)
    grid = np.c_[display.xx0.ravel(), display.xx1.ravel()]
    np.testing.assert_allclose(display.response.ravel(), regressor.predict(grid))


# --- HTML


class Captions(HTMLParser):
    """Texts of the elements of class "caption"."""

    def __init__(self, html):
        super().__init__()
        self.inside, self.texts = False, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside = ("class", "caption") in attrs

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts.append(data)


def test_box_in_a_notebook():
    model = classifier()
    (text,) = Captions(model._repr_html_()).texts
    assert text == (
        "12 → 10 relu → 8 relu → 3 softmax, 245 parameters; "
        f"loss {model.loss_:.4g} after 6 epochs (max_iter)"
    )
    assert Captions(MLPClassifier()._repr_html_()).texts == []
    model = initialise(model, X, LABELS)
    assert Captions(model._repr_html_()).texts == [text.partition(";")[0]]
    model = fit(
        MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", loss="poisson"), X, X[:, 0] ** 2
    )
    (text,) = Captions(model._repr_html_()).texts
    assert text.startswith("12 → 1 exp, 13 parameters; loss ")
    assert text.endswith(f"after {model.n_iter_} iterations (converged)")


def test_box_of_functions_of_the_user():
    model = classifier(activation=[(lambda z: 2 * z, lambda z: 2 + 0 * z), "relu"])
    assert "12 → 10 <lambda> → 8 relu" in Captions(model._repr_html_()).texts[0]
    assert "<lambda>" not in model._repr_html_()


def test_box_in_a_pipeline():
    pipeline = fit(make_pipeline(StandardScaler(), MLPClassifier(**QUICK)))
    (text,) = Captions(pipeline._repr_html_()).texts
    assert text.startswith("12 → 10 relu")


def test_box_copies_no_weights():
    model = MLPRegressor(hidden_layer_sizes=(2500, 2500), random_state=0)
    model = initialise(model, X[:10], X[:10, 0])
    assert sum(W.nbytes for W in model.coefs_) > 50e6
    model._repr_html_()
    tracemalloc.start()
    model._repr_html_()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6
