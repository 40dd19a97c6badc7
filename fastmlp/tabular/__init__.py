"""Networks for tables: columns of any kinds, preprocessing, and parameters that suit them."""

from fastmlp.tabular.encoder import TabularEncoder
from fastmlp.tabular.estimators import TabularMLPClassifier, TabularMLPRegressor
from fastmlp.tabular.piecewise import PiecewiseLinearEncoder
from fastmlp.tabular.pipeline import tabular_pipeline
from fastmlp.tabular.scaling import RobustScaleSmoothClip

__all__ = [
    "PiecewiseLinearEncoder",
    "RobustScaleSmoothClip",
    "TabularEncoder",
    "TabularMLPClassifier",
    "TabularMLPRegressor",
    "tabular_pipeline",
]
