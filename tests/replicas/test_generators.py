"""The states of generators go through words and back: what is drawn then is the same."""

import random

import numpy as np
import pytest

from horovod_detox.replicas import generators


@pytest.mark.parametrize("draws", [0, 1, 2, 700])
def test_python(draws):
    random.seed(draws)
    for _ in range(draws):
        random.gauss(0, 1)  # an odd number leaves one behind
    words = generators.read_python()
    expected = [random.gauss(0, 1), random.random()]
    random.seed(99)
    generators.write_python(words)
    assert [random.gauss(0, 1), random.random()] == expected


@pytest.mark.parametrize("draws", [0, 1, 2, 700])
def test_numpy(draws):
    np.random.seed(draws)
    np.random.standard_normal(draws)
    words = generators.read_numpy()
    expected = [np.random.standard_normal(), np.random.random()]
    np.random.seed(99)
    generators.write_numpy(words)
    assert [np.random.standard_normal(), np.random.random()] == expected
