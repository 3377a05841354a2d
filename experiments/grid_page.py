"""The page of the experiment `grid`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes

from experiments.results import accuracy, captured, faulty_ranks, percent, setup, split, unchanged
from experiments.training import PLAIN_OF, prepared
from measuring.figures import save
from measuring.tables import Row, bullets, markdown

LOST = 0.05
"""A cell is called lost when so much of the accuracy without an attack is missing."""
Cell = tuple[str, str, str, int]
"""Method, attack, placement and number of faulty ranks."""


def draw(rows: list[Row], folder: Path) -> str:
    """Write the figure and return the text."""
    settings, trained = split(rows)
    cells = table_of(trained)
    fair = {method: accuracy(trained, method=method, attack=None) for method in methods(trained)}
    plot(cells, fair, folder / "grid.svg")
    return f"""{setup(settings, ["lr", "sign_lr"])}
The second learning rate is that of methods that send signs. Faulty ranks are drawn anew in every
step (*random*), or sit where they capture as many groups as they can (*concentrated*): every two of
them one group of 3. Without groups all places are equal, and one faulty rank is a minority
anywhere, so that *random* stands for both.

{_configuration(settings, trained)} `constant` is -100 in every element, -1 for signs; `reverse` is
-100 times the gradient; `a_little_is_enough` has the `z` of Baruch et al. (2019), which is 0 for
one faulty rank, and with `z=-1` it is the mean plus one deviation, as in the experiments of its
authors and of DETOX's. All rules of this package, averaging too, leave votes out that hold NaN or
infinity. Horovod's own allreduce does not: a single NaN would ruin it.

![Test accuracy for every method, attack, place and number of faulty ranks](grid.svg)

{bullets(_seen(trained, cells, fair, settings))}
Test accuracy after the last step in percent, the mean over seeds, with
q = {", ".join(map(str, numbers(cells)))} faulty ranks:

