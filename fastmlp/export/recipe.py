"""What a fitted model computes, for those who write it down in another language (ONNX, C)."""

from collections.abc import Collection
from typing import NamedTuple, TypeAlias

import numpy as np

from fastmlp._sklearn import check_is_fitted
from fastmlp._version import __version__
from fastmlp.ensemble import MLPEnsembleClassifier, MLPEnsembleRegressor, way_to_the_network
from fastmlp.estimators import MLPClassifier, MLPRegressor, Values, fitted_model
from fastmlp.network import Network

Model: TypeAlias = MLPClassifier | MLPRegressor | MLPEnsembleClassifier | MLPEnsembleRegressor


class Recipe(NamedTuple):
    """From one row of features to a prediction.

    Of each member of an ensemble, or of the only network, ``members`` has the layers: pairs of
    weights (fan_in, fan_out) and biases (fan_out,) of type ``dtype``.  Predictions of members are
    averaged.  ``activations`` name what follows each layer but the last.  ``labels`` are a
    classifier's, but for ``multilabel`` targets.  ``ranks`` say which of a row's sorted outputs
    goes into which column, where the outputs are quantiles of several levels.
    """

    network: Network
    dtype: np.dtype
    members: list[list[tuple[np.ndarray, np.ndarray]]]
    activations: list[str]
    labels: list[str] | list[int] | None
    multilabel: bool
    ranks: list[int] | None

    @property
    def is_binary(self) -> bool:
        """Whether the only output is the probability of the second of two classes."""
        return self.labels is not None and self.network.n_outputs == 1

    @property
    def is_classifier(self) -> bool:
        return self.multilabel or self.labels is not None

    @property
    def summary(self) -> str:
        """The network in one line."""
        widths = "-".join(map(str, self.network.widths))
        activations = ", ".join(dict.fromkeys(self.activations)) or "no hidden layer"
        normalised = ", layer_norm" if self.network.layer_norm else ""
        what = "Multilayer perceptron"
        if len(self.members) > 1:
            what = f"Average of {len(self.members)} multilayer perceptrons"
        return (
            f"{what} {widths} ({activations}{normalised}; output "
            f"{self.network.out_activation}), written by fastmlp {__version__}."
        )

    @property
    def n_columns(self) -> int:
        """Columns of ``predict_proba``, or of a regressor's predictions."""
        return 2 if self.is_binary else self.network.n_outputs


def describe(model: Model, formulas: Collection[str], language: str) -> Recipe:
    """The recipe of a fitted estimator.

    Parameters
    ----------
    model : MLPClassifier, MLPRegressor, or an ensemble of them
    formulas : collection of str
        The activations that the language has.
    language : str
        Its name, for errors.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model was not fitted.
    TypeError
        If it is something else.
    ValueError
        If the language cannot express it.
    """
    if not isinstance(model, Model):
        raise TypeError(
            "model must be a fitted fastmlp.MLPClassifier or fastmlp.MLPRegressor, or an ensemble "
            f"of them, got {model!r}{way_to_the_network(model, 'give the whole to to_onnx')}."
        )
    check_is_fitted(model)
    fitted = [fitted_model(member) for member in getattr(model, "members_", [model])]
    first = fitted[0]
    if any(not _are_alike(one.network, first.network) for one in fitted):
        raise ValueError("members_ must all be networks of one form; fit the ensemble again.")
    network, targets = first.network, first.targets
    flat = [one.parameters.astype(first.dtype, copy=False) for one in fitted]
    if not np.isfinite(flat).all():
        raise ValueError("coefs_ and intercepts_ must be finite; fit the model again.")
    labels, multilabel, ranks = None, False, None
    if isinstance(targets, Values):
        ranks = None if targets.ranks is None else targets.ranks.tolist()
    elif targets.is_multilabel:
        multilabel = True
    else:
        labels = _labels(targets.classes, language)
    members = [list(zip(*network.unflatten(one), strict=True)) for one in flat]
    activations = _activations(network, formulas, language)
    return Recipe(network, first.dtype, members, activations, labels, multilabel, ranks)


def _are_alike(one: Network, other: Network) -> bool:
    return (
        one.widths == other.widths
        and one.activation_names == other.activation_names
        and one.out_activation == other.out_activation
        and one.layer_norm == other.layer_norm
    )


def _activations(network: Network, formulas: Collection[str], language: str) -> list[str]:
    if any(row.by_user for row in network.hidden):
        raise ValueError(
            f"activation: functions of your own have no form in {language}; use the names of "
            "built-in ones."
        )
    names = network.activation_names
    for name in names:
        if name not in formulas:
            raise ValueError(f"activation={name!r} has no form in {language}; use another one.")
    return names


def _labels(classes: np.ndarray, language: str) -> list[str] | list[int]:
    """Strings as they are, other labels as integers, which is what floats and booleans stand for.

    Raises
    ------
    ValueError
        If the labels are neither strings nor whole numbers of 64 bits.
    """
    labels = classes.tolist()
    if all(isinstance(label, str) for label in labels):
        return labels
    numeric = classes.dtype.kind in "biuf"
    if numeric and all(label % 1 == 0 and -(2**63) <= label < 2**63 for label in labels):
        return [int(label) for label in labels]
    raise ValueError(
        f"The class labels must be strings or whole numbers of 64 bits to be written as "
        f"{language}, got {classes!r}; fit on other labels."
    )
