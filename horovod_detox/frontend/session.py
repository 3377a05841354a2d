"""What the ranks of a job agree on when they start."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from horovod_detox import attacks, process
from horovod_detox.config import PREFIX, Detox, Plan
from horovod_detox.determinism.conditions import ranks_by_value, rounding
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.sharing import share
from horovod_detox.planning.capture import stands, worst_host
from horovod_detox.vote.ledger import Ledger

log = logging.getLogger("horovod_detox")


class Session:
    """A job's settings, the same on every rank, and the accounts of its faults.

    Attributes:
        config: the settings.
        hosts: the host of every rank.
        rank: this process; of some ranks, the lowest logs their faults.
        attack: the attack of the drill asked for by HOROVOD_DETOX_ATTACK; None: none.
        rounding: what the last bits of an aggregation depend on, by rank; empty: the same on all.
        told: warnings that were given and are not to be given again.
    """

    def __init__(
        self,
        config: Detox,
        hosts: Sequence[str],
        rank: int = 0,
        attack: attacks.Attack | None = None,
        rounding: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.rounding = tuple(rounding)
        self.hosts = tuple(hosts)
        self.rank = rank
        self.attack = attack
        self.told: set[str] = set()
        self._plans: dict[tuple[int, ...], Plan | None] = {}
        self._ledgers: dict[tuple[int, ...], Ledger] = {}
        self.plan()

    def plan(self, ranks: Sequence[int] | None = None) -> Plan | None:
        """Plan for some ranks, by default for all; None for a single one, which trains plainly.

        The groups of the plan count the ranks from 0.
        """
        team = tuple(ranks or range(len(self.hosts)))
        if team not in self._plans:
            hosts = [self.hosts[rank] for rank in team]
            config = self._config(team)
            self._plans[team] = config.plan(len(team), hosts) if len(team) > 1 else None
        return self._plans[team]

    def _config(self, team: Sequence[int]) -> Detox:
        """Return the settings for some ranks: one of them computes for all if these may differ.

        Where every rank computes the whole update, those that round otherwise would hold another.
        """
        kinds = {self.rounding[rank] for rank in team} if self.rounding else set()
        computed_by_all = self.config.exchange != "sharded" or self.config.one_round_bytes > 0
        if len(kinds) < 2 or not computed_by_all:
            return self.config
        if self.rank == team[0]:
            log.warning(
                "ranks may round differently (%s): each part of the update is computed by one "
                "rank for all, as with Detox(exchange='sharded', one_round_bytes=0)",
                " but ".join(sorted(kinds)),
            )
        return replace(self.config, exchange="sharded", one_round_bytes=0)

    def ledger(self, ranks: Sequence[int] | None = None) -> Ledger | None:
        """Return the account of some ranks, by default of all; None for a single one."""
        team = tuple(ranks or range(len(self.hosts)))
        plan = self.plan(team)
        if plan is None:
            return None
        if team not in self._ledgers:
            hosts = [self.hosts[rank] for rank in team]
            self._ledgers[team] = Ledger(plan.groups, team, self.rank == team[0], hosts)
        return self._ledgers[team]

    def host_risk(self) -> str:
        """Say what the worst host could do to groups that are spread to outvote it; else nothing.

        Whoever gives `num_byzantine` has said what to be prepared for, and it was checked.
        """
        plan = self.plan()
        prepared = self.config.placement != "spread" or self.config.num_byzantine is not None
        if plan is None or prepared or self.config.group_size == 1 or len(set(self.hosts)) == 1:
            return ""
        host, lost = worst_host(self.hosts, plan.groups)
        if not any(lost):
            return ""
        does = [f"{verb} {n}" for verb, n in zip(("capture", "tie"), lost, strict=True) if n]
        verdict = "tolerate" if stands(self.config, plan.groups, lost) else "do not tolerate"
        return (
            f"the vote does not protect from a whole bad host: {host} could {' and '.join(does)} "
            f"of {len(plan.groups)} groups, which the rules {verdict} (docs/hosts.md)"
        )


def agree(collectives: Collectives, detox: Detox | None = None) -> Session:
    """Compare the settings of all ranks and form the session.

    Args:
        collectives: of all ranks.
        detox: the settings; None: from the environment.

    Raises:
        ValueError: on every rank, when a rank's settings are wrong or differ from another's.
    """
    mine = {"host": process.host()}
    config, attack = Detox(), None
    try:
        config = detox or Detox.from_environment()
        spec = os.environ.get(PREFIX + "ATTACK")
        attack = attacks.from_spec(spec) if spec else None
        mine |= {"rounding": rounding(), "settings": config.describe() | {"attack": spec or "none"}}
    except ValueError as error:
        mine |= {"error": str(error)}
    everyone = share(collectives, "settings", mine)
    for rank, theirs in enumerate(everyone):
        if "error" in theirs:
            raise ValueError(f"rank {rank}: {theirs['error']}")
    _check_equal([theirs["settings"] for theirs in everyone])
    if collectives.size == 1:
        log.warning(
            "only one rank: it trains without DETOX, as there is no other rank to vote with"
        )
    hosts, kinds = ([theirs[fact] for theirs in everyone] for fact in ("host", "rounding"))
    session = Session(config, hosts, collectives.rank, attack, kinds)
    if collectives.rank == 0 and (risk := session.host_risk()):
        log.warning("%s", risk)
    return session


def _check_equal(settings: list[dict[str, str]]) -> None:
    """Raise when a field is not the same on every rank."""
    for name in settings[0]:
        having = ranks_by_value(settings, name)
        if len(having) > 1:
            found = " but ".join(
                f"{value} on ranks {', '.join(map(str, ranks))}" for value, ranks in having.items()
            )
            raise ValueError(f"the ranks' settings differ: {name} is {found}")
