"""The estimators: parameters that make sense on a cluster, a fit, and lazy predictions."""

import inspect
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from distributed import Client, get_client

from fastmlp._sklearn import (
    SEED_LIMIT,
    Interval,
    StrOptions,
    available_if,
    check_is_fitted,
    check_random_state,
    fit_context,
)
from fastmlp.dask.team import Team
from fastmlp.dask.training import ClusterEngine, ClusterValidation
from fastmlp.dask.workers import Job, Survey
from fastmlp.estimators import Labels, MLPClassifier, MLPRegressor, Values
from fastmlp.estimators.base import BaseMLP, all_or_nothing
from fastmlp.estimators.parameters import (
    ATTRIBUTES,
    CLASSIFIER,
    REGRESSOR,
    Parameter,
    constraints,
    documentation,
)
from fastmlp.estimators.plan import HeldOut, make_plan
from fastmlp.estimators.weights import class_weights
from fastmlp.training.epochs import StoppingRule, train
from fastmlp.training.hooks import EpochLimit, Hook, Limit
from fastmlp.training.run import Run
from fastmlp.training.start import load, setting_of, unload

_FEW = 4  # rows of each class that stand for the data while a fit begins

_OWN = {
    "sync_every": Parameter(
        None,
        "int, 'epoch' or None",
        """\
        None: workers share every step, and the result is that of the same batches on one machine,
        to rounding.  Else each partition makes so many steps of an epoch on its share of the
        batches before parameters and state of the optimizer are averaged: less to wait for, and
        different mathematics, which depends on the number of partitions.""",
        [None, StrOptions({"epoch"}), Interval(Integral, 1, None, closed="left")],
    ),
    "timeout": Parameter(
        600.0,
        "float",
        """\
        Seconds without progress after which to give up: for any partition to be loaded, for a step,
        for the scheduler to answer.""",
        [Interval(Real, 0, None, closed="neither")],
    ),
    "retries": Parameter(
        3,
        "int",
        """\
        How many lost workers to bear.  Their partitions are loaded anew, if Dask knows how, and the
        step is repeated, with the same bits.""",
        [Interval(Integral, 0, None, closed="left")],
    ),
}
_NOTES = """\
Partitions stay on the workers where they are; some may be empty, or lack a class.
    ``batch_size`` counts the rows of a step on all workers together.  ``engine_info_`` says on how
    many workers the fit began, as 'n_workers'.

    Not supported, and refused before work: ``solver='lbfgs'``, ``device='cuda'``, ``warm_start``,
    ``n_restarts``, ``checkpoint``, callbacks, other ``scoring`` than None and 'loss', and indicator
    matrices.  `fastmlp.dask` says what a fit costs, and when it pays."""


def _refuse(model: Any) -> None:
    """Refuse what makes no sense on a cluster."""
    p = model
    refusals = {
        "solver": (p.solver == "lbfgs", "use a stochastic solver"),
        "device": (p.device != "cpu", "set device='cpu'; to_local() predicts on a GPU"),
        "warm_start": (p.warm_start, "go on with to_local().partial_fit"),
        "n_restarts": (p.n_restarts > 1, "fit several times, with another random_state each"),
        "checkpoint": (
            p.checkpoint is not None,
            "the client's process keeps the parameters, and lost workers are replaced; save "
            "to_local() after fit",
        ),
        "scoring": (
            p.scoring not in (None, "loss"), "use None or 'loss', or score to_local() after fit",
        ),
    }  # fmt: skip
    for name, (is_used, remedy) in refusals.items():
        if is_used:
            raise ValueError(f"{name}={getattr(p, name)!r} does not work on a cluster; {remedy}.")
    if p.loss == "quantile" and p.early_stopping and p.scoring is None:
        raise ValueError(
            "loss='quantile' with early_stopping has no score on a cluster, where nobody sees all "
            "targets; set scoring='loss'."
        )
    if getattr(p, "_skl_callbacks", None):
        raise ValueError("Callbacks do not work on a cluster; set verbose=True, or none.")


