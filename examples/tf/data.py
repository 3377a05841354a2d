"""The data of fashion_mnist.py: Fashion-MNIST from idx files or by Keras, CIFAR by Keras."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from horovod_detox.lab.idx import DEBIAN, read_part

CLASSES = {"fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
Arrays = tuple[np.ndarray, np.ndarray]


def load(name: str, folder: Path | None) -> tuple[Arrays, Arrays]:
    """Return images `(n, height, width, channels)` and labels, to train and to test with.

    Args:
        name: of the dataset.
        folder: of Fashion-MNIST's idx files; None: Debian's, else Keras downloads.
    """
    if name == "fashion_mnist" and (folder is not None or DEBIAN.is_dir()):
        train, test = (read_part(folder or DEBIAN, part) for part in (True, False))
    else:
        train, test = getattr(keras.datasets, name).load_data()
    return _normalise(train), _normalise(test)


def _normalise(part: Arrays) -> Arrays:
    images, labels = part
    images = images.reshape(*images.shape[:3], -1).astype(np.float32) / 255
    mean, deviation = (0.286, 0.353) if images.shape[-1] == 1 else (0.473, 0.251)
    return (images - np.float32(mean)) / np.float32(deviation), labels.ravel().astype(np.int64)


def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Crop a CIFAR image of 32 x 32 out of a wider one, and flip it or not."""
    image = tf.pad(image, [[4, 4], [4, 4], [0, 0]])
    return tf.image.random_flip_left_right(tf.image.random_crop(image, (32, 32, 3))), label
