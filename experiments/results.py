"""Rows of trainings, read: accuracies, curves, what an attack left unchanged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes

from experiments.training import PLAIN_OF
from horovod_detox.attacks.placement import parse_placement, place
from horovod_detox.lab.run import METHODS
from horovod_detox.vote.groups import form_groups
from measuring.figures import save
from measuring.tables import Row

CurveOf = Callable[[str, str | None], tuple[Sequence[float], Sequence[float]]]

COLOURS = {
    "averaging": "black",
    "median": "tab:green",
    "geometric_median": "tab:brown",
    "multi_krum": "tab:orange",
    "bulyan": "tab:blue",
    "sign": "tab:purple",
}
"""Of plain methods, and of those with groups that are compared with them."""


def split(rows: Sequence[Row]) -> tuple[Row, list[Row]]:
    """Return the settings that all trainings share, and the rows of trainings."""
    return rows[0], [row for row in rows if "accuracy" in row]


def setup(settings: Row, rates: Sequence[str] = ("lr",)) -> str:
    """Say in a sentence what was trained."""
    schedule = "" if settings["schedule"] == "constant" else f", {settings['schedule']} schedule"
    lr = " and ".join(f"{settings[name]:g}" for name in rates)
    return (
        f"`{settings['model']}` on `{settings['dataset']}`, {settings['ranks']} ranks, "
        f"{settings['global_batch']:,} samples in a step, {settings['steps']} steps, learning rate "
        f"{lr}{schedule}."
    )


def select(rows: Iterable[Row], **labels: Any) -> list[Row]:
    """Return the rows that have these labels.

    >>> select([{"method": "median", "seed": 0}, {"method": "sign", "seed": 0}], method="sign")
    [{'method': 'sign', 'seed': 0}]
    """
    return [row for row in rows if all(row.get(name) == value for name, value in labels.items())]


def accuracy(rows: Iterable[Row], **labels: Any) -> float:
    """Return the final accuracy of the rows with these labels, the mean over seeds."""
    return fmean(row["accuracy"] for row in select(rows, **labels))


def curve(rows: Iterable[Row], **labels: Any) -> tuple[list[int], list[float]]:
    """Return steps and accuracies, means over the seeds that came so far."""
    tests: dict[int, list[float]] = {}
    for row in select(rows, **labels):
        for step, value in row["curve"]:
            tests.setdefault(step, []).append(value)
    steps = sorted(tests)
    return steps, [fmean(tests[step]) for step in steps]


def unchanged(rows: Sequence[Row], *labels: str) -> list[bool]:
    """Return for each attacked row whether it equals, in every bit, that without an attack.

    Args:
        rows: of trainings.
        *labels: what tells trainings apart, besides attack and seed.
    """

    def of(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in (*labels, "seed"))

    fair = {of(row): row["trace"] for row in rows if row["attack"] is None}
    return [row["trace"] == fair.get(of(row)) for row in rows if row["attack"] is not None]


def hiding_name(attack: str | None) -> str:
    """Name the attack "a little is enough" in a figure.

    >>> hiding_name("a_little_is_enough(z=-1)@fixed:5")
    'q = 5, mean + deviation'
    """
    if attack is None:
        return "no attack"
    z = "mean + deviation" if "z=-1" in attack else "mean - z deviations"
    return f"q = {faulty_ranks(attack)[1]}, {z}"


def faulty_ranks(attack: str | None) -> tuple[str, int]:
    """Split where an attack takes place.

    >>> faulty_ranks("reverse(scale=100)@random:5")
    ('random', 5)
    """
    return parse_placement(attack.rpartition("@")[2]) if attack else ("", 0)


def captured(method: str, ranks: int, attack: str, steps: int) -> float:
    """Return in how many groups the faulty ranks are a majority, the mean over steps.

    >>> captured("detox_bulyan", 45, "nan@concentrated:9", 10)
    4.0
    """
    size = METHODS[method]["group_size"]
    groups, placement = form_groups(ranks, size), attack.rpartition("@")[2]
    counts = []
    for step in range(steps):
        faulty = set(place(placement, step, groups, seed=0))
        counts.append(sum(2 * len(faulty & set(own)) > len(own) for own in groups.members))
    return fmean(counts)


def percent(share: float) -> str:
    """Return a share for a sentence.

    >>> percent(0.1234)
    '12.3 %'
    """
    return f"{100 * share:.1f} %"


def label_axes(panels: Any, columns: Sequence[str], x: str) -> None:
    """Title the columns of panels, and label their outer axes."""
    for panel, title in zip(panels[0], columns, strict=True):
        panel.set_title(title, fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel(x)
    for panel in panels.flat:
        panel.set_ylim(0, 1)


def draw_curve(
    panel: Axes, x: Sequence[float], y: Sequence[float], method: str, plain: str | None
) -> None:
    """Draw a method: solid if it has groups, dashed if it is plain."""
    style = "--" if plain is None else "-"
    panel.plot(x, y, style, color=COLOURS[plain or method], linewidth=1, label=method)


def plot_by_attack(
    rows: Sequence[Row], lines: Mapping[str, CurveOf], x_label: str, path: Path
) -> None:
    """Draw a curve for every method: columns of panels are attacks.

    Args:
        rows: of trainings.
        lines: for each line of panels its name, and what returns the curve of a method under an
            attack: `curve_of(method, attack)`.
        x_label: of the curves' first axis.
        path: of the figure.
    """
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    figure, panels = pyplot.subplots(
        len(lines), len(attacks), figsize=(2 + 1.8 * len(attacks), 5), sharey=True, squeeze=False
    )
    for line, (name, curve_of) in zip(panels, lines.items(), strict=True):
        for panel, attack in zip(line, attacks, strict=True):
            for method in dict.fromkeys(row["method"] for row in rows):
                draw_curve(panel, *curve_of(method, attack), method, PLAIN_OF.get(method))
        line[0].set_ylabel(f"{name}: test accuracy")
    label_axes(panels, [hiding_name(attack) for attack in attacks], x_label)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=4)
    save(figure, path, bottom=0.1)
