"""Attacks on the training data."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from horovod_detox.attacks.attack import Attack, Scene


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Train on `num_classes - 1 - label`, and send the gradient as it comes (Fang et al. 2020).

        sent = the gradient of the loss on the labels num_classes - 1 - y

    Fang, Cao, Jia, Gong, "Local model poisoning attacks to Byzantine-robust federated learning",
    USENIX Security 2020.
    """

    num_classes: int
    poisons: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand_integer("num_classes", least=2)

    def labels(self, labels: Any) -> Any:
        """Return the flipped labels, an array of the same kind (NumPy, torch, TensorFlow).

        >>> LabelFlip(num_classes=10).labels(np.array([0, 3]))
        array([9, 6])
        """
        return self.num_classes - 1 - labels

    def lie(self, scene: Scene) -> np.ndarray:
        return scene.own
