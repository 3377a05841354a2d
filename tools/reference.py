"""Write the tables of docs/settings.md and docs/aggregators.md, and README's, from the code.

    python tools/reference.py

A test compares them with what the code says now.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from horovod_detox import Detox
from horovod_detox.aggregators import AGGREGATORS, PRE_AGGREGATORS, Aggregator, Mean
from horovod_detox.aggregators.mixing import PreAggregator
from horovod_detox.registry import meanings

ROOT = Path(__file__).parents[1]
FRONT = ("group_size", "inner", "outer", "num_byzantine", "placement", "timeout")
"""The settings that most jobs need."""


def settings(names: Iterable[str]) -> str:
    """Return some settings as a table."""
    wanted = {*names}
    rows = [field for field in fields(Detox) if field.name in wanted]
    lines = [
        f"| `{field.name}` | {_default(field)} | {meanings(Detox)[field.name]} |" for field in rows
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *lines])


def aggregators(table: Mapping[str, type[Aggregator]] | Mapping[str, type[PreAggregator]]) -> str:
    """Return rules as a table."""
    lines = [
        f"| {_call(name, rule)} | {_sentence(rule)} | {_bound(rule)} |"
        for name, rule in table.items()
    ]
    return "\n".join(["| name | result | needs |", "|---|---|---|", *lines])


def tables() -> dict[str, str]:
    """Return every table by its name."""
    every = [field.name for field in fields(Detox)]
    return {
        "settings that most jobs need": settings(FRONT),
        "other settings": settings(name for name in every if name not in FRONT),
        "aggregators": aggregators(AGGREGATORS),
        "pre-aggregators": aggregators(PRE_AGGREGATORS),
    }


def written(page: str) -> str:
    """Return a page with its tables as the code has them now.

    A table stands between `<!-- NAME -->` and `<!-- end -->`.
    """

    def table(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{tables()[found[1]]}\n<!-- end -->"

    return re.sub(r"<!-- ([a-z -]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def pages() -> list[Path]:
    """Return the pages with such tables."""
    return [ROOT / "README.md", ROOT / "docs" / "settings.md", ROOT / "docs" / "aggregators.md"]


def _default(field: Field[Any]) -> str:
    value = field.default
    if isinstance(value, int) and value >= 1 << 20:
        return f"{value >> 20} MiB"
    return f'`"{value}"`' if isinstance(value, str) else f"{value}"


def _call(name: str, rule: type) -> str:
    parameters = [field.name for field in fields(rule) if field.repr]
    return f"`{name}({', '.join(parameters)})`" if parameters else f"`{name}`"


def _sentence(rule: type) -> str:
    """Return the first paragraph of a docstring."""
    return " ".join((inspect.getdoc(rule) or "").partition("\n\n")[0].split())


def _bound(rule: type) -> str:
    if not issubclass(rule, Aggregator):
        return ""
    if rule is Mean:
        return "f = 0"
    factor, constant = rule.bound
    return f"n >= {factor}f + {constant}"


if __name__ == "__main__":
    for page in pages():
        page.write_text(written(page.read_text()))
