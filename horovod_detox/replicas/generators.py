"""The states of the random generators of Python and NumPy, as words."""

import random

import numpy as np


def read_python() -> np.ndarray:
    """Return the state of `random`: `(315,)` of int64."""
    _, numbers, gauss = random.getstate()
    words = np.zeros(626, np.uint32)
    words[:625] = numbers
    left = np.array([0.0 if gauss is None else gauss, gauss is not None]).view(np.int64)
    return np.concatenate([words.view(np.int64), left])


def write_python(words: np.ndarray) -> None:
    """Set the state of `random` to what `read_python` returned."""
    numbers = words[:313].view(np.uint32)[:625].tolist()
    gauss, is_there = words[313:].view(np.float64).tolist()
    random.setstate((3, tuple(numbers), gauss if is_there else None))


def read_numpy() -> np.ndarray:
    """Return the state of NumPy's global generator: `(315,)` of int64; empty if it is another."""
    state = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        return np.empty(0, np.int64)
    left = np.array([state["gauss"]]).view(np.int64)[0]
    facts = np.array([state["state"]["pos"], state["has_gauss"], left], np.int64)
    return np.concatenate([state["state"]["key"].view(np.int64), facts])


def write_numpy(words: np.ndarray) -> None:
    """Set the state of NumPy's global generator to what `read_numpy` returned."""
    key, (position, has_gauss, left) = words[:312].view(np.uint32), words[312:].tolist()
    gauss = float(np.array([left]).view(np.float64)[0])
    np.random.set_state(("MT19937", key, position, has_gauss, gauss))
