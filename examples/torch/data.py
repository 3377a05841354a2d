"""The data of fashion_mnist.py: Fashion-MNIST from idx files, CIFAR through torchvision."""

import gzip
import importlib
import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

CLASSES = {"fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
DOWNLOADS = Path.home() / ".cache" / "torchvision"
IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
MAGIC = bytes([0, 0, 8])  # the code of unsigned bytes


def locate(name: str, given: Path | None = None) -> Path:
    """Return the folder of a dataset: the given one, else Debian's, else that of downloads."""
    if given is not None:
        return given
    return DEBIAN if name == "fashion_mnist" and DEBIAN.is_dir() else DOWNLOADS


def download(name: str, folder: Path) -> None:
    """Download a dataset with torchvision, unless it is in the folder."""
    if name != "fashion_mnist":
        _cifar(name, folder, download=True)
    elif not _find(folder, IMAGES.format("train")).exists():
        _torchvision(f"to download Fashion-MNIST to {folder}").datasets.FashionMNIST(
            folder, download=True
        )


def load(name: str, folder: Path, train: bool) -> Dataset:
    """Return pairs of an image, `(channels, height, width)`, and its label."""
    return FashionMNIST(folder, train) if name == "fashion_mnist" else _cifar(name, folder, train)


class FashionMNIST(Dataset):
    """Fashion-MNIST (Xiao et al. 2017), from a folder with its idx files, packed or not."""

    def __init__(self, folder: Path, train: bool) -> None:
        part = "train" if train else "t10k"
        self.images = torch.tensor(read_idx(_find(folder, IMAGES.format(part))))
        self.labels = torch.tensor(read_idx(_find(folder, LABELS.format(part)))).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index].unsqueeze(0) / 255
        return (image - 0.286) / 0.353, self.labels[index]


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes from an idx file, packed by gzip if its name says so.

    Raises:
        ValueError: when the file is not an idx file of unsigned bytes, or is cut off.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read()
    if content[:3] != MAGIC or len(content) < 4:
        raise ValueError(
            f"{path} is not an idx file of bytes: it begins with {content[:4].hex(' ')}, not with "
            f"{MAGIC.hex(' ')} and the number of dimensions"
        )
    ndim = content[3]
    header, data = content[4 : 4 + 4 * ndim], content[4 + 4 * ndim :]
    if len(header) < 4 * ndim:
        raise ValueError(f"{path} ends inside its header")
    shape = struct.unpack(f">{ndim}I", header)
    if len(data) != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(data)} bytes of data, not {math.prod(shape)} as its shape {shape}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape).copy()


def _find(folder: Path, name: str) -> Path:
    """Return the path of an idx file in a folder, or in torchvision's folders inside it."""
    places = [folder / name, folder / f"{name}.gz", folder / "FashionMNIST" / "raw" / name]
    return next(filter(Path.exists, places), places[0])


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
