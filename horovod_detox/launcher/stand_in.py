"""What our frontends do for a script that does not know them."""

from typing import Any

from horovod_detox.config import Plan
from horovod_detox.frontend.context import Context
from horovod_detox.frontend.session import Session
from horovod_detox.frontend.watching import watching
from horovod_detox.launcher.random_states import NUMPY, PYTHON, RandomState, align
from horovod_detox.launcher.speech import refuse, say


class Script:
    """A script that does not know this package, and the job that it runs in.

    Attributes:
        group_seed: seeds what the script leaves unseeded.
        session: the session, once Horovod is initialised.
        protected: whether the script has wrapped an optimizer or a tape.
    """

    def __init__(self, group_seed: int = 0) -> None:
        self.group_seed = group_seed
        self.session: Session | None = None
        self.protected = False
        self._told: set[str] = set()

    @property
    def plan(self) -> Plan | None:
        """Return groups and rule; None before Horovod is initialised, and for a single process."""
        return self.session.plan() if self.session else None

    def tell(self, subject: str, text: str) -> None:
        """Say something of a subject, once."""
        if subject not in self._told:
            self._told.add(subject)
            say(f"{subject}: {text}")

    def share(self, what: str, shares: Any, share: Any) -> tuple[Any, Any]:
        """Return how many shares a data set is cut into, and which one to take.

        Args:
            what: cuts it.
            shares, share: as the script wants it; where it counts the ranks, groups take the place
                of ranks.
        """
        if self.plan is None or self.session is None or shares != len(self.session.hosts):
            return shares, share
        groups = self.plan.groups
        self.tell(what, f"deals to {len(groups)} groups instead of {groups.world_size} ranks")
        return len(groups), groups.of(int(share))

    def report(self) -> None:
        """Say what faults there were."""
        ledger = self.session.ledger() if self.session else None
        if ledger and (report := ledger.report()).steps:
            say(str(report))


class Frontend:
    """One of our frontends in a script's job.

    Args:
        script: what is run.
        name: of the module whose place it takes.
        hvd: that module.
        context: the frontend's session.
        state: the framework's random state.
    """

    def __init__(
        self, script: Script, name: str, hvd: Any, context: Context, state: RandomState
    ) -> None:
        self.script = script
        self._name = name
        self._hvd = hvd
        self._context = context
        self._state = state

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Initialise Horovod as the script says, and then DETOX as the command line says."""
        with watching.connecting(self._hvd.gloo_enabled):
            self._hvd.init(*args, **kwargs)
        try:
            self._context.init()
            self.script.session = session = self._context.session()
            plan = session.plan()
            if plan is not None and session.attack is not None:
                session.attack.check(plan.groups)
        except ValueError as error:
            refuse(str(error))
        if plan is not None:
            self.script.tell(self._name, describe(plan))
            self._align(self._hvd.global_process_set, plan, self.script.group_seed)

    def before_engines(self, process_set: Any) -> None:
        """Align the random states of the ranks that are about to train together."""
        self.script.protected = True
        plan = self._context.session().plan(process_set.ranks)
        if plan is not None and process_set.included():
            self._align(process_set, plan)

    def _align(self, process_set: Any, plan: Plan, seed: int | None = None) -> None:
        collectives = self._context.collectives("detox.random", process_set)
        names = align((PYTHON, NUMPY, self._state), collectives, plan.groups, seed)
        if names and seed is not None:
            text = f"seeded alike inside each group, by {seed} (--group-seed)"
            self.script.tell(f"random states of {', '.join(names)}", text)
        elif names:
            text = "differed inside a group; its members now use a seed of its lowest rank"
            self.script.tell(f"random states of {', '.join(names)}", text)


def describe(plan: Plan) -> str:
    """Say how the ranks are grouped, and what that means for the batch.

    >>> from horovod_detox import Detox
    >>> describe(Detox(group_size=3).plan(7))
    '7 ranks in 2 groups of 3 to 4. The global batch is that of 2 ranks, also where the script \
scales its learning rate by hvd.size()'
    """
    groups = plan.groups
    sizes = sorted({len(members) for members in groups.members})
    text = f"{groups.world_size} ranks in {len(groups)} groups of {' to '.join(map(str, sizes))}"
    if sizes[-1] == 1:
        return text
    return (
        f"{text}. The global batch is that of {len(groups)} ranks, also where the script scales "
        "its learning rate by hvd.size()"
    )
