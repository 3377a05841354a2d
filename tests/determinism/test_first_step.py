"""The check of a first exchange: real engines, ranks as threads, settings in disguise."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.attacks import Zero
from horovod_detox.determinism.first_step import FirstStep, NotDeterministic, fingerprint_parameters
from horovod_detox.drill import DrilledEngine
from horovod_detox.engine import Engine
from horovod_detox.exchange import EXCHANGES
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.control import RanksDisagree
from horovod_detox.exchange.step import NoMajority
from horovod_detox.frontend.context import Context
from horovod_detox.packing.layout import Layout
from horovod_detox.replicas.replicas import Held, Replicas
from horovod_detox.replicas.upkeep import Upkeep
from horovod_detox.vote.work import Tally
from measuring.traffic import Traffic

LAYOUT = Layout((("first", (3,), "float32"), ("second", (40,), "float32")))
WAYS = {name: Detox(exchange=name, one_round_bytes=0) for name in EXCHANGES}
WAYS["in parts"] = Detox(one_round_bytes=0, overlap_bytes=64)
THREADS = "torch threads"


def copies_of(p, k=2, wrong=()):
    """Return the copy of each rank, with another number in the second parameter of wrong ones."""
    copies = [[np.full(3, rank % k, np.float32), np.ones(40, np.float32)] for rank in range(p)]
    for rank in wrong:
        copies[rank][1][-1] = 7 + rank
    return [LAYOUT.pack([np.concatenate(parts)]) for parts in copies]


def job(
    copies,
    detox=WAYS["sharded"],
    threads=(),
    attack=None,
    steps=1,
    hosts: Any = range(45),
    batches: Any = None,
    **options,
) -> Any:
    """Exchange copies; return, by rank, the last update or the error, the report, the traffic."""
    plan = detox.plan(len(copies))
    conditions = [{"host": f"host {hosts[rank]}", THREADS: "4"} for rank in range(len(copies))]
    for rank in threads:
        conditions[rank][THREADS] = "2"

    def program(collectives):
        rank, traffic = collectives.rank, Traffic()
        seam = traffic.watch(collectives)
        is_drill = attack is not None
        check = FirstStep(plan.groups, lambda: conditions[rank], is_drill=is_drill, **options)
        engine = Engine(plan, seam, first_step=check)
        if batches is not None:
            held = Held(list, lambda: np.array([batches[rank], 1]))
            engine.upkeep = Upkeep(Replicas(plan.groups, held), seam, engine.ledger, 0)
        sender = DrilledEngine(engine, attack, seam) if attack else engine
        result = None
        try:
            for _ in range(steps):
                if detox.overlap_bytes > 64:
                    outcome = sender.exchange(copies[rank], LAYOUT)
                else:
                    under_way = engine.begin(copies[rank], LAYOUT, np.empty_like(copies[rank]))
                    outcome = engine.finish(under_way)
                result = LAYOUT.typed(outcome.update)[0]
        except NoMajority as error:
            result = error
        return result, engine.ledger.report(), [call.name for call in traffic.calls]

    return InProcessCluster(len(copies)).run(program)


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def told(caplog):
    """Return what the check has logged, without the ledgers' lines."""
    messages = [record.getMessage() for record in caplog.records if record.name == "horovod_detox"]
    return [message for message in messages if not message.startswith("step ")]


def test_a_fault_is_told_from_the_rest_and_the_job_goes_on(way, caplog):
    fair = job(copies_of(6), way)[0][0]
    assert told(caplog) == []
    for update, report, names in job(copies_of(6, wrong=[3]), way):
        assert update.tobytes() == fair.tobytes()
        assert report.dissents == {3: 1}
        assert names.count("preflight.parameters") == 1
    assert told(caplog) == [
        "first step: rank 3 faulty at tensor second: it alone differs, with the settings of the "
        "others"
    ]


def test_dissenters_with_other_settings_are_not_accused(way):
    for error, report, _ in job(copies_of(6, wrong=[1, 4]), way, threads=[1, 4]):
        assert isinstance(error, NotDeterministic)
        text = str(error)
        assert "tensor second: rank 1 differs: torch threads 2 against 4; rank 4 differs" in text
        assert "torch threads  4      0, 2, 3, 5\n               2      1, 4" in text
        for remedy in ("seed_group", "GroupSampler", "OMP_NUM", "tolerance", "preflight=False"):
            assert remedy in text
        assert (report.steps, report.dissents) == (0, {})


