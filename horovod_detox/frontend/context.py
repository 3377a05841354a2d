"""A job as one process sees it: initialisation, and what a script may ask about its groups."""

import atexit
import logging
import random
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import numpy as np

from horovod_detox.arrays import compilation
from horovod_detox.attacks import Attack
from horovod_detox.config import Detox
from horovod_detox.determinism.conditions import Conditions
from horovod_detox.determinism.first_step import FirstStep
from horovod_detox.engine import Engine
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.presence import Presence
from horovod_detox.exchange.sharing import share
from horovod_detox.exchange.waits import waits
from horovod_detox.frontend.engines import Engines, Name, Names
from horovod_detox.frontend.joining import rejoin
from horovod_detox.frontend.session import Session, agree
from horovod_detox.frontend.unnamed import unnamed
from horovod_detox.frontend.watching import watching
from horovod_detox.vote.agreement import RULES, NoAgreement, agreed, votes_of
from horovod_detox.vote.groups import group_seeds
from horovod_detox.vote.report import Event, FaultReport
from horovod_detox.vote.work import Tally
from horovod_detox.watch.judge import PATIENCE

SETUP_TIMEOUT = 300.0
MARGIN = 30.0
"""Seconds that a rank waits longer than those who watch the job let it."""
CHANGED = (
    "the job was initialised with {before} ranks and now has {now}: groups cannot change during a "
    "job (elastic resets are not supported)"
)
_NONE = object()

log = logging.getLogger("horovod_detox")


