"""Which ranks an attack takes: `random:5`, `fixed:5`, `spread:5`, `concentrated:5`."""

from collections.abc import Callable, Iterator
from itertools import chain, zip_longest

from horovod_detox.attacks.stream import stream
from horovod_detox.vote.groups import Groups


def parse_placement(text: str) -> tuple[str, int]:
    """Split `"spread:5"` into its name and its number of ranks.

    Raises:
        ValueError: when the name is unknown or the number is not a whole number.

    >>> parse_placement("spread:5")
    ('spread', 5)
    """
    name, _, count = (part.strip() for part in text.partition(":"))
    if name not in PLACES_OF_FAULTS or not (count.isascii() and count.isdigit()):
        known = ", ".join(f"{known}:COUNT" for known in PLACES_OF_FAULTS)
        raise ValueError(f"placement {text!r} is not one of {known}")
    return name, int(count)


def place(text: str, step: int, groups: Groups, seed: int) -> tuple[int, ...]:
    """Return the ranks, ascending, that a placement takes in this step.

    Raises:
        ValueError: when the groups have no room for that many.
    """
    name, count = parse_placement(text)
    if count > groups.world_size:
        raise ValueError(f"{text} needs {count} ranks, but the job has {groups.world_size}")
    ranks = PLACES_OF_FAULTS[name](count, step, groups, seed)
    if len(ranks) < count:
        sizes = ", ".join(str(len(members)) for members in groups.members)
        raise ValueError(
            f"{text}: the minorities of groups of {sizes} hold at most {len(ranks)} ranks"
        )
    return tuple(sorted(ranks))


def _random(count: int, step: int, groups: Groups, seed: int) -> list[int]:
    """Choose ranks anew in every step."""
    rng = stream(seed, "placement", step)
    return rng.choice(groups.world_size, count, replace=False).tolist()


def _fixed(count: int, _step: int, groups: Groups, seed: int) -> list[int]:
    """Choose random ranks once."""
    return _random(count, 0, groups, seed)


def _spread(count: int, _step: int, groups: Groups, seed: int) -> list[int]:
    """Deal ranks to the groups in turn, never more than a minority of a group."""
    minorities = [members[: (len(members) - 1) // 2] for members in _shuffled(groups, seed)]
    dealt = chain.from_iterable(zip_longest(*minorities))
    return [rank for rank in dealt if rank is not None][:count]


def _concentrated(count: int, _step: int, groups: Groups, seed: int) -> list[int]:
    """Capture as many groups as possible, the cheapest first, with a bare majority each."""
    cheapest_first = sorted(_shuffled(groups, seed), key=len)
    majorities = [members[: len(members) // 2 + 1] for members in cheapest_first]
    rest = [members[len(members) // 2 + 1 :] for members in cheapest_first]
    return list(chain(*majorities, *rest))[:count]


def _shuffled(groups: Groups, seed: int) -> Iterator[list[int]]:
    """Yield the groups in random order, the ranks of each in random order."""
    rng = stream(seed, "placement")
    for group in rng.permutation(len(groups.members)):
        yield rng.permutation(groups.members[group]).tolist()


PLACES_OF_FAULTS: dict[str, Callable[[int, int, Groups, int], list[int]]] = {
    "random": _random,
    "fixed": _fixed,
    "spread": _spread,
    "concentrated": _concentrated,
}