{_table(cells, fair)}"""


def methods(trained: Sequence[Row]) -> list[str]:
    """Return all methods, in the order of the rows."""
    return list(dict.fromkeys(row["method"] for row in trained))


def attack_name(attack: str) -> str:
    """Return the attack without its ranks; the usual values are left out.

    >>> attack_name("constant(value=-1)@random:3"), attack_name("a_little_is_enough(z=-1)@random:3")
    ('constant', 'a_little_is_enough(z=-1)')
    """
    name = attack.rpartition("@")[0]
    return name if "(z=" in name else name.partition("(")[0]


def table_of(trained: Sequence[Row]) -> dict[Cell, float]:
    """Return the accuracy of every attacked cell, the mean over seeds."""
    found = {}
    for row in trained:
        if row["attack"] is not None:
            placement, q = faulty_ranks(row["attack"])
            cell = row["method"], attack_name(row["attack"]), placement, q
            if cell not in found:
                found[cell] = accuracy(trained, method=row["method"], attack=row["attack"])
    return found


def numbers(cells: dict[Cell, float]) -> list[int]:
    """Return all numbers of faulty ranks."""
    return sorted({q for *_, q in cells})


def plot(cells: dict[Cell, float], fair: dict[str, float], path: Path) -> None:
    """Draw heat maps: of random, and of concentrated faulty ranks."""
    attacks, qs = list(dict.fromkeys(attack for _, attack, *_ in cells)), numbers(cells)
    placements = list(dict.fromkeys(placement for _, _, placement, _ in cells))
    lines = {
        place: [name for name in fair if any(c[0] == name and c[2] == place for c in cells)]
        for place in placements
    }
    figure, panels = pyplot.subplots(
        len(lines),
        1,
        figsize=(2.5 + 0.22 * (1 + len(attacks) * len(qs)), 1.6 + 0.2 * len(fair) * 1.6),
        squeeze=False,
        height_ratios=[len(names) + 1 for names in lines.values()],
    )
    for panel, (placement, names) in zip(panels[:, 0], lines.items(), strict=True):
        values = [
            [fair[name]]
            + [
                cells.get((name, a, placement, q), cells.get((name, a, "random", q), np.nan))
                for a in attacks
                for q in qs
            ]
            for name in names
        ]
        image = panel.imshow(np.array(values), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        panel.set_yticks(range(len(names)), names)
        panel.set_xticks(range(len(values[0])), [0, *qs * len(attacks)], fontsize=6)
        _name_attacks(panel, attacks, len(qs))
        panel.set_xlabel(f"q, faulty ranks, {placement}")
        figure.colorbar(image, ax=panel, label="test accuracy", fraction=0.02)
    save(figure, path)


def _name_attacks(panel: Axes, attacks: Sequence[str], width: int) -> None:
    for i, attack in enumerate(attacks):
        left = 0.5 + i * width
        panel.axvline(left, color="white", linewidth=2)
        label = attack.replace("a_little_is_enough", "alie").replace("_", "\n")
        panel.text(left + width / 2, -0.7, label, ha="center", va="bottom", fontsize=7)


def _configuration(settings: Row, trained: Sequence[Row]) -> str:
    """Say what the rules are prepared for."""
    most = max(faulty_ranks(row["attack"])[1] for row in trained)
    ready = {name: prepared(name, settings["ranks"], most) for name in methods(trained)}
    yes, no = (
        ", ".join(f"`{name}`" for name, q in ready.items() if (q is not None) == wanted)
        for wanted in (True, False)
    )
    return (
        f"Every method has one configuration for all cells: prepared for {most} faulty ranks "
        f"({yes or 'none'}), or, as it cannot be, for as many as it tolerates ({no or 'none'})."
    )


def _seen(
    trained: Sequence[Row], cells: dict[Cell, float], fair: dict[str, float], settings: Row
) -> list[str]:
    """Say in paragraphs what the rows show."""
    told = [
        "Without an attack: "
        + ", ".join(f"`{name}` {percent(value)}" for name, value in fair.items())
        + "."
    ]
    masked = [
        row
        for row in trained
        if row["attack"]
        and row["method"] in PLAIN_OF
        and captured(row["method"], settings["ranks"], row["attack"], settings["steps"]) == 0
    ]
    if masked:
        free = [row for row in trained if row["attack"] is None]
        same = sum(unchanged([*free, *masked], "method"))
        told.append(
            f"In {len(masked)} trainings with groups no group ever lost its majority; in {same} of "
            f"them every loss and the accuracy have the bits of the training without an attack."
        )
    lost = [cell for cell, value in cells.items() if value < fair[cell[0]] - LOST]
    for kind, names in (
        ("without groups", [name for name in fair if name not in PLAIN_OF]),
        ("with groups", [name for name in fair if name in PLAIN_OF]),
    ):
        all_ = [cell for cell in cells if cell[0] in names]
        told.append(
            f"Methods {kind} lose more than {100 * LOST:.0f} points in "
            f"{sum(cell[0] in names for cell in lost)} of {len(all_)} cells."
        )
    for name in fair:
        own = [cell for cell in lost if cell[0] == name]
        if name in PLAIN_OF and own:
            told.append(f"`{name}` loses that much with {_places(own)}.")
    behind = [
        cell
        for cell, value in cells.items()
        if cell[0] in PLAIN_OF
        and (other := cells.get((PLAIN_OF[cell[0]], cell[1], "random", cell[3]))) is not None
        and value < other - LOST
    ]
    by_method = [
        f"`{name}` with {_places([cell for cell in behind if cell[0] == name])}"
        for name in dict.fromkeys(cell[0] for cell in behind)
    ]
    detail = f": {'; '.join(by_method)}" if behind else ""
    told.append(
        f"Methods with groups end more than {100 * LOST:.0f} points below the plain method they "
        f"are compared with in {len(behind)} cells{detail}."
    )
    stopped = ended_early(trained)
    if stopped:
        told.append(f"These trainings ended early: {'; '.join(stopped)}.")
    return told


def _places(lost: Sequence[Cell]) -> str:
    """List cells: attack, placement, numbers."""
    grouped: dict[tuple[str, str], list[int]] = {}
    for _, attack, placement, q in lost:
        grouped.setdefault((attack, placement), []).append(q)
    return ", ".join(
        f"`{attack}` {placement} (q = {', '.join(map(str, qs))})"
        for (attack, placement), qs in grouped.items()
    )


def ended_early(trained: Sequence[Row]) -> list[str]:
    """Name trainings that ended early."""
    return [f"`{row['method']}`, `{row['attack']}`" for row in trained if "stopped" in row]


def _table(cells: dict[Cell, float], fair: dict[str, float]) -> str:
    attacks = list(dict.fromkeys(attack for _, attack, *_ in cells))
    body = []
    for name, value in fair.items():
        for placement in dict.fromkeys(c[2] for c in cells if c[0] == name):
            line = [
                " ".join(
                    f"{100 * cells[cell]:.0f}"
                    if (cell := (name, a, placement, q)) in cells
                    else "-"
                    for q in numbers(cells)
                )
                for a in attacks
            ]
            body.append([name, placement, f"{100 * value:.0f}", *line])
    return markdown(["method", "placement", "none", *(f"`{a}`" for a in attacks)], body)
