"""How waits are told of."""

from collections.abc import Iterable


def who(there: Iterable[int], seconds: float | None = None) -> str:
    """Say how many ranks wait, or which one, and for how long if that is given.

    >>> who([3]), who([0, 3]), who([0, 3], 12.1)
    ('rank 3 waits', '2 ranks wait', '2 ranks have been waiting for 12 s')
    """
    ranks = sorted(there)
    one = len(ranks) == 1
    they = f"rank {ranks[0]}" if one else f"{len(ranks)} ranks"
    if seconds is None:
        return f"{they} {'waits' if one else 'wait'}"
    return f"{they} {'has' if one else 'have'} been waiting for {seconds:.0f} s"


def shown(what: str) -> str:
    """Return what is waited in as people read it.

    >>> shown("the exchange of step 3#detox.0.0")
    'the exchange of step 3'
    """
    return what.partition("#")[0]
