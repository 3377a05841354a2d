"""The session of this process: initialisation and what a script may ask about its groups."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from horovod_detox.config import Detox, Plan
from horovod_detox.engine import Engine
from horovod_detox.faults import Event, FaultReport
from horovod_detox.session import Session, agree
from horovod_detox.torch.collectives import HorovodCollectives

SETUP_TIMEOUT = 300.0
_session: Session | None = None
_optimizers: Counter[int] = Counter()  # made so far on each process set, for unique names


def init(*args: Any, detox: Detox | None = None, **kwargs: Any) -> None:
    """Initialise Horovod and agree on the settings with all ranks.

    Args:
        *args, **kwargs: as for `horovod.torch.init`.
        detox: the settings, the same on every rank; None: from HOROVOD_DETOX_* variables.

    Raises:
        ValueError: on every rank, when some rank's settings are wrong or differ from another's.
    """
    global _session
    hvd.init(*args, **kwargs)
    _session = None
    _session = agree(HorovodCollectives("detox.init", SETUP_TIMEOUT), detox)


def shutdown() -> None:
    """Shut Horovod down and forget the session."""
    global _session
    hvd.shutdown()
    _session = None
    _optimizers.clear()


def session() -> Session:
    """Return the session of this process.

    Raises:
        RuntimeError: when there is none, or the job has another size than it was made for.
    """
    if _session is None:
        raise RuntimeError("horovod_detox has not been initialised; use horovod_detox.torch.init()")
    if hvd.size() != len(_session.hosts):
        raise RuntimeError(
            f"the job was initialised with {len(_session.hosts)} ranks and now has {hvd.size()}: "
            "groups cannot change during a job (elastic resets are not supported)"
        )
    return _session


class Engines:
    """The engines of one optimizer; all ranks of the set make them in the same order.

    Attributes:
        plan: groups and rule of the ranks.
    """

    def __init__(self, plan: Plan, process_set: Any) -> None:
        self.plan = plan
        self._process_set = process_set
        number = _optimizers[process_set.process_set_id]
        _optimizers[process_set.process_set_id] += 1
        self._scope = f"detox.{process_set.process_set_id}.{number}"

    def collectives(self, name: str) -> HorovodCollectives:
        """Return the collectives of the ranks under a name of this optimizer."""
        timeout = session().config.timeout
        return HorovodCollectives(f"{self._scope}.{name}", timeout, self._process_set)

    def make(self, name: str) -> Engine:
        """Make an engine of this optimizer."""
        ledger = session().ledger(self._process_set.ranks)
        return Engine(self.plan, self.collectives(name), ledger)


def group() -> int:
    """Return the index of this rank's group."""
    plan = session().plan()
    return plan.groups.of(hvd.rank()) if plan else 0


def group_rank() -> int:
    """Return this rank's position among the members of its group."""
    plan = session().plan()
    return plan.groups.members[group()].index(hvd.rank()) if plan else 0


def group_size() -> int:
    """Return the number of ranks in this rank's group."""
    plan = session().plan()
    return len(plan.groups.members[group()]) if plan else 1


def num_groups() -> int:
    """Return k, the number of groups."""
    plan = session().plan()
    return len(plan.groups) if plan else 1


def fault_report(process_set: Any = hvd.global_process_set) -> FaultReport:
    """Return the account of faults among the ranks of a set, the same on each of them."""
    ledger = session().ledger(process_set.ranks)
    return ledger.report() if ledger else FaultReport()


def on_fault(callback: Callable[[Event], None]) -> None:
    """Call `callback(event)` on this rank for every fault among all ranks from now on."""
    ledger = session().ledger()
    if ledger:
        ledger.subscribe(callback)


def seed_group(seed: int) -> None:
    """Seed python, NumPy and torch alike in the ranks of a group, differently across groups."""
    state = np.random.SeedSequence([seed, group()]).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]))
