"""The parts of the torch examples that need no job: flags, digests, lies."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from horovod_detox import attacks
from horovod_detox.vote.groups import Groups

torch: Any = pytest.importorskip("torch")
pytest.importorskip("horovod")

FOLDER = Path(__file__).parents[2] / "examples" / "torch"
MODULES = ("comparison", "common", "fashion_mnist")


@pytest.fixture(scope="module")
def examples() -> Iterator[dict[str, ModuleType]]:
    """Import the modules of the examples as the scripts do: by their bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER.parent)
        patch.syspath_prepend(FOLDER)
        yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name)


@pytest.fixture
def common(examples: dict[str, ModuleType]) -> ModuleType:
    return examples["common"]


def test_flags(examples: dict[str, ModuleType]) -> None:
    args = (
        examples["fashion_mnist"]
        .parser()
        .parse_args(
            ["--group-size", "5", "--outer", "multi_krum(f=1)", "--attack", "zero@1", "--lr", "0.1"]
        )
    )
    assert (args.group_size, args.inner, args.outer) == (5, "mean", "multi_krum(f=1)")
    assert (args.attack, args.lr, args.epochs, args.method) == ("zero@1", 0.1, 5, "detox")
    assert (args.dataset, args.data, args.fp16_allreduce) == ("fashion_mnist", None, False)


def test_an_attack_from_outside_is_the_default(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOROVOD_DETOX_ATTACK", "zero@2")
    assert common.flags("an example").parse_args([]).attack == "zero@2"
    assert common.flags("an example").parse_args(["--attack", "nan@1"]).attack == "nan@1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("revers@1", "did you mean 'reverse'"),
        ("reverse", "names no ranks"),
        ("label_flip@1", "label_flip needs a value for num_classes"),
    ],
)
def test_a_bad_attack_is_refused_with_the_reason(
    common: ModuleType, capsys: pytest.CaptureFixture[str], spec: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        common.flags("an example").parse_args(["--attack", spec])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_digest_of_the_weights_sees_one_bit(common: ModuleType, dtype: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model.to(getattr(torch, dtype))
    before = common.weights_digest(model)
    assert common.weights_digest(model) == before
    model[1].running_mean += 1
    assert common.weights_digest(model) == before
    model[1].bias.data.flatten().view(torch.uint8)[-1] ^= 128  # 0 becomes -0
    assert common.weights_digest(model) != before


def test_only_liars_lie_and_only_in_their_steps(common: ModuleType) -> None:
    attack = attacks.from_spec("reverse(scale=3, steps=(1, 2))@1")
    for rank, factors in ((0, [1, 1, 1]), (1, [1, -3, 1])):
        weights = [torch.ones(2, 3, requires_grad=True), torch.ones((), requires_grad=True)]
        common.lie(weights, attack, rank, Groups(((0, 1, 2),)))
        for factor in factors:
            for weight in weights:
                weight.grad = None
                (weight * 2).sum().backward()
                assert torch.equal(weight.grad, torch.full(weight.shape, 2.0 * factor))


def test_plain_horovod_refuses_omniscient_attacks(common: ModuleType) -> None:
    with pytest.raises(SystemExit, match="InnerProduct must see all gradients"):
        common.lie([], attacks.from_spec("inner_product@1"), 1, Groups(((0, 1, 2),)))


@pytest.mark.parametrize(
    ("digests", "named", "holds", "words"),
    [
        (("a", "a"), (1,), True, "bit-identical on all 2 ranks"),
        (("a", "b"), (1,), False, "DIFFER"),
        (("b", "b"), (1,), False, "DIFFER"),
        (("a", "a"), (), False, "named none, but 1 lied"),
        (("a", "a"), (0, 1), False, "named 0, 1, but 1 lied"),
    ],
)
def test_the_verdict_on_a_comparison(
    common: ModuleType, digests: tuple[str, ...], named: tuple[int, ...], holds: bool, words: str
) -> None:
    attacked = common.Run("detox", "zero@1", 0.9, digests, liars=(1,), named=named)
    reference = common.Run("detox", None, 0.9, ("a", "a"))
    held, found = common.verdict(attacked, reference)
    assert held == holds
    assert re.search(words, found)
