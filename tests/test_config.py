"""Settings: validated when made, from the environment, and planned for p ranks."""

import pytest

from horovod_detox import Detox
from horovod_detox.aggregators import Bulyan, Median, MultiKrum
from horovod_detox.exchange import EXCHANGES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 0}, "group_size = 0: it must be an integer of at least 1"),
        ({"group_size": 2.5}, "group_size = 2.5"),
        ({"group_size": True}, "group_size = True"),
        ({"buckets": 0}, "buckets = 0"),
        ({"num_byzantine": -1}, "num_byzantine = -1"),
        ({"seed": -1}, "seed = -1"),
        ({"momentum": 1.0}, "momentum = 1.0: it must be at least 0 and less than 1"),
        ({"momentum": -0.1}, "momentum = -0.1"),
        ({"momentum": float("nan")}, "momentum = nan"),
        ({"momentum": "0.9"}, "momentum = '0.9'"),
        ({"momentum": True}, "momentum = True"),
        ({"tolerance": 1}, "tolerance = 1: it must be at least 0 and less than 1"),
        ({"tolerance": -1e-5}, "tolerance = -1e-05"),
        ({"tolerance": float("nan")}, "tolerance = nan"),
        (
            {"tolerance": 1e-5, "exchange": "gathered"},
            "tolerance = 1e-05: with exchange = 'gathered' several.*use exchange='sharded'",
        ),
        ({"tolerance": 1e-5, "exchange": "leaders"}, "with exchange = 'leaders' several"),
        ({"tolerance": 1e-5, "witnesses": 1}, "tolerance = 1e-05: each of witnesses = 1"),
        ({"one_round_bytes": -1}, "one_round_bytes = -1"),
        ({"overlap_bytes": -1}, "overlap_bytes = -1"),
        ({"scrub_every": -1}, "scrub_every = -1"),
        ({"witnesses": -1}, "witnesses = -1"),
        (
            {"witnesses": 2, "exchange": "leaders"},
            "witnesses = 2: they check what one rank computes",
        ),
        ({"timeout": 0}, "timeout = 0: it must be positive"),
        ({"placement": "near"}, "placement = 'near': it must be one of spread, packed, random"),
        (
            {"exchange": "pigeon"},
            "exchange = 'pigeon': it must be one of sharded, gathered, leaders",
        ),
        ({"outer": "medain"}, "outer: there is no aggregator 'medain': did you mean 'median'"),
        ({"inner": "krum(ff=1)"}, "inner: krum has no parameter 'ff'"),
        ({"preflight": 1}, "preflight = 1: it must be True or False"),
        ({"outer": 7}, "outer: 7 is neither an aggregator nor the name of one"),
    ],
)
def test_a_bad_value_names_field_value_and_bound(settings, message):
    with pytest.raises(ValueError, match=message):
        Detox(**settings)


def test_every_exchange_can_be_chosen():
    assert [Detox(exchange=name).exchange for name in EXCHANGES] == list(EXCHANGES)
    assert Detox().exchange == next(iter(EXCHANGES))


def test_a_misspelt_field_is_refused():
    with pytest.raises(TypeError, match="gruop_size"):
        Detox(gruop_size=3)  # type: ignore[call-arg]


