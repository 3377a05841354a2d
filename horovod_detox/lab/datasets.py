"""Small data: scikit-learn's digits, Fashion-MNIST from idx files, CIFAR through torchvision."""

import importlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from horovod_detox.lab.idx import DEBIAN, IMAGES, find, read_part

CLASSES = {"digits": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
DIGITS_TO_TEST = 360
DOWNLOADS = Path.home() / ".cache" / "torchvision"


def locate(name: str, given: Path | None = None) -> Path:
    """Return the folder of a dataset: the given one, else Debian's, else that of downloads."""
    if given is not None:
        return given
    return DEBIAN if name == "fashion_mnist" and DEBIAN.is_dir() else DOWNLOADS


def download(name: str, folder: Path) -> None:
    """Download a dataset with torchvision, unless it is in the folder."""
    if name in ("cifar10", "cifar100"):
        _cifar(name, folder, download=True)
    elif name == "fashion_mnist" and not find(folder, IMAGES.format("train")).exists():
        _torchvision(f"to download Fashion-MNIST to {folder}").datasets.FashionMNIST(
            folder, download=True
        )


def train_and_test(name: str, given: Path | None = None) -> tuple[Any, Any]:
    """Return the data to train and to test with, downloaded if need be, as `load` does each."""
    folder = locate(name, given)
    download(name, folder)
    return load(name, folder, train=True), load(name, folder, train=False)


def load(name: str, folder: Path, train: bool) -> Any:
    """Return a Dataset of images, `(channels, height, width)` or `(pixels,)`, and their labels."""
    if name == "digits":
        return digits(train)
    return fashion_mnist(folder, train) if name == "fashion_mnist" else _cifar(name, folder, train)


class Images(Dataset):
    """Pairs of an image and its label, from arrays in memory.

    Args:
        pixels: `(n, ...)`, of integers.
        labels: `(n,)`.
        scale, mean, deviation: an image is `(pixels / scale - mean) / deviation`.
    """

    def __init__(
        self, pixels: Any, labels: Any, scale: float, mean: float = 0.0, deviation: float = 1.0
    ) -> None:
        self.pixels, self.labels = torch.as_tensor(pixels), torch.as_tensor(labels).long()
        self._scale, self._mean, self._deviation = scale, mean, deviation

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.pixels[index] / self._scale
        return (image - self._mean) / self._deviation, self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the pairs at all indices at once, as a DataLoader asks for them."""
        images, labels = self[torch.as_tensor(indices)]
        return list(zip(images.unbind(), labels.unbind(), strict=True))


@cache
def _digits() -> tuple[Any, Any]:
    return importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)


def digits(train: bool) -> Images:
    """Return scikit-learn's digits, `(64,)`: 1437 to train with, 360 to test with."""
    pixels, labels = _digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    chosen = order[DIGITS_TO_TEST:] if train else order[:DIGITS_TO_TEST]
    return Images(torch.tensor(pixels, dtype=torch.uint8)[chosen], labels[chosen], scale=16)


def fashion_mnist(folder: Path, train: bool) -> Images:
    """Return Fashion-MNIST (Xiao et al. 2017) from a folder with its idx files, packed or not."""
    images, labels = read_part(folder, train)
    return Images(images[:, None], labels, scale=255, mean=0.286, deviation=0.353)


def _cifar(name: str, folder: Path, train: bool = True, download: bool = False) -> Any:
    torchvision = _torchvision(f"for {name}")
    transforms = torchvision.transforms
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    prepare = [
        transforms.ToTensor(),
        transforms.Normalize((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    ]
    return getattr(torchvision.datasets, name.upper())(
        folder,
        train,
        transforms.Compose([*augment, *prepare] if train else prepare),
        download=download,
    )


def _torchvision(purpose: str) -> Any:
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        sys.exit(f"torchvision is needed {purpose} and cannot be imported: {error}")
