"""Attacks and faults for drills and tests: what faulty ranks send instead of their gradient.

They act on NumPy arrays. To add an attack, write a dataclass with a `lie` method in the file of its
family and add it to `ATTACKS`.
"""

from typing import Any

from horovod_detox.attacks.attack import Attack, Scene
from horovod_detox.attacks.blind import Constant, Gaussian, Inf, NaN, Noise, Reverse, Stale, Zero
from horovod_detox.attacks.faulty_rank import FaultyRank
from horovod_detox.attacks.hardware import Bias, BitFlip, Random, Stride, Ulp, ZeroBlock
from horovod_detox.attacks.labels import LabelFlip
from horovod_detox.attacks.omniscient import (
    ALittleIsEnough,
    InnerProduct,
    Mimic,
    OptimalALittleIsEnough,
    OptimalInnerProduct,
)
from horovod_detox.attacks.state import FlipState
from horovod_detox.registry import build

ATTACKS: dict[str, type[Attack]] = {
    "reverse": Reverse,
    "constant": Constant,
    "zero": Zero,
    "nan": NaN,
    "inf": Inf,
    "gaussian": Gaussian,
    "noise": Noise,
    "stale": Stale,
    "a_little_is_enough": ALittleIsEnough,
    "inner_product": InnerProduct,
    "optimal_a_little_is_enough": OptimalALittleIsEnough,
    "optimal_inner_product": OptimalInnerProduct,
    "mimic": Mimic,
    "bit_flip": BitFlip,
    "zero_block": ZeroBlock,
    "stride": Stride,
    "bias": Bias,
    "ulp": Ulp,
    "random": Random,
    "label_flip": LabelFlip,
    "flip_state": FlipState,
}

__all__ = [
    "ATTACKS",
    "ALittleIsEnough",
    "Attack",
    "Bias",
    "BitFlip",
    "Constant",
    "FaultyRank",
    "FlipState",
    "Gaussian",
    "Inf",
    "InnerProduct",
    "LabelFlip",
    "Mimic",
    "NaN",
    "Noise",
    "OptimalALittleIsEnough",
    "OptimalInnerProduct",
    "Random",
    "Reverse",
    "Scene",
    "Stale",
    "Stride",
    "Ulp",
    "Zero",
    "ZeroBlock",
    "by_name",
    "from_spec",
]


def by_name(name: str, **parameters: Any) -> Attack:
    """Build an attack of `ATTACKS`.

    Raises:
        ValueError: when the name or a parameter is unknown, or a parameter out of bounds.

    >>> by_name("reverse", scale=10, ranks=(1, 4)).ranks
    (1, 4)
    """
    return build(ATTACKS, name, kind="attack", **parameters)


def from_spec(text: str) -> Attack:
    """Build an attack from `"name(parameter=value, ...)@ranks"`, as HOROVOD_DETOX_ATTACK holds it.

    Raises:
        ValueError: when it cannot be read, names no ranks, or `by_name` refuses it.

    >>> from_spec("reverse(scale=100)@1,4").ranks
    (1, 4)
    >>> from_spec("bit_flip(count=3)@spread:2").ranks
    'spread:2'
    """
    name, _, ranks = (part.strip() for part in text.rpartition("@"))
    if not name or not ranks:
        raise ValueError(
            f"attack {text!r} names no ranks: end it with @1,4 or a placement such as @spread:2"
        )
    return by_name(name, ranks=_read_ranks(ranks))


def _read_ranks(text: str) -> tuple[int, ...] | str:
    if ":" in text:
        return text
    try:
        return tuple(int(rank) for rank in text.split(","))
    except ValueError:
        raise ValueError(
            f"{text!r} is neither ranks such as 1,4 nor a placement such as spread:2"
        ) from None
