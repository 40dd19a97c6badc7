"""Real tables: networks, gradient boosting and other people's networks, each at its defaults.

    python bench/tables.py [--quick] [--sets NAME ...] [--methods NAME ...] [--splits 2] [--readme]

Needs ``pip install "fastmlp[tables]"``; a rival that is missing is named and left out.

Protocol.  A set (`table_sets.py`) is split at random, with seeds 0, 1, ..., three quarters to train
and a quarter for the score; classes keep their shares.  Every method gets the same frame: numbers
with holes, and categories.  What it cannot take is done for it as its documentation says, fitted to
the training rows only.  Each fit runs in a process of its own, with one thread on one core, and is
killed after ``--limit`` processor seconds; a method that has a time limit is told of it.  The score
is R^2, or the area under the ROC curve (of several classes, the mean of each against the others);
accuracy and log loss are recorded as well.  Seconds are processor seconds of `fit`.

Summary.  Of the methods that were measured on all sets of a group, over the splits that all of them
have.  Ranks are those of the mean scores of a set.  The normalised score of a set is 1 for the best
method and 0 for the median one and all below.  Standard errors are over the sets.  A method that
failed or was killed is last, with 0.

What came out (Xeon with AVX-512, 2026-11-26). The preset "default" is better than our plain network
on 20 of 21 sets (breast cancer is 0.004 worse), than RealMLP-TD-S by 3.7 ranks of the small tuning
sets in a ninth of its time; "best" than RealMLP-TD by 2.6 in less than a quarter. "best" has a
better mean rank than any boosting over all tuning sets (3.1, CatBoost 3.8) and over all that were
held out (2.7, CatBoost 4.6), but not over the small ones alone: CatBoost leads by 0.04 on NOx, 0.02
on caravan and 0.01 on churn. "fast" takes 1.4 times HistGradientBoosting's time in the median, and
up to 5.5 times on the large sets.

What was measured is kept in bench/results/tables.json, and is not measured again unless ``--redo``
says so.  Writes tables.md and tables.png beside it; ``--readme`` puts the summary into README.md.
"""

import argparse
import gc
import json
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import describe
from readme import put_into_readme
from table_sets import CLASSES, DATA_SETS, VALUES, DataSet

HERE = Path(__file__).parent
ROWS_OF_ONE_SPLIT = 30_000  # larger sets are split once: their test sets are large, too
ROWS_LARGE = 11_000  # larger sets are reported apart: not every rival is done with them in time


class Method(NamedTuple):
    """``make(task, seed, limit)`` gives an estimator for frames of at most so many rows."""

    name: str
    needs: str
    make: Callable[[str, int, float], Any]
    most_rows: float = np.inf


# --- the methods


def tabular_mlp(preset: str) -> Callable:
    def make(task: str, seed: int, limit: float) -> Any:
        from fastmlp import TabularMLPClassifier, TabularMLPRegressor

        kind = TabularMLPClassifier if task == CLASSES else TabularMLPRegressor
        return kind(preset, random_state=seed, n_threads=1, max_time=0.8 * limit)

    return make


def plain_mlp(module: str) -> Callable:
    """An MLP at its defaults, behind scikit-learn's preprocessing."""

    def make(task: str, seed: int, limit: float) -> Any:
        from importlib import import_module

        from sklearn.compose import TransformedTargetRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        kinds = import_module(module)
        own = {} if module.startswith("sklearn") else {"n_threads": 1, "max_time": 0.8 * limit}
        if task == CLASSES:
            return make_pipeline(as_numbers(), kinds.MLPClassifier(random_state=seed, **own))
        network = kinds.MLPRegressor(random_state=seed, **own)
        scaled = TransformedTargetRegressor(network, transformer=StandardScaler())
        return make_pipeline(as_numbers(), scaled)

    return make


def as_numbers() -> Any:
    """Standardised numbers, the mean for missing ones, and a column for each category."""
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_column_transformer(
        (one_hot, make_column_selector(dtype_include="category")),
        remainder=make_pipeline(SimpleImputer(), StandardScaler()),
    )


