"""The networks of the examples: images of shape (n, height, width, channels) -> (n, classes)."""

from typing import Any

import keras
from keras import layers


def cnn(classes: int = 10) -> keras.Model:
    """Return a small network for gray images of 28 x 28 (62,000 parameters)."""
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            *(layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D()),
            *(layers.Conv2D(32, 3, padding="same", activation="relu"), layers.MaxPooling2D()),
            *(layers.Flatten(), layers.Dropout(0.1), layers.Dense(36, activation="relu")),
            layers.Dense(classes),
        ]
    )


def vgg13_bn(classes: int = 10) -> keras.Model:
    """Return VGG-13 with BatchNorm (Simonyan and Zisserman 2015) for images of 32 x 32.

    As usual for CIFAR, one linear layer replaces the three of the original.
    """
    images = outputs = keras.Input((32, 32, 3))
    for width in (64, 128, 256, 512, 512):
        for _ in range(2):
            outputs = layers.Conv2D(width, 3, padding="same")(outputs)
            outputs = layers.ReLU()(layers.BatchNormalization()(outputs))
        outputs = layers.MaxPooling2D()(outputs)
    return keras.Model(images, layers.Dense(classes)(layers.Flatten()(outputs)))


def resnet18(classes: int = 10) -> keras.Model:
    """Return ResNet-18 (He et al. 2016) for images of 32 x 32: a 3 x 3 stem without max-pool."""
    images = keras.Input((32, 32, 3))
    outputs = layers.ReLU()(_convolution(images, 64))
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        outputs = _block(_block(outputs, width, stride), width, 1)
    return keras.Model(images, layers.Dense(classes)(layers.GlobalAveragePooling2D()(outputs)))


def _block(inputs: Any, width: int, stride: int) -> Any:
    """Return two 3 x 3 convolutions and a way around them."""
    residual = layers.ReLU()(_convolution(inputs, width, stride))
    residual = _convolution(residual, width)
    if stride != 1 or inputs.shape[-1] != width:
        inputs = _convolution(inputs, width, stride, size=1)
    return layers.ReLU()(layers.Add()([inputs, residual]))


def _convolution(inputs: Any, width: int, stride: int = 1, size: int = 3) -> Any:
    outputs = layers.Conv2D(width, size, stride, padding="same", use_bias=False)(inputs)
    return layers.BatchNormalization()(outputs)


MODELS = {"cnn": cnn, "resnet18": resnet18, "vgg13_bn": vgg13_bn}
