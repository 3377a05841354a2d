"""Momentum: rules are given running means of the votes, whatever goes wrong on the way."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_detox import Detox
from horovod_detox.attacks import ALittleIsEnough, FaultyRank
from horovod_detox.engine import Engine
from horovod_detox.exchange import EXCHANGES
from horovod_detox.exchange.aggregation import Columns
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.momentum import Momentum
from horovod_detox.exchange.reference import aggregate_copies
from horovod_detox.exchange.step import NoMajority
from horovod_detox.frontend.context import Engines
from horovod_detox.history import History
from tests.cluster import Tampering, layout_of, parts_wanted
from tests.exchange.test_witnesses import Miscalculating

BETA = 0.9
pytestmark = pytest.mark.usefixtures("small_blocks")
SETTINGS = Detox(momentum=BETA, one_round_bytes=0)
IN_PARTS = replace(SETTINGS, overlap_bytes=8 * 7)


@pytest.fixture(params=sorted(EXCHANGES))
def exchange(request):
    """Run a test with every exchange."""
    return request.param


def random_votes(steps, groups, width=40):
    rng = np.random.default_rng(1)
    return rng.normal(1, 1, (steps, groups, width)).astype(np.float32)


def copies_of(votes, detox, size):
    """Return what honest ranks send, `[step][rank]`, when groups vote `votes[step][group]`."""
    groups = detox.plan(size).groups
    return [[step[groups.of(rank)].copy() for rank in range(size)] for step in votes]


def defined(mean, vote):
    """Return the next mean: `(d,)`; None at the start."""
    if mean is None:
        return vote
    return (BETA * mean.astype(float) + (1 - BETA) * vote.astype(float)).astype(mean.dtype)


def exchanged(detox, steps, seam=lambda collectives: collectives, wrong=()):
    """Exchange `steps[step][rank]`, part by part where possible, in the same words every time.

    Args:
        wrong: ranks that aggregate wrongly.

    Returns:
        the updates, `[rank][step]`, None where there was none, and the reports by rank.
    """
    plan, layout = detox.plan(len(steps[0])), layout_of(steps[0][0])

    def program(collectives):
        rank = collectives.rank
        mine = replace(plan, rule=Miscalculating(plan.rule)) if rank in wrong else plan
        collectives = seam(collectives)
        engine = Engine(mine, collectives)
        parts = engine.parts(layout)
        copy, update = (np.full(layout.words, -1) for _ in range(2))
        updates = []
        for step, copies in enumerate(steps):
            collectives.step = step
            words = layout.pack([copies[rank]])
            try:
                if len(parts) > 1:
                    under_way = engine.begin(copy, layout, update)
                    for number, part in enumerate(parts):
                        copy[part.start : part.stop] = words[part.start : part.stop]
                        under_way.send(number)
                        under_way.advance()
                    outcome = engine.finish(under_way)
                else:
                    copy[:] = words
                    outcome = engine.exchange(copy, layout, update)
                updates.append(layout.typed(outcome.update)[0].copy())
            except NoMajority:
                updates.append(None)
            copy[:] = update[:] = -1
        return updates, engine.ledger.report()

    results = InProcessCluster(len(steps[0]), 20.0).run(program)
    return [updates for updates, _ in results], [report for _, report in results]


def in_one_process(detox, steps):
    """Return what `exchanged` should: the updates, None where there is none."""
    history, layout = History(detox.plan(len(steps[0]))), layout_of(steps[0][0])
    parts = parts_wanted(detox, layout)
    updates = []
    for copies in steps:
        words = [layout.pack([copy]) for copy in copies]
        memory = history.memory(layout)
        try:
            outcome = aggregate_copies(history.plan_now(), layout.buffers, words, memory, parts)
        except NoMajority:
            updates.append(None)
        else:
            history.record(outcome, layout)
            updates.append(layout.typed(outcome.update)[0].copy())
            for each in [outcome.update, *words]:
                each[:] = -1  # whoever relies on what was there is found out
    return updates


def bits(updates):
    return [None if update is None else update.tobytes() for update in updates]


@pytest.mark.parametrize(
    "fields",
    [
        {"outer": "median"},
        {"outer": "multi_krum"},
        {"outer": "bulyan"},
        {"outer": "centered_clipping(radius=0.5)"},
        {"outer": "sign_majority"},
        {"outer": "median", "buckets": 3},
        {"inner": "geometric_median", "outer": "mean", "buckets": 2},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
@pytest.mark.parametrize(
    ("exchange", "witnesses"), [*((name, 0) for name in EXCHANGES), ("sharded", 2)]
)
def test_a_rule_is_given_the_means_of_the_votes(fields, exchange, witnesses):
    detox = replace(SETTINGS, group_size=1, exchange=exchange, witnesses=witnesses, **fields)
    steps, rule = copies_of(random_votes(3, 7), detox, 7), detox.plan(7).rule
    updates, _ = exchanged(detox, steps)
    # A Gram matrix is the sum of those of the slices: the last bits of the weights may differ.
    tolerance = 1e-6 if rule.uses_gram else 0
    means, previous = [None] * 7, None
    for step, reference in enumerate(in_one_process(detox, steps)):
        means = [defined(mean, vote) for mean, vote in zip(means, steps[step], strict=True)]
        previous = rule.at(step)(np.stack(means), previous)
        np.testing.assert_allclose(reference, previous, rtol=tolerance, atol=tolerance)
        previous = reference
        for update in updates:
            assert np.array_equal(update[step], reference)


@pytest.mark.parametrize("detox", [SETTINGS, IN_PARTS], ids=["whole", "in parts"])
@pytest.mark.parametrize("fault", ["abstains", "votes NaN"])
def test_a_group_without_a_vote_keeps_its_mean(detox, fault, exchange):
    """The first parts are aggregated with its vote, before the last shows that it has none."""
    detox = replace(detox, exchange=exchange)
    votes = random_votes(3, 3)
    steps = copies_of(votes, detox, 9)
    for rank in (2, 5, 8):  # group 2
        steps[1][rank][-1] = rank if fault == "abstains" else np.nan
    first, others, last = exchanged(detox, steps)[0][4]
    means = [
        defined(defined(votes[0][group], votes[1][group]), votes[2][group]) for group in (0, 1)
    ]
    means.append(defined(votes[0][2], votes[2][2]))
    rule = detox.plan(9).rule
    assert np.array_equal(first, rule(votes[0]))
    assert np.array_equal(
        others, rule(np.stack([defined(votes[0][group], votes[1][group]) for group in (0, 1)]))
    )
    assert np.array_equal(last, rule(np.stack(means)))


@pytest.mark.parametrize("detox", [SETTINGS, IN_PARTS], ids=["whole", "in parts"])
@pytest.mark.parametrize("fault", ["NaN", "no majority"])
def test_a_step_without_a_finite_update_changes_no_mean(detox, fault, exchange):
    """The first parts are good, and aggregated before the last shows that they do not count."""
    detox = replace(detox, exchange=exchange)
    votes = random_votes(3, 3)
    steps = copies_of(votes, detox, 9)
    for rank in range(9):
        if fault == "no majority":
            steps[1][rank][-1] = rank
        elif rank % 3 < 2:
            steps[1][rank][-1] = np.inf
    updates = exchanged(detox, steps)[0][4]
    assert updates[1] is None if fault == "no majority" else np.isnan(updates[1]).all()
    means = [defined(*both) for both in zip(votes[0], votes[2], strict=True)]
    assert np.array_equal(updates[2], detox.plan(9).rule(np.stack(means)))


@st.composite
def jobs(draw):
    """Draw settings, and copies of which any may be faulty in any step."""
    r = draw(st.integers(1, 3))
    p = draw(st.integers(max(r, 2), 6))
    ways = ["sharded", "in parts", "witnessed", "leaders", "gathered"]
    way = draw(st.sampled_from(ways if r < p and p % r == 0 else ways[:2]))
    detox = replace(
        SETTINGS,
        group_size=r,
        outer=draw(st.sampled_from(["mean", "median", "phocas"])),
        exchange=way if way in EXCHANGES else "sharded",
        overlap_bytes=draw(st.integers(40, 100)) if way == "in parts" else 0,
        witnesses=1 if way == "witnessed" else 0,
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    width = draw(st.integers(1, 40))
    votes = rng.normal(size=(3, len(detox.plan(p).groups), width))
    steps = copies_of(votes.astype(draw(st.sampled_from(["f2", "f4", "f8"]))), detox, p)
    for copies in steps:
        for rank in rng.permutation(p)[: draw(st.integers(0, p // 2))]:
            bad = rng.integers(0, width, draw(st.integers(1, 3)))
            copies[rank][bad] = rng.choice([np.nan, 1e4, rng.normal()])
    return detox, steps


@settings(max_examples=25)
@given(jobs())
def test_whatever_fails_in_whatever_step_the_means_are_those_of_one_process(job):
    detox, steps = job
    expected = bits(in_one_process(detox, steps))
    for updates in exchanged(detox, steps)[0]:
        assert bits(updates) == expected


@pytest.mark.parametrize("witnesses", [0, 1, 2])
@pytest.mark.parametrize("outer", ["median", "multi_krum", "centered_clipping(radius=0.5)"])
def test_senders_of_something_else_leave_no_trace_in_the_means(outer, witnesses):
    detox = replace(SETTINGS, outer=outer, witnesses=witnesses)
    steps = copies_of(random_votes(4, 3), detox, 9)

    class Late(Tampering):
        step = 0

        def alltoall(self, name, facts, parts, spare=None):
            liars = [4, 5] if self.step == 1 else []
            self.tamper = lambda part: part ^ (self.rank in liars)
            return super().alltoall(name, facts, parts, spare)

    fair, _ = exchanged(detox, steps)
    updates, reports = exchanged(detox, steps, Late)
    assert [bits(each) for each in updates] == [bits(fair[0])] * 9
    assert reports[0].dissents == {4: 1, 5: 1}


@pytest.mark.parametrize("outer", ["median", "centered_clipping(radius=0.5)"])
def test_witnesses_have_the_means_of_the_owner(outer):
    detox = replace(SETTINGS, outer=outer, witnesses=2)
    steps = copies_of(random_votes(3, 3), detox, 9)
    updates, reports = exchanged(detox, steps, wrong=(4,))
    assert [bits(each) for each in updates] == [bits(exchanged(detox, steps)[0][0])] * 9
    assert reports[0].miscalculations == {4: 3}


@pytest.mark.parametrize(
    "dtypes",
    [["float16"], ["bfloat16"], ["float16", "bfloat16"], ["float16", "float64", "float32"]],
    ids="+".join,
)
def test_narrow_votes_have_wide_means(dtypes):
    """In 16 bits a mean of 1 would stay 1: what a vote adds to it is less than half of an ulp."""
    types = [np.dtype(getattr(ml_dtypes, name, name)) for name in dtypes]
    history = History(Detox(group_size=1, momentum=0.99).plan(3))
    layout = layout_of(*(np.ones(5, dtype) for dtype in types))
    wide: Any = np.float64 if "float64" in dtypes else np.float32
    mean, update = wide(1), None
    for step in range(40):
        vote = 1.0 if step == 0 else 1.03125
        words = layout.pack([np.full(5, vote, dtype) for dtype in types])
        outcome = aggregate_copies(
            history.plan, layout.buffers, [words] * 3, history.memory(layout)
        )
        update = layout.typed(history.record(outcome, layout).update)
        mean = wide(0.99 * float(mean) + (1 - 0.99) * vote)
    assert update is not None
    for buffer, dtype in zip(update, types, strict=True):
        assert (buffer == mean.astype(dtype)).all()
        assert (buffer > 1).all()


@pytest.mark.parametrize("outer", ["median", "centered_clipping(radius=0.5)"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_job_goes_on_from_a_saved_state(outer, kind):
    torch = pytest.importorskip("torch") if kind == "torch" else None
    plan = replace(SETTINGS, group_size=1, outer=outer).plan(5)
    layout = layout_of(np.zeros(40, np.float32))
    steps = [[layout.pack([vote]) for vote in votes] for votes in random_votes(6, 5)]

    def go_on(history, steps):
        for words in steps:
            if torch is not None:
                words = [torch.tensor(each) for each in words]
            memory = history.memory(layout)
            outcome = aggregate_copies(history.plan_now(), layout.buffers, words, memory)
            yield np.asarray(history.record(outcome, layout).update).tobytes()

    history = History(plan)
    expected = list(go_on(history, steps[:3]))
    saved = history.state()
    expected += go_on(history, steps[3:])
    if torch is not None:  # as a user may have saved it
        saved["means"] = {
            words: {group: torch.tensor(mean) for group, mean in means.items()}
            for words, means in saved["means"].items()
        }
    restored = History(plan)
    restored.load_state(saved)
    assert restored.step == 3
    assert list(go_on(restored, steps[3:])) == expected[3:]
    assert list(go_on(History(plan), steps)) == expected
    fresh = History(plan)
    fresh.step = 3
    assert list(go_on(fresh, steps[3:])) != expected[3:]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_tensors_have_the_means_of_arrays(dtype):
    torch = pytest.importorskip("torch")
    arrays: Any = {}
    tensors: Any = {}
    for vote in random_votes(3, 1)[:, 0].astype(dtype):
        on_arrays = Momentum(BETA, arrays, (0, 1))
        on_tensors = Momentum(BETA, tensors, (0, 1))
        mean = on_arrays.advance({5: vote})[5]
        tensor = on_tensors.advance({5: torch.tensor(vote)})[5]
        assert isinstance(tensor, torch.Tensor)
        assert mean.dtype == tensor.numpy().dtype == max(np.dtype("f4"), vote.dtype)
        assert mean.tobytes() == tensor.numpy().tobytes()
        arrays, tensors = {(0, 1): {5: mean}}, {(0, 1): {5: tensor}}


def test_means_are_given_up_when_the_parameters_change():
    history = History(replace(SETTINGS, group_size=1).plan(3))
    first, second, third = random_votes(3, 3)
    poison = np.full((3, 5, 8), np.nan, np.float32)  # the first step of others, in as many words
    for votes in (first, second[:, :7], third, poison, second.reshape(3, 5, 8)):
        layout = layout_of(votes[0])
        words = [layout.pack([vote.ravel()]) for vote in votes]
        outcome = aggregate_copies(history.plan, layout.buffers, words, history.memory(layout))
        update = layout.typed(history.record(outcome, layout).update)[0]
        expected = history.plan.rule(votes.reshape(3, -1))
        assert np.array_equal(update, expected, equal_nan=True)


def test_losses_have_no_momentum():
    plan, alone = SETTINGS.plan(6), InProcessCluster(1).run(lambda collectives: collectives)[0]
    engine = Engines(plan, lambda name: alone, None, None).make_for_losses()
    assert (plan.config.momentum, engine.plan.config.momentum) == (BETA, 0)


def test_without_momentum_a_rule_is_given_the_votes_themselves():
    layout = layout_of(np.zeros(8, np.float32))
    history = History(Detox(group_size=1).plan(3))
    memory = history.memory(layout)
    assert memory.momentum is None
    votes = {group: layout.pack([np.full(8, group, np.float32)]) for group in range(3)}
    columns = Columns(layout.buffers, votes, memory, [(0, layout.words)])
    assert all(map(np.shares_memory, columns.rows.values(), votes.values()))
    assert history.state()["means"] == {}


@pytest.mark.parametrize("outer", ["median", "trimmed_mean(f=4)"])
def test_a_little_is_not_enough_with_momentum(outer):
    """Eleven ranks descend |x|^2 / 2 from noisy gradients; four hide the same lie in the noise."""
    liars = [0, 3, 5, 8]
    attack = ALittleIsEnough(ranks=tuple(liars))

    def error(beta, seed):
        history = History(Detox(group_size=1, outer=outer, momentum=beta).plan(11))
        liar = FaultyRank(attack, liars[0], history.plan.groups)
        rng, x, errors = np.random.default_rng(seed), np.zeros(50, np.float32), []
        layout = layout_of(x)
        for step in range(100):
            sent = x + rng.normal(size=(11, 50)).astype(np.float32)
            sent[liars] = liar.corrupt(step, sent[liars[0]], sent)
            words, memory = [layout.pack([copy]) for copy in sent], history.memory(layout)
            outcome = aggregate_copies(history.plan_now(), layout.buffers, words, memory)
            x = x - 0.1 * layout.typed(history.record(outcome, layout).update)[0]
            errors.append(np.linalg.norm(x))
        return np.mean(errors[-50:])

    for seed in range(3):
        assert error(0.9, seed) < 0.6 * error(0.0, seed)
