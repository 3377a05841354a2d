"""Time steps of ResNet-18 with Horovod's optimizer, with ours and with neither, in turn in one job.

horovodrun -np 6 --gloo python -m benchmarks.training

Every rank computes as many images with all of them; with ours, those of its group.
"""

import argparse
from pathlib import Path
from typing import Any

import horovod.torch as horovod
import torch

import horovod_detox.torch as hvd
from benchmarks import job
from horovod_detox import Detox
from horovod_detox.lab.models import resnet18
from measuring.clock import Operation

OPTIMIZERS = {
    "none": lambda optimizer, model: optimizer,
    "horovod": horovod.DistributedOptimizer,
    "detox": hvd.DistributedOptimizer,
}
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[4, 16], help="per rank")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=40.0, help="seconds per number of images")
    parser.add_argument("--group-size", type=int, default=3)
    parser.add_argument("--outer", default="median")
    parser.add_argument("--overlap-bytes", type=int, default=Detox().overlap_bytes)
    parser.add_argument("--json", type=Path, help="append the results to this file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    hvd.init(detox=Detox(args.group_size, outer=args.outer, overlap_bytes=args.overlap_bytes))
    job.say([row for images in args.images for row in compare(images, args)], args)


def compare(images: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each optimizer."""
    trainings = {name: Training(name, images) for name in OPTIMIZERS}
    others = [name for name in OPTIMIZERS if name != "horovod"]
    measured = job.clock(args.repeats, args.limit).compare(
        Operation(trainings["horovod"].step), [Operation(trainings[name].step) for name in others]
    )
    for name in ("horovod", "detox"):
        trainings[name].check()
    common = {"ranks": hvd.size(), "images": images, "floats": trainings["detox"].floats}
    rows = [common | {"optimizer": "horovod", "ms": measured[-1]["reference_ms"]}]
    return rows + [
        common | {"optimizer": name} | times for name, times in zip(others, measured, strict=True)
    ]


class Training:
    """A model in training on one batch.

    Attributes:
        floats: number of parameters.
    """

    def __init__(self, name: str, images: int) -> None:
        torch.manual_seed(0)
        self.model = resnet18(CLASSES)
        self.floats = sum(parameter.numel() for parameter in self.model.parameters())
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9)
        self.optimizer: Any = OPTIMIZERS[name](optimizer, self.model.named_parameters())
        torch.manual_seed(hvd.group() if name == "detox" else hvd.rank())
        self.images = torch.randn(images, 3, 32, 32)
        self.labels = torch.randint(CLASSES, (images,))

    def step(self) -> None:
        """Do all that a step of training does."""
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()

    def check(self) -> None:
        """Check that all ranks hold the same finite weights and that nobody was accused."""
        weights = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        average = hvd.allreduce(weights, name="weights")
        if not torch.allclose(weights, average):  # false for NaN, too
            raise AssertionError("the ranks' weights differ")
        if hvd.fault_report().dissents:
            raise AssertionError(f"honest ranks were accused: {hvd.fault_report()}")


if __name__ == "__main__":
    main()
