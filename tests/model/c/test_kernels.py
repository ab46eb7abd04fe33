"""Arithmetic of the functions that exported C shares."""

import re

import numpy as np
import pytest

from qdtune.model.c.kernels import divide


@pytest.mark.parametrize("area", [1, 7, 64, 81, 784, 1024, 560, 9216, 12_345])
def test_a_division_by_a_constant_is_exact_for_every_number(area):
    text = divide("n", 511 * area, 2 * area)
    found = re.fullmatch(r"(\(?)\(\(n\) >> (\d+)\)(?: \* (\d+)U\) >> (\d+)| / (\d+)U)?", text)
    assert found, text
    _, halvings, factor, shift, by = found.groups()
    numbers = np.arange(511 * area + 1, dtype=np.uint64) >> np.uint64(halvings)
    if factor:
        numbers = numbers * np.uint64(factor)
        assert numbers.max() < 2**32
        numbers = numbers >> np.uint64(shift)
    elif by:
        numbers = numbers // np.uint64(by)
    assert np.array_equal(numbers, np.arange(511 * area + 1) // (2 * area))
    assert by is None or area > 1000, "most areas need no division"