def test_no_majority_in_most_groups_is_refused(way):
    for error, report, _ in job(copies_of(9, k=3, wrong=[0, 3, 1, 4]), way):
        assert isinstance(error, NotDeterministic)
        assert "ranks 0, 3, 6 have no majority, with the same settings; ranks 1, 4, 7" in str(error)
        assert "The settings of all ranks are the same." in str(error)
        assert report.steps == 0


def test_no_majority_anywhere_still_says_so(way):
    for error, _, _ in job(copies_of(6, wrong=range(6)), way):
        assert isinstance(error, NotDeterministic)
        assert str(error).startswith("no update in this step: every group lost its majority")


def test_no_majority_in_a_few_groups_is_told_and_left_out(way, caplog):
    for update, report, _ in job(copies_of(9, k=3, wrong=[0, 3]), way):
        assert update[0] == 1.5
        assert report.abstentions == {0: 1}
    assert told(caplog) == [
        "first step: ranks 0, 3, 6 have no majority at tensor second, with the same settings"
    ]


def test_no_majority_in_half_of_the_groups_is_left_out():
    for update, report, _ in job(copies_of(6, wrong=[0, 2])):
        assert update[0] == 1.0
        assert report.abstentions == {0: 1}


def test_one_of_two_members_does_not_stop_the_others(caplog):
    pairs = replace(WAYS["sharded"], group_size=2)
    for update, report, _ in job(copies_of(6, k=3, wrong=[5]), pairs, threads=[5]):
        assert update[0] == 0.5
        assert report.abstentions == {2: 1}
    assert told(caplog) == [
        "first step: ranks 2, 5 have no majority at tensor second, rank 5 has torch threads 2 "
        "against 4"
    ]


def test_pairs_that_differ_by_their_settings_are_refused():
    pairs = replace(WAYS["sharded"], group_size=2)
    for error, _, _ in job(copies_of(6, k=3, wrong=[4, 5]), pairs, threads=[4, 5]):
        assert "rank 5 differs: torch threads 2 against 4" in str(error)


def test_a_setting_of_its_own_excuses_no_rank(way, caplog):
    fair = job(copies_of(6), way)[0][0]
    for update, report, _ in job(copies_of(6, wrong=[3]), way, threads=[3]):
        assert update.tobytes() == fair.tobytes()
        assert report.dissents == {3: 1}
    assert told(caplog) == [
        "first step: rank 3 faulty at tensor second: it alone differs, and has torch threads 2 "
        "against 4"
    ]


@pytest.mark.parametrize("lies", [True, False])
def test_one_host_of_another_kind_does_not_stop_the_job(caplog, lies):
    """Host 1 of three, with other processors, is outvoted in both groups."""
    hosts = [0, 0, 1, 1, 2, 2]
    for update, report, _ in job(
        copies_of(6, wrong=[2, 3] if lies else []), threads=[2, 3], hosts=hosts
    ):
        assert update[0] == 0.5
        assert report.dissents == ({2: 1, 3: 1} if lies else {})
    assert ("rank 2 faulty at tensor second" in told(caplog)[0]) == lies


@pytest.mark.parametrize(("wrong", "threads"), [([4, 1], [3, 4, 5]), ([4, 5], [4, 5])])
def test_half_of_the_hosts_are_not_at_fault(wrong, threads):
    """In groups that accuse each other's host, honest ranks are accused."""
    for error, _, _ in job(copies_of(6, wrong=wrong), threads=threads, hosts=[0] * 3 + [1] * 3):
        assert isinstance(error, NotDeterministic)


@pytest.mark.parametrize("settings", [{}, {"one_round_bytes": 1 << 20}, {"exchange": "leaders"}])
def test_flips_in_different_slices_of_one_tensor_are_both_outvoted(caplog, settings):
    copies = copies_of(6)
    LAYOUT.typed(copies[0])[0][10] = LAYOUT.typed(copies[2])[0][30] = 9
    for update, report, _ in job(copies, replace(WAYS["sharded"], **settings)):
        assert update[0] == 0.5
        assert report.dissents == {0: 1, 2: 1}
    assert told(caplog) == [
        "first step: ranks 0, 2 faulty at tensor second: they differ, with the settings of the "
        "others"
    ]


