"""One rank of a job on the hosts a, b and c: `horovodrun ... python -m tests.hosts.train FOLDER`.

It trains in every case that it is asked for, writes what it found to FOLDER/RANK.json, and then
trains on until that fails; why is written to FOLDER/RANK.error. What it and Horovod say goes to
FOLDER/RANK.log, as horovodrun does not pass on all that a rank says at its end.
"""

import functools
import json
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import horovod_detox.torch as hvd
from horovod_detox import Detox, attacks
from horovod_detox.torch.context import context
from tests.distributed.torch.training import digest, everywhere, train

GROUP_SIZES = {"spread": 3, "packed": 2}
"""By placement: over the three hosts, and within one, which has two ranks."""

LIARS = (2, 3)
"""The ranks of host b."""

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def main(folder: Path, cases: list[str]) -> None:
    """Train in the cases, and on until a host is lost."""
    log = (folder / f"{os.environ['HOROVOD_RANK']}.log").open("w")
    os.dup2(log.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    found = {case: trained(*case.split(":")) for case in cases}
    start("spread")
    report = folder / f"{hvd.rank()}.part"
    report.write_text(json.dumps(found))
    report.rename(report.with_suffix(".json"))  # complete as soon as it is there
    try:
        while True:
            train(SGD, steps=1)
    except Exception as error:
        (folder / f"{hvd.rank()}.error").write_text(f"{type(error).__name__}: {error}")
        raise


def trained(placement: str, behaviour: str) -> dict[str, Any]:
    """Train in groups of a placement; return what this rank knows then."""
    start(placement)
    attack = attacks.Reverse(scale=100, ranks=LIARS) if behaviour == "b lies" else None
    network = train(SGD, attack=attack)
    report = hvd.fault_report()
    return {
        "host": socket.gethostname(),
        "groups": everywhere(hvd.group()),
        "weights": digest(network),
        "report": asdict(report),
        "at fault": report.hosts_at_fault,
        "text": str(report),
    }


def start(placement: str) -> None:
    """Begin a new session."""
    size = GROUP_SIZES[placement]
    context.forget()
    hvd.init(detox=Detox(group_size=size, placement=placement, one_round_bytes=0, timeout=60.0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
