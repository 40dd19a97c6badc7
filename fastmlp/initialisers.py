"""Initial weights other than scikit-learn's: functions ``(fan_in, fan_out, random_state)``."""

from collections.abc import Callable

import numpy as np

Initialiser = Callable[[int, int, np.random.RandomState], np.ndarray]


def _uniform(
    bound: float, fan_in: int, fan_out: int, random_state: np.random.RandomState
) -> np.ndarray:
    return random_state.uniform(-bound, bound, (fan_in, fan_out))


def _normal(
    scale: float, fan_in: int, fan_out: int, random_state: np.random.RandomState
) -> np.ndarray:
    return random_state.normal(0.0, scale, (fan_in, fan_out))


def glorot_uniform(fan_in: int, fan_out: int, random_state: np.random.RandomState) -> np.ndarray:
    """Uniform with variance ``2 / (fan_in + fan_out)`` (Glorot and Bengio, 2010)."""
    return _uniform(np.sqrt(6 / (fan_in + fan_out)), fan_in, fan_out, random_state)


def glorot_normal(fan_in: int, fan_out: int, random_state: np.random.RandomState) -> np.ndarray:
    """Normal with variance ``2 / (fan_in + fan_out)``."""
    return _normal(np.sqrt(2 / (fan_in + fan_out)), fan_in, fan_out, random_state)


def he_uniform(fan_in: int, fan_out: int, random_state: np.random.RandomState) -> np.ndarray:
    """Uniform with variance ``2 / fan_in`` (He et al., 2015), for relu."""
    return _uniform(np.sqrt(6 / fan_in), fan_in, fan_out, random_state)


def he_normal(fan_in: int, fan_out: int, random_state: np.random.RandomState) -> np.ndarray:
    """Normal with variance ``2 / fan_in``."""
    return _normal(np.sqrt(2 / fan_in), fan_in, fan_out, random_state)


def lecun_normal(fan_in: int, fan_out: int, random_state: np.random.RandomState) -> np.ndarray:
    """Normal with variance ``1 / fan_in`` (LeCun et al., 1998)."""
    return _normal(np.sqrt(1 / fan_in), fan_in, fan_out, random_state)


def orthogonal(fan_in: int, fan_out: int, random_state: np.random.RandomState) -> np.ndarray:
    """Orthonormal columns, or rows if there are more columns (Saxe et al., 2014)."""
    normal = random_state.normal(size=(max(fan_in, fan_out), min(fan_in, fan_out)))
    q, r = np.linalg.qr(normal)
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)  # otherwise not every rotation is equally likely
    return q if fan_in >= fan_out else q.T


def zeros(fan_in: int, fan_out: int, random_state: np.random.RandomState) -> np.ndarray:
    """Zeros: a start for networks without hidden layer, a dead end for others."""
    return np.zeros((fan_in, fan_out))


INITIALISERS: dict[str, Initialiser] = {
    function.__name__: function
    for function in (
        glorot_uniform, glorot_normal, he_uniform, he_normal, lecun_normal, orthogonal, zeros
    )
}  # fmt: skip