def test_a_group_whose_every_member_is_outvoted_in_another_slice(caplog):
    copies = copies_of(6)
    for rank, place in ((0, 5), (2, 20), (4, 35)):
        LAYOUT.typed(copies[rank])[0][place] = 9
    for update, report, _ in job(copies):
        assert update[0] == 0.5
        assert report.dissents == {0: 1, 2: 1, 4: 1}
    assert "ranks 0, 2, 4 faulty at tensor second" in told(caplog)[0]


def test_two_flips_in_one_of_two_groups_are_no_want_of_determinism(caplog):
    for update, report, _ in job(copies_of(6, wrong=[0, 2])):
        assert update[0] == 1.0
        assert report.abstentions == {0: 1}
    assert "nondeterministic" not in told(caplog)[0]


def test_settings_that_others_have_with_the_same_bits_explain_nothing(caplog):
    """Rank 3 has two threads; but so has rank 2, whose copy is that of ranks 0 and 4."""
    for update, report, _ in job(copies_of(6, wrong=[3]), threads=[2, 3]):
        assert isinstance(update, np.ndarray)
        assert report.dissents == {3: 1}
    assert told(caplog)[0].endswith(
        "rank 3 faulty at tensor second: it alone differs, with the settings of the others"
    )


@pytest.mark.parametrize("threads", [[], [1]])
def test_a_drill_is_never_refused(threads, caplog):
    """Two of three members of a group lie differently: it abstains, as ever."""
    for outcome, report, _ in job(copies_of(9, 3, [1]), attack=Zero(ranks=(4,)), threads=threads):
        assert outcome[0] == 1.0
        assert report.abstentions == {1: 1}
    assert len(told(caplog)) == 1
    attack = Zero(ranks=(1, 4))
    for outcome, report, _ in job(copies_of(6, 2), attack=attack, threads=[1, 4]):
        assert outcome[0] == 0.5
        assert report.dissents == {1: 1, 4: 1}
    for error, _, _ in job(copies_of(3, 1, [1]), attack=Zero(ranks=(2,)), threads=threads):
        assert type(error) is NoMajority


def test_settings_that_have_changed_no_bit_are_a_single_warning(caplog):
    warned = set()
    for _ in range(2):
        for update, report, _ in job(copies_of(6), threads=[1], told=warned):
            assert report.dissents == {}
            assert len(update) == 43
    assert len(told(caplog)) == 1
    assert "torch threads  4      0, 2, 3, 4, 5\n               2      1" in told(caplog)[0]


def test_settings_may_differ_between_groups(caplog):
    job(copies_of(6), threads=[1, 3, 5])
    assert told(caplog) == []


def test_later_steps_and_good_first_ones_cost_nothing_more():
    (_, _, one), *_ = job(copies_of(6))
    (_, _, three), *_ = job(copies_of(6), steps=3)
    assert "preflight.parameters" not in three
    assert three.count("preflight.facts") == 1
    assert three.count("introduction") == 1
    assert len(three) - len(one) == 2 * (len(one) - 2)


def train(weights_of, copies, skips=False, outer="mean"):
    """Exchange two copies, of weights by rank and step; return updates or errors, and reports."""
    plan = Detox(outer=outer).plan(6)

    def program(collectives):
        rank, check = collectives.rank, FirstStep(plan.groups, dict)
        step = 0
        engine = Engine(
            plan,
            collectives,
            first_step=check,
            skips=skips,
            weights=lambda: str(weights_of(rank, step)),
        )
        found = []
        for step in range(2):
            try:
                outcome = engine.exchange(copies[step][rank], LAYOUT)
                found.append((LAYOUT.typed(outcome.update)[0], outcome.failure))
            except RuntimeError as error:
                found.append(error)
        return found, engine.ledger.report()

    return InProcessCluster(6).run(program)


DIFFERENT = copies_of(6, wrong=range(6))


