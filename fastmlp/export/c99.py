"""C: a fitted model as one file of C99 that depends on nothing but ``math.h``.

For firmware, and wherever else Python is not.  The file predicts one sample at a time, with plain
loops that compilers vectorise.  Weights are hexadecimal floating-point constants, which every
compiler reads exactly.  Formulas are written in double and turned into float by `_typed`, because
an unsuffixed constant or ``exp`` in float code would compute in double, which small processors
emulate.  Text of the user's (labels, names of features) appears in string literals only.
"""

import os
import re
from collections.abc import Iterable
from textwrap import indent

import numpy as np

from fastmlp._safetensors import replace
from fastmlp.export.recipe import Model, Recipe, describe
from fastmlp.functions import LAYER_NORM_EPSILON

_ACTIVATIONS = {
    "identity": "return z;",
    "relu": "return z < 0.0 ? 0.0 : z;",
    "tanh": "return tanh(z);",
    "logistic": "return 1.0 / (1.0 + exp(-z));",
    "step": "return z > 0.0 ? 1.0 : z <= 0.0 ? 0.0 : z;",
    "leaky_relu": "return z < 0.0 ? 0.01 * z : z;",
    "elu": "return z > 0.0 ? z : expm1(z);",
    "selu": "return z > 0.0 ? 1.0507009873554805 * z : 1.7580993408473766 * expm1(z);",
    "gelu": (
        "const double u = 2.0 * 0.7978845608028654 * (z + 0.044715 * z * z * z);\n"
        "return z / (1.0 + exp(-u));"
    ),
    "silu": "return z / (1.0 + exp(-z));",
    "mish": (
        "const double q = exp(-fabs(z));\n"
        "return z < 0.0 ? z * q * (q + 2.0) / (q * (q + 2.0) + 2.0)\n"
        "               : z * (1.0 + 2.0 * q) / (1.0 + 2.0 * q + 2.0 * q * q);"
    ),
    "softplus": "return (z > 0.0 ? z : 0.0) + log1p(exp(-fabs(z)));",
    "hard_sigmoid": "return z < -3.0 ? 0.0 : z > 3.0 ? 1.0 : z / 6.0 + 0.5;",
    "hard_swish": "return z * (z < -3.0 ? 0.0 : z > 3.0 ? 1.0 : z / 6.0 + 0.5);",
}  # statements that return the activation of ``z``
_ELEMENTWISE = _ACTIVATIONS | {"exp": "return exp(z);"}

