"""Signs as bits: their majority, their place in a copy, and their way through the exchanges."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_detox import Detox
from horovod_detox.aggregators import SignMajority
from horovod_detox.aggregators.signs import sign_majority
from horovod_detox.attacks import ALittleIsEnough, Constant, Reverse, Stale
from horovod_detox.drill import DrilledEngine
from horovod_detox.engine import Engine
from horovod_detox.exchange import EXCHANGES
from horovod_detox.exchange.aggregation import Columns
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.step import AT_FIRST
from horovod_detox.packing.bits import bits_of_numpy, words_of_numpy
from horovod_detox.packing.layout import SIGN, WORD, Layout
from horovod_detox.vote.fingerprint import slice_bounds
from horovod_detox.vote.groups import most_witnesses
from measuring.traffic import Traffic
from tests.cluster import exchange_all, layout_of


def random_votes(n, width=200, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def pack_signs(values):
    """Return signs as words: 1 for values >= 0."""
    return words_of_numpy(values >= 0)


def unpack_signs(words, length):
    """Return the first signs of words as 1 and -1."""
    return np.where(bits_of_numpy(words, length), 1, -1)


def copy_of(layout, values):
    """Return a copy as the frontends make it: the signs, then whether the values are finite."""
    words = layout.pack([pack_signs(values), np.zeros(1)])
    layout.typed(words)[1][:] = 0.0 if np.isfinite(values).all() else np.nan
    return words


def exchange_signs(detox, steps, attack=None, seam=lambda collectives: collectives):
    """Exchange the signs of `steps[step][rank]`; return (updates as words, report) by rank."""
    plan = detox.plan(len(steps[0]))
    layout = layout_of(steps[0][0]).signs

    def program(collectives):
        collectives = seam(collectives)
        engine = Engine(plan, collectives)
        drilled = DrilledEngine(engine, attack, collectives) if attack else engine
        copies = [copy_of(layout, step[collectives.rank]) for step in steps]
        updates = [drilled.exchange(copy, layout).update for copy in copies]
        return updates, engine.ledger.report()

    return layout, InProcessCluster(len(steps[0]), 20.0).run(program)


def signs_in(layout, update):
    """Return the signs of an update as 1 and -1, and its number."""
    words, number = layout.typed(update)
    return unpack_signs(words, layout.buffers.segments[0].length), number.item()


@pytest.fixture(params=sorted(EXCHANGES))
def exchange(request):
    """Run a test with every exchange."""
    return request.param


@pytest.mark.parametrize("n", range(1, 21))
def test_the_majority_of_bits_is_that_of_numbers(n):
    votes = random_votes(n, 640, n)
    before = [pack_signs(vote) for vote in votes]
    words = [vote.copy() for vote in before]
    total = np.where(votes >= 0, 1, -1).sum(axis=0)
    expected = np.where(total == 0, np.where(votes[0] >= 0, 1, -1), np.sign(total))
    assert np.array_equal(unpack_signs(sign_majority(words), 640), expected)
    assert np.array_equal(words, before)
    if n % 2:
        assert np.array_equal(expected, SignMajority()(votes))


def test_every_combination_of_bits():
    for n in range(1, 11):
        columns = np.arange(2**n)
        votes = [pack_signs((columns >> i & 1) - 0.5) for i in range(n)]
        counts = sum(columns >> i & 1 for i in range(n))
        expected = np.where(2 * counts == n, columns & 1, 2 * counts > n)
        assert np.array_equal(unpack_signs(sign_majority(votes), 2**n) > 0, expected)


def test_torch_counts_the_same_bits():
    torch = pytest.importorskip("torch")
    for n in range(1, 8):
        votes = [pack_signs(vote) for vote in random_votes(n)]
        assert np.array_equal(sign_majority([*map(torch.tensor, votes)]), sign_majority(votes))


def test_what_is_one():
    values = np.array([1.0, 0.0, -0.0, 1e-45, np.inf, -1e-45, -2.0, -np.inf, np.nan, -np.nan])
    assert unpack_signs(pack_signs(values), 10).tolist() == [1] * 5 + [-1] * 5
    assert pack_signs(values).tolist() == [0b11111]


@given(st.integers(0, 200))
def test_words_of_signs_and_back(length):
    values = random_votes(1, length)[0]
    words = pack_signs(values)
    assert (words.dtype, len(words)) == (np.int64, -(-length // 64))
    assert np.array_equal(unpack_signs(words, length), np.sign(values))


def test_the_layout_of_signs():
    layout = Layout(
        (
            ("a", (3, 5), "float32"),
            ("b", (70,), "bfloat16"),
            ("c", (), "float32"),
            ("d", (0,), "float64"),
        )
    )
    signs = layout.signs
    assert [name for name, _, _ in signs.parameters[:-1]] == ["a", "c", "b", "d"]
    assert [stop for _, _, stop in signs.places] == [15, 16, 86, 86, 1]
    assert [(s.dtype, s.length, s.stop) for s in signs.buffers.segments] == [
        (SIGN, 86, 2),
        ("float64", 1, 3),
    ]
    assert Layout(()).signs == Layout(())
    assert layout_of(np.zeros(2)).signs.digest != layout_of(np.zeros(2)).digest


@given(st.integers(1, 500), st.integers(1, 9))
def test_slices_hold_all_signs(length, parts):
    buffers = layout_of(np.zeros(length, np.float32)).signs.buffers
    words = np.arange(buffers.words)
    found, lengths = [], []
    for start, stop in slice_bounds(buffers.words, parts):
        part = buffers.cut(start, stop)
        for segment, kept in zip(part.segments, part.typed(words[start:stop]), strict=True):
            if segment.dtype == SIGN:
                found += kept.tolist()
                lengths.append(segment.length)
    assert found == list(range(buffers.words - 1))
    assert sum(lengths) == length


@settings(max_examples=30)
@given(st.data())
def test_liars_change_no_bit_and_are_named(data):
    r = data.draw(st.integers(1, 5))
    p = data.draw(st.integers(max(r, 2), 20))
    exchange = data.draw(st.sampled_from(sorted(EXCHANGES)))
    detox = Detox(group_size=r, outer="sign_majority", exchange=exchange, one_round_bytes=0)
    groups = detox.plan(p).groups
    if exchange == "sharded":
        witnesses = data.draw(st.integers(0, min(2, most_witnesses(groups))))
        detox = replace(detox, witnesses=witnesses)
    width = data.draw(st.integers(1, 300))
    votes = random_votes(len(groups), width, data.draw(st.integers(0, 99)))
    liars = [members[-1] for members in groups.members if len(members) > 2]
    fair = [votes[groups.of(rank)] for rank in range(p)]
    lied = [-copy if rank in liars else copy for rank, copy in enumerate(fair)]
    layout, expected = exchange_signs(detox, [fair])
    _, found = exchange_signs(detox, [lied])
    for updates, report in found:
        assert np.array_equal(updates[0], expected[0][0][0])
        assert sorted(report.dissents) == sorted(liars)
    signs, number = signs_in(layout, expected[0][0][0])
    assert number == 0
    if len(groups) % 2:
        outcomes, _ = exchange_all(detox, [[[copy] for copy in fair]])
        assert np.array_equal(signs, outcomes[0][0].update.view(np.float32)[:width])
    assert np.array_equal(pack_signs(signs), sign_majority([pack_signs(vote) for vote in votes]))


def test_ties_go_to_the_lowest_group_that_has_a_vote(exchange):
    detox = Detox(group_size=3, outer="sign_majority", exchange=exchange, one_round_bytes=0)
    votes = random_votes(3)
    copies = [votes[rank % 3] for rank in range(9)]
    for rank, copy in ((0, -votes[0]), (3, votes[0] + 9), (6, votes[0] - 9)):
        copies[rank] = copy  # three copies with other signs: group 0 abstains
    layout, found = exchange_signs(detox, [copies])
    for updates, report in found:
        assert np.array_equal(signs_in(layout, updates[0])[0], np.sign(votes[1]))
        assert report.abstentions == {0: 1}


def test_votes_that_are_not_finite_are_left_out(exchange):
    detox = Detox(group_size=3, outer="sign_majority", exchange=exchange, one_round_bytes=0)
    votes = random_votes(5)
    votes[1, 7], votes[4, 0] = np.nan, np.inf
    layout, found = exchange_signs(detox, [[votes[rank % 5] for rank in range(15)]])
    expected = SignMajority()(votes[[0, 2, 3]])
    for updates, report in found:
        signs, number = signs_in(layout, updates[0])
        assert np.array_equal(signs, expected)
        assert number == 0
        assert (report.non_finite, report.dissents) == ({1: 1, 4: 1}, {})


def test_the_update_is_nan_when_most_votes_are_not_finite(exchange):
    detox = Detox(group_size=3, outer="sign_majority", exchange=exchange, one_round_bytes=0)
    votes = random_votes(3)
    votes[:2, 7] = np.nan
    layout, found = exchange_signs(detox, [[votes[rank % 3] for rank in range(9)]])
    for updates, _ in found:
        assert np.isnan(signs_in(layout, updates[0])[1])
        assert np.array_equal(updates[0], found[0][0][0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outer": "median"}, r"outer = 'median' needs numbers.*outer='sign_majority'"),
        ({"outer": "bucketing(s=1)+sign_majority"}, "outer = 'bucketing.*needs numbers"),
        ({"outer": "sign_majority", "momentum": 0.9}, r"momentum = 0.9: .*Detox\(momentum=0\)"),
        (
            {"outer": "sign_majority", "tolerance": 1e-5},
            r"tolerance = 1e-05: .*Detox\(tolerance=0\)",
        ),
        ({"outer": "sign_majority", "buckets": 2}, r"buckets = 2: inner = 'mean'.*buckets=None"),
    ],
)
def test_rules_that_need_numbers_are_refused(fields, message):
    detox = Detox(group_size=3, one_round_bytes=0, **fields)
    with pytest.raises(ValueError, match=message):
        detox.plan(9).check_signs()
    with pytest.raises(ValueError, match=message):
        exchange_signs(detox, [random_votes(9)])


@pytest.mark.parametrize("witnesses", [0, 2])
@pytest.mark.parametrize("fields", [{"buckets": 3}, {"inner": "geometric_median"}])
def test_an_inner_rule_without_work_is_accepted(fields, witnesses):
    detox = Detox(group_size=3, outer="sign_majority", witnesses=witnesses, **fields)
    votes = random_votes(3)
    layout, found = exchange_signs(detox, [[votes[rank % 3] for rank in range(9)]])
    assert np.array_equal(signs_in(layout, found[0][0][0])[0], SignMajority()(votes))


def test_signs_have_no_part_in_gram_matrices():
    votes = random_votes(3)
    layout = layout_of(votes[0]).signs
    words = {group: copy_of(layout, vote) for group, vote in enumerate(votes)}
    columns = Columns(layout.buffers, words, AT_FIRST, [(0, layout.words)])
    assert columns.widths == [1]  # whether all are finite
    assert [row.tolist() for row in columns.rows.values()] == [[0.0]] * 3


@pytest.mark.parametrize("attack", [Reverse, Constant, Stale, ALittleIsEnough])
def test_drills_attack_signs(attack):
    detox = Detox(group_size=3, outer="sign_majority")
    votes = random_votes(6).reshape(2, 3, -1)
    steps = [[votes[step, rank % 3] for rank in range(9)] for step in range(2)]
    layout, fair = exchange_signs(detox, steps)
    _, found = exchange_signs(detox, steps, attack(ranks=(1, 5)))
    for updates, report in found:
        assert np.array_equal(updates, fair[0][0])
        assert set(report.dissents) == {1, 5}
    # In a captured group they are the vote.
    _, found = exchange_signs(detox, steps, attack(ranks=(1, 4)))
    for updates, report in found:
        signs, number = signs_in(layout, updates[1])
        assert set(report.dissents) == {7}
        assert number * 0 == 0
        if attack is Reverse:
            expected = SignMajority()(votes[1] * np.array([[1], [-1], [1]], np.float32))
            assert np.array_equal(signs, expected)


def test_a_rank_sends_a_32nd_of_what_it_sends_of_float32(exchange):
    p, width = 9, 64 * 9 * 50
    detox = Detox(group_size=3, outer="sign_majority", exchange=exchange, one_round_bytes=0)
    values = np.ones(width, np.float32)
    sent = {}

    for layout in (layout_of(values), layout_of(values).signs):
        copy = layout.pack([values]) if layout == layout_of(values) else copy_of(layout, values)

        def program(collectives, layout=layout, copy=copy):
            traffic = Traffic()
            Engine(detox.plan(p), traffic.watch(collectives)).exchange(copy, layout)
            return sum(call.words.sum() for call in traffic.calls) / WORD

        sent[len(copy)] = InProcessCluster(p).run(program)
    signs, numbers = (max(sent[words]) for words in sorted(sent))
    assert numbers > width / 2
    assert signs <= numbers / 32 + p  # and a word that tells whether all is finite, to whom it goes
