"""What an exchange sends, in how many rounds, and what memory it takes."""

from typing import Any, ClassVar
from unittest.mock import Mock

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange import EXCHANGES
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.control import ENTROPY, RECORD
from horovod_detox.exchange.cut import cut
from horovod_detox.exchange.owners import share_slices
from horovod_detox.packing.layout import WORD
from measuring.traffic import Traffic
from tests.cluster import Tampering, layout_of


@pytest.mark.parametrize(
    ("fields", "words", "used"),
    [
        ({}, 1000, "gathered"),
        ({}, 100_000, "sharded"),
        ({"one_round_bytes": 6 * 8 * 1000}, 1000, "gathered"),
        ({"one_round_bytes": 6 * 8 * 1000}, 1001, "sharded"),
        ({"one_round_bytes": 0}, 1, "sharded"),
        ({"group_size": 2, "witnesses": 1}, 1000, "sharded"),
        ({"exchange": "leaders"}, 1000, "leaders"),
        ({"exchange": "gathered"}, 100_000, "gathered"),
    ],
)
def test_small_gradients_take_a_single_round(fields, words, used):
    calls = {"gathered": "copies", "sharded": "slices", "leaders": "copies"}

    class Listening(Tampering):
        names: ClassVar[set[str]] = set()

        def alltoall(self, name, facts, parts, spare=None):
            self.names.add(f"alltoall {name}")
            return self._collectives.alltoall(name, facts, parts, spare)

        def allgather_words(self, name, facts, words):
            self.names.add(f"allgather {name}")
            return self._collectives.allgather_words(name, facts, words)

    plan, layout = Detox(**fields).plan(6), layout_of(np.zeros(words))

    def program(collectives):
        seam: Any = Listening(collectives)
        Engine(plan, seam).exchange(layout.pack([np.zeros(words)]), layout)

    InProcessCluster(6).run(program)
    kind = "allgather" if used == "gathered" else "alltoall"
    assert f"{kind} {calls[used]}" in Listening.names
    assert ("allgather update" in Listening.names) == (used == "sharded")


MIB = 1 << 17
"""Words."""


@pytest.mark.parametrize(
    ("ranks", "words", "is_last", "is_gathered"),
    [
        (4, 8 * MIB, True, True),
        (4, 8 * MIB + 1, True, False),
        (8, 16 * MIB, True, True),
        (16, 16 * MIB + 1, True, False),
        (8, 4 * MIB, False, True),
        (8, 4 * MIB + 1, False, False),
    ],
)
def test_parts_are_gathered_at_once_up_to_a_size_that_depends_on_the_ranks(
    ranks, words, is_last, is_gathered
):
    seam = Mock(size=ranks, rank=0)
    (part,) = cut(words, ranks)
    update = np.empty(words if is_last else words + 1, np.int64)
    share_slices(seam, part, update, np.zeros(1, np.int64))
    assert seam.broadcast.call_count == (0 if is_gathered else ranks)
    assert seam.allgather_words.call_count == 1


@pytest.mark.parametrize("exchange", ["sharded", "gathered"])
def test_update_and_slices_to_send_take_the_memory_that_is_given(exchange):
    plan = Detox(exchange=exchange, one_round_bytes=0).plan(6)
    layout = layout_of(np.zeros(120))

    class Listening(Tampering):
        def alltoall(self, name, facts, parts, spare=None):
            self.spares.append(spare)
            return self._collectives.alltoall(name, facts, parts, spare)

    def program(collectives):
        seam: Any = Listening(collectives)
        seam.spares = []
        update = np.full(layout.words, -1)
        outcome = Engine(plan, seam).exchange(layout.pack([np.ones(120)]), layout, update)
        assert outcome.update is update
        assert set(layout.typed(update)[0]) == {1.0}
        return all(np.shares_memory(spare, update) for spare in seam.spares)

    assert InProcessCluster(6).run(program) == [True] * 6