def _goes_on(model: Any) -> bool:
    """Whether there is a `partial_fit`."""
    raise AttributeError("partial_fit does not work on a cluster; use to_local().partial_fit.")


def _client_of(client: Client | None) -> Client:
    try:
        client = get_client() if client is None else client
    except ValueError as error:
        raise ValueError(
            "fit needs a cluster: make a distributed.Client first, or pass client."
        ) from error
    if client.asynchronous:
        raise ValueError("fit needs a synchronous client; make one with asynchronous=False.")
    return client


def _signature_of(kind: Any) -> inspect.Signature:
    """The constructor's of a local estimator, with the parameters of `_OWN` behind."""
    known = list(inspect.signature(kind.__init__).parameters.values())
    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=row.default)
        for name, row in _OWN.items()
    ]
    return inspect.Signature([*known, *own])


class _DaskMLP(BaseMLP):
    """What the two estimators share."""

    _local: ClassVar[Any]  # the estimator that one machine would take

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, X_val: Any = None, y_val: Any = None,
        sample_weight_val: Any = None, client: Client | None = None,
    ) -> Any:  # fmt: skip
        """Fit the network to Dask collections, whose partitions stay where they are.

        Parameters
        ----------
        X : dask.array.Array or dask.dataframe.DataFrame of shape (n_samples, n_features)
            Input samples; partitions may be empty.
        y : dask.array.Array, dask.dataframe.Series or DataFrame
            Class labels or target values, in the same partitions; those of a classifier are
            one-dimensional.
        sample_weight : dask.array.Array or dask.dataframe.Series, default=None
            Weights of the samples.
        X_val : dask.array.Array or dask.dataframe.DataFrame, default=None
            Validation data for ``early_stopping``, which then sets none aside.
        y_val : dask.array.Array or dask.dataframe.Series, default=None
            Their targets.
        sample_weight_val : dask.array.Array or dask.dataframe.Series, default=None
            Their weights.
        client : distributed.Client, default=None
            The cluster's; None means the current one.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If an input or a parameter is invalid or does not work on a cluster.
        RuntimeError
            If more than ``retries`` workers are lost, or their data cannot be had again, or the
            cluster is closed.
        TimeoutError
            If nothing happens for ``timeout`` seconds.
        """
        return self._fit_on(_client_of(client), X, y, sample_weight, HeldOut(
            X_val, y_val, sample_weight_val
        ))  # fmt: skip

    @fit_context(prefer_skip_nested_validation=True)
    def _fit_on(self, client: Client, X: Any, y: Any, weight: Any, held_out: HeldOut) -> Any:
        _refuse(self)
        plan = make_plan(self, held_out=held_out)
        team = Team(client, self.timeout, self.retries)
        try:
            # to which actors belong
            with client.as_current(), all_or_nothing(self):
                self._train(plan, team, X, y, weight, held_out)
        finally:
            team.close()
        return self

    def _train(self, plan: Any, team: Team, X: Any, y: Any, weight: Any, held_out: HeldOut) -> None:
        limit = Limit(plan.max_time)
        surveys = team.gather(X, y, weight, of_classes=self._is_classifier)
        _check(surveys, "X", self._is_classifier)
        val: list[Survey] = []
        if held_out.X is not None:
            val = team.gather(*held_out, of_classes=self._is_classifier)
            _check(val, "X_val", self._is_classifier)
        data = self._stand_in(X, surveys)
        for one in val:
            _check_like(one, surveys[0], data, self._targets)
        network, objective = self._architecture(plan, data)
        self._random_state = check_random_state(self.random_state)
        run = self._start(plan, network, data.X.dtype, True, self._random_state)
        n_held = _held(surveys, plan.validation_fraction if plan.early_stopping and not val else 0)
        n_rows = tuple(one.n_rows - held for one, held in zip(surveys, n_held, strict=True))
        # each partition shuffles its own rows; the run has only to know how many there are
        run.plan, run.order = replace(plan, shuffle=False), np.broadcast_to(0, sum(n_rows))
        setting = setting_of(run, objective, data.X.dtype, plan.alpha)
        job = Job(
            self._reader(), self._targets, setting, self._class_weight(surveys),
            int(self._random_state.randint(SEED_LIMIT)), bool(plan.shuffle), n_held, n_rows,
            len(val), self.sync_every is not None, bool(val) or plan.scoring == "loss",
        )  # fmt: skip
        team.begin(job)
        every = job.n_steps if self.sync_every == "epoch" else self.sync_every
        cluster: Any = ClusterEngine(team, job, every)
        load(run, cluster, cluster)  # which has the samples, too
        hooks: list[Hook] = [StoppingRule(), EpochLimit(plan.max_iter), limit]
        if job.has_validation:
            hooks.insert(0, ClusterValidation(team, self._targets, plan.scoring))
        train(run, hooks, limit)
        unload(run)
        self._keep(run, job)

    def _keep(self, run: Run, job: Job) -> None:
        """Write the outcome to attributes."""
        score = run.best_validation_score if self.early_stopping else -run.loss
        if job.has_validation and not self.early_stopping and run.n_iter:
            score = run.column("validation_score")[-1]
        self.restart_scores_ = np.array([score])
        self._finish(run)
        losses = list(self.history_["validation_loss"])
        self.validation_loss_curve_ = losses if job.has_validation and job.wants_loss else None

    def _stand_in(self, X: Any, surveys: list[Survey]) -> Any:
        """A few rows with the columns, types and classes of the data, read as `fit` reads them."""
        first = surveys[0]
        if self._is_classifier:
            classes = np.unique(np.concatenate([one.classes for one in surveys]))
            y = np.repeat(classes, _FEW)
        else:
            y = np.ones((_FEW, *first.target_shape))
        if hasattr(X, "chunks"):
            rows: Any = np.zeros((len(y), first.n_columns), X.dtype)
        else:
            rows = X._meta.reindex(range(len(y)), fill_value=0).astype(X._meta.dtypes.to_dict())
        return self._data(rows, y, None, False, True)

    def _class_weight(self, surveys: list[Survey]) -> np.ndarray | None:
        """A weight for each class."""
        given = getattr(self, "class_weight", None)
        if given is None:
            return None
        classes = self.classes_
        if isinstance(given, str):
            counts = np.zeros(len(classes))
            for one in surveys:
                counts[np.searchsorted(classes, one.classes)] += one.counts
            return counts.sum() / (len(classes) * counts)
        assert isinstance(self._targets, Labels)
        found = class_weights(given, self._targets, np.zeros(1, np.int64))
        return None if found is None else found[0]

    def _reader(self) -> Any:
        """A local estimator that reads partitions."""
        model = self._as_local()
        if self._is_classifier:
            model.class_weight = None  # for partitions see the counts of their own only
        return model

    def _as_local(self) -> Any:
        names = self._local._get_param_names()
        model = self._local(**{name: getattr(self, name) for name in names})
        left_out = {*names, *_OWN, "_model"}
        model.__dict__ |= {k: v for k, v in self.__dict__.items() if k not in left_out}
        return model

    def to_local(self) -> Any:
        """The fitted model without Dask.

        Returns
        -------
        model : MLPClassifier or MLPRegressor
            With the same parameters and attributes; `partial_fit` goes on with it.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        """
        check_is_fitted(self)
        return self._as_local()

    @available_if(_goes_on)
    def partial_fit(self) -> None:
        """There is none on a cluster: ``to_local().partial_fit`` goes on with a fitted model."""

    def predict(self, X: Any) -> Any:
        """Predict labels or values, lazily for Dask collections.

        Parameters
        ----------
        X : dask.array.Array, dask.dataframe.DataFrame, or what the local estimator takes

        Returns
        -------
        y : dask.array.Array, dask.dataframe.Series or DataFrame, or ndarray
        """
        return self._lazily("predict", X)

    def _lazily(self, method: str, X: Any) -> Any:
        """Call a method of the local estimator, on each partition where it is."""
        model = self.to_local()
        if not hasattr(X, "to_delayed"):
            return getattr(model, method)(X)
        model.__dict__.pop("_optimizer_state", None)  # twice as large as the model
        empty = _empty_answer(model, method)
        if not hasattr(X, "chunks"):
            return X.map_partitions(
                _predict_frame,
                model,
                method,
                empty,
                meta=_as_frame(empty, X._meta.index[:0], model),
            )
        if X.numblocks[1] > 1:
            X = X.rechunk({1: -1})
        shape = {"drop_axis": 1} if empty.ndim == 1 else {"chunks": (X.chunks[0], empty.shape[1:])}
        return X.map_blocks(_predict, model, method, empty, dtype=empty.dtype, meta=empty, **shape)

    @property
    def _is_classifier(self) -> bool:
        return issubclass(self._local, MLPClassifier)


