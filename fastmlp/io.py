"""Models in files, and to and from scikit-learn.

A file of `save` is a safetensors file (see `fastmlp._safetensors`): parameters, curves and, on
request, the optimizer's slots are arrays, and everything else is JSON among the metadata.  Of an
ensemble, each member is written as a model of its own: its JSON is in the list ``members``, and its
arrays have ``members_.0.``, ``members_.1.`` and so on before their names.  Nothing
in it is code, and `load` looks nothing up by a name that the file gives, but in tables: of
estimators, of NumPy's numbers, of attributes and what they may be.  Since anybody can write a file
with a correct checksum, every value is checked before an estimator has it.  `save` reads back what
it is about to write, so what could not be loaded is refused while it can still be mended.
"""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np

from fastmlp import _safetensors
from fastmlp._json import decode, encode
from fastmlp._json import read as read_json
from fastmlp._sklearn import (
    SEED_LIMIT,
    LabelBinarizer,
    check_is_fitted,
    clone,
    is_valid_parameter,
    neural_network,
)
from fastmlp._version import __version__
from fastmlp.ensemble import MLPEnsembleClassifier, MLPEnsembleRegressor, way_to_the_network
from fastmlp.estimators import (
    FittedModel,
    MLPClassifier,
    MLPRegressor,
    Values,
    check_parameters,
    fitted_model,
)
from fastmlp.estimators.parameters import CLASSIFIER, REGRESSOR
from fastmlp.estimators.plan import make_optimizer, make_schedule
from fastmlp.estimators.weights import check_class_weight
from fastmlp.functions import LINKS
from fastmlp.network import Network, widths_of
from fastmlp.optimizers import (
    COUNT_LIMIT,
    N_CONSTANTS,
    N_SLOTS,
    OPTIMIZERS,
    Optimizer,
    OptimizerState,
)
from fastmlp.schedules import SCIKIT_LEARN_SCHEDULES, Schedule
from fastmlp.training.run import HISTORY

__all__ = ["TRUSTED_TYPES", "from_sklearn", "load", "save", "to_sklearn"]

_FORMAT = "fastmlp model "
_FORMAT_VERSION = "1"
_Network: TypeAlias = MLPClassifier | MLPRegressor
_Ensemble: TypeAlias = MLPEnsembleClassifier | MLPEnsembleRegressor
_CLASSES: dict[str, type[_Network]] = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}
_ENSEMBLES: dict[str, tuple[type[_Ensemble], type[_Network]]] = {
    "MLPEnsembleClassifier": (MLPEnsembleClassifier, MLPClassifier),
    "MLPEnsembleRegressor": (MLPEnsembleRegressor, MLPRegressor),
}
_PARAMETERS = REGRESSOR | CLASSIFIER
TRUSTED_TYPES = [
    f"{kind.__module__}.{kind.__qualname__}"
    for kind in (*_CLASSES.values(), *(ensemble for ensemble, _ in _ENSEMBLES.values()))
]
"""For ``skops.io.load(file, trusted=fastmlp.io.TRUSTED_TYPES)``."""


def save(
    model: _Network | _Ensemble,
    path: str | os.PathLike[str],
    *,
    optimizer_state: bool = False,
) -> None:
    """Write a fitted model to a file.

    The file is a safetensors file, with the parameters under the names ``coefs_.0``,
    ``intercepts_.0``, ``coefs_.1`` and so on.  Whatever happens meanwhile, ``path`` is either the
    old file or the new one, complete.

    Parameters
    ----------
    model : MLPClassifier, MLPRegressor, or an ensemble of them
        Callbacks, metadata requests, the path ``checkpoint`` and attributes that are not fastmlp's
        are not written.
    path : str or path-like
        Where to write; a file that is there is replaced.
    optimizer_state : bool, default=False
        Whether to write what the optimizer remembers, too: two to three times the parameters.  With
        it, `partial_fit` of the loaded model goes on to the same bits as that of ``model``; without
        it, with a new optimizer.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model was not fitted.
    TypeError
        If ``model`` is no estimator of fastmlp, or of a subclass.
    ValueError
        If it holds something that is no data (a function as activation, loss, schedule, scorer or
        for initial weights), or arrays that do not fit together or are not finite.  pickle and
        joblib can write functions that have a name in a module.
    OSError
        If the file cannot be written; the old one is still there.

    Examples
    --------
    >>> import os, tempfile, fastmlp
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = fastmlp.MLPClassifier(solver="lbfgs", random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "iris.safetensors")
    ...     fastmlp.io.save(model, path)
    ...     again = fastmlp.io.load(path)
    >>> bool((again.predict_proba(X) == model.predict_proba(X)).all())
    True
    """
    arrays, metadata = _describe(model, optimizer_state)
    _build(arrays, read_json(metadata["model"]))
    _safetensors.write(path, arrays, metadata)


