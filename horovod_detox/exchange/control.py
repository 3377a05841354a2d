"""What the ranks tell each other beside the copies, and what follows if it is not the usual.

One record goes with every message that begins an exchange, so that it takes no message of its own.
From the records of all, every rank sees alike whether the exchange is an ordinary one. If it is
not, all of them go through the same control rounds, which deal with it, and then on or to an end.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.sharing import share
from horovod_detox.packing.layout import Layout, difference

RECORD = np.dtype(
    [
        ("step", np.int64),  # the number of the exchange
        ("layout", np.int64, 2),  # the digest of what the words of the copy are
        ("update", np.int64, 2),  # the digest of the update of the exchange before
        ("steps", np.int64),  # how often the optimizer has stepped since that exchange
        ("settings", np.int64, 2),  # the digest of what this rank was told to do
        ("flags", np.int64),  # what is not the usual, see below
        ("replicas", np.int64, 4),  # digests of what ranks hold alike, when that is compared
        ("waited", np.int64),  # microseconds that this rank waited in the exchange before
    ]
)
"""What a rank tells all others with every exchange."""
_WORDS = RECORD.itemsize // 8
_USUAL = _WORDS - 5
"""So many words of a record are usually the same on all ranks: all but the last two fields."""
INCOMPLETE = 1
"""The flag of a rank that has not all of its gradients: it sends no copy beside the record."""
JOINED = 2
"""The flag of a rank that has no more data: it will take part in nothing until all others join."""
STOPS = 4
"""The flag of a rank that wants to end the training, and trains on until most want it."""
UNKNOWN = 8
"""The flag of a rank that holds what was never compared with others."""
WROTE = 16
"""The flag of a rank that has written files since what it holds was last compared."""
FLAGS = INCOMPLETE | JOINED | STOPS | UNKNOWN | WROTE
ENTROPY = 32
"""Random bytes of each rank, and of the secret."""


def is_incomplete(told: np.ndarray) -> bool:
    """Return whether the rank that told this has not all of its gradients."""
    return bool(told[:_WORDS].view(RECORD)["flags"][0] & INCOMPLETE)


class RanksDisagree(RuntimeError):
    """The ranks are not in the same step, or do not hold the same parameters or updates."""


class ParametersDiffer(RanksDisagree):
    """The ranks do not exchange the gradients of the same parameters.

    Attributes:
        lists: of each rank, what its layout says of the parameters.
    """

    def __init__(self, lists: Sequence[Sequence[Any]]) -> None:
        super().__init__(f"the parameters differ between ranks: {difference(lists)}")
        self.lists = lists


class Control:
    """This rank's record of an exchange, and what becomes of everybody's.

    Args:
        collectives: of the ranks.
        step: the number of the exchange.
        layout: of the copy.
        update: `(2,)` of int64, the digest of the latest update.
        steps: how often the optimizer has stepped since.
        settings: two words, the digest of the settings.
        waited: seconds that this rank waited in the exchange before.

    Attributes:
        waited: `(p,)`, the same of all ranks, once they are heard.
        diverged: the ranks that hold another update of the exchange before than most, ascending.
        out_of_step: the ranks whose optimizer has since stepped another number of times.
        leaves: whether this rank has no more data.
        incomplete: the ranks that have not all of their gradients yet.
        joined: the ranks that have no more data; before, all had.
        wants_to_stop: whether this rank wants to end the training.
        stopping: the ranks that want to.
        replicas: `(p, 4)`, what the ranks tell of what they hold alike, once they are heard.
        has_unknown: whether some rank holds what was never compared.
        has_files: whether some rank has written files since what it holds was last compared.
    """

    def __init__(
        self,
        collectives: Collectives,
        step: int,
        layout: Layout,
        update: np.ndarray,
        steps: int,
        settings: tuple[int, int],
        waited: float = 0.0,
    ) -> None:
        self._collectives = collectives
        self._layout = layout
        self.diverged: tuple[int, ...] = ()
        self.out_of_step: tuple[int, ...] = ()
        self.leaves = False
        self.incomplete: set[int] = set()
        self.joined: set[int] = set()
        self.wants_to_stop = False
        self.stopping: set[int] = set()
        self.replicas = np.zeros((0, 4), np.int64)
        self.has_unknown = self.has_files = False
        self.waited = np.zeros(0)
        mine = (step, layout.digest, update, steps, settings, 0, 0, int(1e6 * waited))
        self._record = np.array([mine], RECORD)

    def introduce(self) -> bytes:
        """Compare the records in a round of their own, before a first exchange; agree on a secret.

        Ranks with different settings or parameters could take to different exchanges, in which
        they would wait for each other. In the secret, 32 bytes, the random bytes of all ranks'
        operating systems are mixed, so that one broken generator does no harm.

        Raises:
            RanksDisagree: on every rank, when one is about to do something else.
        """
        told = self.tell(np.frombuffer(os.urandom(ENTROPY), np.int64))
        gathered = self._collectives.allgather("introduction", told).wait()
        gathered = gathered.reshape(self._collectives.size, -1)
        random = self.hear(list(gathered))
        return hashlib.blake2b(np.concatenate(random).tobytes(), digest_size=ENTROPY).digest()

    def tell_of_replicas(self, told: np.ndarray, is_unknown: bool) -> None:
        """Tell the others, with the record, what `replicas.Replicas.told` returns."""
        self._record["replicas"] = told
        self._record["flags"] |= UNKNOWN * is_unknown

    def tell_of_files(self) -> None:
        """Tell the others, with the record, that this rank has written files."""
        self._record["flags"] |= WROTE

    def tell(self, facts: Sequence[int] | np.ndarray = (), is_complete: bool = True) -> np.ndarray:
        """Return this rank's record with facts behind it: `(n,)` of int64."""
        record = self._record.copy()
        if not is_complete:
            record["flags"] |= JOINED if self.leaves else INCOMPLETE
        if self.wants_to_stop:
            record["flags"] |= STOPS
        return np.concatenate([record.view(np.int64), np.asarray(facts, np.int64)])

    def hear(self, told: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the facts of every rank, given what each told; note who is incomplete.

        Raises:
            RanksDisagree: on every rank, when one is about to do something else.
        """
        self._compare(np.concatenate([each[:_WORDS] for each in told]).view(RECORD))
        return [each[_WORDS:] for each in told]

    def _compare(self, records: np.ndarray) -> None:
        """Return if all ranks are about to do the same; else find out what differs, together."""
        self.waited = records["waited"] / 1e6
        self.replicas = records["replicas"]
        usual = records.view(np.int64).reshape(len(records), _WORDS)[:, :_USUAL]
        if (usual == usual[0]).all() and not records["flags"].any():
            return
        if len(np.unique(records["step"])) > 1:
            steps = records["step"].tolist()
            raise RanksDisagree(
                f"the ranks are in different steps: {steps}, by rank. Call step() equally often on "
                "every rank"
            )
        if _differ(records["layout"]):
            lists = share(self._collectives, "parameters", self._layout.parameters)
            raise ParametersDiffer(lists)
        if _differ(records["settings"]):
            raise RanksDisagree(
                f"ranks {_minority(records['settings'])} have other settings or arguments of the "
                "optimizer than most: make them the same on every rank"
            )
        if _differ(records["update"]):
            self.diverged = tuple(_minority(records["update"]))
            if 2 * len(self.diverged) >= len(records):
                step = records["step"][0] - 1
                raise RanksDisagree(
                    f"in step {step} at most half of the ranks computed the same update: ranks "
                    f"{[*self.diverged]} differ from the most frequent one. Use the same "
                    "processors and versions, or Detox(exchange='sharded', one_round_bytes=0)"
                )
        if _differ(records["steps"]):
            self.out_of_step = tuple(_minority(records["steps"]))
            if 2 * len(self.out_of_step) >= len(records):
                raise RanksDisagree(
                    "since the last exchange, the optimizers of the ranks have stepped "
                    f"{records['steps'].tolist()} times, by rank: whether to step must not depend "
                    "on what only one rank sees, such as its loss. Decide together (hvd.agree), or "
                    "step with gradients of zero"
                )
        self.incomplete |= set(np.flatnonzero(records["flags"] & INCOMPLETE).tolist())
        self.joined |= set(np.flatnonzero(records["flags"] & JOINED).tolist())
        self.stopping |= set(np.flatnonzero(records["flags"] & STOPS).tolist())
        self.has_unknown |= bool((records["flags"] & UNKNOWN).any())
        self.has_files |= bool((records["flags"] & WROTE).any())
        if odd := np.flatnonzero(records["flags"] & ~FLAGS).tolist():
            raise RanksDisagree(
                f"ranks {odd} run another version of horovod_detox: install the same everywhere"
            )


def _differ(digests: np.ndarray) -> bool:
    return len(np.unique(digests, axis=0)) > 1


def _minority(digests: np.ndarray) -> list[int]:
    """Return the ranks whose digest is not the most frequent one."""
    _, inverse, counts = np.unique(digests, axis=0, return_inverse=True, return_counts=True)
    return np.flatnonzero(inverse.ravel() != counts.argmax()).tolist()
