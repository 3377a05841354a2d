"""The random numbers of a drill: every rank can draw every other rank's."""

import numpy as np

PURPOSES = ("placement", "activity", "corruption")


def stream(seed: int, purpose: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """Return the generator of one purpose at one step, for a group or a rank (`index`)."""
    key = (PURPOSES.index(purpose), step, index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
