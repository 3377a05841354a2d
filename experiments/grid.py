"""Robustness: accuracy of every method under every attack, by number and place of faulty ranks."""

import argparse
from collections.abc import Iterator

from experiments.grid_page import draw
from experiments.training import Training, describe, prepared, train_all
from experiments.training import flags as training_flags
from horovod_detox.lab.run import METHODS
from measuring.tables import Row

__all__ = ["draw", "flags", "measure"]

ATTACKS = {
    "reverse": "reverse(scale=100)",
    "constant": "constant(value=-100)",
    "a_little_is_enough": "a_little_is_enough",
    "mean_plus_deviation": "a_little_is_enough(z=-1)",
    "inner_product": "inner_product",
    "bit_flip": "bit_flip",
    "zero_block": "zero_block",
    "stale": "stale",
    "nan": "nan",
    "label_flip": "label_flip(num_classes=10)",
}
OF_SIGNS = {"constant": "constant(value=-1)"}
FAULTY = (1, 3, 5, 9)
QUICK = {
    "methods": ["averaging", "median", "multi_krum", "detox_median", "detox_multi_krum"],
    "attacks": ["reverse", "mean_plus_deviation", "nan"],
    "faulty": [5],
}


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the experiment."""
    training_flags(parser, METHODS, dataset="digits", global_batch=360, steps=80)
    add = parser.add_argument
    add("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="ATTACK")
    add(
        "--faulty",
        type=int,
        nargs="+",
        default=list(FAULTY),
        help="numbers of faulty ranks, besides none",
    )
    add("--quick", action="store_true", help="a few methods and attacks instead, and 5 faulty")


def measure(args: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for every cell."""
    if args.quick:
        vars(args).update(QUICK)
    yield from train_all(trainings(args), args)


def trainings(args: argparse.Namespace) -> list[Training]:
    """Return all trainings; every method has one configuration in all of them."""
    found = []
    for method in args.methods:
        q = prepared(method, args.ranks, max(args.faulty))
        for seed in args.seeds:
            for attack in attacks(method, args):
                run = describe(args, method, num_byzantine=q, attack=attack, seed=seed)
                found.append(Training(run, {"method": method}, curve=False))
    return found


def attacks(method: str, args: argparse.Namespace) -> list[str | None]:
    """Return all attacks on a method; None is no attack.

    Where it matters, the faulty ranks are placed in two ways: without groups all places are equal,
    and one faulty rank is a minority anywhere.
    """
    signs = METHODS[method].get("compression") == "sign"
    found: list[str | None] = [None]
    for name in args.attacks:
        attack = OF_SIGNS.get(name, ATTACKS[name]) if signs else ATTACKS[name]
        for q in args.faulty:
            found.append(f"{attack}@random:{q}")
            if q > 1 and METHODS[method]["group_size"] > 1:
                found.append(f"{attack}@concentrated:{q}")
    return found