def _check(surveys: list[Survey], name: str, of_classes: bool) -> None:
    """Refuse data without rows, and partitions that contradict each other."""
    if not surveys:
        raise ValueError(f"{name} has no rows; look at what its partitions are made of.")
    shapes = {(one.n_columns, one.target_shape) for one in surveys}
    if len(shapes) > 1:
        raise ValueError(
            f"All partitions of {name} and its targets must have the same columns, got "
            f"{sorted(shapes)}; repair the data."
        )
    if of_classes and surveys[0].target_shape:
        raise ValueError(
            "y must hold class labels, one per sample: indicator matrices are not supported on a "
            "cluster; use MLPClassifier, or a model for each label."
        )
    if not 0 < sum(one.weight for one in surveys) < np.inf:
        raise ValueError(
            f"The sum of the sample weights of {name} must be finite and above zero; give some "
            "sample a weight above zero."
        )


def _check_like(one: Survey, first: Survey, data: Any, targets: Labels | Values) -> None:
    """Refuse validation data that are not like those to train on."""
    if (one.n_columns, one.target_shape) != (first.n_columns, first.target_shape):
        raise ValueError(
            "X_val and y_val must have the columns of X and y, "
            f"{first.n_columns, first.target_shape}, got {one.n_columns, one.target_shape}; give "
            "data of the same form."
        )
    if isinstance(targets, Labels):
        unknown = np.setdiff1d(one.classes, targets.classes)
        if unknown.size:
            raise ValueError(
                f"y_val has classes that y does not have: {unknown}; leave their rows out."
            )


