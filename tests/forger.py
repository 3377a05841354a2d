"""Who makes another slice with the same fingerprint if he knows the key of NH."""

import numpy as np
from sympy import ZZ
from sympy.polys.matrices import DM

from horovod_detox.arrays.nh import Key

_PLACES = 16
_WEIGHT = 1 << 80


def forge(words: np.ndarray, key: Key) -> np.ndarray:
    """Return other words with the same digest under a key: up to `BLOCK` of int64, which hold
    float32.

    In the sums the lower halves of some words are multiplied by what follows from their upper
    halves and the key. Small numbers to add to them that change no sum are a short vector of a
    lattice (Lenstra, Lenstra, Lovasz, 1982); they are made as large as the halves allow
    and as finite numbers can be.
    """
    low, high = key.halves(1)[0]
    lower, upper = (words.view(np.uint32)[start::2].astype(np.uint64) for start in (0, 1))
    factors = [(upper + high[i : i + len(words)]) % (1 << 32) for i in range(2)]
    sums = [(lower + low[i : i + len(words)]) % (1 << 32) for i in range(2)]
    # Where there is most room to add to both, or to subtract.
    room = np.minimum.reduce([np.minimum(half, (1 << 32) - 1 - half) for half in [lower, *sums]])
    places = np.argsort(-room.astype(np.int64))[:_PLACES]
    rows = [
        [int(i == j) for j in range(_PLACES)] + [_WEIGHT * int(f[place]) for f in factors]
        for i, place in enumerate(places)
    ]
    reduced = DM(rows, ZZ).lll().to_Matrix().tolist()
    shortest = np.array([int(x) for x in reduced[0][:_PLACES]], np.int64)
    assert not any(reduced[0][_PLACES:]), "no short vector"
    moves = shortest != 0
    most = int((room[places].astype(np.int64)[moves] // abs(shortest[moves])).min())
    for times in range(most, 0, -max(1, most // 1000)):
        forged = words.copy()
        forged.view(np.uint32)[2 * places] += (shortest * times).astype(np.uint32)
        if np.isfinite(forged.view(np.float32)).all():
            return forged
    raise AssertionError("no lie of finite numbers")
