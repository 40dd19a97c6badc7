"""Searches over a grid, and over settings that are drawn."""

from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn import model_selection

from fastmlp._sklearn import Interval, constraints_of
from fastmlp.model_selection.backend import Backend, is_ours
from fastmlp.model_selection.survivors import Survivors

MAX_TIME: dict[str, list[Any]] = {"max_time": [Interval(Real, 0, None, closed="neither"), None]}


class AsOneJob:
    """What all search classes share: their fits run as one job.

    scikit-learn's `fit` does everything; joblib, to which it hands the fits, is offered another
    backend.
    """

    _parameter_constraints: ClassVar[dict[str, Any]]
    estimator: Any
    n_jobs: int | None
    max_time: float | None

    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Try all candidates, and fit the best one on all data.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Class labels or target values.
        **params : dict of str to object
            For the estimator's `fit`, the splitter (``groups``) and the scorer, as
            `sklearn.model_selection.GridSearchCV.fit` takes them.

        Returns
        -------
        self : object
            The fitted search.
        """
        if not is_ours(self):
            return super().fit(X, y, **params)  # type: ignore[misc]
        backend = Backend(self.estimator, self.n_jobs, self.max_time, self._survivors())
        with backend.offered():
            return super().fit(X, y, **params)  # type: ignore[misc]

    def _survivors(self) -> Survivors | None:
        """Where candidates stand that go on in a later iteration; None if none do."""
        return None


N_JOBS = """\
n_jobs : int, default=None
        Models that are trained at once, each by one thread unless there are processors to spare.
        None means as many as there are processors for this process (or workers, see Notes), unlike
        in scikit-learn, where it means one.  Results do not depend on it."""

MAX_TIME_DOC = """\
max_time : float, default=None
        Seconds for the whole search, without the last fit on all data.  Candidates are tried in
        their order; fits that are not finished by then end after their epoch, and their scores are
        NaN, with a warning."""

COMMON = f"""\
scoring : str, callable, list, tuple or dict, default=None
        How predictions are judged; several scorers share one prediction.
    {N_JOBS}
    refit : bool, str or callable, default=True
        Whether to fit the best candidate on all data; by which score, if there are several.
    cv : int, cross-validation generator or an iterable, default=None
        How to split.  The splits are made once.
    verbose : int, default=0
        What to print.
    pre_dispatch : int or str, default='2*n_jobs'
        Has no effect in threads, which copy nothing.
    error_score : 'raise' or numeric, default=np.nan
        Score of a fit that fails.  With 'raise', the error of the first candidate that fails, in
        the order of the candidates, is raised.
    return_train_score : bool, default=False
        Whether to score the training data, too."""

NOTES = """\
An estimator that ends in another model, code of a user's in its place, ``device='cuda'`` or
    scikit-learn's array API leave everything to scikit-learn's class.
    Pipelines with ``memory`` keep theirs.  Transformers that are not scikit-learn's or fastmlp's,
    `FunctionTransformer`, and those with ``random_state=None`` are fitted for each candidate; what
    the others warn of is said once per fold instead of once per candidate, and callbacks that
    listen to them hear of the fits that take place.  Candidates with
    ``random_state=None`` draw from NumPy's global random numbers in no particular order: give it an
    integer.

    After Ctrl-C, candidates that are finished keep their scores, the others' are NaN, and the best
    one is fitted on all data.

    Under a joblib backend of other processes (``joblib.parallel_config('dask')`` with a
    `distributed.Client`, 'ray', or 'loky', which pays for thousands of tiny fits), its workers
    train the models, with the same bits.  They are handed groups of fits that share a fold and
    preprocessing, the last ones smaller than the first.  Workers of Dask's that die cost time and
    no results; after Ctrl-C, Dask's groups that are finished count, of the others nothing.
    ``max_time`` goes by the machines' clocks."""

GUARANTEE = """\
Takes the place of scikit-learn's class of the same name, over MLPs of fastmlp's and pipelines
    that end in one: same constructor, attributes and callbacks, and a ``cv_results_`` that is equal
    bit for bit, but for the times.  The models are trained side by side in threads of this process,
    the longest first.  Each fold is taken from the data once and preprocessed once, for all
    candidates that ask for the same preprocessing.  If the folds together are large, they come one
    after the other, and only one is in memory."""


class GridSearchCV(AsOneJob, model_selection.GridSearchCV):
    __module__ = "fastmlp.model_selection"
    __doc__ = f"""Search over all settings of a grid.

    {GUARANTEE}

    Parameters
    ----------
    estimator : estimator
        An MLP of fastmlp's, or pipelines around one; another one is left to scikit-learn's class.
    param_grid : dict or list of dict
        Values to try, by the names of parameters.
    {COMMON}
    {MAX_TIME_DOC}

    See Also
    --------
    RandomizedSearchCV : Tries some settings only.
    HalvingGridSearchCV : Gives up on the worse ones early.

    Notes
    -----
    {NOTES}

    Examples
    --------
    >>> from fastmlp import MLPClassifier
    >>> from fastmlp.model_selection import GridSearchCV
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), MLPClassifier(tol=0.01, random_state=0))
    >>> grid = {{"mlpclassifier__learning_rate_init": [0.01, 10]}}
    >>> search = GridSearchCV(model, grid).fit(X, y)  # the scaler is fitted 5 times, and once more
    >>> search.best_params_
    {{'mlpclassifier__learning_rate_init': 0.01}}
    """

    _parameter_constraints = constraints_of(model_selection.GridSearchCV) | MAX_TIME

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: int | str = "2*n_jobs",
        error_score: Any = np.nan,
        return_train_score: bool = False,
        max_time: float | None = None,
    ):
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.max_time = max_time


class RandomizedSearchCV(AsOneJob, model_selection.RandomizedSearchCV):
    __module__ = "fastmlp.model_selection"
    __doc__ = f"""Search over settings that are drawn.

    {GUARANTEE}

    Parameters
    ----------
    estimator : estimator
        An MLP of fastmlp's, or pipelines around one; another one is left to scikit-learn's class.
    param_distributions : dict or list of dict
        Values, or distributions to draw them from, by the names of parameters.
    n_iter : int, default=10
        Settings to draw.
    random_state : int, RandomState instance or None, default=None
        Draws them.
    {COMMON}
    {MAX_TIME_DOC}

    See Also
    --------
    GridSearchCV : Tries all settings of a grid.
    HalvingRandomSearchCV : Gives up on the worse ones early.

    Notes
    -----
    {NOTES}

    Examples
    --------
    >>> from fastmlp import MLPClassifier
    >>> from fastmlp.model_selection import RandomizedSearchCV
    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier(tol=0.01, random_state=0)
    >>> settings = {{"alpha": loguniform(1e-5, 1), "activation": ["relu", "tanh"]}}
    >>> search = RandomizedSearchCV(model, settings, n_iter=4, cv=3, random_state=0)
    >>> len(search.fit(X, y).cv_results_["mean_test_score"])
    4
    """

    _parameter_constraints = constraints_of(model_selection.RandomizedSearchCV) | MAX_TIME

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_iter: int = 10,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: int | str = "2*n_jobs",
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        max_time: float | None = None,
    ):
        super().__init__(
            estimator,
            param_distributions,
            n_iter=n_iter,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            random_state=random_state,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.max_time = max_time
