"""Training on a device, in one process: the thread of exchanges computes where gradients are.

`pytest --device cuda` trains on a GPU, on a stream of its own that lags behind; else on the CPU.
"""

from contextlib import nullcontext
from typing import Any

import pytest

from horovod_detox import Detox
from horovod_detox.engine import Engine
from horovod_detox.exchange.cluster import InProcessCluster

torch = pytest.importorskip("torch")

from horovod_detox.frontend.overlap import Overlap  # noqa: E402
from horovod_detox.packing.torch import Uncompressed, packing_of  # noqa: E402

CYCLES = 50_000_000
"""How long a GPU does nothing before it computes gradients: some 30 ms."""


@pytest.fixture(scope="session")
def device(request):
    name = request.config.getoption("device")
    return torch.device("cpu" if name == "none" else name)


def train(device, stream, scaled, faulty=(), overflow=None):
    """Train on 6 ranks in groups of 3; return (weights, scale, report) by rank."""
    plan = Detox(group_size=3, one_round_bytes=0, overlap_bytes=256).plan(6)

    def program(collectives):
        with torch.cuda.stream(stream) if stream else nullcontext():
            return _train(collectives, Engine(plan, collectives))

    def _train(collectives, engine):
        generator = torch.Generator().manual_seed(0)
        layers = [torch.nn.Linear(24, 24), torch.nn.Tanh(), torch.nn.Linear(24, 3)]
        network = torch.nn.Sequential(*layers)
        for parameter in network.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        network.to(device)
        named = [*network.named_parameters()][::-1]
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        scaler: Any = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=scaled)
        packing: Any = packing_of(named, Uncompressed)
        overlap = Overlap(engine, packing)
        for step in range(4):
            shard = torch.Generator().manual_seed(2 * step + plan.groups.of(collectives.rank))
            inputs = torch.randn(32, 24, generator=shard).to(device)
            if stream:
                torch.cuda._sleep(CYCLES)
            loss = network(inputs).square().mean() * (torch.inf if step == overflow else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            for _, parameter in named:
                if collectives.rank in faulty:
                    parameter.grad.mul_(-100)
                overlap.add(parameter)
            overlap.finish()
            scaler.step(optimizer)
            scaler.update()
        weights = b"".join(p.detach().cpu().numpy().tobytes() for p in network.parameters())
        return weights, scaler.get_scale(), engine.ledger.report()

    return InProcessCluster(6).run(program)


@pytest.mark.usefixtures("small_blocks")
def test_who_lies_is_masked_on_a_stream_that_lags_behind(device):
    stream = torch.cuda.Stream() if device.type == "cuda" else None
    honest = train(device, None, scaled=False)
    faulty = train(device, stream, scaled=False, faulty=[1, 4])
    assert len({weights for weights, *_ in honest + faulty}) == 1
    assert faulty[0][2].dissents == {1: 4, 4: 4}


@pytest.mark.usefixtures("small_blocks")
def test_all_ranks_lower_their_scale_when_gradients_overflow(device):
    results = train(device, None, scaled=True, overflow=1)
    assert len({weights for weights, *_ in results}) == 1
    assert [scale for _, scale, _ in results] == [512.0] * 6
    assert results[0][2].non_finite == {0: 1, 1: 1}
