"""Gradients on an accelerator do not travel to main memory, whatever the rule and the exchange."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from horovod_detox import Detox
from horovod_detox.aggregators import AGGREGATORS
from horovod_detox.arrays.namespaces import (
    NumPyNamespace,
    TorchNamespace,
    namespace,
    to_numpy,
    view,
)
from horovod_detox.engine import Engine
from horovod_detox.exchange import EXCHANGES
from horovod_detox.exchange.cluster import InProcessCluster
from horovod_detox.exchange.driver import Driver
from tests.cluster import Tampering

torch = pytest.importorskip("torch")

from horovod_detox.frontend.overlap import Overlap  # noqa: E402
from horovod_detox.packing.torch import BF16, Signs, Uncompressed, packing_of  # noqa: E402
from tests.accelerators import Accelerator, CopiesToHost  # noqa: E402
from tests.fake_device import DEVICE, DeviceTensor, FakeDevice  # noqa: E402

SETTINGS = Detox(group_size=1, one_round_bytes=0)
SMALL, LARGE = 300, 9000
FLAGS = 64  # bytes: slices that hold elements of two dtypes tell twice whether they are finite
PARAMETERS = {"centered_clipping": "(radius=5.0)"}
EXACT = {"mean", "median", "trimmed_mean", "meamed", "phocas", "sign_majority"}


class Inline(Driver):
    """Does everything at once, in the thread that has entered the accelerator."""

    def submit(self, task):
        task()

    def call(self, function):
        return function()


def train(
    width: int,
    detox: Detox,
    accelerator: Accelerator | None,
    ranks: int,
    steps: int,
    compression: Any,
    corrupt: Callable[[int, np.ndarray], Any],
    seam: Callable[[Any], Any],
):
    """Exchange a model's gradients; return (gradients, report, bytes to main memory) by rank."""
    plan = detox.plan(ranks)

    def program(collectives):
        rng = np.random.default_rng(plan.groups.of(collectives.rank))
        engine = Engine(plan, seam(collectives))
        place = accelerator.place if accelerator else lambda tensor: tensor
        with accelerator.entered() if accelerator else nullcontext() as account:
            model = [
                torch.nn.Parameter(place(torch.zeros(width))),
                torch.nn.Parameter(place(torch.zeros(2, 5, dtype=torch.float64))),
            ]
            packing: Any = packing_of([(str(i), p) for i, p in enumerate(model)], compression)
            overlap = len(engine.parts(packing.layout)) > 1 and Overlap(
                engine, packing, driver=Inline()
            )
            for _ in range(steps):
                for parameter in model:
                    gradient = 1 + rng.normal(size=parameter.shape)
                    corrupt(collectives.rank, gradient)
                    parameter.grad = place(torch.from_numpy(gradient).to(parameter.dtype))
                if overlap:
                    overlap.add(model[0])
                    overlap.finish()
                else:
                    outcome = engine.exchange(packing.pack(), packing.layout, packing.update)
                    packing.unpack(outcome.update)
        gradients: list[Any] = [parameter.grad for parameter in model]
        if accelerator:
            gradients = [accelerator.values(gradient) for gradient in gradients]
        left = account.bytes_to_host if account else 0
        return [g.numpy() for g in gradients], engine.ledger.report(), left

    return InProcessCluster(ranks).run(program)


def check(
    accelerator: Accelerator,
    detox: Detox,
    exact: bool = True,
    ranks: int = 4,
    steps: int = 1,
    compression: Any = Uncompressed,
    corrupt: Callable[[int, np.ndarray], Any] = lambda rank, gradient: None,
    seam: Callable[[Any], Any] = lambda collectives: collectives,
):
    """Check that a larger gradient lets no more leave the device, and comes out as on a CPU.

    Returns the report.
    """
    others = ranks, steps, compression, corrupt, seam
    small = train(SMALL, detox, accelerator, *others)
    large = train(LARGE, detox, accelerator, *others)
    for (_, _, few), (_, _, many) in zip(small, large, strict=True):
        assert 0 < many <= few + FLAGS
    for ours, theirs in zip(large, train(LARGE, detox, None, *others), strict=True):
        assert ours[1] == theirs[1]
        for gradient, same, first in zip(ours[0], theirs[0], large[0][0], strict=True):
            assert gradient.tobytes() == first.tobytes()
            tolerance = 0 if exact else 1e-6
            np.testing.assert_allclose(gradient, same, rtol=tolerance, atol=tolerance)
    return large[0][1]


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("rule", AGGREGATORS)
def test_gradients_stay_on_the_device(rule, exchange, accelerator):
    detox = replace(SETTINGS, outer=rule + PARAMETERS.get(rule, ""), exchange=exchange)
    check(accelerator, detox, exact=rule in EXACT)