def test_every_field_has_its_variable():
    detox = Detox.from_environment(
        {
            "HOROVOD_DETOX_GROUP_SIZE": "5",
            "HOROVOD_DETOX_INNER": "multi_krum(f=1)",
            "HOROVOD_DETOX_OUTER": "mean",
            "HOROVOD_DETOX_BUCKETS": "2",
            "HOROVOD_DETOX_NUM_BYZANTINE": "none",
            "HOROVOD_DETOX_MOMENTUM": "0.9",
            "HOROVOD_DETOX_TOLERANCE": "0",
            "HOROVOD_DETOX_PLACEMENT": "packed",
            "HOROVOD_DETOX_FINGERPRINT": "blake3",
            "HOROVOD_DETOX_MAX_SKIPPED_STEPS": "3",
            "HOROVOD_DETOX_EXCHANGE": "sharded",
            "HOROVOD_DETOX_ONE_ROUND_BYTES": "4096",
            "HOROVOD_DETOX_OVERLAP_BYTES": "8192",
            "HOROVOD_DETOX_SCRUB_EVERY": "7",
            "HOROVOD_DETOX_WITNESSES": "2",
            "HOROVOD_DETOX_SEED": "9",
            "HOROVOD_DETOX_TIMEOUT": "12.5",
            "HOROVOD_DETOX_PREFLIGHT": "False",
            "HOROVOD_DETOX_ATTACK": "zero@1",
            "PATH": "/bin",
        }
    )
    assert detox == Detox(
        group_size=5,
        inner="multi_krum(f=1)",
        outer="mean",
        buckets=2,
        num_byzantine=None,
        momentum=0.9,
        placement="packed",
        fingerprint="blake3",
        max_skipped_steps=3,
        exchange="sharded",
        one_round_bytes=4096,
        overlap_bytes=8192,
        scrub_every=7,
        witnesses=2,
        seed=9,
        timeout=12.5,
        preflight=False,
    )
    assert len(Detox().describe()) == 18  # a new field needs a line above
    # It does not go with witnesses.
    assert Detox.from_environment({"HOROVOD_DETOX_TOLERANCE": "1e-5"}).tolerance == 1e-5


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("HOROVOD_DETOX_GROUPSIZE", "3", "HOROVOD_DETOX_GROUPSIZE is not a variable"),
        ("HOROVOD_DETOX_MOMENTUM", "1", "momentum = 1.0: it must be"),
        ("HOROVOD_DETOX_SEED", "x", "HOROVOD_DETOX_SEED = 'x': it must be a number"),
        ("HOROVOD_DETOX_TIMEOUT", "soon", "HOROVOD_DETOX_TIMEOUT = 'soon': it must be a number"),
        ("HOROVOD_DETOX_PREFLIGHT", "no", "HOROVOD_DETOX_PREFLIGHT = 'no': it must be 1 or 0"),
        ("HOROVOD_DETOX_GROUP_SIZE", "none", "HOROVOD_DETOX_GROUP_SIZE = 'none'"),
    ],
)
def test_a_bad_variable_is_named(variable, text, message):
    with pytest.raises(ValueError, match=message):
        Detox.from_environment({variable: text})


def test_f_of_the_rules_follows_from_num_byzantine():
    rule = Detox(group_size=3, outer="bulyan", num_byzantine=5).plan(45).rule
    assert rule.outer == Bulyan(f=2)
    rule = Detox(inner="multi_krum", outer="mean", buckets=2, num_byzantine=5).plan(45).rule
    assert rule.inner == MultiKrum(f=2)
    assert Detox(outer=Median(), num_byzantine=5).plan(45).rule.outer == Median()


def test_without_num_byzantine_rules_stand_as_much_as_they_can():
    assert Detox(outer="bulyan").plan(45).rule.fit(15).outer == Bulyan(f=3)


def test_bounds_name_the_relation_and_what_fits():
    with pytest.raises(
        ValueError, match=r"Bulyan needs n >= 4f \+ 3: 15 votes with f = 4.*group_size=3 with"
    ):
        Detox(outer="bulyan", num_byzantine=8).plan(45)
    with pytest.raises(ValueError, match=r"Mean tolerates no faulty vote: 3 votes with f = 1"):
        Detox(outer="mean", num_byzantine=2).plan(9)
    Detox(outer="mean", num_byzantine=1).plan(9)
    with pytest.raises(ValueError, match=r"2 votes.*Bulyan needs n >= 4f \+ 3.*What fits 6 ranks"):
        Detox(outer="bulyan").plan(6)
    with pytest.raises(ValueError, match=r"Krum needs n >= 2f \+ 3: 3 votes with f = 2"):
        Detox(outer="krum(f=2)").plan(9)


def test_the_advice_is_right():
    with pytest.raises(ValueError, match="What fits 12 ranks") as caught:
        Detox(outer="krum", num_byzantine=11).plan(12)
    advice = str(caught.value).split("ranks: ")[-1]
    for setting in advice.split(", "):
        group_size, largest = (part.split("=")[1] for part in setting.split(" with "))
        Detox(outer="krum", group_size=int(group_size), num_byzantine=int(largest)).plan(12)
        with pytest.raises(ValueError, match="Krum needs"):
            Detox(outer="krum", group_size=int(group_size), num_byzantine=int(largest) + 1).plan(12)


def test_more_buckets_than_votes_are_refused():
    with pytest.raises(ValueError, match="buckets = 4: there are only 3 votes"):
        Detox(buckets=4).plan(9)


def test_ranks_that_fit_no_group():
    with pytest.raises(ValueError, match="2 ranks cannot form a group of 3: choose group_size"):
        Detox().plan(2)


def test_witnesses_need_groups_to_come_from():
    assert Detox(witnesses=2).plan(9).config.witnesses == 2
    with pytest.raises(ValueError, match="2 groups of 6 ranks have at most 1, one in each other"):
        Detox(witnesses=2).plan(6)
    with pytest.raises(ValueError, match="2 groups of 7 ranks have at most 0"):
        Detox(witnesses=1).plan(7)
