"""Groups: every rank in one group, sizes even, placements as promised."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_detox.cli.plan import parse_hosts
from horovod_detox.planning.capture import worst_host
from horovod_detox.vote.groups import (
    PLACEMENTS,
    form_groups,
    most_witnesses,
    slice_holders,
)

PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"


@given(
    st.integers(1, 60), st.integers(1, 9), st.sampled_from(PLACEMENTS), st.integers(0, 5), st.data()
)
def test_groups_partition_the_ranks_evenly(p, r, placement, seed, data):
    if p < r:
        with pytest.raises(ValueError, match=f"{p} ranks cannot form a group of {r}"):
            form_groups(p, r, placement)
        return
    hosts = data.draw(st.lists(st.integers(0, 4), min_size=p, max_size=p))
    groups = form_groups(p, r, placement, hosts, seed)
    assert sorted(rank for members in groups.members for rank in members) == list(range(p))
    assert len(groups) == p // r
    sizes = [len(members) for members in groups.members]
    assert min(sizes) >= r
    assert max(sizes) - min(sizes) <= 1
    assert all(rank in groups.members[groups.of(rank)] for rank in range(p))
    assert groups.leaders == tuple(min(members) for members in groups.members)


@given(st.integers(1, 6), st.integers(2, 5))
def test_spread_puts_the_members_of_a_group_on_different_hosts(k, r):
    hosts = [host for host in range(r) for _ in range(k)]
    for members in form_groups(k * r, r, "spread", hosts).members:
        assert len({hosts[rank] for rank in members}) == r


@given(st.integers(1, 6), st.integers(2, 5))
def test_packed_puts_the_members_of_a_group_on_one_host(k, r):
    hosts = [host for _ in range(r) for host in range(k)]  # dealt in turn
    for members in form_groups(k * r, r, "packed", hosts).members:
        assert len({hosts[rank] for rank in members}) == 1


def test_random_placement_follows_the_seed():
    assert form_groups(30, 3, "random", seed=1) == form_groups(30, 3, "random", seed=1)
    assert form_groups(30, 3, "random", seed=1) != form_groups(30, 3, "random", seed=2)


def test_an_unknown_placement_is_named():
    with pytest.raises(ValueError, match="'scattered' is not one of spread, packed, random"):
        form_groups(6, 3, "scattered")


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("p", "r"), [(9, 3), (11, 3), (12, 2), (5, 1), (45, 3)])
def test_witnesses_are_of_other_groups_and_share_the_work(p, r, placement):
    groups = form_groups(p, r, placement)
    most = most_witnesses(groups)
    holders = slice_holders(groups, most)
    assert holders[0].tolist() == list(range(p))
    for row in holders:
        assert sorted(row) == list(range(p))
    for who in holders.T.tolist():
        assert len({groups.of(rank) for rank in who}) == 1 + most


def documented_hosts():
    """Yield the rows of the table in docs/hosts.md."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            hosts, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            yield hosts.strip("`"), cells


@pytest.mark.parametrize(("text", "cells"), list(documented_hosts()))
def test_what_a_bad_host_does_is_as_documented(text, cells):
    hosts = parse_hosts(text, 0)
    said = []
    for placement in ("spread", "packed"):
        groups = form_groups(len(hosts), 3, placement, hosts)
        host, (captured, tied) = worst_host(hosts, groups)
        bad = [sum(hosts[rank] == host for rank in members) for members in groups.members]
        lost = f"captures {captured}" if captured else f"ties {tied}"
        said += [", ".join(map(str, bad))]
        said += [f"{lost} of {len(groups)}" if captured or tied else "is outvoted"]
    assert cells == said
