"""Searches that give up on the worse candidates early; over epochs, the others just go on."""

from typing import Any

import numpy as np
from sklearn import model_selection
from sklearn.experimental import enable_halving_search_cv  # noqa: F401

from fastmlp._sklearn import constraints_of
from fastmlp.model_selection.search import MAX_TIME, MAX_TIME_DOC, N_JOBS, NOTES, AsOneJob
from fastmlp.model_selection.survivors import Survivors
from fastmlp.model_selection.threads import find_network


class _Halving(AsOneJob):
    """What both classes share."""

    resource: str

    def _survivors(self) -> Survivors | None:
        found = find_network(self.estimator)
        is_epochs = found is not None and self.resource == f"{found[0]}max_iter"
        return Survivors(self.resource) if is_epochs else None

    @staticmethod
    def _select_best_index(refit: Any, refit_metric: str, results: dict[str, Any]) -> Any:
        """The best of the last iteration; of the last that was finished, after Ctrl-C."""
        scores, iterations = results["mean_test_score"], results["iter"]
        finished = ~np.isnan(scores)
        last = iterations[finished].max() if finished.any() else iterations.max()
        of_last = np.flatnonzero(iterations == last)
        return of_last[np.nanargmax(scores[of_last]) if finished.any() else 0]


_EPOCHS = """\
With the epochs of the MLP as resource (``resource='max_iter'``, in a pipeline with the names of
    its steps before it), nothing is trained twice: candidates that survive an iteration go on from
    where they stand, with their parameters, optimizer, random numbers and history, and their scores
    are bit for bit those of a fit with that many epochs.  One that has converged is left as it is.
    Schedules over ``max_iter`` epochs ('cosine', 'one_cycle', 'coslog4', functions) are refused
    then, for fewer epochs are not their beginning; 'lbfgs' is trained anew."""

_COMMON = f"""\
factor : int or float, default=3
        One in ``factor`` candidates survives an iteration, and gets ``factor`` times the resource.
    resource : 'n_samples' or str, default='n_samples'
        What there is more of from iteration to iteration: samples, or an integer parameter.
    max_resources : int or 'auto', default='auto'
        The most of it for one candidate; 'auto' is all samples, and is for them only.
    min_resources : int or str, default={{min_resources!r}}
        What candidates begin with: a number, 'smallest', or 'exhaust', with which the last
        iteration comes close to ``max_resources``.
    aggressive_elimination : bool, default=False
        Whether to repeat the first iteration until few enough candidates are left.
    cv : int, cross-validation generator or iterable, default=5
        How to split; the same way in every iteration.
    scoring : str or callable, default=None
        How predictions are judged.
    refit : bool, default=True
        Whether to fit the best candidate on all data.
    error_score : 'raise' or numeric, default=np.nan
        Score of a fit that fails.
    return_train_score : bool, default=True
        Whether to score the training data, too.
    random_state : int, RandomState instance or None, default=None
        Draws samples, if they are the resource, and settings.
    {N_JOBS}
    verbose : int, default=0
        What to print.
    {MAX_TIME_DOC}"""