_ACTIVATION = """\
static double {p}activation_{name}(double z)
{{
{body}
}}
"""
_DENSE = """\
/* z = x W + b, with W row by row; fan_in and fan_out are the numbers of rows and columns. */
static void {p}dense(const double *x, int fan_in, const double *W, const double *b, int fan_out,
                  double *restrict z)
{{
    for (int k = 0; k < fan_out; k++)
        z[k] = b[k];
    for (int j = 0; j < fan_in; j++, W += fan_out)
        for (int k = 0; k < fan_out; k++)
            z[k] += x[j] * W[k];
}}
"""
_NORMALISE = """\
static void {p}layer_norm(double *z, int n)
{{
    double mean = 0.0, variance = 0.0;
    for (int k = 0; k < n; k++)
        mean += z[k];
    mean /= n;
    for (int k = 0; k < n; k++)
        variance += (z[k] - mean) * (z[k] - mean);
    const double factor = 1.0 / sqrt(variance / n + {epsilon:.1e});
    for (int k = 0; k < n; k++)
        z[k] = (z[k] - mean) * factor;
}}
"""
_SOFTMAX = """\
static void {p}softmax(double *z, int n)
{{
    double peak = z[0], total = 0.0;
    for (int k = 1; k < n; k++)
        if (z[k] > peak)
            peak = z[k];
    for (int k = 0; k < n; k++)
        total += z[k] = exp(z[k] - peak);
    for (int k = 0; k < n; k++)
        z[k] /= total;
}}
"""
_SORT = """\
/* Sort by insertion, then put each quantile into the column of its level. */
static void {p}sort(double *y)
{{
    static const int ranks[{n}] = {{{ranks}}};
    double sorted[{n}];
    for (int i = 0; i < {n}; i++) {{
        int k = i;
        for (; k > 0 && sorted[k - 1] > y[i]; k--)
            sorted[k] = sorted[k - 1];
        sorted[k] = y[i];
    }}
    for (int i = 0; i < {n}; i++)
        y[i] = sorted[ranks[i]];
}}
"""
_AVERAGE = """\
/* Average over the members of the ensemble. */
static void {p}forward(const double *x, double *out)
{{
    double own[{n_outputs}];
    for (int k = 0; k < {n_outputs}; k++)
        out[k] = 0.0;
    for (int m = 0; m < {n_members}; m++) {{
        {p}member(m, x, own);
        for (int k = 0; k < {n_outputs}; k++)
            out[k] += own[k];
    }}
    for (int k = 0; k < {n_outputs}; k++)
        out[k] /= {n_members};
}}
"""
_REGRESSOR = """\
void {p}predict(const double x[{P}N_FEATURES], double y[{P}N_OUTPUTS])
{{
    {p}forward(x, y);
}}
"""
_PROBABILITIES = """\
void {p}predict_proba(const double x[{P}N_FEATURES], double p[{P}N_OUTPUTS])
{{
    {p}forward(x, p);
}}
"""
_BINARY_PROBABILITIES = """\
void {p}predict_proba(const double x[{P}N_FEATURES], double p[{P}N_OUTPUTS])
{{
    {p}forward(x, p + 1);
    p[0] = 1.0 - p[1];
}}
"""
_CLASS = """\
int {p}predict(const double x[{P}N_FEATURES])
{{
    double p[{P}N_OUTPUTS];
    int best = 0;
    {p}predict_proba(x, p);
    for (int k = 1; k < {P}N_CLASSES; k++)
        if (p[k] > p[best])
            best = k;
    return best;
}}
"""
_LABELS = """\
void {p}predict(const double x[{P}N_FEATURES], int y[{P}N_OUTPUTS])
{{
    double p[{P}N_OUTPUTS];
    {p}predict_proba(x, p);
    for (int k = 0; k < {P}N_OUTPUTS; k++)
        y[k] = p[k] > 0.5;
}}
"""
_USAGE = """\
/* {summary}

{functions}

   Samples are not checked for NaN and infinity.  There is no state and no allocation, so any
   number of threads may call these functions; they need about {stack} bytes of stack.

   Compile as C99 without -ffast-math, and link with -lm.  Other files of the program declare the
   functions as above (in C++ as extern "C"), or include this file. */
"""
_REGRESSOR_USAGE = """\
void {p}predict(const double x[{P}N_FEATURES], double y[{P}N_OUTPUTS])
    Predict the targets y of the sample x."""
_CLASS_USAGE = """\
int {p}predict(const double x[{P}N_FEATURES])
    The class of the sample x, a place in {p}classes.
void {p}predict_proba(const double x[{P}N_FEATURES], double p[{P}N_OUTPUTS])
    Probabilities p of the classes."""
_LABELS_USAGE = """\
void {p}predict(const double x[{P}N_FEATURES], int y[{P}N_OUTPUTS])
    Which labels the sample x has, 0 or 1 each.
void {p}predict_proba(const double x[{P}N_FEATURES], double p[{P}N_OUTPUTS])
    Probabilities p of the labels."""


def to_c(
    model: Model,
    path: str | os.PathLike[str] | None = None,
    *,
    prefix: str = "",
) -> str:
    """Turn a fitted model into one file of C99 without dependencies.

    Parameters
    ----------
    model : MLPClassifier, MLPRegressor, or an ensemble of them
        A fitted estimator.
    path : str or path-like, default=None
        A file to write the code to; one that is there is replaced at once.
    prefix : str, default=''
        What all names begin with (those of macros in capitals), for several models in one program.

    Returns
    -------
    str
        The code, in the element type of ``coefs_``, double or float.  A regressor's function
        ``predict(x, y)`` predicts the targets ``y`` of one sample ``x``.  A classifier's
        ``predict(x)`` returns a class as its place in the array ``classes``, which holds strings
        or integers (also for labels that are booleans or floats); for multilabel targets,
        ``predict(x, y)`` writes 0 or 1 for each label.  A classifier's ``predict_proba(x, p)``
        gives probabilities as the method does.  The comment at the head of the code lists these
        functions.  ``feature_names`` is there if the model has names.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model was not fitted.
    TypeError
        If it is something else.
    ValueError
        If C cannot express the model: an activation given as functions, class labels that are
        neither strings nor whole numbers.  If the prefix cannot begin a name.

    Examples
    --------
    >>> import numpy as np, fastmlp
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> model = fastmlp.MLPRegressor(solver="lbfgs", random_state=0).fit(X, X[:, 0] ** 2)
    >>> code = fastmlp.to_c(model)
    >>> "void predict(const double x[N_FEATURES], double y[N_OUTPUTS])" in code
    True
    """
    if not re.fullmatch("([A-Za-z_][A-Za-z0-9_]*)?", prefix):
        raise ValueError(
            f"prefix must consist of letters, digits and _, no digit first, got {prefix!r}."
        )
    recipe = describe(model, _ACTIVATIONS, "C")
    feature_names = getattr(model, "feature_names_in_", None)
    code = _source(recipe, feature_names, prefix)
    if path is not None:
        replace(path, [code.encode("ascii")])
    return code