def _held(surveys: list[Survey], share: float) -> tuple[int, ...]:
    """Rows of each partition to set aside: a share of all rows, roundings spread over them."""
    ends = np.cumsum([0, *(one.n_rows for one in surveys)])
    held = tuple(np.diff((ends * share).astype(np.int64)).tolist())
    if share and (sum(held) < 2 or sum(held) == ends[-1]):
        raise ValueError(
            f"validation_fraction={share} sets {sum(held)} of {ends[-1]} rows aside; change it, or "
            "give X_val and y_val."
        )
    return held


def _empty_answer(model: Any, method: str) -> np.ndarray:
    """What a method answers for no rows."""
    row = np.zeros((1, model.n_features_in_), model.coefs_[0].dtype)
    names = getattr(model, "feature_names_in_", None)
    answer: np.ndarray = getattr(model, method)(row if names is None else _frame(row, names))
    return answer[:0]


def _frame(array: np.ndarray, columns: Any, index: Any = None) -> Any:
    import pandas as pd

    return pd.DataFrame(array, columns=columns, index=index)


def _as_frame(answer: np.ndarray, index: Any, model: Any) -> Any:
    """An answer with the index of the rows: a series, or a frame with a column for each class."""
    import pandas as pd

    if answer.ndim == 1:
        return pd.Series(answer, index=index)
    columns = getattr(model, "classes_", range(answer.shape[1]))
    return _frame(answer, columns, index)


def _predict(X: Any, model: Any, method: str, empty: np.ndarray) -> np.ndarray:
    return getattr(model, method)(X) if X.shape[0] else empty


def _predict_frame(X: Any, model: Any, method: str, empty: np.ndarray) -> Any:
    return _as_frame(_predict(X, model, method, empty), X.index, model)


