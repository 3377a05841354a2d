"""The pages of the documentation as text: their links, anchors and blocks of code."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LANGUAGES = {"sh", "console", "text", "python", "diff", "toml", "{toctree}", "{include}"}
COMMANDS = {"sh", "console"}


class Block(NamedTuple):
    """A fenced block of code."""

    line: int
    language: str
    text: str


def pages() -> list[Path]:
    """Return all pages that people read."""
    beside = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    folders = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return [*beside, *sorted(folders)]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page.

    >>> blocks("a\\n```sh\\nls\\n```\\n")
    [Block(line=2, language='sh', text='ls\\n')]
    """
    found = re.finditer(r"^ *```(.*)\n((?:.*\n)*?) *```$", page, re.MULTILINE)
    return [
        Block(page.count("\n", 0, one.start()) + 1, one[1].strip() or "none", one[2])
        for one in found
    ]


def prose(page: str) -> str:
    """Return a page without its fenced blocks, the lines of which stay, empty."""
    return re.sub(
        r"^ *```.*\n(?:.*\n)*?^ *```$",
        lambda block: "\n" * block[0].count("\n"),
        page,
        flags=re.MULTILINE,
    )


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them.

    >>> sorted(anchors("# One, two\\n## `a_b(c)` - d\\n## One, two\\n"))
    ['a_bc---d', 'one-two', 'one-two-1']
    """
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.*?)#*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = "".join(map(_slug, text))
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def _slug(character: str) -> str:
    if character == " ":
        return "-"
    kept = character in "-_" or unicodedata.category(character)[0] in "LN"
    return character if kept else ""


def links(page: str) -> Iterator[tuple[int, str]]:
    """Yield the links and images of a page, with their lines.

    >>> [*links("a [b\\nc](d.md#e)\\n`[f](g)` ![h](i.svg)")]
    [(1, 'd.md#e'), (3, 'i.svg')]
    """
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for found in re.finditer(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        yield text.count("\n", 0, found.start()) + 1, found[1]


def commands(block: Block) -> list[str]:
    """Return the commands of a block, one a line, without comments.

    >>> commands(Block(1, "sh", "make a  # b\\nc \\\\\\n    d\\n# e\\n"))
    ['make a', 'c d']
    >>> commands(Block(1, "console", "$ a b\\noutput\\n"))
    ['a b']
    """
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    stripped = [re.sub(r"(^|\s)#.*", "", line) for line in lines]
    return [" ".join(line.split()) for line in stripped if line.strip()]