class Context:
    """The session of this process, reached through one of Horovod's frontends.

    Args:
        hvd: `horovod.torch` or `horovod.tensorflow`.
        collectives: puts it behind the seam: `collectives(scope, timeout, process_set)`, of which
            the scope may be a `Name`.
        conditions: returns what may change the bits that this process computes.

    Attributes:
        make_collectives: the same; benchmarks wrap it to see the traffic of a job.
        before_engines: called with the process set of every optimizer that is about to be wrapped;
            the launcher of unmodified scripts sets it.
    """

    def __init__(
        self,
        hvd: Any,
        collectives: Callable[[Any, float, Any], Collectives],
        conditions: Callable[[], Conditions],
    ) -> None:
        self._hvd = hvd
        self._conditions = conditions
        self.make_collectives = collectives
        self.before_engines: Callable[[Any], None] = lambda process_set: None
        self._session: Session | None = None
        self._names = Names()
        self._live: WeakSet[Engine] = WeakSet()  # of all ranks
        self._presence = Presence()

    def init(self, *args: Any, detox: Detox | None = None, **kwargs: Any) -> None:
        """Initialise Horovod and agree on the settings with all ranks.

        Called again, without settings or with the same, it does nothing more than Horovod does.

        Args:
            *args, **kwargs: as for Horovod's own `init`.
            detox: the settings, the same on every rank; None: from HOROVOD_DETOX_* variables.

        Raises:
            ValueError: on every rank, when some rank's settings are wrong or differ from another's.
        """
        if not self._hvd.is_initialized():
            watching.end()
        with watching.connecting(self._hvd.gloo_enabled):
            self._hvd.init(*args, **kwargs)
        if self._is_initialised(detox):
            return
        if self._session is not None and self._hvd.rank() == 0:
            log.warning(
                "hvd.init() was called again with other settings: the fault report begins anew, "
                "without the optimizers that were wrapped before"
            )
        self.forget()
        atexit.unregister(self._tell_who_is_slow)
        atexit.register(self._tell_who_is_slow)
        everybody = self._hvd.global_process_set
        watching.limit(SETUP_TIMEOUT)
        collectives = self.make_collectives("detox.init", SETUP_TIMEOUT, everybody)
        self._session = agree(collectives, detox)
        unnamed.begin_anew()
        if collectives.size > 1:
            watching.begin(collectives, self._session.hosts, self._session.config.timeout)
            prepare_kernels(collectives, is_first_of_host=self._hvd.local_rank() == 0)

    def shutdown(self) -> None:
        """Shut Horovod down and forget the session."""
        self._tell_who_is_slow()
        watching.end()
        self._hvd.shutdown()
        self._names = Names()
        self.forget()

    def add_process_set(self, process_set: Any) -> Any:
        """Add a process set, as Horovod does."""
        with watching.connecting(self._hvd.gloo_enabled):
            return self._hvd.add_process_set(process_set)

    def _tell_who_is_slow(self) -> None:
        """Warn, at the end of a job, of ranks that it has lost much time by."""
        session, seconds = self._session, waits.pace.seconds()
        ledger = session.ledger() if session and session.rank == 0 else None
        for rank, late in ledger.report().late.items() if ledger else ():
            if late.matters(seconds):
                log.warning(
                    "rank %d is slow: the others waited for it %s of %.0f s", rank, late, seconds
                )

    def reset(self) -> None:
        """Begin anew with the ranks that an elastic job has now, under the same settings."""
        config = self._session.config if self._session else None
        self.shutdown()
        self.init(detox=config)

    def forget(self) -> None:
        """Forget the session."""
        self._session, self._presence = None, Presence()
        self._live.clear()

    def _is_initialised(self, detox: Detox | None) -> bool:
        """Return whether there is a session of this job, with these settings if any are given."""
        session = self._session
        if session is None or len(session.hosts) != self._hvd.size():
            return False
        return detox is None or detox == session.config

    def session(self) -> Session:
        """Return the session of this process.

        Raises:
            RuntimeError: when there is none, or the job has another size than it was made for.
        """
        if self._session is None:
            raise RuntimeError(
                "horovod_detox is not initialised: call hvd.init() of horovod_detox, not of horovod"
            )
        if self._hvd.size() != len(self._session.hosts):
            now = self._hvd.size()
            raise RuntimeError(CHANGED.format(before=len(self._session.hosts), now=now))
        return self._session

    def engines(
        self, process_set: Any, tally: Tally, attack: Attack | None = None
    ) -> Engines | None:
        """Return the maker of one optimizer's engines; None where there is nobody to vote with.

        Args:
            process_set: the ranks that train together.
            tally: of the optimizer, for reports.
            attack: what faulty ranks send, for a drill; None: the one of HOROVOD_DETOX_ATTACK.
        """
        session = self.session()
        self.before_engines(process_set)
        attack = attack or session.attack
        plan = session.plan(process_set.ranks)  # an error is raised on all ranks that come here
        if not process_set.included():
            return None
        if plan is None:
            if attack is not None:
                warnings.warn("the attack is ignored: there is only one rank", stacklevel=4)
            return None

        def collectives(name: Name) -> Collectives:
            return self.collectives(name, process_set)

        def first_step() -> FirstStep | None:
            if not session.config.preflight or session.config.tolerance:  # bits then do not count
                return None
            is_drill = attack is not None
            ranks = process_set.ranks
            return FirstStep(plan.groups, self._conditions, ranks, is_drill, session.told)

        size = self._hvd.size()

        def check() -> None:
            if self._hvd.size() != size:
                raise RuntimeError(CHANGED.format(before=size, now=self._hvd.size()))

        def enter(engine: Engine) -> None:
            engine.check = check
            if process_set.process_set_id == 0:
                self._live.add(engine)
                engine.presence = self._presence
            else:
                engine.ranks = tuple(process_set.ranks)

        ledger = session.ledger(process_set.ranks)
        return Engines(
            plan,
            collectives,
            ledger,
            attack,
            tally,
            lambda: self.name(process_set),
            first_step,
            enter,
        )

    def name(self, process_set: Any) -> Name:
        """Return a name that tells something from all else among the ranks of a set."""
        return self._names.of(process_set.ranks)

    def join(self, wait: Callable[[], int]) -> int:
        """Let this rank have no more data, until no rank has; return the last that had some.

        Args:
            wait: Horovod's own `join`.

        Raises:
            ValueError: with a tolerance.
            RuntimeError: when there is an optimizer, and none has exchanged anything yet.
        """
        session = self.session()
        if session.config.tolerance:
            raise ValueError(
                f"tolerance = {session.config.tolerance}: while ranks have joined, copies are "
                "compared bit by bit. Use tolerance=0, or give every rank equally many batches"
            )
        engine = self._presence.next()
        if engine is not None:
            engine.leave()
        elif self._live:
            raise RuntimeError(
                "hvd.join() was called before the first exchange of gradients, which would crash "
                "Horovod. Give every rank at least one batch"
            )
        last, plan = wait(), session.plan()
        unnamed.begin_anew()
        self._presence.some_have_joined = False  # also where no optimizer is left
        if plan is not None:
            engines = {str(engine.name): engine for engine in self._live if engine.has_begun}
            self._presence.reached = rejoin(self.collectives("detox.join"), plan.groups, engines)
        return last

    def collectives(self, scope: Any, process_set: Any = None) -> Collectives:
        """Return the collectives of some ranks, by default of all.

        Their waits are ended by those who watch the job; their own limit is for when nobody does.

        Args:
            scope: how their names begin, a text or a `Name`.
            process_set: the ranks.
        """
        timeout = PATIENCE * self.session().config.timeout + MARGIN
        return self.make_collectives(scope, timeout, process_set or self._hvd.global_process_set)

    def group(self) -> int:
        """Return the index of this rank's group."""
        plan = self.session().plan()
        return plan.groups.of(self._hvd.rank()) if plan else 0

    def group_rank(self) -> int:
        """Return this rank's position among the members of its group."""
        plan = self.session().plan()
        return plan.groups.members[self.group()].index(self._hvd.rank()) if plan else 0

    def group_size(self) -> int:
        """Return the number of ranks in this rank's group."""
        plan = self.session().plan()
        return len(plan.groups.members[self.group()]) if plan else 1

    def num_groups(self) -> int:
        """Return k, the number of groups."""
        plan = self.session().plan()
        return len(plan.groups) if plan else 1

    def fault_report(self, process_set: Any = None) -> FaultReport:
        """Return the account of faults among the ranks of a set, the same on each of them.

        Args:
            process_set: None: all ranks.
        """
        ranks = (process_set or self._hvd.global_process_set).ranks
        ledger = self.session().ledger(ranks)
        return ledger.report() if ledger else FaultReport()

    def reset_fault_report(self, process_set: Any = None) -> None:
        """Begin the account of faults anew, as between two trainings of one process.

        All ranks of the set call this between the same steps.

        Args:
            process_set: None: all ranks.
        """
        ledger = self.session().ledger((process_set or self._hvd.global_process_set).ranks)
        if ledger:
            ledger.begin_anew()

    def scrub(self) -> FaultReport:
        """Compare now what ranks hold alike, and heal what differs, as before a checkpoint.

        All ranks call this between two steps. It looks at optimizers that have stepped.

        Returns:
            the account of faults, with what was found.

        Raises:
            ExchangeTimeout: when some rank does not take part.
        """
        begun = {str(engine.name): engine for engine in self._live if engine.has_begun}
        if self.session().plan() is not None:
            names = share(self.collectives("detox.scrub"), "engines", sorted(begun))
            for name in sorted(set(begun).intersection(*names)):
                begun[name].scrub()
        return self.fault_report()

    def on_fault(self, callback: Callable[[Event], None]) -> None:
        """Call `callback(event)` on this rank for every fault among all ranks from now on."""
        ledger = self.session().ledger()
        if ledger:
            ledger.subscribe(callback)

    def agree(
        self, value: Any, by: str = "majority", default: Any = _NONE, process_set: Any = None
    ) -> Any:
        """Let all ranks agree on one value, given what each of them thinks, and return it.

        The members of each group, which have the same data, take a vote. A rank that disagrees with
        most of its group does not count, and is named in a warning.

        Args:
            value: what this rank thinks: None, a truth value, a number (also in a tensor), a text,
                or lists or dictionaries of such.
            by: how the groups' votes come to one value: "majority" (what more than half of the
                groups say), or, for numbers, "median" or "mean".
            default: returned where there is no such value; if it is not given, `NoAgreement` is
                raised on all ranks.
            process_set: the ranks to ask; None: all.

        Raises:
            NoAgreement: see `default`.
            ValueError: for another `by`.
            TypeError: for a value of another kind.
            ExchangeTimeout: when some rank does not take part.
        """
        if by not in RULES:
            raise ValueError(f"by = {by!r}: it must be one of {', '.join(RULES)}")
        process_set = process_set or self._hvd.global_process_set
        session = self.session()
        plan = session.plan(process_set.ranks)
        if plan is None:
            return value
        collectives = self.collectives("detox.agree", process_set)
        value = value.item() if hasattr(value, "item") else value
        votes, others = votes_of(share(collectives, "value", value), plan.groups)
        names = [process_set.ranks[rank] for rank in others]
        if names and collectives.rank == 0 and (told := f"agree {names}") not in session.told:
            session.told.add(told)
            log.warning("hvd.agree: ranks %s disagree with most of their group", names)
        try:
            return agreed(votes, plan.groups, by)
        except NoAgreement:
            if default is _NONE:
                raise
            return default

    def seed_python(self, seed: int) -> int:
        """Seed python and NumPy by group; return a seed for the framework, also by group."""
        python, numpy, framework = group_seeds(seed, self.group())
        random.seed(python)
        np.random.seed(numpy)
        return framework


def prepare_kernels(collectives: Collectives, is_first_of_host: bool) -> None:
    """Let one rank compile the kernels, if need be, then one of each other host; the others load.

    Where the hosts share the folder of compiled code, only the first has to.
    """
    for turn in (collectives.rank == 0, is_first_of_host):
        if turn:
            compilation.prepare()
        collectives.allgather("compilation", np.zeros(1, np.int64)).wait()
    compilation.prepare()
