"""The page of the experiment `figure1`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from experiments.results import (
    accuracy,
    captured,
    curve,
    faulty_ranks,
    hiding_name,
    percent,
    plot_by_attack,
    select,
    setup,
    split,
    unchanged,
)
from experiments.training import PLAIN_OF
from measuring.tables import Row, bullets, pivot

BATCHES = ("equal batch", "equal work")
MARGIN = 0.01
"""Less of a difference between accuracies is not told."""


def draw(rows: list[Row], folder: Path) -> str:
    """Write the figures and return the text."""
    settings, trained = split(rows)
    times = {(row["method"], row["batch"]): row for row in rows if "gradient_ms" in row}
    plot(trained, None, folder / "figure1-steps.svg")
    plot(trained, times, folder / "figure1-seconds.svg")
    table = pivot(
        [row for row in trained if row["seed"] == trained[0]["seed"]],
        ("method", "batch"),
        lambda row: hiding_name(row["attack"]),
        lambda row: percent(accuracy(trained, **setting(row), attack=row["attack"])),
    )
    seconds = pivot(
        [
            row | {"part": part, "value": f"{value:.1f}"}
            for row in times.values()
            for part, value in (
                ("gradient, ms", row["gradient_ms"]),
                ("aggregation, ms", row["aggregation_ms"]),
                ("step, ms", step_ms(row)),
            )
        ],
        ("method", "batch"),
        lambda row: row["part"],
        lambda row: row["value"],
    )
    return f"""{setup(settings)}
`detox_` methods have groups of 3. *Equal batch*: all methods see as many different samples in a
step, so that a rank with groups computes 3 times as many as one without. *Equal work*: every rank
computes as many samples, and methods with groups see a third of the different ones; plain methods
are the same in both. The faulty ranks send the mean of the honest gradients minus `z` deviations,
with the `z` of Baruch et al. (2019), which is 0 for one faulty rank, or the mean plus one
deviation, as in the experiments of its authors and of DETOX's; they are drawn once. Rules that can
be prepared for 5 faulty ranks are; averaging cannot be for any.

![Test accuracy against steps](figure1-steps.svg)

![Test accuracy against modelled seconds](figure1-seconds.svg)

Columns are attacks; the upper row shows equal batches, the lower one equal work. Plain methods are
dashed.

{bullets(_seen(trained, times, settings))}
Test accuracy after the last step, the mean over seeds:

{table}
What a step takes:

{seconds}"""


def setting(row: Row) -> Row:
    """Return the labels that name a setting."""
    return {"method": row["method"], "batch": row["batch"]}


def step_ms(times: Row) -> float:
    """Return the modelled time of a step."""
    return times["gradient_ms"] + times["aggregation_ms"]


def plot(trained: Sequence[Row], times: dict[tuple[str, str], Row] | None, path: Path) -> None:
    """Draw accuracy against steps, or against seconds if times are given."""

    def curve_of(batch: str, method: str, attack: str | None) -> tuple[list[float], list[float]]:
        own = batch if method in PLAIN_OF else BATCHES[0]
        steps, y = curve(trained, method=method, batch=own, attack=attack)
        scale = 1 if times is None else step_ms(times[method, own]) / 1000
        return [scale * step for step in steps], y

    lines = {batch: partial(curve_of, batch) for batch in BATCHES}
    plot_by_attack(trained, lines, "steps" if times is None else "s", path)


def _seen(trained: Sequence[Row], times: dict[tuple[str, str], Row], settings: Row) -> list[str]:
    """Say in paragraphs what the rows show."""
    told = [
        f"Time is modelled: a step of a real job is taken to last as long as one rank's gradient "
        f"and the aggregation of all {settings['ranks']} gradients on one machine, as in a "
        f"parameter server, both measured as processor time of one thread. What travels is not in "
        f"it; the experiment `cost` counts that.",
    ]
    for q in (1, 5):
        told += _masked(trained, q, settings["ranks"])
    told += _compared(trained)
    for batch in BATCHES:
        ratios = {
            method: step_ms(times[method, batch]) / step_ms(times[plain, BATCHES[0]])
            for method, plain in PLAIN_OF.items()
            if (method, batch) in times and (plain, BATCHES[0]) in times
        }
        if ratios:
            each = ", ".join(f"{ratio:.2f} (`{name}`)" for name, ratio in ratios.items())
            told.append(f"At {batch}, a step takes {each} times as long as with the plain rule.")
    return told


def _masked(trained: Sequence[Row], q: int, ranks: int) -> list[str]:
    """Tell whether q faulty ranks changed anything where there are groups."""
    chosen = [row for row in trained if row["method"] in PLAIN_OF]
    here = [row for row in chosen if row["attack"] is None or faulty_ranks(row["attack"])[1] == q]
    equal = unchanged(here, "method", "batch")
    if not equal:
        return []
    attacked = next(row for row in here if row["attack"])
    groups = captured(attacked["method"], ranks, attacked["attack"], steps=1)
    return [
        f"With q = {q} the number of captured groups is {groups:.0f}; in {sum(equal)} of "
        f"{len(equal)} trainings with groups every loss and accuracy has the bits of that without "
        f"an attack."
    ]


def _compared(trained: Sequence[Row]) -> list[str]:
    """Compare methods with groups to plain ones, under every attack."""
    better, worse = [], []
    told = []
    for attack in dict.fromkeys(row["attack"] for row in trained):
        gains = []
        for method, plain in PLAIN_OF.items():
            for batch in BATCHES:
                ours = select(trained, method=method, batch=batch, attack=attack)
                theirs = select(trained, method=plain, attack=attack)
                if not ours or not theirs:
                    continue
                gain = mean(r["accuracy"] for r in ours) - mean(r["accuracy"] for r in theirs)
                gains.append(f"`{method}` {100 * gain:+.1f} ({batch})")
                cell = f"`{method}` ({batch}, {hiding_name(attack)}: {100 * gain:+.1f} points)"
                (better if gain > MARGIN else worse if gain < -MARGIN else []).append(cell)
        if gains:
            told.append(
                f"*{hiding_name(attack)}*: in points of accuracy against the plain "
                f"rule, {', '.join(gains)}."
            )
    names = "; ".join(worse) or "nowhere"
    told.append(
        f"DETOX ends more than {100 * MARGIN:.0f} point above its plain rule in {len(better)} "
        f"cells, and as much below it in {len(worse)}: {names}."
    )
    return told
