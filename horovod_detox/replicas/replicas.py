"""One rank's part in keeping equal what ranks hold alike: scrubbing, causes, healing."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from horovod_detox.arrays.nh import WORDS
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.sharing import share
from horovod_detox.packing.layout import digest_of_text
from horovod_detox.replicas.comparison import Difference, Guard
from horovod_detox.replicas.files import Files
from horovod_detox.replicas.healing import heal
from horovod_detox.replicas.pieces import RANDOM, Piece, digest_of_all, digests_of
from horovod_detox.vote.fingerprint import Fingerprints
from horovod_detox.vote.groups import Groups
from horovod_detox.vote.report import (
    COMPUTE,
    DATA,
    DATA_OR_COMPUTE,
    OF_RANDOM,
    STATE,
    Cause,
    Findings,
)


@dataclass(frozen=True)
class Held:
    """What a rank holds, as its frontend knows it.

    Attributes:
        pieces: returns what can be compared with other ranks now.
        batch: returns the digest of what this rank computed its latest gradient from, `(WORDS,)` of
            int64; None: that is not known.
        is_readable: whether pieces can be read and written at this moment.
        when_readable: calls a function as soon as they can.
        enter: is told the engine that exchanges for it.
        files: that this process writes.
        ask_for_batch: is told that `batch` will be wanted when pieces can be read.
    """

    pieces: Callable[[], Sequence[Piece]]
    batch: Callable[[], np.ndarray | None] = lambda: None
    is_readable: Callable[[], bool] = lambda: True
    when_readable: Callable[[Callable[[], None]], object] = lambda task: task()
    enter: Callable[[Any], object] = lambda engine: None
    files: Files = field(default_factory=Files)
    ask_for_batch: Callable[[], object] = lambda: None


class Replicas:
    """What this rank holds alike with others, and what is known of it.

    Attributes:
        groups: of the ranks.
        held: what this rank holds.
    """

    def __init__(self, groups: Groups, held: Held) -> None:
        self.groups, self.held = groups, held
        self._guard = Guard(groups)

    def told(self, rank: int, fingerprints: Fingerprints) -> tuple[np.ndarray, bool]:
        """Return what this rank tells with its record.

        Returns:
            `(2 * WORDS,)` of int64: a digest of what all ranks hold, and one of what is guarded of
            its group; and whether it has pieces that were never compared.
        """
        group, pieces = self.groups.of(rank), self._sorted()
        of_all = [piece for piece in pieces if piece.is_of_all]
        others = [piece for piece in pieces if not piece.is_of_all]
        guarded = [piece for piece in others if self._guard.guards(piece.key, group)]
        digests = [
            digest_of_all(digests_of([piece.read() for piece in some], fingerprints))
            for some in (of_all, guarded)
        ]
        return np.concatenate(digests), not self._guard.knows([piece.key for piece in others])

    def differ(self, told: np.ndarray) -> bool:
        """Return whether ranks have told, `(p, 2 * WORDS)`, what should be the same and is not."""
        of_all, of_groups = told[:, :WORDS], told[:, WORDS:]
        return bool(
            (of_all != of_all[0]).any()
            or any(
                (of_groups[list(members)] != of_groups[members[0]]).any()
                for members in self.groups.members
            )
        )

    def compare(
        self,
        collectives: Collectives,
        fingerprints: Fingerprints,
        dissenters: Collection[int] = (),
    ) -> Findings:
        """Compare all pieces, find causes, and heal; all ranks come here together.

        Args:
            collectives: of the ranks.
            fingerprints: of this step.
            dissenters: the ranks that want a cause.
        """
        pieces = {piece.key: piece for piece in self._sorted()}
        held, batches = self._gather(collectives, fingerprints, pieces)
        of_all = {key: each for key, each in held.items() if pieces[key].is_of_all}
        of_groups = {key: each for key, each in held.items() if not pieces[key].is_of_all}
        differences = self._guard.compare(of_all, of_groups)
        decided = [each for each in differences if each.donors]
        healed = heal(collectives, decided, pieces, held, fingerprints)
        causes = {rank: self._cause(rank, decided, healed, batches) for rank in dissenters}
        odd = {rank for each in decided for rank in each.odd} - causes.keys()
        return Findings(
            causes,
            {rank: self._cause(rank, decided, healed, batches) for rank in sorted(odd)},
            {each.key: each.team for each in differences if not each.donors},
        )

    def _sorted(self) -> list[Piece]:
        return sorted(self.held.pieces(), key=lambda piece: piece.key)

    def _gather(
        self, collectives: Collectives, fingerprints: Fingerprints, pieces: Mapping[str, Piece]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the digests of all ranks: of each piece that all have, and of their batches."""
        words = [piece.read() for piece in pieces.values()]
        names = [f"{key} {len(each)}" for key, each in zip(pieces, words, strict=True)]
        batch = self.held.batch()
        mine = [
            np.array(digest_of_text("\n".join(names)), np.int64),
            np.zeros(WORDS, np.int64) if batch is None else batch,
            digests_of(words, fingerprints).ravel(),
        ]
        length = sum(map(len, mine))
        gathered = collectives.allgather("replicas", np.concatenate([[length], *mine])).wait()
        everyones = []
        while len(gathered):
            everyones.append(gathered[1 : 1 + gathered[0]].reshape(-1, WORDS))
            gathered = gathered[1 + gathered[0] :]
        if all((theirs[0] == mine[0]).all() for theirs in everyones):
            lists = [names] * collectives.size
        else:
            lists = share(collectives, "replicas.names", names)
        tables = [
            dict(zip(listed, theirs[2:], strict=True))
            for listed, theirs in zip(lists, everyones, strict=True)
        ]
        held = {
            key: np.stack([table[name] for table in tables])
            for key, name in zip(pieces, names, strict=True)
            if all(name in table for table in tables)
        }
        return held, np.stack([theirs[1] for theirs in everyones])

    def _cause(
        self,
        rank: int,
        differences: Sequence[Difference],
        healed: Collection[tuple[int, str]],
        batches: np.ndarray,
    ) -> Cause:
        """Return why a rank computed something else than its group, or may."""
        keys = [each.key for each in differences if rank in each.odd]
        state = [key for key in keys if not key.startswith(f"{RANDOM}/")]
        if keys:
            is_healed = all((rank, key) in healed for key in keys)
            return Cause(STATE if state else OF_RANDOM, tuple(state or keys), is_healed)
        if not batches.any(axis=1).all():
            return Cause(DATA_OR_COMPUTE)
        members = list(self.groups.members[self.groups.of(rank)])
        same = (batches[members] == batches[rank]).all(axis=1).sum()
        return Cause(COMPUTE if 2 * same > len(members) else DATA)


def digest_of_batch(digests: Sequence[np.ndarray]) -> np.ndarray:
    """Digest the digests of a batch's parts: `(WORDS,)` of int64; not zeros."""
    bits = hashlib.blake2b(b"".join(each.tobytes() for each in digests), digest_size=8 * WORDS)
    return np.frombuffer(bits.digest(), np.int64)
