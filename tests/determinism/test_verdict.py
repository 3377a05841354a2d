"""The verdict on a gradient that all ranks computed, from what they tell."""

import json
import threading

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.determinism.conditions import (
    common_conditions,
    denormals,
    differing,
    rounding,
    table,
)
from horovod_detox.determinism.trial import RankFailed, compare_trials, from_first_rank
from horovod_detox.determinism.verdict import PreflightReport, Trial, judge_trials
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.vote.fingerprint import digest
from tests.cluster import failing_everywhere

TENSORS = ("conv1.weight", "conv1.bias", "fc.weight")
NOTHING = np.empty(0, np.uint8)
SETTINGS = {"host": "a", "torch": "2.13", "torch threads": "4"}


def of_text(text):
    return digest(np.frombuffer(text.encode(), np.uint8)).tobytes().hex()


def trials(count, changes):
    """Return equal trials, but for changes: `rank -> {(part, name): text}`."""
    made = []
    for rank in range(count):
        parts = {
            part: {name: of_text(name) for name in TENSORS}
            for part in ("weights", "gradients", "repeated")
        }
        parts["conditions"] = dict(SETTINGS)
        for (part, name), text in changes.get(rank, {}).items():
            if part == "conditions":
                parts[part][name] = text
            elif part == "both":
                parts["gradients"][name] = parts["repeated"][name] = of_text(text)
            else:
                parts[part][name] = of_text(text)
        made.append(Trial(**parts))
    return made


ODD = {("both", "conv1.weight"): "other"}
TWO_THREADS = {("conditions", "torch threads"): "2"}
CASES = {
    "all the same": (6, {}, "deterministic: 6 ranks computed the same bits"),
    "alone": (1, {}, "deterministic: 1 rank computed the same bits twice"),
    "hosts change no bits": (
        3,
        {1: {("conditions", "host"): "b"}},
        "deterministic: 3 ranks computed the same bits",
    ),
    "settings alone change nothing": (
        3,
        {1: TWO_THREADS},
        "deterministic: 3 ranks computed the same bits",
    ),
    "threads": (
        6,
        {1: ODD | TWO_THREADS, 4: ODD | TWO_THREADS},
        "nondeterministic at tensor conv1.weight: ranks 1, 4 differ: torch threads 2 against 4",
    ),
    "threads of each of two": (
        2,
        {1: ODD | TWO_THREADS},
        "nondeterministic at tensor conv1.weight: rank 1 differs: torch threads 2 against 4",
    ),
    "a setting that others lack": (
        3,
        {1: ODD | {("conditions", "MKL_CBWR"): "AVX2"}},
        "rank 1 faulty at tensor conv1.weight: it alone differs, and has MKL_CBWR AVX2 against not "
        "set",
    ),
    "a host of another kind": (
        6,
        dict.fromkeys([2, 3], ODD | TWO_THREADS | {("conditions", "host"): "b"}),
        "ranks 2, 3 faulty at tensor conv1.weight: they differ, and have torch threads 2 against 4",
    ),
    "several tensors, in the order of the model": (
        3,
        {1: TWO_THREADS | {("both", name): "other" for name in reversed(TENSORS)}},
        "rank 1 faulty at tensor conv1.weight and 2 others: it alone differs, and has torch "
        "threads 2 against 4",
    ),
    "a fault": (
        6,
        {3: {("both", "fc.weight"): "other"}},
        "rank 3 faulty at tensor fc.weight: it alone differs, with the settings of the others",
    ),
    "two faults": (
        6,
        {3: {("both", "fc.weight"): "other"}, 5: {("both", "conv1.bias"): "another"}},
        "ranks 3, 5 faulty at tensor conv1.bias and 1 other: they differ, with the settings of the "
        "others",
    ),
    "a fault on a host of its own": (
        3,
        {2: ODD | {("conditions", "host"): "b"}},
        "rank 2 faulty at tensor conv1.weight: it alone differs, with the settings of the others",
    ),
    "a fault among ranks whose settings differ to no effect": (
        6,
        {0: TWO_THREADS, 2: TWO_THREADS, 3: ODD | TWO_THREADS},
        "rank 3 faulty at tensor conv1.weight: it alone differs, with the settings of the others",
    ),
    "a fault beside other threads": (
        6,
        {1: ODD | TWO_THREADS, 3: {("both", "fc.weight"): "other"}},
        "rank 1 faulty at tensor conv1.weight: it alone differs, and has torch threads 2 against "
        "4; rank 3 faulty at tensor fc.weight: it alone differs, with the settings of the others",
    ),
    "nobody can tell who": (
        2,
        {1: ODD},
        "nondeterministic at tensor conv1.weight: ranks 0, 1 have no majority, with the same "
        "settings",
    ),
    "all differ": (
        3,
        {rank: {("both", "fc.weight"): f"of rank {rank}"} for rank in range(3)},
        "nondeterministic at tensor fc.weight: ranks 0, 1, 2 have no majority, with the same "
        "settings",
    ),
    "run to run, one rank of several": (
        4,
        {2: {("repeated", "conv1.bias"): "other"}},
        "nondeterministic at tensor conv1.bias: rank 2's own two computations differ, but not "
        "those of the others with the same settings: probably a fault",
    ),
    "run to run, by a setting": (
        4,
        {2: TWO_THREADS | {("repeated", "fc.weight"): "other"}},
        "nondeterministic at tensor fc.weight: rank 2's own two computations differ: torch threads "
        "2 against 4",
    ),
    "run to run everywhere": (
        2,
        {rank: {("repeated", "conv1.bias"): "other"} for rank in range(2)},
        "nondeterministic at tensor conv1.bias: of each of ranks 0, 1 the two computations differ: "
        "use deterministic kernels",
    ),
    "weights of two": (
        2,
        {1: {("weights", "fc.weight"): "other", **ODD}},
        "rank 1 had other weights than the others before anything was computed, at tensor "
        "fc.weight: broadcast them first (broadcast_parameters, broadcast_variables)",
    ),
    "a weight of one": (
        4,
        {3: {("weights", "fc.weight"): "other", **ODD}},
        "rank 3 had other weights than the others before anything was computed, at tensor "
        "fc.weight: broadcast them first (broadcast_parameters, broadcast_variables); if they "
        "were, rank 3 is faulty",
    ),
}


