"""What faulty ranks can capture and silence, against every placement of them."""

from collections.abc import Iterator
from itertools import product

import pytest

from horovod_detox import Detox
from horovod_detox.config import Plan
from horovod_detox.vote.capture import faulty_votes, silenced_groups
from horovod_detox.vote.groups import Groups, form_groups

RULES = ("mean", "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median")
HIERARCHIES = [Detox(1, outer=rule) for rule in RULES] + [
    Detox(1, outer="median", buckets=3),
    Detox(1, inner="median", outer="mean", buckets=2),
]


def placements(groups: Groups, q: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield which groups q faulty ranks capture and which they silence, wherever they are.

    The members of a group are alike, so how many of each are faulty is all there is to try. Where
    they are more than half they capture it, or disagree; where they are half they tie it.
    """
    for counts in product(*(range(len(members) + 1) for members in groups.members)):
        if sum(counts) > q:
            continue
        choices = []
        for members, faulty in zip(groups.members, counts, strict=True):
            kept = faulty < len(members) / 2
            silent = not kept and len(members) > 1
            choices.append(
                ["kept"] * kept + ["captured"] * (2 * faulty > len(members)) + ["silenced"] * silent
            )
        for fates in product(*choices):
            yield (
                [group for group, fate in enumerate(fates) if fate == "captured"],
                [group for group, fate in enumerate(fates) if fate == "silenced"],
            )


def cases(most: int) -> Iterator[tuple[Groups, int]]:
    for p in range(2, most + 1):
        for r in range(1, min(p, 6) + 1):
            groups = form_groups(p, r)
            if len(groups) <= 6 or r == 1:
                for q in range(p):
                    yield groups, q


def test_counts_are_those_of_the_worst_placement():
    for groups, q in cases(9):
        found = list(placements(groups, q))
        assert faulty_votes(q, groups) == max(len(captured) for captured, _ in found)
        for silenced in silenced_groups(q, groups):
            captured = [len(votes) for votes, silent in found if silent == silenced]
            assert faulty_votes(q, groups, silenced) == max(captured)
        kinds = {tuple(sorted(len(groups.members[g]) for g in silent)) for _, silent in found}
        counted = {
            tuple(sorted(len(groups.members[g]) for g in silenced))
            for silenced in silenced_groups(q, groups)
        }
        assert kinds - {()} == counted


def stood(plan: Plan, captured: list[int], silenced: list[int]) -> bool:
    """Return whether the rule of such a step reckons with as many faulty votes as there are."""
    votes = len(plan.groups) - len(silenced)
    try:
        rule = plan.rule_without(silenced).fit(votes)
    except ValueError:
        return False
    return len(captured) <= rule.max_f(votes) and (
        rule.outer.given_f is None or rule.buckets != votes or len(captured) <= rule.outer.given_f
    )


@pytest.mark.parametrize("rule", HIERARCHIES, ids=lambda d: f"{d.inner}-{d.outer}-{d.buckets}")
def test_what_is_accepted_stands_every_placement_and_what_is_refused_does_not(rule):
    """For all p <= 12 ranks, in groups of up to 6."""
    accepted = 0
    for groups, q in cases(12):
        detox = Detox(1, rule.inner, rule.outer, rule.buckets)
        if rule.buckets and rule.buckets > len(groups):
            continue
        declared = Detox(1, rule.inner, rule.outer, rule.buckets, num_byzantine=q)
        if objection := declared.objection(groups):
            if detox.objection(groups):
                continue
            plan = Plan(detox, groups, detox.fit(groups), detox.hierarchy())
            assert not all(stood(plan, *each) for each in placements(groups, q)), objection
        else:
            accepted += 1
            plan = Plan(declared, groups, declared.fit(groups), declared.hierarchy())
            assert all(stood(plan, *each) for each in placements(groups, q)), (groups, q)
    assert accepted > 15


def test_pairs_that_tie_and_capture_are_refused():
    text = (
        r"^num_byzantine = 3 ranks can leave 1 of 3 groups without a majority and capture 1: "
        r"Median needs n >= 2f \+ 1: 2 votes with f = 1 \(needs 3\)\. What fits 6 ranks: "
    )
    with pytest.raises(ValueError, match=text):
        Detox(group_size=2, num_byzantine=3, outer="median").plan(6)
    assert Detox(group_size=2, num_byzantine=2, outer="median").plan(6)


def test_no_f_that_was_declared_is_lowered_by_groups_without_a_vote():
    plan = Detox(group_size=3, outer="krum", num_byzantine=5).plan(27)
    assert plan.rule.outer.given_f == 2
    assert plan.rule_without([0]).outer.given_f == 1  # it took two of the five
    assert plan.rule_without([0, 1]).outer.given_f == 0
    with pytest.raises(ValueError, match=r"6 votes with f = 2"):
        plan.rule_without([0, 1, 2])  # it took more than were declared: as many as at first
    given = Detox(group_size=3, outer="krum(f=2)").plan(24)
    assert given.rule_without([3]).fit(7).outer.given_f == 2
    with pytest.raises(ValueError, match=r"Krum needs n >= 2f \+ 3: 6 votes with f = 2"):
        given.rule_without([3, 4])
    as_many_as_it_stands = Detox(group_size=3, outer="krum").plan(24)
    assert as_many_as_it_stands.rule_without([3, 4]).fit(6).outer.given_f == 1
