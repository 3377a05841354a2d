"""The data of fashion_mnist.py: Fashion-MNIST from idx files, CIFAR through torchvision."""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

sys.path.append(str(Path(__file__).parents[1]))  # for what the examples of all frameworks share
from idx import DEBIAN, IMAGES, find, read_part

CLASSES = {"fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
DOWNLOADS = Path.home() / ".cache" / "torchvision"


def locate(name: str, given: Path | None = None) -> Path:
    """Return the folder of a dataset: the given one, else Debian's, else that of downloads."""
    if given is not None:
        return given
    return DEBIAN if name == "fashion_mnist" and DEBIAN.is_dir() else DOWNLOADS


def download(name: str, folder: Path) -> None:
    """Download a dataset with torchvision, unless it is in the folder."""
    if name != "fashion_mnist":
        _cifar(name, folder, download=True)
    elif not find(folder, IMAGES.format("train")).exists():
        _torchvision(f"to download Fashion-MNIST to {folder}").datasets.FashionMNIST(
            folder, download=True
        )


def load(name: str, folder: Path, train: bool) -> Dataset:
    """Return pairs of an image, `(channels, height, width)`, and its label."""
    return FashionMNIST(folder, train) if name == "fashion_mnist" else _cifar(name, folder, train)


class FashionMNIST(Dataset):
    """Fashion-MNIST (Xiao et al. 2017), from a folder with its idx files, packed or not."""

    def __init__(self, folder: Path, train: bool) -> None:
        images, labels = read_part(folder, train)
        self.images, self.labels = torch.tensor(images), torch.tensor(labels).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index].unsqueeze(0) / 255
        return (image - 0.286) / 0.353, self.labels[index]


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
