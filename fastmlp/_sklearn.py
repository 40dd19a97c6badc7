"""What is private or version-dependent in scikit-learn, in one place.

Third-party estimators need a few names that scikit-learn does not promise to keep: the decorator
that validates parameters against ``_parameter_constraints``, the constraint classes, the check of
the first ``partial_fit`` call, and the report on an L-BFGS result.
"""

from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
)
from sklearn.base import _fit_context as fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import d2_pinball_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call as check_partial_fit_first_call,
)
from sklearn.utils.multiclass import type_of_target, unique_labels
from sklearn.utils.optimize import _check_optimize_result as check_optimize_result
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = [
    "BaseEstimator",
    "ClassifierMixin",
    "ConvergenceWarning",
    "Interval",
    "LabelBinarizer",
    "Options",
    "RegressorMixin",
    "StrOptions",
    "available_if",
    "check_is_fitted",
    "check_optimize_result",
    "check_partial_fit_first_call",
    "check_random_state",
    "check_sample_weight",
    "column_or_1d",
    "d2_pinball_score",
    "fit_context",
    "train_test_split",
    "type_of_target",
    "unique_labels",
    "validate_data",
]
