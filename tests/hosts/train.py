"""One rank of a job on the hosts a, b and c: `horovodrun ... python -m tests.hosts.train FOLDER`.

It trains in every case below and writes what it found to FOLDER/RANK.json. With `--endless` it
trains until it fails, and writes why to FOLDER/RANK.error.
"""

import argparse
import functools
import json
import socket
import sys
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch

import horovod_detox.torch as hvd
from horovod_detox import Detox, attacks
from tests.distributed.torch.training import digest, everywhere, train

CASES = {"spread": 3, "packed": 2}
"""Group sizes by placement: over three hosts, and within one, which has two ranks."""

LIARS = (2, 3)
"""The ranks of host b."""

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def main() -> None:
    """Train as the flags say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--endless", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.endless:
        train_until_it_fails(args.folder)
        return
    found: dict[str, Any] = {"host name": socket.gethostname()}
    for placement in CASES:
        for liars in ((), LIARS):
            found[f"{placement}, {'host b lies' if liars else 'fair'}"] = trained(placement, liars)
    hvd.init()
    Path(args.folder, f"{hvd.rank()}.json").write_text(json.dumps(found))


def trained(placement: str, liars: tuple[int, ...]) -> dict[str, Any]:
    """Train in groups of a placement; return what this rank knows then."""
    start(placement)
    attack = attacks.Reverse(scale=100, ranks=liars) if liars else None
    network = train(SGD, attack=attack)
    report = hvd.fault_report()
    return {
        "group of each rank": everywhere(hvd.group()),
        "weights": digest(network),
        "report": asdict(report) | {"events": len(report.events)},
        "text": str(report),
        "hosts at fault": report.hosts_at_fault,
    }


def train_until_it_fails(folder: Path) -> None:
    """Train step by step; tell the test when it is under way, and why it ended."""
    start("spread")
    try:
        for step in count():
            train(SGD, steps=1)
            if step == 3:
                (folder / f"{hvd.rank()}.started").touch()
    except Exception as error:
        (folder / f"{hvd.rank()}.error").write_text(f"{type(error).__name__}: {error}")
        raise


def start(placement: str) -> None:
    """Begin a new session."""
    size = CASES[placement]
    hvd.init(detox=Detox(group_size=size, placement=placement, one_round_bytes=0, timeout=60.0))


if __name__ == "__main__":
    main()
