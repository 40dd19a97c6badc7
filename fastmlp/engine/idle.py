"""Engines that wait beside a model for its next call.

Making an engine takes longer than a batch or a few rows of a small network.  What is kept lies
beside the estimators, not in them: predicting must not change an estimator's attributes, and
pickles and copies have no use for it.  An engine serves one thread at a time, so a call takes one
out, and threads that use one model at once have one each.  A forked process begins without any,
because an engine's threads are not in it.
"""

import os
from typing import Any
from weakref import WeakKeyDictionary


class IdleEngines:
    """Engines, or what holds one, by model and by what they were made for."""

    def __init__(self):
        self._idle: WeakKeyDictionary[Any, list] = WeakKeyDictionary()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._idle.clear)

    def take(self, model, settings: tuple):
        """One that was made for these settings, or None; those for others are dropped."""
        idle = self._idle.get(model)
        if not idle:
            return None
        try:
            made_for, engine = idle.pop()
        except IndexError:  # another thread was faster
            return None
        return engine if made_for == settings else None

    def put(self, model, settings: tuple, engine) -> None:
        """Keep one for later, as long as the model lives."""
        self._idle.setdefault(model, []).append((settings, engine))
