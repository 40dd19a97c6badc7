"""ONNX: a fitted model as a graph of standard operators, for any runtime.

The graph is written with `onnx.helper` alone.  Operators are those that runtimes have for float32
and float64: onnxruntime lacks Elu, Selu, Softplus and HardSigmoid in float64, Gelu and Mish are
younger than opset 17, and numbers that are attributes are float32 always.  So most activations are
a few primitives here, in forms that do not overflow.

Names and shapes of outputs are skl2onnx's, so that a model of ours takes the place of one of
scikit-learn's.  `register` teaches skl2onnx the same graphs, for networks inside pipelines.
"""

import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import is_classifier

from fastmlp._safetensors import replace
from fastmlp._sklearn import check_is_fitted
from fastmlp._version import __version__
from fastmlp.ensemble import MLPEnsembleClassifier, MLPEnsembleRegressor
from fastmlp.estimators import MLPClassifier, MLPRegressor
from fastmlp.export.recipe import Model, Recipe, describe
from fastmlp.functions import LAYER_NORM_EPSILON

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

__all__ = ["register", "to_onnx"]

_OPSET, _ML_OPSET, _IR_VERSION = 17, 3, 8  # of ONNX 1.12 (2022)
_MAX_BYTES = 2**31 - 2**20  # of parameters; protobuf's limit less room for the rest


