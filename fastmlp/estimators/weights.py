"""Weights of samples and of classes, checked and multiplied."""

from numbers import Real
from typing import Any

import numpy as np

from fastmlp._sklearn import check_sample_weight, compute_class_weight
from fastmlp.estimators.data import on_host
from fastmlp.estimators.targets import Labels


def checked_weight(name: str, weight: Any, y: np.ndarray) -> np.ndarray | None:
    """A weight for each sample; scikit-learn does not look at the value of a scalar."""
    if weight is None:
        return None
    checked = check_sample_weight(on_host(weight), y)
    if not np.isfinite(checked).all():
        raise ValueError(f"{name} must be finite, got {weight}.")
    return checked


def has_weight(weight: np.ndarray | None) -> bool:
    """Whether a mean over samples with these weights is defined."""
    if weight is None:
        return True
    with np.errstate(over="ignore"):
        return bool(weight.any()) and weight.sum(dtype=np.float64) != 0


def in_range(
    weight: np.ndarray | None, dtype: Any, rows: np.ndarray | None = None
) -> tuple[np.ndarray | None, int]:
    """Weights that ``dtype`` can hold and sum up, and by which power of 2 they were divided.

    Only those of ``rows`` count, if given.  Weights of ordinary size are left alone.
    """
    if weight is None:
        return None, 0
    info = np.finfo(dtype)
    counting = np.abs(weight if rows is None else weight[rows]).max()
    if counting >= np.sqrt(info.tiny) and np.abs(weight).max() <= np.sqrt(info.max):
        return weight, 0
    exponent = int(np.frexp(counting)[1]) - 1
    scaled = np.zeros(len(weight))
    chosen = slice(None) if rows is None else rows
    scaled[chosen] = np.ldexp(weight[chosen].astype(np.float64), -exponent)
    return scaled, exponent


def with_alpha(
    weight: np.ndarray | None, alpha: float, dtype: Any, rows: np.ndarray | None = None
) -> tuple[np.ndarray | None, float]:
    """Sample weights in the range of ``dtype``, and the ``alpha`` that goes with them.

    Losses are divided by the sum of the weights, so a factor of all weights is one of alpha.
    """
    weight, exponent = in_range(weight, dtype, rows)
    if weight is None or not exponent:
        return weight, alpha
    with np.errstate(over="ignore"):
        scaled = float(np.ldexp(alpha, -exponent))
    largest = np.sqrt(np.finfo(dtype).max)  # the penalty's gradient is squared
    if scaled > largest * np.abs(weight).sum():
        raise ValueError(
            f"alpha={alpha}, which is divided by the sum of the weights, is too large for "
            f"{np.dtype(dtype)} beside weights of at most {np.ldexp(1.0, exponent + 1):.0e}; "
            "multiply sample_weight or class_weight by a constant, or set alpha=0."
        )
    return weight, scaled


def class_weights(given: Any, labels: Labels, encoded: np.ndarray) -> list[np.ndarray] | None:
    """Weights of the classes for each column of encoded ``y``, or None.

    Parameters
    ----------
    given : dict, list of dict, 'balanced' or None
        The parameter ``class_weight``.
    labels : Labels
    encoded : ndarray
        Encoded targets of the training data.
    """
    if given is None:
        return None
    columns = labels.columns(encoded)
    check_class_weight(given)
    if isinstance(given, str):
        n_classes = 2 if labels.is_multilabel else len(labels.classes)
        return [_balanced(column, n_classes) for column in columns]
    if not labels.is_multilabel:
        if isinstance(given, list):
            raise ValueError("class_weight may be a list for multilabel targets only; use a dict.")
        return [compute_class_weight(given, classes=labels.classes, y=labels.classes)]
    if not isinstance(given, list) or len(given) != len(columns):
        raise ValueError(
            "class_weight must be 'balanced' or a list of one dict per label for multilabel "
            f"targets, here of {len(columns)} dicts, got {given!r}."
        )
    zero_and_one = np.array([0, 1])
    return [compute_class_weight(one, classes=zero_and_one, y=zero_and_one) for one in given]


def check_class_weight(given: Any) -> None:
    """Refuse what is no weight in a dict or a list of dicts."""
    if isinstance(given, list) and not _is_list_of_dicts(given):
        raise ValueError(
            "class_weight must be 'balanced' or a list of one dict per label for multilabel "
            f"targets, else a dict or 'balanced', got {given!r}."
        )
    for one in given if isinstance(given, list) else [given]:
        values = one.values() if isinstance(one, dict) else ()
        if not all(map(_is_weight, values)):
            raise ValueError(f"class_weight must consist of finite numbers >= 0, got {one!r}.")


def weigh(
    labels: Labels, encoded: np.ndarray, sample_weight: np.ndarray | None, of_classes: list
) -> np.ndarray:
    """Sample weights times the weights of the samples' classes."""
    weight = np.ones(len(encoded)) if sample_weight is None else sample_weight
    for column, weights in zip(labels.columns(encoded), of_classes, strict=True):
        with np.errstate(all="ignore"):
            weight = weight * weights[column]
    if not np.isfinite(weight).all():
        raise ValueError(
            "The product of sample_weight and class_weight is beyond the range of float64; divide "
            "one of them by a constant."
        )
    return weight


def _balanced(column: np.ndarray, n_classes: int) -> np.ndarray:
    """Weights of the classes, 1 for a class that does not occur; shape (n_classes,)."""
    seen = np.unique(column)
    weights = np.ones(n_classes)
    weights[seen] = compute_class_weight("balanced", classes=seen, y=column)
    return weights


def _is_list_of_dicts(weights: Any) -> bool:
    return isinstance(weights, list) and all(isinstance(one, dict) for one in weights)


def _is_weight(value: Any) -> bool:
    try:
        return isinstance(value, Real) and 0 <= float(value) < np.inf
    except OverflowError:  # an integer of hundreds of digits
        return False
