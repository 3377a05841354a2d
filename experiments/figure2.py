"""Majority of signs with and without DETOX under the constant attack.

After figure 2 of the paper: signSGD, whose faulty ranks send -1 in every element.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib import pyplot

from experiments.results import (
    accuracy,
    captured,
    curve,
    draw_curve,
    label_axes,
    percent,
    setup,
    split,
    unchanged,
)
from experiments.training import PLAIN_OF, Training, describe, train_all
from experiments.training import flags as training_flags
from measuring.figures import save
from measuring.tables import Row, bullets, pivot

ATTACKS = {
    "none": None,
    "random:5": "constant(value=-1)@random:5",
    "concentrated:5": "constant(value=-1)@concentrated:5",
}


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the experiment."""
    methods = ("sign", "detox_sign")
    training_flags(parser, methods, dataset="fashion_mnist", global_batch=1440, steps=160)


def measure(args: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for every training."""
    return train_all(trainings(args), args)


def trainings(args: argparse.Namespace) -> list[Training]:
    """Return all trainings."""
    return [
        Training(describe(args, method, attack=attack, seed=seed), {"method": method})
        for attack in ATTACKS.values()
        for method in args.methods
        for seed in args.seeds
    ]


def draw(rows: list[Row], folder: Path) -> str:
    """Write the figure and return the text."""
    settings, rows = split(rows)
    plot(rows, folder / "figure2.svg")
    table = pivot(
        [row for row in rows if row["seed"] == rows[0]["seed"]],
        ("method",),
        lambda row: attack_name(row["attack"]),
        lambda row: percent(accuracy(rows, method=row["method"], attack=row["attack"])),
    )
    return f"""{setup(settings, ["sign_lr"])}
Every rank sends the signs of its gradient, one bit per element, and the update is the majority of
signs: of all ranks, or of the votes of groups of 3 (`detox_sign`), at equal global batch. Faulty
ranks send -1 everywhere; they are other ranks in every step (*random*), or sit where they capture
as many groups as they can (*concentrated*).

![Test accuracy against steps](figure2.svg)

{bullets(_seen(rows, settings))}
Test accuracy after the last step, the mean over seeds:

{table}"""


def attack_name(attack: str | None) -> str:
    """Name an attack in the figure."""
    if attack is None:
        return "no attack"
    placement, _, count = attack.rpartition("@")[2].partition(":")
    return f"q = {count}, {placement}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against steps: a panel for each attack."""
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    figure, panels = pyplot.subplots(1, len(attacks), figsize=(8, 2.8), sharey=True, squeeze=False)
    for panel, attack in zip(panels[0], attacks, strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            x, y = curve(rows, method=method, attack=attack)
            draw_curve(panel, x, y, method, PLAIN_OF.get(method))
    panels[0][0].set_ylabel("test accuracy")
    label_axes(panels, [attack_name(attack) for attack in attacks], "steps")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=2)
    save(figure, path, bottom=0.08)


def _seen(rows: Sequence[Row], settings: Row) -> list[str]:
    """Say in paragraphs what the rows show."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    told = []
    for attack in dict.fromkeys(row["attack"] for row in rows):
        each = ", ".join(
            f"`{method}` reaches {percent(accuracy(rows, method=method, attack=attack))}"
            for method in methods
        )
        told.append(f"*{attack_name(attack)}*: {each}.")
    for row in rows:
        if row["method"] in PLAIN_OF and row["attack"] and row["seed"] == rows[0]["seed"]:
            groups = captured(row["method"], settings["ranks"], row["attack"], row["curve"][-1][0])
            same = unchanged([*rows_without(rows, row), row], "method")[-1]
            told.append(
                f"*{attack_name(row['attack'])}*: the faulty ranks are a majority in "
                f"{groups:.2f} groups of `{row['method']}` on average; its training is "
                f"{'bit-identical to' if same else 'not that'} without an attack."
            )
    return told


def rows_without(rows: Sequence[Row], attacked: Row) -> list[Row]:
    """Return the rows of the same method without an attack."""
    return [r for r in rows if r["method"] == attacked["method"] and r["attack"] is None]
