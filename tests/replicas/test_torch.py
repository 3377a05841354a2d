"""What torch holds, as words and back; and what of it is looked after."""

import gc
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("horovod.torch")

from torch.utils.data import DataLoader  # noqa: E402

from horovod_detox.replicas.pieces import BUFFERS  # noqa: E402
from horovod_detox.torch.replicas import (  # noqa: E402
    Holdings,
    of_optimizer,
    remember_batches,
    words_of,
    write_words,
)

TENSORS = {
    "float32, odd": torch.arange(5.0),
    "float64": torch.arange(3.0, dtype=torch.float64),
    "bfloat16": torch.arange(7.0).bfloat16(),
    "complex64": torch.complex(torch.arange(3.0), -torch.arange(3.0)),
    "bool": torch.tensor([True, False, True]),
    "int64": torch.arange(4),
    "a number": torch.tensor(2.5),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "a slice": torch.arange(12.0)[1:10:2],
    "not aligned": torch.arange(12, dtype=torch.uint8)[3:11],
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_go_through_words(name):
    tensor = TENSORS[name]
    words = words_of(tensor)
    assert words.dtype == torch.int64
    other = torch.zeros_like(tensor)
    write_words(other, words.clone())
    assert other.stride() == torch.zeros_like(tensor).stride()
    assert torch.equal(other, tensor)


def test_a_write_is_unseen_by_autograd():
    weight = torch.nn.Parameter(torch.ones(4))
    version = weight._version
    write_words(weight, words_of(torch.arange(4.0)))
    assert (weight._version, weight.tolist()) == (version, [0, 1, 2, 3])


def adam():
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.25, betas=(0.5, 0.75))
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return layer, optimizer


def test_pieces_of_an_optimizer():
    layer, optimizer = adam()
    pieces = {piece.key: piece for piece in of_optimizer(optimizer, layer.named_parameters())}
    kept = [
        f"optimizer/{name}.{key}"
        for name in ("bias", "weight")
        for key in ("exp_avg", "exp_avg_sq", "step")
    ]
    assert {"parameters/weight", "parameters/bias", *kept} < pieces.keys()
    (options,) = [key for key in pieces if key.startswith("optimizer/group 0")]
    words = pieces[options].read()
    optimizer.param_groups[0] |= {"lr": 0.5, "betas": (0.1, 0.2), "amsgrad": True}
    assert not torch.equal(pieces[options].read(), words)
    pieces[options].write(words)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["amsgrad"]) == (0.25, (0.5, 0.75), False)


def test_numbers_that_an_optimizer_keeps():
    layer, optimizer = adam()
    optimizer.state[layer.bias]["n"] = 3
    pieces = {piece.name: piece for piece in of_optimizer(optimizer, layer.named_parameters())}
    words = pieces["bias n"].read()
    optimizer.state[layer.bias]["n"] = 9
    pieces["bias n"].write(words)
    assert optimizer.state[layer.bias]["n"] == 3


def buffers(holdings):
    return {piece.name: piece for piece in holdings.pieces() if piece.kind == "buffers"}


def test_what_was_broadcast_is_looked_after_but_for_what_is_trained():
    holdings, model = (
        Holdings(),
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)),
    )
    optimizer = torch.optim.SGD(model[0].parameters(), 0.1)
    holdings.trained.add(optimizer)
    for _ in range(2):
        holdings.hold([*model.state_dict().items()])
    found = buffers(holdings)
    assert set(found) == {
        f"1.{x}" for x in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    found["1.running_mean"].write(words_of(torch.tensor([3.0, 4.0])))
    assert model[1].running_mean.tolist() == [3, 4]
    holdings.hold([("1.weight", torch.ones(2))])  # of another model
    assert "1.weight (2)" not in buffers(holdings)  # which is gone
    other = torch.ones(2)
    holdings.hold([("1.weight", other)])
    assert "1.weight (3)" in buffers(holdings)
    assert {piece.name for piece in holdings.pieces()} >= {"Python", "NumPy", "torch"}


def test_tensors_are_not_kept_alive():
    holdings, model = Holdings(), torch.nn.BatchNorm1d(2)
    holdings.hold([*model.state_dict().items()])
    model.running_mean = torch.zeros(2)  # as `load_state_dict(assign=True)` does
    gc.collect()
    assert "running_mean" not in buffers(holdings)
    del model
    gc.collect()
    assert buffers(holdings) == {}


def test_batches_of_data_loaders_are_digested():
    from horovod_detox.torch.replicas import holdings

    remember_batches(holdings)
    remember_batches(holdings)
    holdings.batches.clear()
    assert holdings.digest_of_batches() is None
    data: Any = [(torch.full((2,), float(i)), i, np.arange(i), "text") for i in range(4)]
    digests = []
    for changes in (False, False, True):
        holdings.batches.clear()
        loader = iter(DataLoader(data, 2, collate_fn=lambda samples: samples))
        first = next(loader)
        assert len(holdings.batches) == 1
        if changes:
            first[0][0][1] = 9
        digests.append(holdings.digest_of_batches())
    assert (digests[0] == digests[1]).all()
    assert (digests[0] != digests[2]).any()
    holdings.batches.clear()


def test_names_do_not_depend_on_what_is_still_alive():
    """A rank that has collected its first model calls the second one's tensors as all others do."""
    names = []
    for keeps in (True, False):
        holdings = Holdings()
        first = torch.nn.BatchNorm1d(3)
        holdings.hold(first.state_dict().items())
        if not keeps:
            del first
        second = torch.nn.BatchNorm1d(3)
        holdings.hold(second.state_dict().items())
        names.append({piece.name for piece in holdings.pieces() if piece.kind == BUFFERS})
    assert names[1] < names[0]
    assert "running_mean (2)" in names[1]


def test_what_is_guarded_after_another_was_collected_has_a_name_of_its_own():
    holdings, network = Holdings(), torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 3) for _ in range(3)]
    holdings.guard(schedules[0])
    holdings.guard(schedules[1])
    del schedules[0]
    holdings.guard(schedules[-1])
    named = [piece.name for piece in holdings.pieces() if piece.kind == BUFFERS]
    assert len(set(named)) == len(named) == 2