def _source(recipe: Recipe, feature_names: Iterable[str] | None, prefix: str) -> str:
    names = {"p": prefix, "P": prefix.upper()}
    parts = [
        _usage(recipe, names),
        "#include <math.h>\n",
        _sizes(recipe, names),
        _strings("feature_names", "N_FEATURES", feature_names, names),
        _classes(recipe, names),
        _weights(recipe, names),
        _typed(_functions(recipe, names), recipe.dtype),
    ]
    return "\n".join(part for part in parts if part)


def _typed(code: str, dtype: np.dtype) -> str:
    """Code that was written in double, in ``dtype``."""
    if dtype == np.float64:
        return code
    code = re.sub(r"\b(exp|expm1|log1p|tanh|sqrt|fabs)(?=\()", r"\1f", code)
    code = re.sub(r"\b\d+\.\d+(e[-+]\d+)?", r"\g<0>f", code)
    return re.sub(r"\bdouble\b", "float", code)


def _usage(recipe: Recipe, names: dict[str, str]) -> str:
    usage = _REGRESSOR_USAGE
    if recipe.is_classifier:
        usage = _LABELS_USAGE if recipe.multilabel else _CLASS_USAGE
    functions = indent(_typed(usage.format(**names), recipe.dtype), "   ")
    n_rows_out = 3 if len(recipe.members) > 1 else 2
    stack = recipe.dtype.itemsize * (sum(_buffers(recipe)) + n_rows_out * recipe.n_columns)
    return _USAGE.format(summary=recipe.summary, functions=functions, stack=stack)


def _sizes(recipe: Recipe, names: dict[str, str]) -> str:
    sizes = {"N_FEATURES": recipe.network.widths[0], "N_OUTPUTS": recipe.n_columns}
    if recipe.labels is not None:
        sizes["N_CLASSES"] = len(recipe.labels)
    return "".join(f"#define {names['P']}{name} {size}\n" for name, size in sizes.items())


def _strings(name: str, size: str, strings: Iterable[str] | None, names: dict[str, str]) -> str:
    if strings is None:
        return ""
    lines = "".join(f"    {_literal(string)},\n" for string in strings)
    return f"const char *const {names['p']}{name}[{names['P']}{size}] = {{\n{lines}}};\n"


def _literal(text: str) -> str:
    """A string literal of the text in UTF-8, itself in ASCII.

    Raises
    ------
    ValueError
        If there is a NUL in the text, where C would take it to end.
    """
    if "\0" in text:
        raise ValueError(f"A label or feature name has a NUL in it, which C cannot hold: {text!r}.")
    # an octal escape ends after three digits; ?? would begin a trigraph
    plain = set(range(32, 127)) - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def _classes(recipe: Recipe, names: dict[str, str]) -> str:
    if recipe.labels is None:
        return ""
    if isinstance(recipe.labels[0], str):
        return _strings("classes", "N_CLASSES", recipe.labels, names)
    # there is no literal for the smallest integer
    labels = ", ".join(f"{n}LL" if n > -(2**63) else f"{n + 1}LL - 1" for n in recipe.labels)
    return f"const long long {names['p']}classes[{names['P']}N_CLASSES] = {{{labels}}};\n"


def _weights(recipe: Recipe, names: dict[str, str]) -> str:
    arrays = []
    for i, layers in enumerate(zip(*recipe.members, strict=True)):
        for name, of_members in zip(("W", "b"), zip(*layers, strict=True), strict=True):
            array = np.concatenate([one.ravel() for one in of_members])
            arrays.append(_array(f"{names['p']}{name}{i}", array))
    return "\n".join(arrays)


