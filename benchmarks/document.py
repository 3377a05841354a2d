"""docs/benchmarks.md: all results as tables."""

from pathlib import Path

from benchmarks.plots import plot_exchange, plot_rules
from measuring import machine
from measuring.tables import Row, load, markdown, pivot

JOB = "all ranks on this machine, over Gloo (TCP, loopback), one thread per rank"


def write(results: Path, folder: Path) -> None:
    """Write the tables and figures of all results that there are."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        "# Benchmarks\n\nWritten by `make bench`; [performance.md](performance.md) says what it "
        "means. Times are\nmedians; ratios are medians of ratios of neighbouring runs.\n\n"
        f"{machine.describe(JOB)}"
    ]
    if exchange := load(results.glob("exchange-*")):
        sections.append(exchange_section(exchange))
        plot_exchange(exchange, folder / "exchange.svg")
    if overlap := load(results.glob("overlap-*")):
        sections.append(overlap_section(overlap))
    if training := load(results.glob("training-*")):
        sections.append(training_section(training))
    if rules := load(results.glob("aggregators-*")):
        sections.append(rules_section(rules))
        plot_rules(rules, folder / "rules.svg")
    (folder / "benchmarks.md").write_text("\n".join(sections))


def exchange_section(rows: list[Row]) -> str:
    """Return the tables of time, traffic and memory."""

    def name(row: Row) -> str:
        return row["exchange"] + ("" if row["liars"] == "no liar" else f", {row['liars']}")

    def time_column(row: Row) -> str:
        return "allreduce, ms" if row["exchange"] == "allreduce" else name(row)

    index = ("ranks", "floats")
    largest = max(row["floats"] for row in rows)
    times = pivot(rows, index, time_column, lambda row: row.get("ratio", row["ms"]))
    sent = pivot(
        [row for row in rows if row["floats"] == largest],
        ("ranks",),
        name,
        lambda row: f"{row['sent']:.2f} ({row['busiest']:.2f})",
    )
    memory = pivot(
        [row for row in rows if row["memory"] is not None], index, name, lambda row: row["memory"]
    )
    return f"""## The exchange

Time of `synchronize()` of an optimizer with one parameter, groups of 3, `outer="median"`, in
multiples of `hvd.allreduce_` of as many floats just before it; the slowest rank counts. A liar is
one rank of every group. A persistent one lied in earlier steps, too; a first-time liar did not.

{times}
![Time of the exchanges in multiples of allreduce](exchange.svg)

Bytes that a rank sends to others with {largest:,} floats, in multiples of the gradient, counted
where they are handed to Horovod: the mean of all ranks (which is also what they receive) and, in
brackets, the busiest rank. A broadcast counts as sent by its root to each other rank. For
allreduce: what a ring needs.

{sent}
Peak growth of a rank's memory while an optimizer is made and does its first two exchanges, in
multiples of the gradient (which is not counted itself); the largest of all ranks.

{memory}"""


def overlap_section(rows: list[Row]) -> str:
    """Return the table of what an exchange cannot hide behind a backward pass."""
    header = ("ranks", "optimizer", "exposed, ms", "quartiles", "/ Horovod")
    body = [
        (
            row["ranks"],
            row["optimizer"],
            f"{row['exposed_ms']:.0f}",
            f"{row['low']:.0f} to {row['high']:.0f}",
            f"{row['of_horovod']:.1f}",
        )
        for row in rows
    ]
    return (
        "## What a backward pass does not hide\n\nThe time of a step minus that of one without any "
        "exchange; the backward pass has 16 layers and sleeps 25 ms in each.\n\n"
        + markdown(header, body)
    )


def training_section(rows: list[Row]) -> str:
    """Return the table of training steps."""
    names = {
        "horovod": "Horovod, ms",
        "none": "no exchange / Horovod",
        "detox": "horovod_detox / Horovod",
    }
    table = pivot(
        rows,
        ("ranks", "images"),
        lambda row: names[row["optimizer"]],
        lambda row: row.get("ratio", row["ms"]),
    )
    return f"""## Training

A step of ResNet-18 ({rows[0]["floats"]:,} parameters) with SGD on images of 32 x 32:
with Horovod's `DistributedOptimizer`; with SGD alone, which is the forward and backward pass; and
with ours (groups of 3, `outer="median"`, `exchange="sharded"`).

{table}"""


def rules_section(rows: list[Row]) -> str:
    """Return one table for each number of threads and floats."""
    section = """## The rules

Time of each rule on so many votes, and how many times longer a plain version of it takes in NumPy
(`np.median`, `np.sort`, `np.argsort`, all distances between votes) and in torch (`torch.sort`),
right after it. A fifth of the votes is assumed to be faulty, or fewer if the rule tolerates fewer.
Plain versions do not look for votes that are not finite, as the rules do. Left out: more than 200
million numbers, for which the plain versions take too much memory and time. What takes more than a
second is measured once.
"""
    for threads, floats in dict.fromkeys((row["threads"], row["floats"]) for row in rows):
        cells = [
            cell
            for row in rows
            if (row["threads"], row["floats"]) == (threads, floats)
            for cell in _cells(row)
        ]
        table = pivot(cells, ("rule",), lambda cell: cell["column"], lambda cell: cell["value"])
        section += f"\n{floats:,} floats, threads: {threads}\n\n{table}"
    return f"{section}\n![Time of plain versions in multiples of the rules](rules.svg)\n"


def _cells(row: Row) -> list[Row]:
    """Return the time of the rule and, if there is a plain version, that in multiples of it."""
    ours = {"rule": f"`{row['rule']}`", "column": f"{row['votes']} votes, ms"}
    plain = ours | {"column": f"{row['against']} / ours, {row['votes']}", "value": row.get("ratio")}
    return [ours | {"value": row["reference_ms"]}, plain][: 1 if row["against"] == "itself" else 2]
