"""The scikit-learn surface: estimators that validate, plan, train and predict."""

from fastmlp.estimators.base import (
    HOOKS,
    Batch,
    InconsistentVersionWarning,
    all_or_nothing,
    check_parameters,
    fitted_model,
    go_on_from,
    read_batch,
    start,
)
from fastmlp.estimators.classifier import MLPClassifier
from fastmlp.estimators.fitted import FittedModel
from fastmlp.estimators.members import fit_members, outputs_of, partial_fit_members
from fastmlp.estimators.regressor import MLPRegressor
from fastmlp.estimators.targets import Labels, Values

__all__ = [
    "HOOKS",
    "Batch",
    "FittedModel",
    "InconsistentVersionWarning",
    "Labels",
    "MLPClassifier",
    "MLPRegressor",
    "Values",
    "all_or_nothing",
    "check_parameters",
    "fit_members",
    "fitted_model",
    "go_on_from",
    "outputs_of",
    "partial_fit_members",
    "read_batch",
    "start",
]
