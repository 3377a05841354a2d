"""The figures of docs/benchmarks.md."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot

from measuring.figures import save
from measuring.tables import Row

STYLES = {"no liar": "-", "persistent liar": "--", "first-time liar": ":"}
COLOURS = {"sharded": "tab:blue", "leaders": "tab:orange"}


def plot_exchange(rows: Sequence[Row], path: Path) -> None:
    """Draw the time of each exchange in multiples of allreduce, one panel per number of ranks."""
    ranks = sorted({row["ranks"] for row in rows})
    figure, panels = pyplot.subplots(
        1, len(ranks), figsize=(2.4 * len(ranks) + 0.6, 3.2), sharey=True, squeeze=False
    )
    for panel, p in zip(panels[0], ranks, strict=True):
        for exchange, colour in COLOURS.items():
            for liars, style in STYLES.items():
                chosen = [
                    row
                    for row in rows
                    if (row["ranks"], row["exchange"], row["liars"]) == (p, exchange, liars)
                ]
                sizes = [row["floats"] for row in chosen]
                label = exchange if liars == "no liar" else f"{exchange}, {liars}"
                ratios = [row["ratio"] for row in chosen]
                panel.plot(sizes, ratios, style, color=colour, marker=".", label=label)
                if liars == "no liar":
                    low, high = [r["low"] for r in chosen], [r["high"] for r in chosen]
                    panel.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.axhline(1, color="black", linewidth=0.5)
        panel.set(title=f"{p} ranks", xscale="log", yscale="log", xlabel="floats")
        panel.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"], minor=False)
        panel.minorticks_off()
    panels[0][0].set_ylabel("time / allreduce")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3)
    save(figure, path, bottom=0.18)


def plot_rules(rows: Sequence[Row], path: Path) -> None:
    """Draw how much longer the plain versions take than the rules, one panel per library."""
    libraries = [name for name in ("NumPy", "torch") if any(r["against"] == name for r in rows)]
    threads = min(row["threads"] for row in rows)
    figure, panels = pyplot.subplots(
        1, len(libraries), figsize=(8, 3.6), sharey=True, squeeze=False
    )
    for panel, library in zip(panels[0], libraries, strict=True):
        chosen = [r for r in rows if (r["against"], r["threads"]) == (library, threads)]
        for votes, floats in dict.fromkeys((r["votes"], r["floats"]) for r in chosen):
            ours = [r for r in chosen if (r["votes"], r["floats"]) == (votes, floats)]
            label = f"{votes} votes of {floats:,} floats"
            panel.plot([r["rule"] for r in ours], [r["ratio"] for r in ours], "o", label=label)
        panel.axhline(1, color="black", linewidth=0.5)
        panel.set(title=f"{library}, threads: {threads}", yscale="log")
        panel.tick_params(axis="x", rotation=60)
    panels[0][0].set_ylabel("time / ours")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=3)
    save(figure, path, bottom=0.14)
