"""Ranks that differ from others in what should be the same bits, and how to tell it."""

from collections.abc import Sequence
from dataclasses import dataclass

BATCH = "batch"
"""The cause that ranks were given other data, with digests of these."""


@dataclass(frozen=True)
class Oddity:
    """Ranks that differ from the others in what should be the same bits.

    Attributes:
        ranks: ascending.
        tensors: where they differ, in the order of the model.
        causes: conditions that may explain it, such as "torch threads 2 against 4"; empty: they
            have those of the others.
        among: the ranks that should hold the same bits, these and the others.
        outvoted: whether the others are a majority; else nobody can tell who is right.
    """

    ranks: tuple[int, ...]
    tensors: tuple[str, ...]
    causes: tuple[str, ...]
    among: tuple[int, ...]
    outvoted: bool = True

    def __str__(self) -> str:
        """Tell it in a few words."""
        alone = len(self.ranks) == 1
        if self.causes:
            return f"{name_ranks(self.ranks)} differ{'s' * alone}: {', '.join(self.causes)}"
        if not self.outvoted:
            return f"{name_ranks(self.among)} have no majority, with the same settings"
        return self.accusation()

    def accusation(self) -> str:
        """Tell it where the ranks are at fault; settings of their own excuse nothing."""
        alone = len(self.ranks) == 1
        where, settings = name_tensors(self.tensors), "with the settings of the others"
        having = f"{'has' if alone else 'have'} {', '.join(self.causes)}"
        if self.outvoted and any(cause.startswith(f"{BATCH} ") for cause in self.causes):
            was = "was" if alone else "were"
            others = f"{name_ranks(self.ranks)} {was} given other data than the others"
            return f"{others}, and differ{'s' * alone} at {where}: {', '.join(self.causes)}"
        if self.outvoted:
            what = "it alone differs" if alone else "they differ"
            settings = f"and {having}" if self.causes else settings
            return f"{name_ranks(self.ranks)} faulty at {where}: {what}, {settings}"
        settings = f"{name_ranks(self.ranks)} {having}" if self.causes else "with the same settings"
        return f"{name_ranks(self.among)} have no majority at {where}, {settings}"


def name_tensors(names: Sequence[str]) -> str:
    """Name the first tensor, and say how many there are."""
    more = len(names) - 1
    others = f" and {more} other{'s' * (more > 1)}" if more else ""
    return f"tensor {names[0]}{others}"


def name_ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
