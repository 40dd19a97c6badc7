"""Members of an ensemble: estimators that differ in ``random_state`` only.

They are fitted side by side to samples that were checked, encoded and placed once, and each ends
with the bits that its own `fit` would have given it.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from warnings import warn

import numpy as np

from fastmlp.estimators.base import Begun, all_or_nothing, check_parameters, fitted_model
from fastmlp.estimators.classifier import MLPClassifier
from fastmlp.estimators.data import checked, has_expected_shape
from fastmlp.estimators.plan import HeldOut, make_plan
from fastmlp.estimators.prediction import FEW_ROWS, of_few_rows
from fastmlp.training.checkpoint import in_words
from fastmlp.training.plan import Plan
from fastmlp.training.restarts import side_by_side, succeeded

# what reading data notes in an estimator
_NOTED = ("n_features_in_", "feature_names_in_", "classes_", "_label_binarizer")


def fit_members(
    members: Sequence[Any], X: Any, y: Any, sample_weight: Any, held_out: HeldOut
) -> list[Any]:
    """Fit estimators, as far as that goes well.

    Parameters
    ----------
    members : sequence of MLPClassifier or MLPRegressor
        New ones, equal but for ``random_state``.
    X, y, sample_weight
        As `fit` takes them.
    held_out : HeldOut

    Returns
    -------
    list
        The members that are to be kept; it is warned of others.  Those that Ctrl-C broke off are
        kept only if no other is complete.

    Raises
    ------
    DivergedError, KeyboardInterrupt
        If nothing is left of any member.
    ValueError
        If an input or a parameter is invalid.
    """
    if getattr(members[0], "_skl_callbacks", None):
        raise ValueError(
            "An ensemble calls no callbacks; take them from estimator by set_callbacks(), or fit "
            "it alone."
        )
    check_parameters(members[0])
    plan = make_plan(members[0], held_out=held_out)
    begun = _begin(members, plan, X, y, sample_weight, held_out)
    limit = begun[0].fit.limit
    where = plan.execution
    outcomes = side_by_side(
        [one.train for one in begun], limit, where["n_threads"], where["device"]
    )
    trained = succeeded(outcomes)
    kept = [i for i in trained if outcomes[i][0].stop_reason != "interrupted"] or trained
    for i in kept:
        members[i]._end(begun[i].fit, *outcomes[i])
    left_out = [outcome for i, outcome in enumerate(outcomes) if i not in kept]
    if left_out:
        why = "Ctrl-C ended their training." if limit.interrupted else left_out[0]
        warn(f"{len(left_out)} of {len(members)} members are left out of the ensemble: {why}")
    return [members[i] for i in kept]


def partial_fit_members(
    members: Sequence[Any], X: Any, y: Any, sample_weight: Any, classes: Any = None
) -> None:
    """One epoch of `partial_fit` for each member; all or none are changed.

    Parameters
    ----------
    members : sequence of MLPClassifier or MLPRegressor
        New ones, or those of the last call.
    X, y, sample_weight, classes
        As `partial_fit` takes them.

    Raises
    ------
    ValueError
        If an input or a parameter is invalid, or a member diverges.
    """
    if not hasattr(members[0], "coefs_"):
        check_parameters(members[0])
    _require_equal_parameters(members)
    with ExitStack() as stack:
        for member in members:
            stack.enter_context(all_or_nothing(member))
        if isinstance(members[0], MLPClassifier):
            members[0]._announce(y, classes)
        plan = make_plan(members[0], incremental=True)
        begun = _begin(members, plan, X, y, sample_weight, HeldOut())
        trained = [one.train() for one in begun]
        for member, one, (run, scores) in zip(members, begun, trained, strict=True):
            member._end(one.fit, run, scores)


def _require_equal_parameters(members: Sequence[Any]) -> None:
    """Refuse members that a user or a file made different: all follow one plan."""
    first = members[0].get_params(deep=False)
    del first["random_state"]
    for name, value in first.items():
        for member in members:
            own = getattr(member, name)
            if own is not value and in_words(own) != in_words(value):
                raise ValueError(
                    f"members_ must have the same parameters but for random_state, got {name}="
                    f"{value!r} and {name}={own!r}; set it for all of them."
                )


def _begin(
    members: Sequence[Any], plan: Plan, X: Any, y: Any, sample_weight: Any, held_out: HeldOut
) -> list[Begun]:
    """Everything up to training, the data read by the first member for all."""
    first = members[0]
    data, validation = first._read_all(plan, X, y, sample_weight, held_out)
    noted = {name: vars(first)[name] for name in _NOTED if name in vars(first)}
    begun: list[Begun] = []
    for member in members:
        vars(member).update(noted)
        beside = begun[0].fit if begun else None
        begun.append(member._begin(plan, data, validation, beside=beside))
    return begun


def outputs_of(members: Sequence[Any], X: Any) -> list[np.ndarray]:
    """Outputs (n_samples, n_outputs) of each fitted member for ``X``, which is checked once.

    Parameters
    ----------
    members : sequence of MLPClassifier or MLPRegressor
    X : {array-like, sparse matrix} of shape (n_samples, n_features)

    Raises
    ------
    ValueError
        If ``X`` is invalid, or members do not belong together.
    """
    first = members[0]
    n_features = first.n_features_in_  # kernels go by it
    if any(member.n_features_in_ != n_features for member in members):
        raise ValueError("members_ must have been fitted to the same features; fit again.")
    predictors = [fitted_model(member).predict for member in members]
    if has_expected_shape(first, X) and len(X) <= FEW_ROWS:
        found = of_few_rows(predictors, X)
        if found is not None:
            return list(found)
    X = checked(first, X, reset=False)
    outputs = [predict(X) for predict in predictors]
    if any(one.shape != outputs[0].shape for one in outputs):
        raise ValueError("members_ must have been fitted to the same targets; fit again.")
    return outputs