def test_repairs_accusations_and_lost_votes_stay_there(accelerator):
    """Rank 1 dissents, 4 sends what it did not fingerprint; groups 2 and 3 vote NaN and nothing."""

    def corrupt(rank, gradient):
        if rank == 1:
            gradient *= -100
        if rank in (2, 6, 10):
            gradient[0] = np.nan
        if rank in (7, 11):
            gradient += rank

    def seam(collectives):
        return Tampering(collectives, lambda part: part ^ (collectives.rank == 4))

    report = check(
        accelerator, replace(SETTINGS, group_size=3), ranks=12, corrupt=corrupt, seam=seam
    )
    assert report.dissents == {1: 1, 4: 1}
    assert report.abstentions == {3: 1}
    assert report.non_finite == {2: 1}


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"inner": "median", "outer": "geometric_median", "buckets": 3}, {"exact": False}),
        ({"outer": "median", "witnesses": 2}, {}),
        ({"outer": "krum", "witnesses": 2}, {"exact": False}),
        ({"outer": "median", "momentum": 0.9}, {"steps": 3}),
        ({"outer": "centered_clipping(radius=1.0)", "momentum": 0.9}, {"steps": 3, "exact": False}),
        ({"outer": "sign_majority"}, {"compression": Signs}),
        ({"outer": "median"}, {"compression": BF16}),
        ({"outer": "median", "one_round_bytes": 1 << 20}, {}),
        ({"outer": "median", "tolerance": 1e-5, "group_size": 3}, {"ranks": 9}),
    ],
)
def test_every_other_way_stays_there(fields, arguments, accelerator):
    check(accelerator, replace(SETTINGS, **fields), **arguments)


@pytest.mark.usefixtures("small_blocks")
def test_parts_stay_there(accelerator):
    """What leaves grows with the number of parts, so their length is that of the gradient."""
    parts = [replace(SETTINGS, overlap_bytes=4 * width) for width in (SMALL, LARGE)]
    nothing = (4, 2, Uncompressed, lambda rank, gradient: None, lambda seam: seam)
    small = train(SMALL, parts[0], accelerator, *nothing)
    large = train(LARGE, parts[1], accelerator, *nothing)
    whole = train(LARGE, SETTINGS, None, *nothing)
    assert [rank[2] for rank in small] == [rank[2] for rank in large]
    assert large[0][0][0].tobytes() == whole[0][0][0].tobytes()


@pytest.mark.parametrize("hidden", ["digests", "bounds", "cast"])
def test_a_hidden_copy_to_main_memory_is_found(hidden, accelerator, monkeypatch):
    """Show that the tests above can fail: the fingerprint of a CPU, and others."""

    def copying(self, array, *args, **kwargs):
        if hidden == "digests":
            return NumPyNamespace().digests([to_numpy(words) for words in array], *args)
        to_numpy(array)
        return original(self, array, *args, **kwargs)

    original = getattr(TorchNamespace, hidden)
    monkeypatch.setattr(TorchNamespace, hidden, copying)
    with pytest.raises(AssertionError):
        check(accelerator, replace(SETTINGS, outer="median", group_size=2))


def test_the_fake_device_is_taken_for_one():
    with FakeDevice() as device:
        tensor = DeviceTensor(torch.arange(10.0))
        assert tensor.device == DEVICE != torch.device("cpu")
        assert type(view(tensor)) is DeviceTensor
        assert isinstance(namespace(tensor), TorchNamespace)
        assert type(torch.zeros(3, device=tensor.device)) is DeviceTensor
        tensor[2:4] += 1
        assert device.bytes_to_host == 0
        assert to_numpy(tensor).tolist() == [0, 1, 3, 4, 4, 5, 6, 7, 8, 9]
        assert device.bytes_to_host == 40
        assert tensor.sum().item() == 47
        assert device.bytes_to_host == 44
        torch.zeros(10).copy_(tensor)
        assert device.bytes_to_host == 84
        torch.zeros(10).copy_(torch.ones(10))
        tensor.copy_(torch.zeros(10))
        assert device.bytes_to_host == 84
        with pytest.raises(RuntimeError, match="on the device and in main memory"):
            tensor.add(torch.zeros(10))
        with pytest.raises(RuntimeError, match="numpy"):
            np.asarray(tensor)
    with pytest.raises(RuntimeError, match="not entered"):
        tensor.add(1)


def test_copies_from_a_gpu_are_counted_as_those_from_the_fake_device():
    with FakeDevice() as fake, CopiesToHost(DEVICE) as counted:
        tensor = DeviceTensor(torch.arange(10.0))
        to_numpy(tensor)
        assert tensor.sum().item() == 45
        torch.zeros(10).copy_(tensor)
        tensor.copy_(torch.zeros(10))
        torch._foreach_copy_([torch.zeros(10), tensor], [tensor, torch.ones(10)])  # type: ignore[attr-defined]
        torch.stack([torch.zeros(10), torch.ones(10)]).sum().item()
        tensor.aminmax()[1].add(1)
    assert counted.bytes_to_host == fake.bytes_to_host == 40 + 4 + 40 + 40