@pytest.mark.parametrize("skips", [True, False])
def test_weights_that_are_broadcast_after_the_first_step_are_no_fault(skips, caplog):
    """The copies differ, as the weights do, and no group has a majority."""
    weights = [range(6), [0] * 6]
    results = train(lambda rank, step: weights[step][rank], [DIFFERENT, copies_of(6)], skips)
    for ((first, failure), (second, _)), report in results:
        assert not first.any()
        assert (failure is not None) == skips
        assert second[0] == 0.5
        assert (report.steps, report.events) == (2, ())
    assert told(caplog)[0].startswith(
        "first step: the ranks have different weights. If they still do"
    )


def test_weights_that_differ_between_groups_are_refused_in_the_second_step(caplog):
    """Every vote has a majority: nothing else would tell."""
    for ((first, _), error), _ in train(lambda rank, step: rank % 2, [copies_of(6)] * 2):
        assert first[0] == 0.5
        assert isinstance(error, RanksDisagree)
        assert "different weights in the second step: broadcast them before" in str(error)


def test_weights_that_differ_for_ever_are_refused_in_the_second_step():
    for (_, error), _ in train(lambda rank, step: rank, [DIFFERENT] * 2, skips=True):
        assert isinstance(error, RanksDisagree)


def test_a_rank_with_other_weights_is_named_beside_its_dissent(caplog):
    copies = copies_of(6, wrong=[2])
    for ((first, _), _), report in train(lambda rank, step: rank == 2, [copies, copies]):
        assert first[0] == 0.5
        assert report.dissents == {2: 2}
    assert told(caplog)[0].startswith(
        "first step: ranks [2] have other weights than most. If they are not faulty, broad"
    )


def test_gradients_that_differ_while_weights_do_not_are_refused_at_once():
    for (error, *_), _ in train(lambda rank, step: 0, [DIFFERENT] * 2):
        assert isinstance(error, NotDeterministic)


def test_ranks_of_a_set_are_named_as_in_the_job(caplog):
    caplog.set_level(logging.WARNING)
    job(copies_of(6, wrong=[3]), ranks=(4, 5, 6, 7, 8, 9))
    assert "rank 7 faulty" in told(caplog)[0]
    errors = job(copies_of(6, wrong=[2, 3]), threads=[2, 3], ranks=(4, 5, 6, 7, 8, 9))
    assert "2      6, 7" in str(errors[0][0])


def test_parameters_are_told_apart_by_their_own_bits():
    """Of an odd number of elements, so that neighbours share words."""
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        layout = Layout(tuple((f"p{i}", (length,), dtype) for i, length in enumerate((3, 1, 0, 5))))
        before = np.zeros(layout.words, np.int64)
        after = before.copy()
        layout.typed(after)[0][3] = 1
        changed = fingerprint_parameters(before, layout) != fingerprint_parameters(after, layout)
        assert changed.any(axis=1).tolist() == [False, True, False, False]
    signs = Layout((("a", (100,), "float32"), ("b", (100,), "float32"))).signs
    before = np.zeros(signs.words, np.int64)
    after = before.copy()
    after[3] = 1
    changed = fingerprint_parameters(before, signs) != fingerprint_parameters(after, signs)
    assert changed.any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("preflight", [True, False])
def test_frontends_check_unless_told_not_to(preflight, monkeypatch):
    nobody = {name: lambda *_: None for name in ("begin", "limit", "end")}  # this is no job
    watching = SimpleNamespace(connecting=nullcontext, **nobody)
    monkeypatch.setattr("horovod_detox.frontend.context.watching", watching)

    def program(collectives):
        everybody = SimpleNamespace(included=lambda: True, ranks=[0, 1, 2], process_set_id=0)
        hvd = SimpleNamespace(
            init=lambda: None,
            is_initialized=lambda: True,
            size=lambda: 3,
            gloo_enabled=lambda: True,
            local_rank=lambda: collectives.rank,
            global_process_set=everybody,
        )
        context = Context(hvd, lambda *_: collectives, lambda: {THREADS: str(collectives.rank)})
        context.init(detox=Detox(preflight=preflight))
        engines = context.engines(everybody, Tally("SGD"))
        assert engines is not None
        engines.make_for_losses().exchange(copies_of(3, 1, [2])[collectives.rank], LAYOUT)
        try:
            engines.make_for_gradients().exchange(copies_of(3, 1, [1, 2])[collectives.rank], LAYOUT)
        except NoMajority as error:
            return type(error)

    expected = NotDeterministic if preflight else NoMajority
    assert InProcessCluster(3).run(program) == [expected] * 3
