"""Momentum of the votes against an attack that hides among the gradients.

Karimireddy, He, Jaggi (ICML 2021): a lie that hides in the noise of single steps adds up over
steps; a rule that sees running means of the gradients finds less noise to hide it in.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.results import (
    accuracy,
    curve,
    hiding_name,
    percent,
    plot_by_attack,
    select,
    setup,
    split,
)
from experiments.training import PLAIN_OF, Training, describe, prepared, train_all
from experiments.training import flags as training_flags
from measuring.tables import Row, bullets, pivot

METHODS_SHOWN = ("median", "multi_krum", "bulyan", "detox_median", "detox_bulyan")
ATTACKS = {
    "none": None,
    "formula:5": "a_little_is_enough@fixed:5",
    "deviation:5": "a_little_is_enough(z=-1)@fixed:5",
    "formula:9": "a_little_is_enough@fixed:9",
    "deviation:9": "a_little_is_enough(z=-1)@fixed:9",
}
NUM_BYZANTINE = 9
BETA = 0.9
MOMENTA = ("server", "votes")
"""Of SGD, on the update; or of the votes, before the rule."""


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the experiment."""
    training_flags(parser, METHODS_SHOWN, dataset="fashion_mnist", global_batch=720, steps=160)
    parser.add_argument(
        "--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="ATTACK"
    )


def measure(args: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for every training."""
    return train_all(trainings(args), args)


def trainings(args: argparse.Namespace) -> list[Training]:
    """Return all trainings, those with momentum of the votes at an equal effective step."""
    found = []
    for attack in (ATTACKS[name] for name in args.attacks):
        for method in args.methods:
            for seed in args.seeds:
                for where in MOMENTA:
                    lr = describe(args, method).lr
                    settings: dict[str, Any] = {"momentum": 0.0, "sgd_momentum": BETA, "lr": lr}
                    if where == "votes":  # a mean, where SGD adds up
                        settings = {"momentum": BETA, "sgd_momentum": 0.0, "lr": lr / (1 - BETA)}
                    run = describe(
                        args,
                        method,
                        num_byzantine=prepared(method, args.ranks, NUM_BYZANTINE),
                        attack=attack,
                        seed=seed,
                        **settings,
                    )
                    found.append(Training(run, {"method": method, "momentum": where}))
    return found


def draw(rows: list[Row], folder: Path) -> str:
    """Write the figure and return the text."""
    settings, rows = split(rows)
    plot(rows, folder / "momentum.svg")
    table = pivot(
        [row for row in rows if row["seed"] == rows[0]["seed"]],
        ("method", "momentum"),
        lambda row: hiding_name(row["attack"]),
        lambda row: percent(
            accuracy(rows, method=row["method"], momentum=row["momentum"], attack=row["attack"])
        ),
    )
    return f"""{setup(settings)}
The rule sees the votes, and SGD has momentum {BETA} (*server*, with the learning rate above); or it
sees their running means `m <- {BETA} m + {1 - BETA:.1f} v`, at first `v`, and SGD has none
(*votes*). Without groups, a vote is a rank's gradient. A mean weighs a gradient {1 - BETA:.1f}
where SGD adds it up, so with momentum of the votes the learning rate is {1 / (1 - BETA):.0f} times
larger: in the end a gradient has moved the weights as far. Faulty ranks send the mean of the honest
gradients minus `z` deviations, with the `z` of Baruch et al. (2019), or plus one deviation, as in
the experiments of its authors and of DETOX's; they are drawn once. Rules are prepared for
{NUM_BYZANTINE} faulty ranks, or, where they cannot be, for as many as they stand.

![Test accuracy against steps](momentum.svg)

{bullets(_seen(rows))}
Test accuracy after the last step, the mean over seeds:

{table}"""


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against steps: rows of panels are where the momentum is."""

    def curve_of(where: str, method: str, attack: str | None) -> tuple[list[int], list[float]]:
        return curve(rows, method=method, momentum=where, attack=attack)

    lines = {f"momentum of the {where}": partial(curve_of, where) for where in MOMENTA}
    plot_by_attack(rows, lines, "steps", path)


def _seen(rows: Sequence[Row]) -> list[str]:
    """Say in paragraphs what the rows show."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    told, gains = [], []
    for attack in dict.fromkeys(row["attack"] for row in rows):
        pairs = []
        for method in methods:
            server, votes = (
                accuracy(rows, method=method, momentum=where, attack=attack) for where in MOMENTA
            )
            pairs.append(f"`{method}` {percent(server)} and {percent(votes)}")
            gains.append((votes - server, method, attack))
        told.append(
            f"*{hiding_name(attack)}*: with momentum of the server and of the votes, "
            f"{', '.join(pairs)}."
        )
    for extreme, words in ((max, "helps most"), (min, "helps least or hurts most")):
        gain, method, attack = extreme(gains, key=lambda each: each[0])
        told.append(
            f"Momentum of the votes {words} `{method}` ({hiding_name(attack)}): "
            f"{100 * gain:+.1f} points."
        )
    lost = {
        where: {
            kind: max(
                accuracy(rows, method=method, momentum=where, attack=None)
                - accuracy(rows, method=method, momentum=where, attack=attack)
                for method in methods
                if (method in PLAIN_OF) == (kind == "DETOX")
                for attack in dict.fromkeys(row["attack"] for row in rows)
            )
            for kind in ("plain rules", "DETOX")
            if any((method in PLAIN_OF) == (kind == "DETOX") for method in methods)
        }
        for where in MOMENTA
        if select(rows, attack=None)
    }
    for where, kinds in lost.items():
        each = ", ".join(f"{kind} up to {100 * loss:.1f} points" for kind, loss in kinds.items())
        told.append(f"With momentum of the {where} the attacks cost {each}.")
    return told
