"""What only torch's packing has to keep apart."""

import pytest

torch = pytest.importorskip("torch")

from horovod_detox.packing.torch import Uncompressed, packing_of  # noqa: E402


def test_a_gradient_that_is_gone_counts_as_zero():
    parameter = torch.nn.Parameter(torch.ones(3))
    packing = packing_of([("p", parameter)], Uncompressed)
    parameter.grad = torch.ones(3)
    assert packing.pack().any()
    parameter.grad = None
    assert not packing.pack().any()
