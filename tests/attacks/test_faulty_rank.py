"""A faulty rank, step after step: its labels, what it remembers, what it is told of the others."""

import numpy as np
import pytest

from horovod_detox.attacks import (
    ATTACKS,
    ALittleIsEnough,
    FaultyRank,
    Gaussian,
    InnerProduct,
    LabelFlip,
    OptimalInnerProduct,
    Reverse,
    Stale,
    by_name,
)
from horovod_detox.attacks.omniscient import largest_safe_z
from tests.attacks.scenes import D, gradients, hamming, uniform_groups


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_label_flip(dtype):
    labels = np.arange(10, dtype=dtype)
    flipped = LabelFlip(10).labels(labels)
    assert flipped.dtype == dtype
    assert flipped.tolist() == list(range(9, -1, -1))
    assert labels.tolist() == list(range(10))


def test_label_flip_keeps_torch_tensors():
    torch = pytest.importorskip("torch")
    flipped = LabelFlip(3).labels(torch.tensor([0, 1, 2], dtype=torch.uint8))
    assert flipped.dtype == torch.uint8
    assert flipped.tolist() == [2, 1, 0]


def test_label_flip_keeps_tensorflow_tensors():
    tf = pytest.importorskip("tensorflow")
    flipped = LabelFlip(3).labels(tf.constant([0, 1, 2], tf.uint8))
    assert flipped.dtype == tf.uint8
    assert flipped.numpy().tolist() == [2, 1, 0]


def test_drill_flips_labels_only_of_faulty_ranks_and_steps():
    attack = LabelFlip(10, ranks=(1,), steps=(5, 6))
    groups = uniform_groups(3, 3)
    labels = np.array([0, 1])
    assert FaultyRank(attack, 1, groups).labels(5, labels).tolist() == [9, 8]
    assert FaultyRank(attack, 1, groups).labels(6, labels) is labels
    assert FaultyRank(attack, 0, groups).labels(5, labels) is labels
    assert FaultyRank(Reverse(ranks=(1,)), 1, groups).labels(5, labels) is labels


def test_honest_ranks_and_steps_send_the_gradient_itself():
    groups = uniform_groups(3, 3)
    own = gradients(D)
    for rank, step in [(0, 5), (1, 4), (1, 6)]:
        liar = FaultyRank(Reverse(ranks=(1,), steps=(5, 6)), rank, groups)
        assert liar.corrupt(step, own) is own
    assert FaultyRank(Reverse(ranks=(1,), steps=(5, 6)), 1, groups).corrupt(5, own) is not own


def test_stale_drill_remembers_lag_gradients_even_when_the_buffer_is_reused():
    liar = FaultyRank(Stale(lag=2, ranks=(1,), steps=(2, 99)), 1, uniform_groups(3, 3))
    buffer = np.empty(4, np.float32)
    sent = []
    for step in range(6):
        buffer[:] = step
        sent.append(int(liar.corrupt(step, buffer)[0]))
    assert sent == [0, 1, 0, 1, 2, 3]


def test_drill_gives_the_honest_copies_of_this_step_to_omniscient_attacks():
    groups = uniform_groups(3, 3)
    everyone = gradients(9, D)
    attack = InnerProduct(0.5, ranks=(1, 4, 7))
    liar = FaultyRank(attack, 4, groups)
    assert liar.attack.omniscient
    assert liar.faulty_ranks(0) == (1, 4, 7)
    sent = liar.corrupt(0, everyone[4], everyone)
    honest = everyone[[0, 2, 3, 5, 6, 8]]
    np.testing.assert_allclose(sent, -0.5 * honest.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", sorted(n for n, attack in ATTACKS.items() if attack.omniscient))
def test_all_faulty_ranks_of_an_omniscient_attack_send_the_same(name):
    groups, everyone = uniform_groups(3, 3), gradients(9, D)
    faulty = (1, 2, 4)
    attack = by_name(name, ranks=faulty)
    lies = {
        FaultyRank(attack, rank, groups)
        .corrupt(3, everyone[rank], everyone, lambda copies: np.median(copies, axis=0))
        .tobytes()
        for rank in faulty
    }
    assert len(lies) == 1


def test_drill_counts_ranks_and_faults_of_the_step_for_z():
    groups = uniform_groups(5, 3)
    everyone = gradients(15, D)
    sent = FaultyRank(ALittleIsEnough(ranks=(1, 4)), 4, groups).corrupt(0, everyone[4], everyone)
    honest = np.delete(everyone, (1, 4), axis=0)
    expected = honest.mean(axis=0) - largest_safe_z(15, 2) * honest.std(axis=0)
    np.testing.assert_allclose(sent, expected, atol=1e-6)


def test_drill_aggregates_the_lie_of_all_faulty_ranks():
    groups = uniform_groups(3, 3)
    everyone = gradients(9, D)
    before = everyone.copy()
    seen = []

    def aggregate(copies):
        seen.append(copies.copy())
        return copies.mean(axis=0)

    liar = FaultyRank(OptimalInnerProduct(ranks=(1, 4)), 1, groups)
    sent = liar.corrupt(0, everyone[1], everyone, aggregate)
    assert hamming(everyone, before) == 0
    lies = [copies[1] for copies in seen]
    assert any(hamming(sent, lie) == 0 for lie in lies)
    for copies, lie in zip(seen, lies, strict=True):
        expected = before.copy()
        expected[[1, 4]] = lie
        assert hamming(copies, expected) == 0


def test_drill_refuses_what_it_cannot_use():
    groups = uniform_groups(3, 3)
    liar = FaultyRank(InnerProduct(ranks=(1,)), 1, groups)
    with pytest.raises(ValueError, match="needs the gradients of all ranks"):
        liar.corrupt(0, gradients(D))
    with pytest.raises(ValueError, match=r"shape \(8, 3000\), not \(9, 3000\)"):
        liar.corrupt(0, gradients(D), gradients(8, D))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), not \(d,\)"):
        liar.corrupt(0, gradients(2, 3))
    with pytest.raises(ValueError, match="outside a job of 9 ranks"):
        FaultyRank(Reverse(ranks=(9,)), 0, groups)


def test_group_members_vote_for_a_colluders_lie_once_they_are_a_majority():
    """Two colluders of three outvote the honest member: their copies are equal, bit for bit."""
    groups = uniform_groups(3, 3)
    attack = Gaussian(ranks="concentrated:2", seed=3)
    own = gradients(D)
    faulty = attack.faulty_ranks(0, groups)
    (captured,) = {groups.of(rank) for rank in faulty}
    copies = [
        FaultyRank(attack, r, groups).corrupt(0, own).tobytes() for r in groups.members[captured]
    ]
    assert sorted(copies.count(copy) for copy in copies) == [1, 2, 2]
