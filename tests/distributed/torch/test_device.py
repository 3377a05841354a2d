"""A job whose tensors are on a GPU: `make test-nccl`, on 4 and 6 ranks.

In `make test` the same runs on 4 ranks with tensors in main memory.
"""

from contextlib import nullcontext

import pytest
import torch

import horovod_detox.torch as hvd
from horovod_detox import attacks
from horovod_detox.torch.context import context
from horovod_detox.torch.main_memory import ThroughMainMemory, takes_devices
from tests.distributed.torch.training import batch, digest, everywhere, model
from tests.fake_device import DEVICE, DeviceTensor, FakeDevice

pytestmark = pytest.mark.ranks(4)

CYCLES = 50_000_000
"""How long a GPU does nothing before it computes gradients: some 30 ms."""
WIDTH = 1 << 16
"""Elements of the large layer: a copy of one of its gradients would be seen."""


def groups(**settings):
    """Return settings: one group of 4 or two of 3, whose exchange goes in parts."""
    return {"group_size": 4 if hvd.size() == 4 else 3, "overlap_bytes": 256, **settings}


def trainer(device, lag=False, scaled=False, overflow=None, network=None, **options):
    """Return a model on a device, a function for its steps, and the scaler of its losses.

    With `lag` it trains on a stream of its own that is late.
    """
    network = (network or model(normalize=False)).to(device)
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    stream = torch.cuda.Stream(device) if lag and device.type == "cuda" else None
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=scaled)
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(network.parameters(), lr=0.05), network.named_parameters(), **options
    )

    def step(number):
        with torch.cuda.stream(stream) if stream else nullcontext():
            inputs, labels = (part.to(device) for part in batch(number, hvd.group()))
            if stream:
                torch.cuda._sleep(CYCLES)
            with torch.autocast(device.type, dtype, enabled=scaled):
                loss = torch.nn.functional.cross_entropy(network(inputs), labels)
            optimizer.zero_grad()
            scaler.scale(loss * (torch.inf if number == overflow else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()

    return network, step, scaler


def train(device, steps=5, **options):
    """Train on a device; return the model, in main memory, and the scale of its losses."""
    network, step, scaler = trainer(device, **options)
    for number in range(steps):
        step(number)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return network.cpu(), scaler.get_scale()


@pytest.mark.parametrize("rule", ["median", "geometric_median", "mean"])
def test_who_lies_is_masked_and_named(start, device, rule):
    start(**groups(outer=rule))
    honest, _ = train(device)
    start(**groups(outer=rule))
    faulty, _ = train(device, lag=True, attack=attacks.from_spec("reverse(scale=100)@1"))
    assert hvd.fault_report().dissents == {1: 5}
    assert len({*everywhere(digest(honest)), *everywhere(digest(faulty))}) == 1


def test_all_ranks_lower_the_scale_of_mixed_precision(start, device):
    start(**groups(outer="mean"))
    network, scale = train(device, scaled=True, overflow=2)
    assert len(set(everywhere(digest(network)))) == 1
    assert everywhere(scale) == [512.0] * hvd.size()
    assert hvd.fault_report().non_finite == dict.fromkeys(range(hvd.num_groups()), 1)


def test_a_process_set_trains_by_itself(start, device):
    start(**groups(group_size=1))
    halves = [hvd.add_process_set([*range(i, hvd.size(), 2)]) for i in (0, 1)]
    network, _ = train(device, process_set=halves[hvd.rank() % 2])
    digests = everywhere(digest(network))
    assert [len({*digests[i::2]}) for i in (0, 1)] == [1, 1]
    for half in halves:
        hvd.remove_process_set(half)


def test_no_gradient_is_copied_to_main_memory(start, device):
    """A profile of the GPU shows the copies; none is as long as the gradient of the wide layer.

    In the first step the weights are, once; in the second ranks find what they hold alike.
    """
    if device.type != "cuda" or not hvd.nccl_built():
        pytest.skip("needs a GPU, and Horovod with NCCL")
    start(**groups(outer="median", overlap_bytes=WIDTH))
    wide = torch.nn.Sequential(torch.nn.Linear(5, WIDTH), torch.nn.Linear(WIDTH, 3))
    _, step, _ = trainer(device, network=wide)
    for number in range(3):
        step(number)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for number in range(3, 6):
            step(number)
        torch.cuda.synchronize(device)
    events = [e for e in profile.profiler.kineto_results.events() if "DtoH" in e.name()]
    assert events
    assert max(event.nbytes() for event in events) < WIDTH
    everywhere(None)


def test_without_cuda_in_horovod_tensors_travel_through_main_memory(start):
    """On a fake device, which Horovod could not read."""
    start(group_size=1)
    collectives = ThroughMainMemory("by hand", 60.0)
    rank, size = collectives.rank, collectives.size
    facts = torch.tensor([rank]).numpy()
    with FakeDevice():
        words = DeviceTensor(torch.arange(4) + 10 * rank)
        parts = [DeviceTensor(torch.full((rank + 1,), to)) for to in range(size)]
        handles = [
            collectives.allgather_words("gathered", facts, words),
            collectives.alltoall("parts", facts, parts, torch.empty(0)),
            collectives.add_words("added", words),
        ]
        gathered, exchanged, added = [handle.wait() for handle in handles]
        collectives.broadcast("broadcast", words, root=1).wait()
    assert [message.facts.tolist() for message in gathered] == [[i] for i in range(size)]
    assert {message.words.device for message in gathered + exchanged} == {DEVICE}
    expected = [[10 * i, 10 * i + 1, 10 * i + 2, 10 * i + 3] for i in range(size)]
    assert [message.words.on_cpu.tolist() for message in gathered] == expected
    assert [m.words.on_cpu.tolist() for m in exchanged] == [[rank] * (i + 1) for i in range(size)]
    assert added.on_cpu.tolist() == [sum(column) for column in zip(*expected, strict=True)]
    assert words.on_cpu.tolist() == expected[1]


def test_without_cuda_in_horovod_parameters_are_broadcast_through_main_memory(start):
    start(group_size=1)
    if takes_devices():
        pytest.skip("this Horovod takes tensors on a GPU")
    with FakeDevice():
        tensor = DeviceTensor(torch.full((3,), hvd.rank()))
        hvd.broadcast_parameters([("w", tensor)], root_rank=2)
    assert tensor.on_cpu.tolist() == [2, 2, 2]


def test_the_collectives_fit_how_horovod_was_built(start):
    start(group_size=1)
    assert isinstance(context.collectives("any"), ThroughMainMemory) != takes_devices()
