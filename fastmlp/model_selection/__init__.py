"""scikit-learn's searches for good parameters, as one job, in threads or on workers.

Change one import::

    from fastmlp.model_selection import GridSearchCV  # was: from sklearn.model_selection

A search over an MLP of fastmlp's, alone or at the end of pipelines (in a
`sklearn.compose.TransformedTargetRegressor`, too), starts no processes and copies no data to them;
candidates share a fold's rows and what preprocessing made of them.  Under Dask's or Ray's joblib
backend, workers get groups of fits that share a fold.  Everything else is scikit-learn's own code:
``cv_results_`` has the same keys and the same scores, bit for bit.
"""

from fastmlp.model_selection.halving import HalvingGridSearchCV, HalvingRandomSearchCV
from fastmlp.model_selection.search import GridSearchCV, RandomizedSearchCV

__all__ = ["GridSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV", "RandomizedSearchCV"]
