"""Names for the collectives to which a script gives none.

Horovod for PyTorch numbers them by how many operations a rank has begun. A rank whose exchange is a
part further ahead has begun more, so ranks would wait for each other under different names. Objects
it names by their type, which may be another on each rank, as `None` where there is none.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import count

OBJECT = "object"
"""The name of an object that is gathered or broadcast: no rank begins two at once."""


class Unnamed:
    """Numbers the collectives of a script that have no name, for each process set.

    >>> unnamed = Unnamed()
    >>> unnamed.next([0, 1]), unnamed.next([0, 1, 2]), unnamed.next([0, 1])
    ('unnamed.0', 'unnamed.0', 'unnamed.1')
    """

    def __init__(self) -> None:
        self._numbers: defaultdict[tuple[int, ...], count[int]] = defaultdict(count)

    def next(self, ranks: Sequence[int]) -> str:
        """Return a name that the ranks of a process set give alike if they call alike."""
        return f"unnamed.{next(self._numbers[tuple(ranks)])}"

    def begin_anew(self) -> None:
        """Number from zero, where all ranks do, because some may have called less often."""
        self._numbers.clear()


unnamed = Unnamed()
