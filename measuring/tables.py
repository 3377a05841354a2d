"""Results as rows, JSON lines and Markdown tables."""

import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def report(rows: list[Row], path: Path | None) -> None:
    """Append rows to a file of JSON lines; without one, print them as a table."""
    if path is None:
        header = list(dict.fromkeys(key for row in rows for key in row))
        print(markdown(header, [map(row.get, header) for row in rows]), flush=True)
        return
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def load(paths: Iterable[Path]) -> list[Row]:
    """Read the rows of some files, in the order of their names."""
    return [json.loads(line) for path in sorted(paths) for line in path.read_text().splitlines()]


def pivot(
    rows: Iterable[Row],
    index: Sequence[str],
    column: Callable[[Row], str],
    cell: Callable[[Row], Any],
) -> str:
    """Make a table of one line per value of `index` and one column per value of `column(row)`."""
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    columns: dict[str, None] = {}
    for row in rows:
        columns[column(row)] = None
        lines.setdefault(tuple(row[key] for key in index), {})[column(row)] = cell(row)
    body = [[*key, *(cells.get(name) for name in columns)] for key, cells in lines.items()]
    return markdown([*index, *columns], body)


def markdown(header: Sequence[str], body: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *([_text(value) for value in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def bullets(paragraphs: Iterable[str]) -> str:
    """Return a Markdown list of paragraphs, wrapped."""
    return "".join(
        textwrap.fill(
            f"- {each}", 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        + "\n"
        for each in paragraphs
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.{max(0, 2 - int(np.log10(max(abs(value), 1))))}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