class _Graph:
    """Nodes and constants; calling it adds a node and returns the name of its output.

    Parameters
    ----------
    dtype : numpy dtype
        Of numbers.
    opset : int
    unique : callable
        ``str -> str``: a name with this beginning that is not taken.
    """

    def __init__(self, dtype: np.dtype, opset: int, unique: Callable[[str], str]):
        self.dtype, self.opset, self._unique = dtype, opset, unique
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        self.constants: dict[str, np.ndarray] = {}

    def __call__(
        self,
        operator: str,
        *inputs: str | float | np.ndarray,
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node; each input is a name, a number or an array."""
        names = [one if isinstance(one, str) else self._constant(one) for one in inputs]
        output = output or self._unique(operator)
        self.nodes.append((operator, names, [output], attributes))
        return output

    def _constant(self, value: float | np.ndarray) -> str:
        name = self._unique("constant")
        self.constants[name] = np.asarray(value, self.dtype if np.isscalar(value) else None)
        return name

    def sort(self, z: str, n: int) -> str:
        """The ``n`` elements of each row in increasing order."""
        values = self("TopK", z, np.array([n]), axis=1, largest=0)
        self.nodes[-1][2].append(self._unique("indices"))
        return values

    def mean(self, z: str) -> str:
        """Mean of each row, shape (n, 1)."""
        if self.opset < 18:
            return self("ReduceMean", z, axes=[1])
        return self("ReduceMean", z, np.array([1]))


def _negative_exp(g: _Graph, z: str) -> str:
    """``exp(min(z, 0)) - 1``."""
    return g("Sub", g("Exp", g("Min", z, 0.0)), 1.0)


def _selu(g: _Graph, z: str) -> str:
    below = g("Mul", _negative_exp(g, z), 1.7580993408473766)
    return g("Add", g("Mul", g("Relu", z), 1.0507009873554805), below)


def _gelu(g: _Graph, z: str) -> str:
    cube = g("Mul", g("Mul", g("Mul", z, z), z), 0.044715)
    u = g("Mul", g("Add", z, cube), 2 * 0.7978845608028654)
    return g("Mul", z, g("Sigmoid", u))


def _silu(g: _Graph, z: str) -> str:
    """Not with Sigmoid: onnxruntime 1.20 fuses ``z Sigmoid(z)`` into what it lacks in float64."""
    return g("Div", z, g("Add", g("Exp", g("Neg", z)), 1.0))


def _mish(g: _Graph, z: str) -> str:
    """``tanh(softplus(z)) = r / (r + 2)`` with ``r = q (q + 2)``, ``q = exp(z)``; 1 above 20."""
    q = g("Exp", g("Min", z, 20.0))
    r = g("Mul", q, g("Add", q, 2.0))
    return g("Mul", z, g("Div", r, g("Add", r, 2.0)))


def _softplus(g: _Graph, z: str) -> str:
    q = g("Exp", g("Neg", g("Abs", z)))
    return g("Add", g("Relu", z), g("Log", g("Add", q, 1.0)))


def _hard_sigmoid(g: _Graph, z: str) -> str:
    return g("Clip", g("Add", g("Div", z, 6.0), 0.5), 0.0, 1.0)


_ACTIVATIONS: dict[str, Callable[[_Graph, str], str]] = {
    "identity": lambda g, z: z,
    "relu": lambda g, z: g("Relu", z),
    "tanh": lambda g, z: g("Tanh", z),
    "logistic": lambda g, z: g("Sigmoid", z),
    "step": lambda g, z: g("Sign", g("Relu", z)),
    "leaky_relu": lambda g, z: g("Max", z, g("Mul", z, 0.01)),
    "elu": lambda g, z: g("Add", g("Relu", z), _negative_exp(g, z)),
    "selu": _selu,
    "gelu": _gelu,
    "silu": _silu,
    "mish": _mish,
    "softplus": _softplus,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": lambda g, z: g("Mul", z, _hard_sigmoid(g, z)),
}

_LINKS: dict[str, Callable[[_Graph, str], str]] = {
    "identity": lambda g, z: z,
    "logistic": lambda g, z: g("Sigmoid", z),
    "softmax": lambda g, z: g("Softmax", z, axis=1),
    "exp": lambda g, z: g("Exp", z),
}


def _normalise(g: _Graph, z: str) -> str:
    """``layer_norm``."""
    distance = g("Sub", z, g.mean(z))
    variance = g.mean(g("Mul", distance, distance))
    return g("Div", distance, g("Sqrt", g("Add", variance, LAYER_NORM_EPSILON)))


def _outputs(g: _Graph, recipe: Recipe, x: str) -> str:
    """Outputs (n, n_outputs), averaged over the members.

    Not with Mean, which onnxruntime has for float32 only.
    """
    outputs = [_member(g, recipe, layers, x) for layers in recipe.members]
    if len(outputs) == 1:
        return outputs[0]
    return g("Div", g("Sum", *outputs), float(len(outputs)))


def _member(g: _Graph, recipe: Recipe, layers: list, x: str) -> str:
    """Outputs of one network; quantiles of several levels are sorted by level."""
    outputs = _forward(g, recipe, layers, x)
    if recipe.ranks is None:
        return outputs
    return g("Gather", g.sort(outputs, len(recipe.ranks)), np.array(recipe.ranks), axis=1)


def _forward(g: _Graph, recipe: Recipe, layers: list, x: str) -> str:
    """Outputs of the last layer, (n, n_outputs)."""
    *hidden, last = [(W.astype(g.dtype), b.astype(g.dtype)) for W, b in layers]
    for (W, b), activation in zip(hidden, recipe.activations, strict=True):
        x = g("Gemm", x, W, b)
        if recipe.network.layer_norm:
            x = _normalise(g, x)
        x = _ACTIVATIONS[activation](g, x)
    return _LINKS[recipe.network.out_activation](g, g("Gemm", x, *last))


def _predict(g: _Graph, recipe: Recipe, x: str, variable: str) -> None:
    """A regressor's targets, (n, n_outputs)."""
    g("Identity", _outputs(g, recipe, x), output=variable)


def _classify(g: _Graph, recipe: Recipe, x: str, label: str, probabilities: str) -> None:
    """A classifier's labels, (n,) or (n, n_labels), and `predict_proba`."""
    outputs = _outputs(g, recipe, x)
    if recipe.is_binary:
        g("Concat", g("Sub", 1.0, outputs), outputs, output=probabilities, axis=1)
    else:
        g("Identity", outputs, output=probabilities)
    if recipe.labels is None:
        g("Cast", g("Greater", probabilities, 0.5), output=label, to=7)  # TensorProto.INT64
        return
    # a single class has two columns of probabilities, too
    labels = recipe.labels * 2 if len(recipe.labels) == 1 else recipe.labels
    table = np.array(labels, object if _is_text(recipe) else np.int64)
    g("Gather", table, g("ArgMax", probabilities, axis=1, keepdims=0), output=label)


def _is_text(recipe: Recipe) -> bool:
    """Whether the labels are strings."""
    return recipe.labels is not None and isinstance(recipe.labels[0], str)


def to_onnx(
    model: Any, path: str | os.PathLike[str] | None = None, *, X: Any = None
) -> "ModelProto":
    """Turn a fitted model into ONNX.

    Parameters
    ----------
    model : MLPClassifier, MLPRegressor, an ensemble, or an estimator with a network inside
        A fitted estimator; for `TabularMLPClassifier` and `TabularMLPRegressor` see Notes.  A
        `sklearn.pipeline.Pipeline`, and whatever else is not a network itself, is converted by
        skl2onnx, which must be installed (see `register`).
    path : str or path-like, default=None
        A file to write the model to; one that is there is replaced at once.
    X : array or pandas data frame of at least one row, default=None
        Samples as the model will get them, where skl2onnx converts: it finds the types of the
        inputs in them.  An array becomes the input ``X``, each column of a frame an input of its
        name.

    Returns
    -------
    onnx.ModelProto
        Of opset 17.  Its input ``X`` has the shape (n_samples, n_features) and the element type of
        ``coefs_``, float32 or float64.  A regressor has the output ``variable`` of shape
        (n_samples, n_outputs).  A classifier has the outputs ``label``, strings or int64 (also for
        labels that are booleans or floats), of shape (n_samples,) or for multilabel targets
        (n_samples, n_labels), and ``probabilities``, which is what ``predict_proba`` returns.

    Raises
    ------
    ImportError
        If onnx is not installed, or skl2onnx where it is needed.
    sklearn.exceptions.NotFittedError
        If the model was not fitted.
    TypeError
        If it is no estimator.
    ValueError
        If ONNX cannot express the model: an activation given as functions, class labels that are
        neither strings nor whole numbers, or 2 GiB of parameters.  If ``X`` is missing.

    Notes
    -----
    Predictions agree to the rounding of the element type.  A label can differ where two
    probabilities are equal to that rounding.  There is no check for NaN or infinity in the input.

    `TabularMLPClassifier` and `TabularMLPRegressor` become a graph of opset 17 with an input of
    shape (n_samples, 1) for each column that was not dropped, of its name or ``column_0``, ...:
    float64 for numbers, NaN being missing; strings or int64 for categories, of which the empty
    string is missing.  Values are float64.  A ``target_transformer`` has no form in ONNX.

    skl2onnx has no converter for `TransformedTargetRegressor`, nor for a `FunctionTransformer`
    with a function.  Of `tabular_pipeline`, that leaves classifiers of numbers.

    Examples
    --------
    >>> import numpy as np, fastmlp
    >>> from onnx.reference import ReferenceEvaluator
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> model = fastmlp.MLPClassifier(solver="lbfgs", random_state=0)
    >>> model = model.fit(X, np.where(X[:, 0] > 0, "above", "below"))
    >>> session = ReferenceEvaluator(fastmlp.onnx.to_onnx(model))
    >>> label, probabilities = session.run(None, {"X": X[::49]})
    >>> label.tolist()
    ['below', 'above']
    >>> np.allclose(probabilities, model.predict_proba(X[::49]))
    True
    """
    onnx = _import("onnx", "fastmlp[onnx]")
    from fastmlp.tabular import TabularMLPClassifier, TabularMLPRegressor

    if isinstance(model, Model):
        proto = _model(onnx, describe(model, _ACTIVATIONS, "ONNX"))
    elif isinstance(model, TabularMLPClassifier | TabularMLPRegressor):
        proto = _of_tables(onnx, model)
    else:
        proto = _by_skl2onnx(model, X)
    if path is not None:
        replace(path, [proto.SerializeToString()])
    return proto


def register() -> None:
    """Teach skl2onnx to convert fastmlp's estimators: networks, ensembles, `RobustScaleSmoothClip`.

    After that, its functions convert pipelines, searches and ensembles that contain them.
    Classifiers have skl2onnx's options ``zipmap`` and ``output_class_labels``.  Calling it twice
    does no harm.

    Raises
    ------
    ImportError
        If skl2onnx is not installed.

    Examples
    --------
    >>> import numpy as np, fastmlp, skl2onnx
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X = np.linspace(0, 100, 50, dtype=np.float32)[:, None]
    >>> model = fastmlp.MLPRegressor(solver="lbfgs", random_state=0)
    >>> pipeline = make_pipeline(StandardScaler(), model).fit(X, X[:, 0])
    >>> fastmlp.onnx.register()
    >>> proto = skl2onnx.to_onnx(pipeline, X[:1])
    >>> [node.name for node in proto.graph.output]
    ['variable']
    """
    skl2onnx = _import("skl2onnx", "skl2onnx")
    from fastmlp.tabular import RobustScaleSmoothClip

    add = skl2onnx.update_registered_converter
    options = {
        "zipmap": [True, False, "columns"],
        "output_class_labels": [False, True],
        "nocl": [False],  # skl2onnx asks every classifier for it
    }
    add(MLPClassifier, "FastmlpMLPClassifier", _classifier_shapes, _convert, options=options)
    add(MLPRegressor, "FastmlpMLPRegressor", _regressor_shapes, _convert)
    add(MLPEnsembleClassifier, "FastmlpMLPEnsembleClassifier", _classifier_shapes, _convert,
        options=options)  # fmt: skip
    add(MLPEnsembleRegressor, "FastmlpMLPEnsembleRegressor", _regressor_shapes, _convert)
    add(RobustScaleSmoothClip, "FastmlpRobustScaleSmoothClip", _scaler_shapes, _convert_scaler)


def _import(name: str, requirement: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{name} is needed for this; install it with: pip install "{requirement}".'
        ) from error


def _model(onnx: Any, recipe: Recipe) -> "ModelProto":
    """The `onnx.ModelProto` of a network alone."""
    g = _new_graph(recipe)
    real = onnx.helper.np_dtype_to_tensor_dtype(recipe.dtype)
    if recipe.is_classifier:
        _classify(g, recipe, "X", "label", "probabilities")
    else:
        _predict(g, recipe, "X", "variable")
    inputs = [("X", real, [None, recipe.network.widths[0]])]
    return _proto(onnx, g, recipe, inputs, real)


def _of_tables(onnx: Any, model: Any) -> "ModelProto":
    """The `onnx.ModelProto` of a `TabularMLPClassifier` or `TabularMLPRegressor`."""
    from fastmlp.export.tables import add_encoder, columns_of, kinds_of

    check_is_fitted(model)
    recipe = describe(model.network_, _ACTIVATIONS, "ONNX")
    types = onnx.TensorProto
    kinds = {float: types.DOUBLE, str: types.STRING, int: types.INT64}
    of_column = kinds_of(model.encoder_)
    inputs = [
        (name, kinds[of_column[j]], [None, 1]) for j, name in columns_of(model.encoder_).items()
    ]
    g = _new_graph(recipe)
    x = add_encoder(g, model.encoder_)
    if not recipe.is_classifier:
        _unscale(g, model, g("Cast", _outputs(g, recipe, x), to=types.DOUBLE))
        return _proto(onnx, g, recipe, inputs, types.DOUBLE)
    if model.temperature_ == 1:
        _classify(g, recipe, x, "label", "probabilities")
    else:
        _classify(g, recipe, x, "label", "uncalibrated")
        powers = g("Pow", "uncalibrated", 1 / model.temperature_)
        total = g("ReduceSum", powers, np.array([1]), keepdims=1)
        g("Div", powers, total, output="probabilities")
    return _proto(onnx, g, recipe, inputs, types.FLOAT)


def _unscale(g: _Graph, model: Any, outputs: str) -> None:
    """Targets in the user's units."""
    if model.target_transformer_ is not None:
        raise ValueError(
            f"target_transformer={model.target_transformer!r} has no form in ONNX; fit with None, "
            "or undo it behind the graph."
        )
    scaler = model.target_scaler_
    if scaler is not None:
        outputs = g("Mul", outputs, np.array(scaler.scale_))
        outputs = g("Add", outputs, np.array(scaler.mean_))
    g("Identity", outputs, output="variable")


def _new_graph(recipe: Recipe) -> _Graph:
    """An empty graph in the network's element type; refuses a network that is too large."""
    n_bytes = len(recipe.members) * recipe.network.n_parameters * recipe.dtype.itemsize
    if n_bytes > _MAX_BYTES:
        raise ValueError(
            f"model has {n_bytes} bytes of parameters, and an ONNX file holds {_MAX_BYTES}; fit on "
            "float32 data, or with fewer units."
        )
    taken: dict[str, int] = {}

    def unique(beginning: str) -> str:
        taken[beginning] = taken.get(beginning, 0) + 1
        return f"{beginning}_{taken[beginning]}"

    return _Graph(recipe.dtype, _OPSET, unique)


def _proto(onnx: Any, g: _Graph, recipe: Recipe, inputs: list, real: int) -> "ModelProto":
    """The graph as a model; ``real`` is the type of its numbers."""
    helper, n_columns = onnx.helper, recipe.n_columns
    outputs = [("variable", real, [None, n_columns])]
    if recipe.is_classifier:
        label = onnx.TensorProto.STRING if _is_text(recipe) else onnx.TensorProto.INT64
        outputs = [
            ("label", label, [None, n_columns][: 1 + recipe.multilabel]),
            ("probabilities", real, [None, n_columns]),
        ]
    graph = helper.make_graph(
        [helper.make_node(*node, **attributes) for *node, attributes in g.nodes],
        "fastmlp",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*output) for output in outputs],
        _tensors(g),
        doc_string=recipe.summary,
    )
    domains = {attributes.get("domain") for *_, attributes in g.nodes} - {None}
    versions = [("", _OPSET), *((domain, _ML_OPSET) for domain in domains)]
    return helper.make_model(
        graph, producer_name="fastmlp", producer_version=__version__, ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid(*one) for one in versions], doc_string=recipe.summary,
    )  # fmt: skip