def histogram_boosting(task: str, seed: int, limit: float) -> Any:
    from sklearn import ensemble

    kind = "Classifier" if task == CLASSES else "Regressor"
    return getattr(ensemble, f"HistGradientBoosting{kind}")(random_state=seed)


def lightgbm(task: str, seed: int, limit: float) -> Any:
    import lightgbm

    kind = lightgbm.LGBMClassifier if task == CLASSES else lightgbm.LGBMRegressor
    return kind(random_state=seed, n_jobs=1, verbose=-1)


class OnText:
    """A model that wants categories as text, missing ones too, and their columns named in `fit`."""

    def __init__(self, model: Any, impute: bool = False, **fit_options: Any):
        self.model, self.impute, self.fit_options = model, impute, fit_options

    def fit(self, X: Any, y: Any) -> Any:
        self.text = list(X.select_dtypes("category"))
        self.medians = X.drop(columns=self.text).median() if self.impute else {}
        options = dict(self.fit_options)
        name = options.pop("categories", None)
        if name is not None and self.text:
            options[name] = self.text
        self.model.fit(self._prepared(X), y, **options)
        return self

    def _prepared(self, X: Any) -> Any:
        text = {
            name: X[name].astype(object).where(X[name].notna(), "missing") for name in self.text
        }
        return X.assign(**text).fillna(self.medians) if self.impute else X.assign(**text)

    def predict(self, X: Any) -> Any:
        return self.model.predict(self._prepared(X))

    def predict_proba(self, X: Any) -> Any:
        return self.model.predict_proba(self._prepared(X))

    @property
    def classes_(self) -> Any:
        return self.model.classes_


def catboost(task: str, seed: int, limit: float) -> Any:
    import catboost

    kind = catboost.CatBoostClassifier if task == CLASSES else catboost.CatBoostRegressor
    model = kind(random_seed=seed, thread_count=1, verbose=False, allow_writing_files=False)
    return OnText(model, categories="cat_features")


def chimeraboost(task: str, seed: int, limit: float) -> Any:
    from chimeraboost import ChimeraBoostClassifier, ChimeraBoostRegressor
    from chimeraboost.warmup import warmup

    warmup()  # kernels are compiled here, and not in `fit`
    kind = ChimeraBoostClassifier if task == CLASSES else ChimeraBoostRegressor
    model = kind(random_state=seed, thread_count=1, ensemble_n_jobs=1)
    return OnText(model, categories="cat_features")


def pytabkit(name: str) -> Callable:
    def make(task: str, seed: int, limit: float) -> Any:
        import pytabkit

        kind = "Classifier" if task == CLASSES else "Regressor"
        model = getattr(pytabkit, f"{name}_{kind}")(device="cpu", random_state=seed, n_threads=1)
        told = {"time_to_fit_in_seconds": int(0.8 * limit)} if name.startswith("RealMLP") else {}
        return OnText(model, impute=True, categories="cat_col_names", **told)

    return make


METHODS = [
    Method("TabularMLP best", "fastmlp", tabular_mlp("best")),
    Method("TabularMLP default", "fastmlp", tabular_mlp("default")),
    Method("TabularMLP fast", "fastmlp", tabular_mlp("fast")),
    Method("fastmlp MLP", "fastmlp", plain_mlp("fastmlp")),
    Method("scikit-learn MLP", "sklearn", plain_mlp("sklearn.neural_network")),
    Method("HistGradientBoosting", "sklearn", histogram_boosting),
    Method("LightGBM", "lightgbm", lightgbm),
    Method("CatBoost", "catboost", catboost),
    Method("ChimeraBoost", "chimeraboost", chimeraboost),
    # on larger sets they would use up all of the limit, and half an hour for both
    Method("RealMLP-TD-S", "pytabkit", pytabkit("RealMLP_TD_S"), ROWS_LARGE),
    Method("RealMLP-TD", "pytabkit", pytabkit("RealMLP_TD"), ROWS_LARGE),
    Method("TabM-D", "pytabkit", pytabkit("TabM_D"), ROWS_LARGE),
]
NOT_UNLESS_NAMED = ("TabM-D",)  # it is not done with the smallest set within the limit


