"""Small networks and those of the DETOX paper: images -> (n, classes)."""

import torch
from torch import nn


def mlp(classes: int = 10) -> nn.Sequential:
    """Return a network for flat images of 64 pixels (17,000 parameters)."""
    return nn.Sequential(
        *(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(128, 64), nn.ReLU()),
        nn.Linear(64, classes),
    )


def cnn(classes: int = 10) -> nn.Sequential:
    """Return a small network for gray images of 28 x 28 (61,000 parameters)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(32 * 7 * 7, 36), nn.ReLU()),
        nn.Linear(36, classes),
    )


def vgg13_bn(classes: int = 10) -> nn.Sequential:
    """Return VGG-13 with BatchNorm (Simonyan and Zisserman 2015) for images of 32 x 32.

    As usual for CIFAR, one linear layer replaces the three of the original.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 256, 512, 512):
        layers += [*_convolution(channels, width), *_convolution(width, width), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, classes))


def _convolution(channels: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()


def resnet18(classes: int = 10) -> nn.Sequential:
    """Return ResNet-18 (He et al. 2016) for images of 32 x 32: a 3 x 3 stem without max-pool."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)]
    layers.append(nn.ReLU())
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(channels, width, stride), Block(width, width)]
        channels = width
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(channels, classes))


class Block(nn.Module):
    """Two 3 x 3 convolutions and a way around them."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)),
            *(nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut.append(nn.Conv2d(channels, width, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map `(n, channels, h, w)` to `(n, width, h / stride, w / stride)`."""
        return torch.relu(self.residual(images) + self.shortcut(images))


MODELS = {"mlp": mlp, "cnn": cnn, "resnet18": resnet18, "vgg13_bn": vgg13_bn}
MODEL_OF = {"digits": "mlp", "fashion_mnist": "cnn", "cifar10": "resnet18", "cifar100": "vgg13_bn"}
"""The usual model for every dataset."""