def _tensors(g: _Graph) -> "list[TensorProto]":
    from_array = import_module("onnx.numpy_helper").from_array
    return [from_array(array, name) for name, array in g.constants.items()]


def _by_skl2onnx(model: Any, X: Any) -> "ModelProto":
    """Conversion of what only contains a network."""
    if not hasattr(model, "fit"):
        raise TypeError(f"model must be a fitted estimator, got {model!r}.")
    if X is None:
        raise ValueError(
            f"X is needed to convert a {type(model).__name__}: give some samples, from which the "
            "types of the inputs are found, as in to_onnx(model, X=X_train[:1])."
        )
    register()
    skl2onnx = import_module("skl2onnx")
    options = {"zipmap": False} if is_classifier(model) else None
    return skl2onnx.to_onnx(model, X[:1], target_opset=_OPSET, options=options)


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """skl2onnx: add a network's nodes."""
    recipe = describe(operator.raw_operator, _ACTIVATIONS, "ONNX")
    g, x = _open(scope, operator, container)
    outputs = [output.full_name for output in operator.outputs]
    if recipe.is_classifier:
        _classify(g, recipe, x, *outputs)
    else:
        _predict(g, recipe, x, *outputs)
    _add(g, container)


def _convert_scaler(scope: Any, operator: Any, container: Any) -> None:
    """skl2onnx: add the nodes of a `RobustScaleSmoothClip`."""
    scaler = operator.raw_operator
    g, x = _open(scope, operator, container)
    largest = np.sqrt(np.finfo(g.dtype).max)
    z = g("Mul", g("Sub", x, scaler.center_.astype(g.dtype)), scaler.factor_.astype(g.dtype))
    z = g("Clip", z, -largest, largest)
    ratio = g("Div", z, 3.0)
    g("Div", z, g("Sqrt", g("Add", g("Mul", ratio, ratio), 1.0)),
      output=operator.outputs[0].full_name)  # fmt: skip
    _add(g, container)


