"""What aggregation costs as ranks are added.

A rule on the gradients of all p ranks is compared with DETOX: the vote, and the same rule on the
votes. Nobody lies. Rows with a `rule` are times, rows with an `exchange` are bytes sent.
"""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from experiments.cost_page import draw
from horovod_detox import Detox
from horovod_detox.aggregators import Aggregator, by_name, finite_rows
from horovod_detox.config import Plan
from horovod_detox.engine import Engine
from horovod_detox.exchange.aggregation import Columns, aggregate_votes, examine, non_finite_votes
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.collectives import Collectives
from horovod_detox.exchange.cut import cut
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import AT_FIRST, rule_for
from horovod_detox.packing.layout import Layout
from horovod_detox.vote.fingerprint import Fingerprints
from horovod_detox.vote.groups import form_groups
from horovod_detox.vote.majority import Verdict, judge
from measuring.clock import Clock, Operation
from measuring.tables import Row
from measuring.traffic import Traffic

__all__ = ["draw", "flags", "measure"]

RULES = ("median", "trimmed_mean", "geometric_median", "multi_krum", "bulyan")
GROUP_SIZE = 3
BUCKETS = 7
"""So few that every rule just stands one bad bucket: Bulyan needs 4 f + 3."""
FLOAT = 4
FINGERPRINTS = Fingerprints(bytes(32), step=0)
EXCHANGES: dict[str, dict[str, Any]] = {
    "sharded, r = 1": {"group_size": 1},
    "sharded, r = 3": {},
    "sharded, r = 3, 2 witnesses": {"witnesses": 2},
    "leaders, r = 3": {"exchange": "leaders"},
}


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the experiment."""
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[9, 15, 30, 45, 60, 90])
    add("--floats", type=int, nargs="+", default=[100_000, 1_000_000], help="of a gradient; even")
    add("--rules", nargs="+", choices=RULES, default=RULES)
    add("--repeats", type=int, default=7, help="rounds of what one machine does")
    add("--limit", type=float, default=5.0, help="seconds for the rounds of a rule")
    add("--bytes-ranks", type=int, nargs="*", default=[9, 15, 30, 45, 90])
    add("--bytes-floats", type=int, nargs="*", default=[100_000, 1_000_000])
    add("--most", type=int, default=45_000_000, help="numbers of all ranks to count bytes for")


def measure(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the times, then the bytes."""
    for floats in args.floats:
        for p in args.ranks:
            yield from times(p, floats, args)
    for floats in args.bytes_floats:
        for p in args.bytes_ranks:
            if p * floats <= args.most:
                yield from traffic(p, floats)


