"""Learning-rate schedules: plain functions on the host.

scikit-learn's ``adaptive`` schedule reacts to the loss instead of the step; its one rule (divide
when there was no improvement) is `shrink`, called by the training loop.
"""


def invscaling(learning_rate_init: float, t: int, power_t: float) -> float:
    """``learning_rate_init / (t + 1)^power_t`` after ``t`` samples (scikit-learn's formula)."""
    return float(learning_rate_init) / (t + 1) ** power_t


def shrink(learning_rate: float) -> float | None:
    """A fifth of the rate, or None when it is already at or below 1e-6 and training should end."""
    return None if learning_rate <= 1e-6 else learning_rate / 5.0
