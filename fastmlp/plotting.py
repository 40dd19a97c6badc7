"""Displays in scikit-learn's style: how training went, what the weights and the units look like.

Each class takes what it draws; ``from_estimator`` gets it from a fitted model, and ``plot`` draws
it, on axes of the caller's if there are any.  Matplotlib is imported when something is drawn.
Scores come from `fastmlp.inspect`, so that what is drawn is what can be looked at there.

Colours are those of Okabe and Ito (2008), and a diverging map from blue to red, which people who
do not tell red from green can read.
"""

from collections.abc import Callable, Sequence
from math import ceil, prod, sqrt
from operator import index
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.pipeline import Pipeline

from fastmlp._sklearn import check_is_fitted, safe_indexing
from fastmlp.estimators import MLPClassifier, MLPRegressor, fitted_model
from fastmlp.inspect import forward, slopes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis

__all__ = ["ActivationsDisplay", "LossCurveDisplay", "WeightsDisplay"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "0.45"
_DIVERGING = "RdBu_r"
_GREY_OF_GAPS = 0.85  # between images
_MAX_NAMES = 30  # at the ticks of an axis


def _pyplot(display: object) -> ModuleType:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f'{type(display).__name__}.plot needs Matplotlib: pip install "fastmlp[plot]".'
        ) from error
    return plt


def _network_of(estimator: Any, X: Any = None) -> tuple[MLPClassifier | MLPRegressor, Any]:
    """The network inside pipelines, searches and target transformers, and ``X`` as it gets it."""
    while not isinstance(estimator, MLPClassifier | MLPRegressor):
        if isinstance(estimator, Pipeline):
            X = None if X is None else estimator[:-1].transform(X)
            estimator = estimator[-1]
            continue
        inner = getattr(estimator, "best_estimator_", getattr(estimator, "regressor_", None))
        if inner is None:
            raise TypeError(
                "estimator must be a fitted MLPClassifier or MLPRegressor of fastmlp, or a "
                f"pipeline that ends in one, got {type(estimator).__name__}."
            )
        estimator = inner
    check_is_fitted(estimator)
    return estimator, X


def _layer_name(layer: int, n_hidden: int) -> str:
    return "the output layer" if layer == n_hidden else f"hidden layer {layer + 1}"


