"""The parts of the torch examples that need no job: flags, data files, networks, digests, lies."""

import gzip
import importlib
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from horovod_detox import attacks
from horovod_detox.groups import Groups

torch: Any = pytest.importorskip("torch")

FOLDER = Path(__file__).parent.parent / "examples" / "torch"
MODULES = ("comparison", "idx", "common", "data", "models", "fashion_mnist")
IMAGES = np.arange(5 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(5, 28, 28)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)


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


@pytest.fixture
def data(examples: dict[str, ModuleType]) -> ModuleType:
    return examples["data"]


@pytest.fixture
def idx_files(examples: dict[str, ModuleType]) -> ModuleType:
    return examples["idx"]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("array", [IMAGES, LABELS], ids=["images", "labels"])
def test_idx_files_are_read_packed_or_not(
    idx_files: ModuleType, tmp_path: Path, array: np.ndarray
) -> None:
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(array)))
    for name in ("plain", "packed.gz"):
        read = idx_files.read_idx(tmp_path / name)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n", "not an idx file of bytes: it begins with 89 50 4e 47, not with 00 00 08"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "it begins with 00 00 0d 01"),
        (b"", "not an idx file"),
        (b"\0\0\x08", "it begins with 00 00 08, not with"),
        (idx(IMAGES)[:9], "ends inside its header"),
        (idx(IMAGES)[:-1], r"holds 3919 bytes of data, not 3920 as its shape \(5, 28, 28\)"),
        (idx(LABELS) + b"\0", "holds 6 bytes of data, not 5"),
    ],
    ids=["other format", "floats", "empty", "stub", "no shape", "cut off", "too long"],
)
def test_a_file_that_is_not_idx_is_refused(
    idx_files: ModuleType, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        idx_files.read_idx(tmp_path / "file")


@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw"])
def test_fashion_mnist_comes_from_a_folder(data: ModuleType, tmp_path: Path, inside: str) -> None:
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    test_set = data.load("fashion_mnist", tmp_path, train=False)
    image, label = test_set[2]
    assert len(test_set) == 5
    assert image.shape == (1, 28, 28)
    assert label == 4
    torch.testing.assert_close(image[0] * 0.353 + 0.286, torch.tensor(IMAGES[2]) / 255)


def test_a_given_folder_goes_before_debians_and_downloads(
    data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "DEBIAN", tmp_path)
    assert data.locate("fashion_mnist", Path("mine")) == Path("mine")
    assert data.locate("fashion_mnist") == tmp_path
    assert data.locate("cifar10") == data.DOWNLOADS
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "missing")
    assert data.locate("fashion_mnist") == data.DOWNLOADS


def test_missing_torchvision_ends_in_one_line(
    data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SystemExit, match="torchvision is needed for cifar10"):
        data.load("cifar10", tmp_path, train=True)
    with pytest.raises(SystemExit, match=f"needed to download Fashion-MNIST to {tmp_path}"):
        data.download("fashion_mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "classes", "channels", "size", "parameters"),
    [
        ("cnn", 10, 1, 28, 61_654),
        ("resnet18", 10, 3, 32, 11_173_962),
        ("resnet18", 100, 3, 32, 11_220_132),
        ("vgg13_bn", 10, 3, 32, 9_416_010),
        ("vgg13_bn", 100, 3, 32, 9_462_180),
    ],
)
def test_networks(
    examples: dict[str, ModuleType],
    name: str,
    classes: int,
    channels: int,
    size: int,
    parameters: int,
) -> None:
    model = examples["models"].MODELS[name](classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(torch.zeros(2, channels, size, size)).shape == (2, classes)


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
