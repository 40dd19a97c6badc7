"""Labels and values: what stands between a user's ``y`` and the outputs of a network.

Each knows how to encode ``y`` for the engine, what outputs say in the user's terms, and how they
are scored.  Scores are written out, because they run once per epoch and the checks in front of
scikit-learn's take longer than a small network's epoch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from fastmlp._sklearn import (
    LabelBinarizer,
    assert_all_finite,
    d2_pinball_score,
    unique_labels,
)
from fastmlp.training.run import is_finite


@dataclass(frozen=True)
class Labels:
    """Targets of a classifier.

    Parameters
    ----------
    binarizer : LabelBinarizer
        Fitted; it knows the kind of the labels and the classes.
    """

    binarizer: LabelBinarizer

    fewest_scored = 1
    """Samples with which a score is defined."""

    @property
    def kind(self) -> str:
        """'binary', 'multiclass' or 'multilabel-indicator'."""
        return self.binarizer.y_type_

    @property
    def classes(self) -> np.ndarray:
        return self.binarizer.classes_

    @property
    def is_multilabel(self) -> bool:
        return self.kind.startswith("multilabel")

    @property
    def is_multiclass(self) -> bool:
        return self.kind == "multiclass"

    def n_outputs(self, encoded: np.ndarray) -> int:
        """Units of the output layer."""
        return len(self.classes) if encoded.ndim == 1 else encoded.shape[1]

    def encode(self, y: np.ndarray, dtype: Any) -> np.ndarray:
        """Class numbers (n_samples,) of several classes, else ones and zeros (n_samples, n)."""
        if self.is_multiclass:
            return np.searchsorted(self.classes, y)
        if self.kind == "binary":
            positive = y == self.classes[-1] if len(self.classes) == 2 else np.zeros(len(y))
            return positive.astype(dtype)[:, None]
        # any number but 0 means that the sample has the label, as in scikit-learn
        return self.binarizer.transform(y).astype(bool).astype(dtype)

    def decode(self, outputs: np.ndarray) -> np.ndarray:
        """Labels."""
        classes = self.classes
        if self.is_multiclass:
            return classes[outputs.argmax(axis=1)]
        if self.kind == "binary" and len(classes) == 2:
            return classes[(outputs.ravel() > 0.5).view(np.int8)]
        alone = outputs.shape[1] == 1
        return self.binarizer.inverse_transform(outputs.ravel() if alone else outputs)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """A column for each class, or for each label."""
        return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs

    def stratify(self, encoded: np.ndarray) -> np.ndarray | None:
        """What scikit-learn stratifies the validation split by; None for nothing."""
        return encoded.astype(bool) if encoded.ndim == 2 and encoded.shape[1] == 1 else None

    def columns(self, encoded: np.ndarray) -> list[np.ndarray]:
        """Class numbers, a column for each question that the labels answer."""
        return [encoded] if encoded.ndim == 1 else list(encoded.T.astype(np.int64))

    def score(self, outputs: np.ndarray, encoded: np.ndarray, sample_weight: Any) -> float:
        """Accuracy."""
        if encoded.ndim == 1:
            matches = outputs.argmax(axis=1) == encoded
        elif len(self.classes) == 1:
            matches = np.ones(len(encoded), dtype=bool)
        else:
            matches = ((outputs > 0.5) == encoded).all(axis=1)
        return float(np.average(matches, weights=sample_weight))

    def check_kind(self, y: np.ndarray) -> None:
        """Refuse labels after an indicator matrix, and the other way round.

        Labels of three classes or more are another way to write a matrix, one label per sample.
        """
        if y.ndim == 2 and not self.is_multilabel:
            raise ValueError(
                "y must hold class labels, one per sample, as in the first call, and not an "
                "indicator matrix; make a new estimator for multilabel targets."
            )
        if y.ndim == 1 and self.is_multilabel and len(self.classes) < 3:
            raise ValueError(
                "y must be an indicator matrix, as in the first call, and not hold class labels; "
                "make a new estimator for them."
            )

    def check_held_out(self, y: np.ndarray) -> None:
        """Refuse a validation set's labels that the training data do not have."""
        if (y.ndim == 2) != self.is_multilabel:
            raise ValueError(
                "y_val must hold class labels, or an indicator matrix, just as y does."
            )
        unknown = np.setdiff1d(unique_labels(y), self.classes)
        if unknown.size:
            raise ValueError(f"y_val has classes that y does not have: {unknown}.")