class LossCurveDisplay:
    """Loss, validation and learning rate over the epochs of training.

    Parameters
    ----------
    history : dict of str to list
        A model's ``history_``.
    name : str, default=None
        Goes before the labels, to tell several models on the same axes apart; the curves of a
        model with a name have one colour.
    unit : str, default='Epoch'
        Label of the horizontal axis.

    Attributes
    ----------
    best_epoch : int or None
        The epoch of the best validation score, else of the smallest validation loss; None without
        validation.
    ax_ : matplotlib Axes
        Axes of the losses.
    score_ax_ : matplotlib Axes or None
        Axes of the validation score, on the right.
    learning_rate_ax_ : matplotlib Axes or None
        Axes of the learning rate, below.
    figure_ : matplotlib Figure
    lines_ : dict of str to matplotlib Line2D
        Curves by the name of their entry in ``history``, and 'best_epoch'.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from fastmlp import MLPRegressor
    >>> from fastmlp.plotting import LossCurveDisplay
    >>> X = [[i / 50] for i in range(50)]
    >>> model = MLPRegressor(random_state=0, early_stopping=True, tol=0.01)
    >>> display = LossCurveDisplay.from_estimator(model.fit(X, [x[0] for x in X]))
    >>> sorted(display.lines_)
    ['best_epoch', 'loss', 'validation_score']
    >>> plt.close(display.figure_)
    """

    def __init__(
        self, *, history: dict[str, list[Any]], name: str | None = None, unit: str = "Epoch"
    ) -> None:
        self.history = history
        self.name = name
        self.unit = unit

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        name: str | None = None,
        ax: "Axes | None" = None,
        log_scale: bool = False,
        learning_rate: bool | None = None,
    ) -> "LossCurveDisplay":
        """Draw the history of a fitted model.

        Parameters
        ----------
        estimator : MLPClassifier or MLPRegressor
            A fitted model, or a pipeline or a search with one.
        name : str, default=None
            See the class.
        ax : matplotlib Axes, default=None
            Where to draw; ``ax_`` of another display draws several models together.
        log_scale : bool, default=False
            Whether the axis of the loss is logarithmic.
        learning_rate : bool, default=None
            Whether to draw the learning rate; None means if it changes.

        Returns
        -------
        display : LossCurveDisplay

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the model was not fitted.
        TypeError
            If ``estimator`` neither is such a model nor has one.
        ValueError
            If the model has no ``history_``, because it stands before its first epoch.
        """
        model, _ = _network_of(estimator)
        if not hasattr(model, "history_"):
            raise ValueError("LossCurveDisplay needs the history of a training: call fit first.")
        unit = "Iteration" if model.solver == "lbfgs" else "Epoch"
        display = cls(history=model.history_, name=name, unit=unit)
        return display.plot(ax, log_scale=log_scale, learning_rate=learning_rate)

    @property
    def best_epoch(self) -> int | None:
        name = self._judge()
        if name is None:
            return None
        values = np.array(self.history[name], float)
        best = np.nanargmin(values) if name == "validation_loss" else np.nanargmax(values)
        return self.history["epoch"][best]

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        log_scale: bool = False,
        learning_rate: bool | None = None,
    ) -> "LossCurveDisplay":
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw.
        log_scale : bool, default=False
            Whether the axis of the loss is logarithmic.
        learning_rate : bool, default=None
            Whether to draw the learning rate; None means if it changes.

        Returns
        -------
        display : LossCurveDisplay
            This one.
        """
        plt = _pyplot(self)
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        self.lines_: dict[str, Any] = {}
        self._curve(ax, "loss", "training loss", "-")
        self._curve(ax, "validation_loss", "validation loss", "--")
        ax.set(ylabel="Loss", yscale="log" if log_scale else "linear")
        self.score_ax_ = self.learning_rate_ax_ = None
        if self._has_score():
            self.score_ax_ = _companion(ax, "Validation score", ax.twinx)
            self._curve(self.score_ax_, "validation_score", "validation score", ":")
        rates = self._finite("learning_rate")
        if learning_rate or (learning_rate is None and np.unique(rates).size > 1):
            self.learning_rate_ax_ = _companion(ax, "Learning rate", lambda: _axes_below(ax))
            self._curve(self.learning_rate_ax_, "learning_rate", "learning rate", "-")
            self.learning_rate_ax_.set_ylim(0, None)
        self._mark_best_epoch()
        lowest = _companions(ax).get("Learning rate", ax)
        lowest.set_xlabel(self.unit)
        _tick_whole_numbers(lowest.xaxis)
        self._legend()
        return self

    # --- inside

    def _finite(self, name: str) -> np.ndarray:
        values = np.array(self.history[name], float)
        return values[np.isfinite(values)]

    def _has_score(self) -> bool:
        """Whether there are scores that tell more than the validation loss."""
        loss, score = (np.array(self.history[f"validation_{x}"], float) for x in ("loss", "score"))
        has_any = self._finite("validation_score").size > 0
        return has_any and not np.array_equal(score, -loss, equal_nan=True)

    def _judge(self) -> str | None:
        """What says which epoch was best."""
        if self._has_score():
            return "validation_score"
        return "validation_loss" if self._finite("validation_loss").size else None

    def _colour(self, entry: str) -> str:
        if self.name is None:
            entries = ("loss", "validation_loss", "validation_score")
            return _COLOURS[entries.index(entry)] if entry in entries else _GREY
        lines = [line for line in self.ax_.get_lines() if line.get_gid() == "loss"]
        return _COLOURS[(len(lines) - (entry != "loss")) % len(_COLOURS)]

    def _label(self, text: str) -> str:
        return text if self.name is None else f"{self.name}: {text}"

    def _curve(self, ax: "Axes", entry: str, label: str, style: str) -> None:
        if not self._finite(entry).size:
            return
        epochs = self.history["epoch"]
        (self.lines_[entry],) = ax.plot(
            epochs, self.history[entry], style, color=self._colour(entry), gid=entry,
            label=self._label(label), marker="." if len(epochs) == 1 else "",
        )  # fmt: skip

    def _mark_best_epoch(self) -> None:
        entry, epoch = self._judge(), self.best_epoch
        if entry is None or entry not in self.lines_:
            return
        curve = self.lines_[entry]
        value = self.history[entry][self.history["epoch"].index(epoch)]
        (self.lines_["best_epoch"],) = curve.axes.plot(
            [epoch], [value], "o", color=curve.get_color(), gid="best_epoch",
            label=self._label(f"best {self.unit.lower()} {epoch}"),
        )  # fmt: skip

    def _legend(self) -> None:
        """Above the axes, where no curve is."""
        axes = [self.ax_, _companions(self.ax_).get("Validation score", self.ax_)]
        lines = [line for ax in dict.fromkeys(axes) for line in ax.get_lines() if line.get_gid()]
        if self.name is not None:
            lines.sort(key=lambda line: line.get_label().rpartition(": ")[0])
        self.ax_.legend(
            handles=lines, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False
        )


def _companions(ax: "Axes") -> dict[str, Any]:
    """Axes beside ``ax`` that displays have made for it, by their label."""
    return ax.__dict__.setdefault("_fastmlp_companions", {})


def _companion(ax: "Axes", label: str, create: Callable[[], "Axes"]) -> "Axes":
    """One of them, made if it is not there."""
    companions = _companions(ax)
    if label not in companions:
        companions[label] = create()
        companions[label].set_ylabel(label)
    return companions[label]


def _tick_whole_numbers(axis: "XAxis | YAxis") -> None:
    locator: Any = axis.get_major_locator()
    locator.set_params(integer=True, min_n_ticks=1)


def _axes_below(ax: "Axes") -> "Axes":
    """New axes in the lower quarter of the place of ``ax``."""
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError(
            "The learning rate needs axes made by plt.subplots, a part of which it takes; set "
            "learning_rate=False."
        )
    parts = place.subgridspec(2, 1, height_ratios=[3, 1])
    for one in (ax, *_companions(ax).values()):
        one.set_subplotspec(parts[0])
    ax.tick_params(labelbottom=False)
    ax.set_xlabel("")
    return ax.figure.add_subplot(parts[1], sharex=ax)


class WeightsDisplay:
    """Weights of one layer, as images of its units or as a heat map.

    Parameters
    ----------
    weights : ndarray of shape (fan_in, fan_out)
        Weights of the layer.
    image_shape : sequence of int, default=None
        (height, width) or (height, width, 3) of the images that the inputs are; None means a heat
        map.
    layer_name : str, default='the layer'
        For the labels.
    input_label, unit_label : str, default=None
        What the heat map's rows and columns are.
    input_names, unit_names : sequence of str, default=None
        Their names.

    Attributes
    ----------
    units_ : ndarray of shape (n_images,)
        The units whose images are shown, row by row; a heat map has none.
    image_ : matplotlib AxesImage
        All of it.
    colorbar_ : matplotlib Colorbar or None
        None for images in colour.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from fastmlp import MLPClassifier
    >>> from fastmlp.plotting import WeightsDisplay
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> model = MLPClassifier((16,), solver="lbfgs", max_iter=20, max_fun=40, alpha=1.0)
    >>> model = model.set_params(tol=1.0).fit(X / 16, y)
    >>> display = WeightsDisplay.from_estimator(model, image_shape=(8, 8))
    >>> display.units_.shape
    (16,)
    >>> plt.close(display.figure_)
    """

    def __init__(
        self,
        *,
        weights: np.ndarray,
        image_shape: Sequence[int] | None = None,
        layer_name: str = "the layer",
        input_label: str | None = None,
        unit_label: str | None = None,
        input_names: Sequence[Any] | np.ndarray | None = None,
        unit_names: Sequence[Any] | np.ndarray | None = None,
    ) -> None:
        self.weights = weights
        self.image_shape = image_shape
        self.layer_name = layer_name
        self.input_label = input_label or "Input"
        self.unit_label = unit_label or f"Unit of {layer_name}"
        self.input_names = input_names
        self.unit_names = unit_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        layer: int = 0,
        image_shape: Sequence[int] | None = None,
        ax: "Axes | None" = None,
        n_images: int = 36,
    ) -> "WeightsDisplay":
        """Draw the weights of a fitted model.

        Parameters
        ----------
        estimator : MLPClassifier or MLPRegressor
            A fitted model, or a pipeline or a search with one.
        layer : int, default=0
            Index into ``coefs_``.
        image_shape : sequence of int, default=None
            See the class.
        ax : matplotlib Axes, default=None
            Where to draw.
        n_images : int, default=36
            Most images to show: those of the units with the largest weights.

        Returns
        -------
        display : WeightsDisplay

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the model was not fitted.
        TypeError
            If ``estimator`` neither is such a model nor has one.
        ValueError
            If there is no such layer, or ``image_shape`` is not one of its inputs.
        """
        model, _ = _network_of(estimator)
        n_layers = len(model.coefs_)
        if not -n_layers <= layer < n_layers:
            raise ValueError(f"layer must be an index into coefs_, of {n_layers}, got {layer}.")
        layer %= n_layers
        weights = model.coefs_[layer]
        classes = getattr(model, "classes_", ())
        is_output_of_classes = layer == n_layers - 1 and len(classes) == weights.shape[1]
        display = cls(
            weights=weights,
            image_shape=image_shape,
            layer_name=_layer_name(layer, n_layers - 1),
            input_label=f"Unit of {_layer_name(layer - 1, n_layers - 1)}" if layer else "Feature",
            unit_label="Class" if is_output_of_classes else None,
            input_names=getattr(model, "feature_names_in_", None) if layer == 0 else None,
            unit_names=classes if is_output_of_classes else None,
        )
        return display.plot(ax, n_images=n_images)

    def plot(self, ax: "Axes | None" = None, *, n_images: int = 36) -> "WeightsDisplay":
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw.
        n_images : int, default=36
            Most images to show: those of the units with the largest weights.

        Returns
        -------
        display : WeightsDisplay
            This one.

        Raises
        ------
        ValueError
            If ``image_shape`` is not one of the layer's inputs.
        """
        plt = _pyplot(self)
        shape = self._checked_image_shape()
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        self.ax_, self.figure_, self.colorbar_ = ax, ax.figure, None
        if shape is None:
            self._plot_heat_map()
        else:
            self._plot_images(shape, n_images)
        if shape is None or len(shape) == 2:
            extend = "neither" if shape is None else "both"
            self.colorbar_ = self.figure_.colorbar(
                self.image_, ax=ax, label="Weight", extend=extend
            )
        return self

    # --- inside

    def _checked_image_shape(self) -> tuple[int, ...] | None:
        if self.image_shape is None:
            return None
        fan_in = self.weights.shape[0]
        try:
            shape = tuple(map(index, self.image_shape))
        except TypeError:  # no sequence, or not of integers
            shape = ()
        fits = len(shape) in (2, 3) and shape[2:] in ((), (3,))
        if not fits or min(shape) < 1 or prod(shape) != fan_in:
            raise ValueError(
                "image_shape must be (height, width) or (height, width, 3), whole numbers with a "
                f"product of {fan_in}, the inputs of {self.layer_name}, got {self.image_shape!r}."
            )
        return shape

    def _plot_heat_map(self) -> None:
        limit = np.abs(self.weights).max() or 1.0
        self.image_ = self.ax_.imshow(
            self.weights, cmap=_DIVERGING, vmin=-limit, vmax=limit, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        self.ax_.set(xlabel=self.unit_label, ylabel=self.input_label)
        _name_ticks(self.ax_.yaxis, self.input_names, self.weights.shape[0])
        _name_ticks(self.ax_.xaxis, self.unit_names, self.weights.shape[1])

    def _plot_images(self, shape: tuple[int, ...], n_images: int) -> None:
        sizes = np.einsum("ij,ij->j", self.weights, self.weights)
        self.units_ = np.argsort(-sizes, kind="stable")[:n_images]
        weights = self.weights[:, self.units_]
        limit = np.quantile(np.abs(weights), 0.995) or np.abs(weights).max() or 1.0
        mosaic = _mosaic(weights.T.reshape(-1, *shape))
        if mosaic.ndim == 3:
            mosaic = np.nan_to_num(np.clip(0.5 + 0.5 * mosaic / limit, 0, 1), nan=_GREY_OF_GAPS)
        self.image_ = self.ax_.imshow(
            mosaic, cmap=_DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest"
        )
        self.image_.set_cmap(self.image_.get_cmap().with_extremes(bad=str(_GREY_OF_GAPS)))
        self.ax_.set_axis_off()
        shown, n_units = len(self.units_), self.weights.shape[1]
        which = f"{n_units} units" if shown == n_units else f"{shown} of {n_units} units"
        self.ax_.set_title(f"{which} of {self.layer_name}, largest weights first")


def _name_ticks(axis: "XAxis | YAxis", names: Sequence[Any] | np.ndarray | None, n: int) -> None:
    """Names at the ticks if there is room for them, else whole numbers."""
    if names is not None and n <= _MAX_NAMES:
        axis.set_ticks(range(n), labels=[str(name) for name in names])
        longest = max(len(str(name)) for name in names)
        if axis.axis_name == "x" and longest * n > 40:
            axis.set_tick_params(rotation=90)
    else:
        _tick_whole_numbers(axis)


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Images (n, height, width, ...) side by side, a NaN wide apart; about as wide as high."""
    n, height, width = images.shape[:3]
    columns = ceil(n / max(1, round(sqrt(n * width / height))))
    rows = ceil(n / columns)
    gap = max(1, round(0.06 * max(height, width)))
    shape = rows * (height + gap) - gap, columns * (width + gap) - gap, *images.shape[3:]
    mosaic = np.full(shape, np.nan)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        mosaic[top : top + height, left : left + width] = image
    return mosaic


class ActivationsDisplay:
    """Distribution of the scores ``z`` of each hidden layer, dead units, saturation.

    A unit is dead if the derivative of its activation is below a threshold for all samples: no
    gradient passes it.  A layer's saturation is the share of samples and units where it is.

    Parameters
    ----------
    scores : list of ndarray of shape (n_samples, n_units)
        What the activation of each hidden layer takes.
    slopes : list of ndarray of shape (n_samples, n_units)
        Its derivative there.
    layer_names : sequence of str
        Labels.
    threshold : float, default=0.01
        Size below which a derivative counts as none.

    Attributes
    ----------
    dead_shares : list of float
        Share of dead units of each layer.
    saturations : list of float
        Share of derivatives below the threshold.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    distributions_ : list of matplotlib StepPatch
        The histogram of each layer, up to its own height.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> from fastmlp import MLPRegressor
    >>> from fastmlp.plotting import ActivationsDisplay
    >>> X = np.random.default_rng(0).normal(size=(100, 3))
    >>> model = MLPRegressor(random_state=0, tol=0.1, hidden_layer_sizes=(20, 10))
    >>> display = ActivationsDisplay.from_estimator(model.fit(X, X[:, 0]), X)
    >>> display.dead_shares
    [0.0, 0.0]
    >>> plt.close(display.figure_)
    """

    def __init__(
        self,
        *,
        scores: list[np.ndarray],
        slopes: list[np.ndarray],
        layer_names: Sequence[str],
        threshold: float = 0.01,
    ) -> None:
        self.scores = scores
        self.slopes = slopes
        self.layer_names = layer_names
        self.threshold = threshold

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        threshold: float = 0.01,
        max_samples: int = 1000,
        ax: "Axes | None" = None,
    ) -> "ActivationsDisplay":
        """Draw what a fitted model makes of samples.

        Parameters
        ----------
        estimator : MLPClassifier or MLPRegressor
            A fitted model, or a pipeline or a search with one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        threshold : float, default=0.01
            See the class.
        max_samples : int, default=1000
            Look at that many samples at most, taken at equal distances.
        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : ActivationsDisplay

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the model was not fitted.
        TypeError
            If ``estimator`` neither is such a model nor has one.
        ValueError
            If the model has no hidden layer.
        """
        n_samples = X.shape[0] if hasattr(X, "shape") else len(X)
        if n_samples > max_samples:
            X = safe_indexing(X, np.linspace(0, n_samples - 1, max_samples).astype(int))
        model, X = _network_of(estimator, X)
        passed = forward(model, X)
        n_hidden = len(passed.z) - 1
        if n_hidden == 0:
            raise ValueError("ActivationsDisplay needs a network with a hidden layer.")
        display = cls(
            scores=passed.normalised[:-1],
            slopes=slopes(model, passed),
            layer_names=[
                f"{_layer_name(layer, n_hidden)}\n{name}"
                for layer, name in enumerate(fitted_model(model).network.activation_names)
            ],
            threshold=threshold,
        )
        return display.plot(ax)

    @property
    def dead_shares(self) -> list[float]:
        return [float((np.abs(s) < self.threshold).all(axis=0).mean()) for s in self.slopes]

    @property
    def saturations(self) -> list[float]:
        return [float((np.abs(s) < self.threshold).mean()) for s in self.slopes]

    def plot(self, ax: "Axes | None" = None) -> "ActivationsDisplay":
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw.

        Returns
        -------
        display : ActivationsDisplay
            This one.
        """
        plt = _pyplot(self)
        n_layers = len(self.scores)
        if ax is None:
            size = (6.4, max(2.4, 1.0 + 0.9 * n_layers))
            _, ax = plt.subplots(figsize=size, layout="constrained")
        self.ax_, self.figure_, self.distributions_ = ax, ax.figure, []
        bins = self._bins()
        dead, saturated = self.dead_shares, self.saturations
        for layer, z in enumerate(self.scores):
            counts = np.histogram(z, bins)[0]
            heights = 0.8 * counts / max(1, counts.max())
            self.distributions_.append(
                ax.stairs(layer - heights, bins, baseline=layer, fill=True, color=_COLOURS[0])
            )
            n_units = z.shape[1]
            n_dead = round(dead[layer] * n_units)
            text = f"{n_dead} of {n_units} units dead\n{saturated[layer]:.0%} saturated"
            ax.annotate(
                text, (1.02, layer), xycoords=("axes fraction", "data"), va="bottom", color=_GREY
            )
        ax.axvline(0, color=_GREY, lw=0.8, ls=":")
        ax.set_ylim(n_layers - 0.9, -0.95)
        ax.set_yticks(range(n_layers), labels=self.layer_names, va="bottom")
        ax.tick_params(axis="y", length=0)
        ax.spines[["left", "right", "top"]].set_visible(False)
        ax.set_xlabel("Score z")
        return self

    def _bins(self) -> np.ndarray:
        """Edges of bins from the lowest score of any layer to the highest, but for 0.1 %."""
        ends = [np.quantile(z, [0.001, 0.999]) for z in self.scores]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        if low == high:
            low, high = low - 1.0, high + 1.0
        n_bins = int(np.clip(sqrt(min(z.size for z in self.scores)), 10, 80))
        return np.linspace(low, high, n_bins + 1)
