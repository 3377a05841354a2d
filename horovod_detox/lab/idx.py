"""Fashion-MNIST's files: arrays of bytes in the idx format."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
MAGIC = bytes([0, 0, 8])  # the code of unsigned bytes


def read_part(folder: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read the images, `(n, 28, 28)`, and the labels, `(n,)`, to train or to test with."""
    part = "train" if train else "t10k"
    return read_idx(find(folder, IMAGES.format(part))), read_idx(find(folder, LABELS.format(part)))


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


def find(folder: Path, name: str) -> Path:
    """Return the path of an idx file in a folder, or in torchvision's folders inside it."""
    places = [folder / name, folder / f"{name}.gz", folder / "FashionMNIST" / "raw" / name]
    return next(filter(Path.exists, places), places[0])
