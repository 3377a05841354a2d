"""The page of the experiment `cost`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from measuring.figures import save
from measuring.tables import Row, bullets, pivot

STYLES = {
    "plain": ("black", "o"),
    "DETOX": ("tab:blue", "o"),
    "DETOX, 7 buckets": ("tab:green", "s"),
    "vote alone": ("tab:gray", "."),
}
FROM = 30
"""The ranks from which there are more than 7 votes, and every rule reckons with a faulty one."""


def draw(rows: list[Row], folder: Path) -> str:
    """Write the figures and return the text."""
    times = [row for row in rows if "rule" in row]
    bytes_ = [row for row in rows if "exchange" in row]
    sections = [INTRODUCTION]
    if times:
        plot_times(times, folder / "cost.svg")
        sections.append(times_section(times))
    if bytes_:
        plot_bytes(bytes_, folder / "cost-bytes.svg")
        sections.append(bytes_section(bytes_))
    return "\n".join(sections)


INTRODUCTION = """A rule on the gradients of all `p` ranks (plain) against DETOX with groups of 3:
the vote on `p` copies, then the same rule on `p / 3` votes, or on the means of 7 buckets of them.
A ninth of the ranks is assumed to be faulty, `q = p // 9`: plain rules have `f = q`, rules on all
votes `f = q // 2`, the most votes that so many ranks can capture. On 7 buckets it is `f = 1`, as
Bulyan tolerates no more: any 3 faulty ranks. Nobody lies in fact: this is the price of an ordinary
step. The time to compute gradients, of which redundancy needs `r` times as many, and to send them
is not in it.

*One machine*: all work in one place, as in a parameter server; every copy is fingerprinted.
*One rank*: what one of `p` ranks does in `sharded`: it fingerprints its own copy, takes all votes
from the table of fingerprints, checks the slices it received, and aggregates its slice of `d / p`
columns. A plain rule is spared all of it but the search for NaN. Times are those of the
processor for this process alone, as the machine had other work, too; medians of rounds in which
plain and DETOX take turns. Ratios are medians of ratios of neighbours in time.
"""


def exponent(ranks: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit seconds = c * ranks ** e by least squares of the logarithms; return e, standard error.

    >>> round(exponent([10, 20, 40], [3, 12, 48])[0], 6)
    2.0
    """
    x, y = np.log(ranks), np.log(seconds)
    x, y = x - x.mean(), y - y.mean()
    slope = x @ y / (x @ x)
    rest = y - slope * x
    return float(slope), float(np.sqrt(rest @ rest / max(len(x) - 2, 1) / (x @ x)))


def exponents(times: Sequence[Row], start: int = 0) -> list[Row]:
    """Return a row with exponent and error for every line of the figure, fitted from `start` on."""
    keys = ("by", "floats", "rule", "scheme")
    fits = []
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in times):
        line = [r for r in times if tuple(r[k] for k in keys) == key and r["ranks"] >= start]
        if len(line) > 2:
            e, error = exponent([r["ranks"] for r in line], [r["ms"] for r in line])
            fits.append(dict(zip(keys, key, strict=True)) | {"exponent": e, "error": error})
    return fits


def times_section(times: Sequence[Row]) -> str:
    """Return what is seen of the times, with their figure and tables."""
    largest, most = max(r["floats"] for r in times), max(r["ranks"] for r in times)
    index = ("by", "floats", "rule")
    times = sorted(times, key=lambda row: (row["by"], row["floats"]))
    ratios = pivot(
        [r for r in times if r["scheme"] == "DETOX"],
        index,
        lambda row: f"{row['ranks']} ranks",
        lambda row: f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
    )
    few = pivot(
        [r for r in times if r["scheme"].startswith("DETOX, ")],
        index,
        lambda row: f"{row['ranks']} ranks",
        lambda row: f"{row['ratio']:.2f}",
    )
    fits = [
        fit | {"column": fit["scheme"] + (f", from {FROM}" if start else "")}
        for start in (0, FROM)
        for fit in exponents([r for r in times if r["scheme"] != "vote alone"], start)
        if start or "," not in fit["scheme"]
    ]
    fitted = pivot(
        fits,
        index,
        lambda fit: fit["column"],
        lambda fit: f"{fit['exponent']:.2f} ± {fit['error']:.2f}",
    )
    return f"""## Time

![Time against the number of ranks, for every rule](cost.svg)

Processor milliseconds with {largest:,} floats (solid) and fewer (dashed); dotted lines are
proportional to `p` and to `p²`.

{bullets(_seen(times, largest, most))}
The exponent of `p`, fitted by least squares of the logarithms, with its standard error: over all
ranks, and from {FROM} ranks on. Below that, `f` is 0 after the vote, with which trimmed mean and
Bulyan are a mean.

{fitted}
Time of DETOX / time of the plain rule, with quartiles:

{ratios}
The same with 7 buckets:

{few}"""