# --- measuring


def split(data: DataSet, seed: int) -> tuple:
    """X_train, X_test, y_train, y_test."""
    from sklearn.model_selection import train_test_split

    X, y = data.load()
    labels = y if data.task == CLASSES else None
    return train_test_split(X, y, train_size=0.75, random_state=seed, stratify=labels)


def scores(model: Any, X: Any, y: Any, task: str) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score

    if task == VALUES:
        return {"score": r2_score(y, model.predict(X))}
    p = np.asarray(model.predict_proba(X), np.float64)
    p /= p.sum(axis=1, keepdims=True)
    labels = np.asarray(model.classes_)
    of_ranks = p[:, 1] if len(labels) == 2 else p
    return {
        "score": roc_auc_score(y, of_ranks, multi_class="ovr", labels=labels),
        "accuracy": accuracy_score(y, labels[p.argmax(axis=1)]),
        "log_loss": log_loss(y, p, labels=labels),
    }


def measure(data_name: str, seed: int, method_name: str, limit: float, channel: Any) -> None:
    """In a process of its own: fit, score, and send what came out."""
    from threadpoolctl import threadpool_limits

    if hasattr(os, "sched_setaffinity"):  # threads of OpenMP, too, then keep to one core
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gc.freeze()  # or a collection during `fit` would copy all that the server has imported
    warnings.simplefilter("ignore")
    data = next(data for data in DATA_SETS if data.name == data_name)
    method = next(method for method in METHODS if method.name == method_name)
    try:
        X_train, X_test, y_train, y_test = split(data, seed)
        model = method.make(data.task, seed, limit)
        threadpool_limits(1)
        before = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, limit)  # whose signal ends the process
        model.fit(X_train, y_train)
        seconds = time.process_time() - before
        signal.setitimer(signal.ITIMER_PROF, 0)
        found = scores(model, X_test, y_test, data.task)
        channel.send({"seconds": seconds} | {name: float(value) for name, value in found.items()})
    except Exception:
        channel.send({"error": traceback.format_exc(limit=-2)})


