"""The data and the networks of the laboratory."""

import gzip
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch")

from horovod_detox.lab import datasets  # noqa: E402
from horovod_detox.lab.idx import read_idx  # noqa: E402
from horovod_detox.lab.models import MODEL_OF, MODELS  # noqa: E402

IMAGES = np.arange(5 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(5, 28, 28)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("array", [IMAGES, LABELS], ids=["images", "labels"])
def test_idx_files_are_read_packed_or_not(tmp_path: Path, array: np.ndarray) -> None:
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(array)))
    for name in ("plain", "packed.gz"):
        read = read_idx(tmp_path / name)
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
def test_a_file_that_is_not_idx_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "file")


@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw"])
def test_fashion_mnist_comes_from_a_folder(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    test_set = datasets.load("fashion_mnist", tmp_path, train=False)
    image, label = test_set[2]
    assert len(test_set) == 5
    assert image.shape == (1, 28, 28)
    assert label == 4
    torch.testing.assert_close(image[0] * 0.353 + 0.286, torch.tensor(IMAGES[2]) / 255)


def test_a_given_folder_goes_before_debians_and_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "DEBIAN", tmp_path)
    assert datasets.locate("fashion_mnist", Path("mine")) == Path("mine")
    assert datasets.locate("fashion_mnist") == tmp_path
    assert datasets.locate("cifar10") == datasets.DOWNLOADS
    monkeypatch.setattr(datasets, "DEBIAN", tmp_path / "missing")
    assert datasets.locate("fashion_mnist") == datasets.DOWNLOADS


def test_missing_torchvision_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SystemExit, match="torchvision is needed for cifar10"):
        datasets.load("cifar10", tmp_path, train=True)
    with pytest.raises(SystemExit, match=f"needed to download Fashion-MNIST to {tmp_path}"):
        datasets.download("fashion_mnist", tmp_path)


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
    name: str,
    classes: int,
    channels: int,
    size: int,
    parameters: int,
) -> None:
    model = MODELS[name](classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(torch.zeros(2, channels, size, size)).shape == (2, classes)


def test_every_dataset_has_a_model() -> None:
    assert MODEL_OF.keys() == datasets.CLASSES.keys()
    assert set(MODEL_OF.values()) == MODELS.keys()


def test_a_loader_gets_the_same_images_all_at_once() -> None:
    train_set = datasets.digits(train=True)
    (batch,) = torch.utils.data.DataLoader(torch.utils.data.Subset(train_set, [5, 9]), 2)
    images = torch.stack([train_set[5][0], train_set[9][0]])
    torch.testing.assert_close(batch[0], images, rtol=0, atol=0)
    assert batch[1].tolist() == [int(train_set[i][1]) for i in (5, 9)]
    assert (len(train_set), len(datasets.digits(train=False))) == (1437, 360)


def test_data_is_downloaded_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def dataset(folder: Path, train: bool, transform: Any, download: bool) -> str:
        asked.append((folder, download))
        return "to train with" if train else "to test with"

    torchvision = SimpleNamespace(
        datasets=SimpleNamespace(CIFAR10=dataset), transforms=MagicMock(name="transforms")
    )
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    assert datasets.train_and_test("cifar10", tmp_path) == ("to train with", "to test with")
    assert asked == [(tmp_path, True), (tmp_path, False), (tmp_path, False)]


def test_no_digit_is_both_trained_and_tested_with():
    all_digits = pytest.importorskip("sklearn.datasets").load_digits().data.astype("uint8")
    images = torch.cat([datasets.digits(train).pixels for train in (True, False)]).numpy()
    assert sorted(map(bytes, images)) == sorted(map(bytes, all_digits))
