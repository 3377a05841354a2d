"""The engines of one optimizer: what exchanges its gradients, and the losses of its closures."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

import numpy as np

from horovod_detox.attacks import Attack
from horovod_detox.config import Detox, Plan
from horovod_detox.determinism.first_step import FirstStep
from horovod_detox.drill import DrilledEngine
from horovod_detox.engine import Engine
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.replicas.replicas import Held, Replicas
from horovod_detox.replicas.upkeep import Upkeep
from horovod_detox.vote.fingerprint import digest
from horovod_detox.vote.ledger import Ledger
from horovod_detox.vote.work import Tally


class Name:
    """A name that is given when it is first asked for.

    Only then all ranks are there: one of them may have made what no other has, and never use it.

    >>> numbers = iter(range(9))
    >>> first, second = (Name(lambda: f"engine {next(numbers)}") for _ in range(2))
    >>> str(second), str(first), str(second)
    ('engine 0', 'engine 1', 'engine 0')
    """

    def __init__(self, give: Callable[[], str]) -> None:
        self._give = give
        self._name: str | None = None

    def __str__(self) -> str:
        """Return the name."""
        if self._name is None:
            self._name = self._give()
        return self._name


class Names:
    """Names of what exchanges, numbered for each set of ranks; no other set gets the same.

    Horovod's own number of a process set will not do: it comes again when a set is removed, for
    ranks of which some have used its names before.

    >>> names = Names()
    >>> a, b, c = names.of([0, 1]), names.of([1, 2]), names.of([0, 1])
    >>> str(a), str(b), str(c)
    ('detox.e72b7bee.0', 'detox.29155335.0', 'detox.e72b7bee.1')
    """

    def __init__(self) -> None:
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(count)

    def of(self, ranks: Sequence[int]) -> Name:
        """Return the next name for a set of ranks."""
        text = ",".join(map(str, ranks))
        scope = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return Name(lambda: f"detox.{scope}.{next(self._numbers[scope])}")


def digest_of(weights: Iterable[np.ndarray]) -> str:
    """Return a digest of the bits of arrays; "" if there are none.

    >>> digest_of([])
    ''
    >>> digest_of([np.zeros(2), np.ones(3)]) == digest_of([np.zeros(2), -np.ones(3)])
    False
    """
    digests = b"".join(digest(array).tobytes() for array in weights)
    return hashlib.blake2b(digests, digest_size=16).hexdigest() if digests else ""


class Engines:
    """Makes the engines of one optimizer, or of all tapes.

    Attributes:
        plan: groups and rule of the ranks.
        tally: of the optimizer.

    Args:
        plan: likewise.
        make_collectives: puts the ranks behind the seam, given a name.
        ledger: the account of their faults; None: a new one for each engine.
        attack: what faulty ranks send; None: nothing.
        tally: for reports; None: they do not tell of the optimizer.
        name: makes a name that tells an engine from all others of a job.
        first_step: makes what checks a first exchange.
        enter: is told every engine.
    """

    def __init__(
        self,
        plan: Plan,
        make_collectives: Callable[[Name], Collectives],
        ledger: Ledger | None,
        attack: Attack | None,
        tally: Tally | None = None,
        name: Callable[[], Name] = lambda: Name(lambda: "detox"),
        first_step: Callable[[], FirstStep | None] = lambda: None,
        enter: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        self.plan = plan
        self.tally = tally or Tally()
        self._make_collectives = make_collectives
        self._ledger = ledger
        self._attack = attack
        self._name = name
        self._first_step = first_step
        self._enter = enter
        if ledger and tally:
            ledger.account_for(tally)

    def make_for_losses(self) -> Engine:
        """Make an engine for losses: the median of the groups' votes, whatever gradients go by."""
        given, groups = self.plan.config, self.plan.groups
        config = Detox(
            given.group_size,
            timeout=given.timeout,
            tolerance=given.tolerance,
            one_round_bytes=given.one_round_bytes,
        )
        plan = Plan(config, groups, config.fit(groups), config.hierarchy())
        name = self._name()
        engine = Engine(plan, self._make_collectives(name), self._ledger, name=name)
        self._enter(engine)
        return engine

    def make_for_gradients(
        self,
        factor: float = 1,
        skips: bool = False,
        weights: Callable[[], Iterable[np.ndarray]] = tuple,
        held: Held | None = None,
    ) -> "Engine | DrilledEngine":
        """Make an engine that corrupts the copies of faulty ranks, if this is a drill.

        Args:
            factor: what the update will be multiplied by, the same on every rank.
            skips: as of `Engine`.
            weights: returns what this rank trains.
            held: what this rank holds alike with others; None: that is not looked after.
        """
        name = self._name()
        collectives = self._make_collectives(name)
        engine = Engine(
            self.plan,
            collectives,
            self._ledger,
            self._first_step(),
            f"times {factor}",
            skips,
            name=name,
            tally=self.tally,
            weights=lambda: digest_of(weights()),
        )
        self._enter(engine)
        config, groups = self.plan.config, self.plan.groups
        if held is not None and not config.tolerance and max(map(len, groups.members)) > 1:
            of_ranks, ledger = Replicas(groups, held), engine.ledger
            engine.upkeep = Upkeep(of_ranks, collectives, ledger, config.scrub_every)
            held.enter(engine)
        if self._attack is None:
            return engine
        beside = Name(lambda: f"{name}.drill")
        return DrilledEngine(engine, self._attack, self._make_collectives(beside))
