"""Accuracy against steps and time: robust rules with and without DETOX under an attack.

After figure 1 of the paper, with its attack "a little is enough", at equal global batch and at
equal work per rank.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace

from experiments.figure1_page import draw
from experiments.step_time import step_times
from experiments.training import PLAIN_OF, Training, describe, prepared, train_all
from experiments.training import flags as training_flags
from measuring.tables import Row

__all__ = ["draw", "flags", "measure"]

METHODS_SHOWN = (
    "averaging",
    "median",
    "multi_krum",
    "bulyan",
    "detox_median",
    "detox_multi_krum",
    "detox_bulyan",
)
ATTACKS = {
    "none": None,
    "formula:1": "a_little_is_enough@fixed:1",
    "deviation:1": "a_little_is_enough(z=-1)@fixed:1",
    "formula:5": "a_little_is_enough@fixed:5",
    "deviation:5": "a_little_is_enough(z=-1)@fixed:5",
}
"""The mean of the honest minus z deviations with the z of the attack's paper, which hides best; or
plus one deviation, as in the experiments of its authors and of DETOX's."""
NUM_BYZANTINE = 5


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the experiment."""
    training_flags(parser, METHODS_SHOWN, dataset="fashion_mnist", global_batch=1440, steps=160)
    parser.add_argument(
        "--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="ATTACK"
    )


def measure(args: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for every training, then the times of a step."""
    chosen = trainings(args)
    yield from train_all(chosen, args)
    settings = {(each.labels["method"], each.labels["batch"]): each.run for each in chosen}
    for (method, batch), times in zip(settings, step_times(list(settings.values())), strict=True):
        yield {"method": method, "batch": batch} | times


def trainings(args: argparse.Namespace) -> list[Training]:
    """Return all trainings; those with groups also with the work per rank of those without."""
    found = []
    for name in args.attacks:
        for method in args.methods:
            for seed in args.seeds:
                run = describe(
                    args,
                    method,
                    num_byzantine=prepared(method, args.ranks, NUM_BYZANTINE),
                    attack=ATTACKS[name],
                    seed=seed,
                )
                found.append(Training(run, {"method": method, "batch": "equal batch"}))
                if method in PLAIN_OF:
                    own = args.global_batch // args.ranks
                    less = replace(run, global_batch=None, batch_size=own)
                    found.append(Training(less, {"method": method, "batch": "equal work"}))
    return found