def times(p: int, floats: int, args: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for every rule, with and without DETOX, as one machine and as one rank."""
    gradients = Gradients(p, floats)
    for name in args.rules:
        rule, detoxes = plain_rule(name, p), plans(name, p)
        for by, works, repeats in (
            ("one machine", OneMachine(gradients), args.repeats),
            ("one rank", OneRank(gradients), 3 * args.repeats),
        ):
            operations = [Operation(partial(works.detox, plan)) for plan in detoxes.values()]
            *measured, vote = Clock(
                repeats=repeats, limit=args.limit, now=time.process_time
            ).compare(Operation(partial(works.plain, rule)), [*operations, Operation(works.vote)])
            row = {"by": by, "ranks": p, "floats": floats, "rule": name}
            yield row | {"scheme": "plain", "f": rule.given_f, "ms": _short(vote["reference_ms"])}
            yield row | {"scheme": "vote alone", "ms": _short(vote["ms"])}
            for (scheme, plan), each in zip(detoxes.items(), measured, strict=True):
                yield row | {"scheme": scheme, "f": plan.rule.outer.given_f} | _times(each)


def plain_rule(name: str, p: int) -> Aggregator:
    """Return a rule for the gradients of p ranks, a ninth of them faulty."""
    rule = by_name(name)
    return rule.default_f(min(p // 9, rule.max_f(p)))


def plans(name: str, p: int) -> dict[str, Plan]:
    """Return DETOX with the same rule on all votes, and on the means of a few buckets of them.

    On all votes it is prepared for a ninth of the ranks, wherever they are, if the rule can be;
    with few buckets for one captured vote.
    """
    found = {}
    try:
        found["DETOX"] = Detox(GROUP_SIZE, outer=name, num_byzantine=p // 9).plan(p)
    except ValueError:
        found["DETOX"] = Detox(GROUP_SIZE, outer=name).plan(p)
    if p // GROUP_SIZE > BUCKETS:
        outer = by_name(name).default_f(1)
        found[f"DETOX, {BUCKETS} buckets"] = Detox(GROUP_SIZE, "mean", outer, BUCKETS).plan(p)
    return found


class Gradients:
    """What p ranks have computed: normally distributed numbers.

    Attributes:
        distinct: `(p, d)`, without redundancy.
        copies: with it; equal inside a group, but each in memory of its own.
        groups, layout, part: of the copies, and of the slices that the vote compares.
    """

    def __init__(self, p: int, floats: int) -> None:
        self.distinct = np.random.default_rng(0).standard_normal((p, floats), dtype=np.float32)
        self.groups = form_groups(p, GROUP_SIZE)
        self.layout = Layout((("gradient", (floats,), "float32"),))
        (self.part,) = cut(self.layout.words, p)
        self.copies = [self.layout.pack([self.distinct[self.groups.of(i)]]) for i in range(p)]

    def examine(self, rank: int) -> np.ndarray:
        """Return the fingerprints of a rank's copy."""
        return examine(FINGERPRINTS, self.layout.buffers, self.copies[rank], self.part.slices)


class OneMachine:
    """What a parameter server or a leader does, which holds the gradients of all ranks."""

    def __init__(self, gradients: Gradients) -> None:
        self._gradients = gradients

    def plain(self, rule: Aggregator) -> None:
        """Aggregate all gradients."""
        rule(self._gradients.distinct)

    def detox(self, plan: Plan) -> None:
        """Vote on all copies and aggregate the votes."""
        aggregate_copies(plan, self._gradients.layout.buffers, self._gradients.copies)

    def vote(self) -> None:
        """Vote on all copies."""
        copies = range(len(self._gradients.copies))
        judge(self._gradients.groups, np.stack([self._gradients.examine(i) for i in copies]))


class OneRank:
    """What rank 0 computes in `sharded`: its own copy examined, its slice aggregated."""

    def __init__(self, gradients: Gradients) -> None:
        self._gradients = gradients
        start, stop = gradients.part.slices[0]
        self._buffers = gradients.layout.buffers.cut(start, stop)
        self._slices = [copy[start:stop].copy() for copy in gradients.copies]
        self._distinct = list(gradients.distinct[:, : self._buffers.segments[0].length].copy())
        self._table = np.stack([gradients.examine(i) for i in range(len(self._slices))])
        self._update = np.empty(stop - start, np.int64)
        self._blocks = gradients.part.blocks_within(0)

    def plain(self, rule: Aggregator) -> None:
        """Look for NaN in its own gradient and aggregate its slice of all ranks'."""
        finite_rows(self._gradients.distinct[:1])
        rule.reduce(self._distinct)

    def detox(self, plan: Plan) -> None:
        """Vote and aggregate its slice of the votes."""
        rule = rule_for(plan, *self.vote())
        leaders = enumerate(plan.groups.leaders)
        votes = {group: self._slices[leader] for group, leader in leaders}
        columns = Columns(self._buffers, votes, AT_FIRST, self._blocks)
        aggregate_votes(rule, [columns], [self._update])

    def vote(self) -> tuple[Verdict, tuple[int, ...]]:
        """Fingerprint its own copy, take all votes and check the slices that it received."""
        self._gradients.examine(0)
        verdict = judge(self._gradients.groups, self._table)
        for leader in self._gradients.groups.leaders:
            words = self._slices[leader]
            FINGERPRINTS.of(words, [(0, len(words))])
        return verdict, non_finite_votes(verdict, self._table)


def traffic(p: int, floats: int) -> Iterator[Row]:
    """Yield what a rank sends with every exchange, in multiples of the gradient."""
    row = {"ranks": p, "floats": floats}
    ring = 2 * (p - 1) / p
    yield row | {"exchange": "allreduce", "sent": _short(ring), "busiest": _short(ring)}
    for name, fields in EXCHANGES.items():
        try:
            plan = Detox(one_round_bytes=0, **fields).plan(p)
        except ValueError:  # so few groups have no two witnesses
            continue
        sent = np.array(sent_bytes(plan, floats)) / (FLOAT * floats)
        yield row | {"exchange": name, "sent": _short(sent.mean()), "busiest": _short(sent.max())}


def sent_bytes(plan: Plan, floats: int) -> list[float]:
    """Return how many bytes each rank sends in one exchange, counted at the seam."""
    layout = Layout((("gradient", (floats,), "float32"),))

    def program(collectives: Collectives) -> float:
        counter = Traffic()
        engine = Engine(plan, counter.wrap(lambda: collectives)())
        engine.exchange(np.zeros(layout.words, np.int64), layout)
        return counter.sent

    return InProcessCluster(plan.groups.world_size, timeout=300).run(program)


def _times(measured: dict[str, float]) -> Row:
    """Return the times of an operation and its ratio to the plain rule."""
    return {name: _short(measured[name]) for name in ("ms", "low", "ratio", "high")}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