class HalvingGridSearchCV(_Halving, model_selection.HalvingGridSearchCV):
    __module__ = "fastmlp.model_selection"
    __doc__ = f"""Search over a grid, the worse part of which is given up after each iteration.

    Takes the place of scikit-learn's class of the same name, with the same ``cv_results_`` but for
    the times, as `GridSearchCV` does.

    {_EPOCHS}

    Parameters
    ----------
    estimator : estimator
        An MLP of fastmlp's, or pipelines around one; another one is left to scikit-learn's class.
    param_grid : dict or list of dict
        Values to try, by the names of parameters.
    {_COMMON.format(min_resources="exhaust")}

    See Also
    --------
    HalvingRandomSearchCV : Draws the settings that it begins with.
    GridSearchCV : Trains every candidate to the end.

    Notes
    -----
    {NOTES}

    Examples
    --------
    >>> from fastmlp import MLPClassifier
    >>> from fastmlp.model_selection import HalvingGridSearchCV
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier(n_iter_no_change=30, random_state=0)
    >>> grid = {{"learning_rate_init": [0.0001, 0.001, 0.01], "alpha": [0.0, 0.1, 1.0]}}
    >>> search = HalvingGridSearchCV(model, grid, resource="max_iter", max_resources=27)
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # that 3 epochs are too few to converge
    ...     search = search.fit(X, y)
    >>> search.n_candidates_, search.n_resources_
    ([9, 3, 1], [3, 9, 27])
    """

    _parameter_constraints = constraints_of(model_selection.HalvingGridSearchCV) | MAX_TIME

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        factor: float = 3,
        resource: str = "n_samples",
        max_resources: int | str = "auto",
        min_resources: int | str = "exhaust",
        aggressive_elimination: bool = False,
        cv: Any = 5,
        scoring: Any = None,
        refit: bool = True,
        error_score: Any = np.nan,
        return_train_score: bool = True,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        max_time: float | None = None,
    ):
        super().__init__(
            estimator,
            param_grid,
            factor=factor,
            resource=resource,
            max_resources=max_resources,
            min_resources=min_resources,
            aggressive_elimination=aggressive_elimination,
            cv=cv,
            scoring=scoring,
            refit=refit,
            error_score=error_score,
            return_train_score=return_train_score,
            random_state=random_state,
            n_jobs=n_jobs,
            verbose=verbose,
        )
        self.max_time = max_time


class HalvingRandomSearchCV(_Halving, model_selection.HalvingRandomSearchCV):
    __module__ = "fastmlp.model_selection"
    __doc__ = f"""Search over drawn settings, the worse of which are given up after each iteration.

    Takes the place of scikit-learn's class of the same name, with the same ``cv_results_`` but for
    the times, as `RandomizedSearchCV` does.

    {_EPOCHS}

    Parameters
    ----------
    estimator : estimator
        An MLP of fastmlp's, or pipelines around one; another one is left to scikit-learn's class.
    param_distributions : dict or list of dict
        Values, or distributions to draw them from, by the names of parameters.
    n_candidates : int or 'exhaust', default='exhaust'
        Settings to begin with; 'exhaust' are so many that the last iteration comes close to
        ``max_resources``.
    {_COMMON.format(min_resources="smallest")}

    See Also
    --------
    HalvingGridSearchCV : Begins with all settings of a grid.
    RandomizedSearchCV : Trains every candidate to the end.

    Notes
    -----
    {NOTES}

    Examples
    --------
    >>> from fastmlp import MLPRegressor
    >>> from fastmlp.model_selection import HalvingRandomSearchCV
    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import make_regression
    >>> X, y = make_regression(n_samples=200, n_features=5, random_state=0)
    >>> model = MLPRegressor(max_iter=10, random_state=0)
    >>> search = HalvingRandomSearchCV(
    ...     model, {{"learning_rate_init": loguniform(1e-4, 1e-1)}}, random_state=0
    ... )
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # that 10 epochs are too few to converge
    ...     search = search.fit(X, y)
    >>> search.n_candidates_, search.n_resources_
    ([20, 7, 3], [10, 30, 90])
    """

    _parameter_constraints = constraints_of(model_selection.HalvingRandomSearchCV) | MAX_TIME

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_candidates: int | str = "exhaust",
        factor: float = 3,
        resource: str = "n_samples",
        max_resources: int | str = "auto",
        min_resources: int | str = "smallest",
        aggressive_elimination: bool = False,
        cv: Any = 5,
        scoring: Any = None,
        refit: bool = True,
        error_score: Any = np.nan,
        return_train_score: bool = True,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        max_time: float | None = None,
    ):
        super().__init__(
            estimator,
            param_distributions,
            n_candidates=n_candidates,
            factor=factor,
            resource=resource,
            max_resources=max_resources,
            min_resources=min_resources,
            aggressive_elimination=aggressive_elimination,
            cv=cv,
            scoring=scoring,
            refit=refit,
            error_score=error_score,
            return_train_score=return_train_score,
            random_state=random_state,
            n_jobs=n_jobs,
            verbose=verbose,
        )
        self.max_time = max_time