def load(path: str | os.PathLike[str]) -> _Network | _Ensemble:
    """Read a model that `save` wrote, on any machine.  No code from the file is run.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    MLPClassifier, MLPRegressor, or an ensemble of them
        With the same parameters and attributes as the model that was saved, and with its
        optimizer's state if that was saved, too.  A model for ``device='cuda'`` can be used
        elsewhere after ``model.set_params(device="cpu")``.

    Raises
    ------
    ValueError
        If the file is damaged, or is not one of `save`'s.
    OSError
        If the file cannot be opened or read.

    Examples
    --------
    >>> import os, tempfile, fastmlp
    >>> model = fastmlp.MLPRegressor(hidden_layer_sizes=5, random_state=0)
    >>> model = model.partial_fit([[0.0], [1.0]], [0.0, 1.0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.safetensors")
    ...     fastmlp.io.save(model, path, optimizer_state=True)
    ...     again = fastmlp.io.load(path)
    >>> again.partial_fit([[0.0], [1.0]], [0.0, 1.0]).loss_curve_[0] == model.loss_curve_[0]
    True
    """
    arrays, metadata = _safetensors.read(path)
    name = repr(os.fspath(path))
    written = metadata.get("format", "")
    if not written.startswith(_FORMAT):
        raise ValueError(f"{name} holds no model; load reads what fastmlp.io.save wrote.")
    if written != _FORMAT + _FORMAT_VERSION:
        raise ValueError(
            f"{name} was written by fastmlp {metadata.get('fastmlp')} in a newer format; upgrade "
            "fastmlp to read it."
        )
    try:
        with np.errstate(over="raise", invalid="raise"):  # numbers that do not fit their types
            return _build(arrays, read_json(metadata["model"]))
    except Exception as error:  # whatever was made up, this is what it comes to
        reason = error if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{name} is no valid model: {str(reason).rstrip('.')}.") from error


# --- attributes


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_information(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and (isinstance(entry, str | Real) or entry is None)
        for key, entry in value.items()
    )


