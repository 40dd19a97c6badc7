"""The bits of fits with default parameters are those that are written down."""

import json

import numpy as np
import pytest
from default_fits import CASES, FILE, digest, fit, name_of

from fastmlp.engine import processor

RECORDED = json.loads(FILE.read_text())


@pytest.mark.skipif(processor.LEVEL not in RECORDED, reason="bits of x86-64 are written down")
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bits(case):
    assert digest(fit(*case)) == RECORDED[processor.LEVEL][name_of(case)]


def test_one_bit_tells():
    model = fit(*CASES[0])
    before = digest(model)
    model.coefs_[1][2, 1] = np.nextafter(model.coefs_[1][2, 1], np.inf)
    assert digest(model) != before
