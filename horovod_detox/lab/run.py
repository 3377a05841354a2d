"""The description of a run: a file, or flags, from which follows every bit of the training."""

import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from horovod_detox import attacks
from horovod_detox.config import Detox
from horovod_detox.lab.datasets import CLASSES
from horovod_detox.lab.models import MODEL_OF, MODELS
from horovod_detox.packing.torch import COMPRESSORS

CHOICES: dict[str, Collection[str]] = {
    "dataset": CLASSES,
    "model": MODELS,
    "compression": COMPRESSORS,
    "schedule": ("constant", "cosine"),
    "gradients": ("each", "vmap"),
    "device": ("auto", "cpu", "cuda"),
}
OF_A_REAL_JOB = (
    "max_skipped_steps",
    "fingerprint",
    "exchange",
    "one_round_bytes",
    "overlap_bytes",
    "witnesses",
    "timeout",
    "preflight",
    "scrub_every",
)
"""The settings of Detox that say how copies travel: without meaning where all are in one place."""
SETTINGS = {f.name for f in fields(Detox)} - {*OF_A_REAL_JOB, "seed"}
"""Those that a run has; the seed of the placement is its own."""

METHODS: dict[str, dict[str, Any]] = {
    "averaging": {"group_size": 1, "outer": "mean"},
    "median": {"group_size": 1, "outer": "median"},
    "geometric_median": {"group_size": 1, "outer": "geometric_median"},
    "multi_krum": {"group_size": 1, "outer": "multi_krum"},
    "bulyan": {"group_size": 1, "outer": "bulyan"},
    "sign": {"group_size": 1, "outer": "sign_majority", "compression": "sign"},
    "redundancy": {"group_size": 3, "outer": "mean"},
    "detox_median": {"group_size": 3, "outer": "median"},
    "detox_median_of_means": {"group_size": 3, "outer": "median", "buckets": 5},
    "detox_geometric_median": {"group_size": 3, "outer": "geometric_median", "buckets": 5},
    "detox_multi_krum": {"group_size": 3, "inner": "multi_krum", "outer": "mean", "buckets": 2},
    "detox_bulyan": {"group_size": 3, "outer": "bulyan"},
    "detox_sign": {"group_size": 3, "outer": "sign_majority", "compression": "sign"},
}
"""Plain rules, redundancy alone, and the DETOX paper's rules behind the vote."""


@dataclass(frozen=True)
class Run:
    """One training with p virtual ranks. Equal descriptions on equal machines: equal bits.

    Attributes:
        dataset: the dataset to train on.
        data: the folder with its files; None: the usual place.
        model: the network; None: the usual one for the dataset.
        ranks: p, the number of virtual ranks.
        detox: groups, rule and momentum of the votes.
        compression: the form in which gradients travel.
        attack: what faulty ranks send, as in HOROVOD_DETOX_ATTACK: "reverse(scale=100)@1,4".
        steps: number of training steps.
        batch_size: samples of a group in a step, each computed by all ranks of the group; None:
            `global_batch` divided by the number of groups.
        global_batch: samples of all k groups together; None: `k * batch_size`.
        lr: learning rate of SGD.
        sgd_momentum: momentum of SGD.
        weight_decay: weight decay of SGD.
        schedule: of the learning rate: constant, or falling to 0 as a cosine.
        seed: of the weights, the order of the data, and dropout.
        evaluate_every: steps between two tests; there is always one after the last step.
        gradients: `each` group after the other, with the same bits as a real rank; `vmap`: all at
            once, faster for small models, but with other rounding and other random numbers.
        channels_last: whether images have their channels last, which is faster on CPUs.
        device: where gradients are computed; auto: cuda if there is a GPU.
        threads: number of threads of every computation on the CPU.

    Raises:
        ValueError: naming the field, its value and what it may be.
    """

    dataset: str = "digits"
    data: str | None = None
    model: str | None = None
    ranks: int = 45
    detox: Detox = field(default_factory=Detox)
    compression: str = "none"
    attack: str | None = None
    steps: int = 300
    batch_size: int | None = None
    global_batch: int | None = None
    lr: float = 0.05
    sgd_momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    seed: int = 0
    evaluate_every: int = 50
    gradients: str = "each"
    channels_last: bool = False
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices and (name, value) != ("model", None):
                known = ", ".join(choices)
                raise ValueError(f"{name} = {value!r}: it must be one of {known}")
        for name in ("ranks", "steps", "batch_size", "global_batch", "evaluate_every", "threads"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} = {value!r}: it must be an integer of at least 1")
        for name in ("lr", "sgd_momentum", "weight_decay"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} = {value!r}: it must be a number")
        if self.batch_size and self.global_batch:
            raise ValueError("batch_size and global_batch are both given: give one of them")
        if self.attack is not None:
            attacks.from_spec(self.attack)

    @property
    def model_name(self) -> str:
        """Return the name of the model that is trained."""
        return self.model or MODEL_OF[self.dataset]

    def group_batch(self, num_groups: int) -> int:
        """Return the samples of each of k groups in a step.

        Raises:
            ValueError: when `global_batch` cannot be divided among them.
        """
        if self.global_batch is None:
            return self.batch_size or 32
        if self.global_batch % num_groups:
            raise ValueError(
                f"global_batch = {self.global_batch} cannot be divided among {num_groups} groups"
            )
        return self.global_batch // num_groups

    def describe(self) -> dict[str, Any]:
        """Return the description as `read` takes it: numbers and texts by the fields' names."""
        of_detox = {name: getattr(self.detox, name) for name in sorted(SETTINGS)}
        mine = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "detox"}
        return {
            name: value if isinstance(value, int | float | str) else repr(value)
            for name, value in (mine | of_detox).items()
            if value is not None
        }


DESCRIBED = {f.name for f in fields(Run)} - {"detox"} | SETTINGS
"""The names in a description."""


def read(path: Path | None = None, method: str | None = None, **given: Any) -> Run:
    """Return the run that a file describes, changed by a method and then by given values.

    Args:
        path: of a TOML file with fields of `Run` and of `SETTINGS`, and perhaps a `method`, which
            its other lines change; None: the defaults.
        method: a name in `METHODS`.
        **given: fields of `Run` and of `SETTINGS`.

    Raises:
        ValueError: for what is unknown or out of bounds.
    """
    described: dict[str, Any] = {}
    if path is not None:
        try:
            described = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
    described = _method(described.pop("method", None)) | described | _method(method) | given
    if unknown := described.keys() - DESCRIBED:
        raise ValueError(
            f"{min(unknown)!r} is not part of the description of a run: choose from method, "
            f"{', '.join(sorted(DESCRIBED))}"
        )
    settings = {name: described.pop(name) for name in described.keys() & SETTINGS}
    return Run(**described, detox=Detox(**settings, seed=described.get("seed", 0)))


def _method(name: str | None) -> dict[str, Any]:
    if name is not None and name not in METHODS:
        raise ValueError(f"method = {name!r}: it must be one of {', '.join(METHODS)}")
    return METHODS[name] if name is not None else {}