def _are_names(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object


def _are_classes(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype != object


# attributes in JSON, and what they may be
_ATTRIBUTES: dict[str, Callable[[Any], bool]] = {
    "n_features_in_": _is_count,
    "n_layers_": _is_count,
    "n_outputs_": _is_count,
    "n_iter_": _is_count,
    "t_": _is_count,
    "_no_improvement_count": _is_count,
    "loss_": _is_number,
    "best_loss_": _is_number_or_none,
    "best_validation_score_": _is_number_or_none,
    "out_activation_": LINKS.__contains__,
    "stop_reason_": _is_text_or_none,
    "engine_info_": _is_information,
    "feature_names_in_": _are_names,
    "classes_": _are_classes,
}
_NEEDED = ("n_features_in_", "n_layers_", "n_outputs_", "out_activation_")
# one-dimensional arrays of float64 in the file; None is in JSON
_CURVES = ("loss_curve_", "validation_scores_", "validation_loss_curve_", "restart_scores_")
_LABEL_TYPES = ("binary", "multiclass", "multilabel-indicator")
_OPTIMIZER_NUMBERS = ("weight_decay", "max_grad_norm", "ema_decay")


def _name_of(model: Any) -> str:
    """The name of a fitted estimator's class."""
    name = type(model).__name__
    if _CLASSES.get(name) is not type(model):
        raise TypeError(
            "model must be an MLPClassifier or MLPRegressor of fastmlp, or an ensemble of them, "
            f"not of a subclass, got {type(model)!r}"
            f"{way_to_the_network(model, 'write the whole by pickle or joblib')}."
        )
    check_is_fitted(model)
    return name


def _is_ensemble(model: Any) -> bool:
    return any(type(model) is kind for kind, _ in _ENSEMBLES.values())


def _describe(model: Any, optimizer_state: bool) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a file."""
    describe = _describe_ensemble if _is_ensemble(model) else _describe_network
    arrays, content = describe(model, optimizer_state)
    return arrays, {
        "format": _FORMAT + _FORMAT_VERSION,
        **_versions(),
        "model": json.dumps(content),
    }


def _describe_ensemble(
    model: _Ensemble, optimizer_state: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and content of a file, member by member."""
    check_is_fitted(model)
    arrays: dict[str, np.ndarray] = {}
    parameters, members = model.get_params(deep=False), []
    estimator = parameters.pop("estimator")
    for i, member in enumerate(model.members_):
        own, content = _describe_network(member, optimizer_state)
        arrays |= {f"members_.{i}.{name}": array for name, array in own.items()}
        members.append(content)
    return arrays, {
        "class": type(model).__name__,
        "parameters": {name: encode(value, name) for name, value in parameters.items()},
        "estimator": None if estimator is None else _parameters_of(estimator),
        "members": members,
    }


def _parameters_of(model: _Network) -> dict[str, Any]:
    """Parameters of a network in JSON."""
    return {
        key: encode(value, key)
        for key, value in model.get_params(deep=False).items()
        if _PARAMETERS[key].saved
    }


def _describe_network(
    model: Any, optimizer_state: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and content of a file."""
    name, fitted = _name_of(model), model.__getstate__()
    arrays = _layers_as_arrays(fitted) | _curves_as_arrays(fitted)
    attributes: dict[str, Any] = {
        key: encode(fitted[key], key) for key in _ATTRIBUTES if key in fitted
    }
    attributes |= {key: None for key in _CURVES if key in fitted and fitted[key] is None}
    content: dict[str, Any] = {
        "class": name,
        "parameters": _parameters_of(model),
        "attributes": attributes,
    }
    if "_label_binarizer" in fitted:
        binarizer = fitted["_label_binarizer"]
        content["labels"] = [binarizer.y_type_, bool(binarizer.sparse_input_)]
    if optimizer_state:
        state = dict(fitted.get("_optimizer_state") or {})
        if state:
            arrays["optimizer.slots"] = state.pop("slots")
            content["optimizer"] = encode(state, "learning_rate")
        content["random_state"] = encode(fitted.get("_random_state"), "random_state")
    return arrays, content


def _versions() -> dict[str, str]:
    import sklearn

    return {
        "fastmlp": __version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
    }


def _layers_as_arrays(fitted: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        f"{key}.{i}": np.asarray(array)
        for key in ("coefs_", "intercepts_")
        for i, array in enumerate(fitted[key])
    }


def _curves_as_arrays(fitted: dict[str, Any]) -> dict[str, np.ndarray]:
    curves = {key: fitted[key] for key in _CURVES if fitted.get(key) is not None}
    history = fitted.get("history_", {})
    arrays = {key: np.asarray(values, np.float64) for key, values in curves.items()}
    for key, values in history.items():
        arrays[f"history_.{key}"] = np.asarray(values, _type_of_curve(key))
    return arrays


def _type_of_curve(key: str) -> np.dtype:
    return np.dtype(np.int64 if key == "epoch" else np.float64)


def _build(arrays: dict[str, np.ndarray], content: dict[str, Any]) -> _Network | _Ensemble:
    """The model that arrays and JSON describe.

    Raises
    ------
    Exception
        Of whatever kind, if they describe none.  A ValueError is for people.
    """
    build = _build_ensemble if content["class"] in _ENSEMBLES else _build_network
    return build(arrays, content)


def _build_ensemble(arrays: dict[str, np.ndarray], content: dict[str, Any]) -> _Ensemble:
    kind, member_kind = _ENSEMBLES[content.pop("class")]
    parameters = {key: decode(value) for key, value in content.pop("parameters").items()}
    encoded = content.pop("estimator")
    estimator = None if encoded is None else _unfitted(member_kind, encoded)
    model = kind(estimator, **parameters)
    check_parameters(model)
    contents = content.pop("members")
    parts: dict[str, dict[str, np.ndarray]] = {str(i): {} for i in range(len(contents))}
    for name, array in arrays.items():
        beginning, i, own_name = name.split(".", 2)
        if beginning != "members_" or i not in parts:
            raise ValueError(f"it has more than a model has: {name}")
        parts[i][own_name] = array
    members = [_build_network(parts[str(i)], one) for i, one in enumerate(contents)]
    if content or not members or not all(type(member) is member_kind for member in members):
        raise ValueError(f"an ensemble consists of one {member_kind.__name__} or more")
    if any(_meaning(member) != _meaning(members[0]) for member in members):
        raise ValueError("members_ must have features and outputs of one meaning")
    model.members_ = members
    return model


def _meaning(member: _Network) -> tuple[Any, ...]:
    """What members must agree in: features, outputs, and what these stand for."""
    targets, names = fitted_model(member).targets, vars(member).get("feature_names_in_")
    meaning: Any = targets
    if not isinstance(targets, Values):
        binarizer, classes = targets.binarizer, targets.classes
        meaning = binarizer.y_type_, binarizer.sparse_input_, classes.dtype, classes.tolist()
    return (
        member.n_features_in_, None if names is None else names.tolist(), member.n_outputs_, meaning
    )  # fmt: skip


def _unfitted(kind: type[_Network], encoded: dict[str, Any]) -> _Network:
    """An estimator from parameters in JSON."""
    parameters = {key: decode(value) for key, value in encoded.items()}
    if not all(_PARAMETERS[name].saved for name in parameters):  # a fit would write there
        raise ValueError("a file must not say where the next fit writes to")
    model = kind(**parameters)
    check_parameters(model)
    return model


def _build_network(arrays: dict[str, np.ndarray], content: dict[str, Any]) -> _Network:
    arrays, kind = dict(arrays), _CLASSES[content.pop("class")]
    model = _unfitted(kind, content.pop("parameters"))
    attributes = _attributes(content.pop("attributes"))
    n_layers = sum(name.startswith("coefs_.") for name in arrays)
    layers = {
        key: [arrays.pop(f"{key}.{i}") for i in range(n_layers)]
        for key in ("coefs_", "intercepts_")
    }
    attributes |= _settled(**layers) | _curves(arrays)
    labels = content.pop("labels", None)
    if labels is not None:
        attributes["_label_binarizer"] = _label_binarizer(attributes, *labels)
    if "random_state" in content:
        attributes |= _random_state(content.pop("random_state"))
    if "optimizer" in content:
        state = decode(content.pop("optimizer"))
        state["slots"] = arrays.pop("optimizer.slots")
        _check_optimizer(kind, state, attributes["coefs_"][0].dtype)
        attributes["_optimizer_state"] = state
    if arrays or content:
        raise ValueError(f"it has more than a model has: {[*arrays, *content]}")
    model.__setstate__(vars(model) | attributes | {"_fastmlp_version": __version__})
    _check_sizes(model)
    if isinstance(model, MLPClassifier):
        _check_classifier(model, *labels or (None, False))
    else:
        _check_regressor(model, labels)
    fitted_model(model)
    return model


def _attributes(encoded: dict[str, Any]) -> dict[str, Any]:
    """Attributes from JSON."""
    attributes = {}
    for key, value in encoded.items():
        attributes[key] = decoded = decode(value)
        valid = decoded is None if key in _CURVES else _ATTRIBUTES[key](decoded)
        if not valid:
            raise ValueError(f"{key} cannot be {decoded!r}")
    return attributes


def _curves(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Attributes from arrays, which are taken out."""
    curves: dict[str, Any] = {key: arrays.pop(key) for key in _CURVES if key in arrays}
    history = {key: arrays.pop(f"history_.{key}") for key in HISTORY if f"history_.{key}" in arrays}
    for key, array in (curves | history).items():
        dtype = _type_of_curve(key)
        if array.dtype != dtype or array.ndim != 1:
            raise ValueError(f"{key} must be one-dimensional and of {dtype}")
    for key in curves.keys() - {"restart_scores_"}:
        curves[key] = curves[key].tolist()
    if history:
        if len(history) < len(HISTORY) or len({array.size for array in history.values()}) > 1:
            raise ValueError("history_ must have entries of the same length for all of its names")
        curves["history_"] = {key: array.tolist() for key, array in history.items()}
    return curves


def _settled(
    coefs_: list[np.ndarray], intercepts_: list[np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """The layers as views into one vector, as `fit` makes them, after a look at their values."""
    arrays = [*coefs_, *intercepts_]
    dtypes = {array.dtype for array in arrays}
    if dtypes not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
        raise ValueError("coefs_ and intercepts_ must all be of float32, or all of float64")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("coefs_ and intercepts_ must be finite; fit the model again")
    network = Network(widths_of(coefs_, intercepts_), "identity")
    views = network.unflatten(network.flatten(coefs_, intercepts_, arrays[0].dtype))
    return dict(zip(("coefs_", "intercepts_"), views, strict=True))


def _check_sizes(model: _Network) -> None:
    """Whether nothing is missing, and numbers and names are those of the network's units."""
    fitted = vars(model)
    missing = [key for key in _NEEDED if key not in fitted]
    if missing:
        raise ValueError(f"it lacks {missing}")
    shapes = [coef.shape for coef in model.coefs_]
    sizes = model.n_features_in_, model.n_layers_, model.n_outputs_
    if sizes != (shapes[0][0], len(shapes) + 1, shapes[-1][1]):
        raise ValueError(
            "n_features_in_, n_layers_ and n_outputs_ must be those of coefs_, got "
            f"{sizes} for shapes {shapes}"
        )
    names = fitted.get("feature_names_in_")
    if names is not None and names.size != model.n_features_in_:
        raise ValueError(f"feature_names_in_ must have {model.n_features_in_} names")


def _check_regressor(model: MLPRegressor, labels: list[Any] | None) -> None:
    """Whether the outputs are a regressor's, as many as levels of quantiles."""
    fitted = vars(model)
    if labels is not None or "classes_" in fitted or model.out_activation_ not in (
        "identity", "exp"
    ):  # fmt: skip
        raise ValueError("a regressor has no classes, and 'identity' or 'exp' as out_activation_")
    levels = _levels(fitted_model(model))
    if levels is not None and len(levels) != model.n_outputs_:
        raise ValueError(f"quantile must have as many levels as outputs, {model.n_outputs_}")


def _levels(fitted: FittedModel) -> tuple[float, ...] | None:
    """A regressor's levels of quantiles, if there are several."""
    return fitted.targets.levels if isinstance(fitted.targets, Values) else None


def _check_classifier(model: MLPClassifier, label_type: str | None, sparse: bool) -> None:
    """Whether classes and outputs fit each other, and ``class_weight`` can be one."""
    if label_type not in _LABEL_TYPES or "classes_" not in vars(model):
        raise ValueError("a classifier needs classes_ and a type of labels")
    expected = "softmax" if label_type == "multiclass" else "logistic"
    n_classes, n_outputs = model.classes_.size, model.n_outputs_
    fits = {
        "binary": n_outputs == 1 and n_classes in (1, 2),
        "multiclass": n_outputs == n_classes and n_classes > 2,
        "multilabel-indicator": n_outputs > 1,
    }
    if not fits[label_type] or model.out_activation_ != expected or type(sparse) is not bool:
        raise ValueError(
            f"{n_classes} classes_ of {label_type} labels do not fit {n_outputs} outputs and "
            f"out_activation_={model.out_activation_!r}"
        )
    check_class_weight(model.class_weight)


def _label_binarizer(attributes: dict[str, Any], label_type: str, sparse: bool) -> LabelBinarizer:
    binarizer = LabelBinarizer()
    binarizer.y_type_, binarizer.sparse_input_ = label_type, sparse
    multilabel = label_type == "multilabel-indicator"
    n_outputs = attributes["coefs_"][-1].shape[1]  # n_outputs_ may be any number so far
    binarizer.classes_ = np.arange(n_outputs) if multilabel else attributes.get("classes_")
    return binarizer


def _random_state(encoded: Any) -> dict[str, np.random.RandomState]:
    random_state = decode(encoded)
    if random_state is None:
        return {}
    if not isinstance(random_state, np.random.RandomState):
        raise ValueError("its random_state is not one of NumPy's")
    return {"_random_state": random_state}


def _check_optimizer(kind: type, state: dict[str, Any], dtype: np.dtype) -> None:
    """Refuse a state that `fit` could not have left."""
    schedule = dict(state["schedule"])
    if set(schedule) != set(Schedule._fields):
        raise ValueError("the optimizer's schedule is incomplete")
    expected = {
        "rule", "constants", *_OPTIMIZER_NUMBERS, "schedule", "learning_rate", "plateau",
        "dropout_seed", "slots", "step",
    }  # fmt: skip
    best, n_bad = state["plateau"]
    seed = state["dropout_seed"]
    if not (
        set(state) == expected
        and state["rule"] in OPTIMIZERS
        and len(state["constants"]) == N_CONSTANTS
        and all(_is_number(number) for number in (*state["constants"], state["learning_rate"]))
        and all(0 <= number < np.inf for number in (*state["constants"], state["learning_rate"]))
        and (_is_number(best) and _is_count(n_bad))
        and (seed is None or (_is_count(seed) and seed < SEED_LIMIT))
        and (_is_count(state["step"]) and state["step"] < COUNT_LIMIT)
        and state["slots"].dtype == dtype
    ):
        raise ValueError("the optimizer's state is impossible")
    schedule["learning_rate"] = schedule.pop("name")
    settings = schedule | {key: state[key] for key in _OPTIMIZER_NUMBERS}
    check_parameters(kind(**settings))


# --- scikit-learn

# attributes that mean the same on both sides
_SHARED = (
    "n_features_in_", "feature_names_in_", "classes_", "_label_binarizer", "n_layers_",
    "n_outputs_", "out_activation_", "n_iter_", "t_", "loss_", "loss_curve_", "best_loss_",
    "validation_scores_", "best_validation_score_", "_no_improvement_count", "_random_state",
)  # fmt: skip


def to_sklearn(model: _Network | _Ensemble, *, predict_only: bool = False) -> Any:
    """A fitted estimator of scikit-learn's that predicts as ``model`` does, to rounding.

    Parameters
    ----------
    model : MLPClassifier, MLPRegressor, or an ensemble of them
        Of fastmlp.
    predict_only : bool, default=False
        By default everything must have its equal in scikit-learn, so that `partial_fit` and `fit`
        of the result go on as those of ``model`` would, to rounding, optimizer included.  With
        True, what only matters for training may be fastmlp's own: it is left at scikit-learn's
        default, and the optimizer's state is left out.

    Returns
    -------
    sklearn.neural_network.MLPClassifier or sklearn.neural_network.MLPRegressor
        It shares nothing with ``model``.  Of an ensemble, a `sklearn.ensemble.VotingClassifier`
        with soft voting or a `VotingRegressor`, which average in the same way; they have no several
        labels or outputs, and no single class.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model was not fitted.
    TypeError
        If ``model`` is no estimator of fastmlp, or of a subclass.
    ValueError
        If scikit-learn cannot express a parameter; the message says which.

    Examples
    --------
    >>> import fastmlp
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = fastmlp.MLPClassifier(solver="lbfgs", random_state=0).fit(X, y)
    >>> fastmlp.to_sklearn(model).score(X, y) == model.score(X, y)
    True
    """
    if _is_ensemble(model):
        return _voting(model, predict_only)
    kind = getattr(neural_network(), _name_of(model))
    fitted = fitted_model(model)
    parameters = _parameters_for_sklearn(kind, model, fitted, predict_only)
    result = kind(**copy.deepcopy(parameters))
    _take_over(result, model)
    n_layers = len(fitted.coefs)
    for coefs, intercepts in (("coefs_", "intercepts_"), ("_best_coefs", "_best_intercepts")):
        layers = _layers_for_sklearn(fitted.parameters, fitted.network)
        setattr(result, coefs, layers[:n_layers])
        setattr(result, intercepts, layers[n_layers:])
    if fitted.optimizer_state is not None and not predict_only:
        optimizer = _optimizer_for_sklearn(fitted.optimizer_state, fitted.network)
        vars(result)["_optimizer"] = optimizer
    return result


def _voting(model: Any, predict_only: bool) -> Any:
    """scikit-learn's average of the members, as if it had fitted them itself."""
    from sklearn.ensemble import VotingClassifier, VotingRegressor
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils import Bunch

    check_is_fitted(model)
    targets = fitted_model(model.members_[0]).targets
    members = {f"member_{i}": member for i, member in enumerate(model.members_)}
    members = {name: to_sklearn(one, predict_only=predict_only) for name, one in members.items()}
    unfitted = [(name, clone(member)) for name, member in members.items()]
    result: Any
    if isinstance(targets, Values):
        if model.n_outputs_ > 1:
            raise ValueError("scikit-learn's VotingRegressor has no several outputs.")
        result = VotingRegressor(unfitted)
    else:
        if targets.is_multilabel or len(targets.classes) == 1:
            raise ValueError("scikit-learn's VotingClassifier needs two classes or more, and has "
                             "no several labels.")  # fmt: skip
        result = VotingClassifier(unfitted, voting="soft")
        result.le_ = LabelEncoder().fit(targets.classes)
        result.classes_ = result.le_.classes_
    result.estimators_, result.named_estimators_ = list(members.values()), Bunch(**members)
    if hasattr(model, "feature_names_in_"):
        result.feature_names_in_ = copy.deepcopy(model.feature_names_in_)
    return result


def from_sklearn(model: Any) -> MLPClassifier | MLPRegressor:
    """A fitted estimator of fastmlp's that goes on from one of scikit-learn's.

    Parameters
    ----------
    model : sklearn.neural_network.MLPClassifier or sklearn.neural_network.MLPRegressor

    Returns
    -------
    MLPClassifier or MLPRegressor
        With the same parameters, predictions, and state of the optimizer, so that `partial_fit`
        and a warm start give the same numbers on both sides, to rounding.  In ``history_``, what
        scikit-learn does not keep is NaN.  It shares nothing with ``model``.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model was not fitted.
    TypeError
        If ``model`` is neither of these, or of a subclass.

    Examples
    --------
    >>> import fastmlp, sklearn.neural_network
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> theirs = sklearn.neural_network.MLPClassifier(solver="lbfgs", random_state=0).fit(X, y)
    >>> fastmlp.from_sklearn(theirs).score(X, y) == theirs.score(X, y)
    True
    """
    name = type(model).__name__
    if name not in _CLASSES or type(model) is not getattr(neural_network(), name):
        raise TypeError(
            "model must be an MLPClassifier or MLPRegressor of sklearn.neural_network, not of a "
            f"subclass, got {type(model)!r}."
        )
    check_is_fitted(model)
    result: Any = _CLASSES[name](**copy.deepcopy(model.get_params(deep=False)))
    _take_over(result, model)
    state = vars(result)
    state |= _settled(model.coefs_, model.intercepts_)
    if hasattr(model, "loss_curve_"):
        state["history_"] = _history_of_sklearn(model)
    theirs = vars(model).get("_optimizer")
    if theirs is not None:
        state["_optimizer_state"] = _state_of_sklearn(result, theirs, fitted_model(result))
    return result


def _take_over(result: Any, model: Any) -> None:
    """Copy the attributes that mean the same on both sides."""
    fitted = vars(model)
    vars(result).update({key: copy.deepcopy(fitted[key]) for key in _SHARED if key in fitted})


def _parameters_for_sklearn(
    kind: Any, model: MLPClassifier | MLPRegressor, fitted: FittedModel, predict_only: bool
) -> dict[str, Any]:
    """Parameters of ``model`` that scikit-learn has, after a look at the others."""
    given = model.get_params(deep=False)
    given["activation"] = _one_activation(kind, model, fitted.network)
    if model.layer_norm:
        raise ValueError("scikit-learn has no layer_norm=True, so it cannot predict the same.")
    if _levels(fitted) is not None:
        raise ValueError(
            f"scikit-learn has no quantile={model.quantile!r}, several levels that predictions are "
            "sorted by, so it cannot predict the same."
        )
    shared = {name: given[name] for name in kind._get_param_names()}
    refused = [name for name, value in shared.items() if not is_valid_parameter(kind, name, value)]
    refused += _own_parameters(model, set(shared))
    if refused and not predict_only:
        values = ", ".join(f"{name}={getattr(model, name)!r}" for name in refused)
        raise ValueError(
            f"scikit-learn has no {values}; predict_only=True leaves out what only matters for "
            "training."
        )
    kept = {name: value for name, value in shared.items() if name not in refused}
    if "loss" in shared and "loss" in refused and model.out_activation_ == "exp":
        kept["loss"] = "poisson"  # scikit-learn's loss with this activation
    return kept


def _one_activation(kind: Any, model: MLPClassifier | MLPRegressor, network: Network) -> str:
    """The activation of all hidden layers."""
    chosen = network.activations
    names = {chosen} if isinstance(chosen, str) else set(chosen) or {"identity"}
    if len(names) > 1 or not all(is_valid_parameter(kind, "activation", name) for name in names):
        raise ValueError(
            f"scikit-learn has no activation={model.activation!r}, so it cannot predict the same."
        )
    (name,) = names
    return str(name)


def _own_parameters(model: MLPClassifier | MLPRegressor, shared: set[str]) -> list[str]:
    """Parameters that only fastmlp has, and that have another value than the default."""
    defaults = type(model)().get_params(deep=False)
    return [
        name
        for name, value in model.get_params(deep=False).items()
        if name not in shared
        and _PARAMETERS[name].portable
        and not (value is defaults[name] or np.array_equal(value, defaults[name]))
    ]


def _layers_for_sklearn(flat: np.ndarray, network: Network) -> list[np.ndarray]:
    """New arrays: the weights of all layers, then the biases."""
    coefs, intercepts = network.unflatten(flat)
    return [array.copy() for array in (*coefs, *intercepts)]


def _optimizer_for_sklearn(state: OptimizerState, network: Network) -> Any:
    """scikit-learn's optimizer in the state of ours."""
    theirs = neural_network()._stochastic_optimizers
    rule, (first, second, third), *own = state.optimizer
    schedule, rate = state.schedule, state.schedule.learning_rate_init
    slots = [_layers_for_sklearn(slot, network) for slot in state.slots[:N_SLOTS]]
    has_own = own[0] or not (own[1] is own[2] is None)
    if has_own or schedule.warmup_epochs or state.dropout_seed is not None:
        raise ValueError(
            "The model was trained with weight_decay, max_grad_norm, ema_decay, warmup_epochs or "
            "dropout, which scikit-learn's optimizers do not have; use predict_only=True."
        )
    if rule == "adam" and schedule.name == "constant":
        optimizer = theirs.AdamOptimizer([], rate, first, second, third)
        optimizer.t, (optimizer.ms, optimizer.vs) = int(state.step), slots
        return optimizer
    if rule not in ("sgd", "nesterov") or schedule.name not in SCIKIT_LEARN_SCHEDULES:
        raise ValueError(
            f"The model was trained with {rule!r} and the schedule {schedule.name!r}, "
            "which scikit-learn does not have; use predict_only=True."
        )
    optimizer = theirs.SGDOptimizer(
        [], rate, schedule.name, first, rule == "nesterov", schedule.power_t
    )
    optimizer.learning_rate, optimizer.velocities = state.learning_rate, slots[0]
    return optimizer


def _state_of_sklearn(result: Any, theirs: Any, fitted: FittedModel) -> OptimizerState:
    """Our optimizer's state from scikit-learn's."""
    own = make_optimizer(result)
    schedule = make_schedule(result)._replace(learning_rate_init=float(theirs.learning_rate_init))
    if isinstance(theirs, neural_network()._stochastic_optimizers.AdamOptimizer):
        rule, slots, step = "adam", [theirs.ms, theirs.vs], int(theirs.t)
        constants, rate = [theirs.beta_1, theirs.beta_2, theirs.epsilon], theirs.learning_rate_init
        schedule = schedule._replace(name="constant")
    else:
        rule, slots, step = "nesterov" if theirs.nesterov else "sgd", [theirs.velocities], 0
        constants, rate = [theirs.momentum], theirs.learning_rate
        schedule = schedule._replace(name=theirs.lr_schedule, power_t=float(theirs.power_t))
    optimizer = Optimizer.of(rule, [float(constant) for constant in constants], *own[2:])
    state = OptimizerState.new(optimizer, schedule, fitted.parameters)
    n_layers = len(fitted.coefs)
    for row, arrays in zip(state.slots, slots, strict=False):
        row[:] = fitted.network.flatten(arrays[:n_layers], arrays[n_layers:], fitted.dtype)
    return replace(state, step=step, learning_rate=float(rate))


def _history_of_sklearn(model: Any) -> dict[str, list[Any]]:
    losses = [float(loss) for loss in model.loss_curve_]
    unknown = [float("nan")] * len(losses)
    history: dict[str, list[Any]] = {name: list(unknown) for name in HISTORY}
    history |= {"epoch": list(range(1, len(losses) + 1)), "loss": losses}
    if getattr(model, "validation_scores_", None) is not None:
        history["validation_score"] = [float(score) for score in model.validation_scores_]
    return history