class DaskMLPClassifier(_DaskMLP, MLPClassifier):
    __doc__ = f"""`fastmlp.MLPClassifier` for data that are spread over Dask's workers.

    Parameters
    ----------
    {documentation(CLASSIFIER | _OWN)}

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    {ATTRIBUTES}

    See Also
    --------
    fastmlp.MLPClassifier : For data that fit in the memory of one machine.

    Notes
    -----
    {_NOTES}

    Examples
    --------
    >>> import dask.array as da
    >>> from distributed import Client
    >>> from fastmlp.dask import DaskMLPClassifier
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> chunks = da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50)
    >>> model = DaskMLPClassifier(batch_size=30, learning_rate_init=0.01, random_state=0)
    >>> with Client(processes=False, dashboard_address=None):  # for a real cluster, its address
    ...     labels = model.fit(*chunks).predict(chunks[0])  # nothing is predicted yet
    ...     bool((labels == chunks[1]).mean() > 0.9)
    True
    >>> model.to_local().score(X, y) > 0.9
    True
    """

    _local = MLPClassifier
    _parameter_constraints = constraints(CLASSIFIER | _OWN)

    def __init__(
        self, hidden_layer_sizes: Any = (100,), activation: Any = "relu", *, sync_every: Any = None,
        timeout: float = 600.0, retries: int = 3, **parameters: Any,
    ):  # fmt: skip
        MLPClassifier.__init__(self, hidden_layer_sizes, activation, **parameters)
        self.sync_every = sync_every
        self.timeout = timeout
        self.retries = retries

    __init__.__signature__ = _signature_of(MLPClassifier)  # type: ignore[attr-defined]

    def predict_proba(self, X: Any) -> Any:
        """Predict probabilities, lazily for Dask collections.

        Parameters
        ----------
        X : dask.array.Array, dask.dataframe.DataFrame, or what the local estimator takes

        Returns
        -------
        probabilities : dask.array.Array, dask.dataframe.DataFrame or ndarray
            A column for each class, in the order of ``classes_``.
        """
        return self._lazily("predict_proba", X)

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithm of `predict_proba`.

        Parameters
        ----------
        X : dask.array.Array, dask.dataframe.DataFrame, or what the local estimator takes

        Returns
        -------
        log_probabilities : dask.array.Array, dask.dataframe.DataFrame or ndarray
        """
        return self._lazily("predict_log_proba", X)


class DaskMLPRegressor(_DaskMLP, MLPRegressor):
    __doc__ = f"""`fastmlp.MLPRegressor` for data that are spread over Dask's workers.

    Parameters
    ----------
    {documentation(REGRESSOR | _OWN)}

    Attributes
    ----------
    {ATTRIBUTES}

    See Also
    --------
    fastmlp.MLPRegressor : For data that fit in the memory of one machine.

    Notes
    -----
    {_NOTES}

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> from distributed import Client
    >>> from fastmlp.dask import DaskMLPRegressor
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> frames = dd.from_pandas(X * 20, npartitions=3), dd.from_pandas(y / 100, npartitions=3)
    >>> model = DaskMLPRegressor(learning_rate_init=0.01, tol=0.01, random_state=0)
    >>> with Client(processes=False, dashboard_address=None):  # for a real cluster, its address
    ...     values = model.fit(*frames).predict(frames[0]).compute()
    >>> values.index.equals(X.index)
    True
    >>> model.to_local().score(X * 20, y / 100) > 0.5
    True
    """

    _local = MLPRegressor
    _parameter_constraints = constraints(REGRESSOR | _OWN)

    def __init__(
        self, loss: Any = "squared_error", hidden_layer_sizes: Any = (100,),
        activation: Any = "relu", *, sync_every: Any = None, timeout: float = 600.0,
        retries: int = 3, **parameters: Any,
    ):  # fmt: skip
        MLPRegressor.__init__(self, loss, hidden_layer_sizes, activation, **parameters)
        self.sync_every = sync_every
        self.timeout = timeout
        self.retries = retries

    __init__.__signature__ = _signature_of(MLPRegressor)  # type: ignore[attr-defined]
