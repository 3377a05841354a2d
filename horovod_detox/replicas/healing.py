"""The bytes of most ranks for those that hold others, each time from a donor that is checked."""

from collections.abc import Mapping, Sequence

import numpy as np

from horovod_detox.arrays.namespaces import Words, like, namespace
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.sharing import share
from horovod_detox.replicas.comparison import Difference
from horovod_detox.replicas.pieces import Piece, digests_of
from horovod_detox.vote.fingerprint import Fingerprints


def heal(
    collectives: Collectives,
    differences: Sequence[Difference],
    pieces: Mapping[str, Piece],
    held: Mapping[str, np.ndarray],
    fingerprints: Fingerprints,
) -> set[tuple[int, str]]:
    """Overwrite what ranks hold otherwise than most; all ranks come here together.

    The donor is the lowest rank whose digest is that of most. Whoever is healed digests what comes,
    and writes it only if that has the same digest; if not, the next donor has its turn.

    Args:
        collectives: of the ranks.
        differences: with donors.
        pieces: of this rank, by key.
        held: `(p, WORDS)` digests by rank of what was held, by key.
        fingerprints: made these digests.

    Returns:
        who was healed of what: ranks and keys, the same on every rank.
    """
    healed: set[tuple[int, str]] = set()
    to_do = list(differences)
    for turn in range(max((len(each.donors) for each in differences), default=0)):
        turns = [(each, each.donors[turn]) for each in to_do if turn < len(each.donors)]
        if not turns:
            break
        received = _broadcast(collectives, turns, pieces)
        good = []
        for (each, donor), words in zip(turns, received, strict=True):
            if collectives.rank not in each.odd:
                continue
            wanted = held[each.key][donor]
            if (digests_of([words], fingerprints)[0] == wanted).all():
                pieces[each.key].write(words)
                good.append(each.key)
        for rank, keys in enumerate(share(collectives, "replicas.healed", good)):
            healed |= {(rank, key) for key in keys}
        to_do = [each for each in to_do if any((rank, each.key) not in healed for rank in each.odd)]
    return healed


def _broadcast(
    collectives: Collectives,
    turns: Sequence[tuple[Difference, int]],
    pieces: Mapping[str, Piece],
) -> list[Words]:
    """Return the words of the donors, all on their way at once."""
    sent = []
    for each, _ in turns:
        words = pieces[each.key].read()
        sent.append(like(words, namespace(words).copy(words)))  # `read` may give the piece itself
    handles = [
        collectives.broadcast(f"replicas.{i}", words, donor)
        for i, ((_, donor), words) in enumerate(zip(turns, sent, strict=True))
    ]
    for handle in handles:
        handle.wait()
    return sent