def _open(scope: Any, operator: Any, container: Any) -> tuple[_Graph, str]:
    """A graph in the operator's element type, and the name of its input in that type."""
    types = import_module("skl2onnx.common.data_types")
    double = isinstance(operator.inputs[0].type, types.DoubleTensorType)
    dtype = np.dtype(np.float64 if double else np.float32)
    g = _Graph(dtype, container.target_opset_any_domain(""), scope.get_unique_variable_name)
    real = import_module("onnx.helper").np_dtype_to_tensor_dtype(dtype)
    return g, g("Cast", operator.inputs[0].full_name, to=real)


def _add(g: _Graph, container: Any) -> None:
    container.initializers.extend(_tensors(g))
    for operator, inputs, outputs, attributes in g.nodes:
        container.add_node(operator, inputs, outputs, **attributes)


def _classifier_shapes(operator: Any) -> None:
    """skl2onnx: types of labels and probabilities."""
    types = import_module("skl2onnx.common.data_types")
    recipe = describe(operator.raw_operator, _ACTIVATIONS, "ONNX")
    n_rows = operator.inputs[0].get_first_dimension()
    label = types.StringTensorType if _is_text(recipe) else types.Int64TensorType
    operator.outputs[0].set_type(label([n_rows, recipe.n_columns][: 1 + recipe.multilabel]))
    operator.outputs[1].type.shape = [n_rows, recipe.n_columns]


def _regressor_shapes(operator: Any) -> None:
    """skl2onnx: type of the predictions."""
    _set_real(operator, operator.raw_operator.n_outputs_)


def _scaler_shapes(operator: Any) -> None:
    """skl2onnx: type of the scaled features."""
    _set_real(operator, operator.raw_operator.n_features_in_)


def _set_real(operator: Any, n_columns: int) -> None:
    types = import_module("skl2onnx.common.data_types")
    double = isinstance(operator.inputs[0].type, types.DoubleTensorType)
    real = types.DoubleTensorType if double else types.FloatTensorType
    operator.outputs[0].set_type(real([operator.inputs[0].get_first_dimension(), n_columns]))