def _array(name: str, array: np.ndarray) -> str:
    """A constant array: hexadecimal numbers, some to a line."""
    kind, end = ("float", "f,") if array.dtype == np.float32 else ("double", ",")
    numbers = [number.hex() for number in array.ravel().tolist()]
    groups = (numbers[i : i + 4] for i in range(0, len(numbers), 4))
    lines = "".join(f"    {f'{end} '.join(group)}{end}\n" for group in groups)
    if kind == "float":  # 24 bits of 53, so the last digits are zeros
        lines = lines.replace("0000000p", "p")
    return f"static const {kind} {name}[{array.size}] = {{\n{lines}}};\n"


def _functions(recipe: Recipe, names: dict[str, str]) -> str:
    softmax = recipe.network.out_activation == "softmax"
    used = [*recipe.activations] + [recipe.network.out_activation] * (not softmax)
    parts = [
        _ACTIVATION.format(name=name, body=indent(_ELEMENTWISE[name], "    "), **names)
        for name in dict.fromkeys(used)
        if name != "identity"
    ]
    parts.append(_DENSE.format(**names))
    if recipe.network.layer_norm:
        parts.append(_NORMALISE.format(epsilon=LAYER_NORM_EPSILON, **names))
    if softmax:
        parts.append(_SOFTMAX.format(**names))
    if recipe.ranks is not None:
        ranks = ", ".join(map(str, recipe.ranks))
        parts.append(_SORT.format(n=len(recipe.ranks), ranks=ranks, **names))
    parts.append(_forward(recipe, names["p"]))
    if len(recipe.members) > 1:
        sizes = {"n_members": len(recipe.members), "n_outputs": recipe.network.n_outputs}
        parts.append(_AVERAGE.format(**sizes, **names))
    if not recipe.is_classifier:
        parts.append(_REGRESSOR.format(**names))
    else:
        probabilities = _BINARY_PROBABILITIES if recipe.is_binary else _PROBABILITIES
        parts.append(probabilities.format(**names))
        parts.append((_LABELS if recipe.multilabel else _CLASS).format(**names))
    return "\n".join(parts)


def _forward(recipe: Recipe, p: str) -> str:
    """The function that calls the layers one after the other; an ensemble's has a member's."""
    name, of_member = ("member", "int m, ") if len(recipe.members) > 1 else ("forward", "")
    *hidden, n_outputs = recipe.network.widths[1:]
    buffers = zip(("even", "odd"), _buffers(recipe), strict=False)
    lines = [f"double {buffer}[{size}];" for buffer, size in buffers]
    source = "x"
    for i, (fan_out, activation) in enumerate(zip(hidden, recipe.activations, strict=True)):
        z = ("even", "odd")[i % 2]
        lines.append(f"{p}dense({source}, {_layer(recipe, p, i)}, {z});")
        if recipe.network.layer_norm:
            lines.append(f"{p}layer_norm({z}, {fan_out});")
        lines += _elementwise(activation, z, fan_out, p)
        source = z
    i = len(hidden)
    lines.append(f"{p}dense({source}, {_layer(recipe, p, i)}, out);")
    if recipe.network.out_activation == "softmax":
        lines.append(f"{p}softmax(out, {n_outputs});")
    else:
        lines += _elementwise(recipe.network.out_activation, "out", n_outputs, p)
    if recipe.ranks is not None:
        lines.append(f"{p}sort(out);")
    body = indent("\n".join(lines), "    ")
    return f"static void {p}{name}({of_member}const double *x, double *out)\n{{\n{body}\n}}\n"


def _layer(recipe: Recipe, p: str, i: int) -> str:
    """What ``dense`` takes of a layer."""
    fan_in, fan_out = recipe.network.widths[i : i + 2]
    W, b = f"{p}W{i}", f"{p}b{i}"
    if len(recipe.members) > 1:
        W, b = f"{W} + m * {fan_in * fan_out}", f"{b} + m * {fan_out}"
    return f"{fan_in}, {W}, {b}, {fan_out}"


def _buffers(recipe: Recipe) -> list[int]:
    """Sizes of the one or two arrays that hidden layers take turns to write to."""
    hidden = recipe.network.widths[1:-1]
    return [max(hidden[start::2]) for start in range(min(2, len(hidden)))]


def _elementwise(activation: str, z: str, n: int, p: str) -> list[str]:
    if activation == "identity":
        return []
    loop = f"for (int k = 0; k < {n}; k++)"
    return [loop, f"    {z}[k] = {p}activation_{activation}({z}[k]);"]
