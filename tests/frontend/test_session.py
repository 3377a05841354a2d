"""What the ranks agree on at the start, on the in-process cluster."""

import logging
import re
import socket
import threading
from types import SimpleNamespace

import pytest

from horovod_detox import Detox
from horovod_detox.attacks import Zero
from horovod_detox.determinism.conditions import rounding
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.frontend import session as session_module
from horovod_detox.frontend.session import Session, agree


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
    assert "trains without DETOX" in caplog.messages[0]


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, True),
        ({"exchange": "leaders"}, True),
        ({"exchange": "gathered", "one_round_bytes": 0}, True),
        ({"one_round_bytes": 0}, False),
    ],
)
def test_where_ranks_round_differently_one_computes_for_all(fields, changed, monkeypatch, caplog):
    """Two processors: those that hold another update by its last bits would be named."""
    here = threading.local()
    monkeypatch.setattr(session_module, "rounding", lambda: f"processor {here.rank % 2}")

    def program(collectives):
        here.rank = collectives.rank
        return agree(collectives, Detox(group_size=3, **fields))

    with caplog.at_level(logging.WARNING, logger="horovod_detox"):
        sessions = InProcessCluster(6).run(program)
    for session in sessions:
        plan, alike = session.plan(), session.plan((0, 2, 4))
        assert plan is not None
        assert alike is not None
        assert (plan.config.exchange, plan.config.one_round_bytes) == ("sharded", 0)
        assert alike.config == Detox(group_size=3, **fields)
    warnings = [text for text in caplog.messages if "round differently" in text]
    assert len(warnings) == changed
    assert all("(processor 0 but processor 1): each part" in text for text in warnings)


def test_what_rounding_depends_on_is_told(monkeypatch):
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)
    before = rounding()
    assert "numpy" in before
    monkeypatch.setenv("NUMBA_CPU_NAME", "nehalem")
    assert rounding() == f"{before}, NUMBA_CPU_NAME=nehalem"


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


@pytest.mark.parametrize(
    ("settings", "hosts", "risk"),
    [
        (Detox(), "aaabbb", "a could capture 1 of 2 groups, which the rules do not tolerate"),
        (Detox(), "aaaabbbcc", "a could capture 1 of 3 groups, which the rules tolerate"),
        (Detox(outer="mean"), "aaaabbbcc", "a could capture 1 of 3 groups, which the rules do not"),
        (
            Detox(group_size=4),
            "aaaabbbb",
            "a could tie 2 of 2 groups, which the rules do not tolerate",
        ),
        (Detox(), "aabbcc", "^$"),
        (Detox(placement="packed"), "aaabbb", "^$"),
        (Detox(group_size=1), "aaabbb", "^$"),
        (Detox(), "aaaaaa", "^$"),
        (Detox(num_byzantine=3), "aaaabbbcc", "^$"),
    ],
)
def test_what_a_whole_bad_host_could_do_is_said(settings, hosts, risk):
    assert re.search(risk, Session(settings, list(hosts)).host_risk())


def test_one_rank_warns_of_the_hosts(monkeypatch, caplog):
    monkeypatch.delenv("HOROVOD_HOSTNAME", raising=False)
    names = iter("aaabbb")
    monkeypatch.setattr(socket, "gethostname", lambda: next(names))
    with caplog.at_level(logging.WARNING, logger="horovod_detox"):
        InProcessCluster(6).run(agree)
    (message,) = caplog.messages
    assert message.startswith("the vote does not protect from a whole bad host: ")


def test_accounts_know_the_hosts_of_their_ranks():
    session = Session(Detox(group_size=3), hosts=["a", "a", "b", "b", "c", "c"])
    everyone, subset = session.ledger(), session.ledger((1, 2, 5))
    assert everyone is not None
    assert subset is not None
    assert everyone.report().hosts == dict(enumerate("aabbcc"))
    assert subset.report().hosts == {1: "a", 2: "b", 5: "c"}


def test_attacks_that_differ_are_named(monkeypatch):
    mine = threading.local()
    environ = SimpleNamespace(get=lambda name, default=None: f"zero@{mine.rank % 2}")
    monkeypatch.setattr(session_module, "os", SimpleNamespace(environ=environ))

    def program(collectives):
        mine.rank = collectives.rank
        with pytest.raises(ValueError, match="attack is zero@0 on ranks 0, 2 but zero@1 on ranks"):
            agree(collectives, Detox())
        return True

    assert InProcessCluster(4).run(program) == [True] * 4
