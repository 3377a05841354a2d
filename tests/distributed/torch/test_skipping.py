"""A step without an update changes nothing on any rank, and the training goes on."""

import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox.exchange.step import NoMajority
from tests.distributed.torch.training import digest, everywhere, loss_of, model

pytestmark = pytest.mark.ranks(4)


def state_of(optimizer):
    """Return the optimizer's state as something to compare."""
    return [
        {name: torch.as_tensor(value).tolist() for name, value in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for p in group["params"]
    ]


class Job:
    """A training in pairs, of which both members disagree in some steps."""

    def __init__(self, start, make, *, lost=(1, 2), **settings):
        start(group_size=2, outer="mean", **settings)
        self.network = model(normalize=False)
        self.step, self.lost = 0, lost
        for parameter in self.network.parameters():
            parameter.register_hook(self.disturb)
        self.optimizer = hvd.DistributedOptimizer(
            make(self.network.parameters()), self.network.named_parameters()
        )

    def disturb(self, gradient):
        return gradient * (1 + hvd.rank()) if self.step in self.lost else gradient

    def loss(self):
        return loss_of(self.network, self.step, hvd.group())

    def gradients(self):
        return [p.grad for p in self.network.parameters() if p.grad is not None]

    def train(self, steps=5):
        """Train; return the weights and the state after every step."""
        found = []
        for self.step in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
            found.append((digest(self.network), state_of(self.optimizer)))
            if self.step in self.lost:
                assert not any(gradient.any() for gradient in self.gradients())
        return found


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01),
}


@pytest.mark.parametrize("overlap_bytes", [0, 100])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_without_votes_leaves_weights_and_state(start, name, overlap_bytes):
    found = Job(start, OPTIMIZERS[name], overlap_bytes=overlap_bytes).train()
    assert found[0] == found[1] == found[2] != found[3]
    assert len(set(everywhere(found[-1][0]))) == 1
    report = hvd.fault_report()
    assert (report.steps, report.skipped) == (5, 2)
    assert report.abstentions == dict.fromkeys(range(hvd.num_groups()), 2)
    assert "of 5 steps, 2 of them skipped; " in str(report)
    assert str(report).endswith(": 3 steps in 5 exchanges")
    # The steps that counted are those of a job that never lost a vote.
    fair = Job(start, OPTIMIZERS[name], lost=(), overlap_bytes=overlap_bytes)
    weights = []
    for fair.step in (0, 3, 4):
        fair.optimizer.zero_grad()
        fair.loss().backward()
        fair.optimizer.step()
        weights.append(digest(fair.network))
    assert weights == [found[i][0] for i in (0, 3, 4)]


def test_an_update_that_was_asked_for_before_the_step_is_skipped_too(start):
    job = Job(start, OPTIMIZERS["momentum"])
    found = []
    for job.step in range(4):
        job.optimizer.zero_grad()
        job.loss().backward()
        job.optimizer.synchronize()
        torch.nn.utils.clip_grad_norm_(job.network.parameters(), 1.0)
        with job.optimizer.skip_synchronize():
            job.optimizer.step()
        found.append(digest(job.network))
    assert found[0] == found[1] == found[2] != found[3]


def test_a_batch_that_is_dropped_does_not_skip_the_next_step(start):
    job = Job(start, OPTIMIZERS["momentum"], lost=(1,))
    job.train(steps=1)
    before = digest(job.network)
    job.step = 1
    job.loss().backward()
    job.optimizer.synchronize()
    job.step = 2
    job.optimizer.zero_grad()
    job.loss().backward()
    job.optimizer.step()
    assert digest(job.network) != before


def test_a_grad_scaler_goes_on(start):
    job = Job(start, OPTIMIZERS["momentum"])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    found = []
    for job.step in range(4):
        job.optimizer.zero_grad()
        scaler.scale(job.loss()).backward()
        scaler.unscale_(job.optimizer)
        scaler.step(job.optimizer)
        scaler.update()
        found.append((digest(job.network), scaler.get_scale()))
    assert found[0] == found[1] == found[2]
    assert found[3][0] != found[2][0]
    assert found[3][1] == 8.0


def test_a_scheduler_that_was_made_before_goes_on_without_a_warning(start, recwarn):
    start(group_size=2, outer="mean")
    network = model(normalize=False)
    base = torch.optim.SGD(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(base, 0.5)
    optimizer = hvd.DistributedOptimizer(base, network.named_parameters())
    loss_of(network, 0, hvd.group()).backward()
    optimizer.step()
    optimizer.zero_grad()
    (loss_of(network, 0, hvd.group()) * (1 + hvd.rank())).backward()
    optimizer.step()
    scheduler.step()
    assert hvd.fault_report().skipped == 1
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def test_a_closure_that_comes_first_is_skipped(start):
    job = Job(start, OPTIMIZERS["adam"])
    found = []

    def closure():
        job.optimizer.zero_grad()
        loss = job.loss()
        loss.backward()
        return loss

    for job.step in range(4):
        loss = job.optimizer.step(closure)
        assert torch.isfinite(loss)
        found.append((digest(job.network), state_of(job.optimizer)))
    assert found[0] == found[1] == found[2] != found[3]
    assert hvd.fault_report().skipped == 2


def test_in_a_line_search_it_is_an_error(start):
    """The weights have been moved by then, and LBFGS alone knows from where."""
    job = Job(start, lambda p: torch.optim.LBFGS(p, lr=0.1, line_search_fn="strong_wolfe"))
    evaluations = 0

    def closure():
        nonlocal evaluations
        job.optimizer.zero_grad()
        evaluations += 1
        job.step = int(evaluations == 3)
        loss = loss_of(job.network, 0, hvd.group())
        loss.backward()
        return loss

    with pytest.raises(NoMajority, match="every group lost its majority"):
        job.optimizer.step(closure)
    assert evaluations == 3


def test_after_as_many_as_are_allowed_all_ranks_end(start):
    job = Job(start, OPTIMIZERS["momentum"], lost=(1, 2, 3, 4), max_skipped_steps=2)
    with pytest.raises(
        NoMajority, match=r"max_skipped_steps=2\) skips no more in a row.*group 0 abstained in"
    ):
        job.train()
    assert everywhere(job.step) == [3] * hvd.size()
    assert hvd.fault_report().skipped == 2
