"""What the ranks agree on at the start, on the in-process cluster."""

import logging

import pytest

from horovod_detox import Detox
from horovod_detox.attacks import Zero
from horovod_detox.exchange.collectives import InProcessCluster
from horovod_detox.session import Session, agree


def test_all_ranks_form_the_same_session(monkeypatch):
    monkeypatch.setenv("HOROVOD_DETOX_ATTACK", "zero@1")
    sessions = InProcessCluster(6).run(agree)
    for session in sessions:
        assert session.config == Detox()
        assert session.attack == Zero(ranks=(1,))
        assert session.plan() == sessions[0].plan()


def test_an_error_on_one_rank_is_raised_on_all(monkeypatch):
    monkeypatch.setenv("HOROVOD_DETOX_GROUP_SIZE", "many")

    def program(collectives):
        detox = None if collectives.rank == 4 else Detox()
        with pytest.raises(ValueError, match="rank 4: HOROVOD_DETOX_GROUP_SIZE = 'many'"):
            agree(collectives, detox)
        return True

    assert InProcessCluster(6).run(program) == [True] * 6


def test_differing_settings_name_field_and_ranks():
    def program(collectives):
        detox = Detox(timeout=5 + (collectives.rank >= 2))
        with pytest.raises(
            ValueError, match=r"differ: timeout is 5 on ranks 0, 1 but 6 on ranks 2, 3, 4, 5"
        ):
            agree(collectives, detox)
        return True

    assert InProcessCluster(6).run(program) == [True] * 6


def test_one_process_trains_plainly_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="horovod_detox"):
        (session,) = InProcessCluster(1).run(agree)
    assert (session.plan(), session.ledger()) == (None, None)
    assert len(caplog.messages) == 1
    assert "trains plainly" in caplog.messages[0]


def test_subsets_have_plans_and_accounts_of_their_own():
    session = Session(Detox(group_size=3), hosts=["a", "a", "b", "b", "c", "c"])
    assert session.plan() is session.plan(range(6))
    subset = session.plan((0, 2, 4))
    assert subset is not None
    assert subset.groups.members == ((0, 1, 2),)
    assert session.ledger((0, 2, 4)) is session.ledger((0, 2, 4))
    assert session.ledger((0, 2, 4)) is not session.ledger()
    with pytest.raises(ValueError, match="2 ranks cannot form a group of 3"):
        session.plan((0, 1))