def in_a_process(context: Any, *arguments: Any) -> dict:
    """What `measure` finds; a note if it was killed."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = {"error": f"killed after {arguments[3]:g} processor seconds"}
    process.join()
    return found


def run(arguments: argparse.Namespace) -> dict[str, dict]:
    """{set/seed/method: what `measure` found}, kept in the file after every fit."""
    known = json.loads(arguments.out.read_text())["results"] if arguments.out.exists() else {}
    context = multiprocessing.get_context("forkserver")
    missing = {m.needs for m in METHODS if find_spec(m.needs) is None}
    for package in sorted(missing):
        names = ", ".join(m.name for m in METHODS if m.needs == package)
        print(f'{names} left out: pip install "fastmlp[tables]" brings {package}')
    context.set_forkserver_preload(
        ["sklearn.ensemble", "sklearn.compose", *({m.needs for m in METHODS} - missing)]
    )
    for n, data, seed, method in jobs(arguments, missing):
        key = f"{data.name}/{seed}/{method.name}"
        if key in known and not arguments.redo:
            continue
        known[key] = in_a_process(context, data.name, seed, method.name, arguments.limit)
        known[key]["rows"] = n
        print(key, {name: round(v, 4) if name != "error" else v for name, v in known[key].items()},
              flush=True)  # fmt: skip
        report = {"machine": describe(), "limit": arguments.limit, "results": known}
        arguments.out.write_text(json.dumps(report, indent=0) + "\n")
    return known


def jobs(arguments: argparse.Namespace, missing: set[str]) -> list:
    """(rows, set, seed, method), the small sets first."""
    methods = [m for m in METHODS if m.needs not in missing and m.name in arguments.methods]
    found = []
    for data in DATA_SETS:
        if data.name not in arguments.sets or (arguments.quick and not data.quick):
            continue
        n = len(data.load()[1])
        n_splits = 1 if n > ROWS_OF_ONE_SPLIT else arguments.splits
        found += [
            (n, data, seed, m) for seed in range(n_splits) for m in methods if n <= m.most_rows
        ]
    return sorted(found, key=lambda job: job[0])


# --- the report


class Group(NamedTuple):
    """Sets of one kind, and the methods that were measured on all of them."""

    title: str
    tuning: list[str]
    held_out: list[str]
    methods: list[str]


def groups(known: dict[str, dict]) -> list[Group]:
    """Small sets, and large ones, which not every method has been measured on."""
    found = []
    for is_large in (False, True):
        names = {
            key.split("/")[0] for key in known if (known[key]["rows"] > ROWS_LARGE) == is_large
        }
        chosen = [data for data in DATA_SETS if data.name in names]
        methods = [
            method.name for method in METHODS
            if all(f"{data.name}/0/{method.name}" in known for data in chosen)
        ]  # fmt: skip
        if chosen and methods:
            title = f"{'more than' if is_large else 'at most'} {ROWS_LARGE:,} rows"
            tuning, held_out = (
                [data.name for data in chosen if data.held_out == value] for value in (False, True)
            )
            found.append(Group(title, tuning, held_out, methods))
    return found


def table_of(known: dict[str, dict], what: str, names: list[str], methods: list[str]) -> np.ndarray:
    """Means over the splits that all have, (sets, methods); NaN where a fit failed."""
    means = np.full((len(names), len(methods)), np.nan)
    for i, name in enumerate(names):
        seeds = [
            {key.split("/")[1] for key in known
             if key.startswith(f"{name}/") and key.endswith(f"/{method}")}
            for method in methods
        ]  # fmt: skip
        for j, method in enumerate(methods):
            means[i, j] = np.mean([
                known[f"{name}/{seed}/{method}"].get(what, np.nan)
                for seed in set.intersection(*seeds)
            ])  # fmt: skip
    return means


def ranks(score: np.ndarray) -> np.ndarray:
    """1 for the best of a row; equal ones share the mean rank, and NaN are last."""
    from scipy.stats import rankdata

    return rankdata(-np.nan_to_num(score, nan=-np.inf), axis=1)


def normalised(score: np.ndarray) -> np.ndarray:
    """1 for the best of a row, 0 for the median and below."""
    filled = np.where(np.isnan(score), np.nanmin(score, axis=1, keepdims=True), score)
    best, median = filled.max(axis=1, keepdims=True), np.median(filled, axis=1, keepdims=True)
    return np.clip((filled - median) / np.maximum(best - median, 1e-12), 0, 1)


def mean_and_error(values: np.ndarray) -> str:
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{np.mean(values):.2f} ± {error:.2f}"


def summary(known: dict[str, dict], group: Group) -> str:
    """Markdown: a row for each method, of the tuning sets and of those held out."""
    parts = [(part, names) for part, names in
             (("tuning", group.tuning), ("held out", group.held_out)) if names]  # fmt: skip
    head = [f"rank, {len(names)} sets {part} | normalised score" for part, names in parts]
    lines = [f"| {group.title} | {' | '.join(head)} | seconds | most |",
             "|---" * (2 * len(parts) + 3) + "|"]  # fmt: skip
    seconds = table_of(known, "seconds", group.tuning + group.held_out, group.methods)
    scores = [table_of(known, "score", names, group.methods) for _, names in parts]
    for j, method in enumerate(group.methods):
        cells = []
        for score in scores:
            cells += [mean_and_error(ranks(score)[:, j]), mean_and_error(normalised(score)[:, j])]
        is_killed = np.isnan(seconds[:, j]).any()
        most = "killed" if is_killed else f"{seconds[:, j].max():.2g}"
        cells += [f"{np.nanmedian(seconds[:, j]):.2g}", most]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def details(known: dict[str, dict], group: Group, what: str) -> str:
    """Markdown: a row for each set, a column for each method."""
    lines = [f"| {what} | {' | '.join(group.methods)} |",
             "|---" * (len(group.methods) + 1) + "|"]  # fmt: skip
    names = group.tuning + group.held_out
    for name, row in zip(names, table_of(known, what, names, group.methods), strict=True):
        best = np.nanmax(row) if what == "score" else None
        cells = ["-" if np.isnan(v) else f"**{v:.4f}**" if v == best else f"{v:.4g}" for v in row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(known: dict[str, dict], found: list[Group], path: Path) -> None:
    """Normalised score against processor seconds, a panel for each group."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(7 * len(found), 4.5), squeeze=False,
                                  layout="constrained")  # fmt: skip
    for group, axes in zip(found, panels[0], strict=True):
        names = group.tuning + group.held_out
        score = normalised(table_of(known, "score", names, group.methods))
        seconds = np.nanmedian(table_of(known, "seconds", names, group.methods), axis=0)
        error = np.std(score, axis=0, ddof=1) / len(names) ** 0.5 if len(names) > 1 else None
        axes.errorbar(seconds, score.mean(axis=0), error, fmt="o", capsize=3)
        axes.margins(x=0.25)
        axes.set(xscale="log", xlabel="processor seconds of a fit, median of the sets",
                 ylabel="normalised score, mean of the sets",
                 title=f"{len(names)} sets of {group.title}")  # fmt: skip
        figure.draw_without_rendering()  # so that places in pixels are known
        put_names(axes, group.methods, np.column_stack([seconds, score.mean(axis=0)]), error)
    figure.savefig(path, dpi=100)


