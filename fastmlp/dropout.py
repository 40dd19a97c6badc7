"""Dropout: which units a training step drops, and its masks.

A mask is a function of (seed, step, layer, row in the batch, unit), in integer arithmetic on 32-bit
numbers, so that every engine draws the same one whichever thread asks.
"""

from typing import NamedTuple


class Dropout(NamedTuple):
    """The share of units to drop in each hidden layer, and what masks are drawn from."""

    rates: tuple[float, ...]
    seed: int


def row_key(seed: int, step: int, layer: int, row: int) -> int:
    """A 32-bit number for one row of a batch, from four integers, each folded in by a finaliser.

    The finaliser is that of MurmurHash3 (Appleby): every bit that goes in flips every bit that
    comes out about half the time.
    """
    key = 0
    for part in (seed, step, layer, row):
        key = (key + part + 0x9E3779B9) & 0xFFFFFFFF
        key = ((key ^ (key >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
        key = ((key ^ (key >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
        key ^= key >> 16
    return key


def random_bits(key: int, unit: int) -> int:
    """32 random bits for one unit of a row: SplitMix's generator at a place of its own."""
    bits = (key + unit * 0x9E3779B9) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return bits ^ (bits >> 16)


def threshold(rate: float) -> int:
    """A unit is dropped if its random bits are below this number."""
    return min(round(rate * 2**32), 2**32 - 1)