def _seen(times: Sequence[Row], largest: int, most: int) -> list[str]:
    """Say in paragraphs what the rows show."""
    fits = [
        fit
        for fit in exponents(times, FROM)
        if (fit["by"], fit["floats"]) == ("one machine", largest)
    ]
    at = [r for r in times if (r["ranks"], r["floats"]) == (most, largest)]
    small = [r for r in times if (r["ranks"], r["floats"]) == (most, min(_floats(times)))]
    detox = [row for row in times if row["scheme"] == "DETOX"]
    lost = [row for row in detox if row["ratio"] > 1]
    machine, rank = _by(at, "one machine"), _by(at, "one rank")
    fewer, few = _by(small, "one rank"), min(_floats(times))
    return [
        f"The paper says of plain rules that they are often quadratic in the ranks, and of DETOX "
        f"that it can be nearly linear. On one machine, from {FROM} ranks on with {largest:,} "
        f"floats, the exponent is {_range(fits, 'plain', 'exponent')} for plain rules, "
        f"{_range(fits, 'DETOX', 'exponent')} with DETOX on all votes and "
        f"{_range(fits, 'DETOX, 7 buckets', 'exponent')} with 7 buckets; of the vote alone it is "
        f"{_range(fits, 'vote alone', 'exponent')}.",
        f"With {most} ranks and {largest:,} floats one machine needs "
        f"{_range(machine, 'DETOX', 'ratio')} of the plain rule's time, and with 7 buckets, whose "
        f"number does not grow with `p`, {_range(machine, 'DETOX, 7 buckets', 'ratio')}. The vote "
        f"takes {_median(machine, 'vote alone'):.0f} of the {_median(machine, 'DETOX'):.0f} ms on "
        f"all votes (medians of the rules). What follows it is the plain rule on `p / 3` rows, "
        f"whose power is that of the plain rule on `p`.",
        f"One rank of these {most} needs {_range(rank, 'DETOX', 'ratio')} of the plain rule's "
        f"time with {largest:,} floats, and {_range(fewer, 'DETOX', 'ratio')} with {few:,}. The "
        f"vote takes {_median(rank, 'vote alone'):.1f} of its {_median(rank, 'DETOX'):.1f} ms "
        f"(medians of the rules) with {largest:,} floats and {_median(fewer, 'vote alone'):.1f} of "
        f"{_median(fewer, 'DETOX'):.1f} ms with {few:,}: what remains when floats are few is the "
        f"table of `p` by `p` fingerprints, which every rank goes through.",
        f"Where DETOX loses: on all votes it takes longer than the plain rule in {len(lost)} of "
        f"{len(detox)} settings ({_settings(lost)}).",
    ]


def _floats(times: Sequence[Row]) -> set[int]:
    return {row["floats"] for row in times}


def _by(rows: Sequence[Row], by: str) -> list[Row]:
    return [row for row in rows if row["by"] == by]


def _range(rows: Sequence[Row], scheme: str, value: str) -> str:
    """Return the least and the greatest value of a scheme, with the rules that have them."""
    found = sorted((r[value], r["rule"]) for r in rows if r["scheme"] == scheme)
    if not found:
        return "(not measured)"
    (low, first), (high, last) = found[0], found[-1]
    if scheme == "vote alone":
        return f"{low:.2f} to {high:.2f}"
    return f"{low:.2f} (`{first}`) to {high:.2f} (`{last}`)"


def _median(rows: Sequence[Row], scheme: str) -> float:
    return float(np.median([row["ms"] for row in rows if row["scheme"] == scheme] or np.nan))


def _settings(lost: Sequence[Row]) -> str:
    """Count rows by clock and floats."""
    counts: dict[str, int] = {}
    for row in lost:
        name = f"{row['by']}, {row['floats']:,} floats"
        counts[name] = counts.get(name, 0) + 1
    return "; ".join(f"{name}: {count}" for name, count in counts.items()) or "none"