NOT_FIT = {
    "threads",
    "threads of each of two",
    "nobody can tell who",
    "all differ",
    "run to run everywhere",
    "weights of two",
}
"""Cases in which votes would accuse honest ranks, or there would be none."""


@pytest.mark.parametrize("name", CASES)
def test_verdicts(name):
    count, changes, words = CASES[name]
    report = judge_trials(trials(count, changes))
    assert str(report) == words
    assert report.is_deterministic == (name not in NOT_FIT)
    assert json.loads(report.to_json())["words"] == words
    assert json.loads(report.to_json())["conditions"] == [dict(each) for each in report.conditions]


def test_models_that_differ():
    made = trials(3, {})
    other = dict(made[0].weights)
    del other["fc.weight"]
    made[2] = Trial(SETTINGS, other, other, other)
    assert str(judge_trials(made)) == (
        "the models differ: rank 0 has fc.weight where rank 2 has no parameter"
    )


def test_between_groups_bits_may_differ():
    """Votes are taken inside groups: ranks 1, 3, 5 are a group."""
    changes = dict.fromkeys((1, 3, 5), ODD | TWO_THREADS)
    report = judge_trials(trials(6, changes), Detox(group_size=3).plan(6).groups)
    assert report.is_deterministic
    assert str(report) == (
        "deterministic inside each group; between groups ranks 1, 3, 5 differ: torch threads 2 "
        "against 4"
    )
    del changes[5]
    report = judge_trials(trials(6, changes), Detox(group_size=3).plan(6).groups)
    assert report.verdict == "nondeterministic"


def test_groups_of_one_are_compared_with_each_other():
    groups = Detox(group_size=1).plan(6).groups
    assert judge_trials(trials(6, {3: ODD}), groups).verdict == "faulty"


def test_the_table_shows_what_differs_or_everything():
    report = judge_trials(trials(3, {1: ODD | TWO_THREADS}))
    assert report.table().splitlines() == [
        "setting        value  ranks",
        "torch threads  4      0, 2",
        "               2      1",
    ]
    assert [line.split()[0] for line in report.table(everything=True).splitlines()] == [
        "setting",
        "host",
        "torch",
        "torch",
        "2",
    ]
    assert table([{"a": "1"}, {}], ["a"], ranks=[7, 9]).splitlines()[1:] == [
        "a        1        7",
        "         not set  9",
    ]


def test_settings_are_those_of_the_process(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    mine = common_conditions()
    assert mine["MKL_CBWR"] == "AVX2"
    assert {"host", "CPU", "python", "numpy"} <= mine.keys()
    monkeypatch.delenv("MKL_CBWR")
    assert differing([mine, common_conditions()]) == ["MKL_CBWR"]


def test_a_batch_is_that_of_the_first_rank():
    def program(collectives):
        values = np.full(2 + collectives.rank, collectives.rank + 1.5, np.float32)
        mine = [("float32", values.shape, values.view(np.uint8)), ("int8", (0,), NOTHING)]
        return from_first_rank(collectives, "batch", mine)

    for (_, shape, data), (dtype, _, nothing) in InProcessCluster(3).run(program):
        assert (list(shape), data.view(np.float32).tolist()) == ([2], [1.5, 1.5])
        assert (dtype, len(nothing)) == ("int8", 0)


def test_batches_of_other_structures_are_refused_everywhere():
    def program(collectives):
        from_first_rank(collectives, "batch", [("int8", (0,), NOTHING)] * (collectives.rank + 1))

    failing_everywhere(program, 3, ValueError, r"has \[1, 2, 3\] tensors, by rank")


def test_a_rank_that_fails_ends_the_preflight_everywhere():
    def program(collectives):
        def trial():
            if collectives.rank == 1:
                raise ZeroDivisionError("its own error")
            return trials(1, {})[0]

        compare_trials(collectives, None, trial)

    error = (RankFailed, ZeroDivisionError)
    failing_everywhere(program, 3, error, "rank 1 could not compute.*its own error|^its own error")


def test_ranks_compare_what_they_computed():
    made = trials(4, {2: ODD})

    def program(collectives):
        return compare_trials(collectives, None, lambda: made[collectives.rank])

    reports = InProcessCluster(4).run(program)
    assert reports == [judge_trials(made)] * 4
    assert isinstance(reports[0], PreflightReport)


def test_whether_denormal_numbers_are_kept_is_tried_out():
    torch = pytest.importorskip("torch")
    found = []
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush them")
    try:
        found.append(denormals())
        thread = threading.Thread(target=lambda: found.append(denormals()))
        thread.start()
        thread.join()
        assert "denormal numbers flushed to zero" in rounding()
    finally:
        torch.set_flush_denormal(False)
    assert found == ["flushed to zero"] * 2
    assert common_conditions()["denormal numbers"] == "kept"
