"""Backward passes that raise, which the script catches: nothing of them is left for the next."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import horovod_detox.torch as hvd
from tests.distributed.torch.steps import wrap
from tests.distributed.torch.test_thread import PARTS, FailOnce
from tests.distributed.torch.training import batch, digest, everywhere, model

pytestmark = pytest.mark.ranks(4)
SETTINGS = [{"overlap_bytes": 0}, PARTS]
WHERE = ["node", "hook before", "hook after", "checkpoint"]
STEPS, FAILING = 5, 2


class Script:
    """A training whose backward pass fails once on some ranks, and what it does then."""

    def __init__(self, where=None, passes=1):
        self.network, self._where, self._fails = model(normalize=False), where, False
        if where == "hook before":
            self._register()
        sgd = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.optimizer = wrap(self.network, sgd, backward_passes_per_step=passes)
        if where == "hook after":
            self._register()

    def _register(self):
        weight = self.network[0].weight  # of the last gradients of a pass
        weight.register_post_accumulate_grad_hook(lambda _: self._raise())

    def _raise(self):
        if self._fails:
            raise RuntimeError("can't allocate memory")

    def backward(self, step, fails=False):
        """Return whether the backward pass ended well."""
        inputs, labels = batch(step, hvd.group())
        self._fails = fails
        inputs = FailOnce.apply(inputs.requires_grad_(), fails and self._where == "node")
        hidden = self.network[:-1](inputs)
        if self._where == "checkpoint":

            def last(inputs):
                return self.network[-1](FailOnce.apply(inputs, fails))

            outputs = checkpoint(last, hidden, use_reentrant=True)
        else:
            outputs = self.network[-1](hidden)
        try:
            cross_entropy(outputs, labels).backward()
        except RuntimeError:
            assert fails
            return False
        assert not fails
        return True

    def run(self, recover, fails=True):
        """Train; where the pass fails, `recover(script, step)` says whether to step."""
        for step in range(STEPS):
            ends_well = self.backward(step, fails and step == FAILING)
            if not ends_well and not recover(self, step):
                continue
            self.optimizer.step()
            self.optimizer.zero_grad()
        return digest(self.network), hvd.fault_report()


def skip(script, step):
    script.optimizer.zero_grad()


def skip_by_the_model(script, step):
    script.network.zero_grad()


def skip_by_hand(script, step):
    script.optimizer.synchronize()
    script.optimizer.zero_grad()


def retry(script, step):
    script.optimizer.zero_grad()
    return script.backward(step)


def retry_by_the_model(script, step):
    script.network.zero_grad()
    return script.backward(step)


def contribute_nothing(script, step):
    script.network.zero_grad()
    return True


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("where", WHERE)
def test_all_ranks_fail(start, settings, where):
    """They leave the batch out, or try again: no exchange but one for each pass."""

    def train(where, recover, fails=True):
        start(group_size=2, outer="mean", **settings)
        return Script(where).run(recover, fails)

    start(group_size=2, outer="mean", **settings)
    plain = Script()
    for step in range(STEPS):
        if step != FAILING:
            plain.backward(step)
            plain.optimizer.step()
            plain.optimizer.zero_grad()
    expected = digest(plain.network)
    for recover in (skip, skip_by_the_model, skip_by_hand):
        found, report = train(where, recover)
        assert found == expected, recover
        assert STEPS - 1 <= report.steps <= STEPS, recover
        assert report.dissents == {}
    expected, _ = train(None, skip, fails=False)
    for recover in (retry, retry_by_the_model):
        found, report = train(where, recover)
        assert found == expected, recover
        assert STEPS <= report.steps <= STEPS + (settings == PARTS)
        assert report.dissents == {}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("where", WHERE)
def test_one_rank_fails(start, settings, where):
    """It contributes nothing, and is outvoted; no other rank exchanges more or less."""

    def train(where, recover, fails):
        start(group_size=hvd.size(), **settings)
        return Script(where).run(recover, fails)

    expected, _ = train(None, skip, fails=False)
    found, report = train(where, contribute_nothing, hvd.rank() == 1)
    assert found == expected
    assert (report.steps, set(report.dissents) <= {1}) == (STEPS, True)


@pytest.mark.parametrize("where", WHERE)
def test_one_rank_tries_again(start, where):
    """The others wait for it, and see no fault."""
    found = {}
    for fails in (False, hvd.rank() == 1):
        start(group_size=hvd.size(), overlap_bytes=0)
        found[fails] = Script(where).run(retry, fails)
        assert (found[fails][1].steps, found[fails][1].dissents) == (STEPS, {})
    assert len({digest for digest, _ in found.values()}) == 1


@pytest.mark.parametrize("settings", SETTINGS)
def test_one_rank_goes_on_with_the_next_batch(start, settings):
    """It alone is out of step then, and is named; the others train as ever."""
    start(group_size=hvd.size(), **settings)
    expected, _ = Script().run(skip, fails=False)
    start(group_size=hvd.size(), **settings)
    script = Script("node")
    found, _ = script.run(skip, hvd.rank() == 1)
    if hvd.rank() == 1 and not settings["overlap_bytes"]:
        script.optimizer.step()  # in whose exchange the others wait
    found = everywhere(found)
    assert [found[rank] for rank in (0, 2, 3)] == [expected] * 3
    assert set(hvd.fault_report().dissents) == {1}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("failing", [0, 1])
def test_a_pass_of_an_accumulation_fails(start, settings, where, failing):
    """The whole accumulation is begun again."""

    def train(where, fails):
        start(group_size=2, outer="mean", **settings)
        script = Script(where, passes=2)
        for step in range(3):
            if fails and step == 1:
                ended_well = [script.backward(2 + i, i == failing) for i in range(failing + 1)]
                assert not ended_well[-1]
                script.optimizer.zero_grad()
            for i in range(2):
                script.backward(2 * step + i)
            script.optimizer.step()
            script.optimizer.zero_grad()
        return digest(script.network), hvd.fault_report().steps

    expected, _ = train(None, False)
    found, steps = train(where, True)
    assert found == expected
    assert 3 <= steps <= 3 + (settings == PARTS)
