"""What holds for every rule of the registry."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given

from horovod_detox.aggregators import (
    AGGREGATORS,
    PRE_AGGREGATORS,
    Hierarchy,
    Mean,
    by_name,
    gram_matrix,
)
from horovod_detox.arrays.namespaces import dtype_name, to_numpy
from horovod_detox.registry import build
from tests import definitions
from tests.votes import PRE_CASES, RULE_CASES, bits, draw, few_examples, grid_votes, normal_votes

every_rule = pytest.mark.parametrize(("name", "parameters"), RULE_CASES)
every_pre_aggregator = pytest.mark.parametrize(("name", "parameters"), PRE_CASES)

SPECTRAL = {"caf", "smea"}
ITERATED = {"geometric_median"}
# Two votes nearest to each other tie in the late rounds of Bulyan, and several sets can have the
# least diameter: there the order decides.
ORDER_DECIDES = {"bulyan", "mda"}
SAME_BITS_IN_ANY_ORDER = {"median", "trimmed_mean", "meamed", "phocas", "sign_majority", "krum"}
NOT_TRANSLATED = {"cge", "sign_majority", "centered_clipping"}
MEAN_WITHOUT_FAULTS = {
    "trimmed_mean", "bulyan", "meamed", "phocas", "mda", "caf", "smea", "faba", "cge",
}  # fmt: skip


def reckoned(rule, n):
    return {key: value for key, value in vars(rule).items() if key != "f"} | {"f": rule.faults(n)}


def assert_agrees(result, expected, votes, rtol=1e-9):
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=0, atol=rtol * np.abs(votes).max())


def test_every_rule_has_a_definition_to_compare_with():
    assert definitions.RULES.keys() == AGGREGATORS.keys()
    assert definitions.PRE_RULES.keys() | {"bucketing"} == PRE_AGGREGATORS.keys()


@every_rule
@given(votes=normal_votes())
@few_examples
def test_agrees_with_its_definition(name, parameters, votes):
    rule = by_name(name, **parameters)
    expected = definitions.RULES[name](votes, **reckoned(rule, len(votes)))
    if name in ITERATED:
        least = definitions.total_distance(votes, expected)
        assert definitions.total_distance(votes, rule(votes)) <= least * (1 + 1e-5)
    else:
        assert_agrees(rule(votes), expected, votes)


@every_rule
@given(votes=grid_votes())
@few_examples
def test_ties_go_to_the_lowest_index_or_value(name, parameters, votes):
    rule = by_name(name, **parameters)
    if name in SPECTRAL | ITERATED:
        assert bits(rule(votes)) == bits(rule(votes.copy()))
        return
    expected = definitions.RULES[name](votes, **reckoned(rule, len(votes)))
    assert_agrees(rule(votes), expected, votes)


@pytest.mark.parametrize(
    ("name", "parameters"), [case for case in PRE_CASES if case[0] != "bucketing"]
)
@given(votes=normal_votes())
@few_examples
def test_pre_aggregator_agrees_with_its_definition(name, parameters, votes):
    pre = build(PRE_AGGREGATORS, name, **parameters)
    expected = definitions.PRE_RULES[name](votes, **reckoned(pre, len(votes)))
    assert_agrees(pre(votes), expected, votes)


@every_rule
def test_order_of_the_votes_does_not_matter(name, parameters):
    rule, votes = by_name(name, **parameters), draw(15, 40)
    shuffled = votes[np.random.default_rng(1).permutation(15)]
    if name in SAME_BITS_IN_ANY_ORDER and parameters.get("f") != 0:
        assert bits(rule(votes)) == bits(rule(shuffled))
    elif name not in ORDER_DECIDES or parameters.get("f") == 0:
        np.testing.assert_allclose(rule(votes), rule(shuffled), atol=1e-5)


@every_rule
def test_same_votes_give_the_same_bits(name, parameters):
    votes = draw(15, 100)
    first, *others = (bits(by_name(name, **parameters)(votes.copy())) for _ in range(5))
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("name", "parameters"), [case for case in RULE_CASES if case[0] not in NOT_TRANSLATED]
)
def test_moves_with_the_votes(name, parameters):
    rule, votes = by_name(name, **parameters), draw(15, 30, dtype=np.float64)
    shift = np.random.default_rng(2).standard_normal(30)
    np.testing.assert_allclose(rule(votes + shift), rule(votes) + shift, atol=1e-5)


@pytest.mark.parametrize("name", sorted(MEAN_WITHOUT_FAULTS))
def test_without_faults_it_is_the_mean(name):
    votes = draw(15, 50)
    assert bits(by_name(name, f=0)(votes)) == bits(Mean()(votes))


@every_rule
def test_votes_are_not_written_to(name, parameters):
    votes = draw(15, 30)
    before = votes.copy()
    votes.flags.writeable = False
    by_name(name, **parameters)(votes)
    assert bits(votes) == bits(before)


@every_pre_aggregator
def test_pre_aggregator_leaves_the_votes_alone(name, parameters):
    votes = draw(15, 30)
    before = votes.copy()
    votes.flags.writeable = False
    pre = build(PRE_AGGREGATORS, name, **parameters)
    assert pre(votes).shape == (pre.rows(15), 30)
    assert bits(votes) == bits(before)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@every_rule
def test_element_type_stays(name, parameters, dtype):
    rule, votes = by_name(name, **parameters), draw(15, 30, dtype=dtype)
    result = rule(votes)
    assert result.dtype == dtype
    assert result.shape == (30,)
    wide = rule(votes.astype(np.float64))
    np.testing.assert_allclose(result, wide, atol={2: 4e-3, 4: 1e-5, 8: 0}[votes.itemsize])


@every_rule
def test_slices_of_the_columns_give_the_same_bits(name, parameters):
    rule, votes = by_name(name, **parameters), draw(15, 50_000)
    previous = votes[0] / 2
    whole = rule.reduce(votes, previous=previous)
    gram = gram_matrix(votes, previous if rule.uses_previous else None)
    cuts = [0, 1, 7, 20_000, 49_999, 50_000]
    parts = [
        rule.reduce(votes[:, a:b], lambda values, reference: gram, previous[a:b])
        for a, b in pairwise(cuts)
    ]
    assert bits(np.concatenate(parts)) == bits(whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_rule
def test_votes_that_are_not_finite_are_left_out(name, parameters, bad):
    rule, votes = by_name(name, **parameters), draw(15, 30)
    votes[4, 7], votes[11, 29] = bad, np.nan
    others = np.delete(votes, [4, 11], axis=0)
    assert bits(rule(votes)) == bits(rule.fit(13)(others))
    assert np.isfinite(rule(votes)).all()


@every_rule
def test_result_is_nan_if_most_votes_are(name, parameters):
    rule = by_name(name, **parameters)
    for n, is_nan in ((15, True), (16, False), (17, False)):
        votes = draw(n, 30)
        votes[:8, 3] = np.nan
        assert (np.isnan if is_nan else np.isfinite)(rule(votes)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_rule
def test_torch_gives_the_bits_of_numpy(name, parameters, dtype):
    torch = pytest.importorskip("torch")
    rule, votes = by_name(name, **parameters), draw(15, 5000, dtype=dtype)
    votes[3] = -votes[3]
    tensors = torch.from_numpy(votes)
    # A tensor in main memory is computed on as a NumPy array; `reduce` takes the tensor itself.
    result = rule(tensors)
    assert isinstance(result, torch.Tensor)
    assert bits(result.numpy()) == bits(rule(votes))
    gram = gram_matrix(votes)
    np.testing.assert_allclose(gram_matrix(tensors), gram, rtol=1e-9, atol=1e-6)
    on_device = rule.reduce(tensors, lambda values, reference: gram)
    assert isinstance(on_device, torch.Tensor)
    assert bits(on_device.numpy()) == bits(rule.reduce(votes, lambda values, reference: gram))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@every_rule
def test_all_frameworks_give_the_same_bits(name, parameters, dtype):
    torch, tf = pytest.importorskip("torch"), pytest.importorskip("tensorflow")
    rule, votes = by_name(name, **parameters), draw(15, 2000, dtype="float64")
    votes[3] = -votes[3]
    votes[7, 5] = np.nan
    of_torch = rule(torch.from_numpy(votes).to(getattr(torch, dtype)))
    of_tensorflow = rule(tf.cast(tf.constant(votes), dtype))
    assert isinstance(of_tensorflow, tf.Tensor)
    assert of_tensorflow.dtype.name == dtype == dtype_name(of_torch)
    assert bits(to_numpy(of_tensorflow)) == bits(to_numpy(of_torch))
    of_numpy = rule(to_numpy(tf.cast(tf.constant(votes), dtype)))
    assert bits(to_numpy(of_tensorflow)) == bits(of_numpy)


@every_rule
def test_bfloat16(name, parameters):
    torch = pytest.importorskip("torch")
    rule, votes = by_name(name, **parameters), torch.from_numpy(draw(15, 300)).bfloat16()
    result = rule(votes)
    assert result.dtype == torch.bfloat16
    expected = torch.from_numpy(rule(votes.float().numpy())).bfloat16()
    assert torch.equal(result, expected)


@pytest.mark.parametrize("d", [0, 1])
@every_rule
def test_few_columns(name, parameters, d):
    assert by_name(name, **parameters)(draw(15, d)).shape == (d,)


@every_rule
def test_equal_votes(name, parameters):
    votes = np.repeat(draw(1, 20), 15, axis=0)
    result = by_name(name, **parameters)(votes)
    if name == "sign_majority":
        assert bits(result) == bits(np.sign(votes[0]))
    elif name != "centered_clipping":
        np.testing.assert_allclose(result, votes[0], rtol=1e-6)
    assert not by_name(name, **parameters)(0 * votes).any()


@every_rule
def test_negative_zero_is_not_returned(name, parameters):
    votes = np.full((15, 4), -0.0, np.float32)
    assert bits(by_name(name, **parameters)(votes)) == bits(np.zeros(4, np.float32))


def test_what_is_not_votes_is_refused():
    rule = Hierarchy(Mean(), Mean())
    with pytest.raises(ValueError, match=r"shape \(n, d\), not \(3,\)"):
        rule(np.ones(3, np.float32))
    with pytest.raises(TypeError, match="floating-point numbers, not int64"):
        rule(np.ones((3, 2), np.int64))
    with pytest.raises(TypeError, match="not list"):
        rule([[1.0], [2.0]])


def frameworks_after(statement):
    code = (
        f"{statement}; import sys; print({{'torch', 'tensorflow', 'horovod'}} & {{*sys.modules}})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_importing_the_rules_imports_no_framework():
    assert frameworks_after("import horovod_detox.aggregators") == "set()"


def test_the_import_test_can_fail():
    pytest.importorskip("torch")
    assert "torch" in frameworks_after("import torch, horovod_detox.aggregators")