def test_a_persistent_liar_costs_no_repairs_after_its_first_step():
    plan = Detox(exchange="sharded", one_round_bytes=0).plan(6)
    layout = layout_of(np.zeros(12))

    def program(collectives):
        traffic = Traffic()
        engine = Engine(plan, traffic.watch(collectives))
        value = -1.0 if collectives.rank == 5 else plan.groups.of(collectives.rank)
        for _ in range(3):
            engine.exchange(layout.pack([np.full(12, value)]), layout)
        return [call.name for call in traffic.calls if call.kind == "alltoall"]

    calls = ["slices", "repairs", "slices", "slices"]
    assert InProcessCluster(6).run(program) == [calls] * 6


@pytest.mark.parametrize(("p", "r"), [(6, 3), (9, 3), (12, 4)])
def test_what_a_rank_sends_is_counted(p, r):
    """The traffic that the documentation tells, in words per rank."""
    width = 1200 * p
    w = p // r - 1
    detoxes: dict[str, dict[str, Any]] = {name: {"exchange": name} for name in EXCHANGES}
    detoxes["witnessed"] = {"witnesses": w}
    sent = {}
    for name, fields in detoxes.items():
        plan = Detox(group_size=r, one_round_bytes=0, **fields).plan(p)
        layout = layout_of(np.zeros(width))

        def program(collectives, plan=plan, layout=layout):
            traffic = Traffic()
            engine = Engine(plan, traffic.watch(collectives))
            engine.exchange(layout.pack([np.zeros(width)]), layout)
            return traffic.sent / WORD

        sent[name] = np.array(InProcessCluster(p).run(program))
    allreduce = 2 * width * (p - 1) / p
    records = (2 * RECORD.itemsize + ENTROPY) / WORD  # the first exchange begins with them
    facts = (3 * p + records + 1) * (p - 1)
    assert sent["sharded"].max() <= (1 + 1 / r) / 2 * allreduce + facts
    assert sent["leaders"].max() > allreduce
    assert sent["gathered"].max() == (p - 1) * (width + records)
    results = 2 * (1 + w) * (p - 1)
    assert sent["witnessed"].max() <= (1 + (1 + w) / r) / 2 * allreduce + facts + results


@pytest.mark.parametrize(
    ("fields", "operations"),
    [
        ({"exchange": "gathered"}, ["copies"]),
        ({}, ["slices", "update"]),
        ({"outer": "multi_krum"}, ["slices", "grams", "update"]),
        ({"witnesses": 2}, ["slices", "slices.witness.1", "slices.witness.2", "update"]),
        ({"tolerance": 1e-5}, ["slices", "distances", "update"]),
        ({"overlap_bytes": 8 * 600}, ["slices", "slices.1", "update", "update.1"]),
        (
            {"overlap_bytes": 8 * 600, "outer": "bulyan"},
            ["slices", "slices.1", "grams", "update", "update.1"],
        ),
        ({"exchange": "leaders"}, ["copies", "votes", "facts", "update"]),
    ],
)
def test_an_ordinary_exchange_takes_no_operation_for_control(fields, operations, small_blocks):
    """Each is negotiated by all ranks. A first exchange has one more, in which they compare."""
    plan = Detox(group_size=3, one_round_bytes=0, **fields).plan(9)
    layout = layout_of(np.zeros(1200))

    def program(collectives):
        traffic = Traffic()
        engine = Engine(plan, traffic.watch(collectives))
        mine = plan.groups.of(collectives.rank)
        for _ in range(2):
            copy = layout.pack([np.full(1200, float(mine))])
            if len(engine.parts(layout)) > 1:
                under_way = engine.begin(copy, layout, np.empty_like(copy))
                engine.finish(under_way)
            else:
                engine.exchange(copy, layout)
        return [call.name for call in traffic.calls]

    for calls in InProcessCluster(9).run(program):
        assert calls[0] == "introduction"
        assert sorted(calls[1:]) == sorted(2 * operations)