def put_names(axes: Any, names: list[str], points: np.ndarray, error: np.ndarray | None) -> None:
    """Beside each point, where the name leaves the panel least and hides least of others.

    From the left to the right, the place of four is taken that shares the least area with names
    that are there already and with points and their bars.
    """
    from matplotlib.transforms import Bbox

    reach = np.zeros(len(points)) if error is None else error
    in_pixels = axes.transData.transform
    taken = [
        Bbox([in_pixels((x, y - e)) - 3, in_pixels((x, y + e)) + 3])
        for (x, y), e in zip(points, reach, strict=True)
    ]
    places = [((dx, dy), ha, va) for dx, ha in ((5, "left"), (-5, "right"))
              for dy, va in ((3, "bottom"), (-3, "top"))]  # fmt: skip
    for i in np.argsort(points[:, 0]):
        options = []
        for offset, ha, va in places:
            text = axes.annotate(names[i], points[i], xytext=offset, textcoords="offset points",
                                 fontsize=8, ha=ha, va=va)  # fmt: skip
            box = text.get_window_extent()
            inside = shared_area(box, axes.bbox)
            hidden = sum(shared_area(box, other) for other in taken)
            options.append((box.width * box.height - inside + hidden, len(options), text, box))
        *others, (_, _, _, box) = sorted(options, reverse=True)
        for _, _, text, _ in others:
            text.remove()
        taken.append(box)


def shared_area(one: Any, other: Any) -> float:
    """Of two boxes."""
    width, height = np.minimum(one.max, other.max) - np.maximum(one.min, other.min)
    return max(float(width), 0.0) * max(float(height), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--limit", type=float, default=100.0, help="processor seconds of a fit")
    parser.add_argument("--sets", nargs="+", default=[data.name for data in DATA_SETS])
    usual = [method.name for method in METHODS if method.name not in NOT_UNLESS_NAMED]
    parser.add_argument("--methods", nargs="+", default=usual)
    parser.add_argument("--quick", action="store_true", help="five small sets")
    parser.add_argument("--redo", action="store_true", help="measure again what is known")
    parser.add_argument("--readme", action="store_true", help="put the summary into README.md")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tables.json")
    arguments = parser.parse_args()
    known = run(arguments)
    found = groups(known)
    text = "\n\n".join(summary(known, group) for group in found)
    print(f"\n{text}")
    every_set = [details(known, group, what) for group in found for what in ("score", "seconds")]
    arguments.out.with_suffix(".md").write_text("\n\n".join([text, *every_set]) + "\n")
    plot(known, found, arguments.out.with_suffix(".png"))
    if arguments.readme:
        put_into_readme(text, "tables")


if __name__ == "__main__":
    main()