def plot_times(times: Sequence[Row], path: Path) -> None:
    """Draw time against ranks: a panel for each rule and for one machine and one rank."""
    rules = list(dict.fromkeys(row["rule"] for row in times))
    clocks = list(dict.fromkeys(row["by"] for row in times))
    largest = max(_floats(times))
    figure, panels = pyplot.subplots(
        len(clocks), len(rules), figsize=(2.1 * len(rules) + 0.5, 2.4 * len(clocks) + 0.6),
        sharex=True, sharey="row", squeeze=False,
    )  # fmt: skip
    for i, by in enumerate(clocks):
        for panel, rule in zip(panels[i], rules, strict=True):
            chosen = [r for r in times if (r["by"], r["rule"]) == (by, rule)]
            for floats in sorted(_floats(chosen), reverse=True):
                for scheme, (colour, marker) in STYLES.items():
                    line = [r for r in chosen if (r["floats"], r["scheme"]) == (floats, scheme)]
                    panel.plot(
                        [r["ranks"] for r in line],
                        [r["ms"] for r in line],
                        "-" if floats == largest else "--",
                        color=colour,
                        marker=marker if floats == largest else None,
                        markersize=3,
                        linewidth=1 if floats == largest else 0.6,
                        label=scheme if floats == largest else None,
                    )
            _guide(panel, [r for r in chosen if r["floats"] == largest and r["scheme"] == "plain"])
            panel.set(xscale="log", yscale="log", title=rule if i == 0 else None)
            ranks = sorted({r["ranks"] for r in times})
            panel.set_xticks(ranks, [str(p) for p in ranks])
            panel.minorticks_off()
        seen = [row["ms"] for row in times if row["by"] == by]
        panels[i][0].set(ylabel=f"{by}, ms", ylim=(0.7 * min(seen), 1.4 * max(seen)))
    for panel in panels[-1]:
        panel.set_xlabel("ranks")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=4)
    save(figure, path, bottom=0.06)


def _guide(panel, plain: Sequence[Row]) -> None:
    """Draw what p and p squared would be, from the plain rule's first point on."""
    if plain:
        first = plain[0]
        ranks = np.array([row["ranks"] for row in plain])
        for power in (1, 2):
            growth = first["ms"] * (ranks / first["ranks"]) ** power
            panel.plot(ranks, growth, ":", color="tab:red", linewidth=0.6)


def bytes_section(rows: Sequence[Row]) -> str:
    """Return what is seen of the bytes, with their figure and table."""
    table = pivot(
        rows,
        ("floats", "ranks"),
        lambda row: row["exchange"],
        lambda row: f"{row['sent']:.2f} ({row['busiest']:.2f})",
    )
    lines = []
    for floats in dict.fromkeys(row["floats"] for row in rows):
        p = max(row["ranks"] for row in rows if row["floats"] == floats)
        sent = {r["exchange"]: r for r in rows if (r["floats"], r["ranks"]) == (floats, p)}
        ring = sent.pop("allreduce")["sent"]
        each = ", ".join(f"`{name}` {row['sent'] / ring:.2f}" for name, row in sent.items())
        lines.append(f"{p} ranks and {floats:,} floats, in multiples of allreduce: {each}.")
    return f"""## Bytes

What a rank sends in a step, in multiples of the gradient of 4-byte floats, counted where they
are handed to the collectives: the mean of the ranks, which is what they receive, too,
and the busiest rank. `allreduce` is what a ring needs, `2 (p - 1) / p`. The rule is the median;
rules with distances also gather `4 (k + 1) (k + 2)` bytes from every rank. `r = 1` is plain
aggregation, sharded.

![Bytes that a rank sends, against the number of ranks](cost-bytes.svg)

{bullets(lines)}
Every rank sends 24 bytes for each of its `p` slices to `p - 1` ranks: `24 p (p - 1)`, whatever the
gradient. That lifts `sharded` above `1 + 1 / r` for many ranks and few floats.

{table}"""


def plot_bytes(rows: Sequence[Row], path: Path) -> None:
    """Draw the bytes against ranks, a panel for each number of floats."""
    sizes = list(dict.fromkeys(row["floats"] for row in rows))
    figure, panels = pyplot.subplots(
        1, len(sizes), figsize=(3 * len(sizes) + 0.6, 2.8), sharey=True, squeeze=False
    )
    for panel, floats in zip(panels[0], sizes, strict=True):
        chosen = [row for row in rows if row["floats"] == floats]
        for exchange in dict.fromkeys(row["exchange"] for row in rows):
            line = [row for row in chosen if row["exchange"] == exchange]
            style = "k-" if exchange == "allreduce" else ".-"
            ranks, sent = [r["ranks"] for r in line], [r["sent"] for r in line]
            panel.plot(ranks, sent, style, linewidth=1, label=exchange)
        panel.set(title=f"{floats:,} floats", xlabel="ranks", yscale="log")
        panel.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        panel.minorticks_off()
    panels[0][0].set_ylabel("sent / gradient")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=3)
    save(figure, path, bottom=0.16)
