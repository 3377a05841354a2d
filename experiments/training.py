"""Trainings by name: done by several processes, each kept as one small row."""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from horovod_detox.attacks import from_spec
from horovod_detox.lab.datasets import CLASSES, download, locate
from horovod_detox.lab.journal import Journal, train
from horovod_detox.lab.models import MODEL_OF, MODELS
from horovod_detox.lab.run import CHOICES, METHODS, Run, read
from measuring.tables import Row

LEARNING_RATES = {"digits": 0.2, "fashion_mnist": 0.05, "cifar10": 0.1, "cifar100": 0.1}
SIGN_LEARNING_RATES = {
    "digits": 0.001,
    "fashion_mnist": 0.001,
    "cifar10": 0.0001,
    "cifar100": 0.0001,
}
"""Chosen by short trials of averaging and of signs without faults; those of CIFAR are guesses."""

PLAIN_OF = {
    "redundancy": "averaging",
    "detox_median": "median",
    "detox_median_of_means": "median",
    "detox_geometric_median": "geometric_median",
    "detox_multi_krum": "multi_krum",
    "detox_bulyan": "bulyan",
    "detox_sign": "sign",
}
"""The methods with groups, and what each is compared with."""


@dataclass(frozen=True)
class Training:
    """A run, and what else its row tells.

    Attributes:
        run: the description.
        labels: the beginning of the row, by which it is found.
        curve: whether the row keeps the accuracies of all tests.
    """

    run: Run
    labels: Row = field(default_factory=dict)
    curve: bool = True

    @property
    def key(self) -> str:
        """Return what tells the description from every other."""
        return _digest(self.run.describe())


def flags(
    parser: argparse.ArgumentParser,
    methods: Iterable[str],
    dataset: str,
    global_batch: int,
    steps: int,
) -> None:
    """Add the flags of all experiments that train, with defaults of this one."""
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(methods), metavar="METHOD")
    add("--dataset", choices=CLASSES, default=dataset)
    add("--data", type=Path, help="the folder of its files")
    add("--model", choices=MODELS, help="default: the usual one of the dataset")
    add("--ranks", type=int, default=45)
    add("--global-batch", type=int, default=global_batch, help="samples of all ranks in a step")
    add("--steps", type=int, default=steps)
    add("--schedule", choices=CHOICES["schedule"], default="constant", help="of the learning rate")
    add("--evaluate-every", type=int, help="steps between two tests; default: an eighth of all")
    add("--lr", type=float, help="default: by the dataset")
    add("--sign-lr", type=float, help="that of methods that send signs; default: by the dataset")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--workers", type=int, default=os.cpu_count(), help="processes, of one thread each")
    add("--device", choices=CHOICES["device"], default="auto")
    add("--resume", action="store_true", help="keep the rows that an interrupted command measured")


def describe(args: argparse.Namespace, method: str, **changes: Any) -> Run:
    """Return the run of a method as the flags say, except for some changes."""
    signs = METHODS[method].get("compression") == "sign"
    lr, rates = (args.sign_lr, SIGN_LEARNING_RATES) if signs else (args.lr, LEARNING_RATES)
    model = args.model or MODEL_OF[args.dataset]
    settings = {
        "dataset": args.dataset,
        "data": str(args.data) if args.data else None,
        "model": args.model,
        "ranks": args.ranks,
        "global_batch": args.global_batch,
        "steps": args.steps,
        "schedule": args.schedule,
        "evaluate_every": args.evaluate_every or max(1, args.steps // 8),
        "lr": rates[args.dataset] if lr is None else lr,
        "gradients": "vmap" if model == "mlp" else "each",
        "channels_last": model != "mlp",
        "device": args.device,
    }
    return read(None, method, **settings | changes)


def common(args: argparse.Namespace) -> Row:
    """Return the settings that all trainings of an experiment share."""
    plain, signs = describe(args, "averaging"), describe(args, "sign")
    names = ("dataset", "ranks", "steps", "schedule")
    return {name: getattr(plain, name) for name in names} | {
        "model": plain.model_name,
        "global_batch": args.global_batch,
        "lr": plain.lr,
        "sign_lr": signs.lr,
        "methods": args.methods,
    }


def prepared(method: str, ranks: int, num_byzantine: int) -> int | None:
    """Return the number of faulty ranks to be prepared for: this one, or None if it is too many.

    None stands for as many as the rules can stand.

    >>> prepared("bulyan", 45, 9), prepared("detox_bulyan", 45, 9), prepared("averaging", 45, 1)
    (9, None, None)
    """
    try:
        read(None, method, num_byzantine=num_byzantine).detox.plan(ranks)
    except ValueError:
        return None
    return num_byzantine


def train_all(trainings: Sequence[Training], args: argparse.Namespace) -> Iterator[Row]:
    """Yield what all have in common, then the rows of trainings: those known before come first.

    Settings that do not fit end the program before anything is trained.
    """
    for each in trainings:
        try:
            plan = each.run.detox.plan(each.run.ranks)
            each.run.group_batch(len(plan.groups))
            if each.run.attack is not None:
                from_spec(each.run.attack).check(plan.groups)
        except ValueError as error:
            sys.exit(f"{each.labels}: {error}")
    yield common(args)
    known = {row["run"]: row for row in args.known if "run" in row}
    yield from (known[each.key] for each in trainings if each.key in known)
    new = [each for each in trainings if each.key not in known]
    if args.workers == 1 or len(new) < 2:
        yield from map(train_one, new)
        return
    download(args.dataset, locate(args.dataset, args.data))  # once, before all processes want it
    processes = multiprocessing.get_context("spawn")  # a fork would inherit locks of threads
    with ProcessPoolExecutor(min(args.workers, len(new)), processes) as pool:
        yield from pool.map(train_one, new)


def train_one(training: Training) -> Row:
    """Train and return the row: labels, attack, seed, and what came of it.

    Its `trace` is equal for trainings whose losses, and accuracies, are equal in every bit.
    """
    journal = train(training.run)
    row = training.labels | {"attack": training.run.attack, "seed": training.run.seed}
    row["accuracy"] = round(journal.accuracy, 4)
    if training.curve:
        tests = [each for each in journal.rows if "accuracy" in each]
        row["curve"] = [[each["step"] + 1, round(each["accuracy"], 4)] for each in tests]
    if journal.stopped:
        row["stopped"] = journal.stopped
    return row | {"trace": _trace(journal), "run": training.key}


def _trace(journal: Journal) -> str:
    return _digest([(row.get("loss"), row.get("accuracy")) for row in journal.rows])


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