@dataclass(frozen=True)
class Values:
    """Targets of a regressor.

    Parameters
    ----------
    level : float or None
        Of the quantile that outputs are; None for other losses.
    levels : tuple of float or None
        Several levels, one for each output.
    """

    level: float | None = None
    levels: tuple[float, ...] | None = None

    fewest_scored = 2

    @property
    def are_quantiles(self) -> bool:
        return self.level is not None or self.levels is not None

    def n_outputs(self, encoded: np.ndarray) -> int:
        """Units of the output layer."""
        return encoded.shape[1]

    def encode(self, y: np.ndarray) -> np.ndarray:
        """A column for each output, (n_samples, n_outputs)."""
        y = y.reshape(len(y), -1)
        if self.levels is None:
            return y
        if y.shape[1] != 1:
            raise ValueError(
                "quantile with several levels needs a one-dimensional y; fit one model per output, "
                "or give one level."
            )
        return np.repeat(y, len(self.levels), axis=1)

    @property
    def ranks(self) -> np.ndarray | None:
        """Which of a row's sorted outputs goes into which column; None if they are not sorted."""
        if self.levels is None:
            return None
        return np.argsort(np.argsort(self.levels, kind="stable"))

    def in_order(self, outputs: np.ndarray) -> np.ndarray:
        """Quantiles of several levels, each row sorted by level: on average, none gets worse."""
        ranks = self.ranks
        return outputs if ranks is None else np.sort(outputs, axis=1)[:, ranks]

    def decode(self, outputs: np.ndarray) -> np.ndarray:
        """Predictions in the user's shape."""
        if self.levels is not None:
            return self.in_order(outputs)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs

    def stratify(self, encoded: np.ndarray) -> None:
        """There is nothing to stratify the validation split by."""

    def score(self, outputs: np.ndarray, encoded: np.ndarray, sample_weight: Any) -> float:
        """R^2, of quantiles the share of the pinball loss that constant ones leave."""
        if self.are_quantiles:
            return self.d2_pinball(encoded, self.in_order(outputs), sample_weight)
        return _r2(encoded, outputs, sample_weight)

    def score_quantiles(self, y: Any, predictions: np.ndarray, sample_weight: Any) -> float:
        """`d2_pinball` of a user's targets and of predictions in their shape."""
        predictions = predictions.reshape(len(predictions), -1)
        return self.d2_pinball(self.encode(np.asarray(y)), predictions, sample_weight)

    def d2_pinball(self, y: np.ndarray, outputs: np.ndarray, sample_weight: Any) -> float:
        """`sklearn.metrics.d2_pinball_score`, averaged over outputs or levels."""
        if not np.isfinite(outputs).all():
            return float("nan")
        levels = self.levels or (self.level,) * outputs.shape[1]
        scores = [
            d2_pinball_score(target, output, alpha=level, sample_weight=sample_weight)
            for target, output, level in zip(y.T, outputs.T, levels, strict=True)
        ]
        return float(np.mean(scores))


def _r2(y: np.ndarray, prediction: np.ndarray, sample_weight: Any) -> float:
    """Coefficient of determination, averaged over outputs, as `sklearn.metrics.r2_score`."""
    if len(y) < 2 or not np.isfinite(prediction).all():
        return float("nan")
    y, prediction = y.astype(np.float64), prediction.astype(np.float64)
    mean = np.average(y, axis=0, weights=sample_weight)
    weight = np.ones((len(y), 1)) if sample_weight is None else sample_weight[:, None]
    with np.errstate(over="ignore"):
        residual = (weight * (y - prediction) ** 2).sum(axis=0)
        total = (weight * (y - mean) ** 2).sum(axis=0)
        ratio = np.divide(residual, total, out=np.ones_like(total), where=total != 0)
    return float(np.mean(np.where(residual == 0, 1.0, 1.0 - ratio)))


def are_plain_labels(y: Any) -> bool:
    """Whether ``y`` holds labels, one per sample, as its type tells at once."""
    return type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "biu"


def is_among(y: np.ndarray, classes: np.ndarray) -> bool:
    """Whether all labels are among sorted classes."""
    places = np.searchsorted(classes, y)
    return bool((np.take(classes, places, mode="clip") == y).all())


def labels_of(y: np.ndarray) -> Labels:
    """The labels of training data; scikit-learn's own checks take longer than an epoch."""
    binarizer = LabelBinarizer()
    classes = np.unique(y) if are_plain_labels(y) else None
    if classes is None or 2 * len(classes) >= len(y):  # it may be a regression, which it warns of
        return Labels(binarizer.fit(y))
    binarizer.y_type_ = "multiclass" if len(classes) > 2 else "binary"
    binarizer.sparse_input_ = False
    binarizer.classes_ = classes
    return Labels(binarizer)


def check_sorted(classes: Any) -> None:
    """Refuse classes that a search could miss, and end up with a number that is no class's."""
    classes = np.asarray(classes)
    if classes.ndim != 1 or not classes.size or not (classes[:-1] < classes[1:]).all():
        raise ValueError(f"classes_ must be sorted and without duplicates, got {classes}.")


def check_numbers(y: Any, dtype: Any) -> None:
    """Refuse what scikit-learn's checks let pass and a cast would make other numbers of."""
    if sparse.issparse(y):
        raise TypeError(
            "Sparse data was passed for y, but dense data is required. Use '.toarray()' to convert "
            "to a dense numpy array."
        )
    if y.dtype.kind not in "biuf":
        raise TypeError(
            f"y must hold numbers for a regression, got the type {y.dtype}; convert it to float, "
            "dates and times to a number of their unit."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = y.astype(dtype, copy=False)
        if not is_finite(numbers):
            assert_all_finite(numbers, input_name="y")
