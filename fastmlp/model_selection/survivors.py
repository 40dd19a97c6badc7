"""Halving over epochs: candidates that survive go on from where they stand."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastmlp.schedules import is_over_all_epochs
from fastmlp.training.checkpoint import KeptFit


class Survivors:
    """Where the fits of a halving search stand, from one iteration to the next.

    Parameters
    ----------
    resource : str
        The parameter that iterations give ever more of: an MLP's ``max_iter``.
    """

    def __init__(self, resource: str):
        self._resource = resource
        self._kept: dict[tuple[Any, ...], tuple[KeptFit, dict[str, Any]]] = {}

    def join(self, tasks: Sequence[Any], prefix: str, network: Any) -> None:
        """Let the fits of an iteration go on from those of the last; forget the others.

        Parameters
        ----------
        tasks : sequence of fastmlp.model_selection.threads.Task
        prefix : str
            Of the parameters of the MLP.
        network : MLPClassifier or MLPRegressor

        Raises
        ------
        ValueError
            If a schedule runs over ``max_iter`` epochs, so that fewer are not the beginning of
            more.
        """
        for task in tasks:
            _refuse_schedule(task.setting("learning_rate", prefix, network))
        kept: dict[tuple[Any, ...], tuple[KeptFit, dict[str, Any]]] = {}
        seen: Counter[tuple[Any, ...]] = Counter()
        for task in tasks:
            if task.setting("solver", prefix, network) == "lbfgs":
                continue
            if task.setting("checkpoint", prefix, network) is not None:
                continue
            values = {
                name: value for name, value in task.parameters.items() if name != self._resource
            }
            same = task.split, *((name, id(value)) for name, value in sorted(values.items()))
            seen[same] += 1  # candidates that were drawn twice
            key = *same, seen[same]
            # the values are kept, too, so that no other object can have their identity
            kept[key] = self._kept.get(key, (KeptFit(), values))
            task.kept = task.network().checkpoint = kept[key][0]
        self._kept = kept


def _refuse_schedule(learning_rate: Any) -> None:
    if not is_over_all_epochs(learning_rate):
        return
    name = repr(learning_rate) if isinstance(learning_rate, str) else "a function"
    raise ValueError(
        f"learning_rate={name} runs over max_iter epochs, so that a search by halving cannot go on "
        "from fewer of them; use another schedule, or resource='n_samples'."
    )
