"""Votes for tests, and every rule of the registry with parameters to test it with."""

from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from horovod_detox.aggregators import AGGREGATORS, PRE_AGGREGATORS

few_examples = settings(max_examples=15)

NEEDED = {
    "centered_clipping": [{"radius": 2.0}, {"radius": 0.5, "iterations": 3}],
    "clipping": [{"radius": 1.5}],
    "bucketing": [{"s": 2}, {"s": 3, "seed": 5}],
    "multi_krum": [{}, {"m": 2}],
}


def cases(table, fs=(None, 0, 1, 2)):
    """Return (name, parameters) of every entry of a registry table, with several f."""
    found = []
    for name, rule in table.items():
        takes_f = any(field.name == "f" for field in fields(rule))
        for needed in NEEDED.get(name, [{}]):
            found += [
                (name, needed | ({} if f is None else {"f": f}))
                for f in (fs if takes_f else [None])
            ]
    return found


RULE_CASES = cases(AGGREGATORS)
PRE_CASES = cases(PRE_AGGREGATORS)


def draw(n, d, seed=0, dtype: Any = np.float32, scale=1.0):
    """Return n votes around a common vector."""
    rng = np.random.default_rng(seed)
    votes = rng.standard_normal(d) + 0.7 * rng.standard_normal((n, d))
    return (scale * votes).astype(dtype)


@st.composite
def normal_votes(draw_from, fewest=11, most=14):
    """Votes in general position, float64."""
    n = draw_from(st.integers(fewest, most))
    d = draw_from(st.integers(2, 9))
    scale = draw_from(st.sampled_from([1e-6, 1.0, 1e4]))
    return draw(n, d, draw_from(st.integers(0, 10**6)), np.float64, scale)


@st.composite
def grid_votes(draw_from, fewest=11, most=12):
    """Votes with small integers as elements, so that many distances and values tie, float64."""
    n = draw_from(st.integers(fewest, most))
    d = draw_from(st.integers(1, 4))
    rng = np.random.default_rng(draw_from(st.integers(0, 10**6)))
    return rng.integers(-2, 3, (n, d)).astype(np.float64)


def bits(array):
    """Return the bytes of a NumPy array: equal only for equal bits, NaN included."""
    return np.ascontiguousarray(array).tobytes()
