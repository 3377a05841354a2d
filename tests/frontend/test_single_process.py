"""One process trains as if nothing were wrapped, with one warning."""

import subprocess
import sys

import pytest

pytest.importorskip("horovod")

SCRIPT = """
import torch
import horovod_detox.torch as hvd

hvd.init()
assert (hvd.group(), hvd.group_rank(), hvd.group_size(), hvd.num_groups()) == (0, 0, 1, 1)
hvd.seed_group(7)
data = torch.utils.data.TensorDataset(torch.arange(5))
assert sorted(hvd.GroupSampler(data)) == [0, 1, 2, 3, 4]
torch.manual_seed(0)
plain, wrapped = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
wrapped.load_state_dict(plain.state_dict())
ours = hvd.DistributedOptimizer(
    torch.optim.Adam(wrapped.parameters()), wrapped.named_parameters(), backward_passes_per_step=2
)
theirs = torch.optim.Adam(plain.parameters())
for step in range(3):
    for network, optimizer in ((plain, theirs), (wrapped, ours)):
        optimizer.zero_grad()
        for _ in range(2):
            network(torch.full((4, 3), float(step))).square().sum().backward()
        if network is wrapped:
            ours.synchronize()
            with ours.skip_synchronize():
                ours.step()
        else:
            optimizer.step()
assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), wrapped.parameters()))
assert hvd.fault_report().steps == 0
hvd.shutdown()
try:
    hvd.group()
except RuntimeError as error:
    assert "is not initialised" in str(error)
else:
    raise AssertionError
"""


def test_one_process_trains_plainly():
    pytest.importorskip("torch")
    job = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=60
    )
    assert job.returncode == 0, job.stderr
    assert job.stderr.count("only one rank: it trains without DETOX") == 1
