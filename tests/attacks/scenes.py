"""What the tests of attacks share: gradients, scenes and groups."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from horovod_detox.attacks import (
    ATTACKS,
    Attack,
    Scene,
    by_name,
)
from horovod_detox.vote.groups import Groups, form_groups

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]


ELSEWHERE = {"label_flip", "flip_state"}
"""They act on the data, or on what a rank holds, and send the gradient as it comes."""


REQUIRED = {"label_flip": {"num_classes": 10}, "flip_state": {"of": "buffers"}}


P = 9


FAULTY = (1, 4)


D = 3000


every_attack = pytest.mark.parametrize("name", ATTACKS)


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def build(name: str, **parameters: Any) -> Attack:
    return by_name(name, **REQUIRED.get(name, {}), **parameters)


def gradients(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Return non-degenerate gradients: distinct, finite, no zeros."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    return (noise + np.where(noise >= 0, 0.01, -0.01)).astype(dtype)


def scene_of(dtype: Any = np.float32, **known: Any) -> Scene:
    copies = gradients(P, D, dtype=dtype)
    facts: dict[str, Any] = {
        "own": copies[1],
        "honest": np.delete(copies, FAULTY, axis=0),
        "past": [gradients(D, dtype=dtype, seed=past) for past in (1, 2, 3)],
        "rng": np.random.default_rng(0),
        "num_ranks": P,
        "num_faulty": len(FAULTY),
        "aggregate": lambda lie: lie,
    }
    return Scene(**facts | known)


def honest_of(scene: Scene) -> np.ndarray:
    assert scene.honest is not None
    return scene.honest


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def hamming(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.bitwise_count(bits(a) ^ bits(b)).sum())


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def uniform_groups(num_groups: int, group_size: int) -> Groups:
    return form_groups(num_groups * group_size, group_size)
